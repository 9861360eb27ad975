//! From TOML to a [`Workload`]: each figure is checked where its line is still known.

use super::queries::{self, QueryTable};
use super::{Kind, Session, Sources, Workload, WorkloadError};
use rota_sched::plan::ModelCost;
use rota_sched::query::Method;
use rota_sched::{Profile, ProfileError};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;
use toml::Spanned;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    arrivals: Option<Spanned<String>>,
    seconds: Option<Spanned<f64>>,
    #[serde(default)]
    profile: Vec<Spanned<ProfileTable>>,
    #[serde(default)]
    session: Vec<SessionTable>,
    #[serde(default)]
    query: Vec<QueryTable>,
    #[serde(default)]
    device: Vec<DeviceTable>,
}

/// A file that a profile names: profiles and nothing else.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ProfileFile {
    profile: Vec<Spanned<ProfileTable>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ProfileTable {
    model: Spanned<String>,
    kind: Option<Spanned<String>>,
    batch_ms: Option<Spanned<BTreeMap<String, Spanned<f64>>>>,
    file: Option<Spanned<String>>,
    memory_mb: Option<Spanned<f64>>,
    load_ms: Option<Spanned<f64>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SessionTable {
    model: Spanned<String>,
    slo_ms: Spanned<f64>,
    rate: Spanned<f64>,
    weight: Option<Spanned<f64>>,
    arrivals: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DeviceTable {
    kind: Option<Spanned<String>>,
    count: Option<Spanned<i64>>,
    memory_mb: Option<Spanned<f64>>,
}

pub(super) type Checked<T> = Result<T, WorkloadError>;

/// A text whose byte positions can be told as lines.
#[derive(Clone, Copy)]
pub(super) struct Source<'a>(&'a str);

/// Profiles as they are collected, by kind and model.
#[derive(Default)]
struct Collected {
    models: Vec<String>,
    kinds: Vec<Kind>,
    warnings: Vec<String>,
}

pub fn read(text: &str, sources: Sources<'_>) -> Checked<Workload> {
    let source = Source(text);
    let file: File = toml::from_str(text).map_err(|error| source.syntax(&error))?;
    let mut collected = Collected::default();
    for device in &file.device {
        collected.device(device, source)?;
    }
    if collected.kinds.is_empty() {
        collected.kind(DEFAULT_KIND);
    }
    for profile in &file.profile {
        collected.profile(profile, source, sources)?;
    }
    let mut sessions = Vec::with_capacity(file.session.len());
    for table in &file.session {
        let model = collected.model(&table.model, source, sources)?;
        sessions.push(session(table, model, source)?);
    }
    let queries = queries::read(&file.query, &mut sessions, source, |name| collected.model(name, source, sources))?;
    let Collected { models, kinds, warnings } = collected;
    if sessions.is_empty() {
        let text = "there is no [[session]] and no [[query]]; a workload needs at least one";
        return Err(WorkloadError { line: 1, text: text.into() });
    }
    let arrivals = file.arrivals.as_ref().map(|pattern| source.pattern(pattern)).transpose()?;
    let seconds = file.seconds.as_ref().map(|seconds| source.figure(seconds, "seconds", SECONDS)).transpose()?;
    let mut workload = Workload { models, sessions, queries, kinds, arrivals, seconds, warnings };
    workload.split(Method::Dp);
    Ok(workload)
}

fn session(table: &SessionTable, model: usize, source: Source<'_>) -> Checked<Session> {
    Ok(Session {
        model,
        slo: milliseconds(source.figure(&table.slo_ms, "slo_ms", SLO_MS)?),
        rate: source.figure(&table.rate, "rate", RATE)?,
        weight: table.weight.as_ref().map_or(Ok(1.0), |weight| source.figure(weight, "weight", WEIGHT))?,
        arrivals: table.arrivals.as_ref().map(|pattern| source.pattern(pattern)).transpose()?,
        line: source.line(table.model.span().start),
    })
}

impl Collected {
    /// The index of the kind with this name, new if need be.
    fn kind(&mut self, name: &str) -> usize {
        self.kinds.iter().position(|kind| kind.name == name).unwrap_or_else(|| {
            self.kinds.push(Kind { name: name.into(), count: 0, memory_bytes: None, costs: BTreeMap::new() });
            self.kinds.len() - 1
        })
    }

    fn device(&mut self, table: &DeviceTable, source: Source<'_>) -> Checked<()> {
        let name = table.kind.as_ref().map_or(DEFAULT_KIND, |kind| kind.get_ref());
        let known = self.kinds.len();
        let index = self.kind(name);
        let kind = &mut self.kinds[index];
        if let Some(count) = &table.count {
            let valid = usize::try_from(*count.get_ref()).ok().filter(|count| (1..=DEVICES_MAX).contains(count));
            let valid = valid.ok_or_else(|| {
                source.error(count, format!("count = {} should be from 1 to {DEVICES_MAX}", count.get_ref()))
            })?;
            kind.count += valid;
        } else {
            kind.count += 1;
        }
        if let Some(memory) = &table.memory_mb {
            let bytes = Some(mega(source.figure(memory, "memory_mb", MEMORY_MB)?));
            if index < known && kind.memory_bytes != bytes {
                let text = format!("devices of kind '{name}' have another memory above; give these another kind");
                return Err(source.error(memory, text));
            }
            kind.memory_bytes = bytes;
        }
        Ok(())
    }

    fn profile(&mut self, table: &Spanned<ProfileTable>, source: Source<'_>, sources: Sources<'_>) -> Checked<()> {
        let ProfileTable { model, kind, batch_ms, file, memory_mb, load_ms } = table.get_ref();
        let name = model.get_ref();
        let kind_name = kind.as_ref().map(|kind| kind.get_ref().as_str());
        let index = kind_name.map_or(0, |name| self.kind(name));
        let (profile, mut memory_bytes, mut load_time) = match (batch_ms, file) {
            (Some(points), None) => (self.points(name, points, source)?, 0, Duration::ZERO),
            (None, Some(path)) => {
                let cost = self.of_file(name, kind_name, path, source, sources.file)?;
                (cost.profile, cost.memory_bytes, cost.load_time)
            }
            (None, None) => match self.measured(model, source, sources)? {
                Some(profile) => (profile, 0, Duration::ZERO),
                None => {
                    let text =
                        format!("the profile of '{name}' needs batch_ms, or file, or a repository with such a model");
                    return Err(source.error(table, text));
                }
            },
            (Some(_), Some(_)) => {
                let text = format!("the profile of '{name}' needs either batch_ms or file");
                return Err(source.error(table, text));
            }
        };
        if let Some(memory) = memory_mb {
            memory_bytes = mega(source.figure(memory, "memory_mb", MEMORY_MB)?);
        }
        if let Some(load) = load_ms {
            load_time = milliseconds(source.figure(load, "load_ms", LOAD_MS)?);
        }
        let cost = ModelCost { profile, memory_bytes, load_time };
        if !self.add(name, index, cost) {
            let text = format!("model '{name}' has a profile for kind '{}' already", self.kinds[index].name);
            return Err(source.error(model, text));
        }
        Ok(())
    }

    /// Takes down what a model costs on a kind of device; false when that is known already.
    fn add(&mut self, name: &str, kind: usize, cost: ModelCost) -> bool {
        let model = self.models.iter().position(|known| known == name).unwrap_or_else(|| {
            self.models.push(name.to_owned());
            self.models.len() - 1
        });
        self.kinds[kind].costs.insert(model, cost).is_none()
    }

    /// The index of the model that a session names: by its profile here, else as it was measured.
    fn model(&mut self, name: &Spanned<String>, source: Source<'_>, sources: Sources<'_>) -> Checked<usize> {
        if let Some(model) = self.models.iter().position(|model| model == name.get_ref()) {
            return Ok(model);
        }
        if let Some(profile) = self.measured(name, source, sources)? {
            self.add(name.get_ref(), 0, ModelCost { profile, memory_bytes: 0, load_time: Duration::ZERO });
            return Ok(self.models.len() - 1);
        }
        let known = if self.models.is_empty() { "none".into() } else { self.models.join(", ") };
        let text = format!("model '{}' has no [[profile]]; profiles are given for: {known}", name.get_ref());
        Err(source.error(name, text))
    }

    fn measured(
        &mut self,
        name: &Spanned<String>,
        source: Source<'_>,
        sources: Sources<'_>,
    ) -> Checked<Option<Profile>> {
        let within = |text: String| source.error(name, format!("model '{}': {text}", name.get_ref()));
        let Some(points) = (sources.model)(name.get_ref()).map_err(within)? else { return Ok(None) };
        Profile::new(&points).map(Some).map_err(|error| within(error.to_string()))
    }

    /// The cost of a model as another file's profile tells it.
    fn of_file(
        &mut self,
        name: &str,
        kind: Option<&str>,
        path: &Spanned<String>,
        source: Source<'_>,
        open: &dyn Fn(&str) -> Result<String, String>,
    ) -> Checked<ModelCost> {
        let within = |text: String| source.error(path, format!("{}: {text}", path.get_ref()));
        let text = open(path.get_ref()).map_err(within)?;
        let other = Source(&text);
        let file: ProfileFile = toml::from_str(&text).map_err(|error| within(other.syntax(&error).to_string()))?;
        let of = |table: &&Spanned<ProfileTable>| {
            let ProfileTable { model, kind: its, .. } = table.get_ref();
            model.get_ref() == name && its.as_ref().map(|its| its.get_ref().as_str()) == kind
        };
        let table = file.profile.iter().find(of);
        let table = table.ok_or_else(|| within(format!("there is no profile of model '{name}' in it")))?.get_ref();
        let Some(points) = &table.batch_ms else {
            return Err(within(format!("the profile of '{name}' has no batch_ms in it")));
        };
        let read = |collected: &mut Collected| -> Checked<ModelCost> {
            let figure = |figure: &Option<Spanned<f64>>, name, range| {
                figure.as_ref().map(|figure| other.figure(figure, name, range)).transpose()
            };
            Ok(ModelCost {
                profile: collected.points(name, points, other)?,
                memory_bytes: figure(&table.memory_mb, "memory_mb", MEMORY_MB)?.map_or(0, mega),
                load_time: figure(&table.load_ms, "load_ms", LOAD_MS)?.map_or(Duration::ZERO, milliseconds),
            })
        };
        read(self).map_err(|error| within(error.to_string()))
    }

    fn points(
        &mut self,
        name: &str,
        table: &Spanned<BTreeMap<String, Spanned<f64>>>,
        source: Source<'_>,
    ) -> Checked<Profile> {
        let mut points = Vec::with_capacity(table.get_ref().len());
        for (batch, latency) in table.get_ref() {
            let size: u32 = batch.parse().map_err(|_| {
                source.error(latency, format!("'{batch}' is no batch size; they are whole numbers from 1"))
            })?;
            points.push((size, milliseconds(source.figure(latency, &format!("batch_ms of {batch}"), BATCH_MS)?)));
        }
        let error = |error: ProfileError| source.error(table, format!("the profile of '{name}': {error}"));
        let profile = Profile::new(&points).map_err(error)?;
        points.sort_unstable();
        if let Some(pair) = points.windows(2).find(|pair| pair[1].1 < pair[0].1) {
            let [(smaller, _), (larger, _)] = [pair[0], pair[1]];
            let line = source.line(table.span().start);
            self.warnings.push(format!(
                "line {line}: the profile of '{name}' falls from batch {smaller} to {larger}; such points were raised"
            ));
        }
        Ok(profile)
    }
}

impl Source<'_> {
    pub(super) fn line(self, at: usize) -> usize {
        1 + self.0.bytes().take(at).filter(|&byte| byte == b'\n').count()
    }

    pub(super) fn error<T>(self, at: &Spanned<T>, text: String) -> WorkloadError {
        WorkloadError { line: self.line(at.span().start), text }
    }

    /// The parser's message in one line.
    fn syntax(self, error: &toml::de::Error) -> WorkloadError {
        let line = error.span().map_or(1, |span| self.line(span.start));
        WorkloadError { line, text: error.message().lines().collect::<Vec<_>>().join(", ") }
    }

    pub(super) fn figure(self, figure: &Spanned<f64>, name: &str, range: RangeInclusive<f64>) -> Checked<f64> {
        let value = *figure.get_ref();
        if range.contains(&value) {
            return Ok(value);
        }
        let (least, most) = (range.start(), range.end());
        Err(self.error(figure, format!("{name} = {value} should be from {least} to {most}")))
    }

    pub(super) fn pattern(self, pattern: &Spanned<String>) -> Checked<crate::arrivals::Pattern> {
        pattern.get_ref().parse().map_err(|error: crate::arrivals::PatternError| self.error(pattern, error.to_string()))
    }
}

pub(super) fn milliseconds(ms: f64) -> Duration {
    Duration::from_nanos((ms * 1e6).round() as u64)
}

fn mega(megabytes: f64) -> u64 {
    (megabytes * 1e6) as u64
}

/// The kind of devices whose kind is not named.
const DEFAULT_KIND: &str = "default";
const DEVICES_MAX: usize = 4096;
const SECONDS: RangeInclusive<f64> = 0.001..=1e7;
pub(super) const SLO_MS: RangeInclusive<f64> = 0.001..=1e7;
pub(super) const RATE: RangeInclusive<f64> = 1e-6..=1e8;
const WEIGHT: RangeInclusive<f64> = 1e-3..=1e3;
const MEMORY_MB: RangeInclusive<f64> = 0.0..=1e9;
const LOAD_MS: RangeInclusive<f64> = 0.0..=1e7;
const BATCH_MS: RangeInclusive<f64> = 1e-5..=1e7;
