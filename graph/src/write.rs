//! A part of a graph as a model's file.

use crate::dim::Dim;
use crate::graph::{Attribute, Declared, DeclaredDim, Graph, Node, NodeId, Source, ValueId};
use crate::infer::Inferred;
use crate::proto::{self, attribute_proto::AttributeType};
use bytes::Bytes;
use prost::Message;
use std::collections::{BTreeMap, BTreeSet};

/// Which part: nodes in their order, between the values that come in and those that go out.
pub(crate) struct Part<'a> {
    pub graph: &'a Graph,
    pub inferred: &'a Inferred,
    pub name: String,
    pub nodes: Vec<NodeId>,
    pub inputs: Vec<ValueId>,
    pub outputs: Vec<ValueId>,
}

/// Initializers need not be listed as inputs since this version of the format.
const IR_VERSION_MIN: i64 = 4;

impl Part<'_> {
    /// The file. Values keep their names; an output that the part only passes on goes through an `Identity`.
    pub(crate) fn encode(&self) -> Bytes {
        let made: BTreeSet<ValueId> =
            self.nodes.iter().flat_map(|&id| self.graph.node(id).outputs.iter().flatten().copied()).collect();
        // What is passed on needs one name coming in and another going out.
        let mut renamed: BTreeMap<ValueId, String> = BTreeMap::new();
        let names: BTreeSet<&str> = self.graph.values.iter().map(|value| value.name.as_str()).collect();
        for &output in self.outputs.iter().filter(|output| !made.contains(output)) {
            let mut name = format!("{}/in", self.graph.value(output).name);
            while names.contains(name.as_str()) {
                name.push('_');
            }
            renamed.insert(output, name);
        }
        let own = |id: ValueId| self.graph.value(id).name.clone();
        let outside = |id: ValueId| renamed.get(&id).cloned().unwrap_or_else(|| own(id));
        let passed = renamed.iter().map(|(&id, from)| proto::NodeProto {
            name: Some(from.clone()),
            op_type: Some("Identity".to_owned()),
            input: vec![from.clone()],
            output: vec![own(id)],
            ..Default::default()
        });
        let reads = self.nodes.iter().flat_map(|&id| self.graph.node(id).reads()).chain(renamed.keys().copied());
        let constants: BTreeSet<ValueId> = reads.filter(|&id| self.graph.constant(id).is_some()).collect();
        let graph = proto::GraphProto {
            name: Some(self.name.clone()),
            node: passed.chain(self.nodes.iter().map(|&id| encode_node(self.graph, self.graph.node(id)))).collect(),
            initializer: constants
                .iter()
                .filter_map(|&id| Some(self.graph.constant(id)?.to_proto(&outside(id))))
                .collect(),
            input: self.inputs.iter().map(|&id| self.info(id, outside(id))).collect(),
            output: self.outputs.iter().map(|&id| self.info(id, own(id))).collect(),
            ..Default::default()
        };
        let opset = |(domain, version): (&String, &i64)| proto::OperatorSetIdProto {
            domain: Some(domain.clone()),
            version: Some(*version),
        };
        let model = proto::ModelProto {
            ir_version: Some(self.graph.ir_version.max(IR_VERSION_MIN)),
            producer_name: Some("rota".to_owned()),
            opset_import: self.graph.opsets.iter().map(opset).collect(),
            graph: Some(graph),
            ..Default::default()
        };
        model.encode_to_vec().into()
    }

    /// Name and type: a graph's input as it was declared, anything else as it was inferred.
    fn info(&self, id: ValueId, name: String) -> proto::ValueInfoProto {
        let value = self.graph.value(id);
        let declared = match (&value.source, &value.declared) {
            (Source::Input(_), Some(declared)) => Some(declared.clone()),
            _ => self.inferred_type(id).or_else(|| value.declared.clone()),
        };
        value_info(name, declared.as_ref())
    }

    fn inferred_type(&self, id: ValueId) -> Option<Declared> {
        let known = self.inferred.value(id);
        let dim = |dim: &Dim| match dim.size().and_then(|size| u64::try_from(size).ok()) {
            Some(size) => DeclaredDim::Size(size),
            None if dim.as_symbol() == self.inferred.batch => DeclaredDim::Symbol(self.batch_name()),
            None => DeclaredDim::Symbol(self.inferred.dim_text(dim)),
        };
        let dims = known.dims.as_ref().ok().map(|dims| dims.iter().map(dim).collect());
        Some(Declared { dtype: known.dtype?, dims })
    }

    /// What the model itself calls the batch, where it does.
    fn batch_name(&self) -> String {
        let axes = self.inferred.batch_axes.iter().zip(&self.graph.inputs);
        let mut names = axes.filter_map(|(axis, &id)| {
            match self.graph.value(id).declared.as_ref()?.dims.as_ref()?.get((*axis)?)? {
                DeclaredDim::Symbol(name) => Some(name.clone()),
                _ => None,
            }
        });
        names.next().unwrap_or_else(|| "batch".to_owned())
    }
}

fn value_info(name: String, declared: Option<&Declared>) -> proto::ValueInfoProto {
    use proto::tensor_shape_proto::{Dimension, dimension};
    let dim = |dim: &DeclaredDim| Dimension {
        value: match dim {
            DeclaredDim::Size(size) => Some(dimension::Value::DimValue(*size as i64)),
            DeclaredDim::Symbol(name) => Some(dimension::Value::DimParam(name.clone())),
            DeclaredDim::Unsaid => None,
        },
        denotation: None,
    };
    let tensor = declared.map(|declared| proto::type_proto::Tensor {
        elem_type: Some(declared.dtype.0),
        shape: declared.dims.as_ref().map(|dims| proto::TensorShapeProto { dim: dims.iter().map(dim).collect() }),
    });
    let value = tensor.map(proto::type_proto::Value::TensorType);
    let kind = value.map(|value| proto::TypeProto { value: Some(value), denotation: None });
    proto::ValueInfoProto { name: Some(name), r#type: kind, ..Default::default() }
}

fn encode_node(graph: &Graph, node: &Node) -> proto::NodeProto {
    let names = |ids: &[Option<ValueId>]| {
        ids.iter().map(|id| id.map(|id| graph.value(id).name.clone()).unwrap_or_default()).collect()
    };
    proto::NodeProto {
        name: Some(node.name.clone()),
        op_type: Some(node.operator.clone()),
        domain: Some(node.domain.clone()),
        input: names(&node.inputs),
        output: names(&node.outputs),
        attribute: node.attributes.iter().map(|(key, value)| encode_attribute(key, value)).collect(),
        ..Default::default()
    }
}

fn encode_attribute(name: &str, value: &Attribute) -> proto::AttributeProto {
    let mut attribute = proto::AttributeProto { name: Some(name.to_owned()), ..Default::default() };
    let kind = match value {
        Attribute::Float(value) => {
            attribute.f = Some(*value);
            AttributeType::Float
        }
        Attribute::Int(value) => {
            attribute.i = Some(*value);
            AttributeType::Int
        }
        Attribute::String(value) => {
            attribute.s = Some(value.clone());
            AttributeType::String
        }
        Attribute::Tensor(value) => {
            attribute.t = Some(value.to_proto(""));
            AttributeType::Tensor
        }
        Attribute::Floats(values) => {
            attribute.floats = values.clone();
            AttributeType::Floats
        }
        Attribute::Ints(values) => {
            attribute.ints = values.clone();
            AttributeType::Ints
        }
        Attribute::Strings(values) => {
            attribute.strings = values.clone();
            AttributeType::Strings
        }
        Attribute::Tensors(values) => {
            attribute.tensors = values.iter().map(|value| value.to_proto("")).collect();
            AttributeType::Tensors
        }
        Attribute::Body(body) => {
            attribute.g = Some(encode_graph(&body.graph));
            AttributeType::Graph
        }
    };
    attribute.set_type(kind);
    attribute
}

/// A body, as a whole; what it captures it reads by name. Its constants are nodes: one that is an output has to be.
fn encode_graph(graph: &Graph) -> proto::GraphProto {
    let name = |id: ValueId| graph.value(id).name.clone();
    let info = |&id: &ValueId| value_info(name(id), graph.value(id).declared.as_ref());
    let constant = |id: ValueId| {
        let tensor = graph.constant(id)?.clone();
        Some(proto::NodeProto {
            name: Some(name(id)),
            op_type: Some("Constant".to_owned()),
            output: vec![name(id)],
            attribute: vec![encode_attribute("value", &Attribute::Tensor(tensor))],
            ..Default::default()
        })
    };
    let constants = graph.value_ids().filter_map(constant);
    proto::GraphProto {
        name: Some(graph.name.clone()),
        node: constants.chain(graph.nodes.iter().map(|node| encode_node(graph, node))).collect(),
        input: graph.inputs.iter().map(info).collect(),
        output: graph.outputs.iter().map(info).collect(),
        ..Default::default()
    }
}
