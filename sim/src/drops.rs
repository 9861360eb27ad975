//! The published comparison of early with lazy drop: one model, SLO 100 ms, 500 requests/s at best, whatever part of an
//! execution is fixed. Lazy drop serves the oldest request at the cost of the batch behind it.

use crate::arrivals::Pattern;
use crate::engine::World;
use crate::parallel;
use crate::planning::Planner;
use crate::policy::PolicySpec;
use crate::trial::{Splits, Trial};
use crate::workload::Workload;
use rota_sched::plan::{Demand, Plan, Share, Slot, Timetable};
use serde::Serialize;
use std::time::Duration;

/// Requests per second at which 99 % are in time, on one device whose executions take αb + β with β = 50 - 25 α ms.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Row {
    pub alpha_ms: f64,
    pub lazy: f64,
    pub early: f64,
    pub rota: f64,
}

/// The α of the paper's figure, in milliseconds.
pub const ALPHAS_MS: [f64; 5] = [1.0, 1.2, 1.4, 1.6, 1.8];
/// Requests per second that batches of the planned size come to, with any α.
pub const OPTIMUM: f64 = 500.0;

/// A row for each of `alphas_ms`, means over `seeds` seeds from `seed` on, runs of `seconds`.
pub fn sweep(
    alphas_ms: &[f64],
    (seed, seeds): (u64, u32),
    seconds: f64,
    threads: usize,
    progress: &(dyn Fn(usize, usize) + Sync),
) -> Vec<Row> {
    let mut jobs = Vec::new();
    for &alpha_ms in alphas_ms {
        for policy in ["nexus-lazy", "nexus", "rota"] {
            jobs.extend((0..u64::from(seeds)).map(|index| (alpha_ms, policy, seed.wrapping_add(index))));
        }
    }
    let search = |&(alpha_ms, policy, seed): &(f64, &str, u64)| goodput(alpha_ms, policy, seed, seconds);
    let found = parallel::map(&jobs, threads, search, progress);
    let mean = |found: &[f64]| found.iter().sum::<f64>() / found.len() as f64;
    let row = |(&alpha_ms, found): (&f64, &[f64])| {
        let mut means = found.chunks(seeds as usize).map(mean);
        let mut next = || means.next().expect("there are three policies");
        Row { alpha_ms, lazy: next(), early: next(), rota: next() }
    };
    alphas_ms.iter().zip(found.chunks(3 * seeds as usize)).map(row).collect()
}

fn goodput(alpha_ms: f64, policy: &str, seed: u64, seconds: f64) -> f64 {
    let beta_ms = 50.0 - 25.0 * alpha_ms;
    let text = format!(
        "[[profile]]\nmodel = \"one\"\nbatch_ms = {{ 1 = {}, 64 = {} }}\n[[device]]\n\
         [[session]]\nmodel = \"one\"\nslo_ms = 100\nrate = {OPTIMUM}\n",
        alpha_ms + beta_ms,
        64.0 * alpha_ms + beta_ms
    );
    let workload = Workload::parse(&text, &|_| Err(String::new())).expect("a workload of ours");
    let world = World { seed, ..World::default() };
    let nexus: Planner<'_> = &saturated;
    let trial = Trial {
        workload: &workload,
        pattern: Pattern::Poisson,
        trace: None,
        seconds,
        world,
        nexus,
        splits: Splits::OfPolicy,
    };
    let policy: PolicySpec = policy.parse().expect("a policy's name");
    OPTIMUM * trial.find_goodput(&policy, 0.99, PRECISION).expect("one device holds one model").factor
}

/// One device for the first session, at the largest batch that twice fits the SLO: what the greedy gives a saturated
/// session.
fn saturated(demand: &Demand) -> Plan {
    let session = &demand.sessions[0];
    let profile = &demand.kinds[0].models[&session.model].profile;
    let batch = profile.largest_within(session.slo / 2);
    let execution = profile.latency(batch).expect("within the profile");
    let shares = vec![Share { session: 0, rate: session.rate, batch }];
    let slots = vec![Slot { offset: Duration::ZERO, batch, execution, shares }];
    let timetable = Timetable { kind: 0, period: execution, phase: Duration::ZERO, slots };
    Plan { devices: vec![timetable], ..Plan::default() }
}

/// Of the fluid bound.
const PRECISION: f64 = 0.005;
