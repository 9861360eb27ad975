//! Measuring A against B: contenders take turns, round after round, so that whatever else the host does hits all of them.

use crate::table::{Table, figure};
use serde::Serialize;

/// What goes wrong while something is measured; it ends the measurement.
pub type Failure = Box<dyn std::error::Error>;

/// One way of doing the thing that is measured.
pub struct Contender<'a> {
    pub name: String,
    /// Measures for one round; a figure for each of the comparison's metrics.
    pub round: Box<dyn FnMut() -> Result<Vec<f64>, Failure> + 'a>,
}

impl<'a> Contender<'a> {
    pub fn new(name: &str, round: impl FnMut() -> Result<Vec<f64>, Failure> + 'a) -> Contender<'a> {
        Contender { name: name.into(), round: Box::new(round) }
    }
}

/// One metric of several contenders.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    pub what: String,
    pub unit: String,
    /// In the order of the contenders: the first is what the others are compared with.
    pub rows: Vec<Row>,
}

/// A contender's figures over all rounds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    pub name: String,
    pub median: f64,
    pub min: f64,
    pub max: f64,
    /// To the first contender's figure of the same round: median and extremes of those ratios.
    pub ratio: f64,
    pub ratio_min: f64,
    pub ratio_max: f64,
}

/// Measures `rounds` times (at least once), every contender once in each. One comparison per metric `(what, unit)`.
pub fn compare(
    metrics: &[(&str, &str)],
    rounds: u32,
    contenders: &mut [Contender<'_>],
) -> Result<Vec<Comparison>, Failure> {
    // By metric, contender, round.
    let mut figures = vec![vec![Vec::new(); contenders.len()]; metrics.len()];
    for _ in 0..rounds.max(1) {
        for (index, contender) in contenders.iter_mut().enumerate() {
            let measured = (contender.round)().map_err(|error| format!("{}: {error}", contender.name))?;
            assert_eq!(measured.len(), metrics.len(), "a figure for each metric");
            for (metric, figure) in measured.into_iter().enumerate() {
                figures[metric][index].push(figure);
            }
        }
    }
    let comparison = |((what, unit), figures): (&(&str, &str), Vec<Vec<f64>>)| Comparison {
        what: what.to_string(),
        unit: unit.to_string(),
        rows: contenders.iter().zip(&figures).map(|(c, own)| Row::new(&c.name, own, &figures[0])).collect(),
    };
    Ok(metrics.iter().zip(figures).map(comparison).collect())
}

impl Row {
    /// `own` and `first` by round.
    fn new(name: &str, own: &[f64], first: &[f64]) -> Row {
        let ratios: Vec<f64> = own.iter().zip(first).map(|(own, first)| own / first).collect();
        let ([min, median, max], [ratio_min, ratio, ratio_max]) = (spread(own), spread(&ratios));
        Row { name: name.into(), median, min, max, ratio, ratio_min, ratio_max }
    }
}

impl Comparison {
    pub fn table(&self) -> Table {
        let mut table = Table::new(["", "median", "min", "max", "ratio", "ratio min", "ratio max"]);
        for row in &self.rows {
            let mut cells = vec![format!("  {}", row.name)];
            cells.extend([row.median, row.min, row.max, row.ratio, row.ratio_min, row.ratio_max].map(figure));
            table.line(cells);
        }
        table
    }

    pub fn print(&self) {
        println!("{}, {}", self.what, self.unit);
        self.table().print();
        println!();
    }
}

/// Least, median and greatest of at least one figure.
pub fn spread(figures: &[f64]) -> [f64; 3] {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    let median = if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 };
    [sorted[0], median, sorted[sorted.len() - 1]]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    #[test]
    fn contenders_take_turns_and_ratios_are_taken_within_a_round() {
        let order = RefCell::new(String::new());
        // The host gets slower from round to round; the ratio stays.
        let contender = |name: &'static str, factor: f64| {
            let (order, mut round) = (&order, 0);
            Contender::new(name, move || {
                order.borrow_mut().push_str(name);
                round += 1;
                Ok(vec![f64::from(round) * factor])
            })
        };
        let mut contenders = [contender("A", 1.0), contender("B", 3.0)];
        let compared = compare(&[("time", "s")], 4, &mut contenders).unwrap();
        drop(contenders);
        assert_eq!(order.into_inner(), "ABABABAB");
        let b = &compared[0].rows[1];
        assert_eq!((b.median, b.min, b.max), (7.5, 3.0, 12.0));
        assert_eq!((b.ratio, b.ratio_min, b.ratio_max), (3.0, 3.0, 3.0));
    }

    #[test]
    fn a_contender_that_fails_is_named() {
        let mut contenders = [Contender::new("A", || Err("broken".into()))];
        assert_eq!(compare(&[("time", "s")], 1, &mut contenders).unwrap_err().to_string(), "A: broken");
    }
}
