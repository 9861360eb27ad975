//! Symphony (Chen et al., 2023): batches deferred to the last moment that costs nothing, devices granted centrally.
//!
//! Each session keeps a candidate: the batch that it would run, when, and until when it stays valid. When a candidate's
//! time comes it is granted the device that is free earliest, if that is free by then; else it is parked, and whenever a
//! device is about to be free it goes to the parked candidate that stays valid the shortest. Window drop.

use super::alarms::Alarms;
use super::queue::{self, Queue};
use super::rate::Measured;
use crate::Nanos;
use crate::engine::{Ended, Order, Policy, Run};
use crate::load::Request;
use crate::scenario::{Latencies, Scenario};
use std::collections::BTreeSet;

/// What the policy plans for: see [`super::PolicySpec::Symphony`].
#[derive(Clone, Copy, Debug)]
pub struct Latency {
    pub margin: Nanos,
    pub share: f64,
    pub control: Nanos,
    pub data: Nanos,
}

pub struct Symphony {
    latency: Latency,
    sessions: Vec<Session>,
    /// When each device will have done what it was granted.
    free_at: Vec<Nanos>,
    /// By session: when its candidate is to be granted a device.
    send: Alarms,
    /// By session: when its candidate's batch or its oldest request is lost.
    invalid: Alarms,
    /// By device: when it may be given to a parked candidate.
    turns: Alarms,
    /// (invalid_after, session) of candidates whose time came while no device was free.
    parked: BTreeSet<(Nanos, usize)>,
    /// Sessions with new requests since the last decision.
    touched: Vec<usize>,
}

struct Session {
    /// What holds on every device, and by device: it plans with the first and learns where it runs when it is granted one.
    latencies: Latencies,
    on: Vec<Latencies>,
    /// By device.
    served: Vec<bool>,
    /// How much earlier than at the last moment its batches start.
    margin: Nanos,
    target: usize,
    slo: Nanos,
    /// `None`: it was told the rate, and the target stays.
    rate: Option<Measured>,
    /// Requests that the batch as large as the queue would be too late for, but a smaller one might not.
    prefix: Queue,
    suffix: Queue,
    candidate: Option<Candidate>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Candidate {
    batch: usize,
    exec_at: Nanos,
    invalid_after: Nanos,
    deadline: Nanos,
}

impl Symphony {
    pub fn new(scenario: &Scenario, latency: Latency) -> Symphony {
        let session = |index: usize| {
            let (latencies, session) = (scenario.latencies(index).clone(), &scenario.sessions[index]);
            Session {
                target: target(&latencies, session.slo - latency.control, latency.data, session.rate),
                slo: session.slo,
                rate: (!scenario.told).then(|| Measured::new(session.rate)),
                served: (0..scenario.devices.len()).map(|device| scenario.serves(device, index)).collect(),
                margin: latency.margin + (latency.share * session.slo as f64) as Nanos,
                latencies,
                on: scenario.latencies_by_device(index),
                prefix: Queue::new(),
                suffix: Queue::new(),
                candidate: None,
            }
        };
        let (sessions, devices) = (scenario.sessions.len(), scenario.devices.len());
        Symphony {
            latency,
            sessions: (0..sessions).map(session).collect(),
            free_at: vec![0; devices],
            send: Alarms::new(sessions),
            invalid: Alarms::new(sessions),
            turns: Alarms::new(devices),
            parked: BTreeSet::new(),
            touched: Vec::new(),
        }
    }

    /// The session's candidate, as new requests or the time make it.
    fn renew(&mut self, index: usize, now: Nanos, orders: &mut Vec<Order>) {
        self.withdraw(index);
        let candidate = self.sessions[index].candidate(now, 0, &self.latency, orders);
        self.sessions[index].candidate = candidate;
        match candidate {
            Some(candidate) => {
                let ahead = self.latency.ahead(candidate.batch);
                self.send.set(index, (candidate.exec_at - ahead).max(now));
                let lost = (candidate.invalid_after - ahead).min(candidate.deadline);
                self.invalid.set(index, if lost > now { lost } else { candidate.deadline.max(now + 1) });
            }
            // The published program stops its timers here, whatever still waits in the prefix.
            None => {
                self.send.set(index, Nanos::MAX);
                self.invalid.set(index, Nanos::MAX);
            }
        }
    }

    /// Takes a parked candidate back.
    fn withdraw(&mut self, index: usize) {
        if let Some(candidate) = self.sessions[index].candidate {
            self.parked.remove(&(candidate.invalid_after, index));
        }
    }

    /// The candidate's time has come.
    fn send(&mut self, index: usize, now: Nanos, orders: &mut Vec<Order>) {
        let Some(candidate) = self.sessions[index].candidate else { return };
        if now + self.latency.ahead(candidate.batch) > candidate.invalid_after {
            return;
        }
        let served = &self.sessions[index].served;
        let devices = (0..self.free_at.len()).filter(|&device| served[device]);
        let Some(device) = devices.min_by_key(|&device| self.free_at[device]) else { return };
        if self.free_at[device] <= candidate.exec_at {
            return self.grant(index, device, now, orders);
        }
        self.parked.insert((candidate.invalid_after, index));
        self.set_turns(index);
    }

    /// Devices that may be given to the parked session get a turn when they are about to be free.
    fn set_turns(&mut self, index: usize) {
        let session = &self.sessions[index];
        let ahead = session.candidate.map_or(0, |candidate| self.latency.ahead(candidate.batch));
        for (device, &free_at) in self.free_at.iter().enumerate().filter(|(device, _)| session.served[*device]) {
            self.turns.set(device, free_at - ahead);
        }
    }

    /// A device is about to be free: the parked candidate that stays valid the shortest has it.
    fn turn(&mut self, device: usize, now: Nanos, orders: &mut Vec<Order>) {
        let free_at = self.free_at[device];
        let mut chosen = None;
        let mut stale = Vec::new();
        for &(invalid_after, index) in &self.parked {
            if !self.sessions[index].served[device] {
                continue;
            }
            if free_at > invalid_after {
                stale.push((invalid_after, index));
            } else {
                chosen = Some(index);
                break;
            }
        }
        // Another device may still be free in time where not all hold the same models.
        for entry in stale {
            let served = &self.sessions[entry.1].served;
            if !(0..self.free_at.len()).any(|other| served[other] && self.free_at[other] <= entry.0) {
                self.parked.remove(&entry);
            }
        }
        if let Some(index) = chosen {
            self.grant(index, device, now, orders);
        }
    }

    fn grant(&mut self, index: usize, device: usize, now: Nanos, orders: &mut Vec<Order>) {
        self.withdraw(index);
        let session = &mut self.sessions[index];
        if let Some(candidate) = session.candidate(now, self.free_at[device], &self.latency, orders) {
            let requests = session.take(candidate.batch);
            self.free_at[device] = candidate.exec_at + session.on[device].at(candidate.batch);
            orders.push(Order::Run(Run { device, requests, earliest: candidate.exec_at, latest: Nanos::MAX }));
        } else {
            self.free_at[device] = now.max(self.free_at[device]);
        }
        self.sessions[index].candidate = None;
        self.renew(index, now, orders);
        let next = self.parked.iter().find(|(_, index)| self.sessions[*index].served[device]);
        if let Some(&(_, next)) = next {
            let ahead = self.sessions[next].candidate.map_or(0, |candidate| self.latency.ahead(candidate.batch));
            self.turns.set(device, (self.free_at[device] - ahead).max(now));
        }
    }
}

impl Session {
    /// The batch that it would run if decided at `now` on a device free at `free_at`. Drops whom no batch can save.
    fn candidate(
        &mut self,
        now: Nanos,
        free_at: Nanos,
        latency: &Latency,
        orders: &mut Vec<Order>,
    ) -> Option<Candidate> {
        let start = |batch: usize| free_at.max(now + latency.ahead(batch));
        let latencies = &self.latencies;
        let finish = |batch: usize| start(batch) + extrapolated(latencies, batch);
        while let Some(head) = self.suffix.front().filter(|head| head.deadline < finish(self.suffix.len())) {
            self.prefix.push_back(*head);
            self.suffix.pop_front();
        }
        let mut batch = self.target.min(self.suffix.len());
        if batch == 0 {
            return None;
        }
        while let Some(head) = self.prefix.front().filter(|head| head.deadline < finish(batch)) {
            orders.push(Order::Drop(head.id));
            self.prefix.pop_front();
        }
        let deadline = self.prefix.front().or(self.suffix.front()).expect("the suffix is not empty").deadline;
        let most = (self.prefix.len() + self.suffix.len()).min(latencies.max_batch());
        while batch < most && deadline >= finish(batch + 1) {
            batch += 1;
        }
        let latest = deadline - self.margin - latencies.at(batch);
        let frontrun = deadline - self.margin - extrapolated(latencies, batch + 1) - latency.data;
        let exec_at = start(batch).max(frontrun.min(latest));
        Some(Candidate { batch, exec_at, invalid_after: deadline - latencies.at(batch), deadline })
    }

    fn take(&mut self, batch: usize) -> Vec<u32> {
        let from_prefix = batch.min(self.prefix.len());
        let mut requests = queue::take(&mut self.prefix, from_prefix);
        requests.extend(queue::take(&mut self.suffix, batch - from_prefix));
        requests
    }
}

impl Latency {
    /// From a decision to the earliest start of a batch.
    fn ahead(&self, batch: usize) -> Nanos {
        self.control + self.data * batch as Nanos
    }
}

/// ℓ(b), past the largest batch by its last step, as the published program has it. Only to judge; never run.
fn extrapolated(latencies: &Latencies, batch: usize) -> Nanos {
    let max = latencies.max_batch();
    if batch <= max {
        return latencies.at(batch);
    }
    let step = latencies.at(max) - if max > 1 { latencies.at(max - 1) } else { 0 };
    latencies.at(max) + step * (batch - max) as Nanos
}

/// The batch to aim at: with n = r ℓ(b)/b devices, staggered, ℓ(b)(1 + 1/n) fits the budget; on less than one device
/// b/r + ℓ(b) does.
fn target(latencies: &Latencies, budget: Nanos, data: Nanos, rate: f64) -> usize {
    let budget = |batch: usize| (budget - data * batch as Nanos) as f64;
    let devices = |batch: usize, latency: Nanos| rate * latency as f64 / 1e9 / batch as f64;
    let staggered =
        |batch: usize, latency: Nanos| latency as f64 * (1.0 + 1.0 / devices(batch, latency).max(1.0)) <= budget(batch);
    let batch = latencies.largest_that(staggered);
    let next = (batch + 1).min(latencies.max_batch());
    if devices(next, latencies.at(next)) > 1.0 {
        return batch;
    }
    latencies.largest_that(|batch, latency| batch as f64 / rate * 1e9 + latency as f64 <= budget(batch))
}

impl Policy for Symphony {
    fn arrived(&mut self, request: Request) {
        let index = request.session as usize;
        let session = &mut self.sessions[index];
        session.suffix.push_back(request);
        if let Some(rate) = &mut session.rate
            && rate.count(request.arrival)
        {
            let budget = session.slo - self.latency.control;
            session.target = target(&session.latencies, budget, self.latency.data, rate.per_second());
        }
        if self.touched.last() != Some(&index) {
            self.touched.push(index);
        }
    }

    fn ended(&mut self, _: Ended<'_>, _: Nanos) {}

    fn decide(&mut self, now: Nanos, orders: &mut Vec<Order>) {
        for index in std::mem::take(&mut self.touched) {
            self.renew(index, now, orders);
        }
        loop {
            // What is lost is seen first, then devices go to whoever waits for one, then to new candidates.
            if let Some(index) = self.invalid.due(now) {
                self.renew(index, now, orders);
            } else if let Some(device) = self.turns.due(now) {
                self.turn(device, now, orders);
            } else if let Some(index) = self.send.due(now) {
                self.send(index, now, orders);
            } else {
                return;
            }
        }
    }

    fn next_wake(&self) -> Nanos {
        self.send.earliest().min(self.invalid.earliest()).min(self.turns.earliest())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::table::{MS, Table, scenario};

    const NONE: Latency = Latency { margin: 0, share: 0.0, control: 0, data: 0 };

    #[test]
    fn a_batch_waits_until_one_more_request_would_make_it_late() {
        // ℓ = 10, 15, 20 …; SLO 60.
        let scenario = scenario(&[(10, 5, 8, 60, 1000.0)], 1);
        let mut table = Table::new(Symphony::new(&scenario, NONE), &scenario);
        table.arrive(0, 1, 0);
        // ℓ(2) = 15: at 45 a second one would just fit.
        assert_eq!((table.decide(0), table.wake()), (vec![], Some(45.0)));
        table.arrive(0, 1, 30);
        assert_eq!((table.decide(30), table.wake()), (vec![], Some(40.0)));
        assert_eq!(table.decide(40), ["run 0 [0, 1]"]);
    }

    #[test]
    fn the_margin_brings_the_start_forward() {
        let scenario = scenario(&[(10, 5, 8, 60, 1000.0)], 1);
        let mut table = Table::new(Symphony::new(&scenario, Latency { margin: 2 * MS, share: 0.1, ..NONE }), &scenario);
        table.arrive(0, 1, 0);
        assert_eq!((table.decide(0), table.wake()), (vec![], Some(37.0)));
    }

    #[test]
    fn a_candidate_is_granted_ahead_by_what_control_and_data_take() {
        let scenario = scenario(&[(10, 5, 8, 60, 1000.0)], 1);
        let latency = Latency { control: 3 * MS, data: MS, ..NONE };
        let mut table = Table::new(Symphony::new(&scenario, latency), &scenario);
        table.arrive(0, 1, 0);
        // Frontrun at 60 - 15 - 1 = 44, sent 3 + 1 before.
        assert_eq!((table.decide(0), table.wake()), (vec![], Some(40.0)));
        let mut orders = Vec::new();
        table.policy.decide(40 * MS, &mut orders);
        assert!(matches!(&orders[..], [Order::Run(run)] if run.earliest == 44 * MS && run.requests == [0]));
    }

    #[test]
    fn the_candidate_that_stays_valid_the_shortest_gets_the_device() {
        let scenario = scenario(&[(20, 5, 8, 60, 1000.0), (10, 5, 8, 48, 1000.0), (10, 5, 8, 47, 1000.0)], 1);
        let mut table = Table::new(Symphony::new(&scenario, NONE), &scenario);
        table.arrive(0, 1, 0);
        assert_eq!(table.decide(35), ["run 0 [0]"]);
        // The device is free at 55. The second session wants it from 53 on and until 58, the third from 52 until 57.
        table.arrive(1, 1, 20);
        table.arrive(2, 1, 20);
        for at in [36, 52, 53, 54] {
            assert_eq!(table.decide(at), Vec::<String>::new(), "at {at}");
        }
        assert_eq!(table.wake(), Some(55.0));
        assert_eq!(table.decide(55), ["run 0 [2]"]);
    }

    #[test]
    fn the_published_trap_a_request_that_fits_no_batch_is_never_answered() {
        let scenario = scenario(&[(10, 5, 8, 60, 1000.0)], 1);
        let mut table = Table::new(Symphony::new(&scenario, NONE), &scenario);
        table.arrive(0, 1, 0);
        // Decided only when it is too late for any batch: it moves to the prefix, and nothing will ever wake it.
        assert_eq!((table.decide(55), table.wake()), (vec![], None));
        table.arrive(0, 1, 100);
        assert_eq!(table.decide(100), ["drop 0"], "the next request's arrival does");
    }

    #[test]
    fn a_rate_that_it_is_not_told_is_measured() {
        let mut scenario = scenario(&[(10, 5, 8, 60, 1000.0)], 1);
        scenario.told = false;
        let mut table = Table::new(Symphony::new(&scenario, NONE), &scenario);
        let before = table.policy.sessions[0].target;
        // One a second instead of a thousand: nobody else will come in time.
        for second in 0..12 {
            table.arrive(0, 1, 1000 * second);
            table.decide(1000 * second);
        }
        assert!(before > 1 && table.policy.sessions[0].target == 1, "from {before}");
    }

    #[test]
    fn targets_follow_the_published_estimate() {
        // ℓ = 26, 27 …: SLO 100. Eight devices: ℓ(b)(1 + 1/8) about; little load: b/r + ℓ(b).
        let latencies = crate::policy::table::latencies(26_000_000, 1_000_000, 128);
        let at = |rate| target(&latencies, 100 * MS, 0, rate);
        assert_eq!(at(100.0), 6, "6/100 s + 31 ms");
        // 63 in 88 ms: 715/s a device; with 8 of them 88 · 9/8 = 99.
        assert_eq!(at(5720.0), 63);
    }
}
