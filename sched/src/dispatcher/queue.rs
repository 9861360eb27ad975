//! Requests of one session and shape class that wait.

use super::aim::{AT_ONCE, Aim};
use super::class::{Class, ClassIndex};
use super::pool::{Pool, URGENT};
use super::rate::Rate;
use super::standing::Standing;
use super::window::{Judgement, Window};
use crate::{Instant, RequestId, SessionId};
use std::collections::VecDeque;
use std::ops::Range;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct QueueIndex(pub u32);

/// A request that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    pub deadline: Instant,
    pub request: RequestId,
    pub items: u32,
}

/// Requests of one session and shape class, earliest deadline first, and what decides about their turns.
///
/// A push searches in O(log n) and nearly always appends; a batch leaves from the front in O(batch); a cancelled request
/// is found in O(log n). The buffer doubles up to the longest queue seen and is kept: it is not sized for `requests_max`
/// at start, since any one queue may hold all requests and all together no more.
#[derive(Debug)]
pub struct Queue {
    /// Sorted by (deadline, request).
    waiting: VecDeque<Waiting>,
    /// Sum over `waiting`.
    items: u64,
    /// No request that waits has more items; exact only while all have as many.
    largest: u32,
    pub session: SessionId,
    pub class: ClassIndex,
    /// The session's SLO, nanoseconds.
    pub slo: u64,
    pub weight: f64,
    pub rate: Rate,
    /// Items per second by which it was aimed last; 0 while none is known.
    pub paced: f64,
    /// Items per second that the plan promised.
    pub promised: Option<f64>,
    pub aim: Aim,
    pub judgement: Judgement,
    pub standing: Standing,
    /// The turn in which it had nothing that the device could run.
    pub passed: u64,
    /// Index of its pool, and its slot there.
    pub pool: u32,
    pub slot: u32,
    /// Place among the pool's ready queues; [`NOT_READY`].
    pub ready: u32,
}

pub const NOT_READY: u32 = u32::MAX;
pub const NO_POOL: u32 = u32::MAX;

impl Queue {
    pub fn new(session: SessionId, class: ClassIndex, slo: u64, weight: f64, now: Instant) -> Queue {
        Queue {
            waiting: VecDeque::with_capacity(CAPACITY_AT_FIRST),
            items: 0,
            largest: 0,
            session,
            class,
            slo,
            weight,
            rate: Rate::new(now),
            paced: 0.0,
            promised: None,
            aim: AT_ONCE,
            judgement: Judgement::in_company(1),
            standing: Standing::new(),
            passed: 0,
            pool: NO_POOL,
            slot: 0,
            ready: NOT_READY,
        }
    }

    /// It may have turns: its class is served, its session is there.
    pub fn is_open(&self) -> bool {
        self.pool != NO_POOL
    }

    /// Where a request is, or would be put.
    fn find(&self, deadline: Instant, request: RequestId) -> Result<usize, usize> {
        match self.waiting.back() {
            Some(last) if (last.deadline, last.request) >= (deadline, request) => {
                self.waiting.binary_search_by_key(&(deadline, request), |w| (w.deadline, w.request))
            }
            _ => Err(self.waiting.len()),
        }
    }

    /// Where it was put.
    pub fn insert(&mut self, waiting: Waiting) -> usize {
        let place = self.find(waiting.deadline, waiting.request).unwrap_or_else(|place| place);
        self.largest = if self.waiting.is_empty() { waiting.items } else { self.largest.max(waiting.items) };
        self.waiting.insert(place, waiting);
        self.items += u64::from(waiting.items);
        place
    }

    /// Takes out a request that waits here.
    pub fn cancel(&mut self, deadline: Instant, request: RequestId) {
        let place = self.find(deadline, request).expect("a place says waiting only while the queue holds the request");
        let removed = self.waiting.remove(place).expect("found there");
        self.items -= u64::from(removed.items);
    }

    /// Removes those of the first `range.end` requests that `keep` refuses or that lie in `range`, in order.
    fn remove(&mut self, range: Range<usize>, mut keep: impl FnMut(&Waiting) -> bool) {
        let mut kept = 0;
        for index in 0..range.end {
            let waiting = self.waiting[index];
            if index < range.start && keep(&waiting) {
                self.waiting[kept] = waiting;
                kept += 1;
            } else {
                self.items -= u64::from(waiting.items);
            }
        }
        self.waiting.drain(kept..range.end);
    }

    /// Removes the requests of `window`, and those before it that `keep` refuses.
    pub fn take(&mut self, window: Window, keep: impl FnMut(&Waiting) -> bool) {
        self.remove(window.first..window.first + window.count, keep);
    }

    /// Removes requests that are hopeless at `now`, into `drop`.
    pub fn take_hopeless(&mut self, class: &Class, now: Instant, mut drop: impl FnMut(&Waiting)) {
        let suspects = self.waiting.partition_point(|w| class.hopeless_at(w.deadline, self.largest) <= now);
        self.remove(suspects..suspects, |waiting| {
            let keep = class.hopeless_at(waiting.deadline, waiting.items) > now;
            if !keep {
                drop(waiting);
            }
            keep
        });
        // Else one request that no device could take would go on making every scan a whole one.
        if class.least(self.largest).is_none() {
            self.largest = self.waiting.iter().map(|waiting| waiting.items).max().unwrap_or(0);
        }
    }

    /// Removes all, into `drop`.
    pub fn clear(&mut self, drop: impl FnMut(&Waiting)) {
        self.waiting.iter().for_each(drop);
        self.waiting.clear();
        self.items = 0;
    }

    /// The first moment at which a request that waits has become hopeless on every device that serves `class`.
    ///
    /// Looks only at requests that may be the first: one when all have as many items.
    pub fn hopeless_at(&self, class: &Class) -> Instant {
        let mut earliest = Instant::MAX;
        for waiting in &self.waiting {
            if class.hopeless_at(waiting.deadline, self.largest) >= earliest {
                break;
            }
            earliest = earliest.min(class.hopeless_at(waiting.deadline, waiting.items));
        }
        earliest
    }

    /// From when on it may have a turn on a device that is free: at once with a full batch, else when its oldest request
    /// has waited long enough, or its last moment comes. [`Instant::MAX`] when it is empty.
    ///
    /// In overload devices are never free: then those that are not cut are ready some turns of the pool before their last
    /// moment.
    pub fn ready_at(&self, class: &Class, pool: &Pool) -> Instant {
        let Some(head) = self.waiting.front() else { return Instant::MAX };
        if pool.at_once() || self.items >= u64::from(self.aim.batch) {
            return Instant(0);
        }
        let items = self.items as u32;
        let last = head.deadline.0.saturating_sub(class.typical(items));
        let turns = if pool.overload > 0.0 && !self.standing.is_cut() { pool.turns(TURNS) } else { 0 };
        let slack = self.aim.slack.max(turns);
        let deeper = head.deadline.0.saturating_sub(class.typical(items + 1).saturating_add(slack));
        let held = head.deadline.0.saturating_sub(self.slo).saturating_add(self.aim.hold);
        Instant(last.min(deeper).min(held))
    }

    /// Its place in the order of turns: the latest start of the batch that it aims at, or has, brought forward by its
    /// standing. One that is cut in overload yields to all that are urgent. Shifted by [`KEY_ZERO`], so that it can lie before the beginning of time.
    ///
    /// # Panics
    /// When it is empty.
    pub fn key(&self, class: &Class, pool: &Pool) -> Instant {
        let head = self.waiting.front().expect("only queues with requests have turns");
        let batch = self.items.min(u64::from(self.aim.batch)) as u32;
        let latest = head.deadline.0.saturating_add(KEY_ZERO).saturating_sub(class.typical(batch));
        let key = latest.saturating_add_signed(self.standing.advance(self.slo, pool.overload).saturating_neg());
        let yields = if self.standing.is_cut() { pool.turns(URGENT) } else { 0 };
        Instant(key.saturating_add(yields).min(u64::MAX - 1))
    }

    /// How much of the device's time a batch at `start` wastes, in tenths, against waiting until its last moment: in that
    /// time more would arrive, and a larger batch takes less for each. Nothing where the queue is cut: there its share decides.
    pub fn waste(&self, class: &Class, start: Instant) -> u32 {
        let Some(head) = self.waiting.front() else { return u32::MAX };
        if self.standing.is_cut() {
            return 0;
        }
        let max_batch = class.max_batch();
        let now = self.items.min(u64::from(max_batch)) as u32;
        let latency = class.typical(now);
        let waits = head.deadline.0.saturating_sub(start.0).saturating_sub(latency);
        let deepest = (f64::from(now) + waits as f64 * self.aim.growth).min(f64::from(max_batch)) as u32;
        let useful = (f64::from(now) * class.typical(deepest) as f64) / (f64::from(deepest) * latency as f64);
        ((1.0 - useful) * WASTE_STEPS).max(0.0) as u32
    }

    /// About when its oldest request arrived; the end of time when it is empty.
    pub fn oldest(&self) -> Instant {
        self.waiting.front().map_or(Instant::MAX, |head| Instant(head.deadline.0.saturating_sub(self.slo)))
    }

    pub fn head(&self) -> Option<&Waiting> {
        self.waiting.front()
    }

    /// The request that can wait longest.
    pub fn last(&self) -> Option<&Waiting> {
        self.waiting.back()
    }

    pub fn requests(&self) -> &VecDeque<Waiting> {
        &self.waiting
    }

    /// Items that wait.
    pub fn items(&self) -> u64 {
        self.items
    }

    pub fn largest(&self) -> u32 {
        self.largest
    }
}

/// What [`Queue::key`] is shifted by: more than any standing brings forward.
pub const KEY_ZERO: u64 = 1 << 45;
/// Devices that become free: time enough to find one.
const TURNS: f64 = 2.0;
const WASTE_STEPS: f64 = 10.0;
const CAPACITY_AT_FIRST: usize = 64;
