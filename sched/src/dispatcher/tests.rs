//! What the dispatcher as a whole does: scenes by hand.

use super::*;

pub fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

pub fn at(millis: u64) -> Instant {
    Instant(millis * 1_000_000)
}

/// ℓ(b) = alpha·b + beta, milliseconds.
pub fn linear(alpha: u64, beta: u64, max_batch: u32) -> Profile {
    let largest = (max_batch, ms(alpha * u64::from(max_batch) + beta));
    Profile::new(&[(1, ms(alpha + beta)), largest][usize::from(max_batch == 1)..]).expect("valid points")
}

const MODEL: ModelId = ModelId(3);
const CLASS: ClassId = ClassId(1);

/// A dispatcher, and the log of what it asked for since last read.
struct Scene {
    dispatcher: Dispatcher,
    next: u32,
    actions: Vec<Action>,
}

impl Scene {
    fn new(devices: &[(u64, u64)]) -> Scene {
        let config = Config { requests_max: 1000, sessions_max: 4, devices_max: 4 };
        let mut dispatcher = Dispatcher::new(config);
        for &(prepare, start) in devices {
            dispatcher.add_device(DeviceConfig { prepare_lead: ms(prepare), start_lead: ms(start) });
        }
        Scene { dispatcher, next: 0, actions: Vec::new() }
    }

    /// A model of its own, with this profile on every device, and a session on it.
    fn session(&mut self, model: u32, profile: Profile, slo: u64) -> SessionId {
        for device in 0..self.dispatcher.devices.len() {
            self.dispatcher.set_profile(DeviceId(device as u32), ModelId(model), CLASS, profile.clone());
        }
        self.dispatcher
            .add_session(SessionConfig { model: ModelId(model), slo: ms(slo), weight: 1.0 })
            .expect("room for a session")
    }

    fn arrive(&mut self, session: SessionId, items: u32, deadline: u64, now: u64) -> RequestId {
        let request = RequestId(self.next);
        self.next += 1;
        let arrival =
            Arrival { request, session, class: CLASS, items, deadline: at(deadline), priority: Priority::NORMAL };
        assert!(!self.dispatcher.handle(Event::Arrived(arrival), at(now)));
        request
    }

    fn finish(&mut self, device: u32, batch: u32, took: u64, now: u64) {
        let (device, batch) = (DeviceId(device), BatchId(batch));
        self.dispatcher.handle(Event::Finished { device, batch, took: ms(took) }, at(now));
    }

    /// Steps and says what was asked, in short words.
    fn step(&mut self, now: u64) -> Vec<String> {
        self.actions.clear();
        self.dispatcher.step(at(now), &mut self.actions);
        let words = |action: &Action| match *action {
            Action::Prepare { device, batch } => {
                let requests: Vec<u32> =
                    self.dispatcher.batch(batch).requests.iter().map(|request| request.0).collect();
                format!("prepare {}: batch {} = {requests:?}", device.0, batch.0)
            }
            Action::Start { device, batch } => format!("start {}: batch {}", device.0, batch.0),
            Action::Drop { request, reason } => format!("drop {}: {reason:?}", request.0),
        };
        self.actions.iter().map(words).collect()
    }

    fn timeout(&self) -> Option<u64> {
        self.dispatcher.next_timeout().map(|at| at.0)
    }
}

const NOTHING: [&str; 0] = [];

#[test]
fn an_idle_device_prepares_and_starts_at_once() {
    let mut scene = Scene::new(&[(5, 0)]);
    let session = scene.session(0, linear(1, 9, 8), 100);
    scene.arrive(session, 1, 100, 0);
    scene.arrive(session, 2, 90, 0);
    assert_eq!(scene.timeout(), Some(0), "something was recorded: a step is due");
    assert_eq!(scene.step(0), ["prepare 0: batch 0 = [1, 0]", "start 0: batch 0"]);
    assert_eq!((scene.dispatcher.waiting(session), scene.timeout()), (0, None));
}

#[test]
fn the_next_batch_is_prepared_and_started_a_lead_before_the_device_is_free() {
    let mut scene = Scene::new(&[(5, 2)]);
    let session = scene.session(0, linear(1, 9, 8), 100);
    scene.arrive(session, 1, 100, 0);
    scene.step(0);
    scene.arrive(session, 1, 100, 1);
    assert_eq!(scene.step(1), NOTHING);
    assert_eq!(scene.timeout(), Some(5_000_000), "10 ms less the prepare lead");
    assert_eq!(scene.step(5), ["prepare 0: batch 1 = [1]"]);
    assert_eq!(scene.timeout(), Some(8_000_000));
    assert_eq!(scene.step(8), ["start 0: batch 1"]);
    scene.arrive(session, 1, 100, 9);
    assert_eq!(scene.step(9), NOTHING, "one executes and one is behind: no third");
    scene.finish(0, 0, 10, 10);
    assert_eq!(scene.step(10), NOTHING, "batch 1 executes until 20");
    assert_eq!(scene.timeout(), Some(15_000_000));
    assert_eq!(scene.step(15), ["prepare 0: batch 0 = [2]"]);
}

#[test]
fn without_a_start_lead_the_start_waits_for_the_end() {
    let mut scene = Scene::new(&[(5, 0)]);
    let session = scene.session(0, linear(1, 9, 8), 100);
    scene.arrive(session, 1, 100, 0);
    scene.step(0);
    scene.arrive(session, 1, 100, 6);
    assert_eq!(scene.step(6), ["prepare 0: batch 1 = [1]"]);
    assert_eq!(scene.step(10), NOTHING);
    scene.finish(0, 0, 9, 11);
    assert_eq!(scene.step(11), ["start 0: batch 1"]);
}

#[test]
fn nothing_is_committed_to_a_device_that_overruns() {
    let mut scene = Scene::new(&[(5, 2)]);
    let session = scene.session(0, linear(1, 9, 8), 100);
    scene.arrive(session, 1, 100, 0);
    scene.step(0);
    scene.arrive(session, 1, 100, 11);
    assert_eq!(scene.step(11), NOTHING);
    assert_eq!(scene.timeout(), Some(90_000_001), "only the request's last moment is left to wait for");
    scene.finish(0, 0, 12, 12);
    assert_eq!(scene.step(12), ["prepare 0: batch 0 = [1]", "start 0: batch 0"]);
}

#[test]
fn hopeless_requests_are_dropped_by_timeout_wherever_they_wait() {
    let mut scene = Scene::new(&[(0, 0)]);
    let session = scene.session(0, linear(10, 10, 8), 100);
    scene.arrive(session, 1, 200, 0);
    scene.step(0);
    scene.arrive(session, 1, 50, 1);
    scene.arrive(session, 4, 60, 1);
    scene.arrive(session, 1, 70, 1);
    assert_eq!(scene.step(1), NOTHING);
    assert_eq!(scene.timeout(), Some(10_000_001), "four items take 50 ms: the second is the first to become hopeless");
    scene.dispatcher.step(Instant(10_000_001), &mut scene.actions);
    assert_eq!(scene.actions, [Action::Drop { request: RequestId(2), reason: DropReason::Hopeless }]);
    assert_eq!(scene.timeout(), Some(30_000_001));
    assert_eq!(scene.step(51), ["drop 1: Hopeless", "drop 3: Hopeless"]);
    assert_eq!(scene.timeout(), None);
}

#[test]
fn a_request_that_no_device_takes_is_dropped_at_the_next_step() {
    let mut scene = Scene::new(&[(0, 0)]);
    let session = scene.session(0, linear(1, 9, 8), 100);
    scene.arrive(session, 1, 100, 0);
    scene.step(0);
    scene.arrive(session, 1, 100, 0);
    scene.arrive(session, 9, 500, 0);
    scene.arrive(session, 1, 9, 0);
    assert_eq!(scene.step(0), ["drop 3: Hopeless", "drop 2: Hopeless"]);
    assert_eq!(scene.timeout(), Some(90_000_001));
    let stranger = SessionId(3);
    scene.arrive(stranger, 1, 100, 1);
    assert_eq!(scene.step(1), ["drop 4: Removed"]);
}

#[test]
fn removal_drops_what_waits_and_leaves_what_runs() {
    let mut scene = Scene::new(&[(5, 0)]);
    let session = scene.session(MODEL.0, linear(1, 9, 8), 100);
    scene.arrive(session, 1, 100, 0);
    scene.step(0);
    let waits = scene.arrive(session, 1, 100, 1);
    let cancelled = scene.arrive(session, 1, 100, 1);
    scene.dispatcher.remove_session(session);
    assert!(scene.dispatcher.handle(Event::Cancelled(cancelled), at(1)));
    assert!(!scene.dispatcher.handle(Event::Cancelled(cancelled), at(1)), "it has had its fate");
    assert!(!scene.dispatcher.handle(Event::Cancelled(RequestId(0)), at(1)), "it is in a batch");
    assert_eq!(scene.step(1), [format!("drop {}: Removed", waits.0)]);
    assert_eq!(scene.dispatcher.add_session(SessionConfig { model: MODEL, slo: ms(100), weight: 1.0 }), Some(session));

    let orphan = scene.arrive(session, 1, 100, 2);
    scene.dispatcher.remove_class(MODEL, CLASS);
    assert_eq!(scene.dispatcher.profile(DeviceId(0), MODEL, CLASS), None);
    let late = scene.arrive(session, 1, 100, 2);
    assert_eq!(scene.step(2), [format!("drop {}: Removed", orphan.0), format!("drop {}: Removed", late.0)]);
    scene.finish(0, 0, 10, 10);
    assert_eq!(scene.step(10), NOTHING);

    scene.dispatcher.set_profile(DeviceId(0), MODEL, CLASS, linear(1, 9, 8));
    let again = scene.arrive(session, 1, 100, 11);
    assert_eq!(scene.step(11)[0], format!("prepare 0: batch 0 = [{}]", again.0));
}

#[test]
fn of_two_queues_the_one_with_the_earlier_latest_start_goes_first() {
    let mut scene = Scene::new(&[(0, 0)]);
    let quick = scene.session(0, linear(1, 1, 8), 100);
    let slow = scene.session(1, linear(1, 49, 8), 200);
    scene.arrive(quick, 1, 100, 0);
    scene.arrive(slow, 1, 120, 0);
    assert_eq!(scene.step(0), ["prepare 0: batch 0 = [1]", "start 0: batch 0"], "70 is before 98");
}

#[test]
fn who_cannot_wait_goes_by_the_time_since_the_last_turn() {
    let mut scene = Scene::new(&[(0, 0)]);
    let flood = scene.session(0, linear(1, 19, 10), 50);
    let rare = scene.session(1, linear(1, 9, 8), 400);
    scene.arrive(rare, 1, 400, 0);
    (0..10).for_each(|_| _ = scene.arrive(flood, 1, 50, 0));
    let mut now = 0;
    let mut batches = Vec::new();
    // The flood keeps ten requests at their last moment before the device at every turn.
    while scene.dispatcher.waiting(rare) > 0 {
        let actions = scene.step(now);
        let Some(&Action::Start { batch, .. }) = scene.actions.last() else { panic!("idle at {now} ms: {actions:?}") };
        let items = scene.dispatcher.batch(batch).items;
        batches.push(items);
        let took = if items == 10 { 29 } else { 10 };
        (0..10).for_each(|_| _ = scene.arrive(flood, 1, now + took + 30, now + 1));
        now += took;
        scene.finish(0, batch.0, took, now);
    }
    assert_eq!(batches.last(), Some(&1), "the rare request ran: {batches:?}");
    assert!(batches.len() > 5, "and did so late, when it could no longer wait: {batches:?}");
}

#[test]
fn a_refused_request_is_left_to_an_idle_device() {
    let mut scene = Scene::new(&[(0, 0), (0, 0)]);
    let session = scene.session(0, linear(10, 10, 8), 200);
    scene.arrive(session, 1, 25, 0);
    (0..8).for_each(|_| _ = scene.arrive(session, 1, 100, 0));
    scene.dispatcher.promise(&[(session, 500.0)]);
    let expected = [
        "prepare 0: batch 0 = [1, 2, 3, 4, 5, 6, 7, 8]",
        "start 0: batch 0",
        "prepare 1: batch 1 = [0]",
        "start 1: batch 1",
    ];
    assert_eq!(scene.step(0), expected);
}

#[test]
fn what_a_session_is_entitled_to_it_gets_in_overload_and_its_rate_stays_as_measured() {
    let mut scene = Scene::new(&[(0, 0)]);
    let sessions = [0, 1].map(|model| scene.session(model, linear(0, 10, 1), 100));
    let mut served = [0, 0];
    let mut ends = None;
    for now in 0..20_000 {
        if now == 5000 {
            let before = sessions.map(|session| scene.dispatcher.rates(session, at(now)).offered);
            scene.dispatcher.entitle(&[(sessions[0], 80.0), (sessions[1], 20.0)]);
            assert_eq!(sessions.map(|session| scene.dispatcher.rates(session, at(now)).offered), before);
            assert!(before.iter().all(|rate| (90.0..110.0).contains(rate)), "{before:?}");
        }
        if let Some((batch, session)) = ends.take_if(|_| now % 10 == 0) {
            scene.finish(0, batch, 10, now);
            if now > 10_000 {
                served[session] += 1;
            }
        }
        if now % 10 == 0 {
            // The ids of requests that have ended are free again.
            scene.next %= 900;
            sessions.iter().for_each(|&session| _ = scene.arrive(session, 1, now + 100, now));
        }
        scene.step(now);
        for action in &scene.actions {
            if let Action::Start { batch, .. } = *action {
                let first = scene.dispatcher.batch(batch).requests[0];
                ends = Some((batch.0, first.0 as usize % 2));
            }
        }
    }
    assert!(served[0] > 2 * served[1] && served[1] > 100, "{served:?}");
}

#[test]
fn a_slow_device_does_not_drop_what_a_fast_one_can_still_run() {
    let mut scene = Scene::new(&[(0, 0), (0, 0)]);
    let session = scene.session(0, linear(1, 9, 8), 200);
    scene.dispatcher.set_profile(DeviceId(1), ModelId(0), CLASS, linear(1, 99, 2));
    scene.arrive(session, 1, 200, 0);
    assert_eq!(scene.step(0), ["prepare 0: batch 0 = [0]", "start 0: batch 0"]);
    scene.arrive(session, 1, 50, 1);
    scene.arrive(session, 3, 150, 1);
    scene.arrive(session, 1, 150, 1);
    assert_eq!(scene.step(1), ["prepare 1: batch 1 = [3]", "start 1: batch 1"], "one too urgent, one too large");
    scene.finish(0, 0, 10, 10);
    assert_eq!(scene.step(10), ["prepare 0: batch 0 = [1, 2]", "start 0: batch 0"]);
}

#[test]
fn slow_executions_correct_the_profile_and_what_is_hopeless() {
    let mut scene = Scene::new(&[(0, 0)]);
    let session = scene.session(0, linear(0, 10, 8), 100);
    let mut now = 0;
    for _ in 0..40 {
        scene.arrive(session, 1, now + 100, now);
        scene.step(now);
        now += 20;
        scene.finish(0, 0, 20, now);
    }
    let corrected = scene.dispatcher.profile(DeviceId(0), ModelId(0), CLASS).and_then(|profile| profile.latency(1));
    assert_eq!(corrected, Some(ms(20)));
    scene.arrive(session, 1, now + 15, now);
    assert_eq!(scene.step(now), ["drop 40: Hopeless"]);
}

#[test]
fn a_correction_that_makes_everything_hopeless_is_forgotten() {
    let mut scene = Scene::new(&[(0, 0)]);
    let session = scene.session(0, linear(0, 10, 8), 30);
    for execution in 0..4 {
        scene.arrive(session, 1, execution * 40 + 30, execution * 40);
        scene.step(execution * 40);
        scene.finish(0, 0, 40, execution * 40 + 40);
    }
    scene.arrive(session, 1, 190, 160);
    assert_eq!(scene.step(160), ["drop 4: Hopeless"]);
    let run = (1..200).map(|tenth| tenth * 100).find(|&now| {
        scene.arrive(session, 1, now + 30, now);
        scene.step(now).len() == 2
    });
    assert_eq!(run, Some(5_200), "half of the excess is left after five seconds: 25 ms");
}

#[test]
fn rates_are_measured_over_all_classes() {
    let mut scene = Scene::new(&[(0, 0)]);
    let session = scene.session(0, linear(1, 9, 32), 100);
    scene.dispatcher.set_profile(DeviceId(0), ModelId(0), ClassId(0), linear(1, 9, 32));
    for millis in 0..1000 {
        let request = RequestId(millis as u32);
        let class = ClassId(millis as u32 % 2);
        let arrival =
            Arrival { request, session, class, items: 2, deadline: at(millis + 100), priority: Priority::NORMAL };
        scene.dispatcher.handle(Event::Arrived(arrival), at(millis));
    }
    let rates = scene.dispatcher.rates(session, at(1000));
    assert!((rates.offered - 2000.0).abs() < 1e-6, "{rates:?}");
    assert_eq!(rates.queued, 2000);
    assert!((1..=32).contains(&rates.target_batch));
    assert_eq!(scene.dispatcher.rates(SessionId(2), at(1000)), SessionRates::default());
}

#[test]
#[should_panic(expected = "a device finished a batch that it did not execute")]
fn finishing_what_does_not_execute_is_the_callers_bug() {
    let mut scene = Scene::new(&[(0, 0)]);
    scene.session(0, linear(1, 9, 8), 100);
    scene.finish(0, 0, 1, 1);
}

/// In overload a level of priority counts as a session of four times the weight: here it asks for less than that, and loses
/// nothing. While there is enough for all, priority changes nothing.
#[test]
fn a_lost_device_gets_no_batch_until_it_is_back() {
    let mut scene = Scene::new(&[(0, 0), (0, 0)]);
    let session = scene.session(MODEL.0, linear(1, 9, 4), 1000);
    scene.dispatcher.handle(Event::Lost(DeviceId(0)), at(0));
    scene.arrive(session, 4, 1000, 0);
    assert_eq!(scene.step(0), ["prepare 1: batch 0 = [0]", "start 1: batch 0"]);
    scene.arrive(session, 4, 1000, 1);
    assert_eq!(scene.step(1), [""; 0]);
    scene.dispatcher.handle(Event::Back(DeviceId(0)), at(2));
    assert_eq!(scene.step(2), ["prepare 0: batch 1 = [1]", "start 0: batch 1"]);
}

#[test]
fn a_device_that_is_lost_with_a_batch_gives_it_back_and_rests() {
    let mut scene = Scene::new(&[(0, 0)]);
    let session = scene.session(MODEL.0, linear(1, 9, 4), 1000);
    scene.arrive(session, 4, 1000, 0);
    assert_eq!(scene.step(0), ["prepare 0: batch 0 = [0]", "start 0: batch 0"]);
    scene.dispatcher.handle(Event::Lost(DeviceId(0)), at(1));
    scene.finish(0, 0, 1, 1);
    scene.arrive(session, 4, 1000, 1);
    assert_eq!(scene.step(1), [""; 0]);
    scene.dispatcher.handle(Event::Back(DeviceId(0)), at(2));
    assert_eq!(scene.step(2), ["prepare 0: batch 0 = [1]", "start 0: batch 0"]);
}

#[test]
fn in_overload_requests_of_high_priority_are_served() {
    let served = |gap: u64| {
        let mut scene = Scene::new(&[(0, 0)]);
        let session = scene.session(3, linear(1, 9, 1), 50);
        let mut served = [0.0; 2];
        let (mut asked, mut ends) = ([0.0; 2], None::<(u64, BatchId)>);
        let mut levels = std::collections::BTreeMap::new();
        for now in 0..20_000 {
            if let Some((_, batch)) = ends.take_if(|&mut (end, _)| end == now) {
                let requests = scene.dispatcher.batch(batch).requests.clone();
                requests.iter().for_each(|request| served[levels[&request.0] as usize] += 1.0);
                let finished = Event::Finished { device: DeviceId(0), batch, took: ms(10) };
                scene.dispatcher.handle(finished, at(now));
            }
            if now % gap == 0 {
                let request = scene.next % 1000;
                scene.next += 1;
                let level = u8::from(scene.next.is_multiple_of(4));
                levels.insert(request, level);
                asked[level as usize] += 1.0;
                let priority = Priority::new(level).expect("there are four");
                let (request, deadline) = (RequestId(request), at(now + 50));
                let arrival = Arrival { request, session, class: CLASS, items: 1, deadline, priority };
                scene.dispatcher.handle(Event::Arrived(arrival), at(now));
            }
            let mut actions = Vec::new();
            scene.dispatcher.step(at(now), &mut actions);
            for action in actions {
                if let Action::Start { batch, .. } = action {
                    ends = Some((now + 10, batch));
                }
            }
        }
        [served[0] / asked[0], served[1] / asked[1]]
    };
    let [normal, high] = served(20);
    assert!(normal > 0.99 && high > 0.99, "{normal} {high}");
    let [normal, high] = served(5);
    assert!((0.28..0.36).contains(&normal) && high > 0.95, "{normal} {high}");
}
