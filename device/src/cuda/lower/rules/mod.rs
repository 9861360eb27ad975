//! One rule per operator: which launches compute it.

mod layout;
mod matrix;
mod normalize;
mod pattern;
mod pointwise;
mod recurrent;
mod reduce;
mod windows;

pub use layout::dense;
pub use pattern::pattern;
pub use pointwise::{copy, copy_in, elementwise, zero};

use super::builder::Builder;
use super::epilogue::Finish;
use super::{LowerError, Site};
use rota_graph::ValueId;

/// Lowers one node. With a [`Finish`] it also does the work of a group, whose output is the value, as it stores its results.
pub type Rule = fn(&mut Builder, &Site, Option<(&Finish, ValueId)>) -> Result<(), LowerError>;

/// Operators with a rule of their own.
pub const RULES: &[(&str, Rule)] = &[
    ("ArgMax", reduce::reduce),
    ("ArgMin", reduce::reduce),
    ("AveragePool", windows::pool),
    ("Concat", layout::concat),
    ("Conv", windows::conv),
    ("ConvTranspose", windows::conv_transpose),
    ("DepthToSpace", layout::depth_space),
    ("GRU", recurrent::recurrent),
    ("Gather", layout::gather),
    ("GatherElements", layout::gather),
    ("Gemm", matrix::gemm),
    ("GlobalAveragePool", windows::global_pool),
    ("GlobalMaxPool", windows::global_pool),
    ("GroupNormalization", normalize::normalize),
    ("InstanceNormalization", normalize::normalize),
    ("LSTM", recurrent::recurrent),
    ("LayerNormalization", normalize::normalize),
    ("LogSoftmax", matrix::softmax),
    ("MatMul", matrix::mat_mul),
    ("MaxPool", windows::pool),
    ("Pad", layout::pad),
    ("RMSNormalization", normalize::normalize),
    ("RNN", recurrent::recurrent),
    ("ReduceL1", reduce::reduce),
    ("ReduceL2", reduce::reduce),
    ("ReduceLogSum", reduce::reduce),
    ("ReduceLogSumExp", reduce::reduce),
    ("ReduceMax", reduce::reduce),
    ("ReduceMean", reduce::reduce),
    ("ReduceMin", reduce::reduce),
    ("ReduceProd", reduce::reduce),
    ("ReduceSum", reduce::reduce),
    ("ReduceSumSquare", reduce::reduce),
    ("Resize", normalize::resize),
    ("Softmax", matrix::softmax),
    ("SpaceToDepth", layout::depth_space),
    ("Tile", layout::tile),
    ("Upsample", normalize::resize),
];

pub fn find(site: &Site) -> Option<Rule> {
    let known = |(operator, _): &&(&str, Rule)| site.node.domain.is_empty() && site.node.operator == *operator;
    RULES.iter().find(known).map(|(_, rule)| *rule)
}

/// A dimension or stride as the kernels count it.
pub(super) fn count(site: &Site, value: u64) -> Result<u32, LowerError> {
    u32::try_from(value).map_err(|_| site.refuse(format!("has a dimension of {value}, more than the kernels count")))
}
