//! The plan that a running daemon makes and serves by: what `rota status` shows of it while models and load come and go.

#[allow(dead_code, reason = "not every test file uses all of it")]
mod support;

use rota_ipc::Client;
use rota_ipc::client::{Open, Request, Session};
use rota_ipc::wire::Status;
use serde_json::Value;
use std::time::{Duration, Instant};
use support::{Daemon, Folder, PATIENCE, PATIENT, Witness, emulated, emulated_device, small, stdout};

/// A plan as soon as demand has changed.
const SOON: &str = "plan_interval_ms = 1\n";

/// Asks one request after the other, `pause` apart, until the daemon's status is as `done` wants it; how many were answered.
fn ask_until(
    daemon: &Daemon,
    client: &mut Client,
    sessions: &[Session],
    pause: Duration,
    what: &str,
    mut done: impl FnMut(&Value) -> bool,
) -> u64 {
    let mut control = daemon.control();
    let mut idle: Vec<Request> = sessions.iter().map(|session| client.request(session).unwrap()).collect();
    let (begin, mut looked, mut answered) = (Instant::now(), Instant::now(), 0);
    loop {
        for mut request in std::mem::take(&mut idle) {
            request.input::<f32>("x", &[1, 4]).unwrap().fill(1.0);
            let answer = client.infer(request).unwrap();
            answered += u64::from(answer.status == Status::Ok);
            idle.push(answer.into_request());
        }
        if looked.elapsed() > Duration::from_millis(20) {
            let status = control.status().unwrap();
            if done(&status) {
                return answered;
            }
            assert!(begin.elapsed() < PATIENCE, "{what}: not after {PATIENCE:?}, but {status:#}\n{}", daemon.log());
            looked = Instant::now();
        }
        std::thread::sleep(pause);
    }
}

/// The models that have slots in the plan, in alphabetical order.
fn planned(status: &Value) -> Vec<&str> {
    let devices = status["plan"]["devices"].as_array().into_iter().flatten();
    let slots = devices.flat_map(|device| device["slots"].as_array().unwrap());
    let shares = slots.flat_map(|slot| slot["sessions"].as_array().unwrap());
    let mut models: Vec<&str> = shares.map(|share| share["model"].as_str().unwrap()).collect();
    models.sort_unstable();
    models.dedup();
    models
}

fn session<'a>(status: &'a Value, model: &str) -> &'a Value {
    let sessions = status["sessions"].as_array().unwrap();
    sessions.iter().find(|session| session["model"] == model).unwrap_or_else(|| panic!("no session of {model}"))
}

fn promised(status: &Value, model: &str) -> Option<f64> {
    session(status, model)["promised_rate"].as_f64()
}

#[test]
fn before_there_is_load_there_is_a_plan_with_nothing_to_do() {
    let folder = Folder::new("idleplan");
    let profiles = folder.write("profiles.toml", emulated("echo", "1 = 2.0, 8 = 4.0"));
    let mut daemon = Daemon::start(&folder, &format!("plan_interval_ms = 0\n{}", emulated_device(3, &profiles)));
    daemon.wait_until("a plan is made", |status| !status["plan"].is_null());
    let plan = &daemon.status()["plan"];
    assert_eq!((&plan["cause"], &plan["error"]), (&"start".into(), &Value::Null));
    assert_eq!(plan["devices"].as_array().unwrap().len(), 3);
    assert_eq!(planned(&daemon.status()), Vec::<&str>::new());
    let mut client = daemon.client_with(small());
    let open = client.open("echo", PATIENT).unwrap();
    assert_eq!(promised(&daemon.status(), "echo"), None, "nobody knows yet what it asks for");
    let mut request = client.request(&open).unwrap();
    request.input::<f32>("x", &[1, 4]).unwrap().fill(1.0);
    client.infer(request).unwrap().check().unwrap();
    assert!(stdout(&daemon.rota(&["status"])).contains("nothing is planned"));
}

#[test]
fn promises_follow_the_load_and_slots_are_those_of_the_sessions_that_ask() {
    let folder = Folder::new("follow");
    let models = ["busy", "rare", "quiet"].map(|model| emulated(model, "1 = 0.2, 8 = 0.5"));
    let profiles = folder.write("profiles.toml", models.concat());
    let daemon = Daemon::start(&folder, &format!("{SOON}{}", emulated_device(2, &profiles)));
    let mut client = daemon.client_with(small());
    let sessions = ["busy", "rare", "quiet"].map(|model| client.open(model, PATIENT).unwrap());
    let pause = Duration::from_millis(2);
    let what = "both that ask are planned for";
    let both = ["busy", "rare"];
    ask_until(&daemon, &mut client, &sessions[..2], pause, what, |status| planned(status) == both);
    let status = daemon.status();
    assert_eq!(status["plan"]["cause"], "demand");
    assert_eq!(promised(&status, "quiet"), None);
    let before = promised(&status, "busy").unwrap();
    assert!(before > 0.0, "{status:#}");
    for device in status["plan"]["devices"].as_array().unwrap() {
        for slot in device["slots"].as_array().unwrap() {
            let ends = slot["offset_ms"].as_f64().unwrap() + slot["exec_ms"].as_f64().unwrap();
            assert!(slot["batch"].as_u64().unwrap() >= 1 && ends <= device["period_ms"].as_f64().unwrap() + 1e-6);
        }
    }
    let text = stdout(&daemon.rota(&["status"]));
    for part in ["promised/s", "goodput/s", "target", "plan, made", "because demand changed", "period ms", "takes ms"] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
    // A tenth of the load or less, and nothing of the other session: the plan comes down with it.
    let pause = Duration::from_secs_f64(10.0 / before.max(10.0));
    let what = "the promises come down";
    ask_until(&daemon, &mut client, &sessions[..1], pause, what, |status| {
        ["busy", "rare"].iter().all(|model| promised(status, model).unwrap() < 0.7 * before)
    });
    let status = daemon.status();
    assert!(session(&status, "busy")["goodput"].as_f64().unwrap() > 0.0, "{status:#}");
}

#[test]
fn a_session_that_can_not_be_planned_is_named_with_why_and_the_others_are_served() {
    let folder = Folder::new("unplaced");
    let models = emulated("echo", "1 = 0.2, 8 = 0.5") + &emulated("tight", "1 = 20.0");
    let profiles = folder.write("profiles.toml", models);
    let daemon = Daemon::start(&folder, &format!("{SOON}{}", emulated_device(1, &profiles)));
    let mut witness = Witness::new(&daemon);
    let mut client = daemon.client_with(small());
    // Exactly one batch: it may be asked for, but no turn can be waited for.
    let tight = client.open("tight", Open { version: None, slo: Some(Duration::from_millis(20)) }).unwrap();
    let pause = Duration::from_millis(5);
    let unplaced = |status: &Value, why: &str| {
        let unplaced = status["plan"]["unplaced"].as_array().into_iter().flatten();
        unplaced.clone().any(|unplaced| unplaced["model"] == "tight" && unplaced["why"] == why)
    };
    ask_until(&daemon, &mut client, &[tight], pause, "it is named", |status| unplaced(status, "slo_too_short"));
    let status = daemon.status();
    assert_eq!(promised(&status, "tight"), Some(0.0), "{status:#}");
    assert_eq!(status["plan"]["error"], Value::Null);
    let text = stdout(&daemon.rota(&["status"]));
    assert!(text.contains("not placed") && text.contains("the SLO is too short"), "{text}");
    witness.assert_served();
}

#[test]
fn models_that_come_and_go_are_planned_anew_and_nothing_stops() {
    let folder = Folder::new("replan");
    folder.copy_model("mlp", "repository/mlp/1/model.onnx");
    folder.write("repository/mlp/model.toml", "max_batch = 4\nslo_ms = 60000\nweight = 2.5\n");
    folder.copy_model("state", "later/1/model.onnx");
    let profiles = folder.write("profiles.toml", emulated("echo", "1 = 0.2, 8 = 0.5"));
    let repository = folder.path().join("repository");
    let mut daemon = Daemon::start(
        &folder,
        &format!(
            "plan_interval_ms = 0\nrepository = \"{}\"\n[[device]]\nkind = \"cpu\"\n{}",
            repository.display(),
            emulated_device(1, &profiles)
        ),
    );
    daemon.wait_until("the first plan", |status| status["plan"]["cause"] == "start");
    let mut witness = Witness::new(&daemon);
    let mut client = daemon.client_with(small());
    client.open("mlp", Open::default()).unwrap();
    assert_eq!(session(&daemon.status(), "mlp")["weight"], 2.5);
    let count = |status: &Value| status["plan"]["count"].as_u64().unwrap();
    let first = count(&daemon.status());
    folder.copy_model("state", "repository/state/1/model.onnx");
    assert!(daemon.rota(&["load", "state"]).status.success());
    daemon.wait_until("a plan after loading", |status| status["plan"]["cause"] == "load" && count(status) > first);
    witness.assert_served();
    let second = count(&daemon.status());
    assert!(daemon.rota(&["unload", "mlp"]).status.success());
    daemon.wait_until("a plan after unloading", |status| status["plan"]["cause"] == "unload" && count(status) > second);
    let status = daemon.status();
    assert!(status["sessions"].as_array().unwrap().iter().all(|session| session["model"] != "mlp"), "{status:#}");
    witness.assert_served();
    assert!(daemon.stop().success());
}

#[test]
fn a_weight_that_means_nothing_is_one_clear_error() {
    let folder = Folder::new("weight");
    for (model, weight) in [("zero", "0"), ("minus", "-1.5"), ("word", "\"heavy\"")] {
        folder.copy_model("mlp", &format!("repository/{model}/1/model.onnx"));
        folder.write(&format!("repository/{model}/model.toml"), format!("slo_ms = 50\nweight = {weight}\n"));
    }
    let output = support::rota().arg("check").arg(folder.path().join("repository")).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = stdout(&output) + &support::stderr(&output);
    for part in [
        "weight = 0 must be above zero; 1 is usual",
        "weight = -1.5 must be above zero; 1 is usual",
        "line 2: invalid type: string \"heavy\", expected f64",
    ] {
        assert!(said.contains(part), "{part} is not in\n{said}");
    }
}
