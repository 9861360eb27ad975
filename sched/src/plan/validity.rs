//! Whether a plan keeps what it promises, found without asking the planner that made it.
//!
//! A slot of one session is checked with evenly spaced arrivals, of any phase, at the planned rates. The slots of a session
//! on devices with a common period form one queue. It holds when (any one suffices)
//! 1. every gap between the starts of neighbouring slots is closed by the later slot: g ≤ min(b/R, L − ℓ(b)) (the proof is
//!    in `load.rs`);
//! 2. every slot serves a stream of its own at its share's rate, the published way: d ≤ min(b/r, L − ℓ(b));
//! 3. played for [`CYCLES`] periods at [`PHASES`] phases, each slot taking the oldest requests and at most its batch,
//!    nothing is late. (A slot may leave requests to the next, which 1 and 2 do not allow.)
//!
//! Devices that several sessions share, a pool, are played by the rule in `play.rs`. Planned for evenly spaced arrivals, no
//! request is late in four draws of their phases; and of sessions too slow to fill a batch 99 % are in time when theirs
//! come by chance (Poisson) and the others' evenly. Planned for Poisson arrivals, 99 % of each session's are in time under
//! either.

pub use super::play::Tally;
use super::play::{self, Arrivals, Member, OwnSlot};
use super::{ArrivalProcess, Demand, Fleet, Plan, Share, Slot, Timetable};
use crate::time::nanos;
use crate::{ModelId, Profile};
use std::collections::BTreeMap;

/// What is wrong with a plan.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Violation {
    #[error("device {device} is of kind {kind}, which the demand does not have")]
    Kind { device: usize, kind: usize },
    #[error("the plan uses more devices of kind {kind} than the {available} of the fleet")]
    Fleet { kind: usize, available: usize },
    #[error("device {device} has slots but a period of zero")]
    Period { device: usize },
    #[error("device {device}: slot {slot} begins before the one before it ends")]
    Overlap { device: usize, slot: usize },
    #[error("device {device}: slot {slot} names no session, or one that is not demanded: {session:?}")]
    Session { device: usize, slot: usize, session: Option<usize> },
    #[error("device {device}: session {session} has no profile there")]
    NoProfile { device: usize, session: usize },
    #[error("device {device}: slot {slot} has a batch of {batch}; session {session} is profiled from 1 to {max}")]
    Batch { device: usize, slot: usize, session: usize, batch: u32, max: u32 },
    #[error("device {device}: slot {slot} is {execution_ns} ns long; session {session} takes {latency_ns} ns")]
    Execution { device: usize, slot: usize, session: usize, execution_ns: u64, latency_ns: u64 },
    #[error("device {device}: slot {slot} is shared, but does not last its whole period")]
    SharedInPart { device: usize, slot: usize },
    #[error("device {device} shares session {session} with devices of other sessions, or has it twice")]
    Pool { device: usize, session: usize },
    #[error("device {device} holds models of {bytes} bytes, but has {memory}")]
    Memory { device: usize, bytes: u64, memory: u64 },
    #[error("session {session} asks for {asked} items/s; slots and what is unplaced come to no more than {planned}")]
    Rate { session: usize, asked: f64, planned: f64 },
    #[error("session {session}: {arrive} items arrive in a period, and its slots take {take}")]
    QueueGrows { session: usize, arrive: f64, take: u64 },
    #[error("session {session}: a request is answered after {latency_ns} ns, its SLO is {slo_ns} ns")]
    Late { session: usize, latency_ns: u64, slo_ns: u64 },
    #[error(
        "session {session}: {in_time} of {arrived} requests are in time under {arrivals:?} arrivals, less than 99 %"
    )]
    Misses { session: usize, arrivals: ArrivalProcess, arrived: u64, in_time: u64 },
    #[error("session {session}: {lost} of {arrived} evenly spaced requests are not in time")]
    Loses { session: usize, arrived: u64, lost: u64 },
}

/// Periods that a queue is played for when its gaps alone do not show that it holds.
pub const CYCLES: u64 = 256;
/// Phases of the arrivals, evenly spread, at which it is played.
pub const PHASES: u32 = 16;
/// Draws of phases that no planner plays.
const EVEN_SEEDS: std::ops::Range<u64> = 0x5eed_0000..0x5eed_0000 + play::EVEN_DRAWS;

/// Everything that `plan` does not keep; empty for a valid plan.
pub fn violations(demand: &Demand, plan: &Plan) -> Vec<Violation> {
    let mut found = Vec::new();
    fleet(demand, plan, &mut found);
    for (device, timetable) in plan.devices.iter().enumerate() {
        structure(demand, device, timetable, &mut found);
    }
    // What follows reads profiles by slot, so it needs the structure.
    if found.is_empty() {
        rates(demand, plan, &mut found);
        for ((session, period), slots) in own_slots(plan) {
            found.extend(unserved(demand, session, period, &slots));
        }
        let (pools, odd) = pools(plan);
        if odd.is_empty() {
            found.extend(pools.iter().flat_map(|pool| misses(demand, pool)));
        }
        found.extend(odd);
    }
    found
}

/// For every session, how many requests come and how many are answered in time, when `plan` is played with Poisson arrivals
/// until about `requests` have come. A session with several queues (own slots of different periods, a pool) has its
/// requests divided among them by chance. `plan` must be free of violations.
pub fn play_poisson(demand: &Demand, plan: &Plan, seed: u64, requests: u64) -> Vec<Tally> {
    let mut tallies = vec![Tally::default(); demand.sessions.len()];
    let mut add = |session: usize, tally: &Tally| {
        tallies[session].arrived += tally.arrived;
        tallies[session].in_time += tally.in_time;
    };
    let (own, pools) = (own_slots(plan), pools(plan).0);
    let queue_rate = |slots: &[Own]| slots.iter().map(|own| own.rate).sum::<f64>();
    let pool_rate = |pool: &Pool| pool.members.iter().map(|&(_, rate, _)| rate).sum::<f64>();
    let all = own.values().map(|slots| queue_rate(slots)).sum::<f64>() + pools.iter().map(pool_rate).sum::<f64>();
    let part = |rate: f64| (requests as f64 * rate / all).ceil() as u64;
    for (seed, ((session, period), slots)) in (seed..).zip(&own) {
        let asked = &demand.sessions[*session];
        let slot = |own: &Own| {
            let profile = &demand.kinds[own.kind].models[&asked.model].profile;
            OwnSlot { start: own.start, batch: own.slot.batch, profile }
        };
        let slots: (Vec<OwnSlot>, f64) = (slots.iter().map(slot).collect(), queue_rate(slots));
        add(*session, &play::own(&slots.0, *period, slots.1, nanos(asked.slo), seed, part(slots.1)));
    }
    for (seed, pool) in (seed..).zip(&pools) {
        let (members, requests) = (pool.members(demand), part(pool_rate(pool)));
        let played = play::pool(&members, pool.devices, Arrivals::Poisson, seed, requests, u64::MAX);
        let played = played.expect("any number may be lost").tallies;
        played.iter().zip(&pool.members).for_each(|(tally, &(session, ..))| add(session, tally));
    }
    tallies
}

fn fleet(demand: &Demand, plan: &Plan, found: &mut Vec<Violation>) {
    for (device, timetable) in plan.devices.iter().enumerate() {
        if timetable.kind >= demand.kinds.len() {
            found.push(Violation::Kind { device, kind: timetable.kind });
        }
    }
    for kind in 0..demand.kinds.len() {
        let available = match &demand.fleet {
            Fleet::Unlimited(only) if *only == kind => usize::MAX,
            Fleet::Unlimited(_) => 0,
            Fleet::Fixed(devices) => devices.iter().filter(|&&other| other == kind).count(),
        };
        if plan.devices.iter().filter(|device| device.kind == kind).count() > available {
            found.push(Violation::Fleet { kind, available });
        }
    }
}

fn structure(demand: &Demand, device: usize, timetable: &Timetable, found: &mut Vec<Violation>) {
    let Some(kind) = demand.kinds.get(timetable.kind) else { return };
    if timetable.period.is_zero() && !timetable.slots.is_empty() {
        found.push(Violation::Period { device });
    }
    let mut free_from = std::time::Duration::ZERO;
    let mut models: BTreeMap<ModelId, u64> = BTreeMap::new();
    for (index, slot) in timetable.slots.iter().enumerate() {
        if slot.offset < free_from {
            found.push(Violation::Overlap { device, slot: index });
        }
        free_from = slot.offset.saturating_add(slot.execution);
        if slot.shares.is_empty() {
            found.push(Violation::Session { device, slot: index, session: None });
        }
        if slot.shares.len() > 1 && slot.execution < timetable.period {
            found.push(Violation::SharedInPart { device, slot: index });
        }
        for share in &slot.shares {
            let session = share.session;
            let Some(asked) = demand.sessions.get(session) else {
                found.push(Violation::Session { device, slot: index, session: Some(session) });
                continue;
            };
            let Some(cost) = kind.models.get(&asked.model) else {
                found.push(Violation::NoProfile { device, session });
                continue;
            };
            models.insert(asked.model, cost.memory_bytes);
            found.extend(slot_fits(device, index, slot, share, &cost.profile));
        }
    }
    let first = timetable.slots.first().map_or(std::time::Duration::ZERO, |slot| slot.offset);
    if free_from > timetable.period.saturating_add(first) {
        found.push(Violation::Overlap { device, slot: 0 });
    }
    let bytes = models.values().fold(0u64, |sum, &bytes| sum.saturating_add(bytes));
    if let Some(memory) = kind.memory_bytes.filter(|&memory| memory < bytes) {
        found.push(Violation::Memory { device, bytes, memory });
    }
}

fn slot_fits(device: usize, index: usize, slot: &Slot, share: &Share, profile: &Profile) -> Option<Violation> {
    let (alone, session, max) = (slot.shares.len() == 1, share.session, profile.max_batch());
    let batch = if alone { slot.batch } else { share.batch };
    let Some(latency_ns) = profile.nanos(batch) else {
        return Some(Violation::Batch { device, slot: index, session, batch, max });
    };
    let execution_ns = nanos(slot.execution);
    let short = alone && execution_ns < latency_ns;
    short.then_some(Violation::Execution { device, slot: index, session, execution_ns, latency_ns })
}

/// Slots and what is unplaced make up what each session asks for, or more.
fn rates(demand: &Demand, plan: &Plan, found: &mut Vec<Violation>) {
    let mut planned = vec![0.0; demand.sessions.len()];
    for slot in plan.devices.iter().flat_map(|device| &device.slots) {
        for share in &slot.shares {
            planned[share.session] += share.rate;
        }
    }
    for unplaced in &plan.unplaced {
        if let Some(planned) = planned.get_mut(unplaced.session) {
            *planned += unplaced.rate;
        }
    }
    for (session, (asked, &planned)) in demand.sessions.iter().zip(&planned).enumerate() {
        if planned < asked.rate * (1.0 - 1e-6) {
            found.push(Violation::Rate { session, asked: asked.rate, planned });
        }
    }
}

/// A slot that one session has for itself.
struct Own<'a> {
    /// Start within the common period, nanoseconds.
    start: u64,
    kind: usize,
    slot: &'a Slot,
    rate: f64,
}

/// By session and period, in order of start.
fn own_slots(plan: &Plan) -> BTreeMap<(usize, u64), Vec<Own<'_>>> {
    let mut queues: BTreeMap<(usize, u64), Vec<Own>> = BTreeMap::new();
    for timetable in &plan.devices {
        let period = nanos(timetable.period);
        for slot in &timetable.slots {
            let [share] = slot.shares[..] else { continue };
            let start = (nanos(timetable.phase) % period + nanos(slot.offset) % period) % period;
            let own = Own { start, kind: timetable.kind, slot, rate: share.rate };
            queues.entry((share.session, period)).or_default().push(own);
        }
    }
    for slots in queues.values_mut() {
        slots.sort_by_key(|own| own.start);
    }
    queues
}

fn unserved(demand: &Demand, session: usize, period: u64, slots: &[Own]) -> Option<Violation> {
    let rate: f64 = slots.iter().map(|own| own.rate).sum();
    let slo = nanos(demand.sessions[session].slo);
    let closes = |own: &Own, gap: u64, rate: f64| {
        let fills = f64::from(own.slot.batch) / rate * 1e9 * (1.0 + 1e-9);
        gap as f64 <= fills && gap.saturating_add(nanos(own.slot.execution)) <= slo
    };
    let before =
        |at: usize| if at > 0 { slots[at - 1].start } else { slots[slots.len() - 1].start.wrapping_sub(period) };
    let shared_queue = (0..slots.len()).all(|at| closes(&slots[at], slots[at].start.wrapping_sub(before(at)), rate));
    let streams = || slots.iter().all(|own| closes(own, period, own.rate));
    if shared_queue || streams() {
        return None;
    }
    let arrive = rate * period as f64 / 1e9;
    let take: u64 = slots.iter().map(|own| u64::from(own.slot.batch)).sum();
    if arrive > take as f64 * (1.0 + 1e-9) {
        return Some(Violation::QueueGrows { session, arrive, take });
    }
    let profiles: Vec<_> =
        slots.iter().map(|own| &demand.kinds[own.kind].models[&demand.sessions[session].model].profile).collect();
    let phases = (0..PHASES).map(|phase| f64::from(phase) / f64::from(PHASES));
    let latency_ns = phases.map(|phase| play_even(rate, phase, period, slots, &profiles)).max().unwrap_or(0);
    (latency_ns > slo).then_some(Violation::Late { session, latency_ns, slo_ns: slo })
}

/// The longest that a request takes, nanoseconds, when request n comes at (n + phase)/rate.
fn play_even(rate: f64, phase: f64, period: u64, slots: &[Own], profiles: &[&Profile]) -> u64 {
    let (mut served, mut longest) = (0u64, 0f64);
    let came_at = |request: u64| (request as f64 + phase) / rate * 1e9;
    for cycle in 0..CYCLES {
        for (own, profile) in slots.iter().zip(profiles) {
            let now = (cycle * period + own.start) as f64;
            let arrived = ((now * rate / 1e9 - phase).floor() + 1.0).max(0.0) as u64;
            let taken = (arrived - served.min(arrived)).min(u64::from(own.slot.batch));
            if taken > 0 {
                let latency = profile.nanos(taken as u32).expect("at most the slot's batch, which is profiled");
                longest = longest.max(now + latency as f64 - came_at(served));
                served += taken;
            }
        }
    }
    longest as u64
}

/// Devices that the same sessions share.
#[derive(Debug)]
struct Pool {
    kind: usize,
    devices: usize,
    /// (session, items per second on all devices, the batch that it waits for), by session.
    members: Vec<(usize, f64, u32)>,
}

/// The pools, and what keeps devices from being in one.
fn pools(plan: &Plan) -> (Vec<Pool>, Vec<Violation>) {
    let (mut pools, mut odd): (Vec<Pool>, Vec<Violation>) = (Vec::new(), Vec::new());
    // By kind and session: the pool that it is in.
    let mut found: BTreeMap<(usize, usize), usize> = BTreeMap::new();
    for (device, timetable) in plan.devices.iter().enumerate() {
        let Some(slot) = timetable.slots.iter().find(|slot| slot.shares.len() > 1) else { continue };
        let mut shares: Vec<&Share> = slot.shares.iter().collect();
        shares.sort_by_key(|share| share.session);
        let index = *found.entry((timetable.kind, shares[0].session)).or_insert(pools.len());
        if index == pools.len() {
            let members = shares.iter().map(|share| (share.session, 0.0, share.batch)).collect();
            pools.push(Pool { kind: timetable.kind, devices: 0, members });
        }
        pools[index].devices += 1;
        for (position, share) in shares.iter().enumerate() {
            let same = pools[index].members.get_mut(position).filter(|member| member.0 == share.session);
            let elsewhere = *found.entry((timetable.kind, share.session)).or_insert(index) != index;
            match same.filter(|_| !elsewhere && (position == 0 || shares[position - 1].session < share.session)) {
                Some(member) => member.1 += share.rate,
                None => odd.push(Violation::Pool { device, session: share.session }),
            }
        }
        if shares.len() < pools[index].members.len() {
            odd.push(Violation::Pool { device, session: pools[index].members[shares.len()].0 });
        }
    }
    (pools, odd)
}

impl Pool {
    fn members<'a>(&self, demand: &'a Demand) -> Vec<Member<'a>> {
        let member = |&(session, rate, batch): &(usize, f64, u32)| {
            let asked = &demand.sessions[session];
            let profile = &demand.kinds[self.kind].models[&asked.model].profile;
            Member { rate, slo: nanos(asked.slo), profile, batch }
        };
        self.members.iter().map(member).collect()
    }
}

/// What a pool does not keep of what it promises.
fn misses(demand: &Demand, pool: &Pool) -> Vec<Violation> {
    let members = pool.members(demand);
    let slow = members.iter().any(Member::is_slow);
    match demand.arrivals {
        ArrivalProcess::Even => {
            let late = late(pool, &members);
            if late.is_empty() && slow { too_many(pool, &members, Arrivals::SlowByChance) } else { late }
        }
        ArrivalProcess::Poisson => [Arrivals::Even, Arrivals::Poisson]
            .iter()
            .flat_map(|&arrivals| too_many(pool, &members, arrivals))
            .collect(),
    }
}

/// Sessions of which any request is late in their pool when they are evenly spaced.
fn late(pool: &Pool, members: &[Member]) -> Vec<Violation> {
    let requests = play::even_requests(members) as u64;
    let mut sums = vec![Tally::default(); members.len()];
    for seed in EVEN_SEEDS {
        let tallies = play::pool(members, pool.devices, Arrivals::Even, seed, requests, u64::MAX);
        for (sum, tally) in sums.iter_mut().zip(tallies.expect("any number may be lost").tallies) {
            sum.arrived += tally.arrived;
            sum.in_time += tally.in_time;
        }
    }
    let violation = |(&(session, ..), &Tally { arrived, in_time }): (&(usize, f64, u32), &Tally)| {
        (in_time < arrived).then_some(Violation::Loses { session, arrived, lost: arrived - in_time })
    };
    pool.members.iter().zip(&sums).filter_map(violation).collect()
}

/// Sessions that miss too often in their pool: more than one request in a hundred by three deviations, twice in a row. When
/// only the slow ones' requests come by chance, only they are judged.
fn too_many(pool: &Pool, members: &[Member], arrivals: Arrivals) -> Vec<Violation> {
    let requests = play::chance_requests(members) as u64;
    let play = |seed: u64, requests: u64| {
        play::pool(members, pool.devices, arrivals, seed, requests, u64::MAX).expect("any number may be lost").tallies
    };
    let too_many = |(member, tally): (&Member, &Tally)| {
        let allowed = tally.arrived as f64 * 0.01;
        let judged = arrivals != Arrivals::SlowByChance || member.is_slow();
        judged && (tally.arrived - tally.in_time) as f64 > allowed + 3.0 * allowed.sqrt().max(1.0)
    };
    let first = play(1, requests);
    if !members.iter().zip(&first).any(too_many) {
        return Vec::new();
    }
    // Of hundreds of sessions chance alone condemns one now and then, but hardly the same one again.
    let second = play(2, 2 * requests);
    let arrivals = if arrivals == Arrivals::Even { ArrivalProcess::Even } else { ArrivalProcess::Poisson };
    let mut found = Vec::new();
    for (position, &(session, ..)) in pool.members.iter().enumerate() {
        let member = &members[position];
        if too_many((member, &first[position])) && too_many((member, &second[position])) {
            let Tally { arrived, in_time } = second[position];
            found.push(Violation::Misses { session, arrivals, arrived, in_time });
        }
    }
    found
}
