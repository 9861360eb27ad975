//! Once queues have been as long as they get, neither events nor steps allocate.

use rota_sched::*;
use std::time::Duration;

const DEVICES: u32 = 2;
const SESSIONS: u32 = 10;
const REQUESTS: u32 = 512;

/// A host under a repeating load: every millisecond some arrivals, a cancellation, and the ends that are due.
struct Host {
    dispatcher: Dispatcher,
    actions: Vec<Action>,
    /// By device, in order of execution.
    started: [Vec<BatchId>; DEVICES as usize],
    free: Vec<RequestId>,
    millis: u64,
    batches: u64,
    drops: u64,
}

impl Host {
    fn new() -> Host {
        let config = Config { requests_max: REQUESTS, sessions_max: SESSIONS, devices_max: DEVICES };
        let mut dispatcher = Dispatcher::new(config);
        let profile = Profile::new(&[(1, Duration::from_millis(2)), (16, Duration::from_millis(8))]).expect("valid");
        for _ in 0..DEVICES {
            let leads = (Duration::from_millis(1), Duration::from_micros(100));
            let device = dispatcher.add_device(DeviceConfig { prepare_lead: leads.0, start_lead: leads.1 });
            for model in 0..SESSIONS {
                dispatcher.set_profile(device, ModelId(model), ClassId(0), profile.clone());
            }
        }
        for model in 0..SESSIONS {
            let session = SessionConfig { model: ModelId(model), slo: Duration::from_millis(40), weight: 1.0 };
            dispatcher.add_session(session).expect("room for the session");
        }
        Host {
            dispatcher,
            actions: Vec::with_capacity(2 * REQUESTS as usize),
            started: [const { Vec::new() }; DEVICES as usize].map(|_: Vec<BatchId>| Vec::with_capacity(2)),
            free: (0..REQUESTS).map(RequestId).collect(),
            millis: 0,
            batches: 0,
            drops: 0,
        }
    }

    fn pass(&mut self, millis: u64) {
        for _ in 0..millis {
            self.millis += 1;
            let now = Instant(self.millis * 1_000_000);
            // Devices take 7 to 9 ms, whatever the profile says: corrections change too.
            for device in 0..DEVICES {
                if (self.millis + 3 * u64::from(device)).is_multiple_of(7 + self.millis / 100 % 3)
                    && !self.started[device as usize].is_empty()
                {
                    let batch = self.started[device as usize].remove(0);
                    self.free.extend(&self.dispatcher.batch(batch).requests);
                    let took = Duration::from_millis(7 + self.millis / 100 % 3);
                    let event = Event::Finished { device: DeviceId(device), batch, took };
                    self.dispatcher.handle(event, now);
                }
            }
            self.arrive(now);
            self.step(now);
        }
    }

    fn arrive(&mut self, now: Instant) {
        for arrival in 0..8u64 {
            let Some(request) = self.free.pop() else { return };
            let mixed = self.millis * 7 + arrival * 13;
            let session = SessionId((mixed % u64::from(SESSIONS)) as u32);
            let items = 1 + u32::from(mixed.is_multiple_of(11)) * 3;
            let deadline = now + Duration::from_millis(10 + mixed % 31);
            let arrival = Arrival { request, session, class: ClassId(0), items, deadline, priority: Priority::NORMAL };
            self.dispatcher.handle(Event::Arrived(arrival), now);
            if mixed.is_multiple_of(17) && self.dispatcher.handle(Event::Cancelled(request), now) {
                self.free.push(request);
            }
        }
    }

    fn step(&mut self, now: Instant) {
        self.actions.clear();
        self.dispatcher.step(now, &mut self.actions);
        for action in &self.actions {
            match *action {
                Action::Prepare { .. } => self.batches += 1,
                Action::Start { device, batch } => self.started[device.0 as usize].push(batch),
                Action::Drop { request, .. } => {
                    self.free.push(request);
                    self.drops += 1;
                }
            }
        }
        self.dispatcher.next_timeout();
    }
}

#[test]
fn a_steady_load_allocates_nothing() {
    let mut host = Host::new();
    host.pass(2000);
    let (batches, drops) = (host.batches, host.drops);
    let allocations = allocation_counter::measure(|| host.pass(2000));
    assert_eq!(allocations.count_total, 0, "{allocations:?}");
    assert!(host.batches > batches + 200 && host.drops > drops, "the load did not exercise what it should");

    let counted = allocation_counter::measure(|| drop(std::hint::black_box(vec![0u8; 100])));
    assert_eq!(counted.count_total, 1, "the counter counts");
}
