//! Small models for documentation and tests, as files.

mod suffixes;

pub use suffixes::alike;

use crate::proto::{self, attribute_proto::AttributeType};
use crate::tensor::Tensor;
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

    /// A f32 output; a negative dimension is the batch, under that name.
    pub fn output(&mut self, name: &str, dims: &[i64], batch: &str) {
        self.graph.output.push(info(name, 1, dims, batch));
    }

    /// A constant as a node, with its numbers in the typed field: as other exporters write it.
    pub fn constant_node(&mut self, name: &str, dims: &[u64], values: &[f32]) -> String {
        let tensor = proto::TensorProto {
            dims: dims.iter().map(|&dim| dim as i64).collect(),
            data_type: Some(1),
            float_data: values.to_vec(),
            ..Default::default()
        };
        let mut attribute =
            proto::AttributeProto { name: Some("value".to_owned()), t: Some(tensor), ..Default::default() };
        attribute.set_type(AttributeType::Tensor);
        self.graph.node.push(proto::NodeProto {
            op_type: Some("Constant".to_owned()),
            output: vec![name.to_owned()],
            attribute: vec![attribute],
            ..Default::default()
        });
        name.to_owned()
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

    /// Gives the last node an attribute.
    pub fn float_attribute(&mut self, name: &str, value: f32) {
        let mut attribute = proto::AttributeProto { name: Some(name.to_owned()), f: Some(value), ..Default::default() };
        attribute.set_type(AttributeType::Float);
        if let Some(node) = self.graph.node.last_mut() {
            node.attribute.push(attribute);
        }
    }

    /// An `If` between two bodies.
    pub fn branches(&mut self, condition: &str, then: &Sketch, otherwise: &Sketch, output: &str) -> String {
        let branch = |(name, body): (&str, &Sketch)| {
            let mut attribute = proto::AttributeProto {
                name: Some(name.to_owned()),
                g: Some(body.graph.clone()),
                ..Default::default()
            };
            attribute.set_type(AttributeType::Graph);
            attribute
        };
        let output = self.node("If", &[condition], output, &[]);
        if let Some(node) = self.graph.node.last_mut() {
            node.attribute = [("then_branch", then), ("else_branch", otherwise)].map(branch).to_vec();
        }
        output
    }

    pub fn file(&self) -> Vec<u8> {
        self.clone().into_file()
    }

    /// The file; weights are not copied on the way.
    pub fn into_file(self) -> Vec<u8> {
        let opset = proto::OperatorSetIdProto { domain: Some(String::new()), version: Some(self.opset) };
        let model = proto::ModelProto {
            ir_version: Some(8),
            opset_import: vec![opset],
            graph: Some(self.graph),
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

/// Numbers that look random and are the same everywhere (xorshift).
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Dice {
        let mut dice = Dice(seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        for _ in 0..4 {
            dice.roll();
        }
        dice
    }

    fn roll(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Below `count`, which is not 0.
    pub fn below(&mut self, count: usize) -> usize {
        ((self.roll() >> 33) % count as u64) as usize
    }
}

/// Numbers from -0.5 to 0.5.
pub fn noise(seed: u64, count: usize) -> Vec<f32> {
    let mut dice = Dice::new(seed);
    (0..count).map(|_| (dice.roll() >> 40) as f32 / (1u64 << 24) as f32 - 0.5).collect()
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
        sketch.output(&y, &[-1, 4], "n");
        sketch.file()
    };
    (0..count).map(model).collect()
}

/// Width of every value of a [`Family`].
pub const WIDTH: usize = 16;

/// Models with a random leading part in common, each under names of its own, with its nodes in an order of its own, and its
/// constants stored in one way or another.
#[derive(Clone, Debug)]
pub struct Family {
    pub files: Vec<Vec<u8>>,
    /// Nodes of the part that was planted.
    pub trunk_nodes: usize,
}

/// One step of a random model: an operation, or an idiom of several, on earlier values.
#[derive(Clone, Copy, Debug)]
enum Step {
    MatMul {
        of: usize,
        seed: u64,
    },
    Bias {
        of: usize,
        seed: u64,
    },
    Unary {
        of: usize,
        operator: &'static str,
    },
    Sum {
        of: usize,
        and: usize,
    },
    /// Side by side, then back to the usual width.
    Joined {
        of: usize,
        and: usize,
        seed: u64,
    },
    /// Folded by a shape that is computed from the value's own, as exporters of eager frameworks write it.
    Folded {
        of: usize,
    },
}

impl Step {
    fn random(dice: &mut Dice, values: usize) -> Step {
        let (of, and, seed) = (dice.below(values), dice.below(values), dice.roll());
        match dice.below(8) {
            0 | 1 => Step::MatMul { of, seed },
            2 => Step::Bias { of, seed },
            3 => Step::Unary { of, operator: ["Relu", "Tanh", "Sigmoid", "Softmax"][dice.below(4)] },
            4 | 5 => Step::Sum { of, and },
            6 => Step::Joined { of, and, seed },
            _ => Step::Folded { of },
        }
    }

    fn reads(self) -> [usize; 2] {
        match self {
            Step::MatMul { of, .. } | Step::Bias { of, .. } | Step::Unary { of, .. } | Step::Folded { of } => [of, of],
            Step::Sum { of, and } | Step::Joined { of, and, .. } => [of, and],
        }
    }

    fn nodes(self) -> usize {
        match self {
            Step::Joined { .. } => 2,
            Step::Folded { .. } => 7,
            _ => 1,
        }
    }
}

/// `members` models around a random trunk.
pub fn family(seed: u64, members: usize) -> Family {
    let mut dice = Dice::new(seed);
    let mut trunk: Vec<Step> = Vec::new();
    for _ in 0..2 + dice.below(9) {
        let values = trunk.len() + 1;
        // No step twice: equal steps have one hash, and would count once.
        let step = Step::random(&mut dice, values);
        if !trunk.iter().any(|other| format!("{other:?}") == format!("{step:?}")) {
            trunk.push(step);
        }
    }
    let used: Vec<usize> = trunk.iter().flat_map(|step| step.reads()).collect();
    let ends: Vec<usize> = (1..=trunk.len()).filter(|value| !used.contains(value)).collect();
    let file = |member: usize| {
        let mut dice = Dice::new(seed ^ (member as u64 + 1) << 32);
        let mut steps = trunk.clone();
        // Each end of the trunk goes on under weights of the member's own, and all come together.
        let mut last = None;
        for &of in &ends {
            steps.push(Step::MatMul { of, seed: dice.roll() });
            let end = steps.len();
            if let Some(of) = last {
                steps.push(Step::Sum { of, and: end });
            }
            last = Some(steps.len());
        }
        for _ in 0..dice.below(4) {
            let first = trunk.len() + 1;
            let mut step = Step::random(&mut dice, steps.len() + 1 - first);
            match &mut step {
                Step::Sum { of, and } | Step::Joined { of, and, .. } => (*of, *and) = (*of + first, *and + first),
                Step::MatMul { of, .. } | Step::Bias { of, .. } | Step::Unary { of, .. } | Step::Folded { of } => {
                    *of += first
                }
            }
            steps.push(step);
        }
        written(&steps, member, &mut dice)
    };
    Family { files: (0..members).map(file).collect(), trunk_nodes: trunk.iter().map(|step| step.nodes()).sum() }
}

/// The steps as a file. Value 0 is the input, value i what step i - 1 makes; all end in the last one.
fn written(steps: &[Step], member: usize, dice: &mut Dice) -> Vec<u8> {
    let mut sketch = Sketch::new(&format!("family/{member}"));
    let salt = dice.below(1_000_000);
    let name = |value: usize, what: &str| format!("m{member}.{}.{what}", (value * 7919 + salt) % 1_000_003);
    let batch = ["batch", "N", "b"][member % 3];
    let width = WIDTH as i64;
    let input = name(0, "x");
    sketch.input(&input, &[-1, width], batch);
    let mut made: Vec<Option<String>> = vec![None; steps.len() + 1];
    made[0] = Some(input);
    let constants_as_nodes = dice.below(2) == 1;
    loop {
        let ready =
            |&step: &usize| made[step + 1].is_none() && steps[step].reads().iter().all(|&read| made[read].is_some());
        let ready: Vec<usize> = (0..steps.len()).filter(ready).collect();
        if ready.is_empty() {
            break;
        }
        let step = ready[dice.below(ready.len())];
        let value = step + 1;
        let [of, and] = steps[step].reads().map(|read| made[read].clone().unwrap_or_default());
        let out = name(value, "y");
        let mut constant = |what: &str, dims: &[u64], values: &[f32]| {
            let name = name(value, what);
            if constants_as_nodes {
                sketch.constant_node(&name, dims, values)
            } else {
                sketch.floats(&name, dims, values)
            }
        };
        let square = [WIDTH as u64; 2];
        made[value] = Some(match steps[step] {
            Step::MatMul { seed, .. } => {
                let w = constant("w", &square, &noise(seed, WIDTH * WIDTH));
                sketch.node("MatMul", &[&of, &w], &out, &[])
            }
            Step::Bias { seed, .. } => {
                let b = constant("b", &[WIDTH as u64], &noise(seed, WIDTH));
                sketch.node("Add", &[&of, &b], &out, &[])
            }
            Step::Unary { operator: "Softmax", .. } => sketch.node("Softmax", &[&of], &out, &[("axis", &[-1])]),
            Step::Unary { operator, .. } => sketch.node(operator, &[&of], &out, &[]),
            Step::Sum { .. } => sketch.node("Add", &[&of, &and], &out, &[]),
            Step::Joined { seed, .. } => {
                let w = constant("w", &[2 * WIDTH as u64, WIDTH as u64], &noise(seed, 2 * WIDTH * WIDTH));
                let joined = sketch.node("Concat", &[&of, &and], &name(value, "joined"), &[("axis", &[1])]);
                sketch.node("MatMul", &[&joined, &w], &out, &[])
            }
            Step::Folded { .. } => folded(&mut sketch, &of, &out, &|what| name(value, what)),
        });
    }
    let last = made.pop().flatten().unwrap_or_default();
    sketch.output(&last, &[-1, width], batch);
    sketch.file()
}

fn folded(sketch: &mut Sketch, of: &str, out: &str, name: &dyn Fn(&str) -> String) -> String {
    let (zero, axis, rest) = (name("zero"), name("axis"), name("rest"));
    sketch.int(&zero, 0);
    sketch.ints(&axis, &[0]);
    sketch.ints(&rest, &[4, 4]);
    let shape = sketch.node("Shape", &[of], &name("shape"), &[]);
    let count = sketch.node("Gather", &[&shape, &zero], &name("count"), &[("axis", &[0])]);
    let count = sketch.node("Unsqueeze", &[&count, &axis], &name("count1"), &[]);
    let target = sketch.node("Concat", &[&count, &rest], &name("target"), &[("axis", &[0])]);
    let square = sketch.node("Reshape", &[of, &target], &name("square"), &[]);
    let turned = sketch.node("Transpose", &[&square], &name("turned"), &[("perm", &[0, 2, 1])]);
    sketch.node("Flatten", &[&turned], out, &[("axis", &[1])])
}
