//! Local search: units that idle are taken apart together with some like them, and built again in another order.

use super::super::load::Load;
use super::super::random::Random;
use super::construct::construct;
use super::unit::{Builder, Unit};

/// Units that are taken apart at once, at most.
const APART_MAX: usize = 7;
/// Devices that are taken apart at once, at most: a step costs about the same on every input.
const DEVICES_APART: usize = 24;

/// Rebuilds parts of `units` for `steps` steps; never ends with more devices.
pub(super) fn search(builder: &mut Builder, loads: &[Load], units: &mut Vec<Unit>, steps: u32, random: &mut Random) {
    for _ in 0..steps {
        if units.len() < 2 {
            return;
        }
        let apart = choose(units, random);
        let free: Vec<usize> = apart.iter().flat_map(|&index| units[index].sessions.iter().copied()).collect();
        let before = Worth::of(apart.iter().map(|&index| &units[index]));
        let rebuilt = construct(builder, loads, free, Some(random));
        if Worth::of(rebuilt.iter()) >= before {
            for index in apart {
                units.swap_remove(index);
            }
            units.extend(rebuilt);
        }
    }
}

/// What is better about a set of units, first things first.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
struct Worth {
    fewer: std::cmp::Reverse<usize>,
    /// Idleness in few units is worth more than spread over many: the next step may do without one of them.
    gathered: f64,
}

impl Worth {
    fn of<'u>(units: impl Iterator<Item = &'u Unit>) -> Worth {
        let (mut devices, mut gathered) = (0, 0.0);
        for unit in units {
            devices += unit.devices.len();
            gathered += idle(unit) * idle(unit) / unit.devices.len() as f64;
        }
        Worth { fewer: std::cmp::Reverse(devices), gathered }
    }
}

fn idle(unit: &Unit) -> f64 {
    unit.devices.len() as f64 - unit.share
}

/// A unit that idles, and others that idle or have about its period; indexes, falling.
fn choose(units: &[Unit], random: &mut Random) -> Vec<usize> {
    let anchor =
        (0..4).map(|_| random.below(units.len())).reduce(|a, b| if idle(&units[b]) > idle(&units[a]) { b } else { a });
    let anchor = anchor.expect("four are drawn");
    let about = libm::log(units[anchor].period as f64);
    let like = random.unit() < 0.7;
    let mut ranked: Vec<(f64, usize)> = (0..units.len())
        .filter(|&index| index != anchor)
        .map(|index| {
            let apart = (libm::log(units[index].period as f64) - about).abs();
            let rank = if like { apart } else { -idle(&units[index]) };
            (rank * random.unit(), index)
        })
        .collect();
    ranked.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    let wanted = 1 + random.below(APART_MAX);
    let mut devices = units[anchor].devices.len();
    let mut apart = vec![anchor];
    for (_, index) in ranked.into_iter().take(wanted) {
        devices += units[index].devices.len();
        if devices > DEVICES_APART {
            break;
        }
        apart.push(index);
    }
    apart.sort_unstable_by(|a, b| b.cmp(a));
    apart
}
