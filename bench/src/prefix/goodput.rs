//! The greatest load that a daemon holds: nearly every request is answered within its SLO, in an open loop of Poisson arrivals.

use super::{ANSWER_MAX, ARENA_BYTES, Ask, one_item};
use crate::numbers::Numbers;
use crate::process::Daemon;
use crate::rounds::{Contender, Failure};
use rota_ipc::client::{Open, Request, Session};
use rota_ipc::{Client, ClientOptions};
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
        let options = ClientOptions { slots: 2048, arena_bytes: ARENA_BYTES, ..ClientOptions::default() };
        let mut client = Client::connect(daemon.socket(), options)?;
        let open = Open { version: None, slo: Some(slo) };
        let sessions = names.iter().map(|name| client.open(name, open)).collect::<Result<Vec<Session>, _>>()?;
        let groups: Vec<&[Session]> = match ask {
            Ask::One => sessions.chunks(1).collect(),
            Ask::All => vec![&sessions],
        };
        let item_bytes = one_item(&sessions[0])?.iter().map(|&dim| u64::from(dim)).product::<u64>() * 4;
        // Outputs and gaps take a part of the arena too.
        let fit = usize::try_from(ARENA_BYTES / 2 / item_bytes.max(1)).unwrap_or(IN_FLIGHT);
        let each = IN_FLIGHT.min(fit) / groups.len();
        let mut idle = Vec::with_capacity(groups.len());
        for group in &groups {
            let dims = one_item(&group[0])?;
            let request = |number: usize| -> Result<Request, Failure> {
                let mut request = client.request_of(group)?;
                for (at, value) in request.input::<f32>(0, &dims)?.iter_mut().enumerate() {
                    *value = ((at + number * 17) as f32 * 0.37).sin();
                }
                Ok(request)
            };
            idle.push((0..each).map(request).collect::<Result<Vec<Request>, Failure>>()?);
        }
        let asked = groups[0].len();
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
