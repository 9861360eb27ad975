//! When a session's requests come.

use super::random::Random;
use std::collections::VecDeque;

/// A session's requests that nobody has taken yet, oldest first: those that wait, and those still to come.
///
/// Whoever plays a session asks when the n-th of them comes and how many there are by now, and never walks through them:
/// evenly spaced ones take no memory and no time each. Those by chance are drawn as far ahead as is asked.
#[derive(Clone, Debug)]
pub(super) enum Stream {
    Even(Even),
    Chance(Chance),
}

/// Evenly spaced; times in nanoseconds.
#[derive(Clone, Debug)]
pub(super) struct Even {
    /// When the oldest comes; after `last` when none is left.
    oldest: u64,
    /// Above zero.
    spacing: u64,
    /// None comes later.
    last: u64,
    arrived: u64,
}

/// By chance, independent of each other (Poisson); times in nanoseconds.
#[derive(Clone, Debug)]
pub(super) struct Chance {
    /// Those that are drawn already.
    drawn: VecDeque<u64>,
    /// When the first comes that is not; after `last` when none is left.
    next: u64,
    mean_spacing: f64,
    last: u64,
    arrived: u64,
    random: Random,
}

impl Stream {
    /// `rate` requests a second until `last`, evenly spaced, at a phase by chance.
    pub(super) fn even(rate: f64, last: u64, random: &mut Random) -> Stream {
        let spacing = ((1e9 / rate) as u64).max(1);
        let oldest = (random.unit() * spacing as f64) as u64;
        let arrived = if oldest <= last { (last - oldest) / spacing + 1 } else { 0 };
        Stream::Even(Even { oldest, spacing, last, arrived })
    }

    /// `rate` requests a second on average until `last`.
    pub(super) fn chance(rate: f64, last: u64, random: &mut Random) -> Stream {
        let (mut random, mean_spacing) = (Random::new(random.next()), 1e9 / rate);
        let next = random.exponential(mean_spacing) as u64;
        Stream::Chance(Chance { drawn: VecDeque::new(), next, mean_spacing, last, arrived: 0, random })
    }

    /// When the request comes that is `place` places behind the oldest; `u64::MAX` when none does.
    pub(super) fn at(&mut self, place: usize) -> u64 {
        match self {
            Stream::Even(even) => {
                let at = even.oldest.saturating_add(even.spacing.saturating_mul(place as u64));
                if at <= even.last { at } else { u64::MAX }
            }
            Stream::Chance(chance) => {
                while chance.drawn.len() <= place && chance.draw() {}
                chance.drawn.get(place).copied().unwrap_or(u64::MAX)
            }
        }
    }

    /// How many have come by `now` and still wait.
    pub(super) fn waiting(&mut self, now: u64) -> usize {
        match self {
            Stream::Even(Even { oldest, spacing, last, .. }) => {
                let until = now.min(*last);
                if *oldest <= until { ((until - *oldest) / *spacing) as usize + 1 } else { 0 }
            }
            Stream::Chance(chance) => {
                while chance.next <= now && chance.draw() {}
                // Little is drawn ahead, so from the far end.
                let to_come = chance.drawn.iter().rev().take_while(|&&at| at > now).count();
                chance.drawn.len() - to_come
            }
        }
    }

    /// The `count` oldest leave; they must have come.
    pub(super) fn take(&mut self, count: usize) {
        match self {
            Stream::Even(even) => even.oldest = even.oldest.saturating_add(even.spacing.saturating_mul(count as u64)),
            Stream::Chance(chance) => drop(chance.drawn.drain(..count)),
        }
    }

    /// How many have come in all, once none is left.
    pub(super) fn arrived(&self) -> u64 {
        match self {
            Stream::Even(even) => even.arrived,
            Stream::Chance(chance) => chance.arrived,
        }
    }
}

impl Chance {
    /// One more; false when there is none.
    fn draw(&mut self) -> bool {
        if self.next > self.last {
            return false;
        }
        self.drawn.push_back(self.next);
        self.arrived += 1;
        self.next = self.next.saturating_add(self.random.exponential(self.mean_spacing) as u64);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_come_at_their_rate_and_none_after_the_last() {
        let last = 100_000_000_000;
        for draw in [Stream::even, Stream::chance] {
            let mut stream = draw(100.0, last, &mut Random::new(5));
            let mut came = Vec::new();
            while stream.at(0) != u64::MAX {
                let (first, third) = (stream.at(0), stream.at(2));
                came.push(first);
                assert!(first <= last && (third == u64::MAX || third >= first));
                assert!(stream.waiting(first) >= 1 && (first == 0 || stream.waiting(first - 1) == 0));
                if third != u64::MAX {
                    assert!(stream.waiting(third) >= 3);
                }
                stream.take(1);
            }
            assert!(came.is_sorted());
            assert_eq!(stream.arrived(), came.len() as u64);
            assert!((came.len() as f64 - 10_000.0).abs() < 400.0, "{} of about 10,000", came.len());
        }
    }

    #[test]
    fn rates_that_are_nothing_or_beyond_measure_do_no_harm() {
        for draw in [Stream::even, Stream::chance] {
            for rate in [0.0, 1e-300] {
                assert_eq!(draw(rate, 1 << 60, &mut Random::new(1)).at(0), u64::MAX);
            }
        }
        let mut stream = Stream::even(1e300, 1_000, &mut Random::new(1));
        assert_eq!((stream.at(1_000), stream.at(1_001), stream.waiting(7)), (1_000, u64::MAX, 8));
    }
}
