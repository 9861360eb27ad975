//! Element-wise expressions, and copies that change layout or type.

use crate::cuda::lower::LowerError;
use crate::cuda::lower::builder::{Builder, Operand};
use crate::cuda::lower::groups::{Group, Limits};
use rota_graph::DType;

/// What one launch of the element-wise kernel can do.
pub const LIMITS: Limits = Limits { inputs: 8, operations: 32 };

pub fn elementwise(_b: &mut Builder, group: &Group) -> Result<(), LowerError> {
    Err(LowerError::Unsupported(format!("{:?}", group.root)))
}

/// The same elements, densely, as `dtype`.
pub fn copy(_b: &mut Builder, _operand: &Operand, _dtype: DType) -> Result<Operand, LowerError> {
    Err(LowerError::Unsupported("copy".into()))
}
