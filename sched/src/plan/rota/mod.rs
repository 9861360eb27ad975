//! Our planner.
//!
//! Fast sessions get slots of their own, in *units* of devices with a common period (`unit.rs`), which a constructive pass
//! builds one after another (`construct.rs`) and a local search takes apart and builds again (`search.rs`). Slow sessions
//! share whole devices and what the units leave of their periods (`pool.rs`). Which sessions count as slow decides much,
//! so several borders are tried, and the best two are searched from.

mod construct;
mod knapsack;
mod pool;
mod search;
mod timetables;
mod unit;

use super::load::Load;
use super::random::Random;
use super::{Steps, Timetable};
use pool::{Pool, Trial};
use unit::{Builder, Unit};

/// Devices by what they do.
#[derive(Debug)]
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
/// less time there than this part of its share. Above one, since a pool loses nothing to rounding.
const BORDERS: [f64; 6] = [0.6, 0.75, 0.9, 1.1, 1.4, 1.8];
/// Borders that the search starts from.
const SEARCHED: usize = 2;

/// Timetables for all of `loads`, on as few devices as `budget` steps of search find.
pub(super) fn pack(loads: &[Load], kind: usize, memory: Option<u64>, budget: Steps) -> Vec<Timetable> {
    let mut builder = Builder::new(loads, memory);
    let mut tried: Vec<Packing> = Vec::with_capacity(BORDERS.len());
    for border in BORDERS {
        let (slow, mut fast): (Vec<usize>, Vec<usize>) =
            (0..loads.len()).partition(|&index| pool::prefers(&loads[index], border));
        let (groups, alone): (Vec<_>, Vec<_>) =
            pool::groups(loads, slow, memory).into_iter().partition(|group| group.len() > 1);
        fast.extend(alone.into_iter().flatten());
        let units = construct::construct(&mut builder, loads, fast, None);
        let pools = sized(loads, groups, &units, memory, Trial::Quick);
        tried.push(Packing { units, pools });
    }
    tried.sort_by_key(Packing::devices);
    tried.truncate(SEARCHED);
    let mut random = Random::new(loads.len() as u64);
    for packing in &mut tried {
        let steps = budget.0 / SEARCHED as u32;
        search::search(&mut builder, loads, &mut packing.units, steps, &mut random);
        let groups = std::mem::take(&mut packing.pools).into_iter().map(|pool| pool.members).collect();
        packing.pools = sized(loads, groups, &packing.units, memory, Trial::Thorough);
    }
    let best = tried.iter().min_by_key(|packing| packing.devices()).expect("several borders are tried");
    timetables::timetables(loads, kind, best)
}

/// A pool for each group. With limited memory what units leave is not theirs: their models are not on those devices.
fn sized(loads: &[Load], groups: Vec<Vec<usize>>, units: &[Unit], memory: Option<u64>, trial: Trial) -> Vec<Pool> {
    let units = if memory.is_none() { units } else { &[] };
    groups.into_iter().map(|members| Pool::sized(loads, members, units, trial)).collect()
}
