//! What small families of models share, end to end: files in, groups and parts out.

use rota_graph::examples::{self, Sketch, heads, noise};
use rota_graph::{Bytes, Feed, Graph, Index, Limits, Member, Outline, Worth, split};
use std::collections::BTreeMap;

fn read(file: Vec<u8>) -> Graph {
    Graph::read(Bytes::from(file), &Limits::default()).unwrap()
}

fn index(files: &[Vec<u8>], weight_bytes: u64) -> Index {
    let mut index = Index::new(Worth { weight_bytes, ..Worth::default() });
    for (number, file) in files.iter().enumerate() {
        index.add(Member(number as u32), Outline::of(&read(file.clone())));
    }
    index
}

#[test]
fn a_trunk_under_other_names_is_one_and_is_cut_off() {
    let files = heads(3);
    let index = index(&files, 64);
    let groups = index.groups();
    assert_eq!(groups.len(), 1);
    let group = &groups[0];
    assert_eq!(group.members, [Member(0), Member(1), Member(2)]);
    assert_eq!((group.cut.nodes.len(), group.cut.weight_bytes), (4, 2 * 16 * 16 * 4));
    assert!(group.cut.refused.is_empty() && group.groups.is_empty());
    for (number, file) in files.iter().enumerate() {
        let graph = read(file.clone());
        let outline = index.outline(Member(number as u32)).unwrap();
        let stages = split(&graph, outline, &BTreeMap::new(), &[&group.cut]).unwrap();
        assert_eq!(stages.len(), 2);
        assert_eq!(stages[0].feeds, [Feed::Input(0)]);
        assert_eq!(stages[1].feeds, [Feed::Port { level: 0, port: 0 }]);
        assert_eq!((stages[0].nodes, stages[1].nodes), (4, 1));
        let suffix = read(stages[1].model.to_vec());
        assert_eq!(suffix.value(suffix.outputs[0]).name, format!("m{number}/y"));
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { failure_persistence: None, ..proptest::prelude::ProptestConfig::with_cases(200) })]

    #[test]
    fn the_planted_part_of_a_random_family_is_found_whole(seed: u64) {
        let family = examples::family(seed, 3);
        let index = index(&family.files, 0);
        let groups = index.groups();
        proptest::prop_assert_eq!(groups.len(), 1, "{:?}", groups);
        proptest::prop_assert_eq!(groups[0].members.len(), 3);
        for member in index.members() {
            let nodes = &index.outline(member).unwrap().nodes;
            // Where two of a model's own nodes are equal they have one hash.
            let shared = nodes.iter().filter(|node| groups[0].cut.nodes.contains(&node.hash)).count();
            proptest::prop_assert_eq!(shared, family.trunk_nodes, "{:?}", groups[0].cut.refused);
        }
    }
}

/// A trunk of one layer in front of what `rest` adds; two such models with different heads behind it.
fn pair(
    trunk: impl Fn(&mut Sketch, &str) -> String,
    rest: impl Fn(&mut Sketch, &str, &str, u64) -> String,
) -> Vec<Vec<u8>> {
    let model = |number: u64| {
        let mut sketch = Sketch::new("pair");
        let x = sketch.input("x", &[-1, 16], "n");
        let w = sketch.floats("w", &[16, 16], &noise(1, 256));
        let h = sketch.node("MatMul", &[&x, &w], "h", &[]);
        let t = trunk(&mut sketch, &h);
        let y = rest(&mut sketch, &h, &t, number);
        sketch.output(&y, &[-1, 16], "n");
        sketch.file()
    };
    vec![model(10), model(11)]
}

fn head(sketch: &mut Sketch, of: &str, number: u64) -> String {
    let w = sketch.floats("head", &[16, 16], &noise(number, 256));
    sketch.node("MatMul", &[of, &w], "y", &[])
}

#[test]
fn a_value_that_was_computed_from_the_size_of_the_batch_does_not_cross() {
    // t = h * (number of items): right for one model's batch, wrong for the group's.
    let files = pair(
        |sketch, h| {
            sketch.int("zero", 0);
            let shape = sketch.node("Shape", &[h], "shape", &[]);
            let count = sketch.node("Gather", &[&shape, "zero"], "count", &[("axis", &[0])]);
            let count = sketch.node("Cast", &[&count], "count_f", &[("to", &[1])]);
            sketch.node("Mul", &[h, &count], "t", &[])
        },
        |sketch, _, t, number| head(sketch, t, number),
    );
    let index = index(&files, 1);
    let group = &index.groups()[0];
    assert_eq!(names(&index, &group.cut), ["h"]);
    assert_eq!(group.cut.refused.len(), 1);
    assert!(group.cut.refused[0].why.contains("computed from the batch's size"), "{:?}", group.cut.refused);
    // The size itself is then computed where it is needed, of what crosses.
    let stages =
        split(&read(files[0].clone()), index.outline(Member(0)).unwrap(), &BTreeMap::new(), &[&group.cut]).unwrap();
    assert_eq!((stages[0].nodes, stages[1].nodes), (1, 5));
    assert_eq!(stages[1].feeds, [Feed::Port { level: 0, port: 0 }]);
}

#[test]
fn shapes_are_computed_again_behind_the_cut_instead_of_crossing() {
    // The head reads the batch's size, which the trunk has computed already.
    let files = pair(
        |sketch, h| {
            let shape = sketch.node("Shape", &[h], "shape", &[]);
            let zeros = sketch.node("Reshape", &[h, &shape], "same", &[]);
            sketch.node("Relu", &[&zeros], "t", &[])
        },
        |sketch, _, t, number| {
            let y = head(sketch, t, number);
            sketch.node("Reshape", &[&y, "shape"], "y2", &[])
        },
    );
    let index = index(&files, 1);
    let group = &index.groups()[0];
    assert_eq!(group.cut.refused, []);
    assert_eq!(group.cut.nodes.len(), 4);
    let stages =
        split(&read(files[1].clone()), index.outline(Member(1)).unwrap(), &BTreeMap::new(), &[&group.cut]).unwrap();
    assert_eq!(stages[1].nodes, 3, "Shape, MatMul, Reshape");
    assert_eq!(names(&index, &group.cut), ["h", "t"]);
}

#[test]
fn what_mixes_items_stays_with_the_members() {
    type Attributes = &'static [(&'static str, &'static [i64])];
    let cases: [(&str, Attributes, &str); 4] = [
        ("Softmax", &[("axis", &[0])], "computes across the batch"),
        ("ReduceMean", &[("axes", &[0])], "computes across the batch"),
        ("NonZero", &[], "is not known to keep items apart"),
        ("Flatten", &[("axis", &[2])], "joins the batch"),
    ];
    for (operator, attributes, why) in cases {
        let files = pair(
            |sketch, h| sketch.node(operator, &[h], "t", attributes),
            |sketch, h, t, number| {
                let y = head(sketch, h, number);
                sketch.node("Add", &[&y, t], "z", &[])
            },
        );
        let index = index(&files, 1);
        let groups = index.groups();
        assert_eq!(names(&index, &groups[0].cut), ["h"], "{operator}");
        assert!(
            groups[0].cut.refused.iter().any(|refusal| refusal.why.contains(why)),
            "{operator}: {:?}",
            groups[0].cut.refused
        );
    }
}

/// The ports as the first model names them.
fn names(index: &Index, cut: &rota_graph::Cut) -> Vec<String> {
    let outline = index.outline(Member(0)).unwrap();
    let name = |hash: &rota_graph::Hash| outline.values.iter().find(|value| value.hash == *hash).unwrap().name.clone();
    cut.ports.iter().map(name).collect()
}

/// Layers with the given seeds, one after the other.
fn chain(seeds: &[u64]) -> Vec<u8> {
    let mut sketch = Sketch::new("chain");
    let mut x = sketch.input("x", &[-1, 16], "n");
    for (layer, &seed) in seeds.iter().enumerate() {
        let w = sketch.floats(&format!("w{layer}"), &[16, 16], &noise(seed, 256));
        x = sketch.node("MatMul", &[&x, &w], &format!("h{layer}"), &[]);
    }
    sketch.output(&x, &[-1, 16], "n");
    sketch.file()
}

#[test]
fn some_share_more_than_all_do() {
    let files = [chain(&[1, 2, 3, 4, 10]), chain(&[1, 2, 3, 4, 11]), chain(&[1, 2, 12]), chain(&[20, 2])];
    let groups = index(&files, 1000).groups();
    assert_eq!(groups.len(), 1);
    assert_eq!(groups[0].members, [Member(0), Member(1), Member(2)]);
    assert_eq!(groups[0].cut.nodes.len(), 2);
    assert_eq!(groups[0].groups.len(), 1);
    assert_eq!(groups[0].groups[0].members, [Member(0), Member(1)]);
    assert_eq!(groups[0].groups[0].cut.nodes.len(), 2);
    let index = index(&files, 1000);
    let graph = read(files[1].clone());
    let levels = [&groups[0].cut, &groups[0].groups[0].cut];
    let stages = split(&graph, index.outline(Member(1)).unwrap(), &BTreeMap::new(), &levels).unwrap();
    let feeds: Vec<&[Feed]> = stages.iter().map(|stage| &stage.feeds[..]).collect();
    let port = |level| Feed::Port { level, port: 0 };
    assert_eq!(feeds, [&[Feed::Input(0)][..], &[port(0)], &[port(1)]]);
}

#[test]
fn below_the_minimum_a_share_stays_apart_unless_its_time_makes_up_for_it() {
    let files = [chain(&[1, 2]), chain(&[1, 3])];
    assert!(index(&files, 1025).groups().is_empty());
    assert_eq!(index(&files, 1024).groups().len(), 1);
    let mut index = index(&files, 1 << 20);
    assert!(index.groups().is_empty());
    let node = index.outline(Member(0)).unwrap().nodes[0].hash;
    index.set_time(node, Worth::default().time_ns);
    assert_eq!(index.groups().len(), 1);
}

#[test]
fn models_come_and_go() {
    let files = [chain(&[1, 2, 10]), chain(&[1, 2, 11]), chain(&[1, 12])];
    let mut index = index(&files, 1);
    assert_eq!(index.groups()[0].members.len(), 3);
    assert!(index.remove(Member(0)).is_some() && index.remove(Member(0)).is_none());
    let groups = index.groups();
    assert_eq!((groups[0].members.len(), groups[0].cut.nodes.len()), (2, 1));
    index.remove(Member(2));
    assert!(index.groups().is_empty());
    index.add(Member(1), Outline::of(&read(files[0].clone())));
    assert_eq!(index.members().count(), 1);
}

#[test]
fn equal_models_share_all_of_themselves() {
    let files = [chain(&[1, 2]), chain(&[1, 2])];
    let index = index(&files, 1);
    let groups = index.groups();
    assert_eq!(groups[0].cut.nodes.len(), 2);
    let stages =
        split(&read(files[0].clone()), index.outline(Member(0)).unwrap(), &BTreeMap::new(), &[&groups[0].cut]).unwrap();
    let own = read(stages[1].model.to_vec());
    assert_eq!(own.nodes.len(), 1);
    assert_eq!((own.nodes[0].operator.as_str(), own.value(own.outputs[0]).name.as_str()), ("Identity", "h1"));
}

#[test]
fn inputs_of_one_kind_in_another_order_are_told_apart_by_what_is_shared() {
    let model = |first: &str, second: &str, seed: u64| {
        let mut sketch = Sketch::new("two");
        sketch.input(first, &[-1, 16], "n");
        sketch.input(second, &[-1, 16], "n");
        let (wa, wb) = (sketch.floats("wa", &[16, 16], &noise(1, 256)), sketch.floats("wb", &[16, 16], &noise(2, 256)));
        let (a, b) = (sketch.node("MatMul", &["a", &wa], "pa", &[]), sketch.node("MatMul", &["b", &wb], "pb", &[]));
        let sum = sketch.node("Sub", &[&a, &b], "sum", &[]);
        let y = head(&mut sketch, &sum, seed);
        sketch.output(&y, &[-1, 16], "n");
        sketch.file()
    };
    let index = index(&[model("a", "b", 10), model("b", "a", 11)], 1);
    assert_eq!(index.groups()[0].cut.nodes.len(), 3);
    assert_eq!(index.outline(Member(1)).unwrap().roles(), [1, 0]);
}

#[test]
fn a_model_whose_batch_is_fixed_shares_nothing() {
    let model = |seed: u64| {
        let mut sketch = Sketch::new("fixed");
        let x = sketch.input("x", &[1, 16], "");
        let w = sketch.floats("w", &[16, 16], &noise(1, 256));
        let h = sketch.node("MatMul", &[&x, &w], "h", &[]);
        let y = head(&mut sketch, &h, seed);
        sketch.output(&y, &[1, 16], "");
        sketch.file()
    };
    let index = index(&[model(10), model(11)], 1);
    assert!(!index.outline(Member(0)).unwrap().batches && index.groups().is_empty());
}

/// Members, how many nodes they share beyond the group around them, and the groups inside.
#[derive(Debug, PartialEq, Eq)]
struct Expected {
    members: Vec<Member>,
    nodes: usize,
    groups: Vec<Expected>,
}

/// The trie of chains that share their first `depth` layers, by definition.
fn trie(chains: &[(Member, Vec<u64>)], depth: usize) -> Vec<Expected> {
    let mut classes: BTreeMap<u64, Vec<(Member, Vec<u64>)>> = BTreeMap::new();
    for chain in chains.iter().filter(|(_, seeds)| seeds.len() > depth) {
        classes.entry(chain.1[depth]).or_default().push(chain.clone());
    }
    let group = |class: Vec<(Member, Vec<u64>)>| {
        let first = class[0].1.clone();
        let alike = |&at: &usize| class.iter().all(|(_, seeds)| seeds.get(at) == Some(&first[at]));
        let nodes = (depth..first.len()).take_while(alike).count();
        let groups = trie(&class, depth + nodes);
        Expected { members: class.into_iter().map(|(member, _)| member).collect(), nodes, groups }
    };
    let mut groups: Vec<Expected> = classes.into_values().filter(|class| class.len() >= 2).map(group).collect();
    groups.sort_by(|a, b| a.members.cmp(&b.members));
    groups
}

fn found(groups: &[rota_graph::Group]) -> Vec<Expected> {
    let one = |group: &rota_graph::Group| Expected {
        members: group.members.clone(),
        nodes: group.cut.nodes.len(),
        groups: found(&group.groups),
    };
    groups.iter().map(one).collect()
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig {
        failure_persistence: None,
        ..proptest::prelude::ProptestConfig::with_cases(100)
    })]

    #[test]
    fn groups_of_chains_are_their_trie(chains in proptest::collection::vec(proptest::collection::vec(1u64..3, 1..6), 2..9)) {
        let files: Vec<Vec<u8>> = chains.iter().map(|seeds| chain(seeds)).collect();
        let numbered: Vec<(Member, Vec<u64>)> = (0..).map(Member).zip(chains).collect();
        proptest::prop_assert_eq!(found(&index(&files, 1).groups()), trie(&numbered, 0));
    }
}
