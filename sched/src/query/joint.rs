//! Splits chosen together with what the planner packs.
//!
//! What a stage costs depends on what it is packed with: a pool of many devices is rarely busy when a batch is ready,
//! so its sessions may have batches that just fit; on few devices whoever has no time to wait needs one of its own. No sum over
//! stages knows that; the planner does, so it is asked. The search begins with the plan of the split that was made alone
//! and only ever takes one with fewer devices, or as many and less work for them.

use super::split::{self, Method, Price};
use super::{Query, Stage};
use crate::Profile;
use crate::plan::{self, ArrivalProcess, Demand, Fleet, Plan, PlanError, Planner, Session, Steps, bound};
use std::time::Duration;

/// How queries' SLOs are split.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// Before anything is packed.
    Alone(Method),
    /// Together with the packing: never more devices than with [`Method::Dp`] alone.
    Joint(Tries),
}

/// Plans that a joint search makes at most: the same number gives the same split on every host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tries(pub u32);

/// Queries split and packed.
#[derive(Clone, Debug, PartialEq)]
pub struct Planned {
    /// What was planned: the sessions that were asked for, then a session for each stage of each query, in order, with its share
    /// as SLO.
    pub demand: Demand,
    /// By query and stage.
    pub shares: Vec<Vec<Duration>>,
    pub plan: Plan,
}

/// Timetables for the sessions of `demand` and the stages of `queries`, whose models are those of `demand`'s kinds.
///
/// Profiles are those of the fleet's first kind. A query that no split can serve is split in proportion to ℓ(1), one with a
/// model that has no profile evenly: the plan names the stages that have no place, and why.
///
/// # Errors
/// As [`plan::plan`].
pub fn plan(
    demand: &Demand,
    queries: &[Query],
    split: Split,
    planner: Planner,
    budget: Steps,
) -> Result<Planned, PlanError> {
    let asked = Asked { demand, queries, profiles: profiles(demand, queries), planner, budget };
    match split {
        Split::Alone(method) => asked.packed(asked.alone(method)),
        Split::Joint(tries) => asked.search(tries),
    }
}

/// By query and stage: its share of the SLO, before anything is packed. See [`plan()`] for what `demand` is and what is done where
/// no split can serve a query.
pub fn shares(demand: &Demand, queries: &[Query], method: Method) -> Vec<Vec<Duration>> {
    alone(queries, &profiles(demand, queries), method)
}

struct Asked<'a> {
    demand: &'a Demand,
    queries: &'a [Query],
    /// By query, and then by stage; `None` where a model has none.
    profiles: Vec<Option<Vec<&'a Profile>>>,
    planner: Planner,
    budget: Steps,
}

/// By query and stage.
type Shares = Vec<Vec<Duration>>;

fn profiles<'a>(demand: &'a Demand, queries: &[Query]) -> Vec<Option<Vec<&'a Profile>>> {
    let kind = match &demand.fleet {
        Fleet::Unlimited(kind) => Some(*kind),
        Fleet::Fixed(kinds) => kinds.first().copied(),
    };
    let models = kind.and_then(|kind| demand.kinds.get(kind)).map(|kind| &kind.models);
    let of = |stage: &Stage| Some(&models?.get(&stage.model)?.profile);
    queries.iter().map(|query| query.stages().iter().map(of).collect()).collect()
}

fn alone(queries: &[Query], profiles: &[Option<Vec<&Profile>>], method: Method) -> Shares {
    let of = |(query, profiles): (&Query, &Option<Vec<&Profile>>)| {
        let Some(profiles) = profiles else {
            return split::stretched(query, &vec![1; query.stages().len()]);
        };
        let by_latency = || split::split(query, profiles, Method::ByLatency).expect("it takes any SLO");
        split::split(query, profiles, method).unwrap_or_else(|_| by_latency())
    };
    queries.iter().zip(profiles).map(of).collect()
}

impl Asked<'_> {
    fn alone(&self, method: Method) -> Shares {
        alone(self.queries, &self.profiles, method)
    }

    /// As [`Method::Dp`] at another price; a query that cannot be split so keeps `otherwise`.
    fn at(&self, price: Price, otherwise: &Shares) -> Shares {
        let of = |((query, profiles), otherwise): ((&Query, &Option<Vec<&Profile>>), &Vec<Duration>)| {
            let cheapest = profiles.as_ref().and_then(|profiles| split::cheapest(query, profiles, price).ok());
            cheapest.map_or_else(|| otherwise.clone(), |cheapest| split::stretched(query, &cheapest.needs))
        };
        self.queries.iter().zip(&self.profiles).zip(otherwise).map(of).collect()
    }

    fn packed(&self, shares: Shares) -> Result<Planned, PlanError> {
        let mut demand = self.demand.clone();
        for (query, shares) in self.queries.iter().zip(&shares) {
            for ((stage, &rate), &slo) in query.stages().iter().zip(query.rates()).zip(shares) {
                demand.sessions.push(Session { model: stage.model, slo, rate, weight: 1.0 });
            }
        }
        let plan = plan::plan(&demand, self.planner, self.budget)?;
        Ok(Planned { demand, shares, plan })
    }

    /// First every query by the same rule, by several rules; then, query by query, what other rules gave it.
    fn search(&self, tries: Tries) -> Result<Planned, PlanError> {
        let first = self.alone(Method::Dp);
        let packed = self.packed(first.clone())?;
        let mean = freed_each(&packed);
        let pooled = POOLED.map(|(worth, times)| Price { worth, scale: Some(times * mean) });
        let mut rules: Vec<Shares> =
            pooled.into_iter().chain(WORTHS.map(Price::alone)).map(|p| self.at(p, &first)).collect();
        rules.extend([self.alone(Method::Even), self.alone(Method::ByLatency)]);
        let mut search = Search::new(self, packed, tries);
        for shares in &rules {
            search.consider(shares.clone());
        }
        let mut changed = true;
        while changed && !search.is_over() {
            changed = false;
            for query in 0..self.queries.len() {
                for shares in &rules {
                    let mut next = search.best.shares.clone();
                    next[query].clone_from(&shares[query]);
                    changed |= search.consider(next);
                }
            }
        }
        Ok(search.best)
    }

    /// Devices that no split needs fewer than.
    fn least(&self) -> usize {
        // Requests that come by chance may fill a batch at once: the bound below is for those that do not.
        if self.demand.arrivals != ArrivalProcess::Even {
            return 0;
        }
        let cost = |(query, profiles): (&Query, &Option<Vec<&Profile>>)| {
            profiles
                .as_ref()
                .and_then(|profiles| split::cheapest(query, profiles, Price::NONE).ok())
                .map_or(0.0, |best| best.cost)
        };
        let stages: f64 = self.queries.iter().zip(&self.profiles).map(cost).sum();
        (bound::fluid(self.demand) + stages - 1e-9).ceil() as usize
    }
}

/// The best plan so far, and which splits were tried.
struct Search<'a> {
    asked: &'a Asked<'a>,
    best: Planned,
    worth: Worth,
    tried: Vec<Shares>,
    tries: Tries,
    least: usize,
}

/// What makes a plan better, in this order: more of the demand placed, fewer devices, less work for them.
type Worth = (f64, usize, f64);

impl<'a> Search<'a> {
    fn new(asked: &'a Asked<'a>, first: Planned, tries: Tries) -> Search<'a> {
        let (tried, least) = (vec![first.shares.clone()], asked.least());
        Search { asked, worth: worth(&first), best: first, tried, tries, least }
    }

    fn is_over(&self) -> bool {
        self.tried.len() as u64 > u64::from(self.tries.0) || (self.worth.0 == 0.0 && self.worth.1 <= self.least)
    }

    /// Plans with `shares`, unless that was done or the search is over; true when that is the best now.
    fn consider(&mut self, shares: Shares) -> bool {
        if self.is_over() || self.tried.contains(&shares) {
            return false;
        }
        self.tried.push(shares.clone());
        // A split of which one stage alone would take thousands of devices is none.
        let Ok(next) = self.asked.packed(shares) else { return false };
        let its = worth(&next);
        let better = its < self.worth;
        if better {
            (self.best, self.worth) = (next, its);
        }
        better
    }
}

/// How often a device of the plan becomes free: the mean time of a batch over the devices, nanoseconds.
fn freed_each(planned: &Planned) -> f64 {
    let (mut busy, mut started) = (0.0, 0.0);
    for slot in planned.plan.devices.iter().flat_map(|device| &device.slots) {
        for share in &slot.shares {
            let session = &planned.demand.sessions[share.session];
            let cost = planned.demand.kinds.iter().find_map(|kind| kind.models.get(&session.model));
            let latency = cost.and_then(|cost| cost.profile.latency(share.batch)).unwrap_or(slot.execution);
            let batches = share.rate / f64::from(share.batch);
            (busy, started) = (busy + batches * latency.as_nanos() as f64, started + batches);
        }
    }
    let devices = planned.plan.devices.len().max(1) as f64;
    if started > 0.0 { busy / started / devices } else { 1.0 }
}

fn worth(planned: &Planned) -> Worth {
    let missing: f64 = planned.plan.unplaced.iter().map(|unplaced| unplaced.rate).sum();
    let used = planned.plan.devices.iter().filter(|device| !device.slots.is_empty()).count();
    (missing, used, bound::fluid(&planned.demand))
}

/// Prices of splits that are tried for all queries: ω, and the time in which it falls in times of how often a device becomes
/// free in the plan that the search begins with. The planner weighs the batches of a pool by the second of these.
const POOLED: [(f64, f64); 6] = [(0.1, 2.0), (0.3, 2.0), (1.0, 2.0), (0.1, 4.0), (0.3, 4.0), (0.3, 8.0)];
/// ω of further ones, whose time is ℓ(b) as for [`Method::Dp`].
const WORTHS: [f64; 4] = [10.0, 1.0, 0.3, 0.1];
