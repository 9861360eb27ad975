//! Rota far below and far above the load that it holds: `cargo run --release -p rota-sim --example overload -- [WORKLOAD…]`.
//!
//! For each standard workload: the largest load with 99 % of every session in time, as a share of the fluid bound; at a fifth of
//! it the median latency over that of running whatever waits at once; at 1.5, 3 and 10 times, goodput over that at the load
//! which is held, and the least that a session got of its fair share.

use rota_sched::plan::{Demand, Plan};
use rota_sim::arrivals::Pattern;
use rota_sim::engine::World;
use rota_sim::events::EventLog;
use rota_sim::overload;
use rota_sim::parallel;
use rota_sim::policy::PolicySpec;
use rota_sim::standard::{STANDARD, Standard};
use rota_sim::suite::GOOD_SHARE;
use rota_sim::trial::{Splits, Trial};

type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> Fallible<()> {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let chosen = |standard: &&Standard| wanted.is_empty() || wanted.iter().any(|name| name == standard.name);
    let workloads: Vec<Standard> = STANDARD.iter().filter(chosen).copied().collect();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    println!(
        "| workload | held | latency at a fifth | at 1.5 times: goodput, least share | at 3 times | at 10 times |"
    );
    println!("|---|---|---|---|---|---|");
    for line in parallel::map(&workloads, threads, |standard| line(standard).map_err(|e| e.to_string()), &|_, _| ()) {
        println!("{}", line?);
    }
    Ok(())
}

fn line(standard: &Standard) -> Fallible<String> {
    let workload = standard.workload();
    let nobody = |_: &Demand| Plan::default();
    let trial = Trial {
        workload: &workload,
        pattern: workload.arrivals.unwrap_or(Pattern::Poisson),
        trace: None,
        seconds: workload.seconds.unwrap_or(30.0),
        world: World { seed: 1, ..World::default() },
        nexus: &nobody,
        splits: Splits::OfPolicy,
    };
    let rota: PolicySpec = "rota".parse()?;
    let held = trial.find_goodput(&rota, GOOD_SHARE, 0.005)?;
    let light = workload.scaled(held.factor / 5.0);
    let median = |policy: &PolicySpec| -> Fallible<f64> {
        Ok(Trial { workload: &light, seconds: 15.0, ..trial }.run(policy, EventLog::none())?.total.p50_ms)
    };
    let latency = median(&rota)? / median(&"triton:delay=0".parse()?)?;
    let mut line = format!("| {} | {:.3} | {latency:.2} |", standard.name, held.factor / held.bound);
    let rate: f64 = workload.sessions.iter().map(|session| session.rate).sum::<f64>() * held.factor;
    for times in [1.5, 3.0, 10.0] {
        let seconds = REQUESTS / (rate * times);
        let overloaded = overload::run(&Trial { seconds, ..trial }, &rota, held.factor * times)?;
        let (least, session) = overloaded.worst;
        line += &format!(" {:.2}, {least:.2} (session {session}) |", overloaded.goodput / held.goodput);
    }
    Ok(line)
}

/// In an overloaded run, about: enough to tell how a session fares that asks once in a few seconds.
const REQUESTS: f64 = 1e6;
