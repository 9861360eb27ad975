//! What a session's requests came to: counts and latencies, which processes add up.

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// One session's requests of the measured window, by the client's clock.
///
/// Recording is O(1) and allocates nothing. Invariant: `offered` is the sum of `ok`, `late`, `dropped`, `failed`,
/// `cancelled` and `lost`, once nothing is in flight.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Tally {
    /// From intended arrival to answer, of `ok` and `late` ones.
    #[serde(with = "pairs")]
    latency_ns: Histogram<u64>,
    pub offered: u64,
    /// Answered within the SLO.
    pub ok: u64,
    /// Answered after it.
    pub late: u64,
    pub dropped: u64,
    pub failed: u64,
    pub cancelled: u64,
    /// Never sent, because everything that can be in flight was, or never answered.
    pub lost: u64,
    /// Sent more than [`SENT_LATE_NS`] after they should have been.
    pub sent_late: u64,
    /// Answered ones that the daemon called ok: by its clock, from when it took them.
    pub daemon_ok: u64,
    /// Batches that answered ones ran in, each request its own share of one; so that items over batches is the mean size.
    batches: f64,
    answered_items: u64,
}

/// A request that is sent later than this after its time makes the load another one than was asked for.
pub const SENT_LATE_NS: u64 = 1_000_000;
/// Longer latencies are counted as this.
const LATENCY_NS_MAX: u64 = 3_600_000_000_000;

impl Default for Tally {
    fn default() -> Tally {
        Tally {
            latency_ns: histogram(),
            offered: 0,
            ok: 0,
            late: 0,
            dropped: 0,
            failed: 0,
            cancelled: 0,
            lost: 0,
            sent_late: 0,
            daemon_ok: 0,
            batches: 0.0,
            answered_items: 0,
        }
    }
}

impl Tally {
    /// Counts an answered request of `items` that ran in a batch of `batch`.
    pub fn answer(&mut self, latency_ns: u64, in_time: bool, items: u32, batch: u32) {
        self.latency_ns.saturating_record(latency_ns);
        match in_time {
            true => self.ok += 1,
            false => self.late += 1,
        }
        self.batches += f64::from(items) / f64::from(batch.max(items));
        self.answered_items += u64::from(items);
    }

    pub fn add(&mut self, other: &Tally) {
        self.latency_ns.add(&other.latency_ns).expect("all have the same bounds");
        self.offered += other.offered;
        self.ok += other.ok;
        self.late += other.late;
        self.dropped += other.dropped;
        self.failed += other.failed;
        self.cancelled += other.cancelled;
        self.lost += other.lost;
        self.sent_late += other.sent_late;
        self.daemon_ok += other.daemon_ok;
        self.batches += other.batches;
        self.answered_items += other.answered_items;
    }

    pub fn answered(&self) -> u64 {
        self.ok + self.late
    }

    /// The latency that `quantile` (0 to 1) of the answered requests do not exceed, in milliseconds, within 0.1 %.
    pub fn latency_ms(&self, quantile: f64) -> Option<f64> {
        (!self.latency_ns.is_empty()).then(|| self.latency_ns.value_at_quantile(quantile) as f64 / 1e6)
    }

    /// Mean number of items of the batches that answered ones ran in.
    pub fn mean_batch(&self) -> Option<f64> {
        (self.answered_items > 0).then(|| self.answered_items as f64 / self.batches)
    }
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_NS_MAX, 3).expect("the bounds are valid")
}

/// A histogram as `[value, count]` pairs.
mod pairs {
    use super::{Histogram, histogram};
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<S: Serializer>(histogram: &Histogram<u64>, serializer: S) -> Result<S::Ok, S::Error> {
        let pairs = histogram.iter_recorded().map(|step| (step.value_iterated_to(), step.count_at_value()));
        pairs.collect::<Vec<(u64, u64)>>().serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Histogram<u64>, D::Error> {
        let mut read = histogram();
        for (value, count) in Vec::<(u64, u64)>::deserialize(deserializer)? {
            read.saturating_record_n(value, count);
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::numbers::Numbers;

    /// Three processes' tallies, sent as text and added up, say what one would have said that saw everything.
    #[test]
    fn merged_percentiles_are_those_of_all_together() {
        let mut numbers = Numbers::new(3, 0);
        let mut whole = Tally::default();
        let mut parts = [(); 3].map(|()| Tally::default());
        let mut latencies = Vec::new();
        for index in 0..30_000 {
            let latency_ns = (numbers.exponential() * 2e6) as u64;
            latencies.push(latency_ns);
            for tally in [&mut whole, &mut parts[index % 3]] {
                tally.offered += 1;
                tally.answer(latency_ns, latency_ns < 5_000_000, 1, 1 + index as u32 % 4);
            }
        }
        let mut merged = Tally::default();
        for part in &parts {
            let text = serde_json::to_string(part).unwrap();
            merged.add(&serde_json::from_str(&text).unwrap());
        }
        latencies.sort_unstable();
        for quantile in [0.0, 0.5, 0.9, 0.99, 0.999, 1.0] {
            assert_eq!(merged.latency_ms(quantile), whole.latency_ms(quantile));
            let index = ((quantile * 30_000.0).ceil() as usize).max(1) - 1;
            let (exact, found) = (latencies[index] as f64 / 1e6, merged.latency_ms(quantile).unwrap());
            assert!((found - exact).abs() <= exact * 0.002 + 1e-6, "{quantile}: {found} ms, exactly {exact} ms");
        }
        assert_eq!((merged.ok, merged.late, merged.offered), (whole.ok, whole.late, 30_000));
    }

    #[test]
    fn mean_batch_counts_batches_and_not_requests() {
        let mut tally = Tally::default();
        // One batch of 6 (a request of 2 items, four of 1) and two batches of 1.
        tally.answer(1, true, 2, 6);
        (0..4).for_each(|_| tally.answer(1, true, 1, 6));
        (0..2).for_each(|_| tally.answer(1, true, 1, 1));
        assert!((tally.mean_batch().unwrap() - 8.0 / 3.0).abs() < 1e-9);
        assert_eq!(Tally::default().mean_batch(), None);
        assert_eq!(Tally::default().latency_ms(0.5), None);
    }
}
