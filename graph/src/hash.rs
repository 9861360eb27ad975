//! Hashes of content: of constants, operations, and of whole values down to the inputs. Never of names.

use crate::graph::{Attribute, Body, Node, Source, ValueId};
use crate::tensor::Tensor;
use std::fmt;

/// 256 bits of BLAKE3: equal hashes are taken for equal content.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Hash(pub [u8; 32]);

impl fmt::Display for Hash {
    /// The first eight digits: for people.
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        self.0[..4].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Takes fields one after the other; each is told apart from its neighbours by its length.
pub(crate) struct Hasher(blake3::Hasher);

impl Hasher {
    /// `kind` keeps hashes of different kinds of things apart.
    pub(crate) fn new(kind: &str) -> Hasher {
        let mut hasher = Hasher(blake3::Hasher::new());
        hasher.bytes(kind.as_bytes());
        hasher
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.0.update(bytes);
    }

    pub(crate) fn number(&mut self, number: u64) {
        self.0.update(&number.to_le_bytes());
    }

    pub(crate) fn hash(&mut self, hash: Hash) {
        self.0.update(&hash.0);
    }

    pub(crate) fn finish(self) -> Hash {
        Hash(*self.0.finalize().as_bytes())
    }
}

pub(crate) fn tensor(tensor: &Tensor) -> Hash {
    let mut hasher = Hasher::new("constant");
    hasher.number(tensor.dtype.0 as u64);
    hasher.number(tensor.dims.len() as u64);
    tensor.dims.iter().for_each(|&dim| hasher.number(dim));
    hasher.bytes(&tensor.data);
    hasher.finish()
}

/// What a node does, whatever it does it to: operator, the version of its meaning, attributes, how many outputs it makes. What
/// its bodies capture comes with its inputs. `opset` gives the version of a domain.
pub(crate) fn operation(node: &Node, opset: &dyn Fn(&str) -> i64) -> Hash {
    let mut hasher = Hasher::new("operation");
    hasher.bytes(node.domain.as_bytes());
    hasher.bytes(node.operator.as_bytes());
    let version = opset(&node.domain);
    hasher.number(if node.domain.is_empty() { meaning(&node.operator, version) } else { version } as u64);
    hasher.number(node.outputs.len() as u64);
    for (name, value) in &node.attributes {
        if node.domain.is_empty() && is_default(&node.operator, name, value) {
            continue;
        }
        hasher.bytes(name.as_bytes());
        attribute(&mut hasher, value, opset);
    }
    hasher.finish()
}

fn attribute(hasher: &mut Hasher, value: &Attribute, opset: &dyn Fn(&str) -> i64) {
    match value {
        Attribute::Float(value) => hasher.bytes(&value.to_le_bytes()),
        Attribute::Int(value) => hasher.number(*value as u64),
        Attribute::String(value) => hasher.bytes(value),
        Attribute::Tensor(value) => hasher.hash(tensor(value)),
        Attribute::Floats(values) => {
            hasher.number(values.len() as u64);
            values.iter().for_each(|value| hasher.bytes(&value.to_le_bytes()));
        }
        Attribute::Ints(values) => {
            hasher.number(values.len() as u64);
            values.iter().for_each(|&value| hasher.number(value as u64));
        }
        Attribute::Strings(values) => {
            hasher.number(values.len() as u64);
            values.iter().for_each(|value| hasher.bytes(value));
        }
        Attribute::Tensors(values) => {
            hasher.number(values.len() as u64);
            values.iter().for_each(|value| hasher.hash(tensor(value)));
        }
        Attribute::Body(value) => hasher.hash(body(value, opset)),
    }
}

/// A body by what its outputs are made of. Its inputs and captures go by their places.
fn body(body: &Body, opset: &dyn Fn(&str) -> i64) -> Hash {
    let graph = &body.graph;
    let mut hashes: Vec<Hash> = vec![Hash([0; 32]); graph.values.len()];
    for (at, value) in graph.values.iter().enumerate() {
        hashes[at] = match &value.source {
            Source::Constant(constant) => tensor(constant),
            Source::Input(at) => place("body input", *at),
            Source::Captured(at) => place("captured", *at),
            Source::Node { .. } => continue,
        };
    }
    let mut hasher = Hasher::new("body");
    hasher.number(graph.inputs.len() as u64);
    for node in &graph.nodes {
        let captures: Vec<ValueId> = node.bodies().flat_map(|body| body.captures.iter().copied()).collect();
        let hash = applied(operation(node, opset), &node.inputs, &captures, |id| hashes[id.0 as usize]);
        for (output, id) in node.outputs.iter().enumerate() {
            if let Some(id) = id {
                hashes[id.0 as usize] = self::output(hash, output as u32);
            }
        }
    }
    hasher.number(graph.outputs.len() as u64);
    graph.outputs.iter().for_each(|id| hasher.hash(hashes[id.0 as usize]));
    hasher.finish()
}

/// An operation applied to what `of` says of its inputs and of what its bodies capture.
pub(crate) fn applied(
    operation: Hash,
    inputs: &[Option<ValueId>],
    captures: &[ValueId],
    of: impl Fn(ValueId) -> Hash,
) -> Hash {
    let mut hasher = Hasher::new("node");
    hasher.hash(operation);
    hasher.number(inputs.len() as u64);
    inputs.iter().for_each(|input| hasher.hash(input.map_or(Hash([0; 32]), &of)));
    captures.iter().for_each(|&capture| hasher.hash(of(capture)));
    hasher.finish()
}

/// One output of a node.
pub(crate) fn output(node: Hash, output: u32) -> Hash {
    let mut hasher = Hasher::new("output");
    hasher.hash(node);
    hasher.number(u64::from(output));
    hasher.finish()
}

/// The input that is the `role`-th of its kind.
pub(crate) fn input(kind: Hash, role: u32) -> Hash {
    let mut hasher = Hasher::new("input");
    hasher.hash(kind);
    hasher.number(u64::from(role));
    hasher.finish()
}

fn place(kind: &str, place: u32) -> Hash {
    let mut hasher = Hasher::new(kind);
    hasher.number(u64::from(place));
    hasher.finish()
}

/// The version of the default operator set since which `operator` has meant what it means in version `opset`. New element types
/// and clearer words do not change a meaning; what is not listed is taken to change with every version.
fn meaning(operator: &str, opset: i64) -> i64 {
    let listed = MEANINGS.iter().find(|(operators, _)| operators.contains(&operator));
    let Some((_, changes)) = listed else { return opset };
    changes.iter().rev().copied().find(|&change| change <= opset).unwrap_or(0)
}

/// From the change log of ONNX's operators.
const MEANINGS: [(&[&str], &[i64]); 9] = [
    // Since 7 their inputs broadcast as NumPy's do.
    (&["Add", "Sub", "Mul", "Div", "Pow", "And", "Or", "Equal", "Greater", "Less", "Gemm", "PRelu"], &[1, 7, 11]),
    (
        &[
            "Relu",
            "Sigmoid",
            "Tanh",
            "Exp",
            "Log",
            "Sqrt",
            "Abs",
            "Neg",
            "Reciprocal",
            "Floor",
            "Ceil",
            "Erf",
            "Identity",
            "LeakyRelu",
            "Elu",
            "Selu",
            "HardSigmoid",
            "Softplus",
            "Softsign",
            "Not",
            "MatMul",
            "Transpose",
            "Conv",
            "ConvTranspose",
            "GlobalAveragePool",
            "GlobalMaxPool",
            "Shape",
            "Where",
            "ConstantOfShape",
            "InstanceNormalization",
            "HardSwish",
            "Expand",
            "LayerNormalization",
            "Gelu",
            "Mish",
            "Sin",
            "Cos",
        ],
        &[1],
    ),
    (&["Max", "Min", "Sum", "Mean"], &[1, 8]),
    (&["Cast"], &[1, 6, 9]),
    // Attributes became inputs, or the default axis another.
    (
        &["Clip", "Softmax", "LogSoftmax", "Squeeze", "Unsqueeze", "Concat", "Gather", "Flatten", "Split"],
        &[1, 4, 9, 11, 13, 18],
    ),
    (&["Reshape"], &[1, 5, 14]),
    (&["BatchNormalization"], &[1, 6, 7, 9, 14]),
    (&["MaxPool", "AveragePool", "Slice", "Pad"], &[1, 2, 7, 10, 11, 18, 19]),
    (&["ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin"], &[1, 11, 13, 18]),
];

/// Whether an attribute only says what holds without it.
fn is_default(operator: &str, name: &str, value: &Attribute) -> bool {
    match (operator, name, value) {
        ("Conv" | "ConvTranspose" | "MaxPool" | "AveragePool", "dilations" | "strides", Attribute::Ints(all)) => {
            all.iter().all(|&v| v == 1)
        }
        ("Conv" | "ConvTranspose" | "MaxPool" | "AveragePool", "pads" | "output_padding", Attribute::Ints(all)) => {
            all.iter().all(|&v| v == 0)
        }
        ("Conv" | "ConvTranspose" | "MaxPool" | "AveragePool", "auto_pad", Attribute::String(pad)) => {
            &**pad == b"NOTSET"
        }
        ("Conv" | "ConvTranspose", "group", Attribute::Int(1)) => true,
        // The weights' own dimensions say it.
        ("Conv" | "ConvTranspose", "kernel_shape", Attribute::Ints(_)) => true,
        ("MaxPool" | "AveragePool", "ceil_mode" | "count_include_pad" | "storage_order", Attribute::Int(0)) => true,
        ("Gemm", "transA" | "transB", Attribute::Int(0)) => true,
        ("Gemm", "alpha" | "beta", Attribute::Float(1.0)) => true,
        // Only training uses it.
        ("BatchNormalization", "momentum", Attribute::Float(_)) => true,
        ("BatchNormalization", "epsilon", Attribute::Float(1e-5)) => true,
        ("BatchNormalization", "spatial", Attribute::Int(1))
        | ("BatchNormalization", "training_mode", Attribute::Int(0)) => true,
        ("LeakyRelu", "alpha", Attribute::Float(0.01)) => true,
        ("HardSigmoid", "alpha", Attribute::Float(0.2)) | ("HardSigmoid", "beta", Attribute::Float(0.5)) => true,
        ("Gather", "axis", Attribute::Int(0)) | ("Flatten", "axis", Attribute::Int(1)) => true,
        ("Reshape", "allowzero", Attribute::Int(0)) => true,
        _ => false,
    }
}
