//! The whole path: the real daemon, with devices that take no time, next to what its parts cost alone.

use crate::cores;
use crate::ipc::server::{Server, Transport};
use crate::ipc::{DEPTH, MESSAGE_BYTES, SPIN, TENSOR_BYTES};
use crate::process::Daemon;
use crate::rounds::{Comparison, Contender, Failure, compare};
use crate::timing::Round;
use rota_ipc::client::{Open, Request, Session};
use rota_ipc::{Client, ClientOptions};
use std::path::Path;
use std::time::Duration;

/// What the daemon cost.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Measured {
    pub comparisons: Vec<Comparison>,
    /// Processor time of the daemon with [`CONNECTIONS`] connected clients that ask nothing, in percent of one core.
    pub idle_cpu_percent: f64,
}

/// Connections of the throughput, and of the idle daemon.
pub const CONNECTIONS: usize = 8;
/// A device that takes no time has answered long before, however busy the host is.
const ANSWER_MAX: Duration = Duration::from_secs(10);
const IDLE_SETTLE: Duration = Duration::from_millis(500);
const IDLE: Duration = Duration::from_secs(5);

const CONFIG: &str = "profile_cache = \"profiles\"\n[[device]]\nkind = \"emulated\"\nprofiles = \"profiles.toml\"\n";
/// A small request and a picture; on a device that takes no time.
const PROFILES: &str = r#"
[[profile]]
model = "small"
batch_ms = { 1 = 0.0, 32 = 0.0 }
inputs = [{ name = "x", dtype = "f32", dims = ["batch", 16] }]
outputs = [{ name = "y", dtype = "f32", dims = ["batch", 4] }]

[[profile]]
model = "picture"
batch_ms = { 1 = 0.0, 8 = 0.0 }
inputs = [{ name = "x", dtype = "f32", dims = ["batch", 3, 224, 224] }]
outputs = [{ name = "y", dtype = "f32", dims = ["batch", 4] }]
"#;
const PICTURE: [u32; 4] = [1, 3, 224, 224];

/// Measures with the daemon program `rota`. The daemon has the last core to itself, the client the first.
pub fn run(rota: &Path, rounds: u32, length: Duration, mut progress: impl FnMut(&str)) -> Result<Measured, Failure> {
    let cores = cores::allowed()?;
    let (own, daemons) = (cores[0], cores[cores.len() - 1]);
    // A process inherits its cores.
    cores::pin(daemons)?;
    let daemon = Daemon::start(rota, CONFIG, &[("profiles.toml", PROFILES)])?;
    cores::pin(own)?;
    let round = Round::of(length);
    let mut comparisons = Vec::new();
    progress("round trip");
    comparisons.extend(round_trip(&daemon, daemons, rounds, round)?);
    progress("throughput");
    comparisons.extend(throughput(&daemon, rounds, round)?);
    progress("large tensors");
    comparisons.extend(picture(&daemon, daemons, rounds, round)?);
    progress("idle");
    let idle_cpu_percent = idle(&daemon)?;
    Ok(Measured { comparisons, idle_cpu_percent })
}

/// One request at a time, both sides spinning.
fn round_trip(daemon: &Daemon, core: usize, rounds: u32, round: Round) -> Result<Vec<Comparison>, Failure> {
    let echo = Server::start(Transport::Ring, core, SPIN, MESSAGE_BYTES)?;
    let mut ring = echo.client(SPIN)?;
    let mut served = Asker::connect(daemon, "small", &[1, 16])?;
    let (mut ring_times, mut served_times) = (Vec::new(), Vec::new());
    let metrics = [("round trip of a small request, both sides spin, p50", "µs"), ("… p99", "µs")];
    let mut contenders = [
        Contender::new("the ring alone", || round.latency(&mut ring_times, || Ok(()), || ring.round_trip())),
        Contender::new("through the daemon", || round.latency(&mut served_times, || Ok(()), || served.ask())),
    ];
    compare(&metrics, rounds, &mut contenders)
}

/// One thread that polls 1 to [`CONNECTIONS`] connections, [`DEPTH`] small requests in flight on each.
fn throughput(daemon: &Daemon, rounds: u32, round: Round) -> Result<Vec<Comparison>, Failure> {
    let mut contenders = Vec::new();
    for count in 1..=CONNECTIONS {
        let mut clients = Vec::with_capacity(count);
        for _ in 0..count {
            let (client, session) = connect(daemon, "small", DEPTH as u32)?;
            let mut idle = Vec::with_capacity(DEPTH);
            for _ in 0..DEPTH {
                let mut request = client.request(&session)?;
                request.input::<f32>(0, &[1, 16])?.fill(0.5);
                idle.push(request);
            }
            clients.push((client, idle));
        }
        let name = format!("{count} connection{}", if count == 1 { "" } else { "s" });
        contenders.push(Contender::new(&name, move || {
            let figures = round.throughput(|| turn(&mut clients))?;
            // Nothing may be left for the daemon to do in the others' rounds.
            for (client, idle) in &mut clients {
                while client.in_flight_count() > 0 {
                    let answer = client.wait(ANSWER_MAX)?;
                    let answer = answer.ok_or_else(|| format!("the daemon has not answered within {ANSWER_MAX:?}"))?;
                    answer.check()?;
                    idle.push(answer.into_request());
                }
            }
            Ok(figures)
        }));
    }
    let what = format!("requests answered by one poller, {DEPTH} in flight on each connection");
    compare(&[(&what, "million/s")], rounds, &mut contenders)
}

/// Sends what is not in flight and takes answers; how many came.
fn turn(clients: &mut [(Client, Vec<Request>)]) -> Result<u64, Failure> {
    let mut done = 0;
    for (client, idle) in clients {
        while let Some(answer) = client.poll()? {
            answer.check()?;
            idle.push(answer.into_request());
            done += 1;
        }
        for request in idle.drain(..) {
            client.submit(request)?;
        }
    }
    Ok(done)
}

/// A picture through the daemon, next to copying it and asking something small. The client has just written it, so the one who
/// copies it fetches it from the client's cache: memcpy on the client's own core does not have to, the ring alone does.
fn picture(daemon: &Daemon, core: usize, rounds: u32, round: Round) -> Result<Vec<Comparison>, Failure> {
    let echo = Server::start(Transport::Ring, core, SPIN, TENSOR_BYTES)?;
    let ring = std::cell::RefCell::new(echo.client(SPIN)?);
    let mut ring_times = Vec::new();
    let mut small = Asker::connect(daemon, "small", &[1, 16])?;
    let picture = std::cell::RefCell::new(Asker::connect(daemon, "picture", &PICTURE)?);
    let source = std::cell::RefCell::new(vec![0u8; TENSOR_BYTES]);
    let mut target = vec![0u8; TENSOR_BYTES];
    let (mut times, mut picture_times, mut value) = (Vec::new(), Vec::new(), 0u8);
    let metrics = [("a request of 602112 bytes, p50", "µs"), ("… p99", "µs")];
    let half = Round::of(round.length / 2);
    let mut contenders = [
        Contender::new("memcpy of as much, plus a small round trip", || {
            let rewrite = || {
                value = value.wrapping_add(1);
                source.borrow_mut().fill(value);
                Ok(())
            };
            let copied = half.latency(&mut times, rewrite, || {
                target.copy_from_slice(std::hint::black_box(&source.borrow()));
                std::hint::black_box(&mut target);
                Ok(())
            })?;
            let asked = half.latency(&mut times, || Ok(()), || small.ask())?;
            Ok(copied.iter().zip(&asked).map(|(copied, asked)| copied + asked).collect())
        }),
        Contender::new("the ring alone, with one copy", || {
            let mut value = 0u8;
            let rewrite = || {
                value = value.wrapping_add(1);
                ring.borrow_mut().make_tensor(value)
            };
            round.latency(&mut ring_times, rewrite, || ring.borrow_mut().send_tensor())
        }),
        Contender::new("through the daemon", || {
            round.latency(&mut picture_times, || picture.borrow_mut().rewrite(&PICTURE), || picture.borrow_mut().ask())
        }),
    ];
    compare(&metrics, rounds, &mut contenders)
}

fn idle(daemon: &Daemon) -> Result<f64, Failure> {
    let mut askers = Vec::with_capacity(CONNECTIONS);
    for _ in 0..CONNECTIONS {
        let mut asker = Asker::connect(daemon, "small", &[1, 16])?;
        asker.ask()?;
        askers.push(asker);
    }
    std::thread::sleep(IDLE_SETTLE);
    let before = daemon.cpu_time()?;
    std::thread::sleep(IDLE);
    let used = daemon.cpu_time()?.saturating_sub(before);
    drop(askers);
    Ok(used.as_secs_f64() / IDLE.as_secs_f64() * 100.0)
}

/// A connection that asks one thing at a time, and spins for the answer.
struct Asker {
    client: Client,
    /// There but while it is in flight.
    request: Option<Request>,
    value: f32,
}

impl Asker {
    fn connect(daemon: &Daemon, model: &str, dims: &[u32]) -> Result<Asker, Failure> {
        let (client, session) = connect(daemon, model, rota_ipc::wire::SLOTS_MIN)?;
        let mut asker = Asker { request: Some(client.request(&session)?), client, value: 0.0 };
        asker.rewrite(dims)?;
        Ok(asker)
    }

    fn rewrite(&mut self, dims: &[u32]) -> Result<(), Failure> {
        self.value += 1.0;
        let request = self.request.as_mut().ok_or("an earlier request was lost")?;
        request.input::<f32>(0, dims)?.fill(self.value);
        Ok(())
    }

    fn ask(&mut self) -> Result<(), Failure> {
        let ticket = self.client.submit(self.request.take().ok_or("an earlier request was lost")?)?;
        let answer = self.client.wait_for(ticket, ANSWER_MAX)?;
        let answer = answer.ok_or_else(|| format!("the daemon has not answered within {ANSWER_MAX:?}"))?;
        answer.check()?;
        self.request = Some(answer.into_request());
        Ok(())
    }
}

fn connect(daemon: &Daemon, model: &str, slots: u32) -> Result<(Client, Session), Failure> {
    let options =
        ClientOptions { slots, arena_bytes: 4 << 20, spin: Duration::from_secs(1), ..ClientOptions::default() };
    let mut client = Client::connect(daemon.socket(), options)?;
    // Long enough that a host that is busy with other things drops nothing.
    let session = client.open(model, Open { version: None, slo: Some(Duration::from_secs(60)) })?;
    Ok((client, session))
}
