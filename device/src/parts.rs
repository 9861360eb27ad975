//! A network in parts: what several models share runs once for a whole batch, what each has of its own runs on the items of
//! its own requests.
//!
//! Parts form a tree. A part takes items of the network's inputs and of what the parts above it hand on (their ports). Which
//! requests it runs for follows from which outputs they want. Where their items lie side by side, a part reads them where they are; where
//! they do not, or the batch axis is not the outermost, they are copied together first. An ordinary network is one part.
//!
//! Last parts that are the same operators with other weights may have a stack beside them, which runs them as one
//! ([`Joined::stack`]).

pub use crate::batched::stack::{Columns, StackError, StackSpec, Time, Times};

use crate::batched::{Batched, Runner, panic_text};
use crate::engine::Loaded;
use crate::strided::Strided;
use crate::view::{Inputs, View};
use crate::{HostTensor, Network, Signature, TensorSpec};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// A loaded part and its place among the others.
pub struct PartSpec {
    pub loaded: Loaded,
    /// By input of the part.
    pub feeds: Vec<Feed>,
    /// By output of a part that others go on from: its batch axis. Empty for one that nobody goes on from.
    pub ports: Vec<usize>,
    /// Which of the network's outputs this part and those that go on from it make. A part that nobody goes on from makes
    /// all of them itself, in the order of its own outputs.
    pub outputs: Range<usize>,
}

/// Where a part's input comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feed {
    /// An input of the network.
    Input(usize),
    /// An output of an earlier part.
    Port { part: usize, port: usize },
}

/// Parts that do not make a network: a mistake of whoever cut them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("part {part}: {text}")]
pub struct PartError {
    pub part: usize,
    pub text: String,
}

/// A network of parts, each behind those that it goes on from; `max_batch` as in [`CompileOptions`](crate::CompileOptions).
///
/// A request of it wants outputs of one model or of several; what none of a batch's requests wants is not computed.
pub fn join(signature: Signature, parts: Vec<PartSpec>, max_batch: u32) -> Result<Joined, PartError> {
    for (index, part) in parts.iter().enumerate() {
        check(&signature, &parts, index, part).map_err(|text| PartError { part: index, text })?;
    }
    let memory_bytes = parts.iter().map(|part| part.loaded.memory_bytes).sum();
    let parts = parts.into_iter().map(|part| Part::new(part.loaded.runner, part.feeds, part.ports, part.outputs));
    let mut network = Batched::of_parts(signature, memory_bytes, parts.collect());
    network.reserve(max_batch);
    Ok(Joined { network, max_batch })
}

/// A network of parts, before it is put into service.
pub struct Joined {
    network: Batched<Box<dyn Runner>>,
    max_batch: u32,
}

impl Joined {
    /// Takes in a stack, if it is faster than its members one by one for some number of items; what was measured says it.
    ///
    /// `inputs` are the network's, of `max_batch` items; on them the stack's answers may be `tolerance` of their range away from the
    /// members'. Takes a run of the shared parts and some of the others for every doubling of the batch.
    pub fn stack(&mut self, spec: StackSpec, inputs: &[HostTensor], tolerance: f64) -> Result<Times, StackError> {
        self.network.add_stack(spec, inputs, self.max_batch, tolerance)
    }

    pub fn network(self) -> Box<dyn Network> {
        Box::new(self.network)
    }
}

fn check(signature: &Signature, parts: &[PartSpec], index: usize, part: &PartSpec) -> Result<(), String> {
    let (inputs, outputs) = (part.loaded.signature.inputs.len(), part.loaded.signature.outputs.len());
    if part.feeds.len() != inputs {
        return Err(format!("{} feeds for its {inputs} inputs", part.feeds.len()));
    }
    if part.outputs.end > signature.outputs.len() || part.outputs.is_empty() {
        return Err(format!("outputs {:?} of the network's {}", part.outputs, signature.outputs.len()));
    }
    let made = if part.ports.is_empty() { part.outputs.len() } else { part.ports.len() };
    if made != outputs {
        return Err(format!("it has {outputs} outputs, not {made}"));
    }
    for (feed, spec) in part.feeds.iter().zip(&part.loaded.signature.inputs) {
        let dtype = match *feed {
            Feed::Input(input) => signature.inputs.get(input).map(|spec| spec.dtype),
            Feed::Port { part: from, port } => {
                let above = parts[..index].get(from).filter(|above| {
                    let (within, around) = (&part.outputs, &above.outputs);
                    port < above.ports.len() && around.start <= within.start && within.end <= around.end
                });
                above.map(|above| above.loaded.signature.outputs[port].dtype)
            }
        };
        if dtype != Some(spec.dtype) {
            return Err(format!("its input '{}' is {}, {feed:?} is {dtype:?}", spec.name, spec.dtype));
        }
    }
    Ok(())
}

/// A part at work.
pub(crate) struct Part<R> {
    pub(crate) runner: R,
    pub(crate) feeds: Vec<Feed>,
    pub(crate) ports: Vec<usize>,
    pub(crate) outputs: Range<usize>,
    /// What it runs on in the current batch, in the order of the batch.
    pub(crate) rows: Vec<Row>,
    /// Items of all rows.
    pub(crate) items: usize,
    /// By feed: how it is read in the current batch.
    reads: Vec<Read>,
    /// By feed: items that were copied together.
    copies: Vec<HostTensor>,
}

/// A request's items in a part's batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    /// Index in the batch.
    pub(crate) request: usize,
    /// Its first item among the part's.
    pub(crate) first: usize,
    pub(crate) items: usize,
}

#[derive(Clone, Copy, Debug)]
enum Read {
    Whole,
    /// Items of a tensor whose batch axis is the outermost that is not 1.
    Items {
        axis: usize,
        first: usize,
        of: usize,
    },
    Copied,
}

impl<R: Runner> Part<R> {
    pub(crate) fn new(runner: R, feeds: Vec<Feed>, ports: Vec<usize>, outputs: Range<usize>) -> Part<R> {
        let copies = feeds.iter().map(|_| HostTensor::default()).collect();
        let reads = feeds.iter().map(|_| Read::Whole).collect();
        Part { runner, feeds, ports, outputs, rows: Vec::new(), items: 0, reads, copies }
    }

    /// Whether no other part goes on from it: its outputs are the network's.
    pub(crate) fn is_last(&self) -> bool {
        self.ports.is_empty()
    }

    /// Takes the requests that it runs for in this batch, in its order, and the items of each.
    pub(crate) fn choose(&mut self, rows: impl Iterator<Item = (usize, usize)>) {
        self.rows.clear();
        self.items = 0;
        for (request, items) in rows {
            self.rows.push(Row { request, first: self.items, items });
            self.items += items;
        }
    }
}

/// Runs a part on its rows; the parts that it goes on from, among `above`, have run. `inputs` hold the items of all the batch's
/// rows, `all`, as `specs` say.
pub(crate) fn run_part<R: Runner>(
    above: &[Part<R>],
    part: &mut Part<R>,
    inputs: &[HostTensor],
    specs: &[TensorSpec],
    all: &[Row],
) -> Result<(), String> {
    let source = Source { above, inputs };
    for feed in 0..part.feeds.len() {
        let (axis, rows) = match part.feeds[feed] {
            Feed::Input(input) => (specs[input].batch_axis, all),
            Feed::Port { part, port } => (Some(source.above[part].ports[port]), &source.above[part].rows[..]),
        };
        let Some(axis) = axis.filter(|_| rows.len() != part.rows.len()) else {
            part.reads[feed] = Read::Whole;
            continue;
        };
        let view = source.view(part.feeds[feed])?;
        let of: usize = rows.last().map_or(0, |row| row.first + row.items);
        let outermost = view.shape.dims()[..axis].iter().all(|&dim| dim == 1);
        part.reads[feed] = match side_by_side(rows, &part.rows) {
            Some(first) if outermost => Read::Items { axis, first, of },
            _ => {
                copy_together(view, axis, rows, of, &part.rows, part.items, &mut part.copies[feed])?;
                Read::Copied
            }
        };
    }
    let fed = Fed { source, feeds: &part.feeds, reads: &part.reads, copies: &part.copies, items: part.items };
    // A view of an earlier part's output that is missing would panic below.
    for feed in fed.feeds {
        fed.source.view(*feed)?;
    }
    match catch_unwind(AssertUnwindSafe(|| part.runner.run(&fed))) {
        Ok(result) => result,
        Err(panic) => Err(format!("the engine panicked: {}", panic_text(&*panic))),
    }
}

/// Where in `rows` the requests of `chosen`, some of them in the same order, begin, if nothing lies between them.
fn side_by_side(rows: &[Row], chosen: &[Row]) -> Option<usize> {
    let start = rows.iter().position(|row| row.request == chosen[0].request)?;
    let found = rows.get(start..start + chosen.len())?;
    let same = found.iter().zip(chosen).all(|(row, chosen)| row.request == chosen.request);
    same.then_some(rows[start].first)
}

/// The items of `chosen`, which are some of `rows` in the same order, as a tensor of their own.
fn copy_together(
    view: View<'_>,
    axis: usize,
    rows: &[Row],
    of: usize,
    chosen: &[Row],
    items: usize,
    into: &mut HostTensor,
) -> Result<(), String> {
    let layout = Strided::new(view.shape.dims(), Some(axis), view.dtype).ok_or("a tensor is too large")?;
    (into.dtype, into.shape) = (view.dtype, view.shape);
    into.shape.dims_mut()[axis] = items as u32;
    into.bytes.resize(layout.bytes(items).ok_or("a tensor is too large")?);
    let mut rows = rows.iter();
    for to in chosen {
        let from = rows.find(|row| row.request == to.request).ok_or("a request is missing above")?;
        layout.copy(view.bytes, (from.first, of), &mut into.bytes, (to.first, items), to.items);
    }
    Ok(())
}

/// What parts read from.
#[derive(Clone, Copy)]
struct Source<'a, R> {
    above: &'a [Part<R>],
    inputs: &'a [HostTensor],
}

impl<'a, R: Runner> Source<'a, R> {
    fn view(&self, feed: Feed) -> Result<View<'a>, String> {
        match feed {
            Feed::Input(input) => Ok(self.inputs[input].view()),
            Feed::Port { part, port } => {
                let part = &self.above[part];
                let view = part.runner.output(port)?;
                let found = view.shape.dims().get(part.ports[port]).map(|&dim| dim as usize);
                match found == Some(part.items) {
                    true => Ok(view),
                    false => Err(format!("a shared part gave {} for {} items", view.shape, part.items)),
                }
            }
        }
    }
}

/// The inputs of a part.
struct Fed<'a, R> {
    source: Source<'a, R>,
    feeds: &'a [Feed],
    reads: &'a [Read],
    copies: &'a [HostTensor],
    items: usize,
}

impl<R: Runner> Inputs for Fed<'_, R> {
    fn count(&self) -> usize {
        self.feeds.len()
    }

    fn get(&self, index: usize) -> View<'_> {
        let whole = || self.source.view(self.feeds[index]).expect("every feed was looked at before the run");
        match self.reads[index] {
            Read::Whole => whole(),
            Read::Copied => self.copies[index].view(),
            Read::Items { axis, first, of } => {
                let View { dtype, mut shape, bytes } = whole();
                let each = bytes.len() / of;
                shape.dims_mut()[axis] = self.items as u32;
                View { dtype, shape, bytes: &bytes[first * each..(first + self.items) * each] }
            }
        }
    }
}
