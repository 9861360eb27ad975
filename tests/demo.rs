//! `rota demo ocr`: a scanned page through the real daemon, as a query of three published models.

#[allow(dead_code, reason = "not every test file uses all of it")]
mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use support::{Folder, stdout};

/// The folder of the demo's models, if the published ones were fetched. `ROTA_REQUIRE_MODELS=1` makes their absence a failure.
fn models() -> Option<PathBuf> {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models");
    if models.join("fetched/manifest.json").is_file() {
        return Some(models);
    }
    let required = std::env::var_os("ROTA_REQUIRE_MODELS").is_some_and(|value| value == "1");
    assert!(!required, "ROTA_REQUIRE_MODELS=1, but there are no published models: run models/fetch.py");
    None
}

fn read(models: &Path, picture: Option<&Path>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rota"));
    command.args(["demo", "ocr", "--models"]).arg(models).args(picture);
    command.output().unwrap()
}

#[test]
fn a_scanned_page_is_read() {
    let Some(models) = models() else { return };
    let output = read(&models, None);
    let text = stdout(&output);
    for line in ["Region-based segmentation", "unambiguously as either object or background", "extreme parts of the"] {
        assert!(text.contains(line), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    }
    assert!(text.contains("7 pieces of text, found and read in"), "{text}");
}

#[test]
fn what_is_no_picture_is_refused_before_a_daemon_starts() {
    let Some(models) = models() else { return };
    let folder = Folder::new("no-picture");
    let file = folder.write("page.png", b"not a picture");
    let output = read(&models, Some(&file));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && output.stdout.is_empty());
    assert!(error.starts_with("rota: ") && error.contains("page.png: it is no PNG file"), "{error}");
}
