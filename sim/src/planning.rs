//! Plans for policies that run by one: the one place where the simulator asks a planner.

use crate::scenario::{Device, Scenario};
use rota_sched::ModelId;
use rota_sched::plan::{ArrivalProcess, Demand, DeviceKind, Fleet, ModelCost, Plan, Session, Timetable};
use std::time::Duration;

/// Plans a demand whose fleet is fixed and whose devices' memory does not matter.
pub type Planner<'a> = &'a (dyn Fn(&Demand) -> Plan + Sync);

/// A timetable for each of the scenario's devices, for its rates times `headroom`.
///
/// Every policy has to live with the same placement of models, so devices that hold the same models are planned by
/// themselves, for the sessions of these models. Devices that a plan leaves out have timetables without slots.
pub fn timetables(
    scenario: &Scenario,
    arrivals: ArrivalProcess,
    headroom: f64,
    planner: Planner<'_>,
) -> Vec<Timetable> {
    if scenario.kinds() > 1 {
        return mixed(scenario, arrivals, headroom, planner);
    }
    let none = Timetable { kind: 0, period: Duration::from_nanos(1), phase: Duration::ZERO, slots: Vec::new() };
    let mut timetables = vec![none; scenario.devices.len()];
    let mut planned = vec![false; scenario.sessions.len()];
    for (first, device) in scenario.devices.iter().enumerate() {
        if scenario.devices[..first].iter().any(|earlier| earlier.holds == device.holds) {
            continue;
        }
        let group: Vec<usize> =
            (first..timetables.len()).filter(|&other| scenario.devices[other].holds == device.holds).collect();
        let sessions: Vec<usize> = (0..planned.len())
            .filter(|&session| !planned[session] && device.holds[scenario.sessions[session].model])
            .collect();
        sessions.iter().for_each(|&session| planned[session] = true);
        let plan = planner(&demand(scenario, &sessions, group.len(), arrivals, headroom));
        for (&device, mut timetable) in group.iter().zip(plan.devices) {
            for share in timetable.slots.iter_mut().flat_map(|slot| &mut slot.shares) {
                share.session = sessions[share.session];
            }
            timetables[device] = timetable;
        }
    }
    timetables
}

/// As [`timetables`] for several kinds of device: one plan of all, to which devices of one kind that hold other models than
/// their like are a kind of their own.
fn mixed(scenario: &Scenario, arrivals: ArrivalProcess, headroom: f64, planner: Planner<'_>) -> Vec<Timetable> {
    let mut kinds: Vec<&Device> = Vec::new();
    let mut fleet = Vec::with_capacity(scenario.devices.len());
    for device in &scenario.devices {
        let like = kinds.iter().position(|other| other.kind == device.kind && other.holds == device.holds);
        fleet.push(like.unwrap_or(kinds.len()));
        if like.is_none() {
            kinds.push(device);
        }
    }
    let all: Vec<usize> = (0..scenario.sessions.len()).collect();
    let demand = Demand {
        sessions: all.iter().map(|&session| asked(scenario, session, headroom)).collect(),
        kinds: kinds.into_iter().map(|device| kind(scenario, device)).collect(),
        fleet: Fleet::Fixed(fleet),
        arrivals,
    };
    planner(&demand).devices
}

fn demand(scenario: &Scenario, sessions: &[usize], devices: usize, arrivals: ArrivalProcess, headroom: f64) -> Demand {
    let all = Device { kind: 0, memory_bytes: None, holds: vec![true; scenario.models.len()] };
    Demand {
        sessions: sessions.iter().map(|&session| asked(scenario, session, headroom)).collect(),
        kinds: vec![kind(scenario, &all)],
        fleet: Fleet::Fixed(vec![0; devices]),
        arrivals,
    }
}

fn asked(scenario: &Scenario, session: usize, headroom: f64) -> Session {
    let session = &scenario.sessions[session];
    Session {
        model: ModelId(session.model as u32),
        slo: Duration::from_nanos(session.slo as u64),
        rate: session.rate * headroom,
        weight: session.weight,
    }
}

/// A kind of device with the models that `device` holds; they fit it.
fn kind(scenario: &Scenario, device: &Device) -> DeviceKind {
    let held = (0..scenario.models.len()).filter(|&model| device.holds[model]);
    let cost = |index| {
        let model = scenario.model_on(device.kind, index)?;
        let load_time = Duration::from_nanos(model.load as u64);
        let profile = model.profile.clone();
        Some((ModelId(index as u32), ModelCost { profile, memory_bytes: model.memory_bytes, load_time }))
    };
    DeviceKind { memory_bytes: None, models: held.filter_map(cost).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::Workload;
    use rota_sched::plan::{Share, Slot};

    /// A device per session, as far as they go.
    fn one_each(demand: &Demand) -> Plan {
        let Fleet::Fixed(fleet) = &demand.fleet else { panic!("the fleet is fixed") };
        let timetable = |(session, its): (usize, &Session)| {
            let shares = vec![Share { session, rate: its.rate, batch: 1 }];
            let slots = vec![Slot { offset: Duration::ZERO, batch: 1, execution: its.slo, shares }];
            Timetable { kind: 0, period: its.slo, phase: Duration::ZERO, slots }
        };
        let devices = demand.sessions.iter().enumerate().take(fleet.len()).map(timetable).collect();
        Plan { devices, ..Plan::default() }
    }

    #[test]
    fn groups_of_devices_are_planned_for_the_models_that_they_hold() {
        let mut text = String::from("[[device]]\ncount = 5\nmemory_mb = 200\n");
        for model in 0..4 {
            text += &format!("[[profile]]\nmodel = \"{model}\"\nbatch_ms = {{ 1 = 2 }}\nmemory_mb = 100\n");
            text += &format!("[[session]]\nmodel = \"{model}\"\nslo_ms = 50\nrate = {}\n", 10 + model);
        }
        let workload = Workload::parse(&text, &|_| Err(String::new())).expect("a workload");
        let scenario = Scenario::new(&workload).expect("a scenario");
        let timetables = timetables(&scenario, ArrivalProcess::Even, 2.0, &one_each);
        let mut served = Vec::new();
        for (device, timetable) in timetables.iter().enumerate() {
            for share in timetable.slots.iter().flat_map(|slot| &slot.shares) {
                assert!(scenario.serves(device, share.session));
                assert_eq!(share.rate, 2.0 * scenario.sessions[share.session].rate);
                served.push(share.session);
            }
        }
        served.sort_unstable();
        assert_eq!(served, [0, 1, 2, 3]);
        assert_eq!(timetables.iter().filter(|timetable| timetable.slots.is_empty()).count(), 1);
    }
}
