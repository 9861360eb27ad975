//! A packing as timetables.

use super::super::load::Load;
use super::super::{Share, Slot, Timetable};
use super::Packing;
use super::pool::Pool;
use super::unit::Unit;
use std::time::Duration;

/// The period of a pool's device. Its one slot is as long, so it never ends, and the period means nothing.
const POOL_PERIOD: Duration = Duration::from_secs(1);

pub(super) fn timetables(loads: &[Load], kind: usize, packing: &Packing) -> Vec<Timetable> {
    let mut devices: Vec<Timetable> = Vec::with_capacity(packing.devices());
    devices.extend(packing.units.iter().flat_map(|unit| own(loads, kind, unit)));
    for pool in &packing.pools {
        devices.extend(std::iter::repeat_n(shared(loads, kind, pool), pool.devices));
    }
    devices
}

fn own<'u>(loads: &'u [Load], kind: usize, unit: &'u Unit) -> impl Iterator<Item = Timetable> + 'u {
    unit.devices.iter().map(move |device| {
        let mut offset = 0;
        let mut slots = Vec::with_capacity(device.turns.len());
        for own in &device.turns {
            let load = &loads[own.load];
            let execution = load.latency(own.batch);
            slots.push(Slot {
                offset: Duration::from_nanos(offset),
                batch: own.batch,
                execution: Duration::from_nanos(execution),
                shares: vec![Share { session: load.session, rate: load.rate * own.part, batch: own.batch }],
            });
            offset += execution;
        }
        let (period, phase) = (Duration::from_nanos(unit.period), Duration::from_nanos(device.phase));
        Timetable { kind, period, phase, slots }
    })
}

pub(super) fn shared(loads: &[Load], kind: usize, pool: &Pool) -> Timetable {
    let share = |(&index, &batch): (&usize, &u32)| {
        let load = &loads[index];
        Share { session: load.session, rate: load.rate / pool.devices as f64, batch }
    };
    let mut shares: Vec<Share> = pool.members.iter().zip(&pool.batches).map(share).collect();
    shares.sort_by_key(|share| share.session);
    let batch = shares.iter().map(|share| share.batch).max().expect("a pool has members");
    let slots = vec![Slot { offset: Duration::ZERO, batch, execution: POOL_PERIOD, shares }];
    Timetable { kind, period: POOL_PERIOD, phase: Duration::ZERO, slots }
}
