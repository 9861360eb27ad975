//! One rule per kind of operator: what it is for all members at once.

use super::StackError;
use super::build::{Building, Common, Form, Made, Operand, Own, refusal};
use crate::graph::{Attribute, Node, ValueId};
use crate::tensor::Tensor;
use std::collections::BTreeMap;

/// Element-wise, and of any number a number: padding stays harmless.
const ACTIVATIONS: [&str; 15] = [
    "Relu",
    "LeakyRelu",
    "Elu",
    "Selu",
    "Sigmoid",
    "HardSigmoid",
    "HardSwish",
    "Tanh",
    "Erf",
    "Softplus",
    "Softsign",
    "Abs",
    "Neg",
    "Floor",
    "Ceil",
];
/// Since then Softmax is along one axis; before, along all from the given one on.
const SOFTMAX_OF_ONE_AXIS: i64 = 13;
/// More numbers in one constant are no head's weights.
const ELEMENTS_MAX: usize = 1 << 26;

impl Building<'_> {
    /// A node that is no reshape, of members written in `opset`.
    pub fn operation(&mut self, node: &Node, opset: i64, operands: Vec<Option<Operand>>) -> Result<Made, StackError> {
        let why = |why: &str| refusal(format!("{node} {why}"));
        if !node.domain.is_empty() || node.outputs.iter().skip(1).any(Option::is_some) {
            return Err(why("is not among the operators of heads"));
        }
        let mut operands = operands.into_iter();
        let mut next = || operands.next().flatten();
        let first = next().ok_or_else(|| why("lacks an input"))?;
        let made = match (node.operator.as_str(), first, next()) {
            ("Identity", Operand::Made(of), _) => return Ok(of),
            ("MatMul", Operand::Made(of), Some(Operand::Constants(weights))) => {
                let weights = matrices(&weights, false, 1.0).ok_or_else(|| why("has weights that are no matrix"))?;
                self.product(of, &weights)
            }
            ("Gemm", Operand::Made(of), Some(Operand::Constants(weights))) => self.gemm(node, of, &weights, next()),
            ("Add" | "Sub" | "Mul" | "Div", a, Some(b)) => self.elementwise(&node.operator, a, b),
            ("Clip", Operand::Made(Made::Own(of)), low) => self.clip(node, of, [low, next()]),
            ("Softmax" | "LogSoftmax", Operand::Made(Made::Own(of)), _) => self.softmax(node, opset, of),
            ("LayerNormalization", Operand::Made(of), Some(scale)) => self.normalised(node, of, scale, next()),
            (activation, Operand::Made(Made::Own(of)), None) if ACTIVATIONS.contains(&activation) => {
                Ok(Own { id: self.emit(activation, &[of.id], node.attributes.clone()), ..of })
            }
            _ => Err(why("is not among the operators of heads, or not in that use")),
        };
        made.map(Made::Own).map_err(|error| refusal(format!("{node}: {error}")))
    }

    fn gemm(&mut self, node: &Node, of: Made, weights: &[Tensor], bias: Option<Operand>) -> Result<Own, StackError> {
        if node.int("transA").unwrap_or(0) != 0 {
            return Err(refusal("it multiplies a transposed input"));
        }
        let weights = matrices(weights, node.int("transB").unwrap_or(0) != 0, float(node, "alpha", 1.0));
        let product = self.product(of, &weights.ok_or_else(|| refusal("its weights are no matrix"))?)?;
        let bias = match bias {
            None => return Ok(product),
            Some(Operand::Made(_)) => return Err(refusal("it adds what is no constant")),
            Some(Operand::Constants(bias)) => bias,
        };
        let beta = float(node, "beta", 1.0);
        let scaled = |tensor: &Tensor| {
            let values = tensor.floats(ELEMENTS_MAX)?.into_iter().map(|value| value * beta).collect::<Vec<f32>>();
            Some(Tensor::f32s(tensor.dims.clone(), &values))
        };
        let bias = bias.iter().map(scaled).collect::<Option<Vec<Tensor>>>();
        self.with_constants("Add", product, &bias.ok_or_else(|| refusal("it adds what is not f32"))?, false)
    }

    /// Of what all members read, one product with their weights side by side. Of what differs, a product for each member, which is a
    /// batch of products.
    fn product(&mut self, of: Made, weights: &[Matrix]) -> Result<Own, StackError> {
        let widths: Vec<u64> = weights.iter().map(|matrix| matrix.columns as u64).collect();
        let (members, stride) = (weights.len(), widths.iter().copied().max().unwrap_or(0) as usize);
        let rows = weights.iter().map(|matrix| matrix.rows).max().unwrap_or(0);
        let mut values = zeros(rows.checked_mul(members).and_then(|all| all.checked_mul(stride)))?;
        match of {
            Made::Common(of) => {
                if of.rank < 2 || weights.iter().any(|matrix| matrix.rows != rows) {
                    return Err(refusal("it multiplies a vector, or matrices of different heights"));
                }
                for (member, matrix) in weights.iter().enumerate() {
                    matrix.copy_to(&mut values, member * stride, members * stride);
                }
                let weights = self.constant(Tensor::f32s(vec![rows as u64, (members * stride) as u64], &values));
                let id = self.emit("MatMul", &[of.id, weights], BTreeMap::new());
                Ok(Own { id, form: Form::Flat, rank: of.rank, widths, finite: true })
            }
            Made::Own(of) => {
                let fits = of.widths.iter().zip(weights).all(|(&width, matrix)| width == matrix.rows as u64);
                if !fits || of.rank < 2 || (of.is_ragged() && !of.finite) {
                    return Err(refusal("its input is no matrix of its weights' height, or is padded with infinities"));
                }
                for (member, matrix) in weights.iter().enumerate() {
                    matrix.copy_to(&mut values, member * rows * stride, stride);
                }
                // [items, …, members, width], the members' axis first, and back.
                let (rank, members_axis) = (of.rank + 1, of.rank - 1);
                let first: Vec<usize> =
                    [members_axis].into_iter().chain((0..rank).filter(|&axis| axis != members_axis)).collect();
                let mut back: Vec<usize> = (1..=members_axis).collect();
                back.extend([0, rank - 1]);
                let mut dims = vec![members as u64];
                dims.resize(rank - 2, 1);
                dims.extend([rows as u64, stride as u64]);
                let weights = self.constant(Tensor::f32s(dims, &values));
                let apart = self.apart(&of);
                let turned = self.transposed(apart, &first);
                let product = self.emit("MatMul", &[turned, weights], BTreeMap::new());
                let id = self.transposed(product, &back);
                Ok(Own { id, form: Form::Apart, rank: of.rank, widths, finite: true })
            }
        }
    }

    fn elementwise(&mut self, operator: &str, a: Operand, b: Operand) -> Result<Own, StackError> {
        let (a, b) = match (a, b) {
            (Operand::Made(of), Operand::Constants(with)) => {
                let of = self.own(of, &with)?;
                return self.with_constants(operator, of, &with, false);
            }
            (Operand::Constants(with), Operand::Made(of)) => {
                let of = self.own(of, &with)?;
                return self.with_constants(operator, of, &with, true);
            }
            (Operand::Made(a), Operand::Made(b)) => (a, b),
            (Operand::Constants(_), Operand::Constants(_)) => return Err(refusal("both its inputs are constants")),
        };
        let own = match (&a, &b) {
            (Made::Own(own), _) | (_, Made::Own(own)) => own.clone(),
            _ => return Err(refusal("it is the same for all members")),
        };
        let mut ids = Vec::new();
        let mut finite = operator != "Div" || !own.is_ragged();
        for made in [&a, &b] {
            let (rank, alike) = match made {
                Made::Own(other) => (other.rank, other.widths == own.widths),
                Made::Common(other) => (other.rank, own.widths.iter().all(|&width| other.width == Some(width))),
            };
            if rank != own.rank || !alike {
                return Err(refusal("its inputs have different dimensions"));
            }
            finite &= !matches!(made, Made::Own(other) if !other.finite);
            ids.push(match made {
                Made::Own(own) => self.apart(own),
                Made::Common(common) => self.one_apart(common),
            });
        }
        let id = self.emit(operator, &ids, BTreeMap::new());
        Ok(Own { id, form: Form::Apart, finite, ..own })
    }

    /// A value as one that differs, because what is done `with` it does; its members axis is 1.
    fn own(&mut self, of: Made, with: &[Tensor]) -> Result<Own, StackError> {
        match of {
            Made::Own(own) => Ok(own),
            Made::Common(common) => {
                let width = common.width.filter(|_| common.rank >= 2);
                let width = width.ok_or_else(|| refusal("the last axis of its input is no number"))?;
                let id = self.one_apart(&common);
                Ok(Own { id, form: Form::Apart, rank: common.rank, widths: vec![width; with.len()], finite: true })
            }
        }
    }

    /// Adds, subtracts, multiplies or divides with constants of a number for each column or of one for all.
    fn with_constants(&mut self, operator: &str, of: Own, with: &[Tensor], first: bool) -> Result<Own, StackError> {
        // What is divided by has no zeros for padding; a constant divided by the value's own padding may be anything.
        let fill = if operator == "Div" && !first { 1.0 } else { 0.0 };
        let finite = of.finite && !(operator == "Div" && first && of.is_ragged());
        let stride = of.stride() as usize;
        let mut values = zeros(stride.checked_mul(with.len()))?;
        values.fill(fill);
        for ((tensor, &width), columns) in with.iter().zip(&of.widths).zip(values.chunks_mut(stride.max(1))) {
            let given = tensor.floats(ELEMENTS_MAX).ok_or_else(|| refusal("a constant of it is not f32"))?;
            let ones = tensor.dims.iter().rev().skip(1).all(|&dim| dim == 1);
            let broadcasts = given.len() == 1 || given.len() as u64 == width;
            if tensor.dims.len() > of.rank || !ones || !broadcasts {
                return Err(refusal("a constant of it is no row of its input's width"));
            }
            for (column, value) in columns.iter_mut().take(width as usize).enumerate() {
                *value = given[column % given.len()];
            }
        }
        let constant = self.constant(Tensor::f32s(self.row(&of), &values));
        let inputs = if first { [constant, of.id] } else { [of.id, constant] };
        Ok(Own { id: self.emit(operator, &inputs, BTreeMap::new()), finite, ..of })
    }

    /// The dimensions of a constant with a number for each column of every member.
    fn row(&self, of: &Own) -> Vec<u64> {
        match of.form {
            Form::Flat => vec![self.members() * of.stride()],
            Form::Apart => vec![self.members(), of.stride()],
        }
    }

    fn clip(&mut self, node: &Node, of: Own, bounds: [Option<Operand>; 2]) -> Result<Own, StackError> {
        let mut limits = [float(node, "min", f32::NEG_INFINITY), float(node, "max", f32::INFINITY)];
        for (limit, given) in limits.iter_mut().zip(bounds) {
            match given {
                None => {}
                Some(Operand::Constants(all)) if all.iter().all(|tensor| tensor.data == all[0].data) => {
                    let value = all[0].floats(1).filter(|values| values.len() == 1);
                    *limit = value.ok_or_else(|| refusal("a bound of it is no number"))?[0];
                }
                Some(_) => return Err(refusal("its bounds differ by member, or are no constants")),
            }
        }
        let [low, high] = limits.map(|limit| self.constant(Tensor::f32s(vec![], &[limit])));
        Ok(Own { id: self.emit("Clip", &[of.id, low, high], BTreeMap::new()), ..of })
    }

    fn softmax(&mut self, node: &Node, opset: i64, of: Own) -> Result<Own, StackError> {
        let axis = node.int("axis").unwrap_or(if opset < SOFTMAX_OF_ONE_AXIS { 1 } else { -1 });
        if ![-1, of.rank as i64 - 1].contains(&axis) {
            return Err(refusal("it is not along the last axis"));
        }
        let mut id = self.apart(&of);
        if of.is_ragged() {
            if !of.finite {
                return Err(refusal("its input is padded with infinities"));
            }
            // What is added to padding leaves nothing of it.
            let stride = of.stride();
            let mask = of
                .widths
                .iter()
                .flat_map(|&width| (0..stride).map(move |column| if column < width { 0.0 } else { f32::NEG_INFINITY }));
            let mask: Vec<f32> = mask.collect();
            let mask = self.constant(Tensor::f32s(vec![self.members(), stride], &mask));
            id = self.emit("Add", &[id, mask], BTreeMap::new());
        }
        let id = self.emit(&node.operator, &[id], [("axis".to_owned(), Attribute::Int(-1))].into());
        Ok(Own { id, form: Form::Apart, finite: node.operator == "Softmax" || !of.is_ragged(), ..of })
    }

    /// Normalised without scale and bias, which follow as for everything that differs by member.
    fn normalised(&mut self, node: &Node, of: Made, scale: Operand, bias: Option<Operand>) -> Result<Own, StackError> {
        let (id, rank, width) = match &of {
            Made::Own(own) if !own.is_ragged() => (self.apart(own), own.rank, own.widths[0]),
            Made::Common(Common { id, rank, width: Some(width) }) => (*id, *rank, *width),
            _ => return Err(refusal("what it normalises has different widths")),
        };
        if ![-1, rank as i64 - 1].contains(&node.int("axis").unwrap_or(-1)) {
            return Err(refusal("it is not along the last axis"));
        }
        let mut ones = zeros(usize::try_from(width).ok())?;
        ones.fill(1.0);
        let ones = self.constant(Tensor::f32s(vec![width], &ones));
        let epsilon = Attribute::Float(float(node, "epsilon", 1e-5));
        let attributes = [("axis".to_owned(), Attribute::Int(-1)), ("epsilon".to_owned(), epsilon)];
        let id = self.emit("LayerNormalization", &[id, ones], attributes.into());
        let of = match of {
            Made::Own(own) => Made::Own(Own { id, form: Form::Apart, ..own }),
            Made::Common(common) => Made::Common(Common { id, ..common }),
        };
        let scaled = self.elementwise("Mul", Operand::Made(of), scale)?;
        match bias {
            Some(bias) => self.elementwise("Add", Operand::Made(Made::Own(scaled)), bias),
            None => Ok(scaled),
        }
    }

    /// A Flatten or Reshape that leaves each member's items with the dimensions `tails`.
    pub fn reshaped(&mut self, node: &Node, of: Own, tails: &[Vec<u64>]) -> Result<Own, StackError> {
        let widths: Option<Vec<u64>> = tails.iter().map(|tail| tail.last().copied()).collect();
        let widths = widths.ok_or_else(|| refusal(format!("{node} leaves a number for each item")))?;
        let rank = tails[0].len() + 1;
        if rank == 2 && of.rank == 2 {
            return Ok(of);
        }
        if of.is_ragged() || tails.iter().any(|tail| *tail != tails[0]) {
            return Err(refusal(format!("{node} reshapes different widths")));
        }
        // With the members' axis behind the items', what lies behind it is one member's.
        let behind =
            |rank: usize| -> Vec<usize> { [0, rank - 1].into_iter().chain(1..rank - 1).chain([rank]).collect() };
        let mut id = self.apart(&of);
        if of.rank > 2 {
            id = self.transposed(id, &behind(of.rank));
        }
        let target: Vec<i64> =
            [0, self.members() as i64].into_iter().chain(tails[0].iter().map(|&dim| dim as i64)).collect();
        id = self.shaped(id, &target);
        if rank > 2 {
            let mut back: Vec<usize> = [0].into_iter().chain(2..rank).collect();
            back.extend([1, rank]);
            id = self.transposed(id, &back);
        }
        Ok(Own { id, form: Form::Apart, rank, widths, finite: of.finite })
    }

    /// As [.., members, width].
    fn apart(&mut self, of: &Own) -> ValueId {
        match of.form {
            Form::Apart => of.id,
            Form::Flat => {
                let mut target = vec![0; of.rank - 1];
                target.extend([self.members() as i64, of.stride() as i64]);
                self.shaped(of.id, &target)
            }
        }
    }

    /// As [.., 1, width], which broadcasts to all members. The width is known.
    fn one_apart(&mut self, of: &Common) -> ValueId {
        let mut target = vec![0; of.rank - 1];
        target.extend([1, of.width.unwrap_or(0) as i64]);
        self.shaped(of.id, &target)
    }

    /// Reshaped; 0 keeps a dimension.
    fn shaped(&mut self, id: ValueId, target: &[i64]) -> ValueId {
        let target = self.constant(Tensor::i64s(vec![target.len() as u64], target));
        self.emit("Reshape", &[id, target], BTreeMap::new())
    }

    fn transposed(&mut self, id: ValueId, axes: &[usize]) -> ValueId {
        let axes = Attribute::Ints(axes.iter().map(|&axis| axis as i64).collect());
        self.emit("Transpose", &[id], [("perm".to_owned(), axes)].into())
    }
}

/// A member's weights: rows × columns, row by row.
struct Matrix {
    rows: usize,
    columns: usize,
    values: Vec<f32>,
}

impl Matrix {
    /// To `first` and on, each row `stride` behind the one before.
    fn copy_to(&self, values: &mut [f32], first: usize, stride: usize) {
        for (row, source) in self.values.chunks(self.columns).enumerate() {
            let begin = first + row * stride;
            values[begin..begin + self.columns].copy_from_slice(source);
        }
    }
}

/// `None` when one is no matrix of f32, or is empty.
fn matrices(tensors: &[Tensor], turned: bool, scale: f32) -> Option<Vec<Matrix>> {
    let matrix = |tensor: &Tensor| {
        let [rows, columns] = tensor.dims[..] else { return None };
        let (rows, columns) = (usize::try_from(rows).ok()?, usize::try_from(columns).ok()?);
        let given = tensor.floats(ELEMENTS_MAX).filter(|given| !given.is_empty())?;
        if !turned {
            return Some(Matrix { rows, columns, values: given.iter().map(|value| value * scale).collect() });
        }
        let values = (0..columns).flat_map(|row| (0..rows).map(move |column| (row, column)));
        let values = values.map(|(row, column)| given[column * columns + row] * scale).collect();
        Some(Matrix { rows: columns, columns: rows, values })
    };
    tensors.iter().map(matrix).collect()
}

fn zeros(count: Option<usize>) -> Result<Vec<f32>, StackError> {
    let count = count.filter(|&count| count <= ELEMENTS_MAX).ok_or_else(|| refusal("its weights are too large"))?;
    Ok(vec![0.0; count])
}

fn float(node: &Node, name: &str, otherwise: f32) -> f32 {
    match node.attributes.get(name) {
        Some(Attribute::Float(value)) => *value,
        _ => otherwise,
    }
}
