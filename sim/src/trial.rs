//! One workload under one policy: a run, or the search for the largest load that it holds.

use crate::arrivals::{Pattern, Trace};
use crate::bound;
use crate::engine::{self, World};
use crate::events::EventLog;
use crate::load::Load;
use crate::planning::Planner;
use crate::policy::PolicySpec;
use crate::record::Report;
use crate::scenario::{Scenario, ScenarioError};
use crate::workload::Workload;
use serde::Serialize;

/// A workload and everything about a run but the policy.
#[derive(Clone, Copy)]
pub struct Trial<'a> {
    pub workload: &'a Workload,
    /// For sessions that do not say otherwise.
    pub pattern: Pattern,
    /// Instead of patterns.
    pub trace: Option<&'a Trace>,
    /// How long requests arrive.
    pub seconds: f64,
    pub world: World,
    /// By the published greedy.
    pub nexus: Planner<'a>,
}

/// The largest load that a policy was found to hold.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Goodput {
    /// On all rates. Zero: it held none that was tried.
    pub factor: f64,
    /// Requests within their SLO per second at that factor.
    pub goodput: f64,
    /// The factor at which the fluid bound equals the devices.
    pub bound: f64,
}

impl Trial<'_> {
    pub fn run(&self, policy: &PolicySpec, log: EventLog<'_>) -> Result<Report, ScenarioError> {
        let scenario = Scenario::new(self.workload)?;
        Ok(self.run_at(policy, &scenario, 1.0, None, log))
    }

    /// Bisects the factor on all rates between none and a quarter above the fluid bound, down to `precision` times the
    /// bound, for the largest at which every session has at least `good_share` of its requests within its SLO. The seed is
    /// the same at each, so that a larger factor is the same load, denser.
    ///
    /// Whether a load holds need not be monotone in the factor: what is found holds, and the least step above it did not.
    pub fn find_goodput(&self, policy: &PolicySpec, good_share: f64, precision: f64) -> Result<Goodput, ScenarioError> {
        let scenario = Scenario::new(self.workload)?;
        let bound = bound::factor(&scenario);
        let (mut low, mut high) = (0.0, ABOVE_BOUND);
        let mut best = Goodput { factor: 0.0, goodput: 0.0, bound };
        while high - low > precision {
            let middle = (low + high) / 2.0;
            let factor = middle * bound;
            let report = self.run_at(policy, &scenario, factor, Some(1.0 - good_share), EventLog::none());
            if report.holds(good_share) {
                low = middle;
                best = Goodput { factor, goodput: report.total.goodput, bound };
            } else {
                high = middle;
            }
        }
        Ok(best)
    }

    fn run_at(
        &self,
        policy: &PolicySpec,
        scenario: &Scenario,
        factor: f64,
        bad_share_max: Option<f64>,
        log: EventLog<'_>,
    ) -> Report {
        let workload = self.workload.scaled(factor);
        let load = match self.trace {
            Some(trace) => Load::replay(&workload, trace, factor, self.seconds / factor),
            None => Load::generate(&workload, self.pattern, self.seconds, self.world.seed),
        };
        let scenario = scenario.scaled(factor);
        let mut policy = policy.build(&scenario, load.requests.len(), self.nexus);
        engine::run(&scenario, &load, policy.as_mut(), self.world, bad_share_max, log)
    }
}

/// A search begins so far above the bound, as a share of it: sessions that share slots may pass it by a little.
const ABOVE_BOUND: f64 = 1.25;
