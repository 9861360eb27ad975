//! rten: an engine in Rust, built in. Slower than ONNX Runtime, and always there.
//!
//! It computes in f32, i32, i8 and u8. Tensors that a model declares as i64 or bool it takes and gives as i32, so they are
//! converted here at the border: what clients see is what the model declares, whichever engine serves it. Tensors of its own
//! types are passed without a copy.

use super::signature::{Declared, signature};
use super::{CompileOptions, Engine, EngineKind, LoadError, Loaded, stored_bytes, wire_check};
use crate::batched::Runner;
use crate::view::{Inputs, View};
use crate::{Bytes, DType, Dim, Shape};
use rten::{Model, NodeId, RunOptions, ThreadPool, Value, ValueOrView, ValueView};
use rten_onnx::onnx;
use rten_tensor::{AsView, Layout, Tensor, TensorView};
use std::path::Path;
use std::sync::Arc;

pub(super) struct Rten;

/// What tensors may hold, for messages.
const TAKES: &str = "bool, u8, i8, i32, i64 and f32";

impl Engine for Rten {
    fn describe(&self) -> String {
        "rten 0.27".to_owned()
    }

    fn kind(&self) -> EngineKind {
        EngineKind::Rten
    }

    fn load(&self, file: &Path, options: &CompileOptions) -> Result<Loaded, LoadError> {
        let memory_bytes = stored_bytes(file)?;
        let error = |text| LoadError::Model { file: file.to_owned(), text };
        let bytes = std::fs::read(file).map_err(|error| LoadError::Io { file: file.to_owned(), error })?;
        wire_check::check(&bytes).map_err(error)?;
        let (inputs, outputs) = declarations(file, &bytes)?;
        drop(bytes);
        let model = Model::load_file(file).map_err(|e| error(e.to_string()))?;
        let nodes = |tensors: &[Declared]| -> Result<Vec<NodeId>, LoadError> {
            tensors.iter().map(|tensor| model.node_id(&tensor.name).map_err(|e| error(e.to_string()))).collect()
        };
        let (input_nodes, output_nodes) = (nodes(&inputs)?, nodes(&outputs)?);
        let converted = inputs.iter().map(|_| Vec::new()).collect();
        let widened = outputs.iter().map(|output| Widened { dtype: output.dtype, bytes: Bytes::default() }).collect();
        let pool = pool(options).map_err(|e| LoadError::Io { file: file.to_owned(), error: e })?;
        let options_of_run = RunOptions::default().with_thread_pool(Some(Arc::new(pool)));
        let signature = signature(file, inputs, outputs, options)?;
        let runner = ModelRunner {
            model,
            input_nodes,
            output_nodes,
            options: options_of_run,
            converted,
            outputs: Vec::new(),
            widened,
        };
        Ok(Loaded { signature, memory_bytes, runner: Box::new(runner) })
    }
}

/// A pool whose threads run on the given cores: threads inherit the affinity of the thread that starts them, and rten starts
/// them itself, so a thread made for that purpose starts the pool.
fn pool(options: &CompileOptions) -> std::io::Result<ThreadPool> {
    let (threads, cores) = (options.threads.max(1), options.cores.clone());
    let made = std::thread::Builder::new().name("rota-rten-pool".into()).spawn(move || {
        if !cores.is_empty() {
            crate::cpu::pin(&cores)?;
        }
        Ok(ThreadPool::with_num_threads(threads))
    })?;
    made.join().unwrap_or_else(|_| Err(std::io::Error::other("starting rten's threads panicked")))
}

/// The model's inputs and outputs as its file declares them: rten itself only remembers the types that it computes in.
fn declarations(file: &Path, bytes: &[u8]) -> Result<(Vec<Declared>, Vec<Declared>), LoadError> {
    let error = |text: String| LoadError::Model { file: file.to_owned(), text };
    let model = onnx::ModelProto::parse_buf(bytes).map_err(|e| error(e.to_string()))?;
    let graph = model.graph.ok_or_else(|| error("the file holds no graph".into()))?;
    // Old models list their weights among their inputs.
    let is_weight = |name: &str| graph.initializer.iter().any(|tensor| tensor.name.as_deref() == Some(name));
    let inputs = graph.input.iter().filter(|input| !is_weight(input.name.as_deref().unwrap_or_default()));
    let inputs: Result<Vec<_>, _> = inputs.map(|input| declared(file, "input", input)).collect();
    let outputs: Result<Vec<_>, _> = graph.output.iter().map(|output| declared(file, "output", output)).collect();
    Ok((inputs?, outputs?))
}

fn declared(file: &Path, role: &'static str, value: &onnx::ValueInfoProto) -> Result<Declared, LoadError> {
    let name = value.name.clone().unwrap_or_default();
    let refuse = |dtype: String| LoadError::DType {
        file: file.to_owned(),
        role,
        tensor: name.clone(),
        dtype,
        engine: "rten",
        takes: TAKES,
    };
    let tensor =
        value.r#type.as_ref().and_then(|t| t.tensor_type.as_ref()).ok_or_else(|| refuse("not a tensor".into()))?;
    let element = tensor.elem_type.unwrap_or(onnx::DataType(0));
    let dtype = match element {
        onnx::DataType::FLOAT => DType::F32,
        onnx::DataType::UINT8 => DType::U8,
        onnx::DataType::INT8 => DType::I8,
        onnx::DataType::INT32 => DType::I32,
        onnx::DataType::INT64 => DType::I64,
        onnx::DataType::BOOL => DType::Bool,
        _ => return Err(refuse(element.to_string())),
    };
    let dim = |dim: &onnx::Dimension| match dim.dim_value.and_then(|size| u32::try_from(size).ok()) {
        Some(size) => Dim::Fixed(size),
        None => Dim::Dynamic(dim.dim_param.clone().unwrap_or_default()),
    };
    let dims = match &tensor.shape {
        Some(shape) => shape.dim.iter().map(dim).collect(),
        // What comes out is what the run gives; what goes in has to be known.
        None if role == "output" => Vec::new(),
        None => {
            let text = format!("input '{name}' is declared without a shape");
            return Err(LoadError::Model { file: file.to_owned(), text });
        }
    };
    Ok(Declared { name: name.clone(), dtype, dims })
}

struct ModelRunner {
    model: Model,
    input_nodes: Vec<NodeId>,
    output_nodes: Vec<NodeId>,
    options: RunOptions,
    /// Per input: its elements as i32, where the model declares i64 or bool.
    converted: Vec<Vec<i32>>,
    outputs: Vec<Value>,
    widened: Vec<Widened>,
}

/// An output in the type that the model declares; `bytes` are only used where that is not what rten gave.
struct Widened {
    dtype: DType,
    bytes: Bytes,
}

impl Runner for ModelRunner {
    fn run(&mut self, inputs: &dyn Inputs) -> Result<(), String> {
        self.release();
        for (index, converted) in self.converted.iter_mut().enumerate().take(inputs.count()) {
            convert(inputs.get(index), converted)?;
        }
        let views: Vec<(NodeId, ValueOrView)> = (0..inputs.count())
            .zip(&self.converted)
            .zip(&self.input_nodes)
            .map(|((index, converted), &node)| Ok((node, ValueOrView::from(view(inputs.get(index), converted)?))))
            .collect::<Result<_, String>>()?;
        self.outputs =
            self.model.run(views, &self.output_nodes, Some(self.options.clone())).map_err(|error| error.to_string())?;
        for (value, widened) in self.outputs.iter_mut().zip(&mut self.widened) {
            settle(value, widened)?;
        }
        Ok(())
    }

    fn output(&self, index: usize) -> Result<View<'_>, String> {
        let value = self.outputs.get(index).ok_or("the engine left out an output")?;
        let widened = &self.widened[index];
        let mut dims = [0u32; Shape::RANK_MAX];
        let rank = value.ndim();
        let too_large = || format!("an output has shape {:?}, which is not carried", value.shape());
        for (to, &from) in
            dims.get_mut(..rank).ok_or_else(too_large)?.iter_mut().zip(value.shape().as_ref() as &[usize])
        {
            *to = u32::try_from(from).map_err(|_| too_large())?;
        }
        let shape = Shape::new(&dims[..rank]).ok_or_else(too_large)?;
        let own = match value {
            Value::FloatTensor(tensor) => (DType::F32, dense(tensor)?),
            Value::Int32Tensor(_) if matches!(widened.dtype, DType::I64 | DType::Bool) => {
                (widened.dtype, &*widened.bytes)
            }
            Value::Int32Tensor(tensor) => (DType::I32, dense(tensor)?),
            Value::Int8Tensor(tensor) => (DType::I8, dense(tensor)?),
            Value::UInt8Tensor(tensor) => (DType::U8, dense(tensor)?),
            _ => return Err("an output is not a tensor".to_owned()),
        };
        Ok(View { dtype: own.0, shape, bytes: own.1 })
    }

    fn release(&mut self) {
        self.outputs.clear();
    }
}

/// The tensor's elements as i32, where rten computes in i32 what the model declares as i64 or bool.
fn convert(tensor: View<'_>, into: &mut Vec<i32>) -> Result<(), String> {
    into.clear();
    match tensor.dtype {
        DType::Bool => into.extend(tensor.bytes.iter().map(|&byte| i32::from(byte != 0))),
        DType::I64 => {
            for &value in tensor.elements::<i64>() {
                into.push(
                    i32::try_from(value)
                        .map_err(|_| format!("{value} is out of the range of i32, in which rten computes"))?,
                );
            }
        }
        _ => {}
    }
    Ok(())
}

fn view<'a>(tensor: View<'a>, converted: &'a [i32]) -> Result<ValueView<'a>, String> {
    let shape: Vec<usize> = tensor.shape.dims().iter().map(|&d| d as usize).collect();
    Ok(match tensor.dtype {
        DType::F32 => TensorView::from_data(&shape, tensor.elements::<f32>()).into(),
        DType::I32 => TensorView::from_data(&shape, tensor.elements::<i32>()).into(),
        DType::I8 => TensorView::from_data(&shape, tensor.elements::<i8>()).into(),
        DType::U8 => TensorView::from_data(&shape, tensor.elements::<u8>()).into(),
        DType::I64 | DType::Bool => TensorView::from_data(&shape, converted).into(),
        other => return Err(format!("rten does not take {other}")),
    })
}

/// Makes an output dense, and widens it to the type that the model declares.
fn settle(value: &mut Value, widened: &mut Widened) -> Result<(), String> {
    match value {
        Value::FloatTensor(tensor) => tensor.make_contiguous(),
        Value::Int8Tensor(tensor) => tensor.make_contiguous(),
        Value::UInt8Tensor(tensor) => tensor.make_contiguous(),
        Value::Int32Tensor(tensor) => {
            tensor.make_contiguous();
            let elements = tensor.data().ok_or("an output is not dense")?;
            match widened.dtype {
                DType::I64 => {
                    widened.bytes.resize(elements.len() * 8);
                    let wide = widened.bytes.elements_mut::<i64>();
                    wide.iter_mut().zip(elements).for_each(|(to, &from)| *to = i64::from(from));
                }
                DType::Bool => {
                    widened.bytes.resize(elements.len());
                    widened.bytes.iter_mut().zip(elements).for_each(|(to, &from)| *to = u8::from(from != 0));
                }
                _ => {}
            }
        }
        _ => {}
    }
    Ok(())
}

fn dense<T: crate::host::Element>(tensor: &Tensor<T>) -> Result<&[u8], String> {
    let elements = tensor.data().ok_or("an output is not dense")?;
    // SAFETY: the elements are numbers without padding, valid as bytes for as long as the borrow.
    Ok(unsafe { std::slice::from_raw_parts(elements.as_ptr().cast(), size_of_val(elements)) })
}
