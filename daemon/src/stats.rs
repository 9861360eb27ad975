//! What happened to a session's requests: counts and latency histograms.

use hdrhistogram::Histogram;
use rota_ipc::wire::Status;
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
    pub batches: u64,
    pub batched_items: u64,
    /// Time that devices spent on this session.
    pub busy: Duration,
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
    pub fn new() -> SessionStats {
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

impl Default for SessionStats {
    fn default() -> Self {
        SessionStats::new()
    }
}

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

/// A session as `rota status` shows it.
#[derive(Clone, Debug, Serialize)]
pub struct SessionReport {
    pub model: String,
    pub version: u64,
    pub slo_ms: f64,
    /// Connections that have it open.
    pub clients: u32,
    /// Items per second, measured.
    pub offered_rate: f64,
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
        let ended = stats.ok + stats.late + stats.dropped;
        if ended == 0 { 0.0 } else { (stats.late + stats.dropped) as f64 / ended as f64 }
    }
}
