//! What runs now: queues by session and shape class, duty cycles, early drop.

use crate::{BatchId, ClassId, DeviceId, Instant, ModelId, Profile, RequestId, SessionId};
use std::time::Duration;

#[derive(Clone, Debug)]
pub struct Config {
    /// Requests that can wait or run at once; all memory is taken at start. Request ids are below it.
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
}

/// A request that was admitted. Its tensors are none of the dispatcher's business.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    pub request: RequestId,
    pub session: SessionId,
    pub class: ClassId,
    pub items: u32,
    pub deadline: Instant,
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

/// The requests of an outstanding batch.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    pub requests: Vec<RequestId>,
    pub items: u32,
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
pub struct Dispatcher {/* private */}

impl Dispatcher {
    pub fn new(config: Config) -> Dispatcher {
        let _ = config;
        todo!()
    }
    pub fn add_device(&mut self, device: DeviceConfig) -> DeviceId {
        let _ = device;
        todo!()
    }
    /// Lets `device` serve shape class `class` of `model`, with this profile; replaces an earlier one.
    pub fn set_profile(&mut self, device: DeviceId, model: ModelId, class: ClassId, profile: Profile) {
        let _ = (device, model, class, profile);
        todo!()
    }
    /// No device serves `class` of `model` any more; its waiting requests are dropped at the next step.
    pub fn remove_class(&mut self, model: ModelId, class: ClassId) {
        let _ = (model, class);
        todo!()
    }
    /// `None` when `sessions_max` are open.
    pub fn add_session(&mut self, session: SessionConfig) -> Option<SessionId> {
        let _ = session;
        todo!()
    }
    /// Its waiting requests are dropped at the next step; batches that run go on.
    pub fn remove_session(&mut self, session: SessionId) {
        let _ = session;
        todo!()
    }
    pub fn handle(&mut self, event: Event, now: Instant) -> bool {
        let _ = (event, now);
        todo!()
    }
    /// Appends what must be done at `now`.
    pub fn step(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let _ = (now, actions);
        todo!()
    }
    /// When [`Dispatcher::step`] is next due if nothing happens before.
    pub fn next_timeout(&self) -> Option<Instant> {
        todo!()
    }
    /// An outstanding batch: prepared, or started and not finished.
    pub fn batch(&self, batch: BatchId) -> &Batch {
        let _ = batch;
        todo!()
    }
    /// The profile as corrected by what executions took.
    pub fn profile(&self, device: DeviceId, model: ModelId, class: ClassId) -> Option<&Profile> {
        let _ = (device, model, class);
        todo!()
    }
    pub fn rates(&self, session: SessionId, now: Instant) -> SessionRates {
        let _ = (session, now);
        todo!()
    }
    /// Waiting requests of `session`.
    pub fn waiting(&self, session: SessionId) -> u32 {
        let _ = session;
        todo!()
    }
}
