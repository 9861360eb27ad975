//! Devices that random queries take, by how their SLOs are split: as the planner packs them, and Σ R·min ℓ(b)/b of the shares
//! (what takes them is of one size, and nothing is lost to packing).
//!
//! `cargo run --release -p rota-sched --example query_devices -- [QUERIES [SEEDS [TRIES [FIRST_SEED [LEAST]]]]]`
//!
//! LEAST: the shortest share that an even split may leave a stage, in percent of ℓ(1).

#[path = "../tests/workload/random.rs"]
mod random;

use random::Random;
use rota_sched::plan::*;
use rota_sched::query::{self, Method, Query, Split, Stage, Tries};
use rota_sched::{ModelId, Profile};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

const SPLITS: [&str; 4] = ["even", "by-latency", "dp", "joint"];

fn main() {
    let mut arguments = std::env::args().skip(1).map(|argument| argument.parse().expect("a whole number"));
    let queries: u32 = arguments.next().unwrap_or(3);
    let seeds = u64::from(arguments.next().unwrap_or(20));
    let tries = Tries(arguments.next().unwrap_or(24));
    let first = u64::from(arguments.next().unwrap_or(1));
    let least = f64::from(arguments.next().unwrap_or(100)) / 100.0;
    assert!(least >= 1.0, "a stage with less than ℓ(1) can't be planned");
    println!("{queries} queries, seeds {first} to {}, {tries:?}; devices (and Σ R·min ℓ(b)/b)", first + seeds - 1);
    let (mut devices, mut fluid) = ([0.0; 4], [0.0; 4]);
    for seed in first..first + seeds {
        let (demand, drawn) = drawn(&mut Random(seed), queries as usize, least);
        let splits = [Method::Even, Method::ByLatency, Method::Dp].map(Split::Alone);
        let splits = splits.into_iter().chain([Split::Joint(tries)]);
        let (mut counts, mut fluids, begun) = ([0.0; 4], [0.0; 4], Instant::now());
        for (index, split) in splits.enumerate() {
            let planned = query::plan(&demand, &drawn, split, Planner::Rota, Steps(0)).expect("a valid demand");
            assert!(planned.plan.unplaced.is_empty(), "a share is no shorter than ℓ(1)");
            counts[index] = planned.plan.devices.len() as f64;
            fluids[index] = bound::fluid(&planned.demand);
        }
        print!("seed {seed}:");
        for (index, name) in SPLITS.iter().enumerate() {
            print!(" {name} {} ({:.2}),", counts[index], fluids[index]);
            devices[index] += counts[index] / counts[2] / seeds as f64;
            fluid[index] += fluids[index] / fluids[2] / seeds as f64;
        }
        assert!(counts[3] <= counts[2], "the joint search begins with the plan of dp");
        println!(" {:.1?}", begun.elapsed());
    }
    for (index, name) in SPLITS.iter().enumerate() {
        println!("mean over dp: {name} {:.3} ({:.3})", devices[index], fluid[index]);
    }
}

/// Queries of 2 to 5 stages in any tree: ℓ(b) = αb + β with α 0.05–3 ms and β 1–20 ms, γ 0.1–10, an SLO of 2.5–4 times what
/// batches of one take, and a rate that keeps 0.1–30 devices busy in batches of eight; all of these log-uniform. Those are drawn
/// again of which `even` could not plan a stage, because its share is shorter than `least` ℓ(1).
fn drawn(random: &mut Random, queries: usize, least: f64) -> (Demand, Vec<Query>) {
    let (mut models, mut all) = (BTreeMap::new(), Vec::new());
    while all.len() < queries {
        let count = 2 + (random.unit() * 4.0) as usize;
        let profiles: Vec<Profile> = (0..count).map(|_| profile(random)).collect();
        let stage = |stage: usize, random: &mut Random| Stage {
            model: ModelId((models.len() + stage) as u32),
            after: (stage > 0).then(|| (random.unit() * stage as f64) as usize),
            gamma: log_uniform(random, 0.1, 10.0),
        };
        let stages: Vec<Stage> = (0..count).map(|index| stage(index, random)).collect();
        let draft = Query::new(Duration::from_secs(1), 1.0, stages.clone()).expect("a tree");
        let nanos = |profile: &Profile, batch| profile.latency(batch).expect("up to 64").as_nanos() as u64;
        let firsts: Vec<u64> = profiles.iter().map(|profile| nanos(profile, 1)).collect();
        let slo = draft.longest(&firsts)[0] as f64 * log_uniform(random, 2.5, 4.0);
        let each = profiles.iter().zip(draft.rates()).map(|(profile, rate)| rate * nanos(profile, 8) as f64 / 8e9);
        let rate = log_uniform(random, 0.1, 30.0) / each.sum::<f64>();
        let query = Query::new(Duration::from_nanos(slo as u64), rate, stages).expect("a tree");
        let borrowed: Vec<&Profile> = profiles.iter().collect();
        let even = query::split(&query, &borrowed, Method::Even).expect("it always splits");
        if even.iter().zip(&firsts).any(|(share, &first)| (share.as_nanos() as f64) < least * first as f64) {
            continue;
        }
        for profile in profiles {
            let cost = ModelCost { profile, memory_bytes: 0, load_time: Duration::ZERO };
            models.insert(ModelId(models.len() as u32), cost);
        }
        all.push(query);
    }
    let kinds = vec![DeviceKind { memory_bytes: None, models }];
    (Demand { sessions: vec![], kinds, fleet: Fleet::Unlimited(0), arrivals: ArrivalProcess::Even }, all)
}

fn profile(random: &mut Random) -> Profile {
    let (alpha, beta) = (log_uniform(random, 0.05, 3.0), log_uniform(random, 1.0, 20.0));
    let point = |power: u32| {
        let batch = 1u32 << power;
        (batch, Duration::from_secs_f64((alpha * f64::from(batch) + beta) / 1e3))
    };
    Profile::new(&(0..7).map(point).collect::<Vec<_>>()).expect("valid points")
}

fn log_uniform(random: &mut Random, low: f64, high: f64) -> f64 {
    low * (high / low).powf(random.unit())
}
