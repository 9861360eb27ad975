//! Rota's own dispatcher, the very type that the daemon drives.

use crate::Nanos;
use crate::engine::{Ended, Order, Policy, Run};
use crate::load::Request;
use crate::scenario::Scenario;
use rota_sched::{
    Action, Arrival, BatchId, ClassId, Config, DeviceConfig, DeviceId, Dispatcher, Event, Instant, ModelId, Priority,
    RequestId, SessionConfig, SessionId,
};
use std::collections::VecDeque;
use std::time::Duration;

/// The dispatcher, and the batches that each device was told to start and has not ended, in order.
pub struct Rota {
    dispatcher: Dispatcher,
    outstanding: Vec<VecDeque<BatchId>>,
    sessions: Vec<SessionId>,
    actions: Vec<Action>,
}

impl Rota {
    pub fn new(scenario: &Scenario, requests: usize) -> Rota {
        let mut dispatcher = dispatcher(scenario, requests);
        let weights = weights(scenario);
        let open = |(session, weight): (&crate::scenario::Session, f64)| {
            let (model, slo) = (ModelId(session.model as u32), Duration::from_nanos(session.slo as u64));
            let config = SessionConfig { model, slo, weight };
            dispatcher.add_session(config).expect("there is room for every session")
        };
        let sessions: Vec<SessionId> = scenario.sessions.iter().zip(weights).map(open).collect();
        let promises: Vec<(SessionId, f64)> =
            sessions.iter().zip(&scenario.sessions).map(|(&id, session)| (id, session.rate)).collect();
        if scenario.told {
            dispatcher.promise(&promises);
        }
        Rota { sessions, dispatcher, outstanding: vec![VecDeque::new(); scenario.devices.len()], actions: Vec::new() }
    }
}

/// By session. A query's stages share its weight by what they need.
fn weights(scenario: &Scenario) -> Vec<f64> {
    let mut weights: Vec<f64> = scenario.sessions.iter().map(|session| session.weight).collect();
    for query in 0..scenario.queries.len() {
        let is_stage = |&index: &usize| scenario.sessions[index].stage.is_some_and(|stage| stage.query == query);
        let stages: Vec<usize> = (0..weights.len()).filter(is_stage).collect();
        let need = |&index: &usize| {
            let session = &scenario.sessions[index];
            let slo = Duration::from_nanos(session.slo as u64);
            rota_sched::query::need(&scenario.models[session.model].profile, slo, session.rate)
        };
        let needs: Vec<f64> = stages.iter().map(need).collect();
        stages.iter().zip(rota_sched::query::weights(&needs)).for_each(|(&index, part)| weights[index] *= part);
    }
    weights
}

/// A dispatcher with the scenario's devices and their profiles. The one place where a plan will be handed to it.
fn dispatcher(scenario: &Scenario, requests: usize) -> Dispatcher {
    let mut dispatcher = Dispatcher::new(Config {
        requests_max: requests as u32,
        sessions_max: scenario.sessions.len() as u32,
        devices_max: scenario.devices.len() as u32,
    });
    for device in &scenario.devices {
        let on = |model| scenario.model_on(device.kind, model).expect("devices hold what runs on them");
        // Handing over takes no time here, so nothing is gained by preparing ahead.
        let id = dispatcher.add_device(DeviceConfig { prepare_lead: Duration::ZERO, start_lead: Duration::ZERO });
        for (model, _) in device.holds.iter().enumerate().filter(|(_, holds)| **holds) {
            dispatcher.set_profile(id, ModelId(model as u32), ClassId(0), on(model).profile.clone());
        }
    }
    dispatcher
}

impl Policy for Rota {
    fn arrived(&mut self, request: Request) {
        let arrival = Arrival {
            request: RequestId(request.id),
            session: self.sessions[request.session as usize],
            class: ClassId(0),
            items: 1,
            deadline: Instant(request.deadline as u64),
            priority: Priority::NORMAL,
        };
        self.dispatcher.handle(Event::Arrived(arrival), Instant(request.arrival as u64));
    }

    fn cancelled(&mut self, request: u32, now: Nanos) -> bool {
        self.dispatcher.handle(Event::Cancelled(RequestId(request)), Instant(now as u64))
    }

    fn knows_queries(&self) -> bool {
        true
    }

    fn ended(&mut self, ended: Ended<'_>, now: Nanos) {
        let batch = self.outstanding[ended.device].pop_front().expect("what ends was started");
        let took = Duration::from_nanos(ended.took as u64);
        let event = Event::Finished { device: DeviceId(ended.device as u32), batch, took };
        self.dispatcher.handle(event, Instant(now as u64));
    }

    fn decide(&mut self, now: Nanos, orders: &mut Vec<Order>) {
        self.dispatcher.step(Instant(now as u64), &mut self.actions);
        for action in self.actions.drain(..) {
            match action {
                Action::Prepare { .. } => {}
                Action::Start { device, batch } => {
                    let requests = self.dispatcher.batch(batch).requests.iter().map(|request| request.0).collect();
                    self.outstanding[device.0 as usize].push_back(batch);
                    orders.push(Order::Run(Run {
                        device: device.0 as usize,
                        requests,
                        earliest: 0,
                        latest: Nanos::MAX,
                    }));
                }
                Action::Drop { request, .. } => orders.push(Order::Drop(request.0)),
            }
        }
    }

    fn next_wake(&self) -> Nanos {
        self.dispatcher.next_timeout().map_or(Nanos::MAX, |at| at.0.min(Nanos::MAX as u64) as Nanos)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::table::{Table, scenario};

    #[test]
    fn the_dispatcher_runs_batches_and_drops_what_is_hopeless() {
        let scenario = scenario(&[(10, 5, 8, 60, 100.0)], 1);
        let mut table = Table::new(Rota::new(&scenario, 16), &scenario);
        table.arrive(0, 3, 0);
        assert_eq!(table.decide(0), ["run 0 [0, 1, 2]"]);
        table.arrive(0, 1, 1);
        assert_eq!(table.decide(1), Vec::<String>::new());
        // One alone takes 10 ms and was due at 61: just after 51 it is lost.
        let wake = table.wake().expect("a request waits");
        assert!((51.0..51.1).contains(&wake), "{wake}");
        assert_eq!(table.decide(52), ["drop 3"]);
        table.end(0, 0, &[0, 1, 2], 20, 53);
        assert_eq!(table.decide(53), Vec::<String>::new());
        assert_eq!(table.wake(), None);
    }
}
