//! What a user of GPUs is told when something is wrong with them, with the settings or with a model; and what goes on all the same.
//! The GPUs are the stand-in driver's.

#[allow(dead_code, reason = "not every test file uses all of it")]
mod support;

use rota_device::cuda::driver;
use rota_graph::examples::{Sketch, noise};
use rota_ipc::Client;
use rota_ipc::client::{Answer, Open, Session};
use rota_ipc::wire::{Reason, Status};
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use support::{Daemon, Folder, PATIENT, driver_library, rota, stderr, stdout};

const CUDA: &str = "repository = \"repository\"\n[[device]]\nkind = \"cuda\"\n";

/// A daemon on the stand-in's GPUs, with these variables.
fn serve(folder: &Folder, config: &str, variables: &[(&str, &Path)]) -> Daemon {
    let library = driver_library();
    let environment = [&[(driver::LIBRARY_VARIABLE, &*library)], variables].concat();
    let mut daemon = Daemon::start_in(folder, &folder.path().join("rota.sock"), config, &environment);
    daemon.wait_until("models are loaded", |status| status["loading"] == false);
    daemon
}

/// A model `x [batch, width]` → `y [batch, width]` whose weights take `width`² × 4 bytes.
fn model(width: usize) -> Vec<u8> {
    let mut sketch = Sketch::new("wide");
    let x = sketch.input("x", &[-1, width as i64], "n");
    let w = sketch.floats("w", &[width as u64, width as u64], &noise(width as u64, width * width));
    sketch.node("MatMul", &[&x, &w], "y", &[]);
    sketch.output("y", &[-1, width as i64], "n");
    sketch.into_file()
}

fn add(folder: &Folder, name: &str, width: usize) {
    folder.write(&format!("repository/{name}/1/model.onnx"), model(width));
    folder.write(&format!("repository/{name}/model.toml"), "max_batch = 2\n");
}

fn ask(client: &mut Client, session: &Session, width: u32) -> Answer {
    let mut request = client.request(session).unwrap();
    request.input::<f32>(0, &[1, width]).unwrap().fill(1.0);
    client.infer(request).unwrap()
}

#[test]
fn settings_that_name_gpus_wrongly_are_refused_with_what_would_be_right() {
    let folder = Folder::new("gpu-settings");
    add(&folder, "small", 8);
    folder.write("zero.toml", "[[profile]]\nmodel = \"small\"\nbatch_ms = { 1 = 0.0 }\n");
    let none: &[(&str, &str)] = &[];
    let cases = [
        ("gpus = [0, 7]\n", none, "rota: cuda device: there is no GPU 7: the driver has 2, numbered from 0 to 1"),
        ("gpus = [1, 1]\n", none, "rota: GPU 1 is named by two [[device]] entries, or twice by one"),
        ("gpus = [0]\n[[device]]\nkind = \"cuda\"\n", none, "rota: GPU 0 is named by two [[device]] entries"),
        ("precision = \"int8\"\n", none, "unknown variant `int8`, expected one of `fp32`, `tf32`, `fp16`"),
        (
            "precision = \"tf32\"\n",
            &[("ROTA_STANDIN_CC", "7.5")],
            "has compute capability 7.5, and precision \"tf32\" takes 8.0: choose \"fp32\"",
        ),
        ("", &[("ROTA_STANDIN_GPUS", "0")], "the CUDA driver has no GPU (CUDA_ERROR_NO_DEVICE)"),
        (
            "",
            &[(driver::LIBRARY_VARIABLE, "/no/driver.so")],
            "ROTA_CUDA_DRIVER names /no/driver.so, which can't be loaded",
        ),
        ("profiles = \"none.toml\"\n", none, "none.toml: No such file"),
        (
            "profiles = \"zero.toml\"\n",
            none,
            "zero.toml: profile of model 'small': latency of batch 1 must be above zero",
        ),
    ];
    let library = driver_library();
    for (settings, variables, expected) in cases {
        let config = folder.write("rota.toml", format!("{CUDA}{settings}"));
        let mut command: Command = rota();
        command.env(driver::LIBRARY_VARIABLE, &library).env("ROTA_STANDIN_GPUS", "2").envs(variables.iter().copied());
        command.arg("serve").arg("--config").arg(config).arg("--socket").arg(folder.path().join("rota.sock"));
        let run = command.output().unwrap();
        let said = stderr(&run);
        assert_eq!(run.status.code(), Some(2), "{settings}: {said}");
        assert!(
            said.starts_with("rota: ") && said.lines().count() == 1 && said.contains(expected),
            "{settings}: {said}"
        );
    }
}

#[test]
fn a_driver_that_is_named_wrongly_is_a_warning_of_doctor() {
    let run = rota().arg("doctor").env(driver::LIBRARY_VARIABLE, "/no/driver.so").output().unwrap();
    let text = stdout(&run);
    let line = text.lines().find(|line| line.contains("CUDA")).unwrap();
    assert!(line.starts_with("warn") && line.contains("/no/driver.so"), "{text}");
    assert!(text.contains("correct ROTA_CUDA_DRIVER or unset it"), "{text}");
}

#[test]
fn a_model_that_a_gpu_does_not_hold_is_served_by_the_cpu_alone() {
    let folder = Folder::new("gpu-small");
    add(&folder, "small", 8);
    add(&folder, "wide", 1024);
    let config = format!("{CUDA}[[device]]\nkind = \"cpu\"\nthreads = 1\n");
    let daemon = serve(&folder, &config, &[("ROTA_STANDIN_MEMORY_MB", Path::new("2"))]);
    assert!(
        daemon.log().contains("not served on this device model=wide version=1 device=Stand-in GPU, fp32"),
        "{}",
        daemon.log()
    );
    assert!(daemon.log().contains("does not hold 4.00 MB more for weights"), "{}", daemon.log());
    let mut client = daemon.client();
    for (name, width, devices) in [("small", 8, 2), ("wide", 1024, 1)] {
        let session = client.open(name, PATIENT).unwrap();
        assert!(ask(&mut client, &session, width).is_answered());
        let status = daemon.status();
        let models = status["models"].as_array().unwrap();
        let model = models.iter().find(|model| model["name"] == name).unwrap();
        assert_eq!(model["profiles"].as_array().map(Vec::len), Some(devices), "{model}");
    }
}

/// A model that begins with the layers that all of these have, and has a head of `classes` for itself.
fn specialised(classes: usize) -> Vec<u8> {
    const WIDTH: usize = 256;
    let scaled = |seed: u64, count: usize| noise(seed, count).into_iter().map(|v| v * 0.1).collect::<Vec<f32>>();
    let mut sketch = Sketch::new("specialised");
    let x = sketch.input("x", &[-1, WIDTH as i64], "n");
    let w = sketch.floats("trunk", &[WIDTH as u64, WIDTH as u64], &scaled(1, WIDTH * WIDTH));
    let trunk = sketch.node("MatMul", &[&x, &w], "trunk_out", &[]);
    let relu = sketch.node("Relu", &[&trunk], "relu", &[]);
    let w = sketch.floats("head", &[WIDTH as u64, classes as u64], &scaled(classes as u64, WIDTH * classes));
    sketch.node("MatMul", &[&relu, &w], "y", &[]);
    sketch.output("y", &[-1, classes as i64], "n");
    sketch.into_file()
}

#[test]
fn models_that_share_a_trunk_are_served_whole_where_a_gpu_does_not_hold_all_of_them() {
    let folder = Folder::new("gpu-some");
    for (name, classes) in [("few", 3), ("many", 4096)] {
        folder.write(&format!("repository/{name}/1/model.onnx"), specialised(classes));
        folder.write(&format!("repository/{name}/model.toml"), "max_batch = 2\n");
    }
    let config = format!("{CUDA}[[device]]\nkind = \"cpu\"\nthreads = 1\n");
    let mut daemon = serve(&folder, &config, &[("ROTA_STANDIN_MEMORY_MB", Path::new("3"))]);
    daemon.wait_until("what is shared was looked at", |status| status["grouping"] == false);
    assert!(daemon.log().contains("Stand-in GPU, fp32 serves 1 of these 2 models"), "{}", daemon.log());
    let mut client = daemon.client();
    for name in ["few", "many"] {
        let session = client.open(name, PATIENT).unwrap();
        assert!(ask(&mut client, &session, 256).is_answered());
    }
}

#[test]
fn a_model_that_no_device_holds_is_refused_with_the_figures_and_the_others_are_served() {
    let folder = Folder::new("gpu-full");
    add(&folder, "small", 8);
    add(&folder, "wide", 1024);
    let daemon = serve(&folder, CUDA, &[("ROTA_STANDIN_MEMORY_MB", Path::new("2"))]);
    let mut client = daemon.client();
    let refused = client.open("wide", PATIENT).unwrap_err().to_string();
    let expected = "the GPU's memory does not hold 4.00 MB more for weights: ";
    assert!(refused.contains(expected) && refused.contains("of 2 MB are free; unload models"), "{refused}");
    let session = client.open("small", PATIENT).unwrap();
    assert!(ask(&mut client, &session, 8).is_answered());
}

#[test]
fn what_an_unloaded_model_held_is_there_for_the_next_while_others_serve() {
    let folder = Folder::new("gpu-again");
    add(&folder, "small", 8);
    // 4 MB of weights each, on a GPU of 6.
    let daemon = serve(&folder, CUDA, &[("ROTA_STANDIN_MEMORY_MB", Path::new("6"))]);
    add(&folder, "first", 1024);
    add(&folder, "second", 1025);
    let (mut client, mut control) = (daemon.client(), daemon.control());
    let small = client.open("small", PATIENT).unwrap();
    for _ in 0..3 {
        for (name, width, other) in [("first", 1024, "second"), ("second", 1025, "first")] {
            control.load(name, None).unwrap_or_else(|error| panic!("{error}\n{}", daemon.log()));
            let session = client.open(name, PATIENT).unwrap();
            assert!(ask(&mut client, &session, width).is_answered());
            let refused = control.load(other, None).unwrap_err().to_string();
            assert!(refused.contains("does not hold 4.0") && refused.contains("MB more for weights"), "{refused}");
            assert!(ask(&mut client, &small, 8).is_answered(), "others are served");
            client.close(session).unwrap();
            control.unload(name, None).unwrap();
        }
    }
}

#[test]
fn a_profile_that_was_measured_on_a_gpu_is_given_to_a_device_as_it_was_printed() {
    let folder = Folder::new("gpu-profile");
    add(&folder, "small", 8);
    let file = folder.path().join("repository/small/1/model.onnx");
    let library = driver_library();
    let profile = |arguments: &[&str]| {
        let mut command = rota();
        command.arg("profile").arg(&file).args(arguments).env(driver::LIBRARY_VARIABLE, &library).output().unwrap()
    };
    let run = profile(&["--device", "cuda", "--toml"]);
    assert!(run.status.success(), "{}", stderr(&run));
    let printed = stdout(&run);
    assert!(printed.starts_with("[[profile]] # Stand-in GPU, fp32\nmodel = \"small\"\n"), "{printed}");
    folder.write("gpu.toml", &printed);
    let daemon = serve(&folder, &format!("{CUDA}profiles = \"gpu.toml\"\n"), &[]);
    assert!(!daemon.log().contains("profiling"), "{}", daemon.log());
    let given = &daemon.status()["models"][0]["profiles"][0];
    assert_eq!(given.as_object().map(|points| points.len()), Some(2), "{given}");
    let run = profile(&["--device", "cuda", "--threads", "2"]);
    assert!(stderr(&run).contains("--threads and --cores are for --device cpu"), "{}", stderr(&run));
}

#[test]
fn status_names_lost_gpus_and_requests_say_that_all_are_lost() {
    let folder = Folder::new("gpu-lost");
    add(&folder, "small", 8);
    let faults = folder.path().join("faults");
    let variables = [("ROTA_STANDIN_GPUS", Path::new("2")), ("ROTA_STANDIN_FAULTS", &*faults)];
    let mut daemon = serve(&folder, CUDA, &variables);
    let mut client = daemon.client();
    let session = client.open("small", PATIENT).unwrap();
    let hurried = client.open("small", Open { slo: Some(Duration::from_millis(200)), ..PATIENT }).unwrap();
    assert!(ask(&mut client, &session, 8).is_answered());
    folder.write("faults", "lost 0\nlost 1\n");
    for _ in 0..2 {
        let answer = ask(&mut client, &session, 8);
        assert_eq!((answer.status, answer.reason), (Status::Failed, Reason::DeviceLost));
        assert!(answer.message().starts_with("its device was lost ("), "{}", answer.message());
    }
    daemon.wait_until("both are known to be lost", |status| {
        [0, 1].iter().all(|&device: &usize| status["devices"][device]["lost"] == true)
    });
    let text = stdout(&daemon.rota(&["status"]));
    assert!(text.contains("cuda0: GPU 0, Stand-in GPU, fp32 (lost)") && text.contains("fp32 (lost)"), "{text}");
    assert!(daemon.log().contains("lost; no device is left"), "{}", daemon.log());
    let answer = ask(&mut client, &hurried, 8);
    assert_eq!(answer.status, Status::Dropped);
    assert!(answer.message().contains("all devices that serve its model are lost"), "{}", answer.message());
    std::fs::remove_file(&faults).unwrap();
    assert!(ask(&mut client, &session, 8).is_answered(), "it waited for a GPU to come back");
    daemon.wait_until("both are back", |status| {
        [0, 1].iter().all(|&device: &usize| status["devices"][device]["lost"] == false)
    });
}
