//! Our planner.
//!
//! Sessions share whole devices in *pools* (`pool.rs`), or have slots of their own in *units* of devices with a common
//! period (`unit.rs`), which a constructive pass builds one after another (`construct.rs`) and a local search takes apart and
//! builds again (`search.rs`). Pools lose about one device each to chance, units a twentieth to rounding, and a unit keeps
//! each model on few devices. So everything in pools is tried first; when that leaves room for something better, or memory
//! divides it into many small pools, units are tried as well, with several borders between fast and slow sessions.

mod construct;
mod knapsack;
mod pool;
mod search;
mod timetables;
mod unit;

use super::load::Load;
use super::random::Random;
use super::{Steps, Timetable, bound};
use pool::{Pool, Trial};
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

/// What a pool is taken to save, as the part of its devices' time that is used: a session is in the pool when it takes
/// less time there than this part of its share.
const BORDERS: [f64; 6] = [0.6, 0.75, 0.9, 1.1, 1.4, 1.8];
/// Borders that the search starts from.
const SEARCHED: usize = 2;
/// Devices over the time bound from which on units are not tried beside pools.
const UNITS_GAIN: f64 = 1.05;

/// Timetables for all of `loads`, on as few devices as `budget` steps of search find.
pub(super) fn pack(loads: &[Load], kind: usize, memory: Option<u64>, budget: Steps) -> Vec<Timetable> {
    let mut builder = Builder::new(loads, memory);
    let work: f64 = loads.iter().map(bound::devices).sum();
    let mut best = pooled(&mut builder, loads, memory);
    if best.devices() > (work * UNITS_GAIN).ceil() as usize {
        let other = bordered(&mut builder, loads, memory, budget, best.devices());
        if let Some(other) = other.filter(|other| other.devices() < best.devices()) {
            best = other;
        }
    }
    timetables::timetables(loads, kind, &best)
}

/// All that may in pools.
fn pooled(builder: &mut Builder, loads: &[Load], memory: Option<u64>) -> Packing {
    let (sessions, mut alone): (Vec<usize>, Vec<usize>) =
        (0..loads.len()).partition(|&index| pool::may_join(&loads[index]));
    let mut pools = Vec::new();
    for members in pool::divide(loads, sessions, memory) {
        if members.len() == 1 {
            alone.extend(members);
        } else {
            pools.extend(Pool::sized(loads, members, usize::MAX, Trial::Thorough));
        }
    }
    Packing { units: construct::construct(builder, loads, alone, None), pools }
}

/// Slow sessions in pools, fast ones in units; `None` when that takes more than `devices_max`.
fn bordered(
    builder: &mut Builder,
    loads: &[Load],
    memory: Option<u64>,
    budget: Steps,
    devices_max: usize,
) -> Option<Packing> {
    let mut tried: Vec<Packing> = Vec::with_capacity(BORDERS.len());
    for border in BORDERS {
        let (slow, mut fast): (Vec<usize>, Vec<usize>) =
            (0..loads.len()).partition(|&index| pool::prefers(&loads[index], border) && pool::may_join(&loads[index]));
        let (groups, alone): (Vec<_>, Vec<_>) =
            pool::divide(loads, slow, memory).into_iter().partition(|group| group.len() > 1);
        fast.extend(alone.into_iter().flatten());
        let units = construct::construct(builder, loads, fast, None);
        let pools = groups.into_iter().map(|members| Pool::sized(loads, members, devices_max, Trial::Quick));
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
        packing.pools = pools
            .map(|pool| Pool::sized(loads, pool.members, usize::MAX, Trial::Thorough).expect("there is no limit"))
            .collect();
    }
    tried.into_iter().min_by_key(Packing::devices)
}
