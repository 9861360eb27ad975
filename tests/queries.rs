//! Queries through the real daemon: whole runs, what is answered to each mistake, and that a run which can't be in time is dropped
//! whole, at once, and everything given back.

#[allow(dead_code, reason = "not every test file uses all of it")]
mod support;

use rota_ipc::client::{Answer, Deadline, Error, Request, RunId, Ticket};
use rota_ipc::control::{ErrorCode, QueryDeclaration, StageDeclaration};
use rota_ipc::wire::{Reason, Status};
use rota_ipc::{Client, ClientOptions};
use serde_json::Value;
use std::time::Duration;
use support::{Daemon, Folder, PATIENCE, Witness, emulated, emulated_device, small, stdout};

/// Three stages of models that take no time, and one query with a model that takes a second; nothing is ever late in the first.
const QUERIES: &str = r#"
    [[query]]
    name = "page"
    slo_ms = 600000
    stage = [
        { name = "read", model = "reader", after = "turn", max_calls = 1000 },
        { name = "find", model = "finder" },
        { name = "turn", model = "turner", after = "find", max_calls = 2 },
    ]
    [[query]]
    name = "hurry"
    slo_ms = 2500
    stage = [ { name = "look", model = "finder" }, { name = "think", model = "slow", after = "look" } ]
"#;

fn serve(folder: &Folder, settings: &str) -> Daemon {
    let quick = ["finder", "turner", "reader", "echo"].map(|model| emulated(model, "1 = 0.0, 8 = 0.0")).concat();
    let quick = folder.write("quick.toml", quick);
    let slow = folder.write("slow.toml", emulated("slow", "1 = 1000.0"));
    let devices = emulated_device(1, &quick) + &emulated_device(1, &slow);
    Daemon::start(folder, &format!("{settings}{QUERIES}{devices}"))
}

fn filled(mut request: Request, value: f32) -> Request {
    request.input::<f32>("x", &[1, 4]).unwrap().fill(value);
    request
}

/// A call of a run that does not borrow the client.
fn submit(client: &mut Client, run: RunId, stage: &str, value: f32) -> Ticket {
    let request = filled(client.request_in(run, stage).unwrap(), value);
    client.submit(request).unwrap_or_else(|rejected| panic!("{rejected}"))
}

fn call(client: &mut Client, run: RunId, stage: &str) -> Answer {
    let ticket = submit(client, run, stage, 1.0);
    take(client, ticket)
}

#[track_caller]
fn take(client: &mut Client, ticket: Ticket) -> Answer {
    client.wait_for(ticket, PATIENCE).unwrap().expect("an answer")
}

/// Of a status, what it says of a query.
fn query<'a>(status: &'a Value, name: &str) -> &'a Value {
    let queries = status["queries"].as_array().unwrap();
    queries.iter().find(|query| query["name"] == name).unwrap_or_else(|| panic!("no {name} in {status:#}"))
}

/// γ of the stages of "page" after "find": of "turn" and of "read".
fn gammas(status: &Value) -> [f64; 2] {
    let stages = &query(status, "page")["stages"];
    [2, 0].map(|stage| stages[stage]["gamma"].as_f64().unwrap())
}

#[track_caller]
fn assert_refused(answer: &Answer, status: Status, reason: Reason, text: &str) {
    assert_eq!((answer.status, answer.reason), (status, reason), "{}", answer.message());
    assert!(answer.message().contains(text), "{}\ninstead of: {text}", answer.message());
}

/// What two figures of a query come to.
fn counts(status: &Value, name: &str, figures: [&str; 2]) -> [u64; 2] {
    figures.map(|figure| query(status, name)[figure].as_u64().unwrap_or_else(|| panic!("{figure}: {status:#}")))
}

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

fn declared(name: &str, stages: Vec<StageDeclaration>) -> QueryDeclaration {
    QueryDeclaration { name: name.into(), slo_ms: 5000.0, weight: None, stage: stages }
}

#[test]
fn a_client_declares_a_query_that_lasts_as_long_as_somebody_declares_it() {
    let folder = Folder::new("query-declare");
    let mut daemon = serve(&folder, "[limits]\nqueries_per_user = 2\n");
    let (first, after) = (StageDeclaration::first, StageDeclaration::after);
    let own = declared("own", vec![first("a", "finder"), after("a", "b", "slow")]);
    let mut client = daemon.client();
    let mut other = daemon.client();
    let why = |result: Result<rota_ipc::client::Query<'_>, Error>| match result {
        Err(Error::Refused { code, message }) => (code, message),
        other => panic!("{other:?}"),
    };
    let (code, message) = why(other.query("own"));
    assert_eq!((code, &message[..]), (ErrorCode::UnknownQuery, "there is no query \"own\"; there are: page, hurry"));
    let mut run = client.declare(&own).unwrap().start();
    let request = filled(run.request("a").unwrap(), 1.0);
    assert_eq!(run.call("a", request).unwrap().status, Status::Ok);
    run.finish().unwrap();
    // Others of this user find it, and may declare it too.
    other.query("own").unwrap();
    other.declare(&own).unwrap();
    let mut third = daemon.client();
    let cases = [
        (declared("own", vec![first("a", "finder")]), ErrorCode::Query, "there is another query \"own\", declared by"),
        (declared("page", vec![first("a", "finder")]), ErrorCode::Query, "in the daemon's settings"),
        (declared("x", vec![first("a", "finder"), after("c", "b", "slow")]), ErrorCode::Query, "which there is not"),
        (declared("x", vec![after("b", "a", "finder"), after("a", "b", "slow")]), ErrorCode::Query, "is after itself"),
        (declared("x", vec![first("a", "findr")]), ErrorCode::UnknownModel, "stage \"a\": there is no model \"findr\""),
        (
            QueryDeclaration { slo_ms: 999.0, ..declared("x", vec![first("a", "slow")]) },
            ErrorCode::Slo,
            "is too short: batches of one take 1s from the first stage to the last",
        ),
    ];
    for (query, code, text) in cases {
        let (said, message) = why(third.declare(&query));
        assert!(said == code && message.contains(text), "{said:?}: {message}\ninstead of: {text}");
    }
    third.declare(&declared("second", vec![first("a", "finder")])).unwrap();
    let (code, message) = why(third.declare(&declared("third", vec![first("a", "finder")])));
    assert!(code == ErrorCode::Limit && message.contains("has declared 2 queries, which is the most"), "{message}");
    drop((client, third));
    daemon.wait_until("only what is still declared is served", |status| {
        let names: Vec<&str> =
            status["queries"].as_array().unwrap().iter().filter_map(|q| q["name"].as_str()).collect();
        names == ["page", "hurry", "own"]
    });
    let mut run = other.query("own").unwrap().start();
    let request = filled(run.request("a").unwrap(), 1.0);
    assert_eq!(run.call("a", request).unwrap().status, Status::Ok);
    run.finish().unwrap();
    drop(other);
    daemon.wait_until("nobody declares it", |status| status["queries"].as_array().unwrap().len() == 2);
    let (code, _) = why(daemon.client().query("own"));
    assert_eq!(code, ErrorCode::UnknownQuery);
}

#[test]
fn unloading_a_model_ends_the_runs_of_its_queries_and_loading_it_brings_them_back() {
    let folder = Folder::new("query-unload");
    folder.copy_model("mlp", "repository/mlp/1/model.onnx");
    let quick = folder.write("quick.toml", emulated("finder", "1 = 0.0, 8 = 0.0") + &emulated("echo", "1 = 0.0"));
    let query = "[[query]]\nname = \"mixed\"\nslo_ms = 600000\nstage = [ { name = \"a\", model = \"finder\" }, \
                 { name = \"b\", model = \"mlp\", after = \"a\" } ]\n\
                 [[query]]\nname = \"odd\"\nslo_ms = 600000\nstage = [ { name = \"a\", model = \"gone\" } ]\n";
    let devices = emulated_device(1, &quick) + "[[device]]\nkind = \"cpu\"\nengine = \"rten\"\n";
    let mut daemon = Daemon::start(&folder, &format!("repository = \"repository\"\n{query}{devices}"));
    let mut client = daemon.client();
    let error = client.query("odd").unwrap_err().to_string();
    assert!(error.contains("query \"odd\": stage \"a\": there is no model \"gone\"; there are: "), "{error}");
    assert!(daemon.log().contains("a query can't be served"), "{}", daemon.log());
    let mixed = client.open_query("mixed").unwrap();
    let run = client.begin(&mixed).unwrap();
    assert!(call(&mut client, run, "a").is_answered());
    assert!(daemon.rota(&["unload", "mlp"]).status.success());
    let answer = call(&mut client, run, "a");
    assert_refused(&answer, Status::Failed, Reason::Unloaded, "unloaded");
    let error = daemon.client().query("mixed").unwrap_err().to_string();
    assert!(error.contains("stage \"b\": there is no model \"mlp\""), "{error}");
    assert!(daemon.rota(&["load", "mlp"]).status.success());
    daemon.wait_until("it is served again", |status| {
        status["queries"].as_array().unwrap().iter().any(|query| query["name"] == "mixed")
    });
    // The same client may go on, and so may its requests, once it has asked for the query again.
    let mut again = answer.into_request();
    let mut run = client.query("mixed").unwrap().start();
    again.input::<f32>("x", &[1, 4]).unwrap().fill(1.0);
    assert_eq!(run.call("a", again).unwrap().status, Status::Ok);
    run.finish().unwrap();
}

#[test]
fn a_client_that_reconnects_runs_the_same_queries() {
    let folder = Folder::new("query-reconnect");
    let daemon = serve(&folder, "");
    let mut client = daemon.client();
    let page = client.open_query("page").unwrap();
    let own = declared("own", vec![StageDeclaration::first("a", "finder")]);
    let own = client.declare(&own).unwrap().open();
    let old = client.begin(&page).unwrap();
    client.reconnect().unwrap();
    let run = client.begin(&own).unwrap();
    assert!(call(&mut client, run, "a").is_answered(), "declared again");
    assert!(matches!(client.request_in(old, "find"), Err(Error::RunEnded)));
    let run = client.begin(&page).unwrap();
    assert!(call(&mut client, run, "find").is_answered());
    client.finish(run).unwrap();
}

#[test]
fn settings_that_are_no_queries_are_refused_with_what_is_wrong() {
    let folder = Folder::new("query-settings");
    let stages = "stage = [ { name = \"a\", model = \"m\" }, { name = \"b\", model = \"m\", after = \"c\" } ]";
    let cases = [
        (
            format!("name = \"q\"\nslo_ms = 10\n{stages}"),
            "query \"q\": stage \"b\" is after \"c\", which there is not; it has a, b",
        ),
        ("name = \"q\"\nslo_ms = 0\nstage = []".to_string(), "query \"q\": slo_ms = 0 must be above 0"),
        ("name = \"q\"\nslo_ms = 5\nstages = []".to_string(), "unknown field `stages`"),
    ];
    for (query, text) in cases {
        let config = folder.write("wrong.toml", format!("[[query]]\n{query}\n"));
        let output = support::rota().args(["serve", "--config"]).arg(&config).output().unwrap();
        let said = support::stderr(&output);
        assert!(!output.status.success() && said.contains(text), "{said}\ninstead of: {text}");
    }
}
