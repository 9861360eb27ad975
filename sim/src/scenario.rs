//! What a policy faces: sessions, devices, and which models each device holds. The same for every policy.

use crate::Nanos;
use crate::placement;
use crate::workload::{self, Kind, Workload};
use rota_sched::Profile;
use rota_sched::query::Room;
use std::sync::Arc;
use std::time::Duration;

/// A workload made ready to run: models placed, times in nanoseconds.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Never empty.
    pub sessions: Vec<Session>,
    pub queries: Vec<Query>,
    /// Never empty.
    pub devices: Vec<Device>,
    /// On the kind of device where each is fastest, batch by batch: what bounds are made of. With one kind simply there.
    pub models: Vec<Model>,
    /// By kind of device and model: `None` where it does not run.
    kinds: Vec<Vec<Option<Model>>>,
    /// By model: ℓ(b) on the kind where it is slowest, up to the largest batch of all.
    slowest: Vec<Latencies>,
    /// Policies may rely on the sessions' rates. Else the rates are what somebody took them to be before the run: a policy may
    /// begin with them, and has to follow what it measures.
    pub told: bool,
    /// How often a policy that plans does so again, with the rates that it measured since; 0: it plans once.
    pub epoch: Nanos,
}

#[derive(Clone, Debug)]
pub struct Session {
    /// Index into [`Scenario::models`].
    pub model: usize,
    pub slo: Nanos,
    /// Requests per second.
    pub rate: f64,
    pub weight: f64,
    /// `None`: a plain session.
    pub stage: Option<Stage>,
}

/// What a session is to a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stage {
    /// Index into [`Scenario::queries`].
    pub query: usize,
    /// Nobody calls it: the query begins here. Calls of others come when those that make them end, several at once.
    pub first: bool,
    pub room: Room,
}

#[derive(Clone, Debug)]
pub struct Query {
    pub name: String,
    pub slo: Nanos,
}

#[derive(Clone, Debug)]
pub struct Device {
    /// Devices of one kind have the same profiles.
    pub kind: usize,
    pub memory_bytes: Option<u64>,
    /// By model.
    pub holds: Vec<bool>,
}

#[derive(Clone, Debug)]
pub struct Model {
    pub profile: Profile,
    pub latencies: Latencies,
    pub memory_bytes: u64,
    pub load: Nanos,
}

/// ℓ(b) as a table: the same figures as the model's [`Profile`].
/// Shared: policies keep one per device.
#[derive(Clone, Debug, PartialEq)]
pub struct Latencies(Arc<[Nanos]>);

/// Why a workload cannot be simulated; whoever asked has to change what is named.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ScenarioError {
    #[error("there are no devices; give their number with --devices, or a [[device]] in the workload")]
    NoDevices,
    #[error("model '{0}' has no profile on any kind of device that there is")]
    NoProfile(String),
    #[error("model '{model}' takes {needs} bytes, but a device has {has}")]
    TooLarge { model: String, needs: u64, has: u64 },
    #[error("the models do not fit the devices' memory, even if each is held only once")]
    NoPlace,
    #[error("that would be {0:.0} requests, more than the {max} that one run may have; make it shorter or the rates lower", max = REQUESTS_MAX)]
    TooManyRequests(f64),
}

/// Requests of one run: bounds its memory to a few gigabytes.
pub const REQUESTS_MAX: u32 = 50_000_000;

impl Scenario {
    pub fn new(workload: &Workload) -> Result<Scenario, ScenarioError> {
        let used: Vec<&Kind> = workload.kinds.iter().filter(|kind| kind.count > 0).collect();
        if used.is_empty() {
            return Err(ScenarioError::NoDevices);
        }
        // Only models that sessions ask for: the others would take memory for nothing.
        let mut index = vec![None; workload.models.len()];
        let mut kinds: Vec<Vec<Option<Model>>> = vec![Vec::new(); used.len()];
        let mut sessions = Vec::with_capacity(workload.sessions.len());
        for session in &workload.sessions {
            let model = match index[session.model] {
                Some(model) => model,
                None => {
                    let costs: Vec<Option<Model>> = used.iter().map(|kind| Model::on(kind, session.model)).collect();
                    if costs.iter().all(Option::is_none) {
                        return Err(ScenarioError::NoProfile(workload.models[session.model].clone()));
                    }
                    if let Some((needs, has)) = too_large(&used, &costs) {
                        let model = workload.models[session.model].clone();
                        return Err(ScenarioError::TooLarge { model, needs, has });
                    }
                    kinds.iter_mut().zip(costs).for_each(|(models, cost)| models.push(cost));
                    *index[session.model].insert(kinds[0].len() - 1)
                }
            };
            let slo = session.slo.as_nanos() as Nanos;
            sessions.push(Session { model, slo, rate: session.rate, weight: session.weight, stage: None });
        }
        let over_kinds = |model: usize| kinds.iter().filter_map(move |models| models[model].as_ref());
        let count = kinds[0].len();
        let models = (0..count).map(|model| Model::fastest(over_kinds(model))).collect();
        let slowest = (0..count).map(|model| Latencies::slowest(over_kinds(model))).collect();
        let device = |(kind, its): (usize, &&Kind)| {
            let device = Device { kind, memory_bytes: its.memory_bytes, holds: vec![false; count] };
            std::iter::repeat_n(device, its.count)
        };
        let devices = used.iter().enumerate().flat_map(device).collect();
        let mut scenario =
            Scenario { sessions, queries: Vec::new(), devices, models, kinds, slowest, told: true, epoch: 0 };
        scenario.set_queries(&workload.queries);
        let holds = placement::place(&scenario).ok_or(ScenarioError::NoPlace)?;
        for (device, holds) in scenario.devices.iter_mut().zip(holds) {
            device.holds = holds;
        }
        Ok(scenario)
    }

    fn set_queries(&mut self, queries: &[workload::Query]) {
        for (index, query) in queries.iter().enumerate() {
            let tree = &query.tree;
            let of = |stage: usize| &self.sessions[query.stages[stage].session];
            let share = |stage: usize| Duration::from_nanos(of(stage).slo as u64);
            let shares: Vec<Duration> = (0..query.stages.len()).map(share).collect();
            let first = |stage: usize| self.models[of(stage).model].latencies.at(1) as u64;
            let firsts: Vec<Duration> =
                (0..query.stages.len()).map(|stage| Duration::from_nanos(first(stage))).collect();
            let rooms = rota_sched::query::rooms(tree, &shares, &firsts);
            for ((its, stage), room) in query.stages.iter().zip(tree.stages()).zip(rooms) {
                self.sessions[its.session].stage = Some(Stage { query: index, first: stage.after.is_none(), room });
            }
            self.queries.push(Query { name: query.name.clone(), slo: tree.slo().as_nanos() as Nanos });
        }
    }

    /// Of a stage, the most time that one of its calls can have if its query is to be in time; of a plain session the SLO.
    pub fn within(&self, session: usize) -> Nanos {
        let its = &self.sessions[session];
        its.stage.map_or(its.slo, |stage| {
            self.queries[stage.query].slo - (stage.room.before + stage.room.behind).as_nanos() as Nanos
        })
    }

    /// Kinds of device that there are.
    pub fn kinds(&self) -> usize {
        self.kinds.len()
    }

    /// A model on a kind of device; `None` when it does not run there.
    pub fn model_on(&self, kind: usize, model: usize) -> Option<&Model> {
        self.kinds[kind][model].as_ref()
    }

    /// What one kind of device alone faces, with the sessions that it can serve, and the index of each of its models here.
    pub(crate) fn of_kind(&self, kind: usize) -> (Scenario, Vec<usize>) {
        let models: Vec<usize> = (0..self.models.len()).filter(|&model| self.kinds[kind][model].is_some()).collect();
        let own: Vec<Model> = models.iter().filter_map(|&model| self.kinds[kind][model].clone()).collect();
        let session = |session: &Session| {
            let model = models.iter().position(|&model| model == session.model)?;
            Some(Session { model, ..session.clone() })
        };
        let device = |device: &Device| Device { kind: 0, holds: vec![false; own.len()], ..device.clone() };
        let scenario = Scenario {
            sessions: self.sessions.iter().filter_map(session).collect(),
            queries: self.queries.clone(),
            devices: self.devices.iter().filter(|device| device.kind == kind).map(device).collect(),
            slowest: own.iter().map(|model| model.latencies.clone()).collect(),
            kinds: vec![own.iter().cloned().map(Some).collect()],
            models: own,
            told: self.told,
            epoch: self.epoch,
        };
        (scenario, models)
    }

    /// All rates times `factor`; what devices hold stays.
    pub fn scaled(&self, factor: f64) -> Scenario {
        let mut scaled = self.clone();
        scaled.sessions.iter_mut().for_each(|session| session.rate *= factor);
        scaled
    }

    /// ℓ(b) of a session on the kind of device where it takes longest: what holds wherever it runs.
    pub fn latencies(&self, session: usize) -> &Latencies {
        &self.slowest[self.sessions[session].model]
    }

    /// ℓ(b) of a session on a device; where its model does not run, as [`Scenario::latencies`].
    pub fn latencies_on(&self, device: usize, session: usize) -> &Latencies {
        let model = self.model_on(self.devices[device].kind, self.sessions[session].model);
        model.map_or_else(|| self.latencies(session), |model| &model.latencies)
    }

    /// By device: [`Scenario::latencies_on`].
    pub fn latencies_by_device(&self, session: usize) -> Vec<Latencies> {
        (0..self.devices.len()).map(|device| self.latencies_on(device, session).clone()).collect()
    }

    /// Whether `device` can execute requests of `session`.
    pub fn serves(&self, device: usize, session: usize) -> bool {
        self.devices[device].holds[self.sessions[session].model]
    }

    /// Sessions whose SLO is shorter than ℓ(1), and stages of queries whose SLO is shorter than all their ℓ(1): none of their requests can be in time, whatever the policy.
    pub fn hopeless(&self) -> Vec<usize> {
        let fastest = |session: usize| self.models[self.sessions[session].model].latencies.at(1);
        let late = |&session: &usize| fastest(session) > self.within(session);
        (0..self.sessions.len()).filter(late).collect()
    }

    /// By session, the devices that serve it.
    pub fn servers(&self) -> Vec<Vec<usize>> {
        let of = |session| (0..self.devices.len()).filter(|&device| self.serves(device, session)).collect();
        (0..self.sessions.len()).map(of).collect()
    }
}

impl Model {
    fn on(kind: &Kind, model: usize) -> Option<Model> {
        let cost = kind.costs.get(&model)?;
        Some(Model {
            profile: cost.profile.clone(),
            latencies: Latencies::of(&cost.profile),
            memory_bytes: cost.memory_bytes,
            load: cost.load_time.as_nanos() as Nanos,
        })
    }

    /// The same model on several kinds of device, at least one: each batch as fast as on the fastest.
    fn fastest<'a>(mut on: impl Iterator<Item = &'a Model>) -> Model {
        let mut fastest = on.next().expect("it runs on some kind").clone();
        for other in on {
            let most = fastest.latencies.max_batch().max(other.latencies.max_batch());
            let at = |latencies: &Latencies, batch| {
                if batch <= latencies.max_batch() { latencies.at(batch) } else { Nanos::MAX }
            };
            let latency = |batch| at(&fastest.latencies, batch).min(at(&other.latencies, batch));
            let points: Vec<_> =
                (1..=most).map(|batch| (batch as u32, Duration::from_nanos(latency(batch) as u64))).collect();
            fastest.profile = Profile::new(&points).expect("the points of valid profiles");
            fastest.latencies = Latencies::of(&fastest.profile);
            fastest.memory_bytes = fastest.memory_bytes.min(other.memory_bytes);
            fastest.load = fastest.load.min(other.load);
        }
        fastest
    }
}

/// A kind that runs the model, but whose memory it exceeds: what it needs, and what there is.
fn too_large(kinds: &[&Kind], costs: &[Option<Model>]) -> Option<(u64, u64)> {
    let exceeds = |(kind, cost): (&&Kind, &Option<Model>)| {
        let (needs, has) = (cost.as_ref()?.memory_bytes, kind.memory_bytes?);
        (needs > has).then_some((needs, has))
    };
    kinds.iter().zip(costs).find_map(exceeds)
}

impl Latencies {
    /// Over several kinds of device, at least one: each batch as slow as on the slowest, up to the largest that all run.
    fn slowest<'a>(on: impl Iterator<Item = &'a Model> + Clone) -> Latencies {
        let most = on.clone().map(|model| model.latencies.max_batch()).min().expect("it runs on some kind");
        let latency = |batch| on.clone().map(|model| model.latencies.at(batch)).max().expect("it runs on some kind");
        Latencies((1..=most).map(latency).collect())
    }

    pub fn of(profile: &Profile) -> Latencies {
        let latency = |batch| profile.latency(batch).expect("within the profile").as_nanos() as Nanos;
        Latencies((1..=profile.max_batch()).map(latency).collect())
    }

    /// ℓ(b).
    ///
    /// # Panics
    /// When b is 0 or past [`Latencies::max_batch`].
    pub fn at(&self, batch: usize) -> Nanos {
        self.0[batch - 1]
    }

    pub fn max_batch(&self) -> usize {
        self.0.len()
    }

    /// Largest b with ℓ(b) ≤ limit; 0 when even one item takes longer.
    pub fn largest_within(&self, limit: Nanos) -> usize {
        self.0.partition_point(|&latency| latency <= limit)
    }

    /// Largest b for which `fits` holds, at least 1; `fits` must not become true again once false.
    pub fn largest_that(&self, fits: impl Fn(usize, Nanos) -> bool) -> usize {
        let failed = (1..=self.max_batch()).find(|&batch| !fits(batch, self.at(batch)));
        failed.map_or(self.max_batch(), |batch| (batch - 1).max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_device_has_its_own_latencies_and_models() {
        let text = "
            [[device]]
            count = 2
            memory_mb = 100
            [[device]]
            kind = \"fast\"
            [[profile]]
            model = \"a\"
            memory_mb = 60
            batch_ms = { 1 = 10, 8 = 80 }
            [[profile]]
            model = \"a\"
            kind = \"fast\"
            batch_ms = { 1 = 4, 4 = 100 }
            [[profile]]
            model = \"b\"
            memory_mb = 60
            batch_ms = { 1 = 7 }
            [[session]]
            model = \"b\"
            slo_ms = 50
            rate = 1
            [[session]]
            model = \"a\"
            slo_ms = 9
            rate = 1
        ";
        let workload = Workload::parse(text, &|_| Err(String::new())).expect("a workload");
        let scenario = Scenario::new(&workload).expect("a scenario");
        let ms = |ms: Nanos| ms * 1_000_000;
        let at = |device, batch| scenario.latencies_on(device, 1).at(batch);
        assert_eq!((at(0, 1), at(1, 4), at(2, 1), at(2, 4)), (ms(10), ms(40), ms(4), ms(100)));
        // What bounds are made of, and what holds wherever it runs.
        let fastest = &scenario.models[scenario.sessions[1].model].latencies;
        assert_eq!((fastest.at(1), fastest.at(4), fastest.at(8)), (ms(4), ms(40), ms(80)));
        let slowest = scenario.latencies(1);
        assert_eq!((slowest.at(1), slowest.at(4), slowest.max_batch()), (ms(10), ms(100), 4));
        // Memory for one of the two models on each device of the first kind; the other kind runs only one of them.
        let served: Vec<[bool; 2]> =
            (0..3).map(|device| [0, 1].map(|session| scenario.serves(device, session))).collect();
        assert!(
            served[0] != served[1] && served[..2].contains(&[true, false]) && served[2] == [false, true],
            "{served:?}"
        );
        assert_eq!(scenario.hopeless(), Vec::<usize>::new(), "the fast kind is fast enough for 9 ms");
    }
}
