//! Clipper (Crankshaw et al., NSDI 2017): per model, a batch size that grows step by step and backs off when the SLO is
//! missed; lazy drop; no co-ordination between models, whose batches run in the order in which their heads arrived.

use super::queue::{self, Queue};
use crate::Nanos;
use crate::engine::{Ended, Order, Policy};
use crate::load::Request;
use crate::scenario::{Latencies, Scenario};

pub struct Clipper {
    sessions: Vec<Session>,
    /// By device: the oldest arrival and the size limit of the batch that it executes.
    executing: Vec<Option<(Nanos, usize)>>,
}

struct Session {
    /// By device.
    latencies: Vec<Latencies>,
    slo: Nanos,
    served: Vec<bool>,
    queue: Queue,
    /// The largest batch for now; whole numbers count, the fraction is kept for the back-off.
    cap: f64,
}

impl Clipper {
    pub fn new(scenario: &Scenario) -> Clipper {
        let session = |index: usize| Session {
            latencies: scenario.latencies_by_device(index),
            slo: scenario.sessions[index].slo,
            served: (0..scenario.devices.len()).map(|device| scenario.serves(device, index)).collect(),
            queue: Queue::new(),
            cap: 1.0,
        };
        Clipper {
            sessions: (0..scenario.sessions.len()).map(session).collect(),
            executing: vec![None; scenario.devices.len()],
        }
    }
}

impl Policy for Clipper {
    fn arrived(&mut self, request: Request) {
        self.sessions[request.session as usize].queue.push_back(request);
    }

    fn ended(&mut self, ended: Ended<'_>, now: Nanos) {
        let session = &mut self.sessions[ended.session];
        let (oldest, limit) = self.executing[ended.device].take().expect("what ends was run");
        if now - oldest > session.slo {
            session.cap = (session.cap * BACK_OFF).max(1.0);
        } else if ended.requests.len() == limit {
            session.cap = (session.cap + 1.0).min(session.latencies[ended.device].max_batch() as f64);
        }
    }

    fn decide(&mut self, now: Nanos, orders: &mut Vec<Order>) {
        for device in 0..self.executing.len() {
            while self.executing[device].is_none() {
                let waiting = self.sessions.iter().enumerate().filter(|(_, session)| session.served[device]);
                let waiting = waiting.filter_map(|(index, session)| Some((session.queue.front()?.id, index)));
                let Some((_, index)) = waiting.min() else { break };
                let session = &mut self.sessions[index];
                queue::drop_late(&mut session.queue, &session.latencies[device], now, orders);
                let Some(head) = session.queue.front() else { continue };
                let (oldest, limit) = (head.arrival, session.cap as usize);
                let most = session.latencies[device].max_batch();
                let count = limit.min(session.queue.len()).min(most);
                self.executing[device] = Some((oldest, limit));
                orders.push(queue::run(device, queue::take(&mut session.queue, count)));
            }
        }
    }

    fn next_wake(&self) -> Nanos {
        Nanos::MAX
    }
}

const BACK_OFF: f64 = 0.9;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::table::{Table, scenario};

    #[test]
    fn batches_grow_by_one_while_they_are_full_and_in_time() {
        let scenario = scenario(&[(10, 0, 8, 60, 1000.0)], 1);
        let mut table = Table::new(Clipper::new(&scenario), &scenario);
        table.arrive(0, 4, 0);
        assert_eq!(table.decide(0), ["run 0 [0]"]);
        table.end(0, 0, &[0], 10, 10);
        assert_eq!(table.decide(10), ["run 0 [1, 2]"]);
        table.end(0, 0, &[1, 2], 10, 20);
        assert_eq!(table.policy.sessions[0].cap, 3.0);
        // One alone is not a full batch of three: nothing is learnt from it.
        assert_eq!(table.decide(20), ["run 0 [3]"]);
        table.end(0, 0, &[3], 10, 30);
        assert_eq!(table.policy.sessions[0].cap, 3.0);
        table.arrive(0, 9, 31);
        assert_eq!(table.decide(31), ["run 0 [4, 5, 6]"]);
        table.end(0, 0, &[4, 5, 6], 70, 101);
        assert!((table.policy.sessions[0].cap - 2.7).abs() < 1e-9, "late: backs off by a tenth");
    }

    #[test]
    fn the_oldest_head_goes_first_and_late_ones_are_dropped_lazily() {
        let scenario = scenario(&[(10, 0, 8, 25, 10.0), (10, 0, 8, 200, 10.0)], 1);
        let mut table = Table::new(Clipper::new(&scenario), &scenario);
        table.arrive(1, 1, 0);
        table.arrive(0, 1, 1);
        assert_eq!(table.decide(1), ["run 0 [0]"]);
        table.arrive(1, 1, 2);
        table.end(0, 1, &[0], 10, 20);
        assert_eq!(table.decide(20), ["drop 1", "run 0 [2]"]);
    }
}
