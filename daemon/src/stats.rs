//! What happened to a session's requests: counts and latency histograms.

use hdrhistogram::Histogram;
use rota_ipc::wire::Status;
use rota_sched::Instant;
use serde::Serialize;
use std::time::Duration;

/// Counters and histograms of one session since it was opened. All memory is taken at the start.
#[derive(Clone, Debug)]
pub struct SessionStats {
    pub offered: u64,
    pub ok: u64,
    pub late: u64,
    pub dropped: u64,
    pub cancelled: u64,
    pub failed: u64,
    /// Batches with requests of it, and its items in them.
    pub batches: u64,
    pub batched_items: u64,
    /// Number of the last of those batches among all.
    pub last_batch: u64,
    /// Time that devices spent on this session; of a batch for several, in proportion to their items.
    pub busy: Duration,
    /// Items asked for.
    pub asked: RecentRate,
    /// Items answered in time.
    pub good: RecentRate,
    /// Nanoseconds; answered requests only (ok and late).
    pub queued: Histogram<u32>,
    pub executing: Histogram<u32>,
    pub total: Histogram<u32>,
}

/// Two significant digits over 1 µs … 60 s: 1 % of error for about 13 KB a histogram.
fn histogram() -> Histogram<u32> {
    Histogram::new_with_bounds(1_000, 60_000_000_000, 2).expect("the bounds are constants that hdrhistogram accepts")
}

impl SessionStats {
    pub fn new(now: Instant) -> SessionStats {
        SessionStats {
            offered: 0,
            ok: 0,
            late: 0,
            dropped: 0,
            cancelled: 0,
            failed: 0,
            batches: 0,
            batched_items: 0,
            busy: Duration::ZERO,
            last_batch: 0,
            asked: RecentRate::new(now),
            good: RecentRate::new(now),
            queued: histogram(),
            executing: histogram(),
            total: histogram(),
        }
    }

    pub fn count(&mut self, status: Status) {
        *match status {
            Status::Ok => &mut self.ok,
            Status::Late => &mut self.late,
            Status::Dropped => &mut self.dropped,
            Status::Cancelled => &mut self.cancelled,
            Status::Failed => &mut self.failed,
        } += 1;
    }

    /// An answered request's times.
    pub fn record(&mut self, queued: Duration, executing: Duration, total: Duration) {
        self.queued.saturating_record(crate::clock::nanos(queued));
        self.executing.saturating_record(crate::clock::nanos(executing));
        self.total.saturating_record(crate::clock::nanos(total));
    }
}

/// Counters of one query's runs since it is served. All memory is taken at the start.
#[derive(Clone, Debug)]
pub struct QueryStats {
    pub started: u64,
    /// Finished, and their last answer came within the SLO.
    pub ok: u64,
    /// Finished, but their last answer came later.
    pub late: u64,
    /// Given up because they could not be answered in time, or not begun for want of room.
    pub dropped: u64,
    /// A call failed, or a model was unloaded.
    pub failed: u64,
    /// Given up by their clients.
    pub abandoned: u64,
    /// Not finished within four times the SLO, or a second if that is longer.
    pub expired: u64,
    /// Runs answered in time.
    pub good: RecentRate,
    /// Nanoseconds from the beginning to the last answer, of runs that were finished.
    pub total: Histogram<u32>,
}

impl QueryStats {
    pub fn new(now: Instant) -> QueryStats {
        QueryStats {
            started: 0,
            ok: 0,
            late: 0,
            dropped: 0,
            failed: 0,
            abandoned: 0,
            expired: 0,
            good: RecentRate::new(now),
            total: histogram(),
        }
    }

    /// Runs that have begun and not ended.
    pub fn open(&self) -> u64 {
        self.started - (self.ok + self.late + self.dropped + self.failed + self.abandoned + self.expired)
    }

    /// A run was finished whose last answer came after `took`.
    pub fn answered(&mut self, in_time: bool, took: Duration, now: Instant) {
        self.total.saturating_record(crate::clock::nanos(took));
        if in_time {
            self.ok += 1;
            self.good.count(1, now);
        } else {
            self.late += 1;
        }
    }
}

/// Items per second over the last ten whole seconds, or those since the beginning.
#[derive(Clone, Copy, Debug)]
pub struct RecentRate {
    /// By second, modulo their number: the current one and the ten before it.
    counts: [u64; SECONDS + 1],
    /// Of the clock: the one that counts are added to, and the first.
    second: u64,
    first: u64,
}

const SECONDS: usize = 10;

impl RecentRate {
    pub fn new(now: Instant) -> RecentRate {
        let second = now.0 / NANOS_PER_SECOND;
        RecentRate { counts: [0; SECONDS + 1], second, first: second }
    }

    pub fn count(&mut self, items: u32, now: Instant) {
        self.turn(now);
        self.counts[self.second as usize % self.counts.len()] += u64::from(items);
    }

    /// In the first second: what came in it so far.
    pub fn per_second(mut self, now: Instant) -> f64 {
        self.turn(now);
        let current = self.counts[self.second as usize % self.counts.len()];
        match (self.second - self.first).min(SECONDS as u64) {
            0 => current as f64,
            whole => (self.counts.iter().sum::<u64>() - current) as f64 / whole as f64,
        }
    }

    /// Forgets the seconds that have passed out of sight.
    fn turn(&mut self, now: Instant) {
        let second = (now.0 / NANOS_PER_SECOND).max(self.second);
        for passed in 1..=(second - self.second).min(self.counts.len() as u64) {
            let index = (self.second + passed) as usize % self.counts.len();
            self.counts[index] = 0;
        }
        self.second = second;
    }
}

const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// Percentiles of one histogram, for people and programs.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Percentiles {
    pub mean_ms: f64,
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub p999_ms: f64,
    pub max_ms: f64,
}

impl Percentiles {
    pub fn of(histogram: &Histogram<u32>) -> Percentiles {
        let ms = |ns: u64| ns as f64 / 1e6;
        Percentiles {
            mean_ms: histogram.mean() / 1e6,
            p50_ms: ms(histogram.value_at_quantile(0.5)),
            p99_ms: ms(histogram.value_at_quantile(0.99)),
            p999_ms: ms(histogram.value_at_quantile(0.999)),
            max_ms: ms(histogram.max()),
        }
    }
}

/// A query as `rota status` shows it.
#[derive(Clone, Debug, Serialize)]
pub struct QueryReport {
    pub name: String,
    pub slo_ms: f64,
    pub weight: f64,
    /// Open now.
    pub runs: u64,
    pub started: u64,
    pub ok: u64,
    pub late: u64,
    pub dropped: u64,
    pub failed: u64,
    pub abandoned: u64,
    pub expired: u64,
    /// Runs per second answered in time, over the last ten seconds.
    pub goodput: f64,
    /// Share of answered or dropped runs that were late or dropped.
    pub bad_rate: f64,
    pub total_time: Percentiles,
    pub stages: Vec<StageReport>,
}

/// A stage of a query as `rota status` shows it.
#[derive(Clone, Debug, Serialize)]
pub struct StageReport {
    pub name: String,
    pub model: String,
    pub version: u64,
    pub after: Option<String>,
    /// Items of it for each item that the stage before answered, in runs that were finished; `null` where the query begins.
    pub gamma: Option<f64>,
    /// Its part of the SLO.
    pub share_ms: f64,
    /// Items per second, measured.
    pub offered_rate: f64,
}

/// A session as `rota status` shows it.
#[derive(Clone, Debug, Serialize)]
pub struct SessionReport {
    pub model: String,
    pub version: u64,
    /// The query's stage that it is, as "query/stage".
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stage: Option<String>,
    pub slo_ms: f64,
    /// Connections that have it open.
    pub clients: u32,
    /// Items per second, measured.
    pub offered_rate: f64,
    /// Items per second that the plan has slots for; `null` while it was never planned for.
    pub promised_rate: Option<f64>,
    /// Items per second answered in time, over the last ten seconds.
    pub goodput: f64,
    pub weight: f64,
    pub queued: u32,
    pub target_batch: u32,
    pub offered: u64,
    pub ok: u64,
    pub late: u64,
    pub dropped: u64,
    pub cancelled: u64,
    pub failed: u64,
    /// Share of answered or dropped requests that were late or dropped.
    pub bad_rate: f64,
    pub mean_batch: f64,
    pub busy_ms: f64,
    pub queued_time: Percentiles,
    pub executing_time: Percentiles,
    pub total_time: Percentiles,
}

impl SessionReport {
    pub fn bad_rate(stats: &SessionStats) -> f64 {
        share(stats.late + stats.dropped, stats.ok)
    }
}

impl QueryReport {
    pub fn bad_rate(stats: &QueryStats) -> f64 {
        share(stats.late + stats.dropped, stats.ok)
    }
}

/// Zero of nothing.
fn share(bad: u64, good: u64) -> f64 {
    if bad == 0 { 0.0 } else { bad as f64 / (bad + good) as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_recent_rate_is_of_the_last_ten_whole_seconds() {
        let at = |millis: u64| Instant(5_000_000_000 + millis * 1_000_000);
        let mut rate = RecentRate::new(at(0));
        rate.count(3, at(100));
        assert_eq!(rate.per_second(at(900)), 3.0);
        for millis in (1000..30_000).step_by(10) {
            rate.count(2, at(millis));
        }
        assert_eq!(rate.per_second(at(2500)), 200.0, "time that goes back is not believed");
        assert_eq!(rate.per_second(at(30_999)), 200.0);
        assert_eq!(rate.per_second(at(35_000)), 100.0);
        assert_eq!(rate.per_second(at(3_600_000)), 0.0);
        let mut young = RecentRate::new(at(0));
        (0..2000).for_each(|millis| young.count(1, at(millis)));
        assert_eq!(young.per_second(at(2001)), 1000.0, "over the seconds that there were");
    }
}
