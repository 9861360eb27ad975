//! Devices played with arrivals: a pool, and one session's own slots.

use super::ArrivalProcess;
use super::random::Random;
use super::stream::Stream;
use crate::Profile;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
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

/// Periods of a pool's slowest session that is fast, for which evenly spaced requests are played through it before it is
/// said to hold, and how many requests at most in a draw of their phases.
const PERIODS: f64 = 200.0;
const EVEN_MAX: f64 = 1e6;
/// Draws of their phases.
pub(super) const EVEN_DRAWS: u64 = 4;
/// Requests of a pool's slowest session that are played by chance, if that takes no more than so many in all.
const CHANCE_EACH: f64 = 2e3;
const CHANCE_MAX: f64 = 5e5;
/// By what part of the pool's mean ℓ a session's turn is brought forward at most.
const FORWARD: f64 = 1.0 / 3.0;
/// Thirty-one years, nanoseconds: what comes later is not played. Sums of two such times do not overflow.
const HORIZON: u64 = 1_000_000_000_000_000_000;

/// Devices on which every member may run.
///
/// A session is *ready* when as many requests wait as its batch is meant to have, or when its oldest has little time left
/// to wait (its margin before the latest start of a full batch). A free device runs the ready session whose turn comes
/// first, with as many requests as still end by the oldest's deadline. Its turn is its latest start, that deadline less
/// ℓ(waiting), brought forward by half of what was left until then when it became ready, but at most by a third of the pool's
/// mean ℓ: without that those that run one request at a time wait to the last, and have nothing to give when it gets
/// late, where a larger batch would run with fewer. Requests that not even a batch of one would answer in time are lost
/// when their session's turn comes; no others are. At one moment, requests come first, then batches end, then sessions
/// become ready, then batches start.
///
/// When a session will be ready is known as soon as its last batch has left: so what is played are batches, not requests.
/// Cost: O(log members) for each batch, and O(1) for each session that is ready then, which are few.
struct Pool<'a> {
    members: &'a [Member<'a>],
    /// By member.
    hastes: Vec<u64>,
    streams: Vec<Stream>,
    /// When members become ready that are not; one entry for each that has requests left.
    timers: BinaryHeap<Reverse<(u64, u32)>>,
    ready: Vec<Ready>,
    /// When running batches end.
    ends: BinaryHeap<Reverse<u64>>,
    idle: usize,
    /// By member: requests that are answered in time.
    in_time: Vec<u64>,
    spares: Vec<u64>,
    /// By how much a turn is brought forward at most, nanoseconds.
    forward_max: u64,
    lost: u64,
}

/// A member that waits for a device.
#[derive(Clone, Copy, Debug)]
struct Ready {
    member: u32,
    since: u64,
    /// Whose is earliest goes first; as of when it was last looked at.
    turn: u64,
    /// From when on it may be earlier: another request comes. `u64::MAX` when its batch can't grow.
    grows: u64,
}

/// Plays a pool for as long as `requests` take to come, until all are answered or lost; `None` once more than `lost_max`
/// are lost.
pub(super) fn pool(
    members: &[Member],
    devices: usize,
    arrivals: Arrivals,
    seed: u64,
    requests: u64,
    lost_max: u64,
) -> Option<Played> {
    let rate: f64 = members.iter().map(|member| member.rate).sum();
    let last = ((requests as f64 / rate * 1e9) as u64).min(HORIZON);
    Pool::new(members, devices, streams(members, arrivals, seed, last)).play(lost_max)
}

/// The mean latency of the members' batches when all are full, nanoseconds.
pub(super) fn mean_latency(members: &[Member]) -> f64 {
    let started = |member: &Member| member.rate / f64::from(member.batch);
    let busy = |member: &Member| started(member) * member.latency(member.batch as usize) as f64;
    let (busy, started) = members.iter().fold((0.0, 0.0), |sum, m| (sum.0 + busy(m), sum.1 + started(m)));
    busy / started
}

/// Requests in each draw of phases that are played through a pool of which none may be late.
pub(super) fn even_requests(members: &[Member]) -> f64 {
    let rates = || members.iter().map(|member| member.rate).filter(|&rate| rate > 0.0);
    let fast = members.iter().filter(|member| !member.is_slow()).map(|member| member.rate);
    // Where all are slow, the fastest of them stands for the slowest fast one.
    let slowest = fast.reduce(f64::min).unwrap_or_else(|| rates().fold(0.0, f64::max));
    (PERIODS * rates().sum::<f64>() / slowest).min(EVEN_MAX)
}

/// Requests that are played through a pool of which each member may miss one in a hundred.
pub(super) fn chance_requests(members: &[Member]) -> f64 {
    let rates = members.iter().map(|member| member.rate).filter(|&rate| rate > 0.0);
    let (all, slowest) =
        rates.fold((0.0, f64::INFINITY), |(all, slowest): (f64, f64), rate| (all + rate, slowest.min(rate)));
    (CHANCE_EACH * all / slowest).min(CHANCE_MAX)
}

/// The requests of each member, until `last`.
fn streams(members: &[Member], arrivals: Arrivals, seed: u64, last: u64) -> Vec<Stream> {
    let mut random = Random::new(seed);
    let stream = |member: &Member| {
        let by_chance = match arrivals {
            Arrivals::Even => false,
            Arrivals::SlowByChance => member.is_slow(),
            Arrivals::Poisson => true,
        };
        let draw = if by_chance { Stream::chance } else { Stream::even };
        draw(member.rate, last, &mut random)
    };
    members.iter().map(stream).collect()
}

impl<'a> Pool<'a> {
    fn new(members: &'a [Member<'a>], devices: usize, streams: Vec<Stream>) -> Pool<'a> {
        Pool {
            members,
            hastes: members.iter().map(Member::haste).collect(),
            streams,
            timers: BinaryHeap::with_capacity(members.len()),
            ready: Vec::with_capacity(members.len()),
            ends: BinaryHeap::with_capacity(devices),
            idle: devices,
            in_time: vec![0; members.len()],
            spares: vec![u64::MAX; members.len()],
            forward_max: (mean_latency(members) * FORWARD) as u64,
            lost: 0,
        }
    }

    fn play(mut self, lost_max: u64) -> Option<Played> {
        for member in 0..self.members.len() as u32 {
            self.consider(member, 0);
        }
        let first = |at: Option<u64>| at.unwrap_or(u64::MAX);
        loop {
            let ends = first(self.ends.peek().map(|Reverse(at)| *at));
            let now = ends.min(first(self.timers.peek().map(|Reverse((at, _))| *at)));
            if now == u64::MAX && self.ready.is_empty() {
                break;
            }
            while self.ends.peek().is_some_and(|&Reverse(at)| at == now) {
                self.ends.pop();
                self.idle += 1;
            }
            while let Some(&Reverse((at, member))) = self.timers.peek()
                && at == now
            {
                self.timers.pop();
                self.enter(member, now);
            }
            self.start(now);
            if self.lost > lost_max {
                return None;
            }
        }
        let tally = |(stream, &in_time): (&Stream, &u64)| Tally { arrived: stream.arrived(), in_time };
        Some(Played { tallies: self.streams.iter().zip(&self.in_time).map(tally).collect(), spares: self.spares })
    }

    /// Ready now, or a timer for when it will be.
    fn consider(&mut self, index: u32, now: u64) {
        let (member, stream) = (&self.members[index as usize], &mut self.streams[index as usize]);
        let oldest = stream.at(0);
        if oldest == u64::MAX {
            return;
        }
        let due = oldest.saturating_add(member.slo).saturating_sub(self.hastes[index as usize]);
        let ready = due.min(stream.at(member.batch as usize - 1)).max(oldest);
        if ready <= now {
            self.enter(index, now);
        } else {
            self.timers.push(Reverse((ready, index)));
        }
    }

    fn enter(&mut self, member: u32, since: u64) {
        let mut ready = Ready { member, since, turn: 0, grows: 0 };
        self.look(&mut ready, since);
        self.ready.push(ready);
    }

    /// Its turn, for what waits at `now`.
    fn look(&mut self, ready: &mut Ready, now: u64) {
        let (member, stream) = (&self.members[ready.member as usize], &mut self.streams[ready.member as usize]);
        let waiting = stream.waiting(now);
        let latest = stream.at(0).saturating_add(member.slo).saturating_sub(member.latency(waiting));
        ready.turn = latest - (latest.saturating_sub(ready.since) / 2).min(self.forward_max);
        ready.grows = if waiting < member.profile.max_batch() as usize { stream.at(waiting) } else { u64::MAX };
    }

    /// Takes the ready member whose turn comes first.
    fn first_ready(&mut self, now: u64) -> Option<Ready> {
        let mut first: Option<(u64, u32, usize)> = None;
        for place in 0..self.ready.len() {
            if self.ready[place].grows <= now {
                let mut ready = self.ready[place];
                self.look(&mut ready, now);
                self.ready[place] = ready;
            }
            let Ready { turn, member, .. } = self.ready[place];
            if first.is_none_or(|first| (turn, member) < (first.0, first.1)) {
                first = Some((turn, member, place));
            }
        }
        first.map(|(_, _, place)| self.ready.swap_remove(place))
    }

    /// Batches on devices that are idle.
    fn start(&mut self, now: u64) {
        while self.idle > 0 {
            let Some(Ready { member: index, since, .. }) = self.first_ready(now) else { return };
            let (member, stream) = (&self.members[index as usize], &mut self.streams[index as usize]);
            let ends = now.saturating_add(member.latency(1));
            while stream.at(0) <= now && stream.at(0).saturating_add(member.slo) < ends {
                stream.take(1);
                self.lost += 1;
            }
            let waiting = stream.waiting(now);
            if waiting > 0 {
                let left = stream.at(0).saturating_add(member.slo).saturating_sub(now);
                let full = waiting.min(member.profile.max_batch() as usize);
                // To look for what fits takes longer than all else here, and is rarely needed.
                let taken = match member.latency(full) <= left {
                    true => full,
                    false => member.profile.largest_within(Duration::from_nanos(left)) as usize,
                };
                let (waited, spare) = (now - since, left - member.latency(1));
                if waited > spare {
                    let least = &mut self.spares[index as usize];
                    *least = spare.min(*least);
                }
                stream.take(taken);
                self.in_time[index as usize] += taken as u64;
                self.ends.push(Reverse(now.saturating_add(member.latency(taken))));
                self.idle -= 1;
            }
            self.consider(index, now);
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
    let last = ((requests as f64 / rate * 1e9) as u64).min(HORIZON);
    let mut stream = Stream::chance(rate, last, &mut Random::new(seed));
    let mut in_time = 0;
    let (mut cycle, mut at) = (0u64, 0usize);
    loop {
        let oldest = stream.at(0);
        if oldest == u64::MAX {
            return Tally { arrived: stream.arrived(), in_time };
        }
        let now = cycle.saturating_mul(period).saturating_add(slots[at].start);
        if oldest > now {
            // On to the first slot at which it waits.
            cycle = oldest / period;
            at = slots.partition_point(|slot| slot.start < oldest % period);
        } else {
            in_time += batch_of(&mut stream, &slots[at], slo, now);
            at += 1;
        }
        if at == slots.len() {
            (cycle, at) = (cycle + 1, 0);
        }
    }
}

/// Takes a batch; returns how many.
fn batch_of(stream: &mut Stream, slot: &OwnSlot, slo: u64, now: u64) -> u64 {
    let ends = |waiting: usize| {
        let batch = slot.batch.min(waiting as u32);
        now.saturating_add(slot.profile.nanos(batch).expect("a slot's batch is within the profile"))
    };
    let mut waiting = stream.waiting(now);
    while waiting > 0 && stream.at(0).saturating_add(slo) < ends(waiting) {
        stream.take(1);
        waiting -= 1;
    }
    let taken = waiting.min(slot.batch as usize);
    stream.take(taken);
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

    /// The rule as it is told, moment by moment and request by request.
    fn plainly(members: &[Member], devices: usize, mut streams: Vec<Stream>) -> Played {
        let mut waiting: Vec<Vec<u64>> = vec![Vec::new(); members.len()];
        let mut since: Vec<Option<u64>> = vec![None; members.len()];
        let (mut ends, mut idle) = (Vec::new(), devices);
        let mut tallies = vec![Tally::default(); members.len()];
        let mut spares = vec![u64::MAX; members.len()];
        let due = |member: &Member, oldest: u64| (oldest + member.slo).saturating_sub(member.haste());
        loop {
            let comes = streams.iter_mut().map(|stream| stream.at(0)).min().expect("there are members");
            let dues = members.iter().zip(&waiting).zip(&since).filter(|(_, since)| since.is_none());
            let dues = dues.filter_map(|((member, waiting), _)| Some(due(member, *waiting.first()?)));
            let now = dues.chain(ends.iter().copied()).fold(comes, u64::min);
            if now == u64::MAX {
                return Played { tallies, spares };
            }
            for (index, stream) in streams.iter_mut().enumerate() {
                while stream.at(0) == now {
                    stream.take(1);
                    waiting[index].push(now);
                    tallies[index].arrived += 1;
                }
            }
            let running = ends.len();
            ends.retain(|&end| end > now);
            idle += running - ends.len();
            loop {
                for (index, member) in members.iter().enumerate() {
                    let Some(&oldest) = waiting[index].first() else { continue };
                    if waiting[index].len() >= member.batch as usize || due(member, oldest) <= now {
                        since[index].get_or_insert(now);
                    }
                }
                let turn = |index: usize| {
                    let (member, waiting) = (&members[index], &waiting[index]);
                    let latest = (waiting[0] + member.slo).saturating_sub(member.latency(waiting.len()));
                    let left = latest.saturating_sub(since[index].expect("it is ready"));
                    latest - (left / 2).min((mean_latency(members) / 3.0) as u64)
                };
                let ready = (0..members.len()).filter(|&index| since[index].is_some());
                let Some(index) = ready.min_by_key(|&index| (turn(index), index)).filter(|_| idle > 0) else { break };
                let (member, began) = (&members[index], since[index].take().expect("it is ready"));
                waiting[index].retain(|came| came + member.slo >= now + member.latency(1));
                let Some(&oldest) = waiting[index].first() else { continue };
                let left = oldest + member.slo - now;
                let taken = (1..=waiting[index].len().min(member.profile.max_batch() as usize))
                    .take_while(|&batch| member.latency(batch) <= left)
                    .count();
                if now - began > left - member.latency(1) {
                    spares[index] = spares[index].min(left - member.latency(1));
                }
                waiting[index].drain(..taken);
                tallies[index].in_time += taken as u64;
                ends.push(now + member.latency(taken));
                idle -= 1;
            }
        }
    }

    #[test]
    fn playing_batches_comes_to_the_same_as_playing_every_request() {
        for seed in 0..200u64 {
            let mut random = Random::new(seed);
            let profiles: Vec<Profile> =
                (0..8).map(|_| profile(random.below(6) as u64, 1 + random.below(30) as u64)).collect();
            let member = |profile| {
                let slo = (40.0 + 400.0 * random.unit()) * MS as f64;
                let rate = [1.0, 5.0, 20.0, 60.0, 200.0, 500.0][random.below(6)] * (0.5 + random.unit());
                Member { rate, slo: slo as u64, profile, batch: 1 + random.below(12) as u32 }
            };
            let members: Vec<Member> = profiles.iter().map(member).collect();
            // From far too few to ample.
            let devices = 1 + random.below(8);
            for arrivals in [Arrivals::Even, Arrivals::SlowByChance, Arrivals::Poisson] {
                let last = 5_000 * MS;
                let streams = streams(&members, arrivals, seed, last);
                let plain = plainly(&members, devices, streams.clone());
                let played = Pool::new(&members, devices, streams).play(u64::MAX);
                assert_eq!(played, Some(plain), "seed {seed}, {devices} devices, {arrivals:?}");
            }
        }
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
        assert!((19_000..21_000).contains(&tally.arrived), "{tally:?}");
        assert!((200..2_000).contains(&(tally.arrived - tally.in_time)), "{tally:?}");
        // One request in ten thousand periods: the periods without any are not walked through.
        let slow = own(&[slot], 100 * MS, 1e-3, 150 * MS, 1, 20_000);
        assert!(slow.arrived > 19_000 && slow.in_time == slow.arrived, "{slow:?}");
    }
}
