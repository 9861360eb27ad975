//! The workload file, as the verbs that plan and simulate read it.

use super::Failure;
use crate::config::Config;
use crate::profiles::{Found, Store};
use crate::repository;
use crate::serve::profile_cache;
use rota_sched::plan::{ArrivalProcess, Plan, PlanError, Planner, Steps};
use rota_sched::query::{self, Method, Split, Tries};
use rota_sim::policy::PolicySpec;
use rota_sim::workload::{Points, Sources, Workload};
use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::time::Duration;

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

/// How the SLO of a query is split over its stages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum SplitName {
    /// So that the stages take the fewest devices
    Dp,
    /// Every stage the same
    Even,
    /// In proportion to what a batch of one takes
    ByLatency,
    /// Together with the planner, which takes longer
    Joint,
}

impl SplitName {
    /// As the system that a policy is of does it.
    pub fn of(policy: &PolicySpec) -> SplitName {
        match policy.split() {
            Method::Dp => SplitName::Dp,
            Method::Even => SplitName::Even,
            Method::ByLatency => SplitName::ByLatency,
        }
    }

    pub fn split(self) -> Split {
        match self {
            SplitName::Dp => Split::Alone(Method::Dp),
            SplitName::Even => Split::Alone(Method::Even),
            SplitName::ByLatency => Split::Alone(Method::ByLatency),
            SplitName::Joint => Split::Joint(TRIES),
        }
    }
}

/// A plan, for which the workload's queries are split; an error names the file and the session's line.
pub fn planned(
    workload: &mut Workload,
    path: &Path,
    arrivals: ArrivalProcess,
    split: SplitName,
    planner: Planner,
    steps: Steps,
) -> Result<Plan, Failure> {
    let planned = query::plan(&workload.plain_demand(arrivals), &workload.trees(), split.split(), planner, steps);
    let planned = planned.map_err(|error| -> Failure {
        let session = match error {
            PlanError::Rate { session, .. }
            | PlanError::Weight { session, .. }
            | PlanError::TooManyDevices { session, .. } => workload.sessions.get(session),
            PlanError::Kind { .. } => None,
        };
        let line = session.map_or(String::new(), |session| format!("line {}: ", session.line));
        format!("{}: {line}{error}", path.display()).into()
    })?;
    workload.set_shares(&planned.shares);
    Ok(planned.plan)
}

/// Splits the workload's queries, jointly as if there were as many devices as it takes, of the first kind.
pub fn split(workload: &mut Workload, path: &Path, split: SplitName) -> Result<(), Failure> {
    match split.split() {
        Split::Alone(method) => workload.split(method),
        Split::Joint(_) => {
            let mut unlimited = workload.clone();
            unlimited.kinds.iter_mut().for_each(|kind| kind.count = 0);
            planned(&mut unlimited, path, ArrivalProcess::Poisson, split, Planner::Rota, Steps(0))?;
            let shares: Vec<Vec<Duration>> = unlimited.queries.iter().map(|query| unlimited.shares(query)).collect();
            workload.set_shares(&shares);
        }
    }
    Ok(())
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

/// Plans that a joint search makes at most.
const TRIES: Tries = Tries(24);
