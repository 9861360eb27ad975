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
//! Slots that several sessions share are played with Poisson arrivals: while the slot lasts, the session whose oldest
//! request has to start first runs a batch, and then the next; at least 99 % of each session's requests must be answered
//! in time.

mod play;

pub use play::Tally;
pub(super) use play::{Entrant, Turn, play};

use super::{ArrivalProcess, Demand, Fleet, Plan, Slot, Timetable};
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
    #[error("device {device} holds models of {bytes} bytes, but has {memory}")]
    Memory { device: usize, bytes: u64, memory: u64 },
    #[error("session {session} asks for {asked} items/s; slots and what is unplaced come to {planned}")]
    Rate { session: usize, asked: f64, planned: f64 },
    #[error("session {session}: {arrive} items arrive in a period, and its slots take {take}")]
    QueueGrows { session: usize, arrive: f64, take: u64 },
    #[error("session {session}: a request is answered after {latency_ns} ns, its SLO is {slo_ns} ns")]
    Late { session: usize, latency_ns: u64, slo_ns: u64 },
    #[error("session {session}: {in_time} of {arrived} requests are in time under Poisson arrivals, less than 99 %")]
    Misses { session: usize, arrived: u64, in_time: u64 },
}

/// Periods that a queue is played for when its gaps alone do not show that it holds.
pub const CYCLES: u64 = 256;
/// Phases of the arrivals, evenly spread, at which it is played.
pub const PHASES: u32 = 16;
/// Requests that are played through shared slots, at most.
const PLAYED_MAX: f64 = 2e6;
/// Requests of the slowest session in a shared slot that are played if that many do.
const PLAYED_EACH: f64 = 2e3;

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
        found.extend(pools(demand, plan));
    }
    found
}

/// For every session, how many requests come and how many are answered in time, when all slots of `plan` are played with
/// Poisson arrivals until `requests` have come. A slot takes nothing before its start and gives no time away, so a
/// dispatcher that lends slack does better.
pub fn play_poisson(demand: &Demand, plan: &Plan, seed: u64, requests: u64) -> Vec<Tally> {
    let slots = plan.devices.iter().flat_map(|device| device.slots.iter().map(move |slot| (device, slot)));
    play_slots(demand, slots, seed, requests as f64)
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
            found.extend(slot_fits(device, index, slot, session, &cost.profile));
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

fn slot_fits(device: usize, index: usize, slot: &Slot, session: usize, profile: &Profile) -> Option<Violation> {
    let (batch, max) = (slot.batch, profile.max_batch());
    let Some(latency_ns) = profile.nanos(batch) else {
        return Some(Violation::Batch { device, slot: index, session, batch, max });
    };
    let execution_ns = nanos(slot.execution);
    (execution_ns < latency_ns).then_some(Violation::Execution {
        device,
        slot: index,
        session,
        execution_ns,
        latency_ns,
    })
}

/// Slots and what is unplaced make up what each session asks for.
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
        if (asked.rate - planned).abs() > asked.rate * 1e-6 {
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

/// Sessions that miss too often in the slots that they share.
fn pools(demand: &Demand, plan: &Plan) -> Vec<Violation> {
    let slots = plan.devices.iter().flat_map(|device| device.slots.iter().map(move |slot| (device, slot)));
    let shared: Vec<_> = slots.filter(|(_, slot)| slot.shares.len() > 1).collect();
    let mut rates = vec![0.0; demand.sessions.len()];
    for share in shared.iter().flat_map(|(_, slot)| &slot.shares) {
        rates[share.session] += share.rate;
    }
    let all: f64 = rates.iter().sum();
    let slowest = rates.iter().copied().filter(|&rate| rate > 0.0).fold(f64::INFINITY, f64::min);
    let requests = (PLAYED_EACH * all / slowest).min(PLAYED_MAX);
    let missing = play_slots(demand, shared.into_iter(), 1, requests).into_iter().enumerate().filter(|(_, tally)| {
        // Three deviations beyond one in a hundred: chance alone does not condemn a session.
        let allowed = tally.arrived as f64 * 0.01;
        (tally.arrived - tally.in_time) as f64 > allowed + 3.0 * allowed.sqrt().max(1.0)
    });
    missing.map(|(session, Tally { arrived, in_time })| Violation::Misses { session, arrived, in_time }).collect()
}

fn play_slots<'a>(
    demand: &Demand,
    slots: impl Iterator<Item = (&'a Timetable, &'a Slot)>,
    seed: u64,
    requests: f64,
) -> Vec<Tally> {
    let mut rates = vec![0.0; demand.sessions.len()];
    let mut profiles: Vec<Option<&Profile>> = vec![None; demand.sessions.len()];
    let mut turns = Vec::new();
    for (timetable, slot) in slots {
        for share in &slot.shares {
            rates[share.session] += share.rate;
            let model = demand.sessions[share.session].model;
            profiles[share.session] = demand.kinds[timetable.kind].models.get(&model).map(|cost| &cost.profile);
        }
        turns.push(Turn {
            first: nanos(timetable.phase).saturating_add(nanos(slot.offset)),
            period: nanos(timetable.period),
            batch: slot.batch,
            length: nanos(slot.execution),
            entrants: slot.shares.iter().map(|share| share.session as u32).collect(),
        });
    }
    let entrant = |session: usize| {
        let slo = nanos(demand.sessions[session].slo);
        profiles[session].map_or(Entrant::absent(), |profile| Entrant {
            rate: rates[session],
            slo,
            profile: Some(profile),
        })
    };
    let entrants: Vec<Entrant> = (0..demand.sessions.len()).map(entrant).collect();
    let played = play(&entrants, &turns, ArrivalProcess::Poisson, seed, requests as u64, u64::MAX);
    played.expect("there is no limit to the steps")
}
