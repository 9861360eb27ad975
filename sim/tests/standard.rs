//! The standard workloads and the comparison on them.

use rota_sched::plan::Plan;
use rota_sim::bound;
use rota_sim::engine::World;
use rota_sim::policy::PolicySpec;
use rota_sim::scenario::Scenario;
use rota_sim::standard::{STANDARD, synthetic};
use rota_sim::suite::{self, Comparison, Effort};

#[test]
fn every_standard_workload_can_be_simulated_and_most_fill_their_devices() {
    // Those whose rates are given rather than scaled to the devices.
    let given = ["many-small", "step", "traffic", "titanx", "query-traffic"];
    for standard in STANDARD {
        let workload = standard.workload();
        assert!(workload.seconds.is_some(), "{} does not say how long", standard.name);
        // Measured profiles fall in places, and are raised there; those that are lines do not.
        assert_eq!(
            workload.warnings.is_empty(),
            !["traffic", "titanx", "query-traffic"].contains(&standard.name),
            "{}",
            standard.name
        );
        let factor = bound::factor(&Scenario::new(&workload).expect(standard.name));
        if !given.contains(&standard.name) {
            // The bound jumps down where a rate allows a larger batch, so it may cross the devices more than once.
            assert!((factor - 1.0).abs() < 0.05, "{}: {factor}", standard.name);
        }
    }
}

#[test]
fn the_committed_workloads_are_what_the_generator_makes() {
    let made = synthetic();
    let measured: Vec<&str> = STANDARD
        .iter()
        .map(|standard| standard.name)
        .filter(|name| made.iter().all(|(made, _)| made != name))
        .collect();
    assert_eq!(measured, ["traffic", "titanx", "query-traffic"], "these alone are on measured profiles");
    for (name, text) in made {
        let committed = STANDARD.iter().find(|standard| standard.name == name).expect(name);
        assert!(committed.text == text, "{name}: run `cargo run -p rota-sim --example workloads`");
    }
}

#[test]
fn limited_memory_leaves_a_quarter_of_the_models_on_each_device() {
    for (name, most) in [("memory-20", 5), ("memory-100", 25)] {
        let standard = STANDARD.iter().find(|standard| standard.name == name).expect("a standard workload");
        let scenario = Scenario::new(&standard.workload()).expect("a scenario");
        for device in &scenario.devices {
            assert!(device.holds.iter().filter(|&&holds| holds).count() <= most, "{name}");
        }
        assert!(scenario.servers().iter().all(|devices| !devices.is_empty()), "{name}");
    }
}

#[test]
fn a_comparison_is_the_same_on_any_number_of_threads() {
    let workloads: Vec<_> = STANDARD.iter().filter(|s| ["one-1", "many-small"].contains(&s.name)).copied().collect();
    let policies = ["rota", "symphony", "triton"].map(|name| name.parse::<PolicySpec>().expect("a policy"));
    let effort = Effort { precision: 0.1, length: 0.02, untuned: false, seeds: 2 };
    let compare = |threads| {
        let comparison = Comparison {
            workloads: &workloads,
            policies: &policies,
            effort,
            world: World::default(),
            nexus: &|_| Plan::default(),
            threads,
            progress: &|_, _, _| (),
        };
        let outcomes = comparison.run();
        let loads = comparison.loads(&outcomes[..1], &[0.2, 3.0]);
        (suite::table(&outcomes), serde_json::to_string(&(outcomes, loads)).expect("plain figures"))
    };
    let (table, json) = compare(1);
    assert_eq!((table.clone(), json), compare(3));
    assert!(table.starts_with("| workload | rota | symphony | triton |"), "{table}");
    assert_eq!(table.lines().count(), 5, "{table}");
    assert!(table.contains(" ± "), "{table}");
}
