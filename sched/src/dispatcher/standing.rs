//! How well a queue was served lately, and how much earlier than at its last moment its turn should come for that.
//!
//! A controller per queue: what it misses beyond its allowance moves its place in the order of turns forward, what it does
//! not use of it moves it back. So sessions that suffer from the company they keep are helped by those that do not, until
//! all miss the same; in overload, until each is served its share.

/// Nanoseconds, signed.
pub type Advance = i64;

/// Shares are of items; a miss is an item that was dropped.
#[derive(Clone, Copy, Debug, Default)]
pub struct Standing {
    /// Misses of about the last half second.
    recent: f64,
    /// Misses of about the last two seconds.
    missed: f64,
    /// Misses that were more than allowed, integrated: as a share of the SLO.
    lead: f64,
    /// Of its items, how many it may miss without a claim: what good service misses, or more while its pool is overloaded.
    allowed: f64,
}

impl Standing {
    pub fn new() -> Standing {
        Standing { allowed: GOOD_SERVICE_MISSES, ..Standing::default() }
    }

    /// Accounts for items that were all served, or all missed. `rate`: items per second of the queue; while it is 0, that is not
    /// known, nothing is held against others.
    pub fn count(&mut self, items: u32, missed: bool, rate: f64) {
        if rate <= 0.0 {
            return;
        }
        let (items, miss) = (f64::from(items), f64::from(u8::from(missed)));
        let pace = 1.0 / rate.max(RATE_LEAST);
        self.recent += (miss - self.recent) * (items * (pace / RECENT).min(RECENT_MOST)).min(1.0);
        self.missed += (miss - self.missed) * (items * (pace / MISSED).min(MISSED_MOST)).min(1.0);
        let gain = GAIN * (GAIN_AT * pace).min(GAIN_MOST);
        self.lead = (self.lead + gain * items * (miss - self.allowed)).clamp(-LEAD_MOST, LEAD_MOST);
    }

    /// `served`: the share of its items that its part of the pool can serve.
    pub fn entitle(&mut self, served: f64) {
        let was_cut = self.is_cut();
        let served = served.clamp(SERVED_LEAST, 1.0);
        self.allowed = (1.0 - served).max(GOOD_SERVICE_MISSES);
        if self.is_cut() != was_cut {
            // What it missed under other terms gives no claim under these.
            self.missed = self.allowed;
        }
    }

    /// Less of it is served than it asks for, as was decided.
    pub fn is_cut(&self) -> bool {
        self.allowed > GOOD_SERVICE_MISSES
    }

    /// Misses go on: what a batch refuses now is lost anyway, so that only throughput counts.
    pub fn loses(&self) -> bool {
        self.recent > LOSES
    }

    /// Of what it is entitled to, what it was not served lately; negative when it was served more.
    pub fn shortfall(&self) -> f64 {
        (self.missed - self.allowed) / (1.0 - self.allowed)
    }

    /// `overload`: the share of its pool's demand that the pool cannot serve. Who is cut is never brought forward, only less
    /// far back: it must not take from those that ask for no more than their share.
    pub fn advance(&self, slo: u64, overload: f64) -> Advance {
        let gain = PROPORTIONAL * (1.0 + OVERLOADED * overload);
        if self.is_cut() {
            return (gain * (self.shortfall() - SHORTFALL_MOST).clamp(-1.0, 0.0)) as Advance;
        }
        let advance = (self.lead * slo as f64 + gain * self.shortfall()) as Advance;
        // Nor is anybody moved back for the sake of those.
        if overload > 0.0 { advance.max(0) } else { advance }
    }
}

/// The share that misses when all is well: what the objective of 99 % leaves.
const GOOD_SERVICE_MISSES: f64 = 0.01;
const RATE_LEAST: f64 = 1e-3;
/// Time constants, in seconds, and the most that one item counts.
const RECENT: f64 = 0.5;
const RECENT_MOST: f64 = 0.01;
const MISSED: f64 = 2.0;
const MISSED_MOST: f64 = 0.02;
const LOSES: f64 = 0.05;
/// Of the SLO, per missed item of a queue with [`GAIN_AT`] items per second; for other rates per as much time, but for slow
/// ones no more than [`GAIN_MOST`] times as much.
const GAIN: f64 = 0.005;
const GAIN_AT: f64 = 100.0;
const GAIN_MOST: f64 = 3.0;
const LEAD_MOST: f64 = 0.5;
/// Nanoseconds for missing everything beyond the allowance, and how many times more of it in full overload.
const PROPORTIONAL: f64 = 0.3e9;
const OVERLOADED: f64 = 6.0;
/// With a larger shortfall a queue that is cut comes no earlier.
const SHORTFALL_MOST: f64 = 0.25;
/// Nobody is entitled to less.
const SERVED_LEAST: f64 = 1e-3;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn misses_bring_the_turn_forward_and_good_service_takes_it_back() {
        let mut standing = Standing::new();
        standing.count(8, true, 100.0);
        let after = standing.advance(100_000_000, 0.0);
        assert!(after > 0);
        (0..2000).for_each(|_| standing.count(1, false, 100.0));
        assert!(standing.advance(100_000_000, 0.0) < after);
    }

    #[test]
    fn a_queue_that_misses_what_it_is_allowed_stays_in_its_place() {
        let mut standing = Standing { allowed: 0.5, ..Standing::new() };
        for item in 0..100_000 {
            standing.count(1, item % 2 == 0, 200.0);
        }
        assert!(standing.shortfall().abs() < 0.02, "{}", standing.shortfall());
    }

    #[test]
    fn losing_is_noticed_soon_and_forgotten() {
        let mut standing = Standing::new();
        standing.count(10, true, 100.0);
        assert!(standing.loses());
        standing.count(200, false, 100.0);
        assert!(!standing.loses());
    }

    #[test]
    fn extreme_rates_stay_finite() {
        for rate in [1e-300, 1.0] {
            let mut standing = Standing::new();
            standing.count(u32::MAX, true, rate);
            assert!(standing.advance(u64::MAX >> 2, 1.0) > 0);
        }
    }
}
