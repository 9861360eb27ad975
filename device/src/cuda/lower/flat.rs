//! A model for one shape class: every size a number, whatever can be computed from sizes and weights alone computed, and every
//! `If` replaced by the branch that it takes.
//!
//! A plan is made for given dimensions, and for given contents of the small inputs that have no batch axis (a sample rate, say), so
//! shape arithmetic and the conditions that hang on it are known here; only work on the request's own numbers remains.

use super::evaluate::evaluate;
use super::{LowerError, Site};
use rota_graph::infer::Inferred;
use rota_graph::{Body, DType, Graph, Node, NodeId, Source, Tensor, Value, ValueId};

/// What an input of the model is for this plan.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Given {
    /// Its dimensions; its numbers come with each request.
    Dims(Vec<u64>),
    /// Its content too: the same for every request of the class.
    Content { dims: Vec<u64>, bytes: Box<[u8]> },
}

impl Given {
    pub fn dims(&self) -> &[u64] {
        match self {
            Given::Dims(dims) | Given::Content { dims, .. } => dims,
        }
    }
}

/// The flattened model.
///
/// Invariants: no node holds a graph; every value that a node reads has known dimensions; `graph.inputs` are as many and in the
/// order of the model's, also where the content of one is given (such a value is a constant).
pub struct Flat {
    pub graph: Graph,
    pub inferred: Inferred,
}

/// Values that are computed here have at most this many elements; larger ones are made on the device.
const ELEMENTS_MAX: u64 = 1 << 24;
/// `If` in `If`; no real model comes near.
const DEPTH_MAX: usize = 16;

/// Flattens `model` for the given inputs, in the model's order.
pub fn flatten(model: &Graph, given: &[Given]) -> Result<Flat, LowerError> {
    let mut flat = Flat { graph: Graph::default(), inferred: Inferred::start() };
    flat.graph.name.clone_from(&model.name);
    flat.graph.opsets = model.opsets.clone();
    let mut map = vec![None; model.values.len()];
    for (number, (&id, given)) in model.inputs.iter().zip(given).enumerate() {
        let value = model.value(id);
        let dtype = value.declared.as_ref().map(|declared| declared.dtype).unwrap_or(DType::F32);
        let source = match given {
            Given::Dims(_) => Source::Input(number as u32),
            Given::Content { dims, bytes } => {
                Source::Constant(Tensor { dtype, dims: dims.clone(), data: bytes.to_vec().into() })
            }
        };
        let sizes = given.dims().iter().map(|&dim| rota_graph::graph::DeclaredDim::Size(dim)).collect();
        let declared = Some(rota_graph::graph::Declared { dtype, dims: Some(sizes) });
        let added = flat.add(Value { name: value.name.clone(), declared, source });
        flat.graph.inputs.push(added);
        map[id.0 as usize] = Some(added);
    }
    flat.inline(model, &mut map, 0)?;
    for &output in &model.outputs {
        let made = map[output.0 as usize].ok_or_else(|| LowerError::Unmade(model.value(output).name.clone()))?;
        flat.graph.outputs.push(made);
    }
    Ok(flat)
}

impl Flat {
    fn add(&mut self, value: Value) -> ValueId {
        let id = ValueId(self.graph.values.len() as u32);
        self.graph.values.push(value);
        self.inferred.add_value(&self.graph, id);
        id
    }

    /// Copies the nodes of `from`; `map` says which of its values are here already.
    fn inline(&mut self, from: &Graph, map: &mut [Option<ValueId>], depth: usize) -> Result<(), LowerError> {
        for id in from.value_ids() {
            if let Source::Constant(tensor) = &from.value(id).source {
                let source = Source::Constant(tensor.clone());
                let name = from.value(id).name.clone();
                map[id.0 as usize] = Some(self.add(Value { name, declared: None, source }));
            }
        }
        for id in from.node_ids() {
            let node = from.node(id);
            match (node.operator.as_str(), node.domain.as_str()) {
                ("If", "") => self.branch(from, node, map, depth)?,
                _ => self.node(from, node, map)?,
            }
        }
        Ok(())
    }

    fn branch(
        &mut self,
        from: &Graph,
        node: &Node,
        map: &mut [Option<ValueId>],
        depth: usize,
    ) -> Result<(), LowerError> {
        let refuse = |why: &str| LowerError::Node { node: node.to_string(), why: why.to_owned() };
        let condition = node.input(0).and_then(|id| map[id.0 as usize]);
        let condition = condition.and_then(|id| self.graph.constant(id)).map(|tensor| tensor.data.first().copied());
        let taken = match condition {
            Some(Some(condition)) => {
                if condition != 0 {
                    "then_branch"
                } else {
                    "else_branch"
                }
            }
            _ => return Err(refuse("chooses by a number that is only known when it runs")),
        };
        let Some(rota_graph::Attribute::Body(body)) = node.attributes.get(taken) else {
            return Err(refuse("lacks a branch"));
        };
        if depth >= DEPTH_MAX {
            return Err(refuse("lies too deep in others"));
        }
        let made = self.inline_body(from, body, map, depth + 1)?;
        for (output, made) in node.outputs.iter().zip(made) {
            if let Some(output) = output {
                map[output.0 as usize] = Some(made);
            }
        }
        Ok(())
    }

    /// Its outputs, as values here.
    fn inline_body(
        &mut self,
        around: &Graph,
        body: &Body,
        outer: &[Option<ValueId>],
        depth: usize,
    ) -> Result<Vec<ValueId>, LowerError> {
        let unmade = |graph: &Graph, id: ValueId| LowerError::Unmade(graph.value(id).name.clone());
        let mut map = vec![None; body.graph.values.len()];
        for id in body.graph.value_ids() {
            if let Source::Captured(number) = body.graph.value(id).source {
                let captured = body.captures[number as usize];
                map[id.0 as usize] = Some(outer[captured.0 as usize].ok_or_else(|| unmade(around, captured))?);
            }
        }
        self.inline(&body.graph, &mut map, depth)?;
        let made = |id: &ValueId| map[id.0 as usize].ok_or_else(|| unmade(&body.graph, *id));
        body.graph.outputs.iter().map(made).collect()
    }

    /// Copies one node, or its outputs when they can be computed now.
    fn node(&mut self, from: &Graph, node: &Node, map: &mut [Option<ValueId>]) -> Result<(), LowerError> {
        let here = |id: &Option<ValueId>| match id {
            Some(id) => match map[id.0 as usize] {
                Some(id) => Ok(Some(id)),
                None => Err(LowerError::Unmade(from.value(*id).name.clone())),
            },
            None => Ok(None),
        };
        let inputs = node.inputs.iter().map(here).collect::<Result<Vec<_>, _>>()?;
        let id = NodeId(self.graph.nodes.len() as u32);
        let mut outputs = Vec::with_capacity(node.outputs.len());
        for (output, made) in node.outputs.iter().enumerate() {
            outputs.push(made.map(|made| {
                let source = Source::Node { node: id, output: output as u32 };
                let declared = from.value(made).declared.clone();
                let added = self.add(Value { name: from.value(made).name.clone(), declared, source });
                map[made.0 as usize] = Some(added);
                added
            }));
        }
        self.graph.nodes.push(Node { inputs, outputs: outputs.clone(), ..node.clone() });
        self.inferred.infer_node(&self.graph, id);
        let folded = Site::new(self, id).fold();
        if folded.is_empty() {
            return Ok(());
        }
        self.graph.nodes.pop();
        for (output, tensor) in outputs.into_iter().zip(folded) {
            if let Some(output) = output {
                self.inferred.set_constant(output, &tensor);
                self.graph.values[output.0 as usize].source = Source::Constant(tensor);
            }
        }
        Ok(())
    }
}

impl Site<'_> {
    /// All its outputs, when they can be computed now; else none.
    fn fold(&self) -> Vec<Tensor> {
        // What inference has no rule for is small, or is not computed here.
        let small = |at: usize| self.output_dims(at).map_or(true, |dims| dims.iter().product::<u64>() <= ELEMENTS_MAX);
        let known: Option<Vec<Tensor>> = (0..self.node.outputs.len()).map(|at| self.known_integers(at)).collect();
        if let Some(known) = known {
            return known;
        }
        let constant = self.node.inputs.iter().flatten().all(|&id| self.flat.graph.constant(id).is_some());
        if !constant || (0..self.node.outputs.len()).any(|at| self.node.output(at).is_some() && !small(at)) {
            return Vec::new();
        }
        evaluate(self).unwrap_or_default()
    }

    /// An output that inference followed as integers: shapes, and arithmetic on them.
    fn known_integers(&self, at: usize) -> Option<Tensor> {
        let known = self.flat.inferred.value(self.node.output(at)?);
        let dims = known.sizes()?;
        let elements: Option<Vec<i64>> = known.elements.as_ref()?.iter().map(rota_graph::dim::Dim::size).collect();
        let elements = elements.filter(|elements| elements.len() as u64 == dims.iter().product::<u64>())?;
        match known.dtype? {
            DType::I64 => Some(Tensor::i64s(dims, &elements)),
            DType::I32 => {
                let data = elements.iter().flat_map(|&element| (element as i32).to_le_bytes()).collect();
                Some(Tensor { dtype: DType::I32, dims, data })
            }
            _ => None,
        }
    }
}
