//! Outstanding batches: a pool, so that making one allocates nothing.

use super::class::ClassIndex;
use crate::{BatchId, RequestId};

/// The requests of an outstanding batch.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    pub requests: Vec<RequestId>,
    pub items: u32,
}

/// Batches by [`BatchId`]; an id is reused after its batch has finished.
#[derive(Debug)]
pub struct Batches {
    slots: Vec<Slot>,
    free: Vec<BatchId>,
}

#[derive(Clone, Debug)]
struct Slot {
    batch: Batch,
    made: Made,
}

/// How a batch was made.
#[derive(Clone, Copy, Debug)]
pub struct Made {
    pub class: ClassIndex,
    /// Its corrected latency at that time, nanoseconds.
    pub latency: u64,
}

impl Batches {
    /// All slots are taken at start: `outstanding` is how many batches can be prepared or started and not finished.
    pub fn new(outstanding: u32) -> Batches {
        let empty = Slot { batch: Batch::default(), made: Made { class: ClassIndex(0), latency: 0 } };
        Batches { slots: vec![empty; outstanding as usize], free: (0..outstanding).rev().map(BatchId).collect() }
    }

    /// Makes room in every slot for so many requests.
    pub fn reserve(&mut self, requests: u32) {
        for Slot { batch, .. } in &mut self.slots {
            batch.requests.reserve((requests as usize).saturating_sub(batch.requests.len()));
        }
    }

    pub fn open(&mut self, made: Made, items: u32, requests: impl Iterator<Item = RequestId>) -> (BatchId, &Batch) {
        let id = self.free.pop().expect("there are two slots per device, and a device has at most two batches");
        let slot = &mut self.slots[id.0 as usize];
        slot.made = made;
        slot.batch.items = items;
        slot.batch.requests.clear();
        slot.batch.requests.extend(requests);
        (id, &slot.batch)
    }

    /// What it held stays readable until its slot is used again.
    pub fn close(&mut self, id: BatchId) -> (&Batch, Made) {
        self.free.push(id);
        let slot = &self.slots[id.0 as usize];
        (&slot.batch, slot.made)
    }

    pub fn batch(&self, id: BatchId) -> &Batch {
        &self.slots[id.0 as usize].batch
    }

    pub fn latency(&self, id: BatchId) -> u64 {
        self.slots[id.0 as usize].made.latency
    }
}
