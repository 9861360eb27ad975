//! Queries: trees of calls under one SLO.
//!
//! An application asks one model and, with what it answered, others: a detector finds cars, each car is recognised. Its user
//! knows one objective for the whole. γ of an edge is how many calls of the child one call of the parent makes, so a stage's
//! rate is the query's times the γ on the way to it. What the stages share is time: `split` says which part of the SLO each
//! of them gets, so that all together take the fewest devices, and `joint` chooses it together with what the planner packs.

mod front;
mod joint;
mod serve;
mod split;
#[cfg(test)]
mod tests;

pub use joint::{Planned, Split, Tries, plan, shares};
pub use serve::{RESERVE, Room, need, rooms, weights};
pub use split::{Method, TooShort, devices, split};

use crate::ModelId;
use std::time::Duration;

/// A tree of calls that can be planned: one root, no cycle, every rate finite.
#[derive(Clone, Debug, PartialEq)]
pub struct Query {
    slo: Duration,
    stages: Vec<Stage>,
    /// By stage: calls per second. The root's is the query's.
    rates: Vec<f64>,
    /// Every stage once, each behind its parent.
    order: Vec<usize>,
}

/// A stage as it is declared.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stage {
    pub model: ModelId,
    /// The stage that calls it, by its place in the list; `None`: the query begins here.
    pub after: Option<usize>,
    /// Calls of it that one call of that stage makes, in the mean; not looked at where the query begins.
    pub gamma: f64,
}

/// Stages that are no query. Whoever declared them has to change what is named; nothing was taken.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum QueryError {
    #[error("a query needs at least one stage")]
    Empty,
    #[error("{0} stages are more than the {max} that a query may have", max = STAGES_MAX)]
    TooMany(usize),
    #[error("its SLO must be above zero")]
    Slo,
    #[error("its rate {0} must be a number of queries per second, zero or more")]
    Rate(f64),
    /// `after` names none of the stages.
    #[error("stage {stage} is after stage {after}, which there is not")]
    Unknown { stage: usize, after: usize },
    #[error("stages {first} and {second} are both after no other; a query begins with one")]
    SeveralRoots { first: usize, second: usize },
    /// Each waits for another, so that none can begin.
    #[error("stage {0} is after itself, by way of those it is after; a query is a tree")]
    Cycle(usize),
    #[error("gamma {gamma} of stage {stage} must be a number of calls, zero or more")]
    Gamma { stage: usize, gamma: f64 },
    #[error("stage {stage} would be called {rate:e} times a second, more than {max:e}", max = RATE_MAX)]
    TooFast { stage: usize, rate: f64 },
}

/// Stages of one query: bounds what a hostile declaration costs.
pub const STAGES_MAX: usize = 64;
/// Calls per second of one stage.
pub const RATE_MAX: f64 = 1e9;

impl Query {
    /// `rate`: queries per second.
    pub fn new(slo: Duration, rate: f64, stages: Vec<Stage>) -> Result<Query, QueryError> {
        if stages.is_empty() {
            return Err(QueryError::Empty);
        }
        if stages.len() > STAGES_MAX {
            return Err(QueryError::TooMany(stages.len()));
        }
        if slo.is_zero() {
            return Err(QueryError::Slo);
        }
        if !(rate.is_finite() && rate >= 0.0) {
            return Err(QueryError::Rate(rate));
        }
        let order = ordered(&stages)?;
        let mut rates = vec![rate; stages.len()];
        for &stage in &order {
            let Stage { after, gamma, .. } = stages[stage];
            if let Some(parent) = after {
                if !(gamma.is_finite() && gamma >= 0.0) {
                    return Err(QueryError::Gamma { stage, gamma });
                }
                rates[stage] = rates[parent] * gamma;
            }
            if rates[stage] > RATE_MAX {
                return Err(QueryError::TooFast { stage, rate: rates[stage] });
            }
        }
        Ok(Query { slo, stages, rates, order })
    }

    /// The same at `factor` times the rate.
    pub fn scaled(&self, factor: f64) -> Query {
        let rates = self.rates.iter().map(|rate| rate * factor).collect();
        Query { rates, ..self.clone() }
    }

    pub fn slo(&self) -> Duration {
        self.slo
    }

    /// In the order in which they were declared.
    pub fn stages(&self) -> &[Stage] {
        &self.stages
    }

    /// By stage: calls per second.
    pub fn rates(&self) -> &[f64] {
        &self.rates
    }

    /// Every stage once, each behind its parent; the root first.
    pub fn order(&self) -> &[usize] {
        &self.order
    }

    /// The stages that `stage` calls.
    pub fn children(&self, stage: usize) -> impl Iterator<Item = usize> + '_ {
        (0..self.stages.len()).filter(move |&other| self.stages[other].after == Some(stage))
    }

    /// By stage: the most that a way from it to a leaf comes to, its own weight included.
    pub fn longest(&self, weights: &[u64]) -> Vec<u64> {
        let mut longest = weights.to_vec();
        for &stage in self.order.iter().rev() {
            let below = self.children(stage).map(|child| longest[child]).max();
            longest[stage] = weights[stage].saturating_add(below.unwrap_or(0));
        }
        longest
    }
}

/// Parents before children, or why the stages are no tree.
fn ordered(stages: &[Stage]) -> Result<Vec<usize>, QueryError> {
    let mut order: Vec<usize> = Vec::with_capacity(stages.len());
    for (stage, its) in stages.iter().enumerate() {
        match (its.after, order.first()) {
            (Some(after), _) if after >= stages.len() => return Err(QueryError::Unknown { stage, after }),
            (None, Some(&first)) => return Err(QueryError::SeveralRoots { first, second: stage }),
            (None, None) => order.push(stage),
            (Some(_), _) => {}
        }
    }
    let mut next = 0;
    while next < order.len() {
        let parent = order[next];
        order.extend((0..stages.len()).filter(|&stage| stages[stage].after == Some(parent)));
        next += 1;
    }
    // Whoever cannot be reached from the root leads, parent by parent, into a circle; with no root everybody does.
    match (0..stages.len()).find(|stage| !order.contains(stage)) {
        None => Ok(order),
        Some(mut stage) => {
            for _ in 0..stages.len() {
                stage = stages[stage].after.expect("only a root has no parent, and roots were reached");
            }
            Err(QueryError::Cycle(stage))
        }
    }
}
