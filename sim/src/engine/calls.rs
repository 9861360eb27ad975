//! What a request's end leads to where it is a call of a query: further calls, the end of the query, or its being given up.

use super::{Engine, Policy, State};
use crate::Nanos;
use crate::load::Request;
use rota_sched::Instant;

impl Engine<'_, '_> {
    pub(super) fn request(&self, id: u32) -> Request {
        let arriving = self.load.arriving;
        match (id as usize).checked_sub(arriving) {
            None => self.load.requests[id as usize],
            Some(called) => self.called[called],
        }
    }

    pub(super) fn session(&self, id: u32) -> usize {
        self.request(id).session as usize
    }

    /// A request arrives, or a call is made.
    pub(super) fn arrive(&mut self, id: u32, now: Nanos, policy: &mut dyn Policy) {
        if let Some(called) = (id as usize).checked_sub(self.load.arriving) {
            self.called[called].arrival = now;
        }
        self.states[id as usize] = State::Waiting;
        let mut request = self.request(id);
        self.log.arrival(&request);
        self.record.arrived(&request);
        if let Some(instance) = self.load.calls.instance_of(id) {
            request.deadline = match policy.knows_queries() {
                true => self.latest(instance, request.session as usize),
                false => now + self.scenario.sessions[request.session as usize].slo,
            };
        }
        policy.arrived(request);
    }

    /// When a call has to be answered: what is reserved for the stages behind it before its query's deadline, and time
    /// for batches of one at least.
    fn latest(&self, instance: usize, session: usize) -> Nanos {
        let stage = self.scenario.sessions[session].stage.expect("calls are of stages");
        let deadline = Instant(self.load.calls.instances[instance].deadline as u64);
        stage.room.latest(deadline, self.world.reserve).0 as Nanos
    }

    pub(super) fn dropped(&mut self, id: u32, now: Nanos) {
        let request = self.request(id);
        self.record.dropped(&request);
        self.log.dropped(&request, now);
        if let Some(instance) = self.load.calls.instance_of(id) {
            self.give_up(instance);
        }
    }

    pub(super) fn answered(&mut self, id: u32, now: Nanos) {
        let request = self.request(id);
        match self.load.calls.instance_of(id) {
            None => self.record.answered(&request, request.deadline, now),
            Some(instance) => {
                let its = &self.load.calls.instances[instance];
                self.record.answered(&request, its.deadline, now);
                self.instances[instance].open -= 1;
                if self.instances[instance].given_up {
                    return;
                }
                if self.instances[instance].open == 0 {
                    self.record.query_answered(its, now);
                } else {
                    self.ended.push(id);
                }
            }
        }
    }

    fn give_up(&mut self, instance: usize) {
        if !std::mem::replace(&mut self.instances[instance].given_up, true) {
            self.record.query_dropped(&self.load.calls.instances[instance]);
            self.given_up.push(instance);
        }
    }

    /// Makes the calls that follow those that were answered, and cancels what waits of queries that were given up.
    pub(super) fn follow(&mut self, now: Nanos, policy: &mut dyn Policy) {
        let mut ended = std::mem::take(&mut self.ended);
        for id in ended.drain(..) {
            let instance = self.load.calls.instance_of(id).expect("only calls are followed");
            let calls = self.load.calls.made_by(id);
            let deadline = self.load.calls.instances[instance].deadline;
            if calls.clone().any(|call| now + self.least(call) > deadline) {
                self.give_up(instance);
            }
            if !self.instances[instance].given_up {
                calls.for_each(|call| self.arrive(call, now, policy));
            }
        }
        self.ended = ended;
        while let Some(instance) = self.given_up.pop() {
            for call in self.load.calls.instances[instance].calls() {
                if self.states[call as usize] == State::Waiting && policy.cancelled(call, now) {
                    self.states[call as usize] = State::Answered;
                    let request = self.request(call);
                    self.record.dropped(&request);
                    self.log.cancelled(&request, now);
                }
            }
        }
    }

    /// What a call and those behind it take at least: batches of one, where they are fastest.
    fn least(&self, id: u32) -> Nanos {
        let session = &self.scenario.sessions[self.session(id)];
        self.scenario.models[session.model].latencies.at(1)
            + session.stage.map_or(0, |stage| stage.room.behind.as_nanos() as Nanos)
    }
}
