//! Stacks compute what their members compute: random suffixes with weights of their own, on every engine.

mod common;

use common::{engines_and_gpu, inputs};
use rota_device::engine::{CompileOptions, Engine};
use rota_device::sample::Hints;
use rota_device::{HostTensor, Network};
use rota_graph::examples::{self, Sketch, noise};
use rota_graph::{Bytes, Graph, Index, Limits, Member, Outline, Stack, Worth, alike, split, stack};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("rota-stacks-test-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    fn compile(&self, engine: &dyn Engine, bytes: &[u8], stack_members: u32) -> Box<dyn Network> {
        let file = self.0.join("model.onnx");
        std::fs::write(&file, bytes).unwrap();
        engine.compile(&file, &CompileOptions { threads: 1, stack_members, ..CompileOptions::default() }).unwrap()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn read(file: &[u8]) -> Graph {
    Graph::read(Bytes::copy_from_slice(file), &Limits::default()).unwrap()
}

/// Member `member`'s columns of an output, in the member's own shape.
fn columns(found: &HostTensor, member: usize, stack: &Stack, output: usize, own: &HostTensor) -> HostTensor {
    let (stride, widths) = (stack.outputs[output].stride as usize, &stack.outputs[output].widths);
    let (pitch, first) = (stride * widths.len(), member * stride);
    let rows = found.bytes.elements::<f32>().chunks(pitch);
    let values: Vec<f32> = rows.flat_map(|row| &row[first..first + widths[member] as usize]).copied().collect();
    HostTensor::from_elements(own.shape.dims(), &values).expect("as many rows as the member's own")
}

/// Whether the stack's answers are within `tolerance` of what each member gives alone, as a part of the output's range.
#[track_caller]
fn check(folder: &Folder, engine: &dyn Engine, files: &[Vec<u8>], items: u32, tolerance: f64, what: &str) {
    let graphs: Vec<Graph> = files.iter().map(|file| read(file)).collect();
    let graphs: Vec<&Graph> = graphs.iter().collect();
    let stacked = stack(&graphs).unwrap_or_else(|error| panic!("{what}: {error}"));
    let mut network = folder.compile(engine, &stacked.model, files.len() as u32);
    let mut wholes: Vec<_> = files.iter().map(|file| folder.compile(engine, file, 0)).collect();
    let given = inputs(wholes[0].signature(), items, &Hints::default(), 7);
    let found = network.run(&given).unwrap_or_else(|error| panic!("{what}: {error}"));
    for (member, whole) in wholes.iter_mut().enumerate() {
        for (output, expected) in whole.run(&given).unwrap().iter().enumerate() {
            let found = columns(&found[output], member, &stacked, output, expected);
            let apart = rota_device::check::apart(&found, expected);
            assert!(apart <= tolerance, "{what}, member {member}, output {output}: {apart}");
        }
    }
}

/// Of the range of an output: float32 sums in another order.
const TOLERANCE: f64 = 1e-6;

#[test]
fn a_stack_of_random_suffixes_gives_what_each_gives_alone() {
    let folder = Folder::new("random");
    for engine in engines_and_gpu() {
        for seed in 0..150 {
            let members = 2 + seed as usize % 4;
            let files = examples::alike(seed, members, false);
            let graphs: Vec<Graph> = files.iter().map(|file| read(file)).collect();
            let what = format!("seed {seed} on {}", engine.describe());
            // Those whose weights are of very different sizes are not put into one stack, but could be.
            let sets = alike(&graphs.iter().collect::<Vec<_>>());
            assert!(sets.iter().all(|set| set.len() >= 2), "{what}: {sets:?}");
            check(&folder, &*engine, &files, 1 + seed as u32 % 3, TOLERANCE, &what);
        }
    }
}

/// The last parts of models with one trunk.
fn own_parts(files: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let graphs: Vec<Graph> = files.iter().map(|file| read(file)).collect();
    let mut index = Index::new(Worth::default());
    graphs.iter().zip(0..).for_each(|(graph, number)| index.add(Member(number), Outline::of(graph)));
    let groups = index.groups();
    assert_eq!(groups[0].members.len(), files.len());
    let own = |(graph, number): (&Graph, u32)| {
        let outline = index.outline(Member(number)).unwrap();
        split(graph, outline, &BTreeMap::new(), &[&groups[0].cut]).unwrap().remove(1).model.to_vec()
    };
    graphs.iter().zip(0..).map(own).collect()
}

/// The heads that `models/heads.py` puts on the fetched trunk: nine dense layers with a softmax, of 2 to 10 classes.
#[test]
fn the_nine_trained_heads_are_one_stack_and_the_trunks_own_of_a_thousand_classes_is_not_in_it() {
    let fetched = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/fetched");
    let mut files: Vec<PathBuf> = std::fs::read_dir(fetched.join("heads"))
        .map(|entries| entries.flatten().map(|entry| entry.path().join("1/model.onnx")).collect())
        .unwrap_or_default();
    files.sort();
    files.push(fetched.join("repository/photo/1/model.onnx"));
    if files.len() < 2 || files.iter().any(|file| !file.exists()) {
        // Past the test harness, which keeps what a passing test prints to itself.
        let _ = writeln!(std::io::stderr(), "skipped the trained heads: run models/fetch.py and models/heads.py");
        return;
    }
    let files: Vec<Vec<u8>> = files.iter().map(|file| std::fs::read(file).unwrap()).collect();
    let mut heads = own_parts(&files);
    let graphs: Vec<Graph> = heads.iter().map(|head| read(head)).collect();
    assert_eq!(alike(&graphs.iter().collect::<Vec<_>>()), [(0..9).collect::<Vec<_>>()]);
    heads.truncate(9);
    let folder = Folder::new("trained");
    for engine in engines_and_gpu() {
        check(&folder, &*engine, &heads, 4, TOLERANCE, &engine.describe());
    }
}

/// Heads of `classes` classes each, as trained on one trunk: a dense layer and a softmax, or two with an activation between.
fn head(seed: u64, classes: usize, hidden: Option<usize>) -> Vec<u8> {
    let mut sketch = Sketch::new("head");
    let mut x = sketch.input("features", &[-1, 64], "batch");
    let mut width = 64;
    if let Some(hidden) = hidden {
        let w = sketch.floats("w0", &[width, hidden as u64], &noise(seed + 1, 64 * hidden));
        let wide = sketch.node("Gemm", &[&x, &w], "wide", &[]);
        x = sketch.node("Relu", &[&wide], "hidden", &[]);
        width = hidden as u64;
    }
    let w = sketch.floats("w", &[classes as u64, width], &noise(seed, classes * width as usize));
    let b = sketch.floats("b", &[classes as u64], &noise(seed + 2, classes));
    let scores = sketch.node("Gemm", &[&x, &w, &b], "scores", &[("transB", &[1])]);
    sketch.node("Softmax", &[&scores], "y", &[("axis", &[1])]);
    sketch.output("y", &[-1, classes as i64], "batch");
    sketch.file()
}

#[test]
fn heads_with_other_numbers_of_classes_are_one_stack_without_a_softmax_seeing_the_padding() {
    let folder = Folder::new("heads");
    for engine in engines_and_gpu() {
        for hidden in [None, Some(16)] {
            let files: Vec<Vec<u8>> = [10, 2, 5, 3].iter().zip(1..).map(|(&n, seed)| head(seed, n, hidden)).collect();
            check(&folder, &*engine, &files, 5, TOLERANCE, &engine.describe());
        }
    }
}
