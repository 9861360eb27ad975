//! Rota's CUDA kernels: their catalogue, the launches that shapes ask for, and the same kernels on the host.
//!
//! The sources are in `kernels/*.cu`; each takes one parameter, a struct of [`params`]. For every family there is a struct that describes
//! a computation by shapes and device addresses, whose `launch` answers with a [`Launch`]: the kernel, grid, block,
//! parameter bytes and [`Cost`]. Tiling and padding arithmetic lives there and nowhere else. Addresses may be places in a memory plan:
//! [`Launch::relocate`] turns them into real ones later.
//!
//! - [`image`] is the fat binary for the driver, when nvcc was there to build it.
//! - [`host`] compiles the same sources with g++ and runs them, for tests and for the stand-in driver.

/// The README's example runs.
#[doc = include_str!("../README.md")]
#[cfg(doctest)]
struct Readme;

pub mod attention;
pub mod batch;
mod cache;
pub mod conv;
pub mod dtype;
pub mod elementwise;
pub mod epilogue;
pub mod gemm;
pub mod grouped;
pub mod host;
pub mod launch;
pub mod layout;
pub mod normalize;
pub mod params;
pub mod pool;
pub mod recurrent;
pub mod resize;
pub mod resources;
pub mod softmax;
pub mod split;
pub mod standin;

pub use attention::Attention;
pub use batch::Move;
pub use conv::Conv;
pub use dtype::{Float, Math, Type};
pub use elementwise::{Elementwise, Input, Op, Source, Step};
pub use epilogue::{Activation, Epilogue};
pub use gemm::{Gemm, Matrix};
pub use grouped::Grouped;
pub use launch::{Cost, Kernel, Launch, Unfit};
pub use layout::{Copy, Gather, Pad, PadMode, Picks};
pub use normalize::{Affine, Normalize};
pub use params::Pointer;
pub use pool::{Pool, Reduce, Reduction, Window};
pub use recurrent::{Cell, RecurrentStep};
pub use resize::Resize;
pub use softmax::Softmax;
pub use split::MULTIPROCESSORS;

/// Every kernel there is.
pub fn kernels() -> Vec<&'static Kernel> {
    let mut all: Vec<&'static Kernel> = Vec::new();
    all.extend(gemm::TILES.iter().chain(&conv::TILES).flatten().map(|tile| &tile.kernel));
    all.extend(gemm::ASYNC.iter().flatten().map(|tile| &tile.kernel));
    all.extend(gemm::FEW_ROWS.iter().flatten().map(|tile| &tile.kernel));
    all.extend(&split::SPLIT);
    all.extend(grouped::TILES.iter().flatten().map(|tile| &tile.kernel));
    all.push(&batch::MOVE);
    all.extend(conv::DEPTHWISE.iter().flatten().chain(&conv::TRANSPOSE));
    all.extend(pool::POOL.iter().chain(pool::REDUCE.iter().flatten()));
    all.extend(layout::COPY.iter().chain(&layout::TRANSPOSE).chain(&layout::GATHER).chain(&layout::PAD));
    all.extend(
        resize::RESIZE.iter().chain(&normalize::NORMALIZE).chain(&attention::ATTENTION).chain(&attention::TENSOR),
    );
    all.extend([&recurrent::LSTM, &recurrent::GRU, &recurrent::GRU_RESET, &recurrent::GRU_UPDATE, &recurrent::RNN]);
    all.extend(&softmax::LONG);
    all.extend([&softmax::F32, &softmax::F16, &elementwise::F32, &elementwise::I64]);
    all
}

/// The fat binary with every kernel, for `cuModuleLoadData`; `None` when this build had no nvcc.
pub fn image() -> Option<&'static [u8]> {
    IMAGE
}

/// Why there is no [`image`], and how to get one; empty when there is.
pub fn image_missing_reason() -> &'static str {
    MISSING
}

/// What ptxas said about each kernel and architecture in the [`image`]: registers, shared memory, spills. Empty without one.
pub fn resources() -> &'static str {
    RESOURCES
}

include!(concat!(env!("OUT_DIR"), "/image.rs"));
