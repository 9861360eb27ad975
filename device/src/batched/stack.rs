//! Stacks: what computes several last parts in one run ([`rota_graph::stack()`]), beside those parts.
//!
//! A stack computes all its members for every item that one of them is asked about. Asked about the same items, that is what is
//! wanted; asked about different ones, most of it is for nothing. Which is faster depends on the engine, the weights, and who asks. So
//! both are kept and measured when the network is made, and each batch takes what its members' items say is faster.

use super::{Answer, Batched, Done, Form, Runner, wants};
use crate::engine::Loaded;
use crate::parts::{Feed, Part, Row, run_part};
use crate::{Batch, DType, HostTensor, Shape, check, profile, sample};
use std::time::{Duration, Instant};

/// A loaded stack and what it stands for.
pub struct StackSpec {
    pub loaded: Loaded,
    /// By input of the stack; as those of each member.
    pub feeds: Vec<Feed>,
    /// By place in the stack: which part of the network it is. One that nobody goes on from.
    pub members: Vec<usize>,
    /// By output of the stack.
    pub outputs: Vec<Columns>,
}

/// Where the members' columns lie in an output: member m's are elements `m * stride..m * stride + widths[m]` of every
/// `members * stride`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Columns {
    pub stride: usize,
    pub widths: Vec<usize>,
}

/// A stack that was not taken in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StackError {
    /// A mistake of whoever made it.
    #[error("a stack that does not fit its members: {0}")]
    Misfit(String),
    /// It computes something else, or rounds too much. `range` as of [`check::apart`].
    #[error("its answers are {range} of their range away from its members'")]
    Apart { range: String },
    /// It, or a part, does not run: the engine's words.
    #[error("{0}")]
    DoesNotRun(String),
}

/// What a stack and its members take for the same items, without what is shared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Times {
    pub points: Vec<Time>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Time {
    pub items: u32,
    pub stacked: Duration,
    /// All members, one after the other.
    pub one_by_one: Duration,
}

impl Times {
    /// Whether it was taken in: for some number of items it is faster by more than chance.
    pub fn is_worth(&self) -> bool {
        self.points.iter().any(|point| point.stacked.mul_f64(WORTH) < point.one_by_one)
    }
}

/// So many times faster is more than chance.
const WORTH: f64 = 1.1;
const RUNS_MIN: usize = 5;
const RUNS_MAX: usize = 40;
/// For each number of items.
const BUDGET: Duration = Duration::from_millis(60);

/// A stack at work.
pub(crate) struct Stack<R> {
    pub(crate) part: Part<R>,
    pub(crate) members: Vec<usize>,
    outputs: Vec<Columns>,
    /// By items, from 0.
    stacked: Vec<Duration>,
    /// By place, by items from 0.
    own: Vec<Vec<Duration>>,
}

impl<R: Runner> Stack<R> {
    /// One that is taken for every batch of several members.
    #[cfg(test)]
    pub(crate) fn always(members: Vec<usize>, part: Part<R>, outputs: Vec<Columns>) -> Stack<R> {
        const ITEMS: usize = 64;
        let own = vec![vec![Duration::from_secs(1); ITEMS]; members.len()];
        Stack { part, members, outputs, stacked: vec![Duration::ZERO; ITEMS], own }
    }

    /// What its members take for what is asked of them, where `items` says of how many each is; `None` where there is nothing to choose:
    /// fewer than two are asked, or one about more items than were measured.
    pub(crate) fn one_by_one(&self, items: impl Fn(usize) -> usize) -> Option<Duration> {
        let items = || self.members.iter().map(|&member| items(member));
        if items().filter(|&items| items > 0).count() < 2 {
            return None;
        }
        items().zip(&self.own).map(|(items, own)| own.get(items).copied()).sum()
    }

    /// Whether it takes less for `items` items, each of which one of its members at least is asked about.
    pub(crate) fn is_faster(&self, items: usize, one_by_one: Duration) -> bool {
        self.stacked.get(items).is_some_and(|&stacked| stacked < one_by_one)
    }

    /// Output `output` of the member at `place`, which has `rank` axes there.
    fn answer(&self, place: usize, output: usize, rank: usize) -> Result<Answer<'_>, String> {
        let view = self.part.runner.output(output)?;
        let form = self.form(place, output, rank, view.dtype, view.shape);
        let form = form.ok_or_else(|| format!("a stack of {} members gave {}", self.members.len(), view.shape))?;
        Ok(Answer { form, bytes: view.bytes })
    }

    /// The same, of a tensor of this type and shape. `None` where that is not what the stack is to give.
    pub(crate) fn form(&self, place: usize, output: usize, rank: usize, dtype: DType, shape: Shape) -> Option<Form> {
        let Columns { stride, widths } = &self.outputs[output];
        Form::columns(dtype, shape, rank, place * stride, widths[place], self.members.len() * stride)
    }
}

impl<R: Runner> Batched<R> {
    /// Runs a stack instead of its members, if that is faster for this batch. Where it does not run, they do.
    pub(super) fn run_stack(&mut self, batch: &mut Batch, index: usize, done: Done<'_>) {
        let inputs = self.signature.inputs.len();
        let (parts, stack) = (&self.parts, &mut self.stacks[index]);
        let Some(one_by_one) = stack.one_by_one(|member| parts[member].items) else { return };
        let wanted = |row: &&Row| {
            let spans = batch.output_spans(row.request, inputs);
            stack.members.iter().any(|&member| wants(spans, &parts[member].outputs))
        };
        stack.part.choose(self.rows.iter().filter(wanted).map(|row| (row.request, row.items)));
        if !stack.is_faster(stack.part.items, one_by_one) {
            return;
        }
        let ran = run_part(parts, &mut stack.part, &self.gathered, &self.signature.inputs, &self.rows);
        let ran = ran.and_then(|()| self.scatter_stack(batch, index));
        self.stacks[index].part.runner.release();
        if ran.is_err() {
            return;
        }
        let members = std::mem::take(&mut self.stacks[index].members);
        for &member in &members {
            if !self.parts[member].rows.is_empty() {
                self.close(batch, member, &members, done);
            }
        }
        self.stacks[index].members = members;
    }

    fn scatter_stack(&self, batch: &mut Batch, index: usize) -> Result<(), String> {
        let stack = &self.stacks[index];
        for (place, &member) in stack.members.iter().enumerate() {
            let outputs = self.parts[member].outputs.clone();
            let specs = &self.signature.outputs[outputs.clone()];
            let answer = |output: usize| stack.answer(place, output, specs[output].dims.len());
            self.scatter(batch, &stack.part, outputs, answer)?;
        }
        Ok(())
    }
}

impl Batched<Box<dyn Runner>> {
    /// As [`Joined::stack`](crate::parts::Joined::stack).
    pub(crate) fn add_stack(
        &mut self,
        spec: StackSpec,
        inputs: &[HostTensor],
        max_batch: u32,
        tolerance: f64,
    ) -> Result<Times, StackError> {
        self.check_stack(&spec).map_err(StackError::Misfit)?;
        let memory_bytes = spec.loaded.memory_bytes;
        let mut stack = Stack {
            part: Part::new(spec.loaded.runner, spec.feeds, Vec::new(), 0..0),
            members: spec.members,
            outputs: spec.outputs,
            stacked: Vec::new(),
            own: Vec::new(),
        };
        let mut times = Times::default();
        let mut own: Vec<Vec<(u32, Duration)>> = vec![Vec::new(); stack.members.len()];
        for items in profile::doubling(max_batch) {
            let measured = self.measure(&mut stack, inputs, items, tolerance);
            self.parts.iter_mut().chain([&mut stack.part]).for_each(|part| part.runner.release());
            let (stacked, each) = measured?;
            times.points.push(Time { items, stacked, one_by_one: each.iter().sum() });
            own.iter_mut().zip(each).for_each(|(points, time)| points.push((items, time)));
        }
        if times.is_worth() {
            let stacked: Vec<(u32, Duration)> = times.points.iter().map(|time| (time.items, time.stacked)).collect();
            stack.stacked = by_items(&stacked);
            stack.own = own.iter().map(|points| by_items(points)).collect();
            self.stacks.push(stack);
            self.memory_bytes += memory_bytes;
        }
        Ok(times)
    }

    fn check_stack(&self, spec: &StackSpec) -> Result<(), String> {
        let made = &spec.loaded.signature.outputs;
        if made.len() != spec.outputs.len() || spec.outputs.iter().any(|all| all.widths.len() != spec.members.len()) {
            return Err(format!("{} outputs of {} members", made.len(), spec.members.len()));
        }
        if spec.loaded.signature.inputs.len() != spec.feeds.len() {
            return Err(format!("{} feeds for {} inputs", spec.feeds.len(), spec.loaded.signature.inputs.len()));
        }
        for &member in &spec.members {
            let part = self.parts.get(member).ok_or_else(|| format!("there is no part {member}"))?;
            let outputs = &self.signature.outputs[part.outputs.clone()];
            if !part.is_last() || part.feeds != spec.feeds || outputs.len() != made.len() {
                return Err(format!("part {member} goes on from others than it, or has other outputs"));
            }
            if outputs.iter().zip(made).any(|(own, made)| own.dtype != made.dtype || own.batch_axis != Some(0)) {
                return Err(format!("part {member} has outputs of another type, or without items on their first axis"));
            }
        }
        Ok(())
    }

    /// The stack's time for `items` items, and each member's; compares what they give.
    fn measure(
        &mut self,
        stack: &mut Stack<Box<dyn Runner>>,
        inputs: &[HostTensor],
        items: u32,
        tolerance: f64,
    ) -> Result<(Duration, Vec<Duration>), StackError> {
        let pairs = self.signature.inputs.iter().zip(inputs);
        let some = pairs.map(|(spec, tensor)| sample::items(tensor, spec.batch_axis, 0..items));
        let inputs = some.collect::<Option<Vec<HostTensor>>>();
        let inputs = inputs.ok_or_else(|| StackError::Misfit(format!("inputs of fewer than {items} items")))?;
        let row = Row { request: 0, first: 0, items: items as usize };
        for part in self.parts.iter_mut().chain([&mut stack.part]) {
            part.choose([(row.request, row.items)].into_iter());
        }
        for index in 0..self.parts.len() {
            if !self.parts[index].is_last() {
                self.time(index, &inputs, row)?;
            }
        }
        let mut stacked = Vec::new();
        let mut own: Vec<Vec<Duration>> = vec![Vec::new(); stack.members.len()];
        let begin = Instant::now();
        while stacked.len() < RUNS_MIN || (stacked.len() < RUNS_MAX && begin.elapsed() < BUDGET) {
            // In turn, as they would follow each other, so that each finds the caches as it would.
            let mut answers = Vec::new();
            for (&member, times) in stack.members.iter().zip(&mut own) {
                times.push(self.time(member, &inputs, row)?);
                if stacked.is_empty() {
                    answers.push(self.answers(member).map_err(StackError::DoesNotRun)?);
                }
                self.parts[member].runner.release();
            }
            let start = Instant::now();
            run_part(&self.parts, &mut stack.part, &inputs, &self.signature.inputs, &[row])
                .map_err(StackError::DoesNotRun)?;
            stacked.push(start.elapsed());
            for (place, answers) in answers.iter().enumerate() {
                compare(stack, place, answers, tolerance)?;
            }
            stack.part.runner.release();
        }
        Ok((median(&mut stacked), own.iter_mut().map(|times| median(times)).collect()))
    }

    /// Runs a part, and says how long that took.
    fn time(&mut self, index: usize, inputs: &[HostTensor], row: Row) -> Result<Duration, StackError> {
        let (above, rest) = self.parts.split_at_mut(index);
        let start = Instant::now();
        run_part(above, &mut rest[0], inputs, &self.signature.inputs, &[row]).map_err(StackError::DoesNotRun)?;
        Ok(start.elapsed())
    }

    fn answers(&self, index: usize) -> Result<Vec<HostTensor>, String> {
        let part = &self.parts[index];
        let answer = |output: usize| {
            let view = part.runner.output(output)?;
            HostTensor::from_bytes(view.dtype, view.shape, view.bytes).ok_or("an output is not dense".to_string())
        };
        (0..part.outputs.len()).map(answer).collect()
    }
}

fn compare<R: Runner>(
    stack: &Stack<R>,
    place: usize,
    expected: &[HostTensor],
    tolerance: f64,
) -> Result<(), StackError> {
    for (output, expected) in expected.iter().enumerate() {
        let answer = stack.answer(place, output, expected.shape.dims().len()).map_err(StackError::DoesNotRun)?;
        let misfit = || StackError::Misfit("an output is no tensor with items on its first axis".into());
        let mut found = HostTensor::zeroed(answer.form.dtype, answer.form.shape).ok_or_else(misfit)?;
        let items = answer.form.shape.dims()[0] as usize;
        let layout = answer.form.layout(Some(0)).filter(|layout| layout.bytes(items) == Some(found.bytes.len()));
        // SAFETY: `found` is memory of its own that holds all items' bytes.
        unsafe { layout.ok_or_else(misfit)?.scatter(answer.bytes, found.bytes.as_mut_ptr(), 0, items, items) };
        let apart = check::apart(&found, expected);
        if apart > tolerance {
            return Err(StackError::Apart { range: format!("{apart:.1e}") });
        }
    }
    Ok(())
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

/// From 0 items to as many as were measured; between two measurements linear.
fn by_items(points: &[(u32, Duration)]) -> Vec<Duration> {
    let mut times = vec![Duration::ZERO];
    for &(items, time) in points {
        let (from, before) = (times.len() as u32 - 1, times[times.len() - 1]);
        let before = if from == 0 { time } else { before };
        for at in from + 1..=items {
            let part = f64::from(at - from) / f64::from(items - from);
            times.push(before.mul_f64(1.0 - part) + time.mul_f64(part));
        }
    }
    times
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::{Inputs, View};
    use crate::{DType, Dim, Network, NetworkId, Outcome, Shape, Signature, TensorSpec};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    /// Multiplies its input's columns: the first by its first factor, and so on; columns that lack are 0.
    struct Factors {
        factors: Vec<u8>,
        output: HostTensor,
        runs: Arc<AtomicU32>,
        fails: bool,
    }

    impl Runner for Factors {
        fn run(&mut self, inputs: &dyn Inputs) -> Result<(), String> {
            self.runs.fetch_add(1, Ordering::Relaxed);
            let input = inputs.get(0);
            let rows = input.shape.dims()[0];
            let values = input.bytes.chunks(2).flat_map(|row| {
                self.factors.iter().enumerate().map(|(column, factor)| row.get(column % 2).unwrap_or(&0) * factor)
            });
            let values: Vec<u8> = values.collect();
            self.output = HostTensor::from_elements(&[rows, self.factors.len() as u32], &values).unwrap();
            if self.fails { Err("refused".into()) } else { Ok(()) }
        }

        fn output(&self, _index: usize) -> Result<View<'_>, String> {
            Ok(self.output.view())
        }

        fn release(&mut self) {}
    }

    /// A trunk that passes items on, three members behind it, and a stack of the first and the last, of which the last is narrower.
    struct Three {
        network: Batched<Factors>,
        /// Trunk, members, stack.
        runs: Vec<Arc<AtomicU32>>,
    }

    impl Three {
        fn new(stacked: Duration, fails: bool) -> Three {
            let tensor = |name: &str, width| TensorSpec {
                name: name.into(),
                dtype: DType::U8,
                dims: vec![Dim::Dynamic("batch".into()), Dim::Fixed(width)],
                batch_axis: Some(0),
            };
            let outputs = vec![tensor("a", 2), tensor("b", 2), tensor("c", 1)];
            let signature = Signature { inputs: vec![tensor("x", 2)], outputs };
            let mut runs = Vec::new();
            let mut part = |factors: &[u8], feed, ports: &[usize], outputs, fails| {
                runs.push(Arc::new(AtomicU32::new(0)));
                let runs = runs[runs.len() - 1].clone();
                let runner = Factors { factors: factors.to_vec(), output: HostTensor::default(), runs, fails };
                Part::new(runner, vec![feed], ports.to_vec(), outputs)
            };
            let port = Feed::Port { part: 0, port: 0 };
            let parts = vec![
                part(&[1, 1], Feed::Input(0), &[0], 0..3, false),
                part(&[2, 3], port, &[], 0..1, false),
                part(&[4, 5], port, &[], 1..2, false),
                part(&[6], port, &[], 2..3, false),
            ];
            let stack = Stack {
                part: part(&[2, 3, 6, 0], port, &[], 0..0, fails),
                members: vec![1, 3],
                outputs: vec![Columns { stride: 2, widths: vec![2, 1] }],
                stacked: vec![stacked; 9],
                own: vec![vec![Duration::from_micros(10); 9]; 2],
            };
            let mut network = Batched::of_parts(signature, 0, parts);
            network.stacks.push(stack);
            Three { network, runs }
        }

        /// Runs requests of one item each that want some outputs, checks their answers, and says how often each runner ran and who
        /// was told of before the batch ended.
        #[track_caller]
        fn run(&mut self, wanted: &[&[usize]]) -> (Vec<u32>, Vec<usize>) {
            let signature = self.network.signature().clone();
            let mut batch: Option<Box<Batch>> = None;
            for (number, wanted) in wanted.iter().enumerate() {
                let input = vec![HostTensor::from_elements(&[1, 2], &[number as u8 + 1, 10]).unwrap()];
                let room: Vec<Option<usize>> = (0..3).map(|output| wanted.contains(&output).then_some(2)).collect();
                let one = sample::lay_out_some(NetworkId(0), &signature, &[input], &room).unwrap();
                match &mut batch {
                    None => batch = Some(one),
                    Some(batch) => {
                        batch.requests.extend(one.requests);
                        batch.spans.extend(one.spans);
                    }
                }
            }
            let (mut batch, mut told) = (batch.unwrap(), Vec::new());
            self.network.execute_telling(&mut batch, &mut |_, request| told.push(request));
            for (number, wanted) in wanted.iter().enumerate() {
                assert_eq!(batch.requests[number].outcome, Outcome::Done);
                let x = number as u8 + 1;
                let expected = [vec![2 * x, 30], vec![4 * x, 50], vec![6 * x]];
                for (output, found) in sample::outputs(&batch, &signature, number).into_iter().enumerate() {
                    let expected = wanted.contains(&output).then_some(&expected[output]);
                    assert_eq!(
                        found.as_ref().map(|found| found.bytes.to_vec()).as_ref(),
                        expected,
                        "{number}, {output}"
                    );
                    let shape = |found: HostTensor| found.shape == Shape::new(&[1, found.bytes.len() as u32]).unwrap();
                    assert!(found.is_none_or(shape));
                }
            }
            told.sort_unstable();
            (self.runs.iter().map(|runs| runs.swap(0, Ordering::Relaxed)).collect(), told)
        }
    }

    #[test]
    fn a_stack_runs_instead_of_its_members_where_it_is_faster_and_tells_of_all_at_once() {
        let mut three = Three::new(Duration::from_micros(15), false);
        assert_eq!(three.run(&[&[0, 1, 2], &[0, 1, 2]]), (vec![1, 0, 1, 0, 1], vec![]), "all about the same items");
        assert_eq!(three.run(&[&[0], &[2], &[1], &[0, 2]]), (vec![1, 0, 1, 0, 1], vec![0, 1, 3]), "different ones");
        assert_eq!(three.run(&[&[0], &[0], &[1]]), (vec![1, 1, 1, 0, 0], vec![0, 1]), "only one of its members");
        assert_eq!(three.run(&[&[2], &[0]]), (vec![1, 0, 0, 0, 1], vec![]), "the batch ends with it");
        let many = [&[0, 2][..]; 9];
        assert_eq!(three.run(&many), (vec![1, 1, 0, 1, 0], vec![]), "more items than were measured");
    }

    #[test]
    fn members_run_one_by_one_where_that_is_faster_or_their_stack_fails() {
        let mut slow = Three::new(Duration::from_micros(20), false);
        assert_eq!(slow.run(&[&[0, 1, 2], &[0, 2]]), (vec![1, 1, 1, 1, 0], vec![]));
        let mut broken = Three::new(Duration::ZERO, true);
        assert_eq!(broken.run(&[&[0], &[2], &[1]]), (vec![1, 1, 1, 1, 1], vec![0, 2]));
    }

    #[test]
    fn times_between_two_measurements_lie_on_their_line() {
        let ms = Duration::from_millis;
        assert_eq!(by_items(&[(1, ms(10)), (2, ms(12)), (4, ms(20))]), [ms(0), ms(10), ms(12), ms(16), ms(20)]);
        assert_eq!(by_items(&[(2, ms(8))]), [ms(0), ms(8), ms(8)]);
    }

    #[test]
    fn a_stack_is_worth_it_when_some_batch_is_faster_by_more_than_chance() {
        let time = |stacked, one_by_one| {
            let [stacked, one_by_one] = [stacked, one_by_one].map(Duration::from_micros);
            Time { items: 1, stacked, one_by_one }
        };
        assert!(Times { points: vec![time(10, 8), time(20, 40)] }.is_worth());
        assert!(!Times { points: vec![time(10, 8), time(20, 21)] }.is_worth());
    }
}
