//! Requests and answers: the buffers of one inference, on their way out and back.

use super::arena::{Arena, Span};
use super::error::Error;
use super::runs::Call;
use super::session::Session;
use crate::control::{DimInfo, ModelInfo, TensorInfo};
use crate::wire::{DType, RANK_MAX, Reason, Status};
use std::sync::Arc;
use std::time::{Duration, Instant};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// One inference to ask for: inputs, written in place into shared memory, and room for the outputs.
///
/// Made by [`super::Client::request`], given away by [`super::Client::submit`], and back from [`Answer::into_request`]. A request that is
/// used again keeps its buffers: a loop with the same shapes allocates nothing.
#[derive(Debug)]
pub struct Request {
    /// Comes back in the answer.
    pub tag: u64,
    /// By when the answer is needed.
    pub deadline: Deadline,
    /// 0, which is usual, to 3. When there is not enough for all, a session's requests of each level are served as if they were a
    /// session of their own with four times the weight of the level below; they share no batch with other levels.
    pub priority: u8,
    /// The call of a query that it is.
    pub(super) call: Option<Call>,
    /// Whom it asks; all take the same inputs. Never empty.
    pub(super) sessions: Vec<Session>,
    pub(super) arena: Arc<Arena>,
    /// By the models' inputs.
    pub(super) inputs: Vec<Option<Input>>,
    /// By the outputs of the first session's model, then of the next.
    pub(super) outputs: Vec<Option<Output>>,
    /// The caller chose the outputs; otherwise they are all of all models.
    outputs_chosen: bool,
    /// Why there are no outputs; kept for its memory.
    pub(super) message: String,
}

/// When a request has to be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Deadline {
    /// The session's SLO after the daemon took the request; of a call of a query, what its run leaves it.
    #[default]
    Slo,
    /// This long after the submission.
    Within(Duration),
    At(Instant),
}

#[derive(Debug)]
pub(super) struct Input {
    pub(super) span: Span,
    pub(super) bytes: usize,
    pub(super) rank: u8,
    pub(super) dims: [u32; RANK_MAX],
}

#[derive(Debug)]
pub(super) struct Output {
    pub(super) span: Span,
    /// How the last answer wrote it.
    pub(super) written: Option<Written>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Written {
    pub(super) bytes: usize,
    pub(super) rank: u8,
    pub(super) dims: [u32; RANK_MAX],
}

impl Request {
    pub(super) fn new(sessions: Vec<Session>, arena: Arc<Arena>) -> Request {
        let inputs = sessions[0].model().inputs.iter().map(|_| None).collect();
        let outputs = sessions.iter().flat_map(|session| &session.model().outputs).map(|_| None).collect();
        Request {
            tag: 0,
            deadline: Deadline::Slo,
            priority: 0,
            call: None,
            sessions,
            arena,
            inputs,
            outputs,
            outputs_chosen: false,
            message: String::new(),
        }
    }

    /// The session that it asks; the first of several.
    pub fn session(&self) -> &Session {
        &self.sessions[0]
    }

    /// All sessions that it asks.
    pub fn sessions(&self) -> &[Session] {
        &self.sessions
    }

    /// The input's memory, to be written: `dims` row-major, outermost first. Its contents are left from earlier use.
    ///
    /// Fails when the model has no such input, when it is of another element type, or when the arena is exhausted.
    pub fn input<'a, T: Element>(&mut self, tensor: impl Into<Key<'a>>, dims: &[u32]) -> Result<&mut [T], Error> {
        let model = self.sessions[0].model();
        let index = tensor.into().find("input", &model.name, &model.inputs)?;
        let info = &model.inputs[index];
        check_element::<T>(model, info)?;
        let wrong = |why| Error::WrongDims { tensor: info.name.clone(), dims: dims.to_vec(), why };
        let mut padded = [0; RANK_MAX];
        padded.get_mut(..dims.len()).ok_or_else(|| wrong("8 dimensions are possible"))?.copy_from_slice(dims);
        let bytes = tensor_bytes(dims.iter().map(|dim| u64::from(*dim)), info.dtype)
            .ok_or_else(|| wrong("they exceed the address space"))?;
        let span = reuse(&self.arena, self.inputs[index].take().map(|input| input.span), bytes)?;
        let input = self.inputs[index].insert(Input { span, bytes, rank: dims.len() as u8, dims: padded });
        let elements = <[T]>::mut_from_bytes(input.span.bytes_mut(bytes));
        Ok(elements.expect("spans are aligned to 64 bytes, and `bytes` is a number of elements"))
    }

    /// Asks for this output with room for `bytes`. A request that names no output gets all of them, where the model and
    /// the request's items say how large they are.
    pub fn output<'a>(&mut self, tensor: impl Into<Key<'a>>, bytes: usize) -> Result<(), Error> {
        self.output_of(0, tensor, bytes)
    }

    /// As [`Request::output`], of the session that is number `session` of those that it asks.
    ///
    /// # Panics
    /// When there are not so many.
    pub fn output_of<'a>(&mut self, session: usize, tensor: impl Into<Key<'a>>, bytes: usize) -> Result<(), Error> {
        let index = self.output_index(session, tensor.into())?;
        if !self.outputs_chosen {
            self.outputs.fill_with(|| None);
            self.outputs_chosen = true;
        }
        self.make_room(index, bytes)
    }

    /// Items of the batch axis that the inputs bring. Fails when an input is missing or they disagree.
    pub(super) fn items(&self) -> Result<u32, Error> {
        let model = self.sessions[0].model();
        let mut items = None;
        for (info, input) in model.inputs.iter().zip(&self.inputs) {
            let Some(input) = input else {
                return Err(Error::MissingInput { model: model.name.clone(), tensor: info.name.clone() });
            };
            let Some(axis) = info.batch_axis else { continue };
            let Some(found) = input.dims[..usize::from(input.rank)].get(axis).copied() else {
                let dims = input.dims[..usize::from(input.rank)].to_vec();
                return Err(Error::WrongDims { tensor: info.name.clone(), dims, why: "the batch axis is missing" });
            };
            let expected = *items.get_or_insert(found.max(1));
            if found != expected {
                return Err(Error::WrongItems { tensor: info.name.clone(), found, expected });
            }
        }
        Ok(items.unwrap_or(1))
    }

    /// Unless the caller chose outputs: room for all of the model's.
    pub(super) fn default_outputs(&mut self, items: u32) -> Result<(), Error> {
        if self.outputs_chosen {
            return Ok(());
        }
        let mut index = 0;
        for session in 0..self.sessions.len() {
            for output in 0..self.sessions[session].model().outputs.len() {
                let model = self.sessions[session].model();
                let info = &model.outputs[output];
                let bytes = output_bytes(info, items)
                    .ok_or_else(|| Error::RoomUnknown { model: model.name.clone(), tensor: info.name.clone() })?;
                self.make_room(index, bytes)?;
                index += 1;
            }
        }
        Ok(())
    }

    /// Where the outputs of session number `session` begin among all.
    pub(super) fn first_output(&self, session: usize) -> usize {
        self.sessions[..session].iter().map(|session| session.model().outputs.len()).sum()
    }

    /// Place among all outputs of one of session number `session`.
    fn output_index(&self, session: usize, tensor: Key<'_>) -> Result<usize, Error> {
        let model = self.sessions[session].model();
        Ok(self.first_output(session) + tensor.find("output", &model.name, &model.outputs)?)
    }

    fn make_room(&mut self, index: usize, bytes: usize) -> Result<(), Error> {
        let span = reuse(&self.arena, self.outputs[index].take().map(|output| output.span), bytes)?;
        self.outputs[index] = Some(Output { span, written: None });
        Ok(())
    }
}

/// A request that was not submitted, and why. As an [`Error`] it forgets the request.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct Rejected {
    pub request: Request,
    pub error: Error,
}

impl From<Box<Rejected>> for Error {
    fn from(rejected: Box<Rejected>) -> Error {
        rejected.error
    }
}

/// What the daemon answered: the outputs, when there are any, and how it went.
#[derive(Debug)]
pub struct Answer {
    pub ticket: Ticket,
    /// The request's.
    pub tag: u64,
    pub status: Status,
    /// Why a request was dropped or failed.
    pub reason: Reason,
    pub timing: Timing,
    pub(super) request: Request,
}

/// A request in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ticket {
    pub(super) slot: u32,
    /// Unique within the client.
    pub(super) number: u64,
}

/// Where the time of a request went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// From when the daemon took the request to the start of its batch (or to the answer, when it never ran).
    pub queued: Duration,
    /// How long its batch executed.
    pub executing: Duration,
    /// Items in the batch that it ran in.
    pub batch: u32,
    /// The device that ran it.
    pub device: u32,
}

/// An output's elements and dimensions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct View<'a, T> {
    /// Row-major, outermost first, the batch axis included.
    pub dims: &'a [u32],
    pub data: &'a [T],
}

impl Answer {
    /// Whether there are outputs: answered in time, or late.
    pub fn is_answered(&self) -> bool {
        matches!(self.status, Status::Ok | Status::Late)
    }

    /// An error with the daemon's text unless there are outputs.
    pub fn check(&self) -> Result<&Answer, Error> {
        if self.is_answered() {
            return Ok(self);
        }
        Err(Error::NotAnswered { status: self.status, reason: self.reason, message: self.message().into() })
    }

    /// Why there are no outputs, in the daemon's words.
    pub fn message(&self) -> &str {
        &self.request.message
    }

    /// An output that was asked for. Fails when there is none, or when it is of another element type.
    pub fn output<'a, 'b, T: Element>(&'a self, tensor: impl Into<Key<'b>>) -> Result<View<'a, T>, Error> {
        self.output_of(0, tensor)
    }

    /// As [`Answer::output`], of the session that is number `session` of those that the request asked.
    ///
    /// # Panics
    /// When there are not so many.
    pub fn output_of<'a, 'b, T: Element>(
        &'a self,
        session: usize,
        tensor: impl Into<Key<'b>>,
    ) -> Result<View<'a, T>, Error> {
        let model = self.request.sessions[session].model();
        let index = self.check()?.request.output_index(session, tensor.into())?;
        let info = &model.outputs[index - self.request.first_output(session)];
        check_element::<T>(model, info)?;
        let Some(Output { span, written: Some(written) }) = &self.request.outputs[index] else {
            return Err(Error::NoOutput { tensor: info.name.clone() });
        };
        let data = <[T]>::ref_from_bytes(span.bytes(written.bytes));
        let data = data.expect("spans are aligned to 64 bytes, and a written size is a number of elements");
        Ok(View { dims: &written.dims[..usize::from(written.rank)], data })
    }

    /// The request back, with its buffers, inputs unchanged, to be submitted again.
    pub fn into_request(self) -> Request {
        self.request
    }
}

/// How a tensor is named: by its index in the model's inputs or outputs, or by its name there.
#[derive(Clone, Copy, Debug)]
pub enum Key<'a> {
    Index(usize),
    Name(&'a str),
}

impl From<usize> for Key<'_> {
    fn from(index: usize) -> Self {
        Key::Index(index)
    }
}

impl<'a> From<&'a str> for Key<'a> {
    fn from(name: &'a str) -> Self {
        Key::Name(name)
    }
}

impl Key<'_> {
    fn find(self, kind: &'static str, model: &str, tensors: &[TensorInfo]) -> Result<usize, Error> {
        let found = match self {
            Key::Index(index) => (index < tensors.len()).then_some(index),
            Key::Name(name) => tensors.iter().position(|tensor| tensor.name == name),
        };
        found.ok_or_else(|| Error::UnknownTensor {
            model: model.into(),
            kind,
            tensor: match self {
                Key::Index(index) => index.to_string(),
                Key::Name(name) => name.into(),
            },
            known: tensors.iter().map(|tensor| tensor.name.as_str()).collect::<Vec<_>>().join(", "),
        })
    }
}

/// A Rust type that a tensor's elements can be read and written as. Half floats are their bits, as `u16`; booleans are
/// `u8`, 0 or 1.
pub trait Element: FromBytes + IntoBytes + Immutable + KnownLayout + Copy + sealed::Sealed {
    /// Whether it has the size and meaning of `dtype`.
    fn fits(dtype: DType) -> bool;
}

mod sealed {
    pub trait Sealed {}
}

macro_rules! elements {
    ($($type:ty: $($dtype:ident)|+;)+) => {$(
        impl sealed::Sealed for $type {}
        impl Element for $type {
            fn fits(dtype: DType) -> bool {
                matches!(dtype, $(DType::$dtype)|+)
            }
        }
    )+};
}

elements! {
    u8: U8 | Bool;
    i8: I8;
    u16: U16 | F16 | Bf16;
    i16: I16;
    u32: U32;
    i32: I32;
    u64: U64;
    i64: I64;
    f32: F32;
    f64: F64;
}

fn check_element<T: Element>(model: &ModelInfo, info: &TensorInfo) -> Result<(), Error> {
    if T::fits(info.dtype) {
        return Ok(());
    }
    Err(Error::WrongElement {
        model: model.name.clone(),
        tensor: info.name.clone(),
        dtype: info.dtype,
        element: std::any::type_name::<T>(),
    })
}

/// `None` when they do not fit the address space.
fn tensor_bytes(mut dims: impl Iterator<Item = u64>, dtype: DType) -> Option<usize> {
    let bytes = dims.try_fold(dtype.bytes() as u64, |product, dim| product.checked_mul(dim))?;
    usize::try_from(bytes).ok().filter(|bytes| *bytes <= isize::MAX as usize)
}

/// `None` when the model leaves a dimension other than the batch axis open.
fn output_bytes(info: &TensorInfo, items: u32) -> Option<usize> {
    let open = |axis| Some(axis) != info.batch_axis && matches!(info.dims[axis], DimInfo::Named(_));
    if (0..info.dims.len()).any(open) {
        return None;
    }
    let dims = info.dims.iter().enumerate().map(|(axis, dim)| match dim {
        _ if Some(axis) == info.batch_axis => u64::from(items),
        DimInfo::Fixed(size) => *size,
        DimInfo::Named(_) => unreachable!("open dimensions were refused"),
    });
    tensor_bytes(dims, info.dtype)
}

/// `old` when it is large enough, else a new span (after `old` was given back).
fn reuse(arena: &Arc<Arena>, old: Option<Span>, bytes: usize) -> Result<Span, Error> {
    match old {
        Some(span) if span.capacity() >= bytes => Ok(span),
        old => {
            drop(old);
            arena.span(bytes)
        }
    }
}
