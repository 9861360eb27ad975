//! What one round of a contender measures.

use crate::rounds::Failure;
use std::time::{Duration, Instant};

/// How long a round measures, and what it does before that is not counted: the other side may have to wake up.
#[derive(Clone, Copy, Debug)]
pub struct Round {
    pub warmup: Duration,
    pub length: Duration,
}

impl Round {
    pub fn of(length: Duration) -> Round {
        Round { warmup: (length / 10).min(Duration::from_millis(5)), length }
    }

    /// Does `once` again and again; median and 99th percentile of its times, in microseconds. `before` runs ahead of each,
    /// outside of the timing.
    pub fn latency(
        self,
        times: &mut Vec<u64>,
        mut before: impl FnMut() -> Result<(), Failure>,
        mut once: impl FnMut() -> Result<(), Failure>,
    ) -> Result<Vec<f64>, Failure> {
        times.clear();
        let start = Instant::now();
        loop {
            before()?;
            let begin = Instant::now();
            once()?;
            let end = Instant::now();
            if end - start >= self.warmup {
                times.push((end - begin).as_nanos() as u64);
            }
            if end - start >= self.warmup + self.length {
                break;
            }
        }
        times.sort_unstable();
        let at = |quantile: f64| times[((times.len() - 1) as f64 * quantile) as usize] as f64 / 1e3;
        Ok(vec![at(0.5), at(0.99)])
    }

    /// Calls `turn`, which returns how many it finished, again and again; millions per second.
    pub fn throughput(self, mut turn: impl FnMut() -> Result<u64, Failure>) -> Result<Vec<f64>, Failure> {
        let run = |length: Duration, turn: &mut dyn FnMut() -> Result<u64, Failure>| -> Result<f64, Failure> {
            let (start, mut done) = (Instant::now(), 0);
            loop {
                for _ in 0..TURNS_PER_CLOCK {
                    done += turn()?;
                }
                let elapsed = start.elapsed();
                // However busy the host is, a rate of nothing would compare with nothing.
                if elapsed >= length && done > 0 {
                    return Ok(done as f64 / elapsed.as_secs_f64() / 1e6);
                }
            }
        };
        run(self.warmup, &mut turn)?;
        Ok(vec![run(self.length, &mut turn)?])
    }
}

const TURNS_PER_CLOCK: u32 = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_counts_what_it_did() {
        let round = Round::of(Duration::from_millis(2));
        let (mut before, mut once, mut times) = (0, 0, Vec::new());
        let figures = round.latency(
            &mut times,
            || {
                before += 1;
                Ok(())
            },
            || {
                once += 1;
                Ok(())
            },
        );
        let figures = figures.unwrap();
        assert_eq!(before, once);
        assert!((1..=once).contains(&times.len()) && figures[0] <= figures[1]);
        assert!(round.throughput(|| Ok(3)).unwrap()[0] > 0.0);
        assert!(round.throughput(|| Err("broken".into())).is_err());
    }
}
