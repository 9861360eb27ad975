//! Loads models for one GPU.

use super::arenas;
use super::gpu::Gpu;
use super::lower::Layouts;
use super::model::Model;
use super::runner::CudaRunner;
use super::workbench::Workbench;
use super::{CudaError, Precision, driver, lower};
use crate::engine::Usage;
use crate::{Arena, CompileOptions, Engine, EngineKind, engine};
use rota_kernels::dtype::Math;
use std::path::Path;
use std::sync::Arc;

/// Our kernels on one GPU.
pub struct CudaEngine {
    gpu: Arc<Gpu>,
    precision: Precision,
    layout: Layouts,
}

impl CudaEngine {
    /// GPUs of this host, by name.
    pub fn gpus() -> Result<Vec<driver::GpuInfo>, CudaError> {
        let driver = driver::open()?;
        (0..driver.count()?).map(|ordinal| Ok(driver.info(ordinal)?)).collect()
    }

    /// Opens GPU `ordinal`.
    pub fn open(ordinal: u32, precision: Precision) -> Result<CudaEngine, CudaError> {
        let driver = driver::open()?;
        let count = driver.count()?;
        if ordinal >= count {
            return Err(CudaError::NoGpu { ordinal, count });
        }
        let gpu = Gpu::open(driver, ordinal)?;
        let engine = CudaEngine { gpu, precision, layout: Layouts::Auto };
        engine.can(precision).map(|()| engine)
    }

    /// Whether the GPU is new enough for a precision.
    fn can(&self, precision: Precision) -> Result<(), CudaError> {
        let math = match precision {
            Precision::Fp32 => Math::F32,
            Precision::Tf32 => Math::Tf32,
            Precision::Fp16 => Math::F16,
        };
        let (capability, needed) = (self.gpu.info.compute_capability, math.capability());
        match capability >= needed {
            true => Ok(()),
            false => {
                let (gpu, precision) = (self.gpu.info.name.clone(), precision.name());
                Err(CudaError::Capability { gpu, precision, capability, needed })
            }
        }
    }

    /// With pictures lying as `layout` says instead of as the compiler chooses, to compare.
    pub fn with_layout(self, layout: Layouts) -> CudaEngine {
        CudaEngine { layout, ..self }
    }

    /// The GPU, for trying launches on it.
    pub fn workbench(&self) -> Result<Workbench, CudaError> {
        Workbench::new(self.gpu.session()?)
    }

    /// (free, in all) bytes of the GPU's memory.
    pub fn memory(&self) -> Result<(u64, u64), CudaError> {
        Ok(self.gpu.session()?.context.memory()?)
    }

    /// The address by which kernels on this GPU reach an arena; `None` when it is not registered, or the GPU is lost.
    pub fn device_address(&self, arena: &Arena) -> Option<u64> {
        self.gpu.session().ok()?.device_address(arena)
    }

    /// What the GPU says of itself.
    pub fn info(&self) -> &driver::GpuInfo {
        &self.gpu.info
    }
}

impl Engine for CudaEngine {
    fn describe(&self) -> String {
        format!("{}, {}", self.gpu.info.name, self.precision.name())
    }

    fn kind(&self) -> EngineKind {
        EngineKind::Cuda
    }

    fn describe_with(&self, options: &CompileOptions) -> String {
        format!("{}, {}", self.gpu.info.name, options.precision.unwrap_or(self.precision).name())
    }

    /// Registers it with the driver, for all GPUs; the first that is asked does it.
    fn adopt(&self, arena: &Arena) {
        arenas::register(arena);
    }

    fn let_go(&self, arena: &Arena) -> bool {
        arenas::let_go(arena)
    }

    fn usage(&self) -> Option<Usage> {
        self.gpu.usage()
    }

    fn load(&self, file: &Path, options: &CompileOptions) -> Result<engine::Loaded, engine::LoadError> {
        let precision = options.precision.unwrap_or(self.precision);
        let unfit = |error: CudaError| engine::LoadError::Model { file: file.to_owned(), text: error.to_string() };
        self.can(precision).map_err(unfit)?;
        let model = Model::read(file, options)?;
        let (signature, memory_bytes) = (model.signature.clone(), model.graph.weight_bytes());
        let runner = self.runner(model, options);
        Ok(engine::Loaded { signature, memory_bytes, runner: Box::new(runner) })
    }
}

impl CudaEngine {
    /// What runs the model.
    pub(super) fn runner(&self, model: Model, options: &CompileOptions) -> CudaRunner {
        let settled = model.settled();
        let (precision, members) = (options.precision.unwrap_or(self.precision), options.stack_members);
        let options = lower::Options { precision, layout: self.layout, members, ..lower::Options::default() };
        CudaRunner::new(Arc::clone(&self.gpu), Arc::new(model.graph), options, settled)
    }
}
