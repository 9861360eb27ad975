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
//! Models may begin with the same part. Then `batch_ms` of the whole is, unless it is given, what both parts take together:
//!
//! ```toml
//! [[prefix]]
//! name = "trunk"
//! batch_ms = { 1 = 19.0, 4 = 47.0 }
//! memory_mb = 480
//!
//! [[profile]]
//! model = "age"
//! prefix = "trunk"
//! suffix_ms = { 1 = 1.0, 4 = 3.0 }
//! suffix_mb = 20
//! # inputs and outputs as above
//! ```
//!
//! The batch axis of each tensor follows from the names, by the rule that holds for models from files.
//!
//! Of a device that is not emulated the same file may say how long batches take ([`read_times`]); what the models look like then
//! follows from their own files, and `inputs`, `outputs` and sizes may be left out.

use super::Pace;
use crate::engine::{CompileOptions, Declared, LoadError, declared_signature};
use crate::{DType, Dim, Signature};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// What one emulated model is.
#[derive(Clone, Debug, PartialEq)]
pub struct EmulatedProfile {
    pub model: String,
    pub signature: Signature,
    /// Of the whole model.
    pub pace: Pace,
    pub memory_bytes: u64,
    /// What it has behind the part that it shares, if it shares one.
    pub suffix: Option<EmulatedSuffix>,
}

/// How long a model's batches take, as a file says.
#[derive(Clone, Debug, PartialEq)]
pub struct Times {
    pub model: String,
    /// Of the whole model.
    pub pace: Pace,
    /// What it has behind the part that it shares, if the file says so.
    pub suffix: Option<EmulatedSuffix>,
}

/// The part that several emulated models begin with.
#[derive(Clone, Debug, PartialEq)]
pub struct EmulatedPrefix {
    pub name: String,
    pub pace: Pace,
    pub memory_bytes: u64,
}

/// What an emulated model has behind the part that it shares with others.
#[derive(Clone, Debug, PartialEq)]
pub struct EmulatedSuffix {
    /// Shared by the models of one file that name it.
    pub prefix: Arc<EmulatedPrefix>,
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
    #[error("{file}: prefix '{name}': {text}")]
    Prefix { file: PathBuf, name: String, text: String },
}

/// Reads the profiles of a file, in their order.
pub fn read_profiles(file: &Path) -> Result<Vec<EmulatedProfile>, ProfileFileError> {
    parse(file, &read(file)?)
}

/// Reads how long the models of a file take, in their order.
pub fn read_times(file: &Path) -> Result<Vec<Times>, ProfileFileError> {
    parse_each(file, &read(file)?, |entry, prefixes, _| times(&entry, prefixes))
}

fn read(file: &Path) -> Result<String, ProfileFileError> {
    std::fs::read_to_string(file).map_err(|error| ProfileFileError::Io { file: file.to_owned(), error })
}

fn parse(file: &Path, text: &str) -> Result<Vec<EmulatedProfile>, ProfileFileError> {
    parse_each(file, text, |entry, prefixes, earlier| {
        profile(file, entry, prefixes).and_then(|profile| check_inputs(profile, earlier))
    })
}

/// What `read` makes of each profile of a file, given the shared parts and what it made of those before.
fn parse_each<T>(
    file: &Path,
    text: &str,
    read: impl Fn(Entry, &[Arc<EmulatedPrefix>], &[T]) -> Result<T, String>,
) -> Result<Vec<T>, ProfileFileError> {
    let form = |error| ProfileFileError::Form { file: file.to_owned(), error: Box::new(error) };
    let parsed: File = toml::from_str(text).map_err(form)?;
    let mut prefixes: Vec<Arc<EmulatedPrefix>> = Vec::new();
    for entry in parsed.prefix {
        let name = entry.name.clone();
        let result = match prefixes.iter().any(|prefix| prefix.name == name) {
            true => Err("it is in the file twice".into()),
            false => prefix(entry),
        };
        prefixes.push(Arc::new(result.map_err(|text| ProfileFileError::Prefix {
            file: file.to_owned(),
            name,
            text,
        })?));
    }
    let mut profiles: Vec<T> = Vec::with_capacity(parsed.profile.len());
    let mut seen = BTreeSet::new();
    for entry in parsed.profile {
        let model = entry.model.clone();
        let result = match seen.insert(model.clone()) {
            false => Err("it is in the file twice".into()),
            true => read(entry, &prefixes, &profiles),
        };
        profiles.push(result.map_err(|text| ProfileFileError::Profile { file: file.to_owned(), model, text })?);
    }
    Ok(profiles)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    prefix: Vec<PrefixEntry>,
    profile: Vec<Entry>,
}

/// Batch size (TOML's keys are text) → milliseconds.
type Table = BTreeMap<String, f64>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PrefixEntry {
    name: String,
    batch_ms: Table,
    #[serde(default)]
    memory_mb: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    model: String,
    batch_ms: Option<Table>,
    memory_mb: Option<f64>,
    prefix: Option<String>,
    suffix_ms: Option<Table>,
    suffix_mb: Option<f64>,
    #[serde(default)]
    inputs: Vec<Tensor>,
    #[serde(default)]
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

fn prefix(entry: PrefixEntry) -> Result<EmulatedPrefix, String> {
    let pace = pace("batch_ms", &entry.batch_ms)?;
    Ok(EmulatedPrefix { name: entry.name, pace, memory_bytes: bytes("memory_mb", entry.memory_mb)? })
}

fn times(entry: &Entry, prefixes: &[Arc<EmulatedPrefix>]) -> Result<Times, String> {
    let suffix = match (&entry.prefix, &entry.suffix_ms) {
        (None, None) if entry.suffix_mb.is_none() => None,
        (Some(name), Some(table)) => {
            let prefix = prefixes.iter().find(|prefix| prefix.name == *name);
            let prefix = prefix.ok_or_else(|| format!("there is no [[prefix]] of name '{name}' in the file"))?.clone();
            let memory_bytes = bytes("suffix_mb", entry.suffix_mb.unwrap_or(0.0))?;
            Some(EmulatedSuffix { prefix, pace: pace("suffix_ms", table)?, memory_bytes })
        }
        _ => return Err("a model that shares a part says which, prefix, and what it has behind it, suffix_ms".into()),
    };
    let pace = match (&entry.batch_ms, &suffix) {
        (Some(table), _) => pace("batch_ms", table)?,
        (None, Some(suffix)) => suffix.prefix.pace.and(&suffix.pace),
        (None, None) => return Err("batch_ms is missing: how long batches take".into()),
    };
    Ok(Times { model: entry.model.clone(), pace, suffix })
}

fn profile(file: &Path, entry: Entry, prefixes: &[Arc<EmulatedPrefix>]) -> Result<EmulatedProfile, String> {
    let Times { model, pace, suffix } = times(&entry, prefixes)?;
    let both = suffix.as_ref().map_or(0, |suffix| suffix.prefix.memory_bytes + suffix.memory_bytes);
    let memory_bytes = entry.memory_mb.map_or(Ok(both), |mb| bytes("memory_mb", mb))?;
    let (inputs, outputs) = (tensors("inputs", entry.inputs)?, tensors("outputs", entry.outputs)?);
    if inputs.is_empty() || outputs.is_empty() {
        return Err("a model needs inputs and outputs".into());
    }
    let signature =
        declared_signature(file, inputs, outputs, &CompileOptions::default()).map_err(|error| match error {
            LoadError::Rank { tensor, rank, .. } => format!("'{tensor}' has {rank} dimensions; at most 8 are carried"),
            other => other.to_string(),
        })?;
    Ok(EmulatedProfile { model, signature, pace, memory_bytes, suffix })
}

/// Models that begin with the same part take the same inputs: it is what reads them.
fn check_inputs(profile: EmulatedProfile, earlier: &[EmulatedProfile]) -> Result<EmulatedProfile, String> {
    let Some(suffix) = &profile.suffix else { return Ok(profile) };
    let shares =
        |other: &&EmulatedProfile| other.suffix.as_ref().is_some_and(|s| Arc::ptr_eq(&s.prefix, &suffix.prefix));
    match earlier.iter().find(shares) {
        Some(other) if other.signature.inputs != profile.signature.inputs => Err(format!(
            "its inputs are not those of '{}', which begins with the same prefix '{}'",
            other.model, suffix.prefix.name
        )),
        _ => Ok(profile),
    }
}

fn pace(key: &str, table: &Table) -> Result<Pace, String> {
    let mut points = Vec::with_capacity(table.len());
    for (batch, &ms) in table {
        let size: u32 = batch.parse().map_err(|_| format!("{key}: '{batch}' is not a batch size"))?;
        let time = Duration::try_from_secs_f64(ms / 1e3).map_err(|_| format!("{key}: {batch} = {ms} is not a time"))?;
        points.push((size, time));
    }
    Pace::new(points).ok_or_else(|| format!("{key} needs at least one batch size, none of them 0 or given twice"))
}

fn bytes(key: &str, mb: f64) -> Result<u64, String> {
    match (0.0..1e9).contains(&mb) {
        true => Ok((mb * 1e6) as u64),
        false => Err(format!("{key}: {mb} is not a size")),
    }
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

    const SHARING: &str = r#"
[[prefix]]
name = "trunk"
batch_ms = { 1 = 19.0, 4 = 40.0 }
memory_mb = 90

[[profile]]
model = "age"
prefix = "trunk"
suffix_ms = { 1 = 1.0, 2 = 1.5 }
suffix_mb = 10
inputs = [{ name = "x", dtype = "f32", dims = ["batch", 8] }]
outputs = [{ name = "y", dtype = "f32", dims = ["batch", 2] }]
"#;

    #[test]
    fn a_model_that_shares_a_part_takes_what_both_parts_take() {
        let profiles =
            read(&format!("{SHARING}{}", SHARING[SHARING.find("[[profile").unwrap()..].replace("age", "sex"))).unwrap();
        let [age, sex] = &profiles[..] else { panic!("{profiles:?}") };
        assert_eq!(age.memory_bytes, 100_000_000);
        assert_eq!(age.pace.points().iter().map(|point| point.0).collect::<Vec<_>>(), [1, 2, 4]);
        for (items, us) in [(1, 20_000), (2, 27_500), (4, 43_000)] {
            assert_eq!(age.pace.of(items).as_micros(), us, "{items} items");
        }
        let prefix = |profile: &EmulatedProfile| profile.suffix.as_ref().unwrap().prefix.clone();
        assert!(Arc::ptr_eq(&prefix(age), &prefix(sex)));
    }

    #[test]
    fn times_need_no_tensors_and_take_what_an_emulated_device_takes() {
        let read = |text: &str| parse_each(Path::new("p.toml"), text, |entry, prefixes, _| times(&entry, prefixes));
        let lines = SHARING.lines().filter(|line| !line.starts_with("inputs") && !line.starts_with("outputs"));
        let bare = read(&lines.collect::<Vec<_>>().join("\n")).unwrap();
        assert_eq!(bare, read(SHARING).unwrap());
        assert_eq!((&bare[0].model[..], bare[0].pace.of(1).as_millis()), ("age", 20));
        assert_eq!(bare[0].suffix.as_ref().unwrap().prefix.name, "trunk");
        let error = read("[[profile]]\nmodel = \"a\"\n").unwrap_err().to_string();
        assert_eq!(error, "p.toml: profile of model 'a': batch_ms is missing: how long batches take");
    }

    #[test]
    fn mistakes_about_shared_parts_are_named_with_their_place() {
        let other = |inputs: &str| {
            let profile = SHARING[SHARING.find("[[profile").unwrap()..].replace("age", "sex");
            format!("{SHARING}{}", profile.replace("\"batch\", 8", inputs))
        };
        let cases = [
            (
                SHARING.replace("prefix = \"trunk\"", "prefix = \"truck\""),
                "'age': there is no [[prefix]] of name 'truck'",
            ),
            (SHARING.replace("prefix = \"trunk\"\n", ""), "'age': a model that shares a part says which"),
            (SHARING.replace("suffix_ms = { 1 = 1.0, 2 = 1.5 }\n", ""), "'age': a model that shares a part says which"),
            (SHARING.replace("1 = 19.0", "1 = -1.0"), "p.toml: prefix 'trunk': batch_ms: 1 = -1 is not a time"),
            (SHARING.replace("1 = 1.0,", "0 = 1.0,"), "'age': suffix_ms needs at least one batch size"),
            (
                other("\"batch\", 9"),
                "'sex': its inputs are not those of 'age', which begins with the same prefix 'trunk'",
            ),
            (
                format!("{}{SHARING}", &SHARING[..SHARING.find("[[profile").unwrap()]),
                "prefix 'trunk': it is in the file twice",
            ),
        ];
        for (text, expected) in cases {
            let error = read(&text).unwrap_err();
            assert!(error.contains(expected), "{error}\nshould contain: {expected}");
        }
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
