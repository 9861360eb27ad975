//! Element types and dimensions of all values of a graph, as far as they can be known before a request comes.
//!
//! A dimension that can't be known is a symbol of its own; a shape that can't be known says why and stops nothing. Small integer
//! tensors that are computed from shapes (`Shape`, `Gather`, `Concat`, then `Reshape`) are carried as dimensions too.

mod rules;

pub(crate) use rules::{ARITHMETIC, COMPARING, UNARY, product};

use crate::dim::{Dim, Symbol, Symbols};
use crate::graph::{DeclaredDim, Graph, NodeId, Source, Value, ValueId};
use crate::tensor::{DType, Tensor};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What is known of each value of a graph.
#[derive(Clone, Debug)]
pub struct Inferred {
    /// By [`ValueId`].
    pub values: Vec<Known>,
    pub symbols: Symbols,
    /// The batch size, where an input names it.
    pub batch: Option<Symbol>,
    /// By input: the axis that has the batch.
    pub batch_axes: Vec<Option<usize>>,
}

#[derive(Clone, Debug)]
pub struct Known {
    pub dtype: Option<DType>,
    pub dims: Result<Vec<Dim>, Why>,
    /// The elements of an integer tensor of at most one axis and at most [`ELEMENTS_MAX`] elements, where they are known.
    pub elements: Option<Vec<Dim>>,
}

/// Why something is not known, in words.
pub type Why = Arc<str>;

/// Longer tensors are data, not shapes.
pub const ELEMENTS_MAX: usize = 64;
/// As many axes as an inferred tensor may have.
const RANK_MAX: usize = 16;

impl Known {
    pub(crate) fn unknown(why: impl Into<Why>) -> Known {
        Known { dtype: None, dims: Err(why.into()), elements: None }
    }

    fn constant(tensor: &Tensor) -> Known {
        if tensor.dims.len() > RANK_MAX {
            return Known::unknown("it has too many dimensions");
        }
        let elements = if tensor.dims.len() <= 1 { tensor.integers(ELEMENTS_MAX) } else { None };
        Known {
            dtype: Some(tensor.dtype),
            dims: Ok(tensor.dims.iter().map(|&dim| Dim::of(dim as i64)).collect()),
            elements: elements.map(|elements| elements.into_iter().map(Dim::of).collect()),
        }
    }

    pub fn rank(&self) -> Option<usize> {
        self.dims.as_ref().ok().map(Vec::len)
    }

    /// The dimensions, where each is a number.
    pub fn sizes(&self) -> Option<Vec<u64>> {
        self.dims.as_ref().ok()?.iter().map(|dim| u64::try_from(dim.size()?).ok()).collect()
    }
}

impl Inferred {
    pub fn value(&self, id: ValueId) -> &Known {
        &self.values[id.0 as usize]
    }

    /// Whether the size of the batch is in `dim`.
    pub fn has_batch(&self, dim: &Dim) -> bool {
        dim.symbols().any(|symbol| Some(symbol) == self.batch || self.symbols.name(symbol).contains(BATCH_MARK))
    }

    /// For people: `2·h`.
    pub fn dim_text(&self, dim: &Dim) -> String {
        self.symbols.text(dim).replace(BATCH_MARK, "")
    }

    /// For people: `f32 [batch, 3, 224, 224]`.
    pub fn text(&self, id: ValueId) -> String {
        let known = self.value(id);
        let dtype = known.dtype.map_or("?", DType::name);
        match &known.dims {
            Ok(dims) => format!("{dtype} {}", self.symbols.shape_text(dims).replace(BATCH_MARK, "")),
            Err(_) => format!("{dtype} [?]"),
        }
    }
}

/// In the batch symbol's name, and so in the name of every symbol that was derived from it.
const BATCH_MARK: char = '\u{2063}';

/// Infers. `axes` says which inputs have the batch on which axis, by name, `None` for one without it; an input that it does not
/// name has it by the rule: the first axis of the first input whose first axis is not a number, and every axis of that name.
pub fn infer(graph: &Graph, axes: &BTreeMap<String, Option<usize>>) -> Inferred {
    let mut inferred = Inferred {
        values: Vec::with_capacity(graph.values.len()),
        symbols: Symbols::default(),
        batch: None,
        batch_axes: Vec::new(),
    };
    inferred.batch_axes = batch_axes(graph, axes);
    if inferred.batch_axes.iter().any(Option::is_some) {
        inferred.batch = Some(inferred.symbols.fresh(&format!("batch{BATCH_MARK}")));
    }
    for id in graph.value_ids() {
        inferred.add_value(graph, id);
    }
    for id in graph.node_ids() {
        inferred.infer_node(graph, id);
    }
    inferred
}

/// For a graph that is built value by value and node by node: each as it is added. Nothing in it is a batch; sizes that a
/// declaration gives are numbers.
///
/// Calling contract: [`Inferred::add_value`] for each value in order, before [`Inferred::infer_node`] for the nodes that read or
/// make it.
impl Inferred {
    pub fn start() -> Inferred {
        Inferred { values: Vec::new(), symbols: Symbols::default(), batch: None, batch_axes: Vec::new() }
    }

    /// Takes in the next value.
    ///
    /// # Panics
    /// When `id` is not the next one.
    pub fn add_value(&mut self, graph: &Graph, id: ValueId) {
        assert_eq!(id.0 as usize, self.values.len(), "values are added in order");
        let known = match &graph.value(id).source {
            Source::Input(input) => self.input(graph.value(id), *input),
            Source::Constant(tensor) => Known::constant(tensor),
            Source::Captured(_) => Known::unknown("it comes from a graph around this one"),
            Source::Node { .. } => Known::unknown("nothing makes it"),
        };
        self.values.push(known);
    }

    /// Infers what a node makes from what is known of what it reads.
    pub fn infer_node(&mut self, graph: &Graph, id: NodeId) {
        self.node(graph, id);
    }

    /// The value turned out to be constant.
    pub fn set_constant(&mut self, id: ValueId, tensor: &Tensor) {
        self.values[id.0 as usize] = Known::constant(tensor);
    }
}

impl Inferred {
    fn input(&mut self, value: &Value, input: u32) -> Known {
        let too_many = |dims: &Vec<DeclaredDim>| dims.len() > RANK_MAX;
        if value.declared.as_ref().is_some_and(|declared| declared.dims.as_ref().is_some_and(too_many)) {
            return Known::unknown("it has too many dimensions");
        }
        let Some(declared) = &value.declared else { return Known::unknown("the file does not declare its type") };
        let Some(dims) = &declared.dims else {
            let dims = Err("the file does not declare its dimensions".into());
            return Known { dtype: Some(declared.dtype), dims, elements: None };
        };
        let mut dim = |(axis, dim): (usize, &DeclaredDim)| match (dim, self.batch) {
            (_, Some(batch)) if self.batch_axes[input as usize] == Some(axis) => Dim::symbol(batch),
            (DeclaredDim::Size(size), _) => Dim::of(*size as i64),
            (DeclaredDim::Symbol(name), _) => Dim::symbol(self.symbols.named(name)),
            (DeclaredDim::Unsaid, _) => Dim::symbol(self.symbols.fresh(&format!("{}.{axis}", value.name))),
        };
        let dims = dims.iter().enumerate().map(&mut dim).collect();
        Known { dtype: Some(declared.dtype), dims: Ok(dims), elements: None }
    }

    fn node(&mut self, graph: &Graph, id: NodeId) {
        let node = graph.node(id);
        let opset = graph.opset(&node.domain);
        let mut known = rules::Site { graph, node, opset, inferred: self }.outputs();
        known.resize_with(node.outputs.len(), || {
            Known::unknown(format!("the outputs of {} are not inferred", node.operator))
        });
        for (output, mut known) in node.outputs.iter().zip(known) {
            let Some(output) = output else { continue };
            if known.dims.as_ref().is_ok_and(|dims| dims.len() > RANK_MAX) {
                known.dims = Err("it has too many dimensions".into());
            }
            if known.dtype.is_none() {
                known.dtype = graph.value(*output).declared.as_ref().map(|declared| declared.dtype);
            }
            self.values[output.0 as usize] = known;
        }
    }
}

/// By input: which axis has the batch.
fn batch_axes(graph: &Graph, axes: &BTreeMap<String, Option<usize>>) -> Vec<Option<usize>> {
    let dims = |id: &ValueId| {
        let declared = graph.value(*id).declared.as_ref().and_then(|declared| declared.dims.as_deref());
        declared.unwrap_or(&[])
    };
    let first = graph.inputs.iter().filter_map(|id| dims(id).first()).find(|dim| !matches!(dim, DeclaredDim::Size(_)));
    let axis = |id: &ValueId| match (axes.get(&graph.value(*id).name), first) {
        (Some(given), _) => given.filter(|&axis| axis < dims(id).len()),
        (None, Some(DeclaredDim::Symbol(_))) => dims(id).iter().position(|dim| Some(dim) == first),
        (None, Some(_)) => (dims(id).first() == first).then_some(0),
        (None, None) => None,
    };
    graph.inputs.iter().map(axis).collect()
}
