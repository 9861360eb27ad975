//! `rota status`

use super::connection::Connection;
use super::output::{self, MISSING, Table, ms, significant};
use super::{Failure, Outcome};
use crate::planning::why_text;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::process::ExitCode;

/// Show what the daemon serves, how well, and for whom
#[derive(clap::Args)]
#[command(before_help = "Example: rota status")]
pub struct Arguments {
    /// For programs: everything that the daemon reports
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connection: Connection,
}

pub fn run(arguments: Arguments) -> Outcome {
    let status = arguments.connection.control()?.status()?;
    if arguments.json {
        output::print_json(&status)?;
        return Ok(ExitCode::SUCCESS);
    }
    let unreadable = |error| -> Failure { format!("the daemon's report can't be read: {error}; use --json").into() };
    let status = Status::deserialize(&status).map_err(unreadable)?;
    output::print(&status.text())?;
    Ok(ExitCode::SUCCESS)
}

/// What of the daemon's report is shown. Fields of other versions are left out or empty, so that any daemon can be asked.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Status {
    rota: String,
    pid: u32,
    uptime_s: f64,
    socket: String,
    repository: Option<String>,
    draining: bool,
    requests_in_flight: u32,
    sessions: Vec<Session>,
    queries: Vec<Query>,
    query_problems: Vec<String>,
    devices: Vec<Device>,
    plan: Option<Plan>,
    models: Vec<Model>,
    problems: Vec<Problem>,
    clients: Vec<Client>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Session {
    model: String,
    version: u64,
    /// Of a query's stage, which is shown there.
    stage: Option<String>,
    slo_ms: f64,
    clients: u32,
    offered_rate: f64,
    promised_rate: Option<f64>,
    goodput: f64,
    target_batch: u32,
    ok: u64,
    bad_rate: f64,
    mean_batch: f64,
    queued: u32,
    total_time: Percentiles,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Query {
    name: String,
    slo_ms: f64,
    runs: u64,
    goodput: f64,
    ok: u64,
    bad_rate: f64,
    total_time: Percentiles,
    stages: Vec<Stage>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Stage {
    name: String,
    model: String,
    version: u64,
    after: Option<String>,
    gamma: Option<f64>,
    share_ms: f64,
    offered_rate: f64,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Percentiles {
    p50_ms: f64,
    p99_ms: f64,
    p999_ms: f64,
}

/// Something in the repository that is not served.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Problem {
    path: String,
    what: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Device {
    description: String,
    batches: u64,
    busy_ms: f64,
    lost: bool,
    /// Of a GPU that is not lost.
    memory: Option<Memory>,
}

/// In bytes.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Memory {
    weights: u64,
    plans: u64,
    activations: u64,
    free: u64,
    total: u64,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Plan {
    cause: String,
    age_s: f64,
    error: Option<String>,
    devices: Vec<Timetable>,
    unplaced: Vec<Placed>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Timetable {
    device: u32,
    period_ms: f64,
    phase_ms: f64,
    slots: Vec<Slot>,
}

#[derive(Deserialize, Default, PartialEq)]
#[serde(default)]
struct Slot {
    offset_ms: f64,
    batch: u32,
    exec_ms: f64,
    sessions: Vec<Placed>,
}

/// A session as a plan names it: in a slot, or among those that have no place.
#[derive(Deserialize, Default, PartialEq)]
#[serde(default)]
struct Placed {
    model: String,
    version: u64,
    slo_ms: f64,
    rate: f64,
    why: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Model {
    name: String,
    version: u64,
    state: String,
    error: Option<String>,
    memory_mb: Option<f64>,
    max_batch: Option<u32>,
    /// ℓ(b) in milliseconds by device.
    profiles: Vec<BTreeMap<u32, f64>>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Client {
    name: String,
    uid: u32,
    sessions: u32,
    in_flight: u32,
}

impl Status {
    fn text(&self) -> String {
        let mut text = format!(
            "{}, pid {}, up {}, on {}{}\n",
            console::style(format!("rota {}", self.rota)).bold(),
            self.pid,
            uptime(self.uptime_s),
            self.socket,
            if self.draining { ", draining" } else { "" }
        );
        let repository = self.repository.as_deref().unwrap_or("none");
        let _ = writeln!(text, "repository {repository}, {} requests in flight", self.requests_in_flight);
        let plan = self.plan.as_ref();
        let unplaced = plan.map_or(Table::new(&[]), Plan::unplaced);
        for (title, table, empty) in [
            ("sessions", self.sessions(), "no session is open"),
            ("queries", self.queries(), ""),
            ("devices", self.devices(), "no device"),
            ("memory of GPUs", self.memory(), ""),
            (
                &plan.map_or("plan".to_string(), Plan::title),
                plan.map_or(Table::new(&[]), Plan::slots),
                "nothing is planned",
            ),
            ("not placed", unplaced, ""),
            ("models", self.models(), "no model"),
            ("clients", self.clients(), "no client is connected"),
        ] {
            if table.is_empty() && empty.is_empty() {
                continue;
            }
            let _ = write!(text, "\n{}\n", console::style(title).bold());
            text.push_str(&if table.is_empty() { format!("  {empty}\n") } else { table.text() });
        }
        if let Some(error) = plan.and_then(|plan| plan.error.as_ref()) {
            let _ = writeln!(text, "\nno newer plan could be made: {}", output::one_line(error));
        }
        for problem in &self.query_problems {
            let _ = writeln!(text, "\n{}", output::one_line(problem));
        }
        for model in &self.models {
            if let Some(error) = &model.error {
                let _ = writeln!(text, "\n{} version {}: {}", model.name, model.version, output::one_line(error));
            }
        }
        for problem in &self.problems {
            let _ = writeln!(text, "\n{}: {}", problem.path, output::one_line(&problem.what));
        }
        text
    }

    fn sessions(&self) -> Table {
        let mut table = Table::new(&[
            "model",
            "version",
            "SLO ms",
            "clients",
            "promised/s",
            "offered/s",
            "goodput/s",
            "ok",
            "bad %",
            "p50 ms",
            "p99 ms",
            "p99.9 ms",
            "batch",
            "target",
            "queued",
        ]);
        for s in self.sessions.iter().filter(|session| session.stage.is_none()) {
            table.row(vec![
                s.model.clone(),
                s.version.to_string(),
                ms(s.slo_ms),
                s.clients.to_string(),
                s.promised_rate.map_or(MISSING.to_string(), significant),
                significant(s.offered_rate),
                significant(s.goodput),
                s.ok.to_string(),
                format!("{:.2}", 100.0 * s.bad_rate),
                measured(s.total_time.p50_ms),
                measured(s.total_time.p99_ms),
                measured(s.total_time.p999_ms),
                measured(s.mean_batch),
                s.target_batch.to_string(),
                s.queued.to_string(),
            ]);
        }
        table
    }

    /// Each query, and below it its stages, whose SLOs are their shares of its own.
    fn queries(&self) -> Table {
        let mut table = Table::new(&[
            "query",
            "after",
            "model",
            "version",
            "SLO ms",
            "γ",
            "offered/s",
            "goodput/s",
            "ok",
            "bad %",
            "p50 ms",
            "p99 ms",
            "open",
        ]);
        for query in &self.queries {
            let none = String::new;
            table.row(vec![
                query.name.clone(),
                none(),
                none(),
                none(),
                ms(query.slo_ms),
                none(),
                none(),
                significant(query.goodput),
                query.ok.to_string(),
                format!("{:.2}", 100.0 * query.bad_rate),
                measured(query.total_time.p50_ms),
                measured(query.total_time.p99_ms),
                query.runs.to_string(),
            ]);
            for stage in &query.stages {
                let mut row = vec![
                    format!("  {}", stage.name),
                    stage.after.clone().unwrap_or_default(),
                    stage.model.clone(),
                    stage.version.to_string(),
                    ms(stage.share_ms),
                    stage.gamma.map_or(none(), significant),
                    significant(stage.offered_rate),
                ];
                row.resize_with(13, none);
                table.row(row);
            }
        }
        table
    }

    fn devices(&self) -> Table {
        let mut table = Table::new(&["device", "batches", "busy s", "busy %"]);
        for d in &self.devices {
            let busy_s = d.busy_ms / 1e3;
            let share = if self.uptime_s > 0.0 { 100.0 * busy_s / self.uptime_s } else { 0.0 };
            let description = format!("{}{}", d.description, if d.lost { " (lost)" } else { "" });
            table.row(vec![description, d.batches.to_string(), significant(busy_s), format!("{share:.1}")]);
        }
        table
    }

    /// What lies in the memory of each GPU.
    fn memory(&self) -> Table {
        let mut table =
            Table::new(&["device", "weights MB", "plans MB", "activations MB", "other MB", "free MB", "all MB"]);
        for (device, memory) in self.devices.iter().filter_map(|device| Some((device, device.memory.as_ref()?))) {
            // The context, the kernels, and whatever other processes have there.
            let known = memory.free + memory.weights + memory.plans + memory.activations;
            let bytes = [memory.weights, memory.plans, memory.activations, memory.total.saturating_sub(known)];
            let bytes = bytes.into_iter().chain([memory.free, memory.total]);
            let mb = bytes.map(|bytes| significant(bytes as f64 / 1e6));
            table.row(std::iter::once(device.description.clone()).chain(mb).collect());
        }
        table
    }

    fn models(&self) -> Table {
        let mut table = Table::new(&["model", "version", "state", "max batch", "ℓ(1) ms", "memory MB"]);
        for m in &self.models {
            let or_missing = |text: Option<String>| text.unwrap_or(MISSING.to_string());
            let of_one = m.profiles.iter().filter_map(|profile| profile.get(&1).copied()).reduce(f64::min);
            table.row(vec![
                m.name.clone(),
                m.version.to_string(),
                m.state.clone(),
                or_missing(m.max_batch.map(|b| b.to_string())),
                or_missing(of_one.map(ms)),
                or_missing(m.memory_mb.map(significant)),
            ]);
        }
        table
    }

    fn clients(&self) -> Table {
        let mut table = Table::new(&["client", "user", "sessions", "in flight"]);
        for c in &self.clients {
            table.row(vec![c.name.clone(), c.uid.to_string(), c.sessions.to_string(), c.in_flight.to_string()]);
        }
        table
    }
}

impl Plan {
    fn title(&self) -> String {
        let why = match self.cause.as_str() {
            "start" => "at the start",
            "load" => "when a model was loaded",
            "unload" => "when a model was unloaded",
            "demand" => "because demand changed",
            "devices" => "because a device was lost or came back",
            other => other,
        };
        format!("plan, made {} ago {why}", uptime(self.age_s))
    }

    fn slots(&self) -> Table {
        let mut table =
            Table::new(&["device", "period ms", "at ms", "takes ms", "batch", "model", "version", "SLO ms", "rate/s"]);
        for (devices, timetable, slot) in self.distinct_slots() {
            for (index, placed) in slot.sessions.iter().enumerate() {
                // Sessions that share a slot follow in lines of their own.
                let once = |cell: String| if index == 0 { cell } else { String::new() };
                table.row(vec![
                    once(devices.iter().map(u32::to_string).collect::<Vec<_>>().join(",")),
                    once(ms(timetable.period_ms)),
                    once(ms(timetable.phase_ms + slot.offset_ms)),
                    once(ms(slot.exec_ms)),
                    once(slot.batch.to_string()),
                    placed.model.clone(),
                    placed.version.to_string(),
                    ms(placed.slo_ms),
                    significant(placed.rate * devices.len() as f64),
                ]);
            }
        }
        table
    }

    /// Every slot with its timetable and device. One that several sessions share is the same on all devices of their pool: it
    /// comes once, with all of them.
    fn distinct_slots(&self) -> Vec<(Vec<u32>, &Timetable, &Slot)> {
        let mut distinct: Vec<(Vec<u32>, &Timetable, &Slot)> = Vec::new();
        for timetable in &self.devices {
            for slot in &timetable.slots {
                let pool = distinct.iter_mut().find(|(_, _, known)| slot.sessions.len() > 1 && known == &slot);
                match pool {
                    Some((devices, ..)) => devices.push(timetable.device),
                    None => distinct.push((vec![timetable.device], timetable, slot)),
                }
            }
        }
        distinct
    }

    /// What has no place although somebody asks for it.
    fn unplaced(&self) -> Table {
        let mut table = Table::new(&["model", "version", "SLO ms", "rate/s", "why"]);
        for placed in self.unplaced.iter().filter(|placed| placed.rate > 0.0) {
            table.row(vec![
                placed.model.clone(),
                placed.version.to_string(),
                ms(placed.slo_ms),
                significant(placed.rate),
                why_text(&placed.why).to_string(),
            ]);
        }
        table
    }
}

/// Nothing takes no time: zero stands for "no answer yet".
fn measured(value: f64) -> String {
    if value > 0.0 { ms(value) } else { MISSING.to_string() }
}

/// "3 d 4 h", "5 min 12 s": the two largest units.
fn uptime(seconds: f64) -> String {
    let seconds = seconds as u64;
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min {} s", seconds % 60),
        (0, _, _) => format!("{hours} h {} min", minutes % 60),
        _ => format!("{days} d {} h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uptime_has_its_two_largest_units() {
        for (seconds, text) in [(5.9, "5 s"), (65.0, "1 min 5 s"), (7500.0, "2 h 5 min"), (183_600.0, "2 d 3 h")] {
            assert_eq!(uptime(seconds), text);
        }
    }

    #[test]
    fn a_report_of_another_version_is_shown_as_far_as_it_goes() {
        let report = serde_json::json!({
            "rota": "9.0.0", "later": [1, 2],
            "sessions": [{ "model": "face", "ok": 12, "bad_rate": 0.25, "new": 1 }, { "model": "car", "stage": "q/s", "slo_ms": 77.0 }],
            "queries": [{ "name": "traffic", "ok": 3, "stages": [{ "name": "detect", "gamma": null }, { "name": "car", "gamma": 2.5 }] }],
            "models": [{ "name": "bad", "version": 1, "state": "failed", "error": "line one\nline two" }],
            "problems": [{ "path": "models/odd", "what": "no version" }],
            "plan": {
                "cause": "whim", "age_s": 65.0, "error": "out of paper",
                "devices": [
                    { "device": 3, "slots": [{ "batch": 7, "sessions": [{ "model": "face", "rate": 12.5 }] }] },
                    { "device": 4, "slots": [{ "sessions": [{ "model": "car", "rate": 30.5 }, { "model": "tree" }] }] },
                    { "device": 6, "slots": [{ "sessions": [{ "model": "car", "rate": 30.5 }, { "model": "tree" }] }] },
                ],
                "unplaced": [{ "model": "car", "rate": 1.0, "why": "no_device" }, { "model": "idle", "why": "no_demand" }],
            },
        });
        let text = Status::deserialize(&report).unwrap().text();
        for part in [
            "rota 9.0.0",
            "face",
            "25.00",
            "failed",
            "bad version 1: line one line two",
            "no client",
            "traffic",
            "  detect",
            "2.50",
            "models/odd: no version",
            "plan, made 1 min 5 s ago whim",
            "12.5",
            "4,6",
            "61.0",
            "the devices are full",
            "no newer plan could be made: out of paper",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        assert!(!text.contains("77.0"), "a stage is shown with its query:\n{text}");
        assert!(!text.contains("idle"), "nothing is asked of it:\n{text}");
    }
}
