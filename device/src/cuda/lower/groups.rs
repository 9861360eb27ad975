//! Which element-wise nodes become one launch, and which of those are done by the kernel whose result they take.
//!
//! From the last node to the first: a node joins the group of those that read it, if all of them are in one group and compute tensors of
//! the same dimensions; so no value is computed twice, and none that only a group's members read reaches memory. A group whose expression
//! is what a GEMM's or convolution's epilogue can do belongs to that node ([`super::epilogue`]).

use super::code;
use super::elementwise;
use super::epilogue::{self, Finish};
use super::evaluate::{floats, number};
use super::expression::{Expression, Term};
use super::patterns::{self, Pattern};
use super::{Flat, LowerError, Site};
use rota_graph::{DType, NodeId, Source, Tensor, ValueId};
use rota_kernels::elementwise::{Domain, Step};
use rota_kernels::params::{INPUTS, STEPS};
use std::collections::{BTreeMap, BTreeSet};

/// What a group reads.
#[derive(Clone, Debug)]
pub enum Input {
    Value(ValueId),
    /// Made here, aligned with the group's dimensions.
    Constant(Tensor),
}

/// Nodes that are one launch.
pub struct Group {
    /// The node whose output is the group's.
    pub root: NodeId,
    pub members: Vec<NodeId>,
    pub expression: Expression,
    pub result: Term,
    /// By number in the expression's loads.
    pub inputs: Vec<Input>,
    pub domain: Domain,
    /// The expression as the element-wise kernel takes it.
    pub steps: Vec<Step>,
}

/// How a node is lowered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// By its operator's rule.
    Alone,
    /// As part of the group that has it.
    Member,
    /// The group is launched in its place.
    Root(usize),
    /// The pattern is launched in its place.
    Pattern(usize),
    /// By its rule, in place of the group's root, and does the group's work as it stores its results.
    Hosts(usize),
}

pub struct Groups {
    /// By [`NodeId`].
    pub roles: Vec<Role>,
    pub groups: Vec<Group>,
    pub patterns: Vec<Pattern>,
    /// By group: the node that does its work, and how.
    pub hosts: Vec<Option<(NodeId, Finish)>>,
}

/// Finds them. `fuse` off: every node for itself.
pub fn find(flat: &Flat, fuse: bool) -> Result<Groups, LowerError> {
    let readers = readers(flat);
    let patterns = if fuse { patterns::find(flat, &readers) } else { Vec::new() };
    let taken = patterns.iter().flat_map(|pattern| pattern.members.iter().copied()).collect();
    let joined = join(flat, &readers, &taken, fuse)?;
    let roles = vec![Role::Alone; flat.graph.nodes.len()];
    let mut found = Groups { roles, groups: Vec::new(), patterns, hosts: Vec::new() };
    for (number, pattern) in found.patterns.iter().enumerate() {
        pattern.members.iter().for_each(|member| found.roles[member.0 as usize] = Role::Member);
        if let Some(last) = pattern.members.iter().max() {
            found.roles[last.0 as usize] = Role::Pattern(number);
        }
    }
    let mut members: BTreeMap<NodeId, Vec<NodeId>> = BTreeMap::new();
    for id in flat.graph.node_ids() {
        if let Some(root) = joined[id.0 as usize] {
            members.entry(root).or_default().push(id);
        }
    }
    for (root, members) in members {
        let group = build(flat, root, members)?;
        let host = if fuse { host(flat, &readers, &group, &found.roles) } else { None };
        if let Some((host, _)) = &host {
            found.roles[host.0 as usize] = Role::Hosts(found.groups.len());
        } else if group.steps.is_empty() {
            // More than one launch can do: each node for itself.
            for member in group.members {
                let alone = build(flat, member, vec![member])?;
                if alone.steps.is_empty() {
                    return Err(Site::new(flat, member).refuse("takes more steps than the element-wise kernel has"));
                }
                found.add(alone, None);
            }
            continue;
        }
        found.add(group, host);
    }
    Ok(found)
}

impl Groups {
    fn add(&mut self, group: Group, host: Option<(NodeId, Finish)>) {
        for member in &group.members {
            self.roles[member.0 as usize] =
                if *member == group.root { Role::Root(self.groups.len()) } else { Role::Member };
        }
        self.groups.push(group);
        self.hosts.push(host);
    }
}

/// By value: the nodes that read it; [`OUTSIDE`] for the model's outputs.
fn readers(flat: &Flat) -> Readers {
    let mut readers = vec![BTreeSet::new(); flat.graph.values.len()];
    for id in flat.graph.node_ids() {
        for value in flat.graph.node(id).reads() {
            readers[value.0 as usize].insert(id);
        }
    }
    for value in &flat.graph.outputs {
        readers[value.0 as usize].insert(OUTSIDE);
    }
    readers
}

pub(super) const OUTSIDE: NodeId = NodeId(u32::MAX);

/// By value: who reads it.
pub(super) type Readers = Vec<BTreeSet<NodeId>>;

/// By node: the root of its group, for element-wise ones.
fn join(
    flat: &Flat,
    readers: &Readers,
    taken: &BTreeSet<NodeId>,
    fuse: bool,
) -> Result<Vec<Option<NodeId>>, LowerError> {
    let mut roots: Vec<Option<NodeId>> = vec![None; flat.graph.nodes.len()];
    let mut operations: BTreeMap<NodeId, usize> = BTreeMap::new();
    let mut domains: BTreeMap<NodeId, Option<Domain>> = BTreeMap::new();
    let mut reads: BTreeMap<NodeId, BTreeSet<ValueId>> = BTreeMap::new();
    for id in flat.graph.node_ids().rev() {
        let site = Site::new(flat, id);
        if taken.contains(&id) || !elementwise::is_elementwise(&site) {
            continue;
        }
        let output = site.output(0)?;
        let (own, domain) = (count(&site)?, domain(&site));
        let mut around = readers[output.0 as usize].iter().map(|&reader| match reader {
            OUTSIDE => None,
            reader => roots[reader.0 as usize],
        });
        let first = around.next().flatten();
        let one = first.filter(|root| around.all(|other| other == Some(*root)));
        let mine: BTreeSet<ValueId> =
            site.node.inputs.iter().flatten().copied().filter(|&id| is_large(flat, id)).collect();
        let joins = one.filter(|root| {
            let same = Site::new(flat, *root).output_dims(0).ok() == site.output_dims(0).ok();
            let all = reads[root].iter().chain(&mine).collect::<BTreeSet<_>>().len();
            let alike = domains[root].is_none() || domain.is_none() || domains[root] == domain;
            fuse && same && alike && operations[root] + own <= STEPS && all <= INPUTS
        });
        let root = joins.unwrap_or(id);
        roots[id.0 as usize] = Some(root);
        *operations.entry(root).or_default() += own;
        let of_group = domains.entry(root).or_default();
        *of_group = of_group.or(domain);
        let all = reads.entry(root).or_default();
        all.remove(&output);
        all.extend(mine);
    }
    Ok(roots)
}

/// In what a node has to be computed; `None`: it has truth values only, which are the same in both.
fn domain(site: &Site) -> Option<Domain> {
    let dtype = |id: &ValueId| site.flat.inferred.value(*id).dtype;
    let dtypes: Vec<DType> = site.node.inputs.iter().chain(&site.node.outputs).flatten().filter_map(dtype).collect();
    if dtypes.iter().any(|&dtype| !elementwise::is_integer(dtype)) {
        return Some(Domain::F32);
    }
    dtypes.iter().any(|&dtype| dtype != DType::BOOL).then_some(Domain::I64)
}

fn count(site: &Site) -> Result<usize, LowerError> {
    let mut expression = Expression::default();
    let inputs: Vec<Option<Term>> =
        site.node.inputs.iter().enumerate().map(|(at, id)| id.map(|_| expression.load(at))).collect();
    elementwise::expression(site, &mut expression, &inputs)?;
    Ok(expression.operations())
}

/// Whether a launch has to read it: it is no single number that is known now.
fn is_large(flat: &Flat, id: ValueId) -> bool {
    flat.graph.constant(id).is_none_or(|tensor| tensor.elements() != 1)
}

fn build(flat: &Flat, root: NodeId, members: Vec<NodeId>) -> Result<Group, LowerError> {
    let domain = members.iter().find_map(|&id| domain(&Site::new(flat, id))).unwrap_or(Domain::F32);
    let (expression, result, inputs, steps) = (Expression::default(), Term(0), Vec::new(), Vec::new());
    let mut group = Group { root, members, expression, result, inputs, domain, steps };
    let mut terms: BTreeMap<ValueId, Term> = BTreeMap::new();
    for id in group.members.clone() {
        let site = Site::new(flat, id);
        let mut inputs = Vec::with_capacity(site.node.inputs.len());
        for (at, &value) in site.node.inputs.iter().enumerate() {
            let Some(value) = value else {
                inputs.push(None);
                continue;
            };
            let term = match terms.get(&value) {
                Some(&term) => term,
                None if at > 0 && site.node.operator == "BatchNormalization" => continue,
                None => {
                    let term = group.read(flat, value);
                    *terms.entry(value).or_insert(term)
                }
            };
            inputs.push(Some(term));
        }
        let made = match site.node.operator.as_str() {
            "BatchNormalization" => group.batch_norm(&site, inputs[0])?,
            _ => elementwise::expression(&site, &mut group.expression, &inputs)?,
        };
        terms.insert(site.output(0)?, made);
        group.result = made;
    }
    if group.inputs.len() <= INPUTS {
        group.steps = code::compile(&group.expression, group.result, domain).unwrap_or_default();
    }
    Ok(group)
}

impl Group {
    fn read(&mut self, flat: &Flat, value: ValueId) -> Term {
        match flat.graph.constant(value).and_then(number) {
            Some(number) => self.expression.term(super::expression::Node::Constant(number)),
            _ => {
                self.inputs.push(Input::Value(value));
                self.expression.load(self.inputs.len() - 1)
            }
        }
    }

    /// x * factor + offset by channel, with the factors computed now.
    fn batch_norm(&mut self, site: &Site, x: Option<Term>) -> Result<Term, LowerError> {
        let x = x.ok_or_else(|| site.refuse("lacks its input"))?;
        let known = |at: usize| site.constant(at).and_then(floats);
        let (Some(scale), Some(shift), Some(mean), Some(variance)) = (known(1), known(2), known(3), known(4)) else {
            return Err(site.refuse("has parameters that are only known when it runs"));
        };
        let channels = scale.len();
        if [&shift, &mean, &variance].iter().any(|all| all.len() != channels) {
            return Err(site.refuse("has parameters of different lengths"));
        }
        let epsilon = site.node.float("epsilon").unwrap_or(1e-5);
        let factor: Vec<f32> =
            scale.iter().zip(&variance).map(|(scale, variance)| scale / (variance + epsilon).sqrt()).collect();
        let offset: Vec<f32> = (0..channels).map(|c| shift[c] - mean[c] * factor[c]).collect();
        let behind = site.dims(0)?.len().saturating_sub(2);
        let dims: Vec<u64> = std::iter::once(channels as u64).chain(std::iter::repeat_n(1, behind)).collect();
        let mut add = |values: &[f32]| {
            self.inputs.push(Input::Constant(Tensor::f32s(dims.clone(), values)));
            self.inputs.len() - 1
        };
        let (factor, offset) = (add(&factor), add(&offset));
        let (factor, offset) = (self.expression.load(factor), self.expression.load(offset));
        let scaled = self.expression.binary(super::expression::Binary::Mul, x, factor);
        Ok(self.expression.binary(super::expression::Binary::Add, scaled, offset))
    }
}

/// The node that can do the group's work as it stores its results: the last that qualifies.
fn host(flat: &Flat, readers: &Readers, group: &Group, roles: &[Role]) -> Option<(NodeId, Finish)> {
    let dims = Site::new(flat, group.root).output_dims(0).ok()?;
    let mut hosts: Vec<(NodeId, usize)> = Vec::new();
    for (number, input) in group.inputs.iter().enumerate() {
        let Input::Value(value) = *input else { continue };
        let Source::Node { node, .. } = flat.graph.value(value).source else { continue };
        let site = Site::new(flat, node);
        let only_ours = readers[value.0 as usize].iter().all(|reader| group.members.contains(reader));
        let free = roles[node.0 as usize] == Role::Alone;
        if only_ours
            && free
            && site.sizes(value).ok().as_ref() == Some(&dims)
            && epilogue::HOSTS.contains(&site.node.operator.as_str())
        {
            hosts.push((node, number));
        }
    }
    hosts.sort_unstable();
    hosts.into_iter().rev().find_map(|(node, number)| {
        let finish = epilogue::matched(&Site::new(flat, node), group, number, &dims)?;
        Some((node, finish))
    })
}

impl Group {
    /// For people: its operators in order.
    pub fn text(&self, flat: &Flat) -> String {
        let operators: Vec<&str> = self.members.iter().map(|id| flat.graph.node(*id).operator.as_str()).collect();
        operators.join(" + ")
    }
}
