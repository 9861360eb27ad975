//! The cuda device: a model's graph lowered to our own kernels, launched through NVIDIA's driver.
//!
//! [`lower`] is pure: from a graph and sizes to launches over a memory plan. [`driver`] has the driver's calls. Between them `gpu`
//! holds what networks on a GPU share, `arenas` the clients' memory that all GPUs reach, `content` and `upload` weights and their way, `plan` a program as it lies on
//! a GPU, captured; `runner` finds the plan for what comes, and `warm` has plans made before it comes.
//! [`CudaEngine`] loads models like any other engine, so whatever runs on engines runs on GPUs: whole models and parts of a
//! prefix group, checks, profiles.

mod arenas;
mod content;
pub mod driver;
mod engine;
pub(crate) mod flight;
mod gpu;
pub mod lower;
pub mod measure;
mod model;
mod plan;
pub mod roofline;
pub(crate) mod runner;
mod upload;
pub(crate) mod warm;
pub mod workbench;

pub use engine::CudaEngine;
pub use model::Model;
/// The driver that tests use instead of NVIDIA's.
pub use rota_kernels::standin;

use crate::DType;
use driver::DriverError;

/// In what numbers a model's products are computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Precision {
    /// As written: 24 bits of mantissa.
    #[default]
    Fp32,
    /// Operands of products rounded to 10 bits of mantissa, sums in f32; needs tensor cores of compute capability 8.0.
    Tf32,
    /// Tensors in fp16, sums in f32.
    Fp16,
}

/// A GPU can't be used, or could not do what it was given.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CudaError {
    #[error(transparent)]
    Driver(#[from] DriverError),
    /// A build without nvcc.
    #[error("this program has no CUDA kernels: {why}")]
    NoKernels { why: &'static str },
    /// The program's kernels are not for this GPU.
    #[error("{gpu} (compute capability {}.{}) does not take the kernels of this program: {error}", capability.0, capability.1)]
    Image { gpu: String, capability: (u32, u32), error: DriverError },
    /// An older GPU than the precision takes.
    #[error("{gpu} has compute capability {}.{}, and precision \"{precision}\" takes {}.{}: choose \"fp32\"",
        capability.0, capability.1, needed.0, needed.1)]
    Capability { gpu: String, precision: &'static str, capability: (u32, u32), needed: (u32, u32) },
    /// A GPU is named that the driver does not have.
    #[error("there is no GPU {ordinal}: {}", present(*count))]
    NoGpu { ordinal: u32, count: u32 },
    /// Nothing changed; less has to be loaded, or a smaller batch asked for.
    #[error("the GPU's memory does not hold {:.2} MB more for {what}: {:.2} of {:.0} MB are free; unload models, or give them smaller batches",
        mb(*bytes), mb(*free), mb(*total))]
    OutOfMemory { what: &'static str, bytes: u64, free: u64, total: u64 },
    /// It comes back by itself when it can.
    #[error("{gpu} is lost; it is asked again until it answers")]
    Lost { gpu: String },
    #[error("{0}")]
    Lower(#[from] lower::LowerError),
    /// The request's fault.
    #[error("an input indexes past the end of a tensor")]
    Index,
    #[error("an output has a type or more dimensions than are carried")]
    Output,
}

impl Precision {
    /// As settings and the command line spell it.
    pub fn name(self) -> &'static str {
        match self {
            Precision::Fp32 => "fp32",
            Precision::Tf32 => "tf32",
            Precision::Fp16 => "fp16",
        }
    }
}

/// Which GPUs there are, in words.
fn present(count: u32) -> String {
    match count {
        0 => "the driver has none".to_owned(),
        1 => "the driver has one, number 0".to_owned(),
        _ => format!("the driver has {count}, numbered from 0 to {}", count - 1),
    }
}

fn mb(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// The device's word for an element type of a graph.
fn dtype(dtype: rota_graph::DType) -> Option<DType> {
    Some(match dtype.0 {
        1 => DType::F32,
        2 => DType::U8,
        3 => DType::I8,
        4 => DType::U16,
        5 => DType::I16,
        6 => DType::I32,
        7 => DType::I64,
        9 => DType::Bool,
        10 => DType::F16,
        11 => DType::F64,
        12 => DType::U32,
        13 => DType::U64,
        16 => DType::Bf16,
        _ => return None,
    })
}
