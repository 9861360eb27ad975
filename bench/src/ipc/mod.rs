//! The ring against other ways between processes: round trips, throughput, large tensors.
//!
//! Every transport has an echo server in a process of its own, which answers at once: what is measured is the way there and
//! back. Rota's server is [`rota_ipc::server::Connection`] driven by a bare loop, its client the client library; a small request
//! is 64 bytes, which for Rota means a descriptor, a block and a tensor of 64 bytes, and peers answer as many. With many requests
//! in flight a byte stream moves whatever has gathered with one system call; Rota's ring handles and checks each by itself. A large tensor starts where its client made it
//! (in shared memory where the transport lends some) and ends in memory of the server's own.
//!
//! Client and server keep to cores of their own: two spinners on one core would measure the kernel's time slices. A spinning server spins for [`SPIN`] after its last request and then sleeps, so that it takes no core from the others' rounds.

#[cfg(feature = "peers")]
pub mod grpc;
#[cfg(feature = "peers")]
pub mod iceoryx;
pub mod ring;
pub mod server;
pub mod stream;

use crate::cores;
use crate::rounds::{Comparison, Contender, Failure, compare};
use crate::timing::Round;
use server::{Server, Transport};
use std::time::Duration;

/// Bytes of a small request and of every answer.
pub const MESSAGE_BYTES: usize = 64;
/// One picture, 3 × 224 × 224 f32.
pub const TENSOR_BYTES: usize = 3 * 224 * 224 * 4;
/// Most requests that each client keeps in flight when throughput is measured.
pub const DEPTH: usize = 32;
/// Connections of the throughput with many clients.
pub const CLIENTS: usize = 8;
/// How long a spinning server looks for the next request before it sleeps.
pub const SPIN: Duration = Duration::from_millis(1);

/// One connection to an echo server, used by one thread.
pub trait Client {
    /// Sends a small request and waits for its answer.
    fn round_trip(&mut self) -> Result<(), Failure>;
    /// Makes the next large tensor where it will be sent from.
    fn make_tensor(&mut self, value: u8) -> Result<(), Failure>;
    /// Sends it, and waits until the server has it.
    fn send_tensor(&mut self) -> Result<(), Failure>;
}

/// Connections that keep as many requests in flight.
pub trait Pipeline {
    /// Takes answers and sends as many requests; how many were answered.
    fn turn(&mut self) -> Result<u64, Failure>;
}

/// Measures everything; `progress` is told what comes next.
pub fn run(rounds: u32, length: Duration, mut progress: impl FnMut(&str)) -> Result<Vec<Comparison>, Failure> {
    let cores = cores::allowed()?;
    let (client, server) = (cores[0], cores[cores.len() - 1]);
    cores::pin(client)?;
    let start = |transport, spin, payload_bytes| Server::start(transport, server, spin, payload_bytes);
    let round = Round::of(length);
    let mut compared = Vec::new();
    for (name, spin) in [("both sides spin", SPIN), ("both sides sleep", Duration::ZERO)] {
        progress(&format!("round trip, {name}"));
        let metrics = [format!("round trip, {name}, p50"), format!("round trip, {name}, p99")];
        let metrics = metrics.each_ref().map(|what| (what.as_str(), "µs"));
        let mut clients = clients(start, spin, MESSAGE_BYTES)?;
        let contenders = clients.iter_mut().map(|(transport, _server, client)| {
            let mut times = Vec::new();
            Contender::new(transport.name(), move || round.latency(&mut times, || Ok(()), || client.round_trip()))
        });
        compared.extend(compare(&metrics, rounds, &mut contenders.collect::<Vec<_>>())?);
    }
    for (count, depth) in [(1, DEPTH), (CLIENTS, 1), (CLIENTS, DEPTH)] {
        let what = format!("throughput, clients: {count}, in flight of each: {depth}");
        progress(&what);
        let mut pipelines = Vec::new();
        for transport in Transport::all() {
            let server = start(*transport, SPIN, MESSAGE_BYTES)?;
            let pipeline = server.pipeline(count, depth)?;
            pipelines.push((*transport, server, pipeline));
        }
        let contenders = pipelines.iter_mut().map(|(transport, _server, pipeline)| {
            Contender::new(transport.name(), move || round.throughput(|| pipeline.turn()))
        });
        compared.extend(compare(&[(&what, "million/s")], rounds, &mut contenders.collect::<Vec<_>>())?);
    }
    progress("large tensors");
    let metrics = [format!("{TENSOR_BYTES} bytes, p50"), format!("{TENSOR_BYTES} bytes, p99")];
    let metrics = metrics.each_ref().map(|what| (what.as_str(), "µs"));
    let mut clients = clients(start, SPIN, TENSOR_BYTES)?;
    let contenders = clients.iter_mut().map(|(transport, _server, client)| {
        let (mut times, mut value) = (Vec::new(), 0u8);
        let client = std::cell::RefCell::new(client);
        Contender::new(transport.name(), move || {
            let make = || {
                value = value.wrapping_add(1);
                client.borrow_mut().make_tensor(value)
            };
            round.latency(&mut times, make, || client.borrow_mut().send_tensor())
        })
    });
    compared.extend(compare(&metrics, rounds, &mut contenders.collect::<Vec<_>>())?);
    Ok(compared)
}

type Connected = (Transport, Server, Box<dyn Client>);

/// A server and a client of each transport. The ring is the first: the others are compared with it.
fn clients(
    start: impl Fn(Transport, Duration, usize) -> Result<Server, Failure>,
    spin: Duration,
    payload_bytes: usize,
) -> Result<Vec<Connected>, Failure> {
    let mut clients = Vec::new();
    for transport in Transport::all() {
        // iceoryx2's request-response has no way to wait for an answer: its users add events of their own.
        if transport.name() == "iceoryx2" && spin.is_zero() {
            continue;
        }
        let server = start(*transport, spin, payload_bytes)?;
        let client = server.client(spin)?;
        clients.push((*transport, server, client));
    }
    Ok(clients)
}
