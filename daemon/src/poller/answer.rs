//! Answers: exactly one completion for each request that was taken from a ring.

use super::Poller;
use super::admission::Refusal;
use crate::clock::nanos;
use crate::model::wire_dtype;
use rota_device::{Batch, Outcome, Span};
use rota_ipc::server::Record;
use rota_ipc::wire::{Completion, OutputRecord, RANK_MAX, Reason, Status, Submission};
use rota_sched::{DeviceId, DropReason, Event, Instant, RequestId};
use std::time::Duration;

impl Poller {
    /// Takes back the batches that have ended and answers their requests. True when there was one.
    pub(super) fn take_finished(&mut self) -> bool {
        let mut worked = false;
        for device in 0..self.devices.len() {
            while let Some(batch) = self.devices[device].device.poll() {
                self.finish(DeviceId(device as u32), batch);
                worked = true;
            }
        }
        worked
    }

    fn finish(&mut self, device: DeviceId, mut batch: Box<Batch>) {
        let now = self.clock.now();
        let started = batch.started.map_or(now, |at| self.clock.place(at));
        let items = batch.requests.iter().map(|r| r.items).sum();
        let outputs = batch.written.len() / batch.requests.len().max(1);
        let spans_each = batch.spans.len() / batch.requests.len().max(1);
        let first = &self.requests[RequestId(batch.requests[0].key)];
        let (session_id, model_id) = (first.session, first.model);
        for index in 0..batch.requests.len() {
            let request = &batch.requests[index];
            let id = RequestId(request.key);
            let run = Run { device, started, took: batch.took, items };
            match &request.outcome {
                Outcome::Done => {
                    let inputs = spans_each - outputs;
                    let wanted = &batch.spans[index * spans_each + inputs..(index + 1) * spans_each];
                    let written = &batch.written[index * outputs..(index + 1) * outputs];
                    self.records.clear();
                    let specs =
                        &self.models[model_id.0 as usize].as_ref().expect("its requests run").model.signature.outputs;
                    for (tensor, (span, written)) in wanted.iter().zip(written).enumerate() {
                        if span.offset != Span::UNWANTED {
                            self.records.push(output_record(tensor, wire_dtype(specs[tensor].dtype), written));
                        }
                    }
                    self.answer_ran(id, run, None, now);
                }
                Outcome::OutputTooSmall { output, needed, room } => {
                    let name =
                        &self.models[model_id.0 as usize].as_ref().expect("its requests run").model.signature.outputs;
                    let name = &name[*output].name;
                    let text = format!("output \"{name}\" needs {needed} bytes and has room for {room}");
                    self.answer_ran(id, run, Some((Reason::OutputTooSmall, &text)), now);
                }
                Outcome::Failed(text) => self.answer_ran(id, run, Some((Reason::Engine, text)), now),
                Outcome::Pending => {
                    self.answer_ran(id, run, Some((Reason::DeviceLost, "the device gave it back unexecuted")), now);
                }
            }
        }
        if let Some(session) = self.sessions[session_id.0 as usize].as_mut() {
            session.stats.batches += 1;
            session.stats.batched_items += u64::from(items);
            session.stats.busy += batch.took;
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
        self.model_mut(model_id).outstanding -= 1;
        self.remove_model_if_ended(model_id);
    }

    /// Answers a request whose batch has ended; `self.records` holds its outputs when nothing went wrong.
    fn answer_ran(&mut self, id: RequestId, run: Run, wrong: Option<(Reason, &str)>, now: Instant) {
        let request = &self.requests[id];
        let status = match wrong {
            _ if request.cancelled => Status::Cancelled,
            Some(_) => Status::Failed,
            None if now > request.deadline => Status::Late,
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
            let (session, items) = (request.session, request.items);
            let stats = &mut self.session_mut(session).stats;
            stats.record(queued, run.took, total);
            if status == Status::Ok {
                stats.good.count(items, now);
            }
        }
        self.answer(id, status, reason, completion, record);
    }

    pub(super) fn answer_dropped(&mut self, id: RequestId, reason: DropReason, now: Instant) {
        let (status, reason, text) = match reason {
            DropReason::Hopeless => {
                (Status::Dropped, Reason::Hopeless, "it could no longer be answered by its deadline")
            }
            DropReason::Removed if self.draining => (Status::Dropped, Reason::Draining, "the daemon is stopping"),
            DropReason::Removed => (Status::Failed, Reason::Unloaded, "the session's model was unloaded"),
        };
        self.answer_unrun(id, status, reason, text, now);
    }

    /// Answers a request that never ran.
    pub(super) fn answer_unrun(&mut self, id: RequestId, status: Status, reason: Reason, text: &str, now: Instant) {
        let queued_ns = nanos(now.since(self.requests[id].arrival));
        let completion = Completion { queued_ns, ..Default::default() };
        self.answer(id, status, reason, completion, Record::Text(text));
    }

    /// Answers an accepted request and takes it off all books. An empty `Record::Outputs` stands for `self.records`.
    fn answer(&mut self, id: RequestId, status: Status, reason: Reason, completion: Completion, record: Record<'_>) {
        let request = &self.requests[id];
        let (key, slot, class, model_id) = (request.client as usize, request.slot, request.class, request.model);
        let completion = Completion {
            tag: request.tag,
            slot,
            status: status as u8,
            reason: reason as u8,
            arrival_ns: request.arrival.0,
            ..completion
        };
        let record = match record {
            Record::Outputs(_) => Record::Outputs(&self.records),
            text => text,
        };
        let session = request.session;
        let client = &mut self.clients.entries[key];
        if !client.dying {
            client.connection.complete(completion, record);
            mark_dirty(client, key, &mut self.dirty);
        }
        self.session_mut(session).stats.count(status);
        self.model_mut(model_id).classes.leave(class);
        self.clients.release(key, slot);
        self.requests.release(id);
        self.remove_if_ended(key);
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

fn output_record(tensor: usize, dtype: rota_ipc::wire::DType, written: &rota_device::Written) -> OutputRecord {
    let mut dims = [0; RANK_MAX];
    let shape = written.shape.dims();
    dims[..shape.len()].copy_from_slice(shape);
    OutputRecord {
        bytes: written.bytes as u64,
        dtype: dtype as u8,
        rank: shape.len() as u8,
        tensor: tensor as u8,
        session: 0,
        reserved0: 0,
        dims,
    }
}
