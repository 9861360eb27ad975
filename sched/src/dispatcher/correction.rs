//! What executions take, relative to the profile.

use crate::Instant;

/// A high quantile of (time taken ÷ ℓ(b)) over the last [`WINDOW`] executions, about the 95th percentile.
///
/// A quantile and not the mean, because a batch that ends late makes all its requests late, while one that ends early
/// gains little. Over a window and not by stochastic approximation: as cheap at this size, follows within a few
/// executions, and a device that takes exactly what its profile says is corrected by exactly 1.
///
/// Time without executions brings it back towards 1: a correction that made every request look hopeless would otherwise
/// never be contradicted.
#[derive(Clone, Debug)]
pub struct Correction {
    /// A ring; at first as if every execution had taken what the profile says.
    samples: [f32; WINDOW],
    next: usize,
    /// A multiple of [`GRID`], not below the quantile.
    applied: f64,
    /// The last execution, or the last time that its absence was accounted for.
    seen: Instant,
}

impl Correction {
    pub fn new(now: Instant) -> Correction {
        Correction { samples: [1.0; WINDOW], next: 0, applied: 1.0, seen: now }
    }

    /// Takes a sample, nanoseconds. True when the factor to apply changed: it moves on a grid, with hysteresis, so that
    /// tables derived from it are rarely rebuilt.
    pub fn observe(&mut self, took: u64, expected: u64, now: Instant) -> bool {
        self.seen = now;
        self.samples[self.next] = ((took as f64 / expected as f64) as f32).clamp(LEAST, MOST);
        self.next = (self.next + 1) % WINDOW;
        self.apply()
    }

    /// Halves what samples differ from 1 for every [`QUIET`] without an execution. True when the factor changed.
    pub fn relax(&mut self, now: Instant) -> bool {
        let quiet = now.0.saturating_sub(self.seen.0) / QUIET;
        if quiet == 0 {
            return false;
        }
        self.seen = now;
        let left = 1.0 / (1u32 << quiet.min(20)) as f32;
        self.samples.iter_mut().for_each(|sample| *sample = 1.0 + (*sample - 1.0) * left);
        self.apply()
    }

    fn apply(&mut self) -> bool {
        let applied = (f64::from(self.quantile()) / GRID).ceil() * GRID;
        let moved = applied > self.applied || applied < self.applied - GRID;
        if moved {
            self.applied = applied;
        }
        moved
    }

    /// What ℓ(b) is multiplied by.
    pub fn factor(&self) -> f64 {
        self.applied
    }

    /// The least of the [`ABOVE`] + 1 largest samples.
    fn quantile(&self) -> f32 {
        let mut largest = [0.0f32; ABOVE + 1];
        for &sample in &self.samples {
            if sample <= largest[0] {
                continue;
            }
            largest[0] = sample;
            let mut place = 0;
            while place < ABOVE && largest[place] > largest[place + 1] {
                largest.swap(place, place + 1);
                place += 1;
            }
        }
        largest[0]
    }
}

/// Nanoseconds. Longer than between the requests of most sessions, so that slow ones are corrected too.
const QUIET: u64 = 5_000_000_000;
const WINDOW: usize = 64;
/// Of a window's samples so many may lie above the quantile.
const ABOVE: usize = 3;
/// A power of two: multiples are exact.
const GRID: f64 = 1.0 / 128.0;
/// A sample past these says that the profile is of something else: follow, but only so far.
const LEAST: f32 = 0.5;
const MOST: f32 = 4.0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exact_executions_leave_the_profile_as_it_is() {
        let mut correction = Correction::new(Instant(0));
        for _ in 0..1000 {
            assert!(!correction.observe(5_000, 5_000, Instant(0)));
        }
        assert_eq!(correction.factor(), 1.0);
    }

    #[test]
    fn few_executions_take_longer_than_corrected() {
        // Samples spread evenly over 0.8..1.2 by a fixed stride: the 95th percentile is 1.18.
        let mut correction = Correction::new(Instant(0));
        let (mut above, mut sum, rounds) = (0, 0.0, 20_000u64);
        for round in 0..rounds {
            let sample = 800 + round * 197 % 401;
            above += u32::from(sample as f64 > correction.factor() * 1000.0);
            sum += correction.factor();
            correction.observe(sample, 1000, Instant(0));
        }
        let share = f64::from(above) / rounds as f64;
        assert!(share > 0.01 && share < 0.06, "{share} of the executions took longer than corrected");
        let mean = sum / rounds as f64;
        assert!((1.16..1.20).contains(&mean), "{mean}");
    }

    #[test]
    fn slowness_is_learnt_within_four_executions_bounded_and_forgotten() {
        let mut correction = Correction::new(Instant(0));
        let slow = |correction: &mut Correction| correction.observe(100_000, 1000, Instant(0));
        assert_eq!([(); 4].map(|()| slow(&mut correction)), [false, false, false, true]);
        assert_eq!(correction.factor(), f64::from(MOST));
        (0..WINDOW).for_each(|_| _ = correction.observe(1000, 1000, Instant(0)));
        assert_eq!(correction.factor(), 1.0);
        (0..WINDOW).for_each(|_| _ = correction.observe(1, 1000, Instant(0)));
        assert_eq!(correction.factor(), f64::from(LEAST));
    }

    #[test]
    fn time_without_executions_forgets() {
        let mut correction = Correction::new(Instant(0));
        (0..4).for_each(|_| _ = correction.observe(3000, 1000, Instant(7)));
        assert!(!correction.relax(Instant(QUIET + 6)));
        assert_eq!(correction.factor(), 3.0);
        assert!(correction.relax(Instant(QUIET + 7)));
        assert_eq!(correction.factor(), 2.0);
        assert!(correction.relax(Instant::MAX));
        assert!(correction.factor() <= 1.0 + GRID);
    }
}
