//! Measured rate of one queue, in the caller's time.

use crate::Instant;

/// Items per second, averaged over the last ten seconds or so. An average over the last second watches for changes: when it
/// leaves what chance allows, the long one begins anew from it, so that a change is followed within about a second.
///
/// Only sums, products and quotients, so that two hosts get the same bits (an exponential would depend on their libm).
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    /// Mean over past intervals, items per interval, with weights that fall by 1 in [`MEMORY`] per interval.
    mean: f64,
    /// The same, by 1 in [`RECENT`].
    recent: f64,
    /// Items in the current interval.
    items: u64,
    interval_ends: Instant,
    /// Intervals that `mean` covers, up to [`MEMORY`].
    intervals: u32,
}

impl Rate {
    pub fn new(now: Instant) -> Rate {
        Rate { mean: 0.0, recent: 0.0, items: 0, interval_ends: Instant(now.0.saturating_add(INTERVAL)), intervals: 0 }
    }

    /// What the rate will be, in items per second, until it is measured otherwise.
    pub fn expect(&mut self, per_second: f64) {
        let mean = per_second * (INTERVAL as f64 / NANOS_PER_SECOND);
        (self.mean, self.recent, self.intervals) = (mean, mean, MEMORY);
    }

    /// Counts items that arrive. True when an interval ended, so that what was derived from the rate is stale.
    pub fn count(&mut self, items: u32, now: Instant) -> bool {
        let ended = now >= self.interval_ends;
        if ended {
            self.roll(now);
        }
        self.items += u64::from(items);
        ended
    }

    /// Accounts for intervals that ended, so that reading does not do it again each time.
    pub fn advance(&mut self, now: Instant) {
        if now >= self.interval_ends {
            self.roll(now);
        }
    }

    /// Items per second; `None` before the first interval has ended.
    pub fn per_second(&self, now: Instant) -> Option<f64> {
        let mut rolled = *self;
        if now >= rolled.interval_ends {
            rolled.roll(now);
        }
        (rolled.intervals > 0).then(|| rolled.mean * (NANOS_PER_SECOND / INTERVAL as f64))
    }

    fn roll(&mut self, now: Instant) {
        let ended = 1 + (now.0 - self.interval_ends.0) / INTERVAL;
        for _ in 0..ended.min(FORGOTTEN) {
            self.intervals = (self.intervals + 1).min(MEMORY);
            let items = self.items as f64;
            self.mean += (items - self.mean) / f64::from(self.intervals);
            self.recent += (items - self.recent) / f64::from(self.intervals.min(RECENT));
            self.items = 0;
            // A mean over RECENT such weights of a Poisson process varies by its mean over twice as many.
            let apart = self.recent - self.mean;
            if apart * apart > DEVIATIONS * DEVIATIONS * self.mean.max(self.recent) / f64::from(2 * RECENT - 1) {
                (self.mean, self.intervals) = (self.recent, self.intervals.min(RECENT));
            }
        }
        if ended > FORGOTTEN {
            (self.mean, self.recent) = (0.0, 0.0);
        }
        self.interval_ends = Instant(self.interval_ends.0.saturating_add(ended.saturating_mul(INTERVAL)));
    }
}

const INTERVAL: u64 = 100_000_000;
const NANOS_PER_SECOND: f64 = 1e9;
/// While fewer intervals have passed they weigh the same, so that a new session's rate is right from the first.
const MEMORY: u32 = 100;
const RECENT: u32 = 8;
/// Standard deviations of the recent mean that are chance.
const DEVIATIONS: f64 = 4.0;
/// After this many silent intervals nothing is left of a rate; bounds the work of one roll.
const FORGOTTEN: u64 = 1000;

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Instant {
        Instant(millis * 1_000_000)
    }

    #[test]
    fn steady_arrivals_give_their_rate() {
        let mut rate = Rate::new(at(0));
        assert_eq!(rate.per_second(at(99)), None);
        for millis in 0..2000 {
            rate.count(3, at(millis));
        }
        let measured = rate.per_second(at(2000)).expect("20 intervals have ended");
        assert!((measured - 3000.0).abs() < 1e-6, "{measured}");
    }

    #[test]
    fn a_change_is_followed_within_a_second_and_silence_forgets() {
        let mut rate = Rate::new(at(0));
        (0..2000).for_each(|millis| _ = rate.count(1, at(millis)));
        (2000..3000).for_each(|millis| _ = rate.count(5, at(millis)));
        let measured = rate.per_second(at(3000)).expect("intervals have ended");
        assert!(measured > 3500.0 && measured < 5000.0, "{measured}");
        assert!(rate.per_second(at(5000)).expect("intervals have ended") < measured / 8.0);
        assert_eq!(rate.per_second(at(3_600_000)), Some(0.0));
    }

    #[test]
    fn reading_changes_nothing_and_the_end_of_time_is_survived() {
        let mut rate = Rate::new(at(0));
        assert!(!rate.count(7, at(50)));
        rate.per_second(at(500));
        assert!(rate.count(7, at(100)));
        assert_eq!(rate.per_second(at(100)), Some(70.0));
        assert!(rate.count(1, Instant::MAX));
        assert!(rate.per_second(Instant::MAX).is_some());
    }
}
