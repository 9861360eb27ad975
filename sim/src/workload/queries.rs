//! `[[query]]` tables: trees of stages, by name.

use super::file::{Checked, RATE, SLO_MS, Source, milliseconds};
use super::{FanOut, Query, Session, Stage, WorkloadError};
use rota_sched::ModelId;
use rota_sched::query::{self, QueryError};
use serde::Deserialize;
use std::ops::RangeInclusive;
use toml::Spanned;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct QueryTable {
    name: Spanned<String>,
    slo_ms: Spanned<f64>,
    rate: Spanned<f64>,
    arrivals: Option<Spanned<String>>,
    #[serde(default)]
    stage: Vec<StageTable>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StageTable {
    name: Spanned<String>,
    model: Spanned<String>,
    after: Option<Spanned<String>>,
    gamma: Option<Spanned<f64>>,
    fan_out: Option<Spanned<String>>,
}

/// The queries; a session for each of their stages is added to `sessions`. `model` finds a model by its name.
pub(super) fn read(
    tables: &[QueryTable],
    sessions: &mut Vec<Session>,
    source: Source<'_>,
    mut model: impl FnMut(&Spanned<String>) -> Checked<usize>,
) -> Checked<Vec<Query>> {
    let mut queries: Vec<Query> = Vec::with_capacity(tables.len());
    for table in tables {
        let name = table.name.get_ref();
        if queries.iter().any(|query| query.name == *name) {
            return Err(source.error(&table.name, format!("there is a query '{name}' already")));
        }
        let models: Vec<usize> = table.stage.iter().map(|stage| model(&stage.model)).collect::<Checked<_>>()?;
        queries.push(one(table, &models, sessions, source)?);
    }
    Ok(queries)
}

fn one(table: &QueryTable, models: &[usize], sessions: &mut Vec<Session>, source: Source<'_>) -> Checked<Query> {
    let slo = milliseconds(source.figure(&table.slo_ms, "slo_ms", SLO_MS)?);
    let rate = source.figure(&table.rate, "rate", RATE)?;
    let arrivals = table.arrivals.as_ref().map(|pattern| source.pattern(pattern)).transpose()?;
    let mut stages = Vec::with_capacity(models.len());
    for (index, (stage, &model)) in table.stage.iter().zip(models).enumerate() {
        if table.stage[..index].iter().any(|earlier| earlier.name.get_ref() == stage.name.get_ref()) {
            let text = format!("the query has a stage '{}' already", stage.name.get_ref());
            return Err(source.error(&stage.name, text));
        }
        let (after, gamma) = (after(stage, table, source)?, gamma(stage, source)?);
        stages.push(query::Stage { model: ModelId(model as u32), after, gamma });
    }
    let tree = query::Query::new(slo, rate, stages).map_err(|error| told(&error, table, source))?;
    let line = source.line(table.name.span().start);
    let mut named = Vec::with_capacity(models.len());
    for ((stage, &model), &rate) in table.stage.iter().zip(models).zip(tree.rates()) {
        let fan_out = stage.fan_out.as_ref().map_or(Ok(FanOut::Fixed), |name| fan_out(name, source))?;
        named.push(Stage { name: stage.name.get_ref().clone(), session: sessions.len(), fan_out });
        let line = source.line(stage.name.span().start);
        sessions.push(Session { model, slo, rate, weight: 1.0, arrivals, line });
    }
    Ok(Query { name: table.name.get_ref().clone(), tree, stages: named, line })
}

fn after(stage: &StageTable, table: &QueryTable, source: Source<'_>) -> Checked<Option<usize>> {
    let Some(after) = &stage.after else { return Ok(None) };
    let found = table.stage.iter().position(|other| other.name.get_ref() == after.get_ref());
    let unknown = || {
        let known: Vec<&str> = table.stage.iter().map(|stage| &stage.name.get_ref()[..]).collect();
        source.error(after, format!("there is no stage '{}'; the query has {}", after.get_ref(), known.join(", ")))
    };
    found.map(Some).ok_or_else(unknown)
}

/// 1 where a stage does not say.
fn gamma(stage: &StageTable, source: Source<'_>) -> Checked<f64> {
    let Some(gamma) = &stage.gamma else { return Ok(1.0) };
    if stage.after.is_none() {
        let text = "gamma is how often the stage before calls this one; a first stage has none before it";
        return Err(source.error(gamma, text.into()));
    }
    source.figure(gamma, "gamma", GAMMA)
}

fn fan_out(name: &Spanned<String>, source: Source<'_>) -> Checked<FanOut> {
    match &name.get_ref()[..] {
        "fixed" => Ok(FanOut::Fixed),
        "poisson" => Ok(FanOut::Poisson),
        "geometric" => Ok(FanOut::Geometric),
        other => Err(source.error(name, format!("fan_out = '{other}' should be fixed, poisson or geometric"))),
    }
}

/// What is wrong with the tree, by the names of its stages.
fn told(error: &QueryError, table: &QueryTable, source: Source<'_>) -> WorkloadError {
    let name = |stage: usize| &table.stage[stage].name;
    let at = |stage: usize, text: String| source.error(name(stage), text);
    match *error {
        QueryError::SeveralRoots { first, second } => {
            let (first, other) = (name(first).get_ref(), name(second).get_ref());
            at(second, format!("stages '{first}' and '{other}' are both after no other; a query begins with one"))
        }
        QueryError::Cycle(stage) => {
            let text = "is after itself, by way of those it is after; a query is a tree that begins with one stage";
            at(stage, format!("stage '{}' {text}", name(stage).get_ref()))
        }
        QueryError::TooFast { stage, rate } => {
            let text = format!("stage '{}' would be called {rate:e} times a second", name(stage).get_ref());
            at(stage, format!("{text}; {:e} is the most", query::RATE_MAX))
        }
        ref other => source.error(&table.name, format!("query '{}': {other}", table.name.get_ref())),
    }
}

const GAMMA: RangeInclusive<f64> = 0.0..=1e3;
