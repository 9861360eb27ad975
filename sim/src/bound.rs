//! How many devices a load needs at least, if batches are never shared between sessions: the fluid bound.

use crate::Nanos;
use crate::scenario::{Latencies, Scenario};

/// Devices that a session keeps busy at least: R · min{ℓ(b)/b : (b - 1)/R + ℓ(b) ≤ L}, since the first request of a batch
/// of b waits for the other b - 1. A session that even a batch of one misses is taken to run batches of one.
pub fn devices(latencies: &Latencies, slo: Nanos, rate: f64) -> f64 {
    let batch = best_batch(latencies, slo, rate);
    rate * latencies.at(batch) as f64 / batch as f64 / 1e9
}

/// The batch with which [`devices`] is least.
pub fn best_batch(latencies: &Latencies, slo: Nanos, rate: f64) -> usize {
    let fits = |&batch: &usize| (batch - 1) as f64 / rate * 1e9 + latencies.at(batch) as f64 <= slo as f64;
    let cost = |batch: usize| latencies.at(batch) as f64 / batch as f64;
    let batches = (1..=latencies.max_batch()).take_while(fits);
    batches.reduce(|best, batch| if cost(batch) < cost(best) { batch } else { best }).unwrap_or(1)
}

/// The factor on all rates at which the bound equals the scenario's number of devices: goodput factors are compared
/// with it. Where a rate begins to allow a larger batch the need falls, so there may be several; one of them is given, the
/// same each time.
pub fn factor(scenario: &Scenario) -> f64 {
    let need = |factor: f64| -> f64 {
        let of = |session: usize| {
            let its = &scenario.sessions[session];
            let latencies = &scenario.models[its.model].latencies;
            let (rate, within) = (its.rate * factor, scenario.within(session));
            // Calls that another makes come at once: nobody has to wait for a batch to fill. The split does not count, so
            // that the bound is the same for any.
            let gathering = if its.stage.is_some_and(|stage| !stage.first) { f64::INFINITY } else { rate };
            let batch = best_batch(latencies, within, gathering);
            rate * latencies.at(batch) as f64 / batch as f64 / 1e9
        };
        (0..scenario.sessions.len()).map(of).sum()
    };
    let has = scenario.devices.len() as f64;
    let (mut low, mut high) = (0.0, 1.0);
    while need(high) < has {
        high *= 2.0;
    }
    for _ in 0..60 {
        let middle = (low + high) / 2.0;
        *(if need(middle) < has { &mut low } else { &mut high }) = middle;
    }
    low
}

#[cfg(test)]
mod tests {
    use super::*;
    use rota_sched::Profile;
    use std::time::Duration;

    #[test]
    fn one_session_needs_what_its_best_batch_takes() {
        let ms = Duration::from_millis;
        let profile = Profile::new(&[(1, ms(26)), (75, ms(100))]).expect("valid points");
        let latencies = Latencies::of(&profile);
        // (b - 1)/R + ℓ(b) ≤ 100 ms: at 500/s b = 25 takes 48 + 50, b = 26 takes 50 + 51.
        let (slo, rate) = (100_000_000, 500.0);
        assert_eq!(best_batch(&latencies, slo, rate), 25);
        assert!((devices(&latencies, slo, rate) - 500.0 * 0.050 / 25.0).abs() < 1e-12);
        // So many that nobody waits for others: the whole SLO is the batch's.
        assert_eq!(best_batch(&latencies, slo, f64::INFINITY), 75);
        assert_eq!(best_batch(&latencies, 1_000, rate), 1);
    }
}
