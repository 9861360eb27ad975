//! Watches what the sessions ask for, and says so to the planner when its plan no longer fits.
//!
//! Round after round the poller looks at some sessions per turn, so that no request waits for a host with many. What it
//! finds goes to the control thread, and comes back as promises once the planner has done its work elsewhere.

use super::Poller;
use super::messages::Notice;
use crate::planning::{Asked, Cause, Promise, QueryDemand, SessionDemand};
use rota_sched::{Instant, SessionId};
use std::time::Duration;

/// Where the watch stands.
#[derive(Default)]
pub(super) struct Watch {
    /// When the next round begins.
    next: Instant,
    pass: Pass,
    /// The session at which the pass stands.
    at: usize,
    /// Why a plan is to be made.
    due: Option<Cause>,
    /// A plan is being made; what is due meanwhile waits for it.
    planning: bool,
    /// No plan because of demand before.
    not_before: Instant,
    /// In this round, a session asks for something or was planned to: without new requests that changes too.
    restless: bool,
    demand: Vec<SessionDemand>,
    queries: Vec<QueryDemand>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Pass {
    #[default]
    Waits,
    /// Compares measured rates with those that were planned for, …
    Compares,
    /// … and the γ of queries.
    ComparesQueries,
    /// Takes down what all sessions ask for, …
    Collects,
    /// … and all queries.
    CollectsQueries,
}

/// What a session was planned for.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Planned {
    /// Items per second that it asked for.
    asked: f64,
    /// Items per second that it was given, by the last plan in which it asked for something.
    pub promised: Option<f64>,
    /// Since when its measured rate is far from that.
    apart_since: Option<Instant>,
}

impl Planned {
    /// As `compare` where what was planned for is not one rate.
    pub(super) fn compare_with(&mut self, planned: f64, measured: f64, now: Instant) -> bool {
        self.asked = planned;
        self.compare(measured, now)
    }

    /// Takes in the rate as measured now; true when it was far from the planned one for long.
    fn compare(&mut self, measured: f64, now: Instant) -> bool {
        if !is_apart(self.asked, measured) {
            self.apart_since = None;
            return false;
        }
        now.since(*self.apart_since.get_or_insert(now)) >= APART
    }
}

/// Whether a measured rate is another one than was planned for, by more than a share of it and than chance explains.
fn is_apart(planned: f64, measured: f64) -> bool {
    if measured == 0.0 {
        return planned > 0.0;
    }
    let chance = (planned.max(measured) / MEASURED_S).sqrt();
    (measured - planned).abs() > BAND * planned + DEVIATIONS * chance
}

impl Poller {
    /// A plan is wanted for another reason than demand.
    pub(super) fn ask_for_plan(&mut self, cause: Cause) {
        self.watch.due = Some(cause);
    }

    /// When the watch has to be gone on with if nothing else happens.
    pub(super) fn next_watch(&self) -> Option<Instant> {
        let watches = self.watch.restless && !self.options.plan_interval.is_zero();
        (watches && !self.draining).then_some(self.watch.next)
    }

    /// Goes on with the watch. True while it has more to do at once.
    pub(super) fn watch_demand(&mut self, now: Instant) -> bool {
        match self.watch.pass {
            Pass::Waits if self.draining => false,
            Pass::Waits if self.watch.due.is_some() && !self.watch.planning => {
                self.begin(Pass::Collects);
                self.watch.demand.reserve(self.sessions.len());
                true
            }
            Pass::Waits if now < self.watch.next || self.options.plan_interval.is_zero() => false,
            Pass::Waits => {
                self.watch.next = now + ROUND;
                self.watch.restless = false;
                self.begin(Pass::Compares);
                true
            }
            Pass::Compares => {
                if !self.compare_some(now) {
                    self.begin(Pass::ComparesQueries);
                }
                true
            }
            // One a turn: it may have many stages.
            Pass::ComparesQueries => {
                if self.compare_query(self.watch.at, now) && now >= self.watch.not_before {
                    self.watch.due.get_or_insert(Cause::Demand);
                }
                self.watch.at += 1;
                let left = self.watch.at < self.queries.len();
                if !left {
                    self.watch.pass = Pass::Waits;
                }
                left || self.watch.due.is_some() && !self.watch.planning
            }
            Pass::Collects => {
                if !self.collect_some(now) {
                    self.begin(Pass::CollectsQueries);
                }
                true
            }
            Pass::CollectsQueries => {
                let next =
                    (self.watch.at..self.queries.len()).find_map(|index| Some((index, self.query_demand(index, now)?)));
                if let Some((index, demand)) = next {
                    self.watch.queries.push(demand);
                    self.watch.at = index + 1;
                } else {
                    self.watch.pass = Pass::Waits;
                    self.send_demand();
                }
                true
            }
        }
    }

    fn begin(&mut self, pass: Pass) {
        (self.watch.pass, self.watch.at) = (pass, 0);
    }

    /// The numbers of the sessions that the pass looks at in this turn; false when none is left after them.
    fn some_sessions(&mut self) -> (std::ops::Range<usize>, bool) {
        let from = self.watch.at;
        let to = (from + PER_TURN).min(self.sessions.len());
        self.watch.at = to;
        (from..to, to < self.sessions.len())
    }

    fn compare_some(&mut self, now: Instant) -> bool {
        let (range, left) = self.some_sessions();
        for index in range {
            if self.waits_elsewhere(index) {
                continue;
            }
            let Some(session) = &mut self.sessions[index] else { continue };
            let measured = measured(self.dispatcher.rates(SessionId(index as u32), now).offered);
            self.watch.restless |= measured > 0.0 || session.planned.asked > 0.0;
            if session.planned.compare(measured, now) && now >= self.watch.not_before {
                self.watch.due.get_or_insert(Cause::Demand);
            }
        }
        left
    }

    fn collect_some(&mut self, now: Instant) -> bool {
        let (range, left) = self.some_sessions();
        for index in range {
            if self.waits_elsewhere(index) {
                continue;
            }
            let members = self.member_demand(index, now);
            let Some(session) = &mut self.sessions[index] else { continue };
            let id = SessionId(index as u32);
            let rate = measured(self.dispatcher.rates(id, now).offered);
            (session.planned.asked, session.planned.apart_since) = (rate, None);
            let model = session.model.clone();
            self.watch.demand.push(SessionDemand {
                id,
                model,
                slo: session.slo,
                weight: session.weight,
                rate,
                members,
            });
        }
        left
    }

    fn send_demand(&mut self) {
        let Some(cause) = self.watch.due.take() else { return };
        self.watch.planning = true;
        let sessions = std::mem::take(&mut self.watch.demand);
        let queries = std::mem::take(&mut self.watch.queries);
        let there = self.devices.iter().enumerate().filter(|(_, state)| !state.lost);
        let devices = there.map(|(device, _)| device).collect();
        (self.notices)(Notice::Demand(Asked { cause, sessions, queries, devices }));
    }

    /// Takes over what a plan gives the sessions. Whoever has left meanwhile, or asks for nothing, is not touched.
    pub(super) fn take_promises(&mut self, promises: &[Promise], now: Instant) {
        self.watch.planning = false;
        self.watch.not_before = now + self.options.plan_interval;
        for promise in promises {
            let Some(Some(session)) = self.sessions.get_mut(promise.session.0 as usize) else { continue };
            if (session.model.id, session.slo) == (promise.model, promise.slo) {
                session.planned.promised = Some(promise.rate);
                for member in &promise.members {
                    if let Some(Some(session)) = self.sessions.get_mut(member.id.0 as usize) {
                        session.planned.promised = Some(member.rate);
                    }
                }
                self.dispatcher.entitle(&[(promise.session, promise.entitled)]);
            }
        }
    }
}

/// A rate to plan for: one that dies away is none.
fn measured(rate: f64) -> f64 {
    if rate < RATE_LEAST { 0.0 } else { rate }
}

const ROUND: Duration = Duration::from_millis(500);
/// Sessions that are looked at in one turn of the poller.
const PER_TURN: usize = 32;
/// A measured rate is another one than was planned for when it differs by this share of it, …
const BAND: f64 = 0.3;
/// … and by so many standard deviations of a Poisson count over the time that rates are measured in, …
const DEVIATIONS: f64 = 3.0;
const MEASURED_S: f64 = 10.0;
/// … for so long.
const APART: Duration = Duration::from_secs(1);
/// Items per second.
const RATE_LEAST: f64 = 0.01;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_apart_beyond_a_share_and_chance() {
        let cases = [
            (0.0, 0.0, false),
            (0.0, 0.5, false),
            (0.0, 5.0, true),
            (1.0, 0.0, true),
            (1.0, 1.5, false),
            (100.0, 120.0, false),
            (100.0, 150.0, true),
            (100.0, 50.0, true),
            (10_000.0, 12_900.0, false),
            (10_000.0, 13_500.0, true),
        ];
        for (planned, measured, apart) in cases {
            assert_eq!(is_apart(planned, measured), apart, "{planned} planned, {measured} measured");
        }
    }

    #[test]
    fn only_a_rate_that_stays_away_counts() {
        let at = |millis: u64| Instant(millis * 1_000_000);
        let mut planned = Planned { asked: 100.0, ..Planned::default() };
        assert!(!planned.compare(200.0, at(0)) && !planned.compare(200.0, at(999)));
        assert!(!planned.compare(110.0, at(1000)), "it came back");
        assert!(!planned.compare(200.0, at(1100)) && planned.compare(200.0, at(2100)));
    }
}
