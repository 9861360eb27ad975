//! Devices with a common period that one constructive step fills together.
//!
//! A session takes part in one of four ways at a period d:
//! - *small*: one slot, whose batch closes d alone;
//! - *satellites*: k further devices with a slot each, and one slot here for the rest of the gap;
//! - *gang*: a slot of the same batch on each of m devices, d/m apart. What is left of each device is open to others;
//! - *joint*: on every device of a gang, at the same offset, so that its slots are d/m apart as well.
//!
//! Slots are appended behind each other, and a device's phase is chosen when it is created, for the session that it is
//! created for; a session that has slots on several devices either creates all but one of them or joins a gang on all. So
//! the devices of a unit form a tree, and no two sessions ever disagree on a phase.

use super::super::load::Load;
use super::knapsack::{ITEMS_MAX, Item, Knapsack};
use crate::ModelId;

#[derive(Clone, Debug)]
pub(super) struct Unit {
    pub period: u64,
    pub devices: Vec<Member>,
    /// Σ share of the sessions that it serves: what it would take if nothing were lost.
    pub share: f64,
    /// Indexes into the loads.
    pub sessions: Vec<usize>,
}

/// A device of a unit; times in nanoseconds.
#[derive(Clone, Debug, Default)]
pub(super) struct Member {
    pub phase: u64,
    /// One behind the other from the period's start on.
    pub turns: Vec<Own>,
    pub used: u64,
    models: Vec<ModelId>,
    bytes: u64,
}

/// A session's own slot.
#[derive(Clone, Copy, Debug)]
pub(super) struct Own {
    pub load: usize,
    pub batch: u32,
    /// The part of the session's rate that arrives in the gap which the slot closes.
    pub part: f64,
}

/// How a session can take part.
#[derive(Clone, Copy, Debug)]
pub(super) enum Way {
    Small { batch: u32 },
    Satellites { devices: u64, batch: u32, rest: u32 },
}

/// What a session would take at a period.
#[derive(Clone, Copy, Debug)]
pub(super) struct Offer {
    load: usize,
    way: Way,
    /// Of the device that is being filled.
    weight: u64,
    /// Share, less what it takes beyond that device.
    profit: f64,
    /// Profit per weight.
    density: f64,
}

/// How a unit's first session is placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seat {
    /// Small, or with satellites.
    Single,
    /// On this many devices.
    Gang(u64),
}

/// What a filled part of a period is taken to be worth when a session brings devices with room.
const ROOM_WORTH: f64 = 0.9;

/// Fills units; keeps what would otherwise be allocated for each.
pub(super) struct Builder<'a, 'b> {
    loads: &'b [Load<'a>],
    memory: Option<u64>,
    /// By load: what placing it is worth; near its share.
    pub worth: Vec<f64>,
    knapsack: Knapsack,
    offers: Vec<Offer>,
    candidates: Vec<Offer>,
    items: Vec<Item>,
    /// By load: placed in the unit that is being built.
    taken: Vec<bool>,
}

pub(super) fn way(load: &Load, period: u64) -> Option<Way> {
    if let Some(batch) = load.closing(period)
        && load.latency(batch) <= period
    {
        return Some(Way::Small { batch });
    }
    let widest = load.widest_within(period)?;
    let gap = load.gap(widest);
    if gap == 0 {
        return None;
    }
    let devices = period.div_ceil(gap) - 1;
    let rest = load.closing(period - devices * gap)?;
    // The rest's batch may close more than is asked of it: then the satellites can do with less.
    let batch = load.closing(period.saturating_sub(load.gap(rest)).div_ceil(devices.max(1)))?;
    (devices > 0 && load.latency(rest) <= period).then_some(Way::Satellites { devices, batch: batch.min(widest), rest })
}

impl<'a, 'b> Builder<'a, 'b> {
    pub(super) fn new(loads: &'b [Load<'a>], memory: Option<u64>) -> Builder<'a, 'b> {
        Builder {
            loads,
            memory,
            worth: loads.iter().map(|load| load.share).collect(),
            knapsack: Knapsack::default(),
            offers: Vec::new(),
            candidates: Vec::new(),
            items: Vec::new(),
            taken: vec![false; loads.len()],
        }
    }

    /// What each of the `free` loads would take at `period`; [`Builder::build`] chooses among these.
    pub(super) fn offer(&mut self, free: &[usize], period: u64) {
        self.offers.clear();
        for &index in free {
            let load = &self.loads[index];
            let Some(way) = way(load, period) else { continue };
            let (weight, beyond) = match way {
                Way::Small { batch } => (load.latency(batch), 0.0),
                Way::Satellites { devices, batch, rest } => {
                    let room = (period - load.latency(batch)) as f64 / period as f64;
                    (load.latency(rest), devices as f64 * (1.0 - ROOM_WORTH * room))
                }
            };
            let profit = self.worth[index] - beyond;
            if profit > 0.0 {
                self.offers.push(Offer { load: index, way, weight, profit, density: profit / weight as f64 });
            }
        }
    }

    /// A unit with `seed` in it, filled with what is offered; `None` when `seed` can't sit like that at this period.
    pub(super) fn build(&mut self, seed: usize, seat: Seat, period: u64) -> Option<Unit> {
        let mut unit = Unit { period, devices: Vec::new(), share: 0.0, sessions: Vec::new() };
        match seat {
            Seat::Single => {
                unit.devices.push(Member::default());
                let way = way(&self.loads[seed], period)?;
                self.place(&mut unit, 0, seed, way);
            }
            Seat::Gang(devices) => self.gang(&mut unit, seed, devices)?,
        }
        let mut filled = 0;
        while filled < unit.devices.len() {
            self.fill(&mut unit, filled);
            filled += 1;
        }
        for &index in &unit.sessions {
            self.taken[index] = false;
        }
        Some(unit)
    }

    fn gang(&mut self, unit: &mut Unit, seed: usize, devices: u64) -> Option<()> {
        let gap = unit.period.div_ceil(devices);
        let batch = self.loads[seed].closing(gap)?;
        if self.loads[seed].latency(batch) > unit.period {
            return None;
        }
        for position in 0..devices {
            // Multiplied before it is divided: neighbours are never more than `gap` apart.
            let phase = (u128::from(unit.period) * u128::from(position) / u128::from(devices)) as u64;
            unit.devices.push(Member { phase, ..Member::default() });
        }
        self.join(unit, seed, batch);
        if devices > 1 {
            self.fill_jointly(unit, gap);
        }
        Some(())
    }

    /// A slot on every device of a gang.
    fn join(&mut self, unit: &mut Unit, index: usize, batch: u32) {
        let part = 1.0 / unit.devices.len() as f64;
        for device in &mut unit.devices {
            device.push(Own { load: index, batch, part }, &self.loads[index]);
        }
        self.note(unit, index);
    }

    /// Sessions that are too fast for a slot every period, onto all devices of a gang.
    fn fill_jointly(&mut self, unit: &mut Unit, gap: u64) {
        let room = unit.period - unit.devices[0].used;
        let devices = unit.devices.len() as f64;
        let mut joint = Vec::new();
        self.items.clear();
        for offer in &self.offers {
            let load = &self.loads[offer.load];
            if self.taken[offer.load] || matches!(offer.way, Way::Small { .. }) {
                continue;
            }
            let Some(batch) = load.closing(gap).filter(|&batch| load.latency(batch) <= room) else { continue };
            if !unit.devices[0].holds(load, self.memory) {
                continue;
            }
            let weight = load.latency(batch);
            let profit = self.worth[offer.load] - 0.97 * devices * weight as f64 / unit.period as f64;
            if profit > -0.03 && joint.len() < ITEMS_MAX {
                self.items.push(Item { weight, profit: profit + 0.03 + 0.1 * self.worth[offer.load] });
                joint.push((offer.load, batch));
            }
        }
        let set = self.knapsack.choose(&self.items, room);
        for (position, &(index, batch)) in joint.iter().enumerate() {
            if set >> position & 1 == 1 && unit.devices[0].holds(&self.loads[index], self.memory) {
                self.join(unit, index, batch);
            }
        }
    }

    /// Fills what is left of a device with the offers that are worth most together.
    fn fill(&mut self, unit: &mut Unit, at: usize) {
        let room = unit.period - unit.devices[at].used;
        self.candidates.clear();
        let (taken, device, loads, memory) = (&self.taken, &unit.devices[at], self.loads, self.memory);
        self.candidates.extend(
            self.offers
                .iter()
                .filter(|offer| offer.weight <= room && !taken[offer.load] && device.holds(&loads[offer.load], memory)),
        );
        let densest = |a: &Offer, b: &Offer| b.density.total_cmp(&a.density).then(a.load.cmp(&b.load));
        if self.candidates.len() > ITEMS_MAX {
            self.candidates.select_nth_unstable_by(ITEMS_MAX - 1, densest);
            self.candidates.truncate(ITEMS_MAX);
        }
        self.candidates.sort_unstable_by(densest);
        self.items.clear();
        self.items.extend(self.candidates.iter().map(|offer| Item { weight: offer.weight, profit: offer.profit }));
        let set = self.knapsack.choose(&self.items, room);
        for position in 0..self.candidates.len() {
            let Offer { load, way, .. } = self.candidates[position];
            // The knapsack knows no memory: what no longer fits stays free.
            if set >> position & 1 == 1 && unit.devices[at].holds(&self.loads[load], self.memory) {
                self.place(unit, at, load, way);
            }
        }
    }

    /// Onto device `at`, with whatever further devices it takes.
    fn place(&mut self, unit: &mut Unit, at: usize, index: usize, way: Way) {
        let load = &self.loads[index];
        match way {
            Way::Small { batch } => unit.devices[at].push(Own { load: index, batch, part: 1.0 }, load),
            Way::Satellites { devices, batch, rest } => {
                let period = unit.period;
                let start = unit.devices[at].phase + unit.devices[at].used;
                // The rest closes all that it can; the satellites share what remains evenly.
                let closed = load.gap(rest).min(period);
                let remains = u128::from(period - closed);
                for position in 0..devices {
                    let after = (remains * u128::from(position + 1) / u128::from(devices)) as u64;
                    let mut device = Member { phase: (start + after) % period, ..Member::default() };
                    let part = remains as f64 / devices as f64 / period as f64;
                    device.push(Own { load: index, batch, part }, load);
                    unit.devices.push(device);
                }
                let part = closed as f64 / period as f64;
                unit.devices[at].push(Own { load: index, batch: rest, part }, load);
            }
        }
        self.note(unit, index);
    }

    fn note(&mut self, unit: &mut Unit, index: usize) {
        unit.share += self.loads[index].share;
        unit.sessions.push(index);
        self.taken[index] = true;
    }
}

impl Member {
    fn push(&mut self, own: Own, load: &Load) {
        self.turns.push(own);
        self.used += load.latency(own.batch);
        if !self.models.contains(&load.model) {
            self.models.push(load.model);
            self.bytes = self.bytes.saturating_add(load.memory);
        }
    }

    fn holds(&self, load: &Load, memory: Option<u64>) -> bool {
        memory
            .is_none_or(|memory| self.bytes.saturating_add(load.memory) <= memory || self.models.contains(&load.model))
    }
}
