//! Which models each device holds when memory is short: one placement for every policy, so that none wins by it.
//!
//! Devices form groups with identical sets of models, as few groups as memory allows (the more devices hold a model, the
//! better its requests spread). Models go to groups, heaviest load first, each to the group with the least load per
//! device; then single models move and pairs swap while that lowers the sum of squares of the groups' loads. A model
//! whose SLO is long next to another's execution is better company than one whose SLO is short: the loads in a group
//! weigh more where such conflicts are.

use crate::bound;
use crate::scenario::Scenario;

/// By device and model: whether the device holds the model. Each kind of device is placed by itself, with the models that
/// run on it. `None` when some kind has no room for each of these once.
pub fn place(scenario: &Scenario) -> Option<Vec<Vec<bool>>> {
    let mut holds = Vec::with_capacity(scenario.devices.len());
    // Devices lie kind by kind.
    for kind in 0..scenario.kinds() {
        let (own, models) = scenario.of_kind(kind);
        for held in place_kind(&own)? {
            let mut all = vec![false; scenario.models.len()];
            models.iter().zip(held).for_each(|(&model, held)| all[model] = held);
            holds.push(all);
        }
    }
    Some(holds)
}

fn place_kind(scenario: &Scenario) -> Option<Vec<Vec<bool>>> {
    let (devices, models) = (scenario.devices.len(), scenario.models.len());
    let Some(memory) = scenario.devices[0].memory_bytes else { return Some(vec![vec![true; models]; devices]) };
    (1..=devices).find_map(|groups| {
        let sizes: Vec<usize> = (0..groups).map(|group| (devices + group) / groups).collect();
        let assigned = assign(scenario, memory, &sizes)?;
        let mut holds = Vec::with_capacity(devices);
        for (group, &size) in sizes.iter().enumerate() {
            let set: Vec<bool> = assigned.iter().map(|&its| its == group).collect();
            holds.extend(std::iter::repeat_n(set, size));
        }
        Some(holds)
    })
}

/// A model as placement sees it.
struct Weight {
    /// Devices that its sessions keep busy.
    load: f64,
    memory: u64,
    /// The shortest SLO of its sessions, and the execution of the batch that it would run, nanoseconds.
    slo: f64,
    execution: f64,
}

/// By model, its group; `None` when the models do not fit.
fn assign(scenario: &Scenario, memory: u64, sizes: &[usize]) -> Option<Vec<usize>> {
    let weights = weights(scenario);
    let mut order: Vec<usize> = (0..weights.len()).collect();
    order.sort_by(|&a, &b| {
        (weights[b].memory.cmp(&weights[a].memory)).then(weights[b].load.total_cmp(&weights[a].load)).then(a.cmp(&b))
    });
    let mut group_of = vec![0; weights.len()];
    let mut used = vec![0u64; sizes.len()];
    let mut load = vec![0.0; sizes.len()];
    for &model in &order {
        let fits = (0..sizes.len()).filter(|&group| used[group] + weights[model].memory <= memory);
        let least = |a: &usize, b: &usize| (load[*a] / sizes[*a] as f64).total_cmp(&(load[*b] / sizes[*b] as f64));
        let group = fits.min_by(least)?;
        group_of[model] = group;
        used[group] += weights[model].memory;
        load[group] += weights[model].load;
    }
    improve(&weights, memory, sizes, &mut group_of);
    Some(group_of)
}

/// Moves and swaps while the cost falls, at most [`ROUNDS`] times over all pairs.
fn improve(weights: &[Weight], memory: u64, sizes: &[usize], group_of: &mut [usize]) {
    let fits = |group_of: &[usize], group: usize| {
        let used: u64 = (0..weights.len()).filter(|&m| group_of[m] == group).map(|m| weights[m].memory).sum();
        used <= memory
    };
    let pair =
        |group_of: &[usize], a: usize, b: usize| cost(weights, sizes, group_of, a) + cost(weights, sizes, group_of, b);
    for _ in 0..ROUNDS {
        let mut changed = false;
        for model in 0..weights.len() {
            for other in 0..weights.len() + sizes.len() {
                let from = group_of[model];
                // Past the models: a move to a group rather than a swap.
                let to = if other < weights.len() { group_of[other] } else { other - weights.len() };
                if to == from {
                    continue;
                }
                let before = pair(group_of, from, to);
                group_of[model] = to;
                if other < weights.len() {
                    group_of[other] = from;
                }
                let better = pair(group_of, from, to) < before * (1.0 - 1e-9);
                if better && fits(group_of, from) && fits(group_of, to) {
                    changed = true;
                    continue;
                }
                group_of[model] = from;
                if other < weights.len() {
                    group_of[other] = to;
                }
            }
        }
        if !changed {
            return;
        }
    }
}

/// The square of a group's load per device, times its size, with a surcharge for conflicts of time scales: the share of
/// one model's SLO that another's executions take while it waits.
fn cost(weights: &[Weight], sizes: &[usize], group_of: &[usize], group: usize) -> f64 {
    let members = || weights.iter().zip(group_of).filter(|(_, its)| **its == group).map(|(weight, _)| weight);
    let size = sizes[group] as f64;
    let load: f64 = members().map(|weight| weight.load).sum();
    let blocked: f64 = members().map(|weight| weight.load * weight.execution).sum();
    let conflict: f64 = members().map(|weight| weight.load * blocked / (load.max(1e-12) * weight.slo)).sum();
    size * ((load + conflict) / size).powi(2)
}

fn weights(scenario: &Scenario) -> Vec<Weight> {
    let empty = |model: &crate::scenario::Model| Weight {
        load: 0.0,
        memory: model.memory_bytes,
        slo: f64::INFINITY,
        execution: 0.0,
    };
    let mut weights: Vec<Weight> = scenario.models.iter().map(empty).collect();
    for session in &scenario.sessions {
        let latencies = &scenario.models[session.model].latencies;
        let weight = &mut weights[session.model];
        let batch = bound::best_batch(latencies, session.slo, session.rate);
        weight.load += bound::devices(latencies, session.slo, session.rate);
        weight.slo = weight.slo.min(session.slo as f64);
        weight.execution = weight.execution.max(latencies.at(batch) as f64);
    }
    weights
}

const ROUNDS: usize = 20;

#[cfg(test)]
mod tests {
    use crate::scenario::{Scenario, ScenarioError};
    use crate::workload::Workload;

    fn scenario(models: usize, memory_mb: u32, devices: usize) -> Result<Scenario, ScenarioError> {
        let mut text = format!("[[device]]\ncount = {devices}\nmemory_mb = {memory_mb}\n");
        for model in 0..models {
            let rate = 10 * (model + 1);
            text += &format!("[[profile]]\nmodel = \"{model}\"\nbatch_ms = {{ 1 = 2, 9 = 6 }}\nmemory_mb = 100\n");
            text += &format!("[[session]]\nmodel = \"{model}\"\nslo_ms = 50\nrate = {rate}\n");
        }
        Scenario::new(&Workload::parse(&text, &|_| Err(String::new())).expect("a workload"))
    }

    #[test]
    fn enough_memory_puts_every_model_everywhere() {
        let scenario = scenario(8, 800, 3).expect("it fits");
        assert!(scenario.devices.iter().all(|device| device.holds.iter().all(|&holds| holds)));
    }

    #[test]
    fn a_quarter_of_the_models_on_each_device_makes_four_balanced_groups() {
        let scenario = scenario(8, 200, 8).expect("it fits");
        let mut loads = Vec::new();
        for device in &scenario.devices {
            let held: Vec<usize> = (0..8).filter(|&model| device.holds[model]).collect();
            assert_eq!(held.len(), 2);
            loads.push(held.iter().map(|model| 10 * (model + 1)).sum::<usize>());
        }
        let servers = scenario.servers();
        assert!(servers.iter().all(|servers| servers.len() == 2), "{servers:?}");
        // The even split is 90 a group.
        assert!(loads.iter().all(|&load| (70..=110).contains(&load)), "{loads:?}");
    }

    #[test]
    fn too_little_memory_is_an_error() {
        assert_eq!(scenario(8, 100, 7).err(), Some(ScenarioError::NoPlace));
        let too_large = ScenarioError::TooLarge { model: "0".into(), needs: 100_000_000, has: 90_000_000 };
        assert_eq!(scenario(8, 90, 7).err(), Some(too_large));
    }
}
