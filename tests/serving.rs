//! What clients are served, and what becomes of their requests when anybody ends: through emulated devices, which answer with
//! their input, so that every answer shows whose it is.

#[allow(dead_code, reason = "not every test file uses all of it")]
mod support;

use rota_ipc::Client;
use rota_ipc::client::{Answer, Deadline, Error, Open, Request, Session};
use rota_ipc::control::ErrorCode;
use rota_ipc::wire::{Reason, Status};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use support::{Daemon, Folder, PATIENCE, PATIENT, Witness, emulated, emulated_device, small};

/// A daemon with one emulated device and the models of `profiles`, each as `emulated` writes them.
fn serve(folder: &Folder, profiles: &str) -> Daemon {
    Daemon::start(folder, &emulated_device(1, &folder.write("profiles.toml", profiles)))
}

fn ask(client: &Client, session: &Session, values: &[f32]) -> Request {
    let mut request = client.request(session).unwrap();
    request.input::<f32>("x", &[values.len() as u32 / 4, 4]).unwrap().copy_from_slice(values);
    request
}

fn answer(client: &mut Client) -> Answer {
    client.wait(PATIENCE).unwrap().expect("an answer")
}

/// Waits until `running` requests run or wait on a device and the sessions' queues hold `queued` items.
fn wait_for_load(daemon: &mut Daemon, running: u64, queued: u64) {
    daemon.wait_until(&format!("{running} in flight, {queued} queued"), |status| {
        let waiting = status["sessions"].as_array().unwrap().iter().map(|s| s["queued"].as_u64().unwrap()).sum::<u64>();
        status["requests_in_flight"] == running && waiting == queued
    });
}

#[test]
fn answers_are_not_mixed_up_between_threads_models_and_requests() {
    let folder = Folder::new("mixed");
    let models = emulated("echo", "1 = 0.1, 16 = 0.4") + &emulated("other", "1 = 0.0, 16 = 0.0");
    let profiles = folder.write("profiles.toml", models);
    let mut daemon = Daemon::start(&folder, &emulated_device(3, &profiles));
    let batches: Vec<bool> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|thread| (thread, daemon.client_with(small()))).collect();
        let threads = threads.into_iter().map(|(thread, client)| scope.spawn(move || check_answers(thread, client)));
        let threads: Vec<_> = threads.collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(batches.contains(&true), "requests of several clients shared a batch at some time");
    daemon.wait_until("all clients are gone", |status| status["clients"].as_array().unwrap().is_empty());
    let sessions = daemon.status()["sessions"].clone();
    let counted = |what| sessions.as_array().unwrap().iter().map(|s| s[what].as_u64().unwrap()).sum::<u64>();
    assert_eq!((counted("offered"), counted("ok")), (8 * 400, 8 * 400));
}

/// Sends 400 requests of one to three items, up to eight at a time; true when one ran in a batch with others.
fn check_answers(thread: u32, mut client: Client) -> bool {
    let sessions = [client.open("echo", PATIENT).unwrap(), client.open("other", PATIENT).unwrap()];
    let value = |number: u64, place: usize| (u64::from(thread) * 100_000 + number * 100) as f32 + place as f32;
    let items = |number: u64| 1 + (number % 3) as usize;
    let (mut shared, mut sent, mut received) = (false, 0, 0);
    while received < 400 {
        while sent < 400 && sent - received < 8 {
            let values: Vec<f32> = (0..4 * items(sent)).map(|place| value(sent, place)).collect();
            let mut request = ask(&client, &sessions[(sent % 2) as usize], &values);
            request.tag = sent;
            client.submit(request).unwrap();
            sent += 1;
        }
        let answer = answer(&mut client);
        assert_eq!(answer.status, Status::Ok, "{}", answer.message());
        let (number, own) = (answer.tag, items(answer.tag));
        let output = answer.output::<f32>("y").unwrap();
        assert_eq!(output.dims, [own as u32, 4]);
        for (place, &found) in output.data.iter().enumerate() {
            assert_eq!(found, value(number, place), "place {place} of request {number} of thread {thread}");
        }
        shared |= answer.timing.batch > own as u32;
        received += 1;
    }
    assert_eq!(client.in_flight_count(), 0);
    shared
}

#[test]
fn a_client_is_heard_however_its_pauses_fall() {
    let folder = Folder::new("pauses");
    let daemon = serve(&folder, &emulated("echo", "1 = 0.0, 2 = 0.0"));
    std::thread::scope(|scope| {
        for thread in 0..6u64 {
            let mut witness = Witness::new(&daemon);
            scope.spawn(move || {
                for round in 0..200 {
                    witness.assert_served();
                    // About as long as the daemon goes on polling a quiet client, and about as long as it looks for work.
                    let pause = 5_000 * (round % 2) + 13 * (round * 7 + thread * 31) % 120;
                    std::thread::sleep(Duration::from_micros(pause));
                }
            });
        }
    });
}

#[test]
fn only_the_outputs_that_were_asked_for_are_written() {
    let folder = Folder::new("subset");
    let two = emulated("two", "1 = 0.0, 8 = 0.0")
        .replace("outputs = [", "outputs = [{ name = \"z\", dtype = \"i32\", dims = [2, \"batch\"] }, ");
    let daemon = serve(&folder, &two);
    let mut client = daemon.client_with(small());
    let session = client.open("two", PATIENT).unwrap();
    let mut request = ask(&client, &session, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]);
    request.output("z", 16).unwrap();
    let answer = client.infer(request).unwrap();
    let z = answer.output::<i32>("z").unwrap();
    assert_eq!(z.dims, [2, 2]);
    // Each item's part repeats the bytes of its input; the batch axis is the second.
    assert_eq!(z.data, [1.0f32, 5.0, 2.0, 6.0].map(|value| value.to_bits() as i32));
    assert!(matches!(answer.output::<f32>("y"), Err(Error::NoOutput { tensor }) if tensor == "y"));

    let mut request = answer.into_request();
    request.output("y", 32).unwrap();
    let answer = client.infer(request).unwrap();
    assert_eq!(answer.output::<f32>("y").unwrap().data[7], 8.0);
    assert_eq!(answer.output::<i32>("z").unwrap().data[0], 1.0f32.to_bits() as i32);
}

#[test]
fn a_request_whose_deadline_has_passed_is_dropped_while_others_run() {
    let folder = Folder::new("past");
    let mut daemon = serve(&folder, &emulated("echo", "1 = 1000.0"));
    let mut client = daemon.client_with(small());
    let session = client.open("echo", PATIENT).unwrap();
    let running = client.submit(ask(&client, &session, &[1.0; 4])).unwrap();
    wait_for_load(&mut daemon, 1, 0);
    let mut request = ask(&client, &session, &[2.0; 4]);
    request.deadline = Deadline::At(Instant::now() - Duration::from_millis(1));
    let late = client.submit(request).unwrap();
    let first = answer(&mut client);
    assert_eq!((first.ticket, first.status, first.reason), (late, Status::Dropped, Reason::Hopeless));
    assert!(first.message().contains("deadline"), "{}", first.message());
    assert_eq!((first.timing.batch, first.timing.executing), (0, Duration::ZERO));
    assert!(matches!(first.check(), Err(Error::NotAnswered { .. })));
    let second = answer(&mut client);
    assert_eq!((second.ticket, second.status), (running, Status::Ok));
}

#[test]
fn an_answer_after_its_deadline_is_late_and_has_its_outputs() {
    let folder = Folder::new("late");
    let daemon = serve(&folder, &emulated("echo", "1 = 5.0, 2 = 5.0"));
    let mut client = daemon.client_with(small());
    // An idle device starts it at once by the books; on the real clock its start, and so its end, is a little later.
    let exactly = Open { slo: Some(Duration::from_millis(5)), ..Open::default() };
    let session = client.open("echo", exactly).unwrap();
    let answer = client.infer(ask(&client, &session, &[1.0, 2.0, 3.0, 4.0])).unwrap();
    assert_eq!((answer.status, answer.reason), (Status::Late, Reason::None), "{}", answer.message());
    assert_eq!(answer.output::<f32>("y").unwrap().data, [1.0, 2.0, 3.0, 4.0]);
    assert_eq!(daemon.status()["sessions"][0]["late"], 1);
    Witness::new(&daemon).assert_served();
}

#[test]
fn a_cancelled_request_is_answered_once_whether_it_waits_or_runs_and_its_buffers_come_back() {
    let folder = Folder::new("cancel");
    let mut daemon = serve(&folder, &emulated("echo", "1 = 1000.0"));
    let mut client = daemon.client_with(small());
    let session = client.open("echo", PATIENT).unwrap();
    let running = client.submit(ask(&client, &session, &[1.0; 4])).unwrap();
    wait_for_load(&mut daemon, 1, 0);
    let waiting = client.submit(ask(&client, &session, &[2.0; 4])).unwrap();
    wait_for_load(&mut daemon, 2, 1);
    assert!(client.cancel(waiting).unwrap());
    assert!(client.cancel(running).unwrap());
    assert!(!client.cancel(running).unwrap(), "cancelled before");

    let first = answer(&mut client);
    assert_eq!((first.ticket, first.status, first.reason), (waiting, Status::Cancelled, Reason::None));
    assert_eq!(client.in_flight_count(), 1, "what runs keeps its buffers until its batch has ended");
    let second = answer(&mut client);
    assert_eq!((second.ticket, second.status), (running, Status::Cancelled));
    assert!(second.timing.batch == 1 && second.output::<f32>("y").is_err());
    assert_eq!((client.in_flight_count(), client.poll().unwrap().is_none()), (0, true), "one answer each");
    assert!(!client.cancel(running).unwrap(), "answered before");

    let session = &daemon.status()["sessions"][0];
    assert_eq!((&session["offered"], &session["cancelled"], &session["ok"]), (&2.into(), &2.into(), &0.into()));
    for (answer, value) in [(first, 2.0), (second, 1.0)] {
        let again = client.infer(answer.into_request()).unwrap();
        assert_eq!(again.output::<f32>("y").unwrap().data, [value; 4]);
    }
}

#[test]
fn two_sessions_of_one_model_keep_their_own_objectives() {
    let folder = Folder::new("objectives");
    let mut daemon = serve(&folder, &emulated("echo", "1 = 500.0"));
    let mut client = daemon.client_with(small());
    let hurried = client.open("echo", Open { slo: Some(Duration::from_millis(600)), ..Open::default() }).unwrap();
    let patient = client.open("echo", PATIENT).unwrap();
    let running = client.submit(ask(&client, &patient, &[1.0; 4])).unwrap();
    wait_for_load(&mut daemon, 1, 0);
    // The device is busy for another half second, and then would take half a second.
    let hopeless = client.submit(ask(&client, &hurried, &[2.0; 4])).unwrap();
    let waiting = client.submit(ask(&client, &patient, &[3.0; 4])).unwrap();
    let answers: Vec<Answer> = (0..3).map(|_| answer(&mut client)).collect();
    let of = |ticket| answers.iter().find(|a| a.ticket == ticket).unwrap();
    assert_eq!((of(hopeless).status, of(hopeless).reason), (Status::Dropped, Reason::Hopeless));
    assert_eq!(of(running).output::<f32>("y").unwrap().data, [1.0; 4]);
    assert_eq!(of(waiting).output::<f32>("y").unwrap().data, [3.0; 4]);
    let status = daemon.status();
    let slo = |index: usize| status["sessions"][index]["slo_ms"].as_f64().unwrap();
    assert_eq!((slo(0), slo(1)), (600.0, 600_000.0));
    assert_eq!((&status["sessions"][0]["dropped"], &status["sessions"][1]["ok"]), (&1.into(), &2.into()));
}

#[test]
fn sigterm_answers_all_that_was_accepted_and_leaves_nothing_behind() {
    let folder = Folder::new("drain");
    let mut daemon = serve(&folder, &emulated("echo", "1 = 300.0"));
    let mut client = daemon.client();
    let session = client.open("echo", PATIENT).unwrap();
    for value in 0..20u8 {
        let mut request = ask(&client, &session, &[f32::from(value); 4]);
        request.tag = u64::from(value);
        client.submit(request).unwrap();
    }
    wait_for_load(&mut daemon, 20, 19);
    let socket = daemon.socket().to_path_buf();
    // Made now: a client that has noticed the daemon's end has no memory for a new one.
    let late = ask(&client, &session, &[1.0; 4]);
    daemon.terminate();
    let mut served = 0;
    for _ in 0..20 {
        let answer = answer(&mut client);
        match answer.status {
            Status::Ok => {
                served += 1;
                assert_eq!(answer.output::<f32>("y").unwrap().data, [answer.tag as f32; 4]);
            }
            status => assert_eq!((status, answer.reason), (Status::Dropped, Reason::Draining), "{}", answer.message()),
        }
    }
    assert!((1..20).contains(&served), "what runs is let run, what waits is not: {served} served");
    let status = daemon.wait();
    assert!(status.success(), "{status}: {}", daemon.log());
    assert!(!socket.exists() && !socket.with_extension("sock.lock").exists());
    let error = client.infer(late).unwrap_err();
    assert!(matches!(error, Error::Disconnected { .. }), "{error}");
    let error = client.reconnect().unwrap_err();
    assert!(matches!(error, Error::NoDaemon { .. }), "{error}");
}

#[test]
fn a_daemon_that_drains_takes_nothing_new_and_says_so() {
    let folder = Folder::new("refuses");
    let mut daemon = serve(&folder, &emulated("echo", "1 = 2000.0"));
    let (mut client, mut control) = (daemon.client_with(small()), daemon.control());
    let session = client.open("echo", PATIENT).unwrap();
    let running = client.submit(ask(&client, &session, &[1.0; 4])).unwrap();
    wait_for_load(&mut daemon, 1, 0);
    daemon.terminate();
    while !control.status().unwrap()["draining"].as_bool().unwrap() {}
    let refused = client.submit(ask(&client, &session, &[2.0; 4])).unwrap();
    let answer = client.wait_for(refused, PATIENCE).unwrap().unwrap();
    assert_eq!((answer.status, answer.reason), (Status::Dropped, Reason::Draining));
    let error = client.open("echo", Open::default()).unwrap_err();
    assert!(matches!(&error, Error::Refused { code: ErrorCode::Draining, .. }), "{error}");
    let error = Client::connect(daemon.socket(), small()).unwrap_err();
    assert!(matches!(error, Error::NoDaemon { .. }), "{error}");
    assert_eq!(client.wait_for(running, PATIENCE).unwrap().unwrap().status, Status::Ok);
    assert!(daemon.wait().success());
}

#[test]
fn a_second_sigterm_ends_a_drain_that_takes_too_long() {
    let folder = Folder::new("twice");
    let mut daemon = serve(&folder, &emulated("echo", "1 = 3600000.0"));
    let (mut client, mut control) = (daemon.client_with(small()), daemon.control());
    let session = client.open("echo", Open { slo: Some(Duration::from_secs(3600)), ..Open::default() }).unwrap();
    client.submit(ask(&client, &session, &[1.0; 4])).unwrap();
    wait_for_load(&mut daemon, 1, 0);
    daemon.terminate();
    while !control.status().unwrap()["draining"].as_bool().unwrap() {}
    daemon.terminate();
    assert!(daemon.wait().success());
    let error = client.wait(PATIENCE).unwrap_err();
    assert!(matches!(error, Error::Disconnected { .. }), "{error}");
}

#[test]
fn unloading_lets_run_what_runs_and_fails_what_waits() {
    let folder = Folder::new("unload");
    let mut daemon = serve(&folder, &(emulated("slow", "1 = 1000.0") + &emulated("echo", "1 = 0.0, 2 = 0.0")));
    let mut witness = Witness::new(&daemon);
    let mut client = daemon.client_with(small());
    let session = client.open("slow", PATIENT).unwrap();
    let running = client.submit(ask(&client, &session, &[1.0; 4])).unwrap();
    wait_for_load(&mut daemon, 1, 0);
    let waiting: Vec<_> = (0..3).map(|_| client.submit(ask(&client, &session, &[2.0; 4])).unwrap()).collect();
    wait_for_load(&mut daemon, 4, 3);
    daemon.control().unload("slow", None).unwrap();
    for ticket in waiting {
        let answer = client.wait_for(ticket, PATIENCE).unwrap().unwrap();
        assert_eq!((answer.status, answer.reason), (Status::Failed, Reason::Unloaded));
        assert!(answer.message().contains("unloaded"), "{}", answer.message());
    }
    assert_eq!(client.wait_for(running, PATIENCE).unwrap().unwrap().status, Status::Ok);
    let answer = client.infer(ask(&client, &session, &[3.0; 4])).unwrap();
    assert_eq!((answer.status, answer.reason), (Status::Failed, Reason::Unloaded));
    assert!(answer.message().contains("open it again"), "{}", answer.message());
    let error = client.open("slow", PATIENT).unwrap_err().to_string();
    assert!(error.contains("there is no model \"slow\"; there are: echo"), "{error}");
    witness.assert_served();
}

#[test]
fn a_model_can_be_unloaded_and_loaded_again() {
    let folder = Folder::new("again");
    folder.copy_model("mlp", "repository/mlp/1/model.onnx");
    folder.write("repository/mlp/model.toml", "max_batch = 2\n");
    let cpu = "repository = \"repository\"\n[[device]]\nkind = \"cpu\"\nengine = \"rten\"\n";
    let daemon = Daemon::start(&folder, cpu);
    let (mut client, mut control) = (daemon.client_with(small()), daemon.control());
    let session = client.open("mlp", PATIENT).unwrap();
    let mut request = client.request(&session).unwrap();
    request.input::<f32>("x", &[1, 16]).unwrap().fill(0.25);
    let answer = client.infer(request).unwrap();
    let expected = answer.output::<f32>("y").unwrap().data.to_vec();
    let again = control.load("mlp", None).unwrap_err().to_string();
    assert!(again.contains("is served already"), "{again}");
    for _ in 0..3 {
        control.unload("mlp", None).unwrap();
        control.load("mlp", None).unwrap();
    }
    let request = answer.into_request();
    let old = client.infer(request).unwrap();
    assert_eq!(old.reason, Reason::Unloaded, "a session ends with its model");
    let session = client.open("mlp", PATIENT).unwrap();
    let mut request = client.request(&session).unwrap();
    request.input::<f32>("x", &[1, 16]).unwrap().fill(0.25);
    assert_eq!(client.infer(request).unwrap().output::<f32>("y").unwrap().data, expected);
    let missing = control.load("none", None).unwrap_err().to_string();
    assert!(missing.contains("no such model there"), "{missing}");
}

#[test]
fn a_client_that_leaves_while_its_requests_only_wait_takes_nobody_along() {
    let folder = Folder::new("leaves");
    let mut daemon = serve(&folder, &emulated("echo", "1 = 1000.0"));
    let (mut staying, mut leaving) = (daemon.client_with(small()), daemon.client_with(small()));
    let session = staying.open("echo", PATIENT).unwrap();
    let running = staying.submit(ask(&staying, &session, &[1.0; 4])).unwrap();
    wait_for_load(&mut daemon, 1, 0);
    let its_own = leaving.open("echo", PATIENT).unwrap();
    for _ in 0..3 {
        leaving.submit(ask(&leaving, &its_own, &[2.0; 4])).unwrap();
    }
    wait_for_load(&mut daemon, 4, 3);
    drop(leaving);
    wait_for_load(&mut daemon, 1, 0);
    let answer = staying.wait_for(running, PATIENCE).unwrap().unwrap();
    assert_eq!(answer.output::<f32>("y").unwrap().data, [1.0; 4]);
    assert_eq!(daemon.status()["sessions"][0]["cancelled"], 3);
}

#[test]
fn a_client_process_that_is_killed_gives_everything_back() {
    let folder = Folder::new("killed");
    let mut daemon = serve(&folder, &(emulated("slow", "1 = 200.0") + &emulated("echo", "1 = 0.0, 2 = 0.0")));
    let mut witness = Witness::new(&daemon);
    let before = daemon.open_files();
    for _ in 0..3 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_that_is_killed_with_requests_in_flight", "--ignored", "--nocapture"])
            .env("ROTA_SOCKET", daemon.socket())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap() == "submitted"), "the child submits");
        witness.assert_served();
        child.kill().unwrap();
        child.wait().unwrap();
        witness.assert_served();
    }
    daemon.wait_until("only the witness is left", |status| {
        status["requests_in_flight"] == 0 && status["clients"].as_array().unwrap().len() == 1
    });
    daemon.wait_for_open_files(before);
    witness.assert_served();
}

#[test]
#[ignore = "the client process of the test above"]
fn child_that_is_killed_with_requests_in_flight() {
    let mut client = Client::connect_default().unwrap();
    let session = client.open("slow", PATIENT).unwrap();
    for _ in 0..8 {
        client.submit(ask(&client, &session, &[1.0; 4])).unwrap();
    }
    println!("submitted");
    std::thread::sleep(PATIENCE);
}

#[test]
fn a_killed_daemon_is_noticed_and_its_successor_serves_the_same_sessions() {
    let folder = Folder::new("successor");
    let profiles = folder.write("profiles.toml", emulated("echo", "1 = 60000.0, 2 = 60000.0"));
    let mut daemon = Daemon::start(&folder, &emulated_device(1, &profiles));
    let mut client = daemon.client_with(small());
    let session = client.open("echo", PATIENT).unwrap();
    client.submit(ask(&client, &session, &[1.0; 4])).unwrap();
    wait_for_load(&mut daemon, 1, 0);
    let old = ask(&client, &session, &[2.0; 4]);
    let socket = daemon.socket().to_path_buf();
    daemon.kill();
    let error = client.wait(PATIENCE).unwrap_err();
    assert!(matches!(error, Error::Disconnected { .. }), "{error}");
    assert!(matches!(client.reconnect(), Err(Error::NoDaemon { .. })));

    let profiles = folder.write("profiles.toml", emulated("echo", "1 = 0.0, 2 = 0.0"));
    assert!(socket.exists(), "the dead daemon's socket lies in the way of its successor");
    let mut successor = Daemon::start_on(&folder, &socket, &emulated_device(1, &profiles));
    successor.wait_until("it serves", |status| status["loading"] == false);
    client.reconnect().unwrap();
    let rejected = client.submit(old).unwrap_err();
    assert!(matches!(rejected.error, Error::Foreign { .. }), "{rejected}");
    let answer = client.infer(ask(&client, &session, &[3.0; 4])).unwrap();
    assert_eq!(answer.output::<f32>("y").unwrap().data, [3.0; 4]);
    assert!(successor.stop().success());
}

#[test]
fn a_second_daemon_on_one_socket_is_refused() {
    let folder = Folder::new("second");
    let daemon = serve(&folder, &emulated("echo", "1 = 0.0, 2 = 0.0"));
    let mut witness = Witness::new(&daemon);
    let profiles = folder.path().join("profiles.toml");
    let mut second = Daemon::start_on(&folder, daemon.socket(), &emulated_device(1, &profiles));
    let status = second.wait();
    assert_eq!(status.code(), Some(2));
    let expected =
        format!("rota: a daemon already serves {}; stop it, or choose another --socket", daemon.socket().display());
    assert!(second.log().contains(&expected), "{}", second.log());
    witness.assert_served();
    Witness::new(&daemon).assert_served();
}
