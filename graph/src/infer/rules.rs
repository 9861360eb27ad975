//! One rule per kind of operator.

use super::{ELEMENTS_MAX, Inferred, Known, Why};
use crate::dim::Dim;
use crate::graph::{Attribute, Graph, Node};
use crate::tensor::DType;

/// A node, and what is known where it stands.
pub(super) struct Site<'a> {
    pub graph: &'a Graph,
    pub node: &'a Node,
    pub opset: i64,
    pub inferred: &'a mut Inferred,
}

type Shape = Result<Vec<Dim>, Why>;

impl Site<'_> {
    pub(super) fn outputs(mut self) -> Vec<Known> {
        if !self.node.domain.is_empty() {
            return vec![];
        }
        let first = self.dtype(0);
        match self.node.operator.as_str() {
            "Relu"
            | "Sigmoid"
            | "Tanh"
            | "Exp"
            | "Log"
            | "Sqrt"
            | "Abs"
            | "Neg"
            | "Reciprocal"
            | "Floor"
            | "Ceil"
            | "Round"
            | "Erf"
            | "LeakyRelu"
            | "Elu"
            | "Selu"
            | "HardSigmoid"
            | "HardSwish"
            | "Softplus"
            | "Softsign"
            | "Clip"
            | "Softmax"
            | "LogSoftmax"
            | "BatchNormalization"
            | "InstanceNormalization"
            | "LayerNormalization"
            | "Gelu"
            | "Mish"
            | "Sin"
            | "Cos"
            | "Sign"
            | "CumSum"
            | "Not"
            | "Trilu"
            | "LRN" => {
                let shape = self.dims(0);
                self.one(first, shape)
            }
            "Identity" | "Dropout" | "Cast" => {
                let dtype = self.node.int("to").map(|to| DType(to as i32)).or(first);
                let shape = self.dims(0);
                let elements = self.elements(0).filter(|_| [Some(DType::I64), Some(DType::I32)].contains(&dtype));
                vec![Known { dtype, dims: shape, elements }]
            }
            "Add" | "Sub" | "Mul" | "Div" | "Pow" | "PRelu" | "Max" | "Min" | "Mod" | "Sum" | "Mean" => {
                self.broadcasting(first)
            }
            "Equal" | "Greater" | "Less" | "GreaterOrEqual" | "LessOrEqual" | "And" | "Or" | "Xor" => {
                let mut known = self.broadcasting(Some(DType::BOOL));
                known[0].elements = None;
                known
            }
            "Where" => {
                let shape = self.broadcast();
                let dtype = self.dtype(1);
                self.one(dtype, shape)
            }
            "Conv" | "MaxPool" | "AveragePool" | "ConvTranspose" => {
                let shape = self.window();
                self.one(first, shape)
            }
            "GlobalAveragePool" | "GlobalMaxPool" => {
                let shape = self.dims(0).map(|dims| {
                    dims.into_iter().enumerate().map(|(axis, dim)| if axis < 2 { dim } else { Dim::of(1) }).collect()
                });
                self.one(first, shape)
            }
            "MatMul" => {
                let shape = self.mat_mul();
                self.one(first, shape)
            }
            "Gemm" => {
                let shape = self.gemm();
                self.one(first, shape)
            }
            "Transpose" => {
                let shape = self.transpose();
                self.one(first, shape)
            }
            "Flatten" => {
                let shape = self.flatten();
                self.one(first, shape)
            }
            "Shape" => self.shape(),
            "Size" => {
                let product = self.dims(0).ok().and_then(|dims| product(&dims));
                let elements = product.map(|product| vec![product]);
                vec![Known { dtype: Some(DType::I64), dims: Ok(vec![]), elements }]
            }
            "Gather" => self.gather(),
            "Concat" => self.concat(),
            "Slice" => self.slice(),
            "Split" => self.split(),
            "Squeeze" | "Unsqueeze" => self.squeeze(),
            "Reshape" => {
                let shape = self.reshape();
                let elements = self.elements(0).filter(|_| shape.as_ref().is_ok_and(|dims| dims.len() <= 1));
                vec![Known { dtype: first, dims: shape, elements }]
            }
            "Expand" => {
                let shape = self.target(1).and_then(|target| self.broadcast_two(self.dims(0)?, target));
                self.one(first, shape)
            }
            "ConstantOfShape" => {
                let dtype = match self.node.attributes.get("value") {
                    Some(Attribute::Tensor(tensor)) => tensor.dtype,
                    _ => DType::F32,
                };
                let shape = self.target(0);
                self.one(Some(dtype), shape)
            }
            "ReduceMean" | "ReduceSum" | "ReduceMax" | "ReduceMin" | "ReduceProd" | "ReduceL2" => {
                let shape = self.reduce();
                self.one(first, shape)
            }
            "ArgMax" | "ArgMin" => {
                let shape = self.reduce();
                self.one(Some(DType::I64), shape)
            }
            "Pad" => {
                let shape = self.pad();
                self.one(first, shape)
            }
            "Resize" => {
                let shape = self.resize();
                self.one(first, shape)
            }
            "LSTM" | "GRU" | "RNN" => self.recurrent(),
            _ => vec![],
        }
    }

    fn one(&self, dtype: Option<DType>, dims: Shape) -> Vec<Known> {
        vec![Known { dtype, dims, elements: None }]
    }

    fn input(&self, at: usize) -> Option<&Known> {
        self.node.input(at).map(|id| self.inferred.value(id))
    }

    fn dtype(&self, at: usize) -> Option<DType> {
        self.input(at).and_then(|known| known.dtype)
    }

    fn dims(&self, at: usize) -> Shape {
        match self.input(at) {
            Some(known) => known.dims.clone(),
            None => Err(self.why("lacks an input")),
        }
    }

    fn elements(&self, at: usize) -> Option<Vec<Dim>> {
        self.input(at).and_then(|known| known.elements.clone())
    }

    /// Integers that are given by attribute `name` or, in later versions, by the constant input `at`.
    fn integers(&self, name: &str, at: usize) -> Option<Vec<i64>> {
        match self.node.ints(name) {
            Some(values) => Some(values.to_vec()),
            None => self.elements(at)?.iter().map(Dim::size).collect(),
        }
    }

    fn why(&self, what: &str) -> Why {
        format!("{} {what}", self.node).into()
    }

    fn fresh(&mut self) -> Dim {
        let count = self.inferred.symbols.count();
        // What could not be written down may hold the batch size: it is marked as if it did.
        let mark = if self.inferred.batch.is_some() { super::BATCH_MARK.to_string() } else { String::new() };
        Dim::symbol(self.inferred.symbols.fresh(&format!("?{count}{mark}")))
    }

    /// A size that is one of two: it holds the batch's size only if one of them does.
    fn one_of(&mut self, a: &Dim, b: &Dim) -> Dim {
        if self.inferred.has_batch(a) || self.inferred.has_batch(b) {
            return self.fresh();
        }
        let count = self.inferred.symbols.count();
        Dim::symbol(self.inferred.symbols.fresh(&format!("?{count}")))
    }

    fn or_fresh(&mut self, dim: Option<Dim>) -> Dim {
        dim.unwrap_or_else(|| self.fresh())
    }

    /// An axis counted from the end when negative.
    fn axis(&self, axis: i64, rank: usize) -> Result<usize, Why> {
        let from_start = if axis < 0 { axis.saturating_add(rank as i64) } else { axis };
        usize::try_from(from_start)
            .ok()
            .filter(|&axis| axis < rank)
            .ok_or_else(|| self.why("has an axis that its input lacks"))
    }

    fn broadcast(&mut self) -> Shape {
        (0..self.node.inputs.len()).try_fold(Vec::new(), |dims, at| self.broadcast_two(dims, self.dims(at)?))
    }

    fn broadcast_two(&mut self, a: Vec<Dim>, b: Vec<Dim>) -> Shape {
        let (mut dims, other) = if a.len() >= b.len() { (a, b) } else { (b, a) };
        let offset = dims.len() - other.len();
        let one = Dim::of(1);
        for (at, dim) in other.into_iter().enumerate() {
            let own = dims[offset + at].clone();
            // A number decides; of two symbols that differ either may be 1.
            dims[offset + at] = match (own.size(), dim.size()) {
                _ if dim == one || own == dim => own,
                _ if own == one => dim,
                (Some(_), Some(_)) => return Err(self.why("has inputs that do not broadcast")),
                (Some(_), None) => own,
                (None, Some(_)) => dim,
                (None, None) => self.one_of(&own, &dim),
            };
        }
        Ok(dims)
    }

    fn broadcasting(&mut self, dtype: Option<DType>) -> Vec<Known> {
        let dims = self.broadcast();
        let elements = self.arithmetic().filter(|elements| elements.len() <= ELEMENTS_MAX);
        vec![Known { dtype, dims, elements }]
    }

    /// The sum, difference, product or quotient of two small integer tensors.
    fn arithmetic(&mut self) -> Option<Vec<Dim>> {
        let (a, b) = (self.elements(0)?, self.elements(1)?);
        let count = a.len().max(b.len());
        if (a.len() != count && a.len() != 1) || (b.len() != count && b.len() != 1) || a.is_empty() || b.is_empty() {
            return None;
        }
        let operator = self.node.operator.clone();
        let mut one = |at: usize| {
            let (a, b) = (&a[at % a.len()], &b[at % b.len()]);
            match operator.as_str() {
                "Add" => a.plus(b),
                "Sub" => a.minus(b),
                "Mul" => a.times(b),
                "Div" => match b.size() {
                    // Integers are divided towards zero; sizes are not negative.
                    Some(by) if a.size().is_none_or(|a| a >= 0) => self.inferred.symbols.floor(a, by),
                    _ => a.divided(b),
                },
                _ => None,
            }
        };
        (0..count).map(&mut one).collect()
    }

    /// What a shape tensor asks for.
    fn target(&mut self, at: usize) -> Shape {
        let elements = self.elements(at).ok_or_else(|| self.why("takes a shape that is only known when it runs"))?;
        match elements.iter().any(|dim| dim.size().is_some_and(|size| size < 0)) {
            true => Err(self.why("takes a negative size")),
            false => Ok(elements),
        }
    }

    fn mat_mul(&mut self) -> Shape {
        let (mut a, mut b) = (self.dims(0)?, self.dims(1)?);
        if a.is_empty() || b.is_empty() {
            return Err(self.why("multiplies a number"));
        }
        let (row, column) = (a.len() == 1, b.len() == 1);
        if row {
            a.insert(0, Dim::of(1));
        }
        if column {
            b.push(Dim::of(1));
        }
        let (rows, columns) = (a[a.len() - 2].clone(), b[b.len() - 1].clone());
        let mut dims = self.broadcast_two(a[..a.len() - 2].to_vec(), b[..b.len() - 2].to_vec())?;
        if !row {
            dims.push(rows);
        }
        if !column {
            dims.push(columns);
        }
        Ok(dims)
    }

    fn gemm(&mut self) -> Shape {
        let (a, b) = (self.dims(0)?, self.dims(1)?);
        let (from_a, from_b) = (self.node.int("transA").unwrap_or(0) != 0, self.node.int("transB").unwrap_or(0) != 0);
        let [a, b] = [<[Dim; 2]>::try_from(a), <[Dim; 2]>::try_from(b)].map(Result::ok);
        let (Some(a), Some(b)) = (a, b) else { return Err(self.why("multiplies what is no matrix")) };
        Ok(vec![a[usize::from(from_a)].clone(), b[usize::from(!from_b)].clone()])
    }

    fn transpose(&mut self) -> Shape {
        let dims = self.dims(0)?;
        let reversed: Vec<i64> = (0..dims.len() as i64).rev().collect();
        let order = self.node.ints("perm").map_or(reversed, <[i64]>::to_vec);
        if order.len() != dims.len() {
            return Err(self.why("has an order of other axes than its input's"));
        }
        order.iter().map(|&from| self.axis(from, dims.len()).map(|from| dims[from].clone())).collect()
    }

    fn flatten(&mut self) -> Shape {
        let dims = self.dims(0)?;
        let axis = self.node.int("axis").unwrap_or(1);
        let axis = if axis == dims.len() as i64 { dims.len() } else { self.axis(axis, dims.len())? };
        let (rows, columns) = (product(&dims[..axis]), product(&dims[axis..]));
        Ok(vec![self.or_fresh(rows), self.or_fresh(columns)])
    }

    fn shape(&mut self) -> Vec<Known> {
        let rank = self.dims(0).map(|dims| dims.len());
        let bound = |at: i64, rank: usize| {
            (if at < 0 { at.saturating_add(rank as i64) } else { at }).clamp(0, rank as i64) as usize
        };
        let elements = self.dims(0).ok().map(|dims| {
            let (start, end) = (self.node.int("start").unwrap_or(0), self.node.int("end").unwrap_or(i64::MAX));
            let (start, end) = (bound(start, dims.len()), bound(end, dims.len()));
            dims[start.min(end)..end].to_vec()
        });
        let count = elements.as_ref().map(|elements| vec![Dim::of(elements.len() as i64)]);
        let dims = count.ok_or_else(|| rank.err().unwrap_or_else(|| "it is unknown".into()));
        vec![Known { dtype: Some(DType::I64), dims, elements }]
    }

    fn gather(&mut self) -> Vec<Known> {
        let dims = || -> Shape {
            let (data, indices) = (self.dims(0)?, self.dims(1)?);
            let axis = self.axis(self.node.int("axis").unwrap_or(0), data.len())?;
            Ok([&data[..axis], &indices, &data[axis + 1..]].concat())
        };
        let dims = dims();
        let picked = || -> Option<Vec<Dim>> {
            let (data, indices) = (self.elements(0)?, self.elements(1)?);
            let pick = |index: &Dim| data.get(self.axis(index.size()?, data.len()).ok()?).cloned();
            indices.iter().map(pick).collect()
        };
        let elements = picked().filter(|_| dims.as_ref().is_ok_and(|dims| dims.len() <= 1));
        vec![Known { dtype: self.dtype(0), dims, elements }]
    }

    fn concat(&mut self) -> Vec<Known> {
        let mut concatenated = || -> Shape {
            let mut dims = self.dims(0)?;
            let axis = self.axis(self.node.int("axis").unwrap_or(1), dims.len())?;
            for at in 1..self.node.inputs.len() {
                let other = self.dims(at)?;
                if other.len() != dims.len() {
                    return Err(self.why("joins tensors of different ranks"));
                }
                let sum = dims[axis].plus(&other[axis]);
                dims[axis] = self.or_fresh(sum);
                for other_axis in (0..dims.len()).filter(|&other_axis| other_axis != axis) {
                    if dims[other_axis].size().is_none() && other[other_axis].size().is_some() {
                        dims[other_axis] = other[other_axis].clone();
                    }
                }
            }
            Ok(dims)
        };
        let dims = concatenated();
        let joined = |mut all: Vec<Dim>, at: usize| {
            all.extend(self.elements(at)?);
            (all.len() <= ELEMENTS_MAX).then_some(all)
        };
        let elements = (0..self.node.inputs.len()).try_fold(Vec::new(), joined);
        vec![Known { dtype: self.dtype(0), dims, elements }]
    }

    /// `(axis, start, end, step)` of each sliced axis.
    pub(crate) fn slices(&self, rank: usize) -> Result<Vec<(usize, Dim, Dim, i64)>, Why> {
        let of = |name: &str, at: usize| match self.node.ints(name) {
            Some(values) => Some(values.iter().copied().map(Dim::of).collect()),
            None => self.elements(at),
        };
        let unknown = || self.why("slices at places that are only known when it runs");
        let (starts, ends) = (of("starts", 1).ok_or_else(unknown)?, of("ends", 2).ok_or_else(unknown)?);
        let given = self.node.ints("axes").is_some() || self.node.input(3).is_some();
        let axes =
            if given { self.integers("axes", 3).ok_or_else(unknown)? } else { (0..starts.len() as i64).collect() };
        let steps = match self.node.input(4) {
            Some(_) => self.integers("steps", 4).ok_or_else(unknown)?,
            None => vec![1; starts.len()],
        };
        if starts.len() != ends.len() || axes.len() != starts.len() || steps.len() != starts.len() {
            return Err(self.why("has slices that do not go together"));
        }
        let each = axes.iter().zip(starts).zip(ends).zip(steps);
        each.map(|(((&axis, start), end), step)| Ok((self.axis(axis, rank)?, start, end, step))).collect()
    }

    fn slice(&mut self) -> Vec<Known> {
        let mut elements = self.elements(0);
        let mut sliced = || -> Shape {
            let mut dims = self.dims(0)?;
            for (axis, start, end, step) in self.slices(dims.len())? {
                let (from, to) = (bounded(&start, &dims[axis]), bounded(&end, &dims[axis]));
                if let (Some(all), Some(from), Some(to), 1) =
                    (elements.take(), from.as_ref().and_then(Dim::size), to.as_ref().and_then(Dim::size), step)
                {
                    elements = all.get(from as usize..to.max(from) as usize).map(<[Dim]>::to_vec);
                }
                let length = match (from, to) {
                    (Some(from), Some(to)) => to.minus(&from),
                    _ => None,
                };
                dims[axis] = match length {
                    Some(length) if step == 1 && length.size().is_none_or(|length| length >= 0) => length,
                    Some(length) if step > 1 && length.size().is_some_and(|length| length >= 0) => {
                        Dim::of(length.size().unwrap_or(0).saturating_add(step - 1) / step)
                    }
                    Some(length) if step == 1 && length.size().is_some() => Dim::of(0),
                    _ => self.fresh(),
                };
            }
            Ok(dims)
        };
        let dims = sliced();
        let elements = elements.filter(|_| dims.is_ok());
        vec![Known { dtype: self.dtype(0), dims, elements }]
    }

    fn split(&mut self) -> Vec<Known> {
        let (dtype, count) = (self.dtype(0), self.node.outputs.len());
        let parts = || -> Result<Vec<Vec<Dim>>, Why> {
            let dims = self.dims(0)?;
            let axis = self.axis(self.node.int("axis").unwrap_or(0), dims.len())?;
            let sizes: Option<Vec<Dim>> = match self.integers("split", 1) {
                Some(sizes) => Some(sizes.into_iter().map(Dim::of).collect()),
                None if self.node.input(1).is_none() => {
                    dims[axis].divided(&Dim::of(count.max(1) as i64)).map(|part| vec![part; count])
                }
                None => None,
            };
            let sizes =
                sizes.filter(|sizes| sizes.len() == count).ok_or_else(|| self.why("splits into unequal parts"))?;
            let part = |size: Dim| {
                let mut part = dims.clone();
                part[axis] = size;
                part
            };
            Ok(sizes.into_iter().map(part).collect())
        };
        match parts() {
            Ok(parts) => parts.into_iter().map(|dims| Known { dtype, dims: Ok(dims), elements: None }).collect(),
            Err(why) => vec![Known { dtype, dims: Err(why), elements: None }; count],
        }
    }

    fn squeeze(&mut self) -> Vec<Known> {
        let squeezed = || -> Shape {
            let mut dims = self.dims(0)?;
            let axes = self.integers("axes", 1);
            let removes = self.node.operator == "Squeeze";
            let given = self.node.ints("axes").is_some() || self.node.input(1).is_some();
            if removes && !given {
                dims.retain(|dim| *dim != Dim::of(1));
                return Ok(dims);
            }
            let axes = axes.ok_or_else(|| self.why("takes axes that are only known when it runs"))?;
            if axes.len() > super::RANK_MAX {
                return Err(self.why("has too many axes"));
            }
            let rank = if removes { dims.len() } else { dims.len() + axes.len() };
            let mut axes = axes.iter().map(|&axis| self.axis(axis, rank)).collect::<Result<Vec<_>, Why>>()?;
            axes.sort_unstable();
            axes.dedup();
            if removes {
                axes.iter().rev().for_each(|&axis| drop(dims.remove(axis)));
            } else {
                for axis in axes {
                    dims.insert(axis.min(dims.len()), Dim::of(1));
                }
            }
            Ok(dims)
        };
        let dims = squeezed();
        let elements = self.elements(0).filter(|_| dims.as_ref().is_ok_and(|dims| dims.len() <= 1));
        vec![Known { dtype: self.dtype(0), dims, elements }]
    }

    fn reshape(&mut self) -> Shape {
        let dims = self.dims(0)?;
        let target = match self.node.ints("shape") {
            Some(values) => values.iter().copied().map(Dim::of).collect(),
            None => self.elements(1).ok_or_else(|| self.why("takes a shape that is only known when it runs"))?,
        };
        let keeps_zero = self.node.int("allowzero").unwrap_or(0) != 0;
        let mut shaped = Vec::with_capacity(target.len());
        let mut open = None;
        for (at, dim) in target.into_iter().enumerate() {
            match dim.size() {
                Some(-1) if open.replace(at).is_some() => return Err(self.why("leaves two dimensions open")),
                Some(-1) => shaped.push(Dim::of(1)),
                Some(0) if !keeps_zero => {
                    shaped
                        .push(dims.get(at).cloned().ok_or_else(|| self.why("keeps a dimension that its input lacks"))?);
                }
                Some(size) if size < 0 => return Err(self.why("takes a negative size")),
                _ => shaped.push(dim),
            }
        }
        if let Some(at) = open {
            let rest = product(&dims).and_then(|all| all.divided(&product(&shaped)?));
            shaped[at] = self.or_fresh(rest);
        }
        Ok(shaped)
    }

    fn reduce(&mut self) -> Shape {
        let dims = self.dims(0)?;
        let arg = self.node.operator.starts_with("Arg");
        let keeps = self.node.int("keepdims").unwrap_or(1) != 0;
        let axes = match arg {
            true => vec![self.node.int("axis").unwrap_or(0)],
            false => {
                let given = self.node.ints("axes").is_some() || self.node.input(1).is_some();
                match self.integers("axes", 1) {
                    Some(axes) if !axes.is_empty() => axes,
                    None if given => return Err(self.why("takes axes that are only known when it runs")),
                    _ if self.node.int("noop_with_empty_axes").unwrap_or(0) != 0 => return Ok(dims),
                    _ => (0..dims.len() as i64).collect(),
                }
            }
        };
        let axes = axes.iter().map(|&axis| self.axis(axis, dims.len())).collect::<Result<Vec<_>, Why>>()?;
        let each = dims.into_iter().enumerate();
        Ok(each
            .filter_map(|(axis, dim)| match (axes.contains(&axis), keeps) {
                (true, true) => Some(Dim::of(1)),
                (true, false) => None,
                (false, _) => Some(dim),
            })
            .collect())
    }

    fn pad(&mut self) -> Shape {
        let dims = self.dims(0)?;
        let pads = self.integers("pads", 1).ok_or_else(|| self.why("pads by what is only known when it runs"))?;
        if self.node.input(3).is_some() || pads.len() != 2 * dims.len() {
            return Err(self.why("pads some axes only, which is not inferred"));
        }
        let rank = dims.len();
        let each = dims.into_iter().enumerate();
        Ok(each
            .map(|(axis, dim)| {
                let padded = pads[axis].checked_add(pads[axis + rank]).and_then(|both| dim.plus(&Dim::of(both)));
                self.or_fresh(padded)
            })
            .collect())
    }

    fn resize(&mut self) -> Shape {
        let dims = self.dims(0)?;
        // Version 10 had the factors as its second input, later ones have a region there.
        let at = if self.opset <= 10 { 1 } else { 2 };
        let factors =
            self.node.input(at).and_then(|id| self.graph.constant(id)).and_then(|tensor| tensor.floats(dims.len()));
        if let Some(factors) = factors.filter(|factors| factors.len() == dims.len()) {
            let scaled = |(dim, &factor): (Dim, &f32)| {
                let whole = (factor.fract() == 0.0 && (1.0..1e6).contains(&factor)).then_some(factor as i64);
                let dim = match (dim.size(), whole) {
                    (_, Some(factor)) => dim.times(&Dim::of(factor)),
                    (Some(size), None) => Some(Dim::of((size as f64 * f64::from(factor)).floor() as i64)),
                    _ => None,
                };
                self.or_fresh(dim)
            };
            return Ok(dims.into_iter().zip(&factors).map(scaled).collect());
        }
        let sizes = if self.node.input(3).is_some() { self.elements(3) } else { None };
        match sizes {
            Some(sizes) if sizes.len() == dims.len() => Ok(sizes),
            _ => {
                // Items and channels are not resized by what is only known later, unless the file says so.
                Err(self.why("resizes to what is only known when it runs"))
            }
        }
    }

    /// Convolutions and pools.
    fn window(&mut self) -> Shape {
        let dims = self.dims(0)?;
        let convolves = self.node.operator.starts_with("Conv");
        let transposed = self.node.operator == "ConvTranspose";
        let weights = if convolves { Some(self.dims(1)?) } else { None };
        let spatial =
            dims.len().checked_sub(2).filter(|&spatial| spatial > 0).ok_or_else(|| self.why("takes no picture"))?;
        if weights.as_ref().is_some_and(|weights| weights.len() != dims.len()) {
            return Err(self.why("has weights of another rank than its input"));
        }
        let kernel: Option<Vec<i64>> = match (self.node.ints("kernel_shape"), &weights) {
            (Some(kernel), _) => Some(kernel.to_vec()),
            (None, Some(weights)) => weights[2..].iter().map(Dim::size).collect(),
            (None, None) => None,
        };
        let kernel = kernel
            .filter(|kernel| kernel.len() == spatial)
            .ok_or_else(|| self.why("has no kernel of its input's rank"))?;
        let all =
            |name: &str, value: i64, count: usize| self.node.ints(name).map_or(vec![value; count], <[i64]>::to_vec);
        let (strides, dilations) = (all("strides", 1, spatial), all("dilations", 1, spatial));
        let (pads, extra) = (all("pads", 0, 2 * spatial), all("output_padding", 0, spatial));
        if strides.len() != spatial || dilations.len() != spatial || pads.len() != 2 * spatial || extra.len() != spatial
        {
            return Err(self.why("has strides, dilations or pads of another rank than its input"));
        }
        let sane = |&value: &i64| (0..=1 << 20).contains(&value);
        if ![&kernel, &strides, &dilations, &pads, &extra].into_iter().flatten().all(sane) {
            return Err(self.why("has a kernel, strides, dilations or pads out of range"));
        }
        let group = self.node.int("group").unwrap_or(1);
        let channels = match &weights {
            None => Some(dims[1].clone()),
            Some(weights) if transposed => weights[1].times(&Dim::of(group)),
            Some(weights) => Some(weights[0].clone()),
        };
        let mut shape = vec![dims[0].clone(), self.or_fresh(channels)];
        let auto = self.node.string("auto_pad").unwrap_or("NOTSET").to_owned();
        let ceils = self.node.int("ceil_mode").unwrap_or(0) != 0;
        for at in 0..spatial {
            let reach = dilations[at] * (kernel[at] - 1) + 1;
            let (size, stride) = (&dims[at + 2], strides[at]);
            let both = pads[at] + pads[at + spatial];
            let out = match (auto.as_str(), transposed) {
                ("SAME_UPPER" | "SAME_LOWER", false) => {
                    size.plus(&Dim::of(stride - 1)).and_then(|size| self.inferred.symbols.floor(&size, stride))
                }
                ("SAME_UPPER" | "SAME_LOWER", true) => size.times(&Dim::of(stride)),
                ("VALID" | "NOTSET", false) => {
                    let both = if auto == "VALID" { 0 } else { both };
                    let over = both - reach + if ceils { stride - 1 } else { 0 };
                    let steps = size.plus(&Dim::of(over)).and_then(|size| self.inferred.symbols.floor(&size, stride));
                    steps.and_then(|steps| steps.plus(&Dim::of(1)))
                }
                (_, true) => size
                    .minus(&Dim::of(1))
                    .and_then(|size| size.times(&Dim::of(stride))?.plus(&Dim::of(extra[at] + reach - both))),
                _ => None,
            };
            shape.push(self.or_fresh(out));
        }
        Ok(shape)
    }

    fn recurrent(&mut self) -> Vec<Known> {
        let dtype = self.dtype(0);
        let shapes = || -> Result<Vec<Vec<Dim>>, Why> {
            let dims = self.dims(0)?;
            let [steps, items, _] = <[Dim; 3]>::try_from(dims).map_err(|_| self.why("takes no sequence"))?;
            if self.node.int("layout").unwrap_or(0) != 0 {
                return Err(self.why("has its batch first, which is not inferred"));
            }
            let directions = Dim::of(if self.node.string("direction") == Some("bidirectional") { 2 } else { 1 });
            let hidden = self.node.int("hidden_size").map(Dim::of).ok_or_else(|| self.why("does not say its size"))?;
            let last = vec![directions.clone(), items.clone(), hidden.clone()];
            Ok(vec![vec![steps, directions, items, hidden], last.clone(), last])
        };
        match shapes() {
            Ok(shapes) => shapes.into_iter().map(|dims| Known { dtype, dims: Ok(dims), elements: None }).collect(),
            Err(why) => vec![Known { dtype, dims: Err(why), elements: None }; 3],
        }
    }
}

/// `None`: too large to be written down.
pub(crate) fn product(dims: &[Dim]) -> Option<Dim> {
    dims.iter().try_fold(Dim::of(1), |product, dim| product.times(dim))
}

/// Where a slice's start or end really is: counted from the end when negative, never past it.
fn bounded(at: &Dim, length: &Dim) -> Option<Dim> {
    match (at.size(), length.size()) {
        _ if at == length => Some(length.clone()),
        (Some(at), Some(length)) => {
            Some(Dim::of(if at < 0 { at.saturating_add(length).max(0) } else { at.min(length) }))
        }
        (Some(0), None) => Some(Dim::of(0)),
        // The idioms for "to the end": the largest number of some type, or 1,000,000,000. No axis is that long.
        (Some(at), None) if at >= 1_000_000_000 => Some(length.clone()),
        _ => None,
    }
}
