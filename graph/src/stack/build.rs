//! Writes a stack: walks the members at once, from their outputs to what all of them read.

use super::{Stack, StackError, StackOutput, form};
use crate::graph::{Attribute, Graph, Node, NodeId, Source, Value, ValueId};
use crate::infer::{self, Inferred};
use crate::items::{self, Items};
use crate::tensor::{DType, Tensor};
use crate::write::Part;
use std::collections::{BTreeMap, BTreeSet};

/// The operator set that a stack is written in, whatever its members are.
const OPSET: i64 = 17;
const IR_VERSION: i64 = 8;

pub(super) fn stack(suffixes: &[&Graph]) -> Result<Stack, StackError> {
    let mut building = Building::new(suffixes)?;
    let mut outputs = Vec::new();
    for at in 0..suffixes[0].outputs.len() {
        let ids: Vec<ValueId> = suffixes.iter().map(|suffix| suffix.outputs[at]).collect();
        let Made::Own(own) = building.value(&ids)? else { return Err(refusal("an output is the same for all")) };
        outputs.push(StackOutput { stride: own.stride(), widths: own.widths.clone() });
        building.output(own.id);
    }
    let graph = building.graph;
    let part = Part {
        graph: &graph,
        inferred: &infer::infer(&graph, &BTreeMap::new()),
        name: "stack".to_owned(),
        nodes: graph.node_ids().collect(),
        inputs: graph.inputs.clone(),
        outputs: graph.outputs.clone(),
    };
    Ok(Stack { model: part.encode(), outputs, nodes: graph.nodes.len(), weight_bytes: graph.weight_bytes() })
}

pub(super) fn refusal(text: impl Into<String>) -> StackError {
    StackError(text.into())
}

struct Member<'a> {
    graph: &'a Graph,
    inferred: Inferred,
    items: Vec<Items>,
}

/// A stack in the making.
pub(super) struct Building<'a> {
    members: Vec<Member<'a>>,
    /// What the members' values, one of each, have become.
    made: BTreeMap<Vec<ValueId>, Made>,
    graph: Graph,
}

#[derive(Clone, Debug)]
pub(super) enum Made {
    Common(Common),
    Own(Own),
}

/// What all members read: an input, or what was computed from inputs only.
#[derive(Clone, Copy, Debug)]
pub(super) struct Common {
    pub id: ValueId,
    pub rank: usize,
    /// Its last axis, where that is a number.
    pub width: Option<u64>,
}

/// A value that differs by member.
#[derive(Clone, Debug)]
pub(super) struct Own {
    pub id: ValueId,
    pub form: Form,
    /// Number of dimensions that it has in a member.
    pub rank: usize,
    /// By member: its last axis there.
    pub widths: Vec<u64>,
    /// Whether what it is padded with is a number, so that zeros make it 0.
    pub finite: bool,
}

/// How the members lie in the last axis: [.., members · width] or [.., members, width]. Their bytes are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Flat,
    Apart,
}

impl Own {
    pub fn stride(&self) -> u64 {
        self.widths.iter().copied().max().unwrap_or(0)
    }

    pub fn is_ragged(&self) -> bool {
        self.widths.iter().any(|&width| width != self.widths[0])
    }
}

/// An input of a node: values, or constants, one of each member.
pub(super) enum Operand {
    Made(Made),
    Constants(Vec<Tensor>),
}

impl<'a> Building<'a> {
    fn new(suffixes: &[&'a Graph]) -> Result<Building<'a>, StackError> {
        let forms: BTreeSet<_> = suffixes.iter().map(|suffix| form(suffix)).collect();
        if forms.len() != 1 || forms.contains(&None) {
            return Err(refusal("they are not the same operators in the same wiring"));
        }
        let first = suffixes[0];
        let mut graph = Graph { ir_version: IR_VERSION, opsets: [(String::new(), OPSET)].into(), ..Graph::default() };
        for (&id, input) in first.inputs.iter().zip(0..) {
            let declared = first.value(id).declared.clone();
            graph.inputs.push(ValueId(input));
            graph.values.push(Value { name: format!("x{input}"), declared, source: Source::Input(input) });
        }
        let member = |graph: &&'a Graph| {
            let inferred = infer::infer(graph, &BTreeMap::new());
            let items = items::items(graph, &inferred);
            Member { graph, inferred, items }
        };
        Ok(Building { members: suffixes.iter().map(member).collect(), made: BTreeMap::new(), graph })
    }

    /// What `ids`, one of each member, are in the stack. As deep as the members are, which is bounded.
    fn value(&mut self, ids: &[ValueId]) -> Result<Made, StackError> {
        if let Some(made) = self.made.get(ids) {
            return Ok(made.clone());
        }
        let first = self.members[0].graph.value(ids[0]);
        for (member, id) in self.members.iter().zip(ids) {
            if member.items[id.0 as usize] != Items::Along(0) {
                return Err(refusal(format!("the batch is not the first axis of \"{}\"", first.name)));
            }
            if member.inferred.value(*id).dtype != Some(DType::F32) {
                return Err(refusal(format!("\"{}\" is not f32", first.name)));
            }
        }
        let made = match first.source {
            Source::Input(input) => {
                let dims = self.members[0].inferred.value(ids[0]).dims.as_ref();
                let dims = dims.map_err(|why| refusal(why.to_string()))?;
                let width = dims.last().and_then(|dim| u64::try_from(dim.size()?).ok());
                Made::Common(Common { id: self.graph.inputs[input as usize], rank: dims.len(), width })
            }
            Source::Node { .. } => {
                let nodes: Vec<NodeId> = (0..ids.len()).map(|at| self.maker(at, ids[at])).collect::<Result<_, _>>()?;
                self.node(&nodes)?
            }
            _ => return Err(refusal(format!("\"{}\" is a constant", first.name))),
        };
        self.made.insert(ids.to_vec(), made.clone());
        Ok(made)
    }

    /// The node of which a member's value is the first output.
    fn maker(&self, member: usize, id: ValueId) -> Result<NodeId, StackError> {
        match self.members[member].graph.value(id).source {
            Source::Node { node, output: 0 } => Ok(node),
            _ => Err(refusal("a value is a later output of its node")),
        }
    }

    fn node(&mut self, nodes: &[NodeId]) -> Result<Made, StackError> {
        let first = self.members[0].graph.node(nodes[0]);
        let why = |why: &str| refusal(format!("{first} {why}"));
        let mut operands = Vec::new();
        for at in 0..first.inputs.len() {
            let ids: Option<Vec<ValueId>> =
                self.members.iter().zip(nodes).map(|(member, &node)| member.graph.node(node).input(at)).collect();
            operands.push(match ids {
                None => None,
                Some(ids) => {
                    let constant = |(member, &id): (&Member, &ValueId)| member.graph.constant(id).cloned();
                    match self.members.iter().zip(&ids).map(constant).collect::<Option<Vec<Tensor>>>() {
                        Some(constants) => Some(Operand::Constants(constants)),
                        None => Some(Operand::Made(self.value(&ids)?)),
                    }
                }
            });
        }
        match first.operator.as_str() {
            "Flatten" | "Reshape" => {
                let Some(Operand::Made(Made::Own(of))) = operands.swap_remove(0) else {
                    return Err(why("only passes on what all members read"));
                };
                self.reshaped(first, of, &self.tails(nodes)?).map(Made::Own)
            }
            _ => self.operation(first, self.members[0].graph.opset(""), operands),
        }
    }

    /// By member: the dimensions of a node's first output behind the batch, which are numbers.
    fn tails(&self, nodes: &[NodeId]) -> Result<Vec<Vec<u64>>, StackError> {
        let tail = |(member, &node): (&Member, &NodeId)| -> Option<Vec<u64>> {
            let dims = member.inferred.value(member.graph.node(node).output(0)?).dims.as_ref().ok()?;
            dims.get(1..)?.iter().map(|dim| u64::try_from(dim.size()?).ok()).collect()
        };
        let tails: Option<Vec<Vec<u64>>> = self.members.iter().zip(nodes).map(tail).collect();
        tails.ok_or_else(|| refusal("a reshape's result has dimensions that are no numbers"))
    }

    pub fn members(&self) -> u64 {
        self.members.len() as u64
    }

    pub fn constant(&mut self, tensor: Tensor) -> ValueId {
        self.push(Source::Constant(tensor))
    }

    /// A node with one output.
    pub fn emit(&mut self, operator: &str, inputs: &[ValueId], attributes: BTreeMap<String, Attribute>) -> ValueId {
        let node = NodeId(self.graph.nodes.len() as u32);
        let output = self.push(Source::Node { node, output: 0 });
        self.graph.nodes.push(Node {
            name: format!("{operator}{}", node.0),
            domain: String::new(),
            operator: operator.to_owned(),
            inputs: inputs.iter().copied().map(Some).collect(),
            outputs: vec![Some(output)],
            attributes,
        });
        output
    }

    /// A further output; one that is another's too needs a name of its own.
    fn output(&mut self, mut id: ValueId) {
        if self.graph.outputs.contains(&id) {
            id = self.emit("Identity", &[id], BTreeMap::new());
        }
        self.graph.outputs.push(id);
    }

    fn push(&mut self, source: Source) -> ValueId {
        let id = ValueId(self.graph.values.len() as u32);
        self.graph.values.push(Value { name: format!("v{}", id.0), declared: None, source });
        id
    }
}
