//! Every byte that crosses shared memory: descriptors, request blocks and result records.
//!
//! All integers are little-endian, all reserved fields must be zero. These types are only ever *copies*: shared memory
//! is read once, word by word, into one of them, and the copy is validated.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The version of this protocol. A connection is refused when the client offers no version that the daemon speaks.
pub const VERSION: u32 = 1;
/// Bytes of a descriptor in either ring: one cache line.
pub const DESCRIPTOR_BYTES: usize = 64;
/// Bytes of one request block. Request slot `i` has block `i`.
pub const BLOCK_BYTES: usize = 2048;
/// Bytes of one result record. Request slot `i` has record `i`.
pub const RECORD_BYTES: usize = 1024;
/// Dimensions that a tensor can have at most.
pub const RANK_MAX: usize = 8;
/// Sessions that one submission can name at most.
pub const SESSIONS_MAX: usize = 8;
/// Tensors (inputs and outputs together) that one request can name at most.
pub const TENSORS_MAX: usize = (BLOCK_BYTES - size_of::<BlockHeader>()) / size_of::<TensorRecord>();
/// Outputs that one request can name at most.
pub const OUTPUTS_MAX: usize = RECORD_BYTES / size_of::<OutputRecord>();
/// Alignment of every tensor's offset in the arena.
pub const TENSOR_ALIGN: u64 = 64;
/// Request slots of a connection: a power of two in this range.
pub const SLOTS_MIN: u32 = 8;
pub const SLOTS_MAX: u32 = 4096;

/// One entry of the submission ring, from client to daemon.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Submission {
    /// [`OP_INFER`], [`OP_CANCEL`], [`OP_BEGIN`], [`OP_FINISH`] or [`OP_GIVE_UP`].
    pub op: u8,
    /// Below [`PRIORITIES`]; the higher, the more the request matters when there is not enough for all. 0 but for a
    /// request.
    pub priority: u8,
    /// Which stage of the run's query a request calls; 0 otherwise.
    pub stage: u16,
    /// The request slot: the client's number for this request, below the connection's `slots`, unused by any other
    /// request in flight. It says where the request block and the result record lie. Of a begin: which query is begun,
    /// by the id that the control socket gave it.
    pub slot: u32,
    /// Bytes of the request block that are in use; 0 but for a request.
    pub block_bytes: u32,
    pub reserved0: u32,
    /// Comes back in the completion; means nothing to the daemon.
    pub tag: u64,
    /// Absolute, `CLOCK_MONOTONIC`, in nanoseconds; 0: arrival plus the session's SLO.
    pub deadline_ns: u64,
    /// The run of a query that this belongs to, see [`run_id`]; 0: none.
    pub query: u64,
    pub reserved: [u64; 3],
}

pub const OP_INFER: u8 = 1;
pub const OP_CANCEL: u8 = 2;
/// A run of a query begins: its SLO counts from when the daemon takes this.
pub const OP_BEGIN: u8 = 3;
/// The run makes no further calls; it ends with its last answer.
pub const OP_FINISH: u8 = 4;
/// The client no longer wants the run: its calls that wait are cancelled.
pub const OP_GIVE_UP: u8 = 5;

/// The number of a run: the client's own *run slot*, below the connection's `slots`, and a generation above zero that tells
/// it from earlier runs in the same slot.
pub const fn run_id(slot: u32, generation: u32) -> u64 {
    (generation as u64) << 32 | slot as u64
}

/// The run slot of a [`run_id`].
pub const fn run_slot(id: u64) -> u32 {
    id as u32
}

/// Priorities that a request can have: 0, which is usual, to this less one.
pub const PRIORITIES: u8 = 4;

/// One entry of the completion ring, from daemon to client.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Completion {
    pub tag: u64,
    pub slot: u32,
    /// A [`Status`].
    pub status: u8,
    /// A [`Reason`].
    pub reason: u8,
    /// [`OutputRecord`]s in the result record, when `status` is ok or late.
    pub outputs: u8,
    pub reserved0: u8,
    /// When the daemon took the request from the ring, `CLOCK_MONOTONIC`.
    pub arrival_ns: u64,
    /// From arrival to the start of its batch (or to this answer, when it never ran).
    pub queued_ns: u64,
    /// How long its batch executed.
    pub executing_ns: u64,
    /// Items in the batch that it ran in.
    pub batch: u32,
    /// The device that ran it.
    pub device: u32,
    /// Bytes of the result record in use: output records, or UTF-8 text that says what went wrong.
    pub record_bytes: u32,
    pub reserved1: u32,
    pub reserved2: u64,
}

/// The first 64 bytes of a request block; `inputs` tensor records and then `outputs` tensor records follow.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct BlockHeader {
    pub inputs: u8,
    pub outputs: u8,
    /// How many of `session` are in use: 1, or more when several models are asked on the same inputs.
    pub sessions: u8,
    pub reserved0: u8,
    /// Elements of the batch axis that this request brings; at least 1.
    pub items: u32,
    /// Session ids, from the control socket's `opened`.
    pub session: [u32; SESSIONS_MAX],
    pub reserved: [u64; 3],
}

/// A tensor of a request: where it lies in the client's arena.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct TensorRecord {
    /// From the start of the arena; a multiple of [`TENSOR_ALIGN`].
    pub offset: u64,
    /// An input's exact size; an output's room.
    pub bytes: u64,
    /// A [`DType`].
    pub dtype: u8,
    /// Dimensions in use; 0 for an output (the daemon says them in the result record) and for a scalar.
    pub rank: u8,
    /// Which of the model's inputs (or outputs) this is: its index in the `model` reply.
    pub tensor: u8,
    /// An output's session: its index in [`BlockHeader::session`].
    pub session: u8,
    pub reserved0: u32,
    /// Row-major, outermost first, the batch axis included.
    pub dims: [u32; RANK_MAX],
    pub reserved: u64,
}

/// An output as it was written, in the result record.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct OutputRecord {
    pub bytes: u64,
    pub dtype: u8,
    pub rank: u8,
    pub tensor: u8,
    pub session: u8,
    pub reserved0: u32,
    pub dims: [u32; RANK_MAX],
}

const _: () = {
    assert!(size_of::<Submission>() == DESCRIPTOR_BYTES);
    assert!(size_of::<Completion>() == DESCRIPTOR_BYTES);
    assert!(size_of::<BlockHeader>() == 64);
    assert!(size_of::<TensorRecord>() == 64);
    assert!(size_of::<OutputRecord>() == 48);
    assert!(TENSORS_MAX == 31 && OUTPUTS_MAX == 21);
};

/// How a request ended. Every request that the daemon took gets exactly one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Status {
    /// Answered by its deadline.
    Ok = 1,
    /// Refused because it could no longer be answered in time.
    Dropped = 2,
    /// Answered, after its deadline; the outputs are there.
    Late = 3,
    /// Cancelled by the client.
    Cancelled = 4,
    /// The request was wrong or its execution failed; the result record says why.
    Failed = 5,
}

/// Why a request was dropped or failed, for programs; the result record says it in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Reason {
    None = 0,
    // Dropped.
    /// Its deadline had passed, or no batch could have ended before it.
    Hopeless = 1,
    /// The daemon is draining or stopping.
    Draining = 2,
    /// Too many requests are waiting, of this user or in all.
    Overload = 3,
    /// The query that it is a call of can no longer be answered in time, or took too long to be finished.
    QueryLost = 4,
    // Failed.
    /// Unknown operation, reserved bits set, or a feature that this version does not have.
    BadDescriptor = 16,
    /// The request slot is out of range or in use.
    BadSlot = 17,
    /// The request block's counts or sizes contradict each other.
    BadBlock = 18,
    /// A tensor lies outside the arena, or unaligned.
    BadSpan = 19,
    UnknownSession = 20,
    WrongTensor = 21,
    WrongDtype = 22,
    WrongShape = 23,
    TooManyItems = 24,
    OutputTooSmall = 25,
    /// The engine refused or failed on this request.
    Engine = 26,
    DeviceLost = 27,
    /// The session's model was unloaded.
    Unloaded = 28,
    TooManyShapes = 29,
    /// No such run of a query is open on this connection.
    UnknownRun = 30,
    /// The query has no such stage, or it may not be called now.
    WrongStage = 31,
}

/// Element types.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum DType {
    Bool = 1,
    U8 = 2,
    I8 = 3,
    U16 = 4,
    I16 = 5,
    U32 = 6,
    I32 = 7,
    U64 = 8,
    I64 = 9,
    F16 = 10,
    Bf16 = 11,
    F32 = 12,
    F64 = 13,
}

impl DType {
    /// In the order of their codes.
    pub const ALL: [DType; 13] = [
        DType::Bool,
        DType::U8,
        DType::I8,
        DType::U16,
        DType::I16,
        DType::U32,
        DType::I32,
        DType::U64,
        DType::I64,
        DType::F16,
        DType::Bf16,
        DType::F32,
        DType::F64,
    ];

    /// The element type with this code; `None` when there is none.
    pub fn from_code(code: u8) -> Option<DType> {
        DType::ALL.into_iter().find(|dtype| *dtype as u8 == code)
    }

    /// Bytes of one element.
    pub const fn bytes(self) -> usize {
        match self {
            DType::Bool | DType::U8 | DType::I8 => 1,
            DType::U16 | DType::I16 | DType::F16 | DType::Bf16 => 2,
            DType::U32 | DType::I32 | DType::F32 => 4,
            DType::U64 | DType::I64 | DType::F64 => 8,
        }
    }
}

impl Status {
    /// The status with this code; `None` when there is none.
    pub fn from_code(code: u8) -> Option<Status> {
        [Status::Ok, Status::Dropped, Status::Late, Status::Cancelled, Status::Failed]
            .into_iter()
            .find(|status| *status as u8 == code)
    }
}

impl Reason {
    /// The reason with this code; `None` when there is none.
    pub fn from_code(code: u8) -> Option<Reason> {
        [
            Reason::None,
            Reason::Hopeless,
            Reason::Draining,
            Reason::Overload,
            Reason::QueryLost,
            Reason::BadDescriptor,
            Reason::BadSlot,
            Reason::BadBlock,
            Reason::BadSpan,
            Reason::UnknownSession,
            Reason::WrongTensor,
            Reason::WrongDtype,
            Reason::WrongShape,
            Reason::TooManyItems,
            Reason::OutputTooSmall,
            Reason::Engine,
            Reason::DeviceLost,
            Reason::Unloaded,
            Reason::TooManyShapes,
            Reason::UnknownRun,
            Reason::WrongStage,
        ]
        .into_iter()
        .find(|reason| *reason as u8 == code)
    }
}
