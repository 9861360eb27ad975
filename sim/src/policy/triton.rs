//! A dynamic batcher per model, as Triton Inference Server has: full batches at once, smaller ones after a delay.
//!
//! Each session's batcher keeps a queue. When a device is free it sends a batch if the queue holds the preferred size, or
//! if the oldest request has waited for the delay: then what is there, at most the largest batch. Among those ready the one
//! that has been ready longest goes first. A request whose time is over is rejected when it reaches the head (the queue
//! timeout). The preferred size is the largest that fits twice into the SLO, or that the rate fills in time.

use super::alarms::Alarms;
use super::queue::{self, Queue};
use crate::Nanos;
use crate::engine::{Ended, Order, Policy};
use crate::load::Request;
use crate::scenario::{Latencies, Scenario};

pub struct Triton {
    sessions: Vec<Session>,
    /// By session: when its oldest request has waited for the delay.
    delays: Alarms,
    idle: Vec<bool>,
}

struct Session {
    /// By device.
    latencies: Vec<Latencies>,
    served: Vec<bool>,
    queue: Queue,
    preferred: usize,
    delay: Nanos,
    /// Since when it may send a batch.
    ready_at: Option<Nanos>,
}

impl Triton {
    pub fn new(scenario: &Scenario, delay: f64) -> Triton {
        let session = |index: usize| {
            let session = &scenario.sessions[index];
            Session {
                preferred: preferred(scenario.latencies(index), session.slo, session.rate),
                served: (0..scenario.devices.len()).map(|device| scenario.serves(device, index)).collect(),
                queue: Queue::new(),
                delay: (delay * session.slo as f64) as Nanos,
                latencies: scenario.latencies_by_device(index),
                ready_at: None,
            }
        };
        Triton {
            sessions: (0..scenario.sessions.len()).map(session).collect(),
            delays: Alarms::new(scenario.sessions.len()),
            idle: vec![true; scenario.devices.len()],
        }
    }

    fn settle(&mut self, index: usize, now: Nanos) {
        let session = &mut self.sessions[index];
        let Some(head) = session.queue.front() else {
            session.ready_at = None;
            return self.delays.set(index, Nanos::MAX);
        };
        let delayed = head.arrival + session.delay;
        if session.queue.len() >= session.preferred || delayed <= now {
            session.ready_at = session.ready_at.or(Some(now.min(delayed)));
            self.delays.set(index, Nanos::MAX);
        } else {
            session.ready_at = None;
            self.delays.set(index, delayed);
        }
    }
}

/// The largest batch with 2ℓ(b) ≤ SLO, or if the rate is too low to fill it, with b/r + ℓ(b) ≤ SLO.
pub(super) fn preferred(latencies: &Latencies, slo: Nanos, rate: f64) -> usize {
    let filled = |batch: usize, latency: Nanos| batch as f64 / rate * 1e9 + latency as f64 <= slo as f64;
    latencies.largest_within(slo / 2).clamp(1, latencies.largest_that(filled))
}

impl Policy for Triton {
    fn arrived(&mut self, request: Request) {
        let index = request.session as usize;
        self.sessions[index].queue.push_back(request);
        self.settle(index, request.arrival);
    }

    fn ended(&mut self, ended: Ended<'_>, _: Nanos) {
        self.idle[ended.device] = true;
    }

    fn decide(&mut self, now: Nanos, orders: &mut Vec<Order>) {
        while let Some(index) = self.delays.due(now) {
            self.settle(index, now);
        }
        for device in 0..self.idle.len() {
            while self.idle[device] {
                let ready = self.sessions.iter().enumerate().filter(|(_, session)| session.served[device]);
                let ready = ready.filter_map(|(index, session)| Some((session.ready_at?, index)));
                let Some((_, index)) = ready.min() else { break };
                let session = &mut self.sessions[index];
                queue::drop_late(&mut session.queue, &session.latencies[device], now, orders);
                let batch = session.queue.len().min(session.preferred);
                let requests = queue::take(&mut session.queue, batch);
                session.ready_at = None;
                if !requests.is_empty() {
                    self.idle[device] = false;
                    orders.push(queue::run(device, requests));
                }
                self.settle(index, now);
            }
        }
    }

    fn next_wake(&self) -> Nanos {
        self.delays.earliest()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::table::{Table, scenario};

    #[test]
    fn a_preferred_batch_goes_at_once_a_smaller_one_after_the_delay() {
        // 2ℓ(b) ≤ 60: b = 5.
        let scenario = scenario(&[(10, 5, 8, 60, 1000.0)], 1);
        let mut table = Table::new(Triton::new(&scenario, 0.1), &scenario);
        table.arrive(0, 4, 0);
        assert_eq!((table.decide(0), table.wake()), (vec![], Some(6.0)));
        table.arrive(0, 2, 1);
        assert_eq!(table.decide(1), ["run 0 [0, 1, 2, 3, 4]"]);
        assert_eq!(table.wake(), Some(7.0));
        table.decide(7);
        table.end(0, 0, &[0, 1, 2, 3, 4], 30, 31);
        assert_eq!(table.decide(31), ["run 0 [5]"]);
    }

    #[test]
    fn the_batcher_that_was_ready_first_is_first_and_old_requests_are_rejected() {
        let scenario = scenario(&[(10, 5, 8, 30, 1000.0), (10, 5, 8, 100, 1000.0)], 1);
        let mut table = Table::new(Triton::new(&scenario, 0.0), &scenario);
        table.arrive(1, 1, 0);
        assert_eq!(table.decide(0), ["run 0 [0]"]);
        table.arrive(1, 1, 1);
        table.arrive(0, 1, 2);
        table.decide(2);
        table.end(0, 1, &[0], 10, 10);
        assert_eq!(table.decide(10), ["run 0 [1]"]);
        table.end(0, 1, &[1], 10, 30);
        assert_eq!(table.decide(30), ["drop 2"]);
    }

    #[test]
    fn a_slow_session_prefers_what_its_rate_fills() {
        let latencies = crate::policy::table::latencies(10_000_000, 5_000_000, 8);
        assert_eq!(preferred(&latencies, 60_000_000, 1000.0), 5);
        assert_eq!(preferred(&latencies, 60_000_000, 50.0), 2, "2/50 s + 15 ms");
        assert_eq!(preferred(&latencies, 60_000_000, 1.0), 1);
        assert_eq!(preferred(&latencies, 5_000_000, 1.0), 1, "even a batch of one misses");
    }
}
