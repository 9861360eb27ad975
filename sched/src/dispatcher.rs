//! What runs now: queues by session and shape class, duty cycles, early drop.

mod aim;
mod batches;
mod class;
mod correction;
mod device;
mod earliest;
mod pool;
mod queue;
mod queues;
mod rate;
mod standing;
#[cfg(test)]
mod tests;
mod turn;
mod window;

pub use batches::Batch;

use crate::time::nanos;
use crate::{BatchId, ClassId, DeviceId, Instant, ModelId, Profile, RequestId, SessionId};
use batches::Batches;
use class::Classes;
use device::{Behind, Device, Devices, Executing};
use queue::{Queue, QueueIndex, Waiting};
use queues::Queues;
use std::time::Duration;

#[derive(Clone, Debug)]
pub struct Config {
    /// Requests that can wait or run at once; ids are below it. What the dispatcher keeps per request is allocated at
    /// start, but for the queues' buffers: each grows to the longest that its queue has been.
    pub requests_max: u32,
    pub sessions_max: u32,
    pub devices_max: u32,
}

#[derive(Clone, Debug)]
pub struct DeviceConfig {
    /// How long before the device is expected to be free the next batch is chosen and prepared.
    pub prepare_lead: Duration,
    /// How long before the device is expected to be free the prepared batch's start is sent (what a hand-over takes); at
    /// most `prepare_lead`. Zero: only once the batch before it has finished.
    pub start_lead: Duration,
}

#[derive(Clone, Debug)]
pub struct SessionConfig {
    pub model: ModelId,
    pub slo: Duration,
    /// Its share when there are too few devices; 1 is usual.
    pub weight: f64,
}

/// How much a request matters among those of all sessions; the higher, the more. While there is enough for all it changes
/// nothing. When there is not, a session's requests of one level are served as if they were a session of their own with
/// [`Priority::weight`] times its weight; so levels do not share a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Priority(u8);

impl Priority {
    pub const NORMAL: Priority = Priority(0);
    pub const LEVELS: usize = 4;

    /// `None` for a level that is not below [`Priority::LEVELS`].
    pub fn new(level: u8) -> Option<Priority> {
        (usize::from(level) < Priority::LEVELS).then_some(Priority(level))
    }

    /// By which its session's weight is multiplied: four times for each level.
    pub fn weight(self) -> f64 {
        f64::from(1u32 << (2 * self.0))
    }
}

/// A request that was admitted. Its tensors are none of the dispatcher's business.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    pub request: RequestId,
    pub session: SessionId,
    pub class: ClassId,
    pub items: u32,
    pub deadline: Instant,
    pub priority: Priority,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    Arrived(Arrival),
    /// The client withdrew a request. One that still waits is forgotten (the caller answers it) and `handle` returns
    /// true; one that is in a batch stays there and `handle` returns false.
    Cancelled(RequestId),
    /// A batch that was started has ended after executing for `took`; `batch` is no more.
    Finished {
        device: DeviceId,
        batch: BatchId,
        took: Duration,
    },
    /// The device can't execute: until [`Event::Back`] it gets no new batch. Batches that it has end as they would.
    Lost(DeviceId),
    /// It can again.
    Back(DeviceId),
}

/// What the caller must do, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Hand `batch` ([`Dispatcher::batch`]) to the device, which may still execute another.
    Prepare { device: DeviceId, batch: BatchId },
    /// Let the device execute the prepared batch as soon as the one before it has ended.
    Start { device: DeviceId, batch: BatchId },
    /// Answer the request: it never runs.
    Drop { request: RequestId, reason: DropReason },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropReason {
    /// It can no longer be answered by its deadline.
    Hopeless,
    /// Its session was removed, or no device serves its shape class any more.
    Removed,
}

/// Measured rates of a session, for `rota status`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SessionRates {
    /// Items per second that arrive.
    pub offered: f64,
    /// Items that wait.
    pub queued: u32,
    /// Batch size that the duty cycle aims at.
    pub target_batch: u32,
}

/// Queues of all sessions of one host, and the turns of its devices.
///
/// Calling contract: call [`Dispatcher::handle`] for everything that happened (it only records, it never decides), then
/// [`Dispatcher::step`] once and carry out the actions in order, then step again by [`Dispatcher::next_timeout`] or after
/// the next event. `now` never goes back.
///
/// Requests are not bound to a device before it takes them: all devices that serve a class share its queues. Devices that
/// are joined by what they serve are a pool. While a pool's devices are easily enough for its queues, a device that is free
/// runs whatever waits; the busier they are, the longer a queue's requests wait for others, so that batches are worth their
/// turn. Each request has exactly one fate: it is in a batch, or an
/// [`Action::Drop`] names it, or its cancellation returned true.
///
/// What has arrived at a device is not taken back: a batch that is prepared is also started, even when the device
/// overran or all its requests were cancelled meanwhile.
///
/// Cost: an arrival O(log of its queue) and usually an append; a turn O(log queues) and the batch. Once in a tenth of a
/// second every queue is aimed anew, some per step.
/// What is needed per request and batch is allocated by `new`, `add_*` and `set_profile`; a queue's buffer grows to the
/// longest that it has been.
#[derive(Debug)]
pub struct Dispatcher {
    config: Config,
    /// By request id.
    places: Vec<Place>,
    sessions: Vec<Option<Session>>,
    queues: Queues,
    classes: Classes,
    devices: Devices,
    batches: Batches,
    /// Turns of all devices so far.
    turns: u64,
    /// The latest time seen.
    now: Instant,
    /// Something was recorded since the last step.
    recorded: bool,
    /// Which devices serve what has changed: pools are to be found anew.
    regroup: bool,
}

/// Where a request is.
#[derive(Clone, Copy, Debug)]
enum Place {
    /// Not here: its id is free.
    Unknown,
    Waiting {
        queue: QueueIndex,
        deadline: Instant,
    },
    /// Of this queue when it was taken, which may serve another session since.
    InBatch {
        queue: QueueIndex,
        deadline: Instant,
    },
}

#[derive(Debug)]
struct Session {
    config: SessionConfig,
    /// By class id.
    queues: Vec<Levels>,
}

/// A session's queues for a class, by priority. That of normal priority is there if a device serves the class, the others once
/// they were needed.
type Levels = [Option<QueueIndex>; Priority::LEVELS];

impl Dispatcher {
    pub fn new(config: Config) -> Dispatcher {
        Dispatcher {
            places: vec![Place::Unknown; config.requests_max as usize],
            sessions: (0..config.sessions_max).map(|_| None).collect(),
            queues: Queues::new(),
            classes: Classes::default(),
            devices: Devices::default(),
            batches: Batches::new(2 * config.devices_max),
            turns: 0,
            now: Instant(0),
            recorded: false,
            regroup: false,
            config,
        }
    }

    /// # Panics
    /// When there are `devices_max` already, or `start_lead` is longer than `prepare_lead`.
    pub fn add_device(&mut self, device: DeviceConfig) -> DeviceId {
        assert!(self.devices.len() < self.config.devices_max as usize, "more devices than devices_max");
        self.devices.add(Device::new(&device));
        self.regroup = true;
        DeviceId(self.devices.len() as u32 - 1)
    }

    /// Lets `device` serve shape class `class` of `model`, with this profile; replaces an earlier one. Devices
    /// with the same profile share what executions taught about it.
    ///
    /// # Panics
    /// When there is no such device.
    pub fn set_profile(&mut self, device: DeviceId, model: ModelId, class: ClassId, profile: Profile) {
        assert!((device.0 as usize) < self.devices.len(), "a profile for device {}, which was not added", device.0);
        self.batches.reserve(profile.max_batch().min(self.config.requests_max));
        let index = self.classes.entry(model, class);
        let opens = !self.classes[index].is_served();
        self.classes[index].serve(device.0 as usize, profile, self.now);
        if opens {
            for id in 0..self.sessions.len() {
                if self.sessions[id].as_ref().is_some_and(|session| session.config.model == model) {
                    self.open_queue(SessionId(id as u32), class, index, Priority::NORMAL);
                }
            }
        }
        self.regroup = true;
        self.recorded = true;
    }

    /// No device serves `class` of `model` any more; its waiting requests are dropped at the next step.
    pub fn remove_class(&mut self, model: ModelId, class: ClassId) {
        let Some(index) = self.classes.find(model, class) else { return };
        self.classes[index].clear();
        for queue in std::mem::take(&mut self.classes[index].queues) {
            let session = self.sessions[self.queues[queue].session.0 as usize].as_mut();
            session.expect("an open queue has a session").queues[class.0 as usize] = Levels::default();
            self.queues.close(queue);
        }
        self.regroup = true;
        self.recorded = true;
    }

    /// `None` when `sessions_max` are open.
    pub fn add_session(&mut self, session: SessionConfig) -> Option<SessionId> {
        let id = SessionId(self.sessions.iter().position(Option::is_none)? as u32);
        let classes: Vec<_> = self.classes.of(session.model).collect();
        self.sessions[id.0 as usize] = Some(Session { config: session, queues: Vec::new() });
        for (class, index) in classes {
            if self.classes[index].is_served() {
                self.open_queue(id, class, index, Priority::NORMAL);
            }
        }
        Some(id)
    }

    /// Gives a session another SLO and weight. What waits keeps its deadlines; batches to aim at follow within a tenth of a
    /// second.
    pub fn change_session(&mut self, session: SessionId, slo: Duration, weight: f64) {
        let Some(Some(changed)) = self.sessions.get_mut(session.0 as usize) else { return };
        (changed.config.slo, changed.config.weight) = (slo, weight);
        for levels in &changed.queues {
            for (level, &queue) in levels.iter().enumerate() {
                let Some(queue) = queue else { continue };
                let priority = Priority(level as u8);
                (self.queues[queue].slo, self.queues[queue].weight) = (nanos(slo), weight * priority.weight());
            }
        }
    }

    /// Its waiting requests are dropped at the next step; batches that run go on.
    pub fn remove_session(&mut self, session: SessionId) {
        let Some(removed) = self.sessions.get_mut(session.0 as usize).and_then(Option::take) else { return };
        for queue in removed.queues.into_iter().flatten().flatten() {
            self.classes[self.queues[queue].class].queues.retain(|&other| other != queue);
            self.queues.close(queue);
        }
        self.recorded = true;
    }

    /// Takes over what a plan promises: by session, items per second. A session is entitled to them when there is not enough
    /// for all, and they are its expected rate until another is measured. Sessions that are not named keep theirs.
    ///
    /// Cost: some milliseconds for a hundred sessions, since all batches to aim at are settled at once.
    pub fn promise(&mut self, promises: &[(SessionId, f64)]) {
        self.group();
        self.entitle(promises);
        for &(session, rate) in promises {
            let queues: Vec<QueueIndex> = self.queues_of(session).collect();
            // Of several classes or priorities nobody knows which the promise is for.
            if let [index] = queues[..] {
                self.queues[index].rate.expect(rate);
            }
        }
        self.queues.aim_all(&self.classes, self.now);
        self.recorded = true;
    }

    /// As [`Dispatcher::promise`] while requests are in flight: rates stay as they are measured, so batches to aim at stay too;
    /// shares follow within a tenth of a second. O(1) for each session.
    pub fn entitle(&mut self, promises: &[(SessionId, f64)]) {
        for &(session, rate) in promises {
            let queues = self.sessions.get(session.0 as usize).and_then(Option::as_ref).map(|session| &session.queues);
            for index in queues.into_iter().flatten().filter_map(|levels| levels[0]) {
                self.queues[index].promised = Some(rate);
            }
        }
    }

    /// Records what happened. True only for a cancelled request that was still waiting.
    ///
    /// A request for a session or class that is not served is dropped at the next step, and so is one with more items
    /// than any device takes.
    ///
    /// # Panics
    /// When an arriving request has no items, an id that is not below `requests_max` or that still waits or runs, or
    /// when there is no such device or the finished batch is not the one that it executes: the caller lost track.
    pub fn handle(&mut self, event: Event, now: Instant) -> bool {
        self.now = self.now.max(now);
        self.group();
        match event {
            Event::Arrived(arrival) => {
                self.arrived(arrival);
                self.recorded = true;
                false
            }
            Event::Cancelled(request) => self.cancelled(request),
            Event::Finished { device, batch, took } => {
                self.finished(device.0 as usize, batch, nanos(took));
                self.recorded = true;
                false
            }
            Event::Lost(device) => self.set_lost(device.0 as usize, true),
            Event::Back(device) => self.set_lost(device.0 as usize, false),
        }
    }

    /// Appends what must be done at `now`.
    pub fn step(&mut self, now: Instant, actions: &mut Vec<Action>) {
        self.now = self.now.max(now);
        self.recorded = false;
        self.group();
        self.drop_removed(actions);
        self.drop_hopeless(actions);
        self.queues.aim_some(&self.classes, self.now);
        self.queues.rise(&self.classes, self.now);
        loop {
            let mut from = 0;
            while let Some(device) = self.devices.free(from) {
                self.resume(device, actions);
                from = device + 1;
            }
            if !self.queues.rise_early(&self.classes) {
                break;
            }
        }
        self.devices.advance(self.now);
        let mut from = if self.queues.any_ready() { 0 } else { self.devices.len() };
        while let Some(device) = self.devices.preparing(from) {
            self.prepare_ahead(device, actions);
            from = device + 1;
        }
        let mut from = 0;
        while let Some(device) = self.devices.starting(from) {
            self.start_ahead(device, actions);
            from = device + 1;
        }
    }

    /// When [`Dispatcher::step`] is next due if nothing happens before; at once after [`Dispatcher::handle`] recorded
    /// something.
    pub fn next_timeout(&self) -> Option<Instant> {
        if self.recorded {
            return Some(self.now);
        }
        // What was due and not done (nothing to prepare, or an overrun) waits for an event.
        let due = self.devices.next_due(self.queues.any_waits());
        Some(due.min(self.queues.rises_at()).min(self.queues.expiry.earliest())).filter(|&at| at < Instant::MAX)
    }

    /// An outstanding batch: prepared, or started and not finished (by [`Event::Finished`], so read it before that).
    pub fn batch(&self, batch: BatchId) -> &Batch {
        self.batches.batch(batch)
    }

    /// The profile as corrected by what executions took.
    pub fn profile(&self, device: DeviceId, model: ModelId, class: ClassId) -> Option<&Profile> {
        self.classes[self.classes.find(model, class)?].on(device.0 as usize)
    }

    /// Rates over all shape classes; the target batch is the largest over classes. Zero for a session that
    /// is not open.
    pub fn rates(&self, session: SessionId, now: Instant) -> SessionRates {
        let mut rates = SessionRates::default();
        for queue in self.queues_of(session).map(|index| &self.queues[index]) {
            rates.offered += queue.rate.per_second(now).unwrap_or(0.0);
            rates.queued = rates.queued.saturating_add(queue.items().try_into().unwrap_or(u32::MAX));
            rates.target_batch = rates.target_batch.max(queue.aim.batch);
        }
        rates
    }

    /// Waiting requests of `session`.
    pub fn waiting(&self, session: SessionId) -> u32 {
        self.queues_of(session).map(|index| self.queues[index].requests().len() as u32).sum()
    }

    fn arrived(&mut self, Arrival { request, session, class, items, deadline, priority }: Arrival) {
        assert!(items > 0, "request {} has no items", request.0);
        let place = &mut self.places[request.0 as usize];
        assert!(matches!(place, Place::Unknown), "request {} arrived while it waits or runs", request.0);
        let queue = self.queue_for(session, class, priority).unwrap_or(Queues::REFUSED);
        let place = &mut self.places[request.0 as usize];
        *place = Place::Waiting { queue, deadline };
        let waiting = Waiting { deadline, request, items };
        if queue == Queues::REFUSED {
            return self.queues.refuse(waiting);
        }
        let class = self.queues[queue].class;
        let interval_ended = self.queues.push(queue, waiting, &self.classes[class], self.now);
        if interval_ended && self.classes[class].relax(self.now) {
            self.settle(class);
        }
    }

    fn cancelled(&mut self, request: RequestId) -> bool {
        let Some(place) = self.places.get_mut(request.0 as usize) else { return false };
        let Place::Waiting { queue, deadline } = *place else { return false };
        *place = Place::Unknown;
        let class = self.queues[queue].is_open().then(|| &self.classes[self.queues[queue].class]);
        self.queues.cancel(queue, deadline, request, class, self.now);
        true
    }

    fn finished(&mut self, device: usize, id: BatchId, took: u64) {
        let now = self.now;
        self.devices.change(device, now, |device| device.finish(id));
        let (batch, made) = self.batches.close(id);
        let (mut late, mut from) = (0, None);
        for request in &batch.requests {
            let place = std::mem::replace(&mut self.places[request.0 as usize], Place::Unknown);
            if let Place::InBatch { queue, deadline } = place {
                (late, from) = (late + u32::from(deadline < now), Some(queue));
            }
        }
        if let Some(queue) = from.filter(|_| late > 0) {
            // They may differ in items; which were how large is not known any more.
            let items = (u64::from(late) * u64::from(batch.items) / batch.requests.len() as u64) as u32;
            self.queues.count_late(queue, made.class, items);
        }
        if self.classes[made.class].observe(device, batch.items, took, self.now) {
            self.settle(made.class);
        }
        let started = |device: &mut Device| device.behind.take_if(|behind| behind.started);
        if let Some(Behind { batch, .. }) = self.devices.change(device, now, started) {
            self.execute(device, batch);
        }
        if self.devices[device].is_idle() {
            self.queues.count_idle(device, true);
        }
    }

    fn set_lost(&mut self, device: usize, lost: bool) -> bool {
        let was_idle = self.devices[device].is_idle();
        self.devices.change(device, self.now, |device| device.lost = lost);
        let is_idle = self.devices[device].is_idle();
        if was_idle != is_idle {
            self.queues.count_idle(device, is_idle);
        }
        self.recorded = true;
        false
    }

    /// `batch` begins to execute now.
    fn execute(&mut self, device: usize, batch: BatchId) {
        let ends = Instant(self.now.0.saturating_add(self.batches.latency(batch)));
        self.devices.change(device, self.now, |device| device.executing = Some(Executing { batch, ends }));
    }

    fn drop_removed(&mut self, actions: &mut Vec<Action>) {
        let places = &mut self.places;
        while self.queues.take_closed(|waiting| {
            places[waiting.request.0 as usize] = Place::Unknown;
            actions.push(Action::Drop { request: waiting.request, reason: DropReason::Removed });
        }) {}
    }

    fn drop_hopeless(&mut self, actions: &mut Vec<Action>) {
        let (now, places) = (self.now, &mut self.places);
        while let Some(index) = self.queues.expiry.due(now).map(|index| QueueIndex(index as u32)) {
            let class = &self.classes[self.queues[index].class];
            self.queues.take_hopeless(index, class, now, |waiting| {
                places[waiting.request.0 as usize] = Place::Unknown;
                actions.push(Action::Drop { request: waiting.request, reason: DropReason::Hopeless });
            });
        }
    }

    /// Starts the prepared batch of a device that executes nothing, or gives an idle one its turn.
    fn resume(&mut self, device: usize, actions: &mut Vec<Action>) {
        let id = DeviceId(device as u32);
        let batch = if let Some(Behind { batch, .. }) = self.devices[device].behind {
            self.devices.change(device, self.now, |device| device.behind = None);
            batch
        } else {
            let found = if self.queues.any_ready() { self.turn(device, self.now, actions) } else { None };
            let Some(batch) = found else { return };
            self.queues.count_idle(device, false);
            actions.push(Action::Prepare { device: id, batch });
            batch
        };
        actions.push(Action::Start { device: id, batch });
        self.execute(device, batch);
    }

    /// Prepares what comes behind the batch that executes.
    fn prepare_ahead(&mut self, device: usize, actions: &mut Vec<Action>) {
        let state = &self.devices[device];
        let Some(executing) = state.executing.filter(|_| state.may(state.prepare_at(), self.now)) else { return };
        let Some(batch) = self.turn(device, executing.ends, actions) else { return };
        actions.push(Action::Prepare { device: DeviceId(device as u32), batch });
        let behind = Behind { batch, started: false };
        self.devices.change(device, self.now, |device| device.behind = Some(behind));
    }

    /// Starts it while the other still executes.
    fn start_ahead(&mut self, device: usize, actions: &mut Vec<Action>) {
        let state = &self.devices[device];
        let Some(Behind { batch, .. }) = state.behind.filter(|_| state.may(state.start_at(), self.now)) else { return };
        let behind = Behind { batch, started: true };
        self.devices.change(device, self.now, |device| device.behind = Some(behind));
        actions.push(Action::Start { device: DeviceId(device as u32), batch });
    }

    /// Where such requests wait; `None` when no device serves the class.
    fn queue_for(&mut self, id: SessionId, class: ClassId, priority: Priority) -> Option<QueueIndex> {
        let levels = self.sessions.get(id.0 as usize)?.as_ref()?.queues.get(class.0 as usize)?;
        let normal = levels[0]?;
        levels[usize::from(priority.0)]
            .or_else(|| Some(self.open_queue(id, class, self.queues[normal].class, priority)))
    }

    fn open_queue(
        &mut self,
        id: SessionId,
        class: ClassId,
        index: class::ClassIndex,
        priority: Priority,
    ) -> QueueIndex {
        let session = self.sessions[id.0 as usize].as_mut().expect("queues are opened for open sessions");
        let config = &session.config;
        let queue = Queue::new(id, index, nanos(config.slo), config.weight * priority.weight(), self.now);
        let queue = self.queues.open(queue, &self.classes[index]);
        let by_class = &mut session.queues;
        by_class.resize(by_class.len().max(class.0 as usize + 1), Levels::default());
        by_class[class.0 as usize][usize::from(priority.0)] = Some(queue);
        self.classes[index].queues.push(queue);
        queue
    }

    /// Finds pools anew when what devices serve has changed.
    fn group(&mut self) {
        if !std::mem::take(&mut self.regroup) {
            return;
        }
        self.queues.group(&self.classes, self.devices.len());
        for device in 0..self.devices.len() {
            if self.devices[device].is_idle() {
                self.queues.count_idle(device, true);
            }
        }
        for class in self.classes.all() {
            for &queue in &class.queues {
                self.queues.settle(queue, class, self.now);
            }
        }
    }

    /// Brings the queues of a class up to date after its latencies changed.
    fn settle(&mut self, index: class::ClassIndex) {
        let class = &self.classes[index];
        for &queue in &class.queues {
            self.queues.settle(queue, class, self.now);
        }
    }

    fn queues_of(&self, session: SessionId) -> impl Iterator<Item = QueueIndex> + '_ {
        let session = self.sessions.get(session.0 as usize).and_then(Option::as_ref);
        session.into_iter().flat_map(|session| session.queues.iter().flatten().copied().flatten())
    }
}
