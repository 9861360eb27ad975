//! What has one hash and what has not.

use rota_graph::examples::{Sketch, noise};
use rota_graph::{Attribute, Bytes, Graph, Hash, Limits, Outline, Source};

fn read(sketch: &Sketch) -> Graph {
    Graph::read(Bytes::from(sketch.file()), &Limits::default()).unwrap()
}

/// The hash of all that is computed.
fn hash(graph: &Graph) -> Hash {
    let outline = Outline::of(graph);
    outline.value(outline.outputs[0]).hash
}

/// A convolution and a rectifier, which `change` may change before they are hashed.
fn convolution(change: impl FnOnce(&mut Sketch), after: impl FnOnce(&mut Graph)) -> Hash {
    let mut sketch = Sketch::new("convolution");
    sketch.input("x", &[-1, 3, 8, 8], "n");
    sketch.floats("w", &[4, 3, 3, 3], &noise(1, 108));
    sketch.node("Conv", &["x", "w"], "c", &[("pads", &[1, 1, 1, 1])]);
    sketch.node("Relu", &["c"], "y", &[]);
    sketch.output("y", &[-1, 4, 8, 8], "n");
    change(&mut sketch);
    let mut graph = read(&sketch);
    after(&mut graph);
    hash(&graph)
}

fn attribute(graph: &mut Graph, name: &str, value: Attribute) {
    graph.nodes[0].attributes.insert(name.to_owned(), value);
}

#[test]
fn exporters_that_say_the_same_in_other_words_are_heard_alike() {
    let plain = convolution(|_| {}, |_| {});
    type Change<T> = fn(&mut T);
    let cases: [(&str, Change<Sketch>, Change<Graph>); 6] = [
        ("an operator set that changed nothing", |sketch| sketch.opset = 11, |_| {}),
        ("one group", |_| {}, |graph| attribute(graph, "group", Attribute::Int(1))),
        ("strides of 1", |_| {}, |graph| attribute(graph, "strides", Attribute::Ints(vec![1, 1]))),
        (
            "the kernel that the weights have",
            |_| {},
            |graph| attribute(graph, "kernel_shape", Attribute::Ints(vec![3, 3])),
        ),
        ("other names", |_| {}, |graph| graph.values.iter_mut().for_each(|value| value.name.push('\''))),
        (
            "padding as said",
            |_| {},
            |graph| attribute(graph, "auto_pad", Attribute::String(Bytes::from_static(b"NOTSET"))),
        ),
    ];
    for (what, change, after) in cases {
        assert_eq!(convolution(change, after), plain, "{what}");
    }
}

#[test]
fn what_computes_something_else_has_another_hash() {
    let plain = convolution(|_| {}, |_| {});
    let constant = |graph: &mut Graph, change: fn(&mut rota_graph::Tensor)| {
        let tensor = graph.values.iter_mut().find_map(|value| match &mut value.source {
            Source::Constant(tensor) => Some(tensor),
            _ => None,
        });
        change(tensor.unwrap());
    };
    let cases: [(&str, Hash); 6] = [
        ("two groups", convolution(|_| {}, |graph| attribute(graph, "group", Attribute::Int(2)))),
        ("no padding", convolution(|_| {}, |graph| drop(graph.nodes[0].attributes.remove("pads")))),
        ("another operator", convolution(|_| {}, |graph| graph.nodes[1].operator = "Tanh".to_owned())),
        ("another domain", convolution(|_| {}, |graph| graph.nodes[1].domain = "com.example".to_owned())),
        (
            "one bit of a weight",
            convolution(
                |_| {},
                |graph| {
                    constant(graph, |tensor| {
                        let mut bytes = tensor.data.to_vec();
                        bytes[17] ^= 1;
                        tensor.data = bytes.into();
                    });
                },
            ),
        ),
        (
            "the same bytes in another shape",
            convolution(|_| {}, |graph| constant(graph, |tensor| tensor.dims = vec![4, 1, 9, 3])),
        ),
    ];
    for (what, other) in cases {
        assert_ne!(other, plain, "{what}");
    }
}

#[test]
fn the_meaning_of_an_operator_goes_by_its_version() {
    let softmax = |opset| {
        let mut sketch = Sketch::new("softmax");
        sketch.opset = opset;
        sketch.input("x", &[-1, 4, 5], "n");
        sketch.node("Softmax", &["x"], "y", &[]);
        sketch.output("y", &[-1, 4, 5], "n");
        hash(&read(&sketch))
    };
    // Since 13 it is along one axis; before it was over all from the second on.
    assert_eq!(softmax(11), softmax(12));
    assert_ne!(softmax(12), softmax(13));
    assert_eq!(softmax(13), softmax(17));
}

#[test]
fn operands_are_not_exchanged_and_neither_are_outputs() {
    let difference = |first: &str, second: &str| {
        let mut sketch = Sketch::new("difference");
        sketch.input("x", &[-1, 4], "n");
        sketch.node("Relu", &["x"], "a", &[]);
        sketch.node("Tanh", &["x"], "b", &[]);
        sketch.node("Sub", &[first, second], "y", &[]);
        sketch.output("y", &[-1, 4], "n");
        hash(&read(&sketch))
    };
    assert_ne!(difference("a", "b"), difference("b", "a"));
}

#[test]
fn a_graph_in_a_node_is_hashed_with_what_it_takes_from_outside() {
    let branching = |captured: &str, operator: &str, renamed: &str| {
        let body = |name: &str| {
            let mut body = Sketch::new(name);
            body.node(operator, &[captured], renamed, &[]);
            body.output(renamed, &[-1, 4], "n");
            body
        };
        let mut sketch = Sketch::new("branching");
        sketch.input("x", &[-1, 4], "n");
        sketch.typed_input("c", 9, &[], "");
        sketch.node("Relu", &["x"], "a", &[]);
        sketch.node("Tanh", &["x"], "b", &[]);
        sketch.branches("c", &body("then"), &body("else"), "y");
        sketch.output("y", &[-1, 4], "n");
        let graph = read(&sketch);
        assert_eq!(graph.nodes[2].reads().count(), 3, "the condition, and what each branch captures");
        // And it is written out as it was.
        let outline = Outline::of(&graph);
        let stages = rota_graph::split(&graph, &outline, &Default::default(), &[]).unwrap();
        let again = Graph::read(stages[0].model.clone(), &Limits::default()).unwrap();
        assert_eq!(hash(&again), hash(&graph));
        hash(&graph)
    };
    let plain = branching("a", "Exp", "z");
    assert_eq!(branching("a", "Exp", "other"), plain);
    assert_ne!(branching("b", "Exp", "z"), plain);
    assert_ne!(branching("a", "Sqrt", "z"), plain);
}

#[test]
fn what_is_not_supported_is_said() {
    let cases: [(&str, Vec<u8>); 5] = [
        ("holds no graph", vec![]),
        ("an output has no name", {
            let mut sketch = Sketch::new("unnamed");
            sketch.output("", &[-1], "n");
            sketch.file()
        }),
        ("\"nowhere\" is read by Relu", {
            let mut sketch = Sketch::new("unmade");
            sketch.node("Relu", &["nowhere"], "y", &[]);
            sketch.file()
        }),
        ("\"y\" is made twice", {
            let mut sketch = Sketch::new("twice");
            sketch.input("x", &[-1, 4], "n");
            sketch.node("Relu", &["x"], "y", &[]);
            sketch.node("Tanh", &["x"], "y", &[]);
            sketch.file()
        }),
        ("not an ONNX model", b"\x0a".to_vec()),
    ];
    for (expected, file) in cases {
        let error = Graph::read(Bytes::from(file), &Limits::default()).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}, expected {expected}");
    }
}
