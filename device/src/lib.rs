//! What executes a batch.
//!
//! A [`Device`] takes batches ([`Batch`]: plain data) and gives them back executed. [`cpu`] runs them through an engine on
//! pinned cores, [`emulated`] takes as long as a profile says. Neither knows anything of sessions, SLOs or clients.

pub mod batch;
pub mod tensor;

pub use batch::{Batch, BatchId, Outcome, Request, ShapeClass, Span, Written};
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
}

/// A loaded network of one device.
pub trait Network: Send {
    fn signature(&self) -> &Signature;
    /// Bytes that it holds while loaded (weights; an estimate).
    fn memory_bytes(&self) -> u64;
    /// Gathers the batch's inputs from its arenas, executes, and scatters the outputs; sets every request's outcome. When
    /// the batch as a whole fails, runs its requests again one by one, so that only the guilty fail.
    fn execute(&mut self, batch: &mut Batch);
}

/// Wakes the thread that polls the devices. Called from device threads; must be cheap and must not block.
pub type Waker = std::sync::Arc<dyn Fn() + Send + Sync>;
