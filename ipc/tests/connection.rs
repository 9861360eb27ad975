//! A client and the server side of the protocol, each on its own thread or in its own process.

mod support;

use rota_ipc::client::{Answer, Control, Deadline, Error, Open, Request, Session};
use rota_ipc::control::{ErrorCode, REPLY_BYTES_MAX, REQUEST_BYTES_MAX, Reply, Request as Question};
use rota_ipc::frame::{FrameReader, encode, recv_with_fds};
use rota_ipc::region::{Regions, State};
use rota_ipc::wire::{Reason, Status};
use rota_ipc::{Client, ClientOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;
use std::time::Duration;
use support::{Daemon, HOLD, eventually, socket_path, spawn_test_process};

const LONG: Duration = Duration::from_secs(10);

fn small() -> ClientOptions {
    ClientOptions { slots: 8, arena_bytes: 64 << 10, ..ClientOptions::default() }
}

fn connect(daemon: &Daemon, options: ClientOptions) -> (Client, Session) {
    let mut client = Client::connect(&daemon.path, options).unwrap();
    let session = client.open("double", Open::default()).unwrap();
    (client, session)
}

fn filled(client: &Client, session: &Session, value: f32) -> Request {
    let mut request = client.request(session).unwrap();
    request.input::<f32>("x", &[2, 4]).unwrap().fill(value);
    request
}

fn is_doubled(answer: &Answer, value: f32) -> bool {
    answer.output::<f32>(0).unwrap().data == [2.0 * value; 8]
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
    assert!(client.wait(LONG).unwrap().is_none(), "nothing is in flight");
}

#[test]
fn request_is_used_again_with_other_items() {
    let daemon = Daemon::start(socket_path("again"));
    let (mut client, session) = connect(&daemon, small());
    let mut request = client.request(&session).unwrap();
    for items in [1u32, 5, 2, 100] {
        request.input::<f32>(0, &[items, 4]).unwrap().fill(items as f32);
        let answer = client.infer(request).unwrap();
        let output = answer.output::<f32>(0).unwrap();
        assert_eq!((output.dims, output.data.len()), (&[items, 4][..], items as usize * 4));
        assert!(output.data.iter().all(|value| *value == 2.0 * items as f32));
        request = answer.into_request();
    }
}

#[test]
fn requests_that_can_not_be_asked_say_why_and_come_back() {
    let daemon = Daemon::start(socket_path("wrong"));
    let (mut client, session) = connect(&daemon, small());
    let mut request = client.request(&session).unwrap();
    let error = request.input::<f32>("z", &[1, 4]).unwrap_err().to_string();
    assert_eq!(error, "model double has no input z; it has x");
    let error = request.input::<f64>("x", &[1, 4]).unwrap_err().to_string();
    assert_eq!(error, "x of model double is F32, which is no f64");
    assert!(matches!(request.input::<f32>("x", &[1; 9]), Err(Error::WrongDims { .. })));
    assert!(matches!(request.input::<f32>("x", &[u32::MAX; 8]), Err(Error::WrongDims { .. })));
    let error = request.input::<f32>("x", &[1 << 14, 4]).unwrap_err().to_string();
    assert!(error.starts_with("arena exhausted: 262144 bytes wanted, 65536 of 65536 are free"), "{error}");
    let rejected = client.submit(request).unwrap_err();
    assert_eq!(rejected.error.to_string(), "input x of model double was not given");
    let mut request = rejected.request;
    request.input::<f32>("x", &[0, 4]).unwrap();
    let rejected = client.submit(request).unwrap_err();
    assert!(matches!(rejected.error, Error::WrongItems { found: 0, expected: 1, .. }), "{rejected}");

    let open = client.open("open", Open::default()).unwrap();
    let rejected = client.submit(filled(&client, &open, 1.0)).unwrap_err();
    assert!(matches!(rejected.error, Error::RoomUnknown { .. }), "{rejected}");
    let mut request = rejected.request;
    request.output("y", 64).unwrap();
    assert!(is_doubled(&client.infer(request).unwrap(), 1.0));

    let (other, foreign) = connect(&daemon, small());
    assert!(matches!(client.request(&foreign), Err(Error::Foreign { .. })));
    let rejected = client.submit(filled(&other, &foreign, 1.0)).unwrap_err();
    assert!(matches!(rejected.error, Error::Foreign { .. }));
}

#[test]
fn failed_request_carries_the_daemons_reason_and_words() {
    let daemon = Daemon::start(socket_path("failed"));
    let (mut client, session) = connect(&daemon, small());
    let answer = client.infer(filled(&client, &session, support::FAIL)).unwrap();
    assert_eq!((answer.status, answer.reason), (Status::Failed, Reason::Engine));
    assert_eq!(answer.message(), "the engine does not like -2");
    let error = answer.output::<f32>(0).unwrap_err().to_string();
    assert_eq!(error, "Failed (Engine): the engine does not like -2");
    // The request is as good as before.
    let mut request = answer.into_request();
    request.input::<f32>(0, &[2, 4]).unwrap().fill(4.0);
    let answer = client.infer(request).unwrap();
    assert!(is_doubled(&answer, 4.0) && answer.message().is_empty());
}

#[test]
fn cancelled_request_is_answered_once() {
    let daemon = Daemon::start(socket_path("cancel"));
    let (mut client, session) = connect(&daemon, small());
    let ticket = client.submit(filled(&client, &session, HOLD)).unwrap();
    assert!(client.wait(Duration::from_millis(30)).unwrap().is_none(), "the daemon holds it");
    assert!(client.cancel(ticket).unwrap());
    assert!(!client.cancel(ticket).unwrap(), "once is enough");
    let answer = client.wait_for(ticket, LONG).unwrap().unwrap();
    assert_eq!((answer.status, answer.message()), (Status::Cancelled, "cancelled by the client"));
    assert!(!client.cancel(ticket).unwrap(), "it was answered");
    assert!(client.wait_for(ticket, LONG).unwrap().is_none(), "it was taken");
}

#[test]
fn all_slots_can_be_in_flight_and_cancelled_at_once() {
    let daemon = Daemon::start(socket_path("full"));
    let (mut client, session) = connect(&daemon, small());
    daemon.switches.stalled.store(true, Ordering::Relaxed);
    let tickets: Vec<_> = (0..8).map(|_| client.submit(filled(&client, &session, HOLD)).unwrap()).collect();
    let rejected = client.submit(filled(&client, &session, 1.0)).unwrap_err();
    assert!(matches!(rejected.error, Error::SlotsFull { slots: 8 }), "{rejected}");
    for ticket in &tickets {
        assert!(client.cancel(*ticket).unwrap());
    }
    daemon.switches.stalled.store(false, Ordering::Relaxed);
    for ticket in tickets {
        assert_eq!(client.wait_for(ticket, LONG).unwrap().unwrap().status, Status::Cancelled);
    }
    assert!(is_doubled(&client.infer(rejected.request).unwrap(), 1.0));
}

#[test]
fn answers_not_taken_hold_their_slots_and_harm_nobody() {
    let daemon = Daemon::start(socket_path("unread"));
    let (mut client, session) = connect(&daemon, small());
    let tickets: Vec<_> = (0..8).map(|value| client.submit(filled(&client, &session, value as f32)).unwrap()).collect();
    // The last one is waited for; the others' answers are read with it and kept.
    assert!(is_doubled(&client.wait_for(tickets[7], LONG).unwrap().unwrap(), 7.0));
    assert!(client.submit(filled(&client, &session, 9.0)).is_ok());
    let rejected = client.submit(filled(&client, &session, 10.0)).unwrap_err();
    assert!(matches!(rejected.error, Error::SlotsFull { .. }));

    let (mut other, other_session) = connect(&daemon, small());
    assert!(is_doubled(&other.infer(filled(&other, &other_session, 3.0)).unwrap(), 3.0));

    for (value, ticket) in tickets[..7].iter().enumerate() {
        let answer = client.wait(LONG).unwrap().unwrap();
        assert_eq!(answer.ticket, *ticket);
        assert!(is_doubled(&answer, value as f32));
    }
    assert!(is_doubled(&client.wait(LONG).unwrap().unwrap(), 9.0));
    assert_eq!(daemon.switches.poisoned.load(Ordering::Relaxed), 0);
}

#[test]
fn sleepers_of_either_side_are_woken() {
    let daemon = Daemon::start(socket_path("wake"));
    // It never spins: each wait sleeps on the futex.
    let (mut client, session) = connect(&daemon, ClientOptions { spin: Duration::ZERO, ..small() });
    let mut request = filled(&client, &session, 0.0);
    for round in 0..200 {
        if round % 8 == 0 {
            // Long enough that the daemon sleeps on the doorbell.
            std::thread::sleep(Duration::from_millis(2));
        }
        request.input::<f32>(0, &[2, 4]).unwrap().fill(round as f32);
        let answer = client.infer(request).unwrap();
        assert!(is_doubled(&answer, round as f32));
        request = answer.into_request();
    }
    assert!(daemon.switches.rings.load(Ordering::Relaxed) > 0, "the daemon slept and was rung");
}

#[test]
fn event_loop_sleeps_on_the_clients_descriptor() {
    let daemon = Daemon::start(socket_path("event"));
    let (mut client, session) = connect(&daemon, small());
    for round in 0..50 {
        let ticket = client.submit(filled(&client, &session, round as f32)).unwrap();
        let answer = loop {
            if let Some(answer) = client.poll().unwrap() {
                break answer;
            }
            if client.arm().unwrap() {
                let flags = rustix::event::PollFlags::IN;
                let mut descriptors = [rustix::event::PollFd::from_borrowed_fd(client.as_fd(), flags)];
                let timeout = rustix::time::Timespec { tv_sec: 10, tv_nsec: 0 };
                assert_eq!(rustix::event::poll(&mut descriptors, Some(&timeout)), Ok(1), "the daemon rings");
            }
        };
        assert_eq!(answer.ticket, ticket);
        assert!(is_doubled(&answer, round as f32));
    }
}

#[test]
fn control_questions_need_no_shared_memory() {
    let daemon = Daemon::start(socket_path("control"));
    let mut control = Control::connect(&daemon.path, LONG).unwrap();
    assert_eq!(control.models().unwrap(), support::models());
    assert_eq!(control.status().unwrap()["in_flight"], 0);
    control.unload("double", None).unwrap();
    control.drain().unwrap();
    let Err(Error::Refused { code: ErrorCode::Permission, message }) = control.load("x", None) else { panic!() };
    assert_eq!(message, "only root may load models");
    assert_eq!(control.models().unwrap().len(), 2, "a refusal ends nothing");
}

#[test]
fn connect_errors_say_what_to_do() {
    let path = socket_path("errors");
    let error = Client::connect(&path, small()).unwrap_err().to_string();
    let expected =
        format!("no daemon listens on {}; start `rota serve`, or set ROTA_SOCKET to its socket", path.display());
    assert_eq!(error, expected);
    let daemon = Daemon::start(path);
    let refused = |options| match Client::connect(&daemon.path, options).unwrap_err() {
        Error::Refused { code, message } => (code, message),
        other => panic!("{other}"),
    };
    let (code, message) = refused(ClientOptions { slots: 9, ..small() });
    assert_eq!((code, message.as_str()), (ErrorCode::Limit, "9 request slots; it takes a power of two in 8..=4096"));
    let mut client = Client::connect(&daemon.path, small()).unwrap();
    let error = client.open("missing", Open::default()).unwrap_err();
    assert_eq!(error.to_string(), "the daemon refused: no model missing; served: double, open");
}

#[test]
fn closed_session_can_not_be_used() {
    let daemon = Daemon::start(socket_path("close"));
    let (mut client, session) = connect(&daemon, small());
    let request = filled(&client, &session, 1.0);
    client.close(session.clone()).unwrap();
    assert!(matches!(client.request(&session), Err(Error::Foreign { .. })));
    assert!(matches!(client.submit(request).unwrap_err().error, Error::Foreign { .. }));
}

#[test]
fn daemon_that_ends_is_noticed_and_its_successor_serves_the_same_sessions() {
    let path = socket_path("restart");
    let daemon = Daemon::start(path.clone());
    let (mut client, session) = connect(&daemon, small());
    let ticket = client.submit(filled(&client, &session, HOLD)).unwrap();
    let idle = filled(&client, &session, 1.0);
    drop(daemon);
    let error = client.wait_for(ticket, LONG).unwrap_err();
    assert!(matches!(error, Error::Disconnected { .. }), "{error}");
    assert!(matches!(client.poll(), Err(Error::Disconnected { .. })));
    assert!(matches!(client.submit(idle).unwrap_err().error, Error::Disconnected { .. }));
    assert!(matches!(client.reconnect(), Err(Error::NoDaemon { .. })));

    let _daemon = Daemon::start(path);
    client.reconnect().unwrap();
    assert_eq!(client.in_flight_count(), 0);
    assert!(is_doubled(&client.infer(filled(&client, &session, 5.0)).unwrap(), 5.0));
}

#[test]
fn what_was_answered_before_the_daemon_ended_can_still_be_taken() {
    let daemon = Daemon::start(socket_path("answered"));
    let (mut client, session) = connect(&daemon, small());
    let answered = client.submit(filled(&client, &session, 3.0)).unwrap();
    let held = client.submit(filled(&client, &session, HOLD)).unwrap();
    while client.control().status().unwrap()["in_flight"] != 1 {
        std::thread::sleep(Duration::from_millis(1));
    }
    drop(daemon);
    // The other answer is read meanwhile; it must not hide that this one will never come.
    assert!(matches!(client.wait_for(held, LONG), Err(Error::Disconnected { .. })));
    let answer = client.poll().unwrap().unwrap();
    assert!(answer.ticket == answered && is_doubled(&answer, 3.0));
    assert!(matches!(client.poll(), Err(Error::Disconnected { .. })));
}

#[test]
fn poisoned_client_learns_why() {
    let daemon = Daemon::start(socket_path("poisoned"));
    let (mut client, session) = connect(&daemon, small());
    let ticket = client.submit(filled(&client, &session, HOLD)).unwrap();
    daemon.switches.poison.store(true, Ordering::Relaxed);
    let error = client.wait_for(ticket, LONG).unwrap_err().to_string();
    let why = "a request came while all 8 request slots were in flight or their completions unread";
    assert_eq!(error, format!("disconnected: {why}"));
}

/// No library: a client that moves its tail past what the ring holds.
#[test]
fn client_that_breaks_the_protocol_is_disconnected_and_others_are_served() {
    let daemon = Daemon::start(socket_path("hostile"));
    let (mut honest, session) = connect(&daemon, small());
    let mut stream = UnixStream::connect(&daemon.path).unwrap();
    let hello = Question::Hello { versions: vec![1], client: "hostile".into(), slots: 8, arena_bytes: 4096 };
    stream.write_all(&encode(&hello, REQUEST_BYTES_MAX).unwrap()).unwrap();
    let (mut reader, mut descriptors, mut bytes) = (FrameReader::new(REPLY_BYTES_MAX), Vec::new(), [0; 4096]);
    let mut next_reply = |descriptors: &mut Vec<OwnedFd>| loop {
        if let Some(reply) = reader.next::<Reply>().unwrap() {
            return reply;
        }
        let count = recv_with_fds(stream.as_fd(), &mut bytes, descriptors).unwrap();
        assert!(count > 0, "the daemon hung up without a word");
        reader.push(&bytes[..count]);
    };
    assert!(matches!(next_reply(&mut descriptors), Reply::Welcome { slots: 8, .. }));
    let _doorbell = descriptors.pop().unwrap();
    let regions = Regions::open(8, 4096, &descriptors.try_into().unwrap()).unwrap();
    regions.submissions().tail.store(17, Ordering::Release);
    let Reply::Poisoned { message } = next_reply(&mut Vec::new()) else { panic!("not poisoned") };
    assert_eq!(message, "a ring's tail 17 is more than 16 entries past its head 0");
    assert_eq!(regions.state().load(Ordering::Acquire), State::Poisoned as u32);
    assert!(is_doubled(&honest.infer(filled(&honest, &session, 6.0)).unwrap(), 6.0));
}

#[test]
fn request_from_before_a_reconnect_is_refused() {
    let daemon = Daemon::start(socket_path("stale"));
    let (mut client, session) = connect(&daemon, small());
    let mut stale = filled(&client, &session, 1.0);
    client.reconnect().unwrap();
    assert_eq!(stale.input::<f32>(0, &[2, 4]).unwrap().len(), 8, "its memory is still its own");
    assert!(matches!(stale.input::<f32>(0, &[100, 4]), Err(Error::Foreign { .. })));
    assert!(matches!(client.submit(stale).unwrap_err().error, Error::Foreign { .. }));
    assert!(is_doubled(&client.infer(filled(&client, &session, 5.0)).unwrap(), 5.0));
}

#[test]
fn client_in_another_process_is_served() {
    let daemon = Daemon::start(socket_path("process"));
    let child = spawn_test_process("client_process", &daemon.path);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    eventually("the hang-up", || daemon.switches.hung_up.load(Ordering::Relaxed) == 1);
}

#[test]
#[ignore = "the other process of client_in_another_process_is_served"]
fn client_process() {
    let mut client = Client::connect_default().unwrap();
    let session = client.open("double", Open::default()).unwrap();
    let mut request = filled(&client, &session, 0.0);
    for round in 0..2_000 {
        request.input::<f32>(0, &[2, 4]).unwrap().fill(round as f32);
        let answer = client.infer(request).unwrap();
        assert!(is_doubled(&answer, round as f32));
        request = answer.into_request();
    }
}

#[test]
fn client_that_is_killed_is_noticed() {
    let daemon = Daemon::start(socket_path("killed"));
    let mut child = spawn_test_process("holding_client_process", &daemon.path);
    wait_for_line(&mut child, "ready");
    assert_eq!(daemon.switches.hung_up.load(Ordering::Relaxed), 0);
    child.kill().unwrap();
    child.wait().unwrap();
    eventually("the hang-up", || daemon.switches.hung_up.load(Ordering::Relaxed) == 1);
    assert_eq!(daemon.switches.poisoned.load(Ordering::Relaxed), 0);
}

#[test]
#[ignore = "the other process of client_that_is_killed_is_noticed"]
fn holding_client_process() {
    let mut client = Client::connect_default().unwrap();
    let session = client.open("double", Open::default()).unwrap();
    client.submit(filled(&client, &session, HOLD)).unwrap();
    println!("\nready");
    client.wait(LONG).unwrap();
}

#[test]
fn daemon_that_is_killed_is_noticed() {
    let path = socket_path("killed-daemon");
    let mut child = spawn_test_process("daemon_process", &path);
    wait_for_line(&mut child, "ready");
    let mut client = Client::connect(&path, small()).unwrap();
    let session = client.open("double", Open::default()).unwrap();
    assert!(is_doubled(&client.infer(filled(&client, &session, 2.0)).unwrap(), 2.0));
    client.submit(filled(&client, &session, HOLD)).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(matches!(client.wait(LONG), Err(Error::Disconnected { .. })));
    assert!(matches!(client.arm(), Err(Error::Disconnected { .. })));
    std::fs::remove_file(&path).unwrap();
}

#[test]
#[ignore = "the other process of daemon_that_is_killed_is_noticed"]
fn daemon_process() {
    let _daemon = Daemon::start(std::env::var_os("ROTA_SOCKET").unwrap().into());
    println!("\nready");
    std::thread::sleep(LONG);
}

fn wait_for_line(child: &mut std::process::Child, wanted: &str) {
    let output = BufReader::new(child.stdout.take().unwrap());
    assert!(output.lines().any(|line| line.unwrap() == wanted), "the other process ended early");
}
