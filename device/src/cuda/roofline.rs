//! What a plan takes at the least on a named GPU: bytes against its memory, operations against its arithmetic. A bound from below, with no GPU
//! asked; launches that wait for each other, caches and clocks are not in it.

use super::lower::program::Step;
use std::time::Duration;

/// Limits of a GPU, as its data sheet gives them (dense; sums in f32).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GpuLimits {
    pub name: &'static str,
    /// For people.
    pub full_name: &'static str,
    pub bytes_per_second: f64,
    /// Multiplications and additions in f32, outside of tensor cores.
    pub f32_per_second: f64,
    /// 0: it has no such tensor cores.
    pub tf32_per_second: f64,
    pub f16_per_second: f64,
}

/// NVIDIA's data sheets: H100, H200, A100, L4, T4 Tensor Core GPU.
pub const GPUS: [GpuLimits; 5] = [
    GpuLimits {
        name: "h100",
        full_name: "H100 SXM",
        bytes_per_second: 3.35e12,
        f32_per_second: 67e12,
        tf32_per_second: 494e12,
        f16_per_second: 989e12,
    },
    GpuLimits {
        name: "h200",
        full_name: "H200 SXM",
        bytes_per_second: 4.8e12,
        f32_per_second: 67e12,
        tf32_per_second: 494e12,
        f16_per_second: 989e12,
    },
    GpuLimits {
        name: "a100",
        full_name: "A100 SXM 80 GB",
        bytes_per_second: 2.039e12,
        f32_per_second: 19.5e12,
        tf32_per_second: 156e12,
        f16_per_second: 312e12,
    },
    GpuLimits {
        name: "l4",
        full_name: "L4",
        bytes_per_second: 300e9,
        f32_per_second: 30.3e12,
        tf32_per_second: 60e12,
        f16_per_second: 121e12,
    },
    GpuLimits {
        name: "t4",
        full_name: "T4",
        bytes_per_second: 320e9,
        f32_per_second: 8.1e12,
        tf32_per_second: 0.0,
        f16_per_second: 65e12,
    },
];

impl GpuLimits {
    /// The least time of a launch.
    pub fn time(&self, step: &Step) -> Duration {
        let operations = self.operations_per_second(step.launch.kernel.name);
        step.launch.cost.roofline(self.bytes_per_second, operations)
    }

    /// What a kernel of that name can do at the most.
    pub fn operations_per_second(&self, kernel: &str) -> f64 {
        let product = kernel.contains("gemm") || kernel.contains("conv_") && !kernel.contains("transpose");
        match product {
            true if kernel.contains("tf32") && self.tf32_per_second > 0.0 => self.tf32_per_second,
            true if kernel.contains("f16") => self.f16_per_second,
            _ => self.f32_per_second,
        }
    }
}
