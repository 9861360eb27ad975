//! Plans for the devices that there are.
//!
//! When they do not suffice, every session keeps the same part of its rate, times its weight, but no more than all of it:
//! session i gets R·min(1, φ·w), with the largest φ for which the planner needs no more devices than there are. So no
//! session is starved to feed another of equal weight, and one of twice the weight keeps twice the part. What does not
//! even fit at a thousandth of its rate (too many models for the memory, say) is left out, the least weight first.
//!
//! What the devices can do beyond that goes where it earns most: sessions get all of their rate, one after another, by
//! falling weight for the device time of a request, as many of them as still fit.
//!
//! Kinds of device may differ. A session goes, largest first, to the kind that it makes least full; one that is too large
//! for any kind alone is divided among all that can serve it.

use super::load::Load;
use super::{Demand, Plan, Planner, Steps, Timetable, Unplaced, Why, bound};
use std::time::Duration;

/// Halvings of the interval in which φ lies: one part in a thousand.
const HALVINGS: u32 = 10;
/// Steps of search for a plan that is only tried.
const QUICK: Steps = Steps(0);
/// The smallest φ that is tried.
const PART_MIN: f64 = 1e-3;

/// Timetables by kind for some rates, or nothing when the devices do not suffice.
struct Planning<'a> {
    demand: &'a Demand,
    /// Devices of each kind.
    counts: Vec<usize>,
    planner: Planner,
}

pub(super) fn plan(demand: &Demand, devices: &[usize], planner: Planner, budget: Steps) -> Plan {
    let mut counts = vec![0; demand.kinds.len()];
    devices.iter().for_each(|&kind| counts[kind] += 1);
    let planning = Planning { demand, counts, planner };
    let mut unplaced = Vec::new();
    let mut sessions = Vec::new();
    for (session, asked) in demand.sessions.iter().enumerate() {
        match planning.why_not(session) {
            Some(why) => unplaced.push(Unplaced { session, rate: asked.rate, why }),
            None => sessions.push(session),
        }
    }
    let fair = planning.fairest(&mut sessions, budget);
    let (rates, timetables) = planning.topped_up(&sessions, fair);
    for (session, asked) in demand.sessions.iter().enumerate() {
        let missing = asked.rate - rates[session];
        if missing > asked.rate * 1e-9 && !unplaced.iter().any(|unplaced| unplaced.session == session) {
            unplaced.push(Unplaced { session, rate: missing, why: Why::NoDevice });
        }
    }
    unplaced.sort_by_key(|unplaced| unplaced.session);
    Plan { devices: by_device(devices, timetables), unplaced, lower_bound: 0.0 }
}

/// A timetable for each device, in order.
fn by_device(devices: &[usize], timetables: Vec<Timetable>) -> Vec<Timetable> {
    let mut left: Vec<Option<Timetable>> = timetables.into_iter().map(Some).collect();
    let idle = |kind| Timetable { kind, period: Duration::ZERO, phase: Duration::ZERO, slots: Vec::new() };
    let mut take = |kind: usize| {
        let found = left.iter_mut().find(|timetable| timetable.as_ref().is_some_and(|other| other.kind == kind));
        found.and_then(Option::take).unwrap_or_else(|| idle(kind))
    };
    devices.iter().map(|&kind| take(kind)).collect()
}

impl Planning<'_> {
    /// Why no device can serve `session`, whatever the load.
    fn why_not(&self, session: usize) -> Option<Why> {
        let rate = self.demand.sessions[session].rate;
        let kinds = (0..self.counts.len()).filter(|&kind| self.counts[kind] > 0);
        let mut why = Why::NoDevice;
        for kind in kinds {
            match Load::new(self.demand, kind, session, rate) {
                Ok(_) => return None,
                // What comes closest to being served says most.
                Err(found) => why = if matches!(why, Why::NoDevice | Why::NoProfile) { found } else { why },
            }
        }
        Some(if rate <= 0.0 { Why::NoDemand } else { why })
    }

    /// Rates by session and timetables, for the largest part of their rates that `sessions` can all keep, without those that
    /// have to be left out.
    fn fairest(&self, sessions: &mut Vec<usize>, budget: Steps) -> (Vec<f64>, Vec<Timetable>) {
        let weight = |session: usize| self.demand.sessions[session].weight;
        let Some(least) = sessions.iter().map(|&session| weight(session)).reduce(f64::min) else {
            return (vec![0.0; self.demand.sessions.len()], Vec::new());
        };
        // At this part the session of least weight keeps all.
        if let Some(found) = self.keep(sessions, 1.0 / least, budget) {
            return found;
        }
        sessions.sort_by(|&a, &b| weight(b).total_cmp(&weight(a)).then(a.cmp(&b)));
        let smallest = |sessions: &[usize]| self.keep(sessions, PART_MIN / weight(sessions[0]), QUICK);
        let mut best = smallest(sessions);
        if best.is_none() {
            let (mut fit, mut fail) = (0, sessions.len());
            while fit + 1 < fail {
                let middle = fit + (fail - fit) / 2;
                match smallest(&sessions[..middle]) {
                    Some(found) => (best, fit) = (Some(found), middle),
                    None => fail = middle,
                }
            }
            sessions.truncate(fit);
        }
        let Some(mut best) = best else { return (vec![0.0; self.demand.sessions.len()], Vec::new()) };
        let (mut low, mut high) = (PART_MIN / weight(sessions[0]), 1.0 / least);
        // By ratio at first, since weights and overload may span orders of magnitude.
        for _ in 0..HALVINGS {
            let middle = if high > 4.0 * low { (low * high).sqrt() } else { (low + high) / 2.0 };
            match self.keep(sessions, middle, QUICK) {
                Some(found) => (best, low) = (found, middle),
                None => high = middle,
            }
        }
        best
    }

    /// `fair` with as many of `sessions` at all of their rate as still fit, those first that earn most.
    fn topped_up(&self, sessions: &[usize], fair: (Vec<f64>, Vec<Timetable>)) -> (Vec<f64>, Vec<Timetable>) {
        let mut short: Vec<(f64, usize)> = Vec::new();
        for &session in sessions {
            let asked = &self.demand.sessions[session];
            if fair.0[session] < asked.rate {
                let loads = (0..self.counts.len()).filter(|&kind| self.counts[kind] > 0);
                let loads = loads.filter_map(|kind| Load::new(self.demand, kind, session, asked.rate).ok());
                let cost = loads.map(|load| bound::devices(&load)).fold(f64::INFINITY, f64::min) / asked.rate;
                short.push((asked.weight / cost, session));
            }
        }
        short.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        let floor = fair.0.clone();
        let (mut best, mut fit, mut fail) = (fair, 0, short.len() + 1);
        while fit + 1 < fail {
            let middle = fit + (fail - fit) / 2;
            let mut rates = floor.clone();
            short[..middle].iter().for_each(|&(_, session)| rates[session] = self.demand.sessions[session].rate);
            let found = self.fits(sessions, rates, QUICK);
            match found.filter(|(rates, _)| rates.iter().zip(&floor).all(|(rate, floor)| rate >= floor)) {
                Some(found) => (best, fit) = (found, middle),
                None => fail = middle,
            }
        }
        best
    }

    /// Rates and timetables when every session keeps `part` of its rate, times its weight.
    fn keep(&self, sessions: &[usize], part: f64, budget: Steps) -> Option<(Vec<f64>, Vec<Timetable>)> {
        let mut rates = vec![0.0; self.demand.sessions.len()];
        for &session in sessions {
            let asked = &self.demand.sessions[session];
            rates[session] = asked.rate * (part * asked.weight).min(1.0);
        }
        self.fits(sessions, rates, budget)
    }

    /// Timetables for these rates, less what the planner has no place for.
    fn fits(&self, sessions: &[usize], mut rates: Vec<f64>, budget: Steps) -> Option<(Vec<f64>, Vec<Timetable>)> {
        let by_kind = self.divide(sessions, &rates)?;
        let mut timetables = Vec::new();
        for (kind, loads) in by_kind.iter().enumerate() {
            // No plan can do with less, so there is none to look for.
            if loads.iter().map(bound::devices).sum::<f64>() > self.counts[kind] as f64 {
                return None;
            }
            let memory = self.demand.kinds[kind].memory_bytes;
            let (devices, refused) = super::pack(loads, kind, memory, self.planner, budget, self.counts[kind])?;
            if devices.len() > self.counts[kind] {
                return None;
            }
            for unplaced in refused {
                rates[unplaced.session] -= unplaced.rate;
            }
            timetables.extend(devices);
        }
        Some((rates, timetables))
    }

    /// Loads by kind, about equally full; `None` when a session alone is far too large.
    fn divide(&self, sessions: &[usize], rates: &[f64]) -> Option<Vec<Vec<Load<'_>>>> {
        let kinds: Vec<usize> = (0..self.counts.len()).filter(|&kind| self.counts[kind] > 0).collect();
        let mut choices: Vec<Vec<Load>> = sessions
            .iter()
            .map(|&session| {
                kinds.iter().filter_map(|&kind| Load::new(self.demand, kind, session, rates[session]).ok()).collect()
            })
            .collect();
        let smallest = |loads: &[Load]| loads.iter().map(|load| load.share).fold(f64::INFINITY, f64::min);
        choices.sort_by(|a, b| smallest(b).total_cmp(&smallest(a)));
        let mut by_kind: Vec<Vec<Load>> = vec![Vec::new(); self.counts.len()];
        let mut full = vec![0.0; self.counts.len()];
        for loads in choices {
            let count = |load: &Load| self.counts[load.kind] as f64;
            if smallest(&loads).is_infinite() {
                return None;
            }
            if loads.len() > 1 && loads.iter().all(|load| load.share > count(load)) {
                let speed = |load: &Load| count(load) / load.share;
                let all: f64 = loads.iter().map(speed).sum();
                for load in &loads {
                    let rate = load.rate * speed(load) / all;
                    let Ok(part) = Load::new(self.demand, load.kind, load.session, rate) else { continue };
                    full[load.kind] += part.share / count(load);
                    by_kind[load.kind].push(part);
                }
                continue;
            }
            let then = |load: &Load| full[load.kind] + load.share / count(load);
            let Some(load) = loads.into_iter().min_by(|a, b| then(a).total_cmp(&then(b))) else { continue };
            full[load.kind] = then(&load);
            by_kind[load.kind].push(load);
        }
        Some(by_kind)
    }
}
