//! From a submission on the ring to a request in the dispatcher's queue, or its refusal.

use super::admission::{self, Refusal};
use super::classes::Interned;
use super::clients::Handle;
use super::messages::Notice;
use super::{DRAIN_MAX, Poller};
use rota_ipc::server::{Poisoned, check_submission};
use rota_ipc::wire::{OP_CANCEL, Reason, Status, Submission};
use rota_sched::{Arrival, ClassId, Event, Instant, ModelId, Priority, Profile, RequestId, SessionId};
use std::time::Duration;

impl Poller {
    /// Takes what the polled clients have submitted. True when there was anything.
    pub(super) fn take_submissions(&mut self, now: Instant) -> bool {
        let mut worked = false;
        let mut index = 0;
        while let Some(&key) = self.clients.polled.get(index) {
            match self.drain(key, now) {
                Ok(taken) => worked |= taken > 0,
                Err(poisoned) => {
                    self.disconnect(key, Some(poisoned.to_string()));
                    worked = true;
                    continue; // `disconnect` took the client out of the list; another stands at `index` now.
                }
            }
            index += 1;
        }
        worked
    }

    fn drain(&mut self, key: usize, now: Instant) -> Result<usize, Poisoned> {
        let client = &mut self.clients.entries[key];
        let most = DRAIN_MAX.min(self.requests.available() as usize);
        let taken = client.connection.pop(&mut self.submissions[..most])?;
        if taken > 0 {
            client.last_heard = now;
        }
        for i in 0..taken {
            let submission = self.submissions[i];
            if submission.op == OP_CANCEL {
                self.cancel(key, submission.slot, now);
            } else {
                // Before it is looked at: a refusal takes a place in the completion ring, too.
                let client = &mut self.clients.entries[key];
                client.connection.reserve(client.in_flight)?;
                self.submit(key, &submission, now);
            }
        }
        Ok(taken)
    }

    /// Admits a request or answers it with what is wrong.
    fn submit(&mut self, key: usize, submission: &Submission, now: Instant) {
        match self.admit(key, submission, now) {
            Ok(()) => {}
            Err(Refused { session, status, refusal }) => {
                if let Some(session) = session.and_then(|s| self.sessions[s.0 as usize].as_mut()) {
                    session.stats.offered += 1;
                    session.stats.count(status);
                }
                self.refuse(key, submission, status, &refusal, now);
            }
        }
    }

    fn admit(&mut self, key: usize, submission: &Submission, now: Instant) -> Result<(), Refused> {
        let client = &mut self.clients.entries[key];
        check_submission(submission, client.connection.slots()).map_err(|e| failed(e.reason, e.text))?;
        if submission.query != 0 || submission.stage != 0 {
            let text = "queries are not supported by this version";
            return Err(failed(Reason::BadDescriptor, text.to_string()));
        }
        if client.slots[submission.slot as usize].is_some() {
            return Err(failed(Reason::BadSlot, format!("slot {} is in use", submission.slot)));
        }
        let read = client.connection.read_block(submission.slot, submission.block_bytes, &mut self.block);
        read.map_err(|e| failed(e.reason, e.text))?;
        if self.block.header.sessions != 1 {
            let text = "several sessions on one input are not supported by this version; name one";
            return Err(failed(Reason::BadDescriptor, text.to_string()));
        }
        let number = self.block.header.session[0];
        let session_id = match client.sessions.get(number as usize) {
            Some(Handle::Open(id)) => *id,
            Some(Handle::Unloaded) => {
                return Err(failed(Reason::Unloaded, "the session's model was unloaded; open it again".to_string()));
            }
            _ => return Err(failed(Reason::UnknownSession, format!("session {number} is not open"))),
        };
        let with_session = |refused: Refused| Refused { session: Some(session_id), ..refused };
        if self.draining {
            return Err(with_session(dropped(Reason::Draining, "the daemon is stopping")));
        }
        let session = self.sessions[session_id.0 as usize].as_mut().expect("an open handle's session exists");
        let model_id = session.model.id;
        let deadline = match submission.deadline_ns {
            0 => now + session.slo,
            ns => Instant(ns),
        };

        let (request_id, request) = self.requests.take().expect("`drain` takes no more than there are free requests");
        let fitted = admission::fit(&session.model, &self.block, &mut request.spans, &mut self.candidate);
        request.client = key as u32;
        request.slot = submission.slot;
        request.tag = submission.tag;
        request.session = session_id;
        request.model = model_id;
        request.items = self.block.header.items;
        request.arrival = now;
        request.deadline = deadline;
        request.priority = Priority::new(submission.priority).expect("a submission's priority was checked");
        request.cancelled = false;
        let admitted = match fitted {
            Ok(()) => self.classify(key, request_id, model_id, now),
            Err(Refusal { reason, text }) => Err(failed(reason, text)),
        };
        let class = match admitted {
            Ok(class) if self.clients.admit(key, submission.slot, request_id, self.options.requests_per_user) => class,
            other => {
                self.requests.release(request_id);
                let refused = match other {
                    Err(refused) => refused,
                    Ok(_) => dropped(Reason::Overload, "this user has too many requests in flight"),
                };
                return Err(with_session(refused));
            }
        };
        self.enqueue(request_id, class, now);
        Ok(())
    }

    fn enqueue(&mut self, request_id: RequestId, class: ClassId, now: Instant) {
        self.requests[request_id].class = class;
        let request = &self.requests[request_id];
        let model_id = request.model;
        let arrival = Arrival {
            request: request_id,
            session: request.session,
            class,
            items: request.items,
            deadline: request.deadline,
            priority: request.priority,
        };
        self.model_mut(model_id).classes.enter(class);
        self.session_mut(arrival.session).stats.offered += 1;
        self.dispatcher.handle(Event::Arrived(arrival), now);
    }

    /// The request's shape class; copies out the content of inputs without a batch axis, once.
    fn classify(&mut self, key: usize, id: RequestId, model_id: ModelId, now: Instant) -> Result<ClassId, Refused> {
        let spans = &self.requests[id].spans;
        for (index, bytes) in self.candidate.constants.iter().enumerate() {
            let Some(bytes) = *bytes else { continue };
            let start = self.candidate.constant_bytes.len();
            self.candidate.constant_bytes.resize(start + bytes, 0);
            let into = &mut self.candidate.constant_bytes[start..];
            self.clients.entries[key].connection.copy_out(spans[index].offset, into);
        }
        let state = self.models[model_id.0 as usize].as_mut().expect("an open session's model is there");
        match state.classes.intern(&self.candidate, now) {
            Interned::Known(class) => Ok(class),
            Interned::New { id: class, replaced } => {
                if replaced {
                    self.dispatcher.remove_class(model_id, class);
                }
                self.introduce(model_id, class);
                Ok(class)
            }
            Interned::Full => {
                let text = format!(
                    "model \"{}\" already has requests of {} different shapes in flight, which is the most; pad to fewer shapes",
                    state.model.name,
                    super::classes::CLASSES_MAX
                );
                Err(failed(Reason::TooManyShapes, text))
            }
        }
    }

    /// Gives the dispatcher a first profile of a new class: the profiled class's, scaled by the size of the inputs. What
    /// executions take corrects it.
    pub(super) fn introduce(&mut self, model_id: ModelId, class: ClassId) {
        let state = self.models[model_id.0 as usize].as_ref().expect("a class belongs to a model");
        let size = |shapes: &[rota_device::Shape]| -> f64 {
            let elements = |s: &rota_device::Shape| s.dims().iter().map(|&d| f64::from(d.max(1))).product::<f64>();
            shapes.iter().map(elements).sum()
        };
        let scale = size(&state.classes.get(class).inputs) / size(&state.model.profiled).max(1.0);
        for (device, profile) in state.model.profiles.iter().enumerate() {
            let Some(profile) = profile else { continue };
            let own = !state.model.profile_scales || state.classes.get(class).inputs == state.model.profiled;
            let scaled = if own { profile.clone() } else { scaled_profile(profile, scale) };
            self.dispatcher.set_profile(rota_sched::DeviceId(device as u32), model_id, class, scaled);
        }
    }

    /// Withdraws the request in `slot`; one that has ended meanwhile was answered, and one that runs will be.
    fn cancel(&mut self, key: usize, slot: u32, now: Instant) {
        let in_slot = self.clients.entries[key].slots.get(slot as usize);
        let Some(&Some(id)) = in_slot else { return };
        if self.dispatcher.handle(Event::Cancelled(id), now) {
            self.answer_unrun(id, Status::Cancelled, Reason::None, "", now);
        } else {
            self.requests[id].cancelled = true;
        }
    }

    /// The client is gone, or has to go: what waits is forgotten, what runs is let run.
    pub(super) fn disconnect(&mut self, key: usize, poisoned: Option<String>) {
        let now = self.clock.now();
        // While it is not dying yet: the last answer of a dying client removes it.
        for slot in 0..self.clients.entries[key].slots.len() {
            self.cancel(key, slot as u32, now);
        }
        let client = &mut self.clients.entries[key];
        client.dying = true;
        if poisoned.is_some() {
            // Batches may hold its memory for a while yet; it need not wait for their end to know.
            client.connection.poison();
        }
        let id = client.id;
        if std::mem::take(&mut client.polled) {
            self.clients.polled.retain(|&k| k != key);
        }
        for number in 0..self.clients.entries[key].sessions.len() {
            self.close_session(key, number as u32, now);
        }
        self.clients.forget(id);
        (self.notices)(Notice::Gone { id, poisoned });
        self.remove_if_ended(key);
    }

    /// A dying client leaves when its last request has ended: until then batches read and write its arena.
    pub(super) fn remove_if_ended(&mut self, key: usize) {
        let client = &self.clients.entries[key];
        if client.dying && client.in_flight == 0 {
            self.clients.remove(key);
        }
    }

    pub(super) fn session_mut(&mut self, id: SessionId) -> &mut super::SessionState {
        self.sessions[id.0 as usize].as_mut().expect("a session stays while requests of it are in flight")
    }

    pub(super) fn model_mut(&mut self, id: ModelId) -> &mut super::ModelState {
        self.models[id.0 as usize].as_mut().expect("a model stays while requests of it are in flight")
    }
}

/// A request that is answered without having been accepted.
struct Refused {
    session: Option<SessionId>,
    status: Status,
    refusal: Refusal,
}

fn failed(reason: Reason, text: String) -> Refused {
    Refused { session: None, status: Status::Failed, refusal: Refusal { reason, text } }
}

fn dropped(reason: Reason, text: &str) -> Refused {
    Refused { session: None, status: Status::Dropped, refusal: Refusal { reason, text: text.to_string() } }
}

fn scaled_profile(profile: &Profile, scale: f64) -> Profile {
    let scaled = |b| Some((b, profile.latency(b)?.mul_f64(scale).max(Duration::from_nanos(1))));
    let points: Vec<(u32, Duration)> = (1..=profile.max_batch()).filter_map(scaled).collect();
    Profile::new(&points).unwrap_or_else(|_| profile.clone())
}
