//! What clients say of runs of queries that no honest one would: each request is answered once all the same, nobody else notices,
//! and nothing is kept.

#[allow(dead_code, reason = "not every test file uses all of it")]
mod support;

#[allow(dead_code, reason = "not every test file uses all of it")]
#[path = "support/raw.rs"]
mod raw;

use raw::{Numbers, Raw, good, seed};
use rota_ipc::control::{QueryDeclaration, QueryInfo, Reply, Request, StageDeclaration};
use rota_ipc::wire::{OP_BEGIN, OP_CANCEL, OP_FINISH, OP_GIVE_UP, OP_INFER, Reason, Status, Submission, run_id};
use std::collections::BTreeSet;
use std::time::Duration;
use support::{Daemon, Folder, Witness, emulated, emulated_device};

const SLOTS: u32 = 32;

const QUERIES: &str = r#"
    [[query]]
    name = "long"
    slo_ms = 600000
    stage = [
        { name = "a", model = "echo", max_calls = 3 },
        { name = "b", model = "echo", after = "a", max_calls = 5 },
    ]
    [[query]]
    name = "short"
    slo_ms = 2
    stage = [ { name = "a", model = "echo" }, { name = "b", model = "timed", after = "a" } ]
    [limits]
    runs_max = 24
"#;

fn serve(folder: &Folder) -> Daemon {
    let models = emulated("echo", "1 = 0.0, 8 = 0.0") + &emulated("timed", "1 = 0.5, 8 = 1.0");
    let profiles = folder.write("profiles.toml", models);
    Daemon::start(folder, &format!("{QUERIES}{}", emulated_device(1, &profiles)))
}

fn open(raw: &mut Raw, name: &str) -> QueryInfo {
    match raw.control.ask(&Request::Query { name: name.into() }) {
        Reply::Query { query } => query,
        other => panic!("{other:?}"),
    }
}

/// Something about a run, mostly of those that there may be.
fn any(numbers: &mut Numbers, queries: &[QueryInfo], slot: u32) -> Submission {
    let query = &queries[numbers.below(2) as usize];
    let run = match numbers.below(8) {
        0 => numbers.odd(),
        1 => 0,
        // One of a few slots, and of few generations.
        _ => run_id(numbers.below(6) as u32, 1 + numbers.below(2) as u32),
    };
    let op = match numbers.below(10) {
        0 | 1 => OP_BEGIN,
        2 => OP_FINISH,
        3 => OP_GIVE_UP,
        4 => OP_CANCEL,
        _ => OP_INFER,
    };
    let named = if numbers.below(8) == 0 { numbers.odd() as u32 } else { query.id };
    let slot = if op == OP_BEGIN { named } else { slot };
    let stage = if numbers.below(8) == 0 { numbers.odd() as u16 } else { numbers.below(2) as u16 };
    Submission { op, slot, query: run, stage, ..Submission::default() }
}

#[test]
fn each_call_of_runs_that_make_no_sense_is_answered_exactly_once() {
    let mut numbers = seed();
    let folder = Folder::new("runs");
    let mut daemon = serve(&folder);
    let mut witness = Witness::new(&daemon);
    let mut raw = Raw::connect(daemon.socket(), SLOTS, 16 << 10);
    let queries = [open(&mut raw, "long"), open(&mut raw, "short")];
    let plain = raw.open("echo");
    let (mut statuses, mut reasons) = ([0u32; 6], BTreeSet::new());
    for round in 0..2000u64 {
        let mut expected = BTreeSet::new();
        for number in 0..1 + numbers.below(u64::from(SLOTS)) {
            let mut submission = any(&mut numbers, &queries, number as u32);
            submission.tag = round << 32 | number;
            if submission.op == OP_INFER {
                let session = match numbers.below(8) {
                    0 => plain,
                    1 => numbers.odd() as u32,
                    _ => queries[numbers.below(2) as usize].stages[usize::from(submission.stage & 1)].session,
                };
                let (request, header, tensors) = good(session, submission.slot);
                raw.write_block(submission.slot, header, &tensors);
                submission.block_bytes = request.block_bytes;
                expected.insert(submission.tag);
            }
            raw.push(submission);
        }
        raw.publish();
        while !expected.is_empty() {
            let (completion, _) = raw.completion();
            assert!(expected.remove(&completion.tag), "answered twice, or never asked: {completion:?}");
            let (status, reason) = (Status::from_code(completion.status), Reason::from_code(completion.reason));
            statuses[status.expect("a status") as usize] += 1;
            reasons.insert(reason.expect("a reason") as u8);
        }
        if round % 100 == 0 {
            witness.assert_served();
        }
    }
    assert!(raw.completion_within(Duration::from_millis(20)).is_none(), "more completions than requests");
    println!("{statuses:?}, reasons {reasons:?}");
    assert!(statuses[Status::Ok as usize] > 100 && statuses[Status::Failed as usize] > 1000, "{statuses:?}");
    for reason in [Reason::UnknownRun, Reason::WrongStage, Reason::UnknownSession, Reason::QueryLost] {
        assert!(reasons.contains(&(reason as u8)), "{reason:?} is not among {reasons:?}");
    }
    assert_eq!(daemon.status()["requests_in_flight"], 0);
    drop(raw);
    daemon.wait_until("all runs are given back", |status| {
        status["queries"].as_array().unwrap().iter().all(|query| query["runs"] == 0 && query["started"] != 0)
    });
    witness.assert_served();
}

#[test]
fn a_flood_of_runs_takes_no_more_than_its_slots_and_leaves_room_for_others() {
    let folder = Folder::new("flood");
    let mut daemon = serve(&folder);
    let mut witness = Witness::new(&daemon);
    let mut raw = Raw::connect(daemon.socket(), SLOTS, 16 << 10);
    let long = open(&mut raw, "long");
    for round in 1..500u32 {
        for slot in 0..SLOTS {
            let query = run_id(slot, round);
            raw.push(Submission { op: OP_BEGIN, slot: long.id, query, ..Submission::default() });
        }
        raw.publish();
        // Its own ring is what holds it back: a request behind them is answered when they were taken.
        let (submission, header, tensors) = good(long.stages[0].session, 0);
        raw.write_block(0, header, &tensors);
        raw.submit(Submission { query: run_id(0, round), ..submission });
        let (completion, record) = raw.completion();
        assert_eq!(completion.status, Status::Ok as u8, "{}", String::from_utf8_lossy(&record));
    }
    let open = |status: &serde_json::Value| status["queries"][0]["runs"].as_u64().unwrap();
    assert_eq!(open(&daemon.status()), 24, "runs_max");
    witness.assert_served();
    drop(raw);
    daemon.wait_until("all runs are given back", |status| open(status) == 0);
}

#[test]
fn a_query_that_another_connection_opened_is_not_begun_by_its_number() {
    let folder = Folder::new("foreign");
    let daemon = serve(&folder);
    let mut owner = Raw::connect(daemon.socket(), SLOTS, 16 << 10);
    let long = open(&mut owner, "long");
    let mut stranger = Raw::connect(daemon.socket(), SLOTS, 16 << 10);
    let plain = stranger.open("echo");
    let begin = Submission { op: OP_BEGIN, slot: long.id, query: run_id(0, 1), ..Submission::default() };
    stranger.push(begin);
    let (submission, header, tensors) = good(plain, 0);
    stranger.write_block(0, header, &tensors);
    stranger.submit(Submission { query: run_id(0, 1), ..submission });
    let (completion, _) = stranger.completion();
    assert_eq!(completion.reason, Reason::UnknownRun as u8);
    assert_eq!(daemon.status()["queries"][0]["started"], 0);
}

#[test]
fn declarations_of_any_shape_are_answered_and_leave_nothing() {
    let mut numbers = seed();
    let folder = Folder::new("declared");
    let mut daemon = serve(&folder);
    let mut witness = Witness::new(&daemon);
    let mut raw = Raw::connect(daemon.socket(), SLOTS, 16 << 10);
    let (mut taken, mut refused) = (0, 0);
    for _ in 0..500 {
        let name = |numbers: &mut Numbers| format!("{}", numbers.below(5));
        let stage = |numbers: &mut Numbers| StageDeclaration {
            name: name(numbers),
            model: if numbers.below(6) == 0 { "gone".into() } else { "echo".into() },
            version: (numbers.below(6) == 0).then(|| numbers.below(3)),
            after: (numbers.below(3) > 0).then(|| name(numbers)),
            max_calls: (numbers.below(3) == 0).then(|| numbers.odd() as u32),
        };
        let count = numbers.below(4) as usize;
        let query = QueryDeclaration {
            name: format!("q{}", numbers.below(3)),
            slo_ms: 1.0 + numbers.below(3) as f64,
            weight: (numbers.below(3) == 0).then(|| numbers.below(3) as f64),
            stage: (0..count).map(|_| stage(&mut numbers)).collect(),
        };
        match raw.control.ask(&Request::Declare { query }) {
            Reply::Query { .. } => taken += 1,
            Reply::Error { .. } => refused += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!(taken > 0 && refused > 100, "{taken} taken, {refused} refused");
    witness.assert_served();
    drop(raw);
    let names = |status: &serde_json::Value| status["queries"].as_array().unwrap().len();
    daemon.wait_until("only those of the settings are left", |status| names(status) == 2);
    let open = |status: &serde_json::Value| {
        let sessions = status["sessions"].as_array().unwrap();
        sessions.iter().filter(|session| session["stage"].is_string()).count()
    };
    assert_eq!(open(&daemon.status()), 4, "the stages of those two");
}
