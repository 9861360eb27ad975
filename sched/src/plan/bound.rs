//! How few devices any plan can do with.
//!
//! **Time.** Say that the requests of a session arrive evenly spaced at rate R, that every one is answered within L, and
//! that a batch holds requests of one session. Take any batch, of b requests, in any schedule whatever. Its requests came
//! at b different moments 1/R apart, so its oldest came at least (b − 1)/R before its youngest. It starts after its
//! youngest came and takes ℓ(b). So the oldest is answered at least (b − 1)/R + ℓ(b) after it came, and that is at most L:
//! only batch sizes with (b − 1)/R + ℓ(b) ≤ L occur. Each such batch spends ℓ(b)/b of a device's time per request, at
//! least c = min ℓ(b)/b over those sizes. In a long time T the session's R·T requests take at least R·T·c of device time, a
//! device has T to give, and no two sessions share a batch, so at least B = Σ R·c devices are needed. A session with rounding
//! down of R·T or batches cut by the ends of T changes this by a constant, which vanishes against T.
//!
//! Slots that sessions share promise only 99 %, so a plan that uses them might do with less; ours never does, because it
//! gives a pool at least the time that its members' terms of B come to.
//!
//! **Poisson.** Requests may come all at once, so any batch with ℓ(b) ≤ L occurs, and one request in a hundred may be
//! dropped: B = 0.99 Σ R·min ℓ(b)/b over those.
//!
//! **Whole devices.** Their number is whole, so it is at least ⌈B⌉.
//!
//! **Memory.** A model whose sessions need u devices of time runs on at least ⌈u⌉ devices, and on one in any case, and
//! occupies its memory on each. So devices ≥ Σ ⌈u⌉·m / M; and since no two models of more than M/2 share a device, devices ≥
//! Σ ⌈u⌉ over those.

//! **Slots of one's own.** A plan that shares no slot and serves every session by gaps (rule 1 of `validity.rs`) or by
//! streams (rule 2), as the greedy does and our units do, takes more: at least Σ min ℓ(b)/G(b), G(b) = min(b/R, L − ℓ(b)).
//! By gaps: the gaps of a session make up its period, d = Σ gⱼ ≤ Σ G(bⱼ), so its slots take Σ ℓ(bⱼ)/d ≥ Σ ℓ(bⱼ)/Σ G(bⱼ) ≥
//! min ℓ/G of a device. By streams: one of rate r has d ≤ min(b/r, L − ℓ(b)) ≤ (R/r)·G(b), so its slot takes ℓ(b)/d ≥
//! (r/R)·min ℓ/G, and the r make up R.

use super::load::Load;
use super::{ArrivalProcess, Demand, Fleet};
use std::collections::BTreeMap;
use std::time::Duration;

/// B: the time bound in devices, not rounded; over the sessions that the kind can serve. Zero for a fixed fleet.
pub fn fluid(demand: &Demand) -> f64 {
    let Fleet::Unlimited(kind) = demand.fleet else { return 0.0 };
    Load::all(demand, kind).0.iter().map(devices).sum()
}

/// What plans without shared slots take at least, in devices, not rounded. Zero for a fixed fleet.
pub fn unshared(demand: &Demand) -> f64 {
    let Fleet::Unlimited(kind) = demand.fleet else { return 0.0 };
    Load::all(demand, kind).0.iter().map(|load| load.share).sum()
}

/// The largest of the bounds for all plans, in whole devices. Zero for a fixed fleet.
pub fn lower_bound(demand: &Demand) -> f64 {
    let Fleet::Unlimited(kind) = demand.fleet else { return 0.0 };
    let loads = Load::all(demand, kind).0;
    let mut fluid = 0.0;
    let mut by_model = BTreeMap::new();
    for load in &loads {
        let devices = devices(load);
        fluid += devices;
        by_model.entry(load.model).or_insert((load.memory, 0.0)).1 += devices;
    }
    let mut bound = whole(fluid);
    if let Some(memory) = demand.kinds[kind].memory_bytes {
        let copies = |devices: f64| whole(devices).max(1.0);
        let bytes: f64 = by_model.values().map(|&(bytes, devices)| bytes as f64 * copies(devices)).sum();
        if bytes > 0.0 {
            bound = bound.max(whole(bytes / memory as f64));
        }
        let large = by_model.values().filter(|&&(bytes, _)| bytes > memory / 2);
        bound = bound.max(large.map(|&(_, devices)| copies(devices)).sum());
    }
    bound
}

/// Devices that a session's requests occupy in any schedule.
pub(super) fn devices(load: &Load) -> f64 {
    let (spacing, answered) = match load.arrivals {
        ArrivalProcess::Even => (1e9 / load.rate, 1.0),
        ArrivalProcess::Poisson => (0.0, 0.99),
    };
    let batches = 1..=load.profile.largest_within(Duration::from_nanos(load.slo));
    let usable = batches.filter(|&batch| {
        // A microsecond of tolerance can only lower the bound.
        batch == 1 || f64::from(batch - 1) * spacing + load.latency(batch) as f64 <= load.slo as f64 + 1e3
    });
    let costs = usable.map(|batch| load.latency(batch) as f64 / f64::from(batch));
    answered * load.rate / 1e9 * costs.fold(f64::INFINITY, f64::min)
}

/// Rounded up, but for what floating point may have added.
fn whole(devices: f64) -> f64 {
    (devices - 1e-9).ceil().max(0.0)
}

#[cfg(test)]
mod tests {
    use super::super::*;
    use super::*;

    fn demand(slo_ms: u64, rate: f64, memory: Option<u64>) -> Demand {
        let ms = Duration::from_millis;
        let profile = Profile::new(&[(1, ms(10)), (4, ms(16)), (8, ms(40))]).expect("valid points");
        let cost = ModelCost { profile, memory_bytes: 600, load_time: Duration::ZERO };
        let session = |model| Session { model: ModelId(model), slo: ms(slo_ms), rate, weight: 1.0 };
        Demand {
            sessions: vec![session(0), session(1)],
            kinds: vec![DeviceKind {
                memory_bytes: memory,
                models: [(ModelId(0), cost.clone()), (ModelId(1), cost)].into(),
            }],
            fleet: Fleet::Unlimited(0),
            arrivals: ArrivalProcess::Even,
        }
    }

    #[test]
    fn only_batches_that_can_fill_within_the_slo_count() {
        // At 50/s a batch of 4 takes 60 + 16 ms from its first request on, one of 3 takes 40 + 14.
        for (slo, cost_ms) in [(76, 4.0), (75, 14.0 / 3.0), (54, 14.0 / 3.0), (53, 6.0)] {
            let bound = fluid(&demand(slo, 50.0, None));
            assert!((bound - 2.0 * 50.0 * cost_ms / 1e3).abs() < 1e-9, "{slo} ms: {bound}");
        }
    }

    #[test]
    fn slots_of_ones_own_take_a_request_more_and_the_greedy_is_never_below() {
        // At 50/s batches of 3 close 60 ms, of 4 at most 80 and 71 − 16: the bound for all takes 4 at 16 ms, 60 + 16 ≤ 76.
        let demand = demand(76, 50.0, None);
        assert!((unshared(&demand) - 2.0 * 14.0 / 60.0).abs() < 1e-9, "{}", unshared(&demand));
        assert!(fluid(&demand) < unshared(&demand));
        let greedy = plan(&demand, Planner::Nexus, Steps(0)).expect("a valid demand");
        assert!(greedy.devices.len() as f64 >= unshared(&demand));
    }

    #[test]
    fn memory_and_whole_devices_raise_the_bound() {
        assert_eq!(lower_bound(&demand(76, 50.0, None)), 1.0);
        assert_eq!(lower_bound(&demand(76, 50.0, Some(1000))), 2.0);
        assert_eq!(lower_bound(&demand(76, 700.0, None)), 6.0);
        // 2.8 devices of time for each model: three copies of each, no two on one device.
        assert_eq!(lower_bound(&demand(76, 700.0, Some(1199))), 6.0);
        assert_eq!(lower_bound(&demand(76, 600.0, Some(1199))), 6.0);
        assert_eq!(lower_bound(&demand(76, 600.0, None)), 5.0);
    }
}
