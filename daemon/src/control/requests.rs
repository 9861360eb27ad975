//! The control messages, one by one.

use super::catalogue::Found;
use super::connection::Waiting;
use super::{Control, Message, Report};
use crate::arenas::Change;
use crate::background::Source;
use crate::clock::millis;
use crate::model::Model;
use crate::poller::messages::{Command, ConnectionId, DeviceReport, OpenError, PollerReport, SessionSnapshot};
use crate::repository;
use crate::stats::{Percentiles, SessionReport};
use rota_device::Engine;
use rota_ipc::control::{ErrorCode, ModelInfo, Reply, Request};
use rota_ipc::wire::{SLOTS_MAX, SLOTS_MIN, VERSION};
use std::sync::Arc;
use std::time::Duration;

/// Longest client name that is kept.
const NAME_MAX: usize = 64;
/// Longest SLO that makes sense to a scheduler.
const SLO_MAX_MS: f64 = crate::query::SLO_MAX_MS;

pub(super) fn error(code: ErrorCode, message: impl Into<String>) -> Reply {
    Reply::Error { code, message: message.into() }
}

impl Control {
    pub(super) fn handle_request(&mut self, key: usize, request: Request) {
        let answered = match request {
            Request::Hello { versions, client, slots, arena_bytes } => {
                self.hello(key, &versions, client, slots, arena_bytes)
            }
            Request::Open { model, version, slo_ms } => self.open(key, model, version, slo_ms),
            Request::Close { session } => self.close_session(key, session),
            Request::Query { name } => self.open_query(key, &name),
            Request::Declare { query } => self.declare(key, query),
            Request::Models {} => {
                Some(Reply::Models { models: self.catalogue.ready().map(|model| self.info(model)).collect() })
            }
            Request::Status {} => {
                let under_way = self.connections.iter().any(|(_, c)| matches!(c.waiting, Some(Waiting::Status)));
                if !under_way {
                    self.tell_poller(Command::Report);
                }
                self.wait(key, Waiting::Status)
            }
            Request::Load { model, version } => {
                self.permit(key, "load a model").or_else(|| self.load_named(key, model, version))
            }
            Request::Unload { model, version } => {
                self.permit(key, "unload a model").or_else(|| self.unload(key, &model, version))
            }
            Request::Drain {} => self.permit(key, "drain the daemon").or_else(|| {
                if !self.draining {
                    self.drain();
                }
                self.wait(key, Waiting::Drain)
            }),
        };
        if let Some(reply) = answered {
            self.connections[key].reply(&reply);
        }
    }

    pub(super) fn wait(&mut self, key: usize, waiting: Waiting) -> Option<Reply> {
        self.connections[key].waiting = Some(waiting);
        None
    }

    /// An error unless the client is the daemon's own user or root.
    fn permit(&self, key: usize, what: &str) -> Option<Reply> {
        let uid = self.connections[key].uid;
        if uid == 0 || uid == self.options.uid {
            return None;
        }
        let message = format!("user {uid} may not {what}; user {} and root may", self.options.uid);
        Some(error(ErrorCode::Permission, message))
    }

    fn hello(&mut self, key: usize, versions: &[u32], client: String, slots: u32, arena_bytes: u64) -> Option<Reply> {
        if let Some(refusal) = self.refuse_hello(key, versions, slots, arena_bytes) {
            return Some(refusal);
        }
        let (memory, descriptors) = match rota_ipc::server::Connection::create(slots, arena_bytes) {
            Ok(made) => made,
            Err(cause) => {
                let message = format!("an arena of {arena_bytes} bytes can't be had: {cause}; ask for less");
                return Some(error(ErrorCode::Limit, message));
            }
        };
        let arena_bytes = memory.arena().len() as u64;
        let name: String = client.chars().filter(|c| !c.is_control()).take(NAME_MAX).collect();
        let connection = &mut self.connections[key];
        if !name.is_empty() {
            connection.name = name;
        }
        connection.has_memory = true;
        connection.arena_bytes = arena_bytes;
        let daemon = format!("rota {}", env!("CARGO_PKG_VERSION"));
        connection.welcome(&Reply::Welcome { version: VERSION, daemon, slots, arena_bytes }, descriptors);
        let (id, uid, name) = (connection.id, connection.uid, connection.name.clone());
        // Where nobody does it, copies are right all the same.
        let _ = self.arenas.send(Change::Came(Arc::downgrade(memory.arena())));
        self.tell_poller(Command::Connect { id, connection: Box::new(memory), uid, name });
        None
    }

    fn refuse_hello(&self, key: usize, versions: &[u32], slots: u32, arena_bytes: u64) -> Option<Reply> {
        if self.connections[key].has_memory {
            return Some(error(ErrorCode::BadRequest, "hello was said already"));
        }
        if self.draining {
            return Some(error(ErrorCode::Draining, "the daemon is stopping"));
        }
        if !versions.contains(&VERSION) {
            let message = format!("this daemon speaks version {VERSION} of the protocol, the client {versions:?}");
            return Some(error(ErrorCode::Version, message));
        }
        if !slots.is_power_of_two() || !(SLOTS_MIN..=SLOTS_MAX).contains(&slots) {
            let message = format!("slots = {slots} must be a power of two from {SLOTS_MIN} to {SLOTS_MAX}");
            return Some(error(ErrorCode::BadRequest, message));
        }
        let limits = &self.options.limits;
        if arena_bytes == 0 || arena_bytes > limits.arena_mb << 20 {
            let message = format!("an arena of {arena_bytes} bytes; this daemon gives 1 to {}", limits.arena_mb << 20);
            return Some(error(ErrorCode::Limit, message));
        }
        let uid = self.connections[key].uid;
        let mine = || self.connections.iter().filter(|(_, c)| c.uid == uid && c.has_memory);
        let count = mine().count();
        if count >= limits.connections_per_user as usize {
            let message = format!("user {uid} has {count} connections, which is the most (connections_per_user)");
            return Some(error(ErrorCode::Limit, message));
        }
        let held: u64 = mine().map(|(_, c)| c.arena_bytes).sum();
        if held + arena_bytes > limits.arena_mb_per_user << 20 {
            let message = format!(
                "user {uid} holds {} MB of arenas and asks for {} more; the most is {} (arena_mb_per_user)",
                held >> 20,
                arena_bytes >> 20,
                limits.arena_mb_per_user
            );
            return Some(error(ErrorCode::Limit, message));
        }
        None
    }

    fn open(&mut self, key: usize, name: String, version: Option<u64>, slo_ms: Option<f64>) -> Option<Reply> {
        if !self.connections[key].has_memory {
            return Some(error(ErrorCode::BadRequest, "say hello before opening a session"));
        }
        if self.draining {
            return Some(error(ErrorCode::Draining, "the daemon is stopping"));
        }
        if let Some(slo) = slo_ms.filter(|slo| !(*slo > 0.0 && *slo <= SLO_MAX_MS)) {
            let message = format!("slo_ms = {slo} must be above 0 and at most {SLO_MAX_MS}");
            return Some(error(ErrorCode::Slo, message));
        }
        let model = match self.catalogue.find(&name, version) {
            Found::Ready(model) => model,
            Found::Loading => return self.wait(key, Waiting::OpenAfterLoad { model: name, version, slo_ms }),
            Found::Missing(why) => return Some(error(ErrorCode::UnknownModel, why)),
        };
        let slo = slo_ms.map_or(model.default_slo, |ms| Duration::from_secs_f64(ms / 1e3));
        if let Some(refusal) = hopeless_slo(&model, slo) {
            return Some(refusal);
        }
        let id = self.connections[key].id;
        self.tell_poller(Command::Open { id, model: model.id, slo });
        self.wait(key, Waiting::Open { model, slo })
    }

    /// Opens the sessions and queries that waited for a model to be loaded.
    pub(super) fn retry_opens(&mut self) {
        let keys: Vec<usize> = self.connections.iter().map(|(key, _)| key).collect();
        for key in keys {
            let connection = &mut self.connections[key];
            let waits = |w: &mut Waiting| matches!(w, Waiting::OpenAfterLoad { .. } | Waiting::QueryAfterLoad { .. });
            let reply = match connection.waiting.take_if(waits) {
                Some(Waiting::OpenAfterLoad { model, version, slo_ms }) => self.open(key, model, version, slo_ms),
                Some(Waiting::QueryAfterLoad { name }) => self.open_query(key, &name),
                _ => None,
            };
            if let Some(reply) = reply {
                self.answer(key, &reply);
            }
        }
    }

    pub(super) fn opened(&mut self, id: ConnectionId, session: Result<u32, OpenError>) {
        let Some(&key) = self.keys.get(&id) else { return };
        let Some(Waiting::Open { model, slo }) = self.connections[key].waiting.take() else { return };
        let reply = match session {
            Ok(session) => Reply::Opened { session, slo_ms: millis(slo), model: model.info() },
            Err(why @ OpenError::Unloading) => error(ErrorCode::UnknownModel, why.to_string()),
            Err(why @ OpenError::Draining) => error(ErrorCode::Draining, why.to_string()),
            Err(why) => error(ErrorCode::Limit, why.to_string()),
        };
        self.answer(key, &reply);
    }

    fn close_session(&mut self, key: usize, session: u32) -> Option<Reply> {
        let connection = &self.connections[key];
        if !connection.has_memory {
            return Some(error(ErrorCode::BadRequest, "say hello before closing a session"));
        }
        self.tell_poller(Command::Close { id: connection.id, session });
        Some(Reply::Done {})
    }

    fn load_named(&mut self, key: usize, name: String, version: Option<u64>) -> Option<Reply> {
        let Some(repository) = self.options.repository.clone() else {
            return Some(error(ErrorCode::Load, "this daemon has no model repository"));
        };
        let scan = match repository::scan(&repository) {
            Ok(scan) => scan,
            Err(cause) => return Some(error(ErrorCode::Load, format!("{}: {cause}", repository.display()))),
        };
        self.options.problems = scan.problems;
        let entry = scan.entries.iter().rev().find(|e| e.name == name && version.is_none_or(|v| v == e.version));
        let Some(entry) = entry else {
            let folder = repository.join(&name);
            let why = self.options.problems.iter().find(|p| p.path.starts_with(&folder)).map(|p| p.what.clone());
            let why = why.unwrap_or_else(|| "no such model there, or no such version".to_string());
            return Some(error(ErrorCode::Load, format!("{}: {why}", folder.display())));
        };
        let version = entry.version;
        if !self.load(Source::Repository(Box::new(entry.clone()))) {
            let message = format!("version {version} of \"{name}\" is served already; unload it to load it anew");
            return Some(error(ErrorCode::Load, message));
        }
        self.wait(key, Waiting::Load { name, version })
    }

    fn unload(&mut self, key: usize, name: &str, version: Option<u64>) -> Option<Reply> {
        let models = self.catalogue.unload(name, version);
        if models.is_empty() {
            let why = match self.catalogue.find(name, version) {
                Found::Missing(why) => why,
                _ => format!("model \"{name}\" is still being loaded"),
            };
            return Some(error(ErrorCode::UnknownModel, why));
        }
        for model in &models {
            tracing::info!(model = name, version = model.version, "unloading");
            self.tell_poller(Command::Remove { model: model.id });
        }
        self.wait(key, Waiting::Unload { models: models.iter().map(|m| m.id).collect() })
    }

    /// A model as clients see it.
    fn info(&self, model: &Arc<Model>) -> ModelInfo {
        let group = self.group_of(model).and_then(|group| group.group_info(model.id));
        ModelInfo { group, ..model.info() }
    }

    pub(super) fn status(&self, report: Report, poller: PollerReport) -> serde_json::Value {
        serde_json::json!({
            "rota": env!("CARGO_PKG_VERSION"),
            "pid": std::process::id(),
            "uptime_s": self.started.elapsed().as_secs_f64(),
            "socket": self.options.socket,
            "repository": self.options.repository,
            "draining": self.draining,
            "loading": self.catalogue.is_loading(),
            "grouping": self.grouping,
            "models": self.catalogue.report(),
            "problems": self.options.problems,
            "sessions": report.sessions,
            "queries": report.queries,
            "query_problems": self.query_problems(),
            "devices": self.devices_report(poller.devices),
            "plan": self.plan_report(),
            "clients": poller.clients,
            "requests_in_flight": poller.requests_in_flight,
        })
    }

    /// The poller's, with what lies in the memory of those that have some of their own: `memory`, in bytes.
    fn devices_report(&self, devices: Vec<DeviceReport>) -> Vec<serde_json::Value> {
        let engines = self.options.engines.iter().map(Option::as_ref).chain(std::iter::repeat(None));
        let report = |(device, engine): (DeviceReport, Option<&Arc<dyn Engine>>)| {
            let mut report = serde_json::json!(device);
            if let Some(usage) = engine.and_then(|engine| engine.usage()) {
                report["memory"] = serde_json::json!(usage);
            }
            report
        };
        devices.into_iter().zip(engines).map(report).collect()
    }

    /// The plan that holds; `null` before the first.
    fn plan_report(&self) -> serde_json::Value {
        let Some(plan) = &self.plan else { return serde_json::Value::Null };
        serde_json::json!({
            "count": plan.count,
            "cause": plan.cause,
            "age_s": plan.made.elapsed().as_secs_f64(),
            "took_ms": millis(plan.took),
            "error": plan.error,
            "devices": plan.report.devices,
            "unplaced": plan.report.unplaced,
        })
    }
}

/// An error when not even a batch of one ends within `slo`.
fn hopeless_slo(model: &Model, slo: Duration) -> Option<Reply> {
    let least = model.batch_of_one();
    if least <= slo {
        return None;
    }
    let message = format!(
        "an SLO of {:.3} ms can't be met: a batch of one of model \"{}\" takes {:.3} ms; ask for at least {:.3} ms",
        millis(slo),
        model.name,
        millis(least),
        2.0 * millis(least),
    );
    Some(error(ErrorCode::Slo, message))
}

pub(super) fn session_report(snapshot: &SessionSnapshot) -> SessionReport {
    let SessionSnapshot { model, slo, weight, stage, clients, rates, promised_rate, goodput, stats } = snapshot;
    SessionReport {
        model: model.name.clone(),
        version: model.version,
        stage: stage.clone(),
        slo_ms: millis(*slo),
        clients: *clients,
        offered_rate: rates.offered,
        promised_rate: *promised_rate,
        goodput: *goodput,
        weight: *weight,
        queued: rates.queued,
        target_batch: rates.target_batch,
        offered: stats.offered,
        ok: stats.ok,
        late: stats.late,
        dropped: stats.dropped,
        cancelled: stats.cancelled,
        failed: stats.failed,
        bad_rate: SessionReport::bad_rate(stats),
        mean_batch: if stats.batches == 0 { 0.0 } else { stats.batched_items as f64 / stats.batches as f64 },
        busy_ms: millis(stats.busy),
        queued_time: Percentiles::of(&stats.queued),
        executing_time: Percentiles::of(&stats.executing),
        total_time: Percentiles::of(&stats.total),
    }
}

/// Messages are moved between threads.
const _: () = {
    const fn is_send<T: Send>() {}
    is_send::<Message>();
    is_send::<Arc<Model>>();
};
