//! The comparison: every policy on the standard workloads, each rival with the best setting of its parameters per workload.

use crate::arrivals::Pattern;
use crate::engine::World;
use crate::planning::Planner;
use crate::policy::PolicySpec;
use crate::standard::Standard;
use crate::trial::{Goodput, Trial};
use crate::workload::Workload;
use serde::Serialize;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// How thorough a comparison is.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Of the bound; see [`Trial::find_goodput`].
    pub precision: f64,
    /// Of the seconds that the workload asks for.
    pub length: f64,
    /// Rivals run with the published setting of their parameters only.
    pub untuned: bool,
}

impl Effort {
    pub const FULL: Effort = Effort { precision: 0.005, length: 1.0, untuned: false };
    pub const QUICK: Effort = Effort { precision: 0.03, length: 0.1, untuned: true };
}

/// A policy on a workload.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    pub workload: &'static str,
    /// With the parameters of the best setting.
    pub policy: String,
    pub name: &'static str,
    #[serde(flatten)]
    pub goodput: Goodput,
    /// With the published setting, as a share of the bound.
    pub published: f64,
    /// With the best setting, as a share of the bound: what tables show.
    pub share: f64,
}

/// Compares `policies` on `workloads`, on `threads` threads. `progress` hears how many of how many searches are done.
/// The outcomes come in the order of workloads, then policies, whatever the number of threads.
pub fn compare(
    workloads: &[Standard],
    policies: &[PolicySpec],
    effort: Effort,
    world: World,
    nexus: Planner<'_>,
    threads: usize,
    progress: &(dyn Fn(usize, usize) + Sync),
) -> Vec<Outcome> {
    let tunings = |policy: &PolicySpec| if effort.untuned { vec![*policy] } else { policy.tunings() };
    let parsed: Vec<Workload> = workloads.iter().map(Standard::workload).collect();
    let jobs: Vec<(usize, usize, PolicySpec)> = (0..workloads.len())
        .flat_map(|workload| (0..policies.len()).map(move |policy| (workload, policy)))
        .flat_map(|(workload, policy)| tunings(&policies[policy]).into_iter().map(move |spec| (workload, policy, spec)))
        .collect();
    let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let results: Mutex<Vec<Option<Goodput>>> = Mutex::new(vec![None; jobs.len()]);
    let work = || {
        loop {
            let job = next.fetch_add(1, Ordering::Relaxed);
            let Some((workload, _, spec)) = jobs.get(job) else { return };
            let workload = &parsed[*workload];
            let trial = Trial {
                workload,
                pattern: workload.arrivals.unwrap_or(Pattern::Poisson),
                trace: None,
                seconds: workload.seconds.unwrap_or(SECONDS) * effort.length,
                world,
                nexus,
            };
            let goodput = trial.find_goodput(spec, GOOD_SHARE, effort.precision);
            let goodput = goodput.expect("a test makes scenarios of the standard workloads");
            results.lock().expect("no thread panics while it holds the lock")[job] = Some(goodput);
            progress(done.fetch_add(1, Ordering::Relaxed) + 1, jobs.len());
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(work);
        }
    });
    let results = results.into_inner().expect("no thread panicked");
    let mut outcomes: Vec<Outcome> = Vec::new();
    let mut last = None;
    for ((workload, policy, spec), goodput) in jobs.iter().zip(results) {
        let goodput = goodput.expect("every job was done");
        let share = goodput.factor / goodput.bound;
        let outcome = Outcome {
            workload: workloads[*workload].name,
            policy: spec.to_string(),
            name: spec.name(),
            goodput,
            published: share,
            share,
        };
        if last.replace((*workload, *policy)) != Some((*workload, *policy)) {
            outcomes.push(outcome);
        } else if let Some(best) = outcomes.last_mut().filter(|best| best.share < share) {
            *best = Outcome { published: best.published, ..outcome };
        }
    }
    outcomes
}

/// A table for people: a line per workload, a column per policy, shares of the fluid bound. Where tuning helped, the
/// published setting's share stands behind in brackets.
pub fn table(outcomes: &[Outcome]) -> String {
    let mut names: Vec<&str> = Vec::new();
    let mut lines: Vec<(&str, Vec<String>)> = Vec::new();
    for outcome in outcomes {
        if !names.contains(&outcome.name) {
            names.push(outcome.name);
        }
        if lines.last().is_none_or(|(workload, _)| *workload != outcome.workload) {
            lines.push((outcome.workload, Vec::new()));
        }
        let cell = if outcome.published < outcome.share {
            format!("{:.3} ({:.3})", outcome.share, outcome.published)
        } else {
            format!("{:.3}", outcome.share)
        };
        lines.last_mut().expect("one was just added").1.push(cell);
    }
    let mut text = format!("| workload | {} |\n|---|{}\n", names.join(" | "), "---|".repeat(names.len()));
    for (workload, cells) in &lines {
        text += &format!("| {workload} | {} |\n", cells.join(" | "));
    }
    let mean = |name: &str| {
        let shares: Vec<f64> = outcomes.iter().filter(|o| o.name == name).map(|o| o.share.max(1e-3)).collect();
        libm::exp(shares.iter().map(|share| libm::log(*share)).sum::<f64>() / shares.len() as f64)
    };
    let means: Vec<String> = names.iter().map(|name| format!("{:.3}", mean(name))).collect();
    text + &format!("| geometric mean | {} |\n", means.join(" | "))
}

/// Of every session's requests, within its SLO.
pub const GOOD_SHARE: f64 = 0.99;
/// For a workload that does not say how long.
const SECONDS: f64 = 30.0;
