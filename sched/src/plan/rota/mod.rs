//! Our planner.

mod construct;
mod knapsack;
mod pool;
mod search;
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
        let whole: usize = self.pools.iter().map(|pool| pool.devices).sum();
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
    let mut builder = Builder::new(loads, memory);
    let mut best: Option<Packing> = None;
    for utilisation in [0.6, 0.75, 0.9] {
        let (slow, fast) = (0..loads.len()).partition(|&index| pool::prefers(&loads[index], utilisation));
        let mut units = construct::construct(&mut builder, loads, fast, None);
        let n0: usize = units.iter().map(|u| u.devices.len()).sum();
        let passes: usize = std::env::var("PASSES").ok().and_then(|v| v.parse().ok()).unwrap_or(0);
        let eta: f64 = std::env::var("ETA").ok().and_then(|v| v.parse().ok()).unwrap_or(0.3);
        builder.worth = loads.iter().map(|load| load.share).collect();
        let mut current = units.clone();
        let count = |units: &[Unit]| units.iter().map(|u| u.devices.len()).sum::<usize>();
        let mut trace = vec![n0];
        for _ in 0..passes {
            for u in &current {
                let w: f64 = u.sessions.iter().map(|&i| builder.worth[i]).sum();
                let f = (u.devices.len() as f64 / w).powf(eta);
                for &i in &u.sessions {
                    builder.worth[i] *= f;
                }
            }
            let fast: Vec<usize> = units.iter().flat_map(|u| u.sessions.iter().copied()).collect();
            current = construct::construct(&mut builder, loads, fast, None);
            trace.push(count(&current));
            if count(&current) < count(&units) {
                units = current.clone();
            }
        }
        if passes > 0 {
            println!("trace {trace:?}");
        }
        search::search(&mut builder, loads, &mut units, budget.0, &mut super::random::Random::new(1));
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
            if std::env::var("DBG").as_deref() == Ok("2") {
                let mut v: Vec<_> = packing.units.iter().collect();
                v.sort_by(|a, b| (b.devices.len() as f64 - b.share).total_cmp(&(a.devices.len() as f64 - a.share)));
                for u in v {
                    println!(
                        "  waste {:.3} devices {} period {:.1} idle {:?} sessions {:?}",
                        u.devices.len() as f64 - u.share,
                        u.devices.len(),
                        u.period as f64 / 1e6,
                        u.devices
                            .iter()
                            .map(|d| (100.0 * (1.0 - d.used as f64 / u.period as f64)) as i32)
                            .collect::<Vec<_>>(),
                        u.sessions
                            .iter()
                            .map(|&i| format!(
                                "{:.2}/R{:.0}/L{}/l1 {:.0}/l64 {:.0}",
                                loads[i].share,
                                loads[i].rate,
                                loads[i].slo / 1000000,
                                loads[i].latency(1) as f64 / 1e6,
                                loads[i].latency(64) as f64 / 1e6
                            ))
                            .collect::<Vec<_>>()
                    );
                }
            }
            println!(
                "util {utilisation}: units {n0} -> {n} share {sh:.2}; pool work {w:.2} devices {:?} holes {} ",
                packing.pools.iter().map(|p| p.devices).collect::<Vec<_>>(),
                packing.pools.iter().map(|p| p.holes.len()).sum::<usize>(),
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
