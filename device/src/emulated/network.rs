//! A network that computes nothing: it takes as long as its table says and gives back what it was given.

use crate::batched::{Batched, Runner, wants};
use crate::emulated::{EmulatedPrefix, EmulatedProfile};
use crate::parts::{Feed, Part};
use crate::strided::Strided;
use crate::view::{Inputs, View};
use crate::{Batch, Dim, HostTensor, Network, RunError, Shape, Signature};
use std::collections::BTreeSet;
use std::ops::Range;
use std::time::Duration;

/// How long a batch takes: measured points, linear between them.
///
/// Invariant: at least one point; batch sizes are at least 1 and ascend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pace(Vec<(u32, Duration)>);

impl Pace {
    /// From (batch size, time) in any order; `None` when there is no point, a size is 0, or two points have the same size.
    pub fn new(points: impl IntoIterator<Item = (u32, Duration)>) -> Option<Pace> {
        let mut points: Vec<(u32, Duration)> = points.into_iter().collect();
        points.sort_unstable();
        let ascends = points.windows(2).all(|pair| pair[0].0 < pair[1].0);
        (ascends && points.first()?.0 > 0).then_some(Pace(points))
    }

    pub fn points(&self) -> &[(u32, Duration)] {
        &self.0
    }

    /// The time of a batch of `items`: below the smallest measured batch as long as that one, past the largest in proportion
    /// to it.
    pub fn of(&self, items: u32) -> Duration {
        let above = self.0.partition_point(|&(batch, _)| batch < items);
        match (above.checked_sub(1).map(|i| self.0[i]), self.0.get(above)) {
            (_, Some(&(batch, time))) if batch == items => time,
            (None, Some(&(_, time))) => time,
            (Some((low, from)), Some(&(high, to))) => {
                let share = f64::from(items - low) / f64::from(high - low);
                Duration::from_secs_f64(from.as_secs_f64() + (to.as_secs_f64() - from.as_secs_f64()) * share)
            }
            (Some((largest, time)), None) => time.mul_f64(f64::from(items) / f64::from(largest)),
            (None, None) => Duration::ZERO,
        }
    }

    /// What takes this long and then as long as `other`: measured where either was.
    pub fn and(&self, other: &Pace) -> Pace {
        let sizes: BTreeSet<u32> = self.0.iter().chain(&other.0).map(|&(batch, _)| batch).collect();
        Pace(sizes.into_iter().map(|batch| (batch, self.of(batch) + other.of(batch))).collect())
    }

    /// Whether every batch takes no time at all.
    pub fn is_zero(&self) -> bool {
        self.0.iter().all(|(_, time)| time.is_zero())
    }
}

/// How long a network's batch takes: each part in turn, for the items of those requests that want any of its outputs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timing {
    parts: Vec<TimedPart>,
    /// Inputs of the network: a request's outputs lie behind them.
    inputs: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct TimedPart {
    pace: Pace,
    /// Which of the network's outputs come of it; `None`: all.
    outputs: Option<Range<usize>>,
}

impl Timing {
    /// Of a network that has no parts.
    pub fn whole(pace: Pace) -> Timing {
        Timing { parts: vec![TimedPart { pace, outputs: None }], inputs: 0 }
    }

    /// Of a group of `inputs` inputs: what all share, and what each member has of its own, with the outputs that come of it.
    pub fn group(inputs: usize, shared: Pace, own: impl IntoIterator<Item = (Pace, Range<usize>)>) -> Timing {
        let own = own.into_iter().map(|(pace, outputs)| TimedPart { pace, outputs: Some(outputs) });
        Timing { parts: std::iter::once(TimedPart { pace: shared, outputs: None }).chain(own).collect(), inputs }
    }

    /// From a batch's start until it has ended.
    pub fn of(&self, batch: &Batch) -> Duration {
        (0..self.parts.len()).map(|part| self.of_part(part, batch)).sum()
    }

    /// The part behind which everything is there that `request` wants of the batch.
    pub(super) fn last_part(&self, batch: &Batch, request: usize) -> usize {
        self.parts.iter().rposition(|part| self.serves(part, batch, request)).unwrap_or(0)
    }

    /// Whether every batch takes no time at all.
    pub fn is_zero(&self) -> bool {
        self.parts.iter().all(|part| part.pace.is_zero())
    }

    /// With more than one, requests can be done before their batch is.
    pub(super) fn part_count(&self) -> usize {
        self.parts.len()
    }

    /// What one part takes.
    pub(super) fn of_part(&self, part: usize, batch: &Batch) -> Duration {
        let part = &self.parts[part];
        let served = batch.requests.iter().enumerate().filter(|(request, _)| self.serves(part, batch, *request));
        match served.fold(0, |items: u32, (_, request)| items.saturating_add(request.items)) {
            0 => Duration::ZERO,
            items => part.pace.of(items),
        }
    }

    fn serves(&self, part: &TimedPart, batch: &Batch, request: usize) -> bool {
        part.outputs.as_ref().is_none_or(|own| wants(batch.output_spans(request, self.inputs), own))
    }
}

/// A network that answers with its own input.
///
/// Each item's part of an output repeats the bytes of that item's part of the first input, so that a test can tell whose
/// answer it got. The bytes go through a batch buffer, as with an engine, so that the copies cost what they cost there.
pub struct EmulatedNetwork {
    batched: Batched<Echo>,
    timing: Timing,
}

impl EmulatedNetwork {
    pub fn new(profile: &EmulatedProfile) -> EmulatedNetwork {
        let batched =
            Batched::new(profile.signature.clone(), profile.memory_bytes, Echo::new(profile.signature.clone()));
        EmulatedNetwork { batched, timing: Timing::whole(profile.pace.clone()) }
    }

    /// Models that begin with the same part, as one network: its inputs are the first's, its outputs those of all, one after the
    /// other. `None` unless they are at least two and all of `prefix`.
    pub fn group(prefix: &EmulatedPrefix, members: &[&EmulatedProfile]) -> Option<EmulatedNetwork> {
        let inputs = &members.first().filter(|_| members.len() > 1)?.signature.inputs;
        let mut signature = Signature { inputs: inputs.clone(), outputs: Vec::new() };
        let (mut parts, mut own) = (Vec::with_capacity(members.len()), Vec::with_capacity(members.len()));
        let mut memory_bytes = prefix.memory_bytes;
        for member in members {
            let suffix = member.suffix.as_ref().filter(|suffix| suffix.prefix.name == prefix.name)?;
            let first = signature.outputs.len();
            signature.outputs.extend(member.signature.outputs.iter().cloned());
            let (outputs, feeds) = (first..signature.outputs.len(), (0..inputs.len()).map(Feed::Input).collect());
            parts.push(Part::new(Echo::new(member.signature.clone()), feeds, Vec::new(), outputs.clone()));
            own.push((suffix.pace.clone(), outputs));
            memory_bytes += suffix.memory_bytes;
        }
        let batched = Batched::of_parts(signature, memory_bytes, parts);
        Some(EmulatedNetwork { batched, timing: Timing::group(inputs.len(), prefix.pace.clone(), own) })
    }
}

impl Network for EmulatedNetwork {
    fn signature(&self) -> &Signature {
        self.batched.signature()
    }

    /// # Panics
    /// For a group: what it answers is what its members' profiles say.
    fn set_signature(&mut self, signature: Signature) {
        assert!(self.timing.part_count() == 1, "the signature of a group of emulated models is given");
        self.batched.runner_mut().signature = signature.clone();
        self.batched.set_signature(signature);
    }

    fn memory_bytes(&self) -> u64 {
        self.batched.memory_bytes()
    }

    /// At once: it is the device that lets the time pass.
    fn execute(&mut self, batch: &mut Batch) {
        self.batched.execute(batch);
    }

    fn run(&mut self, inputs: &[HostTensor]) -> Result<Vec<HostTensor>, RunError> {
        self.batched.run(inputs)
    }

    fn timing(&self) -> Option<&Timing> {
        Some(&self.timing)
    }
}

struct Echo {
    signature: Signature,
    outputs: Vec<HostTensor>,
    /// One item's part of the first input.
    item: Vec<u8>,
}

impl Runner for Echo {
    fn run(&mut self, inputs: &dyn Inputs) -> Result<(), String> {
        let items = self.items(inputs);
        for index in 0..self.signature.outputs.len() {
            let shape = self.output_shape(index, items, inputs);
            let dtype = self.signature.outputs[index].dtype;
            let bytes = shape.elements().and_then(|n| n.checked_mul(dtype.bytes())).ok_or("an output is too large")?;
            match self.outputs.get_mut(index) {
                Some(output) => {
                    output.shape = shape;
                    output.bytes.resize(bytes);
                }
                None => self.outputs.push(HostTensor::zeroed(dtype, shape).ok_or("an output is too large")?),
            }
            self.echo(index, items as usize, inputs)?;
        }
        Ok(())
    }

    fn output(&self, index: usize) -> Result<View<'_>, String> {
        let HostTensor { dtype, shape, bytes } = &self.outputs[index];
        Ok(View { dtype: *dtype, shape: *shape, bytes })
    }

    /// The buffers are kept for the next batch.
    fn release(&mut self) {}
}

impl Echo {
    fn new(signature: Signature) -> Echo {
        Echo { signature, outputs: Vec::new(), item: Vec::new() }
    }

    fn items(&self, inputs: &dyn Inputs) -> u32 {
        let mut axes = self.signature.inputs.iter().enumerate();
        axes.find_map(|(index, spec)| Some(inputs.get(index).shape.dims()[spec.batch_axis?])).unwrap_or(1)
    }

    /// Dynamic dimensions are those of the same name among the inputs; one that none has is 1.
    fn output_shape(&self, index: usize, items: u32, inputs: &dyn Inputs) -> Shape {
        let spec = &self.signature.outputs[index];
        let named = |name: &str| {
            let is = |dim: &Dim| matches!(dim, Dim::Dynamic(other) if other == name && !other.is_empty());
            self.signature.inputs.iter().enumerate().find_map(|(index, spec)| {
                let axis = spec.dims.iter().position(is)?;
                inputs.get(index).shape.dims().get(axis).copied()
            })
        };
        let mut dims = [1; Shape::RANK_MAX];
        for (axis, (to, dim)) in dims.iter_mut().zip(&spec.dims).enumerate() {
            *to = match dim {
                _ if spec.batch_axis == Some(axis) => items,
                Dim::Fixed(size) => *size,
                Dim::Dynamic(name) => named(name).unwrap_or(1),
            };
        }
        Shape::new(&dims[..spec.dims.len().min(Shape::RANK_MAX)]).unwrap_or_default()
    }

    fn echo(&mut self, index: usize, items: usize, inputs: &dyn Inputs) -> Result<(), String> {
        let Some(spec) = self.signature.inputs.first() else { return Ok(()) };
        let source = inputs.get(0);
        let layout = |tensor: View<'_>, axis| Strided::new(tensor.shape.dims(), axis, tensor.dtype);
        let from = layout(source, spec.batch_axis).ok_or("an input is too large")?;
        let axis = self.signature.outputs[index].batch_axis;
        let output = &mut self.outputs[index];
        let to = layout(output.view(), axis).ok_or("an output is too large")?;
        let wanted = to.bytes(1).ok_or("an output is too large")?;
        let (parts, total) = if axis.is_some() { (items, items) } else { (1, 1) };
        for part in 0..parts {
            self.item.clear();
            let (own, all) = if spec.batch_axis.is_some() { (part, items) } else { (0, 1) };
            // No more than the output takes: a large input is copied once, when it is gathered.
            for run in from.runs(own, all) {
                let left = wanted - self.item.len();
                self.item.extend_from_slice(&source.bytes[run.start..run.end.min(run.start + left)]);
            }
            let mut at = 0;
            for run in to.runs(part, total) {
                at = repeat(&self.item, at, &mut output.bytes[run]);
            }
        }
        Ok(())
    }
}

/// Fills `to` with `pattern` over and over, beginning at its byte `at`; returns where the next run goes on.
fn repeat(pattern: &[u8], mut at: usize, to: &mut [u8]) -> usize {
    if pattern.is_empty() {
        to.fill(0);
        return 0;
    }
    let mut filled = 0;
    while filled < to.len() {
        let bytes = (to.len() - filled).min(pattern.len() - at);
        to[filled..filled + bytes].copy_from_slice(&pattern[at..at + bytes]);
        filled += bytes;
        at = (at + bytes) % pattern.len();
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    fn milliseconds(points: &[(u32, u64)]) -> Option<Pace> {
        Pace::new(points.iter().map(|&(batch, ms)| (batch, Duration::from_millis(ms))))
    }

    #[test]
    fn pace_is_linear_between_points_and_proportional_past_the_last() {
        let pace = milliseconds(&[(8, 80), (2, 20), (4, 60)]).unwrap();
        for (items, ms) in [(1, 20), (2, 20), (3, 40), (4, 60), (6, 70), (8, 80), (16, 160)] {
            assert_eq!(pace.of(items).as_micros(), ms * 1000, "{items} items");
        }
        assert!(!pace.is_zero());
        assert!(milliseconds(&[(1, 0), (64, 0)]).unwrap().is_zero());
    }

    #[test]
    fn tables_that_say_nothing_or_two_things_are_refused() {
        assert_eq!(milliseconds(&[]), None);
        assert_eq!(milliseconds(&[(0, 1)]), None);
        assert_eq!(milliseconds(&[(4, 1), (4, 2)]), None);
    }

    #[test]
    fn a_pattern_goes_on_across_runs() {
        let mut to = [0; 7];
        let (first, second) = to.split_at_mut(4);
        let at = repeat(b"abc", 0, first);
        repeat(b"abc", at, second);
        assert_eq!(&to, b"abcabca");
    }
}
