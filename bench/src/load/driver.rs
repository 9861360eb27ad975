//! One process's load: one thread, one connection, all sessions.

use super::Measured;
use super::arrivals::Arrivals;
use super::connect::Lane;
use super::tally::SENT_LATE_NS;
use rota_ipc::Client;
use rota_ipc::client::{Answer, Deadline, Error, Rejected, Request};
use rota_ipc::wire::Status;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// When a session's next request is due.
#[derive(Debug)]
pub enum Source {
    /// As many in flight as this, always.
    Closed { in_flight: u32 },
    /// `next` is the first arrival that was not sent yet.
    Open { arrivals: Arrivals, next: Option<u64> },
}

/// Requests that arrive in `warmup..warmup + seconds` are counted; afterwards the answers of those in flight are awaited.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    pub warmup: Duration,
    pub length: Duration,
}

/// Drives sessions through one connection.
///
/// All requests exist before the start, and travel by value: sending and taking an answer allocate nothing. The only
/// clock is `start`, in nanoseconds.
pub struct Driver<'a> {
    client: &'a mut Client,
    lanes: Vec<Lane>,
    /// By request tag.
    flights: Vec<Flight>,
    in_flight: usize,
    /// What ends the load early.
    stop: &'a AtomicBool,
    spin: bool,
    start: Instant,
    window_start: u64,
    /// Moves forward when the load is stopped early.
    window_end: u64,
}

/// Where a request's answer belongs.
#[derive(Clone, Copy, Debug, Default)]
pub struct Flight {
    pub lane: u32,
    pub variant: u32,
    /// When it should have been sent.
    intended: u64,
    flies: bool,
}

impl<'a> Driver<'a> {
    /// `flights` has an entry for each tag that the lanes' requests bear.
    pub fn new(
        client: &'a mut Client,
        lanes: Vec<Lane>,
        flights: Vec<Flight>,
        window: Window,
        spin: bool,
        stop: &'a AtomicBool,
    ) -> Driver<'a> {
        let window_start = nanoseconds(window.warmup);
        let window_end = window_start.saturating_add(nanoseconds(window.length));
        let start = Instant::now();
        Driver { client, lanes, flights, in_flight: 0, stop, spin, start, window_start, window_end }
    }

    pub fn run(mut self) -> Measured {
        self.start = Instant::now();
        let broken = self.drive().err().map(|error| error.to_string());
        if broken.is_some() {
            self.window_end = self.window_end.min(self.now());
        }
        self.count_lost();
        Measured {
            seconds: self.window_end.saturating_sub(self.window_start) as f64 / 1e9,
            sessions: self.lanes.into_iter().map(Lane::outcome).collect(),
            broken,
        }
    }

    fn drive(&mut self) -> Result<(), Error> {
        let slowest = self.lanes.iter().map(|lane| lane.slo_ns).max().unwrap_or(0);
        loop {
            let mut now = self.now();
            let stopped = self.stop.load(Ordering::Relaxed);
            if stopped {
                self.window_end = self.window_end.min(now);
            }
            let patience = if stopped { STOPPED_DRAIN_NS } else { slowest + DRAIN_NS };
            let overdue = self.send_due(&mut now)?;
            let done = self.in_flight == 0 && !overdue;
            if now >= self.window_end && (done || now >= self.window_end.saturating_add(patience)) {
                return Ok(());
            }
            self.take_answers(now)?;
        }
    }

    /// Sends what is due. True: something that is due could not be sent, because no request is free.
    fn send_due(&mut self, now: &mut u64) -> Result<bool, Error> {
        let mut overdue = false;
        for index in 0..self.lanes.len() {
            for _ in 0..SENDS_PER_TURN {
                let lane = &self.lanes[index];
                let intended = match &lane.source {
                    Source::Closed { in_flight } if lane.in_flight < *in_flight && *now < self.window_end => *now,
                    Source::Open { next: Some(next), .. } if *next <= *now && *next < self.window_end => *next,
                    _ => break,
                };
                if !self.send(index, intended, *now)? {
                    overdue = true;
                    break;
                }
                *now = self.now();
            }
        }
        Ok(overdue)
    }

    /// False: no request is free.
    fn send(&mut self, index: usize, intended: u64, now: u64) -> Result<bool, Error> {
        let lane = &mut self.lanes[index];
        let Some(mut request) = lane.take(&mut self.flights)? else { return Ok(false) };
        let tag = request.tag as usize;
        if let Source::Open { .. } = lane.source {
            request.deadline = Deadline::At(self.start + Duration::from_nanos(intended + lane.slo_ns));
        }
        match self.client.submit(request) {
            Ok(_) => {}
            Err(rejected) => return self.give_back(index, rejected),
        }
        self.flights[tag].intended = intended;
        self.flights[tag].flies = true;
        self.in_flight += 1;
        lane.in_flight += 1;
        if intended >= self.window_start {
            lane.tally.offered += 1;
            lane.tally.sent_late += u64::from(now - intended > SENT_LATE_NS);
        }
        if let Source::Open { arrivals, next } = &mut lane.source {
            *next = arrivals.next();
        }
        Ok(true)
    }

    /// The connection can't take another request just now: it is sent later.
    fn give_back(&mut self, index: usize, rejected: Box<Rejected>) -> Result<bool, Error> {
        let Rejected { request, error } = *rejected;
        match error {
            Error::RingFull { .. } | Error::SlotsFull { .. } => {
                self.keep(index, request);
                Ok(false)
            }
            other => Err(other),
        }
    }

    fn keep(&mut self, index: usize, request: Request) {
        let variant = self.flights[request.tag as usize].variant;
        self.lanes[index].keep(variant, request);
    }

    /// Takes all answers that are there; without any, waits for one until the next request is due.
    fn take_answers(&mut self, now: u64) -> Result<(), Error> {
        let mut answer = self.client.poll()?;
        if answer.is_none() && !self.spin {
            let until = self.next_event(now);
            let left = Duration::from_nanos(until.saturating_sub(now));
            match self.in_flight {
                0 => std::thread::sleep(left),
                _ => answer = self.client.wait(left)?,
            }
        }
        while let Some(taken) = answer {
            self.record(taken)?;
            answer = self.client.poll()?;
        }
        Ok(())
    }

    /// When there is something to do even if no answer comes, at most a tenth of a second ahead: a signal has to be noticed.
    fn next_event(&self, now: u64) -> u64 {
        let mut until = now + LOOK_UP_NS;
        if self.window_end > now {
            until = until.min(self.window_end);
        }
        for lane in &self.lanes {
            if let Source::Open { next: Some(next), .. } = &lane.source {
                // One that is overdue waits for an answer.
                until = if *next > now { until.min(*next) } else { until };
            }
        }
        until
    }

    fn record(&mut self, answer: Answer) -> Result<(), Error> {
        let now = self.now();
        let tag = answer.tag as usize;
        let flight = self.flights[tag];
        self.flights[tag].flies = false;
        self.in_flight -= 1;
        let lane = &mut self.lanes[flight.lane as usize];
        lane.in_flight -= 1;
        if (self.window_start..self.window_end).contains(&flight.intended) {
            let latency_ns = now - flight.intended;
            match answer.status {
                Status::Ok | Status::Late => {
                    lane.tally.answer(latency_ns, latency_ns <= lane.slo_ns, lane.items, answer.timing.batch);
                    lane.tally.daemon_ok += u64::from(answer.status == Status::Ok);
                }
                Status::Dropped => lane.tally.dropped += 1,
                Status::Cancelled => lane.tally.cancelled += 1,
                Status::Failed => {
                    lane.tally.failed += 1;
                    lane.failure.get_or_insert_with(|| answer.message().to_owned());
                }
            }
        }
        self.keep(flight.lane as usize, answer.into_request());
        Ok(())
    }

    /// What was never sent, or never answered. Whatever was sent is inside the window, even if that was cut short: it then
    /// ends after the last one.
    fn count_lost(&mut self) {
        let window = self.window_start..self.window_end;
        for flight in self.flights.iter().filter(|flight| flight.flies && window.contains(&flight.intended)) {
            self.lanes[flight.lane as usize].tally.lost += 1;
        }
        for lane in &mut self.lanes {
            let tally = &mut lane.tally;
            if let Source::Open { arrivals, next } = &mut lane.source {
                let unsent = next.iter().copied().chain(arrivals).take_while(|next| *next < window.end);
                let unsent = unsent.filter(|next| *next >= window.start).count() as u64;
                tally.offered += unsent;
                tally.lost += unsent;
                tally.sent_late += unsent;
            }
        }
    }

    fn now(&self) -> u64 {
        nanoseconds(self.start.elapsed())
    }
}

impl Flight {
    pub fn new(lane: usize, variant: usize) -> Flight {
        Flight { lane: lane as u32, variant: variant as u32, intended: 0, flies: false }
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Requests of one session that are sent before the next session's turn, and before answers are looked at.
const SENDS_PER_TURN: usize = 32;
/// How long, past the longest SLO, answers are awaited after the window.
const DRAIN_NS: u64 = 5_000_000_000;
/// … when the load was stopped by a signal.
const STOPPED_DRAIN_NS: u64 = 1_000_000_000;
const LOOK_UP_NS: u64 = 100_000_000;
