//! The kernels on the host: the same sources compiled with g++, each thread of a block a fiber (`host/`).
//!
//! For tests and for the stand-in driver; the program embeds none of it. Objects and libraries are kept under the hash of what went
//! into them, in `$ROTA_CACHE`, else `$XDG_CACHE_HOME/rota`, else `~/.cache/rota`, so a source is compiled once per change.

use std::ffi::{CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::{env, fs, io, thread};

use libloading::Library;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::cache::{self, Hash};
use crate::launch::Launch;
use crate::params::Pointer;

/// The shared object with every kernel and `host/host.h`'s interface; compiled when it is not in the cache.
pub fn host_library() -> Result<PathBuf, BuildError> {
    shared_object("librota_kernels_host.so", &sources(folder())?, &[])
}

/// The same, built to check every access to memory (`host/check.cpp`), with the kernels of `place`.
pub fn checking_library(name: &str, place: &Path) -> Result<PathBuf, BuildError> {
    let instrumented = ["-O1", "-fsanitize=thread", "--param", "tsan-instrument-func-entry-exit=0"];
    build(name, &sources(place)?, &["-DROTA_CHECK".to_string()], &instrumented.map(String::from))
}

/// The kernels of `place` and what runs them.
fn sources(place: &Path) -> Result<Vec<PathBuf>, BuildError> {
    Ok([files(place, "cu")?, files(&folder().join("host"), "cpp")?].concat())
}

/// Where the kernels' sources are.
pub fn folder() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The host compiler could not make what was asked. A person's to mend.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A file or folder could not be read or written.
    #[error("{path}: {error}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A source was edited meanwhile.
    #[error("{path}: {}", cache::CHANGED)]
    Changed {
        /// Which.
        path: PathBuf,
    },
    /// There is no compiler to start.
    #[error("{compiler} can't be started: {error}; install g++ or set CXX")]
    NoCompiler {
        /// What was tried.
        compiler: String,
        /// Why not.
        error: io::Error,
    },
    /// The compiler refused.
    #[error("{command}\n{output}")]
    Refused {
        /// The whole command.
        command: String,
        /// What it printed.
        output: String,
    },
}

/// Compiles each of `sources` (C++ or CUDA) for the host and links them into a shared object called `name`; returns where it is.
///
/// `flags` go to compiler and linker. What is cached is used again as long as sources, all headers of the kernels' folder, flags,
/// compiler and processor are the same.
pub fn shared_object(name: &str, sources: &[PathBuf], flags: &[String]) -> Result<PathBuf, BuildError> {
    build(name, sources, flags, &[])
}

/// The same; kernels get further flags of their own, which the linker does not see.
fn build(name: &str, sources: &[PathBuf], flags: &[String], kernel_flags: &[String]) -> Result<PathBuf, BuildError> {
    let compiler = env::var("CXX").unwrap_or_else(|_| "g++".to_string());
    let common = common_hash(&compiler, flags)?;
    let objects = thread::scope(|scope| {
        let workers = thread::available_parallelism().map_or(1, |n| n.get());
        let share = sources.len().div_ceil(workers).max(1);
        let chunks: Vec<_> = sources
            .chunks(share)
            .map(|chunk| {
                let (compiler, common) = (&compiler, &common);
                scope.spawn(move || {
                    chunk.iter().map(|source| object(compiler, common, source, flags, kernel_flags)).collect()
                })
            })
            .collect();
        let results: Vec<Result<Vec<PathBuf>, BuildError>> =
            chunks.into_iter().map(|chunk| chunk.join().expect("a worker does not panic")).collect();
        results.into_iter().collect::<Result<Vec<_>, _>>()
    })?
    .concat();
    let mut hash = Hash::new();
    hash.add(name.as_bytes());
    for object in &objects {
        hash.add(object.as_os_str().as_encoded_bytes());
    }
    let folder = cache_folder()?.join(hash.hex());
    fs::create_dir_all(&folder).map_err(|error| BuildError::File { path: folder.clone(), error })?;
    cached(folder.join(name), |part| {
        let mut command = Command::new(&compiler);
        // Once loaded it stays: its threads live as long as the process.
        command
            .args(["-shared", "-pthread", &format!("-Wl,-soname,{name}"), "-Wl,-z,defs,-z,nodelete", "-o"])
            .arg(part);
        run(command.args(&objects).args(flags).arg("-ldl"))
    })
}

fn object(
    compiler: &str,
    common: &Hash,
    source: &Path,
    flags: &[String],
    kernel_flags: &[String],
) -> Result<PathBuf, BuildError> {
    let kernel_flags = if source.extension().is_some_and(|extension| extension == "cu") { kernel_flags } else { &[] };
    let mut hash = common.clone();
    for flag in kernel_flags {
        hash.add(flag.as_bytes());
    }
    let inputs = [headers(source)?, vec![source.to_path_buf()]].concat();
    let before = content(&inputs)?;
    hash.add(before.hex().as_bytes());
    let path = cache_folder()?.join(format!("{}.o", hash.hex()));
    let compile = |part: &Path| {
        let mut command = Command::new(compiler);
        command.args(COMPILE_FLAGS).arg("-I").arg(folder()).args(flags).args(kernel_flags);
        run(command.args(["-x", "c++", "-c"]).arg(source).arg("-o").arg(part))?;
        if content(&inputs)? == before { Ok(()) } else { Err(BuildError::Changed { path: source.to_path_buf() }) }
    };
    cached(path, compile)
}

/// All that the source may include: the driver's headers only where the driver is.
fn headers(source: &Path) -> Result<Vec<PathBuf>, BuildError> {
    const PLACES: [(&str, &str); 4] = [("", "cuh"), ("", "h"), ("host", "h"), ("host/driver", "h")];
    let is_driver = source.parent().is_some_and(|parent| parent.ends_with("host/driver"));
    let places = if is_driver { &PLACES[..] } else { &PLACES[..3] };
    Ok(places
        .iter()
        .map(|(place, extension)| files(&folder().join(place), extension))
        .collect::<Result<Vec<_>, _>>()?
        .concat())
}

fn content(paths: &[PathBuf]) -> Result<Hash, BuildError> {
    cache::content(paths).map_err(|error| BuildError::File { path: folder().to_path_buf(), error })
}

/// -march=native: the emulation is several times faster with vectors, and what is built stays on this machine.
const COMPILE_FLAGS: &[&str] = &[
    "-std=c++17",
    "-O3",
    "-march=native",
    // Four floats are read as one 16-byte load, as a GPU does it.
    "-fno-strict-aliasing",
    "-fPIC",
    "-fvisibility=hidden",
    "-pthread",
    "-DROTA_HOST",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wno-unknown-pragmas",
];

/// Has `make` make the file at `path` unless it is there.
fn cached(path: PathBuf, make: impl FnOnce(&Path) -> Result<(), BuildError>) -> Result<PathBuf, BuildError> {
    cache::once(&path, make, |error| BuildError::File { path: path.clone(), error })?;
    Ok(path)
}

fn run(command: &mut Command) -> Result<(), BuildError> {
    let compiler = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|error| BuildError::NoCompiler { compiler, error })?;
    if output.status.success() {
        return Ok(());
    }
    let output = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(BuildError::Refused { command: format!("{command:?}"), output })
}

/// What every object depends on besides its source.
fn common_hash(compiler: &str, flags: &[String]) -> Result<Hash, BuildError> {
    let mut hash = Hash::new();
    let version = Command::new(compiler)
        .arg("--version")
        .output()
        .map_err(|error| BuildError::NoCompiler { compiler: compiler.to_string(), error })?;
    hash.add(&version.stdout);
    let processor = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    hash.add(processor.lines().find(|line| line.starts_with("flags")).unwrap_or_default().as_bytes());
    for flag in COMPILE_FLAGS {
        hash.add(flag.as_bytes());
    }
    for flag in flags {
        hash.add(flag.as_bytes());
    }
    Ok(hash)
}

fn files(place: &Path, extension: &str) -> Result<Vec<PathBuf>, BuildError> {
    cache::files(place, extension).map_err(|error| BuildError::File { path: place.to_path_buf(), error })
}

fn cache_folder() -> Result<PathBuf, BuildError> {
    cache::folder("kernels-host").map_err(|error| BuildError::File { path: PathBuf::from("kernels-host"), error })
}

/// Memory that kernels on the host work on. Buffers stay where they are until it is dropped.
#[derive(Default)]
pub struct Memory {
    buffers: Vec<Buffer>,
}

struct Buffer {
    /// Of 16-byte units, since kernels load as much at once.
    units: Box<[u128]>,
    /// What was asked for; what the last unit has beyond it nobody may touch.
    bytes: usize,
    /// Whether anything has been put there.
    initialised: bool,
}

impl Buffer {
    fn address(&self) -> u64 {
        self.units.as_ptr() as u64
    }

    fn holds(&self, pointer: Pointer) -> bool {
        let range = self.units.as_ptr_range();
        (range.start as u64..range.end as u64).contains(&pointer.0)
    }
}

impl Memory {
    /// A buffer with these elements' bytes.
    pub fn upload<T: IntoBytes + Immutable>(&mut self, elements: &[T]) -> Pointer {
        let bytes = elements.as_bytes();
        let pointer = self.alloc(bytes.len());
        let buffer = self.buffers.last_mut().expect("alloc pushed one");
        buffer.units.as_mut_bytes()[..bytes.len()].copy_from_slice(bytes);
        buffer.initialised = true;
        pointer
    }

    /// A buffer of that many bytes, filled with a pattern that is no sensible number.
    pub fn alloc(&mut self, bytes: usize) -> Pointer {
        let units = vec![u128::from_ne_bytes([0xab; 16]); bytes.div_ceil(16).max(1)].into_boxed_slice();
        let buffer = Buffer { units, bytes, initialised: false };
        let pointer = Pointer(buffer.address());
        self.buffers.push(buffer);
        pointer
    }

    /// The first `count` elements of the buffer that begins at `pointer`. Panics when there is no such buffer: a test's mistake.
    pub fn download<T: FromBytes + Copy>(&self, pointer: Pointer, count: usize) -> Vec<T> {
        let buffer = self.buffers.iter().find(|buffer| buffer.address() == pointer.0).expect("a buffer of ours");
        let bytes = buffer.units.as_bytes();
        bytes.chunks_exact(size_of::<T>()).take(count).map(|bytes| T::read_from_bytes(bytes).expect("whole")).collect()
    }

    /// How many buffers there are.
    pub fn count(&self) -> usize {
        self.buffers.len()
    }

    /// The buffer that the address lies in, by its place in the order in which they were made.
    pub fn find(&self, pointer: Pointer) -> Option<usize> {
        self.buffers.iter().position(|buffer| buffer.holds(pointer))
    }

    /// Lets kernels touch no more than a share of the buffer's bytes while `work` runs.
    pub fn shortened<T>(&mut self, buffer: usize, share: f64, work: impl FnOnce(&mut Memory) -> T) -> T {
        let whole = self.buffers[buffer].bytes;
        self.buffers[buffer].bytes = (whole as f64 * share) as usize;
        let result = work(self);
        self.buffers[buffer].bytes = whole;
        result
    }

    /// All bytes of all buffers, in the order in which they were made.
    pub fn snapshot(&self) -> Vec<Vec<u8>> {
        self.buffers.iter().map(|buffer| buffer.units.as_bytes()[..buffer.bytes].to_vec()).collect()
    }

    /// Puts back what a snapshot holds.
    pub fn restore(&mut self, snapshot: &[Vec<u8>]) {
        for (buffer, bytes) in self.buffers.iter_mut().zip(snapshot) {
            buffer.units.as_mut_bytes()[..bytes.len()].copy_from_slice(bytes);
        }
    }
}

/// In what order the threads of a block, and the blocks of a grid, take turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// By their numbers.
    Forward,
    /// From the last to the first.
    Reversed,
    /// Threads anew at each barrier, by this seed.
    Random(u64),
    /// Threads by their numbers; blocks side by side on the host's cores, where that is worth it. [`Host::checking`] takes it for `Forward`.
    Any,
}

/// `RotaHostBuffer` of `host.h`.
#[repr(C)]
struct CheckedBuffer {
    address: u64,
    bytes: u64,
    initialised: u32,
    writable: u32,
}

/// `RotaHostCheck` of `host.h`.
#[repr(C)]
struct Check {
    order: u32,
    buffer_count: u32,
    seed: u64,
    buffers: *const CheckedBuffer,
}

type LaunchFunction = unsafe extern "C" fn(
    *const c_char,
    *const u32,
    *const u32,
    u32,
    *const c_void,
    usize,
    *const Check,
    *mut c_char,
    usize,
) -> c_int;

/// A loaded library of kernels.
pub struct Host {
    launch: LaunchFunction,
    _library: Library,
}

impl Host {
    /// The library that is built for speed; one per process.
    pub fn load() -> Result<&'static Host, String> {
        static HOST: OnceLock<Result<Host, String>> = OnceLock::new();
        HOST.get_or_init(|| Host::open(host_library())).as_ref().map_err(Clone::clone)
    }

    /// The library that checks every access; one per process.
    pub fn checking() -> Result<&'static Host, String> {
        static HOST: OnceLock<Result<Host, String>> = OnceLock::new();
        let library = || checking_library("librota_kernels_check.so", folder());
        HOST.get_or_init(|| Host::open(library())).as_ref().map_err(Clone::clone)
    }

    /// A library that [`shared_object`] or [`checking_library`] made.
    pub fn open(built: Result<PathBuf, BuildError>) -> Result<Host, String> {
        let path = built.map_err(|error| error.to_string())?;
        // SAFETY: the library is ours; its initialisers only fill a table.
        let library = unsafe { Library::new(&path) }.map_err(|error| format!("{}: {error}", path.display()))?;
        // SAFETY: host.h declares the function with this type.
        let launch = unsafe { library.get::<LaunchFunction>(b"rota_host_launch_checked\0") };
        Ok(Host { launch: *launch.map_err(|error| error.to_string())?, _library: library })
    }

    /// Runs `launch` to its end. Its addresses have to lie in `memory`; the error is the emulation's, in words.
    pub fn run(&self, launch: &Launch, memory: &mut Memory) -> Result<(), String> {
        self.run_in(Order::Any, launch, memory)
    }

    /// The same with turns in that order.
    pub fn run_in(&self, order: Order, launch: &Launch, memory: &mut Memory) -> Result<(), String> {
        for pointer in launch.pointers().filter(|pointer| pointer.is_some()) {
            memory.find(pointer).ok_or_else(|| format!("{:#x} is in no buffer", pointer.0))?;
        }
        let buffers: Vec<CheckedBuffer> = memory
            .buffers
            .iter_mut()
            .map(|buffer| CheckedBuffer {
                address: buffer.units.as_mut_ptr() as u64,
                bytes: buffer.bytes as u64,
                initialised: u32::from(buffer.initialised),
                writable: 1,
            })
            .collect();
        let (code, seed) = match order {
            Order::Forward => (0, 0),
            Order::Reversed => (1, 1),
            Order::Random(seed) => (2, seed),
            Order::Any => (3, 0),
        };
        let check = Check { order: code, buffer_count: buffers.len() as u32, seed, buffers: buffers.as_ptr() };
        let name = CString::new(launch.kernel.name).expect("names have no zero bytes");
        let mut error = [0_u8; 512];
        // SAFETY: all arguments outlive the call and have the lengths that are passed; the structs are those of host.h. The kernel
        // writes through the addresses among its parameters: each lies in a buffer of `memory`, which is borrowed mutably; that a kernel keeps
        // to the shapes which it is told is what the checking library shows.
        let status = unsafe {
            (self.launch)(
                name.as_ptr(),
                launch.grid.as_ptr(),
                launch.block.as_ptr(),
                launch.shared_bytes,
                launch.params.as_ptr().cast(),
                launch.params.len(),
                &check,
                error.as_mut_ptr().cast(),
                error.len(),
            )
        };
        if status == 0 {
            memory.buffers.iter_mut().for_each(|buffer| buffer.initialised = true);
            return Ok(());
        }
        let text = error.split(|&byte| byte == 0).next().unwrap_or_default();
        Err(String::from_utf8_lossy(text).into_owned())
    }
}
