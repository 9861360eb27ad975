//! The demo's models and what they are known to answer, for a daemon that serves them on GPUs of the stand-in driver.

use crate::support::{Daemon, Folder, driver_library};
use rota::cli::demo::answers::{self, Tensors};
use rota::cli::demo::manifest::{self, Item, Manifest, Model, Task};
use rota_device::cuda::driver;
use rota_device::engine::{self, CompileOptions, EngineChoice};
use rota_device::{HostTensor, check, npy};
use rota_ipc::Client;
use rota_ipc::client::{Answer, Request, Session};
use rota_ipc::wire::{Reason, Status};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Batches take a thousand times as long as on a GPU, and other tests run beside.
pub const PATIENCE: Duration = Duration::from_secs(900);

/// The project's folder of models.
pub fn models() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models")
}

/// The manifest of the published models, where they were fetched. `ROTA_REQUIRE_MODELS=1` makes their absence a failure.
pub fn published() -> Option<Manifest> {
    let path = models().join("fetched/manifest.json");
    if path.is_file() {
        return Some(Manifest::read(&path).unwrap());
    }
    let required = std::env::var_os("ROTA_REQUIRE_MODELS").is_some_and(|value| value == "1");
    assert!(!required, "ROTA_REQUIRE_MODELS=1, but {} is not there: run models/fetch.py", path.display());
    eprintln!("skipped: the published models are not here; models/fetch.py fetches them");
    None
}

/// Puts a model of `repository` into the folder's, with small batches; `sizes` take the place of its own for the check on load.
pub fn add(folder: &Folder, repository: &Path, model: &str, max_batch: u32, sizes: &[(&str, u32)]) {
    let settings = fs::read_to_string(repository.join(model).join("model.toml")).unwrap();
    let line = |line: &str| {
        let key = line.split('=').next().unwrap_or_default().trim();
        let size = sizes.iter().find(|(name, _)| key.trim_matches('"') == *name);
        match size {
            Some((_, size)) => format!("{key} = {size}"),
            None if key == "max_batch" => format!("max_batch = {max_batch}"),
            None => line.to_owned(),
        }
    };
    let settings: Vec<String> = settings.lines().map(line).collect();
    folder.write(&format!("repository/{model}/model.toml"), settings.join("\n"));
    let version = folder.path().join(format!("repository/{model}/1"));
    fs::create_dir_all(&version).unwrap();
    let file = fs::canonicalize(repository.join(model).join("1/model.onnx")).unwrap();
    std::os::unix::fs::symlink(file, version.join("model.onnx")).unwrap();
}

/// How long batches take, as a GPU might, so that loading measures nothing: a stand-in's own times say nothing of order and
/// answers. `heads` begin with one trunk.
pub fn profiles(models: &[&str], heads: &[&str]) -> String {
    let whole = |model: &&str| format!("[[profile]]\nmodel = \"{model}\"\nbatch_ms = {{ 1 = 1.0, 8 = 3.0 }}\n");
    let head = |head: &&str| {
        format!("[[profile]]\nmodel = \"{head}\"\nprefix = \"trunk\"\nsuffix_ms = {{ 1 = 0.1, 8 = 0.2 }}\n")
    };
    let trunk = "[[prefix]]\nname = \"trunk\"\nbatch_ms = { 1 = 2.0, 8 = 6.0 }\n".to_owned();
    [trunk].into_iter().chain(models.iter().map(whole)).chain(heads.iter().map(head)).collect()
}

/// The daemon of a folder that has `repository` and `gpu.toml`, on so many GPUs, once all is loaded and grouped. A file `faults` in
/// the folder is what goes wrong with them.
pub fn serve(folder: &Folder, gpus: u32, settings: &str) -> Daemon {
    let library = driver_library();
    let faults = folder.path().join("faults");
    let count = gpus.to_string();
    let environment = [
        (driver::LIBRARY_VARIABLE, &*library),
        ("ROTA_STANDIN_GPUS", Path::new(&count)),
        ("ROTA_STANDIN_FAULTS", &*faults),
    ];
    let config =
        format!("repository = \"repository\"\n{settings}\n[[device]]\nkind = \"cuda\"\nprofiles = \"gpu.toml\"\n");
    let mut daemon = Daemon::start_in(folder, &folder.path().join("rota.sock"), &config, &environment);
    daemon.wait_as_long_as(PATIENCE, "models are loaded and grouped", |status| {
        status["loading"] == false && status["grouping"] == false
    });
    let status = daemon.status();
    assert_eq!(status["devices"].as_array().map(Vec::len), Some(gpus as usize), "{}", daemon.log());
    for model in status["models"].as_array().unwrap() {
        assert_eq!(model["state"], "ready", "{model}\n{}", daemon.log());
    }
    assert!(!daemon.log().contains("profiling"), "all profiles are given\n{}", daemon.log());
    daemon
}

/// One request, and what is expected of its answer.
pub struct Question {
    pub model: String,
    /// For people.
    pub name: String,
    pub tensors: Tensors,
    pub output: String,
    expected: Expected,
}

enum Expected {
    /// One of these words, by the task's rule.
    Words { task: Task, labels: Vec<String>, any_of: Vec<String> },
    /// Within a thousandth of its range what an engine on the CPU gives.
    Map(HostTensor),
}

impl Question {
    /// The questions that a model's items are, but for those that are streams.
    pub fn of_model(manifest: &Manifest, model: &Model) -> Vec<Question> {
        model.items.iter().map(|item| Question::of_item(manifest, model, item)).collect()
    }

    fn of_item(manifest: &Manifest, model: &Model, item: &Item) -> Question {
        let mut requests = answers::requests(manifest, model, item).unwrap();
        assert_eq!(requests.len(), 1, "{} of {} is a stream", item.name, model.name);
        let tensors = requests.remove(0);
        let expected = match model.task {
            Task::Map => Expected::Map(reference(manifest, model, &tensors)),
            task => {
                let labels = model.labels.as_ref().expect("a task in words has labels");
                let labels = manifest::read_labels(&manifest.folder.join(labels)).unwrap();
                Expected::Words { task, labels, any_of: item.expect.clone() }
            }
        };
        Question { model: model.name.clone(), name: item.name.clone(), tensors, output: model.output.clone(), expected }
    }

    /// What a head is to say of a handwritten digit: number `picture` of those that come with the project, enlarged as the pictures were
    /// that it was trained on.
    pub fn of_head(head: &str, picture: usize, expected: &str) -> Question {
        let labels = manifest::read_labels(&models().join(format!("heads/{head}.txt"))).unwrap();
        let any_of = vec![expected.to_owned()];
        Question {
            model: head.to_owned(),
            name: format!("digit {picture}"),
            tensors: [("image".to_owned(), enlarged(picture))].into(),
            output: "probabilities".to_owned(),
            expected: Expected::Words { task: Task::Label, labels, any_of },
        }
    }

    /// Fills a request for its model, and makes room for the answer.
    pub fn fill(&self, request: &mut Request, session: &Session) {
        answers::fill(request, &self.tensors).unwrap();
        let outputs = &session.model().outputs;
        let output = outputs.iter().find(|output| output.name == self.output).expect("the model has it");
        let room = match &self.expected {
            Expected::Map(map) => map.bytes.len(),
            Expected::Words { .. } => answers::room(output),
        };
        request.output(self.output.as_str(), room).unwrap();
    }

    /// True when the answer is ok, and right; false when a device was lost with it. Anything else is a failure of the test.
    pub fn is_answered(&self, answer: &Answer) -> bool {
        let (model, name) = (&self.model, &self.name);
        if answer.status == Status::Failed {
            assert_eq!(answer.reason, Reason::DeviceLost, "{model}, {name}: {}", answer.message());
            return false;
        }
        assert_eq!(answer.status, Status::Ok, "{model}, {name}: {}", answer.message());
        let found = answer.output::<f32>(self.output.as_str()).unwrap();
        match &self.expected {
            Expected::Words { task, labels, any_of } => {
                let classes = found.dims.last().map_or(1, |&classes| classes as usize);
                let words = match task {
                    Task::Text => manifest::text(found.data, classes, labels),
                    _ => manifest::label(found.data, labels).to_owned(),
                };
                assert!(any_of.contains(&words), "{model}, {name}: \"{words}\" instead of {any_of:?}");
            }
            Expected::Map(expected) => {
                let found = HostTensor::from_elements(found.dims, found.data).unwrap();
                let apart = check::apart(&found, expected);
                assert!(apart <= 1e-3, "{model}, {name}: {apart} of its range away");
            }
        }
        true
    }
}

/// What an engine on the CPU gives for the task's output.
fn reference(manifest: &Manifest, model: &Model, tensors: &Tensors) -> HostTensor {
    let file = manifest.folder.join(&manifest.repository).join(&model.name).join("1/model.onnx");
    let engine = engine::open(&EngineChoice::Auto).unwrap().engine;
    let mut network = engine.compile(&file, &CompileOptions { threads: 1, ..CompileOptions::default() }).unwrap();
    let inputs: Vec<HostTensor> = network.signature().inputs.iter().map(|input| tensors[&input.name].clone()).collect();
    let place = network.signature().outputs.iter().position(|output| output.name == model.output).unwrap();
    network.run(&inputs).unwrap().swap_remove(place)
}

/// A digit of 8 by 8 pixels in 0..=1 as the trunk takes pictures: 224 by 224, three equal planes, (sample - 127) / 128.
fn enlarged(picture: usize) -> HostTensor {
    const SIDE: usize = 224;
    const FACTOR: usize = SIDE / 8;
    let digits = npy::read(&models().join("tiny/inputs/digits-conv.npy")).unwrap();
    let pixels = &digits.bytes.elements::<f32>()[picture * 64..][..64];
    let sample = |at: usize| (pixels[at / SIDE / FACTOR * 8 + at % SIDE / FACTOR] * 255.0 - 127.0) / 128.0;
    let plane: Vec<f32> = (0..SIDE * SIDE).map(sample).collect();
    HostTensor::from_elements(&[1, 3, SIDE as u32, SIDE as u32], &plane.repeat(3)).unwrap()
}

/// What a model makes of the first `windows` requests of its stream, each with what the answer before it fed back. What fails with
/// a lost device is asked again.
pub fn listen(client: &mut Client, session: &Session, manifest: &Manifest, model: &Model, windows: usize) -> Vec<f32> {
    let item = &model.items[0];
    let mut heard = Vec::new();
    let mut fed = Tensors::new();
    for mut tensors in answers::requests(manifest, model, item).unwrap().into_iter().take(windows) {
        tensors.append(&mut fed);
        loop {
            let mut request = client.request(session).unwrap();
            answers::fill(&mut request, &tensors).unwrap();
            for output in &session.model().outputs {
                request.output(output.name.as_str(), answers::room(output)).unwrap();
            }
            let ticket = client.submit(request).unwrap();
            let answer = client.wait_for(ticket, PATIENCE).unwrap().expect("every request is answered");
            if answer.status == Status::Failed {
                assert_eq!(answer.reason, Reason::DeviceLost, "{}", answer.message());
                continue;
            }
            assert_eq!(answer.status, Status::Ok, "{}", answer.message());
            heard.push(answer.output::<f32>(model.output.as_str()).unwrap().data[0]);
            for (input, output) in &model.feedback {
                let view = answer.output::<f32>(output.as_str()).unwrap();
                fed.insert(input.clone(), HostTensor::from_elements(view.dims, view.data).unwrap());
            }
            break;
        }
    }
    heard
}
