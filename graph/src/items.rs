//! Which values keep the items of a batch apart.
//!
//! A prefix runs once for requests of several models. That gives each request what it would have got alone only if every tensor
//! that leaves the prefix has the batch on one axis, item i there depends on item i of the inputs alone, and no value behind it
//! was computed from how many items there are. [`items`] finds that by one rule per operator; an operator without a rule is
//! taken to mix items. `Shape(x)` feeding a `Reshape` is fine as long as the tensor that results has whole items again: the
//! batch's size is followed through shapes as a symbol ([`crate::infer`]).

use crate::dim::Dim;
use crate::graph::{Graph, Node, Source, ValueId};
use crate::infer::{ARITHMETIC, COMPARING, Inferred, Known, UNARY, Why};

/// How a value depends on the batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Items {
    /// Not at all: the same for every batch of a shape class.
    Same,
    /// Item i lies at index i along this axis and depends on item i of the inputs alone.
    Along(usize),
    /// On how many items there are, and on nothing that is in them.
    Sizes,
    /// In a way that can't be taken apart, or is not known to be possible to.
    Mixed(Why),
}

/// By [`ValueId`].
pub fn items(graph: &Graph, inferred: &Inferred) -> Vec<Items> {
    let mut all = Vec::with_capacity(graph.values.len());
    for value in &graph.values {
        all.push(match value.source {
            Source::Input(input) => match inferred.batch_axes[input as usize] {
                Some(axis) => Items::Along(axis),
                None => Items::Same,
            },
            Source::Constant(_) => Items::Same,
            _ => Items::Mixed("nothing makes it".into()),
        });
    }
    for id in graph.node_ids() {
        let outputs = Site { graph, node: graph.node(id), inferred, items: &all }.outputs();
        for (output, items) in graph.node(id).outputs.iter().zip(outputs) {
            if let Some(output) = output {
                all[output.0 as usize] = items;
            }
        }
    }
    all
}

/// A reason starts with the node that it is about: "Softmax \"probabilities\" computes across the batch".
struct Site<'a> {
    graph: &'a Graph,
    node: &'a Node,
    inferred: &'a Inferred,
    items: &'a [Items],
}

impl Site<'_> {
    fn outputs(&self) -> Vec<Items> {
        let count = self.node.outputs.len();
        let random = ["Random", "Multinomial", "Bernoulli"].iter().any(|name| self.node.operator.starts_with(name));
        if random {
            return vec![self.mixed("is random"); count];
        }
        let inputs: Vec<&Items> = self.node.reads().map(|id| self.of(id)).collect();
        if let Some(Items::Mixed(why)) = inputs.iter().find(|items| matches!(items, Items::Mixed(_))) {
            // Shapes are known even where contents are not.
            return (0..count).map(|at| self.sizes(at).unwrap_or_else(|| Items::Mixed(why.clone()))).collect();
        }
        if inputs.iter().all(|items| **items == Items::Same) {
            return vec![Items::Same; count];
        }
        let only_sizes = !inputs.iter().any(|items| matches!(items, Items::Along(_)));
        let along = if only_sizes { Ok(vec![None; count]) } else { self.along() };
        (0..count)
            .map(|at| match (self.sizes(at), &along) {
                (Some(sizes), _) => sizes,
                (None, Ok(axes)) => match axes.get(at).copied().flatten().or_else(|| self.filled(at, only_sizes)) {
                    Some(axis) => self.checked(at, axis),
                    None if only_sizes => Items::Sizes,
                    None => self.mixed("has an output whose items are not known to be apart"),
                },
                (None, Err(why)) => Items::Mixed(why.clone()),
            })
            .collect()
    }

    fn of(&self, id: ValueId) -> &Items {
        &self.items[id.0 as usize]
    }

    fn input(&self, at: usize) -> Option<&Items> {
        self.node.input(at).map(|id| self.of(id))
    }

    fn known(&self, at: usize) -> Option<&Known> {
        self.node.input(at).map(|id| self.inferred.value(id))
    }

    fn why(&self, what: &str) -> Why {
        format!("{} {what}", self.node).into()
    }

    fn mixed(&self, what: &str) -> Items {
        Items::Mixed(self.why(what))
    }

    /// For a tensor whose elements are followed as sizes.
    fn sizes(&self, at: usize) -> Option<Items> {
        let elements = self.inferred.value(self.node.output(at)?).elements.as_ref()?;
        Some(if elements.iter().any(|dim| self.inferred.has_batch(dim)) { Items::Sizes } else { Items::Same })
    }

    /// The batch axis of a tensor that is the same value everywhere along it.
    fn filled(&self, at: usize, only_sizes: bool) -> Option<usize> {
        if !only_sizes || !["ConstantOfShape", "Expand"].contains(&self.node.operator.as_str()) {
            return None;
        }
        let batch = Dim::symbol(self.inferred.batch?);
        let axis =
            self.inferred.value(self.node.output(at)?).dims.as_ref().ok()?.iter().position(|dim| *dim == batch)?;
        // What is expanded must not itself have been made from the size.
        let source = self.node.operator == "ConstantOfShape" || self.input(0) == Some(&Items::Same);
        (source && self.is_one_at(0, at, axis)).then_some(axis)
    }

    /// Whether input `input`, aligned with output `at` from the right, is broadcast along the output's `axis`.
    fn is_one_at(&self, input: usize, at: usize, axis: usize) -> bool {
        if self.node.operator == "ConstantOfShape" {
            return true;
        }
        let rank = self.node.output(at).and_then(|id| self.inferred.value(id).rank());
        let (Some(rank), Some(Ok(dims))) = (rank, self.known(input).map(|known| &known.dims)) else { return false };
        (axis + dims.len()).checked_sub(rank).is_none_or(|own| dims.get(own).is_some_and(|dim| *dim == Dim::of(1)))
    }

    /// The rule's answer, if the inferred dimensions agree with it: exactly the batch on that axis and on no other.
    fn checked(&self, at: usize, axis: usize) -> Items {
        let Some(output) = self.node.output(at) else { return Items::Along(axis) };
        let dims = match &self.inferred.value(output).dims {
            Ok(dims) => dims,
            Err(why) => {
                return Items::Mixed(format!("the dimensions of what {} makes are unknown: {why}", self.node).into());
            }
        };
        let batch = self.inferred.batch.map(Dim::symbol);
        if dims.get(axis) != batch.as_ref() {
            return self.mixed("changes how many items there are");
        }
        match dims.iter().enumerate().any(|(other, dim)| other != axis && self.inferred.has_batch(dim)) {
            true => self.mixed("makes a tensor whose other dimensions may depend on the batch"),
            false => Items::Along(axis),
        }
    }

    /// The batch axis of each output. Some input has one; none is mixed.
    fn along(&self) -> Result<Vec<Option<usize>>, Why> {
        if !self.node.domain.is_empty() {
            return Err(self.why("is not known to keep items apart"));
        }
        let count = self.node.outputs.len();
        let first = match self.input(0) {
            Some(Items::Along(axis)) => Some(*axis),
            _ => None,
        };
        let across = || self.why("computes across the batch");
        let one = |axis: usize| Ok(vec![Some(axis)]);
        match self.node.operator.as_str() {
            "Identity" | "Cast" | "Clip" | "Where" => one(self.elementwise()?),
            operator if [&UNARY[..], &ARITHMETIC, &COMPARING].iter().any(|all| all.contains(&operator)) => {
                one(self.elementwise()?)
            }
            "Dropout" if count == 1 && self.node.input(2).is_none() => one(first.ok_or_else(across)?),
            "Conv"
            | "ConvTranspose"
            | "MaxPool"
            | "AveragePool"
            | "GlobalAveragePool"
            | "GlobalMaxPool"
            | "InstanceNormalization"
            | "LRN" => {
                self.same_from(1)?;
                one(first.filter(|&axis| axis == 0).ok_or_else(across)?).map(|axes| axes.repeat(count))
            }
            "BatchNormalization" => {
                self.same_from(1)?;
                let trains = count > 1 || self.node.int("training_mode").unwrap_or(0) != 0;
                one(first.filter(|&axis| axis == 0 && !trains).ok_or_else(across)?)
            }
            "Resize" if [1, 2].into_iter().all(|at| self.input(at).is_none_or(|items| *items == Items::Same)) => {
                one(first.filter(|&axis| axis == 0).ok_or_else(across)?)
            }
            "Softmax" | "LogSoftmax" | "LayerNormalization" => {
                self.same_from(1)?;
                one(self.normalised(first.ok_or_else(across)?)?).map(|axes| axes.repeat(count))
            }
            "MatMul" => one(self.mat_mul()?),
            "Gemm" => one(self.gemm()?),
            "Transpose" => one(self.transposed(first.ok_or_else(across)?)?),
            "Reshape" | "Flatten" | "Squeeze" | "Unsqueeze" => one(self.reshaped(first.ok_or_else(across)?)?),
            "Expand" => {
                let axis = first.ok_or_else(across)?;
                one(self.aligned(0, axis)?)
            }
            "Concat" => one(self.concatenated()?),
            "Split" => {
                self.same_from(1)?;
                let axis = first.ok_or_else(across)?;
                self.apart(axis, &[self.node.int("axis").unwrap_or(0)])?;
                Ok(vec![Some(axis); count])
            }
            "Gather" => one(self.gathered()?),
            "Slice" => one(self.sliced(first.ok_or_else(across)?)?),
            "Pad" => one(self.padded(first.ok_or_else(across)?)?),
            "ReduceMean" | "ReduceSum" | "ReduceMax" | "ReduceMin" | "ReduceProd" | "ReduceL2" | "ArgMax"
            | "ArgMin" => one(self.reduced(first.ok_or_else(across)?)?),
            "CumSum" => {
                let axis = self.integers("axis", 1).ok_or_else(across)?;
                let batch = first.ok_or_else(across)?;
                self.apart(batch, &axis)?;
                one(batch)
            }
            "LSTM" | "GRU" | "RNN" => self.recurrent(),
            "If" | "Loop" | "Scan" => Err(self.why("holds a graph; items are not followed into it")),
            _ => Err(self.why("is not known to keep items apart")),
        }
    }

    fn rank(&self, at: usize) -> Result<usize, Why> {
        self.known(at).and_then(Known::rank).ok_or_else(|| self.why("has an input of unknown dimensions"))
    }

    fn rank_out(&self) -> Result<usize, Why> {
        let rank = self.node.output(0).and_then(|id| self.inferred.value(id).rank());
        rank.ok_or_else(|| self.why("has an output of unknown dimensions"))
    }

    /// Where `axis` of input `at` lies in the output, aligned from the right as in broadcasting.
    fn aligned(&self, at: usize, axis: usize) -> Result<usize, Why> {
        let offset = self.rank_out()?.checked_sub(self.rank(at)?);
        offset.map(|offset| offset + axis).ok_or_else(|| self.why("has an input of more dimensions than its output"))
    }

    /// All inputs from `at` on are the same for every batch.
    fn same_from(&self, at: usize) -> Result<(), Why> {
        let same = (at..self.node.inputs.len()).all(|at| self.input(at).is_none_or(|items| *items == Items::Same));
        if same { Ok(()) } else { Err(self.why("has parameters that come with the batch")) }
    }

    /// `axis` of the first input is none of `others`.
    fn apart(&self, axis: usize, others: &[i64]) -> Result<(), Why> {
        let rank = self.rank(0)? as i64;
        let meets =
            others.iter().any(|&other| (if other < 0 { other.saturating_add(rank) } else { other }) == axis as i64);
        if meets { Err(self.why("computes across the batch")) } else { Ok(()) }
    }

    fn integers(&self, name: &str, at: usize) -> Option<Vec<i64>> {
        match (self.node.ints(name), self.node.int(name)) {
            (Some(values), _) => Some(values.to_vec()),
            (None, Some(value)) => Some(vec![value]),
            (None, None) => self.known(at)?.elements.as_ref()?.iter().map(Dim::size).collect(),
        }
    }

    fn elementwise(&self) -> Result<usize, Why> {
        let mut found = None;
        for at in 0..self.node.inputs.len() {
            match self.input(at) {
                Some(Items::Along(axis)) => {
                    let axis = self.aligned(at, *axis)?;
                    if found.is_some_and(|found| found != axis) {
                        return Err(self.why("sets the batch against another axis"));
                    }
                    found = Some(axis);
                }
                Some(Items::Sizes) => return Err(self.why("uses a number that was computed from the batch's size")),
                _ => {}
            }
        }
        let axis = found.ok_or_else(|| self.why("has no input with a batch"))?;
        let same = |&at: &usize| self.input(at) == Some(&Items::Same);
        match (0..self.node.inputs.len()).filter(same).all(|at| self.is_one_at(at, 0, axis) || self.is_limit(at)) {
            true => Ok(axis),
            false => Err(self.why("joins a batch with as many rows that do not come with it")),
        }
    }

    /// The bounds of `Clip` are numbers.
    fn is_limit(&self, at: usize) -> bool {
        self.node.operator == "Clip" && at > 0
    }

    fn normalised(&self, batch: usize) -> Result<usize, Why> {
        let rank = self.rank(0)? as i64;
        let opset = self.graph.opset("");
        // Before version 13 these took all axes from `axis` on for one.
        let old = self.node.operator != "LayerNormalization" && opset < 13;
        let axis = self.node.int("axis").unwrap_or(if old { 1 } else { -1 });
        let axis = if axis < 0 { axis.saturating_add(rank) } else { axis };
        let whole = old || self.node.operator == "LayerNormalization";
        let meets = if whole { batch as i64 >= axis } else { batch as i64 == axis };
        if meets { Err(self.why("computes across the batch")) } else { Ok(batch) }
    }

    fn mat_mul(&self) -> Result<usize, Why> {
        let (a, b) = (self.rank(0)?, self.rank(1)?);
        let across = || self.why("computes across the batch");
        if a < 2 || b < 2 {
            return Err(across());
        }
        match (self.input(0), self.input(1)) {
            (Some(&Items::Along(axis)), Some(Items::Same)) if axis + 1 < a => {
                let aligned = self.aligned(0, axis)?;
                let free = axis + 2 == a || self.is_one_at(1, 0, aligned);
                free.then_some(aligned).ok_or_else(across)
            }
            (Some(Items::Same), Some(&Items::Along(axis))) if axis + 2 != b => {
                let aligned = self.aligned(1, axis)?;
                let free = axis + 1 == b || self.is_one_at(0, 0, aligned);
                free.then_some(aligned).ok_or_else(across)
            }
            (Some(&Items::Along(left)), Some(&Items::Along(right))) if left + 2 < a && right + 2 < b => {
                let (left, right) = (self.aligned(0, left)?, self.aligned(1, right)?);
                (left == right).then_some(left).ok_or_else(across)
            }
            _ => Err(across()),
        }
    }

    fn gemm(&self) -> Result<usize, Why> {
        let rows = usize::from(self.node.int("transA").unwrap_or(0) != 0);
        let added = match self.input(2) {
            None => true,
            Some(Items::Same) => self.is_one_at(2, 0, 0),
            Some(Items::Along(axis)) => *axis == 0 && self.rank(2)? == 2,
            Some(_) => false,
        };
        let fits = self.input(0) == Some(&Items::Along(rows)) && self.input(1) == Some(&Items::Same) && added;
        fits.then_some(0).ok_or_else(|| self.why("computes across the batch"))
    }

    fn transposed(&self, batch: usize) -> Result<usize, Why> {
        let rank = self.rank(0)?;
        match self.node.ints("perm") {
            None => Ok(rank - 1 - batch),
            Some(order) => {
                let from =
                    |&axis: &i64| (if axis < 0 { axis.saturating_add(rank as i64) } else { axis }) == batch as i64;
                order.iter().position(from).ok_or_else(|| self.why("loses the batch's axis"))
            }
        }
    }

    /// The elements stay in their order: the batch is where as many elements lie before it.
    fn reshaped(&self, batch: usize) -> Result<usize, Why> {
        let why = |why: &Why| Why::from(format!("{}: {why}", self.node));
        let from =
            self.known(0).map(|known| known.dims.as_ref().map_err(why)).ok_or_else(|| self.why("lacks an input"))??;
        let output = self.node.output(0).map(|id| self.inferred.value(id)).ok_or_else(|| self.why("has no output"))?;
        let to = output.dims.as_ref().map_err(why)?;
        let items = self.inferred.batch.map(Dim::symbol);
        let before = crate::infer::product(&from[..batch]);
        let fits = |&axis: &usize| Some(&to[axis]) == items.as_ref() && crate::infer::product(&to[..axis]) == before;
        let axis = (0..to.len()).find(fits).filter(|_| before.is_some());
        axis.ok_or_else(|| self.why("joins the batch with another axis, or its dimensions are unknown"))
    }

    fn concatenated(&self) -> Result<usize, Why> {
        let all = |items: &Items| matches!((items, self.input(0)), (Items::Along(a), Some(Items::Along(b))) if a == b);
        let inputs = (0..self.node.inputs.len()).filter_map(|at| self.input(at)).collect::<Vec<_>>();
        let Some(Items::Along(axis)) = inputs.first().filter(|_| inputs.iter().all(|items| all(items))) else {
            return Err(self.why("joins a batch with what has none, or along another axis"));
        };
        self.apart(*axis, &[self.node.int("axis").unwrap_or(1)])?;
        Ok(*axis)
    }

    fn gathered(&self) -> Result<usize, Why> {
        let axis = self.node.int("axis").unwrap_or(0);
        match (self.input(0), self.input(1)) {
            (Some(Items::Same), Some(Items::Along(batch))) => {
                let rank = self.rank(0)? as i64;
                let axis = if axis < 0 { axis.saturating_add(rank) } else { axis };
                usize::try_from(axis).map(|axis| axis + batch).map_err(|_| self.why("has an axis that its input lacks"))
            }
            (Some(&Items::Along(batch)), Some(Items::Same)) => {
                self.apart(batch, &[axis])?;
                let rank = self.rank(0)? as i64;
                let before = (batch as i64) < if axis < 0 { axis.saturating_add(rank) } else { axis };
                Ok(if before { batch } else { batch + self.rank(1)? - 1 })
            }
            _ => Err(self.why("picks items by what is in the batch")),
        }
    }

    fn sliced(&self, batch: usize) -> Result<usize, Why> {
        let unknown = || self.why("slices at places that are only known when it runs");
        let ours = (1..self.node.inputs.len()).all(|at| !matches!(self.input(at), Some(Items::Along(_))));
        let given = self.node.ints("axes").is_some() || self.node.input(3).is_some();
        let axes = match given {
            true => self.integers("axes", 3),
            false => {
                let count = self
                    .node
                    .ints("starts")
                    .map(<[i64]>::len)
                    .or_else(|| Some(self.known(1)?.elements.as_ref()?.len()));
                count.map(|count| (0..count as i64).collect())
            }
        };
        let axes = axes.filter(|_| ours).ok_or_else(unknown)?;
        // Sliced along the batch it must stay whole, and in order.
        if self.apart(batch, &axes).is_err() {
            let forward =
                self.node.input(4).is_none() || self.integers("steps", 4).is_some_and(|s| s.iter().all(|&s| s == 1));
            let out = self.node.output(0).and_then(|id| self.inferred.value(id).dims.as_ref().ok());
            let whole = out.and_then(|dims| dims.get(batch)) == self.inferred.batch.map(Dim::symbol).as_ref();
            if !forward || !whole {
                return Err(self.why("takes a part of the batch"));
            }
        }
        Ok(batch)
    }

    fn padded(&self, batch: usize) -> Result<usize, Why> {
        let rank = self.rank(0)?;
        self.same_from(1)?;
        let pads = self.integers("pads", 1).filter(|pads| pads.len() == 2 * rank && self.node.input(3).is_none());
        let pads = pads.ok_or_else(|| self.why("pads by what is only known when it runs"))?;
        if pads[batch] == 0 && pads[batch + rank] == 0 { Ok(batch) } else { Err(self.why("pads the batch")) }
    }

    fn reduced(&self, batch: usize) -> Result<usize, Why> {
        let given = match self.node.operator.starts_with("Arg") {
            true => Some(vec![self.node.int("axis").unwrap_or(0)]),
            false => self.integers("axes", 1).filter(|axes| !axes.is_empty()),
        };
        let axes = given.ok_or_else(|| self.why("computes across the batch"))?;
        self.apart(batch, &axes)?;
        let rank = self.rank(0)? as i64;
        let before = axes
            .iter()
            .filter(|&&axis| (if axis < 0 { axis.saturating_add(rank) } else { axis }) < batch as i64)
            .count();
        let keeps = self.node.int("keepdims").unwrap_or(1) != 0;
        Ok(if keeps { batch } else { batch - before.min(batch) })
    }

    fn recurrent(&self) -> Result<Vec<Option<usize>>, Why> {
        let given = |at: usize, axis: usize| self.input(at).is_none_or(|items| *items == Items::Along(axis));
        let same = |at: usize| self.input(at).is_none_or(|items| *items == Items::Same);
        let state = given(4, 0) && given(5, 1) && given(6, 1);
        let weights = [1, 2, 3, 7].into_iter().all(same);
        match given(0, 1) && state && weights {
            true => Ok(vec![Some(2), Some(1), Some(1)]),
            false => Err(self.why("has its batch elsewhere than on the second axis")),
        }
    }
}
