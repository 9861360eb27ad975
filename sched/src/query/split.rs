//! Which part of the SLO each stage gets.
//!
//! A request waits until its batch has gathered, then for a device, then for the execution. So a stage with rate R that is
//! given k for batches of b keeps W = k − (b − 1)/R − ℓ(b) for finding a device, and costs
//!
//!   c(k) = min over b of R·ℓ(b)/b + ω·e^(−W/ℓ(b)), W ≥ 0, in devices.
//!
//! The first term and the batches that are allowed are the planner's own notion of cost for evenly spaced arrivals
//! (`plan::bound`, where it is proved for any schedule): with ℓ(b) ≤ k alone a slow stage would be given time for batches
//! that never fill. The second is what the planner's pools weigh batches with: whoever has to start at once keeps devices
//! free. Without it the optimum has a batch that just fits everywhere, and plans of such splits take more devices
//! than plans of even ones.
//!
//! f(u, t) = min over k ≤ t of c(k) + Σ f(v, t − k) over the children v of u: siblings share what is left. `front.rs` says
//! how it is computed. Time that no stage needs is handed out in proportion to what they need.

use super::Query;
use super::front::{Front, Point};
use crate::Profile;
use crate::time::nanos;
use std::time::Duration;

/// How an SLO is split over a query's stages. Every way from the root to a leaf gets all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// So that the devices of all stages are fewest.
    Dp,
    /// Every stage of the longest way gets the same; on shorter ways more is left.
    Even,
    /// In proportion to ℓ(1).
    ByLatency,
}

/// Not even batches of one are in time. The caller's: the SLO has to be longer, or the models faster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("its SLO of {slo:?} is too short: batches of one take {least:?} from the first stage to the last")]
pub struct TooShort {
    pub slo: Duration,
    pub least: Duration,
}

/// By stage: its share of the SLO. `profiles` are by stage.
///
/// `Even` and `ByLatency` know nothing of what fits: a share may be shorter than ℓ(1).
///
/// # Errors
/// `Dp` only: when the SLO is shorter than batches of one take.
pub fn split(query: &Query, profiles: &[&Profile], method: Method) -> Result<Vec<Duration>, TooShort> {
    let weights = match method {
        Method::Dp => cheapest(query, profiles, Price::alone(WORTH))?.needs,
        Method::Even => vec![1; query.stages().len()],
        Method::ByLatency => profiles.iter().map(|profile| first(profile)).collect(),
    };
    Ok(stretched(query, &weights))
}

/// Devices that a query takes at least when each stage has its share: Σ R·min ℓ(b)/b; `None` when a share is shorter
/// than ℓ(1).
pub fn devices(query: &Query, profiles: &[&Profile], shares: &[Duration]) -> Option<f64> {
    let cost = |stage: usize| {
        let share = nanos(shares[stage]);
        Some(choices(profiles[stage], query.rates()[stage], Price::NONE, share).within(share)?.cost)
    };
    (0..shares.len()).map(cost).sum()
}

/// The cheapest way to divide the time.
#[derive(Clone, Debug)]
pub(super) struct Cheapest {
    /// By stage, nanoseconds: on no way more than the SLO.
    pub needs: Vec<u64>,
    /// Σ c, devices.
    pub cost: f64,
}

/// What it costs to leave a batch little time for finding a device.
#[derive(Clone, Copy, Debug)]
pub(super) struct Price {
    /// ω: of leaving it none, in devices.
    pub worth: f64,
    /// The time in which that falls to a third, nanoseconds; `None`: ℓ(b).
    pub scale: Option<f64>,
}

impl Price {
    /// Costs are a bound: whatever the split, the query takes no fewer devices.
    pub const NONE: Price = Price { worth: 0.0, scale: None };

    pub const fn alone(worth: f64) -> Price {
        Price { worth, scale: None }
    }
}

/// What the stages need when Σ c is least.
pub(super) fn cheapest(query: &Query, profiles: &[&Profile], price: Price) -> Result<Cheapest, TooShort> {
    let slo = nanos(query.slo());
    let mut fronts = vec![Front::default(); profiles.len()];
    for &stage in query.order().iter().rev() {
        let own = choices(profiles[stage], query.rates()[stage], price, slo);
        let behind: Vec<&Front> = query.children(stage).map(|child| &fronts[child]).collect();
        fronts[stage] = Front::before(&own, &Front::beside(&behind), slo);
    }
    let root = query.order()[0];
    let Some(best) = fronts[root].within(slo) else {
        let firsts: Vec<u64> = profiles.iter().map(|profile| first(profile)).collect();
        let least = Duration::from_nanos(query.longest(&firsts)[root]);
        return Err(TooShort { slo: query.slo(), least });
    };
    let mut needs = vec![0; profiles.len()];
    let mut left = vec![best.need; profiles.len()];
    for &stage in query.order() {
        let point = fronts[stage].within(left[stage]).expect("the parent left enough");
        needs[stage] = point.own;
        query.children(stage).for_each(|child| left[child] = point.need - point.own);
    }
    Ok(Cheapest { needs, cost: best.cost })
}

/// All of the SLO, in proportion to `weights` (above zero) along the longest way, by weight, of what is still to come.
///
/// Where a way's weights sum to no more than the SLO, no stage gets less than its weight.
pub(super) fn stretched(query: &Query, weights: &[u64]) -> Vec<Duration> {
    let longest = query.longest(weights);
    let mut left = vec![nanos(query.slo()); weights.len()];
    let mut shares = vec![Duration::ZERO; weights.len()];
    for &stage in query.order() {
        let part = u128::from(left[stage]) * u128::from(weights[stage]) / u128::from(longest[stage]);
        shares[stage] = Duration::from_nanos(part as u64);
        query.children(stage).for_each(|child| left[child] = left[stage] - part as u64);
    }
    shares
}

/// What a stage costs by the time that it is given. One that is never called takes nothing, but gets time for a batch of one.
fn choices(profile: &Profile, rate: f64, price: Price, limit: u64) -> Front {
    let waits = if price.worth > 0.0 { WAITS } else { 1 };
    let point = |batch: u32, wait: u32| {
        let latency = profile.nanos(batch).expect("batches of the profile") as f64;
        let gathers = if batch == 1 { 0.0 } else { f64::from(batch - 1) / rate * 1e9 };
        let wait = f64::from(wait) / WAITS_EACH;
        let need = (gathers + latency + wait * price.scale.unwrap_or(latency)).ceil() as u64;
        let cost = rate * latency / f64::from(batch) / 1e9 + price.worth * libm::exp(-wait);
        Point { need, cost, own: need }
    };
    let fitting = (1..=profile.max_batch()).take_while(|&batch| point(batch, 0).need <= limit);
    let points = fitting.flat_map(|batch| (0..waits).map(move |wait| point(batch, wait)));
    Front::new(points, profile.max_batch() as usize * waits as usize, limit)
}

fn first(profile: &Profile) -> u64 {
    profile.nanos(1).expect("every profile has a batch of one")
}

/// ω of [`Method::Dp`]: among those tried on random queries with the planner, the one whose plans took the fewest devices.
pub(super) const WORTH: f64 = 3.0;
/// W is tried from 0 in so many steps …
const WAITS: u32 = 33;
/// … of which so many make ℓ(b).
const WAITS_EACH: f64 = 4.0;
