//! A client without the library's manners: it writes to its shared memory and its sockets whatever a test wants.

use rota_ipc::control::{REPLY_BYTES_MAX, Reply, Request};
use rota_ipc::doorbell::Doorbell;
use rota_ipc::frame::{self, FrameReader};
use rota_ipc::region::Regions;
use rota_ipc::ring::{AWAKE, Consumer, Producer};
use rota_ipc::wire::{BlockHeader, Completion, DType, OP_INFER, RECORD_BYTES, Submission, TensorRecord, VERSION};
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// A control socket, byte by byte.
pub struct Stream {
    pub socket: UnixStream,
    reader: FrameReader,
    descriptors: Vec<OwnedFd>,
}

impl Stream {
    pub fn connect(path: &Path) -> Stream {
        let socket = UnixStream::connect(path).unwrap();
        socket.set_read_timeout(Some(crate::support::PATIENCE)).unwrap();
        Stream { socket, reader: FrameReader::new(REPLY_BYTES_MAX), descriptors: Vec::new() }
    }

    /// Writes what it is given; that the daemon has hung up is not an error here.
    pub fn send_bytes(&mut self, bytes: &[u8]) {
        let _ = self.socket.write_all(bytes);
    }

    pub fn send(&mut self, request: &Request) {
        self.send_bytes(&frame::encode(request, usize::MAX).unwrap());
    }

    /// The next reply; `None` when the daemon has hung up.
    pub fn receive(&mut self) -> Option<Reply> {
        let mut bytes = [0; 4096];
        loop {
            if let Some(reply) = self.reader.next().unwrap() {
                return Some(reply);
            }
            match frame::recv_with_fds(self.socket.as_fd(), &mut bytes, &mut self.descriptors) {
                Ok(0) => return None,
                Ok(count) => self.reader.push(&bytes[..count]),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("no reply: {error}"),
            }
        }
    }

    pub fn ask(&mut self, request: &Request) -> Reply {
        self.send(request);
        self.receive().expect("a reply")
    }

    /// The text of the error that answers `request`.
    pub fn refused(&mut self, request: &Request) -> String {
        match self.ask(request) {
            Reply::Error { code, message } => format!("{code:?}: {message}"),
            other => panic!("{request:?} was answered with {other:?}"),
        }
    }
}

pub fn hello(slots: u32, arena_bytes: u64) -> Request {
    Request::Hello { versions: vec![VERSION], client: "raw".into(), slots, arena_bytes }
}

pub fn open(model: &str, slo_ms: f64) -> Request {
    Request::Open { model: model.into(), version: None, slo_ms: Some(slo_ms) }
}

/// A connection with shared memory.
pub struct Raw {
    pub control: Stream,
    pub regions: Regions,
    pub doorbell: Doorbell,
    pub producer: Producer,
    pub consumer: Consumer,
}

impl Raw {
    pub fn connect(path: &Path, slots: u32, arena_bytes: u64) -> Raw {
        let mut control = Stream::connect(path);
        let reply = control.ask(&hello(slots, arena_bytes));
        let Reply::Welcome { arena_bytes, .. } = reply else { panic!("{reply:?}") };
        let [client, daemon, arena, doorbell]: [OwnedFd; 4] =
            std::mem::take(&mut control.descriptors).try_into().unwrap();
        let regions = Regions::open(slots, arena_bytes, &[client, daemon, arena]).unwrap();
        Raw {
            control,
            regions,
            doorbell: doorbell.into(),
            producer: Producer::default(),
            consumer: Consumer::default(),
        }
    }

    /// Opens a session in which nothing is dropped for being late; returns the connection's number for it.
    pub fn open(&mut self, model: &str) -> u32 {
        match self.control.ask(&open(model, 600_000.0)) {
            Reply::Opened { session, .. } => session,
            other => panic!("{other:?}"),
        }
    }

    pub fn write_block(&self, slot: u32, header: BlockHeader, tensors: &[TensorRecord]) {
        let header: [u64; 8] = zerocopy::transmute!(header);
        let tensors = tensors.iter().map(|tensor| -> [u64; 8] { zerocopy::transmute!(*tensor) });
        let words = [header].into_iter().chain(tensors).flatten();
        self.regions.block(slot).iter().zip(words).for_each(|(word, value)| word.store(value, Ordering::Relaxed));
    }

    /// Publishes a submission and rings.
    pub fn submit(&mut self, submission: Submission) {
        self.push(submission);
        self.publish();
    }

    pub fn push(&mut self, submission: Submission) {
        let pushed = self.producer.push(&self.regions.submissions(), &zerocopy::transmute!(submission)).unwrap();
        assert!(pushed, "the submission ring is full");
    }

    pub fn publish(&mut self) {
        if self.producer.publish(&self.regions.submissions()) != AWAKE {
            self.doorbell.ring();
        }
    }

    /// The next completion, if one comes within `patience`, and its record.
    pub fn completion_within(&mut self, patience: Duration) -> Option<(Completion, Vec<u8>)> {
        let begin = Instant::now();
        let mut descriptors = [[0u64; 8]; 1];
        while self.consumer.pop(&self.regions.completions(), &mut descriptors).unwrap() == 0 {
            if begin.elapsed() >= patience {
                return None;
            }
            std::thread::yield_now();
        }
        let completion: Completion = zerocopy::transmute!(descriptors[0]);
        let mut record = vec![0; RECORD_BYTES];
        if completion.slot < self.regions.slots() {
            for (bytes, word) in record.chunks_mut(8).zip(self.regions.record(completion.slot)) {
                bytes.copy_from_slice(&word.load(Ordering::Relaxed).to_ne_bytes());
            }
        }
        record.truncate(completion.record_bytes as usize);
        Some((completion, record))
    }

    pub fn completion(&mut self) -> (Completion, Vec<u8>) {
        self.completion_within(crate::support::PATIENCE).expect("a completion")
    }

    /// Waits for the end of the connection; returns why the daemon says that it ended it.
    pub fn poisoned(&mut self) -> String {
        match self.control.receive() {
            Some(Reply::Poisoned { message }) => {
                assert!(self.control.receive().is_none(), "the connection ends with these words");
                message
            }
            other => panic!("{other:?} instead of the reason for poisoning"),
        }
    }
}

/// A request that is as it should be: two items of the model "echo" in `slot`, whose spans no other slot's overlap.
pub fn good(session: u32, slot: u32) -> (Submission, BlockHeader, Vec<TensorRecord>) {
    let submission = Submission { op: OP_INFER, slot, block_bytes: 192, tag: u64::from(slot), ..Submission::default() };
    let mut header = BlockHeader { inputs: 1, outputs: 1, sessions: 1, items: 2, ..BlockHeader::default() };
    header.session[0] = session;
    let mut input = TensorRecord {
        offset: u64::from(slot) * 128,
        bytes: 32,
        dtype: DType::F32 as u8,
        rank: 2,
        ..TensorRecord::default()
    };
    input.dims[..2].copy_from_slice(&[2, 4]);
    let output = TensorRecord { offset: input.offset + 64, rank: 0, dims: [0; 8], ..input };
    (submission, header, vec![input, output])
}

/// splitmix64.
pub struct Numbers(u64);

impl Numbers {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// Mostly small or near a border, where mistakes are.
    pub fn odd(&mut self) -> u64 {
        match self.below(6) {
            0 => self.below(10),
            1 => 1 << self.below(64),
            2 => (1 << self.below(64)) - 1,
            3 => 0u64.wrapping_sub(self.below(130)),
            4 => 64 * self.below(70),
            _ => self.next(),
        }
    }
}

/// The seed is printed, and taken from ROTA_SEED when that is set.
pub fn seed() -> Numbers {
    let given = std::env::var("ROTA_SEED").ok().map(|seed| seed.parse().expect("ROTA_SEED is a number"));
    let now = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64;
    let seed = given.unwrap_or_else(now);
    println!("ROTA_SEED={seed}");
    Numbers(seed)
}
