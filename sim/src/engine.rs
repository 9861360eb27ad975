//! The simulation's engine: plays requests and devices to a policy, moment by moment.

mod calls;

use crate::Nanos;
use crate::events::EventLog;
use crate::load::{Load, Request};
use crate::random::Random;
use crate::record::{Recorder, Report};
use crate::scenario::Scenario;
pub use rota_sched::query::RESERVE;
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
    /// Whoever made the request has no use for it any more. True: it waited, and is forgotten. A policy that knows of no
    /// queries goes on with it.
    fn cancelled(&mut self, _request: u32, _now: Nanos) -> bool {
        false
    }
    /// Whether calls of queries are given deadlines that count from their query's start; else each has its stage's share from
    /// when it is made, as any request of a session.
    fn knows_queries(&self) -> bool {
        false
    }
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
    /// Of the shares of the stages behind it, the part that a call of a query leaves them: its deadline is so much before
    /// its query's, where a policy knows queries. With 1 each stage gets its share and what those before it left.
    pub reserve: f64,
}

impl Default for World {
    fn default() -> World {
        World { noise: 0.0, dispatch: 0, cold: false, told: true, epoch: 0, seed: 0, reserve: RESERVE }
    }
}

/// The engine's state. One heap of moments at which a device begins or ends a batch; arrivals lie sorted.
struct Engine<'a, 'log> {
    scenario: &'a Scenario,
    world: World,
    load: &'a Load,
    /// The calls of the load that others make, as far as they were made.
    called: Vec<Request>,
    states: Vec<State>,
    /// By instance of a query.
    instances: Vec<Instance>,
    /// Calls that were answered, and instances that were given up, at this moment: what follows is still to be done.
    ended: Vec<u32>,
    given_up: Vec<usize>,
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

#[derive(Clone, Copy)]
struct Instance {
    /// Calls that are not answered, made or not.
    open: u32,
    /// It cannot be in time.
    given_up: bool,
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
    let requests = &load.requests[..load.arriving];
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
        load,
        called: load.requests[load.arriving..].to_vec(),
        states: vec![State::Coming; load.requests.len()],
        instances: load.calls.instances.iter().map(|its| Instance { open: its.count(), given_up: false }).collect(),
        ended: Vec::new(),
        given_up: Vec::new(),
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
            engine.arrive(request.id, now, policy);
        }
        engine.follow(now, policy);
        policy.decide(now, &mut orders);
        for order in orders.drain(..) {
            engine.carry_out(order, now);
        }
        engine.follow(now, policy);
    }
}

impl Engine<'_, '_> {
    fn due(&mut self, moment: Moment, policy: &mut dyn Policy) {
        let device = &mut self.devices[moment.device];
        if device.generation != moment.generation {
            return;
        }
        if let Some(Executing { run, began, refused }) = device.executing.take() {
            let session = self.session(run.requests[0]);
            let took = moment.at - began;
            for &id in &run.requests {
                self.states[id as usize] = State::Answered;
                if refused {
                    self.dropped(id, moment.at);
                } else {
                    self.answered(id, moment.at);
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
        let Some(first) = self.devices[index].waiting.front().map(|run| run.requests[0]) else { return };
        let session = self.session(first);
        let device = &mut self.devices[index];
        let Some(run) = device.waiting.front().filter(|_| device.executing.is_none()) else { return };
        device.generation += 1;
        let may = run.earliest.max(device.ready_at);
        let at = if may > now {
            may
        } else {
            let run = device.waiting.pop_front().expect("looked at above");
            let refused = now > run.latest;
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
                self.dropped(id, now);
            }
            Order::Run(mut run) => {
                let session = self.session(run.requests[0]);
                assert!(self.scenario.serves(run.device, session), "the device does not hold the model");
                for &id in &run.requests {
                    assert_eq!(self.session(id), session, "a batch of several sessions");
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
                    let session = self.session(run.requests[0]);
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
