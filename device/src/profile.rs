//! How long a network's batches take, measured the way that they will run: through [`Network::execute`], out of arenas and
//! into arenas, so that gathering and scattering are in the figures.

use crate::sample::{self, Hints, Numbers};
use crate::{Batch, HostTensor, Network, NetworkId, Outcome, RunError, TensorSpec};
use std::time::{Duration, Instant};

/// One measured batch size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Point {
    pub batch: u32,
    /// The median.
    pub latency: Duration,
    /// The 95th percentile.
    pub p95: Duration,
    pub runs: u32,
}

/// How much time a measurement may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// For each batch size, its warm-up included; at least [`RUNS_MIN`] runs are made in any case.
    pub time_per_batch: Duration,
    /// Runs of each batch size, at most.
    pub runs_max: u32,
    /// Larger batches are not measured once one takes longer than this.
    pub longest_batch: Duration,
}

impl Default for Budget {
    fn default() -> Budget {
        Budget { time_per_batch: Duration::from_millis(500), runs_max: 50, longest_batch: Duration::from_secs(1) }
    }
}

/// What has been measured so far, for a progress bar. It is told after every run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The batch size that is being measured.
    pub batch: u32,
    /// Its number among the sizes to measure, from 0, and how many they are.
    pub step: usize,
    pub steps: usize,
    pub run: u32,
    pub took: Duration,
}

/// A measurement that gave no profile.
#[derive(Debug, thiserror::Error)]
pub enum MeasureError {
    #[error("no batch size to measure")]
    NoBatches,
    #[error("a batch of {batch} does not run: {text}")]
    DoesNotRun { batch: u32, text: String },
    #[error("input '{0}' is too large at the given sizes")]
    TooLarge(String),
    #[error("no arena for a batch: {0}")]
    Arena(std::io::Error),
}

/// Runs made at least, so that a median means something.
pub const RUNS_MIN: u32 = 3;
const WARM_UP_RUNS: u32 = 2;

/// Measures batches of 1, 2, 4 and so on up to `largest`, `largest` included: what to give [`measure`].
pub fn doubling(largest: u32) -> Vec<u32> {
    let mut batches: Vec<u32> =
        std::iter::successors(Some(1u32), |b| b.checked_mul(2)).take_while(|&b| b < largest).collect();
    batches.push(largest.max(1));
    batches
}

/// Measures the network at the sizes of `hints` ([`crate::check::Checked::hints`], or a class's own) for each batch size, in
/// ascending order. Each batch is made of requests of one item. A network that does not batch is measured at 1 only.
pub fn measure(
    network: &mut dyn Network,
    hints: &Hints,
    batches: &[u32],
    budget: Budget,
    progress: &mut dyn FnMut(Progress),
) -> Result<Vec<Point>, MeasureError> {
    let mut batches: Vec<u32> = batches.iter().copied().filter(|&batch| batch > 0).collect();
    batches.sort_unstable();
    batches.dedup();
    if !network.signature().batches() {
        batches = vec![1];
    }
    let mut points: Vec<Point> = Vec::with_capacity(batches.len());
    for (step, &batch) in batches.iter().enumerate() {
        let mut prepared = prepare(network, hints, batch)?;
        let mut told = |run, took| progress(Progress { batch, step, steps: batches.len(), run, took });
        let point = measure_batch(network, &mut prepared, batch, budget, &mut told)?;
        points.push(point);
        if point.latency > budget.longest_batch {
            break;
        }
    }
    if points.is_empty() { Err(MeasureError::NoBatches) } else { Ok(points) }
}

fn measure_batch(
    network: &mut dyn Network,
    prepared: &mut Batch,
    batch: u32,
    budget: Budget,
    told: &mut dyn FnMut(u32, Duration),
) -> Result<Point, MeasureError> {
    let begin = Instant::now();
    let mut times = Vec::with_capacity(budget.runs_max as usize);
    let runs_max = budget.runs_max.max(RUNS_MIN);
    // One slow warm-up is enough to know that there will be no time for more.
    let mut warm_ups = 0;
    while (times.len() as u32) < runs_max {
        network.execute(prepared);
        if let Some(text) = failure(prepared) {
            return Err(MeasureError::DoesNotRun { batch, text });
        }
        let spent = begin.elapsed() >= budget.time_per_batch;
        if warm_ups < WARM_UP_RUNS && !(spent && warm_ups > 0) {
            warm_ups += 1;
            continue;
        }
        times.push(prepared.took);
        told(times.len() as u32, prepared.took);
        if spent && times.len() as u32 >= RUNS_MIN {
            break;
        }
    }
    times.sort_unstable();
    let quantile = |part: f64| times[((times.len() - 1) as f64 * part).round() as usize];
    Ok(Point { batch, latency: quantile(0.5), p95: quantile(0.95), runs: times.len() as u32 })
}

/// A batch of `items` requests with generated inputs and room for their outputs.
fn prepare(network: &mut dyn Network, hints: &Hints, items: u32) -> Result<Box<Batch>, MeasureError> {
    let signature = network.signature().clone();
    let generate = |seed: u64| -> Result<Vec<HostTensor>, MeasureError> {
        let mut numbers = Numbers(seed);
        let tensor = |spec: &TensorSpec| {
            let shape = sample::shape(spec, 1, hints, 1);
            let tensor = shape.and_then(|shape| sample::tensor(spec, shape, hints, &mut numbers));
            tensor.ok_or_else(|| MeasureError::TooLarge(spec.name.clone()))
        };
        signature.inputs.iter().map(tensor).collect()
    };
    let requests: Vec<Vec<HostTensor>> = (0..u64::from(items)).map(generate).collect::<Result<_, _>>()?;
    let does_not_run = |error: RunError| MeasureError::DoesNotRun { batch: 1, text: error.to_string() };
    let outputs = network.run(&requests[0]).map_err(does_not_run)?;
    // Outputs whose size depends on the values may come larger for another item.
    let room: Vec<usize> = outputs.iter().map(|output| 2 * output.bytes.len() + 4096).collect();
    sample::lay_out(NetworkId(0), &signature, &requests, &room).map_err(MeasureError::Arena)
}

fn failure(batch: &Batch) -> Option<String> {
    batch.requests.iter().find_map(|request| match &request.outcome {
        Outcome::Failed(text) => Some(text.clone()),
        // An answer that is too large for its room was computed all the same.
        Outcome::Done | Outcome::Told | Outcome::OutputTooSmall { .. } | Outcome::Pending => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_double_and_end_with_the_largest() {
        assert_eq!(doubling(1), [1]);
        assert_eq!(doubling(8), [1, 2, 4, 8]);
        assert_eq!(doubling(24), [1, 2, 4, 8, 16, 24]);
        assert_eq!(doubling(0), [1]);
        assert_eq!(doubling(u32::MAX).len(), 33);
    }
}
