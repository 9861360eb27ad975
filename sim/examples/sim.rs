//! Simulates a workload: `cargo run --release -p rota-sim --example sim -- WORKLOAD.toml --policy rota --devices 8`.

use clap::Parser;
use rota_sched::plan::{Demand, Plan, Planner, Steps, plan};
use rota_sim::arrivals::{Pattern, Trace};
use rota_sim::engine::World;
use rota_sim::events::EventLog;
use rota_sim::policy::PolicySpec;
use rota_sim::suite::{self, Effort};
use rota_sim::trial::Trial;
use rota_sim::workload::Workload;
use std::io::{BufWriter, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Parser)]
struct Arguments {
    /// The workload file.
    #[arg(required_unless_present = "suite")]
    workload: Option<PathBuf>,
    /// Its name and parameters, as in symphony:margin_ms=2; repeated with --suite.
    #[arg(long, default_value = "rota")]
    policy: Vec<PolicySpec>,
    /// How many, whatever the workload says.
    #[arg(long)]
    devices: Option<usize>,
    /// How long requests arrive.
    #[arg(long)]
    seconds: Option<f64>,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// constant, poisson, gamma:CV, onoff:ON_S:OFF_S, diurnal:PERIOD_S:DEPTH, step:AT_S:FACTOR, or trace:FILE.csv.
    #[arg(long)]
    arrivals: Option<String>,
    /// Standard deviation of executions' durations, as a share.
    #[arg(long, default_value_t = 0.0)]
    noise: f64,
    /// Time from a decision to the start of a batch.
    #[arg(long, default_value_t = 0.0)]
    dispatch_ms: f64,
    /// Devices load their models when the run begins.
    #[arg(long)]
    cold: bool,
    /// All rates times this.
    #[arg(long, default_value_t = 1.0)]
    factor: f64,
    #[arg(long)]
    json: bool,
    /// A file for one JSON line per event.
    #[arg(long)]
    events: Option<PathBuf>,
    /// Searches the largest factor on all rates at which every session has 99 % within its SLO.
    #[arg(long)]
    find_goodput: bool,
    /// Compares all policies (or those named by --policy) on the standard workloads (or those named by --only).
    #[arg(long)]
    suite: bool,
    #[arg(long)]
    only: Vec<String>,
    #[arg(long)]
    quick: bool,
}

fn main() -> ExitCode {
    match simulate(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sim: {error}");
            ExitCode::from(2)
        }
    }
}

/// The published greedy's plan, for the policies that run by one.
fn planner(demand: &Demand) -> Plan {
    // Workloads were checked when they were read, so their demand has a meaning; without a plan nothing is served.
    plan(demand, Planner::Nexus, Steps(0)).unwrap_or_default()
}

fn simulate(arguments: &Arguments) -> Result<(), String> {
    let world = World {
        noise: arguments.noise,
        dispatch: (arguments.dispatch_ms * 1e6) as i64,
        cold: arguments.cold,
        told: true,
        epoch: 0,
        seed: arguments.seed,
    };
    if arguments.suite {
        return compare(arguments, world);
    }
    let file = arguments.workload.as_ref().expect("clap requires it");
    let read = |path: &std::path::Path| std::fs::read_to_string(path).map_err(|error| error.to_string());
    let beside = |name: &str| read(&file.parent().unwrap_or(std::path::Path::new("")).join(name));
    let text = read(file).map_err(|error| format!("{}: {error}", file.display()))?;
    let workload = Workload::parse(&text, &beside).map_err(|error| format!("{}: {error}", file.display()))?;
    workload.warnings.iter().for_each(|warning| eprintln!("sim: {}: {warning}", file.display()));
    let mut workload = workload.scaled(arguments.factor);
    if let Some(devices) = arguments.devices {
        workload.set_devices(devices)?;
    }
    let mut pattern = workload.arrivals.unwrap_or(Pattern::Poisson);
    let mut trace = None;
    if let Some(arrivals) = &arguments.arrivals {
        match arrivals.strip_prefix("trace:") {
            Some(csv) => {
                let names: Vec<&str> = workload.sessions.iter().map(|s| &workload.models[s.model][..]).collect();
                let text = read(csv.as_ref()).map_err(|error| format!("{csv}: {error}"))?;
                trace = Some(Trace::parse(&text, &names).map_err(|error| format!("{csv}: {error}"))?);
            }
            None => pattern = arrivals.parse().map_err(|error: rota_sim::arrivals::PatternError| error.to_string())?,
        }
    }
    let seconds = arguments.seconds.or(workload.seconds).unwrap_or(30.0);
    let trial = Trial { workload: &workload, pattern, trace: trace.as_ref(), seconds, world, nexus: &planner };
    let policy = arguments.policy[0];
    if arguments.find_goodput {
        let found = trial.find_goodput(&policy, suite::GOOD_SHARE, 0.005).map_err(|error| error.to_string())?;
        println!("{}", serde_json::to_string(&found).expect("plain figures"));
        return Ok(());
    }
    let report = match &arguments.events {
        None => trial.run(&policy, EventLog::none()),
        Some(path) => {
            let name = path.display();
            let created = std::fs::File::create(path).map_err(|error| format!("{name}: {error}"))?;
            let (mut out, mut failed) = (BufWriter::new(created), None);
            let report = trial.run(&policy, EventLog::to(&mut out, &mut failed));
            let written = failed.map_or(Ok(()), Err).and_then(|()| out.flush());
            written.map_err(|error| format!("{name}: {error}"))?;
            report
        }
    };
    let report = report.map_err(|error| error.to_string())?;
    if arguments.json {
        let mut json = serde_json::to_value(&report).expect("plain figures");
        json["policy"] = policy.to_string().into();
        json["devices"] = report.utilisation.len().into();
        json["seconds"] = seconds.into();
        json["seed"] = arguments.seed.into();
        println!("{json}");
        return Ok(());
    }
    println!(
        "{:>8} {:>10} {:>10} {:>8} {:>9} {:>9} {:>6}",
        "session", "offered", "goodput", "bad", "p50 ms", "p99 ms", "batch"
    );
    let all = report.sessions.iter().map(|session| (session.session.to_string(), &session.figures));
    for (name, f) in all.chain([("all".to_owned(), &report.total)]) {
        let bad = format!("{:.2} %", 100.0 * f.bad_rate);
        println!(
            "{name:>8} {:>10.2} {:>10.2} {bad:>8} {:>9.2} {:>9.2} {:>6.2}",
            f.offered, f.goodput, f.p50_ms, f.p99_ms, f.mean_batch
        );
    }
    let share = |share: f64| format!("{:.1} %", 100.0 * share);
    let devices = &report.utilisation;
    let mean = devices.iter().sum::<f64>() / devices.len() as f64;
    let (least, most) = devices.iter().fold((f64::MAX, 0f64), |(least, most), &d| (least.min(d), most.max(d)));
    println!("utilisation {} ({} to {}); unanswered {}", share(mean), share(least), share(most), report.unanswered);
    Ok(())
}

fn compare(arguments: &Arguments, world: World) -> Result<(), String> {
    let named = |standard: &&rota_sim::standard::Standard| {
        arguments.only.is_empty() || arguments.only.iter().any(|o| o == standard.name)
    };
    let workloads: Vec<_> = rota_sim::standard::STANDARD.iter().filter(named).copied().collect();
    let all = PolicySpec::NAMES.iter().map(|name| name.parse().expect("its own name"));
    let policies: Vec<PolicySpec> = if arguments.policy.len() > 1 { arguments.policy.clone() } else { all.collect() };
    let effort = if arguments.quick { Effort::QUICK } else { Effort::FULL };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let shown = std::io::stderr().is_terminal();
    let progress = |stage: suite::Stage, done: usize, all: usize| {
        if shown {
            eprint!("\r{stage:?} {done} of {all} searches{}", if done == all { "\n" } else { "" });
        }
    };
    let outcomes = suite::Comparison {
        workloads: &workloads,
        policies: &policies,
        effort,
        world,
        nexus: &planner,
        threads,
        progress: &progress,
    }
    .run();
    if arguments.json {
        println!("{}", serde_json::to_string(&outcomes).expect("plain figures"));
    } else {
        print!("{}", suite::table(&outcomes));
    }
    Ok(())
}
