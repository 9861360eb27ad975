//! GPUs, their contexts, and kernels in them.

use super::{Driver, DriverError, check};
use cudarc::driver::sys;
use std::ffi::CString;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// What a GPU says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuInfo {
    /// The driver's number for it.
    pub ordinal: u32,
    pub name: String,
    pub memory_bytes: u64,
    /// 8.0 is (8, 0).
    pub compute_capability: (u32, u32),
    pub multiprocessors: u32,
    /// "0000:17:00.0": where the system's own files on it are.
    pub pci: String,
}

impl GpuInfo {
    /// "GPU 0, NVIDIA H100 80GB HBM3".
    pub fn label(&self) -> String {
        format!("GPU {}, {}", self.ordinal, self.name)
    }

    /// Cores on the GPU's own node, as the system knows them; empty where it does not.
    pub fn near_cores(&self) -> Vec<usize> {
        let file = format!("/sys/bus/pci/devices/{}/local_cpulist", self.pci);
        std::fs::read_to_string(file).map_or(Vec::new(), |list| cores(&list))
    }
}

/// "0-3,8" as numbers; what makes no sense is left out.
fn cores(list: &str) -> Vec<usize> {
    const MOST: usize = 4096;
    let range = |part: &str| -> Option<std::ops::RangeInclusive<usize>> {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (first.parse().ok()?, last.parse().ok()?);
        (last < MOST).then_some(first..=last)
    };
    list.trim().split(',').filter_map(range).flatten().collect()
}

impl Driver {
    /// GPUs of this host.
    pub fn count(self) -> Result<u32, DriverError> {
        let mut count = 0;
        // SAFETY: the driver is initialised (`self`); it writes one integer.
        check("cuDeviceGetCount", unsafe { sys::cuDeviceGetCount(&mut count) })?;
        Ok(count.max(0) as u32)
    }

    pub fn info(self, ordinal: u32) -> Result<GpuInfo, DriverError> {
        let device = self.device(ordinal)?;
        let mut name = [0u8; 256];
        // SAFETY: `device` is valid, and the driver writes at most the length that it is given, a terminator included.
        check("cuDeviceGetName", unsafe { sys::cuDeviceGetName(name.as_mut_ptr().cast(), name.len() as i32, device) })?;
        let mut bytes = 0;
        // SAFETY: `device` is valid; one integer is written.
        check("cuDeviceTotalMem", unsafe { sys::cuDeviceTotalMem_v2(&mut bytes, device) })?;
        use sys::CUdevice_attribute as A;
        let attribute = |of| attribute(device, of);
        let major = attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        let multiprocessors = attribute(A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
        let domain = attribute(A::CU_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID)?;
        let (bus, slot) =
            (attribute(A::CU_DEVICE_ATTRIBUTE_PCI_BUS_ID)?, attribute(A::CU_DEVICE_ATTRIBUTE_PCI_DEVICE_ID)?);
        let length = name.iter().position(|&byte| byte == 0).unwrap_or(name.len());
        Ok(GpuInfo {
            ordinal,
            name: String::from_utf8_lossy(&name[..length]).into_owned(),
            memory_bytes: bytes as u64,
            compute_capability: (major, minor),
            multiprocessors,
            pci: format!("{domain:04x}:{bus:02x}:{slot:02x}.0"),
        })
    }

    fn device(self, ordinal: u32) -> Result<sys::CUdevice, DriverError> {
        let mut device = 0;
        // SAFETY: the driver is initialised (`self`); it writes one integer, or refuses the ordinal.
        check("cuDeviceGet", unsafe { sys::cuDeviceGet(&mut device, ordinal as i32) })?;
        Ok(device)
    }
}

fn attribute(device: sys::CUdevice, attribute: sys::CUdevice_attribute) -> Result<u32, DriverError> {
    let mut value = 0;
    // SAFETY: the driver is initialised, which the device proves, or refuses the device; one integer is written.
    let got = unsafe { sys::cuDeviceGetAttribute(&mut value, attribute, device) };
    check("cuDeviceGetAttribute", got).map(|()| value.max(0) as u32)
}

/// A GPU's primary context, held.
pub struct Context {
    raw: sys::CUcontext,
    device: sys::CUdevice,
    /// Where memory is taken and given back in order, a stream of its own; `None` where the driver has no pools.
    memory: Option<sys::CUstream>,
    /// After a reset the driver may give the same names and addresses to others, so that ours must not be named any more.
    ended: AtomicBool,
}

// SAFETY: a context is the driver's, which may be called on it from any thread that has made it current.
unsafe impl Send for Context {}
// SAFETY: as above; nothing here changes through `&self`.
unsafe impl Sync for Context {}

impl Context {
    /// Holds GPU `ordinal`'s context. The first one to hold it makes it, which takes a tenth of a second or more.
    pub fn retain(driver: Driver, ordinal: u32) -> Result<Context, DriverError> {
        let device = driver.device(ordinal)?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: `device` is valid; one pointer is written.
        check("cuDevicePrimaryCtxRetain", unsafe { sys::cuDevicePrimaryCtxRetain(&mut raw, device) })?;
        let mut context = Context { raw, device, memory: None, ended: AtomicBool::new(false) };
        context.enter()?;
        if attribute(device, sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED)? != 0 {
            let mut stream = std::ptr::null_mut();
            let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
            // SAFETY: the context is current; one pointer is written.
            check("cuStreamCreate", unsafe { sys::cuStreamCreate(&mut stream, flags) })?;
            context.memory = Some(stream);
        }
        Ok(context)
    }

    /// Takes memory of the GPU, which any stream may use at once. The context has to be the thread's.
    pub(super) fn allocate(&self, bytes: usize) -> Result<u64, DriverError> {
        let mut address = 0;
        let Some(stream) = self.memory else {
            // SAFETY: a context is current; one address is written.
            return check("cuMemAlloc", unsafe { sys::cuMemAlloc_v2(&mut address, bytes) }).map(|()| address);
        };
        // SAFETY: a context is current, the stream its own; one address is written.
        check("cuMemAllocAsync", unsafe { sys::cuMemAllocAsync(&mut address, bytes, stream) })?;
        // Other streams may use it once this one has come to it.
        self.settle()?;
        Ok(address)
    }

    /// Gives back what [`Context::allocate`] gave. The context has to be the thread's.
    ///
    /// # Safety
    /// Nobody uses it any more, the GPU included.
    pub(super) unsafe fn free(&self, address: u64) {
        match self.memory {
            // SAFETY: ours, and out of use (the caller's promise). A failure leaves it to the context's end.
            Some(stream) => unsafe { sys::cuMemFreeAsync(address, stream) },
            // SAFETY: as above.
            None => unsafe { sys::cuMemFree_v2(address) },
        };
    }

    /// Waits until what was taken and given back is so.
    fn settle(&self) -> Result<(), DriverError> {
        let Some(stream) = self.memory else { return Ok(()) };
        // SAFETY: the context's own stream.
        check("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(stream) })
    }

    /// Makes it the calling thread's. An error after a [`Context::reset`].
    pub fn enter(&self) -> Result<(), DriverError> {
        if self.ended.load(Ordering::Acquire) {
            return check("cuCtxSetCurrent", sys::CUresult::CUDA_ERROR_CONTEXT_IS_DESTROYED);
        }
        // SAFETY: the context is held until `self` is dropped.
        check("cuCtxSetCurrent", unsafe { sys::cuCtxSetCurrent(self.raw) })
    }

    /// The driver's number for its GPU.
    pub fn ordinal(&self) -> u32 {
        self.device as u32
    }

    /// (free, in all) bytes of the GPU's memory. The context has to be the thread's.
    pub fn memory(&self) -> Result<(u64, u64), DriverError> {
        let (mut free, mut total) = (0, 0);
        self.enter()?;
        // What was given back counts.
        self.settle()?;
        // SAFETY: a context is current; two integers are written.
        check("cuMemGetInfo", unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) })?;
        Ok((free as u64, total as u64))
    }

    /// Takes the context from whoever holds it, with all that it has: the way back after an error that it does not survive. Handles into it
    /// are void afterwards, and dropping them does nothing.
    pub fn reset(&self) -> Result<(), DriverError> {
        self.ended.store(true, Ordering::Release);
        // SAFETY: `device` is valid. What was made in the context is only ever named to the driver again, which refuses it.
        check("cuDevicePrimaryCtxReset", unsafe { sys::cuDevicePrimaryCtxReset_v2(self.device) })
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        if let (Some(stream), Ok(())) = (self.memory, self.enter()) {
            // SAFETY: ours. A failure leaves it to the context's end.
            unsafe { sys::cuStreamDestroy_v2(stream) };
        }
        // SAFETY: balances the retain. A failure leaves the context to the driver.
        unsafe { sys::cuDevicePrimaryCtxRelease_v2(self.device) };
    }
}

/// Kernels, loaded into a context.
pub struct Module {
    raw: sys::CUmodule,
    context: Arc<Context>,
}

// SAFETY: as for `Context`.
unsafe impl Send for Module {}
// SAFETY: as for `Context`.
unsafe impl Sync for Module {}

/// A kernel of a module; as valid as that.
#[derive(Clone, Copy, Debug)]
pub struct Function(pub(super) sys::CUfunction);

// SAFETY: a name for something of the driver's, which any thread may use.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Function {}

impl Module {
    /// Loads an image: a fat binary, or PTX with a terminating zero.
    pub fn load(context: &Arc<Context>, image: &[u8]) -> Result<Module, DriverError> {
        context.enter()?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: a context is current; the image says itself how long it is, and comes from our own build.
        check("cuModuleLoadData", unsafe { sys::cuModuleLoadData(&mut raw, image.as_ptr().cast()) })?;
        Ok(Module { raw, context: Arc::clone(context) })
    }

    pub fn function(&self, name: &str) -> Result<Function, DriverError> {
        let name = CString::new(name).expect("kernels' names hold no zero byte");
        let mut raw = std::ptr::null_mut();
        self.context.enter()?;
        // SAFETY: the module is loaded, the name a C string; one pointer is written.
        check("cuModuleGetFunction", unsafe { sys::cuModuleGetFunction(&mut raw, self.raw, name.as_ptr()) })?;
        Ok(Function(raw))
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        if self.context.enter().is_ok() {
            // SAFETY: the module is ours, and nobody launches from it any more. A failure leaves it to the context's end.
            unsafe { sys::cuModuleUnload(self.raw) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cores_are_read_as_the_system_writes_them() {
        assert_eq!(cores("0-2,8\n"), [0, 1, 2, 8]);
        assert_eq!(cores(""), [0usize; 0]);
        assert_eq!(cores("x,3,1-99999999"), [3]);
    }
}
