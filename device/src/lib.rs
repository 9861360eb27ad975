//! What executes a batch.
//!
//! A [`Device`] takes batches ([`Batch`]: plain data) and gives them back executed. [`cpu`] runs them through an engine on
//! pinned cores, [`emulated`] takes as long as a profile says. Neither knows anything of sessions, SLOs or clients.
//!
//! An [`engine`] turns a model's file into a [`Network`]. What a network's outputs have to do with the batch axis is found by
//! [`check`], how long its batches take by [`profile`].

pub mod batch;
mod batched;
pub mod check;
pub mod cpu;
pub mod cuda;
pub mod emulated;
pub mod engine;
pub mod host;
pub mod npy;
pub mod parts;
pub mod profile;
pub mod sample;
mod strided;
pub mod tensor;
mod view;

pub use batch::{Arena, Batch, BatchId, Early, Outcome, Request, ShapeClass, Span, WeakArena, Written};
pub use cpu::{CpuDevice, CpuOptions};
pub use emulated::{EmulatedDevice, EmulatedNetwork, EmulatedOptions, Pace, Timing};
pub use engine::{CompileOptions, Engine, EngineChoice, EngineKind};
pub use host::{Bytes, HostTensor};
pub use sample::Hints;
pub use tensor::{DType, Dim, Shape, Signature, TensorSpec};

/// A network as the daemon numbers it: one version of one model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetworkId(pub u32);

/// One device as the thread that feeds it sees it: every call returns at once.
///
/// Calling contract: [`Device::prepare`] hands a batch over, [`Device::start`] allows it to execute; a device executes
/// its batches one at a time, in the order of their starts; at most two batches are with a device (one that executes,
/// one behind it). Each comes back from [`Device::poll`] exactly once. When one has ended the device rings the [`Waker`]
/// that it was made with.
pub trait Device: Send {
    /// For people: "cpu0: ONNX Runtime 1.32, cores 0-1".
    fn describe(&self) -> String;
    /// Puts a network into service. Batches for it may follow at once.
    fn install(&mut self, id: NetworkId, network: Box<dyn Network>);
    /// Takes a network out of service; no batch for it may be outstanding.
    fn remove(&mut self, id: NetworkId);
    /// Takes the batch and, where that can overlap the batch before it, gathers its inputs.
    fn prepare(&mut self, batch: Box<Batch>);
    /// Executes the prepared batch `batch` as soon as the one before it has ended.
    fn start(&mut self, batch: BatchId);
    /// A batch that has ended, if there is one.
    fn poll(&mut self) -> Option<Box<Batch>>;
    /// Whether it can't execute for now: its GPU is lost. It looks by itself whether that is back, makes ready what its networks had there, and
    /// rings the waker then. Batches that it is given meanwhile fail.
    fn is_lost(&self) -> bool {
        false
    }
    /// Why it stays lost although what it executes on is back, out of memory for instance; said once for each loss. It tries again by itself.
    fn poll_trouble(&mut self) -> Option<String> {
        None
    }
    /// An output of a request that is done before its batch has ended. Those of one request come one after the other. What was
    /// written before a batch ended comes before or when [`Device::poll`] gives the batch, so whoever takes a batch looks here
    /// first.
    fn poll_early(&mut self) -> Option<Early> {
        None
    }
}

/// A loaded network of one device.
pub trait Network: Send {
    fn signature(&self) -> &Signature;
    /// Replaces the signature by what [`check`] found: other batch axes for the same tensors.
    fn set_signature(&mut self, signature: Signature);
    /// Bytes that it holds while loaded (weights; an estimate).
    fn memory_bytes(&self) -> u64;
    /// Gathers the batch's inputs from its arenas, executes, and scatters the outputs; sets every request's outcome. When
    /// the batch as a whole fails, runs its requests again one by one, so that only the guilty fail.
    ///
    /// A network without a batch axis, or whose class lacks the content of an input that has none, runs its requests one
    /// after the other.
    fn execute(&mut self, batch: &mut Batch);
    /// As [`Network::execute`]; calls `done` for requests that are done while other parts of the network have still to run. It
    /// may set their outcome to [`Outcome::Told`].
    fn execute_telling(&mut self, batch: &mut Batch, _done: &mut dyn FnMut(&mut Batch, usize)) {
        self.execute(batch);
    }
    /// Begins whatever of a batch can be done while another executes: copies of its inputs. Only what is then begun with
    /// [`Network::begin`]; at most one batch is staged behind the one that executes.
    fn stage(&mut self, _batch: &Batch) {}
    /// Whether the batch was staged, so that it can be begun behind one that executes.
    fn is_staged(&self, _batch: &Batch) -> bool {
        false
    }
    /// Begins to execute; true when the batch has ended, as with [`Network::execute_telling`]. Otherwise [`Network::ended`] is asked until
    /// it says so, and before that at most one more batch of any network of the device is begun, which has to be staged: it executes behind
    /// this one and is asked about when this one has ended.
    fn begin(&mut self, batch: &mut Batch, done: &mut dyn FnMut(&mut Batch, usize)) -> bool {
        self.execute_telling(batch, done);
        true
    }
    /// Whether the batch that was begun has ended. Returns at once.
    fn ended(&mut self, _batch: &mut Batch, _done: &mut dyn FnMut(&mut Batch, usize)) -> bool {
        true
    }
    /// Runs once on tensors of the caller, batch axis included; for checks and for one-off inference.
    fn run(&mut self, inputs: &[HostTensor]) -> Result<Vec<HostTensor>, RunError>;
    /// Makes whatever batches of this class need, in every size up to the largest that the network was made for, so that the first of them
    /// takes no longer than the next. Slow: seconds. An error, out of memory in most cases, leaves a network that works, with less made beforehand.
    fn warm(&mut self, _class: &ShapeClass) -> Result<(), RunError> {
        Ok(())
    }
    /// Whether what it executes on is gone; looks whether it is back, when it was.
    fn is_lost(&mut self) -> bool {
        false
    }
    /// What it executes on is back: makes anew what [`Network::warm`] made. As slow; after an error it is to be asked again.
    fn recover(&mut self) -> Result<(), RunError> {
        Ok(())
    }
    /// How long a batch is to take, when that is given and not measured: only an emulated network knows.
    fn timing(&self) -> Option<&Timing> {
        None
    }
}

/// Why [`Network::run`] gave no outputs. The network is as usable as before.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RunError {
    /// The caller's inputs are not what the signature asks for.
    #[error("{0}")]
    Inputs(String),
    /// The engine refused, or panicked, which is a bug of it: its own words.
    #[error("{0}")]
    Engine(String),
}

/// Wakes the thread that polls the devices. Called from device threads; must be cheap and must not block.
pub type Waker = std::sync::Arc<dyn Fn() + Send + Sync>;
