//! Many models at once: which share a leading part, on several levels, and where it is cut off.

use crate::graph::ValueId;
use crate::hash::Hash;
use crate::outline::{Origin, Outline};
use std::collections::{BTreeMap, BTreeSet, HashSet};

/// A model as the caller numbers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Member(pub u32);

/// From when on a share is made. A part is worth its bytes over `weight_bytes` plus its time over `time_ns`; it is shared when
/// that is at least 1.
#[derive(Clone, Copy, Debug)]
pub struct Worth {
    /// Bytes of weights that are held once instead of once per member; 0: every node is worth it.
    pub weight_bytes: u64,
    /// Nanoseconds of the part's nodes, where they were given ([`Index::set_time`]).
    pub time_ns: u64,
}

impl Default for Worth {
    fn default() -> Worth {
        Worth { weight_bytes: 64 << 10, time_ns: 200_000 }
    }
}

/// The outlines of many models, and who holds which node.
///
/// Adding and removing one costs its own nodes; the weights of the others are not read again. [`Index::groups`] looks at all
/// nodes that two models hold.
#[derive(Clone, Debug, Default)]
pub struct Index {
    worth: Worth,
    models: BTreeMap<Member, Outline>,
    /// By node hash: who has such a node, and what it is worth, in millionths.
    nodes: BTreeMap<Hash, Shared>,
    times_ns: BTreeMap<Hash, u64>,
}

#[derive(Clone, Debug, Default)]
struct Shared {
    holders: BTreeSet<Member>,
    weight_bytes: u64,
}

/// Models that share a leading part, and smaller groups of them that share more.
#[derive(Clone, Debug)]
pub struct Group {
    /// At least two.
    pub members: Vec<Member>,
    pub cut: Cut,
    /// Of members that share more than this part; no member is in two.
    pub groups: Vec<Group>,
}

/// A part that is computed once for several models.
#[derive(Clone, Debug)]
pub struct Cut {
    /// Its nodes by hash, those of the levels above left out.
    pub nodes: BTreeSet<Hash>,
    /// What it hands on, by hash of the value, in the order of the first member's nodes.
    pub ports: Vec<Hash>,
    /// Bytes of the weights of its nodes.
    pub weight_bytes: u64,
    /// Why it ends where it does although all members go on alike.
    pub refused: Vec<Refusal>,
}

/// A node that all members have right behind the cut, and that may not be shared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What it makes, as the first member names it.
    pub value: String,
    pub why: String,
}

/// More refusals say nothing new.
const REFUSALS_MAX: usize = 8;
/// Sets of models that are tried as groups, the best first.
const CANDIDATES_MAX: usize = 2_000;
const MILLION: u128 = 1_000_000;

impl Index {
    pub fn new(worth: Worth) -> Index {
        Index { worth, ..Default::default() }
    }

    /// Takes a model in, in place of an earlier one of that number. Inputs that only their place tells apart get the roles under
    /// which most is shared with the models that are there.
    pub fn add(&mut self, member: Member, mut outline: Outline) {
        self.remove(member);
        let possible = outline.possible_roles();
        if possible.len() > 1 {
            let mut best: Option<(u128, Vec<u32>)> = None;
            for roles in possible {
                outline.set_roles(roles.clone());
                let shared = self.overlap(&outline);
                if best.as_ref().is_none_or(|(most, _)| shared > *most) {
                    best = Some((shared, roles));
                }
            }
            if let Some((_, roles)) = best {
                outline.set_roles(roles);
            }
        }
        for node in outline.nodes.iter().filter(|node| node.may_be_shared) {
            let shared = self.nodes.entry(node.hash).or_default();
            shared.holders.insert(member);
            shared.weight_bytes = shared.weight_bytes.max(node.weight_bytes);
        }
        self.models.insert(member, outline);
    }

    pub fn remove(&mut self, member: Member) -> Option<Outline> {
        let outline = self.models.remove(&member)?;
        for node in &outline.nodes {
            if let Some(shared) = self.nodes.get_mut(&node.hash) {
                shared.holders.remove(&member);
                if shared.holders.is_empty() {
                    self.nodes.remove(&node.hash);
                }
            }
        }
        Some(outline)
    }

    /// Says how long the nodes of that hash take, for a batch that the caller chose for all.
    pub fn set_time(&mut self, node: Hash, nanoseconds: u64) {
        self.times_ns.insert(node, nanoseconds);
    }

    pub fn outline(&self, member: Member) -> Option<&Outline> {
        self.models.get(&member)
    }

    pub fn members(&self) -> impl Iterator<Item = Member> + '_ {
        self.models.keys().copied()
    }

    /// The groups, of which no model is in two. A model that shares nothing worth it is in none.
    pub fn groups(&self) -> Vec<Group> {
        let batching = self.models.iter().filter(|(_, outline)| outline.batches).map(|(member, _)| *member).collect();
        self.partition(&batching, &BTreeSet::new())
    }

    fn overlap(&self, outline: &Outline) -> u128 {
        // One more, so that nodes without weights count too.
        outline
            .nodes
            .iter()
            .filter(|node| self.nodes.contains_key(&node.hash))
            .map(|node| 1 + u128::from(node.weight_bytes))
            .sum()
    }

    /// In millionths of what makes a share.
    fn worth_of(&self, node: &Hash) -> u128 {
        if self.worth.weight_bytes == 0 {
            return MILLION;
        }
        let bytes = self.nodes.get(node).map_or(0, |shared| shared.weight_bytes);
        let time = self.times_ns.get(node).copied().unwrap_or(0);
        let part = |of: u64, least: u64| u128::from(of) * MILLION / u128::from(least.max(1));
        part(bytes, self.worth.weight_bytes) + part(time, self.worth.time_ns)
    }

    /// Splits models that have `above` in common into groups that share more. Greedy: the set of models whose share, and the
    /// shares of sets inside it, save most.
    fn partition(&self, within: &BTreeSet<Member>, above: &BTreeSet<Hash>) -> Vec<Group> {
        let mut left = within.clone();
        let mut groups = Vec::new();
        let mut given_up = BTreeSet::new();
        while left.len() >= 2 {
            let sets = self.sets(&left, above);
            let Some(best) = best_set(&sets, &given_up).filter(|set| above.is_empty() || set.len() < within.len())
            else {
                break;
            };
            let shared =
                self.nodes.iter().filter(|(_, shared)| best.iter().all(|member| shared.holders.contains(member)));
            let cut = self.cut(&best, &shared.map(|(hash, _)| *hash).collect(), above);
            if cut.nodes.iter().map(|hash| self.worth_of(hash)).sum::<u128>() < MILLION || cut.ports.is_empty() {
                given_up.insert(best);
                continue;
            }
            let members: BTreeSet<Member> = best.iter().copied().collect();
            let deeper = above.union(&cut.nodes).copied().collect();
            left = left.difference(&members).copied().collect();
            let groups_inside = self.partition(&members, &deeper);
            groups.push(Group { members: best, cut, groups: groups_inside });
        }
        groups.sort_by(|a, b| a.members.cmp(&b.members));
        groups
    }

    /// By set of models: what the nodes are worth that exactly they hold.
    fn sets(&self, within: &BTreeSet<Member>, above: &BTreeSet<Hash>) -> BTreeMap<Vec<Member>, u128> {
        let mut sets: BTreeMap<Vec<Member>, u128> = BTreeMap::new();
        for (hash, shared) in
            self.nodes.iter().filter(|(hash, shared)| shared.holders.len() >= 2 && !above.contains(*hash))
        {
            let holders: Vec<Member> = shared.holders.intersection(within).copied().collect();
            if holders.len() >= 2 {
                *sets.entry(holders).or_default() += self.worth_of(hash);
            }
        }
        sets
    }

    /// Where to cut, when `shared` is what all `members` have and may share: behind all of it.
    ///
    /// A value without whole items that is needed behind the cut is computed again there: in what may be shared, that takes sizes
    /// and constants only.
    fn cut(&self, members: &[Member], shared: &BTreeSet<Hash>, above: &BTreeSet<Hash>) -> Cut {
        let outlines: Vec<&Outline> = members.iter().map(|member| &self.models[member]).collect();
        let mut ports = BTreeSet::new();
        outlines.iter().for_each(|outline| crossings(outline, shared, &mut ports));
        let outline = outlines[0];
        let made_above = |id: ValueId| match outline.value(id).origin {
            Origin::Node(node) => above.contains(&outline.node(node).hash),
            _ => true,
        };
        let mut ordered = Vec::new();
        let mut nodes = BTreeSet::new();
        let mut wanted = Vec::new();
        for id in outline.nodes.iter().flat_map(|node| node.outputs.iter().flatten()).copied() {
            let hash = outline.value(id).hash;
            if ports.remove(&hash) && !made_above(id) {
                ordered.push(hash);
                wanted.push(id);
            }
        }
        // Only what a port needs is computed in the part.
        while let Some(id) = wanted.pop() {
            if let Origin::Node(node) = outline.value(id).origin {
                let node = outline.node(node);
                if !above.contains(&node.hash) && nodes.insert(node.hash) {
                    wanted.extend(&node.reads);
                }
            }
        }
        let mut counted = BTreeSet::new();
        let weights = outline.nodes.iter().filter(|node| nodes.contains(&node.hash) && counted.insert(node.hash));
        let weight_bytes = weights.map(|node| node.weight_bytes).sum();
        Cut { nodes, ports: ordered, weight_bytes, refused: refusals(&outlines, shared) }
    }
}

/// What crosses from the `shared` nodes of a model to the rest of it, into `ports`.
fn crossings(outline: &Outline, shared: &BTreeSet<Hash>, ports: &mut BTreeSet<Hash>) {
    let rest = outline.nodes.iter().filter(|node| !shared.contains(&node.hash));
    let mut wanted: Vec<ValueId> = rest.flat_map(|node| &node.reads).chain(&outline.outputs).copied().collect();
    let mut seen = vec![false; outline.values.len()];
    while let Some(id) = wanted.pop() {
        let value = outline.value(id);
        let Origin::Node(node) = value.origin else { continue };
        if std::mem::replace(&mut seen[id.0 as usize], true) || !shared.contains(&outline.node(node).hash) {
            continue;
        }
        if value.crossing.is_ok() {
            ports.insert(value.hash);
        } else {
            wanted.extend(&outline.node(node).reads);
        }
    }
}

/// The nodes that all models have right behind `shared`, and why none may share them.
fn refusals(outlines: &[&Outline], shared: &BTreeSet<Hash>) -> Vec<Refusal> {
    let hashes: Vec<HashSet<Hash>> =
        outlines[1..].iter().map(|outline| outline.nodes.iter().map(|node| node.hash).collect()).collect();
    let outline = outlines[0];
    let behind = |id: &ValueId| match outline.value(*id).origin {
        Origin::Node(node) => shared.contains(&outline.node(node).hash),
        _ => true,
    };
    let mut refused: Vec<Refusal> = Vec::new();
    for node in &outline.nodes {
        let Some(why) = node.refused.as_ref().filter(|_| node.reads.iter().all(behind)) else { continue };
        let is_new = !refused.iter().any(|refusal| refusal.why == **why);
        if refused.len() < REFUSALS_MAX && is_new && hashes.iter().all(|hashes| hashes.contains(&node.hash)) {
            let value = node.outputs.iter().flatten().next().map(|id| outline.value(*id).name.clone());
            refused.push(Refusal { value: value.unwrap_or_default(), why: why.to_string() });
        }
    }
    refused
}

/// The set of models under which most is saved: what all of it share, and what parts of it do.
fn best_set(sets: &BTreeMap<Vec<Member>, u128>, given_up: &BTreeSet<Vec<Member>>) -> Option<Vec<Member>> {
    let mut candidates: Vec<(&Vec<Member>, u128)> = sets.iter().map(|(set, worth)| (set, *worth)).collect();
    candidates.sort_by_key(|(set, worth)| std::cmp::Reverse(worth.saturating_mul(set.len() as u128 - 1)));
    candidates.truncate(CANDIDATES_MAX);
    let score = |set: &Vec<Member>| {
        let (mut common, mut inside) = (0u128, 0u128);
        for (other, worth) in &candidates {
            if is_subset(set, other) {
                common += worth;
            } else if is_subset(other, set) {
                inside += worth * (other.len() as u128 - 1);
            }
        }
        (common >= MILLION).then(|| common * (set.len() as u128 - 1) + inside)
    };
    let scored =
        candidates.iter().filter(|(set, _)| !given_up.contains(*set)).filter_map(|(set, _)| Some((score(set)?, *set)));
    scored.max_by(|a, b| a.0.cmp(&b.0).then_with(|| b.1.cmp(a.1))).map(|(_, set)| set.clone())
}

/// Both sorted.
fn is_subset(inner: &[Member], outer: &[Member]) -> bool {
    let mut outer = outer.iter();
    inner.iter().all(|member| outer.by_ref().any(|other| other == member))
}
