//! Random histories against a plain model of what a caller may rely on, checked after every step.

use proptest::prelude::*;
use rota_sched::*;
use std::collections::BTreeMap;
use std::time::Duration;

const DEVICES: u32 = 3;
const SESSIONS: usize = 4;
const MODELS: u32 = 2;
/// Classes of each model that requests name; the last is never served.
const CLASSES: u32 = 3;
const REQUESTS: u32 = 400;

#[derive(Clone, Debug)]
enum Operation {
    Arrive {
        session: usize,
        class: u32,
        items: u32,
        budget: u64,
    },
    Cancel {
        nth: usize,
    },
    /// Lets time pass, microseconds.
    Pass {
        time: u64,
    },
    RemoveSession {
        session: usize,
    },
    AddSession {
        model: u32,
        slo: u64,
    },
    RemoveClass {
        model: u32,
        class: u32,
    },
    SetProfile {
        device: u32,
        model: u32,
        class: u32,
        kind: usize,
    },
}

fn operation() -> impl Strategy<Value = Operation> {
    let arrive = (0..SESSIONS, 0..CLASSES, 1..=7u32, 0..120u64).prop_map(|(session, class, items, budget)| {
        // Mostly one item, mostly of a class that is served.
        let (class, items) = (if items == 7 { class } else { class % 2 }, if items > 4 { items } else { 1 });
        Operation::Arrive { session, class, items, budget: budget * 1000 }
    });
    prop_oneof![
        300 => arrive,
        40 => (0..60usize).prop_map(|nth| Operation::Cancel { nth }),
        100 => (0..30_000u64).prop_map(|time| Operation::Pass { time }),
        2 => (0..SESSIONS).prop_map(|session| Operation::RemoveSession { session }),
        4 => (0..MODELS, 20..200u64).prop_map(|(model, slo)| Operation::AddSession { model, slo }),
        1 => (0..MODELS, 0..2u32).prop_map(|(model, class)| Operation::RemoveClass { model, class }),
        3 => (0..DEVICES, 0..MODELS, 0..2u32, 0..3usize)
            .prop_map(|(device, model, class, kind)| Operation::SetProfile { device, model, class, kind }),
    ]
}

fn profile(kind: usize) -> Profile {
    let micros =
        |points: &[(u32, u64)]| points.iter().map(|&(b, us)| (b, Duration::from_micros(us))).collect::<Vec<_>>();
    let points = match kind {
        0 => micros(&[(1, 5_000), (8, 12_000)]),
        1 => micros(&[(1, 2_000), (2, 9_000), (4, 9_500)]),
        _ => micros(&[(4, 20_000), (6, 21_000)]),
    };
    Profile::new(&points).expect("valid points")
}

#[derive(Clone, Copy, Debug)]
struct Request {
    session: SessionId,
    model: Option<ModelId>,
    class: ClassId,
    items: u32,
    deadline: Instant,
    priority: Priority,
}

#[derive(Clone, Debug)]
struct Outstanding {
    batch: BatchId,
    requests: Vec<RequestId>,
    /// As the profile said when it was prepared.
    latency: Duration,
    started: bool,
}

#[derive(Default, Debug)]
struct Machine {
    lead: (Duration, Duration),
    /// The first executes once it is started.
    outstanding: Vec<Outstanding>,
    /// When the batch that executes should end, and when it will.
    ends: Option<(Instant, Instant)>,
    began: Instant,
}

/// The dispatcher, devices that execute what it says, and where every request is.
struct World {
    dispatcher: Dispatcher,
    now: Instant,
    machines: Vec<Machine>,
    sessions: Vec<(SessionId, ModelId)>,
    /// Requests that wait.
    waiting: BTreeMap<RequestId, Request>,
    /// Requests in batches.
    running: BTreeMap<RequestId, Request>,
    arrived: u32,
    answered: u32,
    /// Requests dropped as hopeless.
    hopeless: Vec<Request>,
    /// Executions take so many percent of ℓ(b), in turn.
    noise: Vec<u64>,
    executions: usize,
}

impl World {
    fn new(leads: &[(u64, u64)], noise: Vec<u64>) -> World {
        let config = Config { requests_max: REQUESTS, sessions_max: SESSIONS as u32, devices_max: DEVICES };
        let mut dispatcher = Dispatcher::new(config);
        let mut machines = Vec::new();
        for &(prepare, start) in leads {
            let lead = (Duration::from_micros(prepare.max(start)), Duration::from_micros(start));
            dispatcher.add_device(DeviceConfig { prepare_lead: lead.0, start_lead: lead.1 });
            machines.push(Machine { lead, ..Machine::default() });
        }
        World {
            dispatcher,
            now: Instant(0),
            machines,
            sessions: Vec::new(),
            waiting: BTreeMap::new(),
            running: BTreeMap::new(),
            arrived: 0,
            answered: 0,
            hopeless: Vec::new(),
            noise,
            executions: 0,
        }
    }

    fn apply(&mut self, operation: &Operation) {
        match *operation {
            Operation::Arrive { session, class, items, budget } => {
                let free = (0..REQUESTS).map(RequestId).find(|id| !self.knows(*id));
                let Some(request) = free else { return };
                let known = self.sessions.get(session);
                // A session that is not open: the caller may not have noticed yet.
                let session = known.map_or(SessionId(SESSIONS as u32), |&(id, _)| id);
                let deadline = self.now + Duration::from_micros(budget);
                // Most are of normal priority.
                let priority = Priority::new((request.0 % 7) as u8).unwrap_or_default();
                self.arrive(request, session, ClassId(class), items, deadline, priority);
            }
            Operation::Cancel { nth } => {
                let all = self.waiting.keys().chain(self.running.keys());
                let request = all.copied().nth(nth).unwrap_or(RequestId(nth as u32));
                let waited = self.dispatcher.handle(Event::Cancelled(request), self.now);
                assert_eq!(waited, self.waiting.remove(&request).is_some(), "cancelling {request:?}");
                self.answered += u32::from(waited);
            }
            Operation::Pass { time } => self.pass(self.now + Duration::from_micros(time)),
            Operation::RemoveSession { session } => {
                if session < self.sessions.len() {
                    let (id, _) = self.sessions.swap_remove(session);
                    self.dispatcher.remove_session(id);
                    self.waiting.values_mut().filter(|r| r.session == id).for_each(|r| r.model = None);
                }
            }
            Operation::AddSession { model, slo } => {
                let config = SessionConfig { model: ModelId(model), slo: Duration::from_millis(slo), weight: 1.0 };
                let id = self.dispatcher.add_session(config);
                assert_eq!(id.is_some(), self.sessions.len() < SESSIONS);
                self.sessions.extend(id.map(|id| (id, ModelId(model))));
            }
            Operation::RemoveClass { model, class } => {
                let (model, class) = (ModelId(model), ClassId(class));
                self.dispatcher.remove_class(model, class);
                self.waiting
                    .values_mut()
                    .filter(|r| r.model == Some(model) && r.class == class)
                    .for_each(|r| r.model = None);
            }
            Operation::SetProfile { device, model, class, kind } => {
                let device = DeviceId(device % self.machines.len() as u32);
                self.dispatcher.set_profile(device, ModelId(model), ClassId(class), profile(kind));
            }
        }
        self.step();
    }

    fn knows(&self, request: RequestId) -> bool {
        self.waiting.contains_key(&request) || self.running.contains_key(&request)
    }

    fn arrive(
        &mut self,
        request: RequestId,
        session: SessionId,
        class: ClassId,
        items: u32,
        deadline: Instant,
        priority: Priority,
    ) {
        let model = self.sessions.iter().find(|&&(id, _)| id == session).map(|&(_, model)| model);
        let model = model.filter(|&model| self.profiles(model, class).next().is_some());
        let arrival = Arrival { request, session, class, items, deadline, priority };
        assert!(!self.dispatcher.handle(Event::Arrived(arrival), self.now));
        self.waiting.insert(request, Request { session, model, class, items, deadline, priority });
        self.arrived += 1;
    }

    /// Devices that serve the class, with their profiles.
    fn profiles(&self, model: ModelId, class: ClassId) -> impl Iterator<Item = (usize, &Profile)> {
        (0..self.machines.len()).filter_map(move |device| {
            let profile = self.dispatcher.profile(DeviceId(device as u32), model, class)?;
            Some((device, profile))
        })
    }

    fn step(&mut self) {
        let mut actions = Vec::new();
        self.dispatcher.step(self.now, &mut actions);
        for action in actions {
            match action {
                Action::Prepare { device, batch } => self.prepare(device.0 as usize, batch),
                Action::Start { device, batch } => self.start(device.0 as usize, batch),
                Action::Drop { request, reason } => {
                    let dropped = self.waiting.remove(&request).expect("only what waits is dropped");
                    assert_eq!(reason == DropReason::Hopeless, dropped.model.is_some(), "{dropped:?}");
                    self.hopeless.extend(dropped.model.is_some().then_some(dropped));
                    self.answered += 1;
                }
            }
        }
        self.check();
    }

    fn prepare(&mut self, device: usize, id: BatchId) {
        let others = self.machines.iter().flat_map(|machine| &machine.outstanding);
        assert!(others.into_iter().all(|other| other.batch != id), "{id:?} is outstanding");
        let batch = self.dispatcher.batch(id).clone();
        let requests: Vec<Request> =
            batch.requests.iter().map(|id| self.waiting.remove(id).expect("only what waits is batched")).collect();
        let first = requests[0];
        let model = first.model.expect("of a class that is served");
        let profile =
            self.dispatcher.profile(DeviceId(device as u32), model, first.class).expect("served by the device");
        let latency = profile.latency(batch.items).expect("no more items than the profile holds");
        let machine = &mut self.machines[device];
        let start = match machine.ends {
            None => self.now,
            Some((ends, _)) => {
                assert!(self.now + machine.lead.0 >= ends, "prepared too early");
                assert!(self.now <= ends, "prepared for a device that overruns");
                ends
            }
        };
        assert_eq!(batch.items, requests.iter().map(|request| request.items).sum::<u32>());
        for request in &requests {
            assert_eq!((request.session, request.class), (first.session, first.class), "one session and class a batch");
            assert_eq!(request.priority, first.priority, "one priority a batch");
            assert!(start + latency <= request.deadline, "{request:?} would be late");
        }
        machine.outstanding.push(Outstanding { batch: id, requests: batch.requests.clone(), latency, started: false });
        assert!(machine.outstanding.len() <= 2, "more than one batch behind the one that executes");
        self.running.extend(batch.requests.into_iter().zip(requests));
    }

    fn start(&mut self, device: usize, id: BatchId) {
        let machine = &mut self.machines[device];
        let next = machine.outstanding.iter_mut().find(|batch| !batch.started).expect("a batch is prepared");
        assert_eq!(next.batch, id, "started in the order of preparation");
        next.started = true;
        if let Some((ends, _)) = machine.ends {
            assert!(!machine.lead.1.is_zero() && self.now + machine.lead.1 >= ends, "started too early");
            assert!(self.now <= ends, "started on a device that overruns");
        } else {
            self.execute(device);
        }
    }

    /// The device begins its first outstanding batch.
    fn execute(&mut self, device: usize) {
        let percent = self.noise[self.executions % self.noise.len()];
        self.executions += 1;
        let machine = &mut self.machines[device];
        let latency = machine.outstanding[0].latency;
        machine.began = self.now;
        machine.ends = Some((self.now + latency, self.now + latency * percent as u32 / 100));
    }

    fn finish(&mut self, device: usize) {
        let machine = &mut self.machines[device];
        let done = machine.outstanding.remove(0);
        machine.ends = None;
        let behind = machine.outstanding.first().is_some_and(|batch| batch.started);
        let event =
            Event::Finished { device: DeviceId(device as u32), batch: done.batch, took: self.now.since(machine.began) };
        for request in &done.requests {
            self.running.remove(request).expect("a batch ends once");
            self.answered += 1;
        }
        assert!(!self.dispatcher.handle(event, self.now));
        if behind {
            self.execute(device);
        }
    }

    /// The next end of an execution or timeout.
    fn next(&self) -> Option<(Instant, Option<usize>)> {
        let ends = self.machines.iter().enumerate();
        let ends = ends.filter_map(|(device, machine)| machine.ends.map(|(_, ends)| (ends, Some(device))));
        ends.chain(self.dispatcher.next_timeout().map(|at| (at, None)))
            .min_by_key(|&(at, device)| (at, device.is_none()))
    }

    fn pass(&mut self, until: Instant) {
        while let Some((at, finished)) = self.next().filter(|&(at, _)| at <= until) {
            self.now = self.now.max(at);
            if let Some(device) = finished {
                self.finish(device);
            }
            self.step();
        }
        self.now = until;
    }

    /// What holds after every step.
    fn check(&mut self) {
        if let Some(timeout) = self.dispatcher.next_timeout() {
            assert!(timeout > self.now, "a timeout at {timeout:?} is due after the step at {:?}", self.now);
        }
        let mut again = Vec::new();
        self.dispatcher.step(self.now, &mut again);
        assert_eq!(again, [], "a second step found something to do");
        assert_eq!(self.waiting.len() + self.running.len() + self.answered as usize, self.arrived as usize);
        for (id, request) in &self.waiting {
            let model = request.model.expect("what is not served is dropped by the next step");
            let on_time = |profile: &Profile| {
                let latency = profile.latency(request.items);
                latency.is_some_and(|latency| self.now + latency <= request.deadline)
            };
            let mut hope = false;
            for (device, _) in self.profiles(model, request.class).filter(|(_, profile)| on_time(profile)) {
                // It may wait for others, but not past its last moment.
                let idles = self.machines[device].outstanding.is_empty();
                let again = self.dispatcher.next_timeout().is_some_and(|at| at <= request.deadline);
                assert!(!idles || again, "device {device} idles, and {id:?} is forgotten");
                hope = true;
            }
            assert!(hope, "{id:?} is hopeless and still waits");
        }
        for &(session, _) in &self.sessions {
            let waiting = self.waiting.values().filter(|request| request.session == session).count();
            assert_eq!(self.dispatcher.waiting(session) as usize, waiting);
            let items: u32 = self.waiting.values().filter(|r| r.session == session).map(|r| r.items).sum();
            assert_eq!(self.dispatcher.rates(session, self.now).queued, items);
        }
    }

    /// Lets everything end: each end and each timeout must bring it nearer.
    fn drain(&mut self) {
        // A request can cause a timeout of its own (its last moment, one more for a cancelled neighbour's) and a batch of
        // its own (to prepare, to start, to end).
        let bound = 5 * self.arrived as usize + 10;
        let mut steps = 0;
        while let Some((at, _)) = self.next() {
            self.pass(at);
            steps += 1;
            assert!(steps <= bound, "no end after {steps} steps");
        }
        assert_eq!((self.waiting.len(), self.running.len()), (0, 0), "nothing is due, and requests are left");
        assert_eq!(self.answered, self.arrived);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn every_request_has_one_fate_and_every_promise_holds(
        leads in prop::collection::vec((0..6_000u64, prop_oneof![Just(0), 0..3_000u64]), 1..=DEVICES as usize),
        noise in prop::collection::vec(prop_oneof![3 => Just(100u64), 2 => 60..140u64, 1 => 300..500u64], 1..20),
        kinds in prop::collection::vec(0..3usize, 12),
        operations in prop::collection::vec(operation(), 1..300),
    ) {
        let mut world = World::new(&leads, noise);
        for (place, kind) in kinds.into_iter().enumerate() {
            let (device, model, class) = (place as u32 % DEVICES, place as u32 / 6, place as u32 / 3 % 2);
            // Not every device serves everything.
            if (device + model + class) % 4 < 3 && (device as usize) < leads.len() {
                world.apply(&Operation::SetProfile { device, model, class, kind });
            }
        }
        for model in [0, 1, 0] {
            world.apply(&Operation::AddSession { model, slo: 50 + 30 * u64::from(model) });
        }
        for operation in &operations {
            world.apply(operation);
        }
        world.drain();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 30, ..ProptestConfig::default() })]

    /// A session whose requests are rare and can wait three turns is served, whatever flood it shares a device with, as soon as
    /// their rates are known.
    #[test]
    fn a_flood_does_not_starve_a_rare_session(
        lead in (0..4_000u64, 0..4_000u64),
        flood_slo in 25..100u64,
        flood_items in 1..6u32,
        rare_budget in 50..300u64,
        rare_kind in 0..2usize,
    ) {
        let mut world = World::new(&[lead], vec![100]);
        let (flood_class, rare_class) = (ClassId(0), ClassId(0));
        world.dispatcher.set_profile(DeviceId(0), ModelId(0), flood_class, profile(0));
        world.dispatcher.set_profile(DeviceId(0), ModelId(1), rare_class, profile(rare_kind));
        world.apply(&Operation::AddSession { model: 0, slo: flood_slo });
        world.apply(&Operation::AddSession { model: 1, slo: rare_budget });
        let (flood, rare) = (world.sessions[0].0, world.sessions[1].0);
        let rare_request = RequestId(0);
        let mut rare_arrivals = 0;
        for millis in 0..1500u64 {
            world.pass(Instant(millis * 1_000_000));
            let room: Vec<_> = (1..REQUESTS).map(RequestId).filter(|id| !world.knows(*id)).take(3).collect();
            for request in room {
                let deadline = world.now + Duration::from_millis(flood_slo);
                world.arrive(request, flood, flood_class, flood_items, deadline, Priority::NORMAL);
            }
            if !world.knows(rare_request) {
                let deadline = world.now + Duration::from_millis(rare_budget);
                world.arrive(rare_request, rare, rare_class, 1, deadline, Priority::NORMAL);
                rare_arrivals += 1;
            }
            world.step();
            if millis < 400 {
                world.hopeless.clear();
            }
            prop_assert!(world.hopeless.iter().all(|dropped| dropped.session == flood), "dropped at {millis} ms");
        }
        prop_assert!(rare_arrivals > 1 && !world.hopeless.is_empty(), "no flood, or nothing rare");
        world.drain();
    }
}
