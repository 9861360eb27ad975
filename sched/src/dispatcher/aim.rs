//! What a queue waits for: the batch that it aims at, and for how long.

/// What decides when a queue is ready for a turn although a device is free now. Recomputed as rates and prices move.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Aim {
    /// Items; with so many the queue is ready.
    pub batch: u32,
    /// How long its oldest request waits for others at most, nanoseconds.
    pub hold: u64,
    /// How long before its last moment it is ready at the latest, nanoseconds.
    pub slack: u64,
    /// Items that arrive and are executed per nanosecond of waiting: how the batch deepens by the deadline.
    pub growth: f64,
    /// Devices that the queue keeps busy at this batch.
    pub devices: f64,
    /// Devices that it keeps busy at least, with the batch that takes least for each item.
    pub least: f64,
    /// Devices that it would keep busy with batches of one.
    pub alone: f64,
    /// Batches per nanosecond.
    pub batches: f64,
}

/// Whatever waits is ready: while nothing is known of a queue.
pub const AT_ONCE: Aim =
    Aim { batch: 1, hold: 0, slack: 0, growth: 0.0, devices: 0.0, least: 0.0, alone: 0.0, batches: 0.0 };

/// What waiting costs on a queue's devices now.
#[derive(Clone, Copy, Debug)]
pub struct Price {
    /// Devices that it is worth to have no wait for a device missed; infinite: whatever waits is ready.
    pub of_waiting: f64,
    /// Nanoseconds: how long a wait for a device is likely to be.
    pub scale: f64,
}

/// The batch b that costs least: the devices that it takes, r·ℓ(b)/b, and the risk that a wait for a device is longer than
/// W(b) = SLO - (b - 1)/r - ℓ(b), what is left of the objective when it has gathered and still has to execute.
///
/// `latencies`: ℓ(b) in nanoseconds at b - 1. `rate`: items per second.
pub fn aim(latencies: &[u64], slo: u64, rate: f64, price: Price) -> Aim {
    if latencies.is_empty() || rate <= 0.0 {
        return AT_ONCE;
    }
    let rate = rate / 1e9;
    let interval = 1.0 / rate;
    let wait = |batch: usize| slo as f64 - (batch - 1) as f64 * interval - latencies[batch - 1] as f64;
    let (mut best, mut cheapest, mut least) = (1, f64::INFINITY, f64::INFINITY);
    let mut batch = 1;
    while batch <= latencies.len() {
        let left = wait(batch);
        if batch > 1 && left < 0.0 {
            break;
        }
        let devices = rate * latencies[batch - 1] as f64 / batch as f64;
        let cost = devices + price.of_waiting * risk(left / price.scale);
        if cost < cheapest {
            (best, cheapest) = (batch, cost);
        }
        least = devices.min(least);
        batch += 1 + batch / COARSE;
    }
    let (first, last, rises) = (latencies[0], latencies[latencies.len() - 1], latencies.len().max(2) - 1);
    let gathered = (best - 1) as f64;
    Aim {
        batch: best as u32,
        hold: (((gathered + LATE * gathered.sqrt()) * interval) as u64).min(slo),
        slack: wait(best).max(0.0) as u64,
        growth: 1.0 / (interval + (last - first) as f64 / rises as f64),
        devices: rate * latencies[best - 1] as f64 / best as f64,
        least,
        alone: rate * first as f64,
        batches: rate / best as f64,
    }
}

/// About exp(-x) for x ≥ 0, by products only, so that every host gets the same bits; above 1 where nothing is left.
fn risk(x: f64) -> f64 {
    let base = 1.0 + x.max(-4.0) / 8.0;
    let fourth = (base * base) * (base * base);
    1.0 / (fourth * fourth)
}

/// Batches past this are tried in steps of b/COARSE.
const COARSE: usize = 64;
/// Standard deviations of a Poisson count by which a batch may be late in gathering.
const LATE: f64 = 2.0;

#[cfg(test)]
mod tests {
    use super::*;

    /// ℓ(b) = alpha·b + beta, milliseconds.
    fn linear(alpha: u64, beta: u64, max: u64) -> Vec<u64> {
        (1..=max).map(|batch| (alpha * batch + beta) * 1_000_000).collect()
    }

    fn at(of_waiting: f64) -> Price {
        Price { of_waiting, scale: 20e6 }
    }

    #[test]
    fn the_dearer_the_wait_the_smaller_the_batch() {
        let latencies = linear(1, 25, 75);
        let batches = [0.0, 0.1, 1.0, 10.0, 1e6].map(|price| aim(&latencies, 100_000_000, 500.0, at(price)).batch);
        assert!(batches.is_sorted_by(|a, b| a >= b), "{batches:?}");
        // (b - 1)/500 + b + 25 ≤ 100 ms: b = 25.
        assert_eq!((batches[0], batches[4]), (25, 1));
    }

    #[test]
    fn it_waits_until_the_batch_is_likely_to_be_there() {
        let aim = aim(&linear(1, 25, 75), 100_000_000, 500.0, at(0.0));
        assert_eq!(aim.hold, ((24.0 + LATE * 24.0f64.sqrt()) * 2e6) as u64);
        assert_eq!(aim.slack, 2_000_000);
        assert!((aim.devices - 1.0).abs() < 1e-9);
    }

    #[test]
    fn a_session_too_slow_for_two_or_with_no_time_at_all_takes_what_there_is() {
        assert_eq!(aim(&linear(1, 25, 75), 100_000_000, 1.0, at(0.0)).batch, 1);
        let hopeless = aim(&linear(1, 25, 75), 1_000_000, 500.0, at(1.0));
        assert_eq!((hopeless.batch, hopeless.slack), (1, 0));
        assert_eq!(aim(&[], 1, 1.0, at(1.0)), AT_ONCE);
        assert_eq!(aim(&linear(1, 1, 4), 1_000_000, 0.0, at(1.0)), AT_ONCE);
    }

    #[test]
    fn extreme_figures_stay_finite() {
        for rate in [1e-300, 1e-9, 1e300] {
            for slo in [0, 1, u64::MAX >> 1] {
                let aim = aim(&linear(1, 1, 500), slo, rate, at(1.0));
                assert!((1..=500).contains(&aim.batch) && aim.growth.is_finite() && aim.hold <= slo, "{aim:?}");
            }
        }
    }
}
