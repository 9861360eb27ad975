//! One rule per operator: which launches compute it.

mod matrix;
mod pointwise;

pub use pointwise::{copy, elementwise};

use super::builder::Builder;
use super::epilogue::Finish;
use super::{LowerError, Site};
use rota_graph::ValueId;

/// Lowers one node. With a [`Finish`] it also does the work of a group, whose output is the value, as it stores its results.
pub type Rule = fn(&mut Builder, &Site, Option<(&Finish, ValueId)>) -> Result<(), LowerError>;

/// Operators with a rule of their own.
const RULES: [(&str, Rule); 4] = [
    ("Gemm", matrix::gemm),
    ("LogSoftmax", matrix::softmax),
    ("MatMul", matrix::mat_mul),
    ("Softmax", matrix::softmax),
];

pub fn find(site: &Site) -> Option<Rule> {
    let known = |(operator, _): &&(&str, Rule)| site.node.domain.is_empty() && site.node.operator == *operator;
    RULES.iter().find(known).map(|(_, rule)| *rule)
}

/// A dimension or stride as the kernels count it.
pub(super) fn count(site: &Site, value: u64) -> Result<u32, LowerError> {
    u32::try_from(value).map_err(|_| site.refuse(format!("has a dimension of {value}, more than the kernels count")))
}
