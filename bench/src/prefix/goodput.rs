//! The greatest load that a daemon holds: nearly every request is answered within its SLO, in an open loop of Poisson arrivals.

use super::{ANSWER_MAX, Ask, connect};
use crate::numbers::Numbers;
use crate::process::Daemon;
use crate::rounds::{Contender, Failure};
use rota_ipc::Client;
use rota_ipc::client::Request;
use std::time::{Duration, Instant};

/// A connection that asks models at a rate.
pub struct Asker {
    client: Client,
    /// By what is asked: requests that are not in flight.
    idle: Vec<Vec<Request>>,
    slo: Duration,
    /// Models that one request asks.
    asked: usize,
}

/// How a load is searched for.
#[derive(Clone, Copy, Debug)]
pub struct Search {
    /// Of one probe.
    pub length: Duration,
    /// Answers per second that it begins with.
    pub guess: f64,
    pub seed: u64,
}

impl Asker {
    /// Asks each of the models `names`, or all with every request, under one SLO.
    pub fn new(daemon: &Daemon, names: &[String], ask: Ask, slo: Duration) -> Result<Asker, Failure> {
        let (client, idle) = connect(daemon, names, ask, slo, IN_FLIGHT)?;
        let asked = if matches!(ask, Ask::All) { names.len() } else { 1 };
        Ok(Asker { client, idle, slo, asked })
    }

    /// The most answers per second of which [`HELD`] come in time.
    pub fn most(&mut self, search: Search) -> Result<f64, Failure> {
        let (mut held, mut missed) = (0.0, f64::INFINITY);
        let mut rate = search.guess;
        while missed > held * (1.0 + CLOSE_ENOUGH) && rate > RATE_LEAST {
            if self.share(rate / self.asked as f64, search)? >= HELD {
                held = rate;
            } else {
                missed = rate;
            }
            rate = match (held > 0.0, missed.is_finite()) {
                (true, true) => (held * missed).sqrt(),
                (true, false) => held * 2.0,
                (false, _) => missed / 2.0,
            };
        }
        Ok(held)
    }

    /// Offers `rate` requests per second; the share that is answered in time.
    fn share(&mut self, rate: f64, search: Search) -> Result<f64, Failure> {
        let mut numbers = Numbers::new(search.seed, 0);
        let (mean, end) = (1.0 / rate, WARMUP + search.length);
        let (mut offered, mut good) = (0_u32, 0_u32);
        let start = Instant::now();
        let mut due = Duration::from_secs_f64(mean * numbers.exponential());
        while due < end || self.client.in_flight_count() > 0 {
            let now = start.elapsed();
            while due < end && due <= now {
                offered += u32::from(due >= WARMUP);
                let group = (numbers.uniform() * self.idle.len() as f64) as usize;
                // With none left the request counts as one that was not answered.
                if let Some(mut request) = self.idle[group].pop() {
                    request.tag = (due.as_nanos() as u64) << GROUP_BITS | group as u64;
                    self.client.submit(request)?;
                }
                due += Duration::from_secs_f64(mean * numbers.exponential());
            }
            let patience = if due < end { due.saturating_sub(start.elapsed()) } else { ANSWER_MAX };
            let Some(answer) = self.client.wait(patience)? else {
                if due < end {
                    continue;
                }
                return Err(format!("no answer within {ANSWER_MAX:?}").into());
            };
            let sent = Duration::from_nanos(answer.tag >> GROUP_BITS);
            let in_time = answer.is_answered() && start.elapsed() <= sent + self.slo;
            good += u32::from(in_time && sent >= WARMUP);
            let group = answer.tag & ((1 << GROUP_BITS) - 1);
            self.idle[group as usize].push(answer.into_request());
        }
        Ok(f64::from(good) / f64::from(offered.max(1)))
    }
}

/// Searches anew in each round, with other arrivals.
pub fn contender<'a>(name: &str, mut asker: Asker, mut search: Search) -> Contender<'a> {
    Contender::new(name, move || {
        search.seed += 1;
        let most = asker.most(search)?;
        if most > 0.0 {
            search.guess = most;
        }
        Ok(vec![most])
    })
}

/// The share that has to be answered in time.
pub const HELD: f64 = 0.99;
/// A search ends when what is held and what is not are no further apart.
const CLOSE_ENOUGH: f64 = 0.02;
/// Below this nothing is held at all.
const RATE_LEAST: f64 = 0.5;
/// Not counted.
const WARMUP: Duration = Duration::from_millis(500);
/// Requests in flight, of all kinds together, where the arena holds as many.
const IN_FLIGHT: usize = 1024;
/// Of a tag, for what was asked; the rest is when, in nanoseconds.
const GROUP_BITS: u32 = 4;
