//! The queries that clients can run: their stages' sessions, their shares of the SLO, and what was measured of them.

use super::clients::{Handle, SESSIONS_PER_CLIENT};
use super::demand::Planned;
use super::messages::{Notice, OpenError, QuerySnapshot};
use super::{Poller, SessionState};
use crate::planning::{QueryDemand, QuerySplit};
use crate::query::{Bound, QueryId};
use crate::stats::{QueryStats, RecentRate};
use rota_sched::query::Room;
use rota_sched::{Instant, ModelId, SessionId};
use std::sync::Arc;
use std::time::Duration;

/// A query that is served. Lists are by stage.
pub(super) struct QueryState {
    pub bound: Arc<Bound>,
    /// The dispatcher's sessions: nobody opens them by model and SLO.
    pub sessions: Vec<SessionId>,
    /// Parts of the SLO, as they are now.
    pub shares: Vec<Duration>,
    pub rooms: Vec<Room>,
    /// What a call and those behind it take at least, in batches of one.
    pub least: Vec<Duration>,
    pub stats: QueryStats,
    pub flows: Vec<Flow>,
}

/// What runs that were finished asked of a stage lately, in items.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flow {
    pub asked: RecentRate,
    pub answered: RecentRate,
    /// Items of it for each item that the stage before answered, as it was last planned for.
    gamma: f64,
    /// What that γ makes of what the stage before answers.
    planned: Planned,
}

impl QueryState {
    /// By stage; 1 where the query begins. What is not measured now is as it last was.
    fn gammas(&self, now: Instant) -> Vec<f64> {
        let stages = self.bound.spec.stages.iter().zip(&self.flows);
        let gamma = |(stage, flow): (&crate::query::Stage, &Flow)| {
            let before = self.flows[stage.after?].answered.per_second(now);
            Some(if before > 0.0 { flow.asked.per_second(now) / before } else { flow.gamma })
        };
        stages.map(|stage| gamma(stage).unwrap_or(1.0)).collect()
    }
}

impl Poller {
    pub(super) fn query(&self, id: QueryId) -> &QueryState {
        self.queries[id.0 as usize].as_ref().expect("a query stays while somebody refers to it")
    }

    /// Takes a query into service. If there is no room for its sessions, whoever opens it is told.
    pub(super) fn add_query(&mut self, bound: Arc<Bound>, now: Instant) {
        let index = bound.id.0 as usize;
        let mut sessions = Vec::with_capacity(bound.models.len());
        for (stage, model) in (0u16..).zip(&bound.models) {
            let (share, weight) = (bound.split.shares[stage as usize], bound.split.weights[stage as usize]);
            match self.add_session(Arc::clone(model), share, weight, Some((bound.id, stage))) {
                Ok(session) => sessions.push(session),
                Err(error) => {
                    tracing::warn!(query = %bound.spec.name, %error, "can't be served");
                    sessions.into_iter().for_each(|session| self.forget_session(session));
                    return (self.notices)(Notice::QueryRemoved { query: bound.id });
                }
            }
        }
        let shares = bound.split.shares.clone();
        let rooms = bound.rooms(&shares);
        let least = rooms.iter().zip(&bound.models).map(|(room, model)| room.behind + model.batch_of_one()).collect();
        let (asked, answered) = (RecentRate::new(now), RecentRate::new(now));
        let flows = vec![Flow { asked, answered, gamma: 1.0, planned: Planned::default() }; shares.len()];
        let stats = QueryStats::new(now);
        if self.queries.len() <= index {
            self.queries.resize_with(index + 1, || None);
        }
        self.queries[index] = Some(QueryState { bound, sessions, shares, rooms, least, stats, flows });
    }

    /// Opens a query for a client: by stage, the client's number for its session, and its share.
    pub(super) fn open_query(&mut self, key: usize, id: QueryId) -> Result<Vec<(u32, Duration)>, OpenError> {
        if self.draining {
            return Err(OpenError::Draining);
        }
        let Some(Some(query)) = self.queries.get(id.0 as usize) else {
            return Err(OpenError::NoQuery);
        };
        let client = &mut self.clients.entries[key];
        if client.sessions.len() + query.sessions.len() > SESSIONS_PER_CLIENT {
            return Err(OpenError::ConnectionFull(SESSIONS_PER_CLIENT));
        }
        if !client.queries.contains(&id) {
            client.queries.push(id);
        }
        let first = client.sessions.len() as u32;
        client.sessions.extend(query.sessions.iter().map(|&session| Handle::Open(session)));
        let opened = (first..).zip(&query.shares).map(|(number, &share)| (number, share)).collect();
        for stage in 0..query.sessions.len() {
            let query = self.query(id);
            let (session, model) = (query.sessions[stage], query.bound.models[stage].id);
            self.session_mut(session).clients += 1;
            self.tune_home(model);
        }
        Ok(opened)
    }

    /// Takes a query out of service: its runs are lost, its sessions leave. Its number is free then.
    pub(super) fn remove_query(&mut self, id: QueryId, now: Instant) {
        if !self.queries.get(id.0 as usize).is_some_and(Option::is_some) {
            return;
        }
        self.lose_runs_of(id, now);
        for (_, client) in &mut self.clients.entries {
            client.queries.retain(|&query| query != id);
            for handle in &mut client.sessions {
                let of_query = |session: &SessionState| session.stage.is_some_and(|(query, _)| query == id);
                if matches!(*handle, Handle::Open(s) if self.sessions[s.0 as usize].as_ref().is_some_and(of_query)) {
                    *handle = Handle::Unloaded;
                }
            }
        }
        let Some(query) = self.queries[id.0 as usize].take() else { return };
        for (&session, model) in query.sessions.iter().zip(&query.bound.models) {
            // One whose requests still execute is then a session that nobody has open, and makes room when room is needed.
            let state = self.session_mut(session);
            (state.clients, state.stage) = (0, None);
            self.tune_home(model.id);
            if self.requests_of(session) == 0 {
                self.forget_session(session);
            }
        }
        (self.notices)(Notice::QueryRemoved { query: id });
    }

    /// A model leaves: no query can do without it.
    pub(super) fn remove_queries_of(&mut self, model: ModelId, now: Instant) {
        for index in 0..self.queries.len() {
            let asks = |query: &QueryState| query.bound.models.iter().any(|asked| asked.id == model);
            if self.queries[index].as_ref().is_some_and(asks) {
                self.remove_query(QueryId(index as u32), now);
            }
        }
    }

    /// What one query asks for, for the planner.
    pub(super) fn query_demand(&mut self, index: usize, now: Instant) -> Option<QueryDemand> {
        let query = self.queries[index].as_mut()?;
        let gammas = query.gammas(now);
        for (flow, &gamma) in query.flows.iter_mut().zip(&gammas) {
            (flow.gamma, flow.planned) = (gamma, Planned::default());
        }
        let first = query.sessions[query.bound.spec.root];
        let (bound, sessions) = (Arc::clone(&query.bound), query.sessions.clone());
        let rate = self.sessions[first.0 as usize].as_ref().map_or(0.0, |first| first.stats.asked.per_second(now));
        Some(QueryDemand { bound, sessions, rate, gammas })
    }

    /// Compares what a query's stages were called with what was planned for; true when a γ has been another one for long.
    pub(super) fn compare_query(&mut self, index: usize, now: Instant) -> bool {
        let Some(query) = self.queries.get_mut(index).and_then(Option::as_mut) else { return false };
        let mut apart = false;
        for (stage, declared) in query.bound.spec.stages.iter().enumerate() {
            let Some(before) = declared.after else { continue };
            let answered = query.flows[before].answered.per_second(now);
            let flow = &mut query.flows[stage];
            apart |= flow.planned.compare_with(flow.gamma * answered, flow.asked.per_second(now), now);
        }
        apart
    }

    /// Takes over how a plan divides a query's SLO and weight. Calls that wait keep their deadlines. Of a query that has left
    /// meanwhile nothing is taken.
    pub(super) fn take_split(&mut self, split: &QuerySplit) {
        let index = split.bound.id.0 as usize;
        let Some(Some(query)) = self
            .queries
            .get_mut(index)
            .filter(|query| query.as_ref().is_some_and(|query| Arc::ptr_eq(&query.bound, &split.bound)))
        else {
            return;
        };
        query.rooms = query.bound.rooms(&split.split.shares);
        query.shares.clone_from(&split.split.shares);
        let sessions = query.sessions.clone();
        let divided = split.split.shares.iter().zip(&split.split.weights);
        for (session, (&share, &weight)) in sessions.into_iter().zip(divided) {
            let state = self.session_mut(session);
            (state.slo, state.weight) = (share, weight);
            let model = state.model.id;
            self.dispatcher.change_session(session, share, weight);
            self.tune_home(model);
        }
    }

    /// A query's state at this moment, for a report.
    pub(super) fn query_snapshot(&self, index: usize, now: Instant) -> Option<QuerySnapshot> {
        let query = self.queries[index].as_ref()?;
        Some(QuerySnapshot {
            bound: Arc::clone(&query.bound),
            shares: query.shares.clone(),
            gammas: query.gammas(now),
            calls: query.sessions.iter().map(|&session| self.rates(session, now).offered).collect(),
            goodput: query.stats.good.per_second(now),
            stats: query.stats.clone(),
        })
    }
}
