//! The published comparison of early with lazy drop: one model, SLO 100 ms, 500 requests/s at best, whatever part of an
//! execution is fixed. Lazy drop serves the oldest request at the cost of the batch behind it.

use rota_sched::plan::{Demand, Plan, Share, Slot, Timetable};
use rota_sim::arrivals::Pattern;
use rota_sim::engine::World;
use rota_sim::trial::Trial;
use rota_sim::workload::Workload;
use std::time::Duration;

/// One device for the first session, at the largest batch that twice fits the SLO.
fn saturated(demand: &Demand) -> Plan {
    let session = &demand.sessions[0];
    let profile = &demand.kinds[0].models[&session.model].profile;
    let batch = profile.largest_within(session.slo / 2);
    let execution = profile.latency(batch).expect("within the profile");
    let shares = vec![Share { session: 0, rate: session.rate, batch }];
    let slots = vec![Slot { offset: Duration::ZERO, batch, execution, shares }];
    let timetable = Timetable { kind: 0, period: execution, phase: Duration::ZERO, slots };
    Plan { devices: vec![timetable], ..Plan::default() }
}

/// Requests per second at which 99 % are in time.
fn goodput(alpha_ms: f64, policy: &str) -> f64 {
    let beta_ms = 50.0 - 25.0 * alpha_ms;
    let text = format!(
        "[[profile]]\nmodel = \"one\"\nbatch_ms = {{ 1 = {}, 64 = {} }}\n[[device]]\n\
         [[session]]\nmodel = \"one\"\nslo_ms = 100\nrate = 500\n",
        alpha_ms + beta_ms,
        64.0 * alpha_ms + beta_ms
    );
    let workload = Workload::parse(&text, &|_| Err(String::new())).expect("a workload");
    let world = World { seed: 1, ..World::default() };
    let trial =
        Trial { workload: &workload, pattern: Pattern::Poisson, trace: None, seconds: 100.0, world, nexus: &saturated };
    let policy = policy.parse().expect("a policy");
    500.0 * trial.find_goodput(&policy, 0.99, 0.01).expect("a scenario").factor
}

#[test]
fn early_drop_gains_the_more_the_larger_the_fixed_part() {
    // (α in ms, requests/s with lazy and with early drop as a separate, earlier simulation of the two rules gave them)
    let expected = [(1.0, 372.0, 436.0), (1.4, 398.0, 452.0), (1.8, 445.0, 471.0)];
    let mut gains = Vec::new();
    for (alpha_ms, lazy, early) in expected {
        let measured = (goodput(alpha_ms, "nexus-lazy"), goodput(alpha_ms, "nexus"));
        println!("alpha {alpha_ms}: lazy {:.0} ({lazy}), early {:.0} ({early})", measured.0, measured.1);
        assert!((measured.0 / lazy - 1.0).abs() < 0.08, "lazy at {alpha_ms}: {}", measured.0);
        assert!((measured.1 / early - 1.0).abs() < 0.03, "early at {alpha_ms}: {}", measured.1);
        gains.push(measured.1 / measured.0);
    }
    assert!(gains[0] > 1.1 && gains.iter().all(|&gain| gain > 1.0), "{gains:?}");
    assert!(gains[0] > gains[2] + 0.05, "the gain falls with alpha: {gains:?}");
}
