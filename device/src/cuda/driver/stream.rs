//! Streams and events: what the GPU does in order, and where it has got to.

use super::context::Function;
use super::{Context, DriverError, check};
use cudarc::driver::sys;
use std::ffi::c_void;
use std::sync::Arc;
use std::time::Duration;

/// Work that a GPU does in order.
///
/// Calling contract: addresses handed to it stay valid, and host memory that it writes is not looked at, until the work has ended
/// ([`Stream::synchronize`], or an [`Event`] recorded behind it).
pub struct Stream {
    pub(super) raw: sys::CUstream,
    pub(super) context: Arc<Context>,
}

// SAFETY: the driver may be called on a stream from any thread that has made its context current.
unsafe impl Send for Stream {}

impl Stream {
    pub fn new(context: &Arc<Context>) -> Result<Stream, DriverError> {
        context.enter()?;
        let mut raw = std::ptr::null_mut();
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: a context is current; one pointer is written.
        check("cuStreamCreate", unsafe { sys::cuStreamCreate(&mut raw, flags) })?;
        Ok(Stream { raw, context: Arc::clone(context) })
    }

    /// Waits until all of it is done.
    pub fn synchronize(&self) -> Result<(), DriverError> {
        self.context.enter()?;
        // SAFETY: the stream is ours.
        check("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(self.raw) })
    }

    /// What comes next on the stream waits for what `event` was last recorded behind.
    pub fn wait(&self, event: &Event) -> Result<(), DriverError> {
        // SAFETY: both are ours and of one context.
        check("cuStreamWaitEvent", unsafe { sys::cuStreamWaitEvent(self.raw, event.raw, 0) })
    }

    /// Copies from the host. From memory that is neither pinned nor registered it returns when that may be written again.
    ///
    /// # Safety
    /// `from` is readable and `to` the GPU's own, for `bytes`, as the stream's contract says. Others may write to `from` meanwhile:
    /// bytes arrive, whichever.
    pub unsafe fn upload(&self, to: u64, from: *const u8, bytes: usize) -> Result<(), DriverError> {
        // SAFETY: the caller's promise; the driver only copies bytes.
        check("cuMemcpyHtoDAsync", unsafe { sys::cuMemcpyHtoDAsync_v2(to, from.cast::<c_void>(), bytes, self.raw) })
    }

    /// Copies to the host.
    ///
    /// # Safety
    /// As [`Stream::upload`], with the roles exchanged.
    pub unsafe fn download(&self, to: *mut u8, from: u64, bytes: usize) -> Result<(), DriverError> {
        // SAFETY: the caller's promise; the driver only copies bytes.
        check("cuMemcpyDtoHAsync", unsafe { sys::cuMemcpyDtoHAsync_v2(to.cast::<c_void>(), from, bytes, self.raw) })
    }

    /// Copies inside the GPU.
    ///
    /// # Safety
    /// Both ranges are the GPU's own, as the stream's contract says.
    pub unsafe fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<(), DriverError> {
        // SAFETY: the caller's promise.
        check("cuMemcpyDtoDAsync", unsafe { sys::cuMemcpyDtoDAsync_v2(to, from, bytes, self.raw) })
    }

    /// Fills the GPU's memory with zeros; the driver refuses a range that is not inside one allocation.
    pub fn clear(&self, at: u64, bytes: usize) -> Result<(), DriverError> {
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: only bytes are written, which the caller has; the driver checks the range.
        check("cuMemsetD8Async", unsafe { sys::cuMemsetD8Async(at, 0, bytes, self.raw) })
    }

    /// Launches a kernel of one parameter, a struct of `params`'s bytes.
    ///
    /// # Safety
    /// The kernel takes such a struct, and the addresses in it are as the kernel expects them, until it has ended.
    pub unsafe fn launch(
        &self,
        function: Function,
        grid: [u32; 3],
        block: [u32; 3],
        shared_bytes: u32,
        params: &[u8],
    ) -> Result<(), DriverError> {
        // The struct with its size, which the driver compares with what the kernel declares.
        let mut bytes = params.len();
        let mut extra = [
            sys::CU_LAUNCH_PARAM_BUFFER_POINTER_AS_INT as usize as *mut c_void,
            params.as_ptr().cast_mut().cast(),
            sys::CU_LAUNCH_PARAM_BUFFER_SIZE_AS_INT as usize as *mut c_void,
            (&raw mut bytes).cast(),
            std::ptr::null_mut(),
        ];
        let ([gx, gy, gz], [bx, by, bz]) = (grid, block);
        let (list, none) = (extra.as_mut_ptr(), std::ptr::null_mut());
        // SAFETY: the caller's promise; `extra` is a list of the form that the driver asks for, and it reads the struct before it returns.
        let launched =
            unsafe { sys::cuLaunchKernel(function.0, gx, gy, gz, bx, by, bz, shared_bytes, self.raw, none, list) };
        check("cuLaunchKernel", launched)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.context.enter().is_ok() {
            // SAFETY: ours. What it still has to do is done first. A failure leaves it to the context's end.
            unsafe { sys::cuStreamDestroy_v2(self.raw) };
        }
    }
}

/// A point in a stream's work.
pub struct Event {
    raw: sys::CUevent,
    context: Arc<Context>,
}

// SAFETY: as for `Stream`.
unsafe impl Send for Event {}

impl Event {
    pub fn new(context: &Arc<Context>) -> Result<Event, DriverError> {
        Event::with_flags(context, 0)
    }

    fn with_flags(context: &Arc<Context>, flags: u32) -> Result<Event, DriverError> {
        context.enter()?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: a context is current; one pointer is written.
        check("cuEventCreate", unsafe { sys::cuEventCreate(&mut raw, flags) })?;
        Ok(Event { raw, context: Arc::clone(context) })
    }

    /// One that is waited for without keeping a core busy, and has no time of its own.
    pub fn to_wait_for(context: &Arc<Context>) -> Result<Event, DriverError> {
        use sys::CUevent_flags as F;
        Event::with_flags(context, F::CU_EVENT_BLOCKING_SYNC as u32 | F::CU_EVENT_DISABLE_TIMING as u32)
    }

    /// Comes behind all that the stream has been given so far.
    pub fn record(&self, stream: &Stream) -> Result<(), DriverError> {
        // SAFETY: both are ours and of one context.
        check("cuEventRecord", unsafe { sys::cuEventRecord(self.raw, stream.raw) })
    }

    /// Whether the GPU has come to it; true for one that was never recorded.
    pub fn is_done(&self) -> Result<bool, DriverError> {
        // SAFETY: the event is ours.
        match unsafe { sys::cuEventQuery(self.raw) } {
            sys::CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            result => check("cuEventQuery", result).map(|()| true),
        }
    }

    pub fn synchronize(&self) -> Result<(), DriverError> {
        self.context.enter()?;
        // SAFETY: the event is ours.
        check("cuEventSynchronize", unsafe { sys::cuEventSynchronize(self.raw) })
    }

    /// The GPU's time from `earlier` to this one; both have been come to.
    pub fn since(&self, earlier: &Event) -> Result<Duration, DriverError> {
        let mut milliseconds = 0.0;
        // SAFETY: both are ours; one number is written.
        check("cuEventElapsedTime", unsafe { sys::cuEventElapsedTime_v2(&mut milliseconds, earlier.raw, self.raw) })?;
        Ok(Duration::from_secs_f64(f64::from(milliseconds.max(0.0)) / 1e3))
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if self.context.enter().is_ok() {
            // SAFETY: ours. A failure leaves it to the context's end.
            unsafe { sys::cuEventDestroy_v2(self.raw) };
        }
    }
}
