//! Queries in the whole daemon next to the simulator: the same starts, the same calls drawn, once in real time through the rings and
//! on emulated devices, once in virtual time.

use crate::process::Daemon;
use crate::rounds::Failure;
use crate::scheduler::profiles;
use hdrhistogram::Histogram;
use rota_ipc::client::{Answer, Control, Error, OpenQuery, Request, RunId};
use rota_ipc::wire::{SLOTS_MAX, Status};
use rota_ipc::{Client, ClientOptions};
use rota_sim::Nanos;
use rota_sim::arrivals::Pattern;
use rota_sim::engine::{self, Ended, Order, Policy, World};
use rota_sim::events::EventLog;
use rota_sim::load::{self, Load};
use rota_sim::policy::PolicySpec;
use rota_sim::scenario::Scenario;
use rota_sim::workload::Workload;
use std::collections::VecDeque;
use std::path::Path;
use std::time::{Duration, Instant};

/// What to play, to whom, for how long.
pub struct Options<'a> {
    /// It has queries and nothing else; its devices are of one kind, and there is at least one.
    pub workload: &'a Workload,
    /// Queries that start before this are not counted: γ and rates are measured in that time.
    pub warmup: Duration,
    pub length: Duration,
    pub seed: u64,
}

/// What came of the queries that started in the window.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Compared {
    pub seconds: f64,
    pub devices: usize,
    pub queries: Vec<Query>,
    /// Queries that the load generator began more than a millisecond late.
    pub sent_late: u64,
    /// Plans that the daemon made.
    pub plans: u64,
}

/// One query. Rates are in queries per second.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Query {
    pub name: String,
    pub slo_ms: f64,
    pub offered: f64,
    /// All calls answered within the SLO, by the client's clock from when the query should have begun.
    pub goodput: f64,
    pub bad_rate: f64,
    pub simulated_goodput: f64,
    pub simulated_bad_rate: f64,
    /// Goodput over simulated goodput; null when that is nothing.
    pub ratio: Option<f64>,
    /// Of those whose calls were all answered.
    pub latency_p50_ms: f64,
    pub latency_p99_ms: f64,
    /// As the daemon says when the load ends, by stage: γ, and the share of the SLO in milliseconds; and what the simulator's is.
    pub stages: Vec<(String, Option<f64>, f64, f64)>,
}

/// Plays the workload to the simulator, and then to the daemon program `rota`.
pub fn run(rota: &Path, options: &Options<'_>, mut progress: impl FnMut(&str)) -> Result<Compared, Failure> {
    let workload = options.workload;
    check(workload)?;
    let scenario = Scenario::new(workload)?;
    let seconds = options.length.as_secs_f64();
    let pattern = workload.arrivals.unwrap_or(Pattern::Poisson);
    let load = Load::generate(workload, pattern, options.warmup.as_secs_f64() + seconds, options.seed);
    let from = options.warmup.as_nanos() as Nanos;
    progress("simulating");
    let simulated = simulate(&scenario, &load, from, options.seed);
    progress("starting the daemon");
    let devices = scenario.devices.len();
    let daemon = Daemon::start(rota, &config(workload, devices), &[("profiles.toml", &profiles(workload))])?;
    progress("serving");
    let tallies = Player::connect(&daemon, workload, &load, from)?.play()?;
    let status = Control::connect(daemon.socket(), STATUS_MAX)?.status()?;
    let query = |(index, tally): (usize, &Tally)| {
        let per_second = |count: u64| count as f64 / seconds;
        let bad = |good: u64| 1.0 - good as f64 / tally.offered.max(1) as f64;
        let its = &workload.queries[index];
        let shares = workload.shares(its);
        let stage = |(stage, share): (usize, &Duration)| {
            let said = &status["queries"][index]["stages"][stage];
            let share_ms = said["share_ms"].as_f64().unwrap_or_default();
            (its.stages[stage].name.clone(), said["gamma"].as_f64(), share_ms, share.as_secs_f64() * 1e3)
        };
        Query {
            name: its.name.clone(),
            slo_ms: its.tree.slo().as_secs_f64() * 1e3,
            offered: per_second(tally.offered),
            goodput: per_second(tally.good),
            bad_rate: bad(tally.good),
            simulated_goodput: per_second(simulated[index]),
            simulated_bad_rate: bad(simulated[index]),
            ratio: (simulated[index] > 0).then(|| tally.good as f64 / simulated[index] as f64),
            latency_p50_ms: tally.latency.value_at_quantile(0.5) as f64 / 1e6,
            latency_p99_ms: tally.latency.value_at_quantile(0.99) as f64 / 1e6,
            stages: shares.iter().enumerate().map(stage).collect(),
        }
    };
    Ok(Compared {
        seconds,
        devices,
        queries: tallies.iter().enumerate().map(query).collect(),
        sent_late: tallies.iter().map(|tally| tally.sent_late).sum(),
        plans: status["plan"]["count"].as_u64().unwrap_or(0),
    })
}

fn check(workload: &Workload) -> Result<(), Failure> {
    if workload.kinds.len() > 1 {
        return Err("the workload describes several kinds of device; the daemon emulates models on one".into());
    }
    if workload.queries.is_empty() {
        return Err("the workload has no query; `rota-bench scheduler` plays sessions".into());
    }
    if !workload.plain().is_empty() {
        return Err("the workload has sessions besides its queries; only queries are played".into());
    }
    Ok(())
}

fn config(workload: &Workload, devices: usize) -> String {
    let mut text = format!(
        "profile_cache = \"profiles\"\n[limits]\nrequests_per_user = {SLOTS_MAX}\nrequests_max = {SLOTS_MAX}\n\
         [[device]]\nkind = \"emulated\"\ncount = {devices}\nprofiles = \"profiles.toml\"\n"
    );
    // TOML's quotation is JSON's, for what names can hold.
    let quoted = |name: &str| serde_json::Value::from(name).to_string();
    for query in &workload.queries {
        let stages = query.stages.iter().zip(query.tree.stages()).map(|(stage, tree)| {
            let model = quoted(&workload.models[tree.model.0 as usize]);
            let after = tree.after.map(|after| format!(", after = {}", quoted(&query.stages[after].name)));
            format!(
                "{{ name = {}, model = {model}, max_calls = {CALLS_MAX}{} }}",
                quoted(&stage.name),
                after.unwrap_or_default()
            )
        });
        text += &format!(
            "[[query]]\nname = {}\nslo_ms = {:?}\nstage = [ {} ]\n",
            quoted(&query.name),
            query.tree.slo().as_secs_f64() * 1e3,
            stages.collect::<Vec<_>>().join(", ")
        );
    }
    text
}

/// By query: how many of those that start from `from` on are answered in time. The dispatcher is told no rates, as the daemon's is
/// not; the SLO is split as the workload is.
fn simulate(scenario: &Scenario, load: &Load, from: Nanos, seed: u64) -> Vec<u64> {
    let world = World { told: false, seed, ..World::default() };
    let mut scenario = scenario.clone();
    scenario.told = world.told;
    let policy = PolicySpec::Rota.build(&scenario, load.requests.len(), &|_| Default::default());
    let left = load.calls.instances.iter().map(|instance| instance.count()).collect();
    let mut counting = Counting { policy, load, from, left, good: vec![0; scenario.queries.len()] };
    engine::run(&scenario, load, &mut counting, world, None, EventLog::none());
    counting.good
}

/// A policy, and which queries it answers in time.
struct Counting<'a> {
    policy: Box<dyn Policy + 'a>,
    load: &'a Load,
    from: Nanos,
    /// By instance: calls that were not answered yet.
    left: Vec<u32>,
    /// By query.
    good: Vec<u64>,
}

impl Policy for Counting<'_> {
    fn arrived(&mut self, request: load::Request) {
        self.policy.arrived(request);
    }

    fn cancelled(&mut self, request: u32, now: Nanos) -> bool {
        self.policy.cancelled(request, now)
    }

    fn knows_queries(&self) -> bool {
        self.policy.knows_queries()
    }

    fn ended(&mut self, ended: Ended<'_>, now: Nanos) {
        for &request in ended.requests.iter().filter(|_| !ended.refused) {
            let Some(index) = self.load.calls.instance_of(request) else { continue };
            let instance = &self.load.calls.instances[index];
            self.left[index] -= 1;
            if self.left[index] == 0 && instance.start >= self.from && now <= instance.deadline {
                self.good[instance.query] += 1;
            }
        }
        self.policy.ended(ended, now);
    }

    fn decide(&mut self, now: Nanos, orders: &mut Vec<Order>) {
        self.policy.decide(now, orders);
    }

    fn next_wake(&self) -> Nanos {
        self.policy.next_wake()
    }
}

/// An application: it begins queries when they are due, and makes the calls that were drawn as their answers come. One thread, one
/// connection; the only clock is `start`, in nanoseconds.
struct Player<'a> {
    client: Client,
    load: &'a Load,
    from: Nanos,
    /// By query.
    queries: Vec<OpenQuery>,
    /// By the workload's session: the name of the stage that it is.
    stages: Vec<String>,
    /// By session: requests that are not in flight.
    idle: Vec<Vec<Request>>,
    /// By instance.
    running: Vec<Running>,
    /// Calls for which no request slot was free.
    waiting: VecDeque<u32>,
    start: Instant,
    tallies: Vec<Tally>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Running {
    run: Option<RunId>,
    /// Calls that were not answered yet.
    left: u32,
}

#[derive(Clone, Debug)]
struct Tally {
    offered: u64,
    good: u64,
    sent_late: u64,
    latency: Histogram<u64>,
}

impl<'a> Player<'a> {
    fn connect(daemon: &Daemon, workload: &Workload, load: &'a Load, from: Nanos) -> Result<Player<'a>, Failure> {
        let options =
            ClientOptions { slots: SLOTS_MAX, arena_bytes: ARENA_BYTES, spin: CLIENT_SPIN, ..ClientOptions::default() };
        let mut client = Client::connect(daemon.socket(), options)?;
        let mut stages = vec![String::new(); workload.sessions.len()];
        let mut queries = Vec::with_capacity(workload.queries.len());
        for query in &workload.queries {
            query.stages.iter().for_each(|stage| stages[stage.session].clone_from(&stage.name));
            queries.push(client.open_query(&query.name)?);
        }
        let running = load.calls.instances.iter().map(|instance| Running { run: None, left: instance.count() });
        let tally =
            Tally { offered: 0, good: 0, sent_late: 0, latency: Histogram::new_with_bounds(1_000, 60_000_000_000, 3)? };
        Ok(Player {
            client,
            load,
            from,
            tallies: vec![tally; queries.len()],
            queries,
            idle: vec![(); stages.len()].into_iter().map(|()| Vec::new()).collect(),
            stages,
            running: running.collect(),
            waiting: VecDeque::new(),
            start: Instant::now(),
        })
    }

    fn play(mut self) -> Result<Vec<Tally>, Failure> {
        let instances = &self.load.calls.instances;
        let last = instances.iter().map(|instance| instance.deadline).max().unwrap_or(0);
        self.start = Instant::now();
        let mut next = 0;
        loop {
            let now = self.now();
            while let Some(instance) = instances.get(next).filter(|instance| instance.start <= now) {
                self.begin(next, instance.first, now)?;
                next += 1;
            }
            let open = self.client.in_flight_count() > 0 || !self.waiting.is_empty();
            if next == instances.len() && (!open || now > last + PATIENCE) {
                return Ok(self.tallies);
            }
            self.send_waiting()?;
            let due = instances.get(next).map_or(now + LOOK_UP, |instance| instance.start);
            let left = Duration::from_nanos((due - self.now()).clamp(0, LOOK_UP) as u64);
            let mut answer = self.client.poll()?;
            if answer.is_none() {
                match open {
                    true => answer = self.client.wait(left)?,
                    false => std::thread::sleep(left),
                }
            }
            while let Some(taken) = answer {
                self.take(taken)?;
                answer = self.client.poll()?;
            }
        }
    }

    fn begin(&mut self, index: usize, first: u32, now: Nanos) -> Result<(), Failure> {
        let instance = &self.load.calls.instances[index];
        if instance.start >= self.from {
            let tally = &mut self.tallies[instance.query];
            tally.offered += 1;
            tally.sent_late += u64::from(now - instance.start > LATE);
        }
        match self.client.begin(&self.queries[instance.query]) {
            Ok(run) => self.running[index].run = Some(run),
            // As many are open as can be: this one is lost.
            Err(Error::RunsFull { .. }) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        self.call(first)
    }

    fn call(&mut self, call: u32) -> Result<(), Failure> {
        let instance = self.load.calls.instance_of(call).ok_or("a call is of a query")?;
        // Given up meanwhile.
        let Some(run) = self.running[instance].run else { return Ok(()) };
        let session = self.load.requests[call as usize].session as usize;
        let stage = &self.stages[session];
        let mut request = match self.idle[session].pop() {
            Some(request) => request,
            None => {
                let mut request = self.client.request_in(run, stage)?;
                request.input::<f32>(0, &[1, 1])?.fill(1.0);
                request
            }
        };
        self.client.call_in(run, stage, &mut request)?;
        request.tag = u64::from(call);
        match self.client.submit(request) {
            Ok(_) => Ok(()),
            Err(rejected) if matches!(rejected.error, Error::SlotsFull { .. }) => {
                self.idle[session].push(rejected.request);
                self.waiting.push_back(call);
                Ok(())
            }
            Err(rejected) => Err(rejected.error.into()),
        }
    }

    fn send_waiting(&mut self) -> Result<(), Failure> {
        for _ in 0..self.waiting.len() {
            if self.client.in_flight_count() >= SLOTS_MAX as usize {
                break;
            }
            let Some(call) = self.waiting.pop_front() else { break };
            self.call(call)?;
        }
        Ok(())
    }

    fn take(&mut self, answer: Answer) -> Result<(), Failure> {
        let now = self.now();
        let (call, status) = (answer.tag as u32, answer.status);
        if status == Status::Failed {
            return Err(format!("a call failed: {}", answer.message()).into());
        }
        let session = self.load.requests[call as usize].session as usize;
        self.idle[session].push(answer.into_request());
        let index = self.load.calls.instance_of(call).ok_or("a call is of a query")?;
        let instance = &self.load.calls.instances[index];
        let Some(run) = self.running[index].run else { return Ok(()) };
        if !matches!(status, Status::Ok | Status::Late) {
            self.running[index].run = None;
            return Ok(self.client.finish(run)?);
        }
        self.running[index].left -= 1;
        for made in self.load.calls.made_by(call) {
            self.call(made)?;
        }
        if self.running[index].left == 0 {
            self.running[index].run = None;
            self.client.finish(run)?;
            if instance.start >= self.from {
                let tally = &mut self.tallies[instance.query];
                tally.good += u64::from(now <= instance.deadline);
                tally.latency.saturating_record((now - instance.start) as u64);
            }
        }
        Ok(())
    }

    fn now(&self) -> Nanos {
        self.start.elapsed().as_nanos() as Nanos
    }
}

/// As short as the client library's own default: the load generator shares its cores with the daemon.
const CLIENT_SPIN: Duration = Duration::from_micros(20);
const STATUS_MAX: Duration = Duration::from_secs(10);
/// Requests are a few bytes each.
const ARENA_BYTES: u64 = 64 << 20;
/// Of a stage in one run: fan-outs are drawn, and some are large.
const CALLS_MAX: u32 = 1 << 20;
const LATE: Nanos = 1_000_000;
const LOOK_UP: Nanos = 10_000_000;
/// How long answers are awaited after the last deadline.
const PATIENCE: Nanos = 2_000_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn workload(rate: f64) -> Workload {
        let text = format!(
            "
            [[device]]
            count = 2
            [[profile]]
            model = \"m\"
            batch_ms = {{ 1 = 2, 8 = 6 }}
            [[query]]
            name = \"q\"
            slo_ms = 100
            rate = {rate}
            stage = [ {{ name = \"a\", model = \"m\" }}, {{ name = \"b\", model = \"m\", after = \"a\", gamma = 2 }} ]
        "
        );
        Workload::parse(&text, &|_| Err(String::new())).unwrap()
    }

    #[test]
    fn the_simulation_counts_whole_queries_of_the_window() {
        let light = workload(20.0);
        let load = Load::generate(&light, Pattern::Constant, 10.0, 1);
        let scenario = Scenario::new(&light).unwrap();
        for from in [0, 4_000_000_000] {
            let offered = load.calls.instances.iter().filter(|instance| instance.start >= from).count() as u64;
            assert_eq!(simulate(&scenario, &load, from, 1), [offered], "light load, all in time");
        }
    }

    #[test]
    fn the_daemon_gets_the_queries_and_what_has_none_is_refused() {
        let text = config(&workload(20.0), 2);
        let stage = "{ name = \"b\", model = \"m\", max_calls = 1048576, after = \"a\" }";
        assert!(text.contains(stage) && text.contains("slo_ms = 100.0"), "{text}");
        let mut none = workload(20.0);
        none.queries.clear();
        assert!(check(&none).unwrap_err().to_string().contains("has no query"));
    }
}
