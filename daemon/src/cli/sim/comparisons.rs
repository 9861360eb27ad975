//! Comparisons on workloads of the program's own: all policies, devices under Poisson, early drop.

use super::super::Failure;
use super::super::output::{self, Table};
use super::super::progress::Progress;
use super::super::workload::write_file;
use super::{Arguments, nexus_plan};
use rota_sched::plan::{Demand, Plan, Planner, Steps, plan};
use rota_sim::drops;
use rota_sim::fleet::{self, Held, Means, Needed, Question};
use rota_sim::policy::PolicySpec;
use rota_sim::standard::{STANDARD, Standard};
use rota_sim::suite::{self, Comparison, Effort, Stage};
use rota_sim::svg;
use serde_json::json;
use std::io::IsTerminal;
use std::sync::Mutex;

/// Every policy on the standard workloads.
pub fn suite(arguments: &Arguments) -> Result<(), Failure> {
    let workloads = workloads(&arguments.only)?;
    let all = || PolicySpec::NAMES.iter().map(|name| name.parse().expect("its own name")).collect();
    let policies: Vec<PolicySpec> = if arguments.policy.is_empty() { all() } else { arguments.policy.clone() };
    let mut effort = if arguments.quick { Effort::QUICK } else { Effort::FULL };
    effort.seeds = arguments.seeds.unwrap_or(effort.seeds);
    let folder = &arguments.output;
    std::fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let stages = Stages::default();
    let comparison = Comparison {
        workloads: &workloads,
        policies: &policies,
        effort,
        world: arguments.world(),
        nexus: &nexus_plan,
        threads: threads(),
        progress: &|stage, done, all| {
            let what = match stage {
                Stage::Tuning => "choosing settings",
                Stage::Measuring => "searching goodput",
                Stage::Loads => "running loads",
            };
            stages.show(what, done, all);
        },
    };
    let outcomes = comparison.run();
    let drawn: Vec<_> = outcomes.iter().filter(|outcome| LOADS.contains(&outcome.workload)).cloned().collect();
    let loads = comparison.loads(&drawn, &factors(arguments.quick));
    drop(stages);
    let (table, value) = (suite::table(&outcomes), json!({ "outcomes": outcomes, "loads": loads }));
    write_file(&folder.join("goodput.md"), &table)?;
    write_file(&folder.join("suite.json"), &format!("{value:#}\n"))?;
    write_file(&folder.join("goodput.svg"), &svg::goodput(&outcomes))?;
    write_file(&folder.join("loads.svg"), &svg::loads(&loads))?;
    if arguments.json {
        return Ok(output::print_json(&value)?);
    }
    let files = folder.display();
    output::print(&format!("{table}\ngoodput.md, goodput.svg, loads.svg and suite.json are in {files}\n"))?;
    Ok(())
}

/// The standard workloads of these names; all if there are none.
fn workloads(only: &[String]) -> Result<Vec<Standard>, Failure> {
    if let Some(unknown) = only.iter().find(|name| STANDARD.iter().all(|standard| standard.name != **name)) {
        let names: Vec<&str> = STANDARD.iter().map(|standard| standard.name).collect();
        return Err(format!("--only: there is no standard workload '{unknown}'; there are {}", names.join(", ")).into());
    }
    let wanted = |standard: &&Standard| only.is_empty() || only.iter().any(|name| name == standard.name);
    Ok(STANDARD.iter().filter(wanted).copied().collect())
}

/// Loads, as shares of the fluid bound.
fn factors(quick: bool) -> Vec<f64> {
    let step = if quick { 4 } else { 2 };
    (4..=30).step_by(step).map(|index| f64::from(index) / 20.0).collect()
}

/// How many devices each system needs.
pub fn devices(arguments: &Arguments) -> Result<(), Failure> {
    let stages = Stages::default();
    let by =
        |planner, steps| move |demand: &Demand| -> Plan { plan(demand, planner, Steps(steps)).unwrap_or_default() };
    let (nexus, rota) = (by(Planner::Nexus, 0), by(Planner::Rota, if arguments.quick { 0 } else { STEPS }));
    let question = Question {
        workloads: arguments.workloads,
        sessions: arguments.sessions.map(|count| count as usize),
        seed: arguments.seed,
        seconds: arguments.seconds.unwrap_or(if arguments.quick { 20.0 } else { 300.0 }),
        nexus: &nexus,
        rota: &rota,
    };
    let needed = question.answer(threads(), &|done, all| stages.show("counting devices", done, all));
    drop(stages);
    let means = fleet::means(&needed);
    if arguments.json {
        return Ok(output::print_json(&json!({ "workloads": needed, "means": means }))?);
    }
    Ok(output::print(&devices_text(&needed, means))?)
}

fn devices_text(needed: &[Needed], means: Option<Means>) -> String {
    let mut table = Table::new(&[
        "seed",
        "sessions",
        "bound",
        "nexus",
        "headroom",
        "rota",
        "headroom",
        "rota anywhere",
        "rota/nexus",
    ]);
    let held = |held: Option<Held>| match held {
        Some(held) => [held.devices.to_string(), format!("{:.2}", held.headroom)],
        None => [output::MISSING, output::MISSING].map(String::from),
    };
    for its in needed {
        let ratio = its.rota.zip(its.nexus).map(|(rota, nexus)| rota.devices as f64 / nexus.devices as f64);
        let mut row = vec![its.seed.to_string(), its.sessions.to_string(), format!("{:.2}", its.bound)];
        row.extend(held(its.nexus));
        row.extend(held(its.rota));
        row.push(its.rota_anywhere.map_or(output::MISSING.to_string(), |devices| devices.to_string()));
        row.push(ratio.map_or(output::MISSING.to_string(), |ratio| format!("{ratio:.3}")));
        table.row(row);
    }
    let means = match means {
        Some(means) => format!(
            "means of {}: nexus {:.3} times the bound, rota {:.3}, rota anywhere {:.3}; rota/nexus {:.3}\n",
            means.workloads, means.nexus, means.rota, means.rota_anywhere, means.rota_over_nexus
        ),
        None => "there is no workload that every system holds\n".to_string(),
    };
    format!("devices with which 99 % of every session are in time, Poisson arrivals\n\n{}\n{means}", table.text())
}

/// The published sweep.
pub fn early_drop(arguments: &Arguments) -> Result<(), Failure> {
    let stages = Stages::default();
    let seeds = (arguments.seed, arguments.seeds.unwrap_or(1));
    let seconds = arguments.seconds.unwrap_or(if arguments.quick { 60.0 } else { 600.0 });
    let show = |done, all| stages.show("searching goodput", done, all);
    let rows = drops::sweep(&drops::ALPHAS_MS, seeds, seconds, threads(), &show);
    drop(stages);
    if arguments.json {
        return Ok(output::print_json(&rows)?);
    }
    let mut table = Table::new(&["α ms", "lazy/s", "early/s", "rota/s", "early/lazy", "rota/early"]);
    for row in &rows {
        table.row(vec![
            format!("{:.1}", row.alpha_ms),
            format!("{:.0}", row.lazy),
            format!("{:.0}", row.early),
            format!("{:.0}", row.rota),
            format!("{:.3}", row.early / row.lazy),
            format!("{:.3}", row.rota / row.early),
        ]);
    }
    let head = format!("requests/s with 99 % within 100 ms; {} is the most that any policy could do", drops::OPTIMUM);
    Ok(output::print(&format!("{head}\n\n{}", table.text()))?)
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Progress of work that has stages: a bar for each on a terminal, a line per tenth elsewhere. Heard from several threads.
#[derive(Default)]
struct Stages(Mutex<Option<Shown>>);

struct Shown {
    what: &'static str,
    bar: Progress,
    /// The last that was shown: threads may report out of order.
    done: usize,
}

impl Stages {
    fn show(&self, what: &'static str, done: usize, all: usize) {
        let mut shown = self.0.lock().expect("no thread panics while it holds the lock");
        let stage = match &mut *shown {
            Some(stage) if stage.what == what => stage,
            other => other.insert(Shown { what, bar: Progress::of_steps(all), done: 0 }),
        };
        if done <= stage.done {
            return;
        }
        let tenth = |done: usize| done * 10 / all.max(1);
        let passed = tenth(done) > tenth(stage.done);
        stage.done = done;
        if std::io::stderr().is_terminal() {
            stage.bar.detail(done, what);
        } else if passed {
            eprintln!("{what}: {done} of {all}");
        }
    }
}

/// The workloads whose loads are drawn.
const LOADS: [&str; 6] = ["one-8", "mixed-8", "hundred-16", "many-small", "game", "bursts"];
/// Our planner's search for one plan of many.
const STEPS: u32 = 200;
