//! What the poller is told by other threads: clients, sessions and models that come and go, reports.

use super::classes::{Candidate, Classes};
use super::clients::{Handle, SESSIONS_PER_CLIENT};
use super::messages::{
    ClientReport, Command, ConnectionId, DeviceReport, Notice, OpenError, PollerReport, SessionSnapshot,
};
use super::{ModelState, Poller, Reported, SessionState};
use crate::background::Networks;
use crate::clock::millis;
use crate::model::Model;
use crate::query::QueryId;
use crate::stats::SessionStats;
use rota_ipc::server::Connection;
use rota_sched::{Instant, ModelId, SessionConfig, SessionId};
use std::sync::Arc;
use std::time::Duration;

impl Poller {
    /// Takes what the other threads have sent. True when there was anything.
    pub(super) fn take_commands(&mut self, now: Instant) -> bool {
        let mut worked = false;
        while let Ok(command) = self.commands.try_recv() {
            worked = true;
            match command {
                Command::Connect { id, connection, uid, name } => self.connect(id, *connection, uid, name, now),
                Command::Disconnect { id } => {
                    if let Some(key) = self.clients.key(id) {
                        self.disconnect(key, None);
                    }
                }
                Command::Open { id, model, slo } => {
                    if let Some(key) = self.clients.key(id) {
                        let session = self.open_session(key, model, slo);
                        (self.notices)(Notice::Opened { id, session });
                    }
                }
                Command::Close { id, session } => {
                    if let Some(key) = self.clients.key(id) {
                        self.close_session(key, session, now);
                    }
                }
                Command::AddQuery { query } => self.add_query(query, now),
                Command::OpenQuery { id, query } => {
                    if let Some(key) = self.clients.key(id) {
                        let stages = self.open_query(key, query);
                        (self.notices)(Notice::QueryOpened { id, stages });
                    }
                }
                Command::RemoveQuery { query } => self.remove_query(query, now),
                Command::Add { model, networks } => self.add_model(model, networks, now),
                Command::Remove { model } => self.remove_model(model),
                Command::Regroup { keep, add, whole } => self.regroup(&keep, add, whole, now),
                Command::Plan { cause } => self.ask_for_plan(cause),
                Command::Promise { promises, splits } => {
                    self.take_promises(&promises, now);
                    splits.iter().for_each(|split| self.take_split(split));
                }
                Command::Report => self.report = Some(Reported::Session(0)),
                Command::Drain => self.drain_all(),
            }
        }
        worked | self.continue_report(now)
    }

    fn connect(&mut self, id: ConnectionId, connection: Connection, uid: u32, name: String, now: Instant) {
        let key = self.clients.insert(id, connection, uid, name, now);
        if self.draining {
            self.clients.entries[key].connection.set_draining();
        }
        match self.watch(key) {
            Ok(()) => self.clients.poll(key, now),
            Err(error) => {
                tracing::warn!(%error, "a client's doorbell can't be watched; it is disconnected");
                self.disconnect(key, None);
            }
        }
    }

    fn open_session(&mut self, key: usize, model_id: ModelId, slo: Duration) -> Result<u32, OpenError> {
        let sessions = &self.clients.entries[key].sessions;
        let number = sessions.iter().position(|h| *h == Handle::Closed).unwrap_or(sessions.len());
        if number >= SESSIONS_PER_CLIENT {
            return Err(OpenError::ConnectionFull(SESSIONS_PER_CLIENT));
        }
        let model = match self.models.get(model_id.0 as usize) {
            Some(Some(state)) if !state.removing => Arc::clone(&state.model),
            _ => return Err(OpenError::Unloading),
        };
        if self.draining {
            return Err(OpenError::Draining);
        }
        let session_id = match self.session_of.get(&(model_id, slo)) {
            Some(&id) => id,
            None => {
                let weight = model.weight;
                self.add_session(model, slo, weight, None)?
            }
        };
        self.session_mut(session_id).clients += 1;
        self.tune_home(model_id);
        let sessions = &mut self.clients.entries[key].sessions;
        if number == sessions.len() {
            sessions.push(Handle::Closed);
        }
        sessions[number] = Handle::Open(session_id);
        Ok(number as u32)
    }

    /// A new session; one that nobody has open and nothing waits for makes room when all are taken.
    pub(super) fn add_session(
        &mut self,
        model: Arc<Model>,
        slo: Duration,
        weight: f64,
        stage: Option<(QueryId, u16)>,
    ) -> Result<SessionId, OpenError> {
        let config = || SessionConfig { model: model.id, slo, weight };
        let id = match self.dispatcher.add_session(config()) {
            Some(id) => id,
            None => {
                let in_flight = |id: usize| self.requests_of(SessionId(id as u32)) > 0;
                let idle = (0..self.sessions.len())
                    .filter(|&id| {
                        let is_idle = |s: &SessionState| s.clients == 0 && !s.model.is_group() && s.stage.is_none();
                        self.sessions[id].as_ref().is_some_and(is_idle) && !in_flight(id)
                    })
                    .min_by_key(|&id| self.sessions[id].as_ref().map(|s| s.last_closed));
                let full = OpenError::DaemonFull(self.options.sessions_max);
                self.forget_session(SessionId(idle.ok_or(full.clone())? as u32));
                self.dispatcher.add_session(config()).ok_or(full)?
            }
        };
        let index = id.0 as usize;
        if self.sessions.len() <= index {
            self.sessions.resize_with(index + 1, || None);
        }
        // Nobody opens a group's or a stage's so; their SLOs change.
        if !model.is_group() && stage.is_none() {
            self.session_of.insert((model.id, slo), id);
        }
        let now = self.clock.now();
        let (planned, stats) = (Default::default(), SessionStats::new(now));
        let state = SessionState { model, slo, weight, stage, clients: 0, last_closed: now, planned, stats };
        self.sessions[index] = Some(state);
        Ok(id)
    }

    /// Requests of a session that wait or run.
    pub(super) fn requests_of(&self, id: SessionId) -> u32 {
        let stats = match &self.sessions[id.0 as usize] {
            Some(session) => &session.stats,
            None => return 0,
        };
        let ended = stats.ok + stats.late + stats.dropped + stats.cancelled + stats.failed;
        (stats.offered - ended) as u32
    }

    pub(super) fn forget_session(&mut self, id: SessionId) {
        if let Some(session) = self.sessions[id.0 as usize].take() {
            let name = (session.model.id, session.slo);
            if self.session_of.get(&name) == Some(&id) {
                self.session_of.remove(&name);
            }
            self.dispatcher.remove_session(id);
        }
    }

    /// The connection no longer uses the session. Its requests in flight are answered all the same.
    pub(super) fn close_session(&mut self, key: usize, number: u32, now: Instant) {
        let Some(handle) = self.clients.entries[key].sessions.get_mut(number as usize) else { return };
        if let Handle::Open(id) = std::mem::replace(handle, Handle::Closed) {
            let session = self.session_mut(id);
            session.clients -= 1;
            session.last_closed = now;
            let model = session.model.id;
            self.tune_home(model);
        }
    }

    pub(super) fn add_model(&mut self, model: Arc<Model>, networks: Networks, now: Instant) {
        let index = model.id.0 as usize;
        self.install(&model, networks);
        if self.models.len() <= index {
            self.models.resize_with(index + 1, || None);
        }
        let mut classes = Classes::default();
        let has_constants = model.signature.inputs.iter().any(|input| model.shares(input));
        let profiled = Candidate {
            shapes: model.profiled.clone(),
            constants: vec![None; model.profiled.len()],
            ..Candidate::default()
        };
        // A class with constant inputs is known once a request has brought them.
        let introduced = (!has_constants).then(|| classes.intern(&profiled, now));
        let id = model.id;
        let state =
            ModelState { model, classes, outstanding: 0, removing: false, installed: true, home: None, queue: None };
        self.models[index] = Some(state);
        if introduced.is_some() {
            self.introduce(id, rota_sched::ClassId(0));
        }
    }

    pub(super) fn install(&mut self, model: &Model, networks: Networks) {
        for (state, network) in self.devices.iter_mut().zip(networks) {
            if let Some(network) = network {
                state.device.install(model.network(), network);
            }
        }
    }

    /// Its sessions end at once; its networks leave the devices when the last batch has ended.
    fn remove_model(&mut self, id: ModelId) {
        match self.models.get_mut(id.0 as usize) {
            Some(Some(state)) => state.removing = true,
            _ => return (self.notices)(Notice::Removed { model: id }),
        }
        let now = self.clock.now();
        self.remove_queries_of(id, now);
        for (_, client) in &mut self.clients.entries {
            for handle in &mut client.sessions {
                if let Handle::Open(session) = *handle {
                    let session = self.sessions[session.0 as usize].as_mut().expect("an open handle's session exists");
                    if session.model.id == id {
                        session.clients -= 1;
                        *handle = Handle::Unloaded;
                    }
                }
            }
        }
        self.stop_classes(id);
        self.drop_from_home(id, now);
        self.schedule(now); // answers what waited
        self.remove_model_if_ended(id);
    }

    /// What waits for the model is dropped at the dispatcher's next step. Its sessions keep their numbers while batches run.
    pub(super) fn stop_classes(&mut self, id: ModelId) {
        let Some(state) = self.models[id.0 as usize].as_ref() else { return };
        for class in state.classes.ids() {
            self.dispatcher.remove_class(id, class);
        }
    }

    /// The last step of [`Poller::remove_model`], once nothing of the model waits or runs.
    pub(super) fn remove_model_if_ended(&mut self, id: ModelId) {
        let Some(Some(state)) = self.models.get(id.0 as usize) else { return };
        let of_model = |index: &usize| self.sessions[*index].as_ref().is_some_and(|s| s.model.id == id);
        let sessions: Vec<usize> = match state.removing && state.outstanding == 0 {
            true => (0..self.sessions.len()).filter(of_model).collect(),
            false => return,
        };
        if sessions.iter().any(|&index| self.requests_of(SessionId(index as u32)) > 0) {
            return;
        }
        for index in sessions {
            self.forget_session(SessionId(index as u32));
        }
        let Some(state) = self.models[id.0 as usize].take() else { return };
        for (device, _) in self.devices.iter_mut().zip(&state.model.profiles).filter(|(_, p)| p.is_some()) {
            device.device.remove(state.model.network());
        }
        let notice =
            if state.model.is_group() { Notice::Ungrouped { group: id } } else { Notice::Removed { model: id } };
        (self.notices)(notice);
    }

    /// Stops admission and answers what waits; [`Poller::run`] ends when nothing runs any more.
    fn drain_all(&mut self) {
        self.draining = true;
        for (_, client) in &mut self.clients.entries {
            client.connection.set_draining();
        }
        for index in 0..self.models.len() {
            self.stop_classes(ModelId(index as u32));
        }
    }

    /// Sends one session's state a turn, so that a report never holds up the requests of a host with many sessions.
    fn continue_report(&mut self, now: Instant) -> bool {
        let notice = match self.report {
            None => return false,
            Some(Reported::Session(from)) => {
                let next =
                    (from..self.sessions.len()).find_map(|index| Some((index, self.session_snapshot(index, now)?)));
                self.report = Some(next.as_ref().map_or(Reported::Query(0), |(index, _)| Reported::Session(index + 1)));
                next.map(|(_, snapshot)| Notice::Session(Box::new(snapshot)))
            }
            Some(Reported::Query(from)) => {
                let next = (from..self.queries.len()).find_map(|index| Some((index, self.query_snapshot(index, now)?)));
                self.report = next.as_ref().map(|(index, _)| Reported::Query(index + 1));
                Some(match next {
                    Some((_, snapshot)) => Notice::Query(Box::new(snapshot)),
                    None => Notice::Report(self.poller_report()),
                })
            }
        };
        if let Some(notice) = notice {
            (self.notices)(notice);
        }
        true
    }

    /// Nothing of a group's: its members' sessions stand for it.
    fn session_snapshot(&self, index: usize, now: Instant) -> Option<SessionSnapshot> {
        let session = self.sessions[index].as_ref().filter(|session| !session.model.is_group())?;
        let stage = session.stage.map(|(query, stage)| {
            let spec = &self.query(query).bound.spec;
            format!("{}/{}", spec.name, spec.stages[usize::from(stage)].name)
        });
        Some(SessionSnapshot {
            model: Arc::clone(&session.model),
            slo: session.slo,
            weight: session.weight,
            stage,
            clients: session.clients,
            rates: self.rates(SessionId(index as u32), now),
            promised_rate: session.planned.promised,
            goodput: session.stats.good.per_second(now),
            stats: session.stats.clone(),
        })
    }

    fn poller_report(&self) -> PollerReport {
        let clients = self.clients.entries.iter().filter(|(_, c)| !c.dying).map(|(_, client)| ClientReport {
            name: client.name.clone(),
            uid: client.uid,
            in_flight: client.in_flight,
            sessions: client.sessions.iter().filter(|h| **h != Handle::Closed).count(),
        });
        let devices = self.devices.iter().map(|state| DeviceReport {
            description: state.device.describe(),
            batches: state.batches,
            busy_ms: millis(state.busy),
            lost: state.lost,
        });
        PollerReport {
            requests_in_flight: self.requests.in_flight(),
            clients: clients.collect(),
            devices: devices.collect(),
        }
    }
}
