//! Small models for documentation and tests, as files.

use crate::tensor::Tensor;
use crate::proto::{self, attribute_proto::AttributeType};
use prost::Message;

/// A model under construction: tests and benches write their models with it.
#[derive(Clone, Debug, Default)]
pub struct Sketch {
    graph: proto::GraphProto,
    pub opset: i64,
}

impl Sketch {
    pub fn new(name: &str) -> Sketch {
        Sketch { graph: proto::GraphProto { name: Some(name.to_owned()), ..Default::default() }, opset: 17 }
    }

    /// A f32 input; a negative dimension is the batch, under that name.
    pub fn input(&mut self, name: &str, dims: &[i64], batch: &str) -> String {
        self.graph.input.push(info(name, 1, dims, batch));
        name.to_owned()
    }

    pub fn typed_input(&mut self, name: &str, dtype: i32, dims: &[i64], batch: &str) -> String {
        self.graph.input.push(info(name, dtype, dims, batch));
        name.to_owned()
    }

    pub fn output(&mut self, name: &str) {
        self.graph.output.push(proto::ValueInfoProto { name: Some(name.to_owned()), ..info(name, 1, &[], "") });
        if let Some(output) = self.graph.output.last_mut() {
            output.r#type = Some(kind(1, None));
        }
    }

    pub fn typed_output(&mut self, name: &str, dtype: i32) {
        let output = proto::ValueInfoProto { name: Some(name.to_owned()), r#type: Some(kind(dtype, None)), ..Default::default() };
        self.graph.output.push(output);
    }

    pub fn floats(&mut self, name: &str, dims: &[u64], values: &[f32]) -> String {
        self.graph.initializer.push(Tensor::f32s(dims.to_vec(), values).to_proto(name));
        name.to_owned()
    }

    pub fn ints(&mut self, name: &str, values: &[i64]) -> String {
        self.graph.initializer.push(Tensor::i64s(vec![values.len() as u64], values).to_proto(name));
        name.to_owned()
    }

    pub fn int(&mut self, name: &str, value: i64) -> String {
        self.graph.initializer.push(Tensor::i64s(vec![], &[value]).to_proto(name));
        name.to_owned()
    }

    /// A node with whole-number attributes; returns its output's name.
    pub fn node(&mut self, operator: &str, inputs: &[&str], output: &str, attributes: &[(&str, &[i64])]) -> String {
        let attribute = |(name, values): &(&str, &[i64])| {
            let mut attribute = proto::AttributeProto { name: Some((*name).to_owned()), ..Default::default() };
            // These are lists even when they hold one number.
            if values.len() == 1 && !["axes", "perm", "kernel_shape", "strides", "pads", "shape"].contains(name) {
                attribute.i = Some(values[0]);
                attribute.set_type(AttributeType::Int);
            } else {
                attribute.ints = values.to_vec();
                attribute.set_type(AttributeType::Ints);
            }
            attribute
        };
        self.graph.node.push(proto::NodeProto {
            name: Some(format!("node of {output}")),
            op_type: Some(operator.to_owned()),
            input: inputs.iter().map(|&input| input.to_owned()).collect(),
            output: vec![output.to_owned()],
            attribute: attributes.iter().map(attribute).collect(),
            ..Default::default()
        });
        output.to_owned()
    }

    pub fn file(&self) -> Vec<u8> {
        let opset = proto::OperatorSetIdProto { domain: Some(String::new()), version: Some(self.opset) };
        let model = proto::ModelProto {
            ir_version: Some(8),
            opset_import: vec![opset],
            graph: Some(self.graph.clone()),
            ..Default::default()
        };
        model.encode_to_vec()
    }
}

fn kind(dtype: i32, shape: Option<proto::TensorShapeProto>) -> proto::TypeProto {
    let tensor = proto::type_proto::Tensor { elem_type: Some(dtype), shape };
    proto::TypeProto { value: Some(proto::type_proto::Value::TensorType(tensor)), denotation: None }
}

fn info(name: &str, dtype: i32, dims: &[i64], batch: &str) -> proto::ValueInfoProto {
    use proto::tensor_shape_proto::{Dimension, dimension::Value};
    let dim = |&dim: &i64| Dimension {
        value: Some(if dim < 0 { Value::DimParam(batch.to_owned()) } else { Value::DimValue(dim) }),
        denotation: None,
    };
    let shape = proto::TensorShapeProto { dim: dims.iter().map(dim).collect() };
    proto::ValueInfoProto { name: Some(name.to_owned()), r#type: Some(kind(dtype, Some(shape))), ..Default::default() }
}

/// Numbers that look random and are the same everywhere.
pub fn noise(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    (0..count).map(|_| next()).collect()
}

/// `count` models with one trunk of two layers and a head each, under other names.
pub fn heads(count: usize) -> Vec<Vec<u8>> {
    let model = |number: usize| {
        let name = |name: &str| format!("m{number}/{name}");
        let mut sketch = Sketch::new(&name("graph"));
        let mut x = sketch.input(&name("x"), &[-1, 16], "n");
        for layer in 0..2 {
            let w = sketch.floats(&name(&format!("w{layer}")), &[16, 16], &noise(layer + 1, 256));
            let product = sketch.node("MatMul", &[&x, &w], &name(&format!("p{layer}")), &[]);
            x = sketch.node("Relu", &[&product], &name(&format!("r{layer}")), &[]);
        }
        let w = sketch.floats(&name("head"), &[16, 4], &noise(100 + number as u64, 64));
        let y = sketch.node("MatMul", &[&x, &w], &name("y"), &[]);
        sketch.output(&y);
        sketch.file()
    };
    (0..count).map(model).collect()
}
