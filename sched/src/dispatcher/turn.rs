//! A device's turn: which queue, and which of its requests.
//!
//! Which queue: of those that are ready, the one with the smallest key ([`super::queue::Queue::key`]): its latest start D - ℓ(b), brought
//! forward by what it missed lately. While even that one could wait for several more devices to become free, nobody is
//! urgent, and the turn goes to whoever wastes least by going now ([`super::queue::Queue::waste`]): a full batch, which cannot grow, before
//! one that would be deeper later. That is what keeps batches deep although no device idles. Where devices are enough for it,
//! the oldest request goes first instead.
//!
//! Which requests: [`window`].

use super::batches::Made;
use super::pool::URGENT;
use super::queue::{KEY_ZERO, QueueIndex};
use super::window::{Window, window};
use super::{Action, Dispatcher, DropReason, Place};
use crate::{BatchId, Instant};

impl Dispatcher {
    /// Makes the next batch for a device that will be able to start it at `start`; `None` when nothing that is ready could
    /// be answered by it in time.
    pub(super) fn turn(&mut self, device: usize, start: Instant, actions: &mut Vec<Action>) -> Option<BatchId> {
        self.turns += 1;
        while let Some(index) = self.choose(device, start) {
            let queue = &self.queues[index];
            let profile = self.classes[queue.class].on(device).expect("only queues that the device serves are chosen");
            match window(queue, profile, queue.judgement, start, queue.standing.loses()) {
                Some(window) => return Some(self.take(device, start, index, window, actions)),
                None => self.queues[index].passed = self.turns,
            }
        }
        None
    }

    fn choose(&self, device: usize, start: Instant) -> Option<QueueIndex> {
        let pool = self.queues.pool(device)?;
        let (mut key, mut first) = pool.first()?;
        let may = |&index: &QueueIndex| self.may(index, device, start);
        if !may(&first) {
            let serving = pool.ready().iter().copied().filter(may);
            (key, first) = serving.map(|index| (pool.key(self.queues[index].slot), index)).min()?;
        }
        let urgent = start.0.saturating_add(KEY_ZERO).saturating_add(pool.turns(URGENT));
        if key.0 <= urgent {
            return Some(first);
        }
        let least = |&index: &QueueIndex| {
            let queue = &self.queues[index];
            if pool.easy {
                return (0, queue.oldest(), index);
            }
            (queue.waste(&self.classes[queue.class], start), pool.key(queue.slot), index)
        };
        pool.ready().iter().copied().take(COMPARED).chain([first]).filter(may).min_by_key(least)
    }

    /// Whether `device` serves a ready queue, has not passed it over in this turn, and is not too slow even for the request
    /// that can wait longest.
    fn may(&self, index: QueueIndex, device: usize, start: Instant) -> bool {
        let queue = &self.queues[index];
        let Some(profile) = self.classes[queue.class].on(device).filter(|_| queue.passed != self.turns) else {
            return false;
        };
        let last = queue.last().expect("a ready queue is not empty");
        start.0.saturating_add(profile.nanos(1).expect("a profile has a first")) <= last.deadline.0
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
        let taken = queue.requests().range(window.first..window.first + window.count);
        for (request, waiting) in opened.requests.iter().zip(taken) {
            places[request.0 as usize] = Place::InBatch { queue: index, deadline: waiting.deadline };
        }
        let window_ends = Instant(start.0.saturating_add(class.least(window.items).unwrap_or(u64::MAX)));
        let here = u32::from(devices[device].is_idle());
        let others_idle = self.queues.pool(device).is_some_and(|pool| pool.idle > here);
        self.queues.take(index, window, class, now, |refused| {
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
            let keep = window_ends <= refused.deadline || others_idle && devices.iter().enumerate().any(idle);
            if !keep {
                places[refused.request.0 as usize] = Place::Unknown;
                actions.push(Action::Drop { request: refused.request, reason: DropReason::Hopeless });
            }
            keep
        });
        batch
    }
}

/// So many ready queues are compared when none is urgent.
const COMPARED: usize = 64;
