//! What tests of queries share: a daemon with two of them, and calls that do not borrow the client.

use crate::support::{Daemon, Folder, PATIENCE, emulated, emulated_device};
use rota_ipc::Client;
use rota_ipc::client::{Answer, Request, RunId, Ticket};
use rota_ipc::wire::{Reason, Status};
use serde_json::Value;

/// Three stages of models that take no time, and one query with a model that takes a second; nothing is ever late in the first.
pub const QUERIES: &str = r#"
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

pub fn serve(folder: &Folder, settings: &str) -> Daemon {
    let quick = ["finder", "turner", "reader", "echo"].map(|model| emulated(model, "1 = 0.0, 8 = 0.0")).concat();
    let quick = folder.write("quick.toml", quick);
    let slow = folder.write("slow.toml", emulated("slow", "1 = 1000.0"));
    let devices = emulated_device(1, &quick) + &emulated_device(1, &slow);
    Daemon::start(folder, &format!("{settings}{QUERIES}{devices}"))
}

pub fn filled(mut request: Request, value: f32) -> Request {
    request.input::<f32>("x", &[1, 4]).unwrap().fill(value);
    request
}

/// A call of a run that does not borrow the client.
pub fn submit(client: &mut Client, run: RunId, stage: &str, value: f32) -> Ticket {
    let request = filled(client.request_in(run, stage).unwrap(), value);
    client.submit(request).unwrap_or_else(|rejected| panic!("{rejected}"))
}

pub fn call(client: &mut Client, run: RunId, stage: &str) -> Answer {
    let ticket = submit(client, run, stage, 1.0);
    take(client, ticket)
}

#[track_caller]
pub fn take(client: &mut Client, ticket: Ticket) -> Answer {
    client.wait_for(ticket, PATIENCE).unwrap().expect("an answer")
}

/// Of a status, what it says of a query.
pub fn query<'a>(status: &'a Value, name: &str) -> &'a Value {
    let queries = status["queries"].as_array().unwrap();
    queries.iter().find(|query| query["name"] == name).unwrap_or_else(|| panic!("no {name} in {status:#}"))
}

/// γ of the stages of "page" after "find": of "turn" and of "read".
pub fn gammas(status: &Value) -> [f64; 2] {
    let stages = &query(status, "page")["stages"];
    [2, 0].map(|stage| stages[stage]["gamma"].as_f64().unwrap())
}

#[track_caller]
pub fn assert_refused(answer: &Answer, status: Status, reason: Reason, text: &str) {
    assert_eq!((answer.status, answer.reason), (status, reason), "{}", answer.message());
    assert!(answer.message().contains(text), "{}\ninstead of: {text}", answer.message());
}

/// What two figures of a query come to.
pub fn counts(status: &Value, name: &str, figures: [&str; 2]) -> [u64; 2] {
    figures.map(|figure| query(status, name)[figure].as_u64().unwrap_or_else(|| panic!("{figure}: {status:#}")))
}
