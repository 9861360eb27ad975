//! Batching as TensorFlow Serving has it: a fixed largest batch and a timeout per model, threads that serve the models
//! round robin. No deadlines: requests run, however late they are.

use super::alarms::Alarms;
use super::queue::{self, Queue};
use super::triton::preferred;
use crate::Nanos;
use crate::engine::{Ended, Order, Policy};
use crate::load::Request;
use crate::scenario::Scenario;

pub struct TfServing {
    sessions: Vec<Session>,
    /// By session: when its oldest request has waited for the timeout.
    timeouts: Alarms,
    idle: Vec<bool>,
    /// The session that is looked at first.
    next: usize,
}

struct Session {
    served: Vec<bool>,
    queue: Queue,
    batch: usize,
    timeout: Nanos,
}

impl TfServing {
    pub fn new(scenario: &Scenario, timeout: f64) -> TfServing {
        let session = |index: usize| {
            let session = &scenario.sessions[index];
            Session {
                served: (0..scenario.devices.len()).map(|device| scenario.serves(device, index)).collect(),
                queue: Queue::new(),
                batch: preferred(scenario.latencies(index), session.slo, session.rate),
                timeout: (timeout * session.slo as f64) as Nanos,
            }
        };
        TfServing {
            sessions: (0..scenario.sessions.len()).map(session).collect(),
            timeouts: Alarms::new(scenario.sessions.len()),
            idle: vec![true; scenario.devices.len()],
            next: 0,
        }
    }
}

impl Session {
    fn is_ready(&self, now: Nanos) -> bool {
        let head = self.queue.front();
        self.queue.len() >= self.batch || head.is_some_and(|head| head.arrival + self.timeout <= now)
    }
}

impl Policy for TfServing {
    fn arrived(&mut self, request: Request) {
        let session = &mut self.sessions[request.session as usize];
        session.queue.push_back(request);
        if session.queue.len() == 1 {
            self.timeouts.set(request.session as usize, request.arrival + session.timeout);
        }
    }

    fn ended(&mut self, ended: Ended<'_>, _: Nanos) {
        self.idle[ended.device] = true;
    }

    fn decide(&mut self, now: Nanos, orders: &mut Vec<Order>) {
        while self.timeouts.due(now).is_some() {}
        let count = self.sessions.len();
        for device in (0..self.idle.len()).filter(|&device| self.idle[device]) {
            let ready = |index: &usize| {
                let session = &self.sessions[*index];
                session.served[device] && session.is_ready(now)
            };
            let Some(index) = (0..count).map(|turn| (self.next + turn) % count).find(ready) else { continue };
            let session = &mut self.sessions[index];
            let batch = session.batch.min(session.queue.len());
            orders.push(queue::run(device, queue::take(&mut session.queue, batch)));
            let timeout = session.queue.front().map(|head| head.arrival + session.timeout).filter(|&at| at > now);
            self.timeouts.set(index, timeout.unwrap_or(Nanos::MAX));
            self.next = (index + 1) % count;
        }
        for device in
            orders.iter().filter_map(|order| if let Order::Run(run) = order { Some(run.device) } else { None })
        {
            self.idle[device] = false;
        }
    }

    fn next_wake(&self) -> Nanos {
        self.timeouts.earliest()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::table::{Table, scenario};

    #[test]
    fn full_or_old_batches_run_round_robin_however_late() {
        // The fixed batch is 5: twice 30 ms is the SLO.
        let scenario = scenario(&[(10, 5, 8, 60, 1000.0), (10, 5, 8, 60, 1000.0)], 1);
        let mut table = Table::new(TfServing::new(&scenario, 0.1), &scenario);
        table.arrive(0, 12, 0);
        table.arrive(1, 1, 0);
        assert_eq!(table.decide(0), ["run 0 [0, 1, 2, 3, 4]"]);
        assert_eq!(table.wake(), Some(6.0));
        table.end(0, 0, &[0, 1, 2, 3, 4], 30, 30);
        assert_eq!(table.decide(30), ["run 0 [12]"], "the other's turn");
        table.end(0, 1, &[12], 10, 40);
        assert_eq!(table.decide(40), ["run 0 [5, 6, 7, 8, 9]"]);
        table.end(0, 0, &[5, 6, 7, 8, 9], 30, 70);
        assert_eq!(table.decide(70), ["run 0 [10, 11]"], "late, but run");
    }
}
