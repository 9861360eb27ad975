//! Models from a repository, served by the cpu device: whatever shares a batch, each request gets what the engine alone gives it.

#[allow(dead_code, reason = "not every test file uses all of it")]
mod support;

use rota::repository::Settings;
use rota_device::cuda::driver;
use rota_device::engine::{self, CompileOptions, Engine, EngineChoice};
use rota_device::{HostTensor, Network, check};
use rota_ipc::client::{Answer, Control, Error, Open, Request, Session};
use rota_ipc::control::ErrorCode;
use rota_ipc::wire::{Reason, Status};
use rota_ipc::{Client, ClientOptions};
use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use support::{Daemon, Folder, PATIENCE, PATIENT, driver_library, model_file};

/// A cpu device with this engine and one thread, and the folder's repository.
fn serve(folder: &Folder, engine: &str) -> Daemon {
    let device = format!("[[device]]\nkind = \"cpu\"\nengine = \"{engine}\"\nthreads = 1\n");
    Daemon::start(folder, &format!("repository = \"repository\"\n{device}"))
}

/// So many GPUs of the stand-in driver, and the folder's repository.
fn serve_on_gpus(folder: &Folder, gpus: &str) -> Daemon {
    let library = driver_library();
    let environment = [(driver::LIBRARY_VARIABLE, &*library), ("ROTA_STANDIN_GPUS", Path::new(gpus))];
    let config = "repository = \"repository\"\n[[device]]\nkind = \"cuda\"\n";
    let mut daemon = Daemon::start_in(folder, &folder.path().join("rota.sock"), config, &environment);
    daemon.wait_until("models are loaded", |status| status["loading"] == false);
    daemon
}

fn client(daemon: &Daemon) -> Client {
    daemon.client_with(ClientOptions { slots: 128, ..ClientOptions::default() })
}

/// Past the test harness, which keeps what a passing test prints to itself.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// The engines of this host, by their names in the daemon's settings.
fn engines() -> Vec<(&'static str, Arc<dyn Engine>)> {
    let mut engines = vec![("rten", engine::open(&EngineChoice::Rten).unwrap().engine)];
    match engine::open(&EngineChoice::OnnxRuntime(None)) {
        Ok(opened) => engines.push(("onnxruntime", opened.engine)),
        Err(error) => say(&format!("skipped ONNX Runtime: {error}")),
    }
    engines
}

/// The engine's own answers, without a daemon.
struct Reference {
    network: Box<dyn Network>,
    allowed: Allowed,
}

/// How far answers may be from the engine's own.
#[derive(Clone, Copy)]
struct Allowed {
    /// By how much of an output's range an answer from a batch may differ: kernels of other sizes round otherwise, and where the
    /// check on load found that they do so unusually, by more.
    apart: f32,
    /// The daemon's device runs the very same code: an answer to a request that ran alone is the same to the bit.
    is_same: bool,
}

impl Allowed {
    const USUAL: Allowed = Allowed { apart: 1e-3, is_same: true };
}

impl Reference {
    /// `settings` as in `model.toml`.
    fn new(engine: &dyn Engine, file: &Path, settings: &str) -> Reference {
        let settings: Settings = toml::from_str(settings).unwrap();
        let options =
            CompileOptions { threads: 1, batch_symbol: settings.batch_symbol.clone(), ..CompileOptions::default() };
        let mut network = engine.compile(file, &options).unwrap();
        let checked = check::check_batching(&mut *network, &rota::background::hints(&settings)).unwrap();
        let apart = if checked.remark.is_some() { 2e-2 } else { Allowed::USUAL.apart };
        Reference { network, allowed: Allowed { apart, ..Allowed::USUAL } }
    }

    fn answer(&mut self, inputs: &[HostTensor]) -> Vec<HostTensor> {
        self.network.run(inputs).unwrap()
    }
}

/// A model, and what is asked of it: streams of requests, each of one item. `feedback`: the input that takes an output of the
/// stream's request before.
struct Case {
    name: &'static str,
    file: PathBuf,
    settings: String,
    streams: Vec<Vec<Vec<HostTensor>>>,
    feedback: Option<(usize, usize)>,
}

impl Case {
    fn add_to(&self, folder: &Folder) {
        let file = fs::canonicalize(&self.file).unwrap();
        folder.write(&format!("repository/{}/model.toml", self.name), &self.settings);
        let version = folder.path().join(format!("repository/{}/1", self.name));
        fs::create_dir_all(&version).unwrap();
        std::os::unix::fs::symlink(file, version.join("model.onnx")).unwrap();
    }

    /// Asks for all streams at once, step by step, and compares; returns the batch sizes that occurred.
    fn check(&self, client: &mut Client, session: &Session, reference: &mut Reference) -> BTreeSet<u32> {
        let mut sizes = BTreeSet::new();
        let mut fed: Vec<Option<HostTensor>> = vec![None; self.streams.len()];
        for step in 0..self.streams[0].len() {
            let mut asked = Vec::new();
            for (stream, fed) in self.streams.iter().zip(&fed) {
                let mut inputs = stream[step].clone();
                if let (Some((input, _)), Some(fed)) = (self.feedback, fed) {
                    inputs[input] = fed.clone();
                }
                let expected = reference.answer(&inputs);
                let ticket = client.submit(request(client, session, &inputs, &expected)).unwrap();
                asked.push((ticket, expected));
            }
            for (stream, (ticket, expected)) in asked.into_iter().enumerate() {
                let answer = client.wait_for(ticket, PATIENCE).unwrap().expect("an answer");
                let what = format!("{}, stream {stream}, step {step}", self.name);
                assert_equal(&answer, &expected, reference.allowed, &what);
                sizes.insert(answer.timing.batch);
                if let Some((_, output)) = self.feedback {
                    let view = answer.output::<f32>(output).unwrap();
                    fed[stream] = HostTensor::from_elements(view.dims, view.data);
                }
            }
        }
        sizes
    }
}

impl Case {
    /// Asks for the first two streams' items in one request, and compares each part; returns the batch size.
    fn check_pair(&self, client: &mut Client, session: &Session, reference: &mut Reference) -> u32 {
        let parts = [&self.streams[0][0][0], &self.streams[1][0][0]];
        let expected = parts.map(|part| reference.answer(std::slice::from_ref(part)));
        let join = |one: &HostTensor, other: &HostTensor| {
            let mut shape = one.shape;
            shape.dims_mut()[0] = 2;
            HostTensor::from_bytes(one.dtype, shape, &[&one.bytes[..], &other.bytes[..]].concat()).unwrap()
        };
        let whole: Vec<HostTensor> = expected[0].iter().zip(&expected[1]).map(|(a, b)| join(a, b)).collect();
        let answer = client.infer(request(client, session, &[join(parts[0], parts[1])], &whole)).unwrap();
        assert_equal(&answer, &whole, reference.allowed, self.name);
        answer.timing.batch
    }
}

fn request(client: &Client, session: &Session, inputs: &[HostTensor], expected: &[HostTensor]) -> Request {
    use rota_device::DType;
    let mut request = client.request(session).unwrap();
    for (index, tensor) in inputs.iter().enumerate() {
        let (dims, bytes) = (tensor.shape.dims(), &tensor.bytes);
        match tensor.dtype {
            DType::F32 => request.input::<f32>(index, dims).unwrap().copy_from_slice(bytes.elements()),
            DType::I32 => request.input::<i32>(index, dims).unwrap().copy_from_slice(bytes.elements()),
            DType::I64 => request.input::<i64>(index, dims).unwrap().copy_from_slice(bytes.elements()),
            other => panic!("no model here takes {other}"),
        }
    }
    for (index, tensor) in expected.iter().enumerate() {
        request.output(index, tensor.bytes.len()).unwrap();
    }
    request
}

/// To the bit when the same code ran the request alone, otherwise within what is allowed.
#[track_caller]
fn assert_equal(answer: &Answer, expected: &[HostTensor], allowed: Allowed, what: &str) {
    assert_eq!(answer.status, Status::Ok, "{what}: {}", answer.message());
    for (index, expected) in expected.iter().enumerate() {
        let found = answer.output::<f32>(index).unwrap();
        let wanted = expected.bytes.elements::<f32>();
        assert_eq!(found.dims, expected.shape.dims(), "{what}, output {index}");
        if answer.timing.batch == 1 && allowed.is_same {
            assert_eq!(found.data, wanted, "{what}, output {index}, alone");
        }
        let (low, high) = wanted.iter().fold((0f32, 0f32), |(low, high), &v| (low.min(v), high.max(v)));
        let worst = found.data.iter().zip(wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        let batch = answer.timing.batch;
        assert!(
            worst <= allowed.apart * (high - low),
            "{what}, output {index}: {worst} of {low}..{high} in a batch of {batch}"
        );
    }
}

/// Serves the cases on a cpu device.
fn check_all(name: &str, engine: &dyn Engine, cases: &[Case]) {
    let folder = Folder::new("models");
    cases.iter().for_each(|case| case.add_to(&folder));
    check_served(&serve(&folder, name), name, (engine, true), cases);
}

/// Asks a daemon that serves the cases until batches of more than one size have formed. `is_same`: as in [`Allowed`].
fn check_served(daemon: &Daemon, name: &str, (engine, is_same): (&dyn Engine, bool), cases: &[Case]) {
    for case in cases {
        let mut client = client(daemon);
        let session = client
            .open(case.name, PATIENT)
            .unwrap_or_else(|error| panic!("{} on {name}: {error}\n{}", case.name, daemon.log()));
        let mut reference = Reference::new(engine, &case.file, &case.settings);
        reference.allowed.is_same = is_same;
        // One alone, then all at once, then two in one request: a model that gains nothing from batches is given none.
        let alone = Case {
            name: case.name,
            file: case.file.clone(),
            settings: String::new(),
            streams: case.streams[..1].to_vec(),
            feedback: case.feedback,
        };
        let mut sizes = alone.check(&mut client, &session, &mut reference);
        assert_eq!(sizes, BTreeSet::from([1]), "{} on {name}", case.name);
        for _ in 0..10 {
            sizes.extend(case.check(&mut client, &session, &mut reference));
        }
        if case.feedback.is_none() {
            sizes.insert(case.check_pair(&mut client, &session, &mut reference));
        }
        assert!(sizes.len() > 1, "{} on {name}: only batches of {sizes:?}", case.name);
    }
}

/// The little that is needed of .npy: dimensions and the bytes after the header.
fn npy(path: &Path) -> (Vec<u32>, Vec<u8>) {
    let bytes = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let header_bytes = usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    let (header, data) = bytes[10..].split_at(header_bytes);
    let header = std::str::from_utf8(header).unwrap();
    let dims = header.split_once('(').unwrap().1.split_once(')').unwrap().0;
    let dims = dims.split(',').map(str::trim).filter(|dim| !dim.is_empty()).map(|dim| dim.parse().unwrap());
    (dims.collect(), data.to_vec())
}

fn floats(path: &Path) -> (Vec<u32>, Vec<f32>) {
    let (dims, bytes) = npy(path);
    (dims, bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
}

fn tensor(path: &Path) -> HostTensor {
    let (dims, values) = floats(path);
    HostTensor::from_elements(&dims, &values).unwrap()
}

/// Row `index` of an array, as one item.
fn row(path: &Path, index: usize) -> HostTensor {
    let (mut dims, values) = floats(path);
    let length = values.len() / dims[0] as usize;
    dims[0] = 1;
    HostTensor::from_elements(&dims, &values[index * length..][..length]).unwrap()
}

fn models(folder: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models").join(folder)
}

#[test]
fn the_tiny_models_answer_as_the_engine_alone_does() {
    let cases = tiny_cases();
    for (name, engine) in engines() {
        check_all(name, &*engine, &cases);
    }
}

#[test]
fn the_tiny_models_answer_on_gpus_as_an_engine_does() {
    let (engine, cases) = (engine::open(&EngineChoice::Auto).unwrap().engine, tiny_cases());
    for gpus in ["2", "8"] {
        let folder = Folder::new("gpus");
        cases.iter().for_each(|case| case.add_to(&folder));
        check_served(&serve_on_gpus(&folder, gpus), &format!("{gpus} GPUs"), (&*engine, false), &cases);
    }
}

fn tiny_cases() -> Vec<Case> {
    let root = models("tiny");
    let case = |name: &'static str, streams, feedback| Case {
        name,
        file: root.join(format!("repository/{name}/1/model.onnx")),
        settings: "max_batch = 8\n".to_string(),
        streams,
        feedback,
    };
    let rows = |name: &str| {
        let path = root.join(format!("inputs/{name}.npy"));
        (0..20).map(|index| vec![vec![row(&path, index)]]).collect::<Vec<_>>()
    };
    // A digit is eight rows, and the state goes from one to the next.
    let (pixels, state) = (root.join("inputs/digits-gru.npy"), tensor(&root.join("inputs/digits-gru-state.npy")));
    let digit = |digit: usize| (0..8).map(|line| vec![row(&pixels, digit * 8 + line), state.clone()]).collect();
    vec![
        case("digits-mlp", rows("digits-mlp"), None),
        case("digits-conv", rows("digits-conv"), None),
        case("digits-gru", (0..20).map(digit).collect(), Some((1, 1))),
    ]
}

/// The published models, where they were fetched. `ROTA_REQUIRE_MODELS=1` makes their absence a failure.
fn fetched() -> Option<PathBuf> {
    let root = models("fetched");
    if root.join("manifest.json").is_file() {
        return Some(root);
    }
    let required = std::env::var_os("ROTA_REQUIRE_MODELS").is_some_and(|value| value == "1");
    assert!(!required, "ROTA_REQUIRE_MODELS=1, but {} is not there: run models/fetch.py", root.display());
    say("skipped the published models: they are not here; models/fetch.py fetches them");
    None
}

/// The beginning and the end of a file, as magika takes them: see models/README.md.
fn tokens(file: &str) -> HostTensor {
    let bytes = fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap();
    let head = bytes[..bytes.len().min(4096)].trim_ascii_start();
    let tail = bytes[bytes.len().saturating_sub(4096)..].trim_ascii_end();
    let (head, tail) = (&head[..head.len().min(1024)], &tail[tail.len().saturating_sub(1024)..]);
    let mut tokens = [256i32; 2048];
    tokens.iter_mut().zip(head).for_each(|(token, &byte)| *token = byte.into());
    tokens.iter_mut().rev().zip(tail.iter().rev()).for_each(|(token, &byte)| *token = byte.into());
    HostTensor::from_elements(&[1, 2048], &tokens).unwrap()
}

/// The left `width` columns of a picture [1, 3, height, more].
fn narrowed(picture: &HostTensor, width: usize) -> HostTensor {
    let dims = picture.shape.dims();
    let lines = picture.bytes.elements::<f32>().chunks_exact(dims[3] as usize);
    let values: Vec<f32> = lines.flat_map(|line| &line[..width]).copied().collect();
    HostTensor::from_elements(&[1, 3, dims[2], width as u32], &values).unwrap()
}

fn published_cases(root: &Path) -> Vec<Case> {
    let case = |name: &'static str, streams, feedback| {
        let settings = fs::read_to_string(root.join(format!("repository/{name}/model.toml"))).unwrap();
        // Small batches are measured sooner.
        let lines = settings.lines().map(|line| if line.starts_with("max_batch") { "max_batch = 4" } else { line });
        let settings = lines.collect::<Vec<_>>().join("\n");
        Case { name, file: root.join(format!("repository/{name}/1/model.onnx")), settings, streams, feedback }
    };
    let input = |path: &str| tensor(&root.join("inputs").join(path));
    let alone = |tensors: Vec<HostTensor>| tensors.into_iter().map(|tensor| vec![vec![tensor]]).collect::<Vec<_>>();
    let (speech, state) = (root.join("inputs/silero-vad/speech.npy"), input("silero-vad/state.npy"));
    let rate = HostTensor::from_elements(&[], &[16_000i64]).unwrap();
    let listen = |from: usize| {
        (0..4).map(|step| vec![row(&speech, 12 * from + step), state.clone(), rate.clone()]).collect::<Vec<_>>()
    };
    let lines: Vec<HostTensor> = (0..4).map(|index| input(&format!("text-recognition/{index:02}.npy"))).collect();
    let narrow = lines.iter().map(|line| narrowed(line, 160)).collect::<Vec<_>>();
    let files = ["Cargo.toml", "src/main.rs", "../LICENSE", "../rustfmt.toml", "../models/README.md", "src/lib.rs"];
    vec![
        case("magika", alone(files.map(tokens).to_vec()), None),
        case("silero-vad", (0..8).map(listen).collect(), Some((1, 1))),
        case(
            "text-orientation",
            alone((0..10).map(|index| input(&format!("text-orientation/{index:02}.npy"))).collect()),
            None,
        ),
        case("text-recognition", alone([narrow, lines].concat()), None),
        case(
            "photo",
            alone(["camera", "chelsea", "coffee"].map(|name| input(&format!("photo/{name}.npy"))).to_vec()),
            None,
        ),
    ]
}

#[test]
fn published_models_answer_as_rten_alone_does() {
    let Some(root) = fetched() else { return };
    let engine = engine::open(&EngineChoice::Rten).unwrap().engine;
    check_all("rten", &*engine, &published_cases(&root));
}

#[test]
fn published_models_answer_as_onnx_runtime_alone_does() {
    let Some(root) = fetched() else { return };
    let Some((name, engine)) = engines().into_iter().nth(1) else { return };
    check_all(name, &*engine, &published_cases(&root));
}

#[test]
fn a_request_that_makes_the_engine_fail_fails_alone_in_its_batch() {
    for (name, engine) in engines() {
        let folder = Folder::new("guilty");
        let settings = "max_batch = 8\n[range]\nindex = [-8, 7]\n";
        folder.write("repository/gather/model.toml", settings);
        folder.copy_model("gather", "repository/gather/1/model.onnx");
        let daemon = serve(&folder, name);
        let mut client = client(&daemon);
        let session = client.open("gather", PATIENT).unwrap();
        let mut reference = Reference::new(&*engine, &model_file("gather"), settings);
        let index = |values: &[i64]| vec![HostTensor::from_elements(&[1, 2], values).unwrap()];
        let mut shared = false;
        for _ in 0..50 {
            let asked: Vec<_> = (0..16i64)
                .map(|number| {
                    let guilty = number % 5 == 2;
                    let expected = reference.answer(&index(&[number % 8, 7 - number % 8]));
                    let inputs = index(&[number % 8, if guilty { 800 } else { 7 - number % 8 }]);
                    (client.submit(request(&client, &session, &inputs, &expected)).unwrap(), guilty, expected)
                })
                .collect();
            for (ticket, guilty, expected) in asked {
                let answer = client.wait_for(ticket, PATIENCE).unwrap().expect("an answer");
                if guilty {
                    assert_eq!((answer.status, answer.reason), (Status::Failed, Reason::Engine), "{name}");
                    assert!(!answer.message().is_empty() && answer.output::<f32>(0).is_err(), "{name}");
                    shared |= answer.timing.batch > 1;
                } else {
                    assert_equal(&answer, &expected, Allowed::USUAL, name);
                }
            }
            if shared {
                break;
            }
        }
        assert!(shared, "a guilty request shared a batch with strangers, on {name}");
    }
}

#[test]
fn models_that_cannot_be_served_are_named_and_the_others_are_served() {
    for (name, _) in engines() {
        let folder = Folder::new("broken");
        let mlp = fs::read(model_file("mlp")).unwrap();
        folder.write("repository/good/1/model.onnx", &mlp);
        folder.write("repository/good/model.toml", "max_batch = 1\n");
        folder.write("repository/corrupt/1/model.onnx", &mlp[..mlp.len() / 2]);
        folder.write("repository/noise/1/model.onnx", "this is no model");
        let at = mlp.windows(4).position(|bytes| bytes == b"Relu").unwrap();
        let unsupported = [&mlp[..at], b"Rolu", &mlp[at + 4..]].concat();
        folder.write("repository/unsupported/1/model.onnx", unsupported);
        folder.write("repository/typo/1/model.onnx", &mlp);
        folder.write("repository/typo/model.toml", "max_batch = 2\nslo = 5\n");
        folder.write("repository/absent/model.toml", "versions = [1, 7]\n");
        folder.write("repository/absent/1/model.onnx", &mlp);
        folder.write("repository/empty/README.md", "nothing here yet");
        let daemon = serve(&folder, name);
        let mut client = client(&daemon);
        let session = client.open("good", PATIENT).unwrap();
        let mut request = client.request(&session).unwrap();
        request.input::<f32>("x", &[1, 16]).unwrap().fill(1.0);
        assert!(client.infer(request).unwrap().is_answered());

        let status = daemon.status();
        let failed = |model: &str| {
            let models = status["models"].as_array().unwrap();
            let report =
                models.iter().find(|report| report["name"] == model).unwrap_or_else(|| panic!("{model}: {status}"));
            assert_eq!(report["state"], "failed", "{model} on {name}");
            report["error"].as_str().unwrap().to_string()
        };
        for model in ["corrupt", "noise"] {
            let error = failed(model);
            assert!(error.contains(&format!("{model}/1/model.onnx: ")), "{error}");
        }
        assert!(failed("unsupported").contains("Rolu"), "{name}: {}", failed("unsupported"));
        let error = client.open("unsupported", PATIENT).unwrap_err().to_string();
        assert!(error.contains("could not be loaded") && error.contains("Rolu"), "{error}");

        let problem = |folder: &str| {
            let problems = status["problems"].as_array().unwrap();
            let problem = problems.iter().find(|p| p["path"].as_str().unwrap().contains(folder));
            problem.unwrap_or_else(|| panic!("{folder}: {status}"))["what"].as_str().unwrap().to_string()
        };
        let typo = problem("repository/typo/model.toml");
        assert!(typo.contains("line 2") && typo.contains("unknown field `slo`"), "{typo}");
        assert_eq!(problem("repository/absent"), "version 7, which its settings name, has no model.onnx");
        assert!(problem("repository/empty").contains("expected <model>/<version number>/model.onnx"));
        client.open("absent", Open { version: Some(1), ..PATIENT }).unwrap();

        // Put right, it is loaded, and no longer a problem.
        let mut control = daemon.control();
        let refused = control.load("typo", None).unwrap_err().to_string();
        assert!(refused.contains("line 2"), "{refused}");
        folder.write("repository/typo/model.toml", "max_batch = 2\nslo_ms = 5\n");
        control.load("typo", None).unwrap();
        assert!(!control.status().unwrap()["problems"].to_string().contains("typo"));
        assert!(matches!(control.load("corrupt", None), Err(Error::Refused { code: ErrorCode::Load, .. })));
    }
}

#[test]
fn versions_of_one_model_are_served_beside_each_other() {
    let (name, engine) = engines().pop().unwrap();
    let folder = Folder::new("versions");
    let mlp = fs::read(model_file("mlp")).unwrap();
    let at = mlp.windows(4).position(|bytes| bytes == b"Relu").unwrap();
    let other = [&mlp[..at], b"Tanh", &mlp[at + 4..]].concat();
    folder.write("repository/mlp/model.toml", "versions = \"all\"\nmax_batch = 2\n");
    let files =
        [folder.write("repository/mlp/2/model.onnx", &mlp), folder.write("repository/mlp/10/model.onnx", &other)];
    let daemon = serve(&folder, name);
    let mut client = client(&daemon);
    let inputs = [HostTensor::from_elements(&[1, 16], &[0.5f32; 16]).unwrap()];
    let mut answers = Vec::new();
    for (version, file) in [(Some(2), &files[0]), (Some(10), &files[1]), (None, &files[1])] {
        let session = client.open("mlp", Open { version, ..PATIENT }).unwrap();
        assert_eq!(session.model().version, version.unwrap_or(10));
        let expected = Reference::new(&*engine, file, "").answer(&inputs);
        let answer = client.infer(request(&client, &session, &inputs, &expected)).unwrap();
        assert_equal(&answer, &expected, Allowed::USUAL, &format!("version {version:?}"));
        answers.push(answer.output::<f32>(0).unwrap().data.to_vec());
    }
    assert_ne!(answers[0], answers[1], "the versions are different models");

    let mut control = daemon.control();
    control.unload("mlp", Some(10)).unwrap();
    assert_eq!(versions(&mut control), [2]);
    let newest = client.open("mlp", PATIENT).unwrap();
    assert_eq!(newest.model().version, 2);
    let error = client.open("mlp", Open { version: Some(10), ..PATIENT }).unwrap_err().to_string();
    assert!(error.contains("has no version 10; it has 2"), "{error}");
}

fn versions(control: &mut Control) -> Vec<u64> {
    control.models().unwrap().into_iter().map(|model| model.version).collect()
}

#[test]
fn models_whose_requests_cannot_share_a_batch_are_served_one_by_one() {
    for (name, engine) in engines() {
        let folder = Folder::new("alone");
        folder.copy_model("fixed", "repository/fixed/1/model.onnx");
        folder.copy_model("mixing", "repository/mixing/1/model.onnx");
        let daemon = serve(&folder, name);
        assert!(daemon.log().contains("output 'y' changes with what shares its batch"), "{}", daemon.log());
        let mut client = client(&daemon);
        for model in ["fixed", "mixing"] {
            let session = client.open(model, PATIENT).unwrap();
            assert_eq!((session.model().max_batch, session.model().inputs[0].batch_axis), (1, None));
            let mut reference = Reference::new(&*engine, &model_file(model), "");
            let asked: Vec<_> = (0..100u32)
                .map(|number| {
                    let values: Vec<f32> = (0..8).map(|place| (number * 10 + place * place) as f32 / 100.0).collect();
                    let inputs = [HostTensor::from_elements(&[2, 4], &values).unwrap()];
                    let expected = reference.answer(&inputs);
                    (client.submit(request(&client, &session, &inputs, &expected)).unwrap(), expected)
                })
                .collect();
            for (ticket, expected) in asked {
                let answer = client.wait_for(ticket, PATIENCE).unwrap().expect("an answer");
                assert_equal(&answer, &expected, Allowed::USUAL, &format!("{model} on {name}"));
                assert_eq!(answer.timing.batch, 1);
            }
        }
        // Of any size: nobody else's has to be equal to it.
        let session = client.open("mixing", PATIENT).unwrap();
        let values: Vec<f32> = (0..80_000).map(|place| (place % 7) as f32).collect();
        let inputs = [HostTensor::from_elements(&[20_000, 4], &values).unwrap()];
        let expected = Reference::new(&*engine, &model_file("mixing"), "").answer(&inputs);
        let answer = client.infer(request(&client, &session, &inputs, &expected)).unwrap();
        assert_equal(&answer, &expected, Allowed::USUAL, name);
    }
}

#[test]
fn requests_that_differ_in_an_input_without_batch_axis_do_not_share_a_batch() {
    for (name, engine) in engines() {
        let folder = Folder::new("shared");
        folder.copy_model("shared", "repository/shared/1/model.onnx");
        folder.write("repository/shared/model.toml", "max_batch = 8\n");
        let daemon = serve(&folder, name);
        let mut client = client(&daemon);
        let session = client.open("shared", PATIENT).unwrap();
        assert_eq!(session.model().inputs[1].batch_axis, None);
        let mut reference = Reference::new(&*engine, &model_file("shared"), "");
        let mut sizes = BTreeSet::new();
        for _ in 0..50 {
            let asked: Vec<_> = (0..32u32)
                .map(|number| {
                    let x: Vec<f32> = (0..4).map(|place| (number * 4 + place) as f32).collect();
                    let scale = [(1 + number % 2) as f32, 3.0, 5.0, 7.0];
                    let inputs = [(&[1, 4][..], &x[..]), (&[4], &scale)];
                    let inputs = inputs.map(|(dims, values)| HostTensor::from_elements(dims, values).unwrap());
                    let expected = reference.answer(&inputs);
                    (client.submit(request(&client, &session, &inputs, &expected)).unwrap(), expected)
                })
                .collect();
            for (ticket, expected) in asked {
                let answer = client.wait_for(ticket, PATIENCE).unwrap().expect("an answer");
                assert_equal(&answer, &expected, Allowed::USUAL, name);
                sizes.insert(answer.timing.batch);
            }
            if sizes.len() > 1 {
                break;
            }
        }
        assert!(sizes.len() > 1, "those that agree share batches, on {name}: {sizes:?}");
    }
}
