//! Which queries there are: those of the settings, those that clients declare, and what becomes of them when models come and go.

#[allow(dead_code, reason = "not every test file uses all of it")]
mod support;

#[allow(dead_code, reason = "not every test file uses all of it")]
#[path = "support/queries.rs"]
mod asked;

use asked::{assert_refused, call, filled, serve};
use rota_ipc::client::Error;
use rota_ipc::control::{ErrorCode, QueryDeclaration, StageDeclaration};
use rota_ipc::wire::{Reason, Status};
use support::{Daemon, Folder, emulated, emulated_device, stdout};

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
    let text = stdout(&daemon.rota(&["status"]));
    assert!(text.contains("query \"odd\": stage \"a\": there is no model \"gone\""), "{text}");
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
