//! Which of a queue's requests make a batch.
//!
//! While few are lost, as many as possible are served: heads are refused only for a batch that is worth them. Where misses
//! go on anyway, whoever is refused is only one of many, and the batch with the most throughput is taken.

use super::queue::Queue;
use crate::{Instant, Profile};

/// What a batch would take: `waiting[first..first + count]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    pub first: usize,
    pub count: usize,
    /// Items of these requests.
    pub items: u32,
}

/// By what a queue's heads are judged.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Judgement {
    /// Items of the batch that a head must survive not to be refused for it.
    target: u32,
    /// Of the throughput of the batch that refuses heads: one that spares them and has less is not taken.
    worth: f64,
}

impl Judgement {
    /// Of a queue that shares its devices: `target` is the batch that it aims at.
    pub fn in_company(target: u32) -> Judgement {
        Judgement { target, worth: WORTH }
    }

    /// Of a queue that has a device for itself: the largest b with ℓ(b) + min(ℓ(b), b/`rate`) ≤ SLO, so that a request which
    /// just misses one batch is in time with the next. A smaller batch leaves more behind, whose heads are then too old for a
    /// larger one: refusing some now ends that.
    ///
    /// `latencies`: ℓ(b) in nanoseconds at b - 1. `rate`: items per second.
    pub fn alone(latencies: &[u64], slo: u64, rate: f64) -> Judgement {
        let keeps_up = |index: &usize| {
            let latency = latencies[*index] as f64;
            latency + latency.min((index + 1) as f64 * 1e9 / rate) <= slo as f64
        };
        Judgement { target: partition_point(latencies.len(), keeps_up).max(1) as u32, worth: WORTH }
    }

    /// Of a queue that has several devices for itself: `target` is the batch that it aims at. Since they take turns, a head that
    /// is spared delays those behind it.
    pub fn alone_on_several(target: u32) -> Judgement {
        Judgement { target, worth: 1.0 }
    }
}

/// A queue's requests as a device that can start at `start` sees them.
struct View<'a> {
    queue: &'a Queue,
    profile: &'a Profile,
    start: Instant,
    /// Items of every request, if all have as many.
    even: Option<u64>,
}

/// Chooses a batch for a device that can start at `start`; `None` when it can serve nobody in time.
///
/// Deadlines ascend, and every batch is a contiguous run that all its deadlines survive: it may be as large as its first
/// deadline allows. A request with more items than the device takes is passed over.
///
/// The early-drop window of the published system (pop the head; refuse it if it would miss a batch of `target`, or of what
/// is left; take it otherwise) is taken when it refuses nobody, and instead of a batch that spares heads and has less than
/// [`Judgement::worth`] of its throughput.
pub fn window(queue: &Queue, profile: &Profile, judgement: Judgement, start: Instant, loses: bool) -> Option<Window> {
    let (requests, largest) = (queue.requests().len() as u64, u64::from(queue.largest()));
    let even = (requests * largest == queue.items()).then_some(largest);
    let view = View { queue, profile, start, even };
    let throughput = |window: &Window| match profile.nanos(window.items) {
        Some(latency) => f64::from(window.items) / latency as f64,
        None => 0.0,
    };
    if loses {
        return view.densest();
    }
    let published = view.published(judgement.target);
    if let Some(Window { first: 0, .. }) = published {
        return published;
    }
    let all = view.queue.requests();
    let head = all.iter().position(|head| start.0.saturating_add(view.latency(head.items)) <= head.deadline.0)?;
    let spared = view.from(head);
    if let Some(published) = published.filter(|published| throughput(&spared) < judgement.worth * throughput(published))
    {
        return Some(published);
    }
    let mut refused = 0.0;
    let (mut best, mut most) = (spared, f64::from(spared.items));
    for first in head + 1..all.len().min(head + LOOK) {
        refused += f64::from(all[first - 1].items);
        let window = view.from(first);
        let value = f64::from(window.items) - HEAD * refused;
        if value > most {
            (best, most) = (window, value);
        }
    }
    Some(best)
}

impl View<'_> {
    /// ℓ, nanoseconds; never for more items than the device takes.
    fn latency(&self, items: u32) -> u64 {
        self.profile.nanos(items).unwrap_or(u64::MAX)
    }

    /// The largest batch whose oldest request is `first`; without items when the device cannot serve that in time.
    fn from(&self, first: usize) -> Window {
        let all = self.queue.requests();
        let budget = all[first].deadline.since(self.start);
        let room = u64::from(self.profile.largest_within(budget));
        if let Some(each) = self.even {
            let count = (room / each.max(1)).min((all.len() - first) as u64);
            return Window { first, count: count as usize, items: (count * each) as u32 };
        }
        let (mut count, mut items) = (0, 0);
        for waiting in all.range(first..) {
            let grown = items + u64::from(waiting.items);
            if grown > room {
                break;
            }
            (count, items) = (count + 1, grown);
        }
        Window { first, count, items: items as u32 }
    }

    /// The published window, grown as far as its first deadline allows.
    fn published(&self, target: u32) -> Option<Window> {
        let (target, max_batch) = (u64::from(target), u64::from(self.profile.max_batch()));
        let mut left = self.queue.items();
        let first = self.queue.requests().iter().position(|head| {
            let items = u64::from(head.items);
            let size = target.min(left).max(items).min(max_batch);
            left -= items;
            items <= max_batch && self.start.0.saturating_add(self.latency(size as u32)) <= head.deadline.0
        })?;
        Some(self.from(first))
    }

    /// The batch with the most items, the oldest of several: where misses go on, only throughput counts.
    fn densest(&self) -> Option<Window> {
        let all = self.queue.requests();
        let best = if self.even.is_some() {
            // What deadlines allow ascends, what waits behind descends: the most is where they cross.
            let short = |first: &usize| self.from(*first).count < all.len() - first;
            let cross = partition_point(all.len(), short);
            let most = [cross.checked_sub(1), (cross < all.len()).then_some(cross)];
            let most = most.into_iter().flatten().map(|first| self.from(first).items).max()?;
            self.from(partition_point(all.len() - 1, |first| self.from(*first).items < most && *first < cross))
        } else {
            let stride = 1 + all.len() / CANDIDATES;
            let candidates = (0..all.len()).step_by(stride).map(|first| self.from(first));
            candidates.reduce(|best, window| if window.items > best.items { window } else { best })?
        };
        (best.count > 0).then_some(best)
    }
}

/// The first of 0..=len for which `holds` is false; it must be true before and false after.
fn partition_point(len: usize, holds: impl Fn(&usize) -> bool) -> usize {
    let (mut low, mut high) = (0, len);
    while low < high {
        let middle = low + (high - low) / 2;
        if holds(&middle) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    low
}

/// What a batch that spares heads has to have, as a share of the other's throughput.
const WORTH: f64 = 0.7;
/// How many heads from the first that could be served may be refused for a larger batch.
const LOOK: usize = 64;
/// Items by which a batch has to be larger for each item refused.
const HEAD: f64 = 0.03;
/// Of uneven requests so many starts are tried.
const CANDIDATES: usize = 256;
