//! The published greedy: squishy bin packing (Shen et al., SOSP 2019, section 6.1), by the paper's rule.
//!
//! No multiplier on measured latencies and no time for the network, which the authors' program adds. Where the paper is
//! silent: a residue too slow for any batch (b/r + ℓ(b) > L even for one) runs batches of one every min(L − ℓ(1), 1/r), and
//! one that would fill more than a device alone takes a device of its own at the saturated batch.

use super::load::Load;
use super::{Share, Slot, Timetable, Unplaced, Why};
use crate::ModelId;
use std::time::Duration;

/// A device that several residues share.
#[derive(Clone, Debug)]
struct Node {
    period: u64,
    /// Index into the loads, residual rate, batch.
    parts: Vec<(usize, f64, u32)>,
    occupancy: f64,
}

/// Timetables for `loads`, without the sessions with 2ℓ(1) > L, which have no saturated batch.
pub(super) fn pack(loads: &[Load], kind: usize, memory: Option<u64>) -> (Vec<Timetable>, Vec<Unplaced>) {
    let mut unplaced = Vec::new();
    let mut devices = Vec::new();
    let mut residues = Vec::new();
    for (index, load) in loads.iter().enumerate() {
        let saturated = load.profile.largest_within(Duration::from_nanos(load.slo / 2));
        if saturated == 0 {
            unplaced.push(Unplaced { session: load.session, rate: load.rate, why: Why::SloTooShort });
            continue;
        }
        let throughput = f64::from(saturated) * 1e9 / load.latency(saturated) as f64;
        let whole = (load.rate / throughput).floor();
        devices.extend((0..whole as usize).map(|_| alone(load, kind, saturated, throughput)));
        let rate = load.rate - whole * throughput;
        if rate <= load.rate * 1e-12 {
            continue;
        }
        let (batch, period) = residual(load, rate);
        if load.latency(batch) > period {
            devices.push(alone(load, kind, saturated, rate));
        } else {
            let occupancy = load.latency(batch) as f64 / period as f64;
            residues.push(Node { period, parts: vec![(index, rate, batch)], occupancy });
        }
    }
    residues.sort_by(|a, b| b.occupancy.total_cmp(&a.occupancy));
    let mut nodes: Vec<Node> = Vec::new();
    for residue in residues {
        let merged =
            nodes.iter().enumerate().filter_map(|(at, node)| Some((at, merge(loads, memory, node, &residue)?)));
        let fullest = merged.reduce(|best, next| if next.1.occupancy > best.1.occupancy { next } else { best });
        match fullest {
            Some((at, node)) => nodes[at] = node,
            None => nodes.push(residue),
        }
    }
    devices.extend(nodes.iter().map(|node| timetable(loads, kind, node)));
    (devices, unplaced)
}

/// The batch and the period of a residue alone: the largest b with b/r + ℓ(b) ≤ L, every b/r.
fn residual(load: &Load, rate: f64) -> (u32, u64) {
    let fills = |batch: u32| (f64::from(batch) / rate * 1e9) as u64;
    // ℓ does not fall, so b/r + ℓ(b) grows with b.
    let (mut fits, mut fails) = (0, load.profile.max_batch() + 1);
    while fits + 1 < fails {
        let batch = fits + (fails - fits) / 2;
        if fills(batch).saturating_add(load.latency(batch)) <= load.slo { fits = batch } else { fails = batch }
    }
    if fits > 0 { (fits, fills(fits)) } else { (1, fills(1).min(load.slo - load.latency(1))) }
}

/// The shorter period of the two, with batches that shrink to it; `None` when that is too much for one device.
fn merge(loads: &[Load], memory: Option<u64>, node: &Node, residue: &Node) -> Option<Node> {
    let period = node.period.min(residue.period);
    let mut busy = 0u64;
    let mut parts = Vec::with_capacity(node.parts.len() + 1);
    for &(index, rate, _) in node.parts.iter().chain(&residue.parts) {
        // Rounded as `residual` rounds, so that a part keeps its batch when its period stays.
        let mut batch = ((period as f64 * rate / 1e9) as u32).max(1);
        while ((f64::from(batch) / rate * 1e9) as u64) < period {
            batch += 1;
        }
        busy += loads[index].latency(batch);
        parts.push((index, rate, batch));
    }
    let resident = memory.is_none_or(|memory| resident(loads, &parts) <= memory);
    (busy <= period && resident).then(|| Node { period, occupancy: busy as f64 / period as f64, parts })
}

/// Bytes of the models of `parts`, each counted once.
fn resident(loads: &[Load], parts: &[(usize, f64, u32)]) -> u64 {
    let mut models: Vec<(ModelId, u64)> =
        parts.iter().map(|part| (loads[part.0].model, loads[part.0].memory)).collect();
    models.sort_unstable();
    models.dedup();
    models.iter().fold(0, |sum, model| sum.saturating_add(model.1))
}

fn alone(load: &Load, kind: usize, batch: u32, rate: f64) -> Timetable {
    let execution = Duration::from_nanos(load.latency(batch));
    let shares = vec![Share { session: load.session, rate, batch }];
    let slots = vec![Slot { offset: Duration::ZERO, batch, execution, shares }];
    Timetable { kind, period: execution, phase: Duration::ZERO, slots }
}

fn timetable(loads: &[Load], kind: usize, node: &Node) -> Timetable {
    let mut offset = 0;
    let mut slots = Vec::with_capacity(node.parts.len());
    for &(index, rate, batch) in &node.parts {
        let latency = loads[index].latency(batch);
        let shares = vec![Share { session: loads[index].session, rate, batch }];
        let (offset_from, execution) = (Duration::from_nanos(offset), Duration::from_nanos(latency));
        slots.push(Slot { offset: offset_from, batch, execution, shares });
        offset += latency;
    }
    Timetable { kind, period: Duration::from_nanos(node.period), phase: Duration::ZERO, slots }
}

#[cfg(test)]
mod tests {
    use super::super::*;

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    /// Table 2 of the paper: latencies at batches of 4, 8 and 16.
    fn table_2(rates: [f64; 3]) -> Demand {
        let latencies = [[50, 75, 100], [50, 90, 125], [60, 95, 125]];
        let slos = [200, 250, 250];
        let cost = |[four, eight, sixteen]: [u64; 3]| ModelCost {
            profile: Profile::new(&[(4, ms(four)), (8, ms(eight)), (16, ms(sixteen))]).expect("valid points"),
            memory_bytes: 0,
            load_time: Duration::ZERO,
        };
        let models = (0..3).map(|model| (ModelId(model as u32), cost(latencies[model]))).collect();
        let session = |model: usize| Session {
            model: ModelId(model as u32),
            slo: ms(slos[model]),
            rate: rates[model],
            weight: 1.0,
        };
        Demand {
            sessions: (0..3).map(session).collect(),
            kinds: vec![DeviceKind { memory_bytes: None, models }],
            fleet: Fleet::Unlimited(0),
            arrivals: ArrivalProcess::Even,
        }
    }

    /// (period in ms, [(session, batch)]) of each device.
    fn outline(plan: &Plan) -> Vec<(f64, Vec<(usize, u32)>)> {
        let slots = |device: &Timetable| device.slots.iter().map(|slot| (slot.shares[0].session, slot.batch)).collect();
        plan.devices.iter().map(|device| (device.period.as_secs_f64() * 1e3, slots(device))).collect()
    }

    #[test]
    fn residual_load_of_the_papers_example_takes_two_devices() {
        let plan = plan(&table_2([64.0, 32.0, 32.0]), Planner::Nexus, Steps(0)).expect("a valid demand");
        // A and B fill a period of 125 ms to the last nanosecond; C would make it 135. The paper's table knows batches of
        // 4, 8 and 16 only, so there C runs 4 every 125 ms; our profiles are linear between them, and 5 fit its SLO.
        assert_eq!(outline(&plan), [(125.0, vec![(0, 8), (1, 4)]), (156.25, vec![(2, 5)])]);
        assert_eq!(plan.unplaced, []);
    }

    #[test]
    fn saturated_load_of_the_papers_example_takes_whole_devices() {
        let plan = plan(&table_2([160.0 * 2.0 + 64.0, 128.0 + 32.0, 32.0]), Planner::Nexus, Steps(0)).expect("valid");
        let whole = [(100.0, vec![(0, 16)]), (100.0, vec![(0, 16)]), (125.0, vec![(1, 16)])];
        assert_eq!(outline(&plan)[..3], whole);
        assert_eq!(outline(&plan)[3..], [(125.0, vec![(0, 8), (1, 4)]), (156.25, vec![(2, 5)])]);
    }

    #[test]
    fn a_slow_session_runs_batches_of_one_as_often_as_its_slo_wants() {
        let mut demand = table_2([0.5, 32.0, 32.0]);
        demand.sessions.truncate(1);
        let plan = plan(&demand, Planner::Nexus, Steps(0)).expect("a valid demand");
        assert_eq!(outline(&plan), [(150.0, vec![(0, 1)])]);
    }

    #[test]
    fn a_residue_above_one_device_takes_its_own_at_the_saturated_batch() {
        // ℓ(1) = 50 ms and L = 110 ms: 20 items/s just exceed the residue's b = 1, d = 1/r with d + ℓ(1) ≤ L.
        let mut demand = table_2([39.0, 1.0, 1.0]);
        demand.sessions.truncate(1);
        demand.sessions[0].slo = ms(100);
        let plan = plan(&demand, Planner::Nexus, Steps(0)).expect("a valid demand");
        assert_eq!(outline(&plan), [(50.0, vec![(0, 4)])]);
    }

    #[test]
    fn models_that_do_not_fit_together_are_kept_apart() {
        let mut demand = table_2([64.0, 32.0, 32.0]);
        demand.kinds[0].memory_bytes = Some(1000);
        for cost in demand.kinds[0].models.values_mut() {
            cost.memory_bytes = 600;
        }
        let plan = plan(&demand, Planner::Nexus, Steps(0)).expect("a valid demand");
        assert_eq!(plan.devices.len(), 3);
    }
}
