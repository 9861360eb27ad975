//! What a policy faces: sessions, devices, and which models each device holds. The same for every policy.

use crate::Nanos;
use crate::placement;
use crate::workload::Workload;
use rota_sched::Profile;

/// A workload made ready to run: one kind of device, models placed, times in nanoseconds.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Never empty.
    pub sessions: Vec<Session>,
    /// Never empty. What each holds, by index into the workload's models.
    pub devices: Vec<Device>,
    pub models: Vec<Model>,
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
}

#[derive(Clone, Debug)]
pub struct Device {
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
#[derive(Clone, Debug, PartialEq)]
pub struct Latencies(Vec<Nanos>);

/// Why a workload cannot be simulated; whoever asked has to change what is named.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ScenarioError {
    #[error("there are no devices; give their number with --devices, or a [[device]] in the workload")]
    NoDevices,
    #[error("the workload describes devices of {0} kinds; the simulator plays one kind")]
    Kinds(usize),
    #[error("model '{0}' has no profile on the devices' kind")]
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
        let used: Vec<usize> = (0..workload.kinds.len()).filter(|&kind| workload.kinds[kind].count > 0).collect();
        let kind = match used[..] {
            [] => return Err(ScenarioError::NoDevices),
            [kind] => &workload.kinds[kind],
            _ => return Err(ScenarioError::Kinds(used.len())),
        };
        // Only models that sessions ask for: the others would take memory for nothing.
        let mut index = vec![None; workload.models.len()];
        let mut models = Vec::new();
        let mut sessions = Vec::with_capacity(workload.sessions.len());
        for session in &workload.sessions {
            let name = &workload.models[session.model];
            let model = match index[session.model] {
                Some(model) => model,
                None => {
                    let cost = kind.costs.get(&session.model);
                    let cost = cost.ok_or_else(|| ScenarioError::NoProfile(name.clone()))?;
                    if let Some(has) = kind.memory_bytes.filter(|&has| has < cost.memory_bytes) {
                        return Err(ScenarioError::TooLarge { model: name.clone(), needs: cost.memory_bytes, has });
                    }
                    models.push(Model {
                        profile: cost.profile.clone(),
                        latencies: Latencies::of(&cost.profile),
                        memory_bytes: cost.memory_bytes,
                        load: cost.load_time.as_nanos() as Nanos,
                    });
                    *index[session.model].insert(models.len() - 1)
                }
            };
            let slo = session.slo.as_nanos() as Nanos;
            sessions.push(Session { model, slo, rate: session.rate, weight: session.weight });
        }
        let device = Device { memory_bytes: kind.memory_bytes, holds: vec![false; models.len()] };
        let mut scenario = Scenario { sessions, devices: vec![device; kind.count], models, told: true, epoch: 0 };
        let holds = placement::place(&scenario).ok_or(ScenarioError::NoPlace)?;
        for (device, holds) in scenario.devices.iter_mut().zip(holds) {
            device.holds = holds;
        }
        Ok(scenario)
    }

    /// All rates times `factor`; what devices hold stays.
    pub fn scaled(&self, factor: f64) -> Scenario {
        let mut scaled = self.clone();
        scaled.sessions.iter_mut().for_each(|session| session.rate *= factor);
        scaled
    }

    pub fn latencies(&self, session: usize) -> &Latencies {
        &self.models[self.sessions[session].model].latencies
    }

    /// Whether `device` can execute requests of `session`.
    pub fn serves(&self, device: usize, session: usize) -> bool {
        self.devices[device].holds[self.sessions[session].model]
    }

    /// Sessions whose SLO is shorter than ℓ(1): none of their requests can be in time, whatever the policy.
    pub fn hopeless(&self) -> Vec<usize> {
        let late = |&session: &usize| self.latencies(session).at(1) > self.sessions[session].slo;
        (0..self.sessions.len()).filter(late).collect()
    }

    /// By session, the devices that serve it.
    pub fn servers(&self) -> Vec<Vec<usize>> {
        let of = |session| (0..self.devices.len()).filter(|&device| self.serves(device, session)).collect();
        (0..self.sessions.len()).map(of).collect()
    }
}

impl Latencies {
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
