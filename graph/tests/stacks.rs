//! Which suffixes are put into one stack, and which are refused. That stacks compute the right thing is tested where there are
//! engines: `device/tests/stacks.rs`.

use rota_graph::examples::{Sketch, alike as families, noise};
use rota_graph::{Bytes, Graph, Limits, StackOutput, alike, stack};

fn read(file: Vec<u8>) -> Graph {
    Graph::read(Bytes::from(file), &Limits::default()).unwrap()
}

/// A dense layer of `classes` and what `rest` adds, which gives its output's name.
fn head(name: &str, classes: usize, rest: impl Fn(&mut Sketch, &str) -> String) -> Graph {
    let mut sketch = Sketch::new(name);
    let x = sketch.input(&format!("{name}/x"), &[-1, 16], "n");
    let w = sketch.floats(&format!("{name}/w"), &[16, classes as u64], &noise(classes as u64, 16 * classes));
    let scores = sketch.node("MatMul", &[&x, &w], &format!("{name}/scores"), &[]);
    let y = rest(&mut sketch, &scores);
    sketch.output(&y, &[-1, classes as i64], "n");
    read(sketch.file())
}

fn softmax(sketch: &mut Sketch, of: &str) -> String {
    sketch.node("Softmax", &[of], "y", &[("axis", &[-1])])
}

fn places(graphs: &[Graph]) -> Vec<Vec<usize>> {
    alike(&graphs.iter().collect::<Vec<_>>())
}

#[test]
fn heads_are_alike_by_operators_and_wiring_whatever_their_names_weights_and_widths() {
    let relu = |sketch: &mut Sketch, of: &str| sketch.node("Relu", &[of], "y", &[]);
    let graphs = [
        head("a", 3, softmax),
        head("b", 4, relu),
        head("c", 10, softmax),
        head("d", 3, relu),
        head("e", 5, |sketch, of| sketch.node("LeakyRelu", &[of], "y", &[])),
    ];
    assert_eq!(places(&graphs), [vec![0, 2], vec![1, 3]]);
}

#[test]
fn a_head_that_is_much_wider_is_left_out() {
    let graphs: Vec<Graph> = [("a", 2), ("wide", 1000), ("b", 10), ("c", 3)].map(|(n, c)| head(n, c, softmax)).into();
    assert_eq!(places(&graphs), [vec![0, 2, 3]]);
    let all: Vec<&Graph> = [0, 2, 3].map(|at| &graphs[at]).into();
    let stacked = stack(&all).unwrap();
    assert_eq!(stacked.outputs, [StackOutput { stride: 10, widths: vec![2, 10, 3] }]);
    // Weights padded to ten columns each, the mask of the softmax, and the shape that tells members apart.
    assert_eq!(stacked.weight_bytes, (16 * 30 + 30) * 4 + 3 * 8);
    let written = read(stacked.model.to_vec());
    let operators: Vec<&str> = written.nodes.iter().map(|node| node.operator.as_str()).collect();
    assert_eq!(operators, ["MatMul", "Reshape", "Add", "Softmax"], "one of each, not one for each head");
}

#[test]
fn what_can_not_be_one_is_refused_in_words() {
    let with = |rest: fn(&mut Sketch, &str, u64) -> String| {
        let graphs = [1, 2].map(|seed| head("m", 4, |sketch, of| rest(sketch, of, seed)));
        stack(&graphs.iter().collect::<Vec<_>>()).map(drop).unwrap_err().to_string()
    };
    let sums = with(|sketch, of, _| {
        let axis = sketch.int("axis", 1);
        sketch.node("CumSum", &[of, &axis], "y", &[])
    });
    assert!(sums.contains("CumSum"), "{sums}");
    let rows = with(|sketch, of, seed| {
        let c = sketch.floats("c", &[2, 1], &noise(seed, 2));
        sketch.node("Add", &[of, &c], "y", &[])
    });
    assert!(rows.contains("first axis"), "{rows}");
    let across = with(|sketch, of, _| sketch.node("Softmax", &[of], "y", &[("axis", &[0])]));
    assert!(across.contains("first axis") || across.contains("last axis"), "{across}");
    let bounds = with(|sketch, of, seed| {
        let low = sketch.floats("low", &[], &noise(seed, 1));
        sketch.node("Clip", &[of, &low], "y", &[])
    });
    assert!(bounds.contains("differ by member"), "{bounds}");
    let same = [1, 2].map(|_| {
        let mut sketch = Sketch::new("same");
        let x = sketch.input("x", &[-1, 4], "n");
        sketch.node("Relu", &[&x], "y", &[]);
        sketch.output("y", &[-1, 4], "n");
        read(sketch.file())
    });
    assert!(stack(&same.iter().collect::<Vec<_>>()).is_err(), "nothing of it differs");
    let apart = [head("a", 4, softmax), head("b", 4, |_, of| of.to_owned())];
    let error = stack(&apart.iter().collect::<Vec<_>>()).unwrap_err().to_string();
    assert!(error.contains("same operators"), "{error}");
}

#[test]
fn random_suffixes_are_alike_and_stack_and_none_that_is_not_a_head_makes_trouble() {
    for seed in 0..200 {
        let graphs: Vec<Graph> = families(seed, 3, false).into_iter().map(read).collect();
        let all: Vec<&Graph> = graphs.iter().collect();
        let stacked = stack(&all).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        assert_eq!(read(stacked.model.to_vec()).outputs.len(), graphs[0].outputs.len());
        // Whatever a whole model is: it is refused, or it is stacked.
        let whole = read(rota_graph::examples::family(seed, 2).files.remove(0));
        let _ = stack(&[&whole, &whole]);
        assert!(places(&[whole]).is_empty(), "one alone is no set");
    }
}
