//! The results as they come: one JSON object per line, each with its kind.

use super::{Failure, Machine};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fs::File;
use std::io::Write;
use std::path::Path;

/// One line of a part's file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "line", rename_all = "lowercase")]
pub enum Line {
    Machine(Machine),
    Kernel(Kernel),
    Model(Model),
    Daemon(Daemon),
    /// What could not be tried, and why.
    Skipped {
        what: String,
        why: String,
    },
    /// The last line of a part that came to its end.
    End {
        part: String,
    },
}

/// One kernel with one block at one size.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Kernel {
    pub family: String,
    pub what: String,
    /// Several when it takes several launches.
    pub kernel: String,
    pub threads: u32,
    /// Whether the catalogue takes it by itself for this size.
    pub chosen: bool,
    /// Elements that were compared with the reference.
    pub checked: usize,
    /// The largest error, as a multiple of what is allowed: right up to 1. `None`: infinite, or nothing was written.
    pub worst: Option<f64>,
    pub correct: bool,
    pub bytes: u64,
    pub flops: u64,
    /// Median, launches following each other.
    pub warm_us: Option<f64>,
    /// Median, operands in the GPU's memory and in none of its caches.
    pub cold_us: Option<f64>,
    pub roofline_us: Option<f64>,
    /// "memory" or "arithmetic".
    pub bound: Option<String>,
    /// The same in the words of `peers.py`.
    pub peer: Option<Value>,
}

/// One model at one batch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Model {
    pub model: String,
    pub precision: String,
    pub batch: u32,
    /// The largest error of an output, relative to its range; `None`: infinite.
    pub worst: Option<f64>,
    pub correct: bool,
    pub launches: usize,
    pub bytes: u64,
    pub flops: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
    /// Medians by the GPU's clock: copies of all inputs, the graph's one launch, copies of all outputs.
    pub copy_in_us: f64,
    pub execute_us: f64,
    pub copy_out_us: f64,
    pub roofline_us: Option<f64>,
    /// Reading, lowering, uploading, capturing.
    pub prepared_ms: f64,
}

/// One figure of the daemon end to end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Daemon {
    /// "goodput", "overlap", …
    pub experiment: String,
    /// What was measured, for people.
    pub what: String,
    pub value: f64,
    pub unit: String,
}

/// A file of lines that is whole after each of them.
pub struct Writer(File);

impl Writer {
    pub fn create(file: &Path) -> Result<Writer, Failure> {
        let created = File::create(file).map_err(|error| format!("{}: {error}", file.display()))?;
        Ok(Writer(created))
    }

    pub fn write(&mut self, line: &Line) -> Result<(), Failure> {
        let mut text = serde_json::to_string(line)?;
        text.push('\n');
        Ok(self.0.write_all(text.as_bytes())?)
    }
}

/// The lines of a file; a last one that was cut off is left out. Empty when there is no such file.
pub fn read(file: &Path) -> Result<Vec<Line>, Failure> {
    let text = match std::fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(format!("{}: {error}", file.display()).into()),
    };
    parse(&text).map_err(|error| format!("{}: {error}", file.display()).into())
}

fn parse(text: &str) -> Result<Vec<Line>, String> {
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let line = |(number, line): (usize, &str)| {
        serde_json::from_str(line).map_err(|error| format!("line {}: {error}", number + 1))
    };
    whole.lines().enumerate().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_that_was_cut_off_keeps_the_lines_that_it_finished() {
        let end = Line::End { part: "kernels".into() };
        let skipped = Line::Skipped { what: "bf16".into(), why: "compute capability 7.5".into() };
        let text = |line: &Line| serde_json::to_string(line).unwrap();
        let file = format!("{}\n{}\n{}", text(&skipped), text(&end), "{\"line\": \"ker");
        assert_eq!(parse(&file).unwrap(), vec![skipped, end]);
        assert!(parse("{\"line\": \"other\"}\n").unwrap_err().starts_with("line 1: "));
        assert_eq!(parse("").unwrap(), vec![]);
    }
}
