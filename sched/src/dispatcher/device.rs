//! What a device executes, and what it will execute next; of many devices, which have something to do.

use super::DeviceConfig;
use super::earliest::Earliest;
use crate::time::nanos;
use crate::{BatchId, Instant};
use std::ops::Index;

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
    /// It can't execute for now: it is given no new batch. Those that it has come back from it.
    pub lost: bool,
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
        Device { prepare_lead, start_lead, executing: None, behind: None, lost: false }
    }

    /// Whether it waits for work.
    pub fn is_idle(&self) -> bool {
        self.executing.is_none() && self.behind.is_none() && !self.lost
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
        let executing = self.executing.filter(|_| self.behind.is_none() && self.prepare_lead > 0 && !self.lost)?;
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

/// When something may be done with each device.
#[derive(Debug, Default)]
struct Schedule {
    /// Now, or it might be but for an overrun.
    due: Members,
    /// Of the others, when.
    later: Earliest,
}

impl Schedule {
    fn reserve(&mut self, devices: usize) {
        self.later.reserve(devices);
        self.due.set(devices - 1, false);
    }

    fn set(&mut self, device: usize, at: Option<Instant>, now: Instant) {
        self.due.set(device, at.is_some_and(|at| at <= now));
        self.later.set(device, at.filter(|&at| at > now).unwrap_or(Instant::MAX));
    }

    fn advance(&mut self, now: Instant) {
        while let Some(device) = self.later.due(now) {
            self.later.set(device, Instant::MAX);
            self.due.set(device, true);
        }
    }
}

/// All devices, and those of them on which something may be done now or soon, so that a step looks at no others.
///
/// [`Devices::change`] is the only way to change one: it files the device anew, O(log devices).
#[derive(Debug, Default)]
pub struct Devices {
    all: Vec<Device>,
    /// On which nothing executes.
    free: Members,
    /// For which a batch may be prepared ahead; and on which the prepared one may be started ahead.
    prepares: Schedule,
    starts: Schedule,
}

impl Devices {
    pub fn add(&mut self, device: Device) {
        self.all.push(device);
        self.prepares.reserve(self.all.len());
        self.starts.reserve(self.all.len());
        self.free.set(self.all.len() - 1, true);
    }

    pub fn len(&self) -> usize {
        self.all.len()
    }

    pub fn iter(&self) -> impl Iterator<Item = &Device> {
        self.all.iter()
    }

    /// The first device from `from` on that executes nothing.
    pub fn free(&self, from: usize) -> Option<usize> {
        self.free.first(from)
    }

    /// The first device from `from` on for which the next batch may be due to be prepared; [`Device::may`] knows.
    pub fn preparing(&self, from: usize) -> Option<usize> {
        self.prepares.due.first(from)
    }

    /// The first device from `from` on on which the next batch may be due to be started; [`Device::may`] knows.
    pub fn starting(&self, from: usize) -> Option<usize> {
        self.starts.due.first(from)
    }

    /// Files those whose time comes at `now`.
    pub fn advance(&mut self, now: Instant) {
        self.prepares.advance(now);
        self.starts.advance(now);
    }

    /// When the next device comes due; `waits`: there are requests of which a batch could be prepared.
    pub fn next_due(&self, waits: bool) -> Instant {
        let prepares = if waits { self.prepares.later.earliest() } else { Instant::MAX };
        prepares.min(self.starts.later.earliest())
    }

    pub fn change<R>(&mut self, device: usize, now: Instant, change: impl FnOnce(&mut Device) -> R) -> R {
        let state = &mut self.all[device];
        let result = change(state);
        self.free.set(device, state.executing.is_none() && (!state.lost || state.behind.is_some()));
        self.prepares.set(device, state.prepare_at(), now);
        self.starts.set(device, state.start_at(), now);
        result
    }
}

impl Index<usize> for Devices {
    type Output = Device;
    fn index(&self, device: usize) -> &Device {
        &self.all[device]
    }
}

/// A set of small indexes: a bit for each.
#[derive(Debug, Default)]
struct Members {
    words: Vec<u64>,
}

impl Members {
    fn set(&mut self, index: usize, is_member: bool) {
        let (word, bit) = (index / 64, 1 << (index % 64));
        if word == self.words.len() {
            self.words.push(0);
        }
        if is_member {
            self.words[word] |= bit;
        } else {
            self.words[word] &= !bit;
        }
    }

    /// The first member from `from` on.
    fn first(&self, from: usize) -> Option<usize> {
        let mut mask = u64::MAX << (from % 64);
        for (word, &bits) in self.words.iter().enumerate().skip(from / 64) {
            if bits & mask != 0 {
                return Some(64 * word + (bits & mask).trailing_zeros() as usize);
            }
            mask = u64::MAX;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_found_in_order() {
        let mut members = Members::default();
        (0..200).for_each(|index| members.set(index, index % 63 == 5));
        members.set(68, false);
        let mut found = Vec::new();
        let mut from = 0;
        while let Some(index) = members.first(from) {
            found.push(index);
            from = index + 1;
        }
        assert_eq!(found, [5, 131, 194]);
    }

    #[test]
    fn a_device_is_due_from_its_lead_on_until_its_next_batch_is_there() {
        let mut devices = Devices::default();
        let lead = std::time::Duration::from_nanos(10);
        devices.add(Device::new(&DeviceConfig { prepare_lead: lead, start_lead: lead }));
        assert_eq!((devices.free(0), devices.preparing(0)), (Some(0), None));
        let executing = Some(Executing { batch: BatchId(0), ends: Instant(100) });
        devices.change(0, Instant(0), |device| device.executing = executing);
        assert_eq!((devices.free(0), devices.preparing(0), devices.next_due(true)), (None, None, Instant(90)));
        assert_eq!(devices.next_due(false), Instant::MAX);
        devices.advance(Instant(90));
        assert_eq!((devices.preparing(0), devices.next_due(true)), (Some(0), Instant::MAX));
        let behind = Some(Behind { batch: BatchId(1), started: false });
        devices.change(0, Instant(91), |device| device.behind = behind);
        assert_eq!((devices.preparing(0), devices.starting(0)), (None, Some(0)));
    }
}
