//! Our planner.

mod construct;
mod knapsack;
mod pool;
mod timetables;
mod unit;

use super::load::Load;
use super::{Steps, Timetable, Unplaced, nexus};
use pool::Pool;
use unit::{Builder, Unit};

/// Devices by what they do.
struct Packing {
    units: Vec<Unit>,
    pools: Vec<Pool>,
}

impl Packing {
    fn devices(&self) -> usize {
        let whole: usize = self.pools.iter().map(|pool| pool.devices.len()).sum();
        whole + self.units.iter().map(|unit| unit.devices.len()).sum::<usize>()
    }
}

pub(super) fn pack(
    loads: &[Load],
    kind: usize,
    memory: Option<u64>,
    budget: Steps,
    unplaced: &mut Vec<Unplaced>,
) -> Vec<Timetable> {
    let _ = budget;
    let mut builder = Builder::new(loads, memory);
    let mut best: Option<Packing> = None;
    for utilisation in [0.6, 0.75, 0.9] {
        let (slow, fast) = (0..loads.len()).partition(|&index| pool::prefers(&loads[index], utilisation));
        let units = construct::construct(&mut builder, loads, fast, None);
        let pools = pool::pools(loads, slow, &units, memory);
        let packing = Packing { units, pools };
        if std::env::var("DBG").is_ok() {
            let w: f64 = packing
                .pools
                .iter()
                .flat_map(|p| &p.members)
                .map(|&i| loads[i].rate * loads[i].latency(1) as f64 / 1e9)
                .sum();
            let sh: f64 = packing.units.iter().map(|u| u.share).sum();
            let n: usize = packing.units.iter().map(|u| u.devices.len()).sum();
            println!(
                "util {utilisation}: units {n} share {sh:.2}; pool work {w:.2} devices {:?} holes {} bands {:?}",
                packing.pools.iter().map(|p| p.devices.len()).collect::<Vec<_>>(),
                packing.pools.iter().map(|p| p.holes.len()).sum::<usize>(),
                packing
                    .pools
                    .iter()
                    .map(|p| p.devices.iter().map(|t| t.length / 1000000).collect::<Vec<_>>())
                    .collect::<Vec<_>>()
            );
        }
        if best.as_ref().is_none_or(|best| packing.devices() < best.devices()) {
            best = Some(packing);
        }
    }
    let best = best.expect("at least one utilisation is tried");
    let ours = timetables::timetables(loads, kind, &best);
    let mut refused = Vec::new();
    let greedy = nexus::pack(loads, kind, memory, &mut refused);
    if refused.is_empty() && greedy.len() <= ours.len() {
        greedy
    } else {
        let _ = unplaced;
        ours
    }
}
