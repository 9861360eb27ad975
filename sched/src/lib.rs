//! Rota's scheduling core. Pure: no clock, no I/O, no threads; every decision is a function of state, event and time.
#![forbid(unsafe_code)]

pub mod dispatcher;
pub mod plan;
pub mod profile;
pub mod query;
pub mod time;

pub use dispatcher::{
    Action, Arrival, Batch, Config, DeviceConfig, Dispatcher, DropReason, Event, Priority, SessionConfig, SessionRates,
};
pub use profile::{Profile, ProfileError};
pub use time::Instant;

/// A network whose requests can share batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ModelId(pub u32);
/// (model, SLO): one queue per shape class. Dense, reused after removal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(pub u32);
/// A shape class of a model, numbered by the caller; dense per model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClassId(pub u32);
/// A device, in the order in which they were added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceId(pub u32);
/// A request, numbered by the caller; unique among those that wait or run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u32);
/// A batch, numbered by the dispatcher; unique among those outstanding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BatchId(pub u32);
