//! What every plan must keep, whatever is demanded: checked on random demands, sensible and not.

mod workload;

use proptest::prelude::*;
use rota_sched::plan::validity::{play_poisson, violations};
use rota_sched::plan::*;
use rota_sched::{ModelId, Profile};
use std::time::Duration;

const MODELS: u32 = 6;
const STEPS: Steps = Steps(8);

/// Rates from nothing to what no fleet serves, and what is no rate.
fn rate() -> impl Strategy<Value = f64> {
    prop_oneof![
        12 => 0.01..30.0f64,
        8 => 30.0..900.0f64,
        1 => Just(0.0),
        1 => Just(1e-300),
        1 => 1e9..1e12f64,
        1 => prop_oneof![Just(-1.0), Just(f64::NAN), Just(f64::INFINITY), Just(f64::MAX)],
    ]
}

fn session() -> impl Strategy<Value = Session> {
    let slo = prop_oneof![20 => 20_000..500_000u64, 1 => 0..3_000u64, 1 => Just(u64::MAX)];
    let weight = prop_oneof![20 => Just(1.0), 5 => 0.1..8.0f64, 1 => prop_oneof![Just(0.0), Just(f64::NAN)]];
    // The last model has no profile anywhere.
    (0..=MODELS, slo, rate(), weight).prop_map(|(model, slo, rate, weight)| Session {
        model: ModelId(model),
        slo: Duration::from_micros(slo),
        rate,
        weight,
    })
}

/// Latencies of any shape that a profile takes: steps, jumps, throughput that falls.
fn cost() -> impl Strategy<Value = ModelCost> {
    let batch = prop_oneof![40 => 1..40u32, 1 => 1..=Profile::BATCH_LIMIT];
    let points = prop::collection::vec((batch, 200..40_000u64), 1..6);
    (points, 0..900u64).prop_map(|(mut points, memory_bytes)| {
        points.sort_unstable();
        points.dedup_by_key(|point| point.0);
        let points: Vec<_> = points.into_iter().map(|(batch, micros)| (batch, Duration::from_micros(micros))).collect();
        let profile = Profile::new(&points).expect("distinct batches above zero");
        ModelCost { profile, memory_bytes, load_time: Duration::ZERO }
    })
}

fn kind() -> impl Strategy<Value = DeviceKind> {
    let memory = prop_oneof![2 => Just(None), 1 => (500..3_000u64).prop_map(Some)];
    let costs = prop::collection::vec(prop::option::weighted(0.9, cost()), MODELS as usize);
    (memory, costs).prop_map(|(memory_bytes, costs)| DeviceKind {
        memory_bytes,
        models: (0..).map(ModelId).zip(costs).filter_map(|(model, cost)| Some((model, cost?))).collect(),
    })
}

fn demand() -> impl Strategy<Value = Demand> {
    let kinds = prop::collection::vec(kind(), 1..3);
    let sessions = prop::collection::vec(session(), 0..14);
    // An index one past the kinds now and then.
    let fleet = prop_oneof![
        3 => (0..2usize).prop_map(Fleet::Unlimited),
        2 => prop::collection::vec(0..2usize, 0..8).prop_map(Fleet::Fixed),
    ];
    let arrivals = prop_oneof![2 => Just(ArrivalProcess::Even), 1 => Just(ArrivalProcess::Poisson)];
    (kinds, sessions, fleet, arrivals).prop_map(|(kinds, sessions, fleet, arrivals)| Demand {
        sessions,
        kinds,
        fleet,
        arrivals,
    })
}

/// Items per second of each session that are unplaced.
fn unplaced(demand: &Demand, plan: &Plan) -> Vec<f64> {
    let mut rates = vec![0.0; demand.sessions.len()];
    plan.unplaced.iter().for_each(|unplaced| rates[unplaced.session] += unplaced.rate);
    rates
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_demand_gets_a_valid_plan_or_a_named_error(demand in demand()) {
        let (nexus, rota) = (plan(&demand, Planner::Nexus, STEPS), plan(&demand, Planner::Rota, STEPS));
        prop_assert_eq!(nexus.as_ref().err().map(ToString::to_string), rota.as_ref().err().map(ToString::to_string));
        let (Ok(nexus), Ok(rota)) = (nexus, rota) else { return Ok(()) };
        for plan in [&nexus, &rota] {
            prop_assert_eq!(violations(&demand, plan), vec![]);
        }
        if matches!(demand.fleet, Fleet::Unlimited(_)) {
            let (ours, greedy) = (unplaced(&demand, &rota), unplaced(&demand, &nexus));
            prop_assert!(ours.iter().zip(&greedy).all(|(ours, greedy)| ours <= greedy));
            let even = demand.arrivals == ArrivalProcess::Even;
            prop_assert!(!even || ours != greedy || rota.devices.len() <= nexus.devices.len());
            prop_assert!(rota.lower_bound <= rota.devices.len() as f64);
        }
    }
}

#[test]
fn random_workloads_take_no_more_devices_than_the_greedy_and_no_fewer_than_the_bound() {
    for seed in 1..=6 {
        let demand = workload::mixed(10 + 8 * seed as usize, seed);
        let nexus = plan(&demand, Planner::Nexus, STEPS).expect("a valid demand");
        let rota = plan(&demand, Planner::Rota, STEPS).expect("a valid demand");
        for plan in [&nexus, &rota] {
            assert_eq!(violations(&demand, plan), [], "seed {seed}");
            assert_eq!(plan.unplaced, [], "seed {seed}");
            assert!(plan.lower_bound <= plan.devices.len() as f64, "seed {seed}");
        }
        assert!(rota.devices.len() <= nexus.devices.len(), "seed {seed}");
    }
}

#[test]
fn slow_sessions_take_at_most_a_fifth_of_the_greedys_devices() {
    let demand = workload::many_small(500, 1);
    let nexus = plan(&demand, Planner::Nexus, STEPS).expect("a valid demand");
    let rota = plan(&demand, Planner::Rota, STEPS).expect("a valid demand");
    assert_eq!(violations(&demand, &rota), []);
    assert!(rota.devices.len() * 5 <= nexus.devices.len(), "{} of {}", rota.devices.len(), nexus.devices.len());
}

#[test]
fn the_same_demand_gives_the_same_plan() {
    let demand = workload::mixed(40, 9);
    assert_eq!(plan(&demand, Planner::Rota, Steps(30)), plan(&demand, Planner::Rota, Steps(30)));
}

/// The part of its rate that each session keeps.
fn kept(demand: &Demand, plan: &Plan) -> Vec<f64> {
    let missing = unplaced(demand, plan);
    missing.iter().zip(&demand.sessions).map(|(rate, session)| 1.0 - rate / session.rate).collect()
}

#[test]
fn on_too_few_devices_all_sessions_keep_the_same_part_and_some_everything() {
    for planner in [Planner::Nexus, Planner::Rota] {
        let mut demand = workload::mixed(20, 4);
        let needed = plan(&demand, planner, STEPS).expect("a valid demand").devices.len();
        demand.fleet = Fleet::Fixed(vec![0; needed / 2]);
        let plan = plan(&demand, planner, STEPS).expect("a valid demand");
        assert_eq!(violations(&demand, &plan), []);
        assert_eq!(plan.devices.len(), needed / 2);
        let kept = kept(&demand, &plan);
        let least = kept.iter().copied().fold(1.0, f64::min);
        assert!(kept.iter().all(|&part| part - least < 1e-6 || part > 1.0 - 1e-6), "{planner:?}: {kept:?}");
        assert!((0.1..0.9).contains(&least), "{planner:?}: {kept:?}");
    }
}

#[test]
fn a_session_of_twice_the_weight_keeps_twice_the_part() {
    let mut demand = workload::mixed(20, 4);
    demand.sessions[3].weight = 2.0;
    demand.fleet = Fleet::Fixed(vec![0; 4]);
    let plan = plan(&demand, Planner::Rota, STEPS).expect("a valid demand");
    let kept = kept(&demand, &plan);
    let least = kept.iter().copied().fold(1.0, f64::min);
    assert!((kept[3] / least - 2.0).abs() < 1e-6 || kept[3] > 0.999, "{} and {least}", kept[3]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_session_of_a_fixed_fleet_keeps_less_than_its_fair_part(
        seed in 0..1_000u64, devices in 1..9usize, weights in prop::collection::vec(0.2..5.0f64, 12), memory in 300..900u64,
    ) {
        let mut demand = workload::mixed(12, seed);
        let slower = demand.kinds[0].models.iter().map(|(&model, cost)| {
            let points: Vec<_> = [1, 8, 32].map(|b| (b, cost.profile.latency(b).expect("profiled to 64").mul_f64(1.3))).into();
            (model, ModelCost { profile: Profile::new(&points).expect("valid points"), ..cost.clone() })
        }).collect();
        demand.kinds.push(DeviceKind { memory_bytes: Some(memory), models: slower });
        demand.kinds.iter_mut().flat_map(|kind| kind.models.values_mut()).for_each(|cost| cost.memory_bytes = 100);
        demand.sessions.iter_mut().zip(weights).for_each(|(session, weight)| session.weight = weight);
        demand.fleet = Fleet::Fixed((0..devices).map(|device| device % 2).collect());
        let plan = plan(&demand, Planner::Rota, STEPS).expect("a valid demand");
        prop_assert_eq!(violations(&demand, &plan), vec![]);
        // Whoever does not keep everything keeps the same part by weight, unless nothing of it fits.
        let kept = kept(&demand, &plan);
        let short = || kept.iter().zip(&demand.sessions).filter(|(part, _)| (1e-6..1.0 - 1e-6).contains(*part));
        let phi = short().map(|(part, session)| part / session.weight).fold(f64::INFINITY, f64::min);
        for (part, session) in short() {
            prop_assert!((part / session.weight - phi).abs() < 1e-6 * phi, "{:?} of {:?}", kept, demand.sessions);
        }
        prop_assert!(plan.unplaced.iter().all(|unplaced| unplaced.why != Why::NoDemand));
    }
}

#[test]
fn enough_devices_serve_everything_and_none_serve_nothing() {
    let mut demand = workload::mixed(20, 4);
    let needed = plan(&demand, Planner::Rota, STEPS).expect("a valid demand").devices.len();
    demand.fleet = Fleet::Fixed(vec![0; needed]);
    assert_eq!(plan(&demand, Planner::Rota, STEPS).expect("a valid demand").unplaced, []);
    demand.fleet = Fleet::Fixed(vec![]);
    let none = plan(&demand, Planner::Rota, STEPS).expect("a valid demand");
    assert_eq!((none.devices.len(), none.unplaced.len()), (0, 20));
    assert!(none.unplaced.iter().all(|unplaced| unplaced.why == Why::NoDevice));
}

#[test]
fn what_cannot_be_placed_says_why() {
    let mut demand = workload::mixed(6, 3);
    demand.kinds[0].memory_bytes = Some(100);
    demand.sessions[0].slo = Duration::from_micros(10);
    demand.sessions[1].rate = 0.0;
    demand.sessions[2].model = ModelId(99);
    demand.kinds[0].models.get_mut(&ModelId(3)).expect("a model of the workload").memory_bytes = 101;
    let plan = plan(&demand, Planner::Rota, STEPS).expect("a valid demand");
    let why: Vec<_> = plan.unplaced.iter().map(|unplaced| (unplaced.session, unplaced.why)).collect();
    assert_eq!(why, [(0, Why::SloTooShort), (1, Why::NoDemand), (2, Why::NoProfile), (3, Why::NoMemory)]);
}

#[test]
fn a_slow_session_alone_gets_slots_of_its_own() {
    let mut demand = workload::many_small(1, 1);
    let alone = plan(&demand, Planner::Rota, STEPS).expect("a valid demand");
    assert_eq!((alone.devices.len(), violations(&demand, &alone)), (1, vec![]));
    // Two that do not fit one device's memory together are alone as well.
    demand = workload::many_small(2, 1);
    demand.kinds[0].memory_bytes = Some(10);
    demand.kinds[0].models.values_mut().for_each(|cost| cost.memory_bytes = 6);
    let apart = plan(&demand, Planner::Rota, STEPS).expect("a valid demand");
    assert_eq!((apart.devices.len(), violations(&demand, &apart)), (2, vec![]));
}

#[test]
fn a_pool_holds_under_poisson_arrivals_whatever_the_seed() {
    let demand = workload::mixed(60, 2);
    let plan = plan(&demand, Planner::Rota, STEPS).expect("a valid demand");
    assert!(plan.devices.iter().all(|device| device.slots[0].shares.len() > 1), "all devices are shared");
    for seed in 11..14 {
        for (session, tally) in play_poisson(&demand, &plan, seed, 200_000).iter().enumerate() {
            let missed = (tally.arrived - tally.in_time) as f64;
            let allowed = tally.arrived as f64 * 0.01;
            assert!(missed <= allowed + 4.0 * allowed.sqrt().max(1.0), "seed {seed}, session {session}: {tally:?}");
        }
    }
}

#[test]
fn a_plan_for_poisson_arrivals_loses_less_than_half_of_what_one_for_even_ones_loses() {
    // A session alone shares with nobody.
    let lost = |arrivals| {
        let missed = (1..=12).map(|seed| {
            let mut demand = workload::mixed(1, seed);
            demand.arrivals = arrivals;
            let plan = plan(&demand, Planner::Rota, STEPS).expect("a valid demand");
            let tally = play_poisson(&demand, &plan, 5, 20_000)[0];
            1.0 - tally.in_time as f64 / tally.arrived as f64
        });
        missed.sum::<f64>()
    };
    let (even, poisson) = (lost(ArrivalProcess::Even), lost(ArrivalProcess::Poisson));
    assert!(poisson < even / 2.0, "{poisson} of 12, and {even} with a plan for even arrivals");
}

#[test]
fn a_session_with_no_time_for_two_batches_runs_on_staggered_devices() {
    let mut demand = workload::mixed(12, 5);
    for session in &mut demand.sessions {
        let single =
            demand.kinds[0].models[&session.model].profile.latency(1).expect("every profile has a batch of one");
        session.slo = single + single / 3;
        session.rate = 60.0;
    }
    let nexus = plan(&demand, Planner::Nexus, Steps(200)).expect("a valid demand");
    assert!(nexus.unplaced.iter().all(|unplaced| unplaced.why == Why::SloTooShort));
    assert_eq!(nexus.unplaced.len(), 12);
    let rota = plan(&demand, Planner::Rota, Steps(200)).expect("a valid demand");
    assert_eq!((rota.unplaced.len(), violations(&demand, &rota)), (0, vec![]));
}
