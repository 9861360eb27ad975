//! A request block: copied out of the client's region once, and checked for what needs no model to check.

use crate::wire::{
    BLOCK_BYTES, BlockHeader, DType, OUTPUTS_MAX, RANK_MAX, Reason, SESSIONS_MAX, TENSOR_ALIGN, TENSORS_MAX,
    TensorRecord,
};
use std::sync::atomic::{AtomicU64, Ordering};

/// A request block that can't be served: whose fault is always the client's; the request fails with `reason` and the text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct BlockError {
    pub reason: Reason,
    pub text: String,
}

/// A tensor of a request whose place was checked: `offset..offset + bytes` lies inside the arena.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tensor {
    pub offset: usize,
    pub bytes: usize,
    pub dtype: DType,
    /// Index among the model's inputs or outputs.
    pub tensor: u8,
    /// Index among the block's sessions (outputs only).
    pub session: u8,
    pub rank: u8,
    pub dims: [u32; RANK_MAX],
}

impl Tensor {
    pub fn dims(&self) -> &[u32] {
        &self.dims[..usize::from(self.rank)]
    }

    /// Where it ends in the arena.
    pub fn end(&self) -> usize {
        self.offset + self.bytes
    }

    fn overlaps(&self, other: &Tensor) -> bool {
        self.bytes > 0 && other.bytes > 0 && self.offset < other.end() && other.offset < self.end()
    }
}

/// A request block, copied out of the client's region once and checked for what needs no model to check: counts, reserved
/// fields, dtypes, that spans are aligned and inside the arena, that an input's bytes are its dims times its dtype, that
/// nothing overlaps an output.
/// Reused from request to request.
#[derive(Debug, Clone)]
pub struct RequestBlock {
    pub header: BlockHeader,
    inputs: usize,
    outputs: usize,
    tensors: [Tensor; TENSORS_MAX],
}

impl Default for RequestBlock {
    /// An empty one, to be read into.
    fn default() -> RequestBlock {
        let tensor =
            Tensor { offset: 0, bytes: 0, dtype: DType::U8, tensor: 0, session: 0, rank: 0, dims: [0; RANK_MAX] };
        RequestBlock { header: BlockHeader::default(), inputs: 0, outputs: 0, tensors: [tensor; TENSORS_MAX] }
    }
}

impl RequestBlock {
    pub fn inputs(&self) -> &[Tensor] {
        &self.tensors[..self.inputs]
    }

    pub fn outputs(&self) -> &[Tensor] {
        &self.tensors[self.inputs..self.inputs + self.outputs]
    }

    /// Ids of the sessions that are asked.
    pub fn sessions(&self) -> &[u32] {
        &self.header.session[..usize::from(self.header.sessions)]
    }

    /// Reads each of the block's words at most once. After an error the block is empty.
    pub(super) fn read(&mut self, words: &[AtomicU64], block_bytes: u32, arena_bytes: u64) -> Result<(), BlockError> {
        (self.inputs, self.outputs) = (0, 0);
        self.header = BlockHeader::default();
        let records = usize::try_from(block_bytes)
            .ok()
            .filter(|bytes| (RECORD..=BLOCK_BYTES).contains(bytes) && bytes.is_multiple_of(RECORD))
            .map(|bytes| bytes / RECORD - 1)
            .ok_or_else(|| {
                let text = format!(
                    "a request block of {block_bytes} bytes: it is {RECORD} for its header and {RECORD} for each tensor, \
                     at most {BLOCK_BYTES}"
                );
                refusal(Reason::BadBlock, text)
            })?;
        let header: BlockHeader = zerocopy::transmute!(copy_record(words, 0));
        check_header(&header, records)?;
        let inputs = usize::from(header.inputs);
        for index in 0..records {
            let record: TensorRecord = zerocopy::transmute!(copy_record(words, index + 1));
            let place = if index < inputs { Place::Input(index) } else { Place::Output(index - inputs) };
            let tensor = check_tensor(&record, place, header.sessions, arena_bytes)?;
            if let Some(other) = self.tensors[..index].iter().position(|earlier| {
                // Inputs may share memory with each other: they are only read.
                matches!(place, Place::Output(_)) && earlier.overlaps(&tensor)
            }) {
                let other = if other < inputs { Place::Input(other) } else { Place::Output(other - inputs) };
                return Err(refusal(Reason::BadSpan, format!("{place} overlaps {other} in the arena")));
            }
            self.tensors[index] = tensor;
        }
        self.header = header;
        (self.inputs, self.outputs) = (inputs, records - inputs);
        Ok(())
    }
}

/// Bytes of the header and of each tensor record.
const RECORD: usize = size_of::<TensorRecord>();
const _: () = assert!(size_of::<BlockHeader>() == RECORD && RECORD == 64);

/// How error texts call a tensor.
#[derive(Clone, Copy, Debug)]
enum Place {
    Input(usize),
    Output(usize),
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Place::Input(index) => write!(f, "input {index}"),
            Place::Output(index) => write!(f, "output {index}"),
        }
    }
}

fn refusal(reason: Reason, text: String) -> BlockError {
    BlockError { reason, text }
}

/// The only reads of the client's memory: one load for each word.
fn copy_record(words: &[AtomicU64], index: usize) -> [u64; 8] {
    std::array::from_fn(|word| words[index * 8 + word].load(Ordering::Relaxed))
}

fn check_header(header: &BlockHeader, records: usize) -> Result<(), BlockError> {
    let bad = |text| Err(refusal(Reason::BadBlock, text));
    let (inputs, outputs) = (usize::from(header.inputs), usize::from(header.outputs));
    let sessions = usize::from(header.sessions);
    if inputs == 0 {
        return bad("a request without an input".into());
    }
    if outputs > OUTPUTS_MAX {
        return bad(format!("{outputs} outputs; a request can name {OUTPUTS_MAX}"));
    }
    if inputs + outputs != records {
        return bad(format!("{inputs} inputs and {outputs} outputs, but the block has room for {records} tensors"));
    }
    if !(1..=SESSIONS_MAX).contains(&sessions) {
        return bad(format!("{sessions} sessions; a request names 1 to {SESSIONS_MAX}"));
    }
    if header.items == 0 {
        return bad("a request of no items; it brings at least 1".into());
    }
    if header.reserved0 != 0 || header.reserved != [0; 3] || header.session[sessions..].iter().any(|id| *id != 0) {
        return bad("reserved fields and unused sessions of a block's header must be zero".into());
    }
    Ok(())
}

fn check_tensor(record: &TensorRecord, place: Place, sessions: u8, arena_bytes: u64) -> Result<Tensor, BlockError> {
    let bad = |reason, text| Err(refusal(reason, text));
    let Some(dtype) = DType::from_code(record.dtype) else {
        return bad(Reason::WrongDtype, format!("{place} has the unknown element type {}", record.dtype));
    };
    let rank = usize::from(record.rank);
    if rank > RANK_MAX {
        return bad(Reason::WrongShape, format!("{place} has {rank} dimensions; {RANK_MAX} are possible"));
    }
    if record.reserved0 != 0 || record.reserved != 0 || record.dims[rank..].iter().any(|dim| *dim != 0) {
        return bad(Reason::BadBlock, format!("{place}: reserved fields and unused dimensions must be zero"));
    }
    let (offset, bytes) = (record.offset, record.bytes);
    if !offset.is_multiple_of(TENSOR_ALIGN) {
        return bad(
            Reason::BadSpan,
            format!("{place} starts at byte {offset}, which is no multiple of {TENSOR_ALIGN}"),
        );
    }
    // In 128 bits no sum or product of the client's numbers can wrap: two 64-bit numbers, or one dimension at a time.
    let end = u128::from(offset) + u128::from(bytes);
    if end > u128::from(arena_bytes) {
        return bad(Reason::BadSpan, format!("{place} ends at byte {end}, past the arena's {arena_bytes}"));
    }
    match place {
        Place::Input(_) => {
            if record.session != 0 {
                return bad(Reason::BadBlock, format!("{place} names session {}; inputs name none", record.session));
            }
            let dims = &record.dims[..rank];
            let wanted = tensor_bytes(dims, dtype);
            if wanted != Some(bytes) {
                let wanted = wanted.map_or("more than memory can hold".into(), |bytes| bytes.to_string());
                let text = format!("{place} has {bytes} bytes, but {dtype:?} {dims:?} takes {wanted}");
                return bad(Reason::BadBlock, text);
            }
        }
        Place::Output(_) => {
            if rank != 0 {
                return bad(Reason::BadBlock, format!("{place} has {rank} dimensions; the daemon says an output's"));
            }
            if record.session >= sessions {
                let text = format!("{place} names session {} of the block's {sessions}", record.session);
                return bad(Reason::BadBlock, text);
            }
        }
    }
    Ok(Tensor {
        offset: offset as usize,
        bytes: bytes as usize,
        dtype,
        tensor: record.tensor,
        session: record.session,
        rank: record.rank,
        dims: record.dims,
    })
}

/// Bytes of a tensor; `None` when they exceed 64 bits.
fn tensor_bytes(dims: &[u32], dtype: DType) -> Option<u64> {
    if dims.contains(&0) {
        return Some(0);
    }
    dims.iter().try_fold(dtype.bytes() as u64, |product, dim| product.checked_mul(u64::from(*dim)))
}
