//! The control thread: accepts clients, answers their control messages, keeps the catalogue of models, takes signals.
//!
//! It alone decides about sockets and models; it asks the poller and the background thread by message and answers the client
//! when they have. A connection has one request under way at a time; further ones wait in its buffer.

mod catalogue;
mod connection;
mod queries;
mod requests;
pub mod socket;

use crate::arenas::Change;
use crate::background::{Done, Job, Loaded};
use crate::config::Limits;
use crate::model::Model;
use crate::planning::{Cause, PlanReport, Planned};
use crate::poller::messages::{Command, ConnectionId, Notice};
use crate::query::Spec;
use crate::repository::Problem;
use crate::sharing::Grouped;
use crate::stats::{QueryReport, SessionReport};
use crate::wake::Wake;
use catalogue::Catalogue;
use connection::{Connection, Waiting};
use mio::net::UnixListener;
use mio::{Events, Interest, Poll, Token};
use queries::Queries;
use rota_device::Engine;
use rota_ipc::control::{ErrorCode, Reply};
use slab::Slab;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender};
use std::{io, sync::Arc};

/// What other threads tell the control thread.
pub enum Message {
    Poller(Notice),
    Done(Done),
    /// Drain; the second time, stop at once.
    Stop,
    /// The poller panicked: a bug of ours. Nobody can be served any more.
    PollerDied,
}

const LISTENER: Token = Token(0);
pub const INBOX: Token = Token(1);
const FIRST_CONNECTION: usize = 2;
/// Connections without shared memory of one user: for `rota status` and the like, and those that are about to say hello.
const CONTROL_ONLY_MAX: usize = 256;

/// What the control thread is started with.
pub struct Options {
    pub socket: PathBuf,
    pub repository: Option<PathBuf>,
    /// What is wrong with the repository, as of its last scan.
    pub problems: Vec<Problem>,
    pub limits: Limits,
    /// Whether models that share a part are served together.
    pub prefix: bool,
    /// By device index: what says what lies in the device's memory, if it has some of its own.
    pub engines: Vec<Option<Arc<dyn Engine>>>,
    /// Those of the settings; their names differ.
    pub queries: Vec<Spec>,
    pub uid: u32,
}

pub struct Control {
    options: Options,
    poll: Poll,
    listener: Option<UnixListener>,
    inbox: Receiver<Message>,
    commands: Sender<Command>,
    wake: Arc<Wake>,
    jobs: Sender<Job>,
    arenas: Sender<Change>,
    connections: Slab<Connection>,
    keys: HashMap<ConnectionId, usize>,
    connections_made: u64,
    /// Connections wait that could not be accepted.
    accept_stalled: bool,
    catalogue: Catalogue,
    queries: Queries,
    /// The groups that are in service.
    groups: Vec<Arc<Model>>,
    /// What models share is being looked for.
    grouping: bool,
    /// Models came or went since that began.
    regroup: bool,
    /// What the poller has sent so far of the report that is under way.
    report: Report,
    plan: Option<PlanState>,
    started: std::time::Instant,
    draining: bool,
    drained: bool,
    /// Told to stop while draining.
    stopped: bool,
}

/// Sessions and queries as the poller reports them.
#[derive(Default)]
struct Report {
    sessions: Vec<SessionReport>,
    queries: Vec<QueryReport>,
}

/// The plan that holds, for `rota status`.
struct PlanState {
    /// Plans that were made, or tried, so far.
    count: u64,
    cause: Cause,
    made: std::time::Instant,
    took: std::time::Duration,
    report: PlanReport,
    /// Why the last one could not be made.
    error: Option<String>,
}

impl PlanState {
    fn new(cause: Cause, made: std::time::Instant) -> PlanState {
        let (report, took) = (PlanReport::default(), std::time::Duration::ZERO);
        PlanState { count: 0, cause, made, took, report, error: None }
    }
}

impl Control {
    pub fn new(
        mut options: Options,
        poll: Poll,
        listener: std::os::unix::net::UnixListener,
        inbox: Receiver<Message>,
        commands: Sender<Command>,
        wake: Arc<Wake>,
        (jobs, arenas): (Sender<Job>, Sender<Change>),
    ) -> io::Result<Control> {
        listener.set_nonblocking(true)?;
        let mut listener = UnixListener::from_std(listener);
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        let limits = &options.limits;
        let (most, per_user) = (limits.queries_max, limits.queries_per_user);
        let queries = Queries::new(std::mem::take(&mut options.queries), most, per_user);
        Ok(Control {
            options,
            poll,
            listener: Some(listener),
            inbox,
            commands,
            wake,
            jobs,
            arenas,
            connections: Slab::new(),
            keys: HashMap::new(),
            connections_made: 0,
            accept_stalled: false,
            catalogue: Catalogue::default(),
            queries,
            groups: Vec::new(),
            grouping: false,
            regroup: false,
            report: Report::default(),
            plan: None,
            started: std::time::Instant::now(),
            draining: false,
            drained: false,
            stopped: false,
        })
    }

    /// Starts loading a model; true unless it is there, or on its way.
    pub fn load(&mut self, source: crate::background::Source) -> bool {
        let (name, version) = (source.name().to_string(), source.version());
        let Some(id) = self.catalogue.begin(&name, version) else { return false };
        tracing::info!(model = %name, version, "loading");
        if self.jobs.send(Job::Load { id, source }).is_err() {
            self.catalogue.failed(&name, version, "the loading thread has ended".to_string());
        }
        true
    }

    /// Serves until the daemon has drained (true) or was stopped at once (false).
    pub fn run(mut self) -> io::Result<bool> {
        let mut events = Events::with_capacity(256);
        while !self.drained && !self.stopped {
            match self.poll.poll(&mut events, None) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                polled => polled?,
            }
            for event in &events {
                match event.token() {
                    LISTENER => self.accept(),
                    INBOX => {} // Looked at below, after every poll.
                    Token(token) => self.attend(token - FIRST_CONNECTION),
                }
            }
            while let Ok(message) = self.inbox.try_recv() {
                match message {
                    Message::Poller(notice) => self.handle_notice(notice),
                    Message::Done(Done::Loaded(loaded)) => self.handle_loaded(loaded),
                    Message::Done(Done::Grouped(grouped)) => self.handle_grouped(grouped),
                    Message::Done(Done::Planned(planned)) => self.handle_planned(planned),
                    Message::Stop => self.drain(),
                    Message::PollerDied => return Err(io::Error::other("the poller panicked; this is a bug")),
                }
            }
        }
        // The last replies; a client that does not read them has had its chance.
        for (_, connection) in &mut self.connections {
            let _ = connection.flush();
        }
        Ok(self.drained)
    }

    pub(self) fn tell_poller(&self, command: Command) {
        // The poller ends only after it said `Drained`; what comes later needs no answer.
        if self.commands.send(command).is_ok() {
            self.wake.wake();
        }
    }

    fn accept(&mut self) {
        self.accept_stalled = false;
        loop {
            let Some(listener) = &self.listener else { return };
            match listener.accept() {
                Ok((stream, _)) => {
                    if let Err(error) = self.welcome_connection(stream) {
                        tracing::warn!(%error, "a connection can't be kept");
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    // Out of descriptors, most likely: what is connected goes on, and the next that leaves makes room.
                    tracing::warn!(%error, "a connection can't be accepted");
                    self.accept_stalled = true;
                    return;
                }
            }
        }
    }

    fn welcome_connection(&mut self, stream: mio::net::UnixStream) -> io::Result<()> {
        let mut connection = Connection::new(stream, ConnectionId(self.connections_made))?;
        self.connections_made += 1;
        let uid = connection.uid;
        let silent = self.connections.iter().filter(|(_, c)| c.uid == uid && !c.has_memory).count();
        if silent >= CONTROL_ONLY_MAX {
            let message = format!("user {uid} has {silent} connections that have not said hello, which is the most");
            connection.reply(&Reply::Error { code: ErrorCode::Limit, message });
            // Best effort: it is closed here, read or not.
            let _ = connection.flush();
            return Ok(());
        }
        let entry = self.connections.vacant_entry();
        let key = entry.key();
        connection.register(self.poll.registry(), Token(key + FIRST_CONNECTION))?;
        self.keys.insert(connection.id, key);
        entry.insert(connection);
        Ok(())
    }

    /// A connection is readable, writable or gone.
    fn attend(&mut self, key: usize) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        let alive = connection.fill();
        self.serve_requests(key);
        self.finish(key, alive);
    }

    /// Handles the requests that the connection has sent, one after the other, until one has to wait for another thread.
    fn serve_requests(&mut self, key: usize) {
        while let Some(connection) = self.connections.get_mut(key) {
            if connection.waiting.is_some() || connection.closing {
                return;
            }
            match connection.reader.next() {
                Ok(Some(request)) => self.handle_request(key, request),
                Ok(None) => return,
                Err(error) => {
                    let message = format!("{error}; see docs/protocol.md for the messages of this version");
                    connection.reply(&Reply::Error { code: ErrorCode::BadRequest, message });
                    connection.closing = true;
                }
            }
        }
    }

    /// Sends what is queued; closes what is over.
    fn finish(&mut self, key: usize, alive: bool) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        let sent = connection.flush();
        if !alive || sent.is_err() || (connection.closing && sent.is_ok_and(|all| all)) {
            self.close(key);
        }
    }

    fn close(&mut self, key: usize) {
        let mut connection = self.connections.remove(key);
        let _ = connection.deregister(self.poll.registry());
        self.keys.remove(&connection.id);
        connection.declared.iter().for_each(|&query| self.release_query(query));
        if connection.has_memory {
            self.tell_poller(Command::Disconnect { id: connection.id });
        }
        drop(connection);
        if self.accept_stalled {
            self.accept();
        }
    }

    /// Answers a connection that waited, and goes on with its next request.
    fn answer(&mut self, key: usize, reply: &Reply) {
        let connection = &mut self.connections[key];
        connection.waiting = None;
        connection.reply(reply);
        self.serve_requests(key);
        self.finish(key, true);
    }

    fn handle_notice(&mut self, notice: Notice) {
        match notice {
            Notice::Opened { id, session } => self.opened(id, session),
            Notice::QueryOpened { id, stages } => self.query_opened(id, stages),
            Notice::QueryRemoved { query } => self.query_removed(query),
            Notice::Removed { model } => {
                self.catalogue.removed(model);
                self.find_groups();
                self.tell_poller(Command::Plan { cause: Cause::Unload });
                self.settle(|waiting| match waiting {
                    Waiting::Unload { models } => {
                        models.retain(|id| *id != model);
                        models.is_empty().then_some(Reply::Done {})
                    }
                    _ => None,
                });
            }
            Notice::Ungrouped { group } => self.catalogue.give_id(group),
            Notice::Gone { id, poisoned } => {
                let Some(&key) = self.keys.get(&id) else { return };
                let connection = &mut self.connections[key];
                connection.has_memory = false;
                connection.closing = true;
                if let Some(message) = poisoned {
                    tracing::warn!(client = %connection.name, uid = connection.uid, reason = %message, "client disconnected");
                    connection.reply(&Reply::Poisoned { message });
                }
                self.finish(key, true);
            }
            Notice::Left { arena } => drop(self.arenas.send(Change::Gone(arena))),
            Notice::Demand(asked) => {
                if self.jobs.send(Job::Plan(asked)).is_err() {
                    tracing::error!("no plan can be made: the thread for it has ended");
                }
            }
            Notice::Session(snapshot) => {
                self.report.sessions.push(requests::session_report(&snapshot));
            }
            Notice::Query(snapshot) => self.report.queries.push(queries::query_report(&snapshot)),
            Notice::Report(poller) => {
                let report = std::mem::take(&mut self.report);
                let status = self.status(report, poller);
                self.settle(|waiting| match waiting {
                    Waiting::Status => Some(Reply::Status { status: status.clone() }),
                    _ => None,
                });
            }
            Notice::Drained => {
                self.settle(|waiting| match waiting {
                    Waiting::Drain => Some(Reply::Done {}),
                    _ => None,
                });
                self.drained = true;
            }
        }
    }

    fn handle_loaded(&mut self, loaded: Loaded) {
        let Loaded { name, version, result } = loaded;
        let outcome = match result {
            Ok((model, networks)) => {
                // To the nanosecond: an f64 shows more digits than there are.
                let batch_of_one_ms = (crate::clock::millis(model.batch_of_one()) * 1e6).round() / 1e6;
                tracing::info!(model = %name, version, max_batch = model.max_batch, batch_of_one_ms, "serving");
                self.catalogue.loaded(Arc::clone(&model));
                self.tell_poller(Command::Add { model, networks });
                None
            }
            Err(why) => {
                tracing::error!(model = %name, version, error = %why, "can't be served");
                self.catalogue.failed(&name, version, why.clone());
                Some(why)
            }
        };
        self.settle(|waiting| match waiting {
            Waiting::Load { name: n, version: v } if *n == name && *v == version => Some(match &outcome {
                None => Reply::Done {},
                Some(why) => Reply::Error { code: ErrorCode::Load, message: why.clone() },
            }),
            _ => None,
        });
        self.retry_opens();
        if !self.catalogue.is_loading() {
            self.bind_queries();
            self.find_groups();
            let cause = if self.plan.is_none() { Cause::Start } else { Cause::Load };
            self.tell_poller(Command::Plan { cause });
        }
    }

    /// Has it found out what the models that are served share. Once all that are being loaded are there: each search may make
    /// networks anew.
    fn find_groups(&mut self) {
        if !self.options.prefix || self.draining || self.catalogue.is_loading() {
            return;
        }
        if self.grouping {
            self.regroup = true;
            return;
        }
        let ready: Vec<Arc<Model>> = self.catalogue.ready().cloned().collect();
        let ids = (0..ready.len() / 2).map(|_| self.catalogue.take_id()).collect();
        (self.grouping, self.regroup) = (true, false);
        if self.jobs.send(Job::Group { ready, ids }).is_err() {
            tracing::error!("what models share can't be found: the thread for it has ended");
            self.grouping = false;
        }
    }

    fn handle_grouped(&mut self, grouped: Grouped) {
        self.grouping = false;
        let Grouped { keep, add, whole, unused } = grouped;
        unused.into_iter().for_each(|id| self.catalogue.give_id(id));
        let changed = !add.is_empty() || keep.len() != self.groups.len();
        self.groups.retain(|group| keep.contains(&group.id));
        for (group, _) in &add {
            if let Some(parts) = &group.group {
                let weights_mb = parts.levels.iter().map(|level| level.weight_bytes).sum::<u64>() as f64 / 1e6;
                tracing::info!(models = %group.name, weights_mb, "serving together what they share");
            }
            self.groups.push(Arc::clone(group));
        }
        if changed || !whole.is_empty() {
            self.tell_poller(Command::Regroup { keep, add, whole });
            self.tell_poller(Command::Plan { cause: Cause::Load });
        }
        if self.regroup {
            self.find_groups();
        }
    }

    /// The group in which a model is served.
    pub(self) fn group_of(&self, model: &Arc<Model>) -> Option<&Arc<Model>> {
        let is = |group: &&Arc<Model>| group.member(model.id).is_some_and(|member| Arc::ptr_eq(&member.model, model));
        self.groups.iter().find(is)
    }

    /// A plan is promised and shown; when there is none, what was promised before stays.
    fn handle_planned(&mut self, planned: Planned) {
        let Planned { cause, made, took, promises, splits, result } = planned;
        self.tell_poller(Command::Promise { promises, splits });
        let state = self.plan.get_or_insert_with(|| PlanState::new(cause, made));
        state.count += 1;
        match result {
            Ok(report) => {
                tracing::debug!(?cause, took_ms = crate::clock::millis(took), "planned");
                (state.cause, state.made, state.took) = (cause, made, took);
                (state.report, state.error) = (report, None);
            }
            Err(error) => {
                tracing::error!(?cause, %error, "no plan could be made; what was promised before stays");
                state.error = Some(error);
            }
        }
    }

    /// Answers every waiting connection for which `ready` has a reply.
    fn settle(&mut self, mut ready: impl FnMut(&mut Waiting) -> Option<Reply>) {
        let answers: Vec<(usize, Reply)> =
            self.connections.iter_mut().filter_map(|(key, c)| Some((key, ready(c.waiting.as_mut()?)?))).collect();
        for (key, reply) in answers {
            self.answer(key, &reply);
        }
    }

    /// Stops admission; the second time, stops at once.
    fn drain(&mut self) {
        if self.draining {
            tracing::warn!("stopping at once: requests in flight are lost");
            self.stopped = true;
            return;
        }
        tracing::info!("draining");
        self.draining = true;
        if let Some(mut listener) = self.listener.take() {
            let _ = self.poll.registry().deregister(&mut listener);
        }
        socket::remove(&self.options.socket);
        self.tell_poller(Command::Drain);
    }
}
