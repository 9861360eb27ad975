//! Files that were damaged: an error or a graph, never a panic, and what can be read can be cut and written.

use proptest::prelude::*;
use rota_graph::{Bytes, Graph, Index, Limits, Member, Outline, Worth, examples, split};
use std::collections::BTreeMap;

fn analyse(file: Vec<u8>) {
    let limits = Limits { memory_bytes: 32 << 20, ..Limits::default() };
    let Ok(graph) = Graph::read(Bytes::from(file), &limits) else { return };
    let outline = Outline::of(&graph);
    let mut index = Index::new(Worth { weight_bytes: 0, ..Worth::default() });
    index.add(Member(0), outline.clone());
    index.add(Member(1), outline);
    let groups = index.groups();
    let cuts: Vec<_> = groups.iter().map(|group| &group.cut).collect();
    for stage in split(&graph, index.outline(Member(0)).unwrap(), &BTreeMap::new(), &cuts).unwrap() {
        Graph::read(stage.model, &Limits::default()).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    #[test]
    fn a_damaged_file_is_an_error_or_a_graph(
        seed in 0u64..50,
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in prop::option::weighted(0.2, any::<prop::sample::Index>()),
    ) {
        let mut file = examples::family(seed, 1).files.remove(0);
        for (at, byte) in damage {
            let at = at.index(file.len());
            file[at] = byte;
        }
        if let Some(cut) = cut {
            file.truncate(cut.index(file.len()));
        }
        analyse(file);
    }
}

/// Damage where it hurts: in the structure, not in the weights.
#[test]
fn every_single_byte_of_a_small_model_may_be_wrong() {
    let file = examples::heads(1).remove(0);
    for at in (0..file.len()).filter(|at| !(200..1000).contains(at)) {
        for byte in [0, 1, 0x7f, 0xff] {
            let mut damaged = file.clone();
            damaged[at] = byte;
            analyse(damaged);
        }
    }
}

/// Found by the fuzzer: what computes on one input was given a second, of more dimensions.
#[test]
fn an_input_too_many_is_no_panic() {
    let mut sketch = examples::Sketch::new("too many");
    sketch.input("x", &[-1, 4], "n");
    sketch.input("z", &[-1, 4, 4, 4], "n");
    for (output, operator) in [("a", "Relu"), ("b", "Not"), ("c", "Identity"), ("d", "Transpose"), ("e", "Flatten")] {
        sketch.node(operator, &["x", "z"], output, &[]);
        sketch.output(output, &[-1, 4], "n");
    }
    analyse(sketch.file());
}
