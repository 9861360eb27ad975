//! One pass that builds unit after unit, each around the largest session that is left.

use super::super::load::Load;
use super::super::random::Random;
use super::unit::{Builder, Seat, Unit};

/// Periods that are tried around a session.
const PERIODS_MAX: usize = 14;

/// Units that serve all of `free`. With `random`, the order and the choices are perturbed.
pub(super) fn construct(
    builder: &mut Builder,
    loads: &[Load],
    mut free: Vec<usize>,
    mut random: Option<&mut Random>,
) -> Vec<Unit> {
    let mut units = Vec::new();
    let mut order: Vec<(f64, usize)> = free
        .iter()
        .map(|&index| {
            let factor = random.as_deref_mut().map_or(1.0, |random| 0.6 + 0.8 * random.unit());
            (loads[index].share * factor, index)
        })
        .collect();
    order.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let mut placed = vec![false; loads.len()];
    for (_, seed) in order {
        if placed[seed] {
            continue;
        }
        let unit = best_unit(builder, loads, &free, seed, random.as_deref_mut());
        for &index in &unit.sessions {
            placed[index] = true;
        }
        free.retain(|&index| !placed[index]);
        units.push(unit);
    }
    units
}

/// The unit around `seed` that wastes least.
fn best_unit(
    builder: &mut Builder,
    loads: &[Load],
    free: &[usize],
    seed: usize,
    mut random: Option<&mut Random>,
) -> Unit {
    let mut best: Option<(f64, Unit)> = None;
    let mut seats = seats(&loads[seed]);
    if let Some(random) = random.as_deref_mut() {
        seats.retain(|_| random.unit() < 0.7);
        if !free.is_empty() {
            for at in 0..seats.len() {
                let (period, seat) = seats[at];
                let other = &loads[free[random.below(free.len())]];
                if let Some(snapped) = other.gap_within(period).filter(|&snapped| snapped * 10 >= period * 8) {
                    seats.push((snapped, seat));
                }
            }
        }
    }
    // Whatever is left out above: as many devices as it takes to repeat the widest gap for as long as its batch runs.
    let (gap, latency) = (loads[seed].gap(loads[seed].widest()), loads[seed].latency(loads[seed].widest()));
    let devices = latency.div_ceil(gap).max(1);
    seats.push((devices * gap, if devices == 1 { Seat::Single } else { Seat::Gang(devices) }));
    seats.sort_unstable_by_key(|&(period, seat)| (period, matches!(seat, Seat::Gang(_)) as u64));
    seats.dedup();
    let mut offered = 0;
    for (period, seat) in seats {
        if period != offered {
            builder.offer(free, period);
            offered = period;
        }
        let Some(unit) = builder.build(seed, seat, period) else { continue };
        let worth: f64 = unit.sessions.iter().map(|&index| builder.worth[index]).sum();
        let lost = (unit.devices.len() as f64 - worth) / unit.devices.len() as f64;
        let noise = random.as_deref_mut().map_or(0.0, |random| 0.02 * random.unit());
        if best.as_ref().is_none_or(|(least, _)| lost + noise < *least) {
            best = Some((lost + noise, unit));
        }
    }
    best.expect("devices that repeat the widest gap serve the session alone").1
}

/// Periods, and ways to sit at each, at which the session itself wastes little.
fn seats(load: &Load) -> Vec<(u64, Seat)> {
    let mut found: Vec<(f64, u64, Seat)> = Vec::new();
    let most = load.share.ceil() as u64 + 2;
    for batch in 1..=load.widest() {
        let (gap, latency) = (load.gap(batch), load.latency(batch));
        let lost = |devices: f64, period: u64| devices * latency as f64 / period as f64 - load.share;
        let needed = latency.div_ceil(gap.max(1)).max(1);
        for devices in needed..=most.max(needed) {
            let seat = if devices == 1 { Seat::Single } else { Seat::Gang(devices) };
            let period = devices * gap;
            found.push((lost(devices as f64, period), period, seat));
        }
        // Whole devices of this batch, and the rest elsewhere.
        if gap < latency {
            let whole = load.latency(batch);
            found.push((lost(whole as f64 / gap as f64, whole), whole, Seat::Single));
        }
    }
    found.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    found.truncate(PERIODS_MAX);
    found.into_iter().map(|(_, period, seat)| (period, seat)).collect()
}
