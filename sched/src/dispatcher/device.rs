//! What a device executes, and what it will execute next.

use super::DeviceConfig;
use crate::time::nanos;
use crate::{BatchId, Instant};

/// A device: at most one batch executes, and at most one is behind it.
#[derive(Debug)]
pub struct Device {
    /// Nanoseconds, as the configuration says; zero: nothing is prepared ahead.
    prepare_lead: u64,
    /// Nanoseconds, not above `prepare_lead`; zero: nothing is started ahead.
    start_lead: u64,
    pub executing: Option<Executing>,
    /// Only while one executes, or between its end and the next step.
    pub behind: Option<Behind>,
}

#[derive(Clone, Copy, Debug)]
pub struct Executing {
    pub batch: BatchId,
    /// When it will have ended, by the corrected profile. Past: the device overruns.
    pub ends: Instant,
}

#[derive(Clone, Copy, Debug)]
pub struct Behind {
    pub batch: BatchId,
    /// Its start was sent.
    pub started: bool,
}

impl Device {
    /// # Panics
    /// When `start_lead` is longer than `prepare_lead`.
    pub fn new(config: &DeviceConfig) -> Device {
        let (prepare_lead, start_lead) = (nanos(config.prepare_lead), nanos(config.start_lead));
        assert!(start_lead <= prepare_lead, "a batch cannot be started before it is prepared");
        Device { prepare_lead, start_lead, executing: None, behind: None }
    }

    pub fn is_idle(&self) -> bool {
        self.executing.is_none() && self.behind.is_none()
    }

    /// Forgets the batch that executed.
    ///
    /// # Panics
    /// When it is not `batch` that executes: the caller lost track of the device.
    pub fn finish(&mut self, batch: BatchId) {
        let executing = self.executing.take().map(|executing| executing.batch);
        assert_eq!(executing, Some(batch), "a device finished a batch that it did not execute");
    }

    /// When the batch after the one that executes may be chosen, if none is yet.
    pub fn prepare_at(&self) -> Option<Instant> {
        let executing = self.executing.filter(|_| self.behind.is_none() && self.prepare_lead > 0)?;
        Some(Instant(executing.ends.0.saturating_sub(self.prepare_lead)))
    }

    /// When the prepared batch's start may be sent ahead of the other's end.
    pub fn start_at(&self) -> Option<Instant> {
        let executing = self.executing.filter(|_| self.start_lead > 0)?;
        self.behind.filter(|behind| !behind.started)?;
        Some(Instant(executing.ends.0.saturating_sub(self.start_lead)))
    }

    /// Whether something that is due from `at` on may be done at `now`: not before, and not while the device overruns,
    /// since nobody knows then when it will be free.
    pub fn may(&self, at: Option<Instant>, now: Instant) -> bool {
        let overruns = self.executing.is_some_and(|executing| executing.ends < now);
        at.is_some_and(|at| at <= now) && !overruns
    }
}
