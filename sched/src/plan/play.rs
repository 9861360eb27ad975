//! Devices played with arrivals: a pool, and one session's own slots.

use super::ArrivalProcess;
use super::random::Random;
use crate::Profile;
use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, VecDeque};
use std::time::Duration;

/// What became of a session's requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub arrived: u64,
    pub in_time: u64,
}

/// How the requests of a pool's members come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arrivals {
    /// Evenly spaced, at phases by chance.
    Even,
    /// Those of slow members by chance (Poisson), the others' evenly spaced.
    SlowByChance,
    /// All by chance.
    Poisson,
}

impl From<ArrivalProcess> for Arrivals {
    fn from(process: ArrivalProcess) -> Arrivals {
        match process {
            ArrivalProcess::Even => Arrivals::Even,
            ArrivalProcess::Poisson => Arrivals::Poisson,
        }
    }
}

/// A session of a pool.
#[derive(Clone, Copy, Debug)]
pub(super) struct Member<'a> {
    /// Items per second.
    pub rate: f64,
    /// Nanoseconds.
    pub slo: u64,
    pub profile: &'a Profile,
    /// What it waits for, as long as its oldest request can; within the profile.
    pub batch: u32,
}

impl Member<'_> {
    /// Too slow for a second request while the first can wait: no batch of it fills, so when its requests come says little.
    pub(super) fn is_slow(&self) -> bool {
        self.rate * self.slo.saturating_sub(self.latency(1)) as f64 / 1e9 < SLOW
    }

    /// ℓ(b), nanoseconds, of what the session runs when `waiting` requests wait.
    pub(super) fn latency(&self, waiting: usize) -> u64 {
        let batch = waiting.min(self.profile.max_batch() as usize) as u32;
        self.profile.nanos(batch).expect("from one to the largest that is profiled")
    }

    /// How long before its oldest request's deadline a session stops waiting for more: ℓ(b) and a margin, half of the time
    /// that is left when the batch is full and the requests come evenly.
    fn haste(&self) -> u64 {
        let (fills, full) = (f64::from(self.batch - 1) / self.rate * 1e9, self.latency(self.batch as usize));
        full.saturating_add(self.slo.saturating_sub(fills as u64).saturating_sub(full) / 2)
    }
}

/// A session is slow when fewer requests of it come while one can wait.
const SLOW: f64 = 2.0;
/// What became of a pool's requests, by member.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Played {
    pub tallies: Vec<Tally>,
    /// How much longer a batch could still have waited for a device, at least, when it had waited for more than half of what
    /// it could since it was ready; nanoseconds, `u64::MAX` if none had.
    pub spares: Vec<u64>,
}

/// Thirty-one years, nanoseconds: what comes later is not played. Sums of two such times do not overflow.
const HORIZON: u64 = 1_000_000_000_000_000_000;

/// What waits of one session of a pool.
#[derive(Clone, Debug, Default)]
struct Waiting {
    /// When they came, oldest first.
    came: VecDeque<u64>,
    /// Its key in the ready set, if it is there: its latest start.
    ready: Option<u64>,
    /// Since when it is ready, if it is.
    since: u64,
    /// When it becomes ready without another request; `u64::MAX` when it waits for nothing.
    due: u64,
}

/// Devices on which every member may run.
///
/// A session is *ready* when as many requests wait as its batch is meant to have, or when its oldest has little time left
/// to wait (its margin before the latest start of a full batch). A free device runs the ready session whose latest start,
/// the oldest request's deadline less ℓ(waiting), comes first, with as many requests as still end by then. Requests that
/// not even a batch of one would answer in time are lost when their session's turn comes; no others are.
///
/// Cost: O(log members) for each request and batch.
struct Pool<'a> {
    members: &'a [Member<'a>],
    /// By member.
    hastes: Vec<u64>,
    waiting: Vec<Waiting>,
    ready: BTreeSet<(u64, u32)>,
    /// (due, member); out of date when the member's `due` is another.
    timers: BinaryHeap<Reverse<(u64, u32)>>,
    /// When running batches end.
    ends: BinaryHeap<Reverse<u64>>,
    idle: usize,
    tallies: Vec<Tally>,
    spares: Vec<u64>,
    lost: u64,
}

/// Plays a pool until `requests` have come and all are answered or lost; `None` once more than `lost_max` are lost.
pub(super) fn pool(
    members: &[Member],
    devices: usize,
    arrivals: Arrivals,
    seed: u64,
    requests: u64,
    lost_max: u64,
) -> Option<Played> {
    let rates = members.iter().map(|member| member.rate);
    let mut source = match arrivals {
        Arrivals::Poisson => Source::poisson(rates, seed),
        Arrivals::Even => Source::streams(rates, |_| false, seed),
        Arrivals::SlowByChance => Source::streams(rates, |index| members[index].is_slow(), seed),
    };
    let mut pool = Pool {
        members,
        hastes: members.iter().map(Member::haste).collect(),
        waiting: vec![Waiting { due: u64::MAX, ..Waiting::default() }; members.len()],
        ready: BTreeSet::new(),
        timers: BinaryHeap::new(),
        ends: BinaryHeap::new(),
        idle: devices,
        tallies: vec![Tally::default(); members.len()],
        spares: vec![u64::MAX; members.len()],
        lost: 0,
    };
    for _ in 0..requests {
        let Some((arrival, member)) = source.next() else { break };
        pool.run_until(arrival);
        pool.arrive(member, arrival);
        if pool.lost > lost_max {
            return None;
        }
    }
    pool.run_until(u64::MAX);
    (pool.lost <= lost_max).then_some(Played { tallies: pool.tallies, spares: pool.spares })
}

impl Pool<'_> {
    /// What happens up to and at `until`.
    fn run_until(&mut self, until: u64) {
        loop {
            let ends = self.ends.peek().map_or(u64::MAX, |Reverse(at)| *at);
            let due = self.timers.peek().map_or(u64::MAX, |Reverse((at, _))| *at);
            let now = ends.min(due);
            if now > until || now == u64::MAX {
                return;
            }
            if ends <= due {
                self.ends.pop();
                self.idle += 1;
            } else if let Some(Reverse((_, member))) = self.timers.pop() {
                let waiting = &mut self.waiting[member as usize];
                if waiting.due == now {
                    waiting.due = u64::MAX;
                    self.enter(member, now);
                }
            }
            self.start(now);
        }
    }

    fn arrive(&mut self, member: u32, now: u64) {
        self.tallies[member as usize].arrived += 1;
        let waiting = &mut self.waiting[member as usize];
        waiting.came.push_back(now);
        match waiting.ready {
            Some(key) => {
                self.ready.remove(&(key, member));
                let since = waiting.since;
                self.enter(member, since);
            }
            None => self.consider(member, now),
        }
        self.start(now);
    }

    /// Into the ready set, by its latest start.
    fn enter(&mut self, member: u32, since: u64) {
        let waiting = &mut self.waiting[member as usize];
        let Member { slo, .. } = self.members[member as usize];
        let deadline = waiting.came[0].saturating_add(slo);
        let latest = deadline.saturating_sub(self.members[member as usize].latency(waiting.came.len()));
        (waiting.ready, waiting.since, waiting.due) = (Some(latest), since, u64::MAX);
        self.ready.insert((latest, member));
    }

    /// Ready now, or a timer for when it will be.
    fn consider(&mut self, index: u32, now: u64) {
        let (member, waiting) = (&self.members[index as usize], &mut self.waiting[index as usize]);
        let Some(&oldest) = waiting.came.front() else { return };
        let due = oldest.saturating_add(member.slo).saturating_sub(self.hastes[index as usize]);
        if waiting.came.len() >= member.batch as usize || due <= now {
            self.enter(index, now);
        } else if waiting.due != due {
            waiting.due = due;
            self.timers.push(Reverse((due, index)));
        }
    }

    /// Batches on devices that are idle.
    fn start(&mut self, now: u64) {
        while self.idle > 0 {
            let Some((_, index)) = self.ready.pop_first() else { return };
            let (member, waiting) = (&self.members[index as usize], &mut self.waiting[index as usize]);
            waiting.ready = None;
            let ends = now.saturating_add(member.latency(1));
            while waiting.came.pop_front_if(|oldest| oldest.saturating_add(member.slo) < ends).is_some() {
                self.lost += 1;
            }
            if let Some(&oldest) = waiting.came.front() {
                let left = oldest.saturating_add(member.slo).saturating_sub(now);
                let fits = member.profile.largest_within(Duration::from_nanos(left)) as usize;
                let taken = waiting.came.len().min(fits);
                let (waited, spare) = (now - waiting.since, left - member.latency(1));
                if waited > spare {
                    let least = &mut self.spares[index as usize];
                    *least = spare.min(*least);
                }
                waiting.came.drain(..taken);
                self.tallies[index as usize].in_time += taken as u64;
                self.ends.push(Reverse(now.saturating_add(member.latency(taken))));
                self.idle -= 1;
                self.consider(index, now);
            }
        }
    }
}

/// When requests come, nanoseconds, and whose they are.
enum Source {
    /// All streams are one, of which each request belongs to a session by chance.
    Poisson {
        random: Random,
        /// Sums of the rates up to each session's.
        cumulative: Vec<f64>,
        at: f64,
    },
    /// A stream of each session.
    Streams {
        random: Random,
        /// Nanoseconds between requests, and whether that is only their mean, by session.
        spacings: Vec<(u64, bool)>,
        next: BinaryHeap<Reverse<(u64, u32)>>,
    },
}

impl Source {
    fn poisson(rates: impl Iterator<Item = f64>, seed: u64) -> Source {
        let sums = rates.scan(0.0, |sum, rate| {
            *sum += rate;
            Some(*sum)
        });
        Source::Poisson { random: Random::new(seed), cumulative: sums.collect(), at: 0.0 }
    }

    /// Evenly spaced but for those that come `by_chance`.
    fn streams(rates: impl Iterator<Item = f64>, by_chance: impl Fn(usize) -> bool, seed: u64) -> Source {
        let mut random = Random::new(seed);
        let spacings = rates.enumerate().map(|(index, rate)| ((1e9 / rate) as u64, by_chance(index)));
        let spacings: Vec<(u64, bool)> = spacings.collect();
        let first = |(index, &(spacing, _)): (usize, &(u64, bool))| {
            Reverse(((random.unit() * spacing as f64) as u64, index as u32))
        };
        let next = spacings.iter().enumerate().map(first).collect();
        Source::Streams { random, spacings, next }
    }

    /// `None` when nothing comes before the horizon.
    fn next(&mut self) -> Option<(u64, u32)> {
        match self {
            Source::Poisson { random, cumulative, at } => {
                let all = cumulative.last().copied().filter(|&all| all > 0.0)?;
                *at += random.exponential(1e9 / all);
                let pick = random.unit() * all;
                let index = cumulative.partition_point(|&sum| sum <= pick).min(cumulative.len() - 1);
                (*at < HORIZON as f64).then_some((*at as u64, index as u32))
            }
            Source::Streams { random, spacings, next } => {
                let mut first = next.peek_mut().filter(|first| first.0.0 < HORIZON)?;
                let Reverse((at, index)) = *first;
                let (spacing, by_chance) = spacings[index as usize];
                let after = if by_chance { random.exponential(spacing as f64) as u64 } else { spacing };
                *first = Reverse((at.saturating_add(after), index));
                Some((at, index))
            }
        }
    }
}

/// A slot that one session has for itself.
#[derive(Clone, Copy, Debug)]
pub(super) struct OwnSlot<'a> {
    /// Nanoseconds, below the period.
    pub start: u64,
    pub batch: u32,
    pub profile: &'a Profile,
}

/// Plays a session's `slots`, by start, with Poisson arrivals. Each runs one batch when it starts; a request that would
/// make the batch too small for those behind it is dropped, for they have no other turn before the next slot.
pub(super) fn own(slots: &[OwnSlot], period: u64, rate: f64, slo: u64, seed: u64, requests: u64) -> Tally {
    let mut source = Source::poisson(std::iter::once(rate), seed);
    let mut tally = Tally::default();
    let mut waiting = VecDeque::new();
    let (mut cycle, mut at) = (0u64, 0usize);
    let mut next = source.next();
    while tally.arrived < requests || !waiting.is_empty() {
        let now = cycle.saturating_mul(period).saturating_add(slots[at].start);
        if let Some((came, _)) = next.filter(|&(came, _)| came <= now && tally.arrived < requests) {
            tally.arrived += 1;
            waiting.push_back(came);
            next = source.next();
            continue;
        }
        if waiting.is_empty() {
            // On to the first slot after the next arrival.
            let Some((came, _)) = next else { break };
            cycle = came / period;
            at = slots.partition_point(|slot| slot.start < came % period);
        } else {
            tally.in_time += batch_of(&mut waiting, &slots[at], slo, now);
            at += 1;
        }
        if at == slots.len() {
            (cycle, at) = (cycle + 1, 0);
        }
    }
    tally
}

/// Takes a batch; returns how many.
fn batch_of(waiting: &mut VecDeque<u64>, slot: &OwnSlot, slo: u64, now: u64) -> u64 {
    let ends = |count: usize| {
        let batch = slot.batch.min(count as u32);
        now.saturating_add(slot.profile.nanos(batch).expect("a slot's batch is within the profile"))
    };
    while waiting.front().is_some_and(|&came| came.saturating_add(slo) < ends(waiting.len())) {
        waiting.pop_front();
    }
    let taken = waiting.len().min(slot.batch as usize);
    waiting.drain(..taken);
    taken as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile(alpha_ms: u64, beta_ms: u64) -> Profile {
        let points: Vec<_> = [1, 64].map(|b| (b, Duration::from_millis(alpha_ms * u64::from(b) + beta_ms))).into();
        Profile::new(&points).expect("valid points")
    }

    const MS: u64 = 1_000_000;

    fn missed(tallies: &[Tally]) -> u64 {
        tallies.iter().map(|tally| tally.arrived - tally.in_time).sum()
    }

    #[test]
    fn evenly_spaced_requests_fill_a_device_to_the_last() {
        // Batches of ten every 100 ms take 30 ms each: three sessions use nine tenths of a device.
        let profile = profile(2, 10);
        let members = [Member { rate: 100.0, slo: 400 * MS, profile: &profile, batch: 10 }; 3];
        let tallies = pool(&members, 1, Arrivals::Even, 3, 30_000, u64::MAX).expect("no limit").tallies;
        assert_eq!(missed(&tallies), 0);
        assert!(tallies.iter().all(|tally| tally.arrived >= 9_999));
    }

    #[test]
    fn too_few_devices_lose_what_exceeds_them_and_playing_stops_there() {
        let profile = profile(1, 0);
        let member = Member { rate: 2_000.0, slo: 100 * MS, profile: &profile, batch: 8 };
        let play = |lost_max| pool(&[member], 1, Arrivals::Even, 1, 100_000, lost_max);
        let lost = missed(&play(u64::MAX).expect("no limit").tallies) as f64 / 100_000.0;
        assert!((lost - 0.5).abs() < 0.01, "{lost} of requests at twice what the device can do");
        assert_eq!(play(1000), None);
    }

    #[test]
    fn a_slot_of_its_own_takes_what_came_before_it() {
        let profile = profile(1, 9);
        // Once in 100 ms, at most 12, of which 10 are expected: in a fifth of the periods more come, and those are late.
        let slot = OwnSlot { start: 0, batch: 12, profile: &profile };
        let tally = own(&[slot], 100 * MS, 100.0, 121 * MS, 1, 20_000);
        assert_eq!(tally.arrived, 20_000);
        assert!((200..2_000).contains(&(20_000 - tally.in_time)), "{tally:?}");
        // One request in ten thousand periods: the periods without any are not walked through.
        let slow = own(&[slot], 100 * MS, 1e-3, 150 * MS, 1, 20_000);
        assert_eq!(slow, Tally { arrived: 20_000, in_time: 20_000 });
    }
}
