//! ℓ(b): how long a batch of b items executes, as measured.

use std::time::Duration;

/// Measured latency of a model and shape class on one kind of device.
///
/// Between measured sizes linear, never extrapolated past the largest. Non-decreasing by construction.
#[derive(Clone, Debug, PartialEq)]
pub struct Profile {/* private */}

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
}

impl Profile {
    /// From measured points in any order; a point faster than a smaller batch's is raised to it. Below the smallest
    /// measured size the smallest's latency holds.
    pub fn new(points: &[(u32, Duration)]) -> Result<Profile, ProfileError> {
        let _ = points;
        todo!()
    }
    /// ℓ(b); `None` when b is 0 or past [`Profile::max_batch`].
    pub fn latency(&self, batch: u32) -> Option<Duration> {
        let _ = batch;
        todo!()
    }
    pub fn max_batch(&self) -> u32 {
        todo!()
    }
    /// Largest b with ℓ(b) ≤ limit; 0 when even one item takes longer.
    pub fn largest_within(&self, limit: Duration) -> u32 {
        let _ = limit;
        todo!()
    }
}
