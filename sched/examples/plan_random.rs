//! Devices that the two planners take on random demands, over the bound B.
//!
//! `cargo run --release -p rota-sched --example plan_random [SESSIONS [SEEDS [STEPS [FIRST_SEED]]]]`

#[path = "../tests/workload/mod.rs"]
mod workload;

use rota_sched::plan::{Demand, Planner, Steps, bound, plan, validity};
use std::time::Instant;

fn main() {
    let mut arguments = std::env::args().skip(1).map(|argument| argument.parse().expect("a whole number"));
    let sessions: usize = arguments.next().unwrap_or(100);
    let seeds: u64 = arguments.next().unwrap_or(5) as u64;
    let steps = Steps(arguments.next().unwrap_or(2000) as u32);
    let first: u64 = arguments.next().unwrap_or(101) as u64;
    println!("{sessions} sessions, {seeds} seeds, {steps:?}; devices over B");
    println!(
        "{:<12} {:>6} {:>8} {:>14} {:>14} {:>8} {:>8}",
        "demand", "seed", "B", "nexus", "rota", "rota/nexus", "time"
    );
    for (name, draw) in [("mixed", workload::mixed as fn(usize, u64) -> Demand), ("many-small", workload::many_small)] {
        let mut sums = [0.0; 3];
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
            for (sum, ratio) in sums.iter_mut().zip([a / fluid, b / fluid, b / a]) {
                *sum += ratio;
            }
            println!(
                "{name:<12} {seed:>6} {fluid:>8.2} {a:>6} = {:>5.3} {b:>6} = {:>5.3} {:>8.3} {elapsed:>8.2?}",
                a / fluid,
                b / fluid,
                b / a
            );
        }
        let [nexus, rota, ours] = sums.map(|sum| sum / seeds as f64);
        println!("{name:<12}   mean {:>8} {nexus:>14.3} {rota:>14.3} {ours:>8.3}", "");
    }
}
