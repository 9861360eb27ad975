//! Requests per second that one core schedules, in virtual time: 100 sessions on 8 devices that all serve them, and 10,000
//! sessions on 64 devices.
//!
//! `cargo bench -p rota-sched --bench dispatcher`. Every iteration replays the same arrivals into a new dispatcher, which is
//! stepped after every single arrival, end of a batch and timeout: the most steps that a caller can make. Times include the
//! loop that plays devices. A session's requests come as often on both hosts; on the larger one executions are shorter, as
//! it has fewer devices for each session, so that batches and the load of devices are about the same.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use rota_sched::*;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

const REQUESTS_MAX: u32 = 1 << 21;

#[derive(Clone, Copy)]
struct Host {
    sessions: u32,
    devices: u32,
    /// ℓ(1), and ℓ(64): linear between.
    latencies: (Duration, Duration),
}

struct Load {
    name: &'static str,
    /// Of one session, per second of virtual time.
    rate: u64,
    leads: (Duration, Duration),
}

struct Outcome {
    in_batches: u64,
    batches: u64,
    dropped: u64,
    elapsed: Duration,
}

fn throughput(criterion: &mut Criterion) {
    let micros = Duration::from_micros;
    let hosts = [
        Host { sessions: 100, devices: 8, latencies: (micros(4_000), micros(14_000)) },
        Host { sessions: 10_000, devices: 64, latencies: (micros(320), micros(1_120)) },
    ];
    let none = (Duration::ZERO, Duration::ZERO);
    let leads = (micros(500), micros(50));
    let loads = [
        Load { name: "light", rate: 40, leads },
        Load { name: "busy", rate: 200, leads },
        Load { name: "busy, no leads", rate: 200, leads: none },
        Load { name: "overload", rate: 600, leads },
    ];
    let mut group = criterion.benchmark_group("dispatcher");
    group.sample_size(10);
    for host in hosts {
        for load in &loads {
            let arrivals = arrivals(host, load.rate);
            let Outcome { in_batches, batches, dropped, .. } = round(host, &arrivals, load.leads);
            let name = format!("{} sessions, {} devices", host.sessions, host.devices);
            println!(
                "{name}, {}: mean batch {:.1}, dropped {:.1} %",
                load.name,
                in_batches as f64 / batches as f64,
                100.0 * dropped as f64 / arrivals.len() as f64
            );
            group.throughput(Throughput::Elements(arrivals.len() as u64));
            group.bench_function(BenchmarkId::new(load.name, name), |bencher| {
                bencher.iter_custom(|times| (0..times).map(|_| round(host, &arrivals, load.leads).elapsed).sum());
            });
        }
    }
    group.finish();
}

criterion_group!(benches, throughput);
criterion_main!(benches);

/// Arrivals at random moments (a fixed sequence), of sessions at random: (nanoseconds, session).
fn arrivals(host: Host, rate: u64) -> Vec<(u64, SessionId)> {
    let interval = 1_000_000_000 / (rate * u64::from(host.sessions));
    let count = 400 * host.sessions.max(2_500);
    let mut state = 1u64;
    let mut random = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 33
    };
    let mut now = 0;
    let arrival = |_| {
        now += random() % (2 * interval);
        (now, SessionId((random() % u64::from(host.sessions)) as u32))
    };
    (0..count).map(arrival).collect()
}

fn dispatcher(host: Host, leads: (Duration, Duration)) -> Dispatcher {
    let Host { sessions, devices, latencies: (first, last) } = host;
    let config = Config { requests_max: REQUESTS_MAX, sessions_max: sessions, devices_max: devices };
    let mut dispatcher = Dispatcher::new(config);
    for _ in 0..devices {
        dispatcher.add_device(DeviceConfig { prepare_lead: leads.0, start_lead: leads.1 });
    }
    for model in (0..sessions).map(ModelId) {
        let profile = Profile::new(&[(1, first), (64, last)]).expect("valid points");
        for device in (0..devices).map(DeviceId) {
            dispatcher.set_profile(device, model, ClassId(0), profile.clone());
        }
        let slo = slo(model.0);
        dispatcher.add_session(SessionConfig { model, slo, weight: 1.0 }).expect("room for the session");
    }
    dispatcher
}

fn slo(session: u32) -> Duration {
    Duration::from_millis(50 + u64::from(2 * (session % 100)))
}

/// Plays the arrivals until the last one has arrived.
fn round(host: Host, arrivals: &[(u64, SessionId)], leads: (Duration, Duration)) -> Outcome {
    let mut dispatcher = dispatcher(host, leads);
    let mut free: Vec<RequestId> = (0..REQUESTS_MAX).map(RequestId).collect();
    let mut actions = Vec::with_capacity(1024);
    let mut executing: Vec<Option<(BatchId, Duration)>> = vec![None; host.devices as usize];
    let mut ends = BinaryHeap::new();
    let mut behind: Vec<Option<BatchId>> = vec![None; host.devices as usize];
    let mut outcome = Outcome { in_batches: 0, batches: 0, dropped: 0, elapsed: Duration::ZERO };
    let latency = |dispatcher: &Dispatcher, batch| {
        let (first, last) = host.latencies;
        first + (last - first) * (dispatcher.batch(batch).items - 1) / 63
    };
    let began = std::time::Instant::now();
    let mut arrivals = arrivals.iter().peekable();
    while let Some(&&(arrives, session)) = arrivals.peek() {
        let timeout = dispatcher.next_timeout().unwrap_or(Instant::MAX);
        let next = ends.peek().map_or(Instant::MAX, |&Reverse((at, _))| at);
        let now = next.min(timeout).min(Instant(arrives));
        if now == next {
            let Reverse((_, device)): Reverse<(Instant, usize)> = ends.pop().expect("it was peeked at");
            let (batch, took) = executing[device].take().expect("its end is due");
            free.extend_from_slice(&dispatcher.batch(batch).requests);
            dispatcher.handle(Event::Finished { device: DeviceId(device as u32), batch, took }, now);
            executing[device] = behind[device].take().map(|next| {
                let took = latency(&dispatcher, next);
                ends.push(Reverse((now + took, device)));
                (next, took)
            });
        } else if now == Instant(arrives) {
            arrivals.next();
            let request = free.pop().expect("fewer wait and run than requests_max");
            let arrival = Arrival {
                request,
                session,
                class: ClassId(0),
                items: 1,
                deadline: now + slo(session.0),
                priority: Priority::NORMAL,
            };
            dispatcher.handle(Event::Arrived(arrival), now);
        }
        actions.clear();
        dispatcher.step(now, &mut actions);
        for action in &actions {
            match *action {
                Action::Prepare { batch, .. } => {
                    outcome.in_batches += dispatcher.batch(batch).requests.len() as u64;
                    outcome.batches += 1;
                }
                Action::Start { device, batch } => {
                    let device = device.0 as usize;
                    if executing[device].is_some() {
                        behind[device] = Some(batch);
                    } else {
                        let took = latency(&dispatcher, batch);
                        ends.push(Reverse((now + took, device)));
                        executing[device] = Some((batch, took));
                    }
                }
                Action::Drop { request, .. } => {
                    outcome.dropped += 1;
                    free.push(request);
                }
            }
        }
    }
    outcome.elapsed = began.elapsed();
    outcome
}
