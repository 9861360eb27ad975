//! Which of two programs for the same model is the faster: what the choice of a layout hangs on.
//!
//! A launch takes the longest of three: its bytes, its operations, and the places in pictures that its threads work out. The last is where
//! layouts differ. In NCHW the depth of an implicit product runs over (channel, ky, kx), so each element that a tile takes has a place of its
//! own, with a test for the padding; in NHWC four channels of a tap have one. Next to tensor cores that is what bounds a tile: 128x64 of it
//! take a step of one channel in 4 clocks of a multiprocessor, and 64 places in 10. In f32 a step takes 64 clocks, and layouts are alike.
//! What speaks against NHWC are transposes where a network enters or leaves it: their bytes and launches count as everybody's.
//!
//! The limits are one GPU's; only their proportions matter, which are similar on all that have tensor cores.

use super::program::{Program, Step};
use crate::cuda::roofline::GPUS;
use std::time::Duration;

/// Between two launches of a CUDA graph; about what is seen on current GPUs.
const LAUNCH: Duration = Duration::from_nanos(1500);
/// Operations on integers that working out a place takes: two divisions by multiplication, a tap, two comparisons.
const OPERATIONS_PER_PLACE: f64 = 10.0;
/// Multiplications and additions in f32 per operation on integers: a fused one is two, and there are half as many units for integers.
const F32_PER_INTEGER: f64 = 4.0;

/// Time of all launches, one after the other.
pub fn estimate(program: &Program) -> Duration {
    program.steps.iter().map(step).sum()
}

fn step(step: &Step) -> Duration {
    let [gpu, ..] = &GPUS;
    let per_second = gpu.f32_per_second / F32_PER_INTEGER / OPERATIONS_PER_PLACE;
    gpu.time(step).max(Duration::from_secs_f64(step.places as f64 / per_second)) + LAUNCH
}
