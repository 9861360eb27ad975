//! One rule per kind of operator.

mod shapes;
mod windows;

use super::{ELEMENTS_MAX, Inferred, Known, Why};
use crate::dim::Dim;
use crate::graph::{Attribute, Graph, Node};
use crate::tensor::DType;

/// Operators that compute each element of their one input by itself.
pub(crate) const UNARY: [&str; 40] = [
    "Relu",
    "Sigmoid",
    "Tanh",
    "Exp",
    "Log",
    "Sqrt",
    "Abs",
    "Neg",
    "Reciprocal",
    "Floor",
    "Ceil",
    "Round",
    "Erf",
    "LeakyRelu",
    "Elu",
    "Selu",
    "HardSigmoid",
    "HardSwish",
    "Softplus",
    "Softsign",
    "Gelu",
    "Mish",
    "Sin",
    "Cos",
    "Sign",
    "Acos",
    "Acosh",
    "Asin",
    "Asinh",
    "Atan",
    "Atanh",
    "BitwiseNot",
    "Celu",
    "Cosh",
    "IsInf",
    "IsNaN",
    "Shrink",
    "Sinh",
    "Tan",
    "ThresholdedRelu",
];
/// Operators on the elements of inputs that broadcast.
pub(crate) const ARITHMETIC: [&str; 14] = [
    "Add",
    "Sub",
    "Mul",
    "Div",
    "Pow",
    "PRelu",
    "Max",
    "Min",
    "Mod",
    "Sum",
    "Mean",
    "BitwiseAnd",
    "BitwiseOr",
    "BitwiseXor",
];
/// The same, with truth values as the result.
pub(crate) const COMPARING: [&str; 9] =
    ["Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual", "And", "Or", "Xor", "Not"];

/// A node, and what is known where it stands.
pub(super) struct Site<'a> {
    pub graph: &'a Graph,
    pub node: &'a Node,
    pub opset: i64,
    pub inferred: &'a mut Inferred,
}

type Shape = Result<Vec<Dim>, Why>;

impl Site<'_> {
    /// What is known of each output; empty for an operator without a rule.
    pub(super) fn outputs(mut self) -> Vec<Known> {
        if !self.node.domain.is_empty() {
            return vec![];
        }
        match self.node.operator.as_str() {
            "Identity" | "Dropout" | "Cast" => self.kept(),
            operator if ARITHMETIC.contains(&operator) => self.computed(),
            "Shape" => self.shape(),
            "Size" => self.element_count(),
            "Gather" => self.gather(),
            "Concat" => self.concat(),
            "Slice" => self.slice(),
            "Split" => self.split(),
            "Squeeze" | "Unsqueeze" => self.squeeze(),
            "Reshape" => self.reshape(),
            "LSTM" | "GRU" | "RNN" => self.recurrent(),
            _ => match self.one() {
                Some((dtype, dims)) => vec![Known { dtype, dims, elements: None }],
                None => vec![],
            },
        }
    }

    /// Operators with one output whose elements are not followed.
    fn one(&mut self) -> Option<(Option<DType>, Shape)> {
        let mut dtype = self.dtype(0);
        let dims = match self.node.operator.as_str() {
            "IsInf" | "IsNaN" => {
                dtype = Some(DType::BOOL);
                self.dims(0)
            }
            operator if UNARY.contains(&operator) => self.dims(0),
            "CastLike" => {
                dtype = self.dtype(1);
                self.dims(0)
            }
            "GatherElements" => self.dims(1),
            "DepthToSpace" | "SpaceToDepth" => self.depth_space(),
            "Tile" => self.tile(),
            "Clip"
            | "Softmax"
            | "LogSoftmax"
            | "BatchNormalization"
            | "InstanceNormalization"
            | "LayerNormalization"
            | "GroupNormalization"
            | "RMSNormalization"
            | "Swish"
            | "CumSum"
            | "Trilu"
            | "LRN" => self.dims(0),
            operator if COMPARING.contains(&operator) => {
                dtype = Some(DType::BOOL);
                self.broadcast()
            }
            "Where" => {
                dtype = self.dtype(1);
                self.broadcast()
            }
            "ConstantOfShape" => {
                dtype = Some(match self.node.attributes.get("value") {
                    Some(Attribute::Tensor(tensor)) => tensor.dtype,
                    _ => DType::F32,
                });
                self.target(0)
            }
            "ArgMax" | "ArgMin" => {
                dtype = Some(DType::I64);
                self.reduce()
            }
            "ReduceMean" | "ReduceSum" | "ReduceMax" | "ReduceMin" | "ReduceProd" | "ReduceL1" | "ReduceL2"
            | "ReduceSumSquare" | "ReduceLogSum" | "ReduceLogSumExp" => self.reduce(),
            "Conv" | "MaxPool" | "AveragePool" | "ConvTranspose" => self.window(),
            "GlobalAveragePool" | "GlobalMaxPool" => self.dims(0).map(|mut dims| {
                dims.iter_mut().skip(2).for_each(|dim| *dim = Dim::of(1));
                dims
            }),
            "MatMul" => self.mat_mul(),
            "Gemm" => self.gemm(),
            "Transpose" => self.transpose(),
            "Flatten" => self.flatten(),
            "Expand" => self.target(1).and_then(|target| self.broadcast_two(self.dims(0)?, target)),
            "Pad" => self.pad(),
            "Resize" => self.resize(),
            _ => return None,
        };
        Some((dtype, dims))
    }

    /// The same tensor, perhaps as another type.
    fn kept(&self) -> Vec<Known> {
        let dtype = self.node.int("to").map(|to| DType(to as i32)).or(self.dtype(0));
        let elements = self.elements(0).filter(|_| [Some(DType::I64), Some(DType::I32)].contains(&dtype));
        vec![Known { dtype, dims: self.dims(0), elements }]
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

    fn computed(&mut self) -> Vec<Known> {
        let dims = self.broadcast();
        let elements = self.arithmetic().filter(|elements| elements.len() <= ELEMENTS_MAX);
        vec![Known { dtype: self.dtype(0), dims, elements }]
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
}

/// `None`: too large to be written down.
pub(crate) fn product(dims: &[Dim]) -> Option<Dim> {
    dims.iter().try_fold(Dim::of(1), |product, dim| product.times(dim))
}
