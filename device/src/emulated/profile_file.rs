//! The file that says what emulated models look like and how long they take.
//!
//! ```toml
//! [[profile]]
//! model = "detector"
//! batch_ms = { 1 = 20.0, 4 = 50.0 }
//! memory_mb = 500
//! inputs = [{ name = "image", dtype = "f32", dims = ["batch", 3, 224, 224] }]
//! outputs = [{ name = "boxes", dtype = "f32", dims = ["batch", 100, 4] }]
//! ```
//!
//! The batch axis of each tensor follows from the names, by the rule that holds for models from files.

use super::Pace;
use crate::engine::{CompileOptions, Declared, LoadError, declared_signature};
use crate::{DType, Dim, Signature};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What one emulated model is.
#[derive(Clone, Debug, PartialEq)]
pub struct EmulatedProfile {
    pub model: String,
    pub signature: Signature,
    pub pace: Pace,
    pub memory_bytes: u64,
}

/// The file can't be used as it is; whoever wrote it has to change it.
#[derive(Debug, thiserror::Error)]
pub enum ProfileFileError {
    #[error("{file}: {error}")]
    Io { file: PathBuf, error: std::io::Error },
    /// Not TOML, or not of the form; the message shows the line.
    #[error("{file}: {error}")]
    Form { file: PathBuf, error: Box<toml::de::Error> },
    #[error("{file}: profile of model '{model}': {text}")]
    Profile { file: PathBuf, model: String, text: String },
}

/// Reads the profiles of a file, in their order.
pub fn read_profiles(file: &Path) -> Result<Vec<EmulatedProfile>, ProfileFileError> {
    let text = std::fs::read_to_string(file).map_err(|error| ProfileFileError::Io { file: file.to_owned(), error })?;
    parse(file, &text)
}

fn parse(file: &Path, text: &str) -> Result<Vec<EmulatedProfile>, ProfileFileError> {
    let form = |error| ProfileFileError::Form { file: file.to_owned(), error: Box::new(error) };
    let parsed: File = toml::from_str(text).map_err(form)?;
    let mut names = BTreeSet::new();
    let mut profiles = Vec::with_capacity(parsed.profile.len());
    for entry in parsed.profile {
        let model = entry.model.clone();
        let result =
            if names.insert(model.clone()) { profile(file, entry) } else { Err("it is in the file twice".into()) };
        profiles.push(result.map_err(|text| ProfileFileError::Profile { file: file.to_owned(), model, text })?);
    }
    Ok(profiles)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    profile: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    model: String,
    /// Batch size (TOML's keys are text) → milliseconds.
    batch_ms: BTreeMap<String, f64>,
    #[serde(default)]
    memory_mb: f64,
    inputs: Vec<Tensor>,
    outputs: Vec<Tensor>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Tensor {
    name: String,
    dtype: String,
    dims: Vec<Size>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "a dimension is a number below 2^32 or, when each request chooses it, a name")]
enum Size {
    Fixed(u32),
    Named(String),
}

fn profile(file: &Path, entry: Entry) -> Result<EmulatedProfile, String> {
    let mut points = Vec::with_capacity(entry.batch_ms.len());
    for (batch, &ms) in &entry.batch_ms {
        let size: u32 = batch.parse().map_err(|_| format!("batch_ms: '{batch}' is not a batch size"))?;
        let time =
            Duration::try_from_secs_f64(ms / 1e3).map_err(|_| format!("batch_ms: {batch} = {ms} is not a time"))?;
        points.push((size, time));
    }
    let pace = Pace::new(points).ok_or("batch_ms needs at least one batch size, none of them 0 or given twice")?;
    if !(0.0..1e9).contains(&entry.memory_mb) {
        return Err(format!("memory_mb: {} is not a size", entry.memory_mb));
    }
    let (inputs, outputs) = (tensors("inputs", entry.inputs)?, tensors("outputs", entry.outputs)?);
    if inputs.is_empty() || outputs.is_empty() {
        return Err("a model needs inputs and outputs".into());
    }
    let signature =
        declared_signature(file, inputs, outputs, &CompileOptions::default()).map_err(|error| match error {
            LoadError::Rank { tensor, rank, .. } => format!("'{tensor}' has {rank} dimensions; at most 8 are carried"),
            other => other.to_string(),
        })?;
    Ok(EmulatedProfile { model: entry.model, signature, pace, memory_bytes: (entry.memory_mb * 1e6) as u64 })
}

fn tensors(role: &str, tensors: Vec<Tensor>) -> Result<Vec<Declared>, String> {
    let declare = |tensor: Tensor| {
        let dtype = DType::from_name(&tensor.dtype).ok_or_else(|| {
            let names: Vec<&str> = DType::ALL.iter().map(|dtype| dtype.name()).collect();
            format!("{role}: '{}' has dtype '{}'; there are {}", tensor.name, tensor.dtype, names.join(", "))
        })?;
        let dim = |size| match size {
            Size::Fixed(size) => Dim::Fixed(size),
            Size::Named(name) => Dim::Dynamic(name),
        };
        Ok(Declared { name: tensor.name, dtype, dims: tensor.dims.into_iter().map(dim).collect() })
    };
    tensors.into_iter().map(declare).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
[[profile]]
model = "a"
batch_ms = { 1 = 20.0, 4 = 50.0 }
memory_mb = 500
inputs = [{ name = "x", dtype = "f32", dims = ["batch", 3, 224, 224] }]
outputs = [{ name = "y", dtype = "f32", dims = [2, "batch"] }]
"#;

    fn read(text: &str) -> Result<Vec<EmulatedProfile>, String> {
        parse(Path::new("p.toml"), text).map_err(|error| error.to_string())
    }

    #[test]
    fn a_profile_is_read_whole() {
        let profiles = read(GOOD).unwrap();
        assert_eq!(profiles.len(), 1);
        assert_eq!(profiles[0].model, "a");
        assert_eq!(profiles[0].memory_bytes, 500_000_000);
        assert_eq!(profiles[0].pace.of(4), Duration::from_millis(50));
        assert_eq!(profiles[0].signature.inputs[0].batch_axis, Some(0));
        assert_eq!(profiles[0].signature.outputs[0].batch_axis, Some(1));
    }

    #[test]
    fn mistakes_are_named_with_their_place() {
        let cases = [
            (GOOD.replace("memory_mb", "memory"), "line 5"),
            (GOOD.replace("\"batch\", 3", "\"batch\", -3"), "a dimension is a number"),
            (
                GOOD.replace("f32", "f31"),
                "p.toml: profile of model 'a': inputs: 'x' has dtype 'f31'; there are bool, u8",
            ),
            (GOOD.replace("1 = 20.0", "0 = 20.0"), "batch_ms needs at least one batch size"),
            (GOOD.replace("20.0", "-20.0"), "batch_ms: 1 = -20 is not a time"),
            (GOOD.replace("4 =", "four ="), "batch_ms: 'four' is not a batch size"),
            (format!("{GOOD}{GOOD}"), "it is in the file twice"),
        ];
        for (text, expected) in cases {
            let error = read(&text).unwrap_err();
            assert!(error.contains(expected), "{error}\nshould contain: {expected}");
        }
    }
}
