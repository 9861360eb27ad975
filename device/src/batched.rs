//! Turns "run this batch of tensors" into a whole [`Network`]: gathers the requests' inputs from their arenas, runs, scatters
//! the outputs, and finds the guilty request of a batch that fails.
//!
//! Requests without a batch axis to share run alone, one after the other. Bytes are copied once each way: arena to batch
//! buffer, and the engine's output to arena. Buffers are kept and grown on demand, so that a network that runs allocates
//! nothing of ours.

mod answer;
mod check;
pub(crate) mod stack;

use crate::cuda::flight::{self, Flights};
use crate::cuda::runner::CudaRunner;
use crate::cuda::warm;
use crate::parts::{Feed, Part, Row, run_part};
use crate::strided::Strided;
use crate::view::{Inputs, View};
use crate::{Batch, DType, Dim, HostTensor, Network, Outcome, RunError, ShapeClass, Signature, Span, Written};
use answer::Answer;
pub(crate) use answer::Form;
use check::check_inputs;
pub(crate) use check::{check_output, input_layout};
use stack::Stack;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

/// What executes one batch of tensors: an engine's session, or the emulated echo.
pub(crate) trait Runner: Send {
    /// Runs on `inputs`, in the order of the signature, and keeps the outputs until [`Runner::release`] or the next run.
    fn run(&mut self, inputs: &dyn Inputs) -> Result<(), String>;
    /// Output `index` of the last run that succeeded.
    fn output(&self, index: usize) -> Result<View<'_>, String>;
    /// Frees the outputs.
    fn release(&mut self);
    /// As [`Network::is_lost`].
    fn is_lost(&mut self) -> bool {
        false
    }
    /// A GPU's, which copies for itself and need not be waited for.
    fn on_gpu(&mut self) -> Option<&mut CudaRunner> {
        None
    }
}

impl Runner for Box<dyn Runner> {
    fn run(&mut self, inputs: &dyn Inputs) -> Result<(), String> {
        (**self).run(inputs)
    }

    fn output(&self, index: usize) -> Result<View<'_>, String> {
        (**self).output(index)
    }

    fn release(&mut self) {
        (**self).release();
    }

    fn is_lost(&mut self) -> bool {
        (**self).is_lost()
    }

    fn on_gpu(&mut self) -> Option<&mut CudaRunner> {
        (**self).on_gpu()
    }
}

/// Who hears of requests that are done before their batch has ended.
type Done<'a> = &'a mut dyn FnMut(&mut Batch, usize);

/// A network of one or more parts ([`crate::parts`]).
pub(crate) struct Batched<R> {
    pub(crate) signature: Signature,
    memory_bytes: u64,
    /// Each behind those that it goes on from; one that all outputs come of runs for every request.
    pub(crate) parts: Vec<Part<R>>,
    /// What can run instead of several last parts.
    pub(crate) stacks: Vec<Stack<R>>,
    /// By request of the current batch: how many last parts it waits for.
    open: Vec<u32>,
    /// The batch buffers, one per input.
    gathered: Vec<HostTensor>,
    /// Requests of the current batch that can run, by index.
    sound: Vec<usize>,
    /// Where the items of the requests that run together lie in the batch buffers.
    rows: Vec<Row>,
    /// Batches that a GPU has.
    pub(crate) flights: Flights,
    /// The largest batch that it was made for; 0: not said.
    pub(crate) max_items: u32,
    /// The class whose plans were made beforehand, to be made again after a loss.
    warmed: Option<ShapeClass>,
}

impl<R: Runner> Batched<R> {
    pub(crate) fn new(signature: Signature, memory_bytes: u64, runner: R) -> Batched<R> {
        let feeds = (0..signature.inputs.len()).map(Feed::Input).collect();
        let part = Part::new(runner, feeds, Vec::new(), 0..signature.outputs.len());
        Batched::of_parts(signature, memory_bytes, vec![part])
    }

    pub(crate) fn of_parts(signature: Signature, memory_bytes: u64, parts: Vec<Part<R>>) -> Batched<R> {
        let gathered = signature.inputs.iter().map(|_| HostTensor::default()).collect();
        Batched {
            signature,
            memory_bytes,
            parts,
            stacks: Vec::new(),
            open: Vec::new(),
            gathered,
            sound: Vec::new(),
            rows: Vec::new(),
            flights: Flights::default(),
            max_items: 0,
            warmed: None,
        }
    }

    /// Makes the batch buffers large enough for `items` items, where every other dimension is fixed.
    pub(crate) fn reserve(&mut self, items: u32) {
        self.max_items = items;
        for (spec, into) in self.signature.inputs.iter().zip(&mut self.gathered) {
            into.dtype = spec.dtype;
            let dims = spec.dims.iter().enumerate().map(|(axis, dim)| match dim {
                Dim::Fixed(size) => Some(*size),
                Dim::Dynamic(_) => (spec.batch_axis == Some(axis)).then_some(items),
            });
            let dims: Option<Vec<u32>> = dims.collect();
            let bytes = dims.and_then(|dims| Strided::new(&dims, None, spec.dtype)).and_then(|all| all.bytes(1));
            into.bytes.resize(bytes.unwrap_or(0));
        }
    }

    /// The runner of its one part.
    pub(crate) fn runner_mut(&mut self) -> &mut R {
        &mut self.parts[0].runner
    }

    /// Whether all of it runs on a GPU.
    pub(crate) fn is_on_gpu(&mut self) -> bool {
        let stacks = self.stacks.iter_mut().map(|stack| &mut stack.part);
        self.parts.iter_mut().chain(stacks).all(|part| part.runner.on_gpu().is_some())
    }

    /// Runs the requests `group` as one batch. After an error those that are still pending have no outputs.
    fn run_group(&mut self, batch: &mut Batch, group: &[usize], done: Done<'_>) -> Result<(), String> {
        self.gather(batch, group)?;
        let result = self.run_parts(batch, done);
        self.parts.iter_mut().for_each(|part| part.runner.release());
        result
    }

    /// Runs every part that somebody wants: first those that others go on from, then stacks where they are worth it, then the
    /// last ones that are left. When one of these fails, the others run all the same.
    fn run_parts(&mut self, batch: &mut Batch, done: Done<'_>) -> Result<(), String> {
        self.choose(batch);
        for index in 0..self.parts.len() {
            if !self.parts[index].is_last() && !self.parts[index].rows.is_empty() {
                self.run_part(index)?;
            }
        }
        for index in 0..self.stacks.len() {
            self.run_stack(batch, index, done);
        }
        let mut result = Ok(());
        for index in 0..self.parts.len() {
            if !self.parts[index].is_last() || self.parts[index].rows.is_empty() {
                continue;
            }
            let ran = self.run_part(index).and_then(|()| self.scatter_part(batch, index));
            self.parts[index].runner.release();
            match ran {
                Ok(()) => self.close(batch, index, &[], done),
                Err(text) => {
                    self.parts[index].rows.clear();
                    result = Err(text);
                }
            }
        }
        result?;
        for row in &self.rows {
            let request = &mut batch.requests[row.request];
            if request.outcome == Outcome::Pending {
                request.outcome = Outcome::Done;
            }
        }
        Ok(())
    }

    /// Finds who runs for whom in this batch.
    fn choose(&mut self, batch: &Batch) {
        let inputs = self.signature.inputs.len();
        self.open.clear();
        self.open.resize(batch.requests.len(), 0);
        for part in &mut self.parts {
            let own = part.outputs.clone();
            let wanted = |row: &&Row| wants(batch.output_spans(row.request, inputs), &own);
            part.choose(self.rows.iter().filter(wanted).map(|row| (row.request, row.items)));
            for row in part.rows.iter().filter(|_| part.ports.is_empty()) {
                self.open[row.request] += 1;
            }
        }
    }

    fn run_part(&mut self, index: usize) -> Result<(), String> {
        let (above, rest) = self.parts.split_at_mut(index);
        run_part(above, &mut rest[0], &self.gathered, &self.signature.inputs, &self.rows)
    }

    /// A last part has given its outputs: tells of the requests that wait for no other, unless the batch ends here anyway.
    ///
    /// What others have `ended` at the same time is told by them.
    fn close(&mut self, batch: &mut Batch, index: usize, ended: &[usize], done: Done<'_>) {
        let mut rows = std::mem::take(&mut self.parts[index].rows);
        let over = |(index, part): (usize, &Part<R>)| !part.is_last() || part.rows.is_empty() || ended.contains(&index);
        let ends = self.parts.iter().enumerate().all(over);
        for row in &rows {
            self.open[row.request] -= 1;
            let waits = self.open[row.request] > 0;
            if !waits && !ends && batch.requests[row.request].outcome == Outcome::Pending {
                batch.requests[row.request].outcome = Outcome::Done;
                done(batch, row.request);
            }
        }
        rows.clear();
        self.parts[index].rows = rows;
    }

    /// Fills the batch buffers, and notes who lies where.
    fn gather(&mut self, batch: &Batch, group: &[usize]) -> Result<(), String> {
        let total = group.iter().try_fold(0u32, |n, &r| n.checked_add(batch.requests[r].items));
        let total = total.ok_or("the batch has more than 2^32 items")?;
        let stride = self.stride();
        self.rows.clear();
        let mut first = 0;
        for &request in group {
            let items = batch.requests[request].items as usize;
            self.rows.push(Row { request, first, items });
            first += items;
        }
        for (index, spec) in self.signature.inputs.iter().enumerate() {
            let into = &mut self.gathered[index];
            into.dtype = spec.dtype;
            into.shape = batch.class.inputs[index];
            let items = match spec.batch_axis {
                Some(axis) => {
                    into.shape.dims_mut()[axis] = total;
                    total as usize
                }
                None => 1,
            };
            let strided = input_layout(batch, spec, index)?;
            into.bytes.resize(strided.bytes(items).ok_or_else(|| format!("input '{}' is too large", spec.name))?);
            if let (None, Some(constant)) = (spec.batch_axis, &batch.class.constants[index]) {
                if constant.len() != into.bytes.len() {
                    return Err(format!(
                        "input '{}' needs {} bytes, its class brings {}",
                        spec.name,
                        into.bytes.len(),
                        constant.len()
                    ));
                }
                into.bytes.copy_from_slice(constant);
                continue;
            }
            let mut first = 0;
            for &request in group {
                let span = batch.spans[request * stride + index];
                let request = &batch.requests[request];
                let own = if spec.batch_axis.is_some() { request.items as usize } else { 1 };
                // SAFETY: `check` saw that the span is `bytes(own)` long and inside the arena, which the batch keeps mapped;
                // the buffer is memory of ours, so they do not overlap. Whatever else writes there can only change bytes.
                unsafe {
                    let from = request.arena.as_ptr().add(span.offset);
                    strided.gather(from, &mut into.bytes, first, own, items);
                }
                first += own;
            }
            if spec.dtype == DType::Bool {
                // Engines compile `bool` to machine code that any other byte breaks.
                into.bytes.iter_mut().for_each(|byte| *byte = u8::from(*byte != 0));
            }
        }
        Ok(())
    }

    fn scatter_part(&self, batch: &mut Batch, index: usize) -> Result<(), String> {
        let part = &self.parts[index];
        let answer = |output: usize| Ok(Answer::whole(part.runner.output(output)?));
        self.scatter(batch, part, part.outputs.clone(), answer)
    }

    /// Writes `outputs`, which `part` made, to the requests among its rows that asked for them. `answer` gives each, by its place
    /// among them.
    fn scatter<'a>(
        &self,
        batch: &mut Batch,
        part: &Part<R>,
        outputs: Range<usize>,
        answer: impl Fn(usize) -> Result<Answer<'a>, String>,
    ) -> Result<(), String> {
        for (place, index) in outputs.clone().enumerate() {
            let Form { dtype, shape, .. } = answer(place)?.form;
            check_output(&self.signature.outputs[index], dtype, shape, part.items)?;
        }
        let (inputs, all_outputs) = (self.signature.inputs.len(), self.signature.outputs.len());
        for (place, index) in outputs.enumerate() {
            let spec = &self.signature.outputs[index];
            let answer = answer(place)?;
            let layout =
                answer.form.layout(spec.batch_axis).ok_or_else(|| format!("output '{}' is too large", spec.name))?;
            for &Row { request, first, items } in &part.rows {
                let span = batch.spans[request * (inputs + all_outputs) + inputs + index];
                let entry = &mut batch.requests[request];
                let mut shape = answer.form.shape;
                let (place, own, all) = match spec.batch_axis {
                    Some(axis) => {
                        shape.dims_mut()[axis] = entry.items;
                        (first, items, part.items)
                    }
                    None => (0, 1, 1),
                };
                if span.offset == Span::UNWANTED {
                    continue;
                }
                // It cannot overflow: the whole output, which is at least as large, is in memory.
                let needed = layout.bytes(own).unwrap_or(usize::MAX);
                if needed > span.bytes {
                    if entry.outcome == Outcome::Pending {
                        entry.outcome = Outcome::OutputTooSmall { output: index, needed, room: span.bytes };
                    }
                    continue;
                }
                // SAFETY: `check` saw that the span lies inside the arena, which the batch keeps mapped, and `needed` fits
                // in it; the output is the engine's memory, so they do not overlap.
                unsafe {
                    let to = entry.arena.as_mut_ptr().add(span.offset);
                    layout.scatter(answer.bytes, to, place, own, all);
                }
                batch.written[request * all_outputs + index] = Written { bytes: needed, shape };
            }
        }
        Ok(())
    }

    /// Orders requests so that those that want the same lie side by side.
    pub(crate) fn sort(&self, batch: &Batch, requests: &mut [usize]) {
        let inputs = self.signature.inputs.len();
        let wanted =
            |request: usize| batch.output_spans(request, inputs).iter().map(|span| span.offset == Span::UNWANTED);
        requests.sort_unstable_by(|&a, &b| wanted(a).cmp(wanted(b)).then(a.cmp(&b)));
    }

    /// Spans per request.
    pub(crate) fn stride(&self) -> usize {
        self.signature.inputs.len() + self.signature.outputs.len()
    }

    /// Whether the requests of the batch can run together: there is an axis to share, and what has none is known to be equal.
    pub(crate) fn shares(&self, batch: &Batch) -> bool {
        self.signature.batches()
            && self
                .signature
                .inputs
                .iter()
                .zip(&batch.class.constants)
                .all(|(i, c)| i.batch_axis.is_some() || c.is_some())
    }

    /// Executes step by step on this thread: gathers, runs, scatters; and finds who is guilty when that fails.
    fn execute_here(&mut self, batch: &mut Batch, done: Done<'_>) {
        let begin = Instant::now();
        batch.started = Some(begin);
        batch.written.clear();
        batch.written.resize(batch.requests.len() * self.signature.outputs.len(), Written::default());
        let mut sound = std::mem::take(&mut self.sound);
        sound.clear();
        match self.check_batch(batch) {
            Ok(()) => {
                for request in 0..batch.requests.len() {
                    match self.check(batch, request) {
                        Ok(()) => sound.push(request),
                        Err(text) => batch.requests[request].outcome = Outcome::Failed(text),
                    }
                }
            }
            Err(text) => batch.requests.iter_mut().for_each(|r| r.outcome = Outcome::Failed(text.clone())),
        }
        for &request in &sound {
            batch.requests[request].outcome = Outcome::Pending;
        }
        if self.parts.len() > 1 {
            self.sort(batch, &mut sound);
        }
        let together = sound.len() > 1 && self.shares(batch) && self.run_group(batch, &sound, done).is_ok();
        if !together {
            for request in &sound {
                if batch.requests[*request].outcome != Outcome::Pending {
                    continue;
                }
                if let Err(text) = self.run_group(batch, std::slice::from_ref(request), done) {
                    batch.requests[*request].outcome = Outcome::Failed(text);
                }
            }
        }
        self.sound = sound;
        batch.took = begin.elapsed();
    }
}

impl<R: Runner> Network for Batched<R> {
    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn set_signature(&mut self, signature: Signature) {
        self.signature = signature;
    }

    fn memory_bytes(&self) -> u64 {
        self.memory_bytes
    }

    fn execute(&mut self, batch: &mut Batch) {
        self.execute_telling(batch, &mut |_, _| {});
    }

    fn execute_telling(&mut self, batch: &mut Batch, done: Done<'_>) {
        self.stage(batch);
        let mut ended = self.begin(batch, done);
        while !ended {
            std::thread::yield_now();
            ended = self.ended(batch, done);
        }
    }

    fn stage(&mut self, batch: &Batch) {
        flight::stage(self, batch);
    }

    fn is_staged(&self, batch: &Batch) -> bool {
        flight::is_staged(self, batch)
    }

    fn begin(&mut self, batch: &mut Batch, done: Done<'_>) -> bool {
        let flies = flight::begin(self, batch);
        if !flies {
            self.execute_here(batch, done);
        }
        !flies
    }

    fn ended(&mut self, batch: &mut Batch, done: Done<'_>) -> bool {
        match flight::ended(self, batch, done) {
            Ok(ended) => ended,
            // What was told can't be taken back, so the rest is not run again beside it.
            Err(error) if batch.requests.iter().any(|request| request.outcome == Outcome::Told) => {
                let pending = batch.requests.iter_mut().filter(|request| request.outcome == Outcome::Pending);
                pending.for_each(|request| request.outcome = Outcome::Failed(error.to_string()));
                true
            }
            // Once more, waiting for each, so that only the guilty fail.
            Err(_) => {
                self.execute_here(batch, done);
                true
            }
        }
    }

    fn warm(&mut self, class: &ShapeClass) -> Result<(), RunError> {
        let made = catch_unwind(AssertUnwindSafe(|| warm::warm(self, class)));
        let made = made.map_err(|panic| RunError::Engine(format!("the compiler panicked: {}", panic_text(&*panic))))?;
        made.map_err(|error| RunError::Engine(error.to_string()))?;
        self.warmed = Some(class.clone());
        Ok(())
    }

    fn is_lost(&mut self) -> bool {
        self.parts.iter_mut().any(|part| part.runner.is_lost())
    }

    fn recover(&mut self) -> Result<(), RunError> {
        let Some(class) = &self.warmed else { return Ok(()) };
        self.warm(&class.clone())
    }

    fn run(&mut self, inputs: &[HostTensor]) -> Result<Vec<HostTensor>, RunError> {
        check_inputs(&self.signature, inputs)?;
        let axes = self.signature.inputs.iter().zip(inputs);
        let items = axes.filter_map(|(spec, input)| Some(input.shape.dims()[spec.batch_axis?])).next().unwrap_or(1);
        let all = [Row { request: 0, first: 0, items: items as usize }];
        let mut outputs = Vec::with_capacity(self.signature.outputs.len());
        for index in 0..self.parts.len() {
            let (above, rest) = self.parts.split_at_mut(index);
            rest[0].choose([(0, items as usize)].into_iter());
            run_part(above, &mut rest[0], inputs, &self.signature.inputs, &all).map_err(RunError::Engine)?;
            let part = &self.parts[index];
            for (output, index) in part.outputs.clone().enumerate().filter(|_| part.is_last()) {
                let output = part.runner.output(output).map_err(RunError::Engine)?;
                let tensor = HostTensor::from_bytes(output.dtype, output.shape, output.bytes);
                let spec = &self.signature.outputs[index];
                outputs.push(tensor.ok_or_else(|| RunError::Engine(format!("output '{}' is not dense", spec.name)))?);
            }
        }
        self.parts.iter_mut().for_each(|part| part.runner.release());
        Ok(outputs)
    }
}

/// Whether a part that `outputs` come of runs for a request, of which `spans` are those of its outputs: one that all come of
/// runs for every request.
pub(crate) fn wants(spans: &[Span], outputs: &Range<usize>) -> bool {
    let is_wanted = |own: &[Span]| own.iter().any(|span| span.offset != Span::UNWANTED);
    outputs.len() == spans.len() || spans.get(outputs.clone()).is_some_and(is_wanted)
}

pub(crate) fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("no message").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TensorSpec;
    use crate::sample;
    use crate::{NetworkId, Shape};

    /// Gives its input back, but for what the input asks for.
    struct Moody {
        output: Option<HostTensor>,
        runs: usize,
    }

    /// Makes the runner panic, fail, or lose an item.
    const PANIC: u8 = 250;
    const FAIL: u8 = 251;
    const LOSE: u8 = 252;

    impl Runner for Moody {
        fn run(&mut self, inputs: &dyn Inputs) -> Result<(), String> {
            self.runs += 1;
            let input = inputs.get(0);
            assert!(!input.bytes.contains(&PANIC), "asked to");
            if input.bytes.contains(&FAIL) {
                return Err("refused".into());
            }
            let mut output = HostTensor::from_bytes(input.dtype, input.shape, input.bytes).unwrap();
            if output.bytes.contains(&LOSE) {
                output.shape.dims_mut()[0] -= 1;
                output.bytes.resize(output.bytes.len() - 2);
            }
            self.output = Some(output);
            Ok(())
        }

        fn output(&self, _index: usize) -> Result<View<'_>, String> {
            Ok(self.output.as_ref().ok_or("no output")?.view())
        }

        fn release(&mut self) {
            self.output = None;
        }
    }

    fn network() -> Batched<Moody> {
        let tensor = |name: &str| TensorSpec {
            name: name.into(),
            dtype: DType::U8,
            dims: vec![Dim::Dynamic("batch".into()), Dim::Fixed(2)],
            batch_axis: Some(0),
        };
        let signature = Signature { inputs: vec![tensor("x")], outputs: vec![tensor("y")] };
        Batched::new(signature, 0, Moody { output: None, runs: 0 })
    }

    fn outcomes(network: &mut Batched<Moody>, contents: &[[u8; 2]]) -> Vec<Outcome> {
        let requests: Vec<_> =
            contents.iter().map(|content| vec![HostTensor::from_elements(&[1, 2], content).unwrap()]).collect();
        let mut batch = sample::lay_out(NetworkId(0), network.signature(), &requests, &[2]).unwrap();
        network.execute(&mut batch);
        for (index, request) in batch.requests.iter().enumerate() {
            let output = sample::outputs(&batch, network.signature(), index).remove(0);
            assert_eq!(output.is_some(), request.outcome == Outcome::Done);
            assert!(output.is_none_or(|output| *output.bytes == contents[index]));
        }
        batch.requests.into_iter().map(|request| request.outcome).collect()
    }

    #[test]
    fn whatever_goes_wrong_in_a_batch_fails_the_guilty_alone() {
        let lost = "output 'y' came with shape [0, 2]; its batch axis 0 should have 1 items";
        for (byte, text) in [(PANIC, "the engine panicked: asked to"), (FAIL, "refused"), (LOSE, lost)] {
            let mut network = network();
            let outcomes = outcomes(&mut network, &[[1, 2], [3, byte], [5, 6]]);
            assert_eq!(outcomes, [Outcome::Done, Outcome::Failed(text.into()), Outcome::Done]);
            assert_eq!(network.runner_mut().runs, 4, "once together, then each alone");
            assert_eq!(self::outcomes(&mut network, &[[1, 2], [3, 4]]), [Outcome::Done, Outcome::Done]);
            assert_eq!(network.runner_mut().runs, 5, "sound requests run together");
        }
    }

    #[test]
    fn a_run_on_other_inputs_than_declared_is_refused() {
        let mut network = network();
        let tensor = |dims: &[u32]| HostTensor::zeroed(DType::U8, Shape::new(dims).unwrap()).unwrap();
        assert!(matches!(network.run(&[]), Err(RunError::Inputs(_))));
        assert!(matches!(network.run(&[tensor(&[1, 3])]), Err(RunError::Inputs(_))));
        assert!(matches!(network.run(&[tensor(&[2])]), Err(RunError::Inputs(_))));
        let mut short = tensor(&[4, 2]);
        short.bytes.resize(7);
        assert!(matches!(network.run(&[short]), Err(RunError::Inputs(_))));
        assert_eq!(network.run(&[tensor(&[4, 2])]).unwrap(), [tensor(&[4, 2])]);
    }
}
