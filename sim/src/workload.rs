//! The workload file: profiles, sessions and devices, as people write them. Everything wrong with one is found here.

mod file;
mod queries;

use crate::arrivals::Pattern;
use rota_sched::plan::{ArrivalProcess, Demand, DeviceKind, Fleet, ModelCost};
use rota_sched::query::{self, Method};
use rota_sched::{ModelId, Profile};
use std::collections::BTreeMap;
use std::time::Duration;

/// A workload that can be planned and simulated: every figure is finite and in range, every name is known.
///
/// A session may still ask for what no device can give (an SLO below ℓ(1)): that is a plan's to say.
#[derive(Clone, Debug, PartialEq)]
pub struct Workload {
    /// Names of the models that have profiles.
    pub models: Vec<String>,
    /// Those that the file has, and behind them one for each stage of each query, in order: its SLO is its share of the query's.
    pub sessions: Vec<Session>,
    pub queries: Vec<Query>,
    /// Never empty; the first is the kind of devices that are not described.
    pub kinds: Vec<Kind>,
    /// How the sessions' requests arrive where a session does not say otherwise.
    pub arrivals: Option<Pattern>,
    /// How long a simulation of it should be, in seconds.
    pub seconds: Option<f64>,
    /// What was set right on reading, for people.
    pub warnings: Vec<String>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Session {
    /// Index into [`Workload::models`].
    pub model: usize,
    pub slo: Duration,
    /// Requests per second.
    pub rate: f64,
    /// Its share when there are too few devices; 1 is usual.
    pub weight: f64,
    pub arrivals: Option<Pattern>,
    /// Where it stands in the file, from 1: for messages.
    pub line: usize,
}

/// An application: calls that make others, under one SLO.
#[derive(Clone, Debug, PartialEq)]
pub struct Query {
    pub name: String,
    pub tree: query::Query,
    /// As the tree's.
    pub stages: Vec<Stage>,
    /// Where it stands in the file, from 1.
    pub line: usize,
}

/// A stage of a query, as the simulator needs it beside the tree.
#[derive(Clone, Debug, PartialEq)]
pub struct Stage {
    pub name: String,
    /// Index into [`Workload::sessions`].
    pub session: usize,
    pub fan_out: FanOut,
}

/// How many calls of a stage one call of its parent makes; γ in the mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FanOut {
    /// γ, or one of the whole numbers around it.
    Fixed,
    Poisson,
    /// Many make none, some make very many.
    Geometric,
}

/// A kind of device: how many there are, and what models cost on it.
#[derive(Clone, Debug, PartialEq)]
pub struct Kind {
    pub name: String,
    /// 0 when the workload does not say.
    pub count: usize,
    /// `None`: as much as it takes.
    pub memory_bytes: Option<u64>,
    /// By index into [`Workload::models`]; models without an entry do not run on this kind.
    pub costs: BTreeMap<usize, ModelCost>,
}

/// What is wrong with a workload file. Whoever wrote it has to change it; nothing was taken from it.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("line {line}: {text}")]
pub struct WorkloadError {
    /// From 1.
    pub line: usize,
    /// What, and what would be right.
    pub text: String,
}

/// Where a workload file's profiles come from that it only names. Messages say why one could not be had.
#[derive(Clone, Copy)]
pub struct Sources<'a> {
    /// Reads a file, by its path as written there.
    pub file: &'a dyn Fn(&str) -> Result<String, String>,
    /// Of a model, what was measured; `None` when there is no such model.
    pub model: &'a dyn Fn(&str) -> Result<Option<Points>, String>,
}

/// Measured points (b, ℓ(b)).
pub type Points = Vec<(u32, Duration)>;

impl Workload {
    /// Reads a workload file's text. `open` reads a file that a profile names; every model needs a `[[profile]]`.
    pub fn parse(text: &str, open: &dyn Fn(&str) -> Result<String, String>) -> Result<Workload, WorkloadError> {
        Workload::parse_with(text, Sources { file: open, model: &|_| Ok(None) })
    }

    /// As [`Workload::parse`]; models without a profile of the file's own come from `sources`.
    pub fn parse_with(text: &str, sources: Sources<'_>) -> Result<Workload, WorkloadError> {
        file::read(text, sources)
    }

    /// All rates times `factor`.
    pub fn scaled(&self, factor: f64) -> Workload {
        let mut scaled = self.clone();
        scaled.sessions.iter_mut().for_each(|session| session.rate *= factor);
        scaled.queries.iter_mut().for_each(|query| query.tree = query.tree.scaled(factor));
        scaled
    }

    /// Sessions that are no query's stages; they come first.
    pub fn plain(&self) -> &[Session] {
        let stages: usize = self.queries.iter().map(|query| query.stages.len()).sum();
        &self.sessions[..self.sessions.len() - stages]
    }

    /// By query.
    pub fn trees(&self) -> Vec<query::Query> {
        self.queries.iter().map(|query| query.tree.clone()).collect()
    }

    /// Splits every query's SLO over its stages; as read they are split by [`Method::Dp`].
    pub fn split(&mut self, method: Method) {
        self.set_shares(&query::shares(&self.demand(ArrivalProcess::Even), &self.trees(), method));
    }

    /// `shares` are by query and stage.
    pub fn set_shares(&mut self, shares: &[Vec<Duration>]) {
        for (query, shares) in self.queries.iter().zip(shares) {
            for (stage, &share) in query.stages.iter().zip(shares) {
                self.sessions[stage.session].slo = share;
            }
        }
    }

    /// Of one of its queries, by stage.
    pub fn shares(&self, query: &Query) -> Vec<Duration> {
        query.stages.iter().map(|stage| self.sessions[stage.session].slo).collect()
    }

    /// As [`Workload::demand`] without the queries' stages.
    pub fn plain_demand(&self, arrivals: ArrivalProcess) -> Demand {
        let mut demand = self.demand(arrivals);
        demand.sessions.truncate(self.plain().len());
        demand
    }

    /// The number of devices of a workload with one kind of device is this, whatever the file says.
    ///
    /// # Errors
    /// When there are several kinds: which of them is meant is not known.
    pub fn set_devices(&mut self, count: usize) -> Result<(), String> {
        match &mut self.kinds[..] {
            [kind] => {
                kind.count = count;
                Ok(())
            }
            kinds => Err(format!("the workload describes {} kinds of device: change their counts there", kinds.len())),
        }
    }

    /// For the planner. Without devices the fleet is unlimited, of the first kind.
    pub fn demand(&self, arrivals: ArrivalProcess) -> Demand {
        let id = |model: usize| ModelId(model as u32);
        let sessions = self.sessions.iter().map(|session| rota_sched::plan::Session {
            model: id(session.model),
            slo: session.slo,
            rate: session.rate,
            weight: session.weight,
        });
        let kinds = self.kinds.iter().map(|kind| DeviceKind {
            memory_bytes: kind.memory_bytes,
            models: kind.costs.iter().map(|(&model, cost)| (id(model), cost.clone())).collect(),
        });
        let fleet: Vec<usize> =
            self.kinds.iter().enumerate().flat_map(|(index, kind)| std::iter::repeat_n(index, kind.count)).collect();
        let fleet = if fleet.is_empty() { Fleet::Unlimited(0) } else { Fleet::Fixed(fleet) };
        Demand { sessions: sessions.collect(), kinds: kinds.collect(), fleet, arrivals }
    }

    /// The profile of a model on the kind of device with this index.
    pub fn profile(&self, kind: usize, model: usize) -> Option<&Profile> {
        self.kinds[kind].costs.get(&model).map(|cost| &cost.profile)
    }
}

#[cfg(test)]
mod tests;
