//! Our planner.
//!
//! Sessions share whole devices in *pools* (`pool.rs`), or have slots of their own in *units* of devices with a common
//! period (`unit.rs`), which a constructive pass builds one after another (`construct.rs`) and a local search takes apart and
//! builds again (`search.rs`). Pools lose about one device each to chance, units a twentieth to rounding, and a unit keeps
//! each model on few devices. So everything in pools is tried first; when that leaves room for something better, or memory
//! divides it into many small pools, units are tried as well, with several borders between fast and slow sessions.

mod construct;
mod knapsack;
mod mend;
mod pool;
mod search;
mod timetables;
mod trial;
mod unit;

use super::load::Load;
use super::play::Arrivals;
use super::random::Random;
use super::{Steps, Timetable, bound};
pub(super) use mend::{Mended, mend};
use pool::Pool;
use trial::{Length, Trial};
use unit::{Builder, Unit};

/// Devices by what they do.
#[derive(Debug, Default)]
struct Packing {
    units: Vec<Unit>,
    pools: Vec<Pool>,
}

impl Packing {
    fn devices(&self) -> usize {
        let whole: usize = self.pools.iter().map(|pool| pool.devices).sum();
        whole + self.units.iter().map(|unit| unit.devices.len()).sum::<usize>()
    }
}

/// A session is in a pool when it takes less there than its share times this.
const BORDERS: [f64; 5] = [0.85, 0.95, 1.0, 1.05, 1.15];
/// Borders that the search starts from.
const SEARCHED: usize = 2;
/// Devices over the time bound up to which a plan of pools that hold under any arrivals is not bettered.
const ENOUGH: f64 = 1.05;

/// Devices over the time bound up to which a plan of pools is not bettered by units.
const ENOUGH_POOLED: f64 = 1.09;

/// Timetables for all of `loads`, on as few devices as `budget` steps of search find; `None` when that is more than
/// `devices_max`.
///
/// For evenly spaced arrivals it prefers pools that hold under Poisson arrivals as well, as long as they cost no more
/// than [`ENOUGH`]: sessions with no time for larger batches need headroom for Poisson arrivals that even ones do not.
pub(super) fn pack(
    loads: &[Load],
    kind: usize,
    memory: Option<u64>,
    budget: Steps,
    devices_max: usize,
) -> Option<Vec<Timetable>> {
    let mut builder = Builder::new(loads, memory);
    let work: f64 = loads.iter().map(bound::devices).sum();
    let trial = Trial::of(loads, Length::Thorough);
    let mut best = pooled(&mut builder, loads, memory, Trial { by_chance: Arrivals::Poisson, ..trial }, devices_max);
    let over = |best: &Option<Packing>, enough: f64| {
        best.as_ref().is_none_or(|best| best.devices() > (work * enough).ceil() as usize)
    };
    if trial.by_chance != Arrivals::Poisson && over(&best, ENOUGH) {
        let most = best.as_ref().map_or(devices_max, Packing::devices);
        let pools = pooled(&mut builder, loads, memory, trial, most);
        best = best.into_iter().chain(pools).min_by_key(Packing::devices);
    }
    if over(&best, ENOUGH_POOLED) {
        let most = best.as_ref().map_or(devices_max, Packing::devices);
        let units = bordered(&mut builder, loads, memory, budget, most);
        best = best.into_iter().chain(units).min_by_key(Packing::devices);
    }
    best.filter(|best| best.devices() <= devices_max).map(|best| timetables::timetables(loads, kind, &best))
}

/// All that may in pools; `None` when one of them takes more than `devices_max`.
fn pooled(
    builder: &mut Builder,
    loads: &[Load],
    memory: Option<u64>,
    trial: Trial,
    devices_max: usize,
) -> Option<Packing> {
    let (sessions, mut alone): (Vec<usize>, Vec<usize>) =
        (0..loads.len()).partition(|&index| pool::may_join(&loads[index]));
    let mut pools = Vec::new();
    for members in pool::divide(loads, sessions, memory) {
        if members.len() == 1 {
            alone.extend(members);
        } else {
            pools.push(Pool::sized(loads, members, devices_max, trial)?);
        }
    }
    Some(Packing { units: construct::construct(builder, loads, alone, None), pools })
}

/// Slow sessions in pools, fast ones in units; `None` when that takes more than `devices_max`.
fn bordered(
    builder: &mut Builder,
    loads: &[Load],
    memory: Option<u64>,
    budget: Steps,
    devices_max: usize,
) -> Option<Packing> {
    let pools: Vec<f64> = loads.iter().map(pool::devices).collect();
    let (quick, sure) = (Trial::of(loads, Length::Quick), Trial::of(loads, Length::Thorough));
    let mut tried: Vec<Packing> = Vec::with_capacity(BORDERS.len());
    for border in BORDERS {
        let (slow, mut fast): (Vec<usize>, Vec<usize>) = (0..loads.len())
            .partition(|&index| pool::may_join(&loads[index]) && pools[index] < border * loads[index].share);
        let (groups, alone): (Vec<_>, Vec<_>) =
            pool::divide(loads, slow, memory).into_iter().partition(|group| group.len() > 1);
        fast.extend(alone.into_iter().flatten());
        let units = construct::construct(builder, loads, fast, None);
        let built: usize = units.iter().map(|unit| unit.devices.len()).sum();
        let room = devices_max.saturating_sub(built);
        let pools = groups.into_iter().map(|members| Pool::sized(loads, members, room, quick));
        if let Some(pools) = pools.collect() {
            tried.push(Packing { units, pools });
        }
    }
    tried.sort_by_key(Packing::devices);
    tried.truncate(SEARCHED);
    let mut random = Random::new(loads.len() as u64);
    for packing in &mut tried {
        let steps = budget.0 / SEARCHED as u32;
        search::search(builder, loads, &mut packing.units, steps, &mut random);
        let pools = std::mem::take(&mut packing.pools).into_iter();
        packing.pools =
            pools.map(|pool| Pool::sized(loads, pool.members, usize::MAX, sure).expect("there is no limit")).collect();
    }
    tried.into_iter().min_by_key(Packing::devices)
}
