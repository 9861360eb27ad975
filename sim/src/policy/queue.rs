//! A session's queue as most rivals keep it, and the two ways to take a batch from it.

use crate::Nanos;
use crate::engine::{Order, Run};
use crate::load::Request;
use crate::scenario::Latencies;
use std::collections::VecDeque;

/// Requests in the order of arrival, which is that of their deadlines: a session has one SLO.
pub type Queue = VecDeque<Request>;

/// A run that starts when it can.
pub fn run(device: usize, requests: Vec<u32>) -> Order {
    Order::Run(Run { device, requests, earliest: 0, latest: Nanos::MAX })
}

/// The first `count` requests.
pub fn take(queue: &mut Queue, count: usize) -> Vec<u32> {
    queue.drain(..count).map(|request| request.id).collect()
}

/// Drops heads that end late even alone, if they begin at `start`.
pub fn drop_late(queue: &mut Queue, latencies: &Latencies, start: Nanos, orders: &mut Vec<Order>) {
    while let Some(head) = queue.front().filter(|head| start + latencies.at(1) > head.deadline) {
        orders.push(Order::Drop(head.id));
        queue.pop_front();
    }
}

/// Early drop (Nexus): a window as large as `planned`, or as the queue if that is less, slides over the queue; heads that
/// would miss its end are dropped to save those behind them, and the window shrinks when too few are left.
pub fn early(
    queue: &mut Queue,
    planned: usize,
    latencies: &Latencies,
    start: Nanos,
    orders: &mut Vec<Order>,
) -> Vec<u32> {
    let mut window = planned.min(latencies.max_batch()).min(queue.len());
    let mut taken = Vec::with_capacity(window);
    while taken.len() < window {
        let head = queue.pop_front().expect("the window is no larger than what is left and taken");
        if head.deadline < start + latencies.at(window) {
            orders.push(Order::Drop(head.id));
        } else {
            taken.push(head.id);
        }
        window = window.min(taken.len() + queue.len());
    }
    taken
}

/// Lazy drop: only requests that even alone would be late are dropped; the batch is the largest that the head allows.
pub fn lazy(queue: &mut Queue, latencies: &Latencies, start: Nanos, orders: &mut Vec<Order>) -> Vec<u32> {
    drop_late(queue, latencies, start, orders);
    let Some(head) = queue.front() else { return Vec::new() };
    let count = latencies.largest_within(head.deadline - start).min(queue.len());
    take(queue, count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::table::{drops, latencies, queue};

    #[test]
    fn early_drop_gives_up_the_head_to_save_the_batch() {
        // ℓ = 10, 20, 30 …: at 0, three requests with deadlines at 25, 30, 30.
        let (latencies, mut orders) = (latencies(10, 10, 8), Vec::new());
        let mut waiting = queue(&[25, 30, 30]);
        // A window of three ends at 30: the first would miss it. The window shrinks to two, and two are in time.
        assert_eq!(early(&mut waiting, 3, &latencies, 0, &mut orders), [1, 2]);
        assert_eq!((drops(&orders), waiting.len()), (vec![0], 0));
    }

    #[test]
    fn early_drop_stops_at_the_planned_batch() {
        let (latencies, mut orders) = (latencies(10, 10, 8), Vec::new());
        let mut waiting = queue(&[25, 30, 30]);
        assert_eq!(early(&mut waiting, 2, &latencies, 0, &mut orders), [0, 1]);
        assert_eq!((drops(&orders), waiting.len()), (vec![], 1));
    }

    #[test]
    fn early_drop_may_drop_all() {
        let (latencies, mut orders) = (latencies(10, 10, 8), Vec::new());
        assert_eq!(early(&mut queue(&[5, 6]), 2, &latencies, 0, &mut orders), Vec::<u32>::new());
        assert_eq!(drops(&orders), [0, 1]);
    }

    #[test]
    fn lazy_drop_serves_the_head_at_the_cost_of_the_batch() {
        let (latencies, mut orders) = (latencies(10, 10, 8), Vec::new());
        let mut waiting = queue(&[5, 15, 30, 30]);
        // The first is lost; the second can wait for a batch of one only.
        assert_eq!(lazy(&mut waiting, &latencies, 0, &mut orders), [1]);
        assert_eq!((drops(&orders), waiting.len()), (vec![0], 2));
        assert_eq!(lazy(&mut waiting, &latencies, 0, &mut orders), [2, 3]);
    }
}
