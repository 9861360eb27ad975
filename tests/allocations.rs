//! Once its buffers have grown to what the load needs, the daemon allocates nothing for a request: neither the poller nor the
//! thread of the emulated devices. (What an inference engine allocates for itself is its own.)

#[allow(dead_code, reason = "not every test file uses all of it")]
mod support;

use rota::config::{Config, DeviceSettings};
use rota::serve;
use rota_ipc::client::{Deadline, OpenQuery, Request, RunId, Session};
use rota_ipc::control::{QueryDeclaration, StageDeclaration};
use rota_ipc::wire::Status;
use rota_ipc::{Client, ClientOptions};
use std::alloc::{GlobalAlloc, Layout, System};
use std::backtrace::Backtrace;
use std::cell::Cell;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use support::{Folder, PATIENCE, PATIENT, emulated};

/// Counts what the watched threads allocate while it is told to.
struct Counting;

static COUNTS: AtomicBool = AtomicBool::new(false);
static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
/// Where the first one came from.
static FIRST: Mutex<Option<Backtrace>> = Mutex::new(None);

#[derive(Clone, Copy, PartialEq)]
enum Thread {
    Unknown,
    Watched,
    Other,
}

thread_local! {
    static THREAD: Cell<Thread> = const { Cell::new(Thread::Unknown) };
}

fn note() {
    if !COUNTS.load(Ordering::Relaxed) {
        return;
    }
    // While the look-up and the backtrace run, what they allocate is not counted.
    let thread = THREAD.replace(Thread::Other);
    let watched = match thread {
        Thread::Unknown => {
            let current = std::thread::current();
            let name = current.name().unwrap_or_default();
            name == "rota-poller" || name.starts_with("rota-emulated") || name == "watched by this test"
        }
        known => known == Thread::Watched,
    };
    if watched {
        if ALLOCATIONS.fetch_add(1, Ordering::Relaxed) == 0 {
            *FIRST.lock().unwrap() = Some(Backtrace::force_capture());
        }
        THREAD.set(Thread::Watched);
    }
}

// SAFETY: the system's allocator does all the work; `note` neither unwinds nor enters itself, because it first marks its thread
// as one that is not watched.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note();
        // SAFETY: the caller's promises are those of `System`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        note();
        // SAFETY: the caller's promises are those of `System`.
        unsafe { System.realloc(pointer, layout, bytes) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are those of `System`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// What the watched threads allocate while `work` runs, and the first one's backtrace.
fn count(work: impl FnOnce()) -> (u64, String) {
    ALLOCATIONS.store(0, Ordering::Relaxed);
    COUNTS.store(true, Ordering::SeqCst);
    work();
    COUNTS.store(false, Ordering::SeqCst);
    let first = FIRST.lock().unwrap().take().map(|backtrace| backtrace.to_string());
    (ALLOCATIONS.load(Ordering::SeqCst), first.unwrap_or_default())
}

/// One test, because the counter is the process's.
#[test]
fn neither_the_poller_nor_the_emulated_devices_allocate_for_a_request() {
    let watched = std::thread::Builder::new().name("watched by this test".to_string());
    let (allocations, first) = count(|| {
        watched.spawn(|| drop(std::hint::black_box(vec![1u8; 100]))).unwrap().join().unwrap();
    });
    assert!(allocations > 0 && first.contains("allocations"), "the counter counts");

    let folder = Folder::new("allocations");
    let models = emulated("instant", "1 = 0.0, 8 = 0.0") + &emulated("timed", "1 = 0.05, 8 = 0.1");
    let models = models + &emulated("slow", "1 = 300.0");
    let profiles = folder.write("profiles.toml", models);
    let socket = folder.path().join("socket");
    let config = Config {
        socket: Some(socket.clone()),
        // A plan is made for its own sake, not for a request.
        plan_interval_ms: 0,
        query: vec![QueryDeclaration {
            name: "tree".into(),
            slo_ms: 600_000.0,
            weight: None,
            stage: vec![StageDeclaration::first("root", "instant"), StageDeclaration::after("root", "leaf", "timed")],
        }],
        device: vec![DeviceSettings::Emulated { count: 2, profiles }],
        ..Config::default()
    };
    let daemon = serve::Daemon::start(&config).unwrap();
    let options = ClientOptions { slots: 64, arena_bytes: 1 << 20, ..ClientOptions::default() };
    let mut client = Client::connect(&socket, options).unwrap();
    let slow = client.open("slow", PATIENT).unwrap();
    for model in ["instant", "timed"] {
        let session = client.open(model, PATIENT).unwrap();
        let mut load = Load::new(&client, &session);
        load.crowd(&mut client, &slow);
        load.run(&mut client, 3000);
        let (allocations, first) = count(|| load.run(&mut client, 5000));
        assert_eq!(allocations, 0, "model \"{model}\"; the first:\n{first}");
        assert!(load.answered > 5000 && load.dropped > 100 && load.cancelled > 100, "{load:?}");
    }
    let query = client.open_query("tree").unwrap();
    let mut runs = RunLoad::default();
    runs.run(&mut client, &query, 1500);
    let (allocations, first) = count(|| runs.run(&mut client, &query, 2000));
    assert_eq!(allocations, 0, "runs of a query; the first:\n{first}");
    assert!(runs.answered > 2000 && runs.lost > 200 && runs.given_up > 200, "{runs:?}");
    daemon.stopper().stop();
    daemon.join().unwrap();
}

/// At one time.
const REQUESTS: usize = 48;
/// Tells them from those that hold up the devices.
const OWN: u64 = 1;

/// Requests of one to three items; some are too late, some are withdrawn, and now and then all is quiet.
#[derive(Debug)]
struct Load {
    idle: Vec<Request>,
    sent: u64,
    answered: u64,
    dropped: u64,
    cancelled: u64,
}

impl Load {
    fn new(client: &Client, session: &Session) -> Load {
        let idle = (0..REQUESTS).map(|_| client.request(session).unwrap()).collect();
        Load { idle, sent: 0, answered: 0, dropped: 0, cancelled: 0 }
    }

    /// Lets all its requests wait behind the two devices, so that they then run in the fullest batches: no queue or buffer
    /// gets larger.
    fn crowd(&mut self, client: &mut Client, slow: &Session) {
        for _ in 0..2 {
            let mut request = client.request(slow).unwrap();
            request.input::<f32>("x", &[1, 4]).unwrap();
            client.submit(request).unwrap();
        }
        for mut request in self.idle.drain(..) {
            request.input::<f32>("x", &[1, 4]).unwrap();
            request.tag = OWN;
            client.submit(request).unwrap();
        }
        for _ in 0..REQUESTS + 2 {
            let answer = client.wait(PATIENCE).unwrap().expect("an answer");
            if answer.tag == OWN {
                self.idle.push(answer.into_request());
            }
        }
    }

    fn run(&mut self, client: &mut Client, requests: u64) {
        let until = self.sent + requests;
        while self.sent < until || self.idle.len() < REQUESTS {
            while self.sent < until
                && let Some(mut request) = self.idle.pop()
            {
                request.input::<f32>("x", &[1 + (self.sent % 3) as u32, 4]).unwrap().fill(1.0);
                request.deadline = match self.sent % 29 {
                    0 => Deadline::At(Instant::now() - Duration::from_millis(1)),
                    _ => Deadline::Slo,
                };
                let ticket = client.submit(request).unwrap_or_else(|rejected| panic!("{rejected}"));
                if self.sent.is_multiple_of(31) {
                    client.cancel(ticket).unwrap();
                }
                self.sent += 1;
                // Longer than the poller looks for work before it sleeps, and now and then longer than it polls the quiet.
                match self.sent % 500 {
                    0 => std::thread::sleep(Duration::from_millis(7)),
                    250 => std::thread::sleep(Duration::from_micros(300)),
                    _ => {}
                }
            }
            let answer = client.wait(PATIENCE).unwrap().expect("an answer");
            match answer.status {
                Status::Ok => self.answered += 1,
                Status::Dropped => self.dropped += 1,
                Status::Cancelled => self.cancelled += 1,
                status => panic!("{status:?}: {}", answer.message()),
            }
            self.idle.push(answer.into_request());
        }
    }
}

/// Runs of a query, one after the other, with a fan-out of three. Of some the first call comes too late, some are given up.
#[derive(Debug, Default)]
struct RunLoad {
    /// Requests of the root, and of the leaf.
    idle: [Vec<Request>; 2],
    runs: u64,
    answered: u64,
    lost: u64,
    given_up: u64,
}

impl RunLoad {
    fn run(&mut self, client: &mut Client, query: &OpenQuery, runs: u64) {
        for _ in 0..runs {
            let run = client.begin(query).unwrap();
            self.call(client, run, 0, 1);
            self.call(client, run, 1, 3);
            if self.runs.is_multiple_of(4) {
                client.give_up(run).unwrap();
                self.given_up += 1;
            } else {
                client.finish(run).unwrap();
            }
            self.runs += 1;
        }
    }

    /// Calls a stage several times at once and takes the answers.
    fn call(&mut self, client: &mut Client, run: RunId, stage: usize, calls: u32) {
        let name = ["root", "leaf"][stage];
        for _ in 0..calls {
            let idle = self.idle[stage].pop();
            let mut request = idle.unwrap_or_else(|| client.request_in(run, name).unwrap());
            client.call_in(run, name, &mut request).unwrap();
            request.input::<f32>("x", &[1, 4]).unwrap().fill(1.0);
            request.deadline = match self.runs % 5 {
                0 if stage == 0 => Deadline::At(Instant::now() - Duration::from_millis(1)),
                _ => Deadline::Slo,
            };
            client.submit(request).unwrap_or_else(|rejected| panic!("{rejected}"));
        }
        for _ in 0..calls {
            let answer = client.wait(PATIENCE).unwrap().expect("an answer");
            match answer.status {
                Status::Ok => self.answered += 1,
                Status::Dropped => self.lost += 1,
                status => panic!("{status:?}: {}", answer.message()),
            }
            self.idle[stage].push(answer.into_request());
        }
    }
}
