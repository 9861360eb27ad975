//! Dimensions that may depend on sizes that are not known yet.

use std::collections::BTreeMap;
use std::fmt::Write as _;

/// A size that is a number only when a request comes: the batch, a picture's width, how many boxes were found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Symbol(pub u32);

/// A dimension: a polynomial over symbols with whole coefficients. `128`, `h`, `2·h·w + 4`.
///
/// Invariant: `terms` are sorted by their product of symbols (itself sorted, repeated for powers, never empty), each product once and
/// no coefficient 0; so equal dimensions compare equal. At most 12 terms of at most 6 symbols. A number
/// takes no allocation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Dim {
    constant: i64,
    terms: Vec<(Vec<Symbol>, i64)>,
}

const TERMS_MAX: usize = 12;
const DEGREE_MAX: usize = 6;

impl Dim {
    pub fn of(size: i64) -> Dim {
        Dim { constant: size, terms: Vec::new() }
    }

    pub fn symbol(symbol: Symbol) -> Dim {
        Dim { constant: 0, terms: vec![(vec![symbol], 1)] }
    }

    /// Its number, when no symbol is in it.
    pub fn size(&self) -> Option<i64> {
        self.terms.is_empty().then_some(self.constant)
    }

    pub fn as_symbol(&self) -> Option<Symbol> {
        match (&self.terms[..], self.constant) {
            ([(product, 1)], 0) if product.len() == 1 => Some(product[0]),
            _ => None,
        }
    }

    pub fn symbols(&self) -> impl Iterator<Item = Symbol> + '_ {
        self.terms.iter().flat_map(|(product, _)| product).copied()
    }

    /// `None`: too large to be written down.
    pub fn plus(&self, other: &Dim) -> Option<Dim> {
        let constant = self.constant.checked_add(other.constant)?;
        let mut terms = self.terms.clone();
        for (product, coefficient) in &other.terms {
            match terms.binary_search_by(|(own, _)| own.cmp(product)) {
                Err(at) => terms.insert(at, (product.clone(), *coefficient)),
                Ok(at) => {
                    terms[at].1 = terms[at].1.checked_add(*coefficient)?;
                    if terms[at].1 == 0 {
                        terms.remove(at);
                    }
                }
            }
        }
        (terms.len() <= TERMS_MAX).then_some(Dim { constant, terms })
    }

    pub fn minus(&self, other: &Dim) -> Option<Dim> {
        self.plus(&other.scaled(-1)?)
    }

    pub fn times(&self, other: &Dim) -> Option<Dim> {
        let mut result = other.scaled(self.constant)?;
        for (left, coefficient) in &self.terms {
            let mut part = other.scaled(*coefficient)?;
            for (product, _) in &mut part.terms {
                product.extend(left);
                product.sort_unstable();
                if product.len() > DEGREE_MAX {
                    return None;
                }
            }
            if part.constant != 0 {
                part.terms.push((left.clone(), std::mem::take(&mut part.constant)));
            }
            part.terms.sort_unstable();
            result = result.plus(&part)?;
        }
        Some(result)
    }

    fn scaled(&self, by: i64) -> Option<Dim> {
        if by == 0 {
            return Some(Dim::default());
        }
        let scale = |(product, coefficient): &(Vec<Symbol>, i64)| Some((product.clone(), coefficient.checked_mul(by)?));
        Some(Dim {
            constant: self.constant.checked_mul(by)?,
            terms: self.terms.iter().map(scale).collect::<Option<_>>()?,
        })
    }

    /// `self / by` where that leaves nothing over whatever the symbols are: `by` is a number or has one term.
    pub fn divided(&self, by: &Dim) -> Option<Dim> {
        if self == by && *by != Dim::default() {
            return Some(Dim::of(1));
        }
        let exact = |a: i64, by: i64| if a.checked_rem(by)? == 0 { a.checked_div(by) } else { None };
        let (divisor, coefficient) = match (&by.terms[..], by.constant) {
            ([], constant) => (&[][..], constant),
            ([(product, coefficient)], 0) => (&product[..], *coefficient),
            _ => return None,
        };
        let mut result = Dim::default();
        if self.constant != 0 {
            result.constant = exact(self.constant, coefficient).filter(|_| divisor.is_empty())?;
        }
        for (product, a) in &self.terms {
            let mut rest = product.clone();
            for symbol in divisor {
                rest.remove(rest.iter().position(|other| other == symbol)?);
            }
            let quotient = exact(*a, coefficient)?;
            match rest.is_empty() {
                true => result.constant = quotient,
                false => result.terms.push((rest, quotient)),
            }
        }
        result.terms.sort_unstable();
        Some(result)
    }
}

/// The symbols of one graph.
#[derive(Clone, Debug, Default)]
pub struct Symbols {
    names: Vec<String>,
    by_name: BTreeMap<String, Symbol>,
    /// Of symbols that stand for a quotient: what is divided, and by what.
    floors: BTreeMap<Symbol, (Dim, i64)>,
    /// The other way round.
    quotients: BTreeMap<(Dim, i64), Symbol>,
}

impl Symbols {
    /// The symbol of that name: the same for the same name.
    pub fn named(&mut self, name: &str) -> Symbol {
        if let Some(&symbol) = self.by_name.get(name) {
            return symbol;
        }
        let symbol = self.fresh(name);
        self.by_name.insert(name.to_owned(), symbol);
        symbol
    }

    /// A symbol that is equal to no other. Of a long name only the beginning is kept, with a number that sets it apart.
    pub fn fresh(&mut self, name: &str) -> Symbol {
        let symbol = Symbol(self.names.len() as u32);
        self.names.push(match name.char_indices().nth(NAME_MAX) {
            Some((end, _)) => format!("{}…{}", &name[..end], symbol.0),
            None => name.to_owned(),
        });
        symbol
    }

    pub fn name(&self, symbol: Symbol) -> &str {
        &self.names[symbol.0 as usize]
    }

    pub fn count(&self) -> usize {
        self.names.len()
    }

    /// `⌊a / by⌋` in one form, so that equal quotients are mostly equal dimensions: whole multiples of `by` are taken out, a quotient
    /// of a quotient is one quotient, and what is left is a symbol of its own.
    pub fn floor(&mut self, a: &Dim, by: i64) -> Option<Dim> {
        if by <= 0 {
            return None;
        }
        // ⌊(⌊x / m⌋ + c) / by⌋ = ⌊(x + c·m) / (by·m)⌋
        if let [(product, 1)] = &a.terms[..]
            && let Some((inner, m)) =
                product.first().filter(|_| product.len() == 1).and_then(|symbol| self.floors.get(symbol))
        {
            let (raised, by) = (inner.plus(&Dim::of(a.constant.checked_mul(*m)?))?, by.checked_mul(*m)?);
            return self.floor(&raised, by);
        }
        let mut whole = Dim::of(a.constant.div_euclid(by));
        let mut rest = Dim::of(a.constant.rem_euclid(by));
        for (product, coefficient) in &a.terms {
            match coefficient.checked_rem(by)? {
                0 => whole.terms.push((product.clone(), coefficient / by)),
                _ => rest.terms.push((product.clone(), *coefficient)),
            }
        }
        if rest.terms.is_empty() {
            return Some(whole);
        }
        let name = format!("⌊({})/{by}⌋", self.text(&rest));
        if name.len() > NAME_MAX {
            return None;
        }
        let symbol = match self.quotients.get(&(rest.clone(), by)) {
            Some(&symbol) => symbol,
            None => {
                let symbol = self.fresh(&name);
                self.quotients.insert((rest.clone(), by), symbol);
                self.floors.insert(symbol, (rest, by));
                symbol
            }
        };
        whole.plus(&Dim::symbol(symbol))
    }

    /// For people: `2·h + 4`.
    pub fn text(&self, dim: &Dim) -> String {
        let mut text = String::new();
        let constant = [(Vec::new(), dim.constant)];
        for (product, coefficient) in dim.terms.iter().chain(&constant).filter(|(_, coefficient)| *coefficient != 0) {
            let sign = if *coefficient < 0 { "-" } else { "+" };
            if !text.is_empty() || *coefficient < 0 {
                text.push_str(sign);
            }
            let size = coefficient.unsigned_abs();
            if size != 1 || product.is_empty() {
                let _ = write!(text, "{size}");
            }
            for (at, &symbol) in product.iter().enumerate() {
                let times = if at > 0 || size != 1 { "·" } else { "" };
                let _ = write!(text, "{times}{}", self.name(symbol));
            }
        }
        if text.is_empty() { "0".to_owned() } else { text }
    }

    /// For people: `[batch, 3, 2·h]`.
    pub fn shape_text(&self, dims: &[Dim]) -> String {
        format!("[{}]", dims.iter().map(|dim| self.text(dim)).collect::<Vec<_>>().join(", "))
    }
}

/// Longer than that a name says nothing to anybody, and names made of names would grow without end.
const NAME_MAX: usize = 200;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn equal_dimensions_are_equal_however_they_came_about() {
        let mut symbols = Symbols::default();
        let (h, w) = (Dim::symbol(symbols.named("h")), Dim::symbol(symbols.named("w")));
        let sum = h.plus(&Dim::of(2)).unwrap();
        let area = sum.times(&w).unwrap();
        assert_eq!(area, w.times(&h).unwrap().plus(&w.times(&Dim::of(2)).unwrap()).unwrap());
        assert_eq!(area.divided(&w), Some(sum.clone()));
        assert_eq!(area.divided(&h), None);
        assert_eq!(h.minus(&h).unwrap(), Dim::of(0));
        assert_eq!(symbols.text(&area), "h·w+2·w");
        assert_eq!(symbols.floor(&area, 2), symbols.floor(&area, 2));
        assert_eq!(symbols.floor(&Dim::of(7), 2), Some(Dim::of(3)));
    }

    #[test]
    fn quotients_have_one_form() {
        let mut symbols = Symbols::default();
        let h = Dim::symbol(symbols.named("h"));
        // Five strides of 2 over a padded picture, each ⌊(x - 1) / 2⌋ + 1.
        let mut x = h.clone();
        for _ in 0..5 {
            let steps = symbols.floor(&x.plus(&Dim::of(-1)).unwrap(), 2).unwrap();
            x = steps.plus(&Dim::of(1)).unwrap();
        }
        assert_eq!(symbols.text(&x), "⌊(h+31)/32⌋");
        let whole = h.times(&Dim::of(6)).unwrap().plus(&Dim::of(7)).unwrap();
        assert_eq!(symbols.floor(&whole, 3).map(|dim| symbols.text(&dim)).as_deref(), Some("2·h+2"));
    }

    proptest! {
        #[test]
        fn quotients_agree_with_numbers(a in -9i64..9, b in -40i64..40, m in 1i64..9, c in -9i64..9, n in 1i64..9, x in 1i64..200) {
            let mut symbols = Symbols::default();
            let s = symbols.named("s");
            let first = Dim::symbol(s).times(&Dim::of(a)).unwrap().plus(&Dim::of(b)).unwrap();
            let inner = symbols.floor(&first, m).unwrap().plus(&Dim::of(c)).unwrap();
            let outer = symbols.floor(&inner, n).unwrap();
            fn value(symbols: &Symbols, dim: &Dim, x: i64) -> i64 {
                let of = |symbol: &Symbol| symbols.floors.get(symbol).map_or(x, |(a, by)| value(symbols, a, x).div_euclid(*by));
                dim.constant + dim.terms.iter().map(|(product, c)| c * product.iter().map(of).product::<i64>()).sum::<i64>()
            }
            prop_assert_eq!(value(&symbols, &outer, x), ((a * x + b).div_euclid(m) + c).div_euclid(n));
        }

        #[test]
        fn arithmetic_agrees_with_numbers(a in -20i64..20, b in -20i64..20, c in 1i64..20, x in 1i64..50) {
            let mut symbols = Symbols::default();
            let s = Dim::symbol(symbols.named("s"));
            let left = s.times(&Dim::of(a)).unwrap().plus(&Dim::of(b)).unwrap();
            let value = |dim: &Dim| dim.constant + dim.terms.iter().map(|(p, c)| c * x.pow(p.len() as u32)).sum::<i64>();
            prop_assert_eq!(value(&left), a * x + b);
            let product = left.times(&left).unwrap().times(&Dim::of(c)).unwrap();
            prop_assert_eq!(value(&product), (a * x + b).pow(2) * c);
            prop_assert_eq!(product.divided(&Dim::of(c)), left.times(&left));
        }
    }
}
