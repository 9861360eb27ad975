//! The program's verbs, as a user runs them: the real binary, and a real daemon where they need one.

#[allow(dead_code, reason = "not every test file uses all of it")]
mod support;

use rota_device::HostTensor;
use rota_device::npy;
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::Output;
use support::{Daemon, Folder, emulated, emulated_device, model_file, rota, stderr, stdout};

/// A cpu device that is the same on every host.
const RTEN: &str = "[[device]]\nkind = \"cpu\"\nengine = \"rten\"\nthreads = 1\n";

fn echo_daemon(folder: &Folder) -> Daemon {
    let profiles = folder.write("profiles.toml", emulated("echo", "1 = 1.0, 8 = 2.0"));
    Daemon::start(folder, &emulated_device(2, &profiles))
}

/// A daemon that serves `repository` in the folder.
fn repository_daemon(folder: &Folder) -> Daemon {
    Daemon::start(folder, &format!("repository = \"repository\"\n{RTEN}"))
}

fn npy_file(folder: &Folder, name: &str, tensor: &HostTensor) -> String {
    folder.write(name, npy::encode(tensor).unwrap()).display().to_string()
}

fn floats(dims: &[u32], values: &[f32]) -> HostTensor {
    HostTensor::from_elements(dims, values).unwrap()
}

fn run(arguments: &[&str]) -> Output {
    rota().args(arguments).output().unwrap()
}

fn json(output: &Output) -> Value {
    serde_json::from_str(&stdout(output)).unwrap_or_else(|error| panic!("{error}:\n{output:?}"))
}

fn assert_ok(output: &Output) {
    assert!(output.status.success(), "{}\n{}", stdout(output), stderr(output));
}

/// The program failed with one line that begins with its name and has `parts` in it.
fn assert_fails(output: &Output, parts: &[&str]) {
    let said = stderr(output);
    assert_eq!(output.status.code(), Some(2), "{}\n{said}", stdout(output));
    assert_eq!(said.lines().filter(|line| line.starts_with("rota: ")).count(), 1, "{said}");
    let last = said.lines().last().unwrap();
    assert!(last.starts_with("rota: "), "{said}");
    for part in parts {
        assert!(last.contains(part), "should contain {part}:\n{last}");
    }
}

#[test]
fn a_newcomer_sees_an_example_first_and_so_does_every_verb() {
    let output = run(&[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).starts_with("Example:\n  rota serve"), "{}", stderr(&output));
    let verbs =
        ["serve", "status", "models", "infer", "load", "unload", "drain", "check", "profile", "plan", "sim", "doctor"];
    for verb in verbs {
        for help in ["-h", "--help"] {
            let output = run(&[verb, help]);
            assert_ok(&output);
            let said = stdout(&output);
            assert!(said.starts_with("Example"), "{said}");
            assert!(
                said.lines()
                    .take(2)
                    .any(|line| line.contains(&format!("rota {verb} ")) || line.ends_with(&format!("rota {verb}"))),
                "{said}"
            );
        }
    }
}

#[test]
fn without_a_daemon_every_verb_that_needs_one_says_so() {
    let folder = Folder::new("nobody");
    let socket = folder.path().join("rota.sock").display().to_string();
    let input = npy_file(&folder, "x.npy", &floats(&[1, 4], &[0.0; 4]));
    let cases: [&[&str]; 6] =
        [&["status"], &["models"], &["load", "m"], &["unload", "m"], &["drain"], &["infer", "m", "--input", &input]];
    for arguments in cases {
        let output = run(&[arguments, &["--socket", &socket]].concat());
        assert_fails(&output, &["no daemon listens on", &socket, "start `rota serve`"]);
    }
}

#[test]
fn status_shows_sessions_devices_models_and_clients() {
    let folder = Folder::new("status");
    let daemon = echo_daemon(&folder);
    let mut client = daemon.client();
    let session = client.open("echo", rota_ipc::client::Open::default()).unwrap();
    for _ in 0..3 {
        let mut request = client.request(&session).unwrap();
        request.input::<f32>("x", &[1, 4]).unwrap().fill(1.0);
        client.infer(request).unwrap().check().unwrap();
    }
    let report = json(&daemon.rota(&["status", "--json"]));
    assert_eq!((&report["pid"], &report["sessions"][0]["ok"]), (&daemon.pid().into(), &3.into()));
    let output = daemon.rota(&["status"]);
    assert_ok(&output);
    let text = stdout(&output);
    assert!(!text.contains('\x1b'), "output that is piped has no colour:\n{text}");
    assert!(text.starts_with(&format!("rota {}, pid {}", env!("CARGO_PKG_VERSION"), daemon.pid())), "{text}");
    for part in ["p99.9 ms", "emulated00: emulated", "emulated01: emulated", "ready", "ℓ(1) ms"] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
    let row = text.lines().find(|line| line.trim_start().starts_with("echo")).unwrap();
    let cells: Vec<&str> = row.split_whitespace().collect();
    assert_eq!(cells[..2], ["echo", "1"], "{text}");
    assert_eq!((cells[3], cells[7], cells.len()), ("1", "3", 15), "one client, three answers:\n{text}");
    assert!(!daemon.log().contains('\x1b'), "{}", daemon.log());
}

#[test]
fn models_are_listed_with_their_tensors() {
    let folder = Folder::new("models");
    folder.copy_model("state", "repository/state/1/model.onnx");
    folder.write("repository/state/model.toml", "max_batch = 4\nslo_ms = 500.0\n");
    let daemon = repository_daemon(&folder);
    let text = stdout(&daemon.rota(&["models"]));
    assert!(text.starts_with("state version 1: batches up to 4, SLO 500 ms by default"), "{text}");
    assert!(text.contains("input   state  f32   [2, batch, 3]  batch axis 1"), "{text}");
    let listed = json(&daemon.rota(&["models", "--json"]));
    assert_eq!(listed[0]["outputs"][1]["name"], "next");
    assert_eq!(listed[0]["max_batch"], 4);
}

#[test]
fn infer_writes_what_the_daemon_answered() {
    let folder = Folder::new("infer");
    let daemon = echo_daemon(&folder);
    let sent = floats(&[2, 4], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]);
    let input = npy_file(&folder, "x.npy", &sent);
    let written = folder.path().join("y.npy");
    let output = daemon.rota(&["infer", "echo", "--input", &input, "--output", written.to_str().unwrap()]);
    assert_ok(&output);
    let text = stdout(&output);
    assert!(text.starts_with("ok: queued ") && text.contains("in a batch of 2 on device"), "{text}");
    assert!(text.contains("f32") && text.contains("[2, 4]") && text.contains("y.npy"), "{text}");
    assert_eq!(npy::read(&written).unwrap(), sent);
    let output = daemon.rota(&["infer", "echo", "--input", &format!("x={input}"), "--slo-ms", "900", "--version", "1"]);
    assert!(stdout(&output).contains("1 2 3 4 5 6 7 8"), "{}", stdout(&output));
}

#[test]
fn a_wrong_request_is_answered_with_what_would_be_right() {
    let folder = Folder::new("wrong");
    let daemon = echo_daemon(&folder);
    let doubles = npy_file(&folder, "f64.npy", &HostTensor::from_elements(&[1, 4], &[1.0f64; 4]).unwrap());
    let narrow = npy_file(&folder, "narrow.npy", &floats(&[1, 3], &[1.0; 3]));
    let right = npy_file(&folder, "right.npy", &floats(&[1, 4], &[1.0; 4]));
    let torn = folder.write("torn.npy", b"\x93NUMPY\x01\x00").display().to_string();
    let named = format!("z={right}");
    let cases: [(&[&str], &[&str]); 9] = [
        (&["infer", "ecko", "--input", &right], &["there is no model \"ecko\"; there are: echo"]),
        (&["infer", "echo", "--version", "7", "--input", &right], &["no version 7; it has 1"]),
        (&["infer", "echo"], &["echo needs an --input NAME=FILE.npy for x"]),
        (&["infer", "echo", "--input", &named], &["echo has no input \"z\"; it has x"]),
        (&["infer", "echo", "--input", &doubles], &["input \"x\" is f32, the file holds f64", "astype(\"float32\")"]),
        (&["infer", "echo", "--input", &narrow], &["input \"x\" has dimensions [1, 3]", "the model takes [batch, 4]"]),
        (&["infer", "echo", "--input", &torn], &["torn.npy: the file ends inside its header"]),
        (&["infer", "echo", "--input", "/nowhere.npy"], &["/nowhere.npy: No such file"]),
        (&["infer", "echo", "--input", &right, "--slo-ms", "0.1"], &["an SLO of 0.100 ms can't be met"]),
    ];
    for (arguments, parts) in cases {
        assert_fails(&daemon.rota(arguments), parts);
    }
    assert_ok(&daemon.rota(&["infer", "echo", "--input", &right]));
}

#[test]
fn an_output_of_open_size_gets_the_room_that_it_needs() {
    let folder = Folder::new("room");
    folder.copy_model("width", "repository/width/1/model.onnx");
    folder.write("repository/width/model.toml", "max_batch = 1\n[shape]\nwidth = 64\n");
    let daemon = repository_daemon(&folder);
    // 24 MB: more than the first attempt has room for.
    let values: Vec<f32> = (0..3 * 2_000_000).map(|i| i as f32).collect();
    let input = npy_file(&folder, "x.npy", &floats(&[1, 3, 2_000_000], &values));
    let written = folder.path().join("y.npy");
    let slo = ["--slo-ms", "60000"];
    let arguments = ["infer", "width", "--input", &input, "--output", written.to_str().unwrap(), slo[0], slo[1]];
    assert_ok(&daemon.rota(&arguments));
    assert_eq!(npy::read(&written).unwrap(), floats(&[1, 3, 250_000, 8], &values));
}

#[test]
fn a_request_that_can_not_be_in_time_says_so() {
    let folder = Folder::new("late");
    let profiles = folder.write("profiles.toml", emulated("slow", "1 = 50.0"));
    let daemon = Daemon::start(&folder, &emulated_device(1, &profiles));
    let input = npy_file(&folder, "x.npy", &floats(&[1, 4], &[1.0; 4]));
    // The SLO is exactly one batch: every moment on the way is one too many.
    let output = daemon.rota(&["infer", "slow", "--input", &input, "--slo-ms", "50"]);
    let (text, code) = (stdout(&output), output.status.code());
    assert!(
        (text.starts_with("dropped after ") && code == Some(1)) || (text.starts_with("late: ") && code == Some(0)),
        "{code:?} {text}\n{}",
        stderr(&output)
    );
}

#[test]
fn models_are_loaded_and_unloaded_while_the_daemon_serves() {
    let folder = Folder::new("load");
    folder.copy_model("mlp", "repository/mlp/1/model.onnx");
    let daemon = repository_daemon(&folder);
    folder.copy_model("state", "repository/state/3/model.onnx");
    folder.write("repository/broken/1/model.onnx", "this is no model");
    folder.copy_model("mlp", "repository/typo/1/model.onnx");
    folder.write("repository/typo/model.toml", "slo_ms = 5.0\nmax_bacth = 3\n");

    let output = daemon.rota(&["load", "state"]);
    assert_ok(&output);
    assert!(stdout(&output).starts_with("state version 3: batches up to 32"), "{}", stdout(&output));
    assert_fails(&daemon.rota(&["load", "state"]), &["version 3 of \"state\" is served already"]);
    assert_fails(&daemon.rota(&["load", "nothing"]), &["nothing: no such model there"]);
    assert_fails(&daemon.rota(&["load", "broken"]), &["broken/1/model.onnx: "]);
    assert_fails(&daemon.rota(&["load", "typo"]), &["line 2: unknown field `max_bacth`"]);
    let text = stdout(&daemon.rota(&["status"]));
    assert!(text.contains("failed") && text.contains("\nbroken version 1: "), "{text}");

    assert_ok(&daemon.rota(&["unload", "state", "--version", "3"]));
    assert_fails(&daemon.rota(&["unload", "state"]), &["there is no model \"state\"; there are: broken, mlp"]);
    let listed = json(&daemon.rota(&["models", "--json"]));
    assert_eq!(listed.as_array().unwrap().len(), 1);
}

#[test]
fn drain_ends_the_daemon() {
    let folder = Folder::new("drain");
    let mut daemon = echo_daemon(&folder);
    assert_ok(&daemon.rota(&["drain"]));
    assert!(daemon.wait().success());
    assert!(!daemon.socket().exists());
}

#[test]
fn infer_runs_here_without_a_daemon() {
    let folder = Folder::new("local");
    let model = model_file("flags").display().to_string();
    let numbers = HostTensor::from_elements(&[2, 4], &[1i64, 2, 3, 4, 5, 6, 7, 8]).unwrap();
    let a = format!("a={}", npy_file(&folder, "a.npy", &numbers));
    let mut keep = HostTensor::zeroed(rota_device::DType::Bool, numbers.shape).unwrap();
    keep.bytes[..3].fill(1);
    let keep = format!("keep={}", npy_file(&folder, "keep.npy", &keep));
    let kept = folder.path().join("kept.npy");
    let to = format!("kept={}", kept.display());
    for engine in ["rten", "auto"] {
        let here = ["infer", "--local", &model, "--engine", engine, "--device", "cpu", "--threads", "1"];
        let output = run(&[&here[..], &["--input", &keep, "--input", &a, "--output", &to]].concat());
        assert_ok(&output);
        let expected = HostTensor::from_elements(&[2, 4], &[1i64, 2, 3, -1, -1, -1, -1, -1]).unwrap();
        assert_eq!(npy::read(&kept).unwrap(), expected);
        let text = stdout(&output);
        assert!(text.starts_with("ok: executed in "), "{text}");
        assert!(text.contains("false false true true true true true true"), "{text}");
        assert!(text.contains("1 2 3 -1 -1 -1 -1 -1"), "{text}");
    }
    assert_fails(&run(&["infer", "--local", &model, "--input", &a]), &["needs an --input NAME=FILE.npy for keep"]);
    assert_fails(&run(&["infer", "--local", "/no/model.onnx"]), &["/no/model.onnx: "]);
    let wide = format!("a={}", npy_file(&folder, "wide.npy", &HostTensor::from_elements(&[1, 5], &[1i64; 5]).unwrap()));
    let output = run(&["infer", "--local", &model, "--engine", "rten", "--input", &wide, "--input", &keep]);
    assert_fails(&output, &["flags.onnx: input 'a' can't have shape [1, 5]"]);
}

/// A model with an operator that nobody has.
fn write_unsupported(folder: &Folder, path: &str) {
    let mut bytes = fs::read(model_file("mlp")).unwrap();
    let place = bytes.windows(4).position(|window| window == b"Relu").unwrap();
    bytes[place..place + 4].copy_from_slice(b"Relv");
    folder.write(path, bytes);
}

#[test]
fn check_says_what_would_be_served_and_what_is_wrong() {
    let folder = Folder::new("check");
    folder.copy_model("mlp", "models/mlp/1/model.onnx");
    folder.copy_model("mixing", "models/mixing/2/model.onnx");
    folder.copy_model("mlp", "models/tritons/1/net.onnx");
    let config = "max_batch_size: 4\ndefault_model_filename: \"net.onnx\"\ninstance_group [ { count: 2 } ]\n";
    folder.write("models/tritons/config.pbtxt", config);
    let models = folder.path().join("models").display().to_string();
    let output = run(&["check", &models, "--engine", "rten"]);
    assert_ok(&output);
    let text = stdout(&output);
    assert!(text.contains("ok   mlp version 1\n    input   x  f32   [batch, 16]  batch axis 0\n    output  y  f32   [batch, 4]   batch axis 0\n"), "{text}");
    assert!(text.contains("changes with what shares its batch: served one by one"), "{text}");
    assert!(text.contains("config.pbtxt: not used here: instance_group.count"), "{text}");
    assert!(text.contains("3 served, 0 not, with rten"), "{text}");
    assert_eq!(stderr(&output), "1/3 mixing version 2\n2/3 mlp version 1\n3/3 tritons version 1\n");

    let whole = fs::read(model_file("mlp")).unwrap();
    folder.write("models/corrupt/1/model.onnx", &whole[..whole.len() / 2]);
    write_unsupported(&folder, "models/unsupported/1/model.onnx");
    folder.copy_model("mlp", "models/typo/1/model.onnx");
    folder.write("models/typo/model.toml", "max_batch = \"many\"\n");
    folder.write("models/empty/README", "nothing");
    let output = run(&["check", &models, "--engine", "rten", "--json"]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let report = json(&output);
    assert_eq!(report["served"].as_array().unwrap().len(), 3);
    assert_eq!(report["served"][0]["name"], "mixing");
    assert_eq!(report["served"][1]["inputs"][0]["batch_axis"], 0);
    let problem = |part: &str| {
        let problems = report["problems"].as_array().unwrap();
        let found = problems.iter().find(|p| p["path"].as_str().unwrap().contains(part));
        found.unwrap_or_else(|| panic!("{part}: {problems:?}"))["what"].as_str().unwrap().to_string()
    };
    assert_eq!(report["problems"].as_array().unwrap().len(), 4);
    assert!(!problem("corrupt").contains('\n'));
    assert!(problem("unsupported").contains("Relv"), "{}", problem("unsupported"));
    assert!(problem("typo").starts_with("line 1: invalid type: string"), "{}", problem("typo"));
    assert!(problem("empty").contains("expected <model>/<version number>/model.onnx"));
    assert!(stdout(&run(&["check", &models])).contains("bad  "));
}

#[test]
fn check_of_nothing_is_no_success() {
    let folder = Folder::new("nothing");
    let path = folder.path().display().to_string();
    let output = run(&["check", &path]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stdout(&output).contains("no model; expected"), "{}", stdout(&output));
    assert_fails(&run(&["check", "/no/such/folder"]), &["/no/such/folder: No such file"]);
}

#[test]
fn profile_measures_each_batch_at_the_sizes_that_hold() {
    let folder = Folder::new("profile");
    let model = folder.copy_model("width", "models/width/1/model.onnx").display().to_string();
    folder.write("models/width/model.toml", "max_batch = 3\n[shape]\nwidth = 48\n");
    let core = rota::serve::allowed_cores()[0].to_string();
    let output = run(&["profile", &model, "--engine", "rten", "--cores", &core, "--json"]);
    assert_ok(&output);
    assert_eq!(stderr(&output), "1/3 batch of 1\n2/3 batch of 2\n3/3 batch of 3\n");
    let report = json(&output);
    assert_eq!((&report["threads"], &report["sizes"]["width"]), (&1.into(), &48.into()));
    let batches = report["batches"].as_array().unwrap();
    assert_eq!(batches.iter().map(|b| b["batch"].as_u64().unwrap()).collect::<Vec<_>>(), [1, 2, 3]);
    for batch in batches {
        let number = |key: &str| batch[key].as_f64().unwrap();
        assert!(number("ms") > 0.0 && number("ms_p95") >= number("ms") && number("runs") >= 3.0, "{batch}");
        assert!((number("items_per_s") * number("ms_per_item") / 1e3 - 1.0).abs() < 1e-6, "{batch}");
    }
    // What the command line says comes before model.toml.
    let output = run(&["profile", &model, "--engine", "rten", "--max-batch", "1", "--shape", "width=16"]);
    assert_ok(&output);
    let text = stdout(&output);
    assert!(text.contains("sizes: width = 16") && text.contains("items/s"), "{text}");
    assert_eq!(text.lines().count(), 4, "{text}");
}

#[test]
fn profile_says_what_is_wrong() {
    let folder = Folder::new("profile-wrong");
    write_unsupported(&folder, "models/m/1/model.onnx");
    let model = folder.path().join("models/m/1/model.onnx").display().to_string();
    assert_fails(&run(&["profile", &model, "--engine", "rten"]), &["models/m/1/model.onnx: ", "Relv"]);
    let whole = model_file("mlp").display().to_string();
    assert_fails(&run(&["profile", &whole, "--cores", "9999"]), &["core 9999 is not this process's; choose among ["]);
    assert_fails(&run(&["profile", "/no/model.onnx"]), &["/no/model.onnx"]);
    folder.write("models/m/model.toml", "max_batch = 0\n");
    assert_fails(&run(&["profile", &model]), &["model.toml: max_batch = 0 must be at least 1"]);
    let output = run(&["profile", &whole, "--shape", "width"]);
    assert!(stderr(&output).contains("expected NAME=SIZE, such as width=320"), "{}", stderr(&output));
}

#[test]
fn doctor_looks_at_the_host_and_finds_the_daemon() {
    let folder = Folder::new("doctor");
    let socket = folder.path().join("none.sock").display().to_string();
    let output = run(&["doctor", "--json", "--socket", &socket]);
    assert_ok(&output);
    let findings = json(&output);
    let found = |findings: &Value, what: &str| {
        let all = findings.as_array().unwrap();
        all.iter().find(|f| f["what"] == what).unwrap_or_else(|| panic!("{what}: {all:?}")).clone()
    };
    for what in ["rten", "memfd seals", "shared memory", "futex", "epoll", "socket folder", "daemon"] {
        assert_eq!(found(&findings, what)["state"], "ok", "{findings}");
    }
    assert!(found(&findings, "daemon")["found"].as_str().unwrap().contains("none runs on"));
    let daemon = echo_daemon(&folder);
    let text = stdout(&daemon.rota(&["doctor"]));
    assert!(text.contains(&format!("with pid {}", daemon.pid())), "{text}");
    // A folder in which no user can make a socket.
    let output = run(&["doctor", "--socket", "/proc/rota.sock"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stdout(&output).contains("bad   socket folder"), "{}", stdout(&output));
    let output = rota().args(["doctor", "--json"]).env("ROTA_ONNXRUNTIME", "/no/lib.so").output().unwrap();
    let engine = found(&json(&output), "ONNX Runtime");
    assert_eq!(engine["state"], "warn");
    assert!(engine["found"].as_str().unwrap().contains("/no/lib.so"), "{engine}");
    assert!(engine["advice"].as_str().unwrap().contains("make demo"), "{engine}");
}

#[test]
fn a_daemon_that_can_not_start_says_why() {
    let folder = Folder::new("serve");
    let config = folder.write("rota.toml", "spin_us = 50\nspinn_us = 60\n").display().to_string();
    let fails = |arguments: &[&str], parts: &[&str]| {
        assert_fails(&run(&[&["serve", "--socket", "/proc/x.sock"], arguments].concat()), parts);
    };
    fails(&["--config", &config], &["rota.toml: line 2: unknown field `spinn_us`, expected one of"]);
    fails(&["--config", "/no/rota.toml"], &["/no/rota.toml: No such file"]);
    fails(&["--repository", "/no/models"], &["/no/models: No such file", "--repository names the folder"]);
    let profiles = folder.write("profiles.toml", "[[profile]]\nmodle = \"a\"\n");
    let config = folder.write("emulated.toml", emulated_device(1, &profiles)).display().to_string();
    fails(&["--config", &config], &["profiles.toml: TOML parse error at line 2", "unknown field `modle`"]);
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../device/tests").display().to_string();
    fails(&["--repository", &models], &["/proc/x.sock: ", "choose a --socket where this user may write"]);
}
