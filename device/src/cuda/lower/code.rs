//! An expression as a program of the element-wise kernel: steps on an accumulator, with a few slots for what is needed again.

use super::epilogue;
use super::expression::{self, Binary, Expression, Node, Term, Unary};
use rota_kernels::Activation;
use rota_kernels::elementwise::{Domain, Op, Source, Step};
use rota_kernels::params::{SLOTS, STEPS};
use std::collections::BTreeMap;

/// The expression needs more steps or slots than the kernel has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooComplex;

/// The steps that leave `result` in the accumulator.
pub fn compile(e: &Expression, result: Term, domain: Domain) -> Result<Vec<Step>, TooComplex> {
    let mut coder = Coder {
        e,
        domain,
        nodes: Vec::new(),
        of: BTreeMap::new(),
        uses: Vec::new(),
        places: Vec::new(),
        slots: [None; SLOTS],
        held: None,
        steps: Vec::new(),
    };
    let result = coder.node(result);
    coder.places = vec![None; coder.nodes.len()];
    coder.uses = vec![0; coder.nodes.len()];
    coder.count(result);
    coder.emit(result)?;
    if coder.steps.len() > STEPS { Err(TooComplex) } else { Ok(coder.steps) }
}

/// A node of the machine's own graph: an operand that needs no step, or an operation on others.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Machine {
    Operand(Source),
    Step { op: Op, x: usize, y: Option<usize>, z: Option<usize> },
}

struct Coder<'a> {
    e: &'a Expression,
    domain: Domain,
    nodes: Vec<Machine>,
    of: BTreeMap<Term, usize>,
    /// By node: readers that have still to come.
    uses: Vec<usize>,
    /// By node: the slot that holds it.
    places: Vec<Option<u8>>,
    /// By slot: the node in it.
    slots: [Option<usize>; SLOTS],
    /// What the accumulator holds.
    held: Option<usize>,
    steps: Vec<Step>,
}

impl Coder<'_> {
    fn add(&mut self, node: Machine) -> usize {
        match self.nodes.iter().position(|other| *other == node) {
            Some(at) => at,
            None => {
                self.nodes.push(node);
                self.nodes.len() - 1
            }
        }
    }

    fn constant(&mut self, value: f64) -> usize {
        let source = match self.domain {
            Domain::F32 => Source::F32(value as f32),
            Domain::I64 => Source::I64(value as i64),
        };
        self.add(Machine::Operand(source))
    }

    fn step(&mut self, op: Op, x: usize, y: Option<usize>, z: Option<usize>) -> usize {
        self.add(Machine::Step { op, x, y, z })
    }

    fn node(&mut self, term: Term) -> usize {
        if let Some(&node) = self.of.get(&term) {
            return node;
        }
        let made = match self.e.node(term) {
            Node::Load(input) => self.add(Machine::Operand(Source::Input(input as u8))),
            Node::Constant(value) => self.constant(value),
            other => match self.activation(term) {
                Some(node) => node,
                None => self.plain(other),
            },
        };
        self.of.insert(term, made);
        made
    }

    /// Shapes of several nodes that the kernel does in one step.
    fn activation(&mut self, term: Term) -> Option<usize> {
        if self.domain == Domain::I64 {
            return None;
        }
        if let Some((x, slope)) = prelu(self.e, term) {
            let (x, slope) = (self.node(x), self.node(slope));
            return Some(self.step(Op::Prelu, x, Some(slope), None));
        }
        let (x, activation) = epilogue::activation(self.e, term)?;
        let (op, a, b) = match activation {
            Activation::Clip { low, high } if low.is_finite() && high.is_finite() => (Op::Clip, Some(low), Some(high)),
            Activation::HardSigmoid { a, b } => (Op::HardSigmoid, Some(a), Some(b)),
            Activation::HardSwish { a, b } => (Op::HardSwish, Some(a), Some(b)),
            Activation::Swish => (Op::Swish, None, None),
            Activation::Gelu => (Op::Gelu, None, None),
            Activation::LeakyRelu { a } => (Op::Prelu, Some(a), None),
            Activation::Elu { a } => (Op::Elu, Some(a), None),
            _ => return None,
        };
        let x = self.node(x);
        let (a, b) = (a.map(|a| self.constant(f64::from(a))), b.map(|b| self.constant(f64::from(b))));
        Some(self.step(op, x, a, b))
    }

    fn plain(&mut self, node: Node) -> usize {
        match node {
            Node::Load(_) | Node::Constant(_) => unreachable!("operands were taken before"),
            // Integers are whole already.
            Node::Unary(Unary::Trunc | Unary::Floor | Unary::Ceil | Unary::Round, x) if self.domain == Domain::I64 => {
                self.node(x)
            }
            Node::Unary(function, x) => {
                let x = self.node(x);
                self.step(unary(function), x, None, None)
            }
            Node::Select(condition, yes, no) => {
                let (condition, yes, no) = (self.node(condition), self.node(yes), self.node(no));
                self.step(Op::Select, condition, Some(yes), Some(no))
            }
            Node::Binary(function, a, b) => {
                let (a, b) = (self.node(a), self.node(b));
                let simple = |coder: &Coder, node: usize| matches!(coder.nodes[node], Machine::Operand(_));
                if function == Binary::Add {
                    for (product, added) in [(a, b), (b, a)] {
                        match self.nodes[product] {
                            Machine::Step { op: Op::Mul, x, y: Some(y), z: None }
                                if simple(self, y) && simple(self, added) =>
                            {
                                return self.step(Op::MulAdd, x, Some(y), Some(added));
                            }
                            _ => {}
                        }
                    }
                }
                let (op, reversed) = binary(function);
                // The accumulator has what takes steps; an operand that takes none is named.
                match simple(self, a) && !simple(self, b) {
                    true => self.step(reversed, b, Some(a), None),
                    false => self.step(op, a, Some(b), None),
                }
            }
        }
    }

    fn count(&mut self, node: usize) {
        self.uses[node] += 1;
        if let (1, Machine::Step { x, y, z, .. }) = (self.uses[node], self.nodes[node]) {
            self.count(x);
            [y, z].into_iter().flatten().for_each(|operand| self.count(operand));
        }
    }

    /// Brings a node into the accumulator, and into a slot when it is read again.
    fn emit(&mut self, node: usize) -> Result<(), TooComplex> {
        let mut freed = Vec::new();
        if self.held != Some(node) {
            match (self.nodes[node], self.places[node]) {
                (Machine::Operand(source), _) => self.steps.push(Step::load(source)),
                (_, Some(slot)) => self.steps.push(Step::load(Source::Slot(slot))),
                (Machine::Step { op, x, y, z }, None) => {
                    for operand in [y, z].into_iter().flatten() {
                        self.prepare(operand)?;
                    }
                    self.emit(x)?;
                    let y = y.map(|y| self.read(y, &mut freed));
                    let z = z.map(|z| self.read(z, &mut freed));
                    self.steps.push(Step { op, y: y.unwrap_or_default(), z: z.unwrap_or_default() });
                }
            }
            self.held = Some(node);
        }
        freed.into_iter().for_each(|slot: u8| self.slots[usize::from(slot)] = None);
        self.uses[node] -= 1;
        let again = self.uses[node] > 0 && matches!(self.nodes[node], Machine::Step { .. });
        if again && self.places[node].is_none() {
            self.save(node)?;
        }
        if let (0, Some(slot)) = (self.uses[node], self.places[node]) {
            self.places[node] = None;
            self.slots[usize::from(slot)] = None;
        }
        Ok(())
    }

    /// Makes sure that a step can name the node.
    fn prepare(&mut self, node: usize) -> Result<(), TooComplex> {
        if matches!(self.nodes[node], Machine::Operand(_)) || self.places[node].is_some() {
            return Ok(());
        }
        // One reader more: this, which only puts it where the step finds it.
        self.uses[node] += 1;
        self.emit(node)
    }

    fn save(&mut self, node: usize) -> Result<(), TooComplex> {
        let free = self.slots.iter().position(Option::is_none).ok_or(TooComplex)?;
        self.slots[free] = Some(node);
        self.places[node] = Some(free as u8);
        self.steps.push(Step::two(Op::Save, Source::Slot(free as u8)));
        Ok(())
    }

    /// The operand that names a prepared node; `freed` gets its slot when nobody reads it afterwards.
    fn read(&mut self, node: usize, freed: &mut Vec<u8>) -> Source {
        let Machine::Operand(source) = self.nodes[node] else {
            let slot = self.places[node].expect("the node was prepared");
            self.uses[node] -= 1;
            if self.uses[node] == 0 {
                self.places[node] = None;
                freed.push(slot);
            }
            return Source::Slot(slot);
        };
        source
    }
}

/// (x, slope) of `x < 0 ? x * slope : x`.
fn prelu(e: &Expression, term: Term) -> Option<(Term, Term)> {
    let Node::Select(negative, bent, x) = e.node(term) else { return None };
    let (Node::Binary(Binary::Less, of, zero), Node::Binary(Binary::Mul, left, slope)) =
        (e.node(negative), e.node(bent))
    else {
        return None;
    };
    (of == x && left == x && e.value(zero) == Some(0.0)).then_some((x, slope))
}

fn unary(function: expression::Unary) -> Op {
    match function {
        Unary::Neg => Op::Neg,
        Unary::Abs => Op::Abs,
        Unary::Exp => Op::Exp,
        Unary::Log => Op::Log,
        Unary::Sqrt => Op::Sqrt,
        Unary::Reciprocal => Op::Reciprocal,
        Unary::Floor => Op::Floor,
        Unary::Ceil => Op::Ceil,
        Unary::Round => Op::Round,
        Unary::Trunc => Op::Trunc,
        Unary::Erf => Op::Erf,
        Unary::Tanh => Op::Tanh,
        Unary::Sigmoid => Op::Sigmoid,
        Unary::Sin => Op::Sin,
        Unary::Cos => Op::Cos,
        Unary::Tan => Op::Tan,
        Unary::Asin => Op::Asin,
        Unary::Acos => Op::Acos,
        Unary::Atan => Op::Atan,
        Unary::Sinh => Op::Sinh,
        Unary::Cosh => Op::Cosh,
        Unary::Asinh => Op::Asinh,
        Unary::Acosh => Op::Acosh,
        Unary::Atanh => Op::Atanh,
        Unary::IsNan => Op::IsNan,
        Unary::Sign => Op::Sign,
        Unary::Not => Op::Not,
        Unary::Softplus => Op::Softplus,
        Unary::Softsign => Op::Softsign,
        Unary::BitNot => Op::BitNot,
    }
}

/// The step for a function, and the one for its operands the other way round.
fn binary(function: Binary) -> (Op, Op) {
    match function {
        Binary::Add => (Op::Add, Op::Add),
        Binary::Sub => (Op::Sub, Op::SubFrom),
        Binary::Mul => (Op::Mul, Op::Mul),
        Binary::Div => (Op::Div, Op::DivInto),
        Binary::Pow => (Op::Pow, Op::PowOf),
        Binary::Min => (Op::Min, Op::Min),
        Binary::Max => (Op::Max, Op::Max),
        Binary::Mod => (Op::Mod, Op::ModOf),
        Binary::Remainder => (Op::Fmod, Op::FmodOf),
        Binary::Equal => (Op::Equal, Op::Equal),
        Binary::Less => (Op::Less, Op::Greater),
        Binary::LessOrEqual => (Op::LessEqual, Op::GreaterEqual),
        Binary::And => (Op::And, Op::And),
        Binary::Or => (Op::Or, Op::Or),
        Binary::Xor => (Op::Xor, Op::Xor),
        Binary::BitAnd => (Op::BitAnd, Op::BitAnd),
        Binary::BitOr => (Op::BitOr, Op::BitOr),
        Binary::BitXor => (Op::BitXor, Op::BitXor),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The kernel's steps, one after the other.
    fn run(steps: &[Step], inputs: &[f32]) -> f32 {
        let (mut x, mut slots) = (0f32, [f32::NAN; SLOTS]);
        for step in steps {
            let read = |source: Source, slots: &[f32; SLOTS]| match source {
                Source::Nothing => f32::NAN,
                Source::Input(at) => inputs[usize::from(at)],
                Source::Slot(at) => slots[usize::from(at)],
                Source::F32(value) => value,
                Source::I64(value) => value as f32,
            };
            if let (Op::Save, Source::Slot(slot)) = (step.op, step.y) {
                slots[usize::from(slot)] = x;
                continue;
            }
            let (y, z) = (read(step.y, &slots), read(step.z, &slots));
            x = match step.op {
                Op::Load => y,
                Op::Add => x + y,
                Op::Sub => x - y,
                Op::SubFrom => y - x,
                Op::Mul => x * y,
                Op::MulAdd => x * y + z,
                Op::Max => x.max(y),
                Op::Neg => -x,
                Op::Select => {
                    if x != 0.0 {
                        y
                    } else {
                        z
                    }
                }
                other => panic!("{other:?} is not in the test"),
            };
        }
        x
    }

    fn value(e: &Expression, term: Term, inputs: &[f32]) -> f32 {
        let of = |term| value(e, term, inputs);
        match e.node(term) {
            Node::Load(at) => inputs[usize::from(at)],
            Node::Constant(value) => value as f32,
            Node::Unary(Unary::Neg, a) => -of(a),
            Node::Binary(Binary::Add, a, b) => of(a) + of(b),
            Node::Binary(Binary::Sub, a, b) => of(a) - of(b),
            Node::Binary(Binary::Mul, a, b) => of(a) * of(b),
            Node::Binary(Binary::Max, a, b) => of(a).max(of(b)),
            Node::Select(c, a, b) => {
                if of(c) != 0.0 {
                    of(a)
                } else {
                    of(b)
                }
            }
            other => panic!("{other:?} is not in the test"),
        }
    }

    proptest! {
        /// Random graphs, shared terms included: what compiles computes what the expression says.
        #[test]
        fn steps_compute_the_expression(choices in prop::collection::vec((0u8..7, 0usize..9, 0usize..9, 0usize..9), 1..14)) {
            let mut e = Expression::default();
            let mut terms: Vec<Term> = (0..3).map(|at| e.load(at)).collect();
            terms.push(e.constant(2.5));
            for (function, a, b, c) in choices {
                let pick = |at: usize| terms[terms.len() - 1 - at % terms.len()];
                let (a, b, c) = (pick(a), pick(b), pick(c));
                let term = match function {
                    0 => e.unary(Unary::Neg, a),
                    1 => e.binary(Binary::Add, a, b),
                    2 => e.binary(Binary::Sub, a, b),
                    3 => e.binary(Binary::Mul, a, b),
                    4 => e.binary(Binary::Max, a, b),
                    5 => e.term(Node::Select(a, b, c)),
                    _ => e.binary(Binary::Sub, b, a),
                };
                terms.push(term);
            }
            let result = terms[terms.len() - 1];
            let inputs = [0.5, -1.25, 3.0];
            if let Ok(steps) = compile(&e, result, Domain::F32) {
                let (expected, found) = (value(&e, result, &inputs), run(&steps, &inputs));
                prop_assert!(expected == found || (expected.is_nan() && found.is_nan()), "{expected} {found} {steps:?}");
            }
        }
    }
}
