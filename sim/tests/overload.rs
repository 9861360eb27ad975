//! In overload as much is served as before, and nobody is starved.

use rota_sched::plan::{Demand, Plan};
use rota_sim::arrivals::Pattern;
use rota_sim::engine::World;
use rota_sim::overload;
use rota_sim::standard::STANDARD;
use rota_sim::trial::{Splits, Trial};

#[test]
fn goodput_stays_and_everybody_has_a_fair_share() {
    let nobody = |_: &Demand| Plan::default();
    let rota = "rota".parse().expect("a policy");
    // The factor that is held: docs/scheduling.md.
    for (name, held) in [("mixed-8", 0.90), ("titanx", 0.87), ("one-shallow-8", 0.97)] {
        let standard = STANDARD.iter().find(|standard| standard.name == name).expect("a standard workload");
        let workload = standard.workload();
        let world = World { seed: 1, ..World::default() };
        let trial = Trial {
            workload: &workload,
            pattern: Pattern::Poisson,
            trace: None,
            seconds: 8.0,
            world,
            nexus: &nobody,
            splits: Splits::OfPolicy,
        };
        let factor = held * trial.bound().expect("a scenario");
        let plateau = overload::run(&trial, &rota, factor).expect("a scenario").goodput;
        for times in [1.5, 10.0] {
            let overloaded = overload::run(&trial, &rota, factor * times).expect("a scenario");
            assert!(overloaded.goodput >= 0.97 * plateau, "{name} at {times}: {overloaded:?} after {plateau}");
            assert!(overloaded.worst.0 >= 0.8, "{name} at {times}: {overloaded:?}");
        }
    }
}
