//! Devices that share work: who is ready there, and what waiting costs.

use super::aim::{Aim, Price};
use super::earliest::Earliest;
use super::queue::QueueIndex;
use crate::Instant;

/// Devices that are joined by classes that they serve, and the queues of these classes.
#[derive(Debug)]
pub struct Pool {
    pub devices: u32,
    /// A queue's slot is its place here.
    pub members: Vec<QueueIndex>,
    /// Of its devices, how many have nothing to execute.
    pub idle: u32,
    /// By slot: when a queue that holds requests becomes ready, while it is not.
    pub readiness: Earliest,
    /// By slot: the turn's key of queues that are ready.
    keys: Earliest,
    /// In no meaningful order.
    ready: Vec<QueueIndex>,
    /// While devices are not easily enough.
    pub price: Price,
    /// Devices are easily enough: nobody has to wait for others.
    light: bool,
    /// Devices are enough for turns in the order of arrival, without a view to what they waste.
    pub easy: bool,
    /// Factor by which the price moves, and whether it rose last.
    step: f64,
    rose: bool,
    /// Devices that its queues keep busy, or would.
    demand: f64,
    /// Nanoseconds between two devices' becoming free, in the mean.
    gap: f64,
    /// The share of the pool's demand that it cannot serve.
    pub overload: f64,
    /// What its devices serve, of what the bound says that they can. Learnt in overload.
    pub reach: f64,
}

/// What the queues of a pool ask for, all together.
#[derive(Clone, Copy, Debug, Default)]
pub struct Demand {
    /// Devices kept busy.
    pub devices: f64,
    /// The same, with batches deeper where others share the devices: those that wait for their turn grow.
    pub deepened: f64,
    /// Devices that would be kept busy with batches of one.
    pub alone: f64,
    /// Devices kept busy at least.
    pub least: f64,
    /// Batches per nanosecond.
    pub batches: f64,
}

impl Demand {
    pub fn of<'a>(aims: impl Iterator<Item = &'a Aim> + Clone, pool: u32) -> Demand {
        let deepens = (DEEPENS / f64::from(pool).sqrt()).min(DEEPENS_MOST);
        let devices = aims.clone().map(|aim| aim.devices).sum::<f64>();
        let others = |aim: &Aim| 1.0 - aim.devices / devices.max(f64::MIN_POSITIVE);
        Demand {
            devices,
            deepened: aims.clone().map(|aim| aim.devices / (1.0 + deepens * others(aim))).sum(),
            alone: aims.clone().map(|aim| aim.alone).sum(),
            least: aims.clone().map(|aim| aim.least).sum(),
            batches: aims.map(|aim| aim.batches).sum(),
        }
    }
}

impl Pool {
    pub fn new(devices: u32) -> Pool {
        let (mut keys, mut readiness) = (Earliest::default(), Earliest::default());
        keys.reserve(1);
        readiness.reserve(1);
        let price = Price { of_waiting: PRICE_MOST, scale: SCALE_AT_FIRST };
        Pool {
            devices,
            members: Vec::new(),
            idle: 0,
            readiness,
            keys,
            ready: Vec::new(),
            price,
            light: true,
            easy: false,
            step: STEP_MOST,
            rose: true,
            gap: 0.0,
            demand: 0.0,
            overload: 0.0,
            reach: REACH_MOST,
        }
    }

    /// Takes over what another pool, of about the same queues, learnt.
    pub fn learn(&mut self, from: &Pool) {
        (self.price, self.step, self.rose) = (from.price, from.step, from.rose);
        (self.light, self.easy) = (from.light, from.easy);
        (self.gap, self.demand, self.overload, self.reach) = (from.gap, from.demand, from.overload, from.reach);
    }

    pub fn add(&mut self, queue: QueueIndex) -> u32 {
        self.members.push(queue);
        self.keys.reserve(self.members.len());
        self.readiness.reserve(self.members.len());
        self.ready.reserve(self.members.len() - self.ready.len());
        self.members.len() as u32 - 1
    }

    /// Forgets a queue that is not ready and does not wait to be. Returns the one that has its slot now, if any.
    pub fn remove(&mut self, slot: u32) -> Option<QueueIndex> {
        let (slot, last) = (slot as usize, self.members.len() - 1);
        for moments in [&mut self.keys, &mut self.readiness] {
            let moment = moments.of(last);
            moments.set(last, Instant::MAX);
            if slot < last {
                moments.set(slot, moment);
            }
        }
        self.members.swap_remove(slot);
        self.members.get(slot).copied()
    }

    /// The ready queue whose turn comes first, and its key.
    pub fn first(&self) -> Option<(Instant, QueueIndex)> {
        let slot = self.keys.first()?;
        Some((self.keys.of(slot), self.members[slot]))
    }

    pub fn key(&self, slot: u32) -> Instant {
        self.keys.of(slot as usize)
    }

    pub fn ready(&self) -> &[QueueIndex] {
        &self.ready
    }

    /// Sets a ready queue's key.
    pub fn rank(&mut self, slot: u32, key: Instant) {
        self.keys.set(slot as usize, key);
    }

    /// Its place in [`Pool::ready`].
    pub fn enter(&mut self, slot: u32) -> u32 {
        self.ready.push(self.members[slot as usize]);
        self.ready.len() as u32 - 1
    }

    /// Returns the queue that has `place` now, if any.
    pub fn leave(&mut self, slot: u32, place: u32) -> Option<QueueIndex> {
        self.keys.set(slot as usize, Instant::MAX);
        self.ready.swap_remove(place as usize);
        self.ready.get(place as usize).copied()
    }

    /// Nanoseconds until so many devices have become free, in the mean.
    pub fn turns(&self, devices: f64) -> u64 {
        (devices * self.gap) as u64
    }

    /// What waiting costs now.
    pub fn price(&self) -> Price {
        Price { of_waiting: if self.light { f64::INFINITY } else { self.price.of_waiting }, ..self.price }
    }

    /// Whatever waits is ready: devices are easily enough, and too few to keep any of them idle.
    pub fn at_once(&self) -> bool {
        self.easy && self.devices < RESERVE_EASY
    }

    /// So many of its idle devices wait for nothing: with more than some idle, whoever waits for others waits in vain.
    pub fn spare(&self) -> u32 {
        let kept = if self.easy { self.devices / RESERVE_EASY } else { (self.devices / RESERVE).max(1) };
        self.idle.saturating_sub(kept)
    }

    /// Whether a queue that keeps so many devices busy is alone on them, or nearly.
    pub fn is_mostly(&self, devices: f64) -> bool {
        devices >= ALONE * self.demand
    }

    /// How many devices' time may be planned away: the rest is for chance.
    pub fn capacity(&self) -> f64 {
        f64::from(self.devices) * if self.devices == 1 { CAPACITY_OF_ONE } else { CAPACITY }
    }

    /// Moves the price towards the one at which demand just meets capacity.
    pub fn adapt(&mut self, demand: Demand) {
        let rises = demand.deepened <= self.capacity();
        let scale = if rises == self.rose { STEP_GROWS } else { STEP_SHRINKS };
        self.step = (1.0 + (self.step - 1.0) * scale).clamp(STEP_LEAST, STEP_MOST);
        self.rose = rises;
        let price = self.price.of_waiting * if rises { self.step } else { 1.0 / self.step };
        self.price.of_waiting = price.clamp(PRICE_LEAST, PRICE_MOST);
        self.time(demand);
    }

    /// Takes over by which share those who are cut fell short of what they were entitled to; `None` when nobody is cut.
    pub fn calibrate(&mut self, shortfall: Option<f64>) {
        let towards = match shortfall {
            Some(shortfall) => self.reach - CALIBRATION * shortfall.clamp(-1.0, 1.0),
            None => self.reach + CALIBRATION * (REACH_MOST - self.reach),
        };
        self.reach = towards.clamp(REACH_LEAST, REACH_MOST);
    }

    /// Takes over how long devices take, and whether they are easily enough.
    pub fn time(&mut self, demand: Demand) {
        let devices = f64::from(self.devices);
        self.demand = demand.devices;
        self.light = demand.alone <= devices * LIGHT;
        // Of queues whose rates nobody knows yet nothing is easy.
        self.easy = demand.least > 0.0 && demand.least <= devices * EASY;
        if demand.batches > 0.0 {
            self.gap = demand.devices / demand.batches / f64::from(self.devices);
            self.price.scale = (SCALE * self.gap).max(1.0);
        }
    }
}

/// The time of `capacity` devices that each of several demands gets: max-min fair by weight. Each is (devices, weight), and
/// gets the lesser of its devices and the returned share times its weight; infinity when all get what they ask.
pub fn fair_share(demands: impl Iterator<Item = (f64, f64)> + Clone, capacity: f64) -> f64 {
    let asked: f64 = demands.clone().map(|(devices, _)| devices).sum();
    if asked <= capacity {
        return f64::INFINITY;
    }
    // From below: with a share, those it satisfies leave the rest to the others; at most once for each who is satisfied.
    let mut share = 0.0;
    for _ in 0..ROUNDS {
        let (mut left, mut weights) = (capacity, 0.0);
        for (devices, weight) in demands.clone() {
            if devices <= share * weight {
                left -= devices;
            } else {
                weights += weight;
            }
        }
        let next = if weights > 0.0 { left.max(0.0) / weights } else { share };
        if next <= share * (1.0 + 1e-9) {
            break;
        }
        share = next;
    }
    share
}

/// A queue is urgent when no more devices than these become free before its key.
pub const URGENT: f64 = 5.0;
/// How much deeper batches get in company than planned, when nobody else waits: the more devices become free, the less; on
/// one or a few at most so much.
const DEEPENS: f64 = 2.0;
const DEEPENS_MOST: f64 = 0.7;
/// One in so many devices, and one at least, may be idle while requests wait for others.
const RESERVE: u32 = 4;
/// The same where devices are enough, and none if there are few.
const RESERVE_EASY: u32 = 16;
/// Of several devices, and of one alone: what may be planned away.
const CAPACITY: f64 = 0.8;
const CAPACITY_OF_ONE: f64 = 1.2;
/// Of a pool's demand.
const ALONE: f64 = 0.9;
const STEP_MOST: f64 = 4.0;
const STEP_LEAST: f64 = 1.02;
const STEP_GROWS: f64 = 1.5;
const STEP_SHRINKS: f64 = 0.33;
const PRICE_LEAST: f64 = 1e-6;
const PRICE_MOST: f64 = 1e6;
/// Per round.
const CALIBRATION: f64 = 0.05;
/// The bound is of sessions that do not share batches, each with its best; late binding and deadlines longer than that
/// supposes serve a little more, chance and company mostly less.
const REACH_MOST: f64 = 1.15;
const REACH_LEAST: f64 = 0.5;
/// Of devices kept busy by batches of one: with no more, nobody waits for others.
const LIGHT: f64 = 0.8;
/// Of devices kept busy by the best batches.
const EASY: f64 = 0.5;
/// Gaps between devices' becoming free that a wait is likely to last.
const SCALE: f64 = 8.0;
/// Nanoseconds.
const SCALE_AT_FIRST: f64 = 1e7;
const ROUNDS: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_max_min_fair() {
        type Case<'a> = (&'a [(f64, f64)], f64, f64);
        let cases: [Case<'_>; 4] = [
            (&[(1.0, 1.0), (2.0, 1.0)], 3.0, f64::INFINITY),
            (&[(1.0, 1.0), (5.0, 1.0), (5.0, 1.0)], 5.0, 2.0),
            (&[(5.0, 1.0), (5.0, 3.0)], 4.0, 1.0),
            (&[(1.0, 1.0), (2.0, 1.0), (9.0, 2.0)], 9.0, 3.0),
        ];
        for (demands, capacity, share) in cases {
            assert_eq!(fair_share(demands.iter().copied(), capacity), share, "{demands:?}");
        }
    }

    #[test]
    fn the_price_settles_where_demand_meets_capacity() {
        let mut pool = Pool::new(10);
        // Demand rises with the price: larger slack, smaller batches.
        for _ in 0..100 {
            let devices = 7.0 + pool.price.of_waiting.log2();
            pool.adapt(Demand { devices, deepened: devices, alone: 100.0, least: devices, batches: 1e-7 });
        }
        let settled = pool.price.of_waiting;
        assert!((1.6..2.5).contains(&settled), "{settled}");
    }
}
