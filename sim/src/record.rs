//! What a run came to: per session, in all, per device.

use crate::Nanos;
use crate::load::{Load, Request};
use crate::scenario::Scenario;
use serde::Serialize;

/// The outcome of a run. Rates are in requests per second over the time in which requests arrived.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    pub sessions: Vec<SessionReport>,
    pub total: Figures,
    /// By device: the share of the run, to its last answer, in which it executed.
    pub utilisation: Vec<f64>,
    /// Requests that were never answered: the policy forgot them. They count as bad.
    pub unanswered: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SessionReport {
    pub session: usize,
    #[serde(flatten)]
    pub figures: Figures,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Figures {
    pub offered: f64,
    /// Answered within the SLO.
    pub goodput: f64,
    /// The share that was not: dropped, late, or never answered. Zero when nothing was offered.
    pub bad_rate: f64,
    /// Of requests that ran, late ones too; zero when none did.
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub mean_batch: f64,
}

impl Report {
    /// Whether every session has at least this share of its requests within its SLO.
    pub fn holds(&self, good_share: f64) -> bool {
        // What rounding may have added to a share that is exactly met.
        self.sessions.iter().all(|session| session.figures.bad_rate <= 1.0 - good_share + 1e-12)
    }
}

/// Counts as the engine goes.
pub(crate) struct Recorder {
    seconds: f64,
    tallies: Vec<Tally>,
    busy: Vec<Nanos>,
    /// Of the last answer.
    ended: Nanos,
    answered: u64,
    requests: u64,
    /// A session has more bad requests than the run was to allow.
    decided: bool,
}

#[derive(Clone, Default)]
struct Tally {
    offered: u64,
    good: u64,
    bad: u64,
    bad_max: u64,
    batches: u64,
    latencies: Vec<Nanos>,
}

impl Recorder {
    pub fn new(scenario: &Scenario, load: &Load, bad_share_max: Option<f64>) -> Recorder {
        let mut tallies = vec![Tally::default(); scenario.sessions.len()];
        load.requests.iter().for_each(|request| tallies[request.session as usize].offered += 1);
        for tally in &mut tallies {
            tally.bad_max = bad_share_max.map_or(u64::MAX, |share| (share * tally.offered as f64 + 1e-9) as u64);
            if bad_share_max.is_none() {
                tally.latencies.reserve(tally.offered as usize);
            }
        }
        Recorder {
            seconds: load.seconds,
            tallies,
            busy: vec![0; scenario.devices.len()],
            ended: 0,
            answered: 0,
            requests: load.requests.len() as u64,
            decided: false,
        }
    }

    pub fn is_decided(&self) -> bool {
        self.decided
    }

    pub fn dropped(&mut self, request: &Request) {
        self.answered += 1;
        self.bad(request);
    }

    pub fn answered(&mut self, request: &Request, now: Nanos) {
        self.answered += 1;
        self.ended = now;
        self.tallies[request.session as usize].latencies.push(now - request.arrival);
        if now <= request.deadline {
            self.tallies[request.session as usize].good += 1;
        } else {
            self.bad(request);
        }
    }

    pub fn executed(&mut self, device: usize, session: usize, took: Nanos) {
        self.busy[device] += took;
        self.tallies[session].batches += 1;
    }

    /// A device worked for nothing.
    pub fn wasted(&mut self, device: usize, took: Nanos) {
        self.busy[device] += took;
    }

    fn bad(&mut self, request: &Request) {
        let tally = &mut self.tallies[request.session as usize];
        tally.bad += 1;
        self.decided |= tally.bad > tally.bad_max;
    }

    pub fn report(mut self) -> Report {
        let mut total = Tally::default();
        let mut sessions = Vec::with_capacity(self.tallies.len());
        for (session, tally) in self.tallies.iter_mut().enumerate() {
            total.offered += tally.offered;
            total.good += tally.good;
            total.batches += tally.batches;
            total.latencies.extend_from_slice(&tally.latencies);
            sessions.push(SessionReport { session, figures: tally.figures(self.seconds) });
        }
        let ended = (self.ended as f64).max(1.0);
        Report {
            sessions,
            total: total.figures(self.seconds),
            utilisation: self.busy.iter().map(|&busy| busy as f64 / ended).collect(),
            unanswered: self.requests - self.answered,
        }
    }
}

impl Tally {
    fn figures(&mut self, seconds: f64) -> Figures {
        self.latencies.sort_unstable();
        let per_second = |count: u64| if seconds > 0.0 { count as f64 / seconds } else { 0.0 };
        // The smallest latency that this share of the requests did not exceed.
        let percentile = |share: f64| {
            let rank = (share * self.latencies.len() as f64).ceil() as usize;
            self.latencies.get(rank.max(1) - 1).map_or(0.0, |&latency| latency as f64 / 1e6)
        };
        Figures {
            offered: per_second(self.offered),
            goodput: per_second(self.good),
            bad_rate: (self.offered - self.good) as f64 / (self.offered as f64).max(1.0),
            p50_ms: percentile(0.5),
            p99_ms: percentile(0.99),
            mean_batch: self.latencies.len() as f64 / (self.batches as f64).max(1.0),
        }
    }
}
