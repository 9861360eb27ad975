//! Requests that wait: one queue per session and shape class, and all of them together.

use super::class::{Class, ClassIndex};
use super::expiry::Expiry;
use super::rate::Rate;
use crate::{Instant, Profile, RequestId, SessionId};
use std::collections::VecDeque;
use std::ops::{Index, IndexMut, Range};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct QueueIndex(pub u32);

/// A request that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    pub deadline: Instant,
    pub request: RequestId,
    pub items: u32,
}

/// Requests of one session and shape class, earliest deadline first.
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
    slo: u64,
    pub rate: Rate,
    /// By device: the batch size that its duty cycle aims at; 0 where it does not serve the class.
    targets: Vec<u32>,
    /// The longest latency of a target batch on any device, nanoseconds.
    longest: u64,
    /// When it last had a turn, or became non-empty after that.
    pub since: Instant,
    /// The turn in which it had nothing that the device could run.
    pub passed: u64,
    /// Place in [`Queues::busy`] while not empty.
    busy_at: usize,
}

/// What a batch would take: `waiting[first..first + count]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    pub first: usize,
    pub count: usize,
    /// Items of these requests.
    pub items: u32,
    /// Batch size by which the requests before `first` were judged and refused.
    pub size: u32,
}

impl Queue {
    fn new(session: SessionId, class: ClassIndex, slo: u64, now: Instant) -> Queue {
        Queue {
            waiting: VecDeque::with_capacity(CAPACITY_AT_FIRST),
            items: 0,
            largest: 0,
            session,
            class,
            slo,
            rate: Rate::new(now),
            targets: Vec::new(),
            longest: 0,
            since: now,
            passed: 0,
            busy_at: NOT_BUSY,
        }
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
    fn insert(&mut self, waiting: Waiting) -> usize {
        let place = self.find(waiting.deadline, waiting.request).unwrap_or_else(|place| place);
        self.waiting.insert(place, waiting);
        self.items += u64::from(waiting.items);
        place
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

    /// Chooses a batch for a device that can start at `start`: the early-drop window.
    ///
    /// Window size w: the target, or what waits if that is less. A head that would miss start + ℓ(w) is refused, to save
    /// the batch behind it, and w shrinks when too little is left. Since deadlines ascend and w only shrinks, nobody
    /// after the first who makes it is refused: the batch is a contiguous run.
    ///
    /// The batch grows past w while the earliest deadline in it holds and it ends by `others`. A request with more items
    /// than the device can take is passed over; where the window refuses everybody, the first who could run alone does.
    pub fn window(&self, profile: &Profile, device: usize, start: Instant, others: Instant) -> Option<Window> {
        let max_batch = u64::from(profile.max_batch());
        let ends = |items: u64| match profile.nanos(items as u32) {
            Some(latency) if items <= max_batch => start.0.saturating_add(latency),
            _ => u64::MAX,
        };
        let target = u64::from(self.targets[device]);
        let mut left = self.items;
        let mut size = 0;
        let windowed = self.waiting.iter().position(|head| {
            let items = u64::from(head.items);
            size = target.min(left).max(items).min(max_batch);
            left -= items;
            items <= max_batch && ends(size) <= head.deadline.0
        });
        let first = windowed.or_else(|| {
            let alone = self.waiting.iter().position(|head| ends(u64::from(head.items)) <= head.deadline.0)?;
            size = u64::from(self.waiting[alone].items);
            Some(alone)
        })?;
        let free = self.waiting[first].deadline.0.min(others.0);
        let (mut items, mut count) = (0, 0);
        for waiting in self.waiting.range(first..) {
            let grown = items + u64::from(waiting.items);
            if grown > max_batch || (grown > size && ends(grown) > free) {
                break;
            }
            (items, count) = (grown, count + 1);
        }
        Some(Window { first, count, items: items as u32, size: size as u32 })
    }

    /// The first moment at which a request that waits has become hopeless on every device that serves `class`.
    ///
    /// Looks only at requests that may be the first: one when all have as many items.
    fn hopeless_at(&self, class: &Class) -> Instant {
        let mut earliest = Instant::MAX;
        for waiting in &self.waiting {
            if class.hopeless_at(waiting.deadline, self.largest) >= earliest {
                break;
            }
            earliest = earliest.min(class.hopeless_at(waiting.deadline, waiting.items));
        }
        earliest
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

    pub fn target(&self, device: usize) -> u32 {
        self.targets[device]
    }

    pub fn targets(&self) -> &[u32] {
        &self.targets
    }
}

/// A queue that holds requests, with what a turn needs to know of most of them.
#[derive(Clone, Copy, Debug)]
pub struct Busy {
    pub queue: QueueIndex,
    /// No device's latest start for its head is before this.
    pub latest_start: Instant,
}

/// All queues, which of them hold requests, and when the next request becomes hopeless.
///
/// A queue's index is reused after it was freed. Index 0 is [`Queues::REFUSED`].
#[derive(Debug)]
pub struct Queues {
    slots: Vec<Queue>,
    free: Vec<QueueIndex>,
    /// Queues that hold requests and may have turns, in no meaningful order.
    busy: Vec<Busy>,
    /// Queues without a session or class any more; their requests are to be dropped.
    closed: Vec<QueueIndex>,
    pub expiry: Expiry,
}

impl Queues {
    /// Requests for a session or class that is not served wait here for the next step, which drops them.
    pub const REFUSED: QueueIndex = QueueIndex(0);

    pub fn new() -> Queues {
        let refused = Queue::new(SessionId(u32::MAX), ClassIndex(u32::MAX), 0, Instant(0));
        let mut expiry = Expiry::default();
        expiry.reserve(1);
        Queues { slots: vec![refused], free: Vec::new(), busy: Vec::new(), closed: Vec::new(), expiry }
    }

    pub fn open(&mut self, session: SessionId, class: ClassIndex, slo: u64, now: Instant) -> QueueIndex {
        let queue = Queue::new(session, class, slo, now);
        let index = self.free.pop().unwrap_or(QueueIndex(self.slots.len() as u32));
        if index.0 as usize == self.slots.len() {
            self.slots.push(queue);
        } else {
            self[index] = queue;
        }
        self.expiry.reserve(self.slots.len());
        let queues = self.slots.len();
        self.busy.reserve(queues - self.busy.len());
        index
    }

    /// Sets the batch sizes to aim at from the measured rate r: the largest b that a request survives which just missed
    /// a batch (2ℓ(b) ≤ SLO), unless the rate is too low to fill it in time; then the largest with b/r + ℓ(b) ≤ SLO, at
    /// least 1. While no rate is known it is taken to be high.
    pub fn aim(&mut self, index: QueueIndex, class: &Class, now: Instant) {
        let queue = &mut self[index];
        let rate = queue.rate.per_second(now);
        let profiles = class.served.iter().map(|served| served.as_ref().map(|served| &served.corrected));
        queue.targets.clear();
        queue.longest = 0;
        for profile in profiles {
            let target = profile.map_or(0, |profile| target(profile, queue.slo, rate));
            queue.targets.push(target);
            queue.longest = queue.longest.max(profile.and_then(|profile| profile.nanos(target)).unwrap_or(0));
        }
        self.rank(index);
    }

    /// No more turns: its requests leave by [`Queues::take_closed`].
    pub fn close(&mut self, index: QueueIndex) {
        self.rest(index);
        self.expiry.set(index, Instant::MAX);
        self.closed.push(index);
    }

    /// Empties one closed queue, or the one of refused requests, into `drop`; false when there was none.
    pub fn take_closed(&mut self, drop: impl FnMut(&Waiting)) -> bool {
        let index = self.closed.pop().unwrap_or(Queues::REFUSED);
        let queue = &mut self[index];
        let any = !queue.waiting.is_empty();
        queue.waiting.iter().for_each(drop);
        queue.waiting.clear();
        queue.items = 0;
        if index != Queues::REFUSED {
            self.free.push(index);
        }
        any || index != Queues::REFUSED
    }

    /// True when an interval of the rate's measurement ended.
    pub fn push(&mut self, index: QueueIndex, waiting: Waiting, class: &Class, now: Instant) -> bool {
        let busy = self.busy.len();
        let queue = &mut self[index];
        let place = queue.insert(waiting);
        let interval_ended = queue.rate.count(waiting.items, now);
        let hopeless_at = class.hopeless_at(waiting.deadline, waiting.items);
        if queue.busy_at == NOT_BUSY {
            (queue.largest, queue.since, queue.busy_at) = (waiting.items, now, busy);
            self.busy.push(Busy { queue: index, latest_start: Instant(0) });
            self.expiry.set(index, hopeless_at);
        } else {
            queue.largest = queue.largest.max(waiting.items);
            if hopeless_at < self.expiry.of(index) {
                self.expiry.set(index, hopeless_at);
            }
        }
        if interval_ended {
            self.aim(index, class, now);
        } else if place == 0 {
            self.rank(index);
        }
        interval_ended
    }

    /// Puts a request where the next step drops it: its session or class is not served.
    pub fn refuse(&mut self, waiting: Waiting) {
        self[Queues::REFUSED].insert(waiting);
    }

    /// Takes out a request that waits there.
    pub fn cancel(&mut self, index: QueueIndex, deadline: Instant, request: RequestId) {
        let queue = &mut self[index];
        let place = queue.find(deadline, request).expect("a place says waiting only while the queue holds the request");
        let removed = queue.waiting.remove(place).expect("found there");
        queue.items -= u64::from(removed.items);
        // The expiry may now be too early: the step at it finds nothing and sets it right.
        if queue.waiting.is_empty() {
            self.rest(index);
            self.expiry.set(index, Instant::MAX);
        }
        self.rank(index);
    }

    /// Removes the requests of `window`, and those before it that `keep` refuses.
    pub fn take(&mut self, index: QueueIndex, window: Window, class: &Class, keep: impl FnMut(&Waiting) -> bool) {
        self[index].remove(window.first..window.first + window.count, keep);
        self.settle(index, class);
    }

    /// Removes requests that are hopeless at `now`, into `drop`.
    pub fn take_hopeless(&mut self, index: QueueIndex, class: &Class, now: Instant, mut drop: impl FnMut(&Waiting)) {
        let queue = &mut self[index];
        let suspects = queue.waiting.partition_point(|w| class.hopeless_at(w.deadline, queue.largest) <= now);
        queue.remove(suspects..suspects, |waiting| {
            let keep = class.hopeless_at(waiting.deadline, waiting.items) > now;
            if !keep {
                drop(waiting);
            }
            keep
        });
        // Else one request that no device could take would go on making every scan a whole one.
        if class.least(queue.largest).is_none() {
            queue.largest = queue.waiting.iter().map(|waiting| waiting.items).max().unwrap_or(0);
        }
        self.settle(index, class);
    }

    /// Brings expiry and the busy list up to date after removals or a change of the class's latencies.
    pub fn settle(&mut self, index: QueueIndex, class: &Class) {
        let queue = &self[index];
        let hopeless_at = queue.hopeless_at(class);
        if queue.waiting.is_empty() {
            self.rest(index);
        }
        self.rank(index);
        self.expiry.set(index, hopeless_at);
    }

    /// Queues that hold requests and may have turns.
    pub fn busy(&self) -> &[Busy] {
        &self.busy
    }

    /// Brings its entry in the busy list up to date after its head or targets changed.
    fn rank(&mut self, index: QueueIndex) {
        let queue = &self.slots[index.0 as usize];
        if let (Some(busy), Some(head)) = (self.busy.get_mut(queue.busy_at), queue.head()) {
            busy.latest_start = Instant(head.deadline.0.saturating_sub(queue.longest));
        }
    }

    fn rest(&mut self, index: QueueIndex) {
        let place = std::mem::replace(&mut self[index].busy_at, NOT_BUSY);
        if place == NOT_BUSY {
            return;
        }
        self.busy.swap_remove(place);
        if let Some(&Busy { queue: moved, .. }) = self.busy.get(place) {
            self[moved].busy_at = place;
        }
    }
}

impl Index<QueueIndex> for Queues {
    type Output = Queue;
    fn index(&self, index: QueueIndex) -> &Queue {
        &self.slots[index.0 as usize]
    }
}

impl IndexMut<QueueIndex> for Queues {
    fn index_mut(&mut self, index: QueueIndex) -> &mut Queue {
        &mut self.slots[index.0 as usize]
    }
}

/// Batch size to aim at on a device with this profile; see [`Queues::aim`].
fn target(profile: &Profile, slo: u64, rate: Option<f64>) -> u32 {
    let saturated = profile.largest_within(std::time::Duration::from_nanos(slo / 2));
    let Some(rate) = rate else { return saturated.max(1) };
    let fills = |batch: u32| {
        let latency = profile.nanos(batch).expect("within the profile") as f64;
        f64::from(batch) * 1e9 / rate + latency <= slo as f64
    };
    // b/r + ℓ(b) ascends with b.
    let (mut fit, mut miss) = (0, saturated + 1);
    while miss - fit > 1 {
        let middle = fit + (miss - fit) / 2;
        if fills(middle) {
            fit = middle;
        } else {
            miss = middle;
        }
    }
    fit.max(1)
}

const CAPACITY_AT_FIRST: usize = 64;
const NOT_BUSY: usize = usize::MAX;

#[cfg(test)]
mod tests {
    use super::super::tests::{linear, ms};
    use super::*;
    use proptest::prelude::*;

    /// A queue on one device; a request is (deadline in ms, items).
    fn queue(requests: &[(u64, u32)], target: u32) -> Queue {
        let mut queue = Queue::new(SessionId(0), ClassIndex(0), 0, Instant(0));
        queue.targets = vec![target];
        for (id, &(deadline, items)) in requests.iter().enumerate() {
            let deadline = Instant(deadline * 1_000_000);
            queue.waiting.push_back(Waiting { deadline, request: RequestId(id as u32), items });
            queue.items += u64::from(items);
        }
        queue
    }

    #[test]
    fn early_drop_window() {
        struct Case {
            claim: &'static str,
            requests: &'static [(u64, u32)],
            target: u32,
            others: u64,
            window: Option<(usize, usize, u32)>,
        }
        // ℓ(b) = 10b + 10 ms, at most 8 items, start at 0.
        let cases = [
            Case { claim: "nothing waits", requests: &[], target: 4, others: 0, window: None },
            Case { claim: "all in time", requests: &[(50, 1); 4], target: 4, others: 0, window: Some((0, 4, 4)) },
            Case {
                claim: "a head that would miss the full batch is refused",
                requests: &[(49, 1), (50, 1), (50, 1), (50, 1), (50, 1)],
                target: 4,
                others: 0,
                window: Some((1, 4, 4)),
            },
            Case {
                claim: "the window shrinks with what is left, and with it whom it refuses",
                requests: &[(29, 1), (39, 1), (40, 1), (40, 1), (41, 1)],
                target: 4,
                others: 0,
                window: Some((2, 3, 3)),
            },
            Case {
                claim: "a short queue is its own window",
                requests: &[(30, 1), (90, 1)],
                target: 8,
                others: 0,
                window: Some((0, 2, 2)),
            },
            Case { claim: "all hopeless", requests: &[(5, 1), (19, 1)], target: 4, others: 99, window: None },
            Case {
                claim: "past the target while the earliest deadline and the others hold",
                requests: &[(70, 1); 8],
                target: 2,
                others: 60,
                window: Some((0, 5, 5)),
            },
            Case {
                claim: "past the target no further than the earliest deadline",
                requests: &[(45, 1), (90, 1), (90, 1), (90, 1)],
                target: 2,
                others: 1000,
                window: Some((0, 3, 3)),
            },
            Case {
                claim: "a request is not split: the batch ends before the one that does not fit",
                requests: &[(90, 3), (90, 3), (90, 3), (90, 1)],
                target: 8,
                others: 0,
                window: Some((0, 2, 6)),
            },
            Case {
                claim: "a request larger than the target sets the window itself",
                requests: &[(60, 5), (90, 1)],
                target: 2,
                others: 0,
                window: Some((0, 1, 5)),
            },
            Case {
                claim: "what the device cannot take is passed over",
                requests: &[(500, 9), (500, 1)],
                target: 4,
                others: 0,
                window: Some((1, 1, 1)),
            },
            Case {
                claim: "nobody is refused for the sake of what the device cannot take",
                requests: &[(20, 1), (500, 9)],
                target: 4,
                others: 0,
                window: Some((0, 1, 1)),
            },
        ];
        for case in cases {
            let window = queue(case.requests, case.target).window(
                &linear(10, 10, 8),
                0,
                Instant(0),
                Instant(case.others * 1_000_000),
            );
            assert_eq!(window.map(|w| (w.first, w.count, w.items)), case.window, "{}", case.claim);
        }
    }

    proptest! {
        /// The window as published: pop the head, refuse it or take it, shrink, recompute.
        #[test]
        fn the_window_is_the_published_one(
            mut deadlines in prop::collection::vec(0u64..200, 0..30),
            target in 1u32..=16,
        ) {
            deadlines.sort_unstable();
            let profile = linear(3, 7, 16);
            let requests: Vec<_> = deadlines.iter().map(|&deadline| (deadline, 1)).collect();
            let (mut refused, mut taken) = (0, 0);
            let mut size = (target as usize).min(requests.len());
            for (popped, &deadline) in deadlines.iter().enumerate() {
                if taken == size {
                    break;
                }
                if ms(deadline) < profile.latency(size as u32).expect("within the profile") {
                    refused += 1;
                } else {
                    taken += 1;
                }
                size = size.min(taken + deadlines.len() - popped - 1);
            }
            let window = queue(&requests, target).window(&profile, 0, Instant(0), Instant(0));
            let expected = (taken > 0).then_some((refused, taken));
            prop_assert_eq!(window.map(|window| (window.first, window.count)), expected);
        }
    }

    #[test]
    fn target_batches_of_the_published_example() {
        // Table 2 of the paper: batch sizes 4, 8, 16. Between them our profiles are linear, so that the residual
        // batches of B and C, 4 there, are 5.
        let profile = |latencies: [u64; 3]| {
            let points = [4, 8, 16].into_iter().zip(latencies.map(ms)).collect::<Vec<_>>();
            Profile::new(&points).expect("valid points")
        };
        let (a, b, c) = (profile([50, 75, 100]), profile([50, 90, 125]), profile([60, 95, 125]));
        let cases = [
            (&a, 200, None, 16),
            (&b, 250, None, 16),
            (&c, 250, None, 16),
            (&a, 200, Some(160.0), 16),
            (&a, 200, Some(64.0), 8),
            (&b, 250, Some(32.0), 5),
            (&c, 250, Some(32.0), 5),
            (&a, 200, Some(1.0), 1),
            (&a, 200, Some(0.0), 1),
            (&a, 20, None, 1),
        ];
        for (profile, slo, rate, batch) in cases {
            assert_eq!(target(profile, slo * 1_000_000, rate), batch, "SLO {slo} ms, rate {rate:?}");
        }
    }
}
