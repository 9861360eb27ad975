//! What a run came to: per session, in all, per device.

use crate::Nanos;
use crate::calls::Instance;
use crate::load::{Load, Request};
use crate::scenario::Scenario;
use serde::Serialize;

/// The outcome of a run. Rates are in requests per second over the time in which requests arrived.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Of a query's stage: its calls; good are those answered while their query could be in time.
    pub sessions: Vec<SessionReport>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub queries: Vec<QueryReport>,
    /// Of plain sessions' requests, and of queries, each counted once.
    pub total: Figures,
    /// By device: the share of the run, to its last answer, in which it executed.
    pub utilisation: Vec<f64>,
    /// Requests that were never answered: the policy forgot them. They count as bad.
    pub unanswered: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SessionReport {
    pub session: usize,
    /// It is a query's.
    #[serde(skip)]
    pub is_stage: bool,
    #[serde(flatten)]
    pub figures: Figures,
}

/// Whole queries, from their start to the last answer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct QueryReport {
    pub query: usize,
    pub name: String,
    /// Queries per second.
    pub offered: f64,
    /// All of whose calls were answered within the SLO.
    pub goodput: f64,
    pub bad_rate: f64,
    /// Of queries all of whose calls were answered, late ones too; zero when there is none.
    pub p50_ms: f64,
    pub p99_ms: f64,
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
    /// Whether every plain session and every query has at least this share within its SLO.
    pub fn holds(&self, good_share: f64) -> bool {
        // What rounding may have added to a share that is exactly met.
        self.bad_rates().all(|bad_rate| bad_rate <= 1.0 - good_share + 1e-12)
    }

    /// Of every plain session, and then of every query.
    pub fn bad_rates(&self) -> impl Iterator<Item = f64> + '_ {
        let plain = self.sessions.iter().filter(|session| !session.is_stage).map(|session| session.figures.bad_rate);
        plain.chain(self.queries.iter().map(|query| query.bad_rate))
    }
}

/// Counts as the engine goes.
pub(crate) struct Recorder {
    seconds: f64,
    tallies: Vec<Tally>,
    /// By session.
    stages: Vec<bool>,
    queries: Vec<(String, Tally)>,
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
    /// Requests that ran.
    ran: u64,
    latencies: Vec<Nanos>,
}

impl Recorder {
    pub fn new(scenario: &Scenario, load: &Load, bad_share_max: Option<f64>) -> Recorder {
        let stages: Vec<bool> = scenario.sessions.iter().map(|session| session.stage.is_some()).collect();
        let (mut comes, mut started) = (vec![0u64; stages.len()], vec![0u64; scenario.queries.len()]);
        load.requests[..load.arriving].iter().for_each(|request| comes[request.session as usize] += 1);
        load.calls.instances.iter().for_each(|instance| started[instance.query] += 1);
        let allowed = |count: u64| bad_share_max.map_or(u64::MAX, |share| (share * count as f64 + 1e-9) as u64);
        let tally = |(&is_stage, count): (&bool, u64)| {
            // Whether calls are in time is for their query to say.
            let bad_max = if is_stage { u64::MAX } else { allowed(count) };
            Tally { bad_max, ..Tally::default() }
        };
        let query = |(query, &offered): (&crate::scenario::Query, &u64)| {
            (query.name.clone(), Tally { offered, bad_max: allowed(offered), ..Tally::default() })
        };
        let mut tallies: Vec<Tally> = stages.iter().zip(comes.iter().copied()).map(tally).collect();
        if bad_share_max.is_none() {
            tallies.iter_mut().zip(&comes).for_each(|(tally, &count)| tally.latencies.reserve(count as usize));
        }
        Recorder {
            seconds: load.seconds,
            tallies,
            queries: scenario.queries.iter().zip(&started).map(query).collect(),
            stages,
            busy: vec![0; scenario.devices.len()],
            ended: 0,
            answered: 0,
            requests: 0,
            decided: false,
        }
    }

    pub fn is_decided(&self) -> bool {
        self.decided
    }

    pub fn arrived(&mut self, request: &Request) {
        self.requests += 1;
        self.tallies[request.session as usize].offered += 1;
    }

    pub fn dropped(&mut self, request: &Request) {
        self.answered += 1;
        self.decided |= self.tallies[request.session as usize].bad();
    }

    /// It was to be answered by `deadline`.
    pub fn answered(&mut self, request: &Request, deadline: Nanos, now: Nanos) {
        self.answered += 1;
        self.ended = now;
        let tally = &mut self.tallies[request.session as usize];
        tally.ran += 1;
        self.decided |= tally.answered(request.arrival, deadline, now);
    }

    pub fn query_dropped(&mut self, instance: &Instance) {
        self.decided |= self.queries[instance.query].1.bad();
    }

    pub fn query_answered(&mut self, instance: &Instance, now: Nanos) {
        self.decided |= self.queries[instance.query].1.answered(instance.start, instance.deadline, now);
    }

    pub fn executed(&mut self, device: usize, session: usize, took: Nanos) {
        self.busy[device] += took;
        self.tallies[session].batches += 1;
    }

    /// A device worked for nothing.
    pub fn wasted(&mut self, device: usize, took: Nanos) {
        self.busy[device] += took;
    }

    pub fn report(mut self) -> Report {
        let mut total = Tally::default();
        let mut sessions = Vec::with_capacity(self.tallies.len());
        for (session, tally) in self.tallies.iter_mut().enumerate() {
            (total.batches, total.ran) = (total.batches + tally.batches, total.ran + tally.ran);
            let is_stage = self.stages[session];
            if !is_stage {
                total.add(tally);
            }
            sessions.push(SessionReport { session, is_stage, figures: tally.figures(self.seconds) });
        }
        let mut queries = Vec::with_capacity(self.queries.len());
        for (query, (name, tally)) in self.queries.iter_mut().enumerate() {
            total.add(tally);
            let Figures { offered, goodput, bad_rate, p50_ms, p99_ms, .. } = tally.figures(self.seconds);
            queries.push(QueryReport { query, name: name.clone(), offered, goodput, bad_rate, p50_ms, p99_ms });
        }
        let ended = (self.ended as f64).max(1.0);
        Report {
            sessions,
            queries,
            total: total.figures(self.seconds),
            utilisation: self.busy.iter().map(|&busy| busy as f64 / ended).collect(),
            unanswered: self.requests - self.answered,
        }
    }
}

impl Tally {
    /// One more is bad; true when these are more than there may be.
    fn bad(&mut self) -> bool {
        self.bad += 1;
        self.bad > self.bad_max
    }

    /// One more is answered; true as for [`Tally::bad`].
    fn answered(&mut self, from: Nanos, deadline: Nanos, now: Nanos) -> bool {
        self.latencies.push(now - from);
        let good = now <= deadline;
        self.good += u64::from(good);
        !good && self.bad()
    }

    fn add(&mut self, other: &Tally) {
        self.offered += other.offered;
        self.good += other.good;
        self.latencies.extend_from_slice(&other.latencies);
    }

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
            mean_batch: self.ran as f64 / (self.batches as f64).max(1.0),
        }
    }
}
