//! A batch on its way through a GPU, without a copy through our own memory and without waiting for it.
//!
//! [`stage`] gives the GPU the copies of its inputs, out of the clients' arenas into one of two sets of buffers, while another batch
//! executes out of the other. [`begin`] gives it the rest: for each part one launch, then the copies of its outputs into the arenas, on a
//! stream of their own. [`ended`] looks how far it has got.
//!
//! Only batches take this way in which nothing is wrong: each request is sound, they share a batch, every output fits. All others, and
//! those that fail on the way, are executed by [`Batched`] step by step, which finds who is guilty.

use super::CudaError;
use super::driver::{DriverError, Event, Stream};
use super::gpu::Session;
use super::plan::Plan;
use crate::batched::{Batched, Runner, check_output, input_layout, wants};
use crate::parts::{Feed, Row};
use crate::strided::Strided;
use crate::view::{Inputs, View};
use crate::{Batch, BatchId, Outcome, Shape, Span, Written};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

/// A batch that a GPU has.
pub(crate) struct Flight {
    id: BatchId,
    slot: usize,
    session: Arc<Session>,
    /// The parts that run, in order.
    legs: Vec<Leg>,
    /// All requests, as they lie in the network's inputs.
    rows: Vec<Row>,
    /// The inputs are there.
    staged: Event,
    /// Before the first launch, on the GPU.
    started: Event,
    begun: bool,
    /// Nothing of it is with the GPU any more.
    over: bool,
    /// Legs whose outputs are where they belong.
    landed: usize,
}

/// A part's share in a flight.
struct Leg {
    part: usize,
    rows: Vec<Row>,
    /// That the plan computes: those of the rows, and beyond them whatever the buffers held.
    items: usize,
    plan: Arc<Plan>,
    computed: Event,
    landed: Event,
}

/// One executes, one is staged.
const FLIGHTS_MAX: usize = 2;

/// Shapes, and the content of what is the same for every batch of the class.
struct Shapes<'a>(Vec<View<'a>>);

impl Inputs for Shapes<'_> {
    fn count(&self) -> usize {
        self.0.len()
    }

    fn get(&self, index: usize) -> View<'_> {
        self.0[index]
    }
}

/// Begins the copies of a batch's inputs, when it can go this way.
pub(crate) fn stage<R: Runner>(network: &mut Batched<R>, batch: &Batch) {
    if network.flights.len() >= FLIGHTS_MAX || network.parts.iter_mut().any(|part| part.runner.on_gpu().is_none()) {
        return;
    }
    let all_sound = !batch.requests.is_empty()
        && network.check_batch(batch).is_ok()
        && (0..batch.requests.len()).all(|request| network.check(batch, request).is_ok())
        && (batch.requests.len() == 1 || network.shares(batch));
    if !all_sound {
        return;
    }
    // What goes wrong here, a panic over a strange model included, is found again, and told, on the other way.
    if let Ok(Ok(Some(flight))) = catch_unwind(AssertUnwindSafe(|| prepare(network, batch))) {
        network.last_slot = flight.slot;
        network.flights.push(flight);
    }
}

fn prepare<R: Runner>(network: &mut Batched<R>, batch: &Batch) -> Result<Option<Flight>, CudaError> {
    // The other one than the last: so measuring a network makes the plans of both.
    let slot = match network.flights.first() {
        Some(flight) => 1 - flight.slot,
        None => 1 - network.last_slot,
    };
    let mut order: Vec<usize> = (0..batch.requests.len()).collect();
    if network.parts.len() > 1 {
        network.sort(batch, &mut order);
    }
    let all = rows(order.iter().map(|&request| (request, batch.requests[request].items as usize)));
    let mut legs: Vec<Leg> = Vec::new();
    for part in 0..network.parts.len() {
        let wanted = |row: &&Row| {
            wants(batch.output_spans(row.request, network.signature.inputs.len()), &network.parts[part].outputs)
        };
        let own = rows(all.iter().filter(wanted).map(|row| (row.request, row.items)));
        if own.is_empty() {
            continue;
        }
        let batches = network.signature.batches();
        let items = if batches { bucket(count(&own), network.max_items) } else { count(&own) };
        let Some(shapes) = shapes(network, batch, part, items, &legs) else { return Ok(None) };
        let runner = network.parts[part].runner.on_gpu().expect("every part is on the GPU");
        let plan = runner.find(slot, &shapes)?;
        plan.session.context.enter()?;
        let (computed, landed) = (Event::new(&plan.session.context)?, Event::new(&plan.session.context)?);
        let leg = Leg { part, rows: own, items, plan, computed, landed };
        if !fits(network, batch, &leg) {
            return Ok(None);
        }
        legs.push(leg);
    }
    let session = Arc::clone(&legs[0].plan.session);
    if legs.iter().any(|leg| !Arc::ptr_eq(&leg.plan.session, &session)) {
        return Ok(None);
    }
    let (staged, started) = (Event::new(&session.context)?, Event::new(&session.context)?);
    let flight =
        Flight { id: batch.id, slot, session, legs, rows: all, staged, started, begun: false, over: false, landed: 0 };
    batch.requests.iter().for_each(|request| flight.session.register(&request.arena));
    let give = |stream: &Stream| upload(network, batch, &flight).and_then(|()| flight.staged.record(stream));
    let uploaded = flight.session.copy_in(give);
    uploaded.map_err(|error| flight.session.noted(error))?;
    Ok(Some(flight))
}

/// Requests (index, items) one behind the other.
fn rows(requests: impl Iterator<Item = (usize, usize)>) -> Vec<Row> {
    let mut first = 0;
    let row = |(request, items)| {
        let row = Row { request, first, items };
        first += items;
        row
    };
    requests.map(row).collect()
}

fn count(rows: &[Row]) -> usize {
    rows.last().map_or(0, |row| row.first + row.items)
}

/// The size of the plan that a batch of `items` runs in: the next power of two, but not past the largest batch. So few plans serve all
/// batches, each of them made when the network is measured, and the profile is a step from one to the next.
fn bucket(items: usize, most: u32) -> usize {
    let most = most as usize;
    if items >= most { items } else { items.next_power_of_two().min(most) }
}

/// What a part's inputs are for `items` items; `None` when that can't be said before it runs.
fn shapes<'a, R: Runner>(
    network: &Batched<R>,
    batch: &'a Batch,
    part: usize,
    items: usize,
    legs: &[Leg],
) -> Option<Shapes<'a>> {
    let view = |feed: &Feed| match *feed {
        Feed::Input(input) => {
            let spec = &network.signature.inputs[input];
            let mut shape: Shape = batch.class.inputs[input];
            if let Some(axis) = spec.batch_axis {
                shape.dims_mut()[axis] = items as u32;
            }
            // An input of one request alone that the class does not have: the other way reads it.
            let known = spec.batch_axis.is_some() || batch.class.constants[input].is_some();
            let bytes = batch.class.constants[input].as_deref().unwrap_or(&[]);
            known.then_some(View { dtype: spec.dtype, shape, bytes })
        }
        Feed::Port { part, port } => {
            let above = legs.iter().find(|leg| leg.part == part)?;
            let (place, axis) = (&above.plan.output_places[port], network.parts[part].ports[port]);
            let mut shape = place.shape;
            if shape.dims().get(axis).map(|&dim| dim as usize) != Some(above.items) {
                return None;
            }
            shape.dims_mut()[axis] = items as u32;
            Some(View { dtype: place.dtype, shape, bytes: &[] })
        }
    };
    network.parts[part].feeds.iter().map(view).collect::<Option<Vec<_>>>().map(Shapes)
}

/// Whether the part's outputs are what the network declares, and have room where they are wanted.
fn fits<R: Runner>(network: &Batched<R>, batch: &Batch, leg: &Leg) -> bool {
    let part = &network.parts[leg.part];
    let fits = |(own, index): (usize, usize)| {
        let (spec, place) = (&network.signature.outputs[index], &leg.plan.output_places[own]);
        let layout = Strided::new(place.shape.dims(), spec.batch_axis, spec.dtype);
        let room = |row: &Row| {
            let items = if spec.batch_axis.is_some() { row.items } else { 1 };
            let needed = layout.and_then(|layout| layout.bytes(items));
            let span = output_span(network, batch, row, index);
            span.offset == Span::UNWANTED || needed.is_some_and(|needed| needed <= span.bytes)
        };
        check_output(spec, place.dtype, place.shape, leg.items).is_ok() && leg.rows.iter().all(room)
    };
    !part.is_last() || part.outputs.clone().enumerate().all(fits)
}

fn output_span<R: Runner>(network: &Batched<R>, batch: &Batch, row: &Row, output: usize) -> Span {
    batch.output_spans(row.request, network.signature.inputs.len())[output]
}

/// Gives the GPU the copies of the network's inputs.
fn upload<R: Runner>(network: &Batched<R>, batch: &Batch, flight: &Flight) -> Result<(), DriverError> {
    let stream = &flight.session.copies_in;
    for leg in &flight.legs {
        for (at, feed) in network.parts[leg.part].feeds.iter().enumerate() {
            let (Feed::Input(input), Some(to)) = (*feed, leg.plan.input_address(at)) else { continue };
            let spec = &network.signature.inputs[input];
            if let (None, Some(content)) = (spec.batch_axis, &batch.class.constants[input]) {
                // SAFETY: the content is the class's, which the batch keeps until the flight has ended; the driver checks the target.
                unsafe { stream.upload(to, content.as_ptr(), content.len())? };
                continue;
            }
            let Ok(layout) = input_layout(batch, spec, input) else { continue };
            for row in &leg.rows {
                let request = &batch.requests[row.request];
                let span = batch.spans[row.request * network.stride() + input];
                for (from, place, bytes) in layout.pieces(row.first, row.items, leg.items) {
                    // SAFETY: the span is as large as the request's items and inside its arena (`check`), which the batch keeps
                    // mapped until it has ended. Whatever else writes there can only change bytes. The driver checks the target.
                    unsafe { stream.upload(to + place as u64, request.arena.as_ptr().add(span.offset + from), bytes)? };
                }
            }
        }
    }
    Ok(())
}

/// Whether the batch is staged and not begun.
pub(crate) fn is_staged<R: Runner>(network: &Batched<R>, batch: &Batch) -> bool {
    network.flights.iter().any(|flight| flight.id == batch.id && !flight.begun)
}

/// Gives the GPU the rest of the staged batch; false when it was not staged, or that failed.
pub(crate) fn begin<R: Runner>(network: &mut Batched<R>, batch: &mut Batch) -> bool {
    let Some(at) = network.flights.iter().position(|flight| flight.id == batch.id && !flight.begun) else {
        return false;
    };
    batch.started = Some(Instant::now());
    batch.written.clear();
    batch.written.resize(batch.requests.len() * network.signature.outputs.len(), Written::default());
    batch.requests.iter_mut().for_each(|request| request.outcome = Outcome::Pending);
    network.flights[at].begun = true;
    match launch(network, batch, at) {
        Ok(()) => true,
        Err(error) => {
            network.flights.remove(at).session.noted(error);
            false
        }
    }
}

fn launch<R: Runner>(network: &Batched<R>, batch: &Batch, at: usize) -> Result<(), DriverError> {
    let flight = &network.flights[at];
    let session = &flight.session;
    session.context.enter()?;
    let _giving = session.giving();
    session.stream.wait(&flight.staged)?;
    flight.started.record(&session.stream)?;
    for leg in &flight.legs {
        for (input, feed) in network.parts[leg.part].feeds.iter().enumerate() {
            if let (Feed::Port { part, port }, Some(to)) = (*feed, leg.plan.input_address(input)) {
                hand_on(network, flight, leg, (part, port), to)?;
            }
        }
        leg.plan.run()?;
        leg.computed.record(&session.stream)?;
        session.copies_out.wait(&leg.computed)?;
        leg.plan.fetch_flag(&session.copies_out)?;
        if network.parts[leg.part].is_last() {
            download(network, batch, leg, &session.copies_out)?;
        }
        leg.landed.record(&session.copies_out)?;
    }
    Ok(())
}

/// Copies a part's items from where the part above left them, inside the GPU; those side by side at once.
fn hand_on<R: Runner>(
    network: &Batched<R>,
    flight: &Flight,
    leg: &Leg,
    (part, port): (usize, usize),
    to: u64,
) -> Result<(), DriverError> {
    let Some(above) = flight.legs.iter().find(|above| above.part == part) else { return Ok(()) };
    let (place, axis) = (&above.plan.output_places[port], network.parts[part].ports[port]);
    let Some(layout) = Strided::new(place.shape.dims(), Some(axis), place.dtype) else { return Ok(()) };
    let mut above_rows = above.rows.iter();
    let mut pieces: Vec<(usize, usize, usize)> = Vec::new();
    for row in &leg.rows {
        let Some(from) = above_rows.find(|above| above.request == row.request) else { continue };
        let sources = layout.pieces(from.first, from.items, above.items);
        for ((_, source, bytes), (_, target, _)) in sources.zip(layout.pieces(row.first, row.items, leg.items)) {
            match pieces.last_mut() {
                Some((from, to, length)) if *from + *length == source && *to + *length == target => *length += bytes,
                _ => pieces.push((source, target, bytes)),
            }
        }
    }
    let from = above.plan.output_address(port);
    for (source, target, bytes) in pieces {
        // SAFETY: both lie in buffers of plans that the flight keeps; the driver checks the ranges.
        unsafe { flight.session.stream.copy(to + target as u64, from + source as u64, bytes)? };
    }
    Ok(())
}

/// Gives the GPU the copies of a part's outputs into the arenas.
fn download<R: Runner>(network: &Batched<R>, batch: &Batch, leg: &Leg, stream: &Stream) -> Result<(), DriverError> {
    for (own, index) in network.parts[leg.part].outputs.clone().enumerate() {
        let (spec, place) = (&network.signature.outputs[index], &leg.plan.output_places[own]);
        let Some(layout) = Strided::new(place.shape.dims(), spec.batch_axis, spec.dtype) else { continue };
        for row in &leg.rows {
            let span = output_span(network, batch, row, index);
            if span.offset == Span::UNWANTED {
                continue;
            }
            let whole = spec.batch_axis.is_none();
            let (first, items, total) = if whole { (0, 1, 1) } else { (row.first, row.items, leg.items) };
            for (to, source, bytes) in layout.pieces(first, items, total) {
                // SAFETY: the span lies inside the arena (`check`) and has room for the request's items (`fits`); the batch keeps
                // the arena mapped until the flight has ended. The driver checks the source.
                unsafe {
                    let target = batch.requests[row.request].arena.as_mut_ptr().add(span.offset + to);
                    stream.download(target, leg.plan.output_address(own) + source as u64, bytes)?;
                }
            }
        }
    }
    Ok(())
}

/// Whether the batch has ended; tells of requests that are done before it. After an error it has to be executed again.
pub(crate) fn ended<R: Runner>(
    network: &mut Batched<R>,
    batch: &mut Batch,
    done: &mut dyn FnMut(&mut Batch, usize),
) -> Result<bool, CudaError> {
    let Some(at) = network.flights.iter().position(|flight| flight.id == batch.id) else { return Ok(true) };
    let result = land(network, batch, at, done);
    if !matches!(result, Ok(false)) {
        let mut flight = network.flights.remove(at);
        flight.over = result.is_ok();
        if let Err(CudaError::Driver(error)) = &result {
            flight.session.noted(error.clone());
        }
    }
    result
}

fn land<R: Runner>(
    network: &mut Batched<R>,
    batch: &mut Batch,
    at: usize,
    done: &mut dyn FnMut(&mut Batch, usize),
) -> Result<bool, CudaError> {
    network.flights[at].session.context.enter()?;
    loop {
        let flight = &network.flights[at];
        let Some(leg) = flight.legs.get(flight.landed) else { break };
        if !leg.landed.is_done()? {
            return Ok(false);
        }
        if leg.plan.is_flagged() {
            // What lies beyond the rows of later batches must not be flagged again.
            leg.plan.clear_inputs()?;
            return Err(CudaError::Index);
        }
        let (landed, last) = (flight.landed, network.parts[leg.part].is_last());
        network.flights[at].landed += 1;
        if last {
            write(network, batch, at, landed, done);
        }
    }
    let flight = &network.flights[at];
    let took = flight.legs.last().map(|leg| leg.landed.since(&flight.started));
    batch.took = took.transpose()?.unwrap_or_default();
    for row in &flight.rows {
        let request = &mut batch.requests[row.request];
        if request.outcome == Outcome::Pending {
            request.outcome = Outcome::Done;
        }
    }
    Ok(true)
}

/// Notes a part's outputs as written, and tells of requests that want none of a later part.
fn write<R: Runner>(
    network: &Batched<R>,
    batch: &mut Batch,
    at: usize,
    landed: usize,
    done: &mut dyn FnMut(&mut Batch, usize),
) {
    let flight = &network.flights[at];
    let (leg, outputs) = (&flight.legs[landed], network.signature.outputs.len());
    let part = &network.parts[leg.part];
    let ends = landed + 1 == flight.legs.len();
    for row in &leg.rows {
        for (own, index) in part.outputs.clone().enumerate() {
            if output_span(network, batch, row, index).offset == Span::UNWANTED {
                continue;
            }
            let place = &leg.plan.output_places[own];
            let mut shape = place.shape;
            if let Some(axis) = network.signature.outputs[index].batch_axis {
                shape.dims_mut()[axis] = row.items as u32;
            }
            let bytes = shape.elements().unwrap_or(0) * place.dtype.bytes();
            batch.written[row.request * outputs + index] = Written { bytes, shape };
        }
        let waits =
            (part.outputs.end..outputs).any(|later| output_span(network, batch, row, later).offset != Span::UNWANTED);
        if !ends && !waits && batch.requests[row.request].outcome == Outcome::Pending {
            batch.requests[row.request].outcome = Outcome::Done;
            done(batch, row.request);
        }
    }
}

/// Whoever drops a flight drops its batch, and with it the clients' memory: nothing of it may touch that any more. In a context that is lost
/// nothing does.
impl Drop for Flight {
    fn drop(&mut self) {
        let streams = [&self.session.copies_in, &self.session.stream, &self.session.copies_out];
        if !self.over {
            // A failure is the context's end.
            let _ = streams.into_iter().try_for_each(Stream::synchronize);
        }
    }
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
