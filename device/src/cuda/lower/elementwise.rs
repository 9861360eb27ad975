//! Which operators compute each element by itself, and as which expression.

use super::expression::{Binary, Expression, Term, Unary};
use super::{LowerError, Site};
use rota_graph::DType;

/// Operators that [`expression`] knows.
pub const OPERATORS: [&str; 68] = [
    "Abs",
    "Acos",
    "Acosh",
    "Add",
    "And",
    "Asin",
    "Asinh",
    "Atan",
    "Atanh",
    "BatchNormalization",
    "BitwiseAnd",
    "BitwiseNot",
    "BitwiseOr",
    "BitwiseXor",
    "Cast",
    "CastLike",
    "Ceil",
    "Celu",
    "Clip",
    "Cos",
    "Cosh",
    "Div",
    "Elu",
    "Equal",
    "Erf",
    "Exp",
    "Floor",
    "Gelu",
    "Greater",
    "GreaterOrEqual",
    "HardSigmoid",
    "HardSwish",
    "IsNaN",
    "LeakyRelu",
    "Less",
    "LessOrEqual",
    "Log",
    "Max",
    "Mean",
    "Min",
    "Mish",
    "Mod",
    "Mul",
    "Neg",
    "Not",
    "Or",
    "PRelu",
    "Pow",
    "Reciprocal",
    "Relu",
    "Round",
    "Selu",
    "Shrink",
    "Sigmoid",
    "Sign",
    "Sin",
    "Sinh",
    "Softplus",
    "Softsign",
    "Sqrt",
    "Sub",
    "Sum",
    "Swish",
    "Tan",
    "Tanh",
    "ThresholdedRelu",
    "Where",
    "Xor",
];

/// Whether the node computes each element of its one output from the elements of its inputs at the same place.
pub fn is_elementwise(site: &Site) -> bool {
    let outputs = site.node.outputs.iter().flatten().count();
    let known = site.node.domain.is_empty() && OPERATORS.contains(&site.node.operator.as_str());
    known
        && outputs == 1
        && site.node.output(0).is_some()
        && !(site.node.operator == "BatchNormalization" && site.flag("training_mode"))
}

/// The term for the node's output, given those of its inputs; `None` for an input that is left out.
pub fn expression(site: &Site, e: &mut Expression, inputs: &[Option<Term>]) -> Result<Term, LowerError> {
    let operator = site.node.operator.as_str();
    let input = |at: usize| inputs.get(at).copied().flatten().ok_or_else(|| site.refuse(format!("lacks input {at}")));
    let number = |name: &str, default: f32| site.node.float(name).unwrap_or(default);
    let x = input(0)?;
    if let Some(function) = unary(operator) {
        return Ok(e.unary(function, x));
    }
    if let Some(function) = binary(operator) {
        return all(site, inputs)?
            .into_iter()
            .reduce(|a, b| e.binary(function, a, b))
            .ok_or_else(|| site.refuse("has no inputs"));
    }
    if let Some(term) = activation(site, e, x, inputs) {
        return Ok(term);
    }
    Ok(match operator {
        "Clip" => {
            let (mut low, mut high) =
                (site.node.float("min").map(|v| e.constant(v)), site.node.float("max").map(|v| e.constant(v)));
            low = inputs.get(1).copied().flatten().or(low);
            high = inputs.get(2).copied().flatten().or(high);
            let raised = low.map_or(x, |low| e.binary(Binary::Max, x, low));
            high.map_or(raised, |high| e.binary(Binary::Min, raised, high))
        }
        "Greater" => e.binary(Binary::Less, input(1)?, x),
        "GreaterOrEqual" => e.binary(Binary::LessOrEqual, input(1)?, x),
        "Mean" => {
            let count = e.constant(inputs.len() as f32);
            let sum = all(site, inputs)?.into_iter().reduce(|a, b| e.binary(Binary::Add, a, b)).unwrap_or(x);
            e.binary(Binary::Div, sum, count)
        }
        "Mod" if site.flag("fmod") => e.binary(Binary::Remainder, x, input(1)?),
        "Mod" => e.binary(Binary::Mod, x, input(1)?),
        "Div" => {
            let quotient = e.binary(Binary::Div, x, input(1)?);
            if site.output_dtype(0).is_some_and(is_integer) { e.unary(Unary::Trunc, quotient) } else { quotient }
        }
        "Where" => e.term(super::expression::Node::Select(x, input(1)?, input(2)?)),
        "Cast" | "CastLike" => match (site.dtype(0), site.output_dtype(0)) {
            (_, Some(DType::BOOL)) => truth(e, x),
            (Some(from), Some(to)) if is_integer(to) && !is_integer(from) => e.unary(Unary::Trunc, x),
            _ => x,
        },
        "BatchNormalization" => {
            let epsilon = e.constant(number("epsilon", 1e-5));
            let (scale, shift, mean, variance) = (input(1)?, input(2)?, input(3)?, input(4)?);
            let spread = e.binary(Binary::Add, variance, epsilon);
            let spread = e.unary(Unary::Sqrt, spread);
            let factor = e.binary(Binary::Div, scale, spread);
            let centred = e.binary(Binary::Sub, x, mean);
            let scaled = e.binary(Binary::Mul, centred, factor);
            e.binary(Binary::Add, scaled, shift)
        }
        _ => return Err(LowerError::Unsupported(site.node.to_string())),
    })
}

/// Functions of one number that are made of several.
fn activation(site: &Site, e: &mut Expression, x: Term, inputs: &[Option<Term>]) -> Option<Term> {
    let number = |name: &str, default: f32| site.node.float(name).unwrap_or(default);
    let zero = e.constant(0.0);
    Some(match site.node.operator.as_str() {
        "Relu" => e.binary(Binary::Max, x, zero),
        "HardSigmoid" => hard_sigmoid(e, x, number("alpha", 0.2), number("beta", 0.5)),
        "Swish" => {
            let scaled = e.scaled(x, number("alpha", 1.0), 0.0);
            let gate = e.unary(Unary::Sigmoid, scaled);
            e.binary(Binary::Mul, x, gate)
        }
        "HardSwish" => {
            let gate = hard_sigmoid(e, x, 1.0 / 6.0, 0.5);
            e.binary(Binary::Mul, x, gate)
        }
        "LeakyRelu" => {
            let slope = e.constant(number("alpha", 0.01));
            below_zero(e, x, |e| e.binary(Binary::Mul, x, slope))
        }
        "PRelu" => {
            let slope = inputs.get(1).copied().flatten()?;
            below_zero(e, x, |e| e.binary(Binary::Mul, x, slope))
        }
        "Elu" => exponential(e, x, number("alpha", 1.0), 1.0, 1.0),
        "Celu" => exponential(e, x, number("alpha", 1.0), 1.0, number("alpha", 1.0)),
        "Selu" => exponential(e, x, number("alpha", 1.673_263_2), number("gamma", 1.050_701), 1.0),
        "ThresholdedRelu" => {
            let threshold = e.constant(number("alpha", 1.0));
            let above = e.binary(Binary::Less, threshold, x);
            e.term(super::expression::Node::Select(above, x, zero))
        }
        "Shrink" => shrink(e, x, number("lambd", 0.5), number("bias", 0.0)),
        "Gelu" if site.node.string("approximate") == Some("tanh") => gelu_tanh(e, x),
        "Gelu" => {
            let scaled = e.scaled(x, std::f32::consts::FRAC_1_SQRT_2, 0.0);
            let erf = e.unary(Unary::Erf, scaled);
            let gate = e.scaled(erf, 0.5, 0.5);
            e.binary(Binary::Mul, x, gate)
        }
        "Mish" => {
            let softplus = e.unary(Unary::Softplus, x);
            let gate = e.unary(Unary::Tanh, softplus);
            e.binary(Binary::Mul, x, gate)
        }
        _ => return None,
    })
}

fn all(site: &Site, inputs: &[Option<Term>]) -> Result<Vec<Term>, LowerError> {
    inputs.iter().map(|term| term.ok_or_else(|| site.refuse("lacks an input"))).collect()
}

fn unary(operator: &str) -> Option<Unary> {
    Some(match operator {
        "Neg" => Unary::Neg,
        "Abs" => Unary::Abs,
        "Exp" => Unary::Exp,
        "Log" => Unary::Log,
        "Sqrt" => Unary::Sqrt,
        "Reciprocal" => Unary::Reciprocal,
        "Floor" => Unary::Floor,
        "Ceil" => Unary::Ceil,
        "Round" => Unary::Round,
        "Erf" => Unary::Erf,
        "Tanh" => Unary::Tanh,
        "Sigmoid" => Unary::Sigmoid,
        "Sin" => Unary::Sin,
        "Cos" => Unary::Cos,
        "Tan" => Unary::Tan,
        "Asin" => Unary::Asin,
        "Acos" => Unary::Acos,
        "Atan" => Unary::Atan,
        "Sinh" => Unary::Sinh,
        "Cosh" => Unary::Cosh,
        "Asinh" => Unary::Asinh,
        "Acosh" => Unary::Acosh,
        "Atanh" => Unary::Atanh,
        "IsNaN" => Unary::IsNan,
        "Softsign" => Unary::Softsign,
        "BitwiseNot" => Unary::BitNot,
        "Sign" => Unary::Sign,
        "Not" => Unary::Not,
        "Softplus" => Unary::Softplus,
        _ => return None,
    })
}

fn binary(operator: &str) -> Option<Binary> {
    Some(match operator {
        "Add" | "Sum" => Binary::Add,
        "Sub" => Binary::Sub,
        "Mul" => Binary::Mul,
        "Pow" => Binary::Pow,
        "Min" => Binary::Min,
        "Max" => Binary::Max,
        "Equal" => Binary::Equal,
        "Less" => Binary::Less,
        "LessOrEqual" => Binary::LessOrEqual,
        "And" => Binary::And,
        "Or" => Binary::Or,
        "Xor" => Binary::Xor,
        "BitwiseAnd" => Binary::BitAnd,
        "BitwiseOr" => Binary::BitOr,
        "BitwiseXor" => Binary::BitXor,
        _ => return None,
    })
}

/// Whether numbers of the type are whole.
pub fn is_integer(dtype: DType) -> bool {
    matches!(dtype.0, 2..=7 | 9 | 12 | 13)
}

/// 1 where it is not 0.
fn truth(e: &mut Expression, of: Term) -> Term {
    let not = e.unary(Unary::Not, of);
    e.unary(Unary::Not, not)
}

fn hard_sigmoid(e: &mut Expression, x: Term, slope: f32, offset: f32) -> Term {
    let line = e.scaled(x, slope, offset);
    e.clip(line, 0.0, 1.0)
}

/// x, or `otherwise` where it is negative.
fn below_zero(e: &mut Expression, x: Term, otherwise: impl FnOnce(&mut Expression) -> Term) -> Term {
    let zero = e.constant(0.0);
    let negative = e.binary(Binary::Less, x, zero);
    let other = otherwise(e);
    e.term(super::expression::Node::Select(negative, other, x))
}

/// gamma * (x, or alpha * (exp(x / width) - 1) where it is negative).
fn exponential(e: &mut Expression, x: Term, alpha: f32, gamma: f32, width: f32) -> Term {
    let bent = below_zero(e, x, |e| {
        let scaled = e.scaled(x, 1.0 / width, 0.0);
        let grown = e.unary(Unary::Exp, scaled);
        e.scaled(grown, alpha, -alpha)
    });
    e.scaled(bent, gamma, 0.0)
}

fn shrink(e: &mut Expression, x: Term, limit: f32, bias: f32) -> Term {
    let (low, high, zero) = (e.constant(-limit), e.constant(limit), e.constant(0.0));
    let (up, down) = (e.scaled(x, 1.0, bias), e.scaled(x, 1.0, -bias));
    let (below, above) = (e.binary(Binary::Less, x, low), e.binary(Binary::Less, high, x));
    let rest = e.term(super::expression::Node::Select(above, down, zero));
    e.term(super::expression::Node::Select(below, up, rest))
}

/// x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x³)))
fn gelu_tanh(e: &mut Expression, x: Term) -> Term {
    let square = e.binary(Binary::Mul, x, x);
    let cube = e.binary(Binary::Mul, square, x);
    let bend = e.scaled(cube, 0.044_715, 0.0);
    let inner = e.binary(Binary::Add, x, bend);
    let inner = e.scaled(inner, (2.0 / std::f32::consts::PI).sqrt(), 0.0);
    let tanh = e.unary(Unary::Tanh, inner);
    let gate = e.scaled(tanh, 0.5, 0.5);
    e.binary(Binary::Mul, x, gate)
}
