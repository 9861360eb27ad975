//! The simulation's engine: plays requests and devices to a policy, moment by moment.

use crate::Nanos;
use crate::events::EventLog;
use crate::load::{Load, Request};
use crate::random::Random;
use crate::record::{Recorder, Report};
use crate::scenario::Scenario;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

/// A batch that has ended, or that the device refused because its turn came after [`Run::latest`].
#[derive(Clone, Copy, Debug)]
pub struct Ended<'a> {
    pub device: usize,
    pub session: usize,
    /// Whatever they were, they are answered.
    pub requests: &'a [u32],
    /// How long it executed.
    pub took: Nanos,
    pub refused: bool,
}

/// A batch for a device: requests of one session, executed in the order of the calls.
#[derive(Clone, Debug)]
pub struct Run {
    pub device: usize,
    pub requests: Vec<u32>,
    /// Not before.
    pub earliest: Nanos,
    /// If it cannot start by then the device refuses it and its requests are dropped.
    pub latest: Nanos,
}

/// What a policy wants done, in this order.
#[derive(Clone, Debug)]
pub enum Order {
    Run(Run),
    /// Answer a request that waits: it never runs.
    Drop(u32),
    /// Stop the batch that the device executes, or is about to; its work is lost and its requests wait again.
    Preempt {
        device: usize,
    },
}

/// Decides which requests run where and when.
///
/// Contract: everything that happened at a moment is told first, then `decide` is called once, and again at
/// [`Policy::next_wake`] or after whatever happens next. Each request that arrived is the policy's to run or to drop, once.
pub trait Policy {
    fn arrived(&mut self, request: Request);
    fn ended(&mut self, ended: Ended<'_>, now: Nanos);
    fn decide(&mut self, now: Nanos, orders: &mut Vec<Order>);
    /// When `decide` is next due if nothing happens before; [`Nanos::MAX`]: never.
    fn next_wake(&self) -> Nanos;
}

/// What of the world is not as the policy expects. The default: nothing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct World {
    /// Standard deviation of executions' durations, as a share of the profile's.
    pub noise: f64,
    /// Between an order to run a batch and the moment when an idle device can begin it.
    pub dispatch: Nanos,
    /// Devices load their models first, one after the other, when the run begins; else they hold them already.
    pub cold: bool,
    /// See [`Scenario::told`].
    pub told: bool,
    /// See [`Scenario::epoch`].
    pub epoch: Nanos,
    pub seed: u64,
}

impl Default for World {
    fn default() -> World {
        World { noise: 0.0, dispatch: 0, cold: false, told: true, epoch: 0, seed: 0 }
    }
}

/// The engine's state. One heap of moments at which a device begins or ends a batch; arrivals lie sorted.
struct Engine<'a, 'log> {
    scenario: &'a Scenario,
    world: World,
    requests: &'a [Request],
    states: Vec<State>,
    devices: Vec<Device>,
    moments: BinaryHeap<Reverse<Moment>>,
    noise: Random,
    record: Recorder,
    log: EventLog<'log>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Coming,
    Waiting,
    InBatch,
    Answered,
}

struct Device {
    /// When its models are loaded.
    ready_at: Nanos,
    waiting: VecDeque<Run>,
    executing: Option<Executing>,
    /// Counts batches begun and preempted: moments of an earlier one are void.
    generation: u32,
}

struct Executing {
    run: Run,
    began: Nanos,
    refused: bool,
}

/// When something is due at a device: its batch ends, or one whose time had not come may begin.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Moment {
    at: Nanos,
    device: usize,
    generation: u32,
}

/// Plays the requests of `load` to `policy` until every one is answered, or nothing more can
/// happen. With `bad_share_max` it stops, its report incomplete, as soon as some session is sure to have more bad requests.
///
/// # Panics
/// When the policy breaks its contract: that is a mistake in the policy.
pub fn run(
    scenario: &Scenario,
    load: &Load,
    policy: &mut dyn Policy,
    world: World,
    bad_share_max: Option<f64>,
    log: EventLog<'_>,
) -> Report {
    let requests = &load.requests[..];
    let ready_at = |device: &crate::scenario::Device| -> Nanos {
        let held = (0..scenario.models.len()).filter(|&model| device.holds[model]);
        let loads = held.filter_map(|model| scenario.model_on(device.kind, model)).map(|model| model.load);
        if world.cold { loads.sum() } else { 0 }
    };
    let device =
        |device| Device { ready_at: ready_at(device), waiting: VecDeque::new(), executing: None, generation: 0 };
    let mut engine = Engine {
        scenario,
        world,
        requests,
        states: vec![State::Coming; requests.len()],
        devices: scenario.devices.iter().map(device).collect(),
        moments: BinaryHeap::new(),
        noise: Random::new(world.seed, NOISE_STREAM),
        record: Recorder::new(scenario, load, bad_share_max),
        log,
    };
    let (mut arrived, mut orders) = (0, Vec::new());
    let (mut last, mut repeated) = (-1, 0);
    loop {
        let arrival = requests.get(arrived).map_or(Nanos::MAX, |request| request.arrival);
        let moment = engine.moments.peek().map_or(Nanos::MAX, |Reverse(moment)| moment.at);
        // A policy that asks for a moment that has passed is due at once.
        let now = arrival.min(moment).min(policy.next_wake().max(last));
        if now == Nanos::MAX || engine.record.is_decided() {
            return engine.record.report();
        }
        repeated = if now == last { repeated + 1 } else { 0 };
        assert!(repeated < REPEATS_MAX, "the policy goes on deciding at {now} ns without an effect");
        last = now;
        while let Some(&Reverse(moment)) = engine.moments.peek().filter(|Reverse(moment)| moment.at == now) {
            engine.moments.pop();
            engine.due(moment, policy);
        }
        while let Some(request) = requests.get(arrived).filter(|request| request.arrival == now) {
            arrived += 1;
            engine.states[request.id as usize] = State::Waiting;
            engine.log.arrival(request);
            policy.arrived(*request);
        }
        policy.decide(now, &mut orders);
        for order in orders.drain(..) {
            engine.carry_out(order, now);
        }
    }
}

impl Engine<'_, '_> {
    fn due(&mut self, moment: Moment, policy: &mut dyn Policy) {
        let device = &mut self.devices[moment.device];
        if device.generation != moment.generation {
            return;
        }
        if let Some(Executing { run, began, refused }) = device.executing.take() {
            let session = self.requests[run.requests[0] as usize].session as usize;
            let took = moment.at - began;
            for &id in &run.requests {
                self.states[id as usize] = State::Answered;
                if refused {
                    self.record.dropped(&self.requests[id as usize]);
                    self.log.dropped(&self.requests[id as usize], moment.at);
                } else {
                    self.record.answered(&self.requests[id as usize], moment.at);
                }
            }
            if !refused {
                self.record.executed(moment.device, session, took);
                self.log.batch("end", moment.at, moment.device, session, &run.requests);
            }
            policy.ended(Ended { device: moment.device, session, requests: &run.requests, took, refused }, moment.at);
        }
        self.begin(moment.device, moment.at);
    }

    /// Begins the next batch of a device that executes none, or plans to when its time comes.
    fn begin(&mut self, index: usize, now: Nanos) {
        let device = &mut self.devices[index];
        let Some(run) = device.waiting.front().filter(|_| device.executing.is_none()) else { return };
        device.generation += 1;
        let may = run.earliest.max(device.ready_at);
        let at = if may > now {
            may
        } else {
            let run = device.waiting.pop_front().expect("looked at above");
            let refused = now > run.latest;
            let session = self.requests[run.requests[0] as usize].session as usize;
            let mut took = 0;
            if !refused {
                took = self.scenario.latencies_on(index, session).at(run.requests.len());
                if self.world.noise > 0.0 {
                    let factor = 1.0 + self.world.noise * self.noise.normal();
                    took = (took as f64 * factor.max(NOISE_FACTOR_MIN)) as Nanos;
                }
                self.log.batch("start", now, index, session, &run.requests);
            }
            device.executing = Some(Executing { run, began: now, refused });
            now + took
        };
        self.moments.push(Reverse(Moment { at, device: index, generation: device.generation }));
    }

    fn carry_out(&mut self, order: Order, now: Nanos) {
        match order {
            Order::Drop(id) => {
                self.change(id, State::Waiting, State::Answered);
                self.record.dropped(&self.requests[id as usize]);
                self.log.dropped(&self.requests[id as usize], now);
            }
            Order::Run(mut run) => {
                let session = self.requests[run.requests[0] as usize].session;
                assert!(self.scenario.serves(run.device, session as usize), "the device does not hold the model");
                for &id in &run.requests {
                    assert_eq!(self.requests[id as usize].session, session, "a batch of several sessions");
                    self.change(id, State::Waiting, State::InBatch);
                }
                run.earliest = run.earliest.max(now + self.world.dispatch);
                let device = run.device;
                self.devices[device].waiting.push_back(run);
                // An idle device may have planned to begin a batch before this one: that plan stands.
                if self.devices[device].waiting.len() == 1 {
                    self.begin(device, now);
                }
            }
            Order::Preempt { device: index } => {
                let device = &mut self.devices[index];
                device.generation += 1;
                let executing = device.executing.take();
                let (run, began) = match executing {
                    Some(Executing { run, began, .. }) => (run, Some(began)),
                    None => {
                        (device.waiting.pop_front().expect("only a device that was given a batch is preempted"), None)
                    }
                };
                for &id in &run.requests {
                    self.change(id, State::InBatch, State::Waiting);
                }
                if let Some(began) = began {
                    let session = self.requests[run.requests[0] as usize].session as usize;
                    self.record.wasted(index, now - began);
                    self.log.batch("preempt", now, index, session, &run.requests);
                }
                self.begin(index, now);
            }
        }
    }

    fn change(&mut self, id: u32, from: State, to: State) {
        let state = &mut self.states[id as usize];
        assert_eq!(*state, from, "request {id}");
        *state = to;
    }
}

/// The stream of the seed from which noise is drawn; sessions' arrivals take those from 0.
const NOISE_STREAM: u64 = u64::MAX;
/// However noisy, an execution takes at least this share of its time.
const NOISE_FACTOR_MIN: f64 = 0.1;
/// Decisions at one moment: each must change something, and there are never so many things to change.
const REPEATS_MAX: u32 = 100_000;
