//! Cutting a model where its groups say: a part for each level that it shares, and what is left.

use crate::graph::{Graph, NodeId, ValueId};
use crate::hash::Hash;
use crate::index::Cut;
use crate::infer;
use crate::outline::{Origin, Outline};
use crate::write::Part;
use bytes::Bytes;
use std::collections::BTreeMap;

/// One part of a model, as a model of its own.
///
/// Executing a member: level 0 takes the request's inputs; each further level, and at last the member's own suffix, takes what
/// its feeds name. The parts of a level are equal for all members, so that one member's part serves all.
#[derive(Clone, Debug)]
pub struct Stage {
    /// An ONNX file.
    pub model: Bytes,
    /// By input of `model`: where it comes from. In the same order for all members of a group, by content, so that input i of one
    /// member's shared part is input i of another's, however their files list them.
    pub feeds: Vec<Feed>,
    pub nodes: usize,
    /// Bytes of the constants inside.
    pub weight_bytes: u64,
}

/// Where a stage's input comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feed {
    /// Input of the member's whole model, as its file lists them.
    Input(usize),
    /// Output `port` of the part of level `level`: [`Cut::ports`] in that order.
    Port { level: usize, port: usize },
}

/// The graph and the outline are not of the same file, or the cut is not one of the model's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SplitError {
    #[error("the model has no value with hash {0}: the cut is not this model's")]
    NotThisModel(Hash),
    #[error("the outline is another model's")]
    OtherOutline,
}

/// The stages of one model: the parts of `levels`, outermost group first, and the suffix. `axes` as for the outline.
pub fn split(
    graph: &Graph,
    outline: &Outline,
    axes: &BTreeMap<String, Option<usize>>,
    levels: &[&Cut],
) -> Result<Vec<Stage>, SplitError> {
    if graph.nodes.len() != outline.nodes.len() || graph.values.len() != outline.values.len() {
        return Err(SplitError::OtherOutline);
    }
    let inferred = infer::infer(graph, axes);
    let mut made: BTreeMap<Hash, ValueId> = BTreeMap::new();
    for id in outline.nodes.iter().flat_map(|node| node.outputs.iter().flatten()) {
        made.entry(outline.value(*id).hash).or_insert(*id);
    }
    let mut stages = Vec::with_capacity(levels.len() + 1);
    for level in 0..=levels.len() {
        let outputs: Vec<ValueId> = match levels.get(level) {
            Some(cut) => {
                let port = |hash: &Hash| made.get(hash).copied().ok_or(SplitError::NotThisModel(*hash));
                cut.ports.iter().map(port).collect::<Result<_, _>>()?
            }
            None => graph.outputs.clone(),
        };
        let Reached { nodes, inputs, feeds } = reach(outline, &levels[..level], &outputs);
        let name =
            if level < levels.len() { format!("{}/shared{level}", graph.name) } else { format!("{}/own", graph.name) };
        let mut counted = vec![false; graph.values.len()];
        let constants = nodes.iter().flat_map(|&id| graph.node(id).reads()).filter_map(|id| {
            let first = !std::mem::replace(&mut counted[id.0 as usize], true);
            graph.constant(id).filter(|_| first).map(|tensor| tensor.data.len() as u64)
        });
        let weight_bytes = constants.sum();
        let count = nodes.len();
        let model = Part { graph, inferred: &inferred, name, nodes, inputs, outputs }.encode();
        stages.push(Stage { model, feeds, nodes: count, weight_bytes });
    }
    Ok(stages)
}

struct Reached {
    nodes: Vec<NodeId>,
    inputs: Vec<ValueId>,
    feeds: Vec<Feed>,
}

/// What it takes to compute `outputs` from what the levels `above` hand on and from the model's inputs. Values of the levels
/// above that they do not hand on are computed again.
fn reach(outline: &Outline, above: &[&Cut], outputs: &[ValueId]) -> Reached {
    let ports = above.iter().enumerate().flat_map(|(level, cut)| {
        cut.ports.iter().enumerate().map(move |(port, hash)| (*hash, Feed::Port { level, port }))
    });
    let ports: BTreeMap<Hash, Feed> = ports.collect();
    let mut inputs: BTreeMap<ValueId, Feed> = BTreeMap::new();
    let mut within = vec![false; outline.nodes.len()];
    let mut wanted = outputs.to_vec();
    while let Some(id) = wanted.pop() {
        let value = outline.value(id);
        match (ports.get(&value.hash), value.origin) {
            (_, Origin::Constant) => {}
            (Some(feed), _) => drop(inputs.insert(id, *feed)),
            (None, Origin::Input(input)) => drop(inputs.insert(id, Feed::Input(input as usize))),
            (None, Origin::Node(node)) => {
                if !std::mem::replace(&mut within[node.0 as usize], true) {
                    wanted.extend(&outline.node(node).reads);
                }
            }
        }
    }
    let mut inputs: Vec<(ValueId, Feed)> = inputs.into_iter().collect();
    inputs.sort_by_key(|(id, _)| (outline.value(*id).hash, *id));
    let (inputs, feeds) = inputs.into_iter().unzip();
    Reached { nodes: outline.node_ids().filter(|id| within[id.0 as usize]).collect(), inputs, feeds }
}
