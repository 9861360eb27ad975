//! A batch as it travels to a device and back: which requests, where their tensors lie, and how each of them ended.

use crate::{NetworkId, Shape};
use memmap2::MmapRaw;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Memory that a client and its batches share.
pub type Arena = Arc<MmapRaw>;
/// The same for whoever must not keep it.
pub type WeakArena = std::sync::Weak<MmapRaw>;

/// Chosen by whoever makes the batch; unique among a device's outstanding batches.
#[derive(Default, Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BatchId(pub u64);

/// Requests that execute together. Boxed, pooled and reused: its vectors keep their capacity.
///
/// `spans` holds, for each request in order, one span per input of the network and then one per output; an output that the
/// request did not ask for has an empty span at offset [`Span::UNWANTED`].
#[derive(Debug)]
pub struct Batch {
    pub id: BatchId,
    pub network: NetworkId,
    pub class: Arc<ShapeClass>,
    pub requests: Vec<Request>,
    pub spans: Vec<Span>,
    /// As many per request as the network has outputs; filled by the device.
    pub written: Vec<Written>,
    /// Set by the device.
    pub started: Option<Instant>,
    /// How long it executed, gathering and scattering included; set by the device.
    pub took: Duration,
}

impl Batch {
    /// A request's spans of outputs; the network has `inputs` inputs.
    pub fn output_spans(&self, request: usize, inputs: usize) -> &[Span] {
        let stride = self.spans.len() / self.requests.len();
        &self.spans[request * stride..(request + 1) * stride][inputs..]
    }
}

/// One request of a batch.
#[derive(Debug)]
pub struct Request {
    /// The maker's own number for it.
    pub key: u32,
    /// Its elements of the batch axis.
    pub items: u32,
    /// The memory that its spans lie in. Another process may write there at any time: the bytes are only ever copied.
    pub arena: Arena,
    pub outcome: Outcome,
}

/// How one request of a batch ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Not executed yet.
    Pending,
    /// Every output that it asked for is written.
    Done,
    /// As `Done`, and its maker has heard of it already: [`Early`].
    Told,
    /// Output `output` needs `needed` bytes and the request has room for `room`.
    OutputTooSmall { output: usize, needed: usize, room: usize },
    /// The engine failed on this request, executed alone.
    Failed(String),
}

/// A place in a request's arena.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    pub offset: usize,
    pub bytes: usize,
}

impl Span {
    /// Offset of an output that was not asked for.
    pub const UNWANTED: usize = usize::MAX;
}

/// An output as it was written: its shape for this request alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Written {
    pub bytes: usize,
    pub shape: Shape,
}

/// An output that is written while others of the batch are still computed.
#[derive(Debug, Clone, Copy)]
pub struct Early {
    /// The request's [`Request::key`].
    pub key: u32,
    /// Index among the network's outputs.
    pub output: usize,
    pub written: Written,
    /// The request's last: it is done.
    pub last: bool,
    /// As of the batch: when it began, for how long it has executed, and the items in it.
    pub started: Instant,
    pub took: Duration,
    pub items: u32,
}

/// What requests must have in common to share a batch: every input's dimensions but for the batch axis, and the whole
/// content of the inputs that have none.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ShapeClass {
    /// One per input; the batch axis holds 0.
    pub inputs: Vec<Shape>,
    /// One per input: the bytes of an input without a batch axis (copied out of the first request's arena, once).
    pub constants: Vec<Option<Box<[u8]>>>,
}
