//! Which of two programs for the same model is the faster: what the choice of a layout hangs on.
//!
//! A launch takes the longest of three: its bytes, its operations, and the places in pictures that its threads work out. The last is where
//! layouts differ. In NCHW the depth of an implicit product runs over (channel, ky, kx), so each element that a tile takes has a place of its
//! own, with a test for the padding; in NHWC four channels of a tap have one. Next to tensor cores that is what bounds a tile: 128x64 of it
//! take a step of one channel in 4 clocks of a multiprocessor, and 64 places in 10. In f32 a step takes 64 clocks, and layouts are alike.
//! Operations are counted with those of half-empty tiles: in NHWC filters lie across a tile's 64 columns, which 16 of them fill to a quarter,
//! in NCHW down its rows, of which there are fewer; but pixels fill tiles of NHWC over all pictures, and of NCHW often picture by picture.
//! What speaks against NHWC are transposes where a network enters or leaves it: their bytes and launches count as everybody's.
//!
//! The limits are one GPU's; only their proportions matter, which are similar on all that have tensor cores.

use super::program::{Program, Step};
use crate::cuda::roofline::GPUS;
use rota_kernels::{Cost, Launch};
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
    let launch = &step.launch;
    let flops = launch.cost.flops as f64 * waste(launch);
    let plain = gpu.time_of(launch, Cost { flops: flops as u64, ..launch.cost });
    let per_second = gpu.busy(launch.blocks()) * gpu.f32_per_second / F32_PER_INTEGER / OPERATIONS_PER_PLACE;
    plain.max(Duration::from_secs_f64(step.places as f64 / per_second)) + LAUNCH
}

/// Of a product, what its tiles compute per what it needs: 1 where they are full, 4 where 64 columns compute 16. Its kernel's name says the
/// tile.
fn waste(launch: &Launch) -> f64 {
    let size =
        |part: &str| part.split_once('x').and_then(|(rows, columns)| Some((rows.parse().ok()?, columns.parse().ok()?)));
    // Parts of a depth write sums of every tile.
    let name = launch.kernel.name;
    let product = launch.grid[2] == 1 && (name.contains("gemm") || name.contains("conv_"));
    let Some((rows, columns)) = name.split('_').find_map(size).filter(|_| product) else { return 1.0 };
    let (rows, columns): (u64, u64) = (rows, columns);
    let element = if name.contains("f16") { 2 } else { 4 };
    let tiles = u64::from(launch.grid[0]) * u64::from(launch.grid[1]);
    (tiles * rows * columns) as f64 / (launch.cost.bytes_written / element).max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use rota_kernels::{Epilogue, Gemm, Math, Matrix, Pointer};

    #[test]
    fn a_tile_that_is_a_quarter_full_costs_four() {
        let waste_of = |rows, columns| {
            let [a, b, c] = [0x1000, 0x2000, 0x3000].map(Pointer);
            let (a, b) = (Matrix::row_major(a, 32), Matrix::transposed(b, 32));
            let (c, batches, epilogue) = (Matrix::row_major(c, columns), [1, 1], Epilogue::default());
            waste(&Gemm { math: Math::F16, rows, columns, depth: 32, batches, a, b, c, epilogue }.launch().unwrap())
        };
        assert_eq!(waste_of(1 << 16, 64), 1.0);
        assert_eq!(waste_of(1 << 16, 16), 4.0);
    }
}
