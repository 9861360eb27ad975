//! Random demands of the planner's goal, from a seed.

mod random;

pub use random::Random;
use rota_sched::plan::*;
use rota_sched::{ModelId, Profile};
use std::time::Duration;

fn between(random: &mut Random, low: f64, high: f64) -> f64 {
    low + (high - low) * random.unit()
}

fn one_of(random: &mut Random, values: &[f64]) -> f64 {
    values[(random.unit() * values.len() as f64) as usize]
}

/// ℓ(b) = αb + β at 1, 2, 4 … 64, α in 0.3–6 ms, β in 1–30 ms; an SLO of at least 2.2 ℓ(1).
fn session(random: &mut Random, rate: f64) -> (Profile, Duration, f64) {
    let (alpha, beta) = (between(random, 0.3, 6.0), between(random, 1.0, 30.0));
    let points: Vec<_> = (0..7)
        .map(|power| 1u32 << power)
        .map(|b| (b, Duration::from_secs_f64((alpha * f64::from(b) + beta) / 1e3)))
        .collect();
    let slo = loop {
        let slo = one_of(random, &[50.0, 100.0, 150.0, 200.0, 300.0, 400.0]);
        if slo >= 2.2 * (alpha + beta) {
            break slo;
        }
    };
    (Profile::new(&points).expect("valid points"), Duration::from_secs_f64(slo / 1e3), rate)
}

fn demand(sessions: Vec<(Profile, Duration, f64)>) -> Demand {
    let cost = |profile| ModelCost { profile, memory_bytes: 0, load_time: Duration::ZERO };
    let (mut asked, mut models) = (Vec::new(), std::collections::BTreeMap::new());
    for (index, (profile, slo, rate)) in sessions.into_iter().enumerate() {
        let model = ModelId(index as u32);
        models.insert(model, cost(profile));
        asked.push(Session { model, slo, rate, weight: 1.0 });
    }
    Demand {
        sessions: asked,
        kinds: vec![DeviceKind { memory_bytes: None, models }],
        fleet: Fleet::Unlimited(0),
        arrivals: ArrivalProcess::Even,
    }
}

/// Rates of 1, 5, 20, 60, 200 or 500 times 0.5–1.5.
pub fn mixed(sessions: usize, seed: u64) -> Demand {
    let mut random = Random(seed);
    let mut draw = || {
        let rate = one_of(&mut random, &[1.0, 5.0, 20.0, 60.0, 200.0, 500.0]) * between(&mut random, 0.5, 1.5);
        session(&mut random, rate)
    };
    demand((0..sessions).map(|_| draw()).collect())
}

/// Every session below one item per second.
pub fn many_small(sessions: usize, seed: u64) -> Demand {
    let mut random = Random(seed);
    let mut draw = || {
        let rate = between(&mut random, 0.01, 1.0);
        session(&mut random, rate)
    };
    demand((0..sessions).map(|_| draw()).collect())
}
