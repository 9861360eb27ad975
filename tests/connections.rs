//! What clients and their users do with connections that they must not: too many, too large, in the wrong order, in the wrong
//! words, or not theirs to make. Each gets one clear error, and those beside it are served as if nothing had been.

#[allow(dead_code, reason = "not every test file uses all of it")]
mod support;

#[allow(dead_code, reason = "not every test file uses all of it")]
#[path = "support/raw.rs"]
mod raw;

use raw::{Stream, hello, open, seed};
use rota_ipc::client::{Control, Error, Open};
use rota_ipc::control::{ErrorCode, REQUEST_BYTES_MAX, Reply, Request};
use rota_ipc::wire::{Reason, Status};
use rota_ipc::{Client, ClientOptions};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use support::{Folder, PATIENCE, PATIENT, Witness, serve, serve_with};

#[test]
fn a_thousand_connections_are_served_and_leave_nothing_behind() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let most = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most }).unwrap();
    let connections = match most {
        Some(most) if most < 3000 => {
            println!("only {most} files can be open here, so there are fewer connections");
            (most as usize).saturating_sub(500) / 2
        }
        _ => 1000,
    };
    let folder = Folder::new("thousand");
    let mut daemon = serve(&folder);
    let mut witness = Witness::new(&daemon);
    let before = daemon.open_files();
    let options = ClientOptions { slots: 8, arena_bytes: 4096, ..ClientOptions::default() };
    let mut clients: Vec<_> = (0..connections)
        .map(|_| {
            let mut client = daemon.client_with(options.clone());
            let session = client.open("echo", PATIENT).unwrap();
            (client, session)
        })
        .collect();
    for (index, (client, session)) in clients.iter_mut().enumerate() {
        let mut request = client.request(session).unwrap();
        request.input::<f32>("x", &[1, 4]).unwrap().fill(index as f32);
        client.submit(request).unwrap();
    }
    for (index, (client, _)) in clients.iter_mut().enumerate() {
        let answer = client.wait(PATIENCE).unwrap().expect("an answer");
        assert_eq!(answer.output::<f32>("y").unwrap().data, [index as f32; 4]);
    }
    assert_eq!(daemon.status()["clients"].as_array().unwrap().len(), connections + 1);
    witness.assert_served();
    drop(clients);
    daemon.wait_until("only the witness is left", |status| status["clients"].as_array().unwrap().len() == 1);
    daemon.wait_for_open_files(before);
    witness.assert_served();
}

#[test]
fn what_one_user_holds_is_bounded() {
    let folder = Folder::new("limits");
    let limits = "[limits]\nconnections_per_user = 4\narena_mb_per_user = 3\narena_mb = 2\nrequests_per_user = 3\n\
                  sessions_max = 4\n";
    let daemon = serve_with(&folder, limits);
    let mut witness = Witness::new(&daemon);
    let connect = |arena_bytes| {
        let options = ClientOptions { slots: 8, arena_bytes, ..ClientOptions::default() };
        Client::connect(daemon.socket(), options)
    };
    let refused = |result: Result<Client, Error>| match result {
        Err(Error::Refused { code: ErrorCode::Limit, message }) => message,
        other => panic!("{other:?}"),
    };
    let text = refused(connect((2 << 20) + 1));
    assert_eq!(text, "an arena of 2097153 bytes; this daemon gives 1 to 2097152");
    let large = connect(2 << 20).unwrap();
    let text = refused(connect(1 << 20));
    assert!(text.contains("holds 2 MB of arenas and asks for 1 more; the most is 3 (arena_mb_per_user)"), "{text}");
    let (mut third, fourth) = (connect(4096).unwrap(), connect(4096).unwrap());
    let text = refused(connect(4096));
    assert!(text.contains("has 4 connections, which is the most (connections_per_user)"), "{text}");
    drop((large, fourth));
    witness.assert_served();

    let slow = third.open("slow", PATIENT).unwrap();
    let ask = |client: &Client| {
        let mut request = client.request(&slow).unwrap();
        request.input::<f32>("x", &[1, 4]).unwrap();
        request
    };
    let tickets: Vec<_> = (0..3).map(|_| third.submit(ask(&third)).unwrap()).collect();
    let answer = third.infer(ask(&third)).unwrap();
    assert_eq!((answer.status, answer.reason), (Status::Dropped, Reason::Overload));
    assert_eq!(answer.message(), "this user has too many requests in flight");
    assert!(third.cancel(tickets[2]).unwrap());
    assert_eq!(third.wait_for(tickets[2], PATIENCE).unwrap().unwrap().status, Status::Cancelled);
    witness.assert_served();

    // With the witness's and "slow", as many as the daemon has.
    let open = |client: &mut Client, ms| client.open("echo", Open { slo: Some(Duration::from_millis(ms)), ..PATIENT });
    let (first, _second) = (open(&mut third, 100).unwrap(), open(&mut third, 200).unwrap());
    let error = open(&mut third, 300).unwrap_err().to_string();
    assert!(error.contains("4 sessions in use, which is the most; raise `sessions_max`"), "{error}");
    third.close(first).unwrap();
    open(&mut third, 300).unwrap();
    witness.assert_served();
}

#[test]
fn garbage_on_the_control_socket_ends_its_own_connection_only() {
    let mut numbers = seed();
    let folder = Folder::new("garbage");
    let daemon = serve(&folder);
    let mut witness = Witness::new(&daemon);
    let before = daemon.open_files();
    let frame = |text: &str| [&(text.len() as u32).to_le_bytes(), text.as_bytes()].concat();
    let oversized = ((REQUEST_BYTES_MAX + 1) as u32).to_le_bytes().to_vec();
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (b"GET / HTTP/1.1\r\nHost: rota\r\n\r\n".to_vec(), "a frame of 542393671 bytes; 65536 are possible"),
        (oversized, "a frame of 65537 bytes"),
        (frame(""), "not a message of this protocol"),
        (frame("{}"), "not a message of this protocol"),
        (frame("{\"shutdown\":{}}"), "unknown variant `shutdown`"),
        (frame("{\"open\":{\"model\":\"echo\",\"slo\":5}}"), "unknown field `slo`"),
        (frame("{\"open\":{\"model\":7}}"), "expected a string"),
        (frame(&"[".repeat(60_000)), "not a message of this protocol"),
        (frame("{\"status\":{}} and more"), "trailing characters"),
        ([&4u32.to_le_bytes()[..], &[0xff; 4]].concat(), "not a message of this protocol"),
    ];
    for (bytes, expected) in cases {
        let mut stream = Stream::connect(daemon.socket());
        stream.send_bytes(&bytes);
        let reply = stream.receive();
        let Some(Reply::Error { code: ErrorCode::BadRequest, message }) = reply else { panic!("{reply:?}") };
        assert!(message.contains(expected) && message.contains("see docs/protocol.md"), "{message}");
        assert!(stream.receive().is_none(), "the connection ends");
        witness.assert_served();
    }
    for _ in 0..200 {
        let mut stream = Stream::connect(daemon.socket());
        let bytes: Vec<u8> = (0..numbers.below(300)).map(|_| numbers.next() as u8).collect();
        stream.send_bytes(&bytes);
    }
    witness.assert_served();
    daemon.wait_for_open_files(before);
}

#[test]
fn half_a_frame_and_then_silence_holds_up_nobody() {
    let folder = Folder::new("half");
    let daemon = serve(&folder);
    let mut witness = Witness::new(&daemon);
    let before = daemon.open_files();
    let whole = rota_ipc::frame::encode(&Request::Status {}, REQUEST_BYTES_MAX).unwrap();
    let mut halves: Vec<Stream> = (1..whole.len()).map(|_| Stream::connect(daemon.socket())).collect();
    for (stream, cut) in halves.iter_mut().zip(1..) {
        stream.send_bytes(&whole[..cut]);
    }
    witness.assert_served();
    assert_eq!(daemon.status()["loading"], false);
    // The rest, when it comes, is answered.
    for (stream, cut) in halves.iter_mut().zip(1..) {
        stream.send_bytes(&whole[cut..]);
        assert!(matches!(stream.receive(), Some(Reply::Status { .. })));
    }
    drop(halves);
    daemon.wait_for_open_files(before);
}

#[test]
fn messages_out_of_order_are_refused_and_the_connection_lives_on() {
    let folder = Folder::new("order");
    let daemon = serve(&folder);
    let mut witness = Witness::new(&daemon);
    let mut stream = Stream::connect(daemon.socket());
    assert_eq!(stream.refused(&open("echo", 100.0)), "BadRequest: say hello before opening a session");
    assert_eq!(stream.refused(&Request::Close { session: 0 }), "BadRequest: say hello before closing a session");
    let old = Request::Hello { versions: vec![0, 2], client: String::new(), slots: 8, arena_bytes: 4096 };
    assert_eq!(stream.refused(&old), "Version: this daemon speaks version 1 of the protocol, the client [0, 2]");
    assert_eq!(stream.refused(&hello(12, 4096)), "BadRequest: slots = 12 must be a power of two from 8 to 4096");
    assert!(stream.refused(&hello(8, 0)).starts_with("Limit: an arena of 0 bytes"));
    assert!(matches!(stream.ask(&hello(8, 4096)), Reply::Welcome { .. }));
    assert_eq!(stream.refused(&hello(8, 4096)), "BadRequest: hello was said already");
    for slo_ms in [0.0, -1.0, 1e9] {
        assert!(stream.refused(&open("echo", slo_ms)).starts_with("Slo: "));
    }
    assert!(matches!(stream.ask(&open("echo", 100.0)), Reply::Opened { session: 0, .. }));
    assert!(matches!(stream.ask(&Request::Close { session: 77 }), Reply::Done {}));
    assert!(matches!(stream.ask(&Request::Status {}), Reply::Status { .. }));
    witness.assert_served();
}

#[test]
fn a_client_that_pipelines_without_reading_replies_costs_bounded_memory() {
    let folder = Folder::new("pipeline");
    let daemon = serve(&folder);
    let mut witness = Witness::new(&daemon);
    let before = daemon.open_files();
    let resident = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap().to_string();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() >> 10
    };
    let at_first = resident();
    let mut stream = Stream::connect(daemon.socket());
    stream.socket.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    let status = rota_ipc::frame::encode(&Request::Status {}, REQUEST_BYTES_MAX).unwrap();
    // It ends when the daemon hangs up, or no longer takes what is sent.
    let megabyte = status.repeat((1 << 20) / status.len());
    let sent = (0..400).take_while(|_| std::io::Write::write_all(&mut stream.socket, &megabyte).is_ok()).count();
    assert!(sent < 400, "400 MB of questions were taken from one that reads no answers");
    let grown = resident().saturating_sub(at_first);
    assert!(grown < 150, "{grown} MB were held for it");
    witness.assert_served();
    drop(stream);
    daemon.wait_for_open_files(before);
}

/// A user who owns nothing here.
const NOBODY: u32 = 65534;

/// Runs the ignored test `name` as another user; what it prints is its result. `None` when this process may not.
fn as_nobody(name: &str, socket: &Path) -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: only root can run a client as another user");
        return None;
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--ignored", "--nocapture"])
        .env("ROTA_SOCKET", socket)
        .uid(NOBODY)
        .gid(NOBODY)
        .output();
    match output {
        Ok(output) => {
            let text = String::from_utf8(output.stdout).unwrap();
            assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
            Some(text)
        }
        Err(error) => {
            println!("skipped: user {NOBODY} can't run this program: {error}");
            None
        }
    }
}

#[test]
fn another_user_is_served_but_may_not_load_unload_or_drain() {
    let folder = Folder::new("users");
    let daemon = serve_with(&folder, "socket_mode = \"0666\"\n");
    let mut witness = Witness::new(&daemon);
    let Some(text) = as_nobody("child_of_another_user_asks_for_what_it_may_not", daemon.socket()) else { return };
    for what in ["load a model", "unload a model", "drain the daemon"] {
        assert!(text.contains(&format!("user 65534 may not {what}; user 0 and root may")), "{what}: {text}");
    }
    assert!(text.contains("served [7.0, 7.0, 7.0, 7.0]"), "{text}");
    witness.assert_served();
}

#[test]
#[ignore = "the client process of the test above"]
fn child_of_another_user_asks_for_what_it_may_not() {
    let mut control = Control::connect(rota_ipc::client::default_socket_path(), PATIENCE).unwrap();
    println!("{}", control.load("echo", None).unwrap_err());
    println!("{}", control.unload("echo", None).unwrap_err());
    println!("{}", control.drain().unwrap_err());
    let mut client = Client::connect_default().unwrap();
    let session = client.open("echo", PATIENT).unwrap();
    let mut request = client.request(&session).unwrap();
    request.input::<f32>("x", &[1, 4]).unwrap().fill(7.0);
    println!("served {:?}", client.infer(request).unwrap().output::<f32>("y").unwrap().data);
}

#[test]
fn a_user_whom_the_socket_keeps_out_is_told_so() {
    let folder = Folder::new("closed");
    let daemon = serve_with(&folder, "socket_mode = \"0600\"\n");
    let Some(text) = as_nobody("child_of_another_user_cannot_connect", daemon.socket()) else { return };
    let socket = daemon.socket().display();
    let expected = format!("this user may not connect to {socket}; the socket's owner or group grants it");
    assert!(text.contains(&expected), "{text}");
    Witness::new(&daemon).assert_served();
}

#[test]
#[ignore = "the client process of the test above"]
fn child_of_another_user_cannot_connect() {
    println!("{}", Client::connect_default().unwrap_err());
}
