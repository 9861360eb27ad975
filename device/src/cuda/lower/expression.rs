//! Element-wise arithmetic as expressions: what a group of fused nodes computes for one element of its output.
//!
//! Groups of integers are computed in 64-bit integers, all others in f32, whatever memory holds.

/// Index into [`Expression::terms`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Term(pub u16);

/// Functions of one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unary {
    Neg,
    Abs,
    Exp,
    Log,
    Sqrt,
    Reciprocal,
    Floor,
    Ceil,
    /// Halves to even.
    Round,
    /// Towards zero.
    Trunc,
    Erf,
    Tanh,
    Sigmoid,
    Sin,
    Cos,
    Tan,
    Asin,
    Acos,
    Atan,
    Sinh,
    Cosh,
    Asinh,
    Acosh,
    Atanh,
    /// 1 where it is no number, else 0.
    IsNan,
    Sign,
    /// 1 where it is 0, else 0.
    Not,
    Softplus,
    Softsign,
    /// Of integers.
    BitNot,
}

/// Functions of two numbers; comparisons give 1 or 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Binary {
    Add,
    Sub,
    Mul,
    Div,
    Pow,
    Min,
    Max,
    /// The remainder with the divisor's sign.
    Mod,
    /// The remainder with the dividend's sign.
    Remainder,
    Equal,
    Less,
    LessOrEqual,
    /// Of truth values.
    And,
    Or,
    Xor,
    /// Of integers.
    BitAnd,
    BitOr,
    BitXor,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Node {
    /// Input `n` of the expression, at this element.
    Load(u16),
    /// Wide enough for every f32 and for integers up to 2^53.
    Constant(f64),
    Unary(Unary, Term),
    Binary(Binary, Term, Term),
    /// The second where the first is not 0, else the third.
    Select(Term, Term, Term),
}

/// A directed graph of terms without duplicates, each behind those that it uses.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Expression {
    pub terms: Vec<Node>,
}

impl Expression {
    /// The term that is `node`; the one that is there already, if any.
    pub fn term(&mut self, node: Node) -> Term {
        if let Some(folded) = self.folded(node) {
            return folded;
        }
        let same = |other: &Node| match (other, &node) {
            // Bit by bit: 0 and -0 differ, and a number that is none equals itself.
            (Node::Constant(a), Node::Constant(b)) => a.to_bits() == b.to_bits(),
            (a, b) => a == b,
        };
        let at = self.terms.iter().position(same).unwrap_or_else(|| {
            self.terms.push(node);
            self.terms.len() - 1
        });
        Term(at as u16)
    }

    pub fn node(&self, term: Term) -> Node {
        self.terms[usize::from(term.0)]
    }

    pub fn load(&mut self, input: usize) -> Term {
        self.term(Node::Load(input as u16))
    }

    pub fn constant(&mut self, value: f32) -> Term {
        self.term(Node::Constant(f64::from(value)))
    }

    pub fn unary(&mut self, function: Unary, of: Term) -> Term {
        self.term(Node::Unary(function, of))
    }

    pub fn binary(&mut self, function: Binary, a: Term, b: Term) -> Term {
        self.term(Node::Binary(function, a, b))
    }

    /// `of * scale + shift`, with the factors that change nothing left out.
    pub fn scaled(&mut self, of: Term, scale: f32, shift: f32) -> Term {
        let (scale, shift) = (self.constant(scale), self.constant(shift));
        let product = self.binary(Binary::Mul, of, scale);
        self.binary(Binary::Add, product, shift)
    }

    pub fn clip(&mut self, of: Term, low: f32, high: f32) -> Term {
        let (low, high) = (self.constant(low), self.constant(high));
        let raised = self.binary(Binary::Max, of, low);
        self.binary(Binary::Min, raised, high)
    }

    /// The constant that a term is.
    pub fn value(&self, term: Term) -> Option<f32> {
        match self.node(term) {
            Node::Constant(value) => Some(value as f32),
            _ => None,
        }
    }

    /// A term without the arithmetic that changes nothing.
    fn folded(&self, node: Node) -> Option<Term> {
        let Node::Binary(function, a, b) = node else { return None };
        match (function, self.value(a), self.value(b)) {
            (Binary::Mul | Binary::Div | Binary::Pow, _, Some(1.0)) => Some(a),
            (Binary::Mul, Some(1.0), _) => Some(b),
            (Binary::Sub, _, Some(0.0)) => Some(a),
            // -0 + 0 is 0: only adding -0 would change nothing at all, but no answer hangs on a zero's sign.
            (Binary::Add, _, Some(0.0)) => Some(a),
            (Binary::Add, Some(0.0), _) => Some(b),
            _ => None,
        }
    }

    /// Operations that one element takes.
    pub fn operations(&self) -> usize {
        self.terms.iter().filter(|node| !matches!(node, Node::Load(_) | Node::Constant(_))).count()
    }
}
