//! Shape classes: which devices serve them, and how fast.

use super::correction::Correction;
use super::queue::QueueIndex;
use crate::{ClassId, Instant, ModelId, Profile};
use std::collections::BTreeMap;
use std::ops::{Index, IndexMut, RangeInclusive};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ClassIndex(pub u32);

/// A shape class of a model as devices with the same profile run it. They share what executions teach: with many devices
/// it is learnt as many times as fast.
#[derive(Debug)]
struct Kind {
    devices: u32,
    /// As it was given.
    measured: Profile,
    /// `measured` times the factor of `correction`: what decisions are made by.
    corrected: Profile,
    correction: Correction,
}

impl Kind {
    fn correct(&mut self) {
        self.corrected.scale(&self.measured, self.correction.factor());
    }
}

/// A shape class of a model.
#[derive(Debug, Default)]
pub struct Class {
    /// Slots of kinds that no device is of are reused.
    kinds: Vec<Kind>,
    /// By device: its kind; `None` where the device does not serve it.
    served: Vec<Option<u32>>,
    /// Least corrected latency over all devices, nanoseconds, at index b - 1. Non-decreasing.
    fastest: Vec<u64>,
    /// Mean corrected latency over the devices that take so many, nanoseconds, at index b - 1. Non-decreasing.
    typical: Vec<u64>,
    /// Open queues of this class, one per session of its model.
    pub queues: Vec<QueueIndex>,
}

impl Class {
    pub fn serve(&mut self, device: usize, profile: Profile, now: Instant) {
        if self.served.len() <= device {
            self.served.resize(device + 1, None);
        }
        if let Some(before) = self.served[device].take() {
            self.kinds[before as usize].devices -= 1;
        }
        let same = |kind: &Kind| kind.devices > 0 && kind.measured == profile;
        let kind = self.kinds.iter().position(same).unwrap_or_else(|| {
            let corrected = profile.clone();
            let kind = Kind { devices: 0, measured: profile, corrected, correction: Correction::new(now) };
            match self.kinds.iter().position(|kind| kind.devices == 0) {
                Some(free) => {
                    self.kinds[free] = kind;
                    free
                }
                None => {
                    self.kinds.push(kind);
                    self.kinds.len() - 1
                }
            }
        });
        self.kinds[kind].devices += 1;
        self.served[device] = Some(kind as u32);
        self.compare();
    }

    /// Takes what an execution of `items` took; true when latencies changed.
    pub fn observe(&mut self, device: usize, items: u32, took: u64, now: Instant) -> bool {
        let Some(Some(kind)) = self.served.get(device) else { return false };
        let kind = &mut self.kinds[*kind as usize];
        // A smaller profile may have replaced the one that the batch was made by.
        let Some(expected) = kind.measured.nanos(items) else { return false };
        let moved = kind.correction.observe(took, expected, now);
        if moved {
            kind.correct();
            self.compare();
        }
        moved
    }

    /// Forgets corrections that no execution has confirmed for long; true when latencies changed.
    pub fn relax(&mut self, now: Instant) -> bool {
        let mut any = false;
        for kind in self.kinds.iter_mut().filter(|kind| kind.devices > 0) {
            if kind.correction.relax(now) {
                kind.correct();
                any = true;
            }
        }
        if any {
            self.compare();
        }
        any
    }

    /// No device serves it any more. Its queues are the caller's to close.
    pub fn clear(&mut self) {
        self.served.clear();
        self.kinds.clear();
        self.fastest.clear();
        self.typical.clear();
    }

    /// Devices that serve it.
    pub fn serving(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.served.len()).filter(|&device| self.served[device].is_some())
    }

    pub fn is_served(&self) -> bool {
        !self.fastest.is_empty()
    }

    pub fn on(&self, device: usize) -> Option<&Profile> {
        Some(&self.kinds[(*self.served.get(device)?)? as usize].corrected)
    }

    /// Least latency of a batch on any device, nanoseconds; `None` when no device takes so many items, or of none.
    pub fn least(&self, items: u32) -> Option<u64> {
        self.fastest.get((items as usize).wrapping_sub(1)).copied()
    }

    /// Largest batch that any device takes; 0 when none serves it.
    pub fn max_batch(&self) -> u32 {
        self.fastest.len() as u32
    }

    /// Mean latency of a batch over the devices that take it, nanoseconds; of more items than any takes, and of none, that of
    /// the nearest batch. 0 when no device serves the class.
    pub fn typical(&self, items: u32) -> u64 {
        let Some(last) = self.typical.len().checked_sub(1) else { return 0 };
        self.typical[(items.max(1) as usize - 1).min(last)]
    }

    /// [`Class::typical`] of every batch, at index b - 1.
    pub fn typicals(&self) -> &[u64] {
        &self.typical
    }

    /// From when on no device, even one that is free then, can answer the request by `deadline`; at once when none can
    /// take so many items.
    ///
    /// That a device is busy is not counted against the request: when it will be free is an estimate, and some
    /// executions end early.
    pub fn hopeless_at(&self, deadline: Instant, items: u32) -> Instant {
        match self.least(items) {
            Some(latency) if latency <= deadline.0 => Instant((deadline.0 - latency).saturating_add(1)),
            _ => Instant(0),
        }
    }

    fn compare(&mut self) {
        self.fastest.clear();
        self.typical.clear();
        let used = || self.kinds.iter().filter(|kind| kind.devices > 0);
        for batch in 1..=used().map(|kind| kind.corrected.max_batch()).max().unwrap_or(0) {
            let (mut least, mut sum, mut devices) = (u64::MAX, 0u128, 0u128);
            for kind in used() {
                if let Some(latency) = kind.corrected.nanos(batch) {
                    least = least.min(latency);
                    sum += u128::from(kind.devices) * u128::from(latency);
                    devices += u128::from(kind.devices);
                }
            }
            let mean = (sum / devices) as u64;
            self.fastest.push(least);
            self.typical.push(mean.max(self.typical.last().copied().unwrap_or(0)));
        }
    }
}

/// All classes ever named. An entry stays when its class is removed (some words each), so that batches which run
/// then still refer to it.
#[derive(Debug, Default)]
pub struct Classes {
    slots: Vec<Class>,
    index: BTreeMap<(ModelId, ClassId), ClassIndex>,
}

impl Classes {
    /// The class's entry, made if there is none.
    pub fn entry(&mut self, model: ModelId, class: ClassId) -> ClassIndex {
        let slots = &mut self.slots;
        *self.index.entry((model, class)).or_insert_with(|| {
            slots.push(Class::default());
            ClassIndex(slots.len() as u32 - 1)
        })
    }

    pub fn all(&self) -> impl Iterator<Item = &Class> {
        self.slots.iter()
    }

    pub fn find(&self, model: ModelId, class: ClassId) -> Option<ClassIndex> {
        self.index.get(&(model, class)).copied()
    }

    /// Classes of a model in ascending order.
    pub fn of(&self, model: ModelId) -> impl Iterator<Item = (ClassId, ClassIndex)> + '_ {
        let range: RangeInclusive<_> = (model, ClassId(0))..=(model, ClassId(u32::MAX));
        self.index.range(range).map(|(&(_, class), &index)| (class, index))
    }
}

impl Index<ClassIndex> for Classes {
    type Output = Class;
    fn index(&self, index: ClassIndex) -> &Class {
        &self.slots[index.0 as usize]
    }
}

impl IndexMut<ClassIndex> for Classes {
    fn index_mut(&mut self, index: ClassIndex) -> &mut Class {
        &mut self.slots[index.0 as usize]
    }
}
