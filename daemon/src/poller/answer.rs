//! Answers: exactly one completion for each request that was taken from a ring.

use super::Poller;
use super::admission::Refusal;
use crate::clock::nanos;
use crate::model::{Model, wire_dtype};
use crate::planning::Cause;
use rota_device::{Batch, Early, Outcome, Span, Written};
use rota_ipc::server::Record;
use rota_ipc::wire::{Completion, OutputRecord, RANK_MAX, Reason, Status, Submission};
use rota_sched::{DeviceId, DropReason, Event, Instant, ModelId, RequestId, SessionId};
use std::sync::Arc;
use std::time::Duration;

impl Poller {
    /// Takes back the batches that have ended and answers their requests. True when there was one.
    pub(super) fn take_finished(&mut self) -> bool {
        let mut worked = false;
        for device in 0..self.devices.len() {
            worked |= self.take_loss(device);
            loop {
                let ended = self.devices[device].device.poll();
                // Looked at after that: what was done early was said before.
                while let Some(early) = self.devices[device].device.poll_early() {
                    self.take_early(DeviceId(device as u32), &early);
                    worked = true;
                }
                let Some(batch) = ended else { break };
                self.finish(DeviceId(device as u32), batch);
                worked = true;
            }
        }
        worked
    }

    /// Tells the dispatcher when a device was lost, or is back.
    fn take_loss(&mut self, device: usize) -> bool {
        let state = &mut self.devices[device];
        if let Some(why) = state.device.poll_trouble() {
            tracing::warn!(device, description = %state.device.describe(), %why, "answers again and stays lost");
        }
        let lost = state.device.is_lost();
        if lost == state.lost {
            return false;
        }
        state.lost = lost;
        let id = DeviceId(device as u32);
        let description = state.device.describe();
        let is_last = self.devices.iter().all(|state| state.lost);
        match lost {
            true if is_last => tracing::error!(device, %description, "lost; no device is left"),
            true => tracing::error!(device, %description, "lost; the others go on"),
            false => tracing::warn!(device, %description, "back"),
        }
        self.dispatcher.handle(if lost { Event::Lost(id) } else { Event::Back(id) }, self.clock.now());
        self.ask_for_plan(Cause::Devices);
        true
    }

    /// Notes an output of a request whose batch still executes; with the last one the request is answered.
    fn take_early(&mut self, device: DeviceId, early: &Early) {
        let id = RequestId(early.key);
        let unit = &self.models[self.requests[id].unit.0 as usize].as_ref().expect("its requests run").model;
        let owner = self.requests[id].asked.iter().find_map(|asked| {
            let outputs = unit.outputs_of(asked.member);
            outputs.contains(&early.output).then(|| (asked.place, early.output - outputs.start))
        });
        if let Some((place, tensor)) = owner {
            let dtype = wire_dtype(unit.signature.outputs[early.output].dtype);
            self.early.push(output_record(tensor, place, dtype, &early.written));
        }
        if early.last {
            std::mem::swap(&mut self.early, &mut self.records);
            self.early.clear();
            let run = Run { device, started: self.clock.place(early.started), took: early.took, items: early.items };
            self.requests[id].told = true;
            let now = self.clock.now();
            self.answer_ran(id, run, None, now);
        }
    }

    fn finish(&mut self, device: DeviceId, mut batch: Box<Batch>) {
        let now = self.clock.now();
        let started = batch.started.map_or(now, |at| self.clock.place(at));
        let items = batch.requests.iter().map(|r| r.items).sum();
        let outputs = batch.written.len() / batch.requests.len().max(1);
        let first = &self.requests[RequestId(batch.requests[0].key)];
        let (unit, queue) = (first.unit, first.queue);
        let model = Arc::clone(&self.models[unit.0 as usize].as_ref().expect("its requests run").model);
        self.count_batch(&batch, queue, items);
        // What fails with its device is not at fault: asked again, it may well be answered.
        let is_lost = self.devices[device.0 as usize].device.is_lost();
        for index in 0..batch.requests.len() {
            let request = &batch.requests[index];
            let id = RequestId(request.key);
            let run = Run { device, started, took: batch.took, items };
            match &request.outcome {
                Outcome::Done => {
                    self.record_outputs(id, &model, &batch.written[index * outputs..(index + 1) * outputs]);
                    self.answer_ran(id, run, None, now);
                }
                Outcome::OutputTooSmall { output, needed, room } => {
                    let name = &model.signature.outputs[*output].name;
                    let text = format!("output \"{name}\" needs {needed} bytes and has room for {room}");
                    self.answer_ran(id, run, Some((Reason::OutputTooSmall, &text)), now);
                }
                Outcome::Told => self.forget_told(id),
                Outcome::Failed(text) if is_lost => {
                    let text = format!("its device was lost ({text})");
                    self.answer_ran(id, run, Some((Reason::DeviceLost, &text)), now);
                }
                Outcome::Failed(text) => self.answer_ran(id, run, Some((Reason::Engine, text)), now),
                Outcome::Pending => {
                    self.answer_ran(id, run, Some((Reason::DeviceLost, "the device gave it back unexecuted")), now);
                }
            }
        }
        let finished = Event::Finished { device, batch: rota_sched::BatchId(batch.id.0 as u32), took: batch.took };
        self.dispatcher.handle(finished, now);
        batch.requests.clear();
        batch.spans.clear();
        batch.written.clear();
        let state = &mut self.devices[device.0 as usize];
        state.batches += 1;
        state.busy += batch.took;
        state.pool.push(batch);
        self.model_mut(unit).outstanding -= 1;
        self.leave_unit(unit, &model);
    }

    /// Counts a batch for the sessions whose requests were in it, and for the queue that it came from.
    fn count_batch(&mut self, batch: &Batch, queue: SessionId, items: u32) {
        self.batches += 1;
        let of = |key: u32| &self.requests[RequestId(key)];
        let asked: u64 = batch.requests.iter().map(|r| u64::from(r.items) * of(r.key).asked.len() as u64).sum();
        let mut count = |session: SessionId, items: u32, share: f64| {
            let Some(session) = self.sessions[session.0 as usize].as_mut() else { return };
            let stats = &mut session.stats;
            stats.batches += u64::from(stats.last_batch != self.batches);
            stats.last_batch = self.batches;
            stats.batched_items += u64::from(items);
            stats.busy += batch.took.mul_f64(share);
        };
        let mut is_group = true;
        for request in &batch.requests {
            let share = f64::from(request.items) / asked.max(1) as f64;
            for asked in &self.requests[RequestId(request.key)].asked {
                is_group &= asked.session != queue;
                count(asked.session, request.items, share);
            }
        }
        if is_group {
            count(queue, items, 1.0);
        }
    }

    /// Notes in `self.records` what a request's outputs have become; `written` has one for each of the unit's.
    fn record_outputs(&mut self, id: RequestId, unit: &Model, written: &[Written]) {
        self.records.clear();
        let request = &self.requests[id];
        let mut spans = request.spans[request.shapes.len()..].iter();
        for asked in &request.asked {
            for (tensor, output) in unit.outputs_of(asked.member).enumerate() {
                let wanted = spans.next().is_some_and(|span| span.offset != Span::UNWANTED);
                if wanted {
                    let dtype = wire_dtype(unit.signature.outputs[output].dtype);
                    self.records.push(output_record(tensor, asked.place, dtype, &written[output]));
                }
            }
        }
    }

    /// Answers a request whose batch has ended; `self.records` holds its outputs when nothing went wrong.
    fn answer_ran(&mut self, id: RequestId, run: Run, wrong: Option<(Reason, &str)>, now: Instant) {
        let request = &self.requests[id];
        let status = match wrong {
            _ if request.cancelled => Status::Cancelled,
            Some(_) => Status::Failed,
            None if now > request.due => Status::Late,
            None => Status::Ok,
        };
        let queued = run.started.since(request.arrival);
        let total = now.since(request.arrival);
        let completion = Completion {
            queued_ns: nanos(queued),
            executing_ns: nanos(run.took),
            batch: run.items,
            device: run.device.0,
            ..Default::default()
        };
        let (reason, record) = match wrong {
            Some((reason, text)) => (reason, Record::Text(text)),
            None => (Reason::None, Record::Outputs(&[])),
        };
        if matches!(status, Status::Ok | Status::Late) {
            for asked in &request.asked {
                let session = self.sessions[asked.session.0 as usize].as_mut();
                let stats = &mut session.expect("a session stays while requests of it are in flight").stats;
                stats.record(queued, run.took, total);
                if status == Status::Ok {
                    stats.good.count(request.items, now);
                }
            }
        }
        self.call_ended(id, (status, reason), now);
        self.answer(id, status, reason, completion, record);
    }

    pub(super) fn answer_dropped(&mut self, id: RequestId, reason: DropReason, now: Instant) {
        let (status, reason, text) = match reason {
            DropReason::Hopeless if self.is_unserved(self.requests[id].unit) => (
                Status::Dropped,
                Reason::Hopeless,
                "all devices that serve its model are lost, and none came back in time",
            ),
            DropReason::Hopeless => {
                (Status::Dropped, Reason::Hopeless, "it could no longer be answered by its deadline")
            }
            DropReason::Removed if self.draining => (Status::Dropped, Reason::Draining, "the daemon is stopping"),
            DropReason::Removed => (Status::Failed, Reason::Unloaded, "the session's model was unloaded"),
        };
        self.answer_unrun(id, status, reason, text, now);
    }

    /// Whether every device that serves this model is lost.
    fn is_unserved(&self, unit: ModelId) -> bool {
        let unit = self.models[unit.0 as usize].as_ref();
        let serving = unit.iter().flat_map(|unit| unit.model.profiles.iter().zip(&self.devices));
        serving.filter(|(profile, _)| profile.is_some()).all(|(_, state)| state.lost)
    }

    /// Answers a request that never ran.
    pub(super) fn answer_unrun(&mut self, id: RequestId, status: Status, reason: Reason, text: &str, now: Instant) {
        let queued_ns = nanos(now.since(self.requests[id].arrival));
        let completion = Completion { queued_ns, ..Default::default() };
        self.call_ended(id, (status, reason), now);
        self.answer(id, status, reason, completion, Record::Text(text));
    }

    /// Answers an accepted request and takes it off all books. An empty `Record::Outputs` stands for `self.records`. Where it is
    /// one of several that a submission became, its client hears when the last of them has ended.
    fn answer(&mut self, id: RequestId, status: Status, reason: Reason, completion: Completion, record: Record<'_>) {
        let request = &self.requests[id];
        let (key, slot, first, unit) = (request.client as usize, request.slot, request.first, request.unit);
        let completion = Completion {
            tag: request.tag,
            slot,
            status: status as u8,
            reason: reason as u8,
            arrival_ns: request.arrival.0,
            ..completion
        };
        let class = request.class;
        for asked in &request.asked {
            let session = self.sessions[asked.session.0 as usize].as_mut();
            session.expect("a session stays while requests of it are in flight").stats.count(status);
        }
        self.model_mut(unit).classes.leave(class);
        if self.requests[first].pieces.left.is_empty() {
            self.complete(key, completion, record);
        } else {
            let was_last = self.requests[first].pieces.end(id, (status, reason), completion, record, &self.records);
            if id != first {
                self.let_go(id);
            }
            if !was_last {
                return;
            }
            let pieces = std::mem::take(&mut self.requests[first].pieces);
            let record = match pieces.ended {
                Some((Status::Ok | Status::Late, _)) => Record::Outputs(&pieces.records),
                _ => Record::Text(&pieces.text),
            };
            self.complete(key, pieces.completion, record);
            self.requests[first].pieces = pieces;
        }
        self.clients.release(key, slot);
        self.let_go(first);
        self.remove_if_ended(key);
    }

    /// Frees a request that was answered, unless its batch still executes: then its number is the batch's until that ends.
    fn let_go(&mut self, id: RequestId) {
        if !self.requests[id].told {
            self.requests.release(id);
        }
    }

    /// The batch of a request that was answered early has ended. One that stands for others which have not ended stays.
    fn forget_told(&mut self, id: RequestId) {
        self.requests[id].told = false;
        if self.requests[id].pieces.left.is_empty() {
            self.requests.release(id);
        }
    }

    /// Writes a completion; an empty `Record::Outputs` stands for `self.records`.
    fn complete(&mut self, key: usize, completion: Completion, record: Record<'_>) {
        let record = match record {
            Record::Outputs([]) => Record::Outputs(&self.records),
            given => given,
        };
        let client = &mut self.clients.entries[key];
        if !client.dying {
            client.connection.complete(completion, record);
            mark_dirty(client, key, &mut self.dirty);
        }
    }

    /// Answers a submission that never became a request.
    pub(super) fn refuse(
        &mut self,
        key: usize,
        submission: &Submission,
        status: Status,
        refusal: &Refusal,
        now: Instant,
    ) {
        let completion = Completion {
            tag: submission.tag,
            slot: submission.slot,
            status: status as u8,
            reason: refusal.reason as u8,
            arrival_ns: now.0,
            ..Default::default()
        };
        // A slot that is in use, or is none, has no record of its own to write to.
        let text = if refusal.reason == Reason::BadSlot { "" } else { &refusal.text };
        let client = &mut self.clients.entries[key];
        client.connection.complete(completion, Record::Text(text));
        mark_dirty(client, key, &mut self.dirty);
    }
}

/// How the batch of a request ran.
#[derive(Clone, Copy)]
struct Run {
    device: DeviceId,
    started: Instant,
    took: Duration,
    items: u32,
}

fn mark_dirty(client: &mut super::clients::Client, key: usize, dirty: &mut Vec<usize>) {
    if !std::mem::replace(&mut client.dirty, true) {
        dirty.push(key);
    }
}

fn output_record(tensor: usize, session: u8, dtype: rota_ipc::wire::DType, written: &Written) -> OutputRecord {
    let mut dims = [0; RANK_MAX];
    let shape = written.shape.dims();
    dims[..shape.len()].copy_from_slice(shape);
    OutputRecord {
        bytes: written.bytes as u64,
        dtype: dtype as u8,
        rank: shape.len() as u8,
        tensor: tensor as u8,
        session,
        reserved0: 0,
        dims,
    }
}
