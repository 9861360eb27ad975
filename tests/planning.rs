//! `rota plan` and `rota sim` through the real binary: what programs read, a recount of a run from its events alone, and
//! what wrong input is answered with.

#[allow(dead_code, reason = "not every test file uses all of it")]
mod support;

use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::process::Output;
use support::{Folder, rota, stderr, stdout};

/// The worked example of the Nexus paper (table 2): A and B share a device, C has its own.
const PAPER: &str = "
[[profile]]
model = \"A\"
batch_ms = { 4 = 50.0, 8 = 75.0, 16 = 100.0 }
[[profile]]
model = \"B\"
batch_ms = { 4 = 50.0, 8 = 90.0, 16 = 125.0 }
[[profile]]
model = \"C\"
batch_ms = { 4 = 60.0, 8 = 95.0, 16 = 125.0 }
[[session]]
model = \"A\"
slo_ms = 200
rate = 64
[[session]]
model = \"B\"
slo_ms = 250
rate = 32
[[session]]
model = \"C\"
slo_ms = 250
rate = 32
";

/// One model under two SLOs, and a second model.
const SMALL: &str = "
[[profile]]
model = \"a\"
batch_ms = { 1 = 5.0, 8 = 12.0 }
[[profile]]
model = \"b\"
batch_ms = { 1 = 3.0, 16 = 20.0 }
load_ms = 40
[[session]]
model = \"a\"
slo_ms = 40
rate = 150
[[session]]
model = \"a\"
slo_ms = 25
rate = 60
[[session]]
model = \"b\"
slo_ms = 30
rate = 200
";

struct Workload {
    folder: Folder,
    path: String,
}

impl Workload {
    fn new(name: &str, text: &str) -> Workload {
        let folder = Folder::new(name);
        let path = folder.write("workload.toml", text).display().to_string();
        Workload { folder, path }
    }

    fn file(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    fn plan(&self, arguments: &[&str]) -> Output {
        run(&[&["plan", &self.path], arguments].concat())
    }

    fn sim(&self, arguments: &[&str]) -> Output {
        run(&[&["sim", &self.path], arguments].concat())
    }
}

fn run(arguments: &[&str]) -> Output {
    rota().args(arguments).output().unwrap()
}

#[track_caller]
fn json(output: &Output) -> Value {
    assert!(output.status.success(), "{}\n{}", stdout(output), stderr(output));
    serde_json::from_str(&stdout(output)).unwrap_or_else(|error| panic!("{error}:\n{output:?}"))
}

fn keys(value: &Value) -> Vec<&str> {
    let mut keys: Vec<&str> = value.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

/// The program failed with one line, which begins with its name and has `parts` in it.
#[track_caller]
fn assert_fails(output: &Output, parts: &[&str]) {
    let said = stderr(output);
    assert_eq!(output.status.code(), Some(2), "{}\n{said}", stdout(output));
    let lines: Vec<&str> = said.lines().filter(|line| line.starts_with("rota: ")).collect();
    assert_eq!(lines.len(), 1, "{said}");
    for part in parts {
        assert!(lines[0].contains(part), "should contain {part}:\n{said}");
    }
}

/// Slots lie in their period and do not overlap, to the digits that are printed.
fn assert_apart(device: &Value) {
    let period = number(&device["period_ms"]);
    let slots = device["slots"].as_array().unwrap();
    for (index, slot) in slots.iter().enumerate() {
        let end = number(&slot["offset_ms"]) + number(&slot["exec_ms"]);
        let next =
            slots.get(index + 1).map_or(period + number(&slots[0]["offset_ms"]), |next| number(&next["offset_ms"]));
        assert!(end <= next + 1e-9, "{device}");
    }
}

#[test]
fn the_published_example_is_planned_as_published() {
    let workload = Workload::new("paper", PAPER);
    let plan = json(&workload.plan(&["--planner", "nexus", "--json"]));
    assert_eq!(keys(&plan), ["devices", "gap", "lower_bound", "planner", "unplaced"]);
    assert_eq!(plan["planner"], "nexus");
    let first = &plan["devices"][0];
    assert_eq!(keys(first), ["device", "period_ms", "phase_ms", "slots"]);
    assert_eq!((number(&first["period_ms"]), &first["device"]), (125.0, &0.into()));
    let slots: Vec<(u64, f64, u64, f64, f64)> = first["slots"]
        .as_array()
        .unwrap()
        .iter()
        .map(|slot| {
            assert_eq!(keys(slot), ["batch", "exec_ms", "offset_ms", "rate", "session"]);
            let whole = |key: &str| slot[key].as_u64().unwrap();
            let of = |key: &str| number(&slot[key]);
            (whole("session"), of("offset_ms"), whole("batch"), of("exec_ms"), of("rate"))
        })
        .collect();
    assert_eq!(slots, [(0, 0.0, 8, 75.0, 64.0), (1, 75.0, 4, 50.0, 32.0)]);
    let devices = plan["devices"].as_array().unwrap();
    assert_eq!((devices.len(), &devices[1]["slots"][0]["session"]), (2, &2.into()));
    devices.iter().for_each(assert_apart);
    assert_eq!((number(&plan["lower_bound"]), number(&plan["gap"])), (2.0, 0.0));
    let text = stdout(&workload.plan(&["--planner", "nexus"]));
    assert!(text.contains("3 sessions on 2 devices, planned by nexus for evenly spaced arrivals"), "{text}");
    assert!(text.contains("takes ms") && text.lines().count() >= 6, "{text}");
}

#[test]
fn both_planners_serve_all_that_is_asked_and_ours_is_no_worse() {
    let mut text = String::new();
    for index in 0..30 {
        let (first, last, rate) = (2 + index % 7, 40 + 3 * index, [0.4, 5.0, 60.0, 200.0][index % 4]);
        text += &format!("[[profile]]\nmodel = \"m{index}\"\nbatch_ms = {{ 1 = {first}, 32 = {last} }}\n");
        text += &format!("[[session]]\nmodel = \"m{index}\"\nslo_ms = {}\nrate = {rate}\n", 60 + 9 * index);
    }
    let workload = Workload::new("both", &text);
    let mut counts = Vec::new();
    for arguments in [
        ["--planner", "nexus", "--for", "even"],
        ["--planner", "rota", "--for", "even"],
        ["--planner", "rota", "--for", "poisson"],
    ] {
        let plan = json(&workload.plan(&[&arguments[..], &["--json"]].concat()));
        let mut rates = BTreeMap::new();
        for slot in plan["devices"].as_array().unwrap().iter().flat_map(|device| device["slots"].as_array().unwrap()) {
            match slot.get("session") {
                Some(session) => *rates.entry(session.as_u64().unwrap()).or_insert(0.0) += number(&slot["rate"]),
                None => {
                    let (sessions, shares) = (slot["sessions"].as_array().unwrap(), slot["rates"].as_array().unwrap());
                    assert!(sessions.len() > 1 && sessions.len() == shares.len(), "{slot}");
                    for (session, rate) in sessions.iter().zip(shares) {
                        *rates.entry(session.as_u64().unwrap()).or_insert(0.0) += number(rate);
                    }
                }
            }
        }
        plan["devices"].as_array().unwrap().iter().for_each(assert_apart);
        assert_eq!(plan["unplaced"], Value::Array(Vec::new()));
        for index in 0..30 {
            let asked = [0.4, 5.0, 60.0, 200.0][index % 4];
            assert!((rates[&(index as u64)] / asked - 1.0).abs() < 1e-6, "session {index}: {rates:?}");
        }
        let devices = plan["devices"].as_array().unwrap().len() as f64;
        let bound = number(&plan["lower_bound"]);
        assert!(devices >= bound && (number(&plan["gap"]) - (devices / bound - 1.0)).abs() < 1e-9, "{plan}");
        counts.push(devices);
    }
    assert!(counts[1] <= counts[0] && counts[2] >= counts[1], "{counts:?}");
}

#[test]
fn what_has_no_place_is_named_and_is_no_failure() {
    let workload = Workload::new("unplaced", &format!("{SMALL}[[session]]\nmodel = \"a\"\nslo_ms = 4.9\nrate = 1\n"));
    for planner in ["rota", "nexus"] {
        let plan = json(&workload.plan(&["--planner", planner, "--json"]));
        let unplaced = plan["unplaced"].as_array().unwrap();
        assert_eq!(unplaced.len(), 1, "{plan}");
        assert_eq!(keys(&unplaced[0]), ["rate", "session", "why"]);
        assert_eq!((&unplaced[0]["session"], &unplaced[0]["why"]), (&3.into(), &"slo_too_short".into()));
    }
    let text = stdout(&workload.plan(&[]));
    assert!(text.contains("not placed:") && text.contains("the SLO is too short"), "{text}");
    // One device for far too much: each session keeps a part, and the rest is named.
    let workload = Workload::new("full", &SMALL.replace("rate = ", "rate = 5"));
    let plan = json(&workload.plan(&["--devices", "1", "--json"]));
    assert_eq!((plan["devices"].as_array().unwrap().len(), &plan["gap"]), (1, &Value::Null));
    assert!(plan["unplaced"].as_array().unwrap().iter().all(|unplaced| unplaced["why"] == "no_device"), "{plan}");
    assert_eq!(plan["unplaced"].as_array().unwrap().len(), 3);
    assert!(json(&workload.plan(&["--devices", "any", "--json"]))["devices"].as_array().unwrap().len() > 1);
}

#[test]
fn the_timetable_is_drawn() {
    let workload = Workload::new("svg", PAPER);
    let picture = workload.file("timetable.svg");
    // The greedy's plan of the paper's own example is in the paper.
    let output = workload.plan(&["--planner", "nexus", "--svg", &picture]);
    assert!(output.status.success(), "{}", stderr(&output));
    let svg = fs::read_to_string(&picture).unwrap();
    assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n") && svg.contains("fill=\"#ffffff\""), "{svg}");
    for part in ["device 1", "every 125 ms", "0 A: batch 8, 64/s, SLO 200 ms", ">ms<"] {
        assert!(svg.contains(part), "{part} is not in\n{svg}");
    }
    assert_fails(&workload.plan(&["--svg", "/no/such/folder/x.svg"]), &["/no/such/folder/x.svg: No such file"]);
}

#[test]
fn models_of_a_repository_are_planned_as_measured() {
    let folder = Folder::new("measured");
    folder.copy_model("mlp", "models/mlp/1/model.onnx");
    folder.copy_model("mixing", "models/mixing/1/model.onnx");
    let digest = rota::repository::digest(&folder.path().join("models/mlp/1/model.onnx")).unwrap();
    let key = serde_json::json!({ "digest": digest, "engine": "rten 1", "threads": 2, "shapes": [[0, 16]] });
    let kept = serde_json::json!({ "key": key, "max_batch": 4, "points": [[1, 2_000_000], [4, 5_000_000]] });
    folder.write("cache/some.json", kept.to_string());
    folder.write("cache/torn.json", "{");
    let session = |model: &str| format!("[[session]]\nmodel = \"{model}\"\nslo_ms = 50\nrate = 100\n");
    let path = folder.write("workload.toml", session("mlp")).display().to_string();
    let (models, cache) =
        (folder.path().join("models").display().to_string(), folder.path().join("cache").display().to_string());
    let repository = ["--repository", &models, "--profile-cache", &cache];
    let plan = json(&run(&[&["plan", &path, "--json"], &repository[..]].concat()));
    let slot = &plan["devices"][0]["slots"][0];
    let batch = slot["batch"].as_u64().unwrap();
    assert_eq!(number(&slot["exec_ms"]), 1.0 + batch as f64, "{plan}");
    let report = json(&run(&[&["sim", &path, "--json", "--devices", "1", "--seconds", "2"], &repository[..]].concat()));
    assert!(number(&report["total"]["goodput"]) > 50.0, "{report}");
    folder.write("workload.toml", session("mixing"));
    let output = run(&[&["plan", &path], &repository[..]].concat());
    assert_fails(
        &output,
        &["workload.toml: line 2: model 'mixing': it was never measured", "run `rota serve --repository"],
    );
    folder.write("workload.toml", session("nothing"));
    assert_fails(&run(&[&["plan", &path], &repository[..]].concat()), &["line 2: model 'nothing' has no [[profile]]"]);
    assert_fails(&run(&["plan", &path, "--repository", "/no/models"]), &["/no/models: No such file"]);
}

/// What a reader of the events alone knows of a session.
#[derive(Default, Clone)]
struct Tally {
    offered: u64,
    good: u64,
    batches: u64,
    latencies: Vec<f64>,
}

/// Recounts a run from its events, with nothing but the SLOs; by session, and the busy time of each device.
fn recount(events: &str, slos_ms: &[f64], devices: usize) -> (Vec<Tally>, Vec<f64>, f64) {
    let mut tallies = vec![Tally::default(); slos_ms.len()];
    let (mut busy, mut ended) = (vec![0.0; devices], 0.0f64);
    let mut open: BTreeMap<u64, (usize, f64)> = BTreeMap::new();
    let mut executing: BTreeMap<u64, (f64, Vec<Value>)> = BTreeMap::new();
    for line in events.lines() {
        let event: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        let (at, session) = (number(&event["t_ms"]), event["session"].as_u64().unwrap() as usize);
        match event["kind"].as_str().unwrap() {
            "arrival" => {
                tallies[session].offered += 1;
                assert!(open.insert(event["request"].as_u64().unwrap(), (session, at)).is_none(), "{line}");
            }
            "drop" => {
                assert_eq!(open.remove(&event["request"].as_u64().unwrap()).unwrap().0, session, "{line}");
            }
            "start" => {
                let requests = event["requests"].as_array().unwrap().clone();
                assert_eq!(event["batch"].as_u64().unwrap(), requests.len() as u64, "{line}");
                let device = event["device"].as_u64().unwrap();
                assert!(executing.insert(device, (at, requests)).is_none(), "two batches at once: {line}");
            }
            kind @ ("end" | "preempt") => {
                let device = event["device"].as_u64().unwrap();
                let (began, requests) = executing.remove(&device).unwrap();
                assert_eq!(event["requests"].as_array().unwrap(), &requests, "{line}");
                busy[device as usize] += at - began;
                if kind == "end" {
                    ended = at;
                    tallies[session].batches += 1;
                    for request in requests {
                        let (its, arrived) = open.remove(&request.as_u64().unwrap()).unwrap();
                        assert_eq!(its, session, "{line}");
                        tallies[session].good += u64::from(at - arrived <= slos_ms[session] + 1e-9);
                        tallies[session].latencies.push(at - arrived);
                    }
                }
            }
            kind => panic!("what is {kind}?"),
        }
    }
    assert!(open.is_empty() && executing.is_empty(), "the run ended before {} were answered", open.len());
    (tallies, busy, ended)
}

fn assert_figures(figures: &Value, tally: &Tally, seconds: f64) {
    let close = |key: &str, expected: f64| {
        assert!(
            (number(&figures[key]) - expected).abs() < 1e-6 * expected.max(1.0),
            "{key}: {expected}, but {figures}"
        );
    };
    close("offered", tally.offered as f64 / seconds);
    close("goodput", tally.good as f64 / seconds);
    close("bad_rate", 1.0 - tally.good as f64 / (tally.offered as f64).max(1.0));
    close("mean_batch", tally.latencies.len() as f64 / (tally.batches as f64).max(1.0));
    let mut latencies = tally.latencies.clone();
    latencies.sort_by(f64::total_cmp);
    // The least that so many of a hundred did not exceed.
    let percentile = |percent: usize| latencies[(percent * latencies.len()).div_ceil(100).max(1) - 1];
    close("p50_ms", percentile(50));
    close("p99_ms", percentile(99));
}

#[test]
fn the_events_of_a_run_recount_to_its_report() {
    let workload = Workload::new("recount", SMALL);
    let events = workload.file("events.jsonl");
    let (seconds, devices) = (4.0, 2);
    let world = ["--noise", "0.05", "--dispatch-ms", "0.3", "--cold", "--factor", "1.7"];
    for policy in ["rota", "nexus", "clockwork", "symphony:margin_ms=1", "shepherd", "triton", "clipper", "tfserving"] {
        let arguments =
            ["--policy", policy, "--devices", "2", "--seconds", "4", "--seed", "9", "--json", "--events", &events];
        let report = json(&workload.sim(&[&arguments[..], &world].concat()));
        assert_eq!(
            keys(&report),
            ["devices", "policy", "seconds", "seed", "sessions", "total", "unanswered", "utilisation"],
        );
        assert!(report["policy"].as_str().unwrap().starts_with(policy.split(':').next().unwrap()), "{report}");
        assert_eq!((number(&report["seconds"]), report["seed"].as_u64()), (seconds, Some(9)));
        let text = fs::read_to_string(&events).unwrap();
        if report["unanswered"] != 0 {
            // The published program forgets requests that fit no batch when nothing follows them.
            assert!(["symphony:margin_ms=1", "shepherd"].contains(&policy), "{policy}: {report}");
            continue;
        }
        let (tallies, busy, ended) = recount(&text, &[40.0, 25.0, 30.0], devices);
        let mut total = Tally::default();
        for (session, tally) in tallies.iter().enumerate() {
            let figures = &report["sessions"][session];
            assert_eq!(keys(figures), ["bad_rate", "goodput", "mean_batch", "offered", "p50_ms", "p99_ms", "session"],);
            assert_figures(figures, tally, seconds);
            total.offered += tally.offered;
            total.good += tally.good;
            total.batches += tally.batches;
            total.latencies.extend(&tally.latencies);
        }
        assert!(total.offered > 1000, "{}", total.offered);
        assert_figures(&report["total"], &total, seconds);
        for (device, busy) in busy.iter().enumerate() {
            assert!(
                (number(&report["utilisation"][device]) - busy / ended).abs() < 1e-6,
                "{policy}, device {device}: {report}"
            );
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_bytes() {
    let workload = Workload::new("bits", SMALL);
    let events = workload.file("events.jsonl");
    let simulate = |policy: &str, seed: &str| {
        let arguments =
            ["--policy", policy, "--devices", "2", "--seconds", "3", "--seed", seed, "--json", "--noise", "0.1"];
        let output =
            workload.sim(&[&arguments[..], &["--rates", "estimated", "--epoch", "1", "--events", &events]].concat());
        assert!(output.status.success(), "{}", stderr(&output));
        (output.stdout, fs::read(&events).unwrap())
    };
    for policy in ["rota", "nexus", "symphony"] {
        let first = simulate(policy, "5");
        assert!(first == simulate(policy, "5"), "{policy}: the same seed, another outcome");
        assert!(first.1 != simulate(policy, "6").1, "{policy}: another seed, the same outcome");
    }
    let plan = || workload.plan(&["--json", "--for", "poisson"]).stdout;
    assert_eq!(plan(), plan());
}

#[test]
fn the_largest_load_is_found_and_holds() {
    let workload = Workload::new("goodput", SMALL);
    let base = ["--devices", "2", "--seconds", "20", "--json"];
    let found = json(&workload.sim(&[&base[..], &["--find-goodput", "--seeds", "2"]].concat()));
    let (factor, seeds) = (number(&found["factor"]), found["seeds"].as_array().unwrap());
    let mean = seeds.iter().map(|seed| number(&seed["factor"])).sum::<f64>() / 2.0;
    assert!(seeds.len() == 2 && (factor - mean).abs() < 1e-12, "{found}");
    assert!(factor > 0.0 && number(&found["goodput"]) > 0.9 * 410.0 * factor, "{found}");
    for found in seeds {
        let (factor, seed) = (found["factor"].to_string(), found["seed"].to_string());
        let at = |factor: &str| json(&workload.sim(&[&base[..], &["--seed", &seed, "--factor", factor]].concat()));
        let holds = |report: &Value| {
            report["sessions"].as_array().unwrap().iter().all(|session| number(&session["bad_rate"]) <= 0.01 + 1e-12)
        };
        let report = at(&factor);
        assert!(holds(&report) && (number(&report["total"]["goodput"]) - number(&found["goodput"])).abs() < 1e-6);
        assert!(!holds(&at(&(1.3 * number(&found["factor"])).to_string())), "{found}");
    }
}

#[test]
fn a_session_that_nothing_can_serve_is_warned_of_and_holds_no_load() {
    let workload = Workload::new("hopeless", &format!("{SMALL}[[session]]\nmodel = \"a\"\nslo_ms = 4.9\nrate = 1\n"));
    let output = workload.sim(&["--devices", "2", "--find-goodput", "--json"]);
    assert!(
        stderr(&output).contains("line 22: the SLO of session 3 is shorter than a batch of one"),
        "{}",
        stderr(&output)
    );
    assert_eq!(number(&json(&output)["factor"]), 0.0);
    let report = json(&workload.sim(&["--devices", "2", "--seconds", "5", "--json"]));
    assert_eq!((number(&report["sessions"][3]["bad_rate"]), &report["unanswered"]), (1.0, &0.into()));
}

#[test]
fn devices_of_several_kinds_are_planned_and_simulated() {
    let kinds = "[[device]]\n[[device]]\nkind = \"fast\"\n[[profile]]\nmodel = \"a\"\nkind = \"fast\"\nbatch_ms = { 1 = 1.0, 8 = 2.0 }\n";
    let workload = Workload::new("kinds", &format!("{SMALL}{kinds}"));
    let plan = json(&workload.plan(&["--json"]));
    assert_eq!((plan["devices"].as_array().unwrap().len(), &plan["unplaced"]), (2, &Value::Array(Vec::new())));
    for policy in ["rota", "nexus", "symphony", "clockwork", "triton"] {
        let report = json(&workload.sim(&["--policy", policy, "--seconds", "10", "--json"]));
        // The second kind does not run "b": the first device has it to itself.
        let figures = &report["sessions"];
        assert!(number(&figures[2]["goodput"]) > 100.0 && number(&figures[0]["goodput"]) > 100.0, "{policy}: {report}");
    }
    assert_fails(&workload.sim(&["--devices", "3"]), &["describes 2 kinds of device: change their counts there"]);
}

#[test]
fn a_trace_is_replayed() {
    let workload = Workload::new("trace", SMALL);
    let trace = workload.folder.write("trace.csv", "arrival_ms,session\n0,a\n1,2\n500,b\n900,1\n");
    let arrivals = format!("trace:{}", trace.display());
    let report = json(&workload.sim(&["--devices", "1", "--seconds", "1", "--json", "--arrivals", &arrivals]));
    let offered: Vec<f64> = report["sessions"].as_array().unwrap().iter().map(|s| number(&s["offered"])).collect();
    assert_eq!(offered, [1.0, 1.0, 2.0]);
    workload.folder.write("trace.csv", "0,a\n1,c\n");
    let output = workload.sim(&["--devices", "1", "--arrivals", &arrivals]);
    assert_fails(&output, &["trace.csv: line 2: there is no such session"]);
}

#[test]
fn wrong_input_is_one_line_with_file_and_place() {
    let profile = "[[profile]]\nmodel = \"a\"\nbatch_ms = { 1 = 5.0 }\n";
    let session = |fields: &str| format!("{profile}[[session]]\nmodel = \"a\"\n{fields}\n");
    let cases = [
        (session("slo_ms = 50\nrate = 0"), "line 7: rate = 0 should be from"),
        (session("slo_ms = 50\nrate = -3"), "line 7: rate = -3 should be from"),
        (session("slo_ms = 50\nrate = nan"), "line 7: rate = NaN should be from"),
        (session("slo_ms = 50\nrate = inf"), "line 7: rate = inf should be from"),
        (session("slo_ms = 50\nrate = 1e300"), "line 7: rate = 1000"),
        (session("slo_ms = -1\nrate = 1"), "line 6: slo_ms = -1 should be from"),
        (
            format!("{profile}[[session]]\nmodel = \"b\"\nslo_ms = 9\nrate = 1\n"),
            "line 5: model 'b' has no [[profile]]",
        ),
        (session("slo_ms = 50\nrat = 1"), "line 7: unknown field `rat`"),
        ("[[session]\n".to_string(), "line 1: "),
        (format!("{profile}\n[[session]]\nmodel = \"a\nslo_ms = 9"), "line 6: "),
        (String::new(), "line 1: there is no [[session]]"),
        (session("slo_ms = 50\nrate = 1\n[[device]]\ncount = 0"), "line 9: count = 0 should be from 1"),
        ("[[profile]]\nmodel = \"a\"\nfile = \"none.toml\"\n".to_string(), "line 3: none.toml: No such file"),
        ("[[profile]]\nmodel = \"a\"\nbatch_ms = { 1 = -5 }\n".to_string(), "line 3: batch_ms of 1 = -5 should be"),
    ];
    for (text, expected) in cases {
        let workload = Workload::new("wrong", &text);
        for output in [workload.plan(&[]), workload.sim(&["--devices", "1"])] {
            assert_fails(&output, &[&format!("rota: {}: {expected}", workload.path)]);
        }
    }
    assert_fails(&run(&["plan", "/no/workload.toml"]), &["/no/workload.toml: No such file"]);
    assert_fails(&run(&["sim", "/no/workload.toml", "--devices", "1"]), &["/no/workload.toml: No such file"]);
    let huge = Workload::new("huge", &session("slo_ms = 50\nrate = 1e8"));
    assert_fails(&huge.plan(&[]), &["workload.toml: line 5: session 0", "devices, more than 65536"]);
    assert_fails(&huge.sim(&["--devices", "1"]), &["workload.toml: that would be 3000000000 requests"]);
    let workload = Workload::new("devices", SMALL);
    assert_fails(&workload.sim(&[]), &["workload.toml: there are no devices; give their number with --devices"]);
    assert_fails(&workload.sim(&["--devices", "1", "--events", "/no/such/x"]), &["/no/such/x: No such file"]);
    assert_fails(
        &workload.sim(&["--devices", "1", "--arrivals", "often"]),
        &["--arrivals: 'often' is no arrival pattern"],
    );
    assert_fails(&run(&["sim", "--suite", "--only", "none"]), &["no standard workload 'none'; there are one-1,"]);
}

#[test]
fn wrong_arguments_are_answered_with_what_would_be_right() {
    let workload = Workload::new("arguments", SMALL);
    let cases: [(&[&str], &str); 9] = [
        (&["plan", &workload.path, "--devices", "0"], "expected a number from 1 to 4096, or any"),
        (&["plan", &workload.path, "--planner", "best"], "possible values: rota, nexus"),
        (&["sim", &workload.path, "--devices", "0"], "'--devices <N>'"),
        (&["sim", &workload.path, "--policy", "fifo"], "there is no policy 'fifo'; there are rota, nexus"),
        (&["sim", &workload.path, "--policy", "rota:x=1"], "'x=1' is no parameter of rota"),
        (&["sim", &workload.path, "--seconds", "nan"], "expected a number above 0"),
        (&["sim", &workload.path, "--noise=-1"], "expected a number from 0 to 1"),
        (&["sim"], "<WORKLOAD|--suite|--suite-devices|--early-drop>"),
        (&["sim", "--suite", "--find-goodput"], "cannot be used with"),
    ];
    for (arguments, expected) in cases {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", stdout(&output));
        assert!(stderr(&output).contains(expected), "{arguments:?}: {}", stderr(&output));
    }
}

#[test]
fn a_falling_profile_is_raised_with_a_warning() {
    let workload = Workload::new("falling", &SMALL.replace("{ 1 = 5.0, 8 = 12.0 }", "{ 1 = 5.0, 4 = 4.0, 8 = 12.0 }"));
    let output = workload.plan(&["--json"]);
    let plan = json(&output);
    assert_eq!(plan["unplaced"], Value::Array(Vec::new()));
    let said = stderr(&output);
    assert!(
        said.starts_with("warning: ") && said.contains("workload.toml: line 4: the profile of 'a' falls"),
        "{said}"
    );
    assert_eq!(said.lines().count(), 1, "{said}");
}

#[test]
fn the_suite_writes_a_table_and_plots() {
    let folder = Folder::new("suite");
    let out = folder.path().join("out").display().to_string();
    let arguments =
        ["sim", "--suite", "--quick", "--only", "one-8", "--policy", "rota", "--policy", "triton", "--output", &out];
    let output = run(&arguments);
    assert!(output.status.success(), "{}", stderr(&output));
    let text = stdout(&output);
    assert!(text.starts_with("| workload | rota | triton |\n") && text.contains("\n| one-8 | 0."), "{text}");
    assert!(text.contains("| geometric mean | 0."), "{text}");
    let file = |name: &str| fs::read_to_string(folder.path().join("out").join(name)).unwrap();
    assert!(text.starts_with(&file("goodput.md")));
    for picture in ["goodput.svg", "loads.svg"] {
        assert!(file(picture).contains(">one-8<") && file(picture).contains(">triton<"), "{picture}");
    }
    let suite: Value = serde_json::from_str(&file("suite.json")).unwrap();
    assert_eq!(suite["outcomes"][1]["name"], "triton");
    assert!(suite["loads"][0]["points"].as_array().unwrap().len() > 3);
    let json = json(&run(&[&arguments[..], &["--json"]].concat()));
    assert_eq!(json, suite);
}

#[test]
fn devices_under_poisson_and_early_drop_are_counted() {
    let arguments = ["sim", "--suite-devices", "--quick", "--workloads", "2", "--sessions", "5"];
    let counted = json(&run(&[&arguments[..], &["--json"]].concat()));
    let workloads = counted["workloads"].as_array().unwrap();
    assert!(workloads.len() == 2 && number(&counted["means"]["rota_over_nexus"]) > 0.0, "{counted}");
    for workload in workloads {
        assert!(workload["nexus"]["devices"].as_f64().unwrap() > 0.9 * number(&workload["bound"]), "{workload}");
    }
    let text = stdout(&run(&arguments));
    assert!(text.contains("rota/nexus") && text.contains("means of 2"), "{text}");
    let rows = json(&run(&["sim", "--early-drop", "--quick", "--seconds", "20", "--json"]));
    let rows = rows.as_array().unwrap();
    assert_eq!(rows.len(), 5);
    assert!(rows.iter().all(|row| number(&row["early"]) > number(&row["lazy"])), "{rows:?}");
}
