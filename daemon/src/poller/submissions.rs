//! From a submission on the ring to a request in the dispatcher's queue, or its refusal.

use super::admission::{self, Refusal};
use super::classes::Interned;
use super::clients::Handle;
use super::messages::Notice;
use super::requests::Asked;
use super::{DRAIN_MAX, Poller};
use rota_ipc::server::{Poisoned, check_submission};
use rota_ipc::wire::{OP_BEGIN, OP_CANCEL, OP_FINISH, OP_GIVE_UP, Reason, Status, Submission};
use rota_sched::{Arrival, ClassId, Event, Instant, ModelId, Priority, Profile, RequestId, SessionId};
use std::borrow::Cow;
use std::sync::Arc;
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
            match submission.op {
                OP_CANCEL => self.cancel(key, submission.slot, now),
                OP_BEGIN => self.begin_run(key, &submission, now),
                OP_FINISH => self.finish_run(key, submission.query, now),
                OP_GIVE_UP => self.give_up_run(key, submission.query, now),
                _ => {
                    // Before it is looked at: a refusal takes a place in the completion ring, too.
                    let client = &mut self.clients.entries[key];
                    client.connection.reserve(client.in_flight)?;
                    self.submit(key, &submission, now);
                }
            }
        }
        Ok(taken)
    }

    /// Admits a request or answers it with what is wrong.
    fn submit(&mut self, key: usize, submission: &Submission, now: Instant) {
        self.asked.clear();
        let Err(Refused { counts, status, refusal }) = self.admit(key, submission, now) else { return };
        for asked in self.asked.iter().filter(|_| counts) {
            if let Some(session) = self.sessions[asked.session.0 as usize].as_mut() {
                session.stats.offered += 1;
                session.stats.count(status);
            }
        }
        self.refuse(key, submission, status, &refusal, now);
    }

    fn admit(&mut self, key: usize, submission: &Submission, now: Instant) -> Result<(), Refused> {
        let client = &mut self.clients.entries[key];
        check_submission(submission, client.connection.slots()).map_err(|e| failed(e.reason, e.text))?;
        if submission.query == 0 && submission.stage != 0 {
            let text = "a stage without a query's run: what is no call has stage 0";
            return Err(failed(Reason::BadDescriptor, text));
        }
        if client.slots[submission.slot as usize].is_some() {
            return Err(failed(Reason::BadSlot, format!("slot {} is in use", submission.slot)));
        }
        let read = client.connection.read_block(submission.slot, submission.block_bytes, &mut self.block);
        read.map_err(|e| failed(e.reason, e.text))?;
        let slo = self.name_sessions(key)?;
        let counts = |refused: Refused| Refused { counts: true, ..refused };
        if self.draining {
            return Err(counts(dropped(Reason::Draining, "the daemon is stopping")));
        }
        let call = self.check_call(key, submission, now).map_err(|refused| {
            let counts = refused.status == Status::Dropped;
            Refused { counts, ..refused }
        })?;
        let (latest, due) = call.as_ref().map_or((now + slo, now + slo), |call| (call.latest, call.due));
        let (deadline, due) = match submission.deadline_ns {
            0 => (latest, due),
            // A call's own deadline can only be an earlier one.
            ns if call.is_some() => (latest.min(Instant(ns)), due.min(Instant(ns))),
            ns => (Instant(ns), Instant(ns)),
        };
        let mut pieces = std::mem::take(&mut self.pieces);
        let times = Times { arrival: now, deadline, due };
        let taken = self.take_requests(key, submission, times, &mut pieces);
        let admitted = match taken {
            Ok(()) if self.clients.admit(key, submission.slot, pieces[0], self.options.requests_per_user) => {
                call.iter().for_each(|call| self.enter_call(pieces[0], call));
                pieces.iter().for_each(|&piece| self.enqueue(piece, now));
                Ok(())
            }
            Ok(()) => Err(counts(dropped(Reason::Overload, "this user has too many requests in flight"))),
            Err(refused) => Err(counts(refused)),
        };
        if let Err(refused) = &admitted {
            pieces.iter().for_each(|&piece| self.requests.release(piece));
            if let Some(call) = call.filter(|_| refused.status == Status::Dropped) {
                self.lose_call(&call, now);
            }
        }
        pieces.clear();
        self.pieces = pieces;
        admitted
    }

    /// Finds the sessions that the block names and how each is served; returns the shortest of their SLOs.
    fn name_sessions(&mut self, key: usize) -> Result<Duration, Refused> {
        let mut slo = Duration::MAX;
        for place in 0..self.block.sessions().len() {
            let number = self.block.sessions()[place];
            let session_id = match self.clients.entries[key].sessions.get(number as usize) {
                Some(Handle::Open(id)) => *id,
                Some(Handle::Unloaded) => {
                    return Err(failed(
                        Reason::Unloaded,
                        "the session's model was unloaded, or its query is no longer declared; open it again",
                    ));
                }
                _ => return Err(failed(Reason::UnknownSession, format!("session {number} is not open"))),
            };
            let session = self.sessions[session_id.0 as usize].as_ref().expect("an open handle's session exists");
            let model = session.model.id;
            if self.asked.iter().any(|asked| asked.model == model) {
                let text = format!("model \"{}\" is asked twice in one request", session.model.name);
                return Err(failed(Reason::BadBlock, text));
            }
            slo = slo.min(session.slo);
            let member = self.home(model).map_or(0, |(_, member)| member);
            self.asked.push(Asked { session: session_id, model, member, place: place as u8 });
        }
        Ok(slo)
    }

    /// A request for each unit that serves some of `asked`, all of them in `pieces`; filled, classified and counted nowhere yet.
    fn take_requests(
        &mut self,
        key: usize,
        submission: &Submission,
        times: Times,
        pieces: &mut Vec<RequestId>,
    ) -> Result<(), Refused> {
        for index in 0..self.asked.len() {
            let asked = self.asked[index];
            let own = pieces.iter().copied().find(|&piece| self.serves_too(piece, asked));
            let id = match own {
                Some(piece) => piece,
                None => {
                    let text = "all requests that the daemon can hold are in flight";
                    let (id, request) = self.requests.take().ok_or_else(|| dropped(Reason::Overload, text))?;
                    pieces.push(id);
                    request.client = key as u32;
                    request.slot = submission.slot;
                    request.tag = submission.tag;
                    request.items = self.block.header.items;
                    request.arrival = times.arrival;
                    (request.deadline, request.due, request.call) = (times.deadline, times.due, None);
                    request.priority = Priority::new(submission.priority).expect("a submission's priority was checked");
                    (request.cancelled, request.told) = (false, false);
                    request.first = pieces[0];
                    let (unit, queue) = self.served_by(asked);
                    (self.requests[id].unit, self.requests[id].queue) = (unit, queue);
                    id
                }
            };
            let model = &self.models[asked.model.0 as usize].as_ref().expect("an open session's model is there").model;
            let request = &mut self.requests[id];
            request.asked.push(asked);
            let fitted = admission::fit(model, &self.block, asked.place, &mut request.spans, &mut request.shapes);
            fitted.map_err(|Refusal { reason, text }| failed(reason, text))?;
        }
        if pieces.len() > 1 {
            self.requests[pieces[0]].pieces.left.extend_from_slice(pieces);
        }
        for &piece in pieces.iter() {
            let class = self.classify(piece, self.requests[piece].unit, times.arrival)?;
            self.requests[piece].class = class;
        }
        Ok(())
    }

    /// Takes in a request that is new.
    fn enqueue(&mut self, id: RequestId, now: Instant) {
        let request = &self.requests[id];
        for asked in &request.asked {
            let session = self.sessions[asked.session.0 as usize].as_mut().expect("an asked session is there");
            session.stats.offered += 1;
            session.stats.asked.count(request.items, now);
        }
        self.dispatch(id, now);
    }

    /// Hands a request to the dispatcher.
    pub(super) fn dispatch(&mut self, id: RequestId, now: Instant) {
        let request = &self.requests[id];
        let (unit, class, items) = (request.unit, request.class, request.items);
        let (deadline, priority) = (request.deadline, request.priority);
        let arrival = Arrival { request: id, session: request.queue, class, items, deadline, priority };
        self.model_mut(unit).classes.enter(class);
        self.dispatcher.handle(Event::Arrived(arrival), now);
    }

    /// The request's shape class in `unit`; copies out the content of inputs without a batch axis, once.
    pub(super) fn classify(&mut self, id: RequestId, unit: ModelId, now: Instant) -> Result<ClassId, Refused> {
        let request = &self.requests[id];
        let state = self.models[unit.0 as usize].as_mut().expect("a request's unit is there");
        let member = state.model.group.as_ref().map(|group| &group.members[usize::from(request.asked[0].member)]);
        self.candidate.clear();
        for (index, spec) in state.model.signature.inputs.iter().enumerate() {
            let own = member.map_or(index, |member| member.inputs[index]);
            self.candidate.shapes.push(request.shapes[own]);
            let span = request.spans[own];
            let constant = state.model.shares(spec).then_some(span.bytes);
            self.candidate.constants.push(constant);
            if let Some(bytes) = constant {
                let start = self.candidate.constant_bytes.len();
                self.candidate.constant_bytes.resize(start + bytes, 0);
                let into = &mut self.candidate.constant_bytes[start..];
                self.clients.entries[request.client as usize].connection.copy_out(span.offset, into);
            }
        }
        match state.classes.intern(&self.candidate, now) {
            Interned::Known(class) => Ok(class),
            Interned::New { id: class, replaced } => {
                if replaced {
                    self.dispatcher.remove_class(unit, class);
                }
                self.introduce(unit, class);
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
        let Some(&Some(first)) = in_slot else { return };
        let mut pieces = std::mem::take(&mut self.pieces);
        pieces.extend_from_slice(&self.requests[first].pieces.left);
        if pieces.is_empty() {
            pieces.push(first);
        }
        for &id in &pieces {
            self.requests[id].cancelled = true;
            if self.dispatcher.handle(Event::Cancelled(id), now) {
                self.answer_unrun(id, Status::Cancelled, Reason::None, "", now);
            }
        }
        pieces.clear();
        self.pieces = pieces;
    }

    /// The client is gone, or has to go: what waits is forgotten, what runs is let run.
    pub(super) fn disconnect(&mut self, key: usize, poisoned: Option<String>) {
        let now = self.clock.now();
        // While it is not dying yet: the last answer of a dying client removes it.
        for slot in 0..self.clients.entries[key].slots.len() {
            self.cancel(key, slot as u32, now);
        }
        self.abandon_runs(key, now);
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
            let arena = Arc::clone(client.connection.arena());
            self.clients.remove(key);
            // Whoever lets go of it last unmaps it: not this thread.
            (self.notices)(Notice::Left { arena });
        }
    }

    pub(super) fn session_mut(&mut self, id: SessionId) -> &mut super::SessionState {
        self.sessions[id.0 as usize].as_mut().expect("a session stays while requests of it are in flight")
    }

    pub(super) fn model_mut(&mut self, id: ModelId) -> &mut super::ModelState {
        self.models[id.0 as usize].as_mut().expect("a model stays while requests of it are in flight")
    }
}

/// When a request came, is hopeless, and is late.
#[derive(Clone, Copy)]
struct Times {
    arrival: Instant,
    deadline: Instant,
    due: Instant,
}

/// A request that is answered without having been accepted.
pub(super) struct Refused {
    /// In the figures of the sessions that it asked.
    pub counts: bool,
    pub status: Status,
    pub refusal: Refusal,
}

pub(super) fn failed(reason: Reason, text: impl Into<Cow<'static, str>>) -> Refused {
    Refused { counts: false, status: Status::Failed, refusal: Refusal { reason, text: text.into() } }
}

pub(super) fn dropped(reason: Reason, text: &'static str) -> Refused {
    Refused { counts: false, status: Status::Dropped, refusal: Refusal { reason, text: text.into() } }
}

fn scaled_profile(profile: &Profile, scale: f64) -> Profile {
    let scaled = |b| Some((b, profile.latency(b)?.mul_f64(scale).max(Duration::from_nanos(1))));
    let points: Vec<(u32, Duration)> = (1..=profile.max_batch()).filter_map(scaled).collect();
    Profile::new(&points).unwrap_or_else(|_| profile.clone())
}
