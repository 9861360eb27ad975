//! What is inferred of single operators, and of the small models that lie in this repository.

use rota_graph::examples::Sketch;
use rota_graph::infer::{Inferred, infer};
use rota_graph::{Bytes, Graph, Limits};
use std::collections::BTreeMap;

fn read(file: Vec<u8>) -> Graph {
    Graph::read(Bytes::from(file), &Limits::default()).unwrap()
}

fn inferred(sketch: &Sketch) -> (Graph, Inferred) {
    let graph = read(sketch.file());
    let inferred = infer(&graph, &BTreeMap::new());
    (graph, inferred)
}

fn text(sketch: &Sketch, name: &str) -> String {
    let (graph, inferred) = inferred(sketch);
    let id = graph.value_ids().find(|id| graph.value(*id).name == name).unwrap();
    match &inferred.value(id).dims {
        Ok(_) => inferred.text(id),
        Err(why) => why.to_string(),
    }
}

type Attributes = &'static [(&'static str, &'static [i64])];

#[test]
fn operators_make_what_onnx_says() {
    // x is [batch, 8, 20, 30]; w [16, 8, 3, 3]; v [30, 5]; s the batch's shape.
    let cases: [(&str, &[&str], Attributes, &str); 24] = [
        ("Relu", &["x"], &[], "f32 [batch, 8, 20, 30]"),
        ("Conv", &["x", "w"], &[], "f32 [batch, 16, 18, 28]"),
        ("Conv", &["x", "w"], &[("pads", &[1, 1, 1, 1]), ("strides", &[2, 2])], "f32 [batch, 16, 10, 15]"),
        ("Conv", &["x", "w"], &[("dilations", &[2, 3])], "f32 [batch, 16, 16, 24]"),
        ("ConvTranspose", &["x", "u"], &[("strides", &[2, 2])], "f32 [batch, 4, 40, 60]"),
        ("MaxPool", &["x"], &[("kernel_shape", &[3, 3]), ("strides", &[2, 2])], "f32 [batch, 8, 9, 14]"),
        (
            "MaxPool",
            &["x"],
            &[("kernel_shape", &[3, 3]), ("strides", &[2, 2]), ("ceil_mode", &[1])],
            "f32 [batch, 8, 10, 15]",
        ),
        ("GlobalAveragePool", &["x"], &[], "f32 [batch, 8, 1, 1]"),
        ("MatMul", &["x", "v"], &[], "f32 [batch, 8, 20, 5]"),
        ("Transpose", &["x"], &[("perm", &[0, 2, 3, 1])], "f32 [batch, 20, 30, 8]"),
        ("Flatten", &["x"], &[("axis", &[1])], "f32 [batch, 4800]"),
        ("Flatten", &["x"], &[("axis", &[2])], "f32 [8·batch, 600]"),
        ("Concat", &["x", "x"], &[("axis", &[-1])], "f32 [batch, 8, 20, 60]"),
        ("Unsqueeze", &["x", "one"], &[], "f32 [batch, 1, 8, 20, 30]"),
        ("ReduceMean", &["x"], &[("axes", &[2, 3]), ("keepdims", &[0])], "f32 [batch, 8]"),
        ("ReduceMean", &["x"], &[], "f32 [1, 1, 1, 1]"),
        ("ArgMax", &["x"], &[("axis", &[1]), ("keepdims", &[0])], "i64 [batch, 20, 30]"),
        ("Reshape", &["x", "to"], &[], "f32 [batch, 20, 240]"),
        ("Slice", &["x", "one", "ends", "axis3"], &[], "f32 [batch, 8, 20, 28]"),
        ("Gather", &["x", "two"], &[("axis", &[1])], "f32 [batch, 2, 20, 30]"),
        ("Shape", &["x"], &[], "i64 [4]"),
        ("Cast", &["x"], &[("to", &[7])], "i64 [batch, 8, 20, 30]"),
        ("Reshape", &["x", "x"], &[], "takes a shape that is only known when it runs"),
        ("Conv", &["x", "v"], &[], "has weights of another rank than its input"),
    ];
    for (operator, inputs, attributes, expected) in cases {
        let mut sketch = Sketch::new("one");
        sketch.input("x", &[-1, 8, 20, 30], "n");
        sketch.floats("w", &[16, 8, 3, 3], &vec![0.0; 16 * 8 * 9]);
        sketch.floats("u", &[8, 4, 2, 2], &[0.0; 128]);
        sketch.floats("v", &[30, 5], &[0.0; 150]);
        sketch.ints("to", &[0, 20, -1]);
        sketch.ints("one", &[1]);
        sketch.ints("two", &[1, 1]);
        sketch.ints("ends", &[-1]);
        sketch.ints("axis3", &[3]);
        sketch.node(operator, inputs, "y", attributes);
        let found = text(&sketch, "y");
        assert!(found.ends_with(expected), "{operator} {attributes:?}: {found}, expected {expected}");
    }
}

#[test]
fn sizes_of_pictures_stay_symbols_through_strides() {
    let mut sketch = Sketch::new("picture");
    sketch.typed_input("x", 1, &[-1, 3, 20, 30], "n");
    let mut graph = read(sketch.file());
    let rota_graph::graph::Declared { dims, .. } = graph.values[0].declared.as_mut().unwrap();
    dims.as_mut().unwrap()[2] = rota_graph::graph::DeclaredDim::Symbol("h".to_owned());
    let known = infer(&graph, &BTreeMap::new());
    assert_eq!(known.text(rota_graph::ValueId(0)), "f32 [batch, 3, h, 30]");
}

#[test]
fn a_shape_that_is_computed_is_followed() {
    // [n, 6] -> [n, 2, 3] by (Shape[0], 2, 3), and back by (-1, Shape[1] * 6 / 2 ...).
    let mut sketch = Sketch::new("computed");
    sketch.input("x", &[-1, 6], "n");
    sketch.int("zero", 0);
    sketch.ints("axis", &[0]);
    sketch.ints("rest", &[2, 3]);
    sketch.ints("two", &[2]);
    sketch.node("Shape", &["x"], "shape", &[]);
    sketch.node("Gather", &["shape", "zero"], "n", &[("axis", &[0])]);
    sketch.node("Unsqueeze", &["n", "axis"], "n1", &[]);
    sketch.node("Concat", &["n1", "rest"], "target", &[("axis", &[0])]);
    sketch.node("Reshape", &["x", "target"], "y", &[]);
    sketch.node("Mul", &["n1", "two"], "twice", &[]);
    sketch.node("Div", &["twice", "two"], "once", &[]);
    sketch.node("Concat", &["once", "rest"], "again", &[("axis", &[0])]);
    sketch.node("Reshape", &["y", "again"], "z", &[]);
    for name in ["y", "z"] {
        assert_eq!(text(&sketch, name), "f32 [batch, 2, 3]", "{name}");
    }
}

#[test]
fn all_of_the_small_models_is_inferred() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/tiny/repository");
    for model in ["digits-mlp", "digits-conv", "digits-gru"] {
        let graph = read(std::fs::read(format!("{root}/{model}/1/model.onnx")).unwrap());
        let known = infer(&graph, &BTreeMap::new());
        for id in graph.value_ids() {
            assert!(
                known.value(id).dims.is_ok() && known.value(id).dtype.is_some(),
                "{model}: {}",
                graph.value(id).name
            );
        }
        for output in &graph.outputs {
            assert!(known.text(*output).contains("batch"), "{model}: {}", known.text(*output));
        }
    }
}
