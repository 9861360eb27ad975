//! gRPC through tonic: unary calls over TCP, messages as they are (no protobuf around them).

use super::{Client, MESSAGE_BYTES, Pipeline};
use crate::rounds::Failure;
use bytes::{Buf, BufMut, Bytes};
use http::uri::PathAndQuery;
use std::cell::Cell;
use std::convert::Infallible;
use std::future::{Future, Ready, ready};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use tokio::runtime::{Builder, Runtime};
use tokio::task::LocalSet;
use tonic::body::Body;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};

const PATH: &str = "/rota.bench.Echo/Echo";
/// A tensor in one flow-control window, as one would set it for such messages.
const WINDOW_BYTES: u32 = 4 << 20;

/// Bytes, unchanged.
#[derive(Clone, Copy, Default)]
struct Plain;

impl Codec for Plain {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Plain;
    type Decoder = Plain;

    fn encoder(&mut self) -> Plain {
        Plain
    }

    fn decoder(&mut self) -> Plain {
        Plain
    }
}

impl Encoder for Plain {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        into.put(item);
        Ok(())
    }
}

impl Decoder for Plain {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}

/// Answers every call with a small message.
#[derive(Clone)]
struct Echo(Bytes);

impl tonic::server::UnaryService<Bytes> for Echo {
    type Response = Bytes;
    type Future = Ready<Result<Response<Bytes>, Status>>;

    fn call(&mut self, _: Request<Bytes>) -> Self::Future {
        ready(Ok(Response::new(self.0.clone())))
    }
}

impl tower_service::Service<http::Request<Body>> for Echo {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let echo = self.clone();
        Box::pin(async move { Ok(tonic::server::Grpc::new(Plain).unary(echo, request).await) })
    }
}

pub fn serve(announce: impl FnOnce(&str) -> std::io::Result<()>) -> Result<(), Failure> {
    runtime()?.block_on(async {
        let incoming = tonic::transport::server::TcpIncoming::bind("127.0.0.1:0".parse()?)?.with_nodelay(Some(true));
        announce(&incoming.local_addr()?.to_string())?;
        let builder = tonic::transport::Server::builder();
        let mut builder = builder.initial_stream_window_size(WINDOW_BYTES).initial_connection_window_size(WINDOW_BYTES);
        builder = builder.max_frame_size((1 << 24) - 1);
        Ok(builder.serve_with_incoming(Echo(vec![1; MESSAGE_BYTES].into()), incoming).await?)
    })
}

/// One thread for everything, as the other contenders have.
fn runtime() -> std::io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}

async fn connect(address: &str) -> Result<tonic::client::Grpc<Channel>, Failure> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?.tcp_nodelay(true);
    let endpoint = endpoint.initial_stream_window_size(WINDOW_BYTES).initial_connection_window_size(WINDOW_BYTES);
    Ok(tonic::client::Grpc::new(endpoint.connect().await?))
}

async fn call(client: &mut tonic::client::Grpc<Channel>, payload: Bytes) -> Result<(), Status> {
    client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let answer = client.unary(Request::new(payload), PathAndQuery::from_static(PATH), Plain).await?;
    match answer.into_inner().len() {
        MESSAGE_BYTES => Ok(()),
        other => Err(Status::data_loss(format!("an answer of {other} bytes"))),
    }
}

pub struct GrpcClient {
    runtime: Runtime,
    client: tonic::client::Grpc<Channel>,
    payload: Bytes,
}

impl GrpcClient {
    pub fn connect(address: &str, payload_bytes: usize) -> Result<GrpcClient, Failure> {
        let runtime = runtime()?;
        let client = runtime.block_on(connect(address))?;
        Ok(GrpcClient { runtime, client, payload: vec![0; payload_bytes].into() })
    }
}

impl Client for GrpcClient {
    fn round_trip(&mut self) -> Result<(), Failure> {
        Ok(self.runtime.block_on(call(&mut self.client, self.payload.clone()))?)
    }

    fn make_tensor(&mut self, value: u8) -> Result<(), Failure> {
        // Its own again once the last call has sent it.
        let mut bytes = std::mem::take(&mut self.payload).try_into_mut().unwrap_or_else(|shared| shared[..].into());
        bytes.fill(value);
        self.payload = bytes.freeze();
        Ok(())
    }

    fn send_tensor(&mut self) -> Result<(), Failure> {
        self.round_trip()
    }
}

/// Tasks on one thread that call without end.
pub struct GrpcPipeline {
    runtime: Runtime,
    tasks: LocalSet,
    done: Rc<Cell<u64>>,
    failed: Rc<Cell<Option<Status>>>,
}

impl GrpcPipeline {
    pub fn connect(address: &str, count: usize, depth: usize) -> Result<GrpcPipeline, Failure> {
        let (runtime, tasks) = (runtime()?, LocalSet::new());
        let (done, failed) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(None)));
        for _ in 0..count {
            let client = runtime.block_on(connect(address))?;
            for _ in 0..depth {
                let (mut client, done, failed) = (client.clone(), done.clone(), failed.clone());
                tasks.spawn_local(async move {
                    let payload = Bytes::from_static(&[0; MESSAGE_BYTES]);
                    loop {
                        match call(&mut client, payload.clone()).await {
                            Ok(()) => done.set(done.get() + 1),
                            Err(status) => return failed.set(Some(status)),
                        }
                    }
                });
            }
        }
        Ok(GrpcPipeline { runtime, tasks, done, failed })
    }
}

impl Pipeline for GrpcPipeline {
    /// Lets the tasks run for a moment.
    fn turn(&mut self) -> Result<u64, Failure> {
        let before = self.done.get();
        let moment = tokio::time::Duration::from_micros(500);
        self.runtime.block_on(self.tasks.run_until(async { tokio::time::sleep(moment).await }));
        match self.failed.take() {
            Some(status) => Err(status.into()),
            None => Ok(self.done.get() - before),
        }
    }
}
