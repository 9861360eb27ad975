//! Devices that the two planners take on random demands, over the bound B; what plans without shared slots take at least,
//! over B; and the part of all requests that each plan answers late, or not, when they come by chance (Poisson).
//!
//! `cargo run --release -p rota-sched --example plan_random [SESSIONS [SEEDS [STEPS [FIRST_SEED]]]]`

#[path = "../tests/workload/mod.rs"]
mod workload;

use rota_sched::plan::{Demand, Plan, Planner, Steps, bound, plan, validity};
use std::time::Instant;

/// Requests of which it is said how many are late.
const POISSON: u64 = 2_000_000;

fn main() {
    let mut arguments = std::env::args().skip(1).map(|argument| argument.parse().expect("a whole number"));
    let sessions: usize = arguments.next().unwrap_or(100);
    let seeds: u64 = arguments.next().unwrap_or(5) as u64;
    let steps = Steps(arguments.next().unwrap_or(2000) as u32);
    let first: u64 = arguments.next().unwrap_or(101) as u64;
    println!("{sessions} sessions, {seeds} seeds, {steps:?}; devices over B");
    println!(
        "{:<12} {:>6} {:>8} {:>14} {:>14} {:>10} {:>8} {:>14} {:>14} {:>8}",
        "demand", "seed", "B", "nexus", "rota", "rota/nexus", "unshared", "nexus late %", "rota late %", "time"
    );
    for (name, draw) in [("mixed", workload::mixed as fn(usize, u64) -> Demand), ("many-small", workload::many_small)] {
        let mut sums = [0.0; 6];
        for seed in first..first + seeds {
            let demand = draw(sessions, seed);
            let fluid = bound::fluid(&demand);
            let nexus = plan(&demand, Planner::Nexus, steps).expect("a valid demand");
            let begun = Instant::now();
            let rota = plan(&demand, Planner::Rota, steps).expect("a valid demand");
            let elapsed = begun.elapsed();
            for (name, plan) in [("nexus", &nexus), ("rota", &rota)] {
                let violations = validity::violations(&demand, plan);
                for violation in violations.iter().take(3) {
                    println!("{name}, seed {seed}: {violation}");
                }
            }
            let (a, b) = (nexus.devices.len() as f64, rota.devices.len() as f64);
            let late = |plan: &Plan| {
                let tallies = validity::play_poisson(&demand, plan, 9, POISSON);
                let (arrived, in_time) = tallies.iter().fold((0, 0), |sum, t| (sum.0 + t.arrived, sum.1 + t.in_time));
                100.0 * (arrived - in_time) as f64 / arrived as f64
            };
            let (unshared, nexus_late, rota_late) = (bound::unshared(&demand) / fluid, late(&nexus), late(&rota));
            let columns = [a / fluid, b / fluid, b / a, unshared, nexus_late, rota_late];
            for (sum, ratio) in sums.iter_mut().zip(columns) {
                *sum += ratio;
            }
            println!(
                "{name:<12} {seed:>6} {fluid:>8.2} {a:>6} = {:>5.3} {b:>6} = {:>5.3} {:>10.3} {unshared:>8.3} {nexus_late:>14.2} {rota_late:>14.2} {elapsed:>8.2?}",
                a / fluid,
                b / fluid,
                b / a
            );
        }
        let [nexus, rota, ours, unshared, nexus_late, rota_late] = sums.map(|sum| sum / seeds as f64);
        println!(
            "{name:<12}   mean {:>8} {nexus:>14.3} {rota:>14.3} {ours:>10.3} {unshared:>8.3} {nexus_late:>14.2} {rota_late:>14.2}",
            ""
        );
    }
}
