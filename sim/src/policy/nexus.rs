//! Nexus (Shen et al., SOSP 2019): planned cycles, requests routed to devices on arrival, early drop.
//!
//! A plan by the published greedy says which sessions each device serves, in which order, with what batches. A request is
//! sent at once to one device of its session, in proportion to the rates planned there, and waits in that device's own
//! queue. At a session's turn the device takes a batch of at most the planned size. Where rates are measured a new plan
//! replaces the old one each epoch; what waits is dealt anew, what executes ends.

use super::queue::{self, Queue};
use crate::Nanos;
use crate::engine::{Ended, Order, Policy};
use crate::load::Request;
use crate::planning::{self, Planner};
use crate::scenario::{Latencies, Scenario};
use rota_sched::plan::{ArrivalProcess, Timetable};
use std::time::Duration;

/// Which requests a batch leaves behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drop {
    /// The paper's: give up the head to save the batch behind it.
    Early,
    /// What the paper compares with: only heads that are late in any case; the batch is what the head allows.
    Lazy,
}

/// When a slot's turn comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cycle {
    /// As soon as the device is free: slots that have nothing to do are skipped, and cycles are as short as they can be.
    Busy,
    /// At its offset, cycle after cycle, or when the device is free after that.
    Timed,
}

pub struct Nexus<'a> {
    drop: Drop,
    cycle: Cycle,
    devices: Vec<Device>,
    /// By session: the queues that its requests are dealt to.
    routes: Vec<Vec<Route>>,
    /// By session and device.
    latencies: Vec<Vec<Latencies>>,
    /// Requests of sessions without a place.
    refused: Vec<u32>,
    /// `None`: the first plan stays.
    replanning: Option<Replanning<'a>>,
}

/// What it takes to plan anew.
struct Replanning<'a> {
    planner: Planner<'a>,
    headroom: f64,
    /// As last planned for.
    scenario: Scenario,
    /// By session: requests since the last plan.
    arrived: Vec<u64>,
    planned_at: Nanos,
}

struct Device {
    slots: Vec<Slot>,
    /// One per session that it serves.
    queues: Vec<Queue>,
    period: Nanos,
    executes: bool,
    /// Index of the slot whose turn is next, and, where slots are timed, when.
    next: usize,
    next_at: Nanos,
}

struct Slot {
    offset: Nanos,
    batch: usize,
    /// Sessions that share it, each with its queue on the device; the one after the last that had the slot is first.
    shares: Vec<(usize, usize)>,
    first: usize,
}

struct Route {
    device: usize,
    queue: usize,
    /// Of the session's requests, the part that is sent here.
    part: f64,
    /// How much of a request this route is owed.
    credit: f64,
}

impl<'a> Nexus<'a> {
    /// By device, what it was planned to do.
    pub fn new(scenario: &Scenario, timetables: &[Timetable], drop: Drop, cycle: Cycle) -> Nexus<'a> {
        let (devices, routes) = follow(timetables, scenario.sessions.len());
        let latencies = (0..scenario.sessions.len()).map(|session| scenario.latencies_by_device(session)).collect();
        Nexus { drop, cycle, devices, routes, latencies, refused: Vec::new(), replanning: None }
    }

    /// It plans anew each epoch of the scenario, for the rates measured since, times `headroom`.
    pub fn replanning(mut self, scenario: &Scenario, headroom: f64, planner: Planner<'a>) -> Nexus<'a> {
        let arrived = vec![0; scenario.sessions.len()];
        self.replanning = Some(Replanning { planner, headroom, scenario: scenario.clone(), arrived, planned_at: 0 });
        self
    }

    /// A new plan if an epoch has passed. What waits is dealt anew, in the order of arrival.
    fn replan(&mut self, now: Nanos) {
        let Some(replanning) = self.replanning.as_mut().filter(|replanning| replanning.is_due(now)) else { return };
        let timetables = replanning.plan(now);
        let (mut devices, routes) = follow(&timetables, self.routes.len());
        let mut waiting: Vec<Request> = Vec::new();
        for (device, before) in devices.iter_mut().zip(&mut self.devices) {
            device.executes = before.executes;
            device.next_at = device.next_at.saturating_add(now);
            waiting.extend(before.queues.iter_mut().flat_map(|queue| queue.drain(..)));
        }
        (self.devices, self.routes) = (devices, routes);
        waiting.sort_unstable_by_key(|request| request.id);
        waiting.into_iter().for_each(|request| self.deal(request));
    }

    /// To the route that is owed most: over any stretch each gets its part of the requests, to within one.
    fn deal(&mut self, request: Request) {
        let routes = &mut self.routes[request.session as usize];
        routes.iter_mut().for_each(|route| route.credit += route.part);
        match routes.iter_mut().max_by(|a, b| a.credit.total_cmp(&b.credit)) {
            Some(route) => {
                route.credit -= 1.0;
                self.devices[route.device].queues[route.queue].push_back(request);
            }
            None => self.refused.push(request.id),
        }
    }

    /// A free device looks for work, from the slot whose turn it is on.
    fn turn(&mut self, index: usize, now: Nanos, orders: &mut Vec<Order>) {
        let device = &mut self.devices[index];
        for _ in 0..device.slots.len() {
            if self.cycle == Cycle::Timed && device.next_at > now {
                return;
            }
            let slot = &mut device.slots[device.next];
            let (batch, shares) = (slot.batch, slot.shares.len());
            let mut requests = Vec::new();
            for turn in 0..shares {
                let (session, queue) = slot.shares[(slot.first + turn) % shares];
                let (queue, latencies) = (&mut device.queues[queue], &self.latencies[session][index]);
                requests = match self.drop {
                    Drop::Early => queue::early(queue, batch, latencies, now, orders),
                    Drop::Lazy => queue::lazy(queue, latencies, now, orders),
                };
                if !requests.is_empty() {
                    slot.first = (slot.first + turn + 1) % shares;
                    break;
                }
            }
            device.advance(now);
            if !requests.is_empty() {
                device.executes = true;
                orders.push(queue::run(index, requests));
                return;
            }
        }
    }
}

/// Devices, and the routes to them by session, that do what was planned.
fn follow(timetables: &[Timetable], sessions: usize) -> (Vec<Device>, Vec<Vec<Route>>) {
    let mut routes: Vec<Vec<Route>> = (0..sessions).map(|_| Vec::new()).collect();
    let device = |(index, timetable)| Device::new(index, timetable, &mut routes);
    let devices = timetables.iter().enumerate().map(device).collect();
    for routes in &mut routes {
        let whole: f64 = routes.iter().map(|route| route.part).sum();
        routes.iter_mut().for_each(|route| route.part /= whole);
    }
    (devices, routes)
}

impl Replanning<'_> {
    fn is_due(&self, now: Nanos) -> bool {
        now - self.planned_at >= self.scenario.epoch
    }

    /// Timetables for the rates since the last plan. A session of which nothing came keeps a place for one request.
    fn plan(&mut self, now: Nanos) -> Vec<Timetable> {
        let seconds = (now - self.planned_at) as f64 / 1e9;
        for (session, arrived) in self.scenario.sessions.iter_mut().zip(&mut self.arrived) {
            session.rate = std::mem::take(arrived).max(1) as f64 / seconds;
        }
        self.planned_at = now;
        planning::timetables(&self.scenario, ArrivalProcess::Even, self.headroom, self.planner)
    }
}

impl Device {
    fn new(index: usize, timetable: &Timetable, routes: &mut [Vec<Route>]) -> Device {
        let nanos = |duration: Duration| duration.as_nanos() as Nanos;
        let mut sessions: Vec<usize> = Vec::new();
        let mut slots = Vec::with_capacity(timetable.slots.len());
        for slot in &timetable.slots {
            let mut shares = Vec::with_capacity(slot.shares.len());
            for share in &slot.shares {
                let queue = sessions.iter().position(|&session| session == share.session).unwrap_or_else(|| {
                    sessions.push(share.session);
                    sessions.len() - 1
                });
                shares.push((share.session, queue));
                let routes = &mut routes[share.session];
                match routes.iter_mut().find(|route| route.device == index) {
                    Some(route) => route.part += share.rate,
                    None => routes.push(Route { device: index, queue, part: share.rate, credit: 0.0 }),
                }
            }
            let offset = nanos(slot.offset) + nanos(timetable.phase);
            slots.push(Slot { offset, batch: slot.batch as usize, shares, first: 0 });
        }
        Device {
            next_at: slots.first().map_or(Nanos::MAX, |slot| slot.offset),
            slots,
            queues: sessions.iter().map(|_| Queue::new()).collect(),
            period: nanos(timetable.period),
            executes: false,
            next: 0,
        }
    }

    /// To the slot after this one. A timed slot that has passed by entirely is not made up for.
    fn advance(&mut self, now: Nanos) {
        let before = self.slots[self.next].offset;
        self.next = (self.next + 1) % self.slots.len();
        let after = self.slots[self.next].offset;
        self.next_at += if after > before { after - before } else { self.period + after - before };
        if self.next_at + self.period < now {
            self.next_at += (now - self.next_at) / self.period * self.period;
        }
    }

    fn waits(&self) -> bool {
        self.queues.iter().any(|queue| !queue.is_empty())
    }
}

impl Policy for Nexus<'_> {
    fn arrived(&mut self, request: Request) {
        if let Some(replanning) = &mut self.replanning {
            replanning.arrived[request.session as usize] += 1;
        }
        self.deal(request);
    }

    fn ended(&mut self, ended: Ended<'_>, _: Nanos) {
        self.devices[ended.device].executes = false;
    }

    fn decide(&mut self, now: Nanos, orders: &mut Vec<Order>) {
        self.replan(now);
        orders.extend(self.refused.drain(..).map(Order::Drop));
        for device in 0..self.devices.len() {
            if !self.devices[device].executes {
                self.turn(device, now, orders);
            }
        }
    }

    fn next_wake(&self) -> Nanos {
        if self.cycle == Cycle::Busy {
            return Nanos::MAX;
        }
        let idle = self.devices.iter().filter(|device| !device.executes && device.waits());
        idle.map(|device| device.next_at).min().unwrap_or(Nanos::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::table::{Table, scenario};
    use rota_sched::plan;

    /// A slot: offset in milliseconds, batch, and who shares it at what rate.
    type Turn<'a> = (u64, u32, &'a [(usize, f64)]);

    /// `period` in milliseconds.
    fn timetable(period: u64, slots: &[Turn<'_>]) -> Timetable {
        let ms = Duration::from_millis;
        let slot = |&(offset, batch, shares): &Turn<'_>| plan::Slot {
            offset: ms(offset),
            batch,
            execution: Duration::ZERO,
            shares: shares.iter().map(|&(session, rate)| plan::Share { session, rate, batch }).collect(),
        };
        Timetable { kind: 0, period: ms(period), phase: Duration::ZERO, slots: slots.iter().map(slot).collect() }
    }

    #[test]
    fn requests_are_dealt_to_devices_by_planned_rates_and_wait_there() {
        let scenario = scenario(&[(10, 5, 8, 200, 30.0)], 2);
        let plan = vec![timetable(50, &[(0, 2, &[(0, 20.0)])]), timetable(50, &[(0, 2, &[(0, 10.0)])])];
        let mut table = Table::new(Nexus::new(&scenario, &plan, Drop::Early, Cycle::Busy), &scenario);
        table.arrive(0, 6, 0);
        // Two of three to the first device; the rest of its four waits for it, though the other will be free first.
        assert_eq!(table.decide(0), ["run 0 [0, 2]", "run 1 [1, 4]"]);
        table.end(1, 0, &[1, 4], 15, 15);
        assert_eq!(table.decide(15), Vec::<String>::new());
        table.end(0, 0, &[0, 2], 15, 15);
        assert_eq!(table.decide(15), ["run 0 [3, 5]"]);
    }

    #[test]
    fn slots_take_turns_and_empty_ones_are_skipped() {
        let scenario = scenario(&[(10, 5, 8, 200, 30.0), (10, 5, 8, 200, 30.0)], 1);
        let plan = vec![timetable(50, &[(0, 2, &[(0, 30.0)]), (20, 3, &[(1, 30.0)])])];
        let mut table = Table::new(Nexus::new(&scenario, &plan, Drop::Early, Cycle::Busy), &scenario);
        table.arrive(0, 5, 0);
        table.arrive(1, 1, 0);
        assert_eq!(table.decide(0), ["run 0 [0, 1]"]);
        table.end(0, 0, &[0, 1], 15, 15);
        assert_eq!(table.decide(15), ["run 0 [5]"]);
        table.end(0, 1, &[5], 10, 25);
        assert_eq!(table.decide(25), ["run 0 [2, 3]"]);
        table.end(0, 0, &[2, 3], 15, 40);
        assert_eq!(table.decide(40), ["run 0 [4]"], "the second session has nothing: its slot is skipped");
    }

    #[test]
    fn timed_slots_wait_for_their_offset() {
        let scenario = scenario(&[(10, 5, 8, 200, 30.0), (10, 5, 8, 200, 30.0)], 1);
        let plan = vec![timetable(50, &[(0, 2, &[(0, 30.0)]), (20, 3, &[(1, 30.0)])])];
        let mut table = Table::new(Nexus::new(&scenario, &plan, Drop::Early, Cycle::Timed), &scenario);
        table.arrive(1, 1, 0);
        assert_eq!((table.decide(0), table.wake()), (vec![], Some(20.0)));
        table.arrive(0, 1, 5);
        assert_eq!((table.decide(5), table.wake()), (vec![], Some(20.0)));
        assert_eq!(table.decide(20), ["run 0 [0]"]);
        table.end(0, 1, &[0], 10, 30);
        assert_eq!((table.decide(30), table.wake()), (vec![], Some(50.0)));
        assert_eq!(table.decide(50), ["run 0 [1]"]);
    }

    #[test]
    fn sessions_that_share_a_slot_alternate() {
        let scenario = scenario(&[(10, 5, 8, 200, 1.0), (10, 5, 8, 200, 1.0)], 1);
        let plan = vec![timetable(50, &[(0, 1, &[(0, 1.0), (1, 1.0)])])];
        let mut table = Table::new(Nexus::new(&scenario, &plan, Drop::Early, Cycle::Busy), &scenario);
        table.arrive(0, 2, 0);
        table.arrive(1, 1, 0);
        assert_eq!(table.decide(0), ["run 0 [0]"]);
        table.end(0, 0, &[0], 10, 10);
        assert_eq!(table.decide(10), ["run 0 [2]"]);
    }

    #[test]
    fn lazy_and_early_drop_differ_as_published() {
        let scenario = scenario(&[(10, 10, 8, 30, 30.0)], 1);
        let batch = |drop| {
            let plan = vec![timetable(50, &[(0, 3, &[(0, 30.0)])])];
            let mut table = Table::new(Nexus::new(&scenario, &plan, drop, Cycle::Busy), &scenario);
            table.arrive(0, 1, 0);
            table.arrive(0, 2, 5);
            table.decide(5)
        };
        assert_eq!(batch(Drop::Early), ["drop 0", "run 0 [1, 2]"]);
        assert_eq!(batch(Drop::Lazy), ["run 0 [0, 1]"]);
    }

    #[test]
    fn a_new_plan_follows_the_measured_rates_and_deals_what_waits_anew() {
        let mut scenario = scenario(&[(10, 5, 8, 2000, 30.0)], 2);
        (scenario.told, scenario.epoch) = (false, 1_000_000_000);
        let first = vec![timetable(50, &[(0, 2, &[(0, 30.0)])]), timetable(50, &[])];
        let planner = |demand: &plan::Demand| {
            assert_eq!(demand.sessions[0].rate, 2.0 * 5.0, "five in a second, and headroom");
            plan::Plan {
                devices: vec![timetable(50, &[]), timetable(50, &[(0, 4, &[(0, 10.0)])])],
                ..Default::default()
            }
        };
        let policy = Nexus::new(&scenario, &first, Drop::Early, Cycle::Busy).replanning(&scenario, 2.0, &planner);
        let mut table = Table::new(policy, &scenario);
        table.arrive(0, 5, 990);
        assert_eq!(table.decide(990), ["run 0 [0, 1]"]);
        assert_eq!(table.decide(1000), ["run 1 [2, 3, 4]"]);
        table.end(0, 0, &[0, 1], 15, 1005);
        assert_eq!(table.decide(1005), Vec::<String>::new());
    }

    #[test]
    fn a_session_without_a_place_is_refused() {
        let scenario = scenario(&[(10, 10, 8, 30, 30.0)], 1);
        let mut table = Table::new(Nexus::new(&scenario, &[], Drop::Early, Cycle::Busy), &scenario);
        table.arrive(0, 1, 0);
        assert_eq!(table.decide(0), ["drop 0"]);
    }
}
