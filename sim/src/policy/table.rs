//! Small worked cases for the policies' tests. Times are in milliseconds where not said otherwise.

use crate::Nanos;
use crate::engine::{Ended, Order, Policy};
use crate::load::Request;
use crate::policy::queue::Queue;
use crate::scenario::{Latencies, Scenario};
use crate::workload::Workload;
use rota_sched::Profile;
use std::time::Duration;

pub const MS: Nanos = 1_000_000;

/// ℓ(b) = first + (b - 1) · each up to `max`, in nanoseconds.
pub fn latencies(first: u64, each: u64, max: u32) -> Latencies {
    let point = |batch: u32| (batch, Duration::from_nanos(first + each * u64::from(batch - 1)));
    let points: Vec<_> = (1..=max).map(point).collect();
    Latencies::of(&Profile::new(&points).expect("valid points"))
}

/// Requests with these deadlines in nanoseconds, numbered from 0.
pub fn queue(deadlines: &[Nanos]) -> Queue {
    let request = |(id, &deadline): (usize, &Nanos)| Request { id: id as u32, session: 0, arrival: 0, deadline };
    deadlines.iter().enumerate().map(request).collect()
}

pub fn drops(orders: &[Order]) -> Vec<u32> {
    let id = |order: &Order| if let Order::Drop(id) = order { Some(*id) } else { None };
    orders.iter().filter_map(id).collect()
}

/// Sessions (first, each, max, slo, rate), each of its own model, on so many devices.
pub fn scenario(sessions: &[(u64, u64, u32, u64, f64)], devices: usize) -> Scenario {
    let mut text = format!("[[device]]\ncount = {devices}\n");
    for (model, (first, each, max, slo, rate)) in sessions.iter().enumerate() {
        let last = first + each * u64::from(max - 1);
        let points = if *max > 1 { format!("1 = {first}, {max} = {last}") } else { format!("1 = {first}") };
        text += &format!("[[profile]]\nmodel = \"{model}\"\nbatch_ms = {{ {points} }}\n");
        text += &format!("[[session]]\nmodel = \"{model}\"\nslo_ms = {slo}\nrate = {rate}\n");
    }
    Scenario::new(&Workload::parse(&text, &|_| Err(String::new())).expect("a workload")).expect("a scenario")
}

/// Drives a policy by hand and says what it orders.
pub struct Table<'a, P> {
    pub policy: P,
    scenario: &'a Scenario,
    requests: u32,
}

impl<'a, P: Policy> Table<'a, P> {
    pub fn new(policy: P, scenario: &'a Scenario) -> Table<'a, P> {
        Table { policy, scenario, requests: 0 }
    }

    /// `count` requests of `session` arrive at `at` ms; no decision yet.
    pub fn arrive(&mut self, session: usize, count: usize, at: i64) {
        for _ in 0..count {
            let (arrival, slo) = (at * MS, self.scenario.sessions[session].slo);
            let request = Request { id: self.requests, session: session as u32, arrival, deadline: arrival + slo };
            self.policy.arrived(request);
            self.requests += 1;
        }
    }

    pub fn end(&mut self, device: usize, session: usize, requests: &[u32], took: i64, at: i64) {
        self.policy.ended(Ended { device, session, requests, took: took * MS, refused: false }, at * MS);
    }

    /// What the policy orders at `at` ms: "run DEVICE [REQUESTS]", "drop REQUEST", "preempt DEVICE".
    pub fn decide(&mut self, at: i64) -> Vec<String> {
        let mut orders = Vec::new();
        self.policy.decide(at * MS, &mut orders);
        let text = |order: &Order| match order {
            Order::Run(run) => format!("run {} {:?}", run.device, run.requests),
            Order::Drop(id) => format!("drop {id}"),
            Order::Preempt { device } => format!("preempt {device}"),
        };
        orders.iter().map(text).collect()
    }

    /// In milliseconds; `None`: never.
    pub fn wake(&self) -> Option<f64> {
        Some(self.policy.next_wake()).filter(|&at| at < Nanos::MAX).map(|at| at as f64 / MS as f64)
    }
}
