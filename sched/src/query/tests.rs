use super::front::Front;
use super::split::{Price, cheapest, stretched};
use super::*;
use crate::Profile;
use crate::plan::{ArrivalProcess, Demand, DeviceKind, Fleet, ModelCost, Planner, Steps};
use proptest::prelude::*;

fn stage(after: Option<usize>, gamma: f64) -> Stage {
    Stage { model: ModelId(0), after, gamma }
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn profile(points: &[(u32, u64)]) -> Profile {
    Profile::new(&points.iter().map(|&(batch, at)| (batch, ms(at))).collect::<Vec<_>>()).expect("valid points")
}

fn query(slo_ms: u64, rate: f64, stages: &[Stage]) -> Query {
    Query::new(ms(slo_ms), rate, stages.to_vec()).expect("a query")
}

#[test]
fn rates_follow_gamma_down_the_tree_whatever_the_order_of_declaration() {
    let stages = [stage(Some(2), 4.0), stage(Some(0), 0.5), stage(None, f64::NAN), stage(Some(2), 0.0)];
    let query = query(100, 10.0, &stages);
    assert_eq!(query.rates(), [40.0, 20.0, 10.0, 0.0]);
    assert_eq!(query.order(), [2, 0, 3, 1]);
    assert_eq!(query.longest(&[1, 2, 4, 8]), [3, 2, 12, 8]);
}

#[test]
fn what_is_no_tree_is_refused_by_name() {
    let refused = |stages: &[Stage], expected: QueryError| {
        assert_eq!(Query::new(ms(1), 1.0, stages.to_vec()), Err(expected));
    };
    refused(&[], QueryError::Empty);
    refused(&vec![stage(None, 1.0); STAGES_MAX + 1], QueryError::TooMany(STAGES_MAX + 1));
    refused(&[stage(Some(0), 1.0)], QueryError::Cycle(0));
    refused(&[stage(Some(1), 1.0), stage(Some(0), 1.0)], QueryError::Cycle(0));
    // Behind a circle is not in it.
    refused(&[stage(None, 1.0), stage(Some(2), 1.0), stage(Some(3), 1.0), stage(Some(2), 1.0)], QueryError::Cycle(3));
    refused(&[stage(None, 1.0), stage(Some(2), 1.0)], QueryError::Unknown { stage: 1, after: 2 });
    refused(&[stage(None, 1.0), stage(None, 1.0)], QueryError::SeveralRoots { first: 0, second: 1 });
    refused(&[stage(None, 1.0), stage(Some(0), -0.5)], QueryError::Gamma { stage: 1, gamma: -0.5 });
    refused(&[stage(None, 1.0), stage(Some(0), f64::INFINITY)], QueryError::Gamma { stage: 1, gamma: f64::INFINITY });
    let nan = Query::new(ms(1), 1.0, vec![stage(None, 1.0), stage(Some(0), f64::NAN)]);
    assert!(matches!(nan, Err(QueryError::Gamma { stage: 1, .. })), "{nan:?}");
    let chain: Vec<Stage> = (0..5).map(|index: usize| stage(index.checked_sub(1), 1000.0)).collect();
    refused(&chain, QueryError::TooFast { stage: 4, rate: 1e12 });
    assert_eq!(Query::new(ms(0), 1.0, vec![stage(None, 1.0)]), Err(QueryError::Slo));
    assert_eq!(Query::new(ms(1), -1.0, vec![stage(None, 1.0)]), Err(QueryError::Rate(-1.0)));
    for gamma in [0.0, 1000.0] {
        assert!(Query::new(ms(1), 1.0, vec![stage(None, 1.0), stage(Some(0), gamma)]).is_ok());
    }
}

/// The table of the Nexus paper's section on queries: X feeds Y, 100 ms for both (here twice that), throughput of a device.
#[test]
fn two_stages_have_the_published_throughput_and_the_published_best_split() {
    // Padded to the batches of the table.
    let x = profile(&[(16, 80), (17, 100), (25, 100), (26, 120), (36, 120)]);
    let y = profile(&[(24, 80), (25, 100), (40, 100), (41, 120), (60, 120)]);
    let table = [(0.1, [192.3, 235.3, 272.7], 2), (1.0, [142.9, 153.8, 150.0], 1), (10.0, [40.0, 34.5, 27.3], 0)];
    for (gamma, expected, best) in table {
        // So fast that no batch waits for its last; a tenth of a millisecond covers it.
        let rate = 1e7;
        let spare = Duration::from_micros(100);
        let stages = vec![stage(None, 1.0), stage(Some(0), gamma)];
        let query = Query::new(ms(200) + 2 * spare, rate, stages).expect("a query");
        let shares = |first: u64| [ms(first) + spare, ms(200 - first) + spare];
        for (first, expected) in [80, 100, 120].into_iter().zip(expected) {
            let devices = devices(&query, &[&x, &y], &shares(first)).expect("both fit");
            assert!((rate / devices - expected).abs() < 0.05, "{gamma}, {first}: {}", rate / devices);
        }
        for found in [cheapest(&query, &[&x, &y], Price::NONE).expect("it fits").needs, needs(&query, &[&x, &y])] {
            let first = Duration::from_nanos(found[0]);
            let expected = shares([80, 100, 120][best])[0];
            assert!(first.abs_diff(expected) < ms(1), "γ {gamma}: {first:?}, not {expected:?}");
        }
    }
}

/// By [`Method::Dp`].
fn needs(query: &Query, profiles: &[&Profile]) -> Vec<u64> {
    let shares = split(query, profiles, Method::Dp).expect("it fits");
    shares.iter().map(|share| share.as_nanos() as u64).collect()
}

#[test]
fn every_way_gets_all_of_the_slo() {
    let profile = profile(&[(1, 5), (8, 20)]);
    let query = query(300, 50.0, &[stage(None, 1.0), stage(Some(0), 2.0), stage(Some(0), 1.0), stage(Some(2), 1.0)]);
    let profiles = [&profile; 4];
    for method in [Method::Dp, Method::Even, Method::ByLatency] {
        let shares = split(&query, &profiles, method).expect("it fits");
        assert_eq!(shares[0] + shares[1], ms(300), "{method:?}");
        assert_eq!(shares[0] + shares[2] + shares[3], ms(300), "{method:?}");
    }
    assert_eq!(split(&query, &profiles, Method::Even).expect("it fits"), [100, 200, 100, 100].map(ms));
}

#[test]
fn what_cannot_be_in_time_says_how_long_it_takes() {
    let (short, long) = (profile(&[(1, 10)]), profile(&[(1, 30)]));
    let query = query(59, 1.0, &[stage(None, 1.0), stage(Some(0), 1.0), stage(Some(1), 0.0)]);
    assert!(split(&query, &[&short, &long, &short], Method::Dp).is_ok(), "50 ms");
    let error = split(&query, &[&long, &long, &short], Method::Dp).expect_err("70 ms");
    assert_eq!((error.least, error.slo), (ms(70), ms(59)));
    assert!(split(&query, &[&long, &long, &short], Method::ByLatency).is_ok());
}

#[test]
fn a_stage_that_is_never_called_costs_nothing_and_keeps_time_for_one() {
    let profile = profile(&[(1, 10), (8, 30)]);
    let query = query(100, 50.0, &[stage(None, 1.0), stage(Some(0), 0.0)]);
    let cheapest = cheapest(&query, &[&profile; 2], Price::NONE).expect("it fits");
    assert_eq!(cheapest.needs[1], 10_000_000);
    let alone = devices(&query, &[&profile; 2], &[ms(90), ms(10)]).expect("both fit");
    assert!((alone - cheapest.cost).abs() < 1e-12 && alone > 0.0);
}

#[test]
fn a_front_too_long_to_keep_gives_up_no_more_than_a_cell() {
    let limit = 100_000_000;
    let point = |index: u64| super::front::Point { need: 1000 * index, cost: 1.0 / (1.0 + index as f64), own: 0 };
    let count = limit / 1000;
    let front = Front::new((0..=count).map(point), count as usize + 1, limit);
    for at in (0..=count).step_by(997) {
        let exact = point(at).cost;
        let found = front.within(1000 * at + limit / 4096 + 1).expect("less time suffices").cost;
        assert!(found <= exact, "{at}: {found} above {exact}");
    }
}

/// Every tree: the parent of each stage but the first is an earlier one.
fn trees() -> impl Strategy<Value = Vec<usize>> {
    (1..=5usize).prop_flat_map(|count| (1..count).map(|stage| 0..stage).collect::<Vec<_>>())
}

/// Eight batch sizes with any latencies, non-decreasing.
fn eight() -> impl Strategy<Value = Profile> {
    proptest::collection::vec(1..40u64, 8).prop_map(|mut steps| {
        let mut sum = 0;
        steps.iter_mut().for_each(|step| {
            sum += *step;
            *step = sum;
        });
        let points: Vec<(u32, Duration)> =
            steps.iter().zip(1..).map(|(&step, batch)| (batch, Duration::from_micros(step * 250))).collect();
        Profile::new(&points).expect("valid points")
    })
}

/// The least of Σ R·ℓ(b)/b over all choices of batches with (b − 1)/R + ℓ(b) summing to no more than the SLO on any way.
fn brute_force(query: &Query, profiles: &[Profile]) -> Option<f64> {
    let (count, mut best) = (profiles.len(), None);
    let mut batches = vec![1u32; count];
    loop {
        let need = |stage: usize| {
            let gathers = if batches[stage] == 1 { 0.0 } else { f64::from(batches[stage] - 1) / query.rates()[stage] };
            (gathers * 1e9 + profiles[stage].nanos(batches[stage]).expect("a batch of it") as f64).ceil() as u64
        };
        let needs: Vec<u64> = (0..count).map(need).collect();
        if query.longest(&needs)[query.order()[0]] <= query.slo().as_nanos() as u64 {
            let cost = |stage: usize| {
                let latency = profiles[stage].nanos(batches[stage]).expect("a batch of it") as f64 / 1e9;
                query.rates()[stage] * latency / f64::from(batches[stage])
            };
            let cost: f64 = (0..count).map(cost).sum();
            best = Some(best.map_or(cost, |best: f64| best.min(cost)));
        }
        let Some(stage) = (0..count).find(|&stage| batches[stage] < 8) else { return best };
        batches[..stage].fill(1);
        batches[stage] += 1;
    }
}

proptest! {
    #[test]
    fn the_program_finds_what_brute_force_finds(
        parents in trees(),
        profiles in proptest::collection::vec(eight(), 5),
        gammas in proptest::collection::vec(prop_oneof![Just(0.0), Just(1.0), 0.05..20.0f64], 5),
        rate in prop_oneof![0.5..20.0f64, 20.0..2000.0],
        slo_us in 500..80_000u64,
    ) {
        let after = |stage: usize| stage.checked_sub(1).map(|edge| parents[edge]);
        let stages = (0..=parents.len()).map(|index| stage(after(index), gammas[index])).collect();
        let query = Query::new(Duration::from_micros(slo_us), rate, stages).expect("a query");
        let profiles = &profiles[..=parents.len()];
        let borrowed: Vec<&Profile> = profiles.iter().collect();
        let expected = brute_force(&query, profiles);
        match cheapest(&query, &borrowed, Price::NONE) {
            Err(_) => prop_assert_eq!(expected, None),
            Ok(found) => {
                let expected = expected.expect("there is one");
                prop_assert!((found.cost - expected).abs() <= 1e-9 * expected.max(1e-9), "{} not {expected}", found.cost);
                prop_assert!(query.longest(&found.needs)[0] <= query.slo().as_nanos() as u64);
                // Handing out what is left costs nothing.
                let shares = stretched(&query, &found.needs);
                let after = devices(&query, &borrowed, &shares).expect("every share is long enough");
                prop_assert!(after <= found.cost + 1e-9 * found.cost.max(1e-9), "{after} above {}", found.cost);
                for (share, need) in shares.iter().zip(&found.needs) {
                    prop_assert!(share.as_nanos() as u64 >= *need);
                }
            }
        }
    }
}

/// Two queries of two stages, and a plain session.
fn mixed() -> (Demand, Vec<Query>) {
    let cost = |points: &[(u32, u64)]| ModelCost { profile: profile(points), memory_bytes: 0, load_time: ms(0) };
    let models = [cost(&[(1, 8), (16, 40)]), cost(&[(1, 3), (16, 9)]), cost(&[(1, 20), (16, 50)])];
    let models = (0..).map(ModelId).zip(models).collect();
    let demand = Demand {
        sessions: vec![crate::plan::Session { model: ModelId(1), slo: ms(50), rate: 80.0, weight: 1.0 }],
        kinds: vec![DeviceKind { memory_bytes: None, models }],
        fleet: Fleet::Unlimited(0),
        arrivals: ArrivalProcess::Even,
    };
    let of = |model, after, gamma| Stage { model: ModelId(model), after, gamma };
    let queries = vec![
        query(150, 60.0, &[of(0, None, 1.0), of(1, Some(0), 5.0)]),
        query(200, 30.0, &[of(2, None, 1.0), of(0, Some(0), 0.5), of(1, Some(0), 2.0)]),
    ];
    (demand, queries)
}

#[test]
fn stages_are_planned_behind_the_sessions_with_their_shares_and_joint_is_never_worse() {
    let (demand, queries) = mixed();
    let planned = |split| plan(&demand, &queries, split, Planner::Rota, Steps(0)).expect("a valid demand");
    let alone = planned(Split::Alone(Method::Dp));
    assert_eq!(alone.demand.sessions.len(), 6);
    assert_eq!((alone.demand.sessions[2].rate, alone.demand.sessions[2].slo), (300.0, alone.shares[0][1]));
    assert!(alone.plan.unplaced.is_empty());
    let joint = planned(Split::Joint(Tries(6)));
    assert!(joint.plan.devices.len() <= alone.plan.devices.len() && joint.plan.unplaced.is_empty());
    assert_eq!(joint, planned(Split::Joint(Tries(6))), "the same each time");
    assert_eq!(planned(Split::Joint(Tries(0))), alone);
}

#[test]
fn a_query_that_nothing_can_serve_is_named_by_its_plan() {
    let (mut demand, mut queries) = mixed();
    let short = query(10, 1.0, &[Stage { model: ModelId(0), after: None, gamma: 1.0 }, stage(Some(0), 1.0)]);
    queries.push(short);
    for split in [Split::Alone(Method::Dp), Split::Joint(Tries(2))] {
        let planned = plan(&demand, &queries, split, Planner::Rota, Steps(0)).expect("a valid demand");
        let unplaced: Vec<usize> = planned.plan.unplaced.iter().map(|unplaced| unplaced.session).collect();
        assert_eq!(unplaced, [6, 7], "each of the two has half of 10 ms, and takes 8");
    }
    demand.kinds[0].models.remove(&ModelId(2));
    let planned = plan(&demand, &queries, Split::Alone(Method::Dp), Planner::Rota, Steps(0)).expect("a valid demand");
    assert!(planned.plan.unplaced.iter().any(|unplaced| unplaced.session == 3), "no profile");
    assert_eq!(planned.shares[1][0], ms(100), "split evenly");
}
