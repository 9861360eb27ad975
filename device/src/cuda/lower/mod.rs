//! From a model's graph to launches: pure, no driver is called here.
//!
//! 1. [`flat`]: the model for one shape class; every size a number, shape arithmetic computed, branches taken.
//! 2. [`patterns`]: what is written as many nodes and one kernel does; [`groups`]: element-wise nodes that become one launch, or part of a
//!    GEMM's or convolution's.
//! 3. [`builder`], with [`rules`] for each operator: launches of `rota-kernels`, naming buffers.
//! 4. [`memory`]: where the buffers lie.

pub mod builder;
mod catalogue;
mod code;
mod cost;
pub mod elementwise;
pub mod epilogue;
pub mod evaluate;
pub mod expression;
pub mod flat;
pub mod groups;
pub mod memory;
pub mod patterns;
pub mod program;
pub mod rules;
mod site;
pub mod view;

pub use catalogue::{operators, unsupported};
pub use flat::{Flat, Given, flatten};
pub use program::Program;
pub use rota_kernels::Layout;
pub use site::Site;

use super::Precision;
use rota_graph::Graph;

/// How to lower.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Options {
    /// Off: every node is a launch of its own; what fusion is compared with.
    pub fuse: bool,
    pub precision: Precision,
    pub layout: Layouts,
    /// Of a stack: how many members lie side by side in its products. Each then computes the rows alone that it is asked about
    /// ([`program::Members`]). 0 for a model that is no stack.
    pub members: u32,
    /// Of the GPU that launches are to fill.
    pub multiprocessors: u32,
}

/// How pictures lie between launches; answers are the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Layouts {
    /// As ONNX has them.
    Nchw,
    /// Channels last from the first convolution that has a kernel for it to the last; transposed in front of what has none.
    Nhwc,
    /// Whichever of the two takes less by the estimate of `cost.rs`, of all launches together: so transposes are weighed against what they buy.
    /// On tensor cores that is NHWC as a rule. Weights lie as the layout wants them, so where two batch
    /// sizes of a model were to choose differently, both ways would be kept.
    #[default]
    Auto,
}

impl Default for Options {
    fn default() -> Options {
        let (layout, multiprocessors) = (Layouts::default(), rota_kernels::MULTIPROCESSORS);
        Options { fuse: true, precision: Precision::default(), layout, members: 0, multiprocessors }
    }
}

/// A model can't be lowered. The file's fault, or a part of ONNX that has no kernels here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LowerError {
    #[error("operator {0} is not supported; supported operators: docs/operators.md")]
    Unsupported(String),
    /// Something about one node: its attributes, its sizes.
    #[error("{node} {why}")]
    Node { node: String, why: String },
    #[error("nothing makes \"{0}\", or its dimensions are not known")]
    Unmade(String),
    /// A weight of a type that can't be computed with.
    #[error("{node}: a constant is {dtype}, which is not supported")]
    Constant { dtype: String, node: String },
}

/// Lowers `model` for inputs that are given in the order of its file.
pub fn lower(model: &Graph, given: &[Given], options: Options) -> Result<Program, LowerError> {
    let flat = flatten(model, given)?;
    let groups = groups::find(&flat, options.fuse)?;
    let build = |layout| builder::Builder::new(&flat, Options { layout, ..options }).run(&groups);
    let convolves = flat.graph.nodes.iter().any(|node| node.operator == "Conv");
    match options.layout {
        Layouts::Auto if convolves => {
            let (first, last) = (build(Layouts::Nchw)?, build(Layouts::Nhwc)?);
            Ok(if cost::estimate(&last) < cost::estimate(&first) { last } else { first })
        }
        Layouts::Auto => build(Layouts::Nchw),
        layout => build(layout),
    }
}
