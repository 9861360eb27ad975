//! The model repository: Triton's layout, `<repository>/<model>/<version>/model.onnx`, with an optional `model.toml` per model,
//! or Triton's own `config.pbtxt` where there is none.

use crate::config::{self, PrecisionName};
use crate::triton;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// What a repository holds.
#[derive(Debug, Default)]
pub struct Scan {
    /// The versions that are to be served, by name and version.
    pub entries: Vec<Entry>,
    pub problems: Vec<Problem>,
    /// What is served, but not in every way as its settings ask.
    pub warnings: Vec<Problem>,
}

/// One version of one model.
#[derive(Debug, Clone)]
pub struct Entry {
    pub name: String,
    pub version: u64,
    pub file: PathBuf,
    pub settings: Settings,
}

/// Something in the repository that can't be served, or only in part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    pub path: PathBuf,
    pub what: String,
}

/// `model.toml`: everything optional.
#[derive(Debug, Clone, Default, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// SLO of sessions that name none.
    pub slo_ms: Option<f64>,
    /// Share of its sessions when there are too few devices; default 1.
    pub weight: Option<f64>,
    /// Largest batch to profile and run.
    pub max_batch: Option<u32>,
    /// Which versions are served; default: the highest.
    pub versions: Option<Versions>,
    /// Sizes of dynamic dimensions for the check on load and the profile: by symbol, or `"input:axis"`.
    pub shape: BTreeMap<String, u32>,
    /// The symbol of the batch axis, where the model's own naming does not tell.
    pub batch_symbol: Option<String>,
    /// The batch axis of a tensor, by name; -1: none.
    pub batch_axis: BTreeMap<String, i32>,
    /// Range of the values of an integer input, `[lowest, highest]`, for the check on load and the profile.
    pub range: BTreeMap<String, [i64; 2]>,
    /// In what numbers it is computed on GPUs, instead of what the device's settings say.
    pub precision: Option<PrecisionName>,
}

#[derive(Debug, Clone, Deserialize, PartialEq, Eq)]
#[serde(untagged)]
pub enum Versions {
    /// `versions = "all"`.
    Named(AllVersions),
    /// `versions = [1, 3]`.
    These(Vec<u64>),
    /// `versions = { latest = 2 }`.
    Newest { latest: u32 },
}

#[derive(Debug, Clone, Copy, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum AllVersions {
    All,
    Latest,
}

/// What a model's folder says about it.
#[derive(Debug, Clone, PartialEq)]
pub struct Described {
    pub settings: Settings,
    /// Name of the model's file in each version's folder.
    pub model_file: String,
    /// What the settings ask for and does not happen.
    pub warning: Option<Problem>,
}

pub const DEFAULT_MODEL_FILE: &str = "model.onnx";

/// Reads the repository's folders; models themselves are not opened.
pub fn scan(repository: &Path) -> io::Result<Scan> {
    let mut scan = Scan::default();
    let mut models: Vec<_> = fs::read_dir(repository)?.collect::<Result<_, _>>()?;
    models.sort_by_key(|e| e.file_name());
    for model in models {
        let path = model.path();
        // A file beside the models (a README) is nobody's mistake.
        if path.is_dir() && !is_hidden(&path) {
            scan_model(&path, &mut scan);
        }
    }
    Ok(scan)
}

fn is_hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(b"."))
}

fn scan_model(folder: &Path, scan: &mut Scan) {
    let mut problem = |path: &Path, what: String| scan.problems.push(Problem { path: path.to_path_buf(), what });
    let Some(name) = folder.file_name().and_then(|n| n.to_str()) else {
        return problem(folder, "the model's name is not UTF-8".to_string());
    };
    let Described { settings, model_file, warning } = match describe(folder) {
        Ok(described) => described,
        Err(found) => return scan.problems.push(found),
    };
    let versions = match versions_in(folder, &model_file) {
        Ok(versions) => versions,
        Err(error) => return problem(folder, format!("can't be read: {error}")),
    };
    if versions.is_empty() {
        return problem(folder, format!("no version: expected <model>/<version number>/{model_file}"));
    }
    let newest = |count: usize| versions[versions.len().saturating_sub(count)..].to_vec();
    let served: Vec<u64> = match &settings.versions {
        None | Some(Versions::Named(AllVersions::Latest)) => newest(1),
        Some(Versions::Newest { latest }) => newest(*latest as usize),
        Some(Versions::Named(AllVersions::All)) => versions.clone(),
        Some(Versions::These(these)) => {
            for missing in these.iter().filter(|v| !versions.contains(v)) {
                problem(folder, format!("version {missing}, which its settings name, has no {model_file}"));
            }
            versions.iter().copied().filter(|v| these.contains(v)).collect()
        }
    };
    for version in served {
        let file = folder.join(version.to_string()).join(&model_file);
        scan.entries.push(Entry { name: name.to_string(), version, file, settings: settings.clone() });
    }
    scan.warnings.extend(warning);
}

/// Version numbers with a model file, rising.
fn versions_in(folder: &Path, model_file: &str) -> io::Result<Vec<u64>> {
    let mut versions = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let number = entry.file_name().to_str().and_then(|n| n.parse::<u64>().ok());
        // Written back, the number must name the folder: "01" would not.
        let number = number.filter(|n| entry.file_name().to_str() == Some(&n.to_string()));
        if let Some(number) = number.filter(|_| entry.path().join(model_file).is_file()) {
            versions.push(number);
        }
    }
    versions.sort_unstable();
    Ok(versions)
}

/// Reads a model's `model.toml`, or its `config.pbtxt` where there is none. Neither: everything is as by default.
pub fn describe(folder: &Path) -> Result<Described, Problem> {
    let own = folder.join("model.toml");
    let problem = |path: &Path, what: String| Problem { path: path.to_path_buf(), what };
    if let Some(text) = read_if_there(&own)? {
        let settings = toml::from_str(&text).map_err(|error| problem(&own, config::one_line(&text, &error)))?;
        check_settings(&settings).map_err(|what| problem(&own, what))?;
        return Ok(Described { settings, model_file: DEFAULT_MODEL_FILE.to_string(), warning: None });
    }
    let tritons = folder.join("config.pbtxt");
    let text = read_if_there(&tritons)?.unwrap_or_default();
    let config = triton::read(&text).map_err(|error| problem(&tritons, error.to_string()))?;
    let unused: Vec<String> = config.unused.into_iter().collect();
    let warning = (!unused.is_empty()).then(|| problem(&tritons, format!("not used here: {}", unused.join(", "))));
    Ok(Described { settings: config.settings, model_file: config.model_file, warning })
}

/// What the folder of the model that `file` is a version of says about it: `<model>/<version>/<file>`. By default when it lies
/// elsewhere.
pub fn describe_file(file: &Path) -> Result<Described, Problem> {
    let whole = std::path::absolute(file).unwrap_or_else(|_| file.to_path_buf());
    let version = whole.parent().filter(|folder| {
        let name = folder.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| name.parse::<u64>().is_ok())
    });
    match version.and_then(Path::parent) {
        Some(model) => describe(model),
        None => {
            let model_file = DEFAULT_MODEL_FILE.to_string();
            Ok(Described { settings: Settings::default(), model_file, warning: None })
        }
    }
}

fn read_if_there(path: &Path) -> Result<Option<String>, Problem> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Problem { path: path.to_path_buf(), what: format!("can't be read: {error}") }),
    }
}

fn check_settings(settings: &Settings) -> Result<(), String> {
    if let Some(slo) = settings.slo_ms.filter(|slo| !slo.is_finite() || *slo <= 0.0) {
        return Err(format!("slo_ms = {slo} must be above zero"));
    }
    if let Some(weight) = settings.weight.filter(|weight| !weight.is_finite() || *weight <= 0.0) {
        return Err(format!("weight = {weight} must be above zero; 1 is usual"));
    }
    if settings.max_batch == Some(0) {
        return Err("max_batch = 0 must be at least 1".to_string());
    }
    if settings.versions == Some(Versions::Newest { latest: 0 }) {
        return Err("versions: latest = 0 must be at least 1".to_string());
    }
    if let Some((name, _)) = settings.shape.iter().find(|(_, size)| **size == 0) {
        return Err(format!("shape: \"{name}\" = 0 must be at least 1"));
    }
    if let Some((name, [low, high])) = settings.range.iter().find(|(_, [low, high])| low > high) {
        return Err(format!("range: \"{name}\" = [{low}, {high}] is empty"));
    }
    Ok(())
}

/// SHA-256 of a file, in hexadecimal.
pub fn digest(file: &Path) -> io::Result<String> {
    let mut hasher = Sha256::new();
    io::copy(&mut fs::File::open(file)?, &mut hasher)?;
    Ok(hexadecimal(hasher))
}

/// As [`digest`], of a file that was read.
pub fn digest_of(bytes: &[u8]) -> String {
    hexadecimal(Sha256::new().chain_update(bytes))
}

fn hexadecimal(hasher: Sha256) -> String {
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Folder {
            let path = std::env::temp_dir().join(format!("rota-repository-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            fs::create_dir_all(&path).unwrap();
            Folder(path)
        }
        fn write(&self, path: &str, text: &str) {
            let path = self.0.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn served(scan: &Scan) -> Vec<(&str, u64)> {
        scan.entries.iter().map(|e| (e.name.as_str(), e.version)).collect()
    }

    #[test]
    fn the_highest_version_is_served_unless_model_toml_says_otherwise() {
        let folder = Folder::new("versions");
        for path in ["a/1/model.onnx", "a/2/model.onnx", "a/10/model.onnx", "b/1/model.onnx", "b/3/model.onnx"] {
            folder.write(path, "");
        }
        folder.write("c/1/model.onnx", "");
        folder.write("c/2/model.onnx", "");
        folder.write("b/model.toml", "versions = \"all\"\n");
        folder.write("c/model.toml", "versions = [1, 7]\nslo_ms = 20.0\n");
        folder.write("d/1/model.onnx", "");
        folder.write("d/2/model.onnx", "");
        folder.write("d/3/model.onnx", "");
        folder.write("d/model.toml", "versions = { latest = 2 }\n");
        folder.write("README.md", "not a model");
        let scan = scan(&folder.0).unwrap();
        assert_eq!(served(&scan), [("a", 10), ("b", 1), ("b", 3), ("c", 1), ("d", 2), ("d", 3)]);
        assert_eq!(scan.entries[3].settings.slo_ms, Some(20.0));
        assert_eq!(scan.problems.len(), 1);
        assert!(scan.problems[0].what.contains("version 7"), "{:?}", scan.problems);
    }

    #[test]
    fn a_triton_configuration_is_read_where_there_is_no_model_toml() {
        let folder = Folder::new("triton");
        for path in ["a/1/net.onnx", "a/2/net.onnx", "a/3/net.onnx", "b/1/model.onnx", "c/1/model.onnx"] {
            folder.write(path, "");
        }
        let policy = "version_policy { latest { num_versions: 2 } }";
        folder.write("a/config.pbtxt", &format!("max_batch_size: 4\ndefault_model_filename: \"net.onnx\"\n{policy}\n"));
        folder.write("b/config.pbtxt", "instance_group [ { count: 2 } ]\n");
        folder.write("c/config.pbtxt", "max_batch_size: x\n");
        let scanned = scan(&folder.0).unwrap();
        assert_eq!(served(&scanned), [("a", 2), ("a", 3), ("b", 1)]);
        assert_eq!(scanned.entries[0].settings.max_batch, Some(4));
        assert!(scanned.entries[0].file.ends_with("a/2/net.onnx"));
        let said = |problems: &[Problem]| problems.iter().map(|p| p.what.clone()).collect::<Vec<_>>();
        assert_eq!(said(&scanned.warnings), ["not used here: instance_group.count"]);
        assert!(said(&scanned.problems)[0].starts_with("line 1: max_batch_size must be"), "{:?}", scanned.problems);
        assert!(scanned.problems[0].path.ends_with("c/config.pbtxt"));
        // The model's own settings come first, and are then the only ones.
        folder.write("c/model.toml", "max_batch = 2\n");
        let scanned = scan(&folder.0).unwrap();
        assert!(scanned.problems.is_empty());
        assert_eq!(scanned.entries[3].settings.max_batch, Some(2));
    }

    #[test]
    fn a_file_of_a_model_folder_has_its_settings_and_another_has_none() {
        let folder = Folder::new("beside");
        folder.write("a/1/model.onnx", "");
        folder.write("a/loose.onnx", "");
        folder.write("a/model.toml", "max_batch = 3\n");
        let most = |path: &str| describe_file(&folder.0.join(path)).unwrap().settings.max_batch;
        assert_eq!(most("a/1/model.onnx"), Some(3));
        assert_eq!(most("a/loose.onnx"), None);
    }

    #[test]
    fn a_folder_without_a_version_and_a_bad_model_toml_are_named() {
        let folder = Folder::new("problems");
        folder.write("empty/model.onnx", "");
        folder.write("typo/1/model.onnx", "");
        folder.write("typo/model.toml", "slo_ms = 5\nmax_bacth = 3\n");
        folder.write("zero/1/model.onnx", "");
        folder.write("zero/model.toml", "max_batch = 0\n");
        folder.write("leading/01/model.onnx", "");
        folder.write("weight/1/model.onnx", "");
        folder.write("weight/model.toml", "weight = -2\n");
        let scan = scan(&folder.0).unwrap();
        assert_eq!(served(&scan), []);
        let said: Vec<&str> = scan.problems.iter().map(|p| p.what.as_str()).collect();
        assert_eq!(said.len(), 5, "{said:?}");
        assert!(said[0].contains("expected <model>/<version number>/model.onnx"));
        assert!(said[1].contains("expected <model>"));
        assert!(said[2].contains("line 2") && said[2].contains("max_bacth"), "{}", said[2]);
        assert_eq!(said[3], "weight = -2 must be above zero; 1 is usual");
        assert!(said[4].contains("max_batch = 0"));
    }
}
