//! A model's file may hold any bytes: reading it, analysing it and cutting it gives an error or a graph that can be written
//! and read again, within bounded memory and time.

#![no_main]

use libfuzzer_sys::fuzz_target;
use rota_graph::{Bytes, Graph, Index, Limits, Member, Outline, Worth, draw::Picture, split};
use std::collections::BTreeMap;

fuzz_target!(|bytes: &[u8]| {
    let limits = Limits { memory_bytes: 16 << 20, nodes: 5_000, ..Limits::default() };
    let Ok(graph) = Graph::read(Bytes::copy_from_slice(bytes), &limits) else { return };
    let outline = Outline::of(&graph);
    let mut index = Index::new(Worth { weight_bytes: 0, ..Worth::default() });
    for member in 0..2 {
        index.add(Member(member), outline.clone());
    }
    let groups = index.groups();
    let member = index.outline(Member(0)).expect("it was added");
    let cuts: Vec<_> = groups.iter().map(|group| &group.cut).collect();
    let stages = split(&graph, member, &BTreeMap::new(), &cuts).expect("the cut is this graph's");
    for stage in stages {
        let again = Graph::read(stage.model, &Limits::default()).expect("what was written can be read");
        assert_eq!(again.inputs.len(), stage.feeds.len());
    }
    Picture::of(&index, &groups, &|member| member.0.to_string()).svg();
});
