//! `rota sim`: a workload under a policy, in virtual time.

mod comparisons;

use super::output::{self, Table, significant};
use super::workload::{self, RepositoryArguments, SplitName};
use super::{Failure, Outcome};
use rota_sched::plan::{Demand, Plan, Planner, Steps, plan};
use rota_sim::arrivals::{Pattern, PatternError, Trace};
use rota_sim::engine::World;
use rota_sim::events::EventLog;
use rota_sim::policy::PolicySpec;
use rota_sim::record::{Figures, Report};
use rota_sim::scenario::Scenario;
use rota_sim::suite;
use rota_sim::trial::{Goodput, Splits, Trial};
use rota_sim::workload::Workload;
use serde::Serialize;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Simulate a workload under Rota's scheduler or another, or compare them
#[derive(clap::Args)]
#[command(before_help = "Examples:
  rota sim workload.toml --devices 8                        # rates, latencies, bad rates
  rota sim workload.toml --devices 8 --policy symphony:margin_ms=2
  rota sim workload.toml --devices 8 --find-goodput         # how much load is held?
  rota sim --suite --quick                                  # all policies on the standard workloads")]
#[command(group = clap::ArgGroup::new("what").required(true).multiple(false)
    .args(["workload", "suite", "suite_devices", "early_drop"]))]
pub struct Arguments {
    /// Profiles and sessions, in TOML; see `rota plan --help`
    workload: Option<PathBuf>,
    /// rota, nexus, nexus-lazy, clockwork, symphony, shepherd, triton, clipper or tfserving; parameters behind a colon; may
    /// be repeated with --suite [default: rota; --suite: all]
    #[arg(long, value_name = "NAME[:KEY=VALUE,…]")]
    policy: Vec<PolicySpec>,
    /// How the SLOs of queries are split over their stages [default: dp for rota and nexus, even for the others]
    #[arg(long, value_enum, conflicts_with_all = ["suite", "suite_devices", "early_drop"])]
    split: Option<SplitName>,
    /// How many devices there are [default: as many as the workload says]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    devices: Option<u32>,
    /// How long requests arrive; the run ends when the last is answered [default: the workload's, or 30]
    #[arg(long, value_name = "S", value_parser = above_zero::<10_000_000>)]
    seconds: Option<f64>,
    /// Of all that is random
    #[arg(long, value_name = "K", default_value_t = 1)]
    seed: u64,
    /// constant, poisson, gamma:CV, onoff:ON_S:OFF_S, diurnal:PERIOD_S:DEPTH, step:AT_S:FACTOR, or trace:FILE.csv
    /// [default: the workload's, or poisson]
    #[arg(long, value_name = "PATTERN")]
    arrivals: Option<String>,
    /// Whether policies know the sessions' rates, or begin with them and follow what they measure
    #[arg(long, value_enum, default_value = "known")]
    rates: Rates,
    /// With estimated rates, how often a policy that plans does so again; 0: never
    #[arg(long, value_name = "S", default_value_t = 10.0, value_parser = from_zero::<1_000_000>)]
    epoch: f64,
    /// Standard deviation of executions' durations, as a share of the profile's
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, value_parser = from_zero::<1>)]
    noise: f64,
    /// From a decision to the start of its batch
    #[arg(long, value_name = "MS", default_value_t = 0.0, value_parser = from_zero::<1000>)]
    dispatch_ms: f64,
    /// Devices load their models when the run begins, rather than before
    #[arg(long)]
    cold: bool,
    /// All rates times this
    #[arg(long, value_name = "X", default_value_t = 1.0, value_parser = above_zero::<1_000_000>)]
    factor: f64,
    #[command(flatten)]
    repository: RepositoryArguments,
    /// A file for one JSON line per arrival, drop, batch start and batch end
    #[arg(long, value_name = "FILE", conflicts_with_all = ["find_goodput", "suite", "suite_devices", "early_drop"])]
    events: Option<PathBuf>,
    /// Search the largest factor on all rates at which every session has 99 % within its SLO
    #[arg(long, conflicts_with_all = ["suite", "suite_devices", "early_drop"])]
    find_goodput: bool,
    /// With a search or comparison: means over so many seeds, from --seed on [default: 1; --suite: 3]
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u32).range(1..=1000))]
    seeds: Option<u32>,
    /// Compare policies on the standard workloads; writes tables and plots
    #[arg(long)]
    suite: bool,
    /// With --suite: only this workload; may be repeated
    #[arg(long, value_name = "WORKLOAD", requires = "suite")]
    only: Vec<String>,
    /// With a comparison: coarse, in a minute
    #[arg(long)]
    quick: bool,
    /// With --suite: the folder for what it writes
    #[arg(long, value_name = "DIR", default_value = "rota-suite")]
    output: PathBuf,
    /// Count the devices that Nexus and Rota need for random workloads under Poisson arrivals
    #[arg(long)]
    suite_devices: bool,
    /// With --suite-devices: how many random workloads
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    workloads: u32,
    /// With --suite-devices: sessions in each [default: 10 to 300, at random]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    sessions: Option<u32>,
    /// Compare early drop with lazy drop and with Rota, on the published sweep
    #[arg(long)]
    early_drop: bool,
    /// For programs
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Rates {
    Known,
    Estimated,
}

/// A run as programs read it; rates are in requests per second.
#[derive(Serialize)]
struct RunReport<'a> {
    policy: String,
    devices: usize,
    seconds: f64,
    seed: u64,
    #[serde(flatten)]
    report: &'a Report,
}

/// A search as programs read it: means over the seeds.
#[derive(Serialize)]
struct GoodputReport {
    policy: String,
    factor: f64,
    goodput: f64,
    bound: f64,
    seconds: f64,
    seeds: Vec<OfSeed>,
}

#[derive(Serialize)]
struct OfSeed {
    seed: u64,
    factor: f64,
    goodput: f64,
}

pub fn run(arguments: &Arguments) -> Outcome {
    match &arguments.workload {
        Some(path) => one(arguments, path)?,
        None if arguments.suite => comparisons::suite(arguments)?,
        None if arguments.suite_devices => comparisons::devices(arguments)?,
        None => comparisons::early_drop(arguments)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// One workload: a run, or a search.
fn one(arguments: &Arguments, path: &Path) -> Result<(), Failure> {
    let in_file = |error: &dyn std::fmt::Display| -> Failure { format!("{}: {error}", path.display()).into() };
    let policy = match arguments.policy[..] {
        [] => PolicySpec::Rota,
        [policy] => policy,
        _ => return Err("--policy: a workload runs under one policy; several are for --suite".into()),
    };
    let mut workload = workload::read(path, &arguments.repository)?.scaled(arguments.factor);
    if let Some(devices) = arguments.devices {
        workload.set_devices(devices as usize).map_err(|error| in_file(&error))?;
    }
    workload::split(&mut workload, path, arguments.split.unwrap_or(SplitName::of(&policy)))?;
    let (pattern, trace) = arguments.arrivals(&workload)?;
    let seconds = arguments.seconds.or(workload.seconds).unwrap_or(suite::SECONDS);
    let trial = Trial {
        workload: &workload,
        pattern,
        trace: trace.as_ref(),
        seconds,
        world: arguments.world(),
        nexus: &nexus_plan,
        splits: Splits::Given,
    };
    let scenario = Scenario::new(&workload).map_err(|error| in_file(&error))?;
    for session in scenario.hopeless() {
        let what = match scenario.sessions[session].stage {
            None => format!("the SLO of session {session} is shorter than a batch of one takes"),
            Some(stage) => {
                let name = &scenario.queries[stage.query].name;
                format!("the SLO of query '{name}' is shorter than batches of one take on the way by this stage")
            }
        };
        eprintln!("warning: {}: line {}: {what}", path.display(), workload.sessions[session].line);
    }
    if arguments.find_goodput {
        let found = search(arguments, &trial, &policy).map_err(|error| in_file(&error))?;
        return print_goodput(arguments, &workload, &found);
    }
    let report = match &arguments.events {
        None => trial.run(&policy, EventLog::none()).map_err(|error| in_file(&error))?,
        Some(events) => {
            let within = |error: std::io::Error| format!("{}: {error}", events.display());
            let mut out = BufWriter::new(File::create(events).map_err(within)?);
            let mut failed = None;
            let report = trial.run(&policy, EventLog::to(&mut out, &mut failed)).map_err(|error| in_file(&error))?;
            failed.map_or(Ok(()), Err).and_then(|()| out.flush()).map_err(within)?;
            report
        }
    };
    let devices = report.utilisation.len();
    if arguments.json {
        let policy = policy.to_string();
        output::print_json(&RunReport { policy, devices, seconds, seed: arguments.seed, report: &report })?;
    } else {
        let head = format!(
            "{}: {} devices under {policy}, requests for {} s, seed {}",
            path.display(),
            devices,
            seconds,
            arguments.seed
        );
        output::print(&text(&head, &workload, &report))?;
    }
    Ok(())
}

/// Searches on each seed.
fn search(arguments: &Arguments, trial: &Trial<'_>, policy: &PolicySpec) -> Result<GoodputReport, Failure> {
    let mut seeds = Vec::new();
    let mut bound = 0.0;
    for index in 0..u64::from(arguments.seeds.unwrap_or(1)) {
        let seed = arguments.seed.wrapping_add(index);
        let trial = Trial { world: World { seed, ..trial.world }, ..*trial };
        let Goodput { factor, goodput, bound: its } = trial.find_goodput(policy, suite::GOOD_SHARE, PRECISION)?;
        bound = its;
        seeds.push(OfSeed { seed, factor, goodput });
    }
    let mean = |of: &dyn Fn(&OfSeed) -> f64| seeds.iter().map(of).sum::<f64>() / seeds.len() as f64;
    Ok(GoodputReport {
        policy: policy.to_string(),
        factor: mean(&|found| found.factor),
        goodput: mean(&|found| found.goodput),
        bound,
        seconds: trial.seconds,
        seeds,
    })
}

fn print_goodput(arguments: &Arguments, workload: &Workload, found: &GoodputReport) -> Result<(), Failure> {
    if arguments.json {
        return Ok(output::print_json(found)?);
    }
    let queries = workload.queries.iter().map(|query| query.tree.rates()[query.tree.order()[0]]);
    let offered: f64 = workload.plain().iter().map(|session| session.rate).chain(queries).sum();
    let mut text = format!(
        "{}: every {} 99 % within its SLO up to {:.3} times the rates\n  \
         {} of {} requests/s in time; {:.3} of the fluid bound, which is reached at {:.3} times the rates\n",
        found.policy,
        if workload.queries.is_empty() { "session has" } else { "session and every query has" },
        found.factor,
        significant(found.goodput),
        significant(offered * found.factor),
        found.factor / found.bound,
        found.bound
    );
    if found.seeds.len() > 1 {
        let factors: Vec<String> = found.seeds.iter().map(|seed| format!("{:.3}", seed.factor)).collect();
        text += &format!("  by seed: {}\n", factors.join(", "));
    }
    Ok(output::print(&text)?)
}

fn text(head: &str, workload: &Workload, report: &Report) -> String {
    let mut table =
        Table::new(&["session", "model", "SLO ms", "offered/s", "goodput/s", "bad %", "p50 ms", "p99 ms", "batch"]);
    let mut row = |session: String, model: String, slo: String, figures: &Figures| {
        let of_answers = |text: String| if figures.mean_batch > 0.0 { text } else { output::MISSING.to_string() };
        table.row(vec![
            session,
            model,
            slo,
            significant(figures.offered),
            significant(figures.goodput),
            format!("{:.2}", 100.0 * figures.bad_rate),
            of_answers(output::ms(figures.p50_ms)),
            of_answers(output::ms(figures.p99_ms)),
            of_answers(format!("{:.2}", figures.mean_batch)),
        ]);
    };
    for (session, its) in workload.sessions.iter().zip(&report.sessions) {
        let slo = output::ms(1e3 * session.slo.as_secs_f64());
        row(its.session.to_string(), workload.models[session.model].clone(), slo, &its.figures);
    }
    row(String::new(), "all".to_string(), String::new(), &report.total);
    let share = |share: f64| format!("{:.1} %", 100.0 * share);
    let devices = &report.utilisation;
    let mean = devices.iter().sum::<f64>() / devices.len() as f64;
    let (least, most) = devices.iter().fold((f64::MAX, 0f64), |(least, most), &d| (least.min(d), most.max(d)));
    let mut text = format!(
        "{head}\n\n{}\n{}devices executed {} of the time",
        table.text(),
        queries_text(workload, report),
        share(mean)
    );
    if devices.len() > 1 {
        text += &format!(", the least busy {}, the most {}", share(least), share(most));
    }
    if report.unanswered > 0 {
        text += &format!("\n{} requests were never answered: the policy forgot them", report.unanswered);
    }
    text + "\n"
}

/// A table of the queries, if there are any.
fn queries_text(workload: &Workload, report: &Report) -> String {
    if workload.queries.is_empty() {
        return String::new();
    }
    let mut table = Table::new(&["query", "SLO ms", "offered/s", "goodput/s", "bad %", "p50 ms", "p99 ms", "sessions"]);
    for (query, its) in workload.queries.iter().zip(&report.queries) {
        let of_answers = |ms: f64| if its.p50_ms > 0.0 { output::ms(ms) } else { output::MISSING.to_string() };
        let stages: Vec<String> =
            query.stages.iter().map(|stage| format!("{} {}", stage.session, stage.name)).collect();
        table.row(vec![
            its.name.clone(),
            output::ms(1e3 * query.tree.slo().as_secs_f64()),
            significant(its.offered),
            significant(its.goodput),
            format!("{:.2}", 100.0 * its.bad_rate),
            of_answers(its.p50_ms),
            of_answers(its.p99_ms),
            stages.join(", "),
        ]);
    }
    format!("{}\n", table.text())
}

impl Arguments {
    fn world(&self) -> World {
        World {
            noise: self.noise,
            dispatch: (self.dispatch_ms * 1e6) as i64,
            cold: self.cold,
            told: self.rates == Rates::Known,
            epoch: (self.epoch * 1e9) as i64,
            seed: self.seed,
            ..World::default()
        }
    }

    /// How requests arrive where a session does not say so itself, or when, if a trace says it.
    fn arrivals(&self, workload: &Workload) -> Result<(Pattern, Option<Trace>), Failure> {
        let otherwise = workload.arrivals.unwrap_or(Pattern::Poisson);
        let Some(arrivals) = &self.arrivals else { return Ok((otherwise, None)) };
        let Some(file) = arrivals.strip_prefix("trace:") else {
            let pattern =
                arrivals.parse().map_err(|error: PatternError| format!("--arrivals: {error}; or trace:FILE.csv"));
            return Ok((pattern?, None));
        };
        let models = workload.plain().iter().map(|session| &workload.models[session.model][..]);
        let names: Vec<&str> = models.chain(workload.queries.iter().map(|query| &query.name[..])).collect();
        let trace = Trace::parse(&workload::read_file(Path::new(file))?, &names);
        Ok((otherwise, Some(trace.map_err(|error| format!("{file}: {error}"))?)))
    }
}

/// The published greedy's plan, for the policies that run by one.
fn nexus_plan(demand: &Demand) -> Plan {
    // Workloads were checked when they were read, so their demand has a meaning; without a plan nothing is served.
    plan(demand, Planner::Nexus, Steps(0)).unwrap_or_default()
}

/// A number above zero and up to `MOST`.
fn above_zero<const MOST: u32>(text: &str) -> Result<f64, String> {
    let value = text.parse().ok().filter(|value| *value > 0.0 && *value <= f64::from(MOST));
    value.ok_or_else(|| format!("expected a number above 0 up to {MOST}"))
}

/// A number from zero to `MOST`.
fn from_zero<const MOST: u32>(text: &str) -> Result<f64, String> {
    let value = text.parse().ok().filter(|value| (0.0..=f64::from(MOST)).contains(value));
    value.ok_or_else(|| format!("expected a number from 0 to {MOST}"))
}

/// Of a search, as a share of the fluid bound.
const PRECISION: f64 = 0.005;
