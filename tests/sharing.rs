//! Models that share a leading part, through the real daemon: found without being told, served together, and each answered as the
//! whole model answers.

#[allow(dead_code, reason = "not every test file uses all of it")]
mod support;

use rota_device::engine::{self, CompileOptions, EngineChoice};
use rota_device::{HostTensor, Network};
use rota_graph::examples::{Sketch, noise};
use rota_ipc::client::{Answer, Open, Request, Session, Ticket};
use rota_ipc::wire::{Reason, Status};
use rota_ipc::{Client, ClientOptions};
use serde_json::Value;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::Duration;
use support::{Daemon, Folder, PATIENCE, PATIENT, stdout};

const WIDTH: usize = 256;
const IN: u32 = 64;

/// A model `x [batch, 64]` → `y [batch, classes]`, of layers by seed: those that begin with the same seeds begin with the same layers.
fn model(layers: &[u64], head: u64, classes: usize) -> Vec<u8> {
    let mut sketch = Sketch::new("model");
    let mut x = sketch.input(&format!("x{head}"), &[-1, i64::from(IN)], "n");
    let mut width = IN as usize;
    for (at, &seed) in layers.iter().enumerate() {
        let weights = scaled(seed, width * WIDTH, 0.1);
        let name = format!("{head}/w{at}");
        let w = sketch.floats(&name, &[width as u64, WIDTH as u64], &weights);
        let wide = sketch.node("MatMul", &[&x, &w], &format!("{head}/wide{at}"), &[]);
        x = sketch.node("Relu", &[&wide], &format!("{head}/relu{at}"), &[]);
        width = WIDTH;
    }
    let w = sketch.floats("head", &[width as u64, classes as u64], &scaled(head, width * classes, 0.1));
    let b = sketch.floats("bias", &[classes as u64], &scaled(head + 1, classes, 0.1));
    let scores = sketch.node("Gemm", &[&x, &w, &b], "scores", &[]);
    sketch.node("Softmax", &[&scores], "y", &[("axis", &[1])]);
    sketch.output("y", &[-1, classes as i64], "n");
    sketch.into_file()
}

fn scaled(seed: u64, count: usize, by: f32) -> Vec<f32> {
    noise(seed, count).into_iter().map(|value| value * by).collect()
}

/// Adds version `version` of a model to the folder's repository.
fn add(folder: &Folder, name: &str, version: u32, file: &[u8]) {
    folder.write(&format!("repository/{name}/{version}/model.onnx"), file);
    folder.write(&format!("repository/{name}/model.toml"), "max_batch = 8\nversions = \"all\"\n");
}

fn start(folder: &Folder, settings: &str) -> Daemon {
    let device = "[[device]]\nkind = \"cpu\"\nthreads = 1\n";
    let mut daemon = Daemon::start(folder, &format!("{settings}repository = \"repository\"\n{device}"));
    settle(&mut daemon);
    daemon
}

/// Waits until what the models share has been found.
fn settle(daemon: &mut Daemon) {
    daemon.wait_until("models are grouped", |status| status["loading"] == false && status["grouping"] == false);
}

fn client(daemon: &Daemon) -> Client {
    daemon.client_with(ClientOptions { slots: 256, ..ClientOptions::default() })
}

/// The whole model's own answers.
struct Whole(Box<dyn Network>);

impl Whole {
    fn new(folder: &Folder, file: &[u8]) -> Whole {
        let engine = engine::open(&EngineChoice::Auto).unwrap().engine;
        let file = folder.write("whole.onnx", file);
        Whole(engine.compile(&file, &CompileOptions { threads: 1, ..CompileOptions::default() }).unwrap())
    }

    #[track_caller]
    fn assert_same(&mut self, input: &[f32], found: &[f32]) {
        let input = HostTensor::from_elements(&[input.len() as u32 / IN, IN], input).unwrap();
        let expected = self.0.run(&[input]).unwrap();
        let expected = expected[0].bytes.elements::<f32>();
        assert_eq!(expected.len(), found.len());
        let worst = expected.iter().zip(found).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst <= 1e-5, "{worst}: {found:?}, not {expected:?}");
    }
}

fn values(seed: u64, items: u32) -> Vec<f32> {
    noise(seed, (items * IN) as usize)
}

fn request(client: &Client, sessions: &[Session], input: &[f32]) -> Request {
    let mut request = client.request_of(sessions).unwrap();
    request.input::<f32>(0, &[input.len() as u32 / IN, IN]).unwrap().copy_from_slice(input);
    request
}

fn take(client: &mut Client, ticket: Ticket) -> Answer {
    client.wait_for(ticket, PATIENCE).unwrap().expect("an answer")
}

/// The models that `rota models --json` shows: (name, version, those that it shares its parts with).
fn groups(daemon: &Daemon) -> Vec<(String, u64, Vec<Vec<String>>)> {
    let models: Value = serde_json::from_str(&stdout(&daemon.rota(&["models", "--json"]))).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_string();
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let shared = |level: &Value| list(&level["models"]).iter().map(text).collect();
    let model = |model: &Value| {
        let levels = list(&model["group"]["shared"]).iter().map(shared).collect();
        (text(&model["name"]), model["version"].as_u64().unwrap(), levels)
    };
    models.as_array().unwrap().iter().map(model).collect()
}

#[test]
fn models_that_share_a_trunk_answer_as_whole_and_batch_together() {
    let folder = Folder::new("share");
    let names = ["a", "b", "c"];
    let files: Vec<Vec<u8>> = (0..3).map(|head| model(&[1, 2], 100 + head, 3 + head as usize)).collect();
    names.iter().zip(&files).for_each(|(name, file)| add(&folder, name, 1, file));
    add(&folder, "other", 1, &model(&[7, 8], 200, 4));
    let daemon = start(&folder, "");
    let all = names.map(String::from).to_vec();
    let found = groups(&daemon);
    for name in names {
        assert!(found.contains(&(name.to_string(), 1, vec![all.clone()])), "{found:?}\n{}", daemon.log());
    }
    assert!(found.contains(&("other".to_string(), 1, Vec::new())), "{found:?}");
    let text = stdout(&daemon.rota(&["models"]));
    assert!(text.contains("a, b, c share 327.7 KB"), "{text}");
    // Whether the heads do run as one is a question of time; `rota models` says what came of it.
    let log = daemon.log();
    let measured = log.lines().find(|line| line.contains("heads as one")).unwrap_or_else(|| panic!("{log}"));
    assert!(measured.contains("members=3"), "{measured}");
    let said = text.contains("what a, b, c have behind it can run as one");
    assert_eq!(said, measured.contains("is_worth=true"), "{text}{measured}");

    let mut client = client(&daemon);
    // Each under an SLO of its own.
    let open = |slo| Open { slo: Some(Duration::from_secs(slo)), ..PATIENT };
    let sessions: Vec<Session> =
        names.iter().zip([600, 500, 400]).map(|(name, slo)| client.open(name, open(slo)).unwrap()).collect();
    let mut wholes: Vec<Whole> = files.iter().map(|file| Whole::new(&folder, file)).collect();
    let (mut largest, mut asked) = (0, [0u64; 3]);
    for round in 0..30u64 {
        let tickets: Vec<_> = (0..24u64)
            .map(|number| {
                let (of, input) =
                    (((number * 7 + round) % 3) as usize, values(round * 100 + number, 1 + (number % 2) as u32));
                asked[of] += 1;
                (client.submit(request(&client, &sessions[of..=of], &input)).unwrap(), of, input)
            })
            .collect();
        for (ticket, of, input) in tickets {
            let answer = take(&mut client, ticket);
            assert_eq!(answer.status, Status::Ok, "{}", answer.message());
            wholes[of].assert_same(&input, answer.output::<f32>(0).unwrap().data);
            largest = largest.max(answer.timing.batch);
        }
    }
    assert!(largest > 1, "they share batches");
    let status = daemon.status();
    for (name, asked) in names.iter().zip(asked) {
        let mut of_model = status["sessions"].as_array().unwrap().iter().filter(|session| session["model"] == *name);
        let session = of_model.next().unwrap();
        assert_eq!((session["ok"].as_u64(), session["offered"].as_u64()), (Some(asked), Some(asked)), "{session}");
        assert!(session["mean_batch"].as_f64().unwrap() > 0.0 && session["busy_ms"].as_f64().unwrap() > 0.0);
    }
}

#[test]
fn several_models_are_asked_about_one_input_whether_they_share_or_not() {
    let folder = Folder::new("joint");
    let files = [model(&[1, 2], 100, 3), model(&[1, 2], 110, 4), model(&[1, 2], 120, 5), model(&[9], 130, 6)];
    let names = ["a", "b", "c", "apart"];
    names.iter().zip(&files).for_each(|(name, file)| add(&folder, name, 1, file));
    for settings in ["", "prefix = false\n"] {
        let daemon = start(&folder, settings);
        let mut client = client(&daemon);
        let sessions: Vec<Session> = names.iter().map(|name| client.open(name, PATIENT).unwrap()).collect();
        let mut wholes: Vec<Whole> = files.iter().map(|file| Whole::new(&folder, file)).collect();
        // All, some that do not lie side by side, one with a stranger.
        let choices: [&[usize]; 5] = [&[0, 1, 2, 3], &[0, 2], &[2, 0], &[1, 3], &[0, 1]];
        for round in 0..20u64 {
            let tickets: Vec<_> = choices
                .iter()
                .enumerate()
                .map(|(number, choice)| {
                    let input = values(round * 10 + number as u64, 1 + number as u32 % 3);
                    let chosen: Vec<Session> = choice.iter().map(|&of| sessions[of].clone()).collect();
                    (client.submit(request(&client, &chosen, &input)).unwrap(), choice, input)
                })
                .collect();
            for (ticket, choice, input) in tickets {
                let answer = take(&mut client, ticket);
                assert_eq!(answer.status, Status::Ok, "{}", answer.message());
                for (place, &of) in choice.iter().enumerate() {
                    wholes[of].assert_same(&input, answer.output_of::<f32>(place, "y").unwrap().data);
                }
            }
        }
        let twice = [sessions[0].clone(), sessions[0].clone()];
        let answer = client.infer(request(&client, &twice, &values(0, 1))).unwrap();
        assert_eq!((answer.status, answer.reason), (Status::Failed, Reason::BadBlock), "{}", answer.message());
        assert_eq!(daemon.status()["requests_in_flight"], 0);
    }
}

#[test]
fn stages_of_a_query_that_share_a_trunk_are_served_together_and_divide_its_slo_all_the_same() {
    let folder = Folder::new("query-share");
    let first = model(&[1, 2, 3], 100, 10);
    add(&folder, "first", 1, &first);
    add(&folder, "second", 1, &model(&[1, 2, 3], 200, 3));
    let query = "plan_interval_ms = 100\n[[query]]\nname = \"both\"\nslo_ms = 60000\nstage = [ { name = \"a\", model = \"first\" }, \
                 { name = \"b\", model = \"second\", after = \"a\" } ]\n";
    let device = "[[device]]\nkind = \"cpu\"\nthreads = 1\n";
    let mut daemon = Daemon::start(&folder, &format!("repository = \"repository\"\n{query}{device}"));
    let mut client = client(&daemon);
    let both = client.open_query("both").unwrap();
    let mut whole = Whole::new(&folder, &first);
    // Before, while and after the two are joined.
    let mut rounds = 0;
    let mut settled = false;
    let begin = std::time::Instant::now();
    let shares =
        |status: &Value| [0, 1].map(|stage| status["queries"][0]["stages"][stage]["share_ms"].as_f64().unwrap());
    let before = shares(&daemon.status());
    while !settled {
        let run = client.begin(&both).unwrap();
        let input = values(rounds, 1);
        let mut ask = client.request_in(run, "a").unwrap();
        ask.input::<f32>(0, &[1, IN]).unwrap().copy_from_slice(&input);
        let answer = client.infer(ask).unwrap();
        assert_eq!(answer.status, Status::Ok, "{}", answer.message());
        whole.assert_same(&input, answer.output::<f32>(0).unwrap().data);
        let tickets: Vec<Ticket> = (0..4)
            .map(|part| {
                let mut ask = client.request_in(run, "b").unwrap();
                ask.input::<f32>(0, &[1, IN]).unwrap().copy_from_slice(&values(rounds + part, 1));
                client.submit(ask).unwrap()
            })
            .collect();
        for ticket in tickets {
            assert_eq!(take(&mut client, ticket).status, Status::Ok);
        }
        client.finish(run).unwrap();
        rounds += 1;
        if rounds % 100 == 0 {
            let status = daemon.status();
            settled = status["grouping"] == false && shares(&status) != before;
            assert!(begin.elapsed() < PATIENCE, "the SLO is divided as at first: {status:#}");
        }
    }
    assert_eq!(groups(&daemon)[0].2, [["first", "second"]]);
    settle(&mut daemon);
    let status = daemon.status();
    assert_eq!((&status["queries"][0]["ok"], &status["queries"][0]["runs"]), (&rounds.into(), &0.into()));
    let shares = shares(&status);
    assert!((shares[0] + shares[1] - 60_000.0).abs() < 1.0, "{shares:?}");
    assert_eq!(status["queries"][0]["stages"][1]["gamma"], 4.0);
}

#[test]
fn of_models_that_share_more_a_second_part_is_shared_too() {
    let folder = Folder::new("levels");
    let files = [model(&[1, 2, 3], 100, 3), model(&[1, 2, 3], 110, 4), model(&[1, 2, 4], 120, 5)];
    let names = ["deep", "deeper", "flat"];
    names.iter().zip(&files).for_each(|(name, file)| add(&folder, name, 1, file));
    let daemon = start(&folder, "");
    let name = |name: &str| name.to_string();
    let (two, all) = (vec![name("deep"), name("deeper")], vec![name("deep"), name("deeper"), name("flat")]);
    let found = groups(&daemon);
    assert!(found.contains(&(name("deep"), 1, vec![all.clone(), two])), "{found:?}");
    assert!(found.contains(&(name("flat"), 1, vec![all])), "{found:?}");
    let mut client = client(&daemon);
    let sessions: Vec<Session> = names.iter().map(|name| client.open(name, PATIENT).unwrap()).collect();
    let mut wholes: Vec<Whole> = files.iter().map(|file| Whole::new(&folder, file)).collect();
    let choices: [&[usize]; 5] = [&[0], &[1], &[2], &[0, 2], &[0, 1, 2]];
    for round in 0..20u64 {
        let tickets: Vec<_> = choices
            .iter()
            .map(|choice| {
                let input = values(round, 2);
                let chosen: Vec<Session> = choice.iter().map(|&of| sessions[of].clone()).collect();
                (client.submit(request(&client, &chosen, &input)).unwrap(), choice, input)
            })
            .collect();
        for (ticket, choice, input) in tickets {
            let answer = take(&mut client, ticket);
            for (place, &of) in choice.iter().enumerate() {
                wholes[of].assert_same(&input, answer.output_of::<f32>(place, 0).unwrap().data);
            }
        }
    }
}

#[test]
fn models_come_and_go_while_requests_are_in_flight() {
    let folder = Folder::new("regroup");
    let files = [model(&[1, 2], 100, 3), model(&[1, 2], 110, 4), model(&[1, 2], 120, 5)];
    add(&folder, "a", 1, &files[0]);
    add(&folder, "b", 1, &files[1]);
    let mut daemon = start(&folder, "");
    assert_eq!(groups(&daemon)[0].2.len(), 1, "{}", daemon.log());
    let mut client = client(&daemon);
    let (a, b) = (client.open("a", PATIENT).unwrap(), client.open("b", PATIENT).unwrap());
    let mut wholes: Vec<Whole> = files.iter().map(|file| Whole::new(&folder, file)).collect();

    // A third joins, while the others are asked.
    add(&folder, "c", 1, &files[2]);
    let loading = std::thread::spawn({
        let mut control = daemon.control();
        move || control.load("c", None).unwrap()
    });
    let ask_both = |client: &mut Client, wholes: &mut [Whole], seed: u64| {
        let input = values(seed, 1);
        let tickets: Vec<_> = [&a, &b]
            .map(|session| client.submit(request(client, std::slice::from_ref(session), &input)).unwrap())
            .into();
        for (of, ticket) in tickets.into_iter().enumerate() {
            let answer = take(client, ticket);
            assert_eq!(answer.status, Status::Ok, "{}", answer.message());
            wholes[of].assert_same(&input, answer.output::<f32>(0).unwrap().data);
        }
    };
    let mut seed = 0;
    while !loading.is_finished() || daemon.status()["grouping"] == true {
        ask_both(&mut client, &mut wholes, seed);
        seed += 1;
    }
    loading.join().unwrap();
    settle(&mut daemon);
    assert_eq!(groups(&daemon)[0].2, [["a", "b", "c"].map(String::from).to_vec()], "{}", daemon.log());
    let c = client.open("c", PATIENT).unwrap();
    let input = values(5, 2);
    let answer = client.infer(request(&client, std::slice::from_ref(&c), &input)).unwrap();
    wholes[2].assert_same(&input, answer.output::<f32>(0).unwrap().data);

    // One leaves with requests in flight: each is answered once, the others' as ever.
    let tickets: Vec<_> = (0..200u64)
        .map(|number| {
            let (session, of) = if number % 2 == 0 { (&b, 1) } else { (&a, 0) };
            let input = values(number, 1);
            (client.submit(request(&client, std::slice::from_ref(session), &input)).unwrap(), of, input)
        })
        .collect();
    daemon.control().unload("b", None).unwrap();
    for (ticket, of, input) in tickets {
        let answer = take(&mut client, ticket);
        match answer.status {
            Status::Ok => wholes[of].assert_same(&input, answer.output::<f32>(0).unwrap().data),
            status => {
                assert_eq!((of, status, answer.reason), (1, Status::Failed, Reason::Unloaded), "{}", answer.message())
            }
        }
    }
    let answer = client.infer(request(&client, &[a.clone(), b.clone()], &values(1, 1))).unwrap();
    assert_eq!((answer.status, answer.reason), (Status::Failed, Reason::Unloaded));
    settle(&mut daemon);
    daemon.wait_until("two are left", |status| status["grouping"] == false);
    assert_eq!(groups(&daemon)[0].2, [["a", "c"].map(String::from).to_vec()], "{}", daemon.log());

    // Of two, one leaves: the other is served whole again.
    daemon.control().unload("c", None).unwrap();
    settle(&mut daemon);
    daemon.wait_until("it is alone", |status| status["grouping"] == false);
    assert_eq!(groups(&daemon), [("a".to_string(), 1, Vec::new())], "{}", daemon.log());
    let input = values(6, 3);
    let answer = client.infer(request(&client, std::slice::from_ref(&a), &input)).unwrap();
    assert_eq!(answer.status, Status::Ok, "{}", answer.message());
    wholes[0].assert_same(&input, answer.output::<f32>(0).unwrap().data);
    let log = daemon.log();
    // Without ONNX Runtime the daemon warns of that.
    let warning = log.lines().find(|line| line.contains("WARN") && !line.contains("slower engine"));
    assert_eq!(warning, None, "{log}");
    assert!(daemon.stop().success());
}

#[test]
fn a_group_is_planned_as_one_and_its_slots_name_the_members() {
    let folder = Folder::new("planned");
    for (name, head) in [("a", 100), ("b", 110)] {
        add(&folder, name, 1, &model(&[1, 2], head, 3));
    }
    let daemon = start(&folder, "plan_interval_ms = 100\n");
    let mut client = client(&daemon);
    let open = |slo| Open { slo: Some(Duration::from_secs(slo)), ..PATIENT };
    let sessions = [client.open("a", open(60)).unwrap(), client.open("b", open(90)).unwrap()];
    let begin = std::time::Instant::now();
    let members = loop {
        for session in &sessions {
            client.infer(request(&client, std::slice::from_ref(session), &values(1, 1))).unwrap();
        }
        let status = daemon.status();
        let slot = &status["plan"]["devices"][0]["slots"][0];
        if let Some(members) = slot["sessions"][0]["members"].as_array().filter(|members| !members.is_empty()) {
            assert_eq!(slot["sessions"].as_array().unwrap().len(), 1, "{slot}");
            break members.clone();
        }
        assert!(begin.elapsed() < PATIENCE, "{status}");
    };
    let found: Vec<_> =
        members.iter().map(|m| (m["session"]["model"].as_str(), m["session"]["slo_ms"].as_f64())).collect();
    assert_eq!(found, [(Some("a"), Some(60_000.0)), (Some("b"), Some(90_000.0))]);
    assert!(members.iter().all(|m| m["rate"].as_f64() > Some(0.0) && m["batch"].as_f64() > Some(0.0)), "{members:?}");
}

#[test]
fn of_two_versions_only_the_one_that_shares_is_in_the_group() {
    let folder = Folder::new("versions");
    let files = [model(&[1, 2], 100, 3), model(&[5, 6], 100, 3), model(&[1, 2], 110, 3)];
    add(&folder, "a", 1, &files[0]);
    add(&folder, "a", 2, &files[1]);
    add(&folder, "b", 1, &files[2]);
    let daemon = start(&folder, "");
    let pair = vec![["a", "b"].map(String::from).to_vec()];
    let expected = [("a".to_string(), 1, pair.clone()), ("a".to_string(), 2, Vec::new()), ("b".to_string(), 1, pair)];
    assert_eq!(groups(&daemon), expected, "{}", daemon.log());
    let mut client = client(&daemon);
    for (file, version) in files.iter().zip([1, 2]) {
        let session = client.open("a", Open { version: Some(version), ..PATIENT }).unwrap();
        let input = values(version, 2);
        let answer = client.infer(request(&client, &[session], &input)).unwrap();
        Whole::new(&folder, file).assert_same(&input, answer.output::<f32>(0).unwrap().data);
    }
}

#[test]
fn without_prefixes_every_model_is_served_whole() {
    let folder = Folder::new("noprefix");
    for (name, head) in [("a", 100), ("b", 110)] {
        add(&folder, name, 1, &model(&[1, 2], head, 3));
    }
    let daemon = start(&folder, "prefix = false\n");
    assert!(groups(&daemon).iter().all(|(_, _, levels)| levels.is_empty()));
    let help = stdout(&support::rota().args(["serve", "--help"]).output().unwrap());
    assert!(help.contains("--no-prefix"), "{help}");
}

/// The heads that `models/heads.py` puts on the fetched trunk, three of them and the trunk's own model.
#[test]
fn trained_heads_on_a_real_trunk_answer_as_whole() {
    let fetched = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/fetched");
    let names = ["digit", "fashion", "garment-or-digit", "photo"];
    let file = |name: &str| {
        let folder = if name == "photo" { "repository" } else { "heads" };
        fetched.join(format!("{folder}/{name}/1/model.onnx"))
    };
    if !names.iter().all(|name| file(name).exists()) {
        // Past the test harness, which keeps what a passing test prints to itself.
        let _ = writeln!(std::io::stderr(), "skipped the trained heads: run models/fetch.py and models/heads.py");
        return;
    }
    let folder = Folder::new("heads");
    for name in names {
        folder.write(&format!("repository/{name}/1/model.onnx"), fs::read(file(name)).unwrap());
        folder.write(&format!("repository/{name}/model.toml"), "max_batch = 4\n");
    }
    let daemon = start(&folder, "");
    let found = groups(&daemon);
    let all = vec![names.map(String::from).to_vec()];
    assert!(found.iter().all(|(_, _, levels)| *levels == all), "{found:?}\n{}", daemon.log());
    let engine = engine::open(&EngineChoice::Auto).unwrap().engine;
    let options = CompileOptions { threads: 1, ..CompileOptions::default() };
    let mut wholes: Vec<_> = names.map(|name| engine.compile(&file(name), &options).unwrap()).into();
    let mut client = daemon.client_with(ClientOptions { slots: 64, ..ClientOptions::default() });
    let sessions: Vec<Session> = names.iter().map(|name| client.open(name, PATIENT).unwrap()).collect();
    let dims = [1, 3, 224, 224];
    let picture = |seed: u64| noise(seed, 3 * 224 * 224);
    let choices: [&[usize]; 6] = [&[0], &[1], &[2], &[3], &[0, 1, 2, 3], &[1, 3]];
    let tickets: Vec<_> = choices
        .iter()
        .enumerate()
        .map(|(seed, choice)| {
            let chosen: Vec<Session> = choice.iter().map(|&of| sessions[of].clone()).collect();
            let mut request = client.request_of(&chosen).unwrap();
            request.input::<f32>("image", &dims).unwrap().copy_from_slice(&picture(seed as u64));
            (client.submit(request).unwrap(), choice, seed as u64)
        })
        .collect();
    for (ticket, choice, seed) in tickets {
        let answer = take(&mut client, ticket);
        assert_eq!(answer.status, Status::Ok, "{}", answer.message());
        for (place, &of) in choice.iter().enumerate() {
            let input = HostTensor::from_elements(&dims, &picture(seed)).unwrap();
            let expected = wholes[of].run(&[input]).unwrap();
            let found = answer.output_of::<f32>(place, 0).unwrap();
            let found = HostTensor::from_elements(found.dims, found.data).unwrap();
            let apart = rota_device::check::apart(&found, &expected[0]);
            assert!(apart <= 1e-3, "{}: {apart}", names[of]);
        }
    }
}

#[test]
fn emulated_models_share_what_their_profiles_say() {
    let folder = Folder::new("emulated");
    let member = |name: &str| {
        format!(
            "[[profile]]\nmodel = \"{name}\"\nprefix = \"trunk\"\nsuffix_ms = {{ 1 = 0.1, 8 = 0.2 }}\nsuffix_mb = 5\n\
             inputs = [{{ name = \"x\", dtype = \"f32\", dims = [\"batch\", 2] }}]\n\
             outputs = [{{ name = \"y\", dtype = \"f32\", dims = [\"batch\", 2] }}]\n"
        )
    };
    let prefix = "[[prefix]]\nname = \"trunk\"\nbatch_ms = { 1 = 2.0, 8 = 4.0 }\nmemory_mb = 95\n";
    let alone = member("alone").replace("prefix = \"trunk\"\nsuffix_ms", "batch_ms").replace("suffix_mb = 5\n", "");
    folder.write("p.toml", format!("{prefix}{}{}{}{alone}", member("a"), member("b"), member("c")).as_bytes());
    let device = "[[device]]\nkind = \"emulated\"\ncount = 2\nprofiles = \"p.toml\"\n";
    let mut daemon = Daemon::start(&folder, device);
    settle(&mut daemon);
    let all = ["a", "b", "c"].map(String::from).to_vec();
    let found = groups(&daemon);
    for name in &all {
        assert!(found.contains(&(name.clone(), 1, vec![all.clone()])), "{found:?}\n{}", daemon.log());
    }
    assert!(found.contains(&("alone".to_string(), 1, Vec::new())), "{found:?}");
    let text = stdout(&daemon.rota(&["models"]));
    assert!(text.contains("a, b, c share 95.0 MB") && text.contains("trunk (emulated)"), "{text}");

    let mut client = client(&daemon);
    let sessions: Vec<Session> = all.iter().map(|name| client.open(name, PATIENT).unwrap()).collect();
    let input = |at: usize| [at as f32, -1.0];
    // Each model about an input of its own, and all about one.
    let mut asked = Vec::new();
    for at in 0..24 {
        let sessions = if at % 4 == 3 { &sessions[..] } else { &sessions[at % 4..=at % 4] };
        let mut request = client.request_of(sessions).unwrap();
        request.input::<f32>(0, &[1, 2]).unwrap().copy_from_slice(&input(at));
        asked.push((at, sessions.len(), client.submit(request).unwrap()));
    }
    for (at, outputs, ticket) in asked {
        let answer = take(&mut client, ticket);
        answer.check().unwrap();
        for member in 0..outputs {
            assert_eq!(answer.output_of::<f32>(member, 0).unwrap().data.to_vec(), input(at), "{at}, output {member}");
        }
    }
    drop(daemon);

    let mut whole = Daemon::start(&folder, &format!("prefix = false\n{device}"));
    settle(&mut whole);
    assert!(groups(&whole).iter().all(|(_, _, shared)| shared.is_empty()));
}
