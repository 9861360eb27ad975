//! Whether a request fits its model: every input there, right dtype and dimensions; and which shape class it is of.

use super::classes::CONSTANT_BYTES_MAX;
use crate::model::{Model, wire_dtype};
use rota_device::{Dim, Shape, Span, TensorSpec};
use rota_ipc::server::{RequestBlock, Tensor};
use rota_ipc::wire::Reason;
use std::borrow::Cow;

/// Why a request is refused; its client is told in these words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub reason: Reason,
    pub text: Cow<'static, str>,
}

fn refuse<T>(reason: Reason, text: String) -> Result<T, Refusal> {
    Err(Refusal { reason, text: text.into() })
}

/// Checks what a block asks of the model of its session `place`, whose spans were checked. Appends to `spans` the outputs'; the first
/// time, when there are none yet, also notes the inputs', and their shapes.
pub fn fit(
    model: &Model,
    block: &RequestBlock,
    place: u8,
    spans: &mut Vec<Span>,
    shapes: &mut Vec<Shape>,
) -> Result<(), Refusal> {
    let signature = &model.signature;
    let unwanted = Span { offset: Span::UNWANTED, bytes: 0 };
    let (first, start) = (shapes.is_empty(), spans.len());
    spans.resize(start + signature.inputs.len(), unwanted);
    if first {
        shapes.resize(signature.inputs.len(), Shape::default());
    }
    for tensor in block.inputs() {
        let index = note(tensor, &signature.inputs, "input", &mut spans[start..])?;
        let spec = &signature.inputs[index];
        let shape = input_shape(tensor, spec, block.header.items)?;
        if first {
            shapes[index] = shape;
        }
        if model.shares(spec) && tensor.bytes > CONSTANT_BYTES_MAX {
            let text = format!(
                "input \"{}\" has no batch axis and brings {} bytes; the most for such an input is {CONSTANT_BYTES_MAX}",
                spec.name, tensor.bytes
            );
            return refuse(Reason::WrongShape, text);
        }
    }
    if let Some(missing) = signature.inputs.iter().zip(&spans[start..]).find(|(_, s)| s.offset == Span::UNWANTED) {
        return refuse(Reason::WrongTensor, format!("input \"{}\" is missing", missing.0.name));
    }
    let outputs = if first { spans.len() } else { start };
    spans.truncate(outputs);
    spans.resize(outputs + signature.outputs.len(), unwanted);
    for tensor in block.outputs().iter().filter(|tensor| tensor.session == place) {
        let index = note(tensor, &signature.outputs, "output", &mut spans[outputs..])?;
        let spec = &signature.outputs[index];
        check_dtype(tensor, spec, "output")?;
        check_room(tensor, spec, block.header.items)?;
    }
    if !signature.batches() && block.header.items != 1 {
        let text = format!("model \"{}\" does not batch: send 1 item, not {}", model.name, block.header.items);
        return refuse(Reason::TooManyItems, text);
    }
    if block.header.items > model.max_batch {
        let text = format!(
            "{} items are more than the {} that one batch of model \"{}\" can hold; split the request",
            block.header.items, model.max_batch, model.name
        );
        return refuse(Reason::TooManyItems, text);
    }
    Ok(())
}

/// Notes the tensor's span under its index among the model's tensors.
fn note(tensor: &Tensor, specs: &[TensorSpec], what: &str, spans: &mut [Span]) -> Result<usize, Refusal> {
    let index = usize::from(tensor.tensor);
    if index >= specs.len() {
        return refuse(Reason::WrongTensor, format!("{what} {index} does not exist; the model has {}", specs.len()));
    }
    if spans[index].offset != Span::UNWANTED {
        return refuse(Reason::WrongTensor, format!("{what} \"{}\" is given twice", specs[index].name));
    }
    spans[index] = Span { offset: tensor.offset, bytes: tensor.bytes };
    Ok(index)
}

fn check_dtype(tensor: &Tensor, spec: &TensorSpec, what: &str) -> Result<(), Refusal> {
    let expected = wire_dtype(spec.dtype);
    if tensor.dtype == expected {
        return Ok(());
    }
    refuse(Reason::WrongDtype, format!("{what} \"{}\" is {expected:?}, not {:?}", spec.name, tensor.dtype))
}

/// The input's shape with its batch axis set to 0, once it fits what the model declares.
fn input_shape(tensor: &Tensor, spec: &TensorSpec, items: u32) -> Result<Shape, Refusal> {
    check_dtype(tensor, spec, "input")?;
    let dims = tensor.dims();
    let fits = dims.len() == spec.dims.len()
        && dims.iter().zip(&spec.dims).enumerate().all(|(axis, (&dim, declared))| match declared {
            _ if spec.batch_axis == Some(axis) => dim == items,
            Dim::Fixed(n) => dim == *n,
            Dim::Dynamic(_) => dim > 0,
        });
    if !fits {
        let text = format!(
            "input \"{}\" has dimensions {dims:?} with {items} item(s); the model takes {}",
            spec.name,
            declared_dims(spec)
        );
        return refuse(Reason::WrongShape, text);
    }
    // The rank was bounded when the block was read.
    let mut shape = Shape::new(dims).unwrap_or_default();
    if let Some(axis) = spec.batch_axis {
        shape.dims_mut()[axis] = 0;
    }
    Ok(shape)
}

/// Refuses room that is known to be too small; a size that depends on the content is checked when it is written.
fn check_room(tensor: &Tensor, spec: &TensorSpec, items: u32) -> Result<(), Refusal> {
    let mut needed = spec.dtype.bytes();
    for (axis, dim) in spec.dims.iter().enumerate() {
        needed = match dim {
            _ if spec.batch_axis == Some(axis) => needed.saturating_mul(items as usize),
            Dim::Fixed(n) => needed.saturating_mul(*n as usize),
            Dim::Dynamic(_) => return Ok(()),
        };
    }
    if tensor.bytes >= needed {
        return Ok(());
    }
    let text = format!("output \"{}\" needs {needed} bytes and has room for {}", spec.name, tensor.bytes);
    refuse(Reason::OutputTooSmall, text)
}

/// "[batch, 3, 224, 224]"
fn declared_dims(spec: &TensorSpec) -> String {
    let dims = spec.dims.iter().enumerate().map(|(axis, dim)| match dim {
        _ if spec.batch_axis == Some(axis) => "batch".to_string(),
        Dim::Fixed(n) => n.to_string(),
        Dim::Dynamic(name) if name.is_empty() => "any".to_string(),
        Dim::Dynamic(name) => name.clone(),
    });
    format!("[{}]", dims.collect::<Vec<_>>().join(", "))
}
