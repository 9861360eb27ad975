//! The legs of a flight: which parts and stacks run for whom, and in which plans.

use super::super::CudaError;
use super::super::plan::Plan;
use super::super::runner::CudaRunner;
use crate::batched::{Batched, Form, Runner, check_output, wants};
use crate::parts::{Feed, Part, Row};
use crate::view::View;
use crate::{Batch, Shape, ShapeClass, Span};
use std::sync::Arc;

/// What runs in a leg, by its place in the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Of {
    Part(usize),
    Stack(usize),
}

/// A part's share in a flight, or a stack's.
pub(super) struct Leg {
    pub of: Of,
    pub rows: Vec<Row>,
    /// That the plan computes: those of the rows, and beyond them whatever the buffers held.
    pub items: usize,
    pub plan: Arc<Plan>,
}

/// An output of the network that a leg makes.
pub(super) struct Made {
    /// Among the network's.
    pub index: usize,
    /// Among the plan's.
    pub own: usize,
    pub form: Form,
}

impl Of {
    pub fn part<R: Runner>(self, network: &Batched<R>) -> &Part<R> {
        match self {
            Of::Part(part) => &network.parts[part],
            Of::Stack(stack) => &network.stacks[stack].part,
        }
    }

    /// What runs it; `None`: no GPU does.
    pub fn runner<R: Runner>(self, network: &mut Batched<R>) -> Option<&mut CudaRunner> {
        match self {
            Of::Part(part) => network.parts[part].runner.on_gpu(),
            Of::Stack(stack) => network.stacks[stack].part.runner.on_gpu(),
        }
    }

    /// Whether others go on from it; a stack's members are parts that nobody goes on from.
    pub fn is_last<R: Runner>(self, network: &Batched<R>) -> bool {
        match self {
            Of::Part(part) => network.parts[part].is_last(),
            Of::Stack(_) => true,
        }
    }

    /// Whether a request of which `spans` are those of its outputs is among its rows.
    pub fn is_wanted<R: Runner>(self, network: &Batched<R>, spans: &[Span]) -> bool {
        match self {
            Of::Part(part) => wants(spans, &network.parts[part].outputs),
            Of::Stack(stack) => {
                network.stacks[stack].members.iter().any(|&member| wants(spans, &network.parts[member].outputs))
            }
        }
    }
}

/// Requests (index, items) one behind the other.
pub(super) fn line_up(requests: impl Iterator<Item = (usize, usize)>, into: &mut Vec<Row>) {
    let mut first = 0;
    into.clear();
    into.extend(requests.map(|(request, items)| {
        let row = Row { request, first, items };
        first += items;
        row
    }));
}

pub(super) fn count(rows: &[Row]) -> usize {
    rows.last().map_or(0, |row| row.first + row.items)
}

/// What runs for the requests `all`, in order: the shared parts, the stacks that are faster than their members, and the other last parts.
pub(super) fn choose<R: Runner>(network: &Batched<R>, batch: &Batch, all: &[Row], into: &mut Vec<Of>) {
    let inputs = network.signature.inputs.len();
    let rows = |of: Of| all.iter().filter(move |row| of.is_wanted(network, batch.output_spans(row.request, inputs)));
    let items = |of: Of| rows(of).map(|row| row.items).sum::<usize>();
    into.clear();
    let part = |&part: &usize| rows(Of::Part(part)).next().is_some();
    into.extend((0..network.parts.len()).filter(|&at| !network.parts[at].is_last()).filter(part).map(Of::Part));
    let own = into.len();
    let is_faster = |&stack: &usize| {
        let one_by_one = network.stacks[stack].one_by_one(|member| items(Of::Part(member)));
        one_by_one.is_some_and(|one_by_one| network.stacks[stack].is_faster(items(Of::Stack(stack)), one_by_one))
    };
    into.extend((0..network.stacks.len()).filter(is_faster).map(Of::Stack));
    let stacks = own..into.len();
    for at in (0..network.parts.len()).filter(|&at| network.parts[at].is_last()).filter(part) {
        let in_a_stack = |of: &Of| matches!(*of, Of::Stack(stack) if network.stacks[stack].members.contains(&at));
        if !into[stacks.clone()].iter().any(in_a_stack) {
            into.push(Of::Part(at));
        }
    }
}

/// The leg for `of`, behind those that there are; `None` when the batch can't go this way.
pub(super) fn plan<R: Runner>(
    network: &mut Batched<R>,
    batch: &Batch,
    slot: usize,
    of: Of,
    legs: &[Leg],
    rows: Vec<Row>,
) -> Result<Option<Leg>, CudaError> {
    let items = match network.signature.batches() {
        true => bucket(count(&rows), network.max_items),
        false => count(&rows),
    };
    let feeds = &of.part(network).feeds;
    // An input of one request alone that the class does not have: the other way reads it. And what a part hands on has to have its items.
    let in_order = |feed: &Feed| match *feed {
        Feed::Input(input) => {
            network.signature.inputs[input].batch_axis.is_some() || batch.class.constants[input].is_some()
        }
        Feed::Port { part, port } => legs.iter().find(|leg| leg.of == Of::Part(part)).is_some_and(|leg| {
            let dims = leg.plan.output_places[port].shape;
            dims.dims().get(network.parts[part].ports[port]).is_some_and(|&dim| dim as usize == leg.items)
        }),
    };
    let above = |part: usize| Some(Arc::clone(&legs.iter().find(|leg| leg.of == Of::Part(part))?.plan));
    let views = views(network, &batch.class, feeds, items, above).filter(|_| feeds.iter().all(in_order));
    let Some(views) = views else { return Ok(None) };
    let Some(runner) = of.runner(network) else { return Ok(None) };
    let leg = Leg { of, rows, items, plan: runner.find(slot, &views)? };
    if !fits(network, batch, &leg) {
        return Ok(None);
    }
    if let Of::Stack(stack) = of {
        let inputs = network.signature.inputs.len();
        let asked = |member: usize| {
            let outputs = &network.parts[network.stacks[stack].members[member]].outputs;
            let mut rows = leg.rows.iter().filter(|row| wants(batch.output_spans(row.request, inputs), outputs));
            let Some(first) = rows.next() else { return Some((0, 0)) };
            let last = rows.next_back().unwrap_or(first);
            Some((first.first, last.first + last.items - first.first))
        };
        // SAFETY: the slot's last batch has ended, and with it what its plans were given.
        unsafe { leg.plan.ask(asked) };
    }
    Ok(Some(leg))
}

/// The size of the plan that a batch of `items` runs in: the next power of two, but not past the largest batch. So few plans serve all
/// batches, each of them made when the network is measured, and the profile is a step from one to the next.
fn bucket(items: usize, most: u32) -> usize {
    let most = most as usize;
    if items >= most { items } else { items.next_power_of_two().min(most) }
}

/// What is fed to a part for `items` items of a class, where `above` gives the plan of an earlier part. Without bytes what the class does not
/// have; `None` when a part above does not give what it is to hand on.
pub(crate) fn views<'a, R: Runner>(
    network: &Batched<R>,
    class: &'a ShapeClass,
    feeds: &[Feed],
    items: usize,
    above: impl Fn(usize) -> Option<Arc<Plan>>,
) -> Option<Vec<View<'a>>> {
    let with_items = |mut shape: Shape, axis: Option<usize>| {
        if let Some(axis) = axis {
            *shape.dims_mut().get_mut(axis)? = items as u32;
        }
        Some(shape)
    };
    let view = |feed: &Feed| match *feed {
        Feed::Input(input) => {
            let spec = &network.signature.inputs[input];
            let shape = with_items(*class.inputs.get(input)?, spec.batch_axis)?;
            Some(View { dtype: spec.dtype, shape, bytes: class.constants.get(input)?.as_deref().unwrap_or(&[]) })
        }
        Feed::Port { part, port } => {
            let above = above(part)?;
            let place = above.output_places.get(port)?;
            let shape = with_items(place.shape, network.parts[part].ports.get(port).copied())?;
            Some(View { dtype: place.dtype, shape, bytes: &[] })
        }
    };
    feeds.iter().map(view).collect()
}

/// The network's outputs that a leg makes. One of a stack that is not as its columns say is left out; so it does not fit.
pub(super) fn made<'a, R: Runner>(network: &'a Batched<R>, leg: &'a Leg) -> impl Iterator<Item = Made> + 'a {
    let own = match leg.of {
        Of::Part(part) if network.parts[part].is_last() => Some(part),
        _ => None,
    };
    let whole = own.into_iter().flat_map(|part| network.parts[part].outputs.clone().enumerate()).map(|(own, index)| {
        let place = &leg.plan.output_places[own];
        Made { index, own, form: Form::whole(place.dtype, place.shape) }
    });
    let stack = match leg.of {
        Of::Stack(stack) => Some(&network.stacks[stack]),
        Of::Part(_) => None,
    };
    let columns = stack.into_iter().flat_map(move |stack| {
        stack.members.iter().enumerate().flat_map(move |(place, &member)| {
            network.parts[member].outputs.clone().enumerate().filter_map(move |(own, index)| {
                let (rank, of) = (network.signature.outputs[index].dims.len(), &leg.plan.output_places[own]);
                Some(Made { index, own, form: stack.form(place, own, rank, of.dtype, of.shape)? })
            })
        })
    });
    whole.chain(columns)
}

/// Whether the outputs are what the network declares, and have room where they are wanted.
fn fits<R: Runner>(network: &Batched<R>, batch: &Batch, leg: &Leg) -> bool {
    let inputs = network.signature.inputs.len();
    let expected = match leg.of {
        Of::Part(part) if network.parts[part].is_last() => network.parts[part].outputs.len(),
        Of::Part(_) => 0,
        Of::Stack(stack) => {
            network.stacks[stack].members.iter().map(|&member| network.parts[member].outputs.len()).sum()
        }
    };
    let fits = |made: &Made| {
        let spec = &network.signature.outputs[made.index];
        let layout = made.form.layout(spec.batch_axis);
        let room = |row: &Row| {
            let items = if spec.batch_axis.is_some() { row.items } else { 1 };
            let needed = layout.and_then(|layout| layout.bytes(items));
            let span = batch.output_spans(row.request, inputs)[made.index];
            span.offset == Span::UNWANTED || needed.is_some_and(|needed| needed <= span.bytes)
        };
        check_output(spec, made.form.dtype, made.form.shape, leg.items).is_ok() && leg.rows.iter().all(room)
    };
    made(network, leg).filter(fits).count() == expected
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_run_in_the_next_power_of_two_but_not_past_the_largest() {
        let buckets: Vec<usize> = (1..=13).map(|items| bucket(items, 12)).collect();
        assert_eq!(buckets, [1, 2, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12, 13]);
        assert_eq!(bucket(3, 0), 3);
    }
}
