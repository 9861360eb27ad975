//! The queries that clients can open: the settings' and those that clients have declared, and what each is bound to.

use super::Control;
use super::catalogue::Found;
use super::connection::Waiting;
use super::requests::error;
use crate::clock::millis;
use crate::model::Model;
use crate::poller::messages::{Command, ConnectionId, OpenError, QuerySnapshot};
use crate::query::{Bound, QueryId, Spec};
use crate::stats::{Percentiles, QueryReport, StageReport};
use rota_ipc::control::{ErrorCode, QueryDeclaration, QueryInfo, Reply, StageInfo};
use slab::Slab;
use std::sync::Arc;
use std::time::Duration;

/// All of them. A handful, and cold: names are looked for one by one.
pub(super) struct Queries {
    entries: Slab<Entry>,
    /// Numbers that neither a query here has, nor one that the poller has still to let go.
    ids: Vec<QueryId>,
    per_user: usize,
}

struct Entry {
    spec: Arc<Spec>,
    /// Whose connections may open it, and how many of them have declared it; `None`: the settings' own, for everybody.
    declared: Option<Declared>,
    /// While all its models are served.
    bound: Option<Arc<Bound>>,
    /// What stands against serving it, since it was last tried.
    problem: Option<String>,
}

struct Declared {
    uid: u32,
    holders: u32,
}

/// Why a query can't be opened now.
enum Unbound {
    /// A model of it is being loaded.
    Loading,
    Refused {
        code: ErrorCode,
        message: String,
    },
}

impl Queries {
    /// `most`: in all.
    pub fn new(specs: Vec<Spec>, most: u32, per_user: u32) -> Queries {
        let mut entries = Slab::new();
        for spec in specs {
            entries.insert(Entry { spec: Arc::new(spec), declared: None, bound: None, problem: None });
        }
        Queries { entries, ids: (0..most).rev().map(QueryId).collect(), per_user: per_user as usize }
    }

    /// The query of this name that a user can open: the settings' before one's own.
    fn find(&self, uid: u32, name: &str) -> Option<usize> {
        let named = |declared: bool| {
            let is = |entry: &Entry| {
                let mine = entry.declared.as_ref().map(|declared| declared.uid == uid);
                entry.spec.name == name && mine.unwrap_or(true) && mine.is_some() == declared
            };
            self.entries.iter().find(|(_, entry)| is(entry)).map(|(key, _)| key)
        };
        named(false).or_else(|| named(true))
    }

    fn known(&self, uid: u32) -> String {
        let is_open = |entry: &Entry| entry.declared.as_ref().is_none_or(|declared| declared.uid == uid);
        let names = self.entries.iter().filter(|(_, entry)| is_open(entry)).map(|(_, entry)| &entry.spec.name[..]);
        names.collect::<Vec<_>>().join(", ")
    }
}

impl Control {
    /// Opens a query for a connection, as soon as its models are there.
    pub(super) fn open_query(&mut self, key: usize, name: &str) -> Option<Reply> {
        if let Some(refusal) = self.refuse_query(key) {
            return Some(refusal);
        }
        let uid = self.connections[key].uid;
        let Some(entry) = self.queries.find(uid, name) else {
            let known = self.queries.known(uid);
            let message = match known.is_empty() {
                true => format!("there is no query \"{name}\"; none is in the settings or declared"),
                false => format!("there is no query \"{name}\"; there are: {known}"),
            };
            return Some(error(ErrorCode::UnknownQuery, message));
        };
        match self.bind(entry) {
            Ok(bound) => self.open_bound(key, bound),
            Err(Unbound::Loading) => self.wait(key, Waiting::QueryAfterLoad { name: name.to_string() }),
            Err(Unbound::Refused { code, message }) => Some(error(code, message)),
        }
    }

    /// Makes a query known to this connection's user, and opens it.
    pub(super) fn declare(&mut self, key: usize, declaration: QueryDeclaration) -> Option<Reply> {
        if let Some(refusal) = self.refuse_query(key) {
            return Some(refusal);
        }
        let spec = match Spec::check(&declaration) {
            Ok(spec) => spec,
            Err(what) => return Some(error(ErrorCode::Query, what)),
        };
        let uid = self.connections[key].uid;
        let known = self.queries.find(uid, &spec.name);
        if let Some(entry) = known.filter(|&entry| *self.queries.entries[entry].spec != spec) {
            let whose = match self.queries.entries[entry].declared {
                None => "in the daemon's settings",
                Some(_) => "declared by another connection of this user, or before on this one",
            };
            let message = format!("there is another query \"{}\", {whose}; choose another name", spec.name);
            return Some(error(ErrorCode::Query, message));
        }
        let entry = match known {
            Some(entry) => entry,
            None => {
                let mine = |entry: &Entry| entry.declared.as_ref().is_some_and(|declared| declared.uid == uid);
                let count = self.queries.entries.iter().filter(|(_, entry)| mine(entry)).count();
                if count >= self.queries.per_user {
                    let message =
                        format!("user {uid} has declared {count} queries, which is the most (queries_per_user)");
                    return Some(error(ErrorCode::Limit, message));
                }
                let declared = Some(Declared { uid, holders: 0 });
                self.queries.entries.insert(Entry { spec: Arc::new(spec), declared, bound: None, problem: None })
            }
        };
        self.hold(key, entry);
        match self.bind(entry) {
            Ok(bound) => self.open_bound(key, bound),
            Err(Unbound::Loading) => {
                let name = self.queries.entries[entry].spec.name.clone();
                self.wait(key, Waiting::QueryAfterLoad { name })
            }
            Err(Unbound::Refused { code, message }) => {
                self.let_go(key, entry);
                Some(error(code, message))
            }
        }
    }

    /// The connection is one of those that have declared it, if it is declared at all.
    fn hold(&mut self, key: usize, entry: usize) {
        let declared = &mut self.connections[key].declared;
        if let Some(Declared { holders, .. }) = &mut self.queries.entries[entry].declared
            && !declared.contains(&entry)
        {
            declared.push(entry);
            *holders += 1;
        }
    }

    /// The connection is no longer; nor is the query, when it was the last.
    fn let_go(&mut self, key: usize, entry: usize) {
        self.connections[key].declared.retain(|&held| held != entry);
        self.release_query(entry);
    }

    /// One connection less has it declared.
    pub(super) fn release_query(&mut self, entry: usize) {
        let Some(Declared { holders, .. }) = &mut self.queries.entries[entry].declared else { return };
        *holders -= 1;
        if *holders == 0
            && let Some(bound) = self.queries.entries.remove(entry).bound
        {
            self.tell_poller(Command::RemoveQuery { query: bound.id });
        }
    }

    fn refuse_query(&self, key: usize) -> Option<Reply> {
        if !self.connections[key].has_memory {
            return Some(error(ErrorCode::BadRequest, "say hello before opening a query"));
        }
        self.draining.then(|| error(ErrorCode::Draining, "the daemon is stopping"))
    }

    /// The query with its models, in service.
    fn bind(&mut self, entry: usize) -> Result<Arc<Bound>, Unbound> {
        let Entry { spec, bound, .. } = &self.queries.entries[entry];
        if let Some(bound) = bound {
            return Ok(Arc::clone(bound));
        }
        let refused = |code, what: String| {
            let message = format!("query \"{}\": {what}", spec.name);
            Unbound::Refused { code, message }
        };
        let mut models: Vec<Arc<Model>> = Vec::with_capacity(spec.stages.len());
        for stage in &spec.stages {
            match self.catalogue.find(&stage.model, stage.version) {
                Found::Ready(model) => models.push(model),
                Found::Loading => return Err(Unbound::Loading),
                Found::Missing(why) => {
                    return Err(refused(ErrorCode::UnknownModel, format!("stage \"{}\": {why}", stage.name)));
                }
            }
        }
        let full = || refused(ErrorCode::Limit, "as many queries are served as there may be (queries_max)".into());
        let id = *self.queries.ids.last().ok_or_else(full)?;
        let bound = Bound::new(id, Arc::clone(spec), models).map_err(|what| refused(ErrorCode::Slo, what))?;
        let bound = Arc::new(bound);
        self.queries.ids.pop();
        self.queries.entries[entry].bound = Some(Arc::clone(&bound));
        self.tell_poller(Command::AddQuery { query: Arc::clone(&bound) });
        Ok(bound)
    }

    /// Takes into service what queries can be; what stands against others is logged when it is new, and shown in the status.
    pub(super) fn bind_queries(&mut self) {
        let keys: Vec<usize> = self.queries.entries.iter().map(|(key, _)| key).collect();
        for key in keys {
            let problem = match self.bind(key) {
                Err(Unbound::Refused { message, .. }) => Some(message),
                Ok(_) | Err(Unbound::Loading) => None,
            };
            let known = &mut self.queries.entries[key].problem;
            if let Some(message) = problem.as_ref().filter(|_| *known != problem) {
                tracing::error!(reason = %message, "a query can't be served");
            }
            *known = problem;
        }
    }

    /// Why queries are not served.
    pub(super) fn query_problems(&self) -> Vec<&str> {
        let unserved = self.queries.entries.iter().filter(|(_, entry)| entry.bound.is_none());
        unserved.filter_map(|(_, entry)| entry.problem.as_deref()).collect()
    }

    fn open_bound(&mut self, key: usize, bound: Arc<Bound>) -> Option<Reply> {
        let id = self.connections[key].id;
        self.tell_poller(Command::OpenQuery { id, query: bound.id });
        self.wait(key, Waiting::Query { bound })
    }

    pub(super) fn query_opened(&mut self, id: ConnectionId, stages: Result<Vec<(u32, Duration)>, OpenError>) {
        let Some(&key) = self.keys.get(&id) else { return };
        let Some(Waiting::Query { bound }) = self.connections[key].waiting.take() else { return };
        let reply = match stages {
            Ok(stages) => Reply::Query { query: self.query_info(&bound, &stages) },
            Err(why @ OpenError::Draining) => error(ErrorCode::Draining, why.to_string()),
            Err(why) => error(ErrorCode::Limit, why.to_string()),
        };
        self.answer(key, &reply);
    }

    fn query_info(&self, bound: &Bound, opened: &[(u32, Duration)]) -> QueryInfo {
        let spec = &bound.spec;
        let stages = spec.stages.iter().zip(&bound.models).zip(opened);
        let stage =
            |((stage, model), &(session, share)): ((&crate::query::Stage, &Arc<Model>), &(u32, Duration))| StageInfo {
                name: stage.name.clone(),
                session,
                after: stage.after.map(|after| spec.stages[after].name.clone()),
                max_calls: stage.max_calls,
                share_ms: millis(share),
                model: model.info(),
            };
        QueryInfo {
            id: bound.id.0,
            name: spec.name.clone(),
            slo_ms: millis(spec.slo),
            stages: stages.map(stage).collect(),
        }
    }

    /// The poller no longer serves a query: it was forgotten, or a model of it has left and it may be bound again.
    pub(super) fn query_removed(&mut self, id: QueryId) {
        self.queries.ids.push(id);
        for (_, entry) in &mut self.queries.entries {
            entry.bound.take_if(|bound| bound.id == id);
        }
    }
}

pub(super) fn query_report(snapshot: &QuerySnapshot) -> QueryReport {
    let QuerySnapshot { bound, shares, gammas, calls, goodput, stats } = snapshot;
    let spec = &bound.spec;
    let stage = |index: usize| {
        let (stage, model) = (&spec.stages[index], &bound.models[index]);
        StageReport {
            name: stage.name.clone(),
            model: model.name.clone(),
            version: model.version,
            after: stage.after.map(|after| spec.stages[after].name.clone()),
            gamma: stage.after.map(|_| gammas[index]),
            share_ms: millis(shares[index]),
            offered_rate: calls[index],
        }
    };
    QueryReport {
        name: spec.name.clone(),
        slo_ms: millis(spec.slo),
        weight: spec.weight,
        runs: stats.open(),
        started: stats.started,
        ok: stats.ok,
        late: stats.late,
        dropped: stats.dropped,
        failed: stats.failed,
        abandoned: stats.abandoned,
        expired: stats.expired,
        goodput: *goodput,
        bad_rate: QueryReport::bad_rate(stats),
        total_time: Percentiles::of(&stats.total),
        stages: (0..spec.stages.len()).map(stage).collect(),
    }
}
