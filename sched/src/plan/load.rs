//! A session on one kind of device, in whole nanoseconds: what its slots cost and which gaps they close.
//!
//! Everything that a timetable must satisfy for one session follows from one function. A slot of batch b that starts g
//! after the session's previous slot finds at most b waiting requests when g ≤ b/R (evenly spaced arrivals put at most
//! ⌈gR⌉ into any half-open interval of length g), and the oldest of them, which just missed the previous slot, is answered
//! g + ℓ(b) after it came. So the slot may close any gap up to G(b) = min(b/R, L − ℓ(b)), and slots of one session on
//! devices with a common period d are valid when every gap between neighbours is closed. Which slots do is then a sum:
//! Σ G(b) ≥ d, with the phases following the cumulative gaps.

use super::{ArrivalProcess, Demand, PlanError, Unplaced, Why};
use crate::time::nanos;
use crate::{ModelId, Profile};
use std::time::Duration;

/// One session's demand on one kind of device.
#[derive(Clone, Debug)]
pub(super) struct Load<'a> {
    /// Index into the demand's sessions.
    pub session: usize,
    /// Index into the demand's kinds of device.
    pub kind: usize,
    pub model: ModelId,
    pub profile: &'a Profile,
    /// Nanoseconds; longer than ℓ(1).
    pub slo: u64,
    /// Items per second, above zero.
    pub rate: f64,
    pub memory: u64,
    pub arrivals: ArrivalProcess,
    /// G(b) at index b − 1, up to the batch that closes the longest gap: G rises there, and falls or stays after it.
    gaps: Vec<u64>,
    /// Devices that it takes when nothing is lost to rounding: min ℓ(b)/G(b).
    pub share: f64,
}

impl<'a> Load<'a> {
    /// The sessions that kind `kind` can serve, and why it cannot serve the others.
    pub(super) fn all(demand: &'a Demand, kind: usize) -> (Vec<Load<'a>>, Vec<Unplaced>) {
        let (mut loads, mut unplaced) = (Vec::new(), Vec::new());
        for (session, asked) in demand.sessions.iter().enumerate() {
            match Load::new(demand, kind, session, asked.rate) {
                Ok(load) => loads.push(load),
                Err(why) => unplaced.push(Unplaced { session, rate: asked.rate, why }),
            }
        }
        (loads, unplaced)
    }

    /// `session` at `rate` instead of what it asks for.
    pub(super) fn new(demand: &'a Demand, kind: usize, session: usize, rate: f64) -> Result<Load<'a>, Why> {
        let asked = &demand.sessions[session];
        let device = &demand.kinds[kind];
        let cost = device.models.get(&asked.model).ok_or(Why::NoProfile)?;
        let slo = nanos(asked.slo);
        if latency(&cost.profile, 1) >= slo {
            return Err(Why::SloTooShort);
        }
        if device.memory_bytes.is_some_and(|memory| cost.memory_bytes > memory) {
            return Err(Why::NoMemory);
        }
        if rate <= 0.0 {
            return Err(Why::NoDemand);
        }
        let load = Load {
            session,
            kind,
            model: asked.model,
            profile: &cost.profile,
            slo,
            rate,
            memory: cost.memory_bytes,
            arrivals: demand.arrivals,
            gaps: Vec::new(),
            share: f64::INFINITY,
        };
        Ok(load.with_best_batches())
    }

    fn with_best_batches(mut self) -> Load<'a> {
        for batch in 1..=self.profile.largest_within(Duration::from_nanos(self.slo)) {
            let gap = self.gap(batch);
            if self.gaps.last().is_some_and(|&widest| gap <= widest) {
                break;
            }
            self.gaps.push(gap);
            // Infinite when not even a nanosecond passes until the batch is full.
            self.share = self.share.min(self.latency(batch) as f64 / gap as f64);
        }
        self
    }

    /// ℓ(b), nanoseconds.
    pub(super) fn latency(&self, batch: u32) -> u64 {
        latency(self.profile, batch)
    }

    /// G(b), nanoseconds: how long after the session's previous slot one of batch b may start.
    pub(super) fn gap(&self, batch: u32) -> u64 {
        let waits = self.slo.saturating_sub(self.latency(batch));
        let fills = filled(batch, self.arrivals) / self.rate * 1e9;
        waits.min(fills as u64).min(GAP_MAX)
    }

    /// The smallest batch that closes `gap`; `None` when none does.
    pub(super) fn closing(&self, gap: u64) -> Option<u32> {
        let shorter = self.gaps.partition_point(|&closed| closed < gap);
        (shorter < self.gaps.len()).then_some(shorter as u32 + 1)
    }

    /// The longest gap that a batch closes exactly and that is at most `limit`.
    pub(super) fn gap_within(&self, limit: u64) -> Option<u64> {
        let within = self.gaps.partition_point(|&gap| gap <= limit);
        self.gaps[..within].last().copied()
    }

    /// The batch that closes the longest gap among those that take at most `limit`.
    pub(super) fn widest_within(&self, limit: u64) -> Option<u32> {
        let fits = self.profile.largest_within(Duration::from_nanos(limit));
        Some(self.widest().min(fits)).filter(|&batch| batch > 0)
    }

    /// The batch that closes the longest gap of all.
    pub(super) fn widest(&self) -> u32 {
        self.gaps.len() as u32
    }

    /// Refuses what would take more than [`super::DEVICES_MAX`] devices.
    pub(super) fn check_size(loads: &[Load]) -> Result<(), PlanError> {
        let mut devices = 0.0;
        for load in loads {
            devices += load.share;
            if devices > super::DEVICES_MAX as f64 {
                return Err(PlanError::TooManyDevices { session: load.session, rate: load.rate, devices });
            }
        }
        Ok(())
    }
}

/// Items that a slot of `batch` may expect, on average, so that it takes all that wait.
///
/// Evenly spaced: the batch. Poisson: less by a margin that grows as the root of the expectation m, the deviation of a
/// Poisson count: m + κ√m = b.
fn filled(batch: u32, arrivals: ArrivalProcess) -> f64 {
    let batch = f64::from(batch);
    match arrivals {
        ArrivalProcess::Even => batch,
        ArrivalProcess::Poisson => {
            let root = ((HEADROOM * HEADROOM + 4.0 * batch).sqrt() - HEADROOM) / 2.0;
            root * root
        }
    }
}

fn latency(profile: &Profile, batch: u32) -> u64 {
    profile.nanos(batch).expect("planners ask for batches within the profile")
}

/// κ: deviations of the number of arrivals that a slot has room for beyond their mean.
const HEADROOM: f64 = 1.0;

/// No period is longer than this, eleven days: sums of a few thousand stay far from overflow.
const GAP_MAX: u64 = 1_000_000_000_000_000;
