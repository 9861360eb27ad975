//! The poller: one thread that drains the clients' rings, steps the dispatcher, feeds the devices and answers.
//!
//! It never blocks on a client, and nothing on its way from submission to completion allocates or locks once the requests'
//! buffers have grown to what the load needs. It drains a bounded number of submissions from each ring, then lets the
//! dispatcher decide once, then shows each client all its completions at once.

mod admission;
mod answer;
mod calls;
mod classes;
mod clients;
mod cold;
mod demand;
mod groups;
pub mod messages;
mod queries;
mod requests;
mod runs;
mod sleep;
mod submissions;

use crate::clock::Clock;
use crate::model::{Group, Model};
use crate::query::QueryId;
use crate::stats::SessionStats;
use crate::wake::Wake;
use classes::{Candidate, Classes};
use clients::Clients;
use messages::{Command, Notice};
use requests::{Asked, Requests};
use rota_device::{Batch, BatchId, Device, ShapeClass, Span};
use rota_ipc::server::RequestBlock;
use rota_ipc::wire::{OutputRecord, Submission};
use rota_sched::{Action, Dispatcher, Instant, ModelId, RequestId, SessionId};
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Duration;

/// Submissions taken from one ring before the next ring's turn.
const DRAIN_MAX: usize = 64;
/// Batches that a device can hold (one executing, one behind it), and one that is being filled.
const BATCHES_PER_DEVICE: usize = 3;

/// What the poller is started with.
pub struct Options {
    /// Requests in flight, of all clients together.
    pub requests_max: u32,
    /// Sessions known at once; those that nobody has open make room for new ones.
    pub sessions_max: u32,
    /// Requests in flight, of all connections of one user together.
    pub requests_per_user: u32,
    /// Queries that are served at once.
    pub queries_max: u32,
    /// Runs of queries that are open, of all clients together and of all connections of one user.
    pub runs_max: u32,
    pub runs_per_user: u32,
    /// How long it looks for work before it sleeps.
    pub spin: Duration,
    /// See [`rota_sched::DeviceConfig`].
    pub prepare_lead: Duration,
    pub start_lead: Duration,
    /// Least time between plans because demand changed; zero: none is made for that.
    pub plan_interval: Duration,
}

/// The thread's whole state. [`Poller::run`] returns when the daemon has drained.
pub struct Poller {
    options: Options,
    clock: Clock,
    commands: Receiver<Command>,
    notices: Box<dyn FnMut(Notice) + Send>,
    wake: Arc<Wake>,
    epoll: OwnedFd,

    clients: Clients,
    requests: Requests,
    dispatcher: Dispatcher,
    /// By [`ModelId`].
    models: Vec<Option<ModelState>>,
    /// By [`SessionId`]: those that clients have open, and one for each group, in which its members' requests wait.
    sessions: Vec<Option<SessionState>>,
    session_of: HashMap<(ModelId, Duration), SessionId>,
    devices: Vec<DeviceState>,
    /// By [`QueryId`].
    queries: Vec<Option<queries::QueryState>>,
    runs: runs::Runs,
    /// No run expires before.
    runs_due: Instant,
    draining: bool,
    /// Batches that have ended.
    batches: u64,
    /// What is shown next in a report that is under way.
    report: Option<Reported>,
    watch: demand::Watch,

    // Reused from turn to turn.
    submissions: Vec<Submission>,
    block: RequestBlock,
    candidate: Candidate,
    actions: Vec<Action>,
    records: Vec<OutputRecord>,
    /// Outputs of a request that is done early, until its last one.
    early: Vec<OutputRecord>,
    dirty: Vec<usize>,
    /// What a submission asks.
    asked: Vec<Asked>,
    /// The requests that a submission is.
    pieces: Vec<RequestId>,
}

/// Where a report stands.
#[derive(Clone, Copy)]
enum Reported {
    Session(usize),
    Query(usize),
}

struct ModelState {
    model: Arc<Model>,
    classes: Classes,
    /// Batches of it that are with devices.
    outstanding: u32,
    removing: bool,
    /// Its networks are on the devices; not while it is served in a group.
    installed: bool,
    /// The group that it is served in, and which member of it.
    home: Option<(ModelId, u16)>,
    /// Of a group: the dispatcher's session in which all members' requests wait.
    queue: Option<SessionId>,
}

struct SessionState {
    model: Arc<Model>,
    slo: Duration,
    /// Its share when there are too few devices.
    weight: f64,
    /// The query's stage that it is: it is found by that, and its SLO changes with the query's split.
    stage: Option<(QueryId, u16)>,
    /// Connections that have it open.
    clients: u32,
    last_closed: Instant,
    planned: demand::Planned,
    stats: SessionStats,
}

struct DeviceState {
    device: Box<dyn Device>,
    #[expect(clippy::vec_box, reason = "the boxes travel to the device and back")]
    pool: Vec<Box<Batch>>,
    batches: u64,
    busy: Duration,
    /// As the dispatcher knows it.
    lost: bool,
}

impl Poller {
    /// `devices` in the order of their profiles in [`Model::profiles`].
    pub fn new(
        options: Options,
        devices: Vec<Box<dyn Device>>,
        commands: Receiver<Command>,
        notices: Box<dyn FnMut(Notice) + Send>,
        wake: Arc<Wake>,
    ) -> std::io::Result<Poller> {
        let mut dispatcher = Dispatcher::new(rota_sched::Config {
            requests_max: options.requests_max,
            sessions_max: options.sessions_max,
            devices_max: devices.len() as u32,
        });
        for _ in &devices {
            dispatcher.add_device(rota_sched::DeviceConfig {
                prepare_lead: options.prepare_lead,
                start_lead: options.start_lead,
            });
        }
        let epoll = sleep::epoll(&wake)?;
        Ok(Poller {
            requests: Requests::new(options.requests_max),
            clock: Clock::new(),
            commands,
            notices,
            wake,
            epoll,
            clients: Clients::default(),
            dispatcher,
            models: Vec::new(),
            sessions: Vec::new(),
            session_of: HashMap::new(),
            devices: devices.into_iter().map(DeviceState::new).collect(),
            queries: Vec::new(),
            runs: runs::Runs::new(options.runs_max, options.queries_max),
            runs_due: Instant::MAX,
            draining: false,
            batches: 0,
            report: None,
            watch: demand::Watch::default(),
            submissions: vec![Submission::default(); DRAIN_MAX],
            block: RequestBlock::default(),
            candidate: Candidate::default(),
            actions: Vec::new(),
            records: Vec::new(),
            early: Vec::new(),
            dirty: Vec::new(),
            asked: Vec::new(),
            pieces: Vec::new(),
            options,
        })
    }

    /// Polls until the daemon has drained.
    pub fn run(mut self) {
        let mut last_work = self.clock.now();
        let mut last_bells = last_work;
        loop {
            let now = self.clock.now();
            let mut worked = self.take_submissions(now);
            worked |= self.take_finished();
            worked |= self.take_commands(now);
            worked |= self.watch_demand(now);
            worked |= self.expire_runs(now);
            if worked || self.dispatcher.next_timeout().is_some_and(|due| due <= now) {
                self.schedule(now);
                self.publish();
            }
            if self.draining && self.requests.in_flight() == 0 {
                (self.notices)(Notice::Drained);
                return;
            }
            if worked {
                last_work = now;
            } else if now.since(last_work) >= self.options.spin {
                self.sleep();
                last_work = self.clock.now();
                last_bells = last_work;
                continue;
            }
            if now.since(last_bells) >= sleep::BELL_INTERVAL {
                self.look_at_bells();
                last_bells = now;
            }
            std::hint::spin_loop();
        }
    }

    /// Lets the dispatcher decide, and carries it out. A device that takes no time has ended by then: its answers are taken at
    /// once and its next batch follows.
    fn schedule(&mut self, now: Instant) {
        let mut now = now;
        loop {
            let mut actions = std::mem::take(&mut self.actions);
            self.dispatcher.step(now, &mut actions);
            let acted = !actions.is_empty();
            for action in actions.drain(..) {
                match action {
                    Action::Prepare { device, batch } => self.prepare(device, batch),
                    Action::Start { device, batch } => {
                        self.devices[device.0 as usize].device.start(BatchId(u64::from(batch.0)));
                    }
                    Action::Drop { request, reason } => self.answer_dropped(request, reason, now),
                }
            }
            self.actions = actions;
            if !acted || !self.take_finished() {
                return;
            }
            now = self.clock.now();
        }
    }

    /// Fills a device's batch from the dispatcher's and hands it over.
    fn prepare(&mut self, device: rota_sched::DeviceId, id: rota_sched::BatchId) {
        let state = &mut self.devices[device.0 as usize];
        let mut batch = state.pool.pop().expect("the dispatcher keeps at most two batches outstanding on a device");
        let chosen = self.dispatcher.batch(id);
        let first = &self.requests[chosen.requests[0]];
        let model = self.models[first.unit.0 as usize].as_mut().expect("a model stays until its requests have ended");
        model.outstanding += 1;
        batch.id = BatchId(u64::from(id.0));
        batch.network = model.model.network();
        batch.class = Arc::clone(model.classes.get(first.class));
        for &request_id in &chosen.requests {
            let request = &self.requests[request_id];
            let client = &self.clients.entries[request.client as usize];
            batch.requests.push(rota_device::Request {
                key: request_id.0,
                items: request.items,
                arena: Arc::clone(client.connection.arena()),
                outcome: rota_device::Outcome::Pending,
            });
            match &model.model.group {
                Some(group) => group_spans(request, group, model.model.signature.outputs.len(), &mut batch.spans),
                None => batch.spans.extend_from_slice(&request.spans),
            }
        }
        state.device.prepare(batch);
    }

    /// Shows the clients what was answered since the last time.
    fn publish(&mut self) {
        while let Some(key) = self.dirty.pop() {
            // Gone, or its key is another client's by now: then it has nothing unpublished.
            let Some(client) = self.clients.entries.get_mut(key) else { continue };
            if std::mem::take(&mut client.dirty) && !client.dying {
                client.connection.publish();
            }
        }
    }
}

/// The spans of a request in its group's order of inputs, and of all members' outputs.
fn group_spans(request: &requests::Request, group: &Group, outputs: usize, spans: &mut Vec<Span>) {
    let (inputs, mut own) = request.spans.split_at(request.shapes.len());
    let member = |asked: &Asked| &group.members[usize::from(asked.member)];
    spans.extend(member(&request.asked[0]).inputs.iter().map(|&input| inputs[input]));
    let first = spans.len();
    spans.resize(first + outputs, Span { offset: Span::UNWANTED, bytes: 0 });
    for asked in &request.asked {
        let range = member(asked).outputs.clone();
        let (mine, rest) = own.split_at(range.len());
        spans[first..][range].copy_from_slice(mine);
        own = rest;
    }
}

impl DeviceState {
    fn new(device: Box<dyn Device>) -> DeviceState {
        let empty = || {
            Box::new(Batch {
                id: BatchId(0),
                network: rota_device::NetworkId(0),
                class: Arc::new(ShapeClass { inputs: Vec::new(), constants: Vec::new() }),
                requests: Vec::new(),
                spans: Vec::new(),
                written: Vec::new(),
                started: None,
                took: Duration::ZERO,
            })
        };
        DeviceState {
            device,
            pool: (0..BATCHES_PER_DEVICE).map(|_| empty()).collect(),
            batches: 0,
            busy: Duration::ZERO,
            lost: false,
        }
    }
}
