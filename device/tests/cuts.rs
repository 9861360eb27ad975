//! Models cut by `rota_graph`, run in parts, and compared with the whole.

mod common;

use common::{engines, inputs};
use rota_device::engine::{CompileOptions, Engine};
use rota_device::{DType, Hints, HostTensor, Network, Shape};
use rota_graph::infer::infer;
use rota_graph::{
    Bytes, Cut, Feed, Graph, Index, Limits, Member, Outline, Source, Stage, ValueId, Worth, examples, split,
};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// A folder that goes away.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("rota-cuts-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn read(bytes: Vec<u8>) -> Graph {
    Graph::read(Bytes::from(bytes), &Limits::default()).unwrap()
}

fn run(engine: &dyn Engine, folder: &Folder, model: &[u8], inputs: &[HostTensor]) -> Vec<HostTensor> {
    let file = folder.0.join("part.onnx");
    std::fs::write(&file, model).unwrap();
    let mut network = engine.compile(&file, &CompileOptions { threads: 1, ..Default::default() }).unwrap();
    network.run(inputs).unwrap()
}

/// Executes the stages as a daemon would, one after the other.
fn run_stages(engine: &dyn Engine, folder: &Folder, stages: &[Stage], request: &[HostTensor]) -> Vec<HostTensor> {
    let mut given: Vec<Vec<HostTensor>> = Vec::new();
    for stage in stages {
        let fed = stage.feeds.iter().map(|feed| match *feed {
            Feed::Input(input) => request[input].clone(),
            Feed::Port { level, port } => given[level][port].clone(),
        });
        let fed: Vec<HostTensor> = fed.collect();
        given.push(run(engine, folder, &stage.model, &fed));
    }
    given.pop().unwrap()
}

/// Tensors one after the other along their first axis.
fn joined(tensors: &[&HostTensor]) -> HostTensor {
    let mut dims = tensors[0].shape.dims().to_vec();
    dims[0] = tensors.iter().map(|tensor| tensor.shape.dims()[0]).sum();
    let bytes: Vec<u8> = tensors.iter().flat_map(|tensor| tensor.bytes.iter().copied()).collect();
    HostTensor::from_bytes(tensors[0].dtype, Shape::new(&dims).unwrap(), &bytes).unwrap()
}

/// Items `from..from + count` along the first axis.
fn part(tensor: &HostTensor, from: u32, count: u32) -> HostTensor {
    let mut dims = tensor.shape.dims().to_vec();
    let row = tensor.bytes.len() / dims[0] as usize;
    dims[0] = count;
    let bytes = &tensor.bytes[from as usize * row..(from + count) as usize * row];
    HostTensor::from_bytes(tensor.dtype, Shape::new(&dims).unwrap(), bytes).unwrap()
}

/// What a group is for: the shared part runs once for the requests of both members, each suffix on its own items. All batch axes
/// are the first.
fn run_group(
    engine: &dyn Engine,
    folder: &Folder,
    members: [&[Stage]; 2],
    requests: [&[HostTensor]; 2],
) -> [Vec<HostTensor>; 2] {
    let shared = &members[0][0];
    let fed: Vec<HostTensor> = (0..shared.feeds.len())
        .map(|at| {
            let of = |member: usize| match members[member][0].feeds[at] {
                Feed::Input(input) => &requests[member][input],
                Feed::Port { .. } => panic!("the first level reads inputs only"),
            };
            joined(&[of(0), of(1)])
        })
        .collect();
    let ports = run(engine, folder, &shared.model, &fed);
    let mut from = 0;
    [0, 1].map(|member| {
        let suffix = &members[member][1];
        let count = requests[member][0].shape.dims()[0];
        let fed = suffix.feeds.iter().map(|feed| match *feed {
            Feed::Input(input) => requests[member][input].clone(),
            Feed::Port { port, .. } => part(&ports[port], from, count),
        });
        let fed: Vec<HostTensor> = fed.collect();
        from += count;
        run(engine, folder, &suffix.model, &fed)
    })
}

/// The largest difference, in parts of the largest number; not a number where one is not.
fn difference(found: &[HostTensor], expected: &[HostTensor]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let mut worst = 0.0f32;
    for (found, expected) in found.iter().zip(expected) {
        assert_eq!((found.dtype, found.shape), (expected.dtype, expected.shape));
        if found.dtype == DType::F32 {
            let (found, expected) = (found.bytes.elements::<f32>(), expected.bytes.elements::<f32>());
            let scale = expected.iter().fold(1e-6f32, |most, value| most.max(value.abs()));
            worst = found.iter().zip(expected).fold(worst, |worst, (a, b)| worst.max((a - b).abs() / scale));
        } else {
            assert_eq!(found.bytes, expected.bytes);
        }
    }
    worst
}

#[test]
fn random_families_in_parts_answer_as_whole() {
    let folder = Folder::new("families");
    for engine in engines() {
        for seed in 0..12 {
            let family = examples::family(seed, 2);
            let mut index = Index::new(Worth { weight_bytes: 0, ..Worth::default() });
            for (number, file) in family.files.iter().enumerate() {
                index.add(Member(number as u32), Outline::of(&read(file.clone())));
            }
            let groups = index.groups();
            let group = groups.first().unwrap_or_else(|| panic!("seed {seed} shares nothing"));
            let mut wholes: Vec<Box<dyn Network>> =
                family.files.iter().map(|file| whole(&*engine, &folder, file)).collect();
            let requests = [
                inputs(wholes[0].signature(), 3, &Hints::default(), seed),
                inputs(wholes[1].signature(), 2, &Hints::default(), !seed),
            ];
            let stages = [0, 1].map(|at| split_of(&family.files[at], &index, Member(at as u32), &[&group.cut]));
            let expected = [0, 1].map(|at| wholes[at].run(&requests[at]).unwrap());
            let found = run_group(&*engine, &folder, [&stages[0], &stages[1]], [&requests[0], &requests[1]]);
            for at in 0..2 {
                let worst = difference(&found[at], &expected[at]);
                assert!(worst <= 1e-5, "seed {seed}, member {at}, {}: {worst}", engine.describe());
            }
        }
    }
}

fn whole(engine: &dyn Engine, folder: &Folder, model: &[u8]) -> Box<dyn Network> {
    let file = folder.0.join("whole.onnx");
    std::fs::write(&file, model).unwrap();
    engine.compile(&file, &CompileOptions { threads: 1, ..Default::default() }).unwrap()
}

fn split_of(file: &[u8], index: &Index, member: Member, levels: &[&rota_graph::Cut]) -> Vec<Stage> {
    split(&read(file.to_vec()), index.outline(member).unwrap(), &BTreeMap::new(), levels).unwrap()
}

/// The model with other weights where it last reads some, and with other names: a variant, as transfer learning makes them.
fn variant(graph: &Graph) -> Option<Vec<u8>> {
    let mut graph = graph.clone();
    let last = graph.node_ids().rev().find_map(|id| {
        let weights =
            |id: &ValueId| graph.constant(*id).is_some_and(|tensor| tensor.dtype.0 == 1 && tensor.data.len() >= 1024);
        graph.node(id).reads().find(weights)
    })?;
    if let Source::Constant(tensor) = &mut graph.values[last.0 as usize].source {
        let halved = tensor
            .data
            .chunks_exact(4)
            .flat_map(|c| (f32::from_le_bytes([c[0], c[1], c[2], c[3]]) * 0.5).to_le_bytes());
        tensor.data = halved.collect::<Vec<u8>>().into();
    }
    // What a body captures it reads by name.
    if !graph.nodes.iter().any(|node| node.bodies().next().is_some()) {
        graph.values.iter_mut().for_each(|value| value.name = format!("variant/{}", value.name));
    }
    let outline = Outline::of(&graph);
    Some(split(&graph, &outline, &BTreeMap::new(), &[]).unwrap().remove(0).model.to_vec())
}

fn models_below(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let versions = entries.flatten().map(|entry| entry.path().join("1/model.onnx"));
    let mut all: Vec<PathBuf> = versions.filter(|file| file.exists()).collect();
    all.sort();
    all
}

#[test]
fn real_models_cut_where_a_variant_leaves_them_answer_as_whole() {
    let folder = Folder::new("real");
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models");
    let mut files = models_below(&root.join("tiny/repository"));
    files.extend(models_below(&root.join("fetched/repository")));
    assert!(files.len() >= 3);
    let mut cut = 0;
    for file in files {
        let bytes = std::fs::read(&file).unwrap();
        let graph = read(bytes.clone());
        let name =
            file.parent().and_then(Path::parent).and_then(Path::file_name).unwrap().to_string_lossy().into_owned();
        let Some(other) = variant(&graph) else { continue };
        let mut index = Index::new(Worth::default());
        index.add(Member(0), Outline::of(&graph));
        index.add(Member(1), Outline::of(&read(other.clone())));
        let groups = index.groups();
        let Some(group) = groups.first() else {
            println!("{name}: nothing worth sharing");
            continue;
        };
        cut += 1;
        for engine in engines() {
            let mut wholes = [whole(&*engine, &folder, &bytes), whole(&*engine, &folder, &other)];
            let hints = hints(&name, wholes[0].signature());
            // The hints go by names, which the variant has others of.
            let requests = [2, 1].map(|items| inputs(wholes[0].signature(), items, &hints, u64::from(items)));
            let expected = [0, 1].map(|at| wholes[at].run(&requests[at]).unwrap());
            let stages = [
                split_of(&bytes, &index, Member(0), &[&group.cut]),
                split_of(&other, &index, Member(1), &[&group.cut]),
            ];
            let alone = run_stages(&*engine, &folder, &stages[0], &requests[0]);
            let exact = difference(&alone, &expected[0]);
            let found = run_group(&*engine, &folder, [&stages[0], &stages[1]], [&requests[0], &requests[1]]);
            let worst = difference(&found[0], &expected[0]).max(difference(&found[1], &expected[1]));
            println!(
                "{name}: {} of {} nodes shared, {} KB, {} ports, largest difference {exact:e} alone, {worst:e} in a group's batch ({})",
                group.cut.nodes.len(),
                graph.nodes.len(),
                group.cut.weight_bytes / 1000,
                group.cut.ports.len(),
                engine.describe()
            );
            for refusal in &group.cut.refused {
                println!("    {}: {}", refusal.value, refusal.why);
            }
            assert!(
                exact == 0.0 && worst <= 1e-4,
                "{name} on {}: {exact} alone, {worst} in a batch",
                engine.describe()
            );
        }
    }
    assert!(cut >= 1, "no model was cut, not even one of those that are always there");
}

/// An output's name, batch axis, and the dimensions that are known to be numbers.
type Said = (String, usize, Vec<Option<i64>>);

/// The model with every value as an output that is said to have whole items; and by output: its axis, and its known dimensions.
fn opened(graph: &Graph) -> (Vec<u8>, Vec<Said>) {
    let outline = Outline::of(graph);
    let known = infer(graph, &BTreeMap::new());
    let mut seen = BTreeSet::new();
    let mut values = Vec::new();
    for id in graph.nodes.iter().flat_map(|node| node.outputs.iter().flatten()) {
        let value = outline.value(*id);
        if let (Ok(axis), true) = (&value.crossing, seen.insert(value.hash)) {
            let dims = known.value(*id).dims.as_ref().unwrap().iter().map(rota_graph::dim::Dim::size).collect();
            values.push((value.hash, (value.name.clone(), *axis, dims)));
        }
    }
    let (ports, described) = values.into_iter().unzip();
    let cut = Cut { nodes: BTreeSet::new(), ports, weight_bytes: 0, refused: Vec::new() };
    let model = split(graph, &outline, &BTreeMap::new(), &[&cut]).unwrap().remove(0).model;
    (model.to_vec(), described)
}

/// Item `item` along any axis.
fn item(tensor: &HostTensor, axis: usize, item: usize) -> Vec<u8> {
    let dims = tensor.shape.dims();
    let items = dims[axis] as usize;
    let outer: usize = dims[..axis].iter().map(|&dim| dim as usize).product();
    let chunk = tensor.bytes.len() / (outer * items).max(1);
    (0..outer).flat_map(|row| tensor.bytes[(row * items + item) * chunk..][..chunk].iter().copied()).collect()
}

/// What inference and the rules of items say of the inside of real models, against what an engine computes there.
#[test]
fn every_value_that_may_cross_has_the_items_and_dimensions_that_are_said() {
    let folder = Folder::new("items");
    let engine = engines().pop().unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models");
    let mut files = models_below(&root.join("tiny/repository"));
    files.extend(models_below(&root.join("fetched/repository")));
    for file in files {
        let graph = read(std::fs::read(&file).unwrap());
        let name =
            file.parent().and_then(Path::parent).and_then(Path::file_name).unwrap().to_string_lossy().into_owned();
        let (model, described) = opened(&graph);
        if described.is_empty() {
            println!("{name}: no value has items");
            continue;
        }
        let mut network = whole(&*engine, &folder, &model);
        let axes: Vec<usize> = network.signature().inputs.iter().map(|spec| spec.batch_axis.unwrap()).collect();
        let hints = hints(&name, network.signature());
        let batch = inputs(network.signature(), 3, &hints, 11);
        let together = network.run(&batch).unwrap();
        for at in 0..3 {
            let alone = batch.iter().zip(&axes).map(|(tensor, &axis)| {
                let mut dims = tensor.shape.dims().to_vec();
                dims[axis] = 1;
                HostTensor::from_bytes(tensor.dtype, Shape::new(&dims).unwrap(), &item(tensor, axis, at)).unwrap()
            });
            let alone = network.run(&alone.collect::<Vec<_>>()).unwrap();
            for ((together, alone), (value, axis, dims)) in together.iter().zip(&alone).zip(&described) {
                let what = format!("{name}: {value}, item {at}");
                assert_eq!((together.shape.dims()[*axis], alone.shape.dims()[*axis]), (3, 1), "{what}");
                let found = together.shape.dims().iter().map(|&dim| i64::from(dim));
                assert!(
                    found.zip(dims).all(|(found, said)| said.is_none_or(|said| said == found)),
                    "{what}: {dims:?}, {}",
                    together.shape
                );
                let own = HostTensor::from_bytes(alone.dtype, alone.shape, &item(together, *axis, at)).expect(&what);
                let worst = difference(&[own], std::slice::from_ref(alone));
                assert!(worst <= 1e-4, "{what}: {worst}");
            }
        }
        println!("{name}: {} of {} values have whole items", described.len(), graph.nodes.len());
    }
}

/// Sizes of what is not the batch, and numbers that the models expect.
fn hints(name: &str, signature: &rota_device::Signature) -> Hints {
    let mut hints = Hints::default();
    for spec in &signature.inputs {
        for axis in 0..spec.dims.len() {
            let size = match axis {
                2 if name == "text-detection" => 96,
                2 => 48,
                3 => 192,
                _ => 576,
            };
            hints.sizes.insert(format!("{}.{axis}", spec.name), size);
        }
    }
    hints.ranges.insert("sr".to_owned(), (16_000.0, 16_000.0));
    hints.ranges.insert("bytes".to_owned(), (0.0, 255.0));
    hints
}
