//! A model's graph: values, and the nodes that make them.
//!
//! Names are kept for people and for writing the graph out again; nothing is decided by them.

use crate::tensor::{DType, Tensor};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::fmt;

/// Index of a node in [`Graph::nodes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub u32);

/// Index of a value in [`Graph::values`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ValueId(pub u32);

/// A graph as it was read: the model's, or the body of an `If` or `Loop`.
///
/// Invariants: every [`ValueId`] and [`NodeId`] in it is an index into `values` and `nodes`; a node comes after the nodes that it
/// reads; each value has one source. `Constant` nodes are not among `nodes`: their values are constants like the initializers.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    pub name: String,
    pub ir_version: i64,
    /// Operator sets by domain; the default domain is "". Empty in a body: it has its model's.
    pub opsets: BTreeMap<String, i64>,
    pub values: Vec<Value>,
    pub nodes: Vec<Node>,
    pub inputs: Vec<ValueId>,
    pub outputs: Vec<ValueId>,
}

/// What is passed between nodes.
#[derive(Clone, Debug)]
pub struct Value {
    pub name: String,
    /// What the file says of it. Authoritative for inputs only.
    pub declared: Option<Declared>,
    pub source: Source,
}

#[derive(Clone, Debug)]
pub enum Source {
    /// Input `n` of the graph.
    Input(u32),
    Constant(Tensor),
    /// Output `output` of a node.
    Node {
        node: NodeId,
        output: u32,
    },
    /// In a body: a value of a graph around it, in the order of [`Body::captures`].
    Captured(u32),
}

/// A declared tensor type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Declared {
    pub dtype: DType,
    /// `None` when the file does not say how many dimensions there are.
    pub dims: Option<Vec<DeclaredDim>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeclaredDim {
    Size(u64),
    /// A name that stands for a size.
    Symbol(String),
    /// Neither name nor size.
    Unsaid,
}

/// One operation.
#[derive(Clone, Debug)]
pub struct Node {
    pub name: String,
    /// The default domain is "".
    pub domain: String,
    pub operator: String,
    /// `None`: an optional input that is left out.
    pub inputs: Vec<Option<ValueId>>,
    /// `None`: an output that nobody asked for.
    pub outputs: Vec<Option<ValueId>>,
    pub attributes: BTreeMap<String, Attribute>,
}

#[derive(Clone, Debug)]
pub enum Attribute {
    Float(f32),
    Int(i64),
    String(Bytes),
    Tensor(Tensor),
    Floats(Vec<f32>),
    Ints(Vec<i64>),
    Strings(Vec<Bytes>),
    Tensors(Vec<Tensor>),
    Body(Box<Body>),
}

/// A graph inside a node: the branch of an `If`, the inside of a `Loop`.
#[derive(Clone, Debug)]
pub struct Body {
    pub graph: Graph,
    /// Values of the graph around it that it reads, in the order in which it first does.
    pub captures: Vec<ValueId>,
}

impl Graph {
    pub fn value(&self, id: ValueId) -> &Value {
        &self.values[id.0 as usize]
    }

    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0 as usize]
    }

    pub fn node_ids(&self) -> impl DoubleEndedIterator<Item = NodeId> + use<> {
        (0..self.nodes.len() as u32).map(NodeId)
    }

    pub fn value_ids(&self) -> impl DoubleEndedIterator<Item = ValueId> + use<> {
        (0..self.values.len() as u32).map(ValueId)
    }

    /// The version of the operator set that `domain` has here; 0 where the file names none.
    pub fn opset(&self, domain: &str) -> i64 {
        self.opsets.get(domain).copied().unwrap_or(0)
    }

    pub fn constant(&self, id: ValueId) -> Option<&Tensor> {
        match &self.value(id).source {
            Source::Constant(tensor) => Some(tensor),
            _ => None,
        }
    }

    /// Bytes of all constants, those inside bodies included.
    pub fn weight_bytes(&self) -> u64 {
        let own = self.values.iter().map(|value| match &value.source {
            Source::Constant(tensor) => tensor.data.len() as u64,
            _ => 0,
        });
        let bodies = self.nodes.iter().flat_map(Node::bodies).map(|body| body.graph.weight_bytes());
        own.sum::<u64>() + bodies.sum::<u64>()
    }

    /// How a message names a node: by operator and name.
    pub fn describe(&self, id: NodeId) -> String {
        self.node(id).to_string()
    }
}

impl Node {
    /// All that it reads: its inputs, then what its bodies capture.
    pub fn reads(&self) -> impl Iterator<Item = ValueId> + '_ {
        let captures = self.bodies().flat_map(|body| body.captures.iter().copied());
        self.inputs.iter().flatten().copied().chain(captures)
    }

    pub fn bodies(&self) -> impl Iterator<Item = &Body> + '_ {
        self.attributes.values().filter_map(|attribute| match attribute {
            Attribute::Body(body) => Some(&**body),
            _ => None,
        })
    }

    pub fn input(&self, at: usize) -> Option<ValueId> {
        self.inputs.get(at).copied().flatten()
    }

    pub fn output(&self, at: usize) -> Option<ValueId> {
        self.outputs.get(at).copied().flatten()
    }

    pub fn int(&self, name: &str) -> Option<i64> {
        match self.attributes.get(name) {
            Some(Attribute::Int(value)) => Some(*value),
            _ => None,
        }
    }

    pub fn ints(&self, name: &str) -> Option<&[i64]> {
        match self.attributes.get(name) {
            Some(Attribute::Ints(values)) => Some(values),
            _ => None,
        }
    }

    pub fn float(&self, name: &str) -> Option<f32> {
        match self.attributes.get(name) {
            Some(Attribute::Float(value)) => Some(*value),
            _ => None,
        }
    }

    pub fn floats(&self, name: &str) -> Option<&[f32]> {
        match self.attributes.get(name) {
            Some(Attribute::Floats(values)) => Some(values),
            _ => None,
        }
    }

    pub fn tensor(&self, name: &str) -> Option<&Tensor> {
        match self.attributes.get(name) {
            Some(Attribute::Tensor(tensor)) => Some(tensor),
            _ => None,
        }
    }

    pub fn string(&self, name: &str) -> Option<&str> {
        match self.attributes.get(name) {
            Some(Attribute::String(value)) => std::str::from_utf8(value).ok(),
            _ => None,
        }
    }
}

/// `Conv "features.0"`, or the name of what it makes when it has no name itself.
impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let domain = if self.domain.is_empty() { String::new() } else { format!("{}::", self.domain) };
        match self.name.is_empty() {
            true => write!(f, "{domain}{}", self.operator),
            false => write!(f, "{domain}{} \"{}\"", self.operator, self.name),
        }
    }
}
