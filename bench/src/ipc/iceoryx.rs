//! iceoryx2: request-response over its shared memory.

use super::{CLIENTS, Client, DEPTH, MESSAGE_BYTES, Pipeline};
use crate::rounds::Failure;
use iceoryx2::pending_response::PendingResponse;
use iceoryx2::port::client::Client as Port;
use iceoryx2::prelude::*;
use iceoryx2::request_mut::RequestMut;
use iceoryx2::service::port_factory::request_response::PortFactory;
use std::time::{Duration, Instant};

type Answer = [u8; MESSAGE_BYTES];
type Service = ipc::Service;
type Pending = PendingResponse<Service, [u8], (), Answer, ()>;

fn node() -> Result<Node<Service>, Failure> {
    // That it finds no configuration file is no news.
    set_log_level(LogLevel::Error);
    Ok(NodeBuilder::new().create::<Service>()?)
}

fn open(node: &Node<Service>, name: &str) -> Result<PortFactory<Service, [u8], (), Answer, ()>, Failure> {
    let service = node.service_builder(&name.try_into()?).request_response::<[u8], Answer>();
    let service = service.max_active_requests_per_client(DEPTH).max_loaned_requests(DEPTH);
    // One for each benchmark client, and one for the connection that is being dropped.
    Ok(service.max_clients(CLIENTS + 1).max_servers(1).max_nodes(CLIENTS + 2).open_or_create()?)
}

/// Answers every request at once, after copying it out of shared memory.
pub fn serve(name: &str, spin: Duration, announce: impl FnOnce(&str) -> std::io::Result<()>) -> Result<(), Failure> {
    let node = node()?;
    let service = open(&node, name)?;
    let server = service.server_builder().create()?;
    announce("")?;
    let mut copy: Vec<u8> = Vec::new();
    let mut idle_since = Instant::now();
    loop {
        let mut worked = false;
        while let Some(request) = server.receive()? {
            copy.clear();
            copy.extend_from_slice(&request);
            request.send_copy([1; MESSAGE_BYTES])?;
            worked = true;
        }
        if worked {
            idle_since = Instant::now();
        } else if idle_since.elapsed() >= spin {
            // It has no wake-up of its own; only between rounds.
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

pub struct IceoryxClient {
    port: Port<Service, [u8], (), Answer, ()>,
    payload_bytes: usize,
    /// A tensor that was made and not sent.
    loan: Option<RequestMut<Service, [u8], (), Answer, ()>>,
    _service: PortFactory<Service, [u8], (), Answer, ()>,
    _node: Node<Service>,
}

impl IceoryxClient {
    pub fn connect(name: &str, payload_bytes: usize) -> Result<IceoryxClient, Failure> {
        let node = node()?;
        let service = open(&node, name)?;
        let port = service.client_builder().initial_max_slice_len(payload_bytes).create()?;
        Ok(IceoryxClient { port, payload_bytes, loan: None, _service: service, _node: node })
    }

    fn small(&self) -> Result<Pending, Failure> {
        let request = self.port.loan_slice_uninit(MESSAGE_BYTES)?;
        Ok(request.write_from_slice(&[0; MESSAGE_BYTES]).send()?)
    }
}

fn wait(pending: &Pending) -> Result<(), Failure> {
    loop {
        if pending.receive()?.is_some() {
            return Ok(());
        }
        std::hint::spin_loop();
    }
}

impl Client for IceoryxClient {
    fn round_trip(&mut self) -> Result<(), Failure> {
        wait(&self.small()?)
    }

    fn make_tensor(&mut self, value: u8) -> Result<(), Failure> {
        let loan = self.port.loan_slice_uninit(self.payload_bytes)?;
        self.loan = Some(loan.write_from_fn(|_| value));
        Ok(())
    }

    fn send_tensor(&mut self) -> Result<(), Failure> {
        let loan = self.loan.take().ok_or("no tensor was made")?;
        wait(&loan.send()?)
    }
}

/// Clients and their requests in flight; `None` only between an answer and the next request.
pub struct IceoryxPipeline(Vec<(IceoryxClient, Vec<Option<Pending>>)>);

impl IceoryxPipeline {
    pub fn connect(name: &str, count: usize, depth: usize) -> Result<IceoryxPipeline, Failure> {
        let mut clients = Vec::with_capacity(count);
        for _ in 0..count {
            let client = IceoryxClient::connect(name, MESSAGE_BYTES)?;
            let pending = (0..depth).map(|_| client.small().map(Some)).collect::<Result<_, _>>()?;
            clients.push((client, pending));
        }
        Ok(IceoryxPipeline(clients))
    }
}

impl Pipeline for IceoryxPipeline {
    fn turn(&mut self) -> Result<u64, Failure> {
        let mut done = 0;
        for (client, pending) in &mut self.0 {
            for slot in pending {
                let answer = slot.as_ref().map(Pending::receive).transpose()?.flatten();
                if answer.is_some() {
                    drop(answer);
                    // A request counts as active for as long as its answer can be received.
                    *slot = None;
                    *slot = Some(client.small()?);
                    done += 1;
                }
            }
        }
        Ok(done)
    }
}
