//! Rota's ring: the real client library against a bare loop over the daemon's side of connections.

use super::{CLIENTS, Client, DEPTH, MESSAGE_BYTES, Pipeline};
use crate::rounds::Failure;
use rota_ipc::client::{Open, Request, Session};
use rota_ipc::control::{self, DimInfo, ModelInfo, Reply, TensorInfo};
use rota_ipc::frame::{self, FrameReader};
use rota_ipc::server::{Connection, Record, RequestBlock, check_submission};
use rota_ipc::wire::{Completion, DType, Status, Submission, VERSION};
use rota_ipc::{Client as RotaClient, ClientOptions};
use rustix::event::{PollFd, PollFlags, poll};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

/// Answers every request at once. It brings one tensor, which is copied out of the arena.
pub fn serve(
    socket: &Path,
    spin: Duration,
    payload_bytes: usize,
    ready: impl FnOnce(&str) -> std::io::Result<()>,
) -> Result<(), Failure> {
    let listener = UnixListener::bind(socket)?;
    ready("")?;
    let mut echo = Echo {
        peers: Vec::new(),
        submissions: vec![Submission::default(); DEPTH],
        block: RequestBlock::default(),
        tensor: vec![0; payload_bytes],
    };
    // One that sleeps at once looks once: else it would catch most of what comes while it looks.
    let turns = if spin.is_zero() { 1 } else { TURNS_PER_CLOCK };
    let mut idle_since = Instant::now();
    loop {
        let mut worked = false;
        for _ in 0..turns {
            worked |= echo.turn()?;
        }
        if worked && !spin.is_zero() {
            idle_since = Instant::now();
        } else if idle_since.elapsed() >= spin {
            echo.sleep(&listener, payload_bytes)?;
            idle_since = Instant::now();
        }
    }
}

const TURNS_PER_CLOCK: u32 = 64;

struct Echo {
    peers: Vec<(Connection, UnixStream)>,
    submissions: Vec<Submission>,
    block: RequestBlock,
    /// Where requests' tensors are copied to.
    tensor: Vec<u8>,
}

impl Echo {
    fn turn(&mut self) -> Result<bool, Failure> {
        let mut worked = false;
        for (connection, _) in &mut self.peers {
            let count = connection.pop(&mut self.submissions)?;
            for submission in &self.submissions[..count] {
                connection.reserve(0)?;
                check_submission(submission, connection.slots())?;
                connection.read_block(submission.slot, submission.block_bytes, &mut self.block)?;
                for input in self.block.inputs() {
                    connection.copy_out(input.offset, &mut self.tensor[..input.bytes]);
                }
                let completion = Completion {
                    tag: submission.tag,
                    slot: submission.slot,
                    status: Status::Ok as u8,
                    batch: 1,
                    ..Completion::default()
                };
                connection.complete(completion, Record::Outputs(&[]));
            }
            if count > 0 {
                connection.publish();
                worked = true;
            }
        }
        Ok(worked)
    }

    /// Until a client rings, leaves or comes.
    fn sleep(&mut self, listener: &UnixListener, payload_bytes: usize) -> Result<(), Failure> {
        let mut armed = true;
        for (connection, _) in &mut self.peers {
            armed &= connection.arm()?;
        }
        if armed {
            let mut ready = vec![PollFd::new(listener, PollFlags::IN)];
            ready.extend(
                self.peers.iter().map(|(connection, _)| PollFd::from_borrowed_fd(connection.doorbell(), PollFlags::IN)),
            );
            poll(&mut ready, None)?;
            let comes = ready[0].revents().contains(PollFlags::IN);
            self.peers.retain_mut(|(connection, _)| connection.drain_doorbell());
            if comes {
                let (stream, _) = listener.accept()?;
                self.peers.push(welcome(stream, payload_bytes)?);
            }
        }
        self.peers.iter_mut().for_each(|(connection, _)| connection.disarm());
        Ok(())
    }
}

/// Says what the daemon says to a new client that opens one session.
fn welcome(mut stream: UnixStream, payload_bytes: usize) -> Result<(Connection, UnixStream), Failure> {
    let mut reader = FrameReader::new(control::REQUEST_BYTES_MAX);
    let mut connection = None;
    loop {
        let Some(request) = reader.next::<control::Request>()? else {
            reader.fill(&mut stream)?;
            continue;
        };
        match request {
            control::Request::Hello { slots, arena_bytes, .. } => {
                let (made, descriptors) = Connection::create(slots, arena_bytes)?;
                let arena_bytes = made.arena().len() as u64;
                let reply = Reply::Welcome { version: VERSION, daemon: "echo".into(), slots, arena_bytes };
                send(&stream, &reply, &descriptors.each_ref().map(AsFd::as_fd))?;
                connection = Some(made);
            }
            control::Request::Open { model, .. } => {
                let model = model_info(model, payload_bytes);
                send(&stream, &Reply::Opened { session: 0, slo_ms: 1e3, model }, &[])?;
                return Ok((connection.ok_or("a session before hello")?, stream));
            }
            other => return Err(format!("{other:?} is nothing that an echo answers").into()),
        }
    }
}

fn send(stream: &UnixStream, reply: &Reply, descriptors: &[std::os::fd::BorrowedFd<'_>]) -> Result<(), Failure> {
    let bytes = frame::encode(reply, control::REPLY_BYTES_MAX)?;
    let sent = frame::send_with_fds(stream.as_fd(), &bytes, descriptors)?;
    if sent < bytes.len() {
        std::io::Write::write_all(&mut &*stream, &bytes[sent..])?;
    }
    Ok(())
}

/// One tensor of so many bytes in, none out.
fn model_info(name: String, payload_bytes: usize) -> ModelInfo {
    let tensor = TensorInfo {
        name: "x".into(),
        dtype: DType::U8,
        dims: vec![DimInfo::Fixed(payload_bytes as u64)],
        batch_axis: None,
    };
    ModelInfo {
        name,
        version: 1,
        inputs: vec![tensor],
        outputs: Vec::new(),
        max_batch: 1,
        default_slo_ms: 1e3,
        batch_of_one_ms: 0.0,
        group: None,
    }
}

fn connect(socket: &Path, spins: bool, payload_bytes: usize) -> Result<(RotaClient, Session), Failure> {
    let spin = if spins { Duration::from_secs(1) } else { Duration::ZERO };
    let slots = (DEPTH as u32).next_power_of_two();
    let options =
        ClientOptions { slots, arena_bytes: payload_bytes.max(64 << 10) as u64, spin, ..ClientOptions::default() };
    let mut client = RotaClient::connect(socket, options)?;
    let session = client.open("echo", Open::default())?;
    Ok((client, session))
}

pub struct RingClient {
    client: RotaClient,
    /// There but while it is in flight.
    request: Option<Request>,
    payload_bytes: usize,
}

impl RingClient {
    pub fn connect(socket: &Path, spins: bool, payload_bytes: usize) -> Result<RingClient, Failure> {
        let (client, session) = connect(socket, spins, payload_bytes)?;
        let mut request = client.request(&session)?;
        request.input::<u8>(0, &[payload_bytes as u32])?;
        Ok(RingClient { client, request: Some(request), payload_bytes })
    }
}

impl Client for RingClient {
    fn round_trip(&mut self) -> Result<(), Failure> {
        let request = self.request.take().ok_or("an earlier request was lost")?;
        let answer = self.client.infer(request)?;
        answer.check()?;
        self.request = Some(answer.into_request());
        Ok(())
    }

    fn make_tensor(&mut self, value: u8) -> Result<(), Failure> {
        let request = self.request.as_mut().ok_or("an earlier request was lost")?;
        request.input::<u8>(0, &[self.payload_bytes as u32])?.fill(value);
        Ok(())
    }

    fn send_tensor(&mut self) -> Result<(), Failure> {
        self.round_trip()
    }
}

pub struct RingPipeline(Vec<RotaClient>);

impl RingPipeline {
    pub fn connect(socket: &Path, count: usize, depth: usize) -> Result<RingPipeline, Failure> {
        let mut clients = Vec::with_capacity(CLIENTS);
        for _ in 0..count {
            let (mut client, session) = connect(socket, true, MESSAGE_BYTES)?;
            for _ in 0..depth {
                let mut request = client.request(&session)?;
                request.input::<u8>(0, &[MESSAGE_BYTES as u32])?;
                client.submit(request)?;
            }
            clients.push(client);
        }
        Ok(RingPipeline(clients))
    }
}

impl Pipeline for RingPipeline {
    fn turn(&mut self) -> Result<u64, Failure> {
        let mut done = 0;
        for client in &mut self.0 {
            while let Some(answer) = client.poll()? {
                answer.check()?;
                client.submit(answer.into_request())?;
                done += 1;
            }
        }
        Ok(done)
    }
}
