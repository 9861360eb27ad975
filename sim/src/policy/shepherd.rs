//! Shepherd (Zhang et al., NSDI 2023), its online scheduler FLEX: the largest feasible batch, with preemption.
//!
//! For each session, the batch is the longest prefix of its queue, by deadline, that its earliest deadline allows. A device
//! that is free runs the largest batch over all sessions. When a request arrives, a device that executes is preempted if
//! its best batch, of the session that changed or of the one it executes, is `lambda` times as large as what it executes.

use super::queue::{self, Queue};
use crate::Nanos;
use crate::engine::{Ended, Order, Policy};
use crate::load::Request;
use crate::scenario::{Latencies, Scenario};
use std::collections::VecDeque;

pub struct Shepherd {
    lambda: f64,
    sessions: Vec<Session>,
    devices: Vec<Option<Current>>,
    /// Sessions in which something changed since the last decision.
    changed: VecDeque<usize>,
    /// Devices that ended a batch since then.
    freed: Vec<usize>,
}

struct Session {
    latencies: Latencies,
    served: Vec<bool>,
    queue: Queue,
}

/// What a device executes.
struct Current {
    session: usize,
    requests: Vec<Request>,
}

/// A batch that could run: `executing` of the batch that the device executes, and the first of the queue.
#[derive(Clone, Copy, PartialEq)]
struct Plan {
    session: usize,
    size: usize,
}

impl Shepherd {
    pub fn new(scenario: &Scenario, lambda: f64) -> Shepherd {
        let session = |index| Session {
            latencies: scenario.latencies(index).clone(),
            served: (0..scenario.devices.len()).map(|device| scenario.serves(device, index)).collect(),
            queue: Queue::new(),
        };
        Shepherd {
            lambda,
            sessions: (0..scenario.sessions.len()).map(session).collect(),
            devices: scenario.devices.iter().map(|_| None).collect(),
            changed: VecDeque::new(),
            freed: Vec::new(),
        }
    }

    /// The largest batch of these sessions that `device` could begin at `now`, by preemption if it executes.
    fn largest(
        &mut self,
        device: usize,
        sessions: impl Iterator<Item = usize>,
        now: Nanos,
        orders: &mut Vec<Order>,
    ) -> Option<Plan> {
        let mut best: Option<Plan> = None;
        for index in sessions {
            let session = &mut self.sessions[index];
            if !session.served[device] {
                continue;
            }
            queue::drop_late(&mut session.queue, &session.latencies, now, orders);
            let current = self.devices[device].as_ref().filter(|current| current.session == index);
            let again = current.map_or(&[][..], |current| &current.requests);
            let Some(earliest) = again.first().or(session.queue.front()) else { continue };
            let candidates = again.len() + session.queue.len();
            let size = session.latencies.largest_within(earliest.deadline - now).min(candidates);
            if size > best.map_or(0, |best| best.size) {
                best = Some(Plan { session: index, size });
            }
        }
        best
    }

    /// Runs `plan`; what the device executes is preempted and waits again.
    fn assign(&mut self, device: usize, plan: Plan, orders: &mut Vec<Order>) {
        if let Some(current) = self.devices[device].take() {
            orders.push(Order::Preempt { device });
            let queue = &mut self.sessions[current.session].queue;
            // Another device may have given back later ones meanwhile.
            queue.extend(current.requests);
            queue.make_contiguous().sort_unstable_by_key(|request| (request.deadline, request.id));
        }
        let requests: Vec<Request> = self.sessions[plan.session].queue.drain(..plan.size).collect();
        orders.push(queue::run(device, requests.iter().map(|request| request.id).collect()));
        self.devices[device] = Some(Current { session: plan.session, requests });
    }
}

impl Policy for Shepherd {
    fn arrived(&mut self, request: Request) {
        let index = request.session as usize;
        self.sessions[index].queue.push_back(request);
        if !self.changed.contains(&index) {
            self.changed.push_back(index);
        }
    }

    fn ended(&mut self, ended: Ended<'_>, _: Nanos) {
        self.devices[ended.device] = None;
        self.freed.push(ended.device);
    }

    fn decide(&mut self, now: Nanos, orders: &mut Vec<Order>) {
        for device in std::mem::take(&mut self.freed) {
            let all = 0..self.sessions.len();
            if let Some(plan) = self.largest(device, all, now, orders) {
                self.assign(device, plan, orders);
            }
        }
        // A preempted batch counts as new arrivals of its session, which may preempt elsewhere; each preemption needs a
        // batch lambda times as large, so this ends.
        while let Some(session) = self.changed.pop_front() {
            for device in 0..self.devices.len() {
                let (executing, size) = match &self.devices[device] {
                    Some(current) => (Some(current.session), current.requests.len()),
                    None => (None, 0),
                };
                let others = executing.filter(|&executing| executing != session);
                let pair = std::iter::once(session).chain(others);
                let Some(plan) = self.largest(device, pair, now, orders) else { continue };
                if plan.size as f64 >= self.lambda * size as f64 {
                    self.assign(device, plan, orders);
                    if let Some(preempted) = executing.filter(|preempted| !self.changed.contains(preempted)) {
                        self.changed.push_back(preempted);
                    }
                }
            }
        }
    }

    fn next_wake(&self) -> Nanos {
        // Requests that are late are dropped when their queue is next looked at, at the latest when a device ends.
        Nanos::MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::table::{Table, scenario};

    #[test]
    fn the_largest_feasible_batch_runs() {
        let scenario = scenario(&[(10, 5, 8, 100, 10.0), (10, 5, 8, 25, 10.0)], 1);
        let mut table = Table::new(Shepherd::new(&scenario, 3.03), &scenario);
        table.arrive(0, 1, 0);
        assert_eq!(table.decide(0), ["run 0 [0]"]);
        table.arrive(0, 3, 1);
        table.arrive(1, 6, 2);
        // Six wait, but their deadline allows four: not 3.03 times one and the three of the first with it are four too.
        table.end(0, 0, &[0], 10, 10);
        assert_eq!(table.decide(10), ["run 0 [1, 2, 3]"]);
    }

    #[test]
    fn a_batch_lambda_times_as_large_preempts() {
        let scenario = scenario(&[(10, 5, 8, 100, 10.0), (10, 1, 8, 30, 10.0)], 1);
        let mut table = Table::new(Shepherd::new(&scenario, 3.0), &scenario);
        table.arrive(0, 1, 0);
        assert_eq!(table.decide(0), ["run 0 [0]"]);
        table.arrive(1, 2, 1);
        assert_eq!(table.decide(1), Vec::<String>::new());
        table.arrive(1, 1, 2);
        assert_eq!(table.decide(2), ["preempt 0", "run 0 [1, 2, 3]"]);
        table.end(0, 1, &[1, 2, 3], 12, 14);
        assert_eq!(table.decide(14), ["run 0 [0]"], "what was preempted waits again");
    }

    #[test]
    fn the_own_batch_grows_by_preemption() {
        let scenario = scenario(&[(10, 5, 8, 100, 10.0)], 1);
        let mut table = Table::new(Shepherd::new(&scenario, 3.0), &scenario);
        table.arrive(0, 1, 0);
        assert_eq!(table.decide(0), ["run 0 [0]"]);
        table.arrive(0, 2, 1);
        assert_eq!(table.decide(1), ["preempt 0", "run 0 [0, 1, 2]"]);
    }

    #[test]
    fn late_requests_are_dropped_when_looked_at() {
        let scenario = scenario(&[(10, 5, 2, 25, 10.0)], 1);
        let mut table = Table::new(Shepherd::new(&scenario, 3.03), &scenario);
        table.arrive(0, 4, 0);
        assert_eq!(table.decide(0), ["run 0 [0, 1]"]);
        table.end(0, 0, &[0, 1], 15, 16);
        assert_eq!(table.decide(16), ["drop 2", "drop 3"]);
    }
}
