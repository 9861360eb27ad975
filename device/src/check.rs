//! Whether a network's batches are what its file promises: found by running it.
//!
//! The rule that gives tensors their batch axes goes by names ([`crate::engine`]), and names prove nothing. So one item, two and
//! three are run with generated inputs. An output's batch axis is the one whose size is the number of items; an output whose
//! shape stays the same has none. Then a batch of two and one of three must give each item what it got alone: floating-point
//! numbers within 1e-3 of the output's range (kernels for other sizes round otherwise), integers and booleans exactly.
//!
//! Generated inputs are unlike real ones, and some networks blow rounding up on them. Where the limit is passed, the items are
//! therefore run with other company: one that comes out the same to the bit beside another neighbour does not depend on its
//! neighbours, and up to 2e-2 of the range is then put down to rounding, and said.
//!
//! A network that fails this is still served, one request at a time.

use crate::sample::{self, Hints, Numbers};
use crate::strided::Strided;
use crate::{DType, HostTensor, Network, RunError, Signature, TensorSpec};

/// What [`check_batching`] found.
#[derive(Clone, Debug, PartialEq)]
pub struct Checked {
    /// With the outputs' batch axes; without any when the network has to be served one by one. The network has it already.
    pub signature: Signature,
    /// Why requests can't share a batch, in words; `None` when they can.
    pub finding: Option<String>,
    /// What is worth knowing though they can, in words: an output that rounds unusually.
    pub remark: Option<String>,
    /// The given hints, and the sizes at which the network ran.
    pub hints: Hints,
}

/// The network could not be run at all, so that nothing is known of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CheckError {
    /// One item did not run at any size that was tried.
    #[error("the network does not run on generated inputs: {text}; give sizes for {unknown}")]
    NoSizes { unknown: String, text: RunError },
    /// One item did not run, and there was no size to choose.
    #[error("the check on load, a run on generated inputs, failed: {0}")]
    DoesNotRun(RunError),
    #[error("input '{0}' is too large at the given sizes")]
    TooLarge(String),
}

/// Sizes tried for the dynamic dimensions without a hint, all at once: most networks take anything from some size on, and
/// what their strides or heads fix is among the larger ones.
const SIZES: [u32; 10] = [1, 8, 16, 32, 64, 128, 224, 320, 512, 640];
/// Floating-point results may differ by this part of their output's range.
const TOLERANCE: f64 = 1e-3;
/// The same where an output is known not to depend on what shares the batch.
const ROUNDING_TOLERANCE: f64 = 2e-2;
/// The largest batch that is checked.
const ITEMS_MAX: u32 = 3;

/// Settles the network's signature by running it. Takes a few executions of it.
pub fn check_batching(network: &mut dyn Network, hints: &Hints) -> Result<Checked, CheckError> {
    check_up_to(ITEMS_MAX, network, hints)
}

/// As [`check_batching`], for a network that is given at most `most` items at once: it may have no memory for more. Two are tried in any
/// case.
pub fn check_up_to(most: u32, network: &mut dyn Network, hints: &Hints) -> Result<Checked, CheckError> {
    let (hints, shared) = find_sizes(network, hints)?;
    let mut signature = network.signature().clone();
    if !signature.batches() {
        let finding = Some("its batch is fixed: served one by one".into());
        return Ok(Checked { signature, finding, remark: None, hints });
    }
    let mut remark = None;
    let most = most.clamp(2, ITEMS_MAX) as usize;
    let finding = match examine(network, (&signature, most), &hints, &shared)? {
        Ok((axes, rounding)) => {
            signature.outputs.iter_mut().zip(axes).for_each(|(output, axis)| output.batch_axis = axis);
            remark = rounding;
            None
        }
        Err(text) => {
            signature.inputs.iter_mut().chain(&mut signature.outputs).for_each(|tensor| tensor.batch_axis = None);
            Some(format!("{text}: served one by one"))
        }
    };
    network.set_signature(signature.clone());
    Ok(Checked { signature, finding, remark, hints })
}

/// Inputs of one item that the network runs on, and the sizes that they have.
fn find_sizes(network: &mut dyn Network, hints: &Hints) -> Result<(Hints, Vec<HostTensor>), CheckError> {
    let signature = network.signature().clone();
    let unknown = unknown_sizes(&signature, hints);
    let sizes = if unknown.is_empty() { &SIZES[..1] } else { &SIZES[..] };
    let mut failure = None;
    for &size in sizes {
        let mut tried = hints.clone();
        tried.sizes.extend(unknown.iter().map(|name| (name.clone(), size)));
        let inputs = generate(&signature, &tried, 1, &mut Numbers(0))?;
        match network.run(&inputs) {
            // An output without a single element says that the size is too small, though the engine did not mind.
            Ok(outputs) if size != SIZES[SIZES.len() - 1] && !unknown.is_empty() && outputs.iter().any(is_empty) => {}
            Ok(_) => return Ok((tried, inputs)),
            Err(error) => failure = Some(error),
        }
    }
    let text = failure.unwrap_or_else(|| RunError::Engine("every output is empty".into()));
    match unknown.is_empty() {
        true => Err(CheckError::DoesNotRun(text)),
        false => Err(CheckError::NoSizes { unknown: unknown.join(", "), text }),
    }
}

fn is_empty(tensor: &HostTensor) -> bool {
    tensor.bytes.is_empty()
}

/// Names of the inputs' dynamic dimensions that neither are the batch nor have a hint, each once.
fn unknown_sizes(signature: &Signature, hints: &Hints) -> Vec<String> {
    let mut names = Vec::new();
    for spec in &signature.inputs {
        for axis in (0..spec.dims.len()).filter(|&axis| spec.batch_axis != Some(axis)) {
            let unknown = hints.size(spec, axis).is_none();
            names.extend(sample::size_name(spec, axis).filter(|name| unknown && !names.contains(name)));
        }
    }
    names
}

fn generate(
    signature: &Signature,
    hints: &Hints,
    items: u32,
    numbers: &mut Numbers,
) -> Result<Vec<HostTensor>, CheckError> {
    let tensor = |spec: &TensorSpec| {
        let shape = sample::shape(spec, items, hints, 1);
        let tensor = shape.and_then(|shape| sample::tensor(spec, shape, hints, numbers));
        tensor.ok_or_else(|| CheckError::TooLarge(spec.name.clone()))
    };
    signature.inputs.iter().map(tensor).collect()
}

/// The outputs' batch axes and a remark, or why there are none, in words.
type Examined = Result<(Vec<Option<usize>>, Option<String>), String>;

fn examine(
    network: &mut dyn Network,
    (signature, most): (&Signature, usize),
    hints: &Hints,
    shared: &[HostTensor],
) -> Result<Examined, CheckError> {
    let (mut items, mut alone) = (Vec::new(), Vec::new());
    for seed in 0..u64::from(ITEMS_MAX) {
        let mut inputs = generate(signature, hints, 1, &mut Numbers(seed))?;
        for (input, (spec, shared)) in inputs.iter_mut().zip(signature.inputs.iter().zip(shared)) {
            if spec.batch_axis.is_none() {
                *input = shared.clone();
            }
        }
        alone.push(network.run(&inputs).map_err(CheckError::DoesNotRun)?);
        items.push(inputs);
    }
    let mut together = Vec::new();
    for count in 2..=most.min(items.len()) {
        let batch = join(signature, &items[..count])?;
        match network.run(&batch) {
            Ok(outputs) => together.push(outputs),
            Err(error) => return Ok(Err(format!("a batch of {count} fails ({error})"))),
        }
    }
    // Each item at its place with another neighbour: what a difference is put down to.
    let mut company = None;
    let (mut axes, mut remark) = (Vec::new(), None);
    for (index, spec) in signature.outputs.iter().enumerate() {
        let one: Vec<&HostTensor> = alone.iter().map(|outputs| &outputs[index]).collect();
        let many: Vec<&HostTensor> = together.iter().map(|outputs| &outputs[index]).collect();
        let axis = match batch_axis(spec, &one, &many) {
            Ok(axis) => axis,
            Err(text) => return Ok(Err(text)),
        };
        axes.push(axis);
        let difference = difference(axis, &one, &many);
        if difference <= if spec.dtype.is_float() { TOLERANCE } else { 0.0 } {
            continue;
        }
        let mixes = || match axis {
            Some(_) => format!("output '{}' changes with what shares its batch", spec.name),
            None => format!("output '{}' has no batch axis and yet depends on the batch", spec.name),
        };
        if !spec.dtype.is_float() || axis.is_none() || difference > ROUNDING_TOLERANCE {
            return Ok(Err(mixes()));
        }
        if company.is_none() {
            company = Some(other_company(network, signature, &items)?);
        }
        let changes = company
            .iter()
            .flatten()
            .any(|(place, outputs)| item(axis, &outputs[index], *place) != item(axis, many[0], *place));
        if changes {
            return Ok(Err(mixes()));
        }
        remark = Some(format!("output '{}' rounds by up to {:.1}% in a batch", spec.name, difference * 100.0));
    }
    Ok(Ok((axes, remark)))
}

/// Runs the first two items beside the third: each time one keeps its place, which is returned with the outputs.
fn other_company(
    network: &mut dyn Network,
    signature: &Signature,
    items: &[Vec<HostTensor>],
) -> Result<Vec<(usize, Vec<HostTensor>)>, CheckError> {
    let [first, second, third] = items else { return Ok(Vec::new()) };
    let mut runs = Vec::new();
    for (place, pair) in [(0, [first, third]), (1, [third, second])] {
        let batch = join(signature, &pair.map(Vec::clone))?;
        runs.push((place, network.run(&batch).map_err(CheckError::DoesNotRun)?));
    }
    Ok(runs)
}

/// The items' inputs as one batch.
fn join(signature: &Signature, items: &[Vec<HostTensor>]) -> Result<Vec<HostTensor>, CheckError> {
    let join = |(index, spec): (usize, &TensorSpec)| {
        let first = &items[0][index];
        let Some(axis) = spec.batch_axis else { return Some(first.clone()) };
        let mut shape = first.shape;
        shape.dims_mut()[axis] = items.len() as u32;
        let mut batch = HostTensor::zeroed(spec.dtype, shape)?;
        let strided = Strided::new(shape.dims(), Some(axis), spec.dtype)?;
        for (place, item) in items.iter().enumerate() {
            // SAFETY: an item's tensor has the batch's dimensions but for one item, so it holds `bytes(1)`, in memory of ours.
            unsafe { strided.gather(item[index].bytes.as_ptr(), &mut batch.bytes, place, 1, items.len()) };
        }
        Some(batch)
    };
    let joined = signature.inputs.iter().enumerate();
    joined.map(|pair| join(pair).ok_or_else(|| CheckError::TooLarge(pair.1.name.clone()))).collect()
}

/// The axis of an output whose size is the number of items; `None` when the shape does not depend on it.
fn batch_axis(spec: &TensorSpec, alone: &[&HostTensor], together: &[&HostTensor]) -> Result<Option<usize>, String> {
    let one = alone[0].shape;
    let shapes = || -> String {
        let all = [alone[0]].into_iter().chain(together.iter().copied());
        all.map(|tensor| tensor.shape.to_string()).collect::<Vec<_>>().join(", ")
    };
    if alone.iter().any(|tensor| tensor.shape != one) {
        return Err(format!("the shape of output '{}' depends on the values of the inputs", spec.name));
    }
    if together.iter().all(|tensor| tensor.shape == one) {
        return Ok(None);
    }
    let expected = |axis: usize, items: u32| {
        let mut shape = one;
        shape.dims_mut()[axis] = items;
        shape
    };
    let holds = |&axis: &usize| {
        one.dims()[axis] == 1 && together.iter().zip(2..).all(|(tensor, items)| tensor.shape == expected(axis, items))
    };
    match (0..one.dims().len()).find(holds) {
        Some(axis) => Ok(Some(axis)),
        None => {
            Err(format!("output '{}' has no axis for the batch: 1, 2, 3 items give shapes {}", spec.name, shapes()))
        }
    }
}

/// The largest difference between what an item got alone and what it got in a batch, as a part of the output's range;
/// infinite where they can't be compared or, for other than floating-point numbers, differ at all.
fn difference(axis: Option<usize>, alone: &[&HostTensor], together: &[&HostTensor]) -> f64 {
    let (low, high) = alone.iter().flat_map(|tensor| numbers(tensor)).fold((0f64, 0f64), |(low, high), value| {
        if value.is_finite() { (low.min(value), high.max(value)) } else { (low, high) }
    });
    let mut worst = 0f64;
    for batch in together {
        // Without an axis, whatever is in the batch has to leave the output as it is for each item alone.
        let compared = axis.map_or(alone.len(), |axis| batch.shape.dims()[axis] as usize);
        for (place, expected) in alone.iter().take(compared).enumerate() {
            let Some(part) = item(axis, batch, place) else { return f64::INFINITY };
            worst = worst.max(distance(&part, expected, high - low));
        }
    }
    worst
}

/// An item's part of an output.
fn item(axis: Option<usize>, batch: &HostTensor, place: usize) -> Option<HostTensor> {
    let Some(axis) = axis else { return Some(batch.clone()) };
    let layout = Strided::new(batch.shape.dims(), Some(axis), batch.dtype)?;
    let (mut shape, total) = (batch.shape, batch.shape.dims()[axis] as usize);
    shape.dims_mut()[axis] = 1;
    let mut part = HostTensor::zeroed(batch.dtype, shape)?;
    // SAFETY: `part` has the batch's dimensions but for one item, so it holds `bytes(1)`, in memory of its own.
    unsafe { layout.scatter(&batch.bytes, part.bytes.as_mut_ptr(), place, 1, total) };
    Some(part)
}

fn distance(one: &HostTensor, other: &HostTensor, range: f64) -> f64 {
    if one.shape != other.shape || !one.dtype.is_float() {
        return if one == other { 0.0 } else { f64::INFINITY };
    }
    let apart = |(a, b): (f64, f64)| match a == b || (a.is_nan() && b.is_nan()) {
        true => 0.0,
        // A range of 0 makes this infinite, as it should be: everything was 0 and now something is not.
        false if (a - b).is_finite() => (a - b).abs() / range,
        false => f64::INFINITY,
    };
    numbers(one).into_iter().zip(numbers(other)).map(apart).fold(0.0, f64::max)
}

/// How far an output is from what was expected, as a part of the expected one's range; infinite where they can't be compared or,
/// for other than floating-point numbers, differ at all.
pub fn apart(found: &HostTensor, expected: &HostTensor) -> f64 {
    difference(None, &[expected], &[found])
}

/// By how much answers that were computed together with others may be [`apart`] from those computed alone.
pub fn tolerance(checked: &Checked) -> f64 {
    if checked.remark.is_some() { ROUNDING_TOLERANCE } else { TOLERANCE }
}

/// A floating-point tensor's values; nothing for other types, which are compared as bytes.
fn numbers(tensor: &HostTensor) -> Vec<f64> {
    let bytes = &tensor.bytes;
    match tensor.dtype {
        DType::F32 => bytes.elements::<f32>().iter().map(|&value| f64::from(value)).collect(),
        DType::F64 => bytes.elements::<f64>().to_vec(),
        DType::F16 => bytes.elements::<u16>().iter().map(|&bits| half::f16::from_bits(bits).to_f64()).collect(),
        DType::Bf16 => bytes.elements::<u16>().iter().map(|&bits| half::bf16::from_bits(bits).to_f64()).collect(),
        _ => Vec::new(),
    }
}
