//! Which models share which device, in which order, with what batches: timetables from demand.
//!
//! Pure and deterministic: the same demand gives the same plan on every host; a search budget counts steps, never seconds.

use crate::{ModelId, Profile};
use std::collections::BTreeMap;
use std::time::Duration;

/// What is to be planned for.
#[derive(Clone, Debug, PartialEq)]
pub struct Demand {
    pub sessions: Vec<Session>,
    pub kinds: Vec<DeviceKind>,
    pub fleet: Fleet,
    pub arrivals: ArrivalProcess,
}

/// A session's demand.
#[derive(Clone, Debug, PartialEq)]
pub struct Session {
    pub model: ModelId,
    pub slo: Duration,
    /// Items per second.
    pub rate: f64,
    /// Its share when there are too few devices; 1 is usual.
    pub weight: f64,
}

/// A kind of device, and what runs on it.
#[derive(Clone, Debug, PartialEq)]
pub struct DeviceKind {
    /// `None`: as much as any plan needs.
    pub memory_bytes: Option<u64>,
    /// Models without an entry do not run on this kind.
    pub models: BTreeMap<ModelId, ModelCost>,
}

/// What a model costs on a kind of device.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelCost {
    pub profile: Profile,
    pub memory_bytes: u64,
    pub load_time: Duration,
}

/// The devices that a plan may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fleet {
    /// As many as it takes, of the kind with this index; as few as possible.
    Unlimited(usize),
    /// These and no more: the kind of each.
    Fixed(Vec<usize>),
}

/// How requests are assumed to arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArrivalProcess {
    /// Evenly spaced at the session's rate: the paper's assumption.
    Even,
    /// Poisson: timetables keep headroom, so that 99 % of every session are in time.
    Poisson,
}

/// A timetable for each device, and what has no place in any.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Plan {
    pub devices: Vec<Timetable>,
    pub unplaced: Vec<Unplaced>,
    /// No plan, by whatever method, can do with fewer devices; proved in `docs/scheduling.md`. Zero for a fixed fleet.
    pub lower_bound: f64,
}

/// What one device does, period after period.
#[derive(Clone, Debug, PartialEq)]
pub struct Timetable {
    /// Index into [`Demand::kinds`].
    pub kind: usize,
    pub period: Duration,
    /// When its periods begin, relative to those of the other devices with the same period.
    pub phase: Duration,
    /// By offset; they do not overlap, across the period's end neither.
    pub slots: Vec<Slot>,
}

/// A turn of one session, or of several that share it.
#[derive(Clone, Debug, PartialEq)]
pub struct Slot {
    pub offset: Duration,
    pub batch: u32,
    pub execution: Duration,
    /// Whom it serves. Of several, whichever has work.
    pub shares: Vec<Share>,
}

/// A session's part of a slot.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Share {
    /// Index into [`Demand::sessions`].
    pub session: usize,
    /// Items per second of it that this slot is planned for.
    pub rate: f64,
}

/// Demand that no device serves.
#[derive(Clone, Debug, PartialEq)]
pub struct Unplaced {
    pub session: usize,
    pub rate: f64,
    pub why: Why,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// Even a batch of one takes longer than the SLO.
    SloTooShort,
    /// No kind of device in the fleet has a profile of the model.
    NoProfile,
    /// The model is larger than any device's memory.
    NoMemory,
    /// The devices are full.
    NoDevice,
}
