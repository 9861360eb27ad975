//! Memory: of the GPU, of the host and pinned, and of the host and registered.
//!
//! `cuMemAlloc` and `cuMemFree` make a GPU synchronise across all streams that execute (CUDA programming guide, "Stream Ordered Memory
//! Allocator"): each plan that is made while others serve would stop them. So memory is taken from the driver's pool, in order on a stream on
//! which nothing else is done (`cuMemAllocAsync`), and what is given back goes back to the system at the next synchronisation, which is the pool's
//! default; where a driver has no pools, the plain calls do. Pinned memory has no such pool: it is taken when a session begins and when plans
//! are made, small but for their outputs. Not run on a GPU.

use super::{Context, DriverError, check};
use cudarc::driver::sys;
use std::ffi::c_void;
use std::sync::Arc;

/// Bytes of a GPU's memory, given back when dropped.
pub struct DeviceMemory {
    address: u64,
    bytes: u64,
    context: Arc<Context>,
}

impl DeviceMemory {
    /// At least one byte, aligned to 256.
    pub fn new(context: &Arc<Context>, bytes: u64) -> Result<DeviceMemory, DriverError> {
        context.enter()?;
        let address = context.allocate(bytes.max(1) as usize)?;
        Ok(DeviceMemory { address, bytes, context: Arc::clone(context) })
    }

    /// As the GPU knows it.
    pub fn address(&self) -> u64 {
        self.address
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        if self.context.enter().is_ok() {
            // SAFETY: its owner has waited for whatever used it.
            unsafe { self.context.free(self.address) };
        }
    }
}

/// Host memory that the GPU reads and writes directly, so that copies overlap other work.
pub struct PinnedMemory {
    address: *mut u8,
    bytes: usize,
    context: Arc<Context>,
}

// SAFETY: plain memory with one owner.
unsafe impl Send for PinnedMemory {}
// SAFETY: through a shared reference it is only read, and written by the GPU under the owner's rules.
unsafe impl Sync for PinnedMemory {}

impl PinnedMemory {
    /// Zeroed, and aligned to a page.
    pub fn new(context: &Arc<Context>, bytes: usize) -> Result<PinnedMemory, DriverError> {
        context.enter()?;
        let mut address: *mut c_void = std::ptr::null_mut();
        let flags = sys::CU_MEMHOSTALLOC_PORTABLE;
        // SAFETY: a context is current; one address is written.
        check("cuMemHostAlloc", unsafe { sys::cuMemHostAlloc(&mut address, bytes.max(1), flags) })?;
        let address = address.cast::<u8>();
        // SAFETY: the driver has just given us these bytes.
        unsafe { address.write_bytes(0, bytes) };
        Ok(PinnedMemory { address, bytes, context: Arc::clone(context) })
    }

    /// A copy of `bytes`.
    pub fn of(context: &Arc<Context>, bytes: &[u8]) -> Result<PinnedMemory, DriverError> {
        let memory = PinnedMemory::new(context, bytes.len())?;
        // SAFETY: as many bytes of our own, which nobody else knows yet.
        unsafe { memory.address.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        Ok(memory)
    }

    /// Writes `bytes` from byte `at` on.
    ///
    /// # Safety
    /// Neither the GPU nor anybody else reads or writes there meanwhile.
    ///
    /// # Panics
    /// When they do not lie inside: a mistake of the caller.
    pub unsafe fn write(&self, at: usize, bytes: &[u8]) {
        assert!(at.checked_add(bytes.len()).is_some_and(|end| end <= self.bytes), "a write past pinned memory");
        // SAFETY: inside the allocation by the assertion, and nobody else's now (the caller's promise).
        unsafe { self.address.add(at).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    }

    /// For the GPU to copy to.
    pub fn as_mut_ptr(&self) -> *mut u8 {
        self.address
    }

    pub fn size(&self) -> usize {
        self.bytes
    }

    /// The bytes; the owner has waited for copies into them.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: one initialised allocation, borrowed with `self`; copies by the GPU into it have ended (the owner's duty).
        unsafe { std::slice::from_raw_parts(self.address, self.bytes) }
    }
}

impl Drop for PinnedMemory {
    fn drop(&mut self) {
        if self.context.enter().is_ok() {
            // SAFETY: ours, and its owner has waited for the copies. A failure leaves it pinned until the context's end.
            unsafe { sys::cuMemFreeHost(self.address.cast()) };
        }
    }
}

/// Somebody's host memory, registered with the driver for as long as this lives.
pub struct Registration {
    address: *mut u8,
    context: Arc<Context>,
}

// SAFETY: names memory that its owner keeps; nothing is read or written through it.
unsafe impl Send for Registration {}
// SAFETY: as above; a name does not change.
unsafe impl Sync for Registration {}

impl Registration {
    /// Registers `bytes` bytes at `address`, for every context of the process, and mapped into each.
    ///
    /// # Safety
    /// The range stays mapped until the registration is dropped.
    pub unsafe fn new(context: &Arc<Context>, address: *mut u8, bytes: usize) -> Result<Registration, DriverError> {
        context.enter()?;
        let flags = sys::CU_MEMHOSTREGISTER_PORTABLE | sys::CU_MEMHOSTREGISTER_DEVICEMAP;
        // SAFETY: a context is current, and the range stays mapped until it is unregistered (the caller's promise).
        check("cuMemHostRegister", unsafe { sys::cuMemHostRegister_v2(address.cast(), bytes, flags) })?;
        Ok(Registration { address, context: Arc::clone(context) })
    }

    /// Whether it was made in this context, and ends with it.
    pub fn is_of(&self, context: &Arc<Context>) -> bool {
        Arc::ptr_eq(&self.context, context)
    }

    /// Where kernels in `context` find the memory. An error for one that can't reach it.
    pub fn device_address(&self, context: &Context) -> Result<u64, DriverError> {
        context.enter()?;
        let mut address = 0;
        // SAFETY: a context is current; one address is written, or none when the driver refuses.
        let got = unsafe { sys::cuMemHostGetDevicePointer_v2(&mut address, self.address.cast(), 0) };
        check("cuMemHostGetDevicePointer", got).map(|()| address)
    }

    /// Ends it while another context is the thread's: its own may be lost, and answer to nothing.
    pub fn end_from(self, other: &Context) {
        if other.enter().is_ok() {
            self.unregister();
        }
        // What follows, in its own context, finds nothing to do.
    }

    fn unregister(&self) {
        // SAFETY: registered by us, and its owner has waited for the copies. A failure leaves it to the context's end.
        unsafe { sys::cuMemHostUnregister(self.address.cast()) };
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        if self.context.enter().is_ok() {
            self.unregister();
        }
    }
}
