//! Loads models for one GPU.

use super::gpu::Gpu;
use super::runner::CudaRunner;
use super::workbench::Workbench;
use super::{CudaError, Precision, driver};
use crate::engine::{Declared, declared_signature};
use crate::{CompileOptions, Dim, Engine, EngineKind, Signature, engine};
use rota_graph::graph::{DeclaredDim, Value};
use rota_graph::{Bytes, Graph, Limits};
use std::path::Path;
use std::sync::Arc;

/// Our kernels on one GPU.
pub struct CudaEngine {
    gpu: Arc<Gpu>,
    precision: Precision,
}

impl CudaEngine {
    /// GPUs of this host, by name.
    pub fn gpus() -> Result<Vec<driver::GpuInfo>, CudaError> {
        let driver = driver::open()?;
        (0..driver.count()?).map(|ordinal| Ok(driver.info(ordinal)?)).collect()
    }

    /// Opens GPU `ordinal`.
    pub fn open(ordinal: u32, precision: Precision) -> Result<CudaEngine, CudaError> {
        Ok(CudaEngine { gpu: Gpu::open(driver::open()?, ordinal)?, precision })
    }

    /// The GPU, for trying launches on it.
    pub fn workbench(&self) -> Result<Workbench, CudaError> {
        Workbench::new(self.gpu.session()?)
    }

    /// What the GPU says of itself.
    pub fn info(&self) -> &driver::GpuInfo {
        &self.gpu.info
    }
}

impl Engine for CudaEngine {
    fn describe(&self) -> String {
        let precision = match self.precision {
            Precision::Fp32 => "fp32",
            Precision::Tf32 => "tf32",
            Precision::Fp16 => "fp16",
        };
        format!("{}, {precision}", self.gpu.info.name)
    }

    fn kind(&self) -> EngineKind {
        EngineKind::Cuda
    }

    fn load(&self, file: &Path, options: &CompileOptions) -> Result<engine::Loaded, engine::LoadError> {
        let (signature, memory_bytes, runner) = self.runner(file, options)?;
        Ok(engine::Loaded { signature, memory_bytes, runner: Box::new(runner) })
    }
}

impl CudaEngine {
    /// The model's signature, the bytes of its weights, and what runs it.
    pub(super) fn runner(
        &self,
        file: &Path,
        options: &CompileOptions,
    ) -> Result<(Signature, u64, CudaRunner), engine::LoadError> {
        let error = |text: String| engine::LoadError::Model { file: file.to_owned(), text };
        let bytes = std::fs::read(file).map_err(|error| engine::LoadError::Io { file: file.to_owned(), error })?;
        let graph = Graph::read(Bytes::from(bytes), &Limits::default()).map_err(|e| error(e.to_string()))?;
        let declared = |role: &'static str, ids: &[rota_graph::ValueId]| {
            ids.iter().map(|&id| declared(file, role, graph.value(id))).collect::<Result<Vec<_>, _>>()
        };
        let (inputs, outputs) = (declared("input", &graph.inputs)?, declared("output", &graph.outputs)?);
        let signature = declared_signature(file, inputs, outputs, options)?;
        let settled = signature
            .inputs
            .iter()
            .map(|input| input.batch_axis.is_none() && input.dims.iter().all(|dim| matches!(dim, Dim::Fixed(_))));
        let memory_bytes = graph.weight_bytes();
        let runner = CudaRunner::new(Arc::clone(&self.gpu), Arc::new(graph), self.precision, settled.collect());
        Ok((signature, memory_bytes, runner))
    }
}

fn declared(file: &Path, role: &'static str, value: &Value) -> Result<Declared, engine::LoadError> {
    let refuse = |dtype: &str| engine::LoadError::DType {
        file: file.to_owned(),
        role,
        tensor: value.name.clone(),
        dtype: dtype.to_owned(),
        engine: "the cuda device",
        takes: "bool, integers and floats",
    };
    let declared = value.declared.as_ref().ok_or_else(|| refuse("of no declared type"))?;
    let dtype = super::dtype(declared.dtype).ok_or_else(|| refuse(declared.dtype.name()))?;
    let dim = |dim: &DeclaredDim| match dim {
        DeclaredDim::Size(size) => u32::try_from(*size).map_or(Dim::Dynamic(String::new()), Dim::Fixed),
        DeclaredDim::Symbol(name) => Dim::Dynamic(name.clone()),
        DeclaredDim::Unsaid => Dim::Dynamic(String::new()),
    };
    let dims = match &declared.dims {
        Some(dims) => dims.iter().map(dim).collect(),
        // What comes out is what the run gives; what goes in has to be known.
        None if role == "output" => Vec::new(),
        None => {
            let text = format!("input '{}' is declared without a shape", value.name);
            return Err(engine::LoadError::Model { file: file.to_owned(), text });
        }
    };
    Ok(Declared { name: value.name.clone(), dtype, dims })
}
