//! A client and the server side of the protocol, each on its own thread or in its own process.

mod support;

use rota_ipc::client::{Control, Deadline, Error, Open};
use rota_ipc::wire::{Reason, Status};
use rota_ipc::{Client, ClientOptions};
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use support::{Daemon, eventually, socket_path, spawn_test_process};

const LONG: Duration = Duration::from_secs(10);

fn small() -> ClientOptions {
    ClientOptions { slots: 8, arena_bytes: 64 << 10, ..ClientOptions::default() }
}

fn connect(daemon: &Daemon, options: ClientOptions) -> (Client, rota_ipc::client::Session) {
    let mut client = Client::connect(&daemon.path, options).unwrap();
    let session = client.open("double", Open::default()).unwrap();
    (client, session)
}

fn filled(client: &Client, session: &rota_ipc::client::Session, value: f32) -> rota_ipc::client::Request {
    let mut request = client.request(session).unwrap();
    request.input::<f32>("x", &[2, 4]).unwrap().fill(value);
    request
}

#[test]
fn answer_holds_outputs_dims_tag_and_timing() {
    let daemon = Daemon::start(socket_path("answer"));
    let (mut client, session) = connect(&daemon, small());
    assert_eq!((session.model().name.as_str(), session.slo()), ("double", Duration::from_millis(50)));
    let mut request = filled(&client, &session, 21.0);
    request.tag = 77;
    request.deadline = Deadline::Within(Duration::from_secs(1));
    let answer = client.infer(request).unwrap();
    assert_eq!((answer.status, answer.reason, answer.tag), (Status::Ok, Reason::None, 77));
    let output = answer.output::<f32>("y").unwrap();
    assert_eq!((output.dims, output.data), (&[2, 4][..], &[42.0f32; 8][..]));
    assert_eq!((answer.timing.queued.as_nanos(), answer.timing.executing.as_nanos()), (1_000, 2_000));
    assert!(matches!(answer.output::<i32>("y"), Err(Error::WrongElement { .. })));
    assert!(matches!(answer.output::<f32>("z"), Err(Error::UnknownTensor { .. })));
    assert_eq!(client.in_flight_count(), 0);
}
