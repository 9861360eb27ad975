//! What a plan takes at the least on a named GPU: a bound from below, with no GPU asked.
//!
//! A launch is blocks, and a block runs on one multiprocessor. So the bound is what its busiest multiprocessor can't do faster:
//!
//! - arithmetic: ⌈blocks / multiprocessors⌉ blocks' share of the operations, at one multiprocessor's share of the GPU's rate;
//! - memory: all bytes, at the memory's rate or at what the multiprocessors that have a block can take from L2 together, whichever is less.
//!
//! The longer of the two, since they overlap. With blocks for all, evenly, that is the usual roofline. Waiting is not in it: neither for memory,
//! nor of a launch for the one before it; nor are caches and clocks below the highest. So a product of f16 whose depth is split for the sake of
//! waits that run side by side may look the slower here for its partial sums, which count as the memory's bytes and stay in L2.

use super::lower::program::Step;
use rota_kernels::{Cost, Launch};
use std::time::Duration;

/// Limits of a GPU, as its data sheet gives them (dense; sums in f32).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GpuLimits {
    pub name: &'static str,
    /// For people.
    pub full_name: &'static str,
    pub multiprocessors: u32,
    /// At its highest, by which the rates below are counted.
    pub clocks_per_second: f64,
    pub bytes_per_second: f64,
    /// Multiplications and additions in f32, outside of tensor cores.
    pub f32_per_second: f64,
    /// 0: it has no such tensor cores.
    pub tf32_per_second: f64,
    pub f16_per_second: f64,
}

/// NVIDIA's data sheets: H100, H200, A100, L4, T4 Tensor Core GPU; multiprocessors and clocks from the white papers of their architectures.
pub const GPUS: [GpuLimits; 5] = [
    GpuLimits {
        name: "h100",
        full_name: "H100 SXM",
        multiprocessors: 132,
        clocks_per_second: 1.98e9,
        bytes_per_second: 3.35e12,
        f32_per_second: 67e12,
        tf32_per_second: 494e12,
        f16_per_second: 989e12,
    },
    GpuLimits {
        name: "h200",
        full_name: "H200 SXM",
        multiprocessors: 132,
        clocks_per_second: 1.98e9,
        bytes_per_second: 4.8e12,
        f32_per_second: 67e12,
        tf32_per_second: 494e12,
        f16_per_second: 989e12,
    },
    GpuLimits {
        name: "a100",
        full_name: "A100 SXM 80 GB",
        multiprocessors: 108,
        clocks_per_second: 1.41e9,
        bytes_per_second: 2.039e12,
        f32_per_second: 19.5e12,
        tf32_per_second: 156e12,
        f16_per_second: 312e12,
    },
    GpuLimits {
        name: "l4",
        full_name: "L4",
        multiprocessors: 58,
        clocks_per_second: 2.04e9,
        bytes_per_second: 300e9,
        f32_per_second: 30.3e12,
        tf32_per_second: 60e12,
        f16_per_second: 121e12,
    },
    GpuLimits {
        name: "t4",
        full_name: "T4",
        multiprocessors: 40,
        clocks_per_second: 1.59e9,
        bytes_per_second: 320e9,
        f32_per_second: 8.1e12,
        tf32_per_second: 0.0,
        f16_per_second: 65e12,
    },
];

/// What a multiprocessor takes from L2 at the most: 64 bytes a clock, as Jia, Maggioni, Staiger and Scarpazza give it ("Dissecting the NVIDIA
/// Volta GPU Architecture via Microbenchmarking", 2018). On an H100 it takes 27 multiprocessors to ask for all that the memory gives.
const L2_BYTES_PER_CLOCK: f64 = 64.0;

impl GpuLimits {
    /// The least time of a launch.
    pub fn time(&self, step: &Step) -> Duration {
        self.time_of(&step.launch, step.launch.cost)
    }

    /// The least time of a launch that costs what `cost` says.
    pub fn time_of(&self, launch: &Launch, cost: Cost) -> Duration {
        let kernel = launch.kernel.name;
        let product = kernel.contains("gemm") || kernel.contains("conv_") && !kernel.contains("transpose");
        let operations = match product {
            true if kernel.contains("tf32") && self.tf32_per_second > 0.0 => self.tf32_per_second,
            true if kernel.contains("f16") => self.f16_per_second,
            _ => self.f32_per_second,
        };
        let blocks = launch.blocks();
        let working = blocks.min(u64::from(self.multiprocessors)) as f64;
        let bytes_per_second = self.bytes_per_second.min(working * L2_BYTES_PER_CLOCK * self.clocks_per_second);
        cost.roofline(bytes_per_second, operations * self.busy(blocks))
    }

    /// The share of the multiprocessors' time that has work, until the busiest is done, when `blocks` equal blocks are spread over them.
    pub fn busy(&self, blocks: u64) -> f64 {
        let multiprocessors = u64::from(self.multiprocessors);
        let rounds = blocks.div_ceil(multiprocessors).max(1);
        blocks as f64 / (rounds * multiprocessors) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rota_kernels::{Epilogue, Gemm, Layout, Math, Matrix, Pointer};

    const H100: &GpuLimits = &GPUS[0];

    fn step(math: Math, [rows, columns, depth]: [u32; 3]) -> Step {
        let gemm = Gemm {
            math,
            rows,
            columns,
            depth,
            batches: [1, 1],
            a: Matrix::row_major(Pointer(256), depth),
            b: Matrix::row_major(Pointer(256), columns),
            c: Matrix::row_major(Pointer(256), columns),
            epilogue: Epilogue::default(),
        };
        Step { label: String::new(), launch: gemm.launch().unwrap(), layout: Layout::Nchw, places: 0, members: None }
    }

    #[test]
    fn a_launch_that_fills_the_gpu_evenly_has_the_usual_roofline() {
        let full = step(Math::F32, [128 * 132, 64 * 16, 1024]);
        assert_eq!((full.launch.blocks(), H100.busy(full.launch.blocks())), (132 * 16, 1.0));
        let usual = full.launch.cost.roofline(H100.bytes_per_second, H100.f32_per_second);
        assert_eq!(H100.time(&full), usual);
    }

    #[test]
    fn a_launch_of_a_few_blocks_is_as_slow_as_the_multiprocessors_that_have_one() {
        // Eight tiles of 132: arithmetic at 8/132 of the rate.
        let few = step(Math::F32, [512, 49, 4608]);
        let seconds = few.launch.cost.flops as f64 / (H100.f32_per_second * 8.0 / 132.0);
        assert_eq!((few.launch.blocks(), H100.time(&few)), (8, Duration::from_secs_f64(seconds)));
        // On tensor cores it is their bytes, at what eight multiprocessors take.
        let few = step(Math::F16, [512, 49, 4608]);
        let bytes = (few.launch.cost.bytes_read + few.launch.cost.bytes_written) as f64;
        assert_eq!(H100.time(&few), Duration::from_secs_f64(bytes / (8.0 * 64.0 * 1.98e9)));
    }

    #[test]
    fn a_block_more_than_multiprocessors_doubles_the_busiest_ones_work() {
        assert_eq!(H100.busy(133), 133.0 / 264.0);
        assert_eq!(H100.busy(264), 1.0);
        assert_eq!(H100.busy(0), 0.0);
    }

    #[test]
    fn the_data_sheets_rates_are_the_clock_times_the_cores() {
        for (gpu, cores) in GPUS.iter().zip([128.0, 128.0, 64.0, 128.0, 64.0]) {
            let counted = 2.0 * cores * f64::from(gpu.multiprocessors) * gpu.clocks_per_second;
            assert!((counted / gpu.f32_per_second - 1.0).abs() < 0.01, "{}: {counted:e}", gpu.name);
        }
    }
}
