//! Queries as the daemon knows them: declared by somebody, checked, and bound to the models that are served.

use crate::model::Model;
use rota_ipc::control::{QueryDeclaration, StageDeclaration};
use rota_sched::query::{self, Method, QueryError, STAGES_MAX};
use rota_sched::{ModelId, Profile};
use std::sync::Arc;
use std::time::Duration;

/// A query that is served; its number is used again when the poller has let go of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct QueryId(pub u32);

/// A declaration that was checked: names are unique, its stages are a tree.
#[derive(Clone, Debug, PartialEq)]
pub struct Spec {
    pub name: String,
    pub slo: Duration,
    /// Its share when there are too few devices.
    pub weight: f64,
    pub stages: Vec<Stage>,
    /// Of `stages`, the one that is after no other.
    pub root: usize,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Stage {
    pub name: String,
    pub model: String,
    pub version: Option<u64>,
    /// The stage that calls it, by its place in the list.
    pub after: Option<usize>,
    /// Calls of it in one run.
    pub max_calls: u32,
}

impl Spec {
    /// Or what is wrong with it, in words that name query and stage.
    pub fn check(declared: &QueryDeclaration) -> Result<Spec, String> {
        let QueryDeclaration { name, slo_ms, weight, stage: stages } = declared;
        if name.is_empty() || name.len() > NAME_MAX || name.chars().any(char::is_control) {
            return Err(format!("a query's name has 1 to {NAME_MAX} bytes and no control characters, unlike {name:?}"));
        }
        let wrong = |what: String| Err(format!("query \"{name}\": {what}"));
        if !(*slo_ms > 0.0 && *slo_ms <= SLO_MAX_MS) {
            return wrong(format!("slo_ms = {slo_ms} must be above 0 and at most {SLO_MAX_MS}"));
        }
        let weight = weight.unwrap_or(1.0);
        if !(weight > 0.0 && weight <= WEIGHT_MAX) {
            return wrong(format!("weight = {weight} must be above 0 and at most {WEIGHT_MAX}"));
        }
        if stages.len() > STAGES_MAX {
            return wrong(QueryError::TooMany(stages.len()).to_string());
        }
        let mut checked = Vec::with_capacity(stages.len());
        for (index, stage) in stages.iter().enumerate() {
            match Stage::check(stage, index, stages) {
                Ok(stage) => checked.push(stage),
                Err(what) => return wrong(what),
            }
        }
        let slo = Duration::from_secs_f64(slo_ms / 1e3);
        let tree = checked.iter().map(|stage| query::Stage { model: ModelId(0), after: stage.after, gamma: 1.0 });
        match query::Query::new(slo, 0.0, tree.collect()) {
            Ok(tree) => Ok(Spec { name: name.clone(), slo, weight, stages: checked, root: tree.order()[0] }),
            Err(error) => wrong(told(&error, stages)),
        }
    }

    /// What one call of the stage before makes of each: `gammas` by stage. `models` are the stages'.
    fn tree(&self, models: &[Arc<Model>], rate: f64, gammas: &[f64]) -> Result<query::Query, QueryError> {
        let stages = self.stages.iter().zip(models).zip(gammas);
        let stages = stages.map(|((stage, model), &gamma)| query::Stage { model: model.id, after: stage.after, gamma });
        query::Query::new(self.slo, rate, stages.collect())
    }
}

impl Stage {
    fn check(declared: &StageDeclaration, index: usize, all: &[StageDeclaration]) -> Result<Stage, String> {
        let StageDeclaration { name, model, version, after, max_calls } = declared;
        if name.is_empty() || name.len() > NAME_MAX || name.chars().any(char::is_control) {
            return Err(format!("a stage's name has 1 to {NAME_MAX} bytes and no control characters, unlike {name:?}"));
        }
        if all[..index].iter().any(|earlier| earlier.name == *name) {
            return Err(format!("it has a stage \"{name}\" already"));
        }
        let find = |after: &String| {
            let found = all.iter().position(|stage| stage.name == *after);
            found.ok_or_else(|| {
                let known: Vec<&str> = all.iter().map(|stage| &stage.name[..]).collect();
                format!("stage \"{name}\" is after \"{after}\", which there is not; it has {}", known.join(", "))
            })
        };
        let after = after.as_ref().map(find).transpose()?;
        let max_calls = max_calls.unwrap_or(if after.is_none() { 1 } else { CALLS_DEFAULT });
        if max_calls == 0 || max_calls > CALLS_MAX {
            return Err(format!("stage \"{name}\": max_calls = {max_calls} must be 1 to {CALLS_MAX}"));
        }
        Ok(Stage { name: name.clone(), model: model.clone(), version: *version, after, max_calls })
    }
}

/// What is wrong with the tree, by the names of its stages.
fn told(error: &QueryError, stages: &[StageDeclaration]) -> String {
    let name = |stage: usize| &stages[stage].name;
    match *error {
        QueryError::SeveralRoots { first, second } => format!(
            "stages \"{}\" and \"{}\" are both after no other; a query begins with one",
            name(first),
            name(second)
        ),
        QueryError::Cycle(stage) => format!(
            "stage \"{}\" is after itself, by way of those it is after; a query is a tree that begins with one stage",
            name(stage)
        ),
        ref other => other.to_string(),
    }
}

/// How a query's SLO and weight are divided among its stages; all lists are by stage.
#[derive(Clone, Debug, PartialEq)]
pub struct Split {
    pub shares: Vec<Duration>,
    /// Parts of the query's weight.
    pub weights: Vec<f64>,
    /// Items per second of each stage for which this was made.
    pub rates: Vec<f64>,
}

impl Split {
    /// `rate`: items per second that the query's first stage is asked; `gammas`: items of a stage for each item of the one before.
    ///
    /// # Errors
    /// In words: when batches of one take longer than the SLO, or a model runs on no device.
    pub fn new(spec: &Spec, models: &[Arc<Model>], rate: f64, gammas: &[f64]) -> Result<Split, String> {
        let tree = spec.tree(models, rate, gammas).map_err(|error| error.to_string())?;
        let profile = |model: &Arc<Model>| -> Result<Profile, String> {
            model.fastest().cloned().ok_or_else(|| format!("model \"{}\" runs on no device", model.name))
        };
        let profiles = models.iter().map(profile).collect::<Result<Vec<_>, _>>()?;
        let profiles: Vec<&Profile> = profiles.iter().collect();
        let shares = query::split(&tree, &profiles, Method::Dp).map_err(|error| error.to_string())?;
        let stages = profiles.iter().zip(&shares).zip(tree.rates());
        let needs: Vec<f64> = stages.map(|((profile, &share), &rate)| query::need(profile, share, rate)).collect();
        let weights = query::weights(&needs).into_iter().map(|part| part * spec.weight).collect();
        Ok(Split { shares, weights, rates: tree.rates().to_vec() })
    }
}

/// A query whose models are all served.
#[derive(Debug)]
pub struct Bound {
    pub id: QueryId,
    pub spec: Arc<Spec>,
    /// By stage.
    pub models: Vec<Arc<Model>>,
    /// What it begins with, before anything was measured: each call makes one of each stage behind it.
    pub split: Split,
}

impl Bound {
    /// # Errors
    /// As [`Split::new`].
    pub fn new(id: QueryId, spec: Arc<Spec>, models: Vec<Arc<Model>>) -> Result<Bound, String> {
        let split = Split::new(&spec, &models, 0.0, &vec![1.0; models.len()])?;
        Ok(Bound { id, spec, models, split })
    }

    /// What the stages' places in the tree mean for their calls, when these are their shares.
    pub fn rooms(&self, shares: &[Duration]) -> Vec<query::Room> {
        let firsts: Vec<Duration> = self.models.iter().map(|model| model.batch_of_one()).collect();
        let tree = self.spec.tree(&self.models, 0.0, &vec![1.0; self.models.len()]);
        query::rooms(&tree.expect("a spec is a tree, with any models"), shares, &firsts)
    }
}

/// Bytes of a query's or stage's name.
const NAME_MAX: usize = 64;
/// Longest SLO that makes sense to a scheduler.
pub const SLO_MAX_MS: f64 = 3_600_000.0;
const WEIGHT_MAX: f64 = 1e6;
/// Calls of a stage in one run, where its declaration does not say.
const CALLS_DEFAULT: u32 = 1000;
const CALLS_MAX: u32 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn declared(stages: Vec<StageDeclaration>) -> QueryDeclaration {
        QueryDeclaration { name: "page".into(), slo_ms: 100.0, weight: None, stage: stages }
    }

    #[test]
    fn stages_stand_in_any_order_and_have_their_defaults() {
        let first = StageDeclaration::first("find", "a");
        let spec = Spec::check(&declared(vec![StageDeclaration::after("find", "read", "b"), first])).unwrap();
        assert_eq!((spec.root, spec.slo, spec.weight), (1, Duration::from_millis(100), 1.0));
        let stages: Vec<_> = spec.stages.iter().map(|stage| (&stage.name[..], stage.after, stage.max_calls)).collect();
        assert_eq!(stages, [("read", Some(1), 1000), ("find", None, 1)]);
    }

    #[test]
    fn what_is_no_query_is_told_by_the_names_of_its_stages() {
        let (first, after) = (StageDeclaration::first, StageDeclaration::after);
        let none = StageDeclaration { max_calls: Some(0), ..first("a", "m") };
        let cases = [
            (vec![], "query \"page\": a query needs at least one stage"),
            (vec![first("a", "m"), first("a", "m")], "it has a stage \"a\" already"),
            (
                vec![first("a", "m"), after("c", "b", "m")],
                "stage \"b\" is after \"c\", which there is not; it has a, b",
            ),
            (vec![first("a", "m"), first("b", "m")], "stages \"a\" and \"b\" are both after no other"),
            (vec![first("a", "m"), after("c", "b", "m"), after("b", "c", "m")], "is after itself"),
            (vec![after("a", "a", "m")], "stage \"a\" is after itself"),
            (vec![none], "stage \"a\": max_calls = 0 must be 1 to 1048576"),
            (vec![first("", "m")], "a stage's name has 1 to 64 bytes"),
            ((0..65).map(|i| first(&i.to_string(), "m")).collect(), "65 stages are more than the 64"),
        ];
        for (stages, text) in cases {
            let said = Spec::check(&declared(stages)).unwrap_err();
            assert!(said.contains(text), "{said}\ninstead of: {text}");
        }
        for (change, text) in [
            (QueryDeclaration { slo_ms: 0.0, ..declared(vec![first("a", "m")]) }, "slo_ms = 0 must be above 0"),
            (QueryDeclaration { slo_ms: f64::NAN, ..declared(vec![first("a", "m")]) }, "slo_ms = NaN must be"),
            (QueryDeclaration { weight: Some(-1.0), ..declared(vec![first("a", "m")]) }, "weight = -1 must be above 0"),
            (QueryDeclaration { name: "a\n".into(), ..declared(vec![first("a", "m")]) }, "unlike \"a\\n\""),
        ] {
            let said = Spec::check(&change).unwrap_err();
            assert!(said.contains(text), "{said}\ninstead of: {text}");
        }
    }
}
