//! From a file's messages to a [`Graph`].

use crate::graph::{Attribute, Body, Declared, DeclaredDim, Graph, Node, NodeId, Source, Value, ValueId};
use crate::proto::{self, attribute_proto::AttributeType};
use crate::tensor::{DType, Tensor};
use crate::wire::{self, Limits, WireError};
use bytes::Bytes;
use prost::Message;
use std::collections::{BTreeMap, HashMap};

/// A file is not a model that can be analysed. The file's fault, or a part of ONNX that is not supported here; such a model can
/// still be served, as one that shares nothing.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error("not an ONNX model: {0}")]
    Protobuf(#[from] prost::DecodeError),
    #[error("holds no graph")]
    NoGraph,
    /// The model brings operators of its own.
    #[error("defines functions of its own ({name}), which are not supported; inline them")]
    Functions { name: String },
    #[error("tensor \"{name}\" {what}")]
    Tensor { name: String, what: String },
    #[error("input \"{name}\" is not a tensor; sequences, maps and optional values are not supported")]
    NotATensor { name: String },
    #[error("{node}: attribute \"{attribute}\" {what}")]
    Attribute { node: String, attribute: String, what: String },
    #[error("sparse initializers are not supported")]
    Sparse,
    /// Nodes have to come in an order in which they can be executed.
    #[error("\"{name}\" is read by {reader}, and nothing before it makes that value")]
    Unmade { name: String, reader: String },
    /// Inputs, outputs and constants need names.
    #[error("{role} has no name")]
    Unnamed { role: &'static str },
    #[error("\"{name}\" is made twice, or made after it is read")]
    MadeTwice { name: String },
}

impl Graph {
    /// Reads a model's file. Weights stored as raw data stay slices of `file`; all else is bounded by `limits`.
    pub fn read(file: Bytes, limits: &Limits) -> Result<Graph, ReadError> {
        wire::check(&file, limits)?;
        let model = proto::ModelProto::decode(file)?;
        if let Some(function) = model.functions.first() {
            return Err(ReadError::Functions { name: function.name().to_owned() });
        }
        let graph = model.graph.ok_or(ReadError::NoGraph)?;
        let (mut graph, free) = read_graph(graph)?;
        if let Some((name, reader)) = free.into_iter().next() {
            return Err(ReadError::Unmade { name, reader });
        }
        graph.ir_version = model.ir_version.unwrap_or(0);
        for opset in model.opset_import {
            graph.opsets.insert(domain(opset.domain.unwrap_or_default()), opset.version.unwrap_or(0));
        }
        Ok(graph)
    }
}

/// "ai.onnx" is another name of the default domain.
fn domain(name: String) -> String {
    if name == "ai.onnx" { String::new() } else { name }
}

/// A name that a graph reads and does not make, and who reads it first.
type Free = (String, String);

struct Reader {
    graph: Graph,
    names: HashMap<String, ValueId>,
    free: Vec<Free>,
}

/// A graph, and what it reads from the graphs around it, in the order of its [`Source::Captured`] values.
fn read_graph(graph: proto::GraphProto) -> Result<(Graph, Vec<Free>), ReadError> {
    if !graph.sparse_initializer.is_empty() {
        return Err(ReadError::Sparse);
    }
    let name = graph.name.clone().unwrap_or_default();
    let mut reader = Reader { graph: Graph { name, ..Default::default() }, names: HashMap::new(), free: Vec::new() };
    for tensor in graph.initializer {
        let name = tensor.name.clone().unwrap_or_default();
        reader.constant(name, tensor)?;
    }
    for info in graph.input {
        let name = info.name.clone().unwrap_or_default();
        // Before version 4 of the format every initializer had to be listed as an input too.
        if reader.names.contains_key(&name) {
            continue;
        }
        let declared = declared(&info);
        if declared.is_none() && info.r#type.as_ref().is_some_and(|kind| kind.value.is_some()) {
            return Err(ReadError::NotATensor { name });
        }
        let source = Source::Input(reader.graph.inputs.len() as u32);
        let id = reader.make(name, source)?;
        reader.graph.values[id.0 as usize].declared = declared;
        reader.graph.inputs.push(id);
    }
    for node in graph.node {
        reader.node(node)?;
    }
    for info in &graph.output {
        if info.name().is_empty() {
            return Err(ReadError::Unnamed { role: "an output" });
        }
        let id = reader.resolve(info.name(), || "the graph's outputs".to_owned());
        reader.graph.outputs.push(id);
    }
    for info in graph.value_info.iter().chain(&graph.output) {
        let id = reader.names.get(info.name());
        let value = id.map(|id| &mut reader.graph.values[id.0 as usize]).filter(|value| value.declared.is_none());
        if let Some(value) = value {
            value.declared = declared(info);
        }
    }
    Ok((reader.graph, reader.free))
}

impl Reader {
    fn make(&mut self, name: String, source: Source) -> Result<ValueId, ReadError> {
        if name.is_empty() {
            return Err(ReadError::Unnamed { role: "an input or constant" });
        }
        let id = ValueId(self.graph.values.len() as u32);
        if self.names.insert(name.clone(), id).is_some() {
            return Err(ReadError::MadeTwice { name });
        }
        self.graph.values.push(Value { name, declared: None, source });
        Ok(id)
    }

    fn constant(&mut self, name: String, tensor: proto::TensorProto) -> Result<(), ReadError> {
        let tensor = Tensor::from_proto(tensor).map_err(|what| ReadError::Tensor { name: name.clone(), what })?;
        self.make(name, Source::Constant(tensor)).map(drop)
    }

    /// The value of that name; one that is not made here is looked for in the graphs around.
    fn resolve(&mut self, name: &str, reader: impl FnOnce() -> String) -> ValueId {
        if let Some(&id) = self.names.get(name) {
            return id;
        }
        let id = ValueId(self.graph.values.len() as u32);
        let source = Source::Captured(self.free.len() as u32);
        self.free.push((name.to_owned(), reader()));
        self.names.insert(name.to_owned(), id);
        self.graph.values.push(Value { name: name.to_owned(), declared: None, source });
        id
    }

    fn node(&mut self, node: proto::NodeProto) -> Result<(), ReadError> {
        let mut outputs = node.output;
        while outputs.last().is_some_and(String::is_empty) {
            outputs.pop();
        }
        let mut made = Node {
            name: node.name.unwrap_or_default(),
            domain: domain(node.domain.unwrap_or_default()),
            operator: node.op_type.unwrap_or_default(),
            inputs: Vec::new(),
            outputs: Vec::new(),
            attributes: BTreeMap::new(),
        };
        if made.name.is_empty() {
            made.name = outputs.iter().find(|name| !name.is_empty()).cloned().unwrap_or_default();
        }
        if made.operator == "Constant" && made.domain.is_empty() {
            let name = outputs.into_iter().next().unwrap_or_default();
            let tensor =
                constant_tensor(node.attribute).map_err(|what| ReadError::Tensor { name: name.clone(), what })?;
            return self.make(name, Source::Constant(tensor)).map(drop);
        }
        let mut inputs = node.input;
        while inputs.last().is_some_and(String::is_empty) {
            inputs.pop();
        }
        for name in inputs {
            let input = if name.is_empty() { None } else { Some(self.resolve(&name, || made.to_string())) };
            made.inputs.push(input);
        }
        for attribute in node.attribute {
            let name = attribute.name.clone().unwrap_or_default();
            let value = self.attribute(&made, attribute)?;
            if made.attributes.insert(name.clone(), value).is_some() {
                let what = "is given twice".to_owned();
                return Err(ReadError::Attribute { node: made.to_string(), attribute: name, what });
            }
        }
        let id = NodeId(self.graph.nodes.len() as u32);
        for (output, name) in outputs.into_iter().enumerate() {
            let source = Source::Node { node: id, output: output as u32 };
            made.outputs.push(if name.is_empty() { None } else { Some(self.make(name, source)?) });
        }
        self.graph.nodes.push(made);
        Ok(())
    }

    fn attribute(&mut self, node: &Node, attribute: proto::AttributeProto) -> Result<Attribute, ReadError> {
        let name = attribute.name.clone().unwrap_or_default();
        let refuse = |what: String| ReadError::Attribute { node: node.to_string(), attribute: name.clone(), what };
        if attribute.ref_attr_name.as_ref().is_some_and(|name| !name.is_empty()) {
            return Err(refuse("refers to a function's attribute, which is not supported".to_owned()));
        }
        let tensor = |tensor| Tensor::from_proto(tensor).map_err(&refuse);
        Ok(match kind(&attribute) {
            AttributeType::Float => Attribute::Float(attribute.f.unwrap_or(0.0)),
            AttributeType::Int => Attribute::Int(attribute.i.unwrap_or(0)),
            AttributeType::String => Attribute::String(attribute.s.unwrap_or_default()),
            AttributeType::Tensor => Attribute::Tensor(tensor(attribute.t.unwrap_or_default())?),
            AttributeType::Floats => Attribute::Floats(attribute.floats),
            AttributeType::Ints => Attribute::Ints(attribute.ints),
            AttributeType::Strings => Attribute::Strings(attribute.strings),
            AttributeType::Tensors => {
                Attribute::Tensors(attribute.tensors.into_iter().map(tensor).collect::<Result<_, _>>()?)
            }
            AttributeType::Graph => {
                let (graph, free) = read_graph(attribute.g.unwrap_or_default())?;
                let captures = free.into_iter().map(|(name, reader)| self.resolve(&name, || reader)).collect();
                Attribute::Body(Box::new(Body { graph, captures }))
            }
            other => return Err(refuse(format!("is of kind {}, which is not supported", other.as_str_name()))),
        })
    }
}

/// Early files do not say which of the fields they mean.
fn kind(attribute: &proto::AttributeProto) -> AttributeType {
    match attribute.r#type() {
        AttributeType::Undefined if attribute.g.is_some() => AttributeType::Graph,
        AttributeType::Undefined if attribute.t.is_some() => AttributeType::Tensor,
        AttributeType::Undefined if attribute.s.is_some() => AttributeType::String,
        AttributeType::Undefined if attribute.i.is_some() => AttributeType::Int,
        AttributeType::Undefined if attribute.f.is_some() => AttributeType::Float,
        AttributeType::Undefined if !attribute.floats.is_empty() => AttributeType::Floats,
        AttributeType::Undefined if !attribute.strings.is_empty() => AttributeType::Strings,
        AttributeType::Undefined => AttributeType::Ints,
        said => said,
    }
}

/// What a `Constant` node makes, in any of the ways it can be said.
fn constant_tensor(attributes: Vec<proto::AttributeProto>) -> Result<Tensor, String> {
    let count = attributes.len();
    let [attribute] =
        <[_; 1]>::try_from(attributes).map_err(|_| format!("is a constant with {count} attributes, not one"))?;
    let strings = |dims: Vec<i64>, string_data: Vec<Bytes>| {
        Tensor::from_proto(proto::TensorProto {
            dims,
            string_data,
            data_type: Some(DType::STRING.0),
            ..Default::default()
        })
    };
    Ok(match attribute.name() {
        "value" => return Tensor::from_proto(attribute.t.unwrap_or_default()),
        "value_float" => Tensor::f32s(vec![], &[attribute.f.unwrap_or(0.0)]),
        "value_int" => Tensor::i64s(vec![], &[attribute.i.unwrap_or(0)]),
        "value_floats" => Tensor::f32s(vec![attribute.floats.len() as u64], &attribute.floats),
        "value_ints" => Tensor::i64s(vec![attribute.ints.len() as u64], &attribute.ints),
        "value_string" => return strings(vec![], vec![attribute.s.unwrap_or_default()]),
        "value_strings" => return strings(vec![attribute.strings.len() as i64], attribute.strings),
        other => return Err(format!("is a constant given as \"{other}\", which is not supported")),
    })
}

fn declared(info: &proto::ValueInfoProto) -> Option<Declared> {
    let Some(proto::type_proto::Value::TensorType(tensor)) = info.r#type.as_ref()?.value.as_ref() else { return None };
    let dim = |dim: &proto::tensor_shape_proto::Dimension| match &dim.value {
        Some(proto::tensor_shape_proto::dimension::Value::DimValue(size)) => {
            u64::try_from(*size).map_or(DeclaredDim::Unsaid, DeclaredDim::Size)
        }
        // Some exporters write a mark where they know no name.
        Some(proto::tensor_shape_proto::dimension::Value::DimParam(name))
            if !["", "?", "-1", "None"].contains(&&**name) =>
        {
            DeclaredDim::Symbol(name.clone())
        }
        _ => DeclaredDim::Unsaid,
    };
    let dims = tensor.shape.as_ref().map(|shape| shape.dim.iter().map(dim).collect());
    Some(Declared { dtype: DType(tensor.elem_type.unwrap_or(0)), dims })
}
