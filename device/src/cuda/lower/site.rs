//! A node and what is known where it stands, in the words of the rules.

use super::LowerError;
use super::flat::Flat;
use rota_graph::{DType, Node, NodeId, Tensor, ValueId};

/// One node of a flattened graph.
#[derive(Clone, Copy)]
pub struct Site<'a> {
    pub flat: &'a Flat,
    pub node: &'a Node,
    pub id: NodeId,
    /// The version of its operator set.
    pub opset: i64,
}

impl<'a> Site<'a> {
    pub fn new(flat: &'a Flat, id: NodeId) -> Site<'a> {
        let node = flat.graph.node(id);
        Site { flat, node, id, opset: flat.graph.opset(&node.domain) }
    }

    pub fn refuse(&self, why: impl Into<String>) -> LowerError {
        LowerError::Node { node: self.node.to_string(), why: why.into() }
    }

    pub fn input(&self, at: usize) -> Result<ValueId, LowerError> {
        self.node.input(at).ok_or_else(|| self.refuse(format!("lacks input {at}")))
    }

    pub fn output(&self, at: usize) -> Result<ValueId, LowerError> {
        self.node.output(at).ok_or_else(|| self.refuse(format!("lacks output {at}")))
    }

    /// The dimensions of a value.
    pub fn sizes(&self, id: ValueId) -> Result<Vec<u64>, LowerError> {
        let known = self.flat.inferred.value(id);
        known.sizes().ok_or_else(|| {
            let name = &self.flat.graph.value(id).name;
            let why = known.dims.as_ref().err().map_or("they depend on the request's own numbers", |why| why);
            self.refuse(format!("needs the dimensions of \"{name}\", which are not known: {why}"))
        })
    }

    pub fn dims(&self, at: usize) -> Result<Vec<u64>, LowerError> {
        self.sizes(self.input(at)?)
    }

    pub fn output_dims(&self, at: usize) -> Result<Vec<u64>, LowerError> {
        self.sizes(self.output(at)?)
    }

    pub fn dtype(&self, at: usize) -> Option<DType> {
        self.flat.inferred.value(self.node.input(at)?).dtype
    }

    pub fn output_dtype(&self, at: usize) -> Option<DType> {
        self.flat.inferred.value(self.node.output(at)?).dtype
    }

    pub fn constant(&self, at: usize) -> Option<&'a Tensor> {
        self.flat.graph.constant(self.node.input(at)?)
    }

    /// An axis counted from the end when negative.
    pub fn axis(&self, axis: i64, rank: usize) -> Result<usize, LowerError> {
        let from_start = if axis < 0 { axis.saturating_add(rank as i64) } else { axis };
        let axis = usize::try_from(from_start).ok().filter(|&axis| axis < rank);
        axis.ok_or_else(|| self.refuse(format!("has an axis that its input of {rank} dimensions lacks")))
    }

    /// Integers that an attribute gives or, in later versions of the operator, the input `at`; `None`: neither does. An error when the input
    /// is only known when it runs.
    pub fn integers(&self, attribute: &str, at: usize) -> Result<Option<Vec<i64>>, LowerError> {
        const MOST: usize = 1 << 16;
        if let Some(values) = self.node.ints(attribute) {
            return Ok(Some(values.to_vec()));
        }
        if self.node.input(at).is_none() {
            return Ok(None);
        }
        let values = self.constant(at).and_then(|tensor| tensor.integers(MOST));
        values
            .map(Some)
            .ok_or_else(|| self.refuse(format!("takes its {attribute} from what is only known when it runs")))
    }

    /// A number that an attribute gives or, in later versions, the constant input `at`.
    pub fn number(&self, attribute: &str, at: usize) -> Result<Option<f32>, LowerError> {
        if let Some(value) = self.node.float(attribute) {
            return Ok(Some(value));
        }
        if self.node.input(at).is_none() {
            return Ok(None);
        }
        let value = self.constant(at).and_then(super::evaluate::floats).and_then(|values| values.first().copied());
        value
            .map(Some)
            .ok_or_else(|| self.refuse(format!("takes its {attribute} from what is only known when it runs")))
    }

    pub fn flag(&self, name: &str) -> bool {
        self.node.int(name).unwrap_or(0) != 0
    }
}
