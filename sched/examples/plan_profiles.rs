//! Devices that the two planners take for models with measured profiles, over the bound B for evenly spaced arrivals.
//!
//! `cargo run --release -p rota-sched --example plan_profiles [SESSIONS [SEEDS [even|poisson [FILE]]]]`
//!
//! FILE has lines `model,batch,latency_ms`. A session is a model of it, an SLO of 20–400 ms (by ratio, 2.2 ℓ(1) at least)
//! and the rate of its rank k, 1000/k^0.9.

#[path = "../tests/workload/random.rs"]
mod random;

use random::Random;
use rota_sched::plan::*;
use rota_sched::{ModelId, Profile};
use std::collections::BTreeMap;
use std::time::Duration;

const PROFILES: &str = include_str!("data/titan_x.csv");

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize, otherwise: usize| {
        arguments.get(at).map_or(otherwise, |argument| argument.parse().expect("a whole number"))
    };
    let (sessions, seeds) = (number(0, 100), number(1, 5) as u64);
    let text = arguments.get(3).map(|path| std::fs::read_to_string(path).expect("a readable file"));
    let profiles = profiles(text.as_deref().unwrap_or(PROFILES));
    let arrivals = match arguments.get(2).map_or("even", String::as_str) {
        "even" => ArrivalProcess::Even,
        "poisson" => ArrivalProcess::Poisson,
        other => panic!("arrivals are even or poisson, not {other:?}"),
    };
    let mut sums = [0.0; 3];
    println!("{sessions} sessions of {} models; devices over B", profiles.len());
    for seed in 101..101 + seeds {
        let mut demand = demand(&profiles, sessions, seed);
        let fluid = bound::fluid(&demand);
        demand.arrivals = arrivals;
        let devices = |planner| {
            let plan = plan(&demand, planner, Steps(400)).expect("a valid demand");
            for violation in validity::violations(&demand, &plan).iter().take(3) {
                println!("{planner:?}, seed {seed}: {violation}");
            }
            plan.devices.len() as f64
        };
        let (nexus, rota) = (devices(Planner::Nexus), devices(Planner::Rota));
        println!("seed {seed}: B {fluid:.2}, nexus {nexus} = {:.3}, rota {rota} = {:.3}", nexus / fluid, rota / fluid);
        for (sum, ratio) in sums.iter_mut().zip([nexus / fluid, rota / fluid, rota / nexus]) {
            *sum += ratio / seeds as f64;
        }
    }
    println!("mean: nexus {:.3}, rota {:.3}, rota/nexus {:.3}", sums[0], sums[1], sums[2]);
}

/// By model, in order of name.
fn profiles(text: &str) -> Vec<Profile> {
    let mut points: BTreeMap<&str, Vec<(u32, Duration)>> = BTreeMap::new();
    for line in text.lines().filter(|line| !line.starts_with('#') && !line.starts_with("model,")) {
        let fields: Vec<&str> = line.split(',').collect();
        let [model, batch, latency_ms] = fields[..] else { panic!("{line:?} is not model,batch,latency_ms") };
        let latency_ms: f64 = latency_ms.parse().expect("a latency in milliseconds");
        let point = (batch.parse().expect("a batch size"), Duration::from_secs_f64(latency_ms / 1e3));
        points.entry(model).or_default().push(point);
    }
    points.values().map(|points| Profile::new(points).expect("valid points")).collect()
}

fn demand(profiles: &[Profile], sessions: usize, seed: u64) -> Demand {
    let mut random = Random(seed);
    let mut session = |rank: usize| loop {
        let model = (random.unit() * profiles.len() as f64) as usize;
        let slo = Duration::from_secs_f64(0.02 * 20f64.powf(random.unit()));
        if profiles[model].latency(1).expect("every profile has a batch of one").mul_f64(2.2) <= slo {
            let rate = 1000.0 / (rank as f64).powf(0.9);
            return Session { model: ModelId(model as u32), slo, rate, weight: 1.0 };
        }
    };
    let cost = |profile: &Profile| ModelCost { profile: profile.clone(), memory_bytes: 0, load_time: Duration::ZERO };
    let models = (0..).map(ModelId).zip(profiles.iter().map(cost)).collect();
    Demand {
        sessions: (1..=sessions).map(&mut session).collect(),
        kinds: vec![DeviceKind { memory_bytes: None, models }],
        fleet: Fleet::Unlimited(0),
        arrivals: ArrivalProcess::Even,
    }
}
