//! Inputs out of nothing, for checks and measurements, and batches of them in arenas of our own.

use crate::strided::Strided;
use crate::{
    Batch, BatchId, DType, Dim, HostTensor, NetworkId, Outcome, Request, Shape, ShapeClass, Signature, Span, TensorSpec,
};
use memmap2::{MmapMut, MmapRaw};
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// What is known about inputs that a model's file does not say.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Hints {
    /// Sizes of dynamic dimensions: by place, as "tensor.axis" ("image.2"), or by the model's name for them.
    pub sizes: BTreeMap<String, u32>,
    /// By input: the least and the largest value (for integers both occur). Otherwise floats lie in 0..1 and integers are 0
    /// or 1; an input whose name has "mask" in it holds ones.
    pub ranges: BTreeMap<String, (f64, f64)>,
}

/// A source of numbers that is the same on every host (splitmix64).
pub struct Numbers(pub u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In 0..1.
    fn uniform(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

impl Hints {
    /// The size of a dynamic dimension: what is said of its place comes before what is said of its name.
    pub fn size(&self, spec: &TensorSpec, axis: usize) -> Option<u32> {
        let by_place = || self.sizes.get(&place(spec, axis));
        by_place().or_else(|| self.sizes.get(&size_name(spec, axis)?)).copied()
    }
}

/// The name by which [`Hints::sizes`] best knows a dynamic dimension: the model's, or its place when that says nothing.
pub fn size_name(spec: &TensorSpec, axis: usize) -> Option<String> {
    match spec.dims.get(axis)? {
        Dim::Fixed(_) => None,
        Dim::Dynamic(name) if name.is_empty() || name == "?" => Some(place(spec, axis)),
        Dim::Dynamic(name) => Some(name.clone()),
    }
}

fn place(spec: &TensorSpec, axis: usize) -> String {
    format!("{}.{axis}", spec.name)
}

/// The shape of an input with `items` along its batch axis; a dynamic dimension without a hint gets `otherwise`. `None` when
/// it has too many dimensions.
pub fn shape(spec: &TensorSpec, items: u32, hints: &Hints, otherwise: u32) -> Option<Shape> {
    let dims = spec.dims.iter().enumerate().map(|(axis, dim)| match dim {
        _ if spec.batch_axis == Some(axis) => items,
        Dim::Fixed(size) => *size,
        Dim::Dynamic(_) => hints.size(spec, axis).unwrap_or(otherwise),
    });
    Shape::new(&dims.collect::<Vec<u32>>())
}

/// A tensor of generated values; `None` when it is too large to exist.
pub fn tensor(spec: &TensorSpec, shape: Shape, hints: &Hints, numbers: &mut Numbers) -> Option<HostTensor> {
    let mut tensor = HostTensor::zeroed(spec.dtype, shape)?;
    let mask = spec.name.to_ascii_lowercase().contains("mask");
    let (low, high) = match hints.ranges.get(&spec.name) {
        Some(&range) => range,
        None if mask => (1.0, 1.0),
        None => (0.0, 1.0),
    };
    let mut next = || {
        let span = high - low;
        if spec.dtype.is_float() {
            low + span * numbers.uniform()
        } else {
            low + ((span + 1.0) * numbers.uniform()).floor()
        }
    };
    let bytes = &mut tensor.bytes;
    match spec.dtype {
        DType::Bool => bytes.iter_mut().for_each(|to| *to = u8::from(next() != 0.0)),
        DType::U8 => bytes.iter_mut().for_each(|to| *to = next() as u8),
        DType::I8 => bytes.elements_mut::<i8>().iter_mut().for_each(|to| *to = next() as i8),
        DType::U16 => bytes.elements_mut::<u16>().iter_mut().for_each(|to| *to = next() as u16),
        DType::I16 => bytes.elements_mut::<i16>().iter_mut().for_each(|to| *to = next() as i16),
        DType::U32 => bytes.elements_mut::<u32>().iter_mut().for_each(|to| *to = next() as u32),
        DType::I32 => bytes.elements_mut::<i32>().iter_mut().for_each(|to| *to = next() as i32),
        DType::U64 => bytes.elements_mut::<u64>().iter_mut().for_each(|to| *to = next() as u64),
        DType::I64 => bytes.elements_mut::<i64>().iter_mut().for_each(|to| *to = next() as i64),
        DType::F32 => bytes.elements_mut::<f32>().iter_mut().for_each(|to| *to = next() as f32),
        DType::F64 => bytes.elements_mut::<f64>().iter_mut().for_each(|to| *to = next()),
        DType::F16 => {
            bytes.elements_mut::<u16>().iter_mut().for_each(|to| *to = half::f16::from_f64(next()).to_bits());
        }
        DType::Bf16 => {
            bytes.elements_mut::<u16>().iter_mut().for_each(|to| *to = half::bf16::from_f64(next()).to_bits());
        }
    }
    Some(tensor)
}

/// A batch of `requests` (each the inputs of one, in the signature's order), laid out in one arena per request as a client
/// would lay them out, with room for outputs of `output_bytes`, in the order of the signature.
///
/// The inputs without a batch axis are the class's constants when the network batches; they are taken from the first request.
///
/// # Panics
/// When there is no request, or one has other inputs than the signature: a mistake of the caller.
pub fn lay_out(
    network: NetworkId,
    signature: &Signature,
    requests: &[Vec<HostTensor>],
    output_bytes: &[usize],
) -> io::Result<Box<Batch>> {
    let output_bytes: Vec<Option<usize>> = output_bytes.iter().copied().map(Some).collect();
    lay_out_some(network, signature, requests, &output_bytes)
}

/// As [`lay_out`], of requests that want only the outputs that they have room for.
pub fn lay_out_some(
    network: NetworkId,
    signature: &Signature,
    requests: &[Vec<HostTensor>],
    output_bytes: &[Option<usize>],
) -> io::Result<Box<Batch>> {
    assert!(requests.iter().all(|inputs| inputs.len() == signature.inputs.len()), "inputs other than the signature's");
    assert_eq!(output_bytes.len(), signature.outputs.len(), "outputs other than the signature's");
    let class = class(signature, requests.first().expect("a batch has requests"));
    let mut batch = Batch {
        id: BatchId(0),
        network,
        class: Arc::new(class),
        requests: Vec::with_capacity(requests.len()),
        spans: Vec::with_capacity(requests.len() * (signature.inputs.len() + signature.outputs.len())),
        written: Vec::new(),
        started: None,
        took: Duration::ZERO,
    };
    for (key, inputs) in requests.iter().enumerate() {
        let mut end = 0;
        let mut place = |bytes: usize| {
            let offset = end;
            end += bytes.next_multiple_of(ALIGN);
            Span { offset, bytes }
        };
        let first = batch.spans.len();
        batch.spans.extend(inputs.iter().map(|input| place(input.bytes.len())));
        let unwanted = Span { offset: Span::UNWANTED, bytes: 0 };
        batch.spans.extend(output_bytes.iter().map(|bytes| bytes.map_or(unwanted, &mut place)));
        let mut arena = MmapMut::map_anon(end.max(ALIGN))?;
        for (input, span) in inputs.iter().zip(&batch.spans[first..]) {
            arena[span.offset..span.offset + span.bytes].copy_from_slice(&input.bytes);
        }
        let batched =
            signature.inputs.iter().zip(inputs).find_map(|(spec, input)| Some(input.shape.dims()[spec.batch_axis?]));
        batch.requests.push(Request {
            key: key as u32,
            items: batched.unwrap_or(1),
            arena: Arc::new(MmapRaw::from(arena)),
            outcome: Outcome::Pending,
        });
    }
    Ok(Box::new(batch))
}

/// The outputs that a request of an executed batch got, copied out of its arena; `None` for one that it did not get.
pub fn outputs(batch: &Batch, signature: &Signature, request: usize) -> Vec<Option<HostTensor>> {
    let (inputs, outputs) = (signature.inputs.len(), signature.outputs.len());
    let arena = &batch.requests[request].arena;
    let read = |(index, spec): (usize, &TensorSpec)| {
        let span = batch.spans[request * (inputs + outputs) + inputs + index];
        // One that it did not ask for was not written either.
        let written = batch.written.get(request * outputs + index)?;
        let mut tensor = HostTensor::zeroed(spec.dtype, written.shape)?;
        if written.bytes == 0 || tensor.bytes.len() != written.bytes || written.bytes > span.bytes {
            return None;
        }
        span.offset.checked_add(written.bytes).filter(|&end| end <= arena.len())?;
        let strided = Strided::new(written.shape.dims(), None, spec.dtype)?;
        // SAFETY: the span lies inside the arena, which the batch keeps mapped, and the tensor is memory of ours.
        unsafe { strided.gather(arena.as_ptr().add(span.offset), &mut tensor.bytes, 0, 1, 1) };
        Some(tensor)
    };
    signature.outputs.iter().enumerate().map(read).collect()
}

/// Items `items` along `axis`; the whole tensor when it has none. `None` when it is not that long.
pub fn items(tensor: &HostTensor, axis: Option<usize>, items: std::ops::Range<u32>) -> Option<HostTensor> {
    let Some(axis) = axis else { return Some(tensor.clone()) };
    let all = *tensor.shape.dims().get(axis)?;
    let count = items.end.checked_sub(items.start).filter(|_| items.end <= all)?;
    let layout = Strided::new(tensor.shape.dims(), Some(axis), tensor.dtype)?;
    let mut shape = tensor.shape;
    shape.dims_mut()[axis] = count;
    let mut part = HostTensor::zeroed(tensor.dtype, shape)?;
    let (first, count) = (items.start as usize, count as usize);
    layout.copy(&tensor.bytes, (first, all as usize), &mut part.bytes, (0, count), count);
    Some(part)
}

/// The class of requests at the sizes of `hints`, with generated content where an input has no batch axis; `None` when they are too large.
pub fn class_of(signature: &Signature, hints: &Hints) -> Option<ShapeClass> {
    let mut numbers = Numbers(0);
    let input = |spec: &TensorSpec| tensor(spec, shape(spec, 1, hints, 1)?, hints, &mut numbers);
    let inputs = signature.inputs.iter().map(input).collect::<Option<Vec<_>>>()?;
    Some(class(signature, &inputs))
}

fn class(signature: &Signature, inputs: &[HostTensor]) -> ShapeClass {
    let shape = |(spec, input): (&TensorSpec, &HostTensor)| {
        let mut shape = input.shape;
        if let Some(axis) = spec.batch_axis {
            shape.dims_mut()[axis] = 0;
        }
        shape
    };
    let constant = |(spec, input): (&TensorSpec, &HostTensor)| {
        (signature.batches() && spec.batch_axis.is_none()).then(|| Box::from(&*input.bytes))
    };
    let pairs = || signature.inputs.iter().zip(inputs);
    ShapeClass { inputs: pairs().map(shape).collect(), constants: pairs().map(constant).collect() }
}

/// Where tensors begin in an arena.
const ALIGN: usize = 64;
