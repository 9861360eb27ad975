//! Clockwork (Gujarati et al., OSDI 2020): few batch sizes, work kept just ahead of each device, actions with windows.
//!
//! Each session has one queue per batch size and every request stands in all of them. A strategy (session, b) is ranked by
//! its head's deadline less the estimate for b. A device is given the best strategy whose queue holds b requests, at the
//! largest batch that session can fill, while less than [`AHEAD`] of work lies before it.

use crate::Nanos;
use crate::engine::{Ended, Order, Policy, Run};
use crate::load::Request;
use crate::policy::alarms::Alarms;
use crate::scenario::Scenario;
use std::collections::VecDeque;

pub struct Clockwork {
    sessions: Vec<Session>,
    devices: Vec<Device>,
    /// By session, when its oldest request's deadline passes.
    alarms: Alarms,
    /// The SLO is taken to be so much shorter.
    slack: Nanos,
    /// When it last decided.
    decided: Nanos,
}

struct Session {
    slo: Nanos,
    /// Requests that stand in the queue of the smallest batch size, with their number in the session.
    waiting: VecDeque<(u64, Request)>,
    /// The number that the next request gets.
    arrived: u64,
    sizes: Vec<Size>,
    /// By device.
    served: Vec<bool>,
}

/// The queue of one batch size: the requests of `waiting` numbered from `from` on, since requests leave it in order.
struct Size {
    batch: usize,
    from: u64,
    /// What the last executions took; the estimate is their 99th percentile, of ten the largest.
    took: VecDeque<Nanos>,
    estimate: Nanos,
}

#[derive(Default)]
struct Device {
    /// Estimates of batches sent and not ended, with their session and size.
    sent: VecDeque<(Nanos, usize, usize)>,
    /// When the first of them began, or was taken to.
    began: Nanos,
}

impl Clockwork {
    /// Batch sizes are the powers of two up to `max_batch`.
    pub fn new(scenario: &Scenario, slack: Nanos, max_batch: u32) -> Clockwork {
        let session = |index: usize| {
            let latencies = scenario.latencies(index);
            let batches = (0..=max_batch.ilog2()).map(|power| 1 << power);
            let sizes = batches.filter(|&batch| batch <= latencies.max_batch()).map(|batch| Size {
                batch,
                from: 0,
                took: VecDeque::new(),
                estimate: latencies.at(batch),
            });
            Session {
                slo: scenario.sessions[index].slo,
                waiting: VecDeque::new(),
                arrived: 0,
                sizes: sizes.collect(),
                served: (0..scenario.devices.len()).map(|device| scenario.serves(device, index)).collect(),
            }
        };
        Clockwork {
            sessions: (0..scenario.sessions.len()).map(session).collect(),
            devices: scenario.devices.iter().map(|_| Device::default()).collect(),
            alarms: Alarms::new(scenario.sessions.len()),
            slack,
            decided: 0,
        }
    }

    /// The session with the best strategy for a device that is free at `start`.
    fn best(&mut self, device: usize, start: Nanos, slack: Nanos, orders: &mut Vec<Order>) -> Option<usize> {
        let mut best: Option<(Nanos, usize)> = None;
        for (index, session) in self.sessions.iter_mut().enumerate() {
            if !session.served[device] || session.waiting.is_empty() {
                continue;
            }
            session.expire(start, slack, orders);
            for size in 0..session.sizes.len() {
                let Some(head) = session.ready(size) else { continue };
                let priority = session.deadline(head, slack) - session.sizes[size].estimate;
                if best.is_none_or(|best| (priority, index) < best) {
                    best = Some((priority, index));
                }
            }
        }
        best.map(|(_, session)| session)
    }
}

impl Session {
    /// Clockwork's own deadline of a request, for deciding only.
    fn deadline(&self, request: &Request, slack: Nanos) -> Nanos {
        request.arrival + (self.slo - slack).max(SLO_LEAST.min(self.slo))
    }

    fn first(&self) -> u64 {
        self.waiting.front().map_or(self.arrived, |&(number, _)| number)
    }

    /// The head of the queue of a size, if the queue holds a whole batch.
    fn ready(&self, size: usize) -> Option<&Request> {
        let size = &self.sizes[size];
        let skipped = size.from.max(self.first()) - self.first();
        let holds = self.waiting.len() as u64 - skipped.min(self.waiting.len() as u64);
        (holds >= size.batch as u64).then(|| &self.waiting[skipped as usize].1)
    }

    /// Takes those who would be late from each queue: with a batch of its size that begins at `start`.
    fn expire(&mut self, start: Nanos, slack: Nanos, orders: &mut Vec<Order>) {
        let first = self.first();
        for index in 0..self.sizes.len() {
            let end = start + self.sizes[index].estimate;
            let mut from = self.sizes[index].from.max(first);
            while let Some((_, request)) = self.waiting.get((from - first) as usize)
                && self.deadline(request, slack) < end
            {
                from += 1;
            }
            self.sizes[index].from = from;
        }
        self.forget(orders);
    }

    /// Drops requests that stand in no queue any more: the smallest size keeps them longest.
    fn forget(&mut self, orders: &mut Vec<Order>) {
        let from = self.sizes.iter().map(|size| size.from).min().unwrap_or(0);
        while let Some((_, request)) = self.waiting.front().filter(|(number, _)| *number < from) {
            orders.push(Order::Drop(request.id));
            self.waiting.pop_front();
        }
    }

    /// Takes the largest batch that some queue holds, and whoever is older than its last request out of all queues.
    fn take(&mut self, orders: &mut Vec<Order>) -> (usize, Vec<u32>) {
        let size = (0..self.sizes.len()).rev().find(|&size| self.ready(size).is_some()).expect("a strategy was ready");
        let batch = self.sizes[size].batch;
        let skipped = (self.sizes[size].from.max(self.first()) - self.first()) as usize;
        let last = self.waiting[skipped + batch - 1].0;
        let requests = self.waiting.drain(skipped..skipped + batch).map(|(_, request)| request.id).collect();
        self.sizes.iter_mut().for_each(|size| size.from = size.from.max(last + 1));
        self.forget(orders);
        (size, requests)
    }
}

impl Device {
    fn available(&self, now: Nanos) -> Nanos {
        now.max(self.began + self.sent.iter().map(|sent| sent.0).sum::<Nanos>())
    }
}

impl Policy for Clockwork {
    fn arrived(&mut self, request: Request) {
        let session = &mut self.sessions[request.session as usize];
        if session.waiting.is_empty() {
            self.alarms.set(request.session as usize, request.deadline);
        }
        session.waiting.push_back((session.arrived, request));
        session.arrived += 1;
    }

    fn ended(&mut self, ended: Ended<'_>, now: Nanos) {
        let device = &mut self.devices[ended.device];
        let (_, session, size) = device.sent.pop_front().expect("what ends was sent");
        device.began = now;
        if !ended.refused {
            let size = &mut self.sessions[session].sizes[size];
            size.took.push_back(ended.took);
            if size.took.len() > ESTIMATED_FROM {
                size.took.pop_front();
            }
            size.estimate = size.took.iter().copied().max().expect("one was just added");
        }
    }

    fn decide(&mut self, now: Nanos, orders: &mut Vec<Order>) {
        let slack = self.slack;
        self.decided = now;
        while let Some(index) = self.alarms.due(now) {
            let session = &mut self.sessions[index];
            while let Some((_, late)) = session.waiting.front().filter(|(_, request)| request.deadline <= now) {
                orders.push(Order::Drop(late.id));
                session.waiting.pop_front();
            }
            self.alarms.set(index, session.waiting.front().map_or(Nanos::MAX, |(_, request)| request.deadline));
        }
        for device in 0..self.devices.len() {
            loop {
                let start = self.devices[device].available(now);
                if start >= now + AHEAD {
                    break;
                }
                let Some(index) = self.best(device, start, slack, orders) else { break };
                let (size, requests) = self.sessions[index].take(orders);
                let latest = (now + WINDOW_LEAD + AHEAD).max(start + AHEAD);
                orders.push(Order::Run(Run { device, requests, earliest: now, latest }));
                let state = &mut self.devices[device];
                if state.sent.is_empty() {
                    state.began = now;
                }
                state.sent.push_back((self.sessions[index].sizes[size].estimate, index, size));
            }
        }
    }

    fn next_wake(&self) -> Nanos {
        // Where less than AHEAD lies before a device everything that could run was sent, so only deadlines and the moment
        // at which more may be sent matter.
        let more = self.devices.iter().filter(|device| !device.sent.is_empty());
        let more = more.map(|device| device.available(0) - AHEAD + 1).filter(|&at| at > self.decided);
        self.alarms.earliest().min(more.min().unwrap_or(Nanos::MAX))
    }
}

/// How much work is kept before a device.
const AHEAD: Nanos = 10_000_000;
const WINDOW_LEAD: Nanos = 1_000_000;
/// However short an SLO less the slack gets, it is taken to be this (or the SLO, if that is less).
const SLO_LEAST: Nanos = 15_000_000;
const ESTIMATED_FROM: usize = 10;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::table::{MS, Table, scenario};

    #[test]
    fn the_largest_size_that_the_queue_fills_is_run_at_its_head() {
        // ℓ = 2, 3, 4 …; ten milliseconds of work are sent ahead.
        let scenario = scenario(&[(2, 1, 32, 100, 100.0)], 1);
        let mut table = Table::new(Clockwork::new(&scenario, 5 * MS, 16), &scenario);
        table.arrive(0, 7, 0);
        // Four (5 ms), then two (3 ms), then one (2 ms): ten milliseconds, no more.
        assert_eq!(table.decide(0), ["run 0 [0, 1, 2, 3]", "run 0 [4, 5]", "run 0 [6]"]);
        table.arrive(0, 1, 0);
        assert_eq!(table.decide(0), Vec::<String>::new());
        table.end(0, 0, &[0, 1, 2, 3], 5, 5);
        assert_eq!(table.decide(5), ["run 0 [7]"]);
    }

    #[test]
    fn the_tightest_strategy_goes_first() {
        let scenario = scenario(&[(2, 1, 32, 200, 100.0), (8, 1, 32, 50, 100.0)], 1);
        let mut table = Table::new(Clockwork::new(&scenario, 5 * MS, 16), &scenario);
        table.arrive(0, 1, 0);
        table.arrive(1, 1, 0);
        assert_eq!(table.decide(0), ["run 0 [1]", "run 0 [0]"]);
    }

    #[test]
    fn who_cannot_make_a_size_leaves_its_queue_and_at_last_all() {
        // ℓ(1) = 10, ℓ(2) = 30. Slack 0: a deadline of 40 ms.
        let scenario = scenario(&[(10, 20, 2, 40, 100.0)], 1);
        let mut table = Table::new(Clockwork::new(&scenario, 0, 16), &scenario);
        table.arrive(0, 2, 0);
        assert_eq!(table.decide(0), ["run 0 [0, 1]"]);
        table.arrive(0, 2, 1);
        // The device is free at 30: two would end at 60. One ends at 40, the next at 50: too late.
        assert_eq!(table.decide(1), Vec::<String>::new());
        assert_eq!(table.wake(), Some(20.000001));
        assert_eq!(table.decide(21), ["run 0 [2]"]);
        table.end(0, 0, &[0, 1], 30, 30);
        assert_eq!(table.decide(31), ["drop 3"]);
    }

    #[test]
    fn executions_that_take_longer_raise_the_estimate() {
        let scenario = scenario(&[(4, 4, 1, 40, 100.0)], 1);
        let mut table = Table::new(Clockwork::new(&scenario, 0, 16), &scenario);
        table.arrive(0, 4, 0);
        assert_eq!(table.decide(0), ["run 0 [0]", "run 0 [1]", "run 0 [2]"]);
        table.end(0, 0, &[0], 8, 8);
        // What was sent stays estimated at 4; the next is estimated at 8.
        assert_eq!(table.decide(8), ["run 0 [3]"]);
        assert_eq!(table.policy.devices[0].available(8 * MS), 24 * MS);
    }
}
