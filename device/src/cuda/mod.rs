//! The cuda device: a model's graph lowered to our own kernels, launched through NVIDIA's driver.
//!
//! [`lower`] is pure: from a graph and sizes to launches over a memory plan. [`driver`] has the driver's calls. Between them `gpu`
//! holds what networks on a GPU share, `plan` a program as it lies there, captured, and `runner` finds the plan for what comes.
//! [`CudaEngine`] loads models like any other engine, so whatever runs on engines runs on GPUs: whole models and parts of a
//! prefix group, checks, profiles.

mod arenas;
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
    #[error("{gpu} has compute capability {}.{}, this precision takes {}.{}", capability.0, capability.1, needed.0, needed.1)]
    Capability { gpu: String, capability: (u32, u32), needed: (u32, u32) },
    /// Nothing changed; less has to be loaded, or a smaller batch asked for.
    #[error("the GPU's memory does not hold {} MB more for {what}: {} of {} MB are free", bytes >> 20, free >> 20, total >> 20)]
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
