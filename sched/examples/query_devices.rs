//! Devices that random queries take, by how their SLO is split.
#[path = "../tests/workload/random.rs"]
mod random;
use random::Random;
use rota_sched::plan::*;
use rota_sched::query::{Method, Query, Split, Stage, Tries, plan};
use rota_sched::{ModelId, Profile};
use std::time::{Duration, Instant};

fn drawn(random: &mut Random, queries: usize) -> (Demand, Vec<Query>) {
    let mut log = |low: f64, high: f64| low * (high / low).powf(random.unit());
    let tight: f64 = std::env::var("TIGHT").map_or(8.0, |t| t.parse().unwrap());
    let most: f64 = std::env::var("BUSY").map_or(3.0, |t| t.parse().unwrap());
    let mut models = std::collections::BTreeMap::new();
    let mut all = Vec::new();
    while all.len() < queries {
        let count = 2 + (log(1.0, std::f64::consts::E).ln() * 4.0) as usize;
        let mut stages = Vec::new();
        let mut profiles = Vec::new();
        for stage in 0..count {
            let (alpha, beta) = (log(0.05, 3.0), log(1.0, 20.0));
            let points: Vec<_> = (0..7)
                .map(|p| 1u32 << p)
                .map(|b| (b, Duration::from_secs_f64((alpha * f64::from(b) + beta) / 1e3)))
                .collect();
            profiles.push((alpha + beta, Profile::new(&points).unwrap()));
            let after = (stage > 0).then(|| (log(1.0, std::f64::consts::E).ln() * stage as f64) as usize);
            stages.push(Stage { model: ModelId((models.len() + stage) as u32), after, gamma: log(0.1, 10.0) });
        }
        let draft = Query::new(Duration::from_secs(1), 1.0, stages.clone()).unwrap();
        let ns: Vec<u64> = profiles.iter().map(|p| (p.0 * 1e6) as u64).collect();
        let slo = Duration::from_nanos((draft.longest(&ns)[0] as f64 * log(2.5, tight)) as u64);
        // So many devices' worth of work at batches of eight.
        let work: f64 =
            profiles.iter().zip(draft.rates()).map(|(p, r)| r * p.1.latency(8).unwrap().as_secs_f64() / 8.0).sum();
        let rate = log(0.1, most) / work;
        let query = Query::new(slo, rate, stages).unwrap();
        let ps: Vec<&Profile> = profiles.iter().map(|p| &p.1).collect();
        let even = rota_sched::query::split(&query, &ps, Method::Even).unwrap();
        if even.iter().zip(&profiles).any(|(s, p)| s.as_secs_f64() * 1e3 < 2.2 * p.0) {
            continue;
        }
        for (_, profile) in profiles {
            models.insert(
                ModelId(models.len() as u32),
                ModelCost { profile, memory_bytes: 0, load_time: Duration::ZERO },
            );
        }
        all.push(query);
    }
    (
        Demand {
            sessions: vec![],
            kinds: vec![DeviceKind { memory_bytes: None, models }],
            fleet: Fleet::Unlimited(0),
            arrivals: ArrivalProcess::Even,
        },
        all,
    )
}

fn main() {
    let a: Vec<u64> = std::env::args().skip(1).map(|a| a.parse().unwrap()).collect();
    let (queries, seeds, steps) = (a[0] as usize, a[1], Steps(a[2] as u32));
    let mut sums = [0.0; 4];
    let mut n = 0.0;
    for seed in 1..=seeds {
        let (demand, qs) = drawn(&mut Random(seed), queries);
        let t = Instant::now();
        let mut out = vec![];
        let mut bs = vec![];
        for split in [
            Split::Alone(Method::Dp),
            Split::Alone(Method::Even),
            Split::Alone(Method::ByLatency),
            Split::Joint(Tries(30)),
        ] {
            let p = plan(&demand, &qs, split, Planner::Rota, steps).unwrap();
            bs.push(bound::fluid(&p.demand));
            out.push(if p.plan.unplaced.is_empty() { p.plan.devices.len() as f64 } else { f64::NAN });
        }
        println!("{seed}: {out:?} {bs:.2?} {:?}", t.elapsed());
        if out.iter().all(|o| !o.is_nan()) {
            n += 1.0;
            for (s, o) in sums.iter_mut().zip(&out) {
                *s += o / out[0];
            }
        }
    }
    println!("over dp: {:?} of {n}", sums.map(|s| s / n));
}
