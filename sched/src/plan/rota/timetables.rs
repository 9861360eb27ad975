//! A packing as timetables.

use super::super::load::Load;
use super::super::{Share, Slot, Timetable};
use super::Packing;
use super::pool::{Pool, WHOLE};
use super::unit::Unit;
use std::time::Duration;

pub(super) fn timetables(loads: &[Load], kind: usize, packing: &Packing) -> Vec<Timetable> {
    let mut devices: Vec<Timetable> = Vec::with_capacity(packing.devices());
    let mut first_of_unit = Vec::with_capacity(packing.units.len());
    for unit in &packing.units {
        first_of_unit.push(devices.len());
        devices.extend(own(loads, kind, unit));
    }
    for pool in &packing.pools {
        let choices = pool.choices(loads);
        for hole in &pool.holes {
            let slot = shared(loads, pool, &choices, hole.offset, hole.length, hole.period);
            devices[first_of_unit[hole.unit] + hole.device].slots.push(slot);
        }
        devices.extend((0..pool.devices).map(|_| Timetable {
            kind,
            period: Duration::from_nanos(WHOLE),
            phase: Duration::ZERO,
            slots: vec![shared(loads, pool, &choices, 0, WHOLE, WHOLE)],
        }));
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
                shares: vec![Share { session: load.session, rate: load.rate * own.part }],
            });
            offset += execution;
        }
        let (period, phase) = (Duration::from_nanos(unit.period), Duration::from_nanos(device.phase));
        Timetable { kind, period, phase, slots }
    })
}

fn shared(loads: &[Load], pool: &Pool, choices: &[f64], offset: u64, length: u64, period: u64) -> Slot {
    let users = pool.users(loads, length);
    let choices = &choices[pool.members.len() - users.len()..];
    let part = length as f64 / period as f64;
    let share = |(&index, &choice): (&usize, &f64)| {
        let load = &loads[index];
        Share { session: load.session, rate: load.rate * part / choice }
    };
    Slot {
        offset: Duration::from_nanos(offset),
        batch: pool.batch(loads, length),
        execution: Duration::from_nanos(length),
        shares: users.iter().zip(choices).map(share).collect(),
    }
}
