//! The CUDA driver: its calls as owned, typed handles. What only this folder does: `unsafe` calls into the driver.
//!
//! The library is loaded when it is first asked for ([`open`]), so that one program runs on hosts with and without it; nothing else here may be
//! called before that has succeeded, which [`Driver`] proves. Every handle belongs to a context; a thread makes it current
//! ([`Context::enter`]) before it calls anything.

mod context;
mod graph;
mod memory;
mod stream;

pub use context::{Context, Function, GpuInfo, Module};
pub use graph::Graph;
pub use memory::{DeviceMemory, PinnedMemory, Registration};
pub use stream::{Event, Stream};

use cudarc::driver::sys;
use std::error::Error;
use std::ffi::CStr;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Names a driver library to use instead of the system's.
pub const LIBRARY_VARIABLE: &str = "ROTA_CUDA_DRIVER";

/// Proof that the driver's library is loaded and initialised.
#[derive(Clone, Copy, Debug)]
pub struct Driver(());

/// A call of the driver failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DriverError {
    /// No NVIDIA driver on this host.
    #[error(
        "no CUDA driver: libcuda.so.1 was not found; install NVIDIA's driver, or set {LIBRARY_VARIABLE} to the library"
    )]
    NotFound,
    /// The driver is there; `CUDA_VISIBLE_DEVICES` may be empty, or a container have none.
    #[error(
        "the CUDA driver has no GPU (CUDA_ERROR_NO_DEVICE); is one given to this container, or hidden by CUDA_VISIBLE_DEVICES?"
    )]
    NoDevice,
    /// The library that was named can't be loaded.
    #[error("{LIBRARY_VARIABLE} names {library}, which can't be loaded as the CUDA driver: {text}")]
    Library { library: PathBuf, text: String },
    #[error("the driver's {call} failed: {name} ({code})")]
    Call { call: &'static str, name: String, code: u32 },
}

impl DriverError {
    /// Whether the context, and all that it holds, is gone: the GPU fell off the bus, or a kernel faulted.
    pub fn is_fatal(&self) -> bool {
        use sys::CUresult as R;
        let fatal = [
            R::CUDA_ERROR_ILLEGAL_ADDRESS,
            R::CUDA_ERROR_LAUNCH_FAILED,
            R::CUDA_ERROR_LAUNCH_TIMEOUT,
            R::CUDA_ERROR_HARDWARE_STACK_ERROR,
            R::CUDA_ERROR_ILLEGAL_INSTRUCTION,
            R::CUDA_ERROR_MISALIGNED_ADDRESS,
            R::CUDA_ERROR_INVALID_ADDRESS_SPACE,
            R::CUDA_ERROR_INVALID_PC,
            R::CUDA_ERROR_ASSERT,
            R::CUDA_ERROR_ECC_UNCORRECTABLE,
            R::CUDA_ERROR_NVLINK_UNCORRECTABLE,
            R::CUDA_ERROR_CONTEXT_IS_DESTROYED,
            R::CUDA_ERROR_DEVICE_UNAVAILABLE,
            R::CUDA_ERROR_NO_DEVICE,
            R::CUDA_ERROR_UNKNOWN,
        ];
        matches!(self, DriverError::Call { code, .. } if fatal.iter().any(|fatal| *fatal as u32 == *code))
    }

    pub fn is_out_of_memory(&self) -> bool {
        matches!(self, DriverError::Call { code, .. } if *code == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY as u32)
    }
}

/// Loads the driver, once per process: the library that [`LIBRARY_VARIABLE`] names, else the system's.
pub fn open() -> Result<Driver, DriverError> {
    let named = std::env::var_os(LIBRARY_VARIABLE).filter(|library| !library.is_empty());
    open_library(named.as_deref().map(Path::new))
}

/// As [`open`], with this library, or with the system's. Whoever is the first in a process chooses for all.
pub fn open_library(library: Option<&Path>) -> Result<Driver, DriverError> {
    static OPENED: OnceLock<Result<Driver, DriverError>> = OnceLock::new();
    OPENED.get_or_init(|| load(library)).clone()
}

fn load(library: Option<&Path>) -> Result<Driver, DriverError> {
    if let Some(library) = library {
        preload(library)?;
    }
    // SAFETY: looks whether a library of the driver's name can be opened, and opens it: code of the system's or of whoever set the variable.
    if !unsafe { sys::is_culib_present() } {
        return Err(DriverError::NotFound);
    }
    // SAFETY: the library is there (just seen), and this is the first call that it wants.
    match unsafe { sys::cuInit(0) } {
        sys::CUresult::CUDA_ERROR_NO_DEVICE => Err(DriverError::NoDevice),
        result => check("cuInit", result).map(|()| Driver(())),
    }
}

/// Opens a library, so that the loader takes it for the driver's when it is asked for that by name.
fn preload(library: &Path) -> Result<(), DriverError> {
    use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
    // SAFETY: runs the initialisers of a library that whoever started this process named as the driver.
    let opened = unsafe { Library::open(Some(library), RTLD_NOW | RTLD_GLOBAL) };
    match opened {
        // It stays open for as long as the process lives.
        Ok(library) => {
            std::mem::forget(library);
            Ok(())
        }
        Err(error) => {
            // The loader's own words are the source.
            let text = error.source().map_or_else(|| error.to_string(), ToString::to_string);
            Err(DriverError::Library { library: library.to_owned(), text })
        }
    }
}

/// Turns the driver's code into an error that names the call.
fn check(call: &'static str, result: sys::CUresult) -> Result<(), DriverError> {
    if result == sys::CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    let mut name = std::ptr::null();
    // SAFETY: writes one pointer, to a string that lives as long as the library, or null for a code that it does not know.
    let known = unsafe { sys::cuGetErrorName(result, &mut name) };
    let name = match known == sys::CUresult::CUDA_SUCCESS && !name.is_null() {
        // SAFETY: not null, and a C string of the library's (see above).
        true => unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned(),
        false => "an unknown error".to_owned(),
    };
    Err(DriverError::Call { call, name, code: result as u32 })
}
