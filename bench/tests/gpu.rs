//! The GPU's parts on the stand-in driver: every kernel of the catalogue equals its reference, and models equal the engine.

use rota_bench::gpu::case::Scale;
use rota_bench::gpu::lines::{self, Line, Writer};
use rota_bench::gpu::report::Results;
use rota_bench::gpu::{kernels, models, references};
use rota_device::cuda::{Precision, driver};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A folder of its own, with the stand-in driver opened.
fn folder(name: &str) -> PathBuf {
    let library = rota_kernels::standin::library().unwrap_or_else(|error| panic!("{error}"));
    driver::open_library(Some(&library)).unwrap();
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

#[test]
fn every_kernel_of_the_catalogue_is_launched_and_equals_its_reference() {
    let folder = folder("gpu-kernels");
    let mut lines = Writer::create(&folder.join("kernels.jsonl")).unwrap();
    let settings = kernels::Settings { gpu: 0, scale: Scale::Small, flops_max: None };
    let summary = kernels::run(settings, &mut lines, |_| ()).unwrap();
    assert_eq!(summary.wrong, Vec::<String>::new());
    assert_eq!(summary.missing, Vec::<&str>::new());
    let read = lines::read(&folder.join("kernels.jsonl")).unwrap();
    let rows: Vec<&lines::Kernel> =
        read.iter().filter_map(|line| if let Line::Kernel(row) = line { Some(row) } else { None }).collect();
    assert_eq!(rows.len(), summary.correct);
    assert!(rows.iter().all(|row| row.checked > 0 && row.warm_us.is_some() && row.bytes > 0));
    let results = Results::read(&folder).unwrap();
    assert!(results.markdown().contains("stand-in driver, not a GPU"));
}

#[test]
fn models_equal_the_references_that_an_engine_made_of_them() {
    let folder = folder("gpu-models");
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tiny/repository");
    let made =
        references::write(&repository, &folder.join("references"), &|_| Ok(Vec::new()), &BTreeMap::new(), |_| ());
    assert_eq!(made.unwrap().len(), 3);
    let settings = models::Settings {
        gpu: 0,
        repository,
        references: folder.join("references"),
        precisions: vec![Precision::Fp32],
        batch_max: 3,
        samples: 1,
        budget: Duration::ZERO,
    };
    let mut lines = Writer::create(&folder.join("models.jsonl")).unwrap();
    let (correct, wrong) = models::run(&settings, &mut lines, |_| ()).unwrap();
    assert_eq!((correct, wrong), (9, Vec::new()));
}
