//! The comparison: every policy on the standard workloads, each rival with the best setting of its parameters per workload.
//!
//! Settings are chosen on a seed of their own and reported on others, so that no policy wins by a setting that happens to
//! suit the arrivals which it is judged by.

use crate::arrivals::Pattern;
use crate::engine::World;
use crate::events::EventLog;
use crate::parallel;
use crate::planning::Planner;
use crate::policy::PolicySpec;
use crate::standard::Standard;
use crate::trial::{Splits, Trial};
use crate::workload::Workload;
use serde::Serialize;

/// How thorough a comparison is.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Of the bound; see [`Trial::find_goodput`].
    pub precision: f64,
    /// Of the seconds that the workload asks for.
    pub length: f64,
    /// Rivals run with the published setting of their parameters only.
    pub untuned: bool,
    /// Seeds that are reported, at least one.
    pub seeds: u32,
}

impl Effort {
    pub const FULL: Effort = Effort { precision: 0.005, length: 1.0, untuned: false, seeds: 3 };
    pub const QUICK: Effort = Effort { precision: 0.03, length: 0.2, untuned: true, seeds: 1 };
}

/// Who is compared, on what, and how.
#[derive(Clone, Copy)]
pub struct Comparison<'a> {
    pub workloads: &'a [Standard],
    pub policies: &'a [PolicySpec],
    pub effort: Effort,
    /// Its seed is the first of those reported.
    pub world: World,
    pub nexus: Planner<'a>,
    pub threads: usize,
    /// Hears how many of how many searches of a stage are done. The first stage chooses settings.
    pub progress: &'a (dyn Fn(Stage, usize, usize) + Sync),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    Tuning,
    Measuring,
    Loads,
}

/// A policy on a workload. Shares are of the factor at which the fluid bound equals the devices.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    pub workload: &'static str,
    /// With the parameters of the best setting.
    pub policy: String,
    pub name: &'static str,
    /// With the best setting, by seed.
    pub shares: Vec<f64>,
    /// Their mean: what tables show.
    pub share: f64,
    /// The mean with the published setting.
    pub published: f64,
    /// The mean of the requests within their SLO per second, with the best setting.
    pub goodput: f64,
}

/// How a policy does under loads from light to too heavy: (factor on the rates over the bound's, bad rate of all requests).
#[derive(Clone, Debug, Serialize)]
pub struct Loads {
    pub workload: &'static str,
    pub policy: String,
    pub name: &'static str,
    pub points: Vec<Load>,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub struct Load {
    /// Of the factor at which the fluid bound equals the devices.
    pub factor: f64,
    /// Over all sessions.
    pub bad_rate: f64,
    /// Of the session or query that does worst.
    pub worst_bad_rate: f64,
    pub p99_ms: f64,
}

impl Comparison<'_> {
    /// The outcomes come in the order of workloads, then policies, whatever the number of threads.
    pub fn run(&self) -> Vec<Outcome> {
        let workloads: Vec<Workload> = self.workloads.iter().map(Standard::workload).collect();
        let best = self.tune(&workloads);
        let pairs = || (0..workloads.len()).flat_map(|workload| (0..self.policies.len()).map(move |p| (workload, p)));
        let mut jobs = Vec::new();
        for ((workload, policy), &best) in pairs().zip(&best) {
            for seed in 0..u64::from(self.effort.seeds) {
                jobs.push((workload, best, seed));
                if best != self.policies[policy] {
                    jobs.push((workload, self.policies[policy], seed));
                }
            }
        }
        let search = |&(workload, spec, seed): &(usize, PolicySpec, u64)| {
            let world = World { seed: self.world.seed.wrapping_add(seed), ..self.world };
            let found = self.trial(&workloads[workload], world).find_goodput(&spec, GOOD_SHARE, self.effort.precision);
            found.expect("a test makes scenarios of the standard workloads")
        };
        let found =
            parallel::map(&jobs, self.threads, search, &|done, all| (self.progress)(Stage::Measuring, done, all));
        let outcome = |((workload, policy), best): ((usize, usize), &PolicySpec)| {
            let of = |wanted: &PolicySpec| {
                let its = jobs.iter().zip(&found).filter(|(job, _)| job.0 == workload && job.1 == *wanted);
                its.map(|(_, goodput)| goodput).collect::<Vec<_>>()
            };
            let shares = |spec| of(spec).iter().map(|goodput| goodput.factor / goodput.bound).collect::<Vec<_>>();
            Outcome {
                workload: self.workloads[workload].name,
                policy: best.to_string(),
                name: best.name(),
                share: mean(&shares(best)),
                published: mean(&shares(&self.policies[policy])),
                goodput: mean(&of(best).iter().map(|goodput| goodput.goodput).collect::<Vec<_>>()),
                shares: shares(best),
            }
        };
        pairs().zip(&best).map(outcome).collect()
    }

    /// By workload and policy, the setting with the largest goodput on the seed for tuning; the published one if none is
    /// better.
    fn tune(&self, workloads: &[Workload]) -> Vec<PolicySpec> {
        let tunings = |policy: &PolicySpec| if self.effort.untuned { vec![*policy] } else { policy.tunings() };
        let mut jobs = Vec::new();
        for workload in 0..workloads.len() {
            for policy in self.policies.iter().map(tunings).filter(|tunings| tunings.len() > 1) {
                jobs.extend(policy.into_iter().map(|spec| (workload, spec)));
            }
        }
        let world = World { seed: self.world.seed.wrapping_add(TUNING_SEED), ..self.world };
        let search = |(workload, spec): &(usize, PolicySpec)| {
            let precision = self.effort.precision.max(TUNING_PRECISION);
            let found = self.trial(&workloads[*workload], world).find_goodput(spec, GOOD_SHARE, precision);
            found.expect("a test makes scenarios of the standard workloads").factor
        };
        let found = parallel::map(&jobs, self.threads, search, &|done, all| (self.progress)(Stage::Tuning, done, all));
        let mut best = Vec::with_capacity(workloads.len() * self.policies.len());
        for workload in 0..workloads.len() {
            for policy in self.policies {
                let its =
                    jobs.iter().zip(&found).filter(|((of, spec), _)| *of == workload && spec.name() == policy.name());
                let mut chosen = (*policy, f64::MIN);
                for ((_, spec), &factor) in its {
                    if factor > chosen.1 {
                        chosen = (*spec, factor);
                    }
                }
                best.push(chosen.0);
            }
        }
        best
    }

    /// Bad rates at each of `factors` of the bound, with the settings that `outcomes` chose.
    pub fn loads(&self, outcomes: &[Outcome], factors: &[f64]) -> Vec<Loads> {
        let spec = |outcome: &Outcome| outcome.policy.parse::<PolicySpec>().expect("a policy reads what it writes");
        let workload = |name: &str| self.workloads.iter().find(|standard| standard.name == name).expect("compared");
        let jobs: Vec<(&Outcome, f64)> =
            outcomes.iter().flat_map(|outcome| factors.iter().map(move |&factor| (outcome, factor))).collect();
        let run = |&(outcome, factor): &(&Outcome, f64)| {
            let workload = workload(outcome.workload).workload();
            let trial = self.trial(&workload, self.world);
            let bound = trial.bound().expect("it was compared");
            let scaled = workload.scaled(factor * bound);
            let report = Trial { workload: &scaled, ..trial }.run(&spec(outcome), EventLog::none());
            let report = report.expect("it was compared");
            let worst = report.bad_rates().fold(0.0, f64::max);
            let total = report.total;
            Load { factor, bad_rate: total.bad_rate, worst_bad_rate: worst, p99_ms: total.p99_ms }
        };
        let points = parallel::map(&jobs, self.threads, run, &|done, all| (self.progress)(Stage::Loads, done, all));
        let of = |(outcome, points): (&Outcome, &[Load])| Loads {
            workload: outcome.workload,
            policy: outcome.policy.clone(),
            name: outcome.name,
            points: points.to_vec(),
        };
        outcomes.iter().zip(points.chunks(factors.len().max(1))).map(of).collect()
    }

    fn trial<'a>(&'a self, workload: &'a Workload, world: World) -> Trial<'a> {
        Trial {
            workload,
            pattern: workload.arrivals.unwrap_or(Pattern::Poisson),
            trace: None,
            seconds: workload.seconds.unwrap_or(SECONDS) * self.effort.length,
            world,
            nexus: self.nexus,
            splits: Splits::OfPolicy,
        }
    }
}

/// A table for people: a line per workload, a column per policy, shares of the fluid bound as means over seeds. Where there
/// are several, half of the distance from the least to the most stands behind; where tuning helped, the published
/// setting's share in brackets.
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
        lines.last_mut().expect("one was just added").1.push(cell(outcome));
    }
    let mut text = format!("| workload | {} |\n|---|{}\n", names.join(" | "), "---|".repeat(names.len()));
    for (workload, cells) in &lines {
        text += &format!("| {workload} | {} |\n", cells.join(" | "));
    }
    let means: Vec<String> = names.iter().map(|name| format!("{:.3}", geometric_mean(outcomes, name))).collect();
    text + &format!("| geometric mean | {} |\n", means.join(" | "))
}

fn cell(outcome: &Outcome) -> String {
    let mut cell = format!("{:.3}", outcome.share);
    if outcome.shares.len() > 1 {
        let (least, most) = outcome.shares.iter().fold((f64::MAX, 0f64), |(low, high), &s| (low.min(s), high.max(s)));
        cell += &format!(" ± {:.3}", (most - least) / 2.0);
    }
    if outcome.published < outcome.share {
        cell += &format!(" ({:.3})", outcome.published);
    }
    cell
}

/// Of a policy's shares over all workloads. One that held nothing at all counts as a thousandth.
pub fn geometric_mean(outcomes: &[Outcome], name: &str) -> f64 {
    let logs: Vec<f64> =
        outcomes.iter().filter(|outcome| outcome.name == name).map(|o| libm::log(o.share.max(1e-3))).collect();
    libm::exp(mean(&logs))
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Of every session's requests, within its SLO.
pub const GOOD_SHARE: f64 = 0.99;
/// For a workload that does not say how long.
pub const SECONDS: f64 = 30.0;
/// Added to the first seed: settings are chosen on it. More than anybody's number of seeds.
const TUNING_SEED: u64 = 1 << 32;
/// Settings differ by more.
const TUNING_PRECISION: f64 = 0.01;
