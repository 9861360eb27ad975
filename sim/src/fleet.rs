//! How many devices each system needs for random workloads under Poisson arrivals: its planner's plan, run by its own
//! dispatcher, until 99 % of every session are in time.
//!
//! Both planners are asked for the rates times a headroom, and the smallest plan that holds counts: the greedy knows
//! evenly spaced arrivals only and needs much, ours plans for Poisson and needs little or less than none. Ours is counted a
//! second time with every model on every device, by dispatch alone.

use crate::arrivals::Pattern;
use crate::bound;
use crate::engine::{self, World};
use crate::events::EventLog;
use crate::load::Load;
use crate::parallel;
use crate::policy::{Cycle, Drop, PolicySpec};
use crate::random::Random;
use crate::scenario::Scenario;
use crate::suite::GOOD_SHARE;
use crate::synthetic::{self, Linear};
use crate::workload::Workload;
use rota_sched::plan::{ArrivalProcess, Demand, Plan};
use serde::Serialize;

/// What is asked: `workloads` random workloads with seeds from `seed` on.
#[derive(Clone, Copy)]
pub struct Question<'a> {
    pub workloads: u32,
    /// In each; `None`: 10 to 300, at random.
    pub sessions: Option<usize>,
    pub seed: u64,
    /// How long requests arrive.
    pub seconds: f64,
    /// The published greedy, for as many devices as it takes.
    pub nexus: &'a (dyn Fn(&Demand) -> Plan + Sync),
    /// Ours, likewise.
    pub rota: &'a (dyn Fn(&Demand) -> Plan + Sync),
}

/// Devices for one workload.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Needed {
    pub seed: u64,
    pub sessions: usize,
    /// The fluid bound, not rounded.
    pub bound: f64,
    /// `None`: no headroom that was tried holds.
    pub nexus: Option<Held>,
    pub rota: Option<Held>,
    /// Ours with every model on every device.
    pub rota_anywhere: Option<usize>,
}

/// The smallest plan that held.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Held {
    pub devices: usize,
    /// The rates were planned for so many times what came.
    pub headroom: f64,
}

/// Means over the workloads in which every system holds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Means {
    pub workloads: usize,
    /// Devices over the fluid bound.
    pub nexus: f64,
    pub rota: f64,
    pub rota_anywhere: f64,
    /// Of the ratio of devices, workload by workload.
    pub rota_over_nexus: f64,
}

impl Question<'_> {
    /// Counts devices for each workload, in the order of seeds.
    pub fn answer(&self, threads: usize, progress: &(dyn Fn(usize, usize) + Sync)) -> Vec<Needed> {
        let seeds: Vec<u64> = (0..u64::from(self.workloads)).map(|index| self.seed.wrapping_add(index)).collect();
        parallel::map(&seeds, threads, |&seed| self.needed(seed), progress)
    }

    fn needed(&self, seed: u64) -> Needed {
        let sessions = sessions(self.sessions, seed);
        let text = synthetic::to_toml("", 1, None, &sessions);
        let mut workload = Workload::parse(&text, &|_| Err(String::new())).expect("a workload of ours");
        let load = Load::generate(&workload, Pattern::Poisson, self.seconds, seed);
        let one = Scenario::new(&workload).expect("memory does not matter");
        let bound = one.sessions.iter().map(|s| bound::devices(&one.models[s.model].latencies, s.slo, s.rate)).sum();
        workload.set_devices(0).expect("there is one kind");
        let play = Play { scenario: &one, load: &load };
        let ways = [Cycle::Busy, Cycle::Timed].map(|cycle| {
            let spec = PolicySpec::Nexus { drop: Drop::Early, cycle, headroom: 1.0 };
            let plan = |headroom| (self.nexus)(&workload.scaled(headroom).demand(ArrivalProcess::Even));
            smallest(1.0, &plan, &|plan| play.holds(&spec, play.anywhere(plan.devices.len()), plan))
        });
        let plan = |headroom| (self.rota)(&workload.scaled(headroom).demand(ArrivalProcess::Poisson));
        Needed {
            seed,
            sessions: sessions.len(),
            bound,
            nexus: ways.into_iter().flatten().min_by_key(|held| held.devices),
            rota: smallest(HEADROOM_LEAST, &plan, &|plan| play.holds(&PolicySpec::Rota, play.placed(plan), plan)),
            rota_anywhere: play.least_anywhere(bound),
        }
    }
}

fn sessions(count: Option<usize>, seed: u64) -> Vec<Linear> {
    let mut random = Random::new(seed, 0);
    match count {
        None => synthetic::random(&mut random),
        Some(count) => synthetic::random_of(count, &mut random),
    }
}

/// The first plan that holds, by growing headroom: plans grow with it, so it is the smallest, but for what chance does.
/// In wide steps first, then in narrow ones from the last that failed.
fn smallest(from: f64, plan: &dyn Fn(f64) -> Plan, holds: &dyn Fn(&Plan) -> bool) -> Option<Held> {
    let held = |headroom: f64| {
        let plan = plan(headroom);
        let devices = plan.devices.len();
        (devices > 0 && plan.unplaced.is_empty() && holds(&plan)).then_some(Held { devices, headroom })
    };
    let mut headroom = from;
    let wide = loop {
        match held(headroom) {
            Some(held) => break held,
            None if headroom > HEADROOM_MOST => return None,
            None => headroom *= HEADROOM_STEP,
        }
    };
    if wide.headroom == from {
        return Some(wide);
    }
    let failed = wide.headroom / HEADROOM_STEP;
    let mut narrow = (1..NARROW).map(|step| failed + (wide.headroom - failed) * f64::from(step) / f64::from(NARROW));
    Some(narrow.find_map(held).unwrap_or(wide))
}

/// One workload's requests, for any number of devices.
struct Play<'a> {
    /// On one device.
    scenario: &'a Scenario,
    load: &'a Load,
}

impl Play<'_> {
    fn holds(&self, policy: &PolicySpec, scenario: Scenario, plan: &Plan) -> bool {
        let planner = |_: &Demand| plan.clone();
        let mut policy = policy.build(&scenario, self.load.requests.len(), &planner);
        let world = World::default();
        let allowed = Some(1.0 - GOOD_SHARE);
        engine::run(&scenario, self.load, policy.as_mut(), world, allowed, EventLog::none()).holds(GOOD_SHARE)
    }

    /// Every model on each of so many devices.
    fn anywhere(&self, devices: usize) -> Scenario {
        let mut scenario = self.scenario.clone();
        scenario.devices = vec![scenario.devices[0].clone(); devices];
        scenario
    }

    /// Each device holds the models that the plan gives it, and no others.
    fn placed(&self, plan: &Plan) -> Scenario {
        let mut scenario = self.anywhere(plan.devices.len());
        for (device, timetable) in scenario.devices.iter_mut().zip(&plan.devices) {
            device.holds.fill(false);
            for share in timetable.slots.iter().flat_map(|slot| &slot.shares) {
                device.holds[scenario.sessions[share.session].model] = true;
            }
        }
        scenario
    }

    /// By bisection between the bound and thrice it, as if more devices always held what fewer do.
    fn least_anywhere(&self, bound: f64) -> Option<usize> {
        let holds = |devices| self.holds(&PolicySpec::Rota, self.anywhere(devices), &Plan::default());
        let (mut fails, mut held) = (0, (3.0 * bound).ceil() as usize + 2);
        if !holds(held) {
            return None;
        }
        while held - fails > 1 {
            let middle = usize::midpoint(fails, held);
            *(if holds(middle) { &mut held } else { &mut fails }) = middle;
        }
        Some(held)
    }
}

/// `None` when there is no workload in which every system holds.
pub fn means(needed: &[Needed]) -> Option<Means> {
    let ratios = |needed: &Needed| {
        let (nexus, rota) = (needed.nexus?.devices as f64, needed.rota?.devices as f64);
        let anywhere = needed.rota_anywhere? as f64;
        Some([nexus / needed.bound, rota / needed.bound, anywhere / needed.bound, rota / nexus])
    };
    let all: Vec<[f64; 4]> = needed.iter().filter_map(ratios).collect();
    let mean = |column: usize| all.iter().map(|ratios| ratios[column]).sum::<f64>() / all.len() as f64;
    (!all.is_empty()).then(|| Means {
        workloads: all.len(),
        nexus: mean(0),
        rota: mean(1),
        rota_anywhere: mean(2),
        rota_over_nexus: mean(3),
    })
}

/// Our plans keep room for Poisson arrivals: perhaps more than the dispatcher needs.
const HEADROOM_LEAST: f64 = 0.7;
const HEADROOM_MOST: f64 = 5.0;
const HEADROOM_STEP: f64 = 1.2;
/// Narrow steps in a wide one.
const NARROW: u32 = 4;

#[cfg(test)]
mod tests {
    use super::*;
    use rota_sched::plan::{Planner, Steps, plan};

    #[test]
    fn each_system_needs_at_least_the_bound_and_the_count_repeats() {
        let by = |planner| move |demand: &Demand| plan(demand, planner, Steps(0)).expect("a valid demand");
        let (nexus, rota) = (by(Planner::Nexus), by(Planner::Rota));
        let question = Question { workloads: 2, sessions: Some(6), seed: 3, seconds: 20.0, nexus: &nexus, rota: &rota };
        let needed = question.answer(1, &|_, _| ());
        assert_eq!(needed, question.answer(2, &|_, _| ()));
        for needed in &needed {
            let least = 0.9 * needed.bound;
            assert_eq!(needed.sessions, 6);
            assert!(needed.nexus.expect("some headroom is enough").devices as f64 > least, "{needed:?}");
            assert!(needed.rota.expect("some headroom is enough").devices as f64 > least, "{needed:?}");
            assert!(needed.rota_anywhere.expect("thrice the bound is enough") as f64 > least, "{needed:?}");
        }
        let means = means(&needed).expect("all hold");
        assert!(means.workloads == 2 && means.rota_over_nexus > 0.0, "{means:?}");
    }
}
