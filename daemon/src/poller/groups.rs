//! Models that are served together: requests of all of them wait in one queue and run in one batch.
//!
//! A model's *home* is the group that it is served in. When homes change, what waits moves to the new home's queue with its deadline
//! and nobody notices; what runs ends where it is, and an old home leaves the devices after its last batch.

use super::requests::{Asked, Pieces};
use super::{Poller, SessionState};
use crate::background::Ready;
use crate::clock::millis;
use crate::model::{Member, Model};
use crate::planning::{MemberDemand, SessionName};
use rota_ipc::wire::{Reason, Status};
use rota_sched::{DropReason, Event, Instant, ModelId, RequestId, SessionId, SessionRates};
use std::sync::Arc;
use std::time::Duration;

impl Poller {
    /// Serves models as `add` and `whole` say, and ends the groups that are not in `keep`. Of models that left meanwhile nothing
    /// is taken.
    pub(super) fn regroup(&mut self, keep: &[ModelId], add: Vec<Ready>, whole: Vec<Ready>, now: Instant) {
        let is_old = |id: &ModelId| {
            let state = self.models[id.0 as usize].as_ref();
            state.is_some_and(|state| state.model.is_group() && !state.removing) && !keep.contains(id)
        };
        let old: Vec<ModelId> = (0..self.models.len() as u32).map(ModelId).filter(is_old).collect();
        let mut moved = Vec::new();
        for (model, networks) in whole {
            if self.is_served(&model) {
                self.install(&model, networks);
                moved.push(model.id);
                let state = self.model_mut(model.id);
                (state.home, state.installed) = (None, true);
                for class in state.classes.ids() {
                    self.introduce(model.id, class);
                }
            }
        }
        for (group, networks) in add {
            let id = group.id;
            self.add_model(Arc::clone(&group), networks, now);
            self.model_mut(id).queue = self.add_session(Arc::clone(&group), group.default_slo, group.weight, None).ok();
            if self.model_mut(id).queue.is_none() {
                tracing::warn!(models = %group.name, "no session is left to serve them together (sessions_max)");
                self.model_mut(id).removing = true;
                self.stop_classes(id);
                self.remove_model_if_ended(id);
                continue;
            }
            for (member, place) in group.group.iter().flat_map(|group| &group.members).zip(0u16..) {
                if self.is_served(&member.model) {
                    self.model_mut(member.model.id).home = Some((id, place));
                    moved.push(member.model.id);
                }
            }
            self.tune(id);
        }
        self.move_waiting(&moved, now);
        for id in moved {
            if self.home(id).is_some() {
                self.stop_classes(id);
                self.take_off(id);
            }
        }
        for id in old {
            self.model_mut(id).removing = true;
            self.stop_classes(id);
            self.remove_model_if_ended(id);
        }
    }

    /// Whether this very model is in service: its number may be another's by now.
    fn is_served(&self, model: &Arc<Model>) -> bool {
        let state = self.models.get(model.id.0 as usize).and_then(Option::as_ref);
        state.is_some_and(|state| Arc::ptr_eq(&state.model, model) && !state.removing)
    }

    /// The group that a model is served in, and which member of it.
    pub(super) fn home(&self, model: ModelId) -> Option<(ModelId, u16)> {
        self.models.get(model.0 as usize)?.as_ref()?.home
    }

    /// What executes requests of a session, and in which of the dispatcher's sessions they wait.
    pub(super) fn served_by(&self, asked: Asked) -> (ModelId, SessionId) {
        let home = self.home(asked.model).map(|(group, _)| group);
        let queue = home.and_then(|group| Some((group, self.models[group.0 as usize].as_ref()?.queue?)));
        queue.unwrap_or((asked.model, asked.session))
    }

    /// Whether a request can ask this too: the same group serves it, from the same inputs.
    pub(super) fn serves_too(&self, request: RequestId, asked: Asked) -> bool {
        let request = &self.requests[request];
        let unit = self.models[request.unit.0 as usize].as_ref().filter(|_| self.served_by(asked).0 == request.unit);
        let (Some(group), Some(&other)) = (unit.and_then(|unit| unit.model.group.as_ref()), request.asked.first())
        else {
            return false;
        };
        let inputs = |asked: Asked| &group.members[usize::from(asked.member)].inputs;
        inputs(asked) == inputs(other)
    }

    /// Moves what waits for models whose home has changed.
    fn move_waiting(&mut self, models: &[ModelId], now: Instant) {
        let moves = |asked: &Asked| models.contains(&asked.model);
        let waiting: Vec<RequestId> =
            self.requests.all().filter(|(_, request)| request.asked.iter().any(moves)).map(|(id, _)| id).collect();
        for id in waiting {
            if self.dispatcher.handle(Event::Cancelled(id), now) {
                self.queue_again(id, now);
            }
        }
    }

    /// Takes a request that waited to where its models are served now; to several places if they are no longer together.
    fn queue_again(&mut self, id: RequestId, now: Instant) {
        let mut all = std::mem::take(&mut self.asked);
        all.clear();
        all.extend_from_slice(&self.requests[id].asked);
        for asked in &mut all {
            asked.member = self.home(asked.model).map_or(0, |(_, member)| member);
        }
        let places: std::collections::BTreeSet<_> = all.iter().map(|asked| self.served_by(*asked).0).collect();
        if places.len() > 1 && (self.requests.available() as usize) < all.len() {
            let text =
                "its models are no longer served together, and all requests that the daemon can hold are in flight";
            self.answer_unrun(id, Status::Dropped, Reason::Overload, text, now);
        } else {
            let mut pieces = self.split(id, &all);
            for piece in pieces.drain(..) {
                self.queue_piece(piece, now);
            }
        }
        self.asked = all;
    }

    /// Makes of a request one for each place that serves some of `all`; the first keeps its number. Their units are the new ones;
    /// classes and places in queues are still to be found.
    fn split(&mut self, id: RequestId, all: &[Asked]) -> Vec<RequestId> {
        let original = self.requests[id].clone();
        let (inputs, mut outputs) = original.spans.split_at(original.shapes.len());
        self.model_mut(original.unit).classes.leave(original.class);
        let mut pieces: Vec<RequestId> = Vec::new();
        for &asked in all {
            let count =
                self.models[asked.model.0 as usize].as_ref().map_or(0, |state| state.model.signature.outputs.len());
            let (own, rest) = outputs.split_at(count);
            outputs = rest;
            let same = pieces.iter().copied().find(|&piece| self.serves_too(piece, asked));
            let piece = match same {
                Some(piece) => piece,
                None => {
                    let piece = match pieces.is_empty() {
                        true => id,
                        false => self.requests.take().expect("there were as many free as can be needed").0,
                    };
                    let (unit, queue) = self.served_by(asked);
                    let pieces_of = if piece == id { original.pieces.clone() } else { Pieces::default() };
                    let (asked, spans) = (Vec::new(), inputs.to_vec());
                    self.requests[piece] =
                        super::requests::Request { unit, queue, asked, spans, pieces: pieces_of, ..original.clone() };
                    pieces.push(piece);
                    piece
                }
            };
            self.requests[piece].asked.push(asked);
            self.requests[piece].spans.extend_from_slice(own);
        }
        if pieces.len() > 1 {
            let left = &mut self.requests[original.first].pieces.left;
            let known = if left.is_empty() { 0 } else { 1 };
            left.extend_from_slice(&pieces[known..]);
        }
        pieces
    }

    /// The request's unit is known, and in no class yet.
    fn queue_piece(&mut self, id: RequestId, now: Instant) {
        let unit = self.requests[id].unit;
        match self.classify(id, unit, now) {
            Ok(class) => {
                self.requests[id].class = class;
                self.dispatch(id, now);
            }
            Err(refused) => {
                // It was in no class: the answer takes it out of one.
                let class = rota_sched::ClassId(0);
                self.requests[id].class = class;
                self.model_mut(unit).classes.enter(class);
                self.answer_unrun(id, refused.status, refused.refusal.reason, &refused.refusal.text, now);
            }
        }
    }

    /// The model is unloaded: what waits for it in its group is answered.
    pub(super) fn drop_from_home(&mut self, model: ModelId, now: Instant) {
        let Some((group, _)) = self.home(model) else { return };
        let asks = |asked: &Asked| asked.model == model;
        let waiting: Vec<RequestId> = self
            .requests
            .all()
            .filter(|(_, request)| request.unit == group && request.asked.iter().any(asks))
            .map(|(id, _)| id)
            .collect();
        for id in waiting {
            if self.dispatcher.handle(Event::Cancelled(id), now) {
                self.answer_dropped(id, DropReason::Removed, now);
            }
        }
        self.tune(group);
    }

    /// After a batch of `unit`: takes off the devices what only waited for that.
    pub(super) fn leave_unit(&mut self, unit: ModelId, model: &Model) {
        for member in model.group.iter().flat_map(|group| &group.members) {
            let state = self.models.get(member.model.id.0 as usize).and_then(Option::as_ref);
            if state.is_some_and(|state| state.removing) {
                self.remove_model_if_ended(member.model.id);
            }
        }
        self.take_off(unit);
        self.remove_model_if_ended(unit);
    }

    /// Takes a model's own networks off the devices, once it is served in a group and none of its own batches runs.
    fn take_off(&mut self, id: ModelId) {
        let Some(Some(state)) = self.models.get_mut(id.0 as usize) else { return };
        if state.home.is_none() || state.outstanding > 0 || !std::mem::take(&mut state.installed) {
            return;
        }
        for (device, _) in self.devices.iter_mut().zip(&state.model.profiles).filter(|(_, profile)| profile.is_some()) {
            device.device.remove(state.model.network());
        }
    }

    /// As [`Poller::tune`], of the group that serves a model.
    pub(super) fn tune_home(&mut self, model: ModelId) {
        if let Some((group, _)) = self.home(model) {
            self.tune(group);
        }
    }

    /// Gives a group's queue the shortest SLO of the sessions that are open, and all their weight.
    fn tune(&mut self, id: ModelId) {
        let Some(Some(state)) = self.models.get(id.0 as usize) else { return };
        let Some(queue) = state.queue else { return };
        let (mut slo, mut weight) = (Duration::MAX, 0.0);
        for session in self.sessions.iter().flatten().filter(|session| session.clients > 0) {
            if state.model.member(session.model.id).is_some_and(|member| is_of(member, session)) {
                slo = slo.min(session.slo);
                weight += session.weight;
            }
        }
        if weight == 0.0 {
            (slo, weight) = (state.model.default_slo, state.model.weight);
        }
        let session = self.session_mut(queue);
        if session.slo != slo || session.weight != weight {
            (session.slo, session.weight) = (slo, weight);
            self.dispatcher.change_session(queue, slo, weight);
        }
    }

    /// Whether a session's requests wait in a group's queue instead of one of its own.
    pub(super) fn waits_elsewhere(&self, index: usize) -> bool {
        self.sessions[index].as_ref().is_some_and(|session| self.home(session.model.id).is_some())
    }

    /// A session's rates; of one that is served in a group, what is asked of itself.
    pub(super) fn rates(&self, id: SessionId, now: Instant) -> SessionRates {
        let own = self.dispatcher.rates(id, now);
        let session = self.sessions[id.0 as usize].as_ref();
        let home = session.and_then(|session| Some((session, self.home(session.model.id)?.0)));
        let Some((session, group)) = home else { return own };
        let queue = self.models[group.0 as usize].as_ref().and_then(|state| state.queue);
        let target_batch = queue.map_or(0, |queue| self.dispatcher.rates(queue, now).target_batch);
        SessionRates { offered: session.stats.asked.per_second(now), queued: self.requests_of(id), target_batch }
    }

    /// What the sessions of a group's members ask for; nothing for other sessions.
    pub(super) fn member_demand(&self, index: usize, now: Instant) -> Vec<MemberDemand> {
        let Some(group) = self.sessions[index].as_ref().filter(|session| session.model.is_group()) else {
            return Vec::new();
        };
        let of_group = |(index, session): (usize, &Option<SessionState>)| {
            let session = session.as_ref()?;
            group.model.member(session.model.id).filter(|member| is_of(member, session))?;
            let (model, version) = (session.model.name.clone(), session.model.version);
            let name = SessionName { model, version, slo_ms: millis(session.slo) };
            let rate = session.stats.asked.per_second(now);
            Some(MemberDemand { id: SessionId(index as u32), name, rate })
        };
        self.sessions.iter().enumerate().filter_map(of_group).collect()
    }
}

/// Whether a session is one of this very model: a number may have become another's.
fn is_of(member: &Member, session: &SessionState) -> bool {
    Arc::ptr_eq(&member.model, &session.model)
}
