//! Shape classes: which devices serve them, and how fast.

use super::correction::Correction;
use super::queue::QueueIndex;
use crate::{ClassId, Instant, ModelId, Profile};
use std::collections::BTreeMap;
use std::ops::{Index, IndexMut, RangeInclusive};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ClassIndex(pub u32);

/// A shape class of a model as one device runs it.
#[derive(Debug)]
pub struct Served {
    /// As it was given.
    pub measured: Profile,
    /// `measured` times the factor of `correction`: what decisions are made by.
    pub corrected: Profile,
    pub correction: Correction,
}

impl Served {
    fn correct(&mut self) {
        self.corrected.scale(&self.measured, self.correction.factor());
    }
}

/// A shape class of a model.
#[derive(Debug, Default)]
pub struct Class {
    /// By device; `None` where the device does not serve it.
    pub served: Vec<Option<Served>>,
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
            self.served.resize_with(device + 1, || None);
        }
        let corrected = profile.clone();
        self.served[device] = Some(Served { measured: profile, corrected, correction: Correction::new(now) });
        self.compare();
    }

    /// Takes what an execution of `items` took; true when latencies changed.
    pub fn observe(&mut self, device: usize, items: u32, took: u64, now: Instant) -> bool {
        let Some(Some(served)) = self.served.get_mut(device) else { return false };
        // A smaller profile may have replaced the one that the batch was made by.
        let Some(expected) = served.measured.nanos(items) else { return false };
        let moved = served.correction.observe(took, expected, now);
        if moved {
            served.correct();
            self.compare();
        }
        moved
    }

    /// Forgets corrections that no execution has confirmed for long; true when latencies changed.
    pub fn relax(&mut self, now: Instant) -> bool {
        let mut any = false;
        for served in self.served.iter_mut().flatten() {
            if served.correction.relax(now) {
                served.correct();
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
        self.served.get(device)?.as_ref().map(|served| &served.corrected)
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
        for profile in self.served.iter().flatten().map(|served| &served.corrected) {
            for batch in 1..=profile.max_batch() {
                let latency = profile.nanos(batch).expect("within the profile");
                match self.fastest.get_mut(batch as usize - 1) {
                    Some(least) => *least = latency.min(*least),
                    None => self.fastest.push(latency),
                }
            }
        }
        for batch in 1..=self.max_batch() {
            let (mut sum, mut devices) = (0u128, 0u128);
            for profile in self.served.iter().flatten().map(|served| &served.corrected) {
                if let Some(latency) = profile.nanos(batch) {
                    (sum, devices) = (sum + u128::from(latency), devices + 1);
                }
            }
            let mean = (sum / devices.max(1)) as u64;
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
