//! Suffixes that are the same operators with other weights, as one model: the heads of a trunk.
//!
//! One by one, each head costs a run of the engine, and its products are too narrow to fill a core. A stack computes all heads of
//! the same items in one run. A value that is [items, …, width] in every member lies in the stack as [items, …, members · width],
//! the members' columns side by side. So the first product, of what all members read, is one product with the members' weights
//! side by side. A later one, of what differs already, is a batched product with the members as the batch.
//!
//! Heads of different widths (3 classes and 10) are padded to the widest: with zeros, which a softmax is kept from seeing. The
//! alternative, every head's own columns cut out for a softmax of its own, needs no padding and two more nodes for each head, which
//! costs more than a few columns of zeros. Much wider heads are left out ([`PADDING_MAX`]).
//!
//! What a stack computes for an item that only some members are asked about is wasted on the others. Whether it is still faster is
//! for the device to measure.

mod build;
mod operators;

use crate::graph::{Graph, NodeId, Source, ValueId};
use crate::hash::{self, Hash};
use crate::tensor::DType;
use bytes::Bytes;
use std::collections::BTreeMap;

/// Several suffixes as one model.
#[derive(Clone, Debug)]
pub struct Stack {
    /// An ONNX file. Its inputs are the members' own, in their order, and so are its outputs, but for their last axis.
    pub model: Bytes,
    pub outputs: Vec<StackOutput>,
    pub nodes: usize,
    /// Bytes of the constants inside, padding included.
    pub weight_bytes: u64,
}

/// Where the members' columns lie in an output. Member `m` has columns `m * stride..m * stride + widths[m]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StackOutput {
    pub stride: u64,
    /// By member: the last axis of its own output.
    pub widths: Vec<u64>,
}

/// Why suffixes can't be one model, in words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct StackError(String);

/// The weights of the largest member of a set of [`alike`] are at most so many times those of the smallest.
pub const PADDING_MAX: u64 = 8;
/// A suffix of more nodes is no head: what a run of the engine costs is little of its time.
pub const NODES_MAX: usize = 64;

/// Which of `suffixes` are the same operators with the same attributes in the same wiring: sets of two and more places. A suffix is
/// in one set at most; their inputs have to mean the same, which only the caller knows.
pub fn alike(suffixes: &[&Graph]) -> Vec<Vec<usize>> {
    let mut forms: BTreeMap<Hash, Vec<usize>> = BTreeMap::new();
    for (at, suffix) in suffixes.iter().enumerate() {
        if let Some(form) = form(suffix) {
            forms.entry(form).or_default().push(at);
        }
    }
    let bytes = |at: &usize| suffixes[*at].weight_bytes();
    let mut sets = Vec::new();
    for mut places in forms.into_values() {
        places.sort_by_key(|at| std::cmp::Reverse(bytes(at)));
        while let Some(largest) = places.first().map(bytes) {
            let near = places.iter().take_while(|at| bytes(at).saturating_mul(PADDING_MAX) >= largest).count();
            let mut set: Vec<usize> = places.drain(..near).collect();
            set.sort_unstable();
            sets.push(set);
        }
    }
    sets.retain(|set| set.len() >= 2);
    sets.sort();
    sets
}

/// One model that computes `suffixes`, which one set of [`alike`] names; it may still refuse them.
///
/// Served are the operators that heads have, on f32: Gemm and MatMul with constant weights, Add, Sub, Mul and Div, element-wise
/// activations, Clip, Softmax, LogSoftmax and LayerNormalization along the last axis, Flatten, Reshape and Identity, where the batch is
/// the first axis of every value. Products may have different widths, those that follow them too; what is normalised or
/// reshaped may not.
pub fn stack(suffixes: &[&Graph]) -> Result<Stack, StackError> {
    build::stack(suffixes)
}

/// A hash of all that has to be equal; `None` for what is no head.
fn form(graph: &Graph) -> Option<Hash> {
    if graph.nodes.len() > NODES_MAX || graph.nodes.iter().any(|node| node.bodies().next().is_some()) {
        return None;
    }
    let mut values: Vec<Hash> = graph.value_ids().map(|id| leaf(graph, id)).collect();
    for id in graph.node_ids() {
        node_form(graph, id, &mut values);
    }
    let mut hasher = hash::Hasher::new("form");
    graph.outputs.iter().for_each(|id| hasher.hash(values[id.0 as usize]));
    Some(hasher.finish())
}

/// Of weights only the number of dimensions has to be equal; numbers that are no weights are shapes and the like.
fn leaf(graph: &Graph, id: ValueId) -> Hash {
    let mut hasher = hash::Hasher::new("leaf");
    match &graph.value(id).source {
        Source::Constant(tensor) if tensor.dtype == DType::F32 => hasher.number(tensor.dims.len() as u64),
        Source::Constant(tensor) => hasher.hash(hash::tensor(tensor)),
        Source::Input(input) => {
            hasher.bytes(b"input");
            hasher.number(u64::from(*input));
        }
        Source::Node { .. } | Source::Captured(_) => {}
    }
    hasher.finish()
}

fn node_form(graph: &Graph, id: NodeId, values: &mut [Hash]) {
    let node = graph.node(id);
    let mut hasher = hash::Hasher::new("node");
    hasher.hash(hash::operation(node, &|domain| graph.opset(domain)));
    hasher.number(node.inputs.len() as u64);
    for input in &node.inputs {
        match input {
            Some(input) => hasher.hash(values[input.0 as usize]),
            None => hasher.bytes(b"left out"),
        }
        let constant = input.and_then(|input| graph.constant(input));
        if let Some(tensor) = constant.filter(|_| node.operator == "LayerNormalization") {
            tensor.dims.iter().for_each(|&dim| hasher.number(dim));
        }
    }
    let form = hasher.finish();
    for (output, at) in node.outputs.iter().zip(0..) {
        if let Some(output) = output {
            values[output.0 as usize] = hash::output(form, at);
        }
    }
}
