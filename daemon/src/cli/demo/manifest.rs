//! The manifest of the demo's models and inputs (`models/README.md` has its form), and how an answer is read in words.

use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

#[derive(Debug, Deserialize)]
pub struct Manifest {
    pub schema: u32,
    pub repository: PathBuf,
    pub models: Vec<Model>,
    /// The folder that paths are relative to.
    #[serde(skip)]
    pub folder: PathBuf,
    /// The project's, for an item's `file`: two levels up.
    #[serde(skip)]
    pub root: PathBuf,
}

#[derive(Debug, Deserialize)]
pub struct Model {
    pub name: String,
    pub about: String,
    pub task: Task,
    /// The output that the task reads.
    pub output: String,
    pub labels: Option<PathBuf>,
    #[serde(default)]
    pub encode: BTreeMap<String, Encoding>,
    #[serde(default)]
    pub row_inputs: Vec<String>,
    #[serde(default)]
    pub feedback: BTreeMap<String, String>,
    pub items: Vec<Item>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Task {
    /// [1, classes]: the largest wins.
    Label,
    /// [1, places, classes]: a line of text.
    Text,
    /// [1, 1]: the probability that somebody speaks.
    Speech,
    /// A picture; nothing to read.
    Map,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    Magika,
}

#[derive(Debug, Deserialize)]
pub struct Item {
    pub name: String,
    #[serde(default)]
    pub inputs: BTreeMap<String, PathBuf>,
    /// A file of the project, to be encoded.
    pub file: Option<PathBuf>,
    /// First row and number of requests.
    pub rows: Option<[usize; 2]>,
    #[serde(default)]
    pub expect: Vec<String>,
    #[serde(default)]
    pub spans: Vec<[usize; 2]>,
    #[serde(default)]
    pub spans_tolerance: usize,
}

const SCHEMA: u32 = 1;
/// Above this somebody speaks.
const SPEECH: f32 = 0.5;

impl Manifest {
    pub fn read(path: &Path) -> Result<Manifest, String> {
        let read = std::fs::read_to_string(path).map_err(|e| e.to_string());
        let parsed = read.and_then(|text| serde_json::from_str::<Manifest>(&text).map_err(|e| e.to_string()));
        let mut manifest = parsed.map_err(|error| format!("{}: {error}", path.display()))?;
        if manifest.schema != SCHEMA {
            return Err(format!("{}: schema {}, but this demo reads {SCHEMA}", path.display(), manifest.schema));
        }
        manifest.folder = path.parent().unwrap_or(Path::new(".")).to_path_buf();
        manifest.root = manifest.folder.parent().unwrap_or(Path::new(".")).join("..");
        Ok(manifest)
    }

    pub fn model(&self, name: &str) -> Option<&Model> {
        self.models.iter().find(|model| model.name == name)
    }
}

/// One label a line; a line may be empty or a space, so only the line's end is cut off.
pub fn read_labels(path: &Path) -> Result<Vec<String>, String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let mut lines: Vec<String> = text.split('\n').map(str::to_string).collect();
    lines.pop();
    Ok(lines)
}

fn likeliest(scores: &[f32]) -> usize {
    let best = scores.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
    best.map_or(0, |(index, _)| index)
}

/// The likeliest class.
pub fn label<'a>(scores: &[f32], labels: &'a [String]) -> &'a str {
    labels.get(likeliest(scores)).map_or("?", String::as_str)
}

/// The likeliest character at each place; repetitions, and then blanks (class 0), left out.
pub fn text(scores: &[f32], classes: usize, labels: &[String]) -> String {
    let mut line = String::new();
    let mut before = 0;
    for place in scores.chunks_exact(classes.max(1)) {
        let best = likeliest(place);
        if best != 0 && best != before {
            line.push_str(labels.get(best).map_or("?", String::as_str));
        }
        before = best;
    }
    line
}

/// First and last of each run of answers that say that somebody speaks.
pub fn spans(probabilities: &[f32]) -> Vec<[usize; 2]> {
    let mut spans: Vec<[usize; 2]> = Vec::new();
    for (index, _) in probabilities.iter().enumerate().filter(|(_, p)| **p >= SPEECH) {
        match spans.last_mut() {
            Some(last) if last[1] + 1 == index => last[1] = index,
            _ => spans.push([index, index]),
        }
    }
    spans
}

/// Whether two lists of spans agree but for `tolerance` answers at each end.
pub fn near(found: &[[usize; 2]], wanted: &[[usize; 2]], tolerance: usize) -> bool {
    let ends = found.iter().flatten().zip(wanted.iter().flatten());
    found.len() == wanted.len() && ends.into_iter().all(|(a, b)| a.abs_diff(*b) <= tolerance)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_manifests_of_the_project_can_be_read() {
        let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models");
        for path in ["manifest.json", "tiny/manifest.json"] {
            let manifest = Manifest::read(&models.join(path)).unwrap();
            assert!(manifest.models.len() >= 3, "{path}");
        }
    }

    #[test]
    fn text_leaves_out_repetitions_and_blanks() {
        let labels: Vec<String> = ["", "a", "b"].map(String::from).to_vec();
        let classes = [1, 1, 0, 1, 2, 2, 0];
        let scores: Vec<f32> =
            classes.iter().flat_map(|&c| (0..3).map(move |k| if k == c { 1.0 } else { 0.0 })).collect();
        assert_eq!(text(&scores, 3, &labels), "aab");
    }

    #[test]
    fn spans_are_runs_and_agree_within_the_tolerance() {
        let found = spans(&[0.1, 0.9, 0.8, 0.2, 0.5]);
        assert_eq!(found, [[1, 2], [4, 4]]);
        assert!(near(&found, &[[1, 3], [4, 4]], 1));
        assert!(!near(&found, &[[1, 4], [4, 4]], 1));
        assert!(!near(&found, &[[1, 2]], 5));
    }
}
