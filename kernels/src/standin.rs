//! The stand-in driver (`host/driver/`): a `libcuda.so.1` that pretends GPUs and runs the kernels on the host.
//!
//! A program that opens it before it asks for the driver by name gets it: [`crate::standin::library`] says where it is. `host/driver/faults.cpp` lists
//! its settings and the faults that a test can plant; `host/driver/clock.h` says how it keeps the time of a GPU that it is told to be.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use std::{fs, io};

use crate::host::{self, BuildError};
use crate::launch::Launch;

/// What the stand-in takes for an image of all kernels, for programs that were built without nvcc; a real driver refuses it.
pub const IMAGE: &[u8] = b"rota host kernels\0";

/// How its GPUs are called.
pub const NAME_PREFIX: &str = "Stand-in GPU";

/// The driver as a shared object; compiled when it is not in the cache.
pub fn library() -> Result<PathBuf, BuildError> {
    // One thread compiles, the others of the process find what it made.
    static BUILDING: Mutex<()> = Mutex::new(());
    let _building = BUILDING.lock().unwrap_or_else(PoisonError::into_inner);
    let kernels = host::folder();
    let mut sources = Vec::new();
    for (place, extension) in [("", "cu"), ("host", "cpp"), ("host/driver", "cpp")] {
        sources.extend(files(&kernels.join(place), extension)?);
    }
    host::shared_object("libcuda.so.1", &sources, &[])
}

/// A line of the file that `ROTA_STANDIN_TIMES` names: launches like this one, wherever their operands lie, take `time` on the GPU that the
/// stand-in has the times of.
pub fn time_line(launch: &Launch, time: Duration) -> String {
    let address_bytes = launch.kernel.pointers * 8;
    let fnv1a = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
    let hash = launch.params[address_bytes..].iter().fold(0xcbf2_9ce4_8422_2325, fnv1a);
    let [x, y, z] = launch.grid;
    format!("{} {x} {y} {z} {address_bytes} {hash:016x} {}\n", launch.kernel.name, time.as_nanos())
}

fn files(folder: &Path, extension: &str) -> Result<Vec<PathBuf>, BuildError> {
    let failed = |error: io::Error| BuildError::File { path: folder.to_path_buf(), error };
    let entries = fs::read_dir(folder).map_err(failed)?.collect::<io::Result<Vec<_>>>().map_err(failed)?;
    let mut found: Vec<PathBuf> = entries.into_iter().map(|entry| entry.path()).collect();
    found.retain(|path| path.extension().is_some_and(|found| found == extension));
    found.sort();
    Ok(found)
}
