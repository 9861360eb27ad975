//! The model repository: Triton's layout, `<repository>/<model>/<version>/model.onnx`, with an optional `model.toml` per model.

use serde::Deserialize;
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
#[derive(Debug, Clone, PartialEq, Eq)]
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
}

#[derive(Debug, Clone, Deserialize, PartialEq, Eq)]
#[serde(untagged)]
pub enum Versions {
    /// `versions = "all"`.
    Named(AllVersions),
    /// `versions = [1, 3]`.
    These(Vec<u64>),
}

#[derive(Debug, Clone, Copy, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum AllVersions {
    All,
    Latest,
}

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
    let settings = match read_settings(folder) {
        Ok(settings) => settings,
        Err(what) => return problem(&folder.join("model.toml"), what),
    };
    let versions = match versions_in(folder) {
        Ok(versions) => versions,
        Err(error) => return problem(folder, format!("can't be read: {error}")),
    };
    let served: Vec<u64> = match &settings.versions {
        None | Some(Versions::Named(AllVersions::Latest)) => versions.last().copied().into_iter().collect(),
        Some(Versions::Named(AllVersions::All)) => versions.clone(),
        Some(Versions::These(these)) => {
            for missing in these.iter().filter(|v| !versions.contains(v)) {
                problem(folder, format!("version {missing}, which model.toml names, has no model.onnx"));
            }
            versions.iter().copied().filter(|v| these.contains(v)).collect()
        }
    };
    if versions.is_empty() {
        return problem(folder, "no version: expected <model>/<version number>/model.onnx".to_string());
    }
    for version in served {
        let file = folder.join(version.to_string()).join("model.onnx");
        scan.entries.push(Entry { name: name.to_string(), version, file, settings: settings.clone() });
    }
}

/// Version numbers with a model file, rising.
fn versions_in(folder: &Path) -> io::Result<Vec<u64>> {
    let mut versions = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let number = entry.file_name().to_str().and_then(|n| n.parse::<u64>().ok());
        // Written back, the number must name the folder: "01" would not.
        let number = number.filter(|n| entry.file_name().to_str() == Some(&n.to_string()));
        if let Some(number) = number.filter(|_| entry.path().join("model.onnx").is_file()) {
            versions.push(number);
        }
    }
    versions.sort_unstable();
    Ok(versions)
}

fn read_settings(folder: &Path) -> Result<Settings, String> {
    let text = match fs::read_to_string(folder.join("model.toml")) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Settings::default()),
        Err(error) => return Err(format!("can't be read: {error}")),
    };
    let settings: Settings = toml::from_str(&text).map_err(|error| error.to_string())?;
    check_settings(&settings)?;
    Ok(settings)
}

fn check_settings(settings: &Settings) -> Result<(), String> {
    if let Some(slo) = settings.slo_ms.filter(|slo| !slo.is_finite() || *slo <= 0.0) {
        return Err(format!("slo_ms = {slo} must be above zero"));
    }
    if settings.max_batch == Some(0) {
        return Err("max_batch = 0 must be at least 1".to_string());
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
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
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
        folder.write("README.md", "not a model");
        let scan = scan(&folder.0).unwrap();
        assert_eq!(served(&scan), [("a", 10), ("b", 1), ("b", 3), ("c", 1)]);
        assert_eq!(scan.entries[3].settings.slo_ms, Some(20.0));
        assert_eq!(scan.problems.len(), 1);
        assert!(scan.problems[0].what.contains("version 7"), "{:?}", scan.problems);
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
        let scan = scan(&folder.0).unwrap();
        assert_eq!(served(&scan), []);
        let said: Vec<&str> = scan.problems.iter().map(|p| p.what.as_str()).collect();
        assert_eq!(said.len(), 4, "{said:?}");
        assert!(said[0].contains("expected <model>/<version number>/model.onnx"));
        assert!(said[1].contains("expected <model>"));
        assert!(said[2].contains("line 2") && said[2].contains("max_bacth"), "{}", said[2]);
        assert!(said[3].contains("max_batch = 0"));
    }
}
