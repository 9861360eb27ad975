//! A session's rate as a policy measures it that is not told.

use crate::Nanos;

/// Requests per second over the last [`SECONDS`] whole seconds, as the published Symphony program measures them. It begins
/// with what an operator took the rate to be.
#[derive(Clone, Debug)]
pub struct Measured {
    /// Requests in each of the last whole seconds; a ring.
    counts: [f64; SECONDS],
    /// Requests in the second that has begun, and which one that is.
    count: f64,
    second: Nanos,
}

impl Measured {
    pub fn new(assumed: f64) -> Measured {
        Measured { counts: [assumed; SECONDS], count: 0.0, second: 0 }
    }

    /// A request arrives. True when a second has passed, so that the rate may have changed.
    pub fn count(&mut self, now: Nanos) -> bool {
        let second = now / NANOS_PER_SECOND;
        let passed = second - self.second;
        // One more than the ring holds: after so many empty seconds nothing is left of the one that ended first.
        for index in 0..passed.min(SECONDS as Nanos + 1) {
            let slot = (self.second + index) % SECONDS as Nanos;
            self.counts[slot as usize] = std::mem::take(&mut self.count);
        }
        self.count += 1.0;
        self.second = second;
        passed > 0
    }

    /// Above zero: who does not know better takes it that one more might come.
    pub fn per_second(&self) -> f64 {
        (self.counts.iter().sum::<f64>() / SECONDS as f64).max(RATE_MIN)
    }
}

const SECONDS: usize = 10;
const NANOS_PER_SECOND: Nanos = 1_000_000_000;
/// One request in a hundred seconds.
const RATE_MIN: f64 = 0.01;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_follows_what_arrives_within_ten_seconds() {
        let mut rate = Measured::new(50.0);
        assert_eq!(rate.per_second(), 50.0);
        let mut changed = 0;
        for index in 0..20 * 20 {
            changed += u32::from(rate.count(index * NANOS_PER_SECOND / 20));
            if index == 5 * 20 {
                assert_eq!(rate.per_second(), 35.0, "five seconds at 20, five as assumed");
            }
        }
        assert_eq!((rate.per_second(), changed), (20.0, 19));
        rate.count(100 * NANOS_PER_SECOND);
        assert_eq!(rate.per_second(), RATE_MIN, "nothing came for a long time");
    }
}
