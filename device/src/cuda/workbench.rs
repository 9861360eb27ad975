//! A GPU to try launches on, outside of any service: what the measurements of kernels need.

use super::CudaError;
use super::driver::{DeviceMemory, DriverError, Event, Graph};
use super::gpu::Session;
use rota_kernels::{Launch, Pointer};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Buffers of a GPU, and the launches that work on them. Everything here waits until the GPU is done.
pub struct Workbench {
    session: Arc<Session>,
    buffers: Vec<DeviceMemory>,
    /// Copied over itself before a launch that is to find none of its operands in a cache.
    flush: Option<DeviceMemory>,
}

/// How a launch is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Launches that one sample of the warm time has, in one CUDA graph: so the gap between two events is shared by all.
    pub repeats: u32,
    /// Samples at most; at least one is taken.
    pub samples: u32,
    /// No sample begins after this.
    pub budget: Duration,
    /// Bytes that are moved between cold samples; more than the GPU's cache holds. 0: there is no cold time.
    pub flush_bytes: u64,
}

/// What launches took, by the GPU's own clock.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Times {
    /// Of one repetition, when they follow each other; one per sample.
    pub warm: Vec<Duration>,
    /// With operands in device memory; one per sample. A microsecond or two of it is the gap between two events.
    pub cold: Vec<Duration>,
}

/// A launch that can't be tried. The caller's mistake, or the GPU's.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TrialError {
    #[error(transparent)]
    Cuda(#[from] CudaError),
    #[error("{kernel}: address {address:#x} is in no buffer of the workbench")]
    Address { kernel: &'static str, address: u64 },
    #[error("{bytes} bytes at {address:#x} are not in one buffer of the workbench")]
    Range { address: u64, bytes: u64 },
}

impl Workbench {
    pub(super) fn new(session: Arc<Session>) -> Result<Workbench, CudaError> {
        session.context.enter()?;
        Ok(Workbench { session, buffers: Vec::new(), flush: None })
    }

    /// A buffer with these bytes.
    pub fn upload(&mut self, bytes: &[u8]) -> Result<Pointer, TrialError> {
        let pointer = self.alloc(bytes.len() as u64)?;
        self.write(pointer, bytes)?;
        Ok(pointer)
    }

    /// A buffer of that many bytes, of no particular content.
    pub fn alloc(&mut self, bytes: u64) -> Result<Pointer, TrialError> {
        let memory = self.session.allocate(bytes, "a measurement")?;
        let pointer = Pointer(memory.address());
        self.buffers.push(memory);
        Ok(pointer)
    }

    /// Overwrites part of a buffer.
    pub fn write(&self, to: Pointer, bytes: &[u8]) -> Result<(), TrialError> {
        self.range(to, bytes.len() as u64)?;
        let stream = &self.session.stream;
        // SAFETY: the target is inside a buffer (just looked at), and `bytes` are borrowed until the stream was waited for.
        let copied = unsafe { stream.upload(to.0, bytes.as_ptr(), bytes.len()) };
        Ok(copied.and_then(|()| stream.synchronize()).map_err(|error| self.session.noted(error))?)
    }

    /// Part of a buffer.
    pub fn read(&self, from: Pointer, bytes: u64) -> Result<Vec<u8>, TrialError> {
        self.range(from, bytes)?;
        let mut read = vec![0; bytes as usize];
        let stream = &self.session.stream;
        // SAFETY: the source is inside a buffer (just looked at), and `read` is not looked at until the stream was waited for.
        let copied = unsafe { stream.download(read.as_mut_ptr(), from.0, read.len()) };
        copied.and_then(|()| stream.synchronize()).map_err(|error| self.session.noted(error))?;
        Ok(read)
    }

    /// Gives all buffers back.
    pub fn clear(&mut self) {
        self.buffers.clear();
    }

    /// Does `launches`, one after the other.
    pub fn run(&self, launches: &[Launch]) -> Result<(), TrialError> {
        self.check(launches)?;
        let done = self.give(launches).and_then(|()| self.session.stream.synchronize());
        Ok(done.map_err(|error| self.session.noted(error))?)
    }

    /// Times `launches`, all of them together.
    pub fn time(&mut self, launches: &[Launch], timing: Timing) -> Result<Times, TrialError> {
        self.check(launches)?;
        if timing.flush_bytes > 0 && self.flush.as_ref().is_none_or(|flush| flush.bytes() < timing.flush_bytes) {
            self.flush = Some(self.session.allocate(timing.flush_bytes, "a measurement")?);
        }
        let timed = self.sample(launches, timing);
        Ok(timed.map_err(|error| self.session.noted(error))?)
    }

    fn sample(&self, launches: &[Launch], timing: Timing) -> Result<Times, DriverError> {
        let (stream, context) = (&self.session.stream, &self.session.context);
        let (begin, end) = (Event::new(context)?, Event::new(context)?);
        let between = |work: &dyn Fn() -> Result<(), DriverError>| -> Result<Duration, DriverError> {
            begin.record(stream)?;
            work()?;
            end.record(stream)?;
            end.synchronize()?;
            end.since(&begin)
        };
        let repeats = timing.repeats.max(1);
        let graph = Graph::capture(stream, || (0..repeats).try_for_each(|_| self.give(launches)))?;
        graph.launch(stream)?;
        let mut times = Times::default();
        let start = Instant::now();
        while times.warm.is_empty() || times.warm.len() < timing.samples as usize && start.elapsed() < timing.budget / 2
        {
            times.warm.push(between(&|| graph.launch(stream))? / repeats);
        }
        let Some(flush) = &self.flush else { return Ok(times) };
        let half = timing.flush_bytes / 2;
        while times.cold.is_empty() || times.cold.len() < timing.samples as usize && start.elapsed() < timing.budget {
            // SAFETY: two halves of a buffer that is ours and that nothing else uses.
            unsafe { stream.copy(flush.address(), flush.address() + half, half as usize)? };
            times.cold.push(between(&|| self.give(launches))?);
        }
        Ok(times)
    }

    /// Puts the launches on the stream.
    fn give(&self, launches: &[Launch]) -> Result<(), DriverError> {
        for launch in launches {
            let function = self.session.function(launch.kernel)?;
            // SAFETY: the catalogue made the parameters for this kernel, and every address among them is in a buffer (`check`). What a kernel
            // does with one is confined to the GPU: no buffer is memory of the host.
            unsafe {
                self.session.stream.launch(function, launch.grid, launch.block, launch.shared_bytes, &launch.params)?;
            }
        }
        Ok(())
    }

    fn check(&self, launches: &[Launch]) -> Result<(), TrialError> {
        for launch in launches {
            let outside = launch.pointers().find(|&pointer| pointer.is_some() && self.range(pointer, 1).is_err());
            if let Some(Pointer(address)) = outside {
                return Err(TrialError::Address { kernel: launch.kernel.name, address });
            }
        }
        Ok(())
    }

    /// Whether the bytes lie in one buffer.
    fn range(&self, Pointer(address): Pointer, bytes: u64) -> Result<(), TrialError> {
        let inside = |buffer: &DeviceMemory| {
            let offset = address.checked_sub(buffer.address());
            offset.and_then(|offset| offset.checked_add(bytes)).is_some_and(|end| end <= buffer.bytes())
        };
        match self.buffers.iter().any(inside) {
            true => Ok(()),
            false => Err(TrialError::Range { address, bytes }),
        }
    }
}
