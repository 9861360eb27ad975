//! Which models share which device, in which order, with what batches: timetables from demand.
//!
//! Pure and deterministic: the same demand gives the same plan on every host; a search budget counts steps, never seconds.

mod fixed;
mod load;
mod nexus;
mod play;
mod random;
mod replan;
mod rota;
mod stream;

pub mod bound;
pub mod validity;

pub use replan::{BAND, Change, Move, Replan, WORTH, replan};

use crate::{ModelId, Profile};
use load::Load;
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
    /// Evenly spaced at the session's rate: the paper's assumption. No request is late; of sessions too slow to fill a
    /// batch, 99 % are in time also when theirs come by chance.
    Even,
    /// Poisson: timetables keep headroom, so that 99 % of every session are in time.
    Poisson,
}

/// A timetable for each device, and what has no place in any.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Plan {
    pub devices: Vec<Timetable>,
    pub unplaced: Vec<Unplaced>,
    /// No plan, by whatever method, can do with fewer devices; proved in `plan::bound`. Zero for a fixed fleet.
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

/// A turn of one session, or a device that several share.
///
/// Of one session it runs one batch, at its start. A slot of several is as long as its period, so it never ends: the device
/// belongs to their *pool*, the devices with the same sessions. There a session waits until its share's batch is full or
/// its oldest request can wait no longer; then it is ready, and a device that is free runs the ready session whose latest
/// start comes first. `play.rs` has the rule to the letter.
#[derive(Clone, Debug, PartialEq)]
pub struct Slot {
    pub offset: Duration,
    /// The largest of its shares'.
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
    /// Items that its batches here are meant to have.
    pub batch: u32,
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
    /// Even a batch of one leaves no time to wait for its turn within the SLO.
    SloTooShort,
    /// No kind of device in the fleet has a profile of the model.
    NoProfile,
    /// The model is larger than any device's memory.
    NoMemory,
    /// The devices are full.
    NoDevice,
    /// Its rate is zero: it asks for no slot.
    NoDemand,
}

/// How timetables are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Planner {
    /// The published greedy ("squishy bin packing"), as the baseline.
    Nexus,
    /// Ours: never needs more devices than [`Planner::Nexus`], because its plan is a candidate (for evenly
    /// spaced arrivals, the only ones that it knows).
    Rota,
}

/// How long a planner may search, in rebuilt parts of the plan: the same number gives the same plan on every host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Steps(pub u32);

/// A demand that means nothing. The caller's fault; nothing was planned.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum PlanError {
    #[error("session {session}: rate {rate} must be a number of items per second, zero or more")]
    Rate { session: usize, rate: f64 },
    #[error("session {session}: weight {weight} must be a number above zero")]
    Weight { session: usize, weight: f64 },
    #[error("the fleet names device kind {kind}, but there are {kinds}")]
    Kind { kind: usize, kinds: usize },
    #[error("session {session} at {rate} items/s takes {devices:.0} devices, more than {max} in all", max = DEVICES_MAX)]
    TooManyDevices { session: usize, rate: f64, devices: f64 },
}

/// Devices that a plan may need or be given: bounds what a mistyped rate costs.
pub const DEVICES_MAX: usize = 1 << 16;

/// Timetables for `demand`; what cannot be placed is named in [`Plan::unplaced`].
///
/// A plan for a fixed fleet has a timetable for each of its devices, in their order; one that has nothing to do has no
/// slots.
pub fn plan(demand: &Demand, planner: Planner, budget: Steps) -> Result<Plan, PlanError> {
    check_numbers(demand)?;
    let kind = match &demand.fleet {
        Fleet::Fixed(devices) => return Ok(fixed::plan(demand, devices, planner, budget)),
        Fleet::Unlimited(kind) => *kind,
    };
    let (loads, mut unplaced) = Load::all(demand, kind);
    Load::check_size(&loads)?;
    let packed = pack(&loads, kind, demand.kinds[kind].memory_bytes, planner, budget, usize::MAX);
    let (devices, refused) = packed.expect("there is no limit to the devices");
    unplaced.extend(refused);
    unplaced.sort_by_key(|unplaced| unplaced.session);
    Ok(Plan { devices, unplaced, lower_bound: bound::lower_bound(demand) })
}

/// Timetables on devices of one kind, and the loads that the planner has no place for; `None` when our planner finds that
/// it takes more than `devices_max` devices.
fn pack(
    loads: &[Load],
    kind: usize,
    memory: Option<u64>,
    planner: Planner,
    budget: Steps,
    devices_max: usize,
) -> Option<(Vec<Timetable>, Vec<Unplaced>)> {
    let (greedy, refused) = nexus::pack(loads, kind, memory);
    if planner == Planner::Nexus {
        return Some((greedy, refused));
    }
    // The greedy knows evenly spaced arrivals only: for others its plan has too little headroom to be a candidate.
    let holds = refused.is_empty() && loads.iter().all(|load| load.arrivals == ArrivalProcess::Even);
    match rota::pack(loads, kind, memory, budget, devices_max) {
        Some(ours) if !holds || ours.len() <= greedy.len() => Some((ours, Vec::new())),
        _ => holds.then_some((greedy, refused)),
    }
}

fn check_numbers(demand: &Demand) -> Result<(), PlanError> {
    let kinds = demand.kinds.len();
    let named: &[usize] = match &demand.fleet {
        Fleet::Unlimited(kind) => std::slice::from_ref(kind),
        Fleet::Fixed(devices) => devices,
    };
    if let Some(&kind) = named.iter().find(|&&kind| kind >= kinds) {
        return Err(PlanError::Kind { kind, kinds });
    }
    for (index, session) in demand.sessions.iter().enumerate() {
        if !(session.rate.is_finite() && session.rate >= 0.0) {
            return Err(PlanError::Rate { session: index, rate: session.rate });
        }
        if !(session.weight.is_finite() && session.weight > 0.0) {
            return Err(PlanError::Weight { session: index, weight: session.weight });
        }
    }
    Ok(())
}
