//! What a GPU has to show: kernels, models and the daemon, correct and timed, on the host that has it.
//!
//! Each part writes a file of lines ([`lines::Line`]) as it goes, so that one that is cut off loses only what it had not done;
//! [`report`] makes one JSON object and one table of all. `bench/gpu/run.sh` runs the parts one after the other.

pub mod case;
pub mod cases;
pub mod daemon;
pub mod kernels;
pub mod lines;
pub mod models;
pub mod references;
pub mod report;
pub mod timetable;

pub use crate::rounds::Failure;

use rota_device::cuda::driver::GpuInfo;
use rota_device::cuda::roofline::{GPUS, GpuLimits};
use rota_kernels::{Cost, Math, standin};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The GPU that figures were taken on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    pub gpu: String,
    pub compute_capability: (u32, u32),
    pub memory_bytes: u64,
    /// Then no time means anything.
    pub stand_in: bool,
    /// The entry of the table of data sheets that shares are of; `None`: the GPU is not in it, and there are no shares.
    pub limits: Option<String>,
}

impl Machine {
    pub fn new(info: &GpuInfo) -> Machine {
        let stand_in = info.name.starts_with(standin::NAME_PREFIX);
        Machine {
            gpu: info.name.clone(),
            compute_capability: info.compute_capability,
            memory_bytes: info.memory_bytes,
            stand_in,
            limits: limits_of(&info.name).map(|limits| limits.name.to_owned()),
        }
    }

    fn gpu_limits(&self) -> Option<&'static GpuLimits> {
        GPUS.iter().find(|limits| Some(limits.name) == self.limits.as_deref())
    }

    /// The least time that the GPU takes for this much, and what bounds it; `None` where its limits are not known.
    pub fn roofline(&self, cost: Cost, math: Math) -> Option<(Duration, &'static str)> {
        let limits = self.gpu_limits()?;
        let flops_per_second = match math {
            Math::F32 => limits.f32_per_second,
            Math::Tf32 => limits.tf32_per_second,
            Math::F16 | Math::Bf16 => limits.f16_per_second,
        };
        let time = cost.roofline(limits.bytes_per_second, flops_per_second);
        let memory = (cost.bytes_read + cost.bytes_written) as f64 / limits.bytes_per_second;
        Some((time, if time.as_secs_f64() > memory * (1.0 + 1e-9) { "arithmetic" } else { "memory" }))
    }
}

/// The data sheet of the GPU that the driver calls so. Boards of one name differ: those that are slower than the entry have none.
fn limits_of(name: &str) -> Option<&'static GpuLimits> {
    let name = name.to_ascii_lowercase();
    let words: Vec<&str> = name.split([' ', '-']).collect();
    let slower = words.iter().any(|word| ["pcie", "nvl", "mig", "40gb"].contains(word));
    GPUS.iter().find(|limits| !slower && words.contains(&limits.name))
}

/// The middle one, of an even number the later of the two; `None` of none.
pub fn median(samples: &[Duration]) -> Option<Duration> {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied()
}

/// In microseconds, as results have times.
pub fn microseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_is_known_by_the_drivers_name_and_a_lesser_board_is_not_taken_for_it() {
        let cases = [
            ("NVIDIA H100 80GB HBM3", Some("h100")),
            ("NVIDIA H200", Some("h200")),
            ("NVIDIA A100-SXM4-80GB", Some("a100")),
            ("NVIDIA A100-SXM4-40GB", None),
            ("NVIDIA H100 PCIe", None),
            ("Tesla T4", Some("t4")),
            ("NVIDIA L40S", None),
            ("Stand-in GPU", None),
        ];
        for (name, expected) in cases {
            assert_eq!(limits_of(name).map(|limits| limits.name), expected, "{name}");
        }
    }

    #[test]
    fn what_bounds_a_launch_is_the_longer_of_bytes_and_operations() {
        let machine = Machine {
            gpu: "NVIDIA H100 80GB HBM3".into(),
            compute_capability: (9, 0),
            memory_bytes: 80 << 30,
            stand_in: false,
            limits: Some("h100".into()),
        };
        let copy = Cost { bytes_read: 3_350_000, bytes_written: 0, flops: 10 };
        assert_eq!(machine.roofline(copy, Math::F32), Some((Duration::from_micros(1), "memory")));
        let product = Cost { bytes_read: 1, bytes_written: 1, flops: 67_000_000 };
        assert_eq!(machine.roofline(product, Math::F32), Some((Duration::from_micros(1), "arithmetic")));
        assert_eq!(Machine { limits: None, ..machine }.roofline(product, Math::F32), None);
    }
}
