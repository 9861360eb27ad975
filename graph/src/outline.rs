//! What is kept of a model when its weights are dropped: enough to find what it shares and where it may be cut.

use crate::dim::Dim;
use crate::graph::{Graph, Node, NodeId, Source, ValueId};
use crate::hash::{self, Hash};
use crate::infer::{self, Inferred, Why};
use crate::items::{self, Items};
use std::collections::{BTreeMap, HashMap};

/// A model's structure under hashes of content. Some hundred bytes per node, whatever its weights take.
///
/// Ids are those of the [`Graph`] that it was made from; reading the same file again gives the same ids.
///
/// An input is known by its type and dimensions, and by which of its like it is ([`Outline::roles`]), never by its name or
/// position. Two models are compared by hashes alone, so a node's hash stands for all that is computed up to it.
#[derive(Clone, Debug)]
pub struct Outline {
    pub nodes: Vec<OutlineNode>,
    pub values: Vec<OutlineValue>,
    pub inputs: Vec<ValueId>,
    pub outputs: Vec<ValueId>,
    /// Bytes of all constants.
    pub weight_bytes: u64,
    /// Whether an input has a batch axis. Without one there is no batch to share.
    pub batches: bool,
    /// By input: which it is of the inputs with the same type and dimensions.
    roles: Vec<u32>,
    /// By input: hash of its type and dimensions.
    kinds: Vec<Hash>,
}

#[derive(Clone, Debug)]
pub struct OutlineNode {
    /// Of all that is computed up to and with this node.
    pub hash: Hash,
    /// For people: `Conv "features.0"`.
    pub label: String,
    /// Bytes of constants that it is the first to read, and of those in its bodies.
    pub weight_bytes: u64,
    /// Why it may not be computed for several models at once; `None` if what it makes has whole items, or is computed from sizes
    /// and constants only, so that a part that needs it may compute it again.
    pub refused: Option<Why>,
    /// Neither it nor anything that it follows from is refused.
    pub may_be_shared: bool,
    pub reads: Vec<ValueId>,
    pub outputs: Vec<Option<ValueId>>,
    /// Where a read is left out: positions among `reads` are not enough to tell inputs apart.
    inputs: Vec<Option<ValueId>>,
    captures: Vec<ValueId>,
    operation: Hash,
}

#[derive(Clone, Debug)]
pub struct OutlineValue {
    pub hash: Hash,
    pub name: String,
    /// For people: `f32 [batch, 1280]`.
    pub text: String,
    /// Bytes per item, where its other dimensions are numbers.
    pub item_bytes: Option<u64>,
    /// The batch's axis, if a cut may let this value cross; else why not.
    pub crossing: Result<usize, Why>,
    pub origin: Origin,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    Input(u32),
    Constant,
    Node(NodeId),
}

/// More ways to tell like inputs apart are not tried.
const ROLES_MAX: usize = 24;

impl Outline {
    /// The outline, with batch axes by rule ([`infer::infer`]).
    pub fn of(graph: &Graph) -> Outline {
        Outline::with_axes(graph, &BTreeMap::new())
    }

    /// The outline, with the given batch axes of inputs by name.
    pub fn with_axes(graph: &Graph, axes: &BTreeMap<String, Option<usize>>) -> Outline {
        let inferred = infer::infer(graph, axes);
        let items = items::items(graph, &inferred);
        let kinds: Vec<Hash> = (0..graph.inputs.len()).map(|input| kind(graph, &inferred, input)).collect();
        let mut outline = Outline {
            nodes: Vec::with_capacity(graph.nodes.len()),
            values: graph.value_ids().map(|id| outline_value(graph, id, &inferred, &items)).collect(),
            inputs: graph.inputs.clone(),
            outputs: graph.outputs.clone(),
            weight_bytes: graph.weight_bytes(),
            batches: inferred.batch.is_some(),
            roles: listed(&kinds),
            kinds,
        };
        let mut counted = vec![false; graph.values.len()];
        for id in graph.node_ids() {
            let node = graph.node(id);
            let mut weight_bytes: u64 = node.bodies().map(|body| body.graph.weight_bytes()).sum();
            for value in node.reads() {
                if let Some(constant) = graph.constant(value).filter(|_| !counted[value.0 as usize]) {
                    weight_bytes += constant.data.len() as u64;
                    counted[value.0 as usize] = true;
                }
            }
            let refused = outline.refusal(graph, id, &items);
            outline.nodes.push(OutlineNode {
                hash: Hash([0; 32]),
                label: node.to_string(),
                weight_bytes,
                may_be_shared: refused.is_none() && outline.follows_from_shareable(graph.node(id)),
                refused,
                reads: node.reads().collect(),
                outputs: node.outputs.clone(),
                inputs: node.inputs.clone(),
                captures: node.bodies().flat_map(|body| body.captures.iter().copied()).collect(),
                operation: hash::operation(node, &|domain| graph.opset(domain)),
            });
        }
        let roles = outline.roles.clone();
        outline.set_roles(roles);
        outline
    }

    fn refusal(&self, graph: &Graph, id: NodeId, items: &[Items]) -> Option<Why> {
        let outputs = || graph.node(id).outputs.iter().flatten();
        let only_sizes = outputs().all(|id| matches!(items[id.0 as usize], Items::Same | Items::Sizes));
        let mut refused = outputs().filter_map(|id| self.value(*id).crossing.as_ref().err());
        refused.next().filter(|_| !only_sizes).cloned()
    }

    fn follows_from_shareable(&self, node: &Node) -> bool {
        node.reads().all(|id| match self.value(id).origin {
            Origin::Node(from) => self.node(from).may_be_shared,
            _ => true,
        })
    }

    pub fn value(&self, id: ValueId) -> &OutlineValue {
        &self.values[id.0 as usize]
    }

    pub fn node(&self, id: NodeId) -> &OutlineNode {
        &self.nodes[id.0 as usize]
    }

    pub fn node_ids(&self) -> impl Iterator<Item = NodeId> + use<> {
        (0..self.nodes.len() as u32).map(NodeId)
    }

    /// By input: which it is of the inputs with the same type and dimensions. Where two models list such inputs in different
    /// orders, one of the two has to be told ([`Outline::set_roles`]).
    pub fn roles(&self) -> &[u32] {
        &self.roles
    }

    /// All ways to tell inputs of the same kind apart, as listed first; the first only, where there are too many.
    pub fn possible_roles(&self) -> Vec<Vec<u32>> {
        let listed = listed(&self.kinds);
        let mut all = vec![listed.clone()];
        let mut alike: BTreeMap<Hash, Vec<usize>> = BTreeMap::new();
        self.kinds.iter().enumerate().for_each(|(at, kind)| alike.entry(*kind).or_default().push(at));
        for places in alike.values() {
            let orders: usize = (1..=places.len()).try_fold(1usize, usize::checked_mul).unwrap_or(usize::MAX);
            if orders == 1 {
                continue;
            }
            if orders.saturating_mul(all.len()) > ROLES_MAX {
                return vec![listed];
            }
            let orders = permutations(places.len() as u32);
            let with = |roles: &Vec<u32>, order: &Vec<u32>| {
                let mut roles = roles.clone();
                places.iter().zip(order).for_each(|(&place, &role)| roles[place] = role);
                roles
            };
            all = all.iter().flat_map(|roles| orders.iter().map(move |order| with(roles, order))).collect();
        }
        all
    }

    /// Takes other roles, and hashes all nodes again: no weights are needed for that.
    pub fn set_roles(&mut self, roles: Vec<u32>) {
        for (at, &id) in self.inputs.iter().enumerate() {
            self.values[id.0 as usize].hash = hash::input(self.kinds[at], roles[at]);
        }
        self.roles = roles;
        for at in 0..self.nodes.len() {
            let node = &self.nodes[at];
            let hash =
                hash::applied(node.operation, &node.inputs, &node.captures, |id| self.values[id.0 as usize].hash);
            self.nodes[at].hash = hash;
            for output in 0..self.nodes[at].outputs.len() {
                if let Some(id) = self.nodes[at].outputs[output] {
                    self.values[id.0 as usize].hash = hash::output(hash, output as u32);
                }
            }
        }
    }
}

fn outline_value(graph: &Graph, id: ValueId, inferred: &Inferred, items: &[Items]) -> OutlineValue {
    let value = graph.value(id);
    let known = inferred.value(id);
    let crossing = match &items[id.0 as usize] {
        Items::Along(axis) if known.dtype.is_some() => Ok(*axis),
        Items::Along(_) => Err("its element type is unknown".into()),
        Items::Same => Err("it has no batch axis".into()),
        Items::Sizes => Err("it was computed from the batch's size, which would be the whole group's".into()),
        Items::Mixed(why) => Err(why.clone()),
    };
    let item_bytes = || {
        let others = known.dims.as_ref().ok()?.iter().enumerate().filter(|(axis, _)| Ok(*axis) != crossing);
        let elements = others.map(|(_, dim)| dim).map(Dim::size);
        let mut elements = elements.map(|size| size.and_then(|size| u64::try_from(size).ok()));
        let elements = elements.try_fold(1u64, |product, size| product.checked_mul(size?))?;
        Some(elements.checked_mul(known.dtype?.bits()?)?.div_ceil(8))
    };
    OutlineValue {
        hash: match &value.source {
            Source::Constant(tensor) => hash::tensor(tensor),
            _ => Hash([0; 32]),
        },
        name: value.name.clone(),
        text: inferred.text(id),
        item_bytes: item_bytes(),
        crossing,
        origin: match value.source {
            Source::Input(input) => Origin::Input(input),
            Source::Node { node, .. } => Origin::Node(node),
            Source::Constant(_) | Source::Captured(_) => Origin::Constant,
        },
    }
}

/// An input's type, and its dimensions as far as they are numbers: what a symbol is called does not matter.
fn kind(graph: &Graph, inferred: &Inferred, input: usize) -> Hash {
    let known = inferred.value(graph.inputs[input]);
    let mut hasher = hash::Hasher::new("input kind");
    hasher.number(known.dtype.map_or(0, |dtype| dtype.0) as u64);
    hasher.number(inferred.batch_axes[input].map_or(u64::MAX, |axis| axis as u64));
    match &known.dims {
        Err(_) => hasher.number(u64::MAX),
        Ok(dims) => {
            hasher.number(dims.len() as u64);
            dims.iter().for_each(|dim| hasher.number(dim.size().map_or(u64::MAX, |size| size as u64)));
        }
    }
    hasher.finish()
}

/// By input: how many of its kind are listed before it.
fn listed(kinds: &[Hash]) -> Vec<u32> {
    let mut counts: HashMap<Hash, u32> = HashMap::new();
    let place = |kind: &Hash| {
        let count = counts.entry(*kind).or_default();
        *count += 1;
        *count - 1
    };
    kinds.iter().map(place).collect()
}

/// All orders of `0..count`, the sorted one first.
fn permutations(count: u32) -> Vec<Vec<u32>> {
    let mut all = vec![Vec::new()];
    for _ in 0..count {
        let longer = |order: &Vec<u32>| -> Vec<Vec<u32>> {
            let rest = (0..count).filter(|next| !order.contains(next));
            rest.map(|next| [&order[..], &[next]].concat()).collect()
        };
        all = all.iter().flat_map(longer).collect();
    }
    all
}
