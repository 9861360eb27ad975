//! What lowering gives: launches over one memory plan, for one batch size and shape class.

use super::memory::Arena;
use rota_graph::{DType, Tensor};
use rota_kernels::params::GroupedProblem;
use rota_kernels::{Cost, Launch, Pointer};

/// Index into [`Program::buffers`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BufferId(pub u32);

/// A place that launches name; all of a program's are known before it runs.
#[derive(Clone, Debug)]
pub struct Buffer {
    pub bytes: u64,
    pub place: Place,
}

#[derive(Clone, Debug)]
pub enum Place {
    /// Input `n` of the model, in the order of its file.
    Input(u32),
    /// A weight, or a number that was computed while lowering.
    Constant(Tensor),
    /// Written by the host before each run, in pinned memory that the launches read: `offset` in the plan's table.
    Table { offset: u64 },
    /// Written and read by launches, and by nobody afterwards: `offset` in the arena, which all plans of a GPU share.
    Arena { offset: u64 },
    /// One of the model's outputs: `offset` in the plan's own memory for them, which others may read until the plan runs again.
    Output { offset: u64 },
}

/// A dense tensor that the model gives.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    pub buffer: BufferId,
    /// From the buffer's start.
    pub offset_bytes: u64,
    pub dtype: DType,
    pub dims: Vec<u64>,
}

/// A launch and which node asked for it.
#[derive(Clone, Debug)]
pub struct Step {
    /// `Conv "features.0" + Clip`.
    pub label: String,
    /// Its device addresses are [`place`]s.
    pub launch: Launch,
    /// What is in the table that the launch reads.
    pub members: Option<Members>,
}

impl Step {
    /// All that the launch reads and writes.
    pub fn pointers(&self) -> impl Iterator<Item = Pointer> {
        let problems = self.members.iter().flat_map(|members| &members.problems);
        self.launch.pointers().chain(problems.flat_map(GroupedProblem::pointers)).filter(|pointer| pointer.is_some())
    }
}

/// The products of a stack's members, in one launch. What they are in a batch is read from a table: the rows of the items that each
/// member is asked about. The others' are left as they were, and nobody reads what comes of them.
#[derive(Clone, Debug)]
pub struct Members {
    pub table: BufferId,
    /// By member: its product of all items. Their addresses are [`place`]s.
    pub problems: Vec<GroupedProblem>,
    pub rows_per_item: u32,
    pub element_bytes: u64,
}

/// A model for one batch size and shape class.
#[derive(Clone, Debug)]
pub struct Program {
    pub buffers: Vec<Buffer>,
    /// In order.
    pub steps: Vec<Step>,
    /// By input of the model; `None` where its content is given.
    pub inputs: Vec<Option<BufferId>>,
    pub outputs: Vec<Output>,
    /// Bytes of all outputs, each aligned, and of the flag.
    pub output_bytes: u64,
    /// Among the outputs: a u32 that is not 0 when an index that came from outside lay past a tensor's end; the launch has read
    /// another element then, and the outputs mean nothing.
    pub flag: Option<u64>,
    pub arena: Arena,
    /// Of all tables.
    pub table_bytes: u64,
}

impl Program {
    pub fn cost(&self) -> Cost {
        self.steps.iter().fold(Cost::default(), |sum, step| sum + step.launch.cost)
    }

    /// Bytes of the weights that it reads.
    pub fn weight_bytes(&self) -> u64 {
        let bytes = |buffer: &Buffer| if matches!(buffer.place, Place::Constant(_)) { buffer.bytes } else { 0 };
        self.buffers.iter().map(bytes).sum()
    }
}

/// A buffer and an offset in it, as launches carry them until the buffers have addresses.
///
/// # Panics
/// When the offset is a terabyte or more.
pub fn place(buffer: BufferId, offset_bytes: u64) -> Pointer {
    assert!(offset_bytes < 1 << OFFSET_BITS, "an offset fits its bits");
    Pointer(u64::from(buffer.0 + 1) << OFFSET_BITS | offset_bytes)
}

/// What [`place`] was given.
pub fn placed(pointer: Pointer) -> (BufferId, u64) {
    (BufferId((pointer.0 >> OFFSET_BITS) as u32 - 1), pointer.0 & ((1 << OFFSET_BITS) - 1))
}

const OFFSET_BITS: u32 = 40;
