//! What it takes to read and to outline a model of 100 MB, its file being in memory.

use criterion::{Criterion, criterion_group, criterion_main};
use rota_graph::examples::{Sketch, noise};
use rota_graph::{Bytes, Graph, Index, Limits, Member, Outline, Worth};

/// Layers of 1 MB, each a product, a bias and a rectifier.
fn model(layers: usize) -> Bytes {
    let mut sketch = Sketch::new("bench");
    let mut x = sketch.input("x", &[-1, 512], "batch");
    for layer in 0..layers {
        let w = sketch.floats(&format!("w{layer}"), &[512, 512], &noise(layer as u64, 512 * 512));
        let b = sketch.floats(&format!("b{layer}"), &[512], &noise(layer as u64, 512));
        let product = sketch.node("MatMul", &[&x, &w], &format!("p{layer}"), &[]);
        let sum = sketch.node("Add", &[&product, &b], &format!("s{layer}"), &[]);
        x = sketch.node("Relu", &[&sum], &format!("r{layer}"), &[]);
    }
    sketch.output(&x, &[-1, 512], "batch");
    sketch.into_file().into()
}

/// Nodes one after the other, without weights.
fn deep(nodes: usize) -> Bytes {
    let mut sketch = Sketch::new("deep");
    let mut x = sketch.input("x", &[-1, 512], "batch");
    for node in 0..nodes {
        x = sketch.node("Relu", &[&x], &format!("r{node}"), &[]);
    }
    sketch.output(&x, &[-1, 512], "batch");
    sketch.into_file().into()
}

fn analysis(criterion: &mut Criterion) {
    let file = model(100);
    let graph = Graph::read(file.clone(), &Limits::default()).expect("the bench writes sound models");
    criterion.bench_function("read 100 MB", |bench| bench.iter(|| Graph::read(file.clone(), &Limits::default())));
    criterion.bench_function("outline of 100 MB", |bench| bench.iter(|| Outline::of(&graph)));
    let outline = Outline::of(&graph);
    let deep = Graph::read(deep(20_000), &Limits::default()).expect("the bench writes sound models");
    criterion.bench_function("outline of 20,000 nodes without weights", |bench| bench.iter(|| Outline::of(&deep)));
    criterion.bench_function("groups of 50 models", |bench| {
        let mut index = Index::new(Worth::default());
        (0..50).for_each(|number| index.add(Member(number), outline.clone()));
        bench.iter(|| index.groups());
    });
}

criterion_group! { name = benches; config = Criterion::default().sample_size(10); targets = analysis }
criterion_main!(benches);
