//! Tables for people: columns as wide as they need to be, the first to the left, figures to the right.

/// Lines of cells; the first line is the head.
#[derive(Debug, Default)]
pub struct Table(Vec<Vec<String>>);

impl Table {
    pub fn new<const N: usize>(head: [&str; N]) -> Table {
        Table(vec![head.map(String::from).to_vec()])
    }

    /// A line; cells that are missing are empty.
    pub fn line(&mut self, cells: Vec<String>) {
        self.0.push(cells);
    }

    pub fn print(&self) {
        print!("{}", self.text());
    }

    fn text(&self) -> String {
        let columns = self.0.iter().map(Vec::len).max().unwrap_or(0);
        let cell = |line: usize, column: usize| self.0[line].get(column).map_or("", String::as_str);
        let width = |column| (0..self.0.len()).map(|line| cell(line, column).chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for line in 0..self.0.len() {
            let mut written = String::new();
            for (column, &width) in widths.iter().enumerate() {
                match column {
                    0 => written.push_str(&format!("{:<width$}", cell(line, column))),
                    _ => written.push_str(&format!("  {:>width$}", cell(line, column))),
                }
            }
            text.push_str(written.trim_end());
            text.push('\n');
        }
        text
    }
}

/// A figure with about four digits: "0.0213", "3.142", "52.10", "120.0", "13500".
pub fn figure(value: f64) -> String {
    let decimals = match value.abs() {
        v if v >= 1000.0 => 0,
        v if v >= 100.0 => 1,
        v if v >= 10.0 => 2,
        v if v >= 1.0 || v == 0.0 => 3,
        _ => 4,
    };
    format!("{value:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(["model", "p50"]);
        table.line(vec!["a long name".into(), "3.1".into()]);
        table.line(vec!["b".into()]);
        assert_eq!(table.text(), "model        p50\na long name  3.1\nb\n");
    }

    #[test]
    fn figures_keep_four_digits() {
        let cases = [(0.0, "0.000"), (0.0213, "0.0213"), (3.21449, "3.214"), (52.1, "52.10"), (13500.4, "13500")];
        for (value, expected) in cases {
            assert_eq!(figure(value), expected);
        }
    }
}
