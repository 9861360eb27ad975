//! What can go wrong for a client.

use crate::control::ErrorCode;
use crate::wire::{DType, Reason, Status};
use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Why a call on the client failed. Each text says what would be right.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing listens on the socket: the daemon does not run, or uses another path.
    #[error("no daemon listens on {path}; start `rota serve`, or set ROTA_SOCKET to its socket", path = path.display())]
    NoDaemon { path: PathBuf },
    /// The socket's permissions keep this user out.
    #[error(
        "this user may not connect to {path}; the socket's owner or group grants it", path = path.display()
    )]
    Permission { path: PathBuf },
    /// The daemon took the connection but did not answer; the client is of no further use.
    #[error("the daemon on {path} has not answered within {timeout:?}; it hangs, or is stopped", path = path.display())]
    NoAnswer { path: PathBuf, timeout: Duration },
    /// The daemon refused what was asked; nothing changed.
    #[error("the daemon refused: {message}")]
    Refused { code: ErrorCode, message: String },
    /// The daemon ended, or ended this connection. [`super::Client::reconnect`] makes a new one; what was in flight is lost.
    #[error("disconnected: {why}")]
    Disconnected { why: String },
    /// The daemon said what this protocol version has not; the client is of no further use.
    #[error("the daemon broke the protocol: {0}")]
    Protocol(String),
    /// No gap in the arena is large enough. Drop requests that are not used, or connect with a larger arena.
    #[error(
        "arena exhausted: {wanted} bytes wanted, {free} of {arena} are free, {largest} in one piece; \
         drop unused requests, or connect with a larger `arena_bytes`"
    )]
    ArenaExhausted { wanted: usize, free: usize, largest: usize, arena: usize },
    /// As many requests as the connection has slots are in flight, or answered and not yet taken.
    #[error(
        "all {slots} request slots are in flight; take answers with `poll` or `wait`, or connect with more `slots`"
    )]
    SlotsFull { slots: u32 },
    /// The daemon has not taken earlier submissions for a while; try again later.
    #[error("the submission ring's {entries} entries are full: the daemon does not take them; try again later")]
    RingFull { entries: usize },
    /// The session or request belongs to another client, or to the connection before a reconnect.
    #[error("{what} belongs to another connection; make a new one with this client")]
    Foreign { what: &'static str },
    #[error("model {model} has no {kind} {tensor}; it has {known}")]
    UnknownTensor { model: String, kind: &'static str, tensor: String, known: String },
    #[error("{tensor} of model {model} is {dtype:?}, which is no {element}")]
    WrongElement { model: String, tensor: String, dtype: DType, element: &'static str },
    #[error("query {query} has no stage {stage}; it has {known}")]
    UnknownStage { query: String, stage: String, known: String },
    /// The request was made for another session; [`super::Client::request_in`] makes one for a stage.
    #[error("the request asks model {found}; stage {stage} of query {query} is called with a request made for it")]
    WrongStage { query: String, stage: String, found: String },
    /// The run was finished or given up, or belongs to the connection before a reconnect.
    #[error("the query's run has ended; begin another")]
    RunEnded,
    /// As many runs are open as the connection has slots.
    #[error("all {slots} runs are open; finish some, or connect with more `slots`")]
    RunsFull { slots: u32 },
    /// A request asks one model or several, but not so many.
    #[error("a request of {count} sessions; it asks 1 to {max}", max = crate::wire::SESSIONS_MAX)]
    SessionCount { count: usize },
    /// Models that are asked together are asked about the same inputs.
    #[error("model {model} takes other inputs than model {first}; ask it in a request of its own")]
    OtherInputs { model: String, first: String },
    /// Dimensions that no tensor can have; whether they fit the model is for the daemon to say.
    #[error("{tensor} can't have the dimensions {dims:?}: {why}")]
    WrongDims { tensor: String, dims: Vec<u32>, why: &'static str },
    #[error("input {tensor} of model {model} was not given")]
    MissingInput { model: String, tensor: String },
    /// Inputs bring different numbers of items, or none.
    #[error(
        "inputs of one request bring the same number of items, at least 1; {tensor} brings {found}, not {expected}"
    )]
    WrongItems { tensor: String, found: u32, expected: u32 },
    /// The model leaves the output's size open, so the client must say how much room it has.
    #[error(
        "the size of output {tensor} of model {model} is known only when it was computed; give its room with `Request::output`"
    )]
    RoomUnknown { model: String, tensor: String },
    /// The request names more tensors than its block holds.
    #[error("{tensors} tensors in one request; {tensors_max} are possible")]
    TooManyTensors { tensors: usize, tensors_max: usize },
    /// The request was not answered with outputs.
    #[error("{status:?} ({reason:?}): {message}")]
    NotAnswered { status: Status, reason: Reason, message: String },
    #[error("no output {tensor} was asked for or written")]
    NoOutput { tensor: String },
    /// After a reconnect, the model is another one.
    #[error("model {model} has other inputs or outputs than before the reconnect; connect anew")]
    ModelChanged { model: String },
    #[error(transparent)]
    Io(#[from] io::Error),
}
