//! How long planning takes, by number of sessions, and planning again when one rate in a hundred has changed.
//!
//! `cargo bench -p rota-sched --bench plan`

#[path = "../tests/workload/mod.rs"]
mod workload;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use rota_sched::plan::{Demand, Planner, Steps, plan, replan};

const STEPS: Steps = Steps(400);

fn plans(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("plan");
    group.sample_size(10);
    for sessions in [100, 1_000] {
        let demands = [("mixed", workload::mixed(sessions, 101)), ("many-small", workload::many_small(sessions, 101))];
        for (name, demand) in demands {
            for planner in [Planner::Nexus, Planner::Rota] {
                let id = BenchmarkId::new(format!("{name}/{planner:?}"), sessions);
                group.bench_with_input(id, &demand, |bencher, demand: &Demand| {
                    bencher.iter(|| plan(demand, planner, STEPS).expect("a valid demand"));
                });
            }
        }
    }
    group.finish();
}

fn replans(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("replan");
    group.sample_size(20);
    for sessions in [100, 1_000] {
        let before = workload::mixed(sessions, 101);
        let running = plan(&before, Planner::Rota, STEPS).expect("a valid demand");
        let mut now = before.clone();
        now.sessions.iter_mut().step_by(100).for_each(|session| session.rate *= 1.2);
        group.bench_function(BenchmarkId::new("one-in-a-hundred-grows", sessions), |bencher| {
            bencher.iter(|| replan(&now, &before, &running, Planner::Rota, Steps(0)).expect("a valid demand"));
        });
    }
    group.finish();
}

criterion_group!(benches, plans, replans);
criterion_main!(benches);
