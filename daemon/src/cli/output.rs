//! What verbs print: text, tables, descriptions of tensors.

use crate::model::device_dtype;
use rota_ipc::control::{DimInfo, ModelInfo, TensorInfo};
use serde::Serialize;
use std::fmt::Write as _;
use std::io::{self, Write as _};

/// Prints to stdout. A reader that has had enough (`| head`) is no error.
pub fn print(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

pub fn print_json(value: &impl Serialize) -> io::Result<()> {
    print(&format!("{}\n", serde_json::to_string_pretty(value)?))
}

/// An error's text on one line. Parsers draw the place under the line that they mean: the drawing is left out.
pub fn one_line(text: &str) -> String {
    let is_drawing = |line: &&str| {
        line.split_once('|').is_some_and(|(left, _)| left.trim().parse::<u32>().is_ok()) || line.starts_with('|')
    };
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty() && !is_drawing(line)).collect();
    lines.join(" ")
}

/// Rows under headings; numbers to the right, text to the left.
pub struct Table {
    headings: &'static [&'static str],
    rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new(headings: &'static [&'static str]) -> Table {
        Table { headings, rows: Vec::new() }
    }

    /// As many cells as there are headings.
    pub fn row(&mut self, cells: Vec<String>) {
        debug_assert_eq!(cells.len(), self.headings.len());
        self.rows.push(cells);
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Each row a line, indented by two.
    pub fn text(&self) -> String {
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
            cells.chain([self.headings[column].chars().count()]).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.headings.len()).map(width).collect();
        let numeric = |column: usize| {
            let mut cells =
                self.rows.iter().filter_map(|row| row.get(column)).filter(|cell| *cell != MISSING && !cell.is_empty());
            cells.all(|cell| cell.parse::<f64>().is_ok())
        };
        let numeric: Vec<bool> = (0..self.headings.len()).map(numeric).collect();
        let line = |cells: &mut dyn Iterator<Item = &str>| {
            let mut line = String::new();
            for (column, cell) in cells.enumerate() {
                let padding = " ".repeat(widths[column] - cell.chars().count());
                let (left, right) = if numeric[column] { (&padding[..], "") } else { ("", &padding[..]) };
                let _ = write!(line, "  {left}{cell}{right}");
            }
            format!("{}\n", line.trim_end())
        };
        let headings = line(&mut self.headings.iter().copied());
        let rows = self.rows.iter().map(|row| line(&mut row.iter().map(String::as_str)));
        format!("{}\n{}", console::style(headings.trim_end()).dim(), rows.collect::<String>())
    }
}

/// Stands in a table for a value that there is not.
pub const MISSING: &str = "-";

/// Milliseconds with three digits that mean something.
pub fn ms(value: f64) -> String {
    significant(value)
}

pub fn significant(value: f64) -> String {
    match value {
        v if v >= 100.0 => format!("{v:.0}"),
        v if v >= 10.0 => format!("{v:.1}"),
        v if v >= 1.0 => format!("{v:.2}"),
        v => format!("{v:.3}"),
    }
}

/// "327.7 KB", "13.4 MB".
pub fn bytes(count: u64) -> String {
    match count as f64 {
        count if count < 1e6 => format!("{:.1} KB", count / 1e3),
        count => format!("{:.1} MB", count / 1e6),
    }
}

/// A model's inputs and outputs, one line each.
pub fn tensors_text(inputs: &[TensorInfo], outputs: &[TensorInfo]) -> String {
    let all = inputs.iter().map(|info| ("input ", info)).chain(outputs.iter().map(|info| ("output", info)));
    let rows: Vec<_> = all.map(|(role, info)| (role, info, dims_text(&info.dims))).collect();
    let widest = |length: &dyn Fn(&(&str, &TensorInfo, String)) -> usize| rows.iter().map(length).max().unwrap_or(0);
    let (names, sizes) = (widest(&|row| row.1.name.chars().count()), widest(&|row| row.2.chars().count()));
    let mut text = String::new();
    for (role, info, dims) in &rows {
        let axis = info.batch_axis.map_or("no batch axis".to_string(), |axis| format!("batch axis {axis}"));
        let dtype = device_dtype(info.dtype).name();
        let _ = writeln!(text, "    {role}  {:names$}  {dtype:4}  {dims:sizes$}  {axis}", info.name);
    }
    text
}

/// "[batch, 3, 224, 224]"; "?" for a dimension without a name.
fn dims_text(dims: &[DimInfo]) -> String {
    let dim = |dim: &DimInfo| match dim {
        DimInfo::Fixed(size) => size.to_string(),
        DimInfo::Named(name) if name.is_empty() => "?".to_string(),
        DimInfo::Named(name) => name.clone(),
    };
    format!("[{}]", dims.iter().map(dim).collect::<Vec<_>>().join(", "))
}

/// A served model on one line.
pub fn model_line(model: &ModelInfo) -> String {
    format!(
        "{} version {}: batches up to {}, SLO {} ms by default, a batch of one takes {} ms\n",
        console::style(&model.name).bold(),
        model.version,
        model.max_batch,
        ms(model.default_slo_ms),
        ms(model.batch_of_one_ms)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stand_right_and_text_left() {
        let mut table = Table::new(&["model", "ms"]);
        table.row(vec!["a".into(), "1.5".into()]);
        table.row(vec!["long name".into(), "100".into()]);
        table.row(vec!["b".into(), MISSING.into()]);
        let expected = "  model       ms\n  a          1.5\n  long name  100\n  b            -\n";
        assert_eq!(console::strip_ansi_codes(&table.text()), expected);
    }

    #[test]
    fn a_drawing_of_the_place_is_left_out_and_the_rest_is_one_line() {
        let drawn =
            "p.toml: TOML parse error at line 5, column 1\n  |\n5 | memory = 500\n  | ^^^^^^\nunknown field `memory`\n";
        assert_eq!(one_line(drawn), "p.toml: TOML parse error at line 5, column 1 unknown field `memory`");
        assert_eq!(one_line("plain | text"), "plain | text");
    }
}
