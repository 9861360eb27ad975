//! The whole daemon next to the simulator: the same workload, the same arrivals, the same dispatcher, once in real time through
//! the rings and on emulated devices, once in virtual time.

use crate::load::arrivals::{Part, Trace};
use crate::load::driver::Window;
use crate::load::report::Outcome;
use crate::load::spec::SessionSpec;
use crate::load::{Offer, Options as LoadOptions, run_part};
use crate::process::Daemon;
use crate::rounds::Failure;
use rota_ipc::client::Control;
use rota_ipc::wire::SLOTS_MAX;
use rota_sim::Nanos;
use rota_sim::arrivals::Pattern;
use rota_sim::engine::{self, Ended, Order, Policy, World};
use rota_sim::events::EventLog;
use rota_sim::load::{Load, Request};
use rota_sim::policy::PolicySpec;
use rota_sim::scenario::Scenario;
use rota_sim::workload::Workload;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

/// What to play, to whom, for how long.
pub struct Options<'a> {
    /// Its devices are of one kind, and there is at least one.
    pub workload: &'a Workload,
    pub window: Window,
    pub seed: u64,
    /// The load generator never sleeps.
    pub spin: bool,
}

/// What came of the requests that arrived in the window.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Compared {
    pub seconds: f64,
    pub devices: usize,
    pub sessions: Vec<Session>,
    pub total: Session,
    /// Share of the time, from the first request on, in which the devices executed: in the simulator and in the daemon.
    pub simulated_utilisation: f64,
    pub utilisation: f64,
    /// Requests that the load generator sent more than a millisecond late, or could not send.
    pub sent_late: u64,
    pub lost: u64,
    /// Plans that the daemon made.
    pub plans: u64,
}

/// Of one session, or of all. Rates are in requests per second.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct Session {
    pub model: String,
    /// Null in the total.
    pub slo_ms: Option<f64>,
    pub offered: f64,
    /// Answered within the SLO: by the client's clock, from when the request should have been sent, …
    pub goodput: f64,
    pub bad_rate: f64,
    /// … and by the daemon's clock, against the deadline that the request brought.
    pub daemon_goodput: f64,
    pub simulated_goodput: f64,
    pub simulated_bad_rate: f64,
    /// Goodput over simulated goodput; null when that is nothing.
    pub ratio: Option<f64>,
    /// As the daemon said when the load ended; null in the total and where nothing was planned.
    pub promised: Option<f64>,
}

/// Plays the workload to the simulator, and then to the daemon program `rota`.
pub fn run(rota: &Path, options: &Options<'_>, mut progress: impl FnMut(&str)) -> Result<Compared, Failure> {
    let workload = options.workload;
    check(workload)?;
    let scenario = Scenario::new(workload)?;
    let (warmup, seconds) = (options.window.warmup, options.window.length.as_secs_f64());
    let pattern = workload.arrivals.unwrap_or(Pattern::Poisson);
    let load = Load::generate(workload, pattern, warmup.as_secs_f64() + seconds, options.seed);
    progress("simulating");
    let (simulated, simulated_utilisation) = simulate(&scenario, &load, warmup.as_nanos() as Nanos, options.seed);
    progress("starting the daemon");
    let devices = scenario.devices.len();
    let daemon = Daemon::start(rota, &config(devices), &[("profiles.toml", &profiles(workload))])?;
    progress("serving");
    let measured = run_part(&offer(options, &daemon, &load), Part::WHOLE, &AtomicBool::new(false), || Ok(()))?;
    let status = Control::connect(daemon.socket(), STATUS_MAX)?.status()?;
    if let Some(why) = measured.broken {
        return Err(format!("the load broke off: {why}").into());
    }
    if let Some(failure) = measured.sessions.iter().find_map(|outcome| outcome.failure.as_ref()) {
        return Err(format!("a request failed: {failure}").into());
    }
    let sessions: Vec<Session> =
        measured.sessions.iter().zip(&simulated).map(|(o, good)| Session::of(o, *good, seconds, &status)).collect();
    let count = |of: fn(&Outcome) -> u64| measured.sessions.iter().map(of).sum();
    Ok(Compared {
        seconds,
        devices,
        total: Session::total(&sessions),
        sessions,
        simulated_utilisation,
        utilisation: busy_s(&status) / devices as f64 / load.seconds,
        sent_late: count(|outcome| outcome.tally.sent_late),
        lost: count(|outcome| outcome.tally.lost),
        plans: status["plan"]["count"].as_u64().unwrap_or(0),
    })
}

/// What the daemon can't be asked, or can't tell apart.
fn check(workload: &Workload) -> Result<(), Failure> {
    if workload.kinds.len() > 1 {
        return Err("the workload describes several kinds of device; the daemon emulates models on one".into());
    }
    if let Some(query) = workload.queries.first() {
        let text = "`rota-bench queries` plays those, here the daemon is offered plain sessions";
        return Err(format!("the workload has the query '{}'; {text}", query.name).into());
    }
    for (index, session) in workload.sessions.iter().enumerate() {
        let same = |other: &rota_sim::workload::Session| (other.model, other.slo) == (session.model, session.slo);
        if let Some(earlier) = workload.sessions[..index].iter().position(same) {
            return Err(format!("sessions {earlier} and {index} are one to the daemon: the same model and SLO").into());
        }
        if session.weight != 1.0 {
            return Err(format!("session {index} has weight {}; emulated models have 1", session.weight).into());
        }
    }
    Ok(())
}

/// Seconds in which the devices executed, all together.
fn busy_s(status: &serde_json::Value) -> f64 {
    let busy_ms = status["devices"].as_array().into_iter().flatten().filter_map(|device| device["busy_ms"].as_f64());
    busy_ms.sum::<f64>() / 1e3
}

/// By session, how many of the requests that arrive from `from` on are answered within their SLO; and the share of the time in
/// which the devices executed. The dispatcher is told no rates: the daemon's is not either.
fn simulate(scenario: &Scenario, load: &Load, from: Nanos, seed: u64) -> (Vec<u64>, f64) {
    let world = World { told: false, seed, ..World::default() };
    let mut scenario = scenario.clone();
    scenario.told = world.told;
    let requests = &load.requests[..];
    let policy = PolicySpec::Rota.build(&scenario, requests.len(), &|_| Default::default());
    let mut counting = Counting { policy, requests, from, good: vec![0; scenario.sessions.len()] };
    let report = engine::run(&scenario, load, &mut counting, world, None, EventLog::none());
    (counting.good, report.utilisation.iter().sum::<f64>() / report.utilisation.len() as f64)
}

/// A policy, and what it answers in time.
struct Counting<'a> {
    policy: Box<dyn Policy + 'a>,
    requests: &'a [Request],
    from: Nanos,
    /// By session.
    good: Vec<u64>,
}

impl Policy for Counting<'_> {
    fn arrived(&mut self, request: Request) {
        self.policy.arrived(request);
    }

    fn ended(&mut self, ended: Ended<'_>, now: Nanos) {
        let requests = ended.requests.iter().map(|&id| &self.requests[id as usize]);
        let good = requests.filter(|request| request.arrival >= self.from && now <= request.deadline).count();
        self.good[ended.session] += if ended.refused { 0 } else { good as u64 };
        self.policy.ended(ended, now);
    }

    fn decide(&mut self, now: Nanos, orders: &mut Vec<Order>) {
        self.policy.decide(now, orders);
    }

    fn next_wake(&self) -> Nanos {
        self.policy.next_wake()
    }
}

fn config(devices: usize) -> String {
    format!(
        "profile_cache = \"profiles\"\n[limits]\nrequests_per_user = {SLOTS_MAX}\nrequests_max = {SLOTS_MAX}\n\
         [[device]]\nkind = \"emulated\"\ncount = {devices}\nprofiles = \"profiles.toml\"\n"
    )
}

/// Every model that a session asks for, with all of its table.
pub(crate) fn profiles(workload: &Workload) -> String {
    let mut text = String::new();
    for (index, model) in workload.models.iter().enumerate() {
        let asked = workload.sessions.iter().any(|session| session.model == index);
        let Some(profile) = workload.profile(0, index).filter(|_| asked) else { continue };
        let latency = |batch| profile.latency(batch).unwrap_or_default().as_nanos() as f64 / 1e6;
        let points: Vec<String> =
            (1..=profile.max_batch()).map(|batch| format!("{batch} = {}", float(latency(batch)))).collect();
        text += &format!(
            "[[profile]]\nmodel = {}\nbatch_ms = {{ {} }}\n\
             inputs = [{{ name = \"x\", dtype = \"f32\", dims = [\"batch\", 1] }}]\n\
             outputs = [{{ name = \"y\", dtype = \"f32\", dims = [\"batch\", 1] }}]\n",
            // TOML's quotation is JSON's, for what names can hold.
            serde_json::Value::from(&model[..]),
            points.join(", "),
        );
    }
    text
}

/// As TOML wants it: with a point.
fn float(value: f64) -> String {
    format!("{value:?}")
}

fn offer(options: &Options<'_>, daemon: &Daemon, load: &Load) -> LoadOptions {
    let workload = options.workload;
    // Whatever is in flight is answered or dropped within its SLO; twice as many, because they come at random.
    let in_flight = |session: &rota_sim::workload::Session| {
        (2.0 * session.rate * session.slo.as_secs_f64()) as u32 + IN_FLIGHT_LEAST
    };
    let all: u32 = workload.sessions.iter().map(in_flight).sum();
    let spec = |session: &rota_sim::workload::Session| SessionSpec {
        model: workload.models[session.model].clone(),
        slo: Some(session.slo),
        rate: None,
        items: 1,
        inputs: Vec::new(),
        rooms: Vec::new(),
        in_flight_max: Some(in_flight(session).min(SLOTS_MAX / 2) * SLOTS_MAX / all.max(SLOTS_MAX))
            .map(|most| most.max(1)),
    };
    let mut arrivals = vec![Vec::new(); workload.sessions.len()];
    load.requests.iter().for_each(|request| arrivals[request.session as usize].push(request.arrival as u64));
    LoadOptions {
        socket: daemon.socket(),
        sessions: workload.sessions.iter().map(spec).collect(),
        sizes: Vec::new(),
        offer: Offer::Trace(Trace::of(arrivals)),
        window: options.window,
        seed: options.seed,
        spin: options.spin,
        client_spin: CLIENT_SPIN,
        in_flight_max: SLOTS_MAX,
        arena_bytes: ARENA_BYTES,
    }
}

impl Session {
    fn of(outcome: &Outcome, simulated_good: u64, seconds: f64, status: &serde_json::Value) -> Session {
        let tally = &outcome.tally;
        let per_second = |count: u64| count as f64 / seconds;
        let bad = |good: u64| 1.0 - good as f64 / tally.offered.max(1) as f64;
        let is_it = |session: &&serde_json::Value| {
            let slo_ms = session["slo_ms"].as_f64().unwrap_or_default();
            session["model"] == outcome.model[..] && (slo_ms - outcome.slo_ms).abs() < 1e-5
        };
        let promised = status["sessions"].as_array().and_then(|sessions| sessions.iter().find(is_it));
        Session {
            model: outcome.model.clone(),
            slo_ms: Some(outcome.slo_ms),
            offered: per_second(tally.offered),
            goodput: per_second(tally.ok),
            bad_rate: bad(tally.ok),
            daemon_goodput: per_second(tally.daemon_ok),
            simulated_goodput: per_second(simulated_good),
            simulated_bad_rate: bad(simulated_good),
            ratio: (simulated_good > 0).then(|| tally.ok as f64 / simulated_good as f64),
            promised: promised.and_then(|session| session["promised_rate"].as_f64()),
        }
    }

    fn total(sessions: &[Session]) -> Session {
        let sum = |of: fn(&Session) -> f64| sessions.iter().map(of).sum::<f64>();
        let (offered, goodput, simulated_goodput) =
            (sum(|s| s.offered), sum(|s| s.goodput), sum(|s| s.simulated_goodput));
        let bad = |goodput: f64| 1.0 - goodput / offered.max(f64::MIN_POSITIVE);
        Session {
            model: "all".into(),
            slo_ms: None,
            offered,
            goodput,
            bad_rate: bad(goodput),
            daemon_goodput: sum(|s| s.daemon_goodput),
            simulated_goodput,
            simulated_bad_rate: bad(simulated_goodput),
            ratio: (simulated_goodput > 0.0).then(|| goodput / simulated_goodput),
            promised: None,
        }
    }
}

/// As short as the client library's own default: the load generator shares its cores with the daemon.
const CLIENT_SPIN: Duration = Duration::from_micros(20);
const STATUS_MAX: Duration = Duration::from_secs(10);
const IN_FLIGHT_LEAST: u32 = 16;
/// Requests are a few bytes each.
const ARENA_BYTES: usize = 64 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn workload(text: &str) -> Workload {
        Workload::parse(text, &|_| Err(String::new())).unwrap()
    }

    const TWO: &str = "
        [[device]]
        count = 2
        [[profile]]
        model = \"a b\"
        batch_ms = { 1 = 2, 3 = 4 }
        [[session]]
        model = \"a b\"
        slo_ms = 50
        rate = 100
        [[session]]
        model = \"a b\"
        slo_ms = 80
        rate = 10
    ";

    #[test]
    fn the_daemon_gets_every_point_of_the_profiles() {
        let text = profiles(&workload(TWO));
        assert!(text.contains("model = \"a b\"\nbatch_ms = { 1 = 2.0, 2 = 3.0, 3 = 4.0 }"), "{text}");
    }

    #[test]
    fn what_the_daemon_could_not_tell_apart_is_refused() {
        assert!(check(&workload(TWO)).is_ok());
        let same = check(&workload(&TWO.replace("80", "50"))).unwrap_err().to_string();
        assert_eq!(same, "sessions 0 and 1 are one to the daemon: the same model and SLO");
        let heavy = check(&workload(&TWO.replace("rate = 100", "rate = 100\nweight = 2"))).unwrap_err().to_string();
        assert!(heavy.contains("weight 2"), "{heavy}");
    }

    #[test]
    fn the_simulation_counts_only_the_window() {
        let workload = workload(TWO);
        let load = Load::generate(&workload, Pattern::Constant, 10.0, 1);
        let scenario = Scenario::new(&workload).unwrap();
        let offered = |from: Nanos| load.requests.iter().filter(|request| request.arrival >= from).count() as u64;
        for from in [0, 4_000_000_000] {
            assert_eq!(
                simulate(&scenario, &load, from, 1).0.iter().sum::<u64>(),
                offered(from),
                "light load, all in time"
            );
        }
    }
}
