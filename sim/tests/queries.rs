//! Queries in the simulator, under every policy: calls come when those that make them end, and each query has one fate.

use rota_sched::plan::{Demand, Plan, Planner, Steps, plan};
use rota_sim::arrivals::Pattern;
use rota_sim::engine::World;
use rota_sim::events::EventLog;
use rota_sim::policy::PolicySpec;
use rota_sim::record::Report;
use rota_sim::trial::{Splits, Trial};
use rota_sim::workload::Workload;
use std::collections::BTreeMap;

/// A tree of three stages beside a plain session of one of its models.
const TEXT: &str = r#"
[[device]]
count = 3
[[profile]]
model = "detect"
batch_ms = { 1 = 9.0, 8 = 30.0, 32 = 105.0 }
[[profile]]
model = "car"
batch_ms = { 1 = 4.0, 16 = 22.0, 64 = 80.0 }
[[profile]]
model = "face"
batch_ms = { 1 = 6.0, 16 = 40.0 }
[[session]]
model = "car"
slo_ms = 100
rate = 40
[[query]]
name = "traffic"
slo_ms = 250
rate = 60
stage = [ { name = "detect", model = "detect" }, { name = "car", model = "car", after = "detect", gamma = 2.5 },
          { name = "face", model = "face", after = "detect", gamma = 0.4, fan_out = "poisson" } ]
"#;

fn greedy(demand: &Demand) -> Plan {
    plan(demand, Planner::Nexus, Steps(0)).expect("a valid demand")
}

fn simulate(text: &str, policy: &PolicySpec, seconds: f64) -> (Report, String) {
    let workload = Workload::parse(text, &|_| Err(String::new())).expect("a workload");
    let world = World { seed: 3, ..World::default() };
    let trial = Trial {
        workload: &workload,
        pattern: Pattern::Poisson,
        trace: None,
        seconds,
        world,
        nexus: &greedy,
        splits: Splits::OfPolicy,
    };
    let (mut events, mut failed) = (Vec::new(), None);
    let report = trial.run(policy, EventLog::to(&mut events, &mut failed)).expect("a scenario");
    (report, String::from_utf8(events).expect("JSON is text"))
}

fn policies() -> impl Iterator<Item = PolicySpec> {
    PolicySpec::NAMES.iter().map(|name| name.parse().expect("its own name"))
}

/// Fates by request, and how many calls of each session came.
fn recount(events: &str) -> (BTreeMap<u64, u32>, Vec<u64>) {
    let (mut fates, mut offered) = (BTreeMap::new(), vec![0; 4]);
    for line in events.lines() {
        let event: serde_json::Value = serde_json::from_str(line).expect("a JSON object a line");
        let ids = event["requests"].as_array().cloned().unwrap_or_else(|| vec![event["request"].clone()]);
        match event["kind"].as_str().expect("a kind") {
            "arrival" => offered[event["session"].as_u64().expect("a session") as usize] += 1,
            "end" | "drop" | "cancel" => {
                ids.iter().for_each(|id| *fates.entry(id.as_u64().expect("an id")).or_default() += 1);
            }
            _ => {}
        }
    }
    (fates, offered)
}

#[test]
fn every_call_has_one_fate_under_every_policy() {
    for policy in policies() {
        let (report, events) = simulate(TEXT, &policy, 20.0);
        let (fates, offered) = recount(&events);
        assert!(fates.values().all(|&fates| fates == 1), "{policy}");
        let all: u64 = offered.iter().sum();
        assert_eq!(all - fates.len() as u64, report.unanswered, "{policy}");
        for (session, &count) in report.sessions.iter().zip(&offered) {
            assert!((session.figures.offered * 20.0 - count as f64).abs() < 1e-6, "{policy}");
        }
        let query = &report.queries[0];
        assert!((50.0..70.0).contains(&query.offered) && query.goodput <= query.offered, "{policy}: {query:?}");
        assert!((query.bad_rate - (1.0 - query.goodput / query.offered)).abs() < 1e-9);
        assert!((report.total.offered - query.offered - report.sessions[0].figures.offered).abs() < 1e-9);
    }
}

#[test]
fn with_room_every_query_is_in_time_and_its_calls_come_by_gamma() {
    let (report, _) = simulate(TEXT, &PolicySpec::Rota, 60.0);
    let offered: Vec<f64> = report.sessions.iter().map(|session| session.figures.offered).collect();
    assert!((offered[2] / offered[1] - 2.5).abs() < 0.1 && (offered[3] / offered[1] - 0.4).abs() < 0.05, "{offered:?}");
    assert!(report.holds(0.99), "{:?}", report.queries);
    assert!(report.queries[0].p50_ms > 13.0 && report.queries[0].p99_ms <= 250.0);
}

#[test]
fn a_query_that_cannot_be_in_time_is_dropped_whole() {
    // Far too much: calls of queries that are given up are cancelled, and nothing is done for them any more.
    let text =
        TEXT.replace("rate = 60", "rate = 400").replace("gamma = 2.5", "gamma = 8").replace("gamma = 0.4", "gamma = 3");
    let (report, events) = simulate(&text, &PolicySpec::Rota, 10.0);
    assert!(events.contains("\"kind\":\"cancel\""));
    assert_eq!(report.unanswered, 0);
    assert!(report.queries[0].bad_rate > 0.3 && report.queries[0].goodput > 80.0, "{:?}", report.queries);
}

#[test]
fn gamma_may_be_zero_or_a_thousand_under_every_policy() {
    for (gamma, least) in [("0", 0.0), ("1000", 1900.0)] {
        let text = TEXT.replace("gamma = 2.5", &format!("gamma = {gamma}")).replace("rate = 60", "rate = 2");
        for policy in policies() {
            let (report, _) = simulate(&text, &policy, 5.0);
            let query = &report.queries[0];
            assert!(query.offered > 0.0, "{policy}");
            if gamma == "0" {
                assert_eq!(report.sessions[2].figures.offered, least, "{policy}");
                assert!(query.bad_rate < 0.5, "{policy}: {query:?}");
            }
        }
    }
}
