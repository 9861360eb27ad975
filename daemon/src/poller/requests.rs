//! The requests that the daemon has accepted and not yet answered.

use super::runs::RunIndex;
use rota_device::{Shape, Span};
use rota_ipc::server::Record;
use rota_ipc::wire::{Completion, OutputRecord, Reason, Status};
use rota_sched::{ClassId, Instant, ModelId, Priority, RequestId, SessionId};

/// What a submission asks of one model, or of several that are served together.
#[derive(Debug, Clone)]
pub struct Request {
    /// Slab key of its client, who may be gone by the time it ends.
    pub client: u32,
    /// The client's request slot.
    pub slot: u32,
    pub tag: u64,
    /// What executes it: a model, or the group that the models are served in.
    pub unit: ModelId,
    /// The dispatcher's session in which it waits: its own, or the group's.
    pub queue: SessionId,
    pub class: ClassId,
    pub items: u32,
    pub arrival: Instant,
    /// When it is hopeless.
    pub deadline: Instant,
    /// When it is late: its deadline, but for a call of a query, which leaves the stages behind it time.
    pub due: Instant,
    /// The call that it is of a run that is open.
    pub call: Option<InRun>,
    pub priority: Priority,
    /// Its client withdrew it while it ran, or died.
    pub cancelled: bool,
    /// It was answered, and its batch still executes.
    pub told: bool,
    /// Whose outputs it wants; never empty, no model twice.
    pub asked: Vec<Asked>,
    /// One per input as the models list them, the batch axis holding 0.
    pub shapes: Vec<Shape>,
    /// One per input as the models list them, then for each of `asked` one per output; checked to lie inside the client's arena.
    pub spans: Vec<Span>,
    /// The request that stands for the submission. Itself, unless the sessions that the submission names are not all served
    /// together: then it is several requests, and this one's `pieces` tell how it goes.
    pub first: RequestId,
    pub pieces: Pieces,
}

/// A request's place in a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InRun {
    pub run: RunIndex,
    pub stage: u16,
    /// Index among the run's calls.
    pub place: u32,
}

/// One session of those that a submission names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    pub session: SessionId,
    pub model: ModelId,
    /// Which member the model is of the group that executes it; 0 without one.
    pub member: u16,
    /// Index in the request block's sessions.
    pub place: u8,
}

/// A submission that is several requests: those that have not ended, and how the others did.
#[derive(Debug, Clone, Default)]
pub struct Pieces {
    /// Empty when the submission is one request.
    pub left: Vec<RequestId>,
    /// The worst of those that have ended.
    pub ended: Option<(Status, Reason)>,
    pub text: String,
    pub completion: Completion,
    pub records: Vec<OutputRecord>,
}

impl Pieces {
    /// One of them has ended like this; its outputs, if it has any, are `records`. True when it was the last: then `ended`,
    /// `completion`, `records` and `text` are the submission's.
    pub fn end(
        &mut self,
        id: RequestId,
        how: (Status, Reason),
        completion: Completion,
        record: Record<'_>,
        records: &[OutputRecord],
    ) -> bool {
        self.left.retain(|&left| left != id);
        let before = self.completion;
        if self.ended.is_none_or(|(status, _)| severity(how.0) > severity(status)) {
            (self.ended, self.completion) = (Some(how), completion);
            self.text.clear();
            if let Record::Text(text) = record {
                self.text.push_str(text);
            }
        }
        // The longest of each: how the submission as a whole spent its time.
        self.completion.queued_ns = before.queued_ns.max(completion.queued_ns);
        self.completion.executing_ns = before.executing_ns.max(completion.executing_ns);
        self.completion.batch = before.batch.max(completion.batch);
        if matches!(record, Record::Outputs(_)) {
            self.records.extend_from_slice(records);
        }
        self.left.is_empty()
    }
}

/// Which of several ends is the submission's.
fn severity(status: Status) -> u8 {
    match status {
        Status::Ok => 0,
        Status::Late => 1,
        Status::Cancelled => 2,
        Status::Dropped => 3,
        Status::Failed => 4,
    }
}

/// All requests in flight, by [`RequestId`]. The slab is taken at start; an entry's lists keep their capacity, and the most
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
            unit: ModelId(0),
            queue: SessionId(0),
            class: ClassId(0),
            items: 0,
            arrival: Instant(0),
            deadline: Instant(0),
            due: Instant(0),
            call: None,
            priority: Priority::NORMAL,
            cancelled: false,
            told: false,
            asked: Vec::new(),
            shapes: Vec::new(),
            spans: Vec::new(),
            first: RequestId(0),
            pieces: Pieces::default(),
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
        let entry = &mut self.entries[id.0 as usize];
        entry.asked.clear();
        entry.shapes.clear();
        entry.spans.clear();
        let Pieces { left, ended, text, records, completion } = &mut entry.pieces;
        (*ended, *completion, entry.first) = (None, Completion::default(), RequestId(0));
        left.clear();
        text.clear();
        records.clear();
        self.free.push(id.0);
    }

    /// Those that are in flight.
    pub fn all(&self) -> impl Iterator<Item = (RequestId, &Request)> {
        let entries = self.entries.iter().enumerate().filter(|(_, request)| !request.asked.is_empty());
        entries.map(|(index, request)| (RequestId(index as u32), request))
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
