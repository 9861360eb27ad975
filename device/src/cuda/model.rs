//! A model's file as this device sees it: its graph, and what it takes and gives.

use super::CudaError;
use super::lower::{self, Given, Program};
use crate::engine::{Declared, LoadError, declared_signature};
use crate::sample::{self, Hints};
use crate::{CompileOptions, Dim, Signature};
use rota_graph::graph::{DeclaredDim, Value};
use rota_graph::{Bytes, Graph, Limits};
use std::path::Path;

/// A model that was read.
pub struct Model {
    pub graph: Graph,
    pub signature: Signature,
}

impl Model {
    pub fn read(file: &Path, options: &CompileOptions) -> Result<Model, LoadError> {
        let error = |text: String| LoadError::Model { file: file.to_owned(), text };
        let bytes = std::fs::read(file).map_err(|error| LoadError::Io { file: file.to_owned(), error })?;
        let graph = Graph::read(Bytes::from(bytes), &Limits::default()).map_err(|e| error(e.to_string()))?;
        if let Some(node) = lower::unsupported(&graph) {
            return Err(error(lower::LowerError::Unsupported(node).to_string()));
        }
        let declared = |role: &'static str, ids: &[rota_graph::ValueId]| {
            ids.iter().map(|&id| declared(file, role, graph.value(id))).collect::<Result<Vec<_>, _>>()
        };
        let (inputs, outputs) = (declared("input", &graph.inputs)?, declared("output", &graph.outputs)?);
        let signature = declared_signature(file, inputs, outputs, options)?;
        Ok(Model { graph, signature })
    }

    /// By input: whether it has neither a batch nor a size of its own to vary.
    pub fn settled(&self) -> Vec<bool> {
        let settled = |input: &crate::TensorSpec| {
            input.batch_axis.is_none() && input.dims.iter().all(|dim| matches!(dim, Dim::Fixed(_)))
        };
        self.signature.inputs.iter().map(settled).collect()
    }

    /// The launches for `items` items of the sizes that `hints` name, 1 where they name none. No GPU is asked.
    ///
    /// With `options.fuse` off: a launch for each node, to compare with.
    pub fn program(&self, items: u32, hints: &Hints, options: lower::Options) -> Result<Program, CudaError> {
        let mut numbers = sample::Numbers(1);
        let given = |content: bool, numbers: &mut sample::Numbers| -> Option<Vec<Given>> {
            let each = self.signature.inputs.iter().zip(self.settled()).map(|(spec, settled)| {
                let shape = sample::shape(spec, items, hints, 1)?;
                let dims = shape.dims().iter().map(|&dim| u64::from(dim)).collect();
                if !(content && settled) {
                    return Some(Given::Dims(dims));
                }
                let tensor = sample::tensor(spec, shape, hints, numbers)?;
                Some(Given::Content { dims, bytes: tensor.bytes.to_vec().into() })
            });
            each.collect()
        };
        let plain = given(false, &mut numbers).ok_or(CudaError::Output)?;
        lower::lower(&self.graph, &plain, options).or_else(|error| {
            let content = given(true, &mut numbers).ok_or(CudaError::Output)?;
            if content == plain { Err(error.into()) } else { Ok(lower::lower(&self.graph, &content, options)?) }
        })
    }
}

fn declared(file: &Path, role: &'static str, value: &Value) -> Result<Declared, LoadError> {
    let refuse = |dtype: &str| LoadError::DType {
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
            return Err(LoadError::Model { file: file.to_owned(), text });
        }
    };
    Ok(Declared { name: value.name.clone(), dtype, dims })
}
