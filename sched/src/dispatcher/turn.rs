//! A device's turn: which queue, and which of its requests.
//!
//! Which queue: the one with the smallest latest start, D - ℓ(b): the deadline of its head less the time that its batch
//! would take. If that batch would make others miss theirs, then among all that cannot wait so long the one whose last
//! turn is longest ago: in overload every queue is always at its last moment, and the latest start alone would give
//! every turn to the session with the shortest SLO.
//!
//! Which requests: [`super::queue::Queue::window`]. A batch may grow past its target while that makes no other queue
//! which the device serves miss its latest start.

use super::batches::Made;
use super::queue::{QueueIndex, Window};
use super::{Action, Dispatcher, DropReason, Place};
use crate::{BatchId, Instant};

/// A queue as one device sees it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    /// D - ℓ(b) for its head and the batch that it would fill.
    latest_start: Instant,
    queue: QueueIndex,
    /// ℓ(b), nanoseconds.
    latency: u64,
}

/// The queue whose turn it is.
#[derive(Clone, Copy)]
struct Choice {
    queue: QueueIndex,
    /// The smallest latest start among the others.
    others: Instant,
}

impl Dispatcher {
    /// Makes the next batch for a device that will be able to start it at `start`; `None` when nothing that waits could
    /// be answered by it in time.
    pub(super) fn turn(&mut self, device: usize, start: Instant, actions: &mut Vec<Action>) -> Option<BatchId> {
        self.turns += 1;
        while let Some(choice) = self.choose(device, start) {
            let queue = &self.queues[choice.queue];
            let profile = self.classes[queue.class].on(device).expect("only queues that the device serves are chosen");
            match queue.window(profile, device, start, choice.others) {
                Some(window) => return Some(self.take(device, start, choice.queue, window, actions)),
                None => self.queues[choice.queue].passed = self.turns,
            }
        }
        None
    }

    fn choose(&self, device: usize, start: Instant) -> Option<Choice> {
        let mut first: Option<Candidate> = None;
        let mut second = Instant::MAX;
        for busy in self.queues.busy() {
            // Most queues cannot be among the two most urgent: their exact latest start is not needed.
            if busy.latest_start > second {
                continue;
            }
            let Some(candidate) = self.candidate(busy.queue, device, start) else { continue };
            debug_assert!(busy.latest_start <= candidate.latest_start);
            match first {
                Some(first) if first < candidate => second = second.min(candidate.latest_start),
                _ => second = first.replace(candidate).map_or(second, |beaten| beaten.latest_start),
            }
        }
        let first = first?;
        let ends = Instant(start.0.saturating_add(first.latency));
        if second >= ends {
            return Some(Choice { queue: first.queue, others: second });
        }
        let urgent = self.queues.busy().iter().filter(|busy| busy.latest_start < ends);
        let urgent = urgent.filter_map(|busy| self.candidate(busy.queue, device, start));
        let urgent = urgent.filter(|candidate| candidate.latest_start < ends);
        let longest = urgent.min_by_key(|&candidate| (self.queues[candidate.queue].since, candidate)).unwrap_or(first);
        let others = if longest.queue == first.queue { second } else { first.latest_start };
        Some(Choice { queue: longest.queue, others })
    }

    /// A busy queue as `device` sees it; `None` where it does not serve it, has passed it over in this turn, or is too
    /// slow even for the request that can wait longest.
    fn candidate(&self, index: QueueIndex, device: usize, start: Instant) -> Option<Candidate> {
        let queue = &self.queues[index];
        let profile = self.classes[queue.class].on(device).filter(|_| queue.passed != self.turns)?;
        let last = queue.last().expect("a busy queue is not empty");
        if start.0.saturating_add(profile.nanos(1).expect("a profile has a first")) > last.deadline.0 {
            return None;
        }
        let batch = u64::from(queue.target(device)).min(queue.items()) as u32;
        let latency = profile.nanos(batch).expect("a target is within the profile");
        let head = queue.head().expect("a busy queue is not empty");
        Some(Candidate { latest_start: Instant(head.deadline.0.saturating_sub(latency)), queue: index, latency })
    }

    /// Makes the batch of `window`, and drops whom the window refused.
    fn take(
        &mut self,
        device: usize,
        start: Instant,
        index: QueueIndex,
        window: Window,
        actions: &mut Vec<Action>,
    ) -> BatchId {
        let (now, places, devices) = (self.now, &mut self.places, &self.devices);
        let queue = &self.queues[index];
        let class = &self.classes[queue.class];
        let profile = class.on(device).expect("only queues that the device serves are chosen");
        let latency = profile.nanos(window.items).expect("a window is within the profile");
        let made = Made { class: queue.class, latency };
        let requests = queue.requests().range(window.first..window.first + window.count).map(|waiting| waiting.request);
        let (batch, opened) = self.batches.open(made, window.items, requests);
        for request in &opened.requests {
            places[request.0 as usize] = Place::InBatch;
        }
        let window_ends = Instant(start.0.saturating_add(class.least(window.size).unwrap_or(u64::MAX)));
        self.queues.take(index, window, class, |refused| {
            // Too large for this device only: others judge it. A faster one may run it when it is free, and an idle one
            // has its turn in this very step.
            if refused.items > profile.max_batch() {
                return true;
            }
            let on_time = |other: usize| {
                let latency = class.on(other).and_then(|profile| profile.nanos(refused.items));
                latency.is_some_and(|latency| now.0.saturating_add(latency) <= refused.deadline.0)
            };
            let idle = |(other, state): (usize, &super::Device)| other != device && state.is_idle() && on_time(other);
            let keep = window_ends <= refused.deadline || devices.iter().enumerate().any(idle);
            if !keep {
                places[refused.request.0 as usize] = Place::Unknown;
                actions.push(Action::Drop { request: refused.request, reason: DropReason::Hopeless });
            }
            keep
        });
        self.queues[index].since = now;
        batch
    }
}
