//! One GPU as all networks on it share it: its context, the kernels in it, weights by content, and the arena.
//!
//! All of that is a [`Session`]. When the GPU is lost, so is the session; the next one begins from nothing, and networks
//! compile themselves anew for it, from the weights that they keep on the host.

use super::CudaError;
use super::arenas::{self, Giving};
use super::content::{ByContent, Shared};
use super::driver::{Context, DeviceMemory, Driver, DriverError, Function, GpuInfo, Module, Stream};
use super::flight::Kit;
use super::upload::Uploads;
use crate::Arena;
use crate::engine::Usage;
use rota_graph::Tensor;
use rota_kernels::Kernel;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A GPU, and the session on it that is alive.
pub struct Gpu {
    driver: Driver,
    pub info: GpuInfo,
    /// The kernels' image, as this build has it.
    image: &'static [u8],
    current: Mutex<Current>,
}

struct Current {
    session: Option<Arc<Session>>,
    /// Before this a lost GPU is not asked again.
    retry_at: Option<Instant>,
}

/// A lost GPU is asked this often whether it is back.
const RETRY: Duration = Duration::from_millis(100);

/// What is alive on a GPU until it is lost.
pub struct Session {
    pub context: Arc<Context>,
    /// Batches execute on it, whichever network's, one after the other; so they can share the arena.
    pub stream: Stream,
    /// Inputs of the next batch, while one executes.
    pub copies_in: Stream,
    /// Outputs, while the next part or batch executes.
    pub copies_out: Stream,
    module: Module,
    functions: Mutex<HashMap<&'static str, Function>>,
    uploads: Uploads,
    weights: ByContent<DeviceMemory, CudaError>,
    arena: Mutex<Option<Arc<DeviceMemory>>>,
    /// Bytes of the plans that there are.
    pub(super) plan_bytes: AtomicU64,
    /// Of batches that have ended.
    kits: Mutex<Vec<Kit>>,
    lost: AtomicBool,
}

/// A constant on the GPU.
pub type Weight = Shared<DeviceMemory, CudaError>;

// SAFETY: streams, modules and functions are the driver's, which may be called on them from any thread.
unsafe impl Sync for Session {}

impl Gpu {
    /// Opens GPU `ordinal` with its first session.
    pub fn open(driver: Driver, ordinal: u32) -> Result<Arc<Gpu>, CudaError> {
        let info = driver.info(ordinal)?;
        let stand_in = info.name.starts_with(rota_kernels::standin::NAME_PREFIX);
        let image = rota_kernels::image().or(stand_in.then_some(rota_kernels::standin::IMAGE));
        let image = image.ok_or(CudaError::NoKernels { why: rota_kernels::image_missing_reason() })?;
        let session = Session::begin(driver, &info, image)?;
        arenas::join(&session);
        let current = Mutex::new(Current { session: Some(session), retry_at: None });
        Ok(Arc::new(Gpu { driver, info, image, current }))
    }

    /// The session to compile for and to run in; a new one where the last was lost and the GPU is back.
    pub fn session(&self) -> Result<Arc<Session>, CudaError> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(session) = current.session.as_ref().filter(|session| !session.is_lost()) {
            return Ok(Arc::clone(session));
        }
        if current.retry_at.is_some_and(|at| Instant::now() < at) {
            return Err(CudaError::Lost { gpu: self.info.label() });
        }
        current.retry_at = Some(Instant::now() + RETRY);
        if let Some(lost) = &current.session {
            arenas::leave(lost);
            lost.context.reset().map_err(|_| CudaError::Lost { gpu: self.info.label() })?;
        }
        let session = Session::begin(self.driver, &self.info, self.image)?;
        arenas::join(&session);
        *current = Current { session: Some(Arc::clone(&session)), retry_at: None };
        Ok(session)
    }
}

impl Gpu {
    /// What lies in its memory; `None` while it is lost, or is just coming back.
    pub fn usage(&self) -> Option<Usage> {
        let session = {
            let current = self.current.try_lock().ok()?;
            Arc::clone(current.session.as_ref().filter(|session| !session.is_lost())?)
        };
        let (free, total) = session.context.memory().ok()?;
        let weights = session.weights.sum(DeviceMemory::bytes);
        let arena = session.arena.lock().unwrap_or_else(PoisonError::into_inner);
        let activations = arena.as_ref().map_or(0, |arena| arena.bytes());
        Some(Usage { weights, plans: session.plan_bytes.load(Ordering::Relaxed), activations, free, total })
    }
}

impl Session {
    fn begin(driver: Driver, info: &GpuInfo, image: &[u8]) -> Result<Arc<Session>, CudaError> {
        let context = Arc::new(Context::retain(driver, info.ordinal)?);
        let module = Module::load(&context, image).map_err(|error| CudaError::Image {
            gpu: info.name.clone(),
            capability: info.compute_capability,
            error,
        })?;
        Ok(Arc::new(Session {
            stream: Stream::new(&context)?,
            copies_in: Stream::new(&context)?,
            copies_out: Stream::new(&context)?,
            uploads: Uploads::new(&context)?,
            module,
            functions: Mutex::default(),
            weights: ByContent::default(),
            arena: Mutex::default(),
            plan_bytes: AtomicU64::new(0),
            // As many batches as a GPU has at a time.
            kits: Mutex::new(vec![Kit::new(&context)?, Kit::new(&context)?]),
            lost: AtomicBool::new(false),
            context,
        }))
    }

    pub fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }

    /// Takes note of an error; one that the context does not survive ends the session.
    pub fn noted(&self, error: DriverError) -> CudaError {
        if error.is_fatal() {
            self.lost.store(true, Ordering::Release);
        }
        CudaError::Driver(error)
    }

    pub fn function(&self, kernel: &'static Kernel) -> Result<Function, DriverError> {
        let mut functions = self.functions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(function) = functions.get(kernel.name) {
            return Ok(*function);
        }
        let function = self.module.function(kernel.name)?;
        functions.insert(kernel.name, function);
        Ok(function)
    }

    /// A constant's memory: the one that has the same content, else a new one.
    pub fn weight(&self, tensor: &Tensor) -> Result<Arc<Weight>, CudaError> {
        self.weights.get(*blake3::hash(&tensor.data).as_bytes(), || {
            let memory = self.allocate(tensor.data.len() as u64, "weights")?;
            self.uploads.upload(memory.address(), &tensor.data).map_err(|error| self.noted(error))?;
            Ok(memory)
        })
    }

    /// Lets `give` give the copies of a batch's inputs to `copies_in`, which it is given: of weights that are uploaded meanwhile, at most one
    /// piece comes before them. Arenas stay where they are meanwhile ([`Session::giving`]).
    pub fn copy_in(&self, give: impl FnOnce(&Stream) -> Result<(), DriverError>) -> Result<(), DriverError> {
        let _giving = self.giving();
        self.uploads.let_pass(&self.copies_in, || give(&self.copies_in))
    }

    /// Events and a table for a batch.
    pub fn kit(&self) -> Result<Kit, DriverError> {
        let kept = self.kits.lock().unwrap_or_else(PoisonError::into_inner).pop();
        kept.map_or_else(|| Kit::new(&self.context), Ok)
    }

    /// Takes them back.
    pub fn keep(&self, kit: Kit) {
        self.kits.lock().unwrap_or_else(PoisonError::into_inner).push(kit);
    }

    /// Makes an arena known to the driver, so that copies from and to it need no step in between. At once, when somebody else has done it or is
    /// about other arenas; else it pins every page.
    pub fn register(&self, memory: &Arena) {
        if arenas::register_unless_busy(memory) {
            // A failure shows in the next call.
            let _ = self.context.enter();
        }
    }

    /// The address by which kernels on this GPU reach a client's arena, its first byte; `None` when it is not registered: copies from and to it
    /// are staged by the driver then. It may change, or end, when another GPU is lost: ask while [`Session::giving`] is held, and give
    /// the GPU what uses it before that is dropped.
    pub fn device_address(&self, memory: &Arena) -> Option<u64> {
        arenas::address(memory, self.ordinal())
    }

    /// To be held while the GPU is given copies or kernels that reach arenas: registrations stay where they are so long.
    pub fn giving(&self) -> Giving {
        arenas::giving()
    }

    /// The driver's number for the GPU.
    pub fn ordinal(&self) -> u32 {
        self.context.ordinal()
    }

    /// Waits until the GPU has done whatever reaches arenas.
    pub fn finish(&self) -> Result<(), DriverError> {
        [&self.copies_in, &self.stream, &self.copies_out].into_iter().try_for_each(Stream::synchronize)
    }

    /// Fills memory that nobody uses yet with zeros.
    pub fn clear(&self, memory: &DeviceMemory) -> Result<(), CudaError> {
        self.uploads.clear(memory.address(), memory.bytes() as usize).map_err(|error| self.noted(error))
    }

    /// Memory of the GPU, or the refusal with the figures.
    pub fn allocate(&self, bytes: u64, what: &'static str) -> Result<DeviceMemory, CudaError> {
        DeviceMemory::new(&self.context, bytes).map_err(|error| match error.is_out_of_memory() {
            true => {
                let (free, total) = self.context.memory().unwrap_or_default();
                CudaError::OutOfMemory { what, bytes, free, total }
            }
            false => self.noted(error),
        })
    }

    /// The arena, for a plan that needs `bytes` of it. It grows by being replaced: plans that have captured the old one keep it until
    /// they are bound anew.
    pub fn arena(&self, bytes: u64) -> Result<Arc<DeviceMemory>, CudaError> {
        let mut arena = self.arena.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(arena) = arena.as_ref().filter(|arena| arena.bytes() >= bytes) {
            return Ok(Arc::clone(arena));
        }
        let grown = Arc::new(self.allocate(bytes, "activations")?);
        *arena = Some(Arc::clone(&grown));
        Ok(grown)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        arenas::leave(self);
    }
}
