//! What is to be right before a byte is copied: the batch, each of its requests, and what a runner gave.

use super::{Batched, Runner};
use crate::strided::Strided;
use crate::{Batch, DType, HostTensor, RunError, Shape, Signature, Span, TensorSpec};

impl<R: Runner> Batched<R> {
    /// What is wrong with the batch itself, if anything: a mistake of its maker.
    pub(crate) fn check_batch(&self, batch: &Batch) -> Result<(), String> {
        let (inputs, spans) = (self.signature.inputs.len(), batch.requests.len() * self.stride());
        if batch.spans.len() != spans {
            return Err(format!("the batch has {} spans, its requests need {spans}", batch.spans.len()));
        }
        if batch.class.inputs.len() != inputs || batch.class.constants.len() != inputs {
            return Err(format!("the shape class has {} inputs, the network {inputs}", batch.class.inputs.len()));
        }
        Ok(())
    }

    /// What is wrong with one request, if anything. After this its spans may be copied from and to.
    pub(crate) fn check(&self, batch: &Batch, request: usize) -> Result<(), String> {
        let entry = &batch.requests[request];
        if entry.items == 0 || (entry.items > 1 && !self.signature.batches()) {
            return Err(format!("{} items in a request; this network takes {}", entry.items, self.items_text()));
        }
        let spans = &batch.spans[request * self.stride()..][..self.stride()];
        let (inputs, outputs) = spans.split_at(self.signature.inputs.len());
        let inside = |span: &Span| span.offset.checked_add(span.bytes).is_some_and(|end| end <= entry.arena.len());
        for (index, (spec, span)) in self.signature.inputs.iter().zip(inputs).enumerate() {
            if spec.batch_axis.is_none() && batch.class.constants[index].is_some() {
                continue;
            }
            let items = if spec.batch_axis.is_some() { entry.items as usize } else { 1 };
            let needed = input_layout(batch, spec, index)?.bytes(items);
            if needed != Some(span.bytes) {
                let needed = needed.map_or("more than memory holds".into(), |n| n.to_string());
                return Err(format!("input '{}' has {} bytes, its shape needs {needed}", spec.name, span.bytes));
            }
            if !inside(span) {
                return Err(format!("input '{}' lies outside its arena", spec.name));
            }
        }
        for (spec, span) in self.signature.outputs.iter().zip(outputs) {
            if span.offset != Span::UNWANTED && !inside(span) {
                return Err(format!("output '{}' lies outside its arena", spec.name));
            }
        }
        Ok(())
    }

    fn items_text(&self) -> &'static str {
        if self.signature.batches() { "at least 1" } else { "1: its batch is fixed" }
    }
}

pub(crate) fn input_layout(batch: &Batch, spec: &TensorSpec, index: usize) -> Result<Strided, String> {
    Strided::new(batch.class.inputs[index].dims(), spec.batch_axis, spec.dtype)
        .ok_or_else(|| format!("input '{}' can't have shape {}", spec.name, batch.class.inputs[index]))
}

/// What is wrong with an output of `total` items that came as this, if anything.
pub(crate) fn check_output(spec: &TensorSpec, dtype: DType, shape: Shape, total: usize) -> Result<(), String> {
    if dtype != spec.dtype {
        return Err(format!("output '{}' came as {dtype}, the network declares {}", spec.name, spec.dtype));
    }
    if let Some(axis) = spec.batch_axis {
        let length = shape.dims().get(axis).map(|&d| d as usize);
        if length != Some(total) {
            return Err(format!(
                "output '{}' came with shape {shape}; its batch axis {axis} should have {total} items",
                spec.name
            ));
        }
    }
    Ok(())
}

/// What is wrong with tensors of the caller, if anything.
pub(super) fn check_inputs(signature: &Signature, inputs: &[HostTensor]) -> Result<(), RunError> {
    if inputs.len() != signature.inputs.len() {
        return Err(RunError::Inputs(format!("{} inputs, the network takes {}", inputs.len(), signature.inputs.len())));
    }
    for (spec, input) in signature.inputs.iter().zip(inputs) {
        if input.dtype != spec.dtype {
            return Err(RunError::Inputs(format!("input '{}' is {}, not {}", spec.name, spec.dtype, input.dtype)));
        }
        if !spec.takes(&input.shape) {
            return Err(RunError::Inputs(format!("input '{}' can't have shape {}", spec.name, input.shape)));
        }
        if input.shape.elements().and_then(|n| n.checked_mul(input.dtype.bytes())) != Some(input.bytes.len()) {
            let bytes = input.bytes.len();
            return Err(RunError::Inputs(format!("input '{}' of shape {} has {bytes} bytes", spec.name, input.shape)));
        }
    }
    Ok(())
}
