//! A small daemon for tests: the real server side of the protocol, with one model that doubles what it is given.
//!
//! Model `double`: `x` f32 [N, 4] → `y` f32 [N, 4] = 2x. `open` (same input): its output's size is left open.
//! A request with first element -1 is held until it is cancelled; with first element -2 it fails.

#![allow(dead_code, reason = "each test program uses a part")]

use rota_ipc::control::*;
use rota_ipc::frame::{Filled, FrameReader, FrameWriter};
use rota_ipc::server::{Connection, Record, RequestBlock, Tensor, check_submission};
use rota_ipc::wire::{self, Completion, DType, OutputRecord, Reason, Status, Submission};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// A socket path of its own for each test.
pub fn socket_path(test: &str) -> PathBuf {
    std::env::temp_dir().join(format!("rota-ipc-{}-{test}.sock", std::process::id()))
}

/// Serves on a thread until it is dropped.
pub struct Daemon {
    pub path: PathBuf,
    pub switches: Arc<Switches>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
pub struct Switches {
    stop: AtomicBool,
    /// Submissions are left in the ring.
    pub stalled: AtomicBool,
    /// Sleeps on the doorbell that a ring ended.
    pub rings: AtomicU32,
    /// Connections whose client broke the protocol.
    pub poisoned: AtomicU32,
    /// Connections that ended.
    pub hung_up: AtomicU32,
    /// Every client is taken for one that broke the protocol.
    pub poison: AtomicBool,
}

impl Daemon {
    pub fn start(path: PathBuf) -> Daemon {
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).unwrap();
        let switches = Arc::new(Switches::default());
        let shared = switches.clone();
        let thread = std::thread::spawn(move || {
            listener.set_nonblocking(true).unwrap();
            let mut clients: Vec<JoinHandle<()>> = Vec::new();
            while !shared.stop.load(Ordering::Relaxed) {
                if let Ok((stream, _)) = listener.accept() {
                    let shared = shared.clone();
                    clients.push(std::thread::spawn(move || Served::new(stream, shared).serve()));
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            for client in clients {
                client.join().unwrap();
            }
        });
        Daemon { path, switches, thread: Some(thread) }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.switches.stop.store(true, Ordering::Relaxed);
        let joined = self.thread.take().unwrap().join();
        let _ = std::fs::remove_file(&self.path);
        if !std::thread::panicking() {
            joined.expect("the daemon's thread");
        }
    }
}

pub fn models() -> Vec<ModelInfo> {
    let x = TensorInfo {
        name: "x".into(),
        dtype: DType::F32,
        dims: vec![DimInfo::Named("N".into()), DimInfo::Fixed(4)],
        batch_axis: Some(0),
    };
    let y = TensorInfo { name: "y".into(), ..x.clone() };
    let open = TensorInfo { dims: vec![DimInfo::Named("N".into()), DimInfo::Named("width".into())], ..y.clone() };
    let model = |name: &str, y| ModelInfo {
        name: name.into(),
        version: 1,
        inputs: vec![x.clone()],
        outputs: vec![y],
        max_batch: 8,
        default_slo_ms: 50.0,
        batch_of_one_ms: 0.01,
        group: None,
    };
    vec![model("double", y), model("open", open)]
}

/// One connection.
struct Served {
    stream: UnixStream,
    switches: Arc<Switches>,
    reader: FrameReader,
    writer: FrameWriter,
    memory: Option<Connection>,
    block: RequestBlock,
    /// Requests taken and not completed, by slot.
    taken: Vec<Option<Submission>>,
    in_flight: u32,
}

impl Served {
    fn new(stream: UnixStream, switches: Arc<Switches>) -> Served {
        stream.set_nonblocking(true).unwrap();
        Served {
            stream,
            switches,
            reader: FrameReader::new(REQUEST_BYTES_MAX),
            writer: FrameWriter::default(),
            memory: None,
            block: RequestBlock::default(),
            taken: Vec::new(),
            in_flight: 0,
        }
    }

    fn serve(mut self) {
        while !self.switches.stop.load(Ordering::Relaxed) {
            if !self.control() {
                break;
            }
            match self.turn() {
                Ok(true) => {}
                Ok(false) => self.sleep(),
                Err(poisoned) => {
                    self.switches.poisoned.fetch_add(1, Ordering::Relaxed);
                    self.memory.as_mut().unwrap().poison();
                    self.writer.push(&Reply::Poisoned { message: poisoned.to_string() }, REPLY_BYTES_MAX).unwrap();
                    let _ = self.writer.flush(&self.stream);
                    break;
                }
            }
        }
        self.switches.hung_up.fetch_add(1, Ordering::Relaxed);
    }

    /// False: the client hung up.
    fn control(&mut self) -> bool {
        match self.reader.fill(&mut self.stream) {
            Ok(Filled::Some) => {}
            Ok(Filled::Blocked) => return true,
            Ok(Filled::End) | Err(_) => return false,
        }
        while let Ok(Some(request)) = self.reader.next::<Request>() {
            self.answer(request);
        }
        self.writer.flush(&self.stream).is_ok()
    }

    fn answer(&mut self, request: Request) {
        let error = |code, message: &str| Reply::Error { code, message: message.into() };
        let reply = match request {
            Request::Hello { versions, .. } if !versions.contains(&wire::VERSION) => {
                error(ErrorCode::Version, "this daemon speaks version 1")
            }
            Request::Hello { slots, arena_bytes, .. } => {
                let (memory, descriptors) = match Connection::create(slots, arena_bytes) {
                    Ok(made) => made,
                    Err(refused) => {
                        self.writer.push(&error(ErrorCode::Limit, &refused.to_string()), REPLY_BYTES_MAX).unwrap();
                        return;
                    }
                };
                let arena_bytes = memory.arena().len() as u64;
                self.taken = vec![None; slots as usize];
                self.memory = Some(memory);
                let welcome = Reply::Welcome { version: 1, daemon: "test".into(), slots, arena_bytes };
                self.writer.push_with_fds(&welcome, REPLY_BYTES_MAX, descriptors).unwrap();
                return;
            }
            Request::Open { model, slo_ms, .. } => match models().into_iter().position(|info| info.name == model) {
                Some(index) => Reply::Opened {
                    session: index as u32 + 10,
                    slo_ms: slo_ms.unwrap_or(50.0),
                    model: models().swap_remove(index),
                },
                None => error(ErrorCode::UnknownModel, &format!("no model {model}; served: double, open")),
            },
            Request::Query { name } => error(ErrorCode::UnknownQuery, &format!("no query {name}")),
            Request::Declare { .. } => error(ErrorCode::Query, "no queries are known here"),
            Request::Models {} => Reply::Models { models: models() },
            Request::Status {} => Reply::Status { status: serde_json::json!({ "in_flight": self.in_flight }) },
            Request::Load { .. } => error(ErrorCode::Permission, "only root may load models"),
            Request::Close { .. } | Request::Unload { .. } | Request::Drain {} => Reply::Done {},
        };
        self.writer.push(&reply, REPLY_BYTES_MAX).unwrap();
    }

    /// True: there was work.
    fn turn(&mut self) -> Result<bool, rota_ipc::server::Poisoned> {
        let Some(memory) = &mut self.memory else { return Ok(false) };
        if self.switches.stalled.load(Ordering::Relaxed) {
            return Ok(false);
        }
        if self.switches.poison.load(Ordering::Relaxed) {
            return Err(rota_ipc::server::Poisoned::NoRoom { capacity: memory.slots() });
        }
        let mut submissions = [Submission::default(); 4];
        let count = memory.pop(&mut submissions)?;
        for submission in &submissions[..count] {
            self.take(submission)?;
        }
        self.memory.as_mut().unwrap().publish();
        Ok(count > 0)
    }

    fn take(&mut self, submission: &Submission) -> Result<(), rota_ipc::server::Poisoned> {
        let memory = self.memory.as_mut().unwrap();
        if submission.op == wire::OP_CANCEL {
            if let Some(held) = self.taken.get_mut(submission.slot as usize).and_then(Option::take) {
                self.in_flight -= 1;
                let completion = completion(&held, Status::Cancelled, Reason::None);
                memory.complete(completion, Record::Text("cancelled by the client"));
            }
            return Ok(());
        }
        memory.reserve(self.in_flight)?;
        let checked = check_submission(submission, memory.slots())
            .and_then(|()| memory.read_block(submission.slot, submission.block_bytes, &mut self.block));
        if let Err(error) = checked {
            memory.complete(completion(submission, Status::Failed, error.reason), Record::Text(&error.text));
            return Ok(());
        }
        let (input, output) = (self.block.inputs()[0], self.block.outputs()[0]);
        match double(memory, &input, &output) {
            HOLD => {
                self.taken[submission.slot as usize] = Some(*submission);
                self.in_flight += 1;
            }
            FAIL => {
                let completion = completion(submission, Status::Failed, Reason::Engine);
                memory.complete(completion, Record::Text("the engine does not like -2"));
            }
            _ => {
                let record = OutputRecord {
                    bytes: input.bytes as u64,
                    dtype: DType::F32 as u8,
                    rank: input.rank,
                    dims: input.dims,
                    ..OutputRecord::default()
                };
                memory.complete(completion(submission, Status::Ok, Reason::None), Record::Outputs(&[record]));
            }
        }
        Ok(())
    }

    fn sleep(&mut self) {
        let Some(memory) = &mut self.memory else {
            std::thread::sleep(Duration::from_millis(1));
            return;
        };
        if self.switches.stalled.load(Ordering::Relaxed) || memory.arm() != Ok(true) {
            return std::thread::sleep(Duration::from_micros(100));
        }
        let mut descriptors = [
            rustix::event::PollFd::from_borrowed_fd(memory.doorbell(), rustix::event::PollFlags::IN),
            rustix::event::PollFd::new(&self.stream, rustix::event::PollFlags::IN),
        ];
        let timeout = rustix::time::Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
        rustix::event::poll(&mut descriptors, Some(&timeout)).unwrap();
        let rung = !descriptors[0].revents().is_empty();
        memory.disarm();
        if rung {
            self.switches.rings.fetch_add(1, Ordering::Relaxed);
            memory.drain_doorbell();
        }
    }
}

pub const HOLD: f32 = -1.0;
pub const FAIL: f32 = -2.0;

/// Writes the doubled input and returns its first element.
fn double(memory: &Connection, input: &Tensor, output: &Tensor) -> f32 {
    assert!(output.bytes >= input.bytes, "room for the output");
    let arena = memory.arena();
    let mut first = 0.0;
    for at in (0..input.bytes).step_by(4) {
        // SAFETY: both places lie inside the arena: `read_block` checked it. The accesses are volatile because the client
        // can write at any time.
        unsafe {
            let value = arena.as_ptr().add(input.offset + at).cast::<f32>().read_volatile();
            arena.as_mut_ptr().add(output.offset + at).cast::<f32>().write_volatile(2.0 * value);
            if at == 0 {
                first = value;
            }
        }
    }
    first
}

fn completion(submission: &Submission, status: Status, reason: Reason) -> Completion {
    Completion {
        tag: submission.tag,
        slot: submission.slot,
        status: status as u8,
        reason: reason as u8,
        queued_ns: 1_000,
        executing_ns: 2_000,
        batch: 1,
        ..Completion::default()
    }
}

/// Waits until `condition` holds; fails after ten seconds.
pub fn eventually(what: &str, condition: impl Fn() -> bool) {
    let start = std::time::Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(10), "{what} did not happen");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Runs the ignored test `name` of this test program as a process of its own, with the socket's path in its environment.
pub fn spawn_test_process(name: &str, path: &Path) -> std::process::Child {
    std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--ignored", "--nocapture"])
        .env("ROTA_SOCKET", path)
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap()
}
