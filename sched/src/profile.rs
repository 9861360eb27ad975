//! ℓ(b): how long a batch of b items executes, as measured.

use crate::time::nanos;
use std::time::Duration;

/// Measured latency of a model and shape class on one kind of device.
///
/// Between measured sizes linear, never extrapolated past the largest. Non-decreasing by construction. Kept as a table
/// of every batch size, because the dispatcher asks for ℓ(b) several times a batch and profiles are short: one load,
/// and a device that pads to buckets (a step function) needs no other type.
#[derive(Clone, Debug, PartialEq)]
pub struct Profile {
    /// ℓ(b) in nanoseconds at index b - 1; never empty, above zero, non-decreasing.
    latencies: Vec<u64>,
}

/// What is wrong with measured points. The caller's fault; nothing was built.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ProfileError {
    #[error("a profile needs at least one batch size")]
    Empty,
    #[error("batch size {0} is given twice")]
    Twice(u32),
    #[error("batch sizes start at 1")]
    BatchZero,
    #[error("latency of batch {0} must be above zero")]
    NotPositive(u32),
    #[error("batch size {0} is above {max}, the largest that a profile holds", max = Profile::BATCH_LIMIT)]
    TooLarge(u32),
}

impl Profile {
    /// Largest batch size that a profile may hold: bounds its table to half a megabyte.
    pub const BATCH_LIMIT: u32 = 1 << 16;

    /// From measured points in any order; a point faster than a smaller batch's is raised to it. Below the smallest
    /// measured size the smallest's latency holds. Between two points a fraction of a nanosecond is cut off.
    pub fn new(points: &[(u32, Duration)]) -> Result<Profile, ProfileError> {
        let mut points: Vec<(u32, u64)> = points.iter().map(|&(batch, latency)| (batch, nanos(latency))).collect();
        points.sort_unstable();
        for (index, &(batch, latency)) in points.iter().enumerate() {
            if batch == 0 {
                return Err(ProfileError::BatchZero);
            }
            if batch > Profile::BATCH_LIMIT {
                return Err(ProfileError::TooLarge(batch));
            }
            if latency == 0 {
                return Err(ProfileError::NotPositive(batch));
            }
            if index > 0 && points[index - 1].0 == batch {
                return Err(ProfileError::Twice(batch));
            }
        }
        let &(smallest, first) = points.first().ok_or(ProfileError::Empty)?;
        let mut latencies = vec![first; smallest as usize];
        let (mut from, mut low) = (smallest, first);
        for &(to, latency) in &points[1..] {
            let high = latency.max(low);
            let (rise, run) = (u128::from(high - low), u128::from(to - from));
            let between = (1..=to - from).map(|step| low + (rise * u128::from(step) / run) as u64);
            latencies.extend(between);
            (from, low) = (to, high);
        }
        Ok(Profile { latencies })
    }

    /// ℓ(b); `None` when b is 0 or past [`Profile::max_batch`].
    pub fn latency(&self, batch: u32) -> Option<Duration> {
        self.nanos(batch).map(Duration::from_nanos)
    }

    pub fn max_batch(&self) -> u32 {
        self.latencies.len() as u32
    }

    /// Largest b with ℓ(b) ≤ limit; 0 when even one item takes longer.
    pub fn largest_within(&self, limit: Duration) -> u32 {
        let limit = nanos(limit);
        self.latencies.partition_point(|&latency| latency <= limit) as u32
    }

    /// ℓ(b) in nanoseconds; `None` as for [`Profile::latency`].
    pub(crate) fn nanos(&self, batch: u32) -> Option<u64> {
        self.latencies.get((batch as usize).wrapping_sub(1)).copied()
    }

    /// Becomes `measured` with every latency times `factor`, rounded up. Allocates only when `measured` is longer.
    pub(crate) fn scale(&mut self, measured: &Profile, factor: f64) {
        self.latencies.clear();
        // f64 keeps every whole nanosecond up to 104 days.
        self.latencies.extend(measured.latencies.iter().map(|&latency| (latency as f64 * factor).ceil() as u64));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn latency_is_linear_between_points_and_flat_below_the_first() {
        let profile = Profile::new(&[(8, ms(75)), (4, ms(50)), (16, ms(100))]).expect("valid points");
        let cases = [
            (0, None),
            (1, Some(50_000)),
            (4, Some(50_000)),
            (6, Some(62_500)),
            (8, Some(75_000)),
            (12, Some(87_500)),
            (16, Some(100_000)),
            (17, None),
        ];
        for (batch, micros) in cases {
            assert_eq!(profile.latency(batch), micros.map(Duration::from_micros), "batch {batch}");
        }
        assert_eq!(profile.max_batch(), 16);
    }

    #[test]
    fn a_point_faster_than_a_smaller_batch_is_raised_to_it() {
        let profile = Profile::new(&[(1, ms(5)), (2, ms(9)), (3, ms(7)), (4, ms(11))]).expect("valid points");
        let latencies: Vec<_> = (1..=4).map(|b| profile.latency(b).expect("within the profile")).collect();
        assert_eq!(latencies, [ms(5), ms(9), ms(9), ms(11)]);
    }

    #[test]
    fn largest_within_is_the_inverse_of_latency() {
        let profile = Profile::new(&[(1, ms(10)), (2, ms(12)), (3, ms(12)), (5, ms(20))]).expect("valid points");
        for (limit, batch) in [(0, 0), (9, 0), (10, 1), (11, 1), (12, 3), (15, 3), (16, 4), (20, 5), (1000, 5)] {
            assert_eq!(profile.largest_within(ms(limit)), batch, "limit {limit} ms");
        }
    }

    #[test]
    fn impossible_points_are_refused() {
        let cases = [
            (vec![], ProfileError::Empty),
            (vec![(0, ms(1))], ProfileError::BatchZero),
            (vec![(1, ms(1)), (2, ms(0))], ProfileError::NotPositive(2)),
            (vec![(3, ms(1)), (1, ms(1)), (3, ms(2))], ProfileError::Twice(3)),
            (vec![(1, ms(1)), (65_537, ms(2))], ProfileError::TooLarge(65_537)),
        ];
        for (points, error) in cases {
            assert_eq!(Profile::new(&points), Err(error));
        }
    }

    #[test]
    fn scaling_rounds_up_and_by_one_changes_nothing() {
        let measured = Profile::new(&[(1, Duration::from_nanos(101)), (2, Duration::from_nanos(200))]).expect("valid");
        let mut scaled = measured.clone();
        scaled.scale(&measured, 1.0);
        assert_eq!(scaled, measured);
        scaled.scale(&measured, 1.5);
        assert_eq!((scaled.nanos(1), scaled.nanos(2)), (Some(152), Some(300)));
    }
}
