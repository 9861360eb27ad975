//! The workload file, as the verbs that plan and simulate read it.

use super::Failure;
use crate::config::Config;
use crate::profiles::{Found, Store};
use crate::repository;
use crate::serve::profile_cache;
use rota_sched::plan::{Demand, Plan, PlanError, Planner, Steps, plan};
use rota_sim::workload::{Points, Sources, Workload};
use std::cell::RefCell;
use std::path::{Path, PathBuf};

/// Where models come from that the workload file gives no profile of.
#[derive(clap::Args)]
pub struct RepositoryArguments {
    /// Models without a [[profile]] are those of this repository, as measured when they were served
    #[arg(long, value_name = "DIR")]
    repository: Option<PathBuf>,
    /// Where measured profiles are kept [default: ~/.cache/rota]
    #[arg(long, value_name = "DIR", requires = "repository")]
    profile_cache: Option<PathBuf>,
}

/// Reads a workload file. What was set right on reading is said on stderr.
pub fn read(path: &Path, arguments: &RepositoryArguments) -> Result<Workload, Failure> {
    let text = read_file(path)?;
    let folder = path.parent().unwrap_or(Path::new(""));
    let file = |name: &str| std::fs::read_to_string(folder.join(name)).map_err(|error| error.to_string());
    let repository = arguments.repository.as_deref().map(|folder| Repository::open(folder, arguments)).transpose()?;
    let model = |name: &str| repository.as_ref().map_or(Ok(None), |repository| repository.points(name));
    let workload = Workload::parse_with(&text, Sources { file: &file, model: &model });
    let workload = workload.map_err(|error| format!("{}: {error}", path.display()))?;
    let noted = repository.map_or(Vec::new(), |repository| repository.notes.into_inner());
    for warning in workload.warnings.iter().chain(&noted) {
        eprintln!("warning: {}: {warning}", path.display());
    }
    Ok(workload)
}

pub fn read_file(path: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()).into())
}

pub fn write_file(path: &Path, text: &str) -> Result<(), Failure> {
    std::fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()).into())
}

/// A plan; an error names the file and the session's line.
pub fn planned(
    workload: &Workload,
    path: &Path,
    demand: &Demand,
    planner: Planner,
    steps: Steps,
) -> Result<Plan, Failure> {
    plan(demand, planner, steps).map_err(|error| {
        let session = match error {
            PlanError::Rate { session, .. }
            | PlanError::Weight { session, .. }
            | PlanError::TooManyDevices { session, .. } => workload.sessions.get(session),
            PlanError::Kind { .. } => None,
        };
        let line = session.map_or(String::new(), |session| format!("line {}: ", session.line));
        format!("{}: {line}{error}", path.display()).into()
    })
}

struct Repository {
    folder: PathBuf,
    models: Vec<repository::Entry>,
    store: Store,
    /// What a user should know about the profiles that were taken.
    notes: RefCell<Vec<String>>,
}

impl Repository {
    fn open(folder: &Path, arguments: &RepositoryArguments) -> Result<Repository, Failure> {
        let scan = repository::scan(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        let cache = arguments.profile_cache.clone().or_else(|| profile_cache(&Config::default()));
        Ok(Repository {
            folder: folder.to_path_buf(),
            models: scan.entries,
            store: Store { folder: cache },
            notes: RefCell::default(),
        })
    }

    /// ℓ(b) of the highest version served of a model, as measured last.
    fn points(&self, name: &str) -> Result<Option<Points>, String> {
        let versions = self.models.iter().filter(|entry| entry.name == name);
        let Some(entry) = versions.max_by_key(|entry| entry.version) else { return Ok(None) };
        let digest = repository::digest(&entry.file).map_err(|error| format!("{}: {error}", entry.file.display()))?;
        let found = self.store.of_model(&digest);
        let Some(newest) = found.first() else {
            let cache = self.store.folder.as_deref().unwrap_or(Path::new("?"));
            let (folder, cache) = (self.folder.display(), cache.display());
            return Err(format!(
                "it was never measured: there is no profile of it in {cache}; run `rota serve --repository {folder}` once"
            ));
        };
        if found.len() > 1 {
            let kind = |found: &Found| format!("{} with {} threads", found.engine, found.threads);
            let others: Vec<String> = found[1..].iter().map(kind).collect();
            let text = format!("model '{name}': taken as measured last, with {}", kind(newest));
            self.notes.borrow_mut().push(format!("{text}; there is also {}", others.join(", ")));
        }
        Ok(Some(newest.points.clone()))
    }
}
