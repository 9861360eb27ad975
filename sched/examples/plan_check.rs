//! Our planner against the greedy on many random workloads of 10–300 sessions: never more devices, always a valid plan.
//! And 500 slow sessions on at most a fifth of the greedy's devices. Ends with an error when that is not so.
//!
//! `cargo run --release -p rota-sched --example plan_check [WORKLOADS [FIRST_SEED [STEPS]]]`

#[path = "../tests/workload/mod.rs"]
mod workload;

use rota_sched::plan::{Planner, Steps, bound, plan, validity};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Workloads of about one size.
#[derive(Default)]
struct Class {
    count: usize,
    worse: usize,
    invalid: usize,
    over_bound: f64,
    over_greedy: f64,
    longest: Duration,
}

const SIZES: [std::ops::RangeInclusive<usize>; 4] = [10..=30, 31..=99, 100..=199, 200..=300];

/// What takes longer is named.
const SLOW: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1).map(|argument| argument.parse().expect("a whole number"));
    let workloads: u64 = arguments.next().unwrap_or(1000);
    let first: u64 = arguments.next().unwrap_or(1001);
    let steps = Steps(arguments.next().unwrap_or(400) as u32);
    let mut classes: [Class; SIZES.len()] = Default::default();
    for seed in first..first + workloads {
        let sessions = 10 + (workload::Random(seed ^ 0x5eed).unit() * 291.0) as usize;
        let demand = workload::mixed(sessions, seed);
        let nexus = plan(&demand, Planner::Nexus, steps).expect("a valid demand");
        let begun = Instant::now();
        let rota = plan(&demand, Planner::Rota, steps).expect("a valid demand");
        let elapsed = begun.elapsed();
        let violations = validity::violations(&demand, &rota);
        for violation in &violations {
            println!("seed {seed}, {sessions} sessions: {violation}");
        }
        let (ours, greedy) = (rota.devices.len(), nexus.devices.len());
        if ours > greedy {
            println!("seed {seed}, {sessions} sessions: {ours} devices, the greedy takes {greedy}");
        }
        let class = SIZES.iter().position(|size| size.contains(&sessions)).expect("sizes are from 10 to 300");
        let class = &mut classes[class];
        class.count += 1;
        class.worse += usize::from(ours > greedy);
        class.invalid += usize::from(!violations.is_empty());
        class.over_bound += ours as f64 / bound::fluid(&demand);
        class.over_greedy += ours as f64 / greedy as f64;
        if elapsed > SLOW {
            println!("seed {seed}, {sessions} sessions: planned in {elapsed:.2?}");
        }
        class.longest = class.longest.max(elapsed);
    }
    println!(
        "{:<10} {:>9} {:>6} {:>8} {:>8} {:>12} {:>10}",
        "sessions", "workloads", "worse", "invalid", "/ B", "/ greedy", "longest"
    );
    for (size, class) in SIZES.iter().zip(&classes) {
        let (count, sizes) = (class.count as f64, format!("{}–{}", size.start(), size.end()));
        println!(
            "{sizes:<10} {:>9} {:>6} {:>8} {:>8.3} {:>12.3} {:>10.2?}",
            class.count,
            class.worse,
            class.invalid,
            class.over_bound / count,
            class.over_greedy / count,
            class.longest
        );
    }
    let mut slow = 0;
    for seed in first..first + 5 {
        let demand = workload::many_small(500, seed);
        let devices = |planner| plan(&demand, planner, steps).expect("a valid demand").devices.len();
        let (ours, greedy) = (devices(Planner::Rota), devices(Planner::Nexus));
        println!("500 slow sessions, seed {seed}: {ours} devices, the greedy takes {greedy}");
        slow += usize::from(ours * 5 > greedy);
    }
    if slow > 0 || classes.iter().any(|class| class.worse + class.invalid > 0) {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}
