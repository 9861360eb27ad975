//! Echo servers: this program again, under a verb that its help does not show.

use super::{Client, Pipeline, ring, stream};
use crate::folder::Folder;
use crate::rounds::Failure;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A way between two processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Transport {
    Ring,
    Unix,
    Tcp,
    #[cfg(feature = "peers")]
    Grpc,
    #[cfg(feature = "peers")]
    Iceoryx2,
}

impl Transport {
    /// Rota's ring first.
    pub fn all() -> &'static [Transport] {
        <Transport as clap::ValueEnum>::value_variants()
    }

    pub fn name(self) -> &'static str {
        match self {
            Transport::Ring => "Rota's ring",
            Transport::Unix => "Unix socket",
            Transport::Tcp => "TCP loopback",
            #[cfg(feature = "peers")]
            Transport::Grpc => "gRPC (tonic)",
            #[cfg(feature = "peers")]
            Transport::Iceoryx2 => "iceoryx2",
        }
    }
}

/// What an echo server is started with; its command line.
#[derive(clap::Args, Clone, Debug)]
pub struct Arguments {
    transport: Transport,
    /// The core that it runs on.
    core: usize,
    /// Of a request; the answer is always a small one.
    payload_bytes: usize,
    spin_us: u64,
    /// Where sockets are made; it also names what has no socket.
    folder: PathBuf,
}

/// Serves until standard input ends: the process that started it has then gone.
pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    crate::cores::pin(arguments.core)?;
    std::thread::spawn(|| {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        std::process::exit(0);
    });
    let spin = Duration::from_micros(arguments.spin_us);
    let socket = arguments.folder.join(SOCKET);
    match arguments.transport {
        Transport::Ring => ring::serve(&socket, spin, arguments.payload_bytes, ready),
        Transport::Unix => stream::serve_unix(&socket, spin, arguments.payload_bytes, ready),
        Transport::Tcp => stream::serve_tcp(spin, arguments.payload_bytes, ready),
        #[cfg(feature = "peers")]
        Transport::Grpc => super::grpc::serve(ready),
        #[cfg(feature = "peers")]
        Transport::Iceoryx2 => super::iceoryx::serve(&service_name(&arguments.folder), spin, ready),
    }
}

/// Tells the process that started us where we are.
fn ready(address: &str) -> std::io::Result<()> {
    use std::io::Write;
    writeln!(std::io::stdout(), "{address}")
}

/// A running echo server; it ends when this is dropped.
#[derive(Debug)]
pub struct Server {
    transport: Transport,
    payload_bytes: usize,
    child: Child,
    folder: Folder,
    /// Of a TCP socket; otherwise empty.
    address: String,
}

impl Server {
    pub fn start(transport: Transport, core: usize, spin: Duration, payload_bytes: usize) -> Result<Server, Failure> {
        let folder = Folder::new("ipc")?;
        let mut command = Command::new(std::env::current_exe()?);
        let value = clap::ValueEnum::to_possible_value(&transport).expect("every transport has a name");
        command.arg("ipc-server").arg(value.get_name()).arg(core.to_string());
        command.arg(payload_bytes.to_string()).arg(spin.as_micros().to_string()).arg(&*folder);
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut server = Server { transport, payload_bytes, child, folder, address: String::new() };
        let stdout = server.child.stdout.take().expect("it was piped");
        let mut line = String::new();
        if BufReader::new(stdout).read_line(&mut line)? == 0 {
            return Err(format!("the echo server of {} did not start", transport.name()).into());
        }
        server.address = line.trim().to_owned();
        Ok(server)
    }

    /// A connection whose answers are awaited spinning, or sleeping when `spin` is zero.
    pub fn client(&self, spin: Duration) -> Result<Box<dyn Client>, Failure> {
        let spins = !spin.is_zero();
        Ok(match self.transport {
            Transport::Ring => Box::new(ring::RingClient::connect(&self.socket(), spins, self.payload_bytes)?),
            Transport::Unix => Box::new(stream::StreamClient::unix(&self.socket(), spins, self.payload_bytes)?),
            Transport::Tcp => Box::new(stream::StreamClient::tcp(&self.address, spins, self.payload_bytes)?),
            #[cfg(feature = "peers")]
            Transport::Grpc => Box::new(super::grpc::GrpcClient::connect(&self.address, self.payload_bytes)?),
            #[cfg(feature = "peers")]
            Transport::Iceoryx2 => {
                Box::new(super::iceoryx::IceoryxClient::connect(&service_name(&self.folder), self.payload_bytes)?)
            }
        })
    }

    /// `count` connections with `depth` requests in flight each, driven by the thread that calls.
    pub fn pipeline(&self, count: usize, depth: usize) -> Result<Box<dyn Pipeline>, Failure> {
        Ok(match self.transport {
            Transport::Ring => Box::new(ring::RingPipeline::connect(&self.socket(), count, depth)?),
            Transport::Unix => Box::new(stream::StreamPipeline::unix(&self.socket(), count, depth)?),
            Transport::Tcp => Box::new(stream::StreamPipeline::tcp(&self.address, count, depth)?),
            #[cfg(feature = "peers")]
            Transport::Grpc => Box::new(super::grpc::GrpcPipeline::connect(&self.address, count, depth)?),
            #[cfg(feature = "peers")]
            Transport::Iceoryx2 => {
                Box::new(super::iceoryx::IceoryxPipeline::connect(&service_name(&self.folder), count, depth)?)
            }
        })
    }

    fn socket(&self) -> PathBuf {
        self.folder.join(SOCKET)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It ends at the end of its input.
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

#[cfg(feature = "peers")]
fn service_name(folder: &std::path::Path) -> String {
    format!("rota-bench/{}", folder.file_name().unwrap_or_default().to_string_lossy())
}

const SOCKET: &str = "socket";
