//! Queries through the real daemon: whole runs, what is answered to each mistake, and that a run which can't be in time is dropped
//! whole, at once, and everything given back.

#[allow(dead_code, reason = "not every test file uses all of it")]
mod support;

#[allow(dead_code, reason = "not every test file uses all of it")]
#[path = "support/queries.rs"]
mod asked;

use asked::{assert_refused, call, counts, filled, gammas, query, serve, submit, take};
use rota_ipc::ClientOptions;
use rota_ipc::client::{Deadline, Error, RunId, Ticket};
use rota_ipc::wire::{Reason, Status};
use serde_json::Value;
use std::time::Duration;
use support::{Daemon, Folder, PATIENCE, Witness, emulated, emulated_device, small, stdout};

#[test]
fn a_run_is_answered_stage_by_stage_with_its_fan_out_in_flight_at_once() {
    let folder = Folder::new("query-run");
    let mut daemon = serve(&folder, "");
    let mut client = daemon.client();
    for round in 0..3 {
        let mut run = client.query("page").unwrap().start();
        let image = filled(run.request("find").unwrap(), 1.0);
        let found = run.call("find", image).unwrap();
        assert_eq!(found.output::<f32>("y").unwrap().data, [1.0; 4]);
        let turned = filled(run.request("turn").unwrap(), 2.0);
        run.call("turn", turned).unwrap().check().unwrap();
        let mut tickets = Vec::new();
        for line in 0..20 {
            let request = filled(run.request("read").unwrap(), line as f32);
            tickets.push(run.submit("read", request).unwrap());
        }
        for (line, ticket) in tickets.into_iter().enumerate() {
            let answer = run.wait_for(ticket).unwrap();
            assert_eq!((answer.status, answer.output::<f32>("y").unwrap().data), (Status::Ok, &[line as f32; 4][..]));
        }
        run.finish().unwrap();
        // What was finished is counted by the time that the next answer comes.
        assert_eq!(counts(&daemon.status(), "page", ["ok", "runs"]), [round + 1, 0]);
    }
    let status = daemon.status();
    let page = query(&status, "page");
    assert!(page["total_time"]["p99_ms"].as_f64().unwrap() > 0.0 && page["bad_rate"] == 0.0, "{page:#}");
    let stages = page["stages"].as_array().unwrap();
    assert!(stages[1]["name"] == "find" && stages[1]["gamma"].is_null(), "{page:#}");
    let shares: f64 = stages.iter().map(|s| s["share_ms"].as_f64().unwrap()).sum();
    assert!((shares - 600_000.0).abs() < 1.0, "the only way gets all of the SLO: {page:#}");
    let text = stdout(&daemon.rota(&["status"]));
    assert!(text.contains("page") && text.contains("  read") && text.contains("hurry"), "{text}");
    // Of whole seconds.
    daemon.wait_until("γ is measured", |status| gammas(status) == [1.0, 20.0]);
}

#[test]
fn a_request_is_used_again_in_another_run_and_dropping_a_run_gives_it_up() {
    let folder = Folder::new("query-again");
    let daemon = serve(&folder, "");
    let mut client = daemon.client();
    let mut again = None;
    for _ in 0..3 {
        let mut run = client.query("page").unwrap().start();
        let image = match again.take() {
            Some(image) => image,
            None => filled(run.request("find").unwrap(), 3.0),
        };
        let answer = run.call("find", image).unwrap();
        assert_eq!(answer.output::<f32>("y").unwrap().data, [3.0; 4]);
        again = Some(answer.into_request());
    }
    let image = again.unwrap();
    let mut run = client.query("page").unwrap().start();
    let rejected = run.submit("turn", image).unwrap_err();
    assert!(matches!(&rejected.error, Error::WrongStage { found, .. } if found == "finder"), "{rejected}");
    assert!(matches!(run.request("fnd"), Err(Error::UnknownStage { known, .. }) if known == "read, find, turn"));
    drop(run);
    // Its run is over: the request is of no use to the client until another run calls with it.
    assert!(matches!(client.submit(rejected.request).unwrap_err().error, Error::RunEnded));
    assert_eq!(counts(&daemon.status(), "page", ["abandoned", "runs"]), [4, 0]);
}

#[test]
fn each_mistake_fails_that_request_and_nothing_else_of_its_run() {
    let folder = Folder::new("query-wrong");
    let daemon = serve(&folder, "");
    let mut witness = Witness::new(&daemon);
    let mut client = daemon.client();
    let page = client.open_query("page").unwrap();
    let run = client.begin(&page).unwrap();
    let answer = call(&mut client, run, "read");
    let text = "stage \"read\" is called before stage \"turn\" has answered";
    assert_refused(&answer, Status::Failed, Reason::WrongStage, text);
    assert!(call(&mut client, run, "find").is_answered());
    let answer = call(&mut client, run, "find");
    assert_refused(&answer, Status::Failed, Reason::WrongStage, "stage \"find\" was called 1 times in this run");
    for _ in 0..2 {
        assert!(call(&mut client, run, "turn").is_answered());
    }
    let answer = call(&mut client, run, "turn");
    assert_refused(&answer, Status::Failed, Reason::WrongStage, "was called 2 times in this run, which is the most");
    // A stage's session is of no use outside of a run.
    let session = page.stages().iter().find(|stage| stage.name == "read").unwrap().session.clone();
    let request = filled(client.request(&session).unwrap(), 1.0);
    let answer = client.infer(request).unwrap();
    let text = "stage \"read\" of query \"page\" is called within a run of it";
    assert_refused(&answer, Status::Failed, Reason::WrongStage, text);
    let mut request = client.request_in(run, "read").unwrap();
    request.input::<f32>("x", &[1, 5]).unwrap();
    assert_refused(&client.infer(request).unwrap(), Status::Failed, Reason::WrongShape, "[1, 5]");
    // All of that was none of the run's calls.
    assert!(call(&mut client, run, "read").is_answered());
    client.finish(run).unwrap();
    assert!(matches!(client.finish(run), Err(Error::RunEnded)));
    assert!(matches!(client.request_in(run, "read"), Err(Error::RunEnded)));
    witness.assert_served();
    assert_eq!(counts(&daemon.status(), "page", ["ok", "runs"]), [1, 0]);
}

#[test]
fn a_call_has_what_its_run_has_left_whenever_it_is_made() {
    let folder = Folder::new("query-deadline");
    let daemon = serve(&folder, "");
    let mut client = daemon.client();
    let hurry = client.open_query("hurry").unwrap();
    // The second stage takes a second; of 2.5 s, it is too late for it after 1.5.
    let run = client.begin(&hurry).unwrap();
    assert!(call(&mut client, run, "look").is_answered());
    std::thread::sleep(Duration::from_millis(1600));
    let answer = call(&mut client, run, "think");
    assert_refused(&answer, Status::Dropped, Reason::QueryLost, "its query can no longer be answered in time");
    assert_eq!(counts(&daemon.status(), "hurry", ["dropped", "runs"]), [1, 0]);
    // Another run's time is its own.
    let run = client.begin(&hurry).unwrap();
    assert!(call(&mut client, run, "look").is_answered());
    let answer = call(&mut client, run, "think");
    assert!(answer.is_answered(), "{}", answer.message());
    client.finish(run).unwrap();
    // An earlier deadline of a call's own counts, and takes the run with it.
    let run = client.begin(&hurry).unwrap();
    let mut request = filled(client.request_in(run, "look").unwrap(), 1.0);
    request.deadline = Deadline::At(std::time::Instant::now() - Duration::from_millis(1));
    assert_refused(&client.infer(request).unwrap(), Status::Dropped, Reason::Hopeless, "");
    let answer = call(&mut client, run, "look");
    assert_refused(&answer, Status::Dropped, Reason::QueryLost, "its query can no longer be answered in time");
    client.finish(run).unwrap();
    assert_eq!(counts(&daemon.status(), "hurry", ["dropped", "started"]), [2, 3]);
}

#[test]
fn a_run_that_can_not_be_in_time_is_dropped_whole_at_once() {
    let folder = Folder::new("query-whole");
    let daemon = serve(&folder, "");
    let mut client = daemon.client();
    let hurry = client.open_query("hurry").unwrap();
    let run = client.begin(&hurry).unwrap();
    assert!(call(&mut client, run, "look").is_answered());
    // One device, a second each: of four calls the third can't be in time any more, long before its turn would come.
    let tickets: Vec<Ticket> = (0..4).map(|value| submit(&mut client, run, "think", value as f32)).collect();
    let (mut answered, mut lost) = (0, 0);
    for ticket in tickets {
        let answer = take(&mut client, ticket);
        match (answer.status, answer.reason) {
            (Status::Ok | Status::Late, _) => answered += 1,
            (Status::Dropped, Reason::Hopeless | Reason::QueryLost) => lost += 1,
            other => panic!("{other:?}: {}", answer.message()),
        }
    }
    assert!((1..=2).contains(&answered) && lost >= 2, "{answered} answered, {lost} lost");
    let answer = call(&mut client, run, "think");
    assert_refused(&answer, Status::Dropped, Reason::QueryLost, "its query can no longer be answered in time");
    client.finish(run).unwrap();
    let status = daemon.status();
    assert_eq!(counts(&status, "hurry", ["dropped", "ok"]), [1, 0]);
    assert_eq!(counts(&status, "hurry", ["runs", "late"]), [0, 0]);
    assert_eq!(query(&status, "hurry")["bad_rate"], 1.0);
    assert_eq!(status["requests_in_flight"], 0);
}

#[test]
fn a_run_that_nobody_finishes_times_out_and_everything_is_given_back() {
    let folder = Folder::new("query-expires");
    let limits = "[limits]\nruns_max = 2\nruns_per_user = 2\n";
    let mut daemon = serve(&folder, limits);
    let mut client = daemon.client();
    let hurry = client.open_query("hurry").unwrap();
    let runs = [(); 2].map(|()| client.begin(&hurry).unwrap());
    assert!(call(&mut client, runs[0], "look").is_answered());
    // There are no more; its calls are told.
    let third = client.begin(&hurry).unwrap();
    let answer = call(&mut client, third, "look");
    assert_refused(&answer, Status::Dropped, Reason::Overload, "too many runs of queries are open (runs_max");
    client.give_up(third).unwrap();
    assert_eq!(counts(&daemon.status(), "hurry", ["runs", "started"]), [2, 3]);
    // Nobody does anything: it is the daemon's own clock that ends them.
    daemon.wait_until("both have timed out", |status| counts(status, "hurry", ["runs", "expired"]) == [0, 2]);
    let answer = call(&mut client, runs[1], "look");
    assert_refused(&answer, Status::Dropped, Reason::QueryLost, "was not finished within four times its SLO");
    runs.iter().for_each(|&run| client.finish(run).unwrap());
    let again = [(); 2].map(|()| client.begin(&hurry).unwrap());
    for run in again {
        assert!(call(&mut client, run, "look").is_answered());
        client.finish(run).unwrap();
    }
    assert_eq!(counts(&daemon.status(), "hurry", ["runs", "ok"]), [0, 2]);
}

#[test]
fn a_client_that_dies_within_its_runs_gives_everything_back() {
    let folder = Folder::new("query-dies");
    let mut daemon = serve(&folder, "[limits]\nruns_max = 3\n");
    let mut witness = Witness::new(&daemon);
    let mut client = daemon.client();
    let hurry = client.open_query("hurry").unwrap();
    let [waits, runs, finished] = [(); 3].map(|()| client.begin(&hurry).unwrap());
    for run in [waits, runs, finished] {
        assert!(call(&mut client, run, "look").is_answered());
    }
    for run in [runs, finished, waits] {
        submit(&mut client, run, "think", 1.0);
    }
    client.finish(finished).unwrap();
    drop(client);
    daemon.wait_until("its runs are over", |status| {
        counts(status, "hurry", ["runs", "abandoned"]) == [0, 3] && status["requests_in_flight"] == 0
    });
    witness.assert_served();
    let mut client = daemon.client();
    let hurry = client.open_query("hurry").unwrap();
    let runs = [(); 3].map(|()| client.begin(&hurry).unwrap());
    for run in runs {
        assert!(call(&mut client, run, "look").is_answered(), "all three have room again");
    }
}

#[test]
fn a_run_slot_that_is_begun_again_leaves_nothing_of_the_run_before() {
    let folder = Folder::new("query-slots");
    let daemon = serve(&folder, "");
    let mut client = daemon.client_with(small());
    let page = client.open_query("page").unwrap();
    for _ in 0..100 {
        let runs: Vec<RunId> = (0..8).map(|_| client.begin(&page).unwrap()).collect();
        assert!(matches!(client.begin(&page), Err(Error::RunsFull { slots: 8 })));
        assert!(call(&mut client, runs[3], "find").is_answered());
        for (place, run) in runs.into_iter().enumerate() {
            if place % 2 == 0 { client.finish(run).unwrap() } else { client.give_up(run).unwrap() }
        }
    }
    let run = client.begin(&page).unwrap();
    assert!(call(&mut client, run, "find").is_answered(), "the ring's order is kept");
    assert_eq!(counts(&daemon.status(), "page", ["runs", "started"]), [1, 801]);
}

#[test]
fn fan_outs_of_none_and_of_a_thousand_are_answered_and_measured() {
    let folder = Folder::new("query-gamma");
    let mut daemon = serve(&folder, "");
    let options = ClientOptions { slots: 1024, arena_bytes: 4 << 20, ..ClientOptions::default() };
    let mut client = daemon.client_with(options);
    let page = client.open_query("page").unwrap();
    assert_eq!(gammas(&daemon.status()), [1.0, 1.0], "before anything was measured");
    let none = client.begin(&page).unwrap();
    assert!(call(&mut client, none, "find").is_answered());
    client.finish(none).unwrap();
    daemon.wait_until("turn was not called, and of read nothing is known", |status| gammas(status) == [0.0, 1.0]);
    let many = client.begin(&page).unwrap();
    assert!(call(&mut client, many, "find").is_answered());
    assert!(call(&mut client, many, "turn").is_answered());
    let tickets: Vec<Ticket> = (0..1000).map(|line| submit(&mut client, many, "read", line as f32)).collect();
    for ticket in tickets {
        assert_eq!(take(&mut client, ticket).status, Status::Ok);
    }
    let answer = call(&mut client, many, "read");
    assert_refused(&answer, Status::Failed, Reason::WrongStage, "was called 1000 times in this run");
    client.finish(many).unwrap();
    daemon.wait_until("one of two runs called turn, and that read", |status| gammas(status) == [0.5, 1000.0]);
    assert_eq!(counts(&daemon.status(), "page", ["ok", "runs"]), [2, 0]);
}

#[test]
fn the_slo_is_divided_anew_when_a_fan_out_changes() {
    let folder = Folder::new("query-split");
    let models = emulated("first", "1 = 4.0, 8 = 8.0") + &emulated("second", "1 = 1.0, 32 = 20.0");
    let profiles = folder.write("profiles.toml", models);
    let declared = "plan_interval_ms = 100\n[[query]]\nname = \"page\"\nslo_ms = 2000\nstage = [ { name = \"read\", model = \
                 \"second\", after = \"find\" }, { name = \"find\", model = \"first\" } ]\n";
    let daemon = Daemon::start(&folder, &format!("{declared}{}", emulated_device(1, &profiles)));
    let mut client = daemon.client();
    let page = client.open_query("page").unwrap();
    let shares = |status: &Value| {
        let stages = &query(status, "page")["stages"];
        [0, 1].map(|stage: usize| stages[stage]["share_ms"].as_f64().unwrap())
    };
    let mut before = shares(&daemon.status());
    for lines in [1, 12] {
        let begin = std::time::Instant::now();
        let mut status = daemon.status();
        while shares(&status) == before
            || query(&status, "page")["stages"][0]["gamma"].as_f64() < Some(0.5 * f64::from(lines))
        {
            assert!(begin.elapsed() < PATIENCE, "{lines} lines, and the SLO is divided as before: {status:#}");
            for _ in 0..10 {
                let run = client.begin(&page).unwrap();
                assert!(call(&mut client, run, "find").is_answered());
                let tickets: Vec<Ticket> =
                    (0..lines).map(|line| submit(&mut client, run, "read", line as f32)).collect();
                for ticket in tickets {
                    assert!(take(&mut client, ticket).is_answered());
                }
                client.finish(run).unwrap();
            }
            status = daemon.status();
        }
        let now = shares(&status);
        assert!((now[0] + now[1] - 2000.0).abs() < 0.1, "{now:?}");
        let stages: Vec<&Value> =
            status["sessions"].as_array().unwrap().iter().filter(|session| session["stage"].is_string()).collect();
        assert!(stages.iter().all(|session| session["promised_rate"].as_f64() > Some(0.0)), "{stages:#?}");
        let weights: f64 = stages.iter().map(|session| session["weight"].as_f64().unwrap()).sum();
        assert!((weights - 1.0).abs() < 1e-6, "the query's weight is what its stages have: {stages:#?}");
        before = now;
    }
}
