//! The daemon on GPUs: real processes, rings, device code and kernels; the GPUs are the stand-in driver's.

#[allow(dead_code, reason = "not every test file uses all of it")]
mod support;

use rota_device::cuda::driver;
use rota_device::engine::{self, CompileOptions, EngineChoice};
use rota_device::{HostTensor, Network, npy};
use rota_graph::examples::{Sketch, noise};
use rota_ipc::client::{Session, Ticket};
use rota_ipc::wire::Status;
use rota_ipc::{Client, ClientOptions};
use std::path::{Path, PathBuf};
use support::{Daemon, Folder, PATIENCE, PATIENT, driver_library, rota, stderr, stdout};

const IN: u32 = 64;

/// A model `x [batch, 64]` → `y [batch, classes]` that shares its first layers with the others, and has a head of its own.
fn model(head: u64, classes: usize) -> Vec<u8> {
    const WIDTH: usize = 256;
    let scaled = |seed: u64, count: usize| noise(seed, count).into_iter().map(|v| v * 0.1).collect::<Vec<f32>>();
    let mut sketch = Sketch::new("model");
    let x = sketch.input(&format!("x{head}"), &[-1, i64::from(IN)], "n");
    let w = sketch.floats("trunk", &[u64::from(IN), WIDTH as u64], &scaled(1, IN as usize * WIDTH));
    let wide = sketch.node("MatMul", &[&x, &w], "wide", &[]);
    let relu = sketch.node("Relu", &[&wide], "relu", &[]);
    let w = sketch.floats("deeper", &[WIDTH as u64, WIDTH as u64], &scaled(2, WIDTH * WIDTH));
    let deep = sketch.node("MatMul", &[&relu, &w], "deep", &[]);
    let relu = sketch.node("Relu", &[&deep], "relu2", &[]);
    let w = sketch.floats("head", &[WIDTH as u64, classes as u64], &scaled(head, WIDTH * classes));
    let scores = sketch.node("MatMul", &[&relu, &w], "scores", &[]);
    sketch.node("Softmax", &[&scores], "y", &[("axis", &[1])]);
    sketch.output("y", &[-1, classes as i64], "n");
    sketch.into_file()
}

/// A model that is served, and the whole of it on the host.
struct Served {
    session: Session,
    whole: Box<dyn Network>,
}

impl Served {
    fn open(client: &mut Client, name: &str, file: &Path) -> Served {
        let engine = engine::open(&EngineChoice::Auto).unwrap().engine;
        let whole = engine.compile(file, &CompileOptions { threads: 1, ..CompileOptions::default() }).unwrap();
        Served { session: client.open(name, PATIENT).unwrap(), whole }
    }
}

/// A request that is out.
struct Asked {
    ticket: Ticket,
    of: usize,
    input: Vec<f32>,
}

fn ask(client: &mut Client, served: &[Served], number: u64) -> Asked {
    let of = (number % served.len() as u64) as usize;
    let items = 1 + (number % 3) as u32;
    let input = noise(number, (items * IN) as usize);
    let mut request = client.request(&served[of].session).unwrap();
    request.input::<f32>(0, &[items, IN]).unwrap().copy_from_slice(&input);
    Asked { ticket: client.submit(request).unwrap(), of, input }
}

/// Takes the answer; true when it is ok and right, false when the request failed. Anything else is a failure of the test.
fn take(client: &mut Client, served: &mut [Served], asked: Asked) -> bool {
    let answer = client.wait_for(asked.ticket, PATIENCE).unwrap().expect("every request is answered");
    if answer.status == Status::Failed {
        return false;
    }
    assert_eq!(answer.status, Status::Ok, "{}", answer.message());
    let input = HostTensor::from_elements(&[asked.input.len() as u32 / IN, IN], &asked.input).unwrap();
    let expected = served[asked.of].whole.run(&[input]).unwrap();
    let found = answer.output::<f32>(0).unwrap();
    let pairs = found.data.iter().zip(expected[0].bytes.elements::<f32>());
    assert!(pairs.clone().count() == expected[0].bytes.elements::<f32>().len());
    assert!(pairs.into_iter().all(|(a, b)| (a - b).abs() <= 1e-4), "an answer is wrong");
    true
}

/// Serves models, two of which share a trunk, on `gpus` GPUs; loses one with requests in flight and gives it back.
fn serve_through_a_loss(gpus: u32) {
    let folder = Folder::new("gpus");
    let faults = folder.path().join("faults");
    let files: Vec<PathBuf> = (0..3)
        .map(|head| folder.write(&format!("repository/m{head}/1/model.onnx"), model(100 + head, 3 + head as usize)))
        .collect();
    for head in 0..3 {
        folder.write(&format!("repository/m{head}/model.toml"), "max_batch = 4\n");
    }
    let count = folder.path().join(gpus.to_string());
    let environment = [
        (driver::LIBRARY_VARIABLE, driver_library()),
        ("ROTA_STANDIN_GPUS", PathBuf::from(count.file_name().unwrap())),
        ("ROTA_STANDIN_FAULTS", faults.clone()),
    ];
    let environment: Vec<(&str, &Path)> = environment.iter().map(|(name, value)| (*name, value.as_path())).collect();
    let config = "repository = \"repository\"\n[[device]]\nkind = \"cuda\"\n";
    let mut daemon = Daemon::start_in(&folder, &folder.path().join("rota.sock"), config, &environment);
    daemon.wait_until("models are loaded and grouped", |status| {
        status["loading"] == false && status["grouping"] == false
    });
    let models = stdout(&daemon.rota(&["models"]));
    assert!(models.contains("m0, m1, m2 share"), "{models}\n{}", daemon.log());
    let devices = daemon.status()["devices"].as_array().map_or(0, Vec::len);
    assert_eq!(devices, gpus as usize, "{}", daemon.log());
    let memory = &daemon.status()["devices"][0]["memory"];
    for what in ["weights", "plans", "activations", "free"] {
        assert!(memory[what].as_u64().is_some_and(|bytes| bytes > 0), "{what} of {memory}");
    }

    let mut client = daemon.client_with(ClientOptions { slots: 256, ..ClientOptions::default() });
    let mut served: Vec<Served> =
        files.iter().enumerate().map(|(at, file)| Served::open(&mut client, &format!("m{at}"), file)).collect();
    let round = |client: &mut Client, served: &mut Vec<Served>, first: u64| -> usize {
        let asked: Vec<Asked> = (first..first + 48).map(|number| ask(client, served, number)).collect();
        asked.into_iter().map(|asked| take(client, served, asked)).filter(|ok| !ok).count()
    };
    assert_eq!(round(&mut client, &mut served, 0), 0, "all GPUs answer\n{}", daemon.log());
    folder.write("faults", "lost 1\n");
    let mut failed = 0;
    for number in 1..200 {
        failed += round(&mut client, &mut served, number * 48);
        if daemon.log().contains("lost; the others go on") {
            break;
        }
    }
    assert!(daemon.log().contains("lost; the others go on"), "the loss is noticed\n{}", daemon.log());
    // What was with the GPU failed; what comes afterwards goes to the others.
    let most = 2 * 4 * 3;
    assert!(failed <= most, "{failed} requests failed");
    assert_eq!(round(&mut client, &mut served, 20_000), 0, "the others go on\n{}", daemon.log());
    let planned_for = |gpus: u32| {
        move |status: &serde_json::Value| {
            let plan = &status["plan"];
            plan["cause"] == "devices" && plan["devices"].as_array().is_some_and(|list| list.len() == gpus as usize)
        }
    };
    daemon.wait_until("a plan without the lost GPU", planned_for(gpus - 1));
    std::fs::remove_file(&faults).unwrap();
    for number in 500..700 {
        assert_eq!(round(&mut client, &mut served, number * 48), 0, "{}", daemon.log());
        if daemon.log().contains(" back ") {
            break;
        }
    }
    assert!(daemon.log().contains(" back "), "the GPU comes back\n{}", daemon.log());
    daemon.wait_until("a plan with all GPUs", planned_for(gpus));
    assert_eq!(round(&mut client, &mut served, 50_000), 0, "{}", daemon.log());
    assert!(daemon.stop().success());
}

#[test]
fn two_gpus_serve_through_the_loss_of_one() {
    serve_through_a_loss(2);
}

#[test]
fn eight_gpus_serve_through_the_loss_of_one() {
    serve_through_a_loss(8);
}

#[test]
fn models_are_loaded_while_others_serve() {
    let folder = Folder::new("late");
    let file = folder.write("repository/m0/1/model.onnx", model(100, 3));
    folder.write("repository/m0/model.toml", "max_batch = 4\n");
    let library = driver_library();
    let environment: [(&str, &Path); 1] = [(driver::LIBRARY_VARIABLE, &library)];
    let config = "repository = \"repository\"\nprefix = false\n[[device]]\nkind = \"cuda\"\n";
    let mut daemon = Daemon::start_in(&folder, &folder.path().join("rota.sock"), config, &environment);
    daemon.wait_until("the first model is loaded", |status| status["loading"] == false);
    for head in 1..4u64 {
        folder.write(&format!("repository/m{head}/1/model.onnx"), model(100 + head, 3 + head as usize));
        folder.write(&format!("repository/m{head}/model.toml"), "max_batch = 4\n");
    }
    let mut client = daemon.client_with(ClientOptions { slots: 256, ..ClientOptions::default() });
    let mut served = vec![Served::open(&mut client, "m0", &file)];
    std::thread::scope(|scope| {
        let loading = scope.spawn(|| {
            for head in 1..4 {
                let run = daemon.rota(&["load", &format!("m{head}")]);
                assert!(run.status.success(), "{}", stderr(&run));
            }
        });
        let mut number = 0;
        while !loading.is_finished() || number < 480 {
            let asked: Vec<Asked> = (number..number + 48).map(|number| ask(&mut client, &served, number)).collect();
            assert!(asked.into_iter().all(|asked| take(&mut client, &mut served, asked)), "every answer is right");
            number += 48;
        }
        loading.join().unwrap();
    });
    assert!(daemon.stop().success());
}

#[test]
fn one_off_inference_on_a_gpu_gives_the_expected_digit() {
    let folder = Folder::new("infer");
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tiny");
    let file = models.join("repository/digits-mlp/1/model.onnx");
    let input = models.join("inputs/digits-mlp.npy");
    let output = folder.path().join("scores.npy");
    let named = format!("{}", output.display());
    let arguments =
        ["infer", "--local", "--device", "cuda", file.to_str().unwrap(), "--input", input.to_str().unwrap()];
    let run = rota()
        .args(arguments)
        .args(["--output", &named])
        .env(driver::LIBRARY_VARIABLE, driver_library())
        .output()
        .unwrap();
    assert!(run.status.success(), "{}", stderr(&run));
    assert!(stdout(&run).contains("by Stand-in GPU, fp32"), "{}", stdout(&run));
    let scores = npy::read(&output).unwrap();
    let first = &scores.bytes.elements::<f32>()[..10];
    let digit = (0..10).max_by(|&a, &b| first[a].total_cmp(&first[b])).unwrap();
    assert_eq!(digit, 0, "the first picture shows a 0: {first:?}");
}

#[test]
fn a_model_that_does_not_fit_is_refused_with_the_figures() {
    const WIDE: usize = 1024;
    let folder = Folder::new("large");
    let mut sketch = Sketch::new("large");
    let x = sketch.input("x", &[-1, WIDE as i64], "n");
    let w = sketch.floats("w", &[WIDE as u64, WIDE as u64], &noise(1, WIDE * WIDE));
    sketch.node("MatMul", &[&x, &w], "y", &[]);
    sketch.output("y", &[-1, WIDE as i64], "n");
    let file = folder.write("large.onnx", sketch.into_file());
    let input = folder.path().join("x.npy");
    npy::write(&input, &HostTensor::from_elements(&[1, WIDE as u32], &noise(2, WIDE)).unwrap()).unwrap();
    let arguments =
        ["infer", "--local", "--device", "cuda", file.to_str().unwrap(), "--input", input.to_str().unwrap()];
    let mut command = rota();
    command.args(arguments).env(driver::LIBRARY_VARIABLE, driver_library()).env("ROTA_STANDIN_MEMORY_MB", "2");
    let run = command.output().unwrap();
    assert!(stderr(&run).contains("the GPU's memory does not hold 4.00 MB more for weights"), "{}", stderr(&run));
}

#[test]
fn a_models_settings_say_its_precision_and_a_flag_says_it_louder() {
    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tiny/repository/digits-conv/1/model.onnx");
    let folder = std::env::temp_dir().join(format!("rota-precision-{}", std::process::id()));
    let file = folder.join("digits/1/model.onnx");
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::copy(tiny, &file).unwrap();
    std::fs::write(folder.join("digits/model.toml"), "precision = \"fp16\"\n").unwrap();
    let precision = |flags: &[&str]| {
        let run = rota().args(["explain", file.to_str().unwrap(), "--json"]).args(flags).output().unwrap();
        assert!(run.status.success(), "{}", stderr(&run));
        let report: serde_json::Value = serde_json::from_str(&stdout(&run)).unwrap();
        report["precision"].as_str().unwrap().to_owned()
    };
    assert_eq!(precision(&[]), "fp16");
    assert_eq!(precision(&["--precision", "tf32"]), "tf32");
    std::fs::write(folder.join("digits/model.toml"), "precision = \"half\"\n").unwrap();
    let run = rota().args(["explain", file.to_str().unwrap()]).output().unwrap();
    assert!(!run.status.success());
    let error = stderr(&run);
    assert!(error.contains("model.toml") && error.contains("expected one of `fp32`, `tf32`, `fp16`"), "{error}");
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn explain_shows_what_fusion_saves_without_any_gpu() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tiny/repository/digits-conv/1/model.onnx");
    let run = rota()
        .args(["explain", file.to_str().unwrap(), "--device", "h100", "--batch", "8", "--json"])
        .output()
        .unwrap();
    assert!(run.status.success(), "{}", stderr(&run));
    let report: serde_json::Value = serde_json::from_str(&stdout(&run)).unwrap();
    let number = |of: &serde_json::Value| of.as_f64().unwrap();
    assert_eq!(report["gpu"], "H100 SXM");
    assert!(number(&report["sum"]["launches"]) < number(&report["unfused"]["launches"]), "{report}");
    assert!(number(&report["sum"]["bytes"]) < number(&report["unfused"]["bytes"]), "{report}");
    let shares: f64 = report["launches"].as_array().unwrap().iter().map(|launch| number(&launch["share"])).sum();
    assert!((shares - 1.0).abs() < 1e-6, "{report}");
}

#[test]
fn doctor_says_which_gpus_are_there() {
    let run = rota()
        .arg("doctor")
        .env(driver::LIBRARY_VARIABLE, driver_library())
        .env("ROTA_STANDIN_GPUS", "2")
        .output()
        .unwrap();
    assert!(stdout(&run).contains("2 GPUs: Stand-in GPU (16384 MB), Stand-in GPU (16384 MB)"), "{}", stdout(&run));
}
