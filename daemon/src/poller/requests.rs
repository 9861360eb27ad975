//! The requests that the daemon has accepted and not yet answered.

use rota_device::Span;
use rota_sched::{ClassId, Instant, ModelId, Priority, RequestId, SessionId};

/// One accepted request.
#[derive(Debug, Clone)]
pub struct Request {
    /// Slab key of its client, who may be gone by the time it ends.
    pub client: u32,
    /// The client's request slot.
    pub slot: u32,
    pub tag: u64,
    pub session: SessionId,
    pub model: ModelId,
    pub class: ClassId,
    pub items: u32,
    pub arrival: Instant,
    pub deadline: Instant,
    pub priority: Priority,
    /// Its client withdrew it while it ran, or died.
    pub cancelled: bool,
    /// One per input of the network, then one per output; checked to lie inside the client's arena.
    pub spans: Vec<Span>,
}

/// All requests in flight, by [`RequestId`]. The slab is taken at start; each entry's `spans` keeps its capacity, and the most
/// recently freed entry is used first, so that a steady load allocates nothing.
#[derive(Debug)]
pub struct Requests {
    entries: Vec<Request>,
    free: Vec<u32>,
}

impl Requests {
    pub fn new(capacity: u32) -> Requests {
        let empty = Request {
            client: 0,
            slot: 0,
            tag: 0,
            session: SessionId(0),
            model: ModelId(0),
            class: ClassId(0),
            items: 0,
            arrival: Instant(0),
            deadline: Instant(0),
            priority: Priority::NORMAL,
            cancelled: false,
            spans: Vec::new(),
        };
        Requests { entries: vec![empty; capacity as usize], free: (0..capacity).rev().collect() }
    }

    /// A free entry, for the caller to fill; `None` when all are in flight.
    pub fn take(&mut self) -> Option<(RequestId, &mut Request)> {
        let id = self.free.pop()?;
        Some((RequestId(id), &mut self.entries[id as usize]))
    }

    pub fn release(&mut self, id: RequestId) {
        debug_assert!(!self.free.contains(&id.0), "request {} is released twice", id.0);
        self.entries[id.0 as usize].spans.clear();
        self.free.push(id.0);
    }

    pub fn available(&self) -> u32 {
        self.free.len() as u32
    }

    pub fn in_flight(&self) -> u32 {
        (self.entries.len() - self.free.len()) as u32
    }
}

impl std::ops::Index<RequestId> for Requests {
    type Output = Request;
    fn index(&self, id: RequestId) -> &Request {
        &self.entries[id.0 as usize]
    }
}

impl std::ops::IndexMut<RequestId> for Requests {
    fn index_mut(&mut self, id: RequestId) -> &mut Request {
        &mut self.entries[id.0 as usize]
    }
}
