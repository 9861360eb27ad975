//! A batch on its way through a GPU, without a copy through our own memory and without waiting for it.
//!
//! [`stage`] gives the GPU the copies of its inputs, out of the clients' arenas into one of two sets of buffers, while another batch
//! executes out of the other. [`begin`] gives it the rest: for each part, or stack of parts, one launch, then the copies of its outputs
//! into the arenas, on a stream of their own. [`ended`] looks how far it has got.
//!
//! Only batches take this way in which nothing is wrong: each request is sound, they share a batch, every output fits. All others, and
//! those that fail on the way, are executed by [`Batched`] step by step, which finds who is guilty.

mod legs;
mod moves;
#[cfg(test)]
mod tests;

use super::CudaError;
use super::driver::{Context, DriverError, Event, Stream};
use super::gpu::Session;
use crate::batched::{Batched, Runner, input_layout};
use crate::parts::{Feed, Row};
use crate::strided::Strided;
use crate::{Batch, BatchId, Outcome, Span, Written};
pub(crate) use legs::Of;
pub(crate) use legs::views;
use legs::{Leg, Made, line_up, made};
use moves::{Moves, Table, Way};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

/// The batches of a network that its GPU has: one executes, one is staged behind it.
#[derive(Default)]
pub(crate) struct Flights {
    slots: [Slot; 2],
    /// That the last batch took.
    last: usize,
}

/// A set of buffers, and the batch that has it.
#[derive(Default)]
struct Slot {
    state: State,
    id: BatchId,
    /// What a batch needs of the GPU besides its plans.
    equipment: Option<(Arc<Session>, Kit)>,
    /// All requests, as they lie in the network's inputs.
    rows: Vec<Row>,
    /// What runs, in order.
    legs: Vec<Leg>,
    /// Legs whose outputs are where they belong.
    landed: usize,
    // Lists that are kept for their room.
    order: Vec<usize>,
    chosen: Vec<Of>,
    spare: Vec<Vec<Row>>,
    /// By request: how kernels reach its arena.
    reach: Vec<Option<u64>>,
    moves: Moves,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Free,
    Staged,
    Begun,
}

/// Events and a table, which a session keeps from batch to batch.
pub(crate) struct Kit {
    /// The inputs are there.
    staged: Event,
    /// Before the first launch, on the GPU.
    started: Event,
    /// By leg.
    marks: Vec<Marks>,
    table: Table,
}

struct Marks {
    computed: Event,
    landed: Event,
}

impl Kit {
    pub fn new(context: &Arc<Context>) -> Result<Kit, DriverError> {
        let table = Table::new(context)?;
        Ok(Kit { staged: Event::new(context)?, started: Event::new(context)?, marks: Vec::new(), table })
    }

    /// Ready for a batch of so many legs.
    fn reserve(&mut self, legs: usize, context: &Arc<Context>) -> Result<(), DriverError> {
        self.table.clear();
        while self.marks.len() < legs {
            self.marks.push(Marks { computed: Event::new(context)?, landed: Event::new(context)? });
        }
        Ok(())
    }
}

/// Begins the copies of a batch's inputs, when it can go this way.
pub(crate) fn stage<R: Runner>(network: &mut Batched<R>, batch: &Batch) {
    // The other one than the last: so measuring a network makes the plans of both.
    let at = 1 - network.flights.last;
    if network.flights.slots[at].state != State::Free || !network.is_on_gpu() {
        return;
    }
    let all_sound = !batch.requests.is_empty()
        && network.check_batch(batch).is_ok()
        && (0..batch.requests.len()).all(|request| network.check(batch, request).is_ok())
        && (batch.requests.len() == 1 || network.shares(batch));
    if !all_sound {
        return;
    }
    let mut slot = std::mem::take(&mut network.flights.slots[at]);
    // What goes wrong here, a panic over a strange model included, is found again, and told, on the other way.
    if let Ok(Ok(true)) = catch_unwind(AssertUnwindSafe(|| prepare(network, batch, at, &mut slot))) {
        network.flights.last = at;
    } else {
        slot.abandon();
    }
    network.flights.slots[at] = slot;
}

/// Whether the batch is staged; false when it can't go this way.
fn prepare<R: Runner>(network: &mut Batched<R>, batch: &Batch, at: usize, slot: &mut Slot) -> Result<bool, CudaError> {
    slot.id = batch.id;
    slot.landed = 0;
    slot.order.clear();
    slot.order.extend(0..batch.requests.len());
    if network.parts.len() > 1 {
        network.sort(batch, &mut slot.order);
    }
    line_up(slot.order.iter().map(|&request| (request, batch.requests[request].items as usize)), &mut slot.rows);
    legs::choose(network, batch, &slot.rows, &mut slot.chosen);
    let inputs = network.signature.inputs.len();
    for &of in &slot.chosen {
        let mut own = slot.spare.pop().unwrap_or_default();
        let wanted = |row: &&Row| of.is_wanted(network, batch.output_spans(row.request, inputs));
        line_up(slot.rows.iter().filter(wanted).map(|row| (row.request, row.items)), &mut own);
        match legs::plan(network, batch, at, of, &slot.legs, own)? {
            Some(leg) => slot.legs.push(leg),
            None => return Ok(false),
        }
    }
    let Some(first) = slot.legs.first() else { return Ok(false) };
    let session = Arc::clone(&first.plan.session);
    if slot.legs.iter().any(|leg| !Arc::ptr_eq(&leg.plan.session, &session)) {
        return Ok(false);
    }
    session.context.enter().map_err(|error| session.noted(error))?;
    let mut kit = session.kit().map_err(|error| session.noted(error))?;
    let ready = kit.reserve(slot.legs.len(), &session.context);
    slot.equipment = Some((Arc::clone(&session), kit));
    ready.map_err(|error| session.noted(error))?;
    batch.requests.iter().for_each(|request| session.register(&request.arena));
    slot.state = State::Staged;
    session.copy_in(|stream| slot.upload(network, batch, stream)).map_err(|error| session.noted(error))?;
    Ok(true)
}

impl Slot {
    fn gpu(&mut self) -> Option<(&Arc<Session>, &mut Kit)> {
        self.equipment.as_mut().map(|(session, kit)| (&*session, kit))
    }

    /// Gives the stream the copies of the network's inputs. The caller holds [`Session::giving`].
    fn upload<R: Runner>(&mut self, network: &Batched<R>, batch: &Batch, stream: &Stream) -> Result<(), DriverError> {
        let Some((session, kit)) = &mut self.equipment else { return Ok(()) };
        look_up(batch, session, &mut self.reach);
        let moves = &mut self.moves;
        for leg in &self.legs {
            for (at, feed) in leg.of.part(network).feeds.iter().enumerate() {
                let (Feed::Input(input), Some(to)) = (*feed, leg.plan.input_address(at)) else { continue };
                let spec = &network.signature.inputs[input];
                if let (None, Some(content)) = (spec.batch_axis, &batch.class.constants[input]) {
                    // SAFETY: the content is the class's, which the batch keeps until the flight has ended; the driver checks the target.
                    unsafe { stream.upload(to, content.as_ptr(), content.len())? };
                    continue;
                }
                let Ok(layout) = input_layout(batch, spec, input) else { continue };
                for row in &leg.rows {
                    let span = batch.spans[row.request * network.stride() + input];
                    let arena = batch.requests[row.request].arena.as_ptr() as u64;
                    for (from, place, bytes) in layout.pieces(row.first, row.items, leg.items) {
                        let offset = (span.offset + from) as u64;
                        let reach = self.reach[row.request].map(|at| at + offset);
                        moves.push(arena + offset, to + place as u64, bytes, reach);
                    }
                }
            }
        }
        // SAFETY: a span is as large as its request's items and inside its arena (`check`), which the batch keeps mapped until it has ended;
        // the targets are the plans' inputs, whose last batch has ended.
        unsafe { moves.give(session, stream, &mut kit.table, Way::In)? };
        kit.staged.record(stream)
    }

    /// Gives the GPU all that comes behind the inputs.
    fn launch<R: Runner>(&mut self, network: &Batched<R>, batch: &Batch) -> Result<(), DriverError> {
        let Some((session, kit)) = &mut self.equipment else { return Ok(()) };
        session.context.enter()?;
        let _giving = session.giving();
        look_up(batch, session, &mut self.reach);
        session.stream.wait(&kit.staged)?;
        kit.started.record(&session.stream)?;
        for (leg, marks) in self.legs.iter().zip(&kit.marks) {
            hand_on(network, &self.legs, leg, &mut self.moves);
            // SAFETY: both ends lie in buffers of plans that the flight keeps.
            unsafe { self.moves.give(session, &session.stream, &mut kit.table, Way::Within)? };
            leg.plan.run()?;
            marks.computed.record(&session.stream)?;
            session.copies_out.wait(&marks.computed)?;
            leg.plan.fetch_flag(&session.copies_out)?;
            download(network, batch, leg, &self.reach, &mut self.moves);
            // SAFETY: a span lies inside its arena (`check`) and has room for its request's items (`fits`); the batch keeps the arena mapped
            // until the flight has ended, and the flight the plan.
            unsafe { self.moves.give(session, &session.copies_out, &mut kit.table, Way::Out)? };
            marks.landed.record(&session.copies_out)?;
        }
        Ok(())
    }

    /// Nothing of the batch is with the GPU any more.
    fn free(&mut self) {
        self.state = State::Free;
        self.moves.clear();
        self.spare.extend(self.legs.drain(..).map(|leg| leg.rows));
        if let Some((session, kit)) = self.equipment.take() {
            session.keep(kit);
        }
    }

    /// Whoever gives up a batch may drop the clients' memory: nothing of it may touch that any more. In a context that is lost nothing does.
    fn abandon(&mut self) {
        if let (Some((session, _)), true) = (&self.equipment, self.state != State::Free) {
            // A failure is the context's end.
            let _ = session.finish();
        }
        self.free();
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.abandon();
    }
}

/// Where kernels find the requests' arenas, for as long as the caller holds [`Session::giving`].
fn look_up(batch: &Batch, session: &Session, reach: &mut Vec<Option<u64>>) {
    reach.clear();
    reach.extend(batch.requests.iter().map(|request| session.device_address(&request.arena)));
}

/// A part's items from where the part above left them, inside the GPU.
fn hand_on<R: Runner>(network: &Batched<R>, legs: &[Leg], leg: &Leg, moves: &mut Moves) {
    for (input, feed) in leg.of.part(network).feeds.iter().enumerate() {
        let (Feed::Port { part, port }, Some(to)) = (*feed, leg.plan.input_address(input)) else { continue };
        let Some(above) = legs.iter().find(|above| above.of == Of::Part(part)) else { continue };
        let (place, axis) = (&above.plan.output_places[port], network.parts[part].ports[port]);
        let Some(layout) = Strided::new(place.shape.dims(), Some(axis), place.dtype) else { continue };
        let (from, mut above_rows) = (above.plan.output_address(port), above.rows.iter());
        for row in &leg.rows {
            let Some(above_row) = above_rows.find(|above| above.request == row.request) else { continue };
            let sources = layout.pieces(above_row.first, above_row.items, above.items);
            for ((_, source, bytes), (_, target, _)) in sources.zip(layout.pieces(row.first, row.items, leg.items)) {
                moves.push(from + source as u64, to + target as u64, bytes, None);
            }
        }
    }
}

/// A leg's outputs to where its requests want them.
fn download<R: Runner>(network: &Batched<R>, batch: &Batch, leg: &Leg, reach: &[Option<u64>], moves: &mut Moves) {
    for Made { index, own, form } in made(network, leg) {
        let spec = &network.signature.outputs[index];
        let Some(layout) = form.layout(spec.batch_axis) else { continue };
        let from = leg.plan.output_address(own);
        for row in &leg.rows {
            let span = output_span(network, batch, row, index);
            if span.offset == Span::UNWANTED {
                continue;
            }
            let arena = batch.requests[row.request].arena.as_mut_ptr() as u64;
            let whole = spec.batch_axis.is_none();
            let (first, items, total) = if whole { (0, 1, 1) } else { (row.first, row.items, leg.items) };
            for (to, source, bytes) in layout.pieces(first, items, total) {
                let offset = (span.offset + to) as u64;
                moves.push(from + source as u64, arena + offset, bytes, reach[row.request].map(|at| at + offset));
            }
        }
    }
}

fn output_span<R: Runner>(network: &Batched<R>, batch: &Batch, row: &Row, output: usize) -> Span {
    batch.output_spans(row.request, network.signature.inputs.len())[output]
}

impl Flights {
    fn find(&self, id: BatchId, state: State) -> Option<usize> {
        self.slots.iter().position(|slot| slot.state == state && slot.id == id)
    }
}

/// Whether the batch is staged and not begun.
pub(crate) fn is_staged<R: Runner>(network: &Batched<R>, batch: &Batch) -> bool {
    network.flights.find(batch.id, State::Staged).is_some()
}

/// Gives the GPU the rest of the staged batch; false when it was not staged, or that failed.
pub(crate) fn begin<R: Runner>(network: &mut Batched<R>, batch: &mut Batch) -> bool {
    let Some(at) = network.flights.find(batch.id, State::Staged) else { return false };
    batch.started = Some(Instant::now());
    batch.written.clear();
    batch.written.resize(batch.requests.len() * network.signature.outputs.len(), Written::default());
    batch.requests.iter_mut().for_each(|request| request.outcome = Outcome::Pending);
    let mut slot = std::mem::take(&mut network.flights.slots[at]);
    slot.state = State::Begun;
    let launched = slot.launch(network, batch);
    if let Err(error) = &launched {
        if let Some((session, _)) = slot.gpu() {
            session.noted(error.clone());
        }
        slot.abandon();
    }
    network.flights.slots[at] = slot;
    launched.is_ok()
}

/// Whether the batch has ended; tells of requests that are done before it. After an error it has to be executed again.
pub(crate) fn ended<R: Runner>(
    network: &mut Batched<R>,
    batch: &mut Batch,
    done: &mut dyn FnMut(&mut Batch, usize),
) -> Result<bool, CudaError> {
    let Some(at) = network.flights.find(batch.id, State::Begun) else { return Ok(true) };
    let mut slot = std::mem::take(&mut network.flights.slots[at]);
    let result = land(network, batch, &mut slot, done);
    match &result {
        Ok(false) => {}
        Ok(true) => slot.free(),
        Err(error) => {
            if let (CudaError::Driver(error), Some((session, _))) = (error, slot.gpu()) {
                session.noted(error.clone());
            }
            slot.abandon();
        }
    }
    network.flights.slots[at] = slot;
    result
}

fn land<R: Runner>(
    network: &Batched<R>,
    batch: &mut Batch,
    slot: &mut Slot,
    done: &mut dyn FnMut(&mut Batch, usize),
) -> Result<bool, CudaError> {
    let Some((session, kit)) = &slot.equipment else { return Ok(true) };
    session.context.enter()?;
    while let Some((leg, marks)) = slot.legs.get(slot.landed).zip(kit.marks.get(slot.landed)) {
        if !marks.landed.is_done()? {
            return Ok(false);
        }
        if leg.plan.is_flagged() {
            // What lies beyond the rows of later batches must not be flagged again.
            leg.plan.clear_inputs()?;
            return Err(CudaError::Index);
        }
        slot.landed += 1;
        write(network, batch, leg, &slot.legs[slot.landed..], done);
    }
    let last = slot.legs.len().checked_sub(1).and_then(|last| kit.marks.get(last));
    let took = last.map(|marks| marks.landed.since(&kit.started));
    batch.took = took.transpose()?.unwrap_or_default();
    for row in &slot.rows {
        let request = &mut batch.requests[row.request];
        if request.outcome == Outcome::Pending {
            request.outcome = Outcome::Done;
        }
    }
    Ok(true)
}

/// Notes a leg's outputs as written, and tells of requests that want none of a `later` leg.
fn write<R: Runner>(
    network: &Batched<R>,
    batch: &mut Batch,
    leg: &Leg,
    later: &[Leg],
    done: &mut dyn FnMut(&mut Batch, usize),
) {
    let outputs = network.signature.outputs.len();
    for Made { index, form, .. } in made(network, leg) {
        for row in &leg.rows {
            if output_span(network, batch, row, index).offset == Span::UNWANTED {
                continue;
            }
            let mut shape = form.shape;
            if let Some(axis) = network.signature.outputs[index].batch_axis {
                shape.dims_mut()[axis] = row.items as u32;
            }
            let bytes = shape.elements().unwrap_or(0) * form.dtype.bytes();
            batch.written[row.request * outputs + index] = Written { bytes, shape };
        }
    }
    if later.is_empty() || !leg.of.is_last(network) {
        return;
    }
    for row in &leg.rows {
        let spans = batch.output_spans(row.request, network.signature.inputs.len());
        let waits = later.iter().any(|leg| leg.of.is_last(network) && leg.of.is_wanted(network, spans));
        if !waits && batch.requests[row.request].outcome == Outcome::Pending {
            batch.requests[row.request].outcome = Outcome::Done;
            done(batch, row.request);
        }
    }
}
