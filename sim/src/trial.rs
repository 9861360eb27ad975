//! One workload under one policy: a run, or the search for the largest load that it holds.

use crate::arrivals::{Pattern, Trace};
use crate::bound;
use crate::engine::{self, World};
use crate::events::EventLog;
use crate::load::Load;
use crate::planning::Planner;
use crate::policy::PolicySpec;
use crate::record::Report;
use crate::scenario::{REQUESTS_MAX, Scenario, ScenarioError};
use crate::workload::{Session, Workload};
use serde::Serialize;
use std::borrow::Cow;

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
    pub splits: Splits,
}

/// How the SLOs of queries are split over their stages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Splits {
    /// As the policy's system does: see [`PolicySpec::split`].
    OfPolicy,
    /// As the workload has them.
    Given,
}

/// The largest load that a policy was found to hold.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Goodput {
    /// On all rates. Zero: it held none that was tried, or a session's SLO is shorter than ℓ(1).
    pub factor: f64,
    /// Requests within their SLO per second at that factor.
    pub goodput: f64,
    /// The factor at which the fluid bound equals the devices.
    pub bound: f64,
}

impl Trial<'_> {
    pub fn run(&self, policy: &PolicySpec, log: EventLog<'_>) -> Result<Report, ScenarioError> {
        let workload = self.split(policy);
        let trial = Trial { workload: &workload, ..*self };
        let scenario = Scenario::new(&workload)?;
        trial.check_length(1.0)?;
        Ok(trial.run_at(policy, &scenario, 1.0, None, log))
    }

    /// The workload with its queries split as the policy's system would.
    fn split(&self, policy: &PolicySpec) -> Cow<'_, Workload> {
        if self.workload.queries.is_empty() || self.splits == Splits::Given {
            return Cow::Borrowed(self.workload);
        }
        let mut workload = self.workload.clone();
        workload.split(policy.split());
        Cow::Owned(workload)
    }

    /// The factor on all rates at which the fluid bound equals the devices.
    pub fn bound(&self) -> Result<f64, ScenarioError> {
        Ok(bound::factor(&Scenario::new(self.workload)?))
    }

    /// The largest factor on all rates, to within `precision` times the fluid bound, at which every session and every query has at
    /// least `good_share` within its SLO. The seed is the same for each, so that a larger factor is the same
    /// load, denser.
    ///
    /// Whether a load holds is not monotone in the factor (a plan for a little more may need a whole device more), so the
    /// search comes down from above the bound in steps, and only bisects the last.
    pub fn find_goodput(&self, policy: &PolicySpec, good_share: f64, precision: f64) -> Result<Goodput, ScenarioError> {
        let workload = self.split(policy);
        let trial = Trial { workload: &workload, ..*self };
        let scenario = Scenario::new(&workload)?;
        let bound = bound::factor(&scenario);
        trial.check_length(ABOVE_BOUND * bound)?;
        if !scenario.hopeless().is_empty() {
            return Ok(Goodput { factor: 0.0, goodput: 0.0, bound });
        }
        let holds = |share: f64| {
            let factor = share * bound;
            let report = trial.run_at(policy, &scenario, factor, Some(1.0 - good_share), EventLog::none());
            report.holds(good_share).then_some(Goodput { factor, goodput: report.total.goodput, bound })
        };
        let step = precision.max(STEP);
        let mut high = ABOVE_BOUND;
        let mut best = Goodput { factor: 0.0, goodput: 0.0, bound };
        while high > step && best.factor == 0.0 {
            match holds(high - step) {
                Some(found) => best = found,
                None => high -= step,
            }
        }
        let mut low = best.factor / bound;
        while high - low > precision {
            let middle = (low + high) / 2.0;
            match holds(middle) {
                Some(found) => (low, best) = (middle, found),
                None => high = middle,
            }
        }
        Ok(best)
    }

    /// Refuses what would not fit in memory. A trace was read already, so it does.
    fn check_length(&self, factor: f64) -> Result<(), ScenarioError> {
        let of =
            |session: &Session| session.arrivals.unwrap_or(self.pattern).expected(session.rate * factor, self.seconds);
        let requests: f64 = self.workload.sessions.iter().map(of).sum();
        let fits = self.trace.is_some() || requests <= f64::from(REQUESTS_MAX);
        if fits { Ok(()) } else { Err(ScenarioError::TooManyRequests(requests)) }
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
            Some(trace) => Load::replay(&workload, trace, factor, self.seconds / factor, self.world.seed),
            None => Load::generate(&workload, self.pattern, self.seconds, self.world.seed),
        };
        let mut scenario = scenario.scaled(factor);
        (scenario.told, scenario.epoch) = (self.world.told, self.world.epoch);
        let mut policy = policy.build(&scenario, load.requests.len(), self.nexus);
        engine::run(&scenario, &load, policy.as_mut(), self.world, bad_share_max, log)
    }
}

/// A search begins so far above the bound, as a share of it: sessions that share slots may pass it by a little.
const ABOVE_BOUND: f64 = 1.25;
/// Of the bound: how far a search comes down at once.
const STEP: f64 = 0.05;
