//! `rota plan`: which models would share which device, in which order, with what batches.

use super::Outcome;
use super::output::{self, Table, significant};
use super::workload::{self, RepositoryArguments, SplitName};
use crate::planning::{why_code, why_text};
use rota_sched::plan::{ArrivalProcess, Plan, Planner, Slot, Steps, Timetable, Unplaced};
use rota_sim::svg::{self, Label};
use rota_sim::workload::{Query, Workload};
use serde::Serialize;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Plan which models share which device, in which order, with what batches
#[derive(clap::Args)]
#[command(before_help = "Example: rota plan workload.toml --svg timetable.svg

  # workload.toml
  [[profile]]
  model = \"photo\"
  batch_ms = { 1 = 5.0, 8 = 14.0, 32 = 41.0 }   # measured; linear between
  [[session]]
  model = \"photo\"
  slo_ms = 100
  rate = 200                                   # requests per second")]
pub struct Arguments {
    /// Profiles and sessions, in TOML
    workload: PathBuf,
    /// nexus is the published greedy
    #[arg(long, value_enum, default_value = "rota")]
    planner: PlannerName,
    /// How requests arrive: evenly spaced, as the published planner assumes, or at random, which takes headroom
    #[arg(long = "for", value_enum, default_value = "even")]
    arrivals: Arrivals,
    /// How the SLOs of queries are split over their stages
    #[arg(long, value_enum, default_value = "dp")]
    split: SplitName,
    /// How many devices there are, or "any": as few as it takes [default: the workload's, or any]
    #[arg(long, value_name = "N", value_parser = parse_devices)]
    devices: Option<Devices>,
    /// How long our planner searches, in rebuilt parts of the plan
    #[arg(long, value_name = "N", default_value_t = STEPS_DEFAULT, value_parser = clap::value_parser!(u32).range(..=1_000_000))]
    steps: u32,
    #[command(flatten)]
    repository: RepositoryArguments,
    /// A file for a picture of the timetable
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// For programs
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum PlannerName {
    Rota,
    Nexus,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Arrivals {
    Even,
    Poisson,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Devices {
    These(usize),
    Any,
}

/// A plan as programs read it. Times are in milliseconds, exact to the nanosecond.
#[derive(Serialize)]
struct Report {
    planner: &'static str,
    devices: Vec<DeviceReport>,
    unplaced: Vec<UnplacedReport>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    queries: Vec<QueryReport>,
    lower_bound: f64,
    /// Devices beyond the lower bound, as a share of it; `null` where the number of devices was given.
    gap: Option<f64>,
}

#[derive(Serialize)]
struct QueryReport {
    name: String,
    slo_ms: f64,
    rate: f64,
    stages: Vec<StageReport>,
}

#[derive(Serialize)]
struct StageReport {
    name: String,
    /// Its number in the slots.
    session: usize,
    share_ms: f64,
    rate: f64,
}

#[derive(Serialize)]
struct DeviceReport {
    device: usize,
    period_ms: f64,
    phase_ms: f64,
    slots: Vec<SlotReport>,
}

#[derive(Serialize)]
struct SlotReport {
    #[serde(flatten)]
    served: Served,
    offset_ms: f64,
    batch: u32,
    exec_ms: f64,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Served {
    One {
        session: usize,
        rate: f64,
    },
    /// In the same order: whom it serves, how much of each, and how many items each waits for.
    Several {
        sessions: Vec<usize>,
        rates: Vec<f64>,
        batches: Vec<u32>,
    },
}

#[derive(Serialize)]
struct UnplacedReport {
    session: usize,
    rate: f64,
    why: &'static str,
}

pub fn run(arguments: Arguments) -> Outcome {
    let mut workload = workload::read(&arguments.workload, &arguments.repository)?;
    match arguments.devices {
        None => {}
        Some(Devices::Any) => workload.kinds.iter_mut().for_each(|kind| kind.count = 0),
        Some(Devices::These(count)) => {
            workload.set_devices(count).map_err(|error| format!("{}: {error}", arguments.workload.display()))?;
        }
    }
    let (planner, arrivals) = (arguments.planner.planner(), arguments.arrivals.process());
    let (path, steps) = (&arguments.workload, Steps(arguments.steps));
    let plan = workload::planned(&mut workload, path, arrivals, arguments.split, planner, steps)?;
    if let Some(path) = &arguments.svg {
        workload::write_file(path, &svg::timetable(&plan, &labels(&workload)))?;
    }
    let fixed = workload.kinds.iter().any(|kind| kind.count > 0);
    if arguments.json {
        output::print_json(&Report::of(&plan, &workload, arguments.planner.name(), fixed))?;
    } else {
        output::print(&text(&plan, &workload, &arguments, fixed))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn parse_devices(text: &str) -> Result<Devices, String> {
    if text == "any" {
        return Ok(Devices::Any);
    }
    let count = text.parse().ok().filter(|count| (1..=DEVICES_MAX).contains(count));
    count.map(Devices::These).ok_or_else(|| format!("expected a number from 1 to {DEVICES_MAX}, or any"))
}

fn labels(workload: &Workload) -> Vec<Label> {
    let label = |session: &rota_sim::workload::Session| Label {
        model: workload.models[session.model].clone(),
        slo: session.slo,
        rate: session.rate,
    };
    workload.sessions.iter().map(label).collect()
}

impl Report {
    fn of(plan: &Plan, workload: &Workload, planner: &'static str, fixed: bool) -> Report {
        Report {
            planner,
            devices: plan.devices.iter().enumerate().map(|(index, its)| DeviceReport::of(index, its)).collect(),
            unplaced: plan.unplaced.iter().map(UnplacedReport::of).collect(),
            queries: workload.queries.iter().map(|query| QueryReport::of(query, workload)).collect(),
            lower_bound: plan.lower_bound,
            gap: (!fixed).then(|| gap(plan)),
        }
    }
}

impl QueryReport {
    fn of(query: &Query, workload: &Workload) -> QueryReport {
        let stage = |stage: &rota_sim::workload::Stage| {
            let session = &workload.sessions[stage.session];
            let (share_ms, rate) = (exact_ms(session.slo), session.rate);
            StageReport { name: stage.name.clone(), session: stage.session, share_ms, rate }
        };
        QueryReport {
            name: query.name.clone(),
            slo_ms: exact_ms(query.tree.slo()),
            rate: query.tree.rates()[query.tree.order()[0]],
            stages: query.stages.iter().map(stage).collect(),
        }
    }
}

impl DeviceReport {
    fn of(device: usize, timetable: &Timetable) -> DeviceReport {
        DeviceReport {
            device,
            period_ms: exact_ms(timetable.period),
            phase_ms: exact_ms(timetable.phase),
            slots: timetable.slots.iter().map(SlotReport::of).collect(),
        }
    }
}

impl SlotReport {
    fn of(slot: &Slot) -> SlotReport {
        let served = match slot.shares[..] {
            [share] => Served::One { session: share.session, rate: share.rate },
            _ => Served::Several {
                sessions: slot.shares.iter().map(|share| share.session).collect(),
                rates: slot.shares.iter().map(|share| share.rate).collect(),
                batches: slot.shares.iter().map(|share| share.batch).collect(),
            },
        };
        SlotReport { served, offset_ms: exact_ms(slot.offset), batch: slot.batch, exec_ms: exact_ms(slot.execution) }
    }
}

impl UnplacedReport {
    fn of(unplaced: &Unplaced) -> UnplacedReport {
        UnplacedReport { session: unplaced.session, rate: unplaced.rate, why: why_code(unplaced.why) }
    }
}

impl PlannerName {
    fn planner(self) -> Planner {
        match self {
            PlannerName::Rota => Planner::Rota,
            PlannerName::Nexus => Planner::Nexus,
        }
    }

    fn name(self) -> &'static str {
        match self {
            PlannerName::Rota => "rota",
            PlannerName::Nexus => "nexus",
        }
    }
}

impl Arrivals {
    fn process(self) -> ArrivalProcess {
        match self {
            Arrivals::Even => ArrivalProcess::Even,
            Arrivals::Poisson => ArrivalProcess::Poisson,
        }
    }
}

fn text(plan: &Plan, workload: &Workload, arguments: &Arguments, fixed: bool) -> String {
    let used = plan.devices.iter().filter(|device| !device.slots.is_empty()).count();
    let arrivals = match arguments.arrivals {
        Arrivals::Even => "evenly spaced arrivals",
        Arrivals::Poisson => "Poisson arrivals",
    };
    let mut text = format!(
        "{}: {} sessions on {used} {}, planned by {} for {arrivals}\n",
        arguments.workload.display(),
        workload.sessions.len(),
        if used == 1 { "device" } else { "devices" },
        arguments.planner.name(),
    );
    text += &queries_text(workload, arguments.split);
    if fixed {
        text += &format!("there are {} devices\n", plan.devices.len());
    } else {
        let (bound, gap) = (plan.lower_bound, 100.0 * gap(plan));
        let which = if workload.queries.is_empty() { "no plan" } else { "no plan with these shares" };
        text += &format!("{which} can do with fewer than {bound}; this one is {gap:.1} % above\n");
    }
    let mut table =
        Table::new(&["device", "period ms", "at ms", "takes ms", "batch", "session", "model", "SLO ms", "rate/s"]);
    for (device, timetable) in plan.devices.iter().enumerate() {
        for slot in &timetable.slots {
            let [share] = slot.shares[..] else { continue };
            let session = &workload.sessions[share.session];
            table.row(vec![
                device.to_string(),
                ms(timetable.period),
                ms(timetable.phase + slot.offset),
                ms(slot.execution),
                slot.batch.to_string(),
                share.session.to_string(),
                workload.models[session.model].clone(),
                significant(exact_ms(session.slo)),
                significant(share.rate),
            ]);
        }
    }
    if !table.is_empty() {
        text += "\n";
        text += &table.text();
    }
    for (first, devices, slot) in pools(plan) {
        text +=
            &format!("\n{}\n{}", pool_heading(first, devices, slot.shares.len()), pool_table(slot, devices, workload));
    }
    text + &unplaced_text(plan, workload)
}

/// What each stage of each query was given.
fn queries_text(workload: &Workload, split: SplitName) -> String {
    let by = match split {
        SplitName::Dp => "by the dynamic program",
        SplitName::Even => "evenly",
        SplitName::ByLatency => "by latency",
        SplitName::Joint => "jointly with the packing",
    };
    let mut text = String::new();
    for query in &workload.queries {
        let stage = |stage: &rota_sim::workload::Stage| {
            let share = significant(exact_ms(workload.sessions[stage.session].slo));
            format!("{} {share} (session {})", stage.name, stage.session)
        };
        let stages: Vec<String> = query.stages.iter().map(stage).collect();
        let slo = significant(exact_ms(query.tree.slo()));
        text += &format!("query {}: {slo} ms, split {by}: {}\n", query.name, stages.join(", "));
    }
    text
}

/// Slots that sessions share, each once: the first device with it, and how many have it.
fn pools(plan: &Plan) -> Vec<(usize, usize, &Slot)> {
    let mut pools: Vec<(usize, usize, &Slot)> = Vec::new();
    for (device, timetable) in plan.devices.iter().enumerate() {
        for slot in timetable.slots.iter().filter(|slot| slot.shares.len() > 1) {
            let session = slot.shares[0].session;
            let known = pools.iter_mut().find(|(first, _, pool)| {
                pool.shares[0].session == session && plan.devices[*first].kind == timetable.kind
            });
            match known {
                Some((_, devices, _)) => *devices += 1,
                None => pools.push((device, 1, slot)),
            }
        }
    }
    pools
}

fn pool_heading(first: usize, devices: usize, sessions: usize) -> String {
    let noun = if devices == 1 { "device" } else { "devices" };
    format!("pool of {devices} {noun}, from device {first}: {sessions} sessions share them")
}

fn pool_table(slot: &Slot, devices: usize, workload: &Workload) -> String {
    let mut table = Table::new(&["waits for", "session", "model", "SLO ms", "rate/s"]);
    for share in &slot.shares {
        let session = &workload.sessions[share.session];
        table.row(vec![
            share.batch.to_string(),
            share.session.to_string(),
            workload.models[session.model].clone(),
            significant(exact_ms(session.slo)),
            significant(share.rate * devices as f64),
        ]);
    }
    table.text()
}

fn unplaced_text(plan: &Plan, workload: &Workload) -> String {
    let mut table = Table::new(&["session", "model", "SLO ms", "rate/s", "why"]);
    for unplaced in &plan.unplaced {
        let session = &workload.sessions[unplaced.session];
        table.row(vec![
            unplaced.session.to_string(),
            workload.models[session.model].clone(),
            significant(exact_ms(session.slo)),
            significant(unplaced.rate),
            why_text(why_code(unplaced.why)).to_string(),
        ]);
    }
    if table.is_empty() { String::new() } else { format!("\nnot placed:\n{}", table.text()) }
}

/// Devices beyond the lower bound, as a share of it.
fn gap(plan: &Plan) -> f64 {
    if plan.lower_bound > 0.0 { plan.devices.len() as f64 / plan.lower_bound - 1.0 } else { 0.0 }
}

/// As many digits as tell one nanosecond from the next.
fn exact_ms(duration: Duration) -> f64 {
    duration.as_nanos() as f64 / 1e6
}

fn ms(duration: Duration) -> String {
    format!("{:.3}", exact_ms(duration))
}

const STEPS_DEFAULT: u32 = 2000;
const DEVICES_MAX: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;
    use rota_sched::plan::Share;

    #[test]
    fn a_pool_is_named_once_and_its_batches_are_listed() {
        let share = |session, batch| Share { session, rate: 2.0, batch };
        let second = Duration::from_secs(1);
        let slot = Slot { offset: Duration::ZERO, batch: 8, execution: second, shares: vec![share(0, 8), share(3, 2)] };
        let device = Timetable { kind: 0, period: second, phase: Duration::ZERO, slots: vec![slot.clone()] };
        let plan = Plan { devices: vec![device; 5], ..Plan::default() };
        assert_eq!(pools(&plan), [(0, 5, &slot)]);
        assert_eq!(pool_heading(0, 5, 2), "pool of 5 devices, from device 0: 2 sessions share them");
        let json = serde_json::to_value(SlotReport::of(&slot)).expect("plain data");
        assert_eq!((&json["sessions"], &json["batches"]), (&serde_json::json!([0, 3]), &serde_json::json!([8, 2])));
    }

    #[test]
    fn devices_are_a_number_or_any() {
        assert_eq!(parse_devices("3"), Ok(Devices::These(3)));
        assert_eq!(parse_devices("any"), Ok(Devices::Any));
        for wrong in ["0", "-1", "4097", "x", ""] {
            assert!(parse_devices(wrong).is_err_and(|error| error.contains("from 1 to 4096")), "{wrong}");
        }
    }
}
