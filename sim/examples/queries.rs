//! How much load of the standard workloads with queries is held: by how SLOs are split, by what calls leave to the stages behind
//! them, and by policy.
//!
//! `cargo run --release -p rota-sim --example queries -- [SEEDS [SECONDS]]`

use rota_sched::plan::{Demand, Plan, Planner, Steps, plan};
use rota_sched::query::Method;
use rota_sim::arrivals::Pattern;
use rota_sim::engine::{RESERVE, World};
use rota_sim::policy::PolicySpec;
use rota_sim::standard::STANDARD;
use rota_sim::suite::GOOD_SHARE;
use rota_sim::trial::{Splits, Trial};
use rota_sim::workload::Workload;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let seeds: u64 = arguments.next().map_or(Ok(2), |text| text.parse())?;
    let seconds: f64 = arguments.next().map_or(Ok(20.0), |text| text.parse())?;
    for standard in STANDARD.iter().filter(|standard| !standard.workload().queries.is_empty()) {
        let workload = standard.workload();
        println!("{}: {seconds} s, seeds 1 to {seeds}; of the fluid bound", standard.name);
        for (method, name) in [(Method::Dp, "dp"), (Method::Even, "even"), (Method::ByLatency, "by-latency")] {
            let mut split = workload.clone();
            split.split(method);
            for reserve in [1.0, 0.75, 0.5, 0.25, 0.0] {
                let shares = held(&split, &PolicySpec::Rota, Splits::Given, reserve, (seeds, seconds));
                println!("  rota, split {name}, reserve {reserve}: {shares}");
            }
        }
        for name in PolicySpec::NAMES {
            let policy: PolicySpec = name.parse()?;
            println!("  {name}: {}", held(&workload, &policy, Splits::OfPolicy, RESERVE, (seeds, seconds)));
        }
    }
    Ok(())
}

/// The mean over seeds of the largest load with 99 % of every query in time, and the best of the policy's settings.
fn held(
    workload: &Workload,
    policy: &PolicySpec,
    splits: Splits,
    reserve: f64,
    (seeds, seconds): (u64, f64),
) -> String {
    let greedy = |demand: &Demand| -> Plan { plan(demand, Planner::Nexus, Steps(0)).unwrap_or_default() };
    let share = |policy: &PolicySpec| {
        let of = |seed| {
            let world = World { seed, reserve, ..World::default() };
            let pattern = workload.arrivals.unwrap_or(Pattern::Poisson);
            let trial = Trial { workload, pattern, trace: None, seconds, world, nexus: &greedy, splits };
            let found = trial.find_goodput(policy, GOOD_SHARE, 0.01).expect("it can be simulated");
            found.factor / found.bound
        };
        (1..=seeds).map(of).sum::<f64>() / seeds as f64
    };
    let best = policy.tunings().into_iter().map(|tuned| (share(&tuned), tuned)).max_by(|a, b| a.0.total_cmp(&b.0));
    let (share, tuned) = best.expect("there is the published setting");
    format!("{share:.3} ({tuned})")
}
