//! Byte streams: Unix sockets and TCP over the loopback device.

use super::{Client, MESSAGE_BYTES, Pipeline};
use crate::rounds::Failure;
use rustix::event::{PollFd, PollFlags, poll};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

/// A connected socket of either kind.
pub trait Stream: Read + Write + AsFd {
    fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()>;
}

impl Stream for UnixStream {
    fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        UnixStream::set_nonblocking(self, nonblocking)
    }
}

impl Stream for TcpStream {
    fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        TcpStream::set_nonblocking(self, nonblocking)
    }
}

pub fn serve_unix(
    socket: &Path,
    spin: Duration,
    payload_bytes: usize,
    ready: impl FnOnce(&str) -> io::Result<()>,
) -> Result<(), Failure> {
    let listener = UnixListener::bind(socket)?;
    ready("")?;
    serve(listener.as_fd(), || Ok(Box::new(listener.accept()?.0)), spin, payload_bytes)
}

pub fn serve_tcp(
    spin: Duration,
    payload_bytes: usize,
    ready: impl FnOnce(&str) -> io::Result<()>,
) -> Result<(), Failure> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    ready(&listener.local_addr()?.to_string())?;
    let accept = || -> io::Result<Box<dyn Stream>> {
        let (stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        Ok(Box::new(stream))
    };
    serve(listener.as_fd(), accept, spin, payload_bytes)
}

/// Answers every `payload_bytes` with the first of them; what came together is answered with one write.
fn serve(
    listener: BorrowedFd<'_>,
    accept: impl Fn() -> io::Result<Box<dyn Stream>>,
    spin: Duration,
    payload_bytes: usize,
) -> Result<(), Failure> {
    let mut peers: Vec<Peer> = Vec::new();
    let mut idle_since = Instant::now();
    loop {
        let mut worked = false;
        for peer in &mut peers {
            worked |= peer.turn(payload_bytes)?;
        }
        peers.retain(|peer| !peer.ended);
        if worked {
            idle_since = Instant::now();
            continue;
        }
        if idle_since.elapsed() >= spin {
            let mut ready = vec![PollFd::from_borrowed_fd(listener, PollFlags::IN)];
            ready.extend(peers.iter().map(|peer| PollFd::from_borrowed_fd(peer.stream.as_fd(), PollFlags::IN)));
            poll(&mut ready, None)?;
            if ready[0].revents().contains(PollFlags::IN) {
                let stream = accept()?;
                stream.set_nonblocking(true)?;
                let buffer = vec![0; (BUFFER_BYTES / payload_bytes).max(1) * payload_bytes];
                peers.push(Peer { stream, buffer, filled: 0, answers: Vec::new(), ended: false });
            }
            idle_since = Instant::now();
        }
    }
}

const BUFFER_BYTES: usize = 64 << 10;

struct Peer {
    stream: Box<dyn Stream>,
    /// A whole number of requests.
    buffer: Vec<u8>,
    filled: usize,
    answers: Vec<u8>,
    ended: bool,
}

impl Peer {
    fn turn(&mut self, payload_bytes: usize) -> io::Result<bool> {
        let count = match self.stream.read(&mut self.buffer[self.filled..]) {
            Ok(0) => {
                self.ended = true;
                return Ok(true);
            }
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error),
        };
        self.filled += count;
        let requests = self.filled / payload_bytes;
        self.answers.clear();
        for request in self.buffer[..self.filled].chunks_exact(payload_bytes) {
            self.answers.extend_from_slice(&request[..MESSAGE_BYTES]);
        }
        write_all(&mut *self.stream, &self.answers)?;
        self.buffer.copy_within(requests * payload_bytes..self.filled, 0);
        self.filled -= requests * payload_bytes;
        Ok(true)
    }
}

/// Spins while a non-blocking stream is full.
fn write_all(stream: &mut (impl Stream + ?Sized), mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match stream.write(bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::hint::spin_loop(),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

pub struct StreamClient<S> {
    stream: S,
    /// What is sent.
    payload: Vec<u8>,
}

impl StreamClient<UnixStream> {
    pub fn unix(socket: &Path, spins: bool, payload_bytes: usize) -> Result<Self, Failure> {
        StreamClient::new(UnixStream::connect(socket)?, spins, payload_bytes)
    }
}

impl StreamClient<TcpStream> {
    pub fn tcp(address: &str, spins: bool, payload_bytes: usize) -> Result<Self, Failure> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        StreamClient::new(stream, spins, payload_bytes)
    }
}

impl<S: Stream> StreamClient<S> {
    fn new(stream: S, spins: bool, payload_bytes: usize) -> Result<Self, Failure> {
        stream.set_nonblocking(spins)?;
        Ok(StreamClient { stream, payload: vec![0; payload_bytes] })
    }
}

impl<S: Stream> Client for StreamClient<S> {
    fn round_trip(&mut self) -> Result<(), Failure> {
        write_all(&mut self.stream, &self.payload)?;
        let mut answer = [0; MESSAGE_BYTES];
        let mut filled = 0;
        while filled < answer.len() {
            match self.stream.read(&mut answer[filled..]) {
                Ok(0) => return Err("the echo server hung up".into()),
                Ok(count) => filled += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => std::hint::spin_loop(),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn make_tensor(&mut self, value: u8) -> Result<(), Failure> {
        self.payload.fill(value);
        Ok(())
    }

    fn send_tensor(&mut self) -> Result<(), Failure> {
        self.round_trip()
    }
}

/// Connections, each with its requests in flight.
pub struct StreamPipeline(Vec<Piped>);

struct Piped {
    stream: Box<dyn Stream>,
    /// Answers, the last perhaps not whole yet.
    buffer: Vec<u8>,
    filled: usize,
    /// The number that the next answer bears.
    answered: u64,
    /// The number of the next request.
    sent: u64,
}

impl StreamPipeline {
    pub fn unix(socket: &Path, count: usize, depth: usize) -> Result<StreamPipeline, Failure> {
        StreamPipeline::new(count, depth, || Ok(Box::new(UnixStream::connect(socket)?)))
    }

    pub fn tcp(address: &str, count: usize, depth: usize) -> Result<StreamPipeline, Failure> {
        StreamPipeline::new(count, depth, || {
            let stream = TcpStream::connect(address)?;
            stream.set_nodelay(true)?;
            Ok(Box::new(stream))
        })
    }

    fn new(
        count: usize,
        depth: usize,
        connect: impl Fn() -> io::Result<Box<dyn Stream>>,
    ) -> Result<StreamPipeline, Failure> {
        let mut connections = Vec::with_capacity(count);
        for _ in 0..count {
            let stream = connect()?;
            stream.set_nonblocking(true)?;
            let mut piped = Piped { stream, buffer: vec![0; MESSAGE_BYTES * depth], filled: 0, answered: 0, sent: 0 };
            piped.send(depth)?;
            connections.push(piped);
        }
        Ok(StreamPipeline(connections))
    }
}

impl Piped {
    /// Sends so many requests, each with its number, in the buffer of the answers that they follow.
    fn send(&mut self, count: usize) -> io::Result<()> {
        let messages = &mut self.buffer[..count * MESSAGE_BYTES];
        for message in messages.chunks_exact_mut(MESSAGE_BYTES) {
            message[..8].copy_from_slice(&self.sent.to_le_bytes());
            self.sent += 1;
        }
        write_all(&mut *self.stream, messages)
    }

    fn turn(&mut self) -> Result<u64, Failure> {
        match self.stream.read(&mut self.buffer[self.filled..]) {
            Ok(0) => return Err("the echo server hung up".into()),
            Ok(count) => self.filled += count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(0),
            Err(error) => return Err(error.into()),
        }
        let answers = self.filled / MESSAGE_BYTES;
        for answer in self.buffer[..self.filled].chunks_exact(MESSAGE_BYTES) {
            if answer[..8] != self.answered.to_le_bytes() {
                return Err(format!("an answer other than to request {}", self.answered).into());
            }
            self.answered += 1;
        }
        let rest = self.filled % MESSAGE_BYTES;
        if rest > 0 {
            // An answer in two parts: its first is not to be overwritten.
            let part = self.buffer[self.filled - rest..self.filled].to_vec();
            self.send(answers)?;
            self.buffer[..rest].copy_from_slice(&part);
        } else {
            self.send(answers)?;
        }
        self.filled = rest;
        Ok(answers as u64)
    }
}

impl Pipeline for StreamPipeline {
    fn turn(&mut self) -> Result<u64, Failure> {
        let mut done = 0;
        for connection in &mut self.0 {
            done += connection.turn()?;
        }
        Ok(done)
    }
}
