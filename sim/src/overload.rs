//! How a policy does when more is asked than can be served: in all, and for the session that is worst off.

use crate::bound;
use crate::events::EventLog;
use crate::policy::PolicySpec;
use crate::scenario::{Scenario, ScenarioError};
use crate::trial::Trial;
use std::collections::BTreeMap;

/// A run at some factor on a load that is held.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Overloaded {
    /// Requests within their SLO per second.
    pub goodput: f64,
    /// The least of what sessions had within their SLO over their fair share, and the session.
    pub worst: (f64, usize),
}

/// Runs `trial` with all rates times `factor`.
pub fn run(trial: &Trial<'_>, policy: &PolicySpec, factor: f64) -> Result<Overloaded, ScenarioError> {
    let workload = trial.workload.scaled(factor);
    let report = Trial { workload: &workload, ..*trial }.run(policy, EventLog::none())?;
    let fair = fair_shares(&Scenario::new(&workload)?);
    let good = report.sessions.iter().filter(|session| session.figures.offered * trial.seconds >= FEW);
    let share = good.map(|session| ((1.0 - session.figures.bad_rate) / fair[session.session], session.session));
    let worst = share.min_by(|a, b| a.0.total_cmp(&b.0)).unwrap_or((1.0, 0));
    Ok(Overloaded { goodput: report.total.goodput, worst })
}

/// By session, the part of its requests that is its fair share: devices that serve the same sessions divide their time
/// max-min fairly by weight, a session's need being that of [`bound::devices`].
fn fair_shares(scenario: &Scenario) -> Vec<f64> {
    let mut groups: BTreeMap<Vec<usize>, Vec<usize>> = BTreeMap::new();
    for (session, servers) in scenario.servers().into_iter().enumerate() {
        groups.entry(servers).or_default().push(session);
    }
    let need = |session: usize| {
        let its = &scenario.sessions[session];
        bound::devices(scenario.latencies(session), its.slo, its.rate)
    };
    let mut fair = vec![1.0; scenario.sessions.len()];
    for (servers, mut sessions) in groups {
        // Whoever asks for least time for its weight is satisfied first; then what is left is divided among the others.
        let by_weight = |session: usize| need(session) / scenario.sessions[session].weight;
        sessions.sort_by(|&a, &b| by_weight(a).total_cmp(&by_weight(b)));
        let mut left = servers.len() as f64;
        let mut weights: f64 = sessions.iter().map(|&session| scenario.sessions[session].weight).sum();
        for session in sessions {
            let weight = scenario.sessions[session].weight;
            let gets = need(session).min(left * weight / weights);
            fair[session] = gets / need(session);
            (left, weights) = (left - gets, weights - weight);
        }
    }
    fair
}

/// Sessions with fewer requests in a run say nothing.
const FEW: f64 = 300.0;
