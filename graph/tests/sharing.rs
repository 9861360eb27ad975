//! What small families of models share, end to end: files in, groups and parts out.

use rota_graph::examples::{Sketch, heads, noise};
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
