//! The demo on GPUs: its models and heads, its own questions and known answers, through the real daemon, with a GPU lost and
//! regained on the way. The GPUs are the stand-in driver's; profiles are given and SLOs are long, so that what is tested is order and
//! answers, not the speed of this machine.

#[allow(dead_code, reason = "not every test file uses all of it")]
mod support;

#[path = "support/demo.rs"]
mod demo;

use demo::{PATIENCE, Question, add, listen, models, profiles, published, serve};
use rota::cli::demo::manifest::{self, Manifest};
use rota_device::cuda::driver;
use rota_ipc::client::{OpenQuery, Session, Ticket};
use rota_ipc::{Client, ClientOptions};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Output;
use std::sync::atomic::{AtomicBool, Ordering};
use support::{Daemon, Folder, PATIENT, driver_library, rota, stderr, stdout};

/// What is served, and what is asked.
struct Scope {
    gpus: u32,
    /// Whole models that begin as the heads do.
    photo: bool,
    /// Each with digits that it is asked about, and what it has to say of them.
    heads: &'static [(&'static str, &'static [(usize, &'static str)])],
    /// Of each model's questions.
    questions: usize,
    /// Of the stream of speech, and where in it somebody speaks.
    windows: usize,
    spans: &'static [[usize; 2]],
}

/// What fits in the tests of every day.
const DAILY: Scope = Scope {
    gpus: 2,
    photo: false,
    heads: &[("digit", &[(0, "0"), (5, "3")]), ("digit-parity", &[(3, "odd"), (1, "even")])],
    questions: 4,
    windows: 40,
    spans: &[[11, 36]],
};

/// All of it.
const WHOLE: Scope = Scope {
    gpus: 8,
    photo: true,
    heads: &[
        ("digit", &[(0, "0"), (3, "9"), (5, "3"), (7, "5")]),
        ("digit-parity", &[(0, "even"), (1, "even"), (3, "odd"), (5, "odd")]),
        ("digit-loop", &[(0, "loop"), (3, "loop"), (5, "open"), (6, "open")]),
        ("digit-small", &[(0, "0"), (5, "3")]),
        ("garment-or-digit", &[(0, "digit"), (7, "digit")]),
        ("fashion", &[]),
        ("fashion-kind", &[]),
        ("fashion-shoes", &[]),
        ("fashion-tops", &[]),
    ],
    questions: usize::MAX,
    windows: 96,
    spans: &[[11, 36], [59, 86]],
};

/// The models that are served whole.
const MODELS: [&str; 5] = ["magika", "silero-vad", "text-detection", "text-orientation", "text-recognition"];

/// A small repository, for the check on load; requests have whatever sizes they have.
fn add_models(folder: &Folder, manifest: &Manifest) {
    let repository = manifest.folder.join(&manifest.repository);
    for model in MODELS {
        let sizes: &[(&str, u32)] = match model {
            "text-detection" => &[("p2o.DynamicDimension.1", 64), ("p2o.DynamicDimension.2", 96)],
            "text-orientation" => &[("x:3", 64)],
            "text-recognition" => &[("p2o.DynamicDimension.1", 64)],
            _ => &[],
        };
        add(folder, &repository, model, 4, sizes);
    }
}

/// A client that asks many questions at once.
struct Asker {
    client: Client,
    sessions: BTreeMap<String, Session>,
}

impl Asker {
    fn new(daemon: &Daemon, questions: &[Question]) -> Asker {
        let mut client = roomy(daemon);
        let mut sessions = BTreeMap::new();
        for question in questions {
            let open = |client: &mut Client| client.open(&question.model, PATIENT).unwrap();
            sessions.entry(question.model.clone()).or_insert_with(|| open(&mut client));
        }
        Asker { client, sessions }
    }

    /// Asks these, all in flight at once. Every one is answered, and rightly, but for those that failed with a lost device: which
    /// they were.
    fn ask<'q>(&mut self, questions: impl IntoIterator<Item = &'q Question>) -> Vec<&'q Question> {
        let submit = |question: &'q Question| {
            let session = &self.sessions[&question.model];
            let mut request = self.client.request(session).unwrap();
            question.fill(&mut request, session);
            (self.client.submit(request).unwrap(), question)
        };
        let asked: Vec<(Ticket, &Question)> = questions.into_iter().map(submit).collect();
        let take = |(ticket, question): (Ticket, &'q Question)| {
            let answer = self.client.wait_for(ticket, PATIENCE).unwrap().expect("every request is answered");
            (!question.is_answered(&answer)).then_some(question)
        };
        asked.into_iter().filter_map(take).collect()
    }
}

/// A client with room for whole lines of text in flight.
fn roomy(daemon: &Daemon) -> Client {
    daemon.client_with(ClientOptions { slots: 256, arena_bytes: 256 << 20, ..ClientOptions::default() })
}

/// Whether the daemon knows that a GPU is lost.
fn is_noticed(daemon: &Daemon) -> bool {
    daemon.log().contains("lost; the others go on")
}

/// Does `work` again and again until the daemon is as `done` wants it.
fn until(daemon: &Daemon, what: &str, done: impl Fn(&Daemon) -> bool, mut work: impl FnMut()) {
    for _ in 0..50 {
        work();
        if done(daemon) {
            return;
        }
    }
    panic!("not so: {what}\n{}", daemon.log());
}

/// Gives GPU 1 back while `work` is done, until it serves again.
fn regain(folder: &Folder, daemon: &Daemon, work: impl FnMut()) {
    let batches = |daemon: &Daemon| daemon.status()["devices"][1]["batches"].as_u64().unwrap();
    let before = batches(daemon);
    std::fs::remove_file(folder.path().join("faults")).unwrap();
    let is_back = |daemon: &Daemon| daemon.log().contains(" back ") && batches(daemon) > before;
    until(daemon, "the GPU serves again", is_back, work);
}

/// Whether the plan is one for so many GPUs.
fn planned_for(gpus: u32) -> impl Fn(&Value) -> bool {
    move |status| status["plan"]["devices"].as_array().is_some_and(|list| list.len() == gpus as usize)
}

/// The demo on GPUs of which one is lost and regained, while questions of all kinds are in flight.
fn serve_the_demo(scope: &Scope) {
    let Some(manifest) = published() else { return };
    let folder = Folder::new("demo-gpus");
    add_models(&folder, &manifest);
    let mut heads: Vec<&str> = scope.heads.iter().map(|(head, _)| *head).collect();
    heads.iter().for_each(|head| add(&folder, &models().join("fetched/heads"), head, 4, &[]));
    if scope.photo {
        add(&folder, &manifest.folder.join(&manifest.repository), "photo", 4, &[]);
        heads.push("photo");
    }
    folder.write("gpu.toml", profiles(&MODELS, &heads));
    let mut daemon = serve(&folder, scope.gpus, "");
    let text = stdout(&daemon.rota(&["models"]));
    heads.sort_unstable();
    assert!(text.contains(&format!("{} share", heads.join(", "))), "{text}\n{}", daemon.log());

    let of_model = |model: &manifest::Model| Question::of_model(&manifest, model).into_iter().take(scope.questions);
    let is_asked = |name: &str| name != "silero-vad" && (scope.photo || name != "photo");
    let mut questions: Vec<Question> =
        manifest.models.iter().filter(|model| is_asked(&model.name)).flat_map(of_model).collect();
    for (head, digits) in scope.heads {
        questions.extend(digits.iter().map(|(picture, expected)| Question::of_head(head, *picture, expected)));
    }
    let mut asker = Asker::new(&daemon, &questions);
    let over = AtomicBool::new(false);
    std::thread::scope(|threads| {
        // A stream goes on all the while: each of its requests needs the answer before it.
        let stream = threads.spawn(|| hear(&daemon, &manifest, scope, &over));
        assert!(asker.ask(&questions).is_empty(), "both answer\n{}", daemon.log());
        folder.write("faults", "lost 1\n");
        let mut failed = 0;
        until(&daemon, "the loss is noticed", is_noticed, || {
            let mut left = asker.ask(&questions);
            // Asked again, each is answered, by another GPU.
            while !left.is_empty() {
                failed += left.len();
                left = asker.ask(left);
            }
        });
        // What was with the GPU, running and prepared, and what it was given before its loss was noticed.
        assert!(failed <= 4 * 4, "{failed} requests failed\n{}", daemon.log());
        let is_planned = |daemon: &Daemon| planned_for(scope.gpus - 1)(&daemon.status());
        until(&daemon, "the plan is for the others", is_planned, || {
            assert!(asker.ask(&questions).is_empty(), "the others go on\n{}", daemon.log());
        });
        regain(&folder, &daemon, || assert!(asker.ask(&questions).is_empty(), "{}", daemon.log()));
        over.store(true, Ordering::Release);
        stream.join().unwrap();
    });
    daemon.wait_as_long_as(PATIENCE, "a plan with all GPUs", planned_for(scope.gpus));
    assert_eq!(daemon.status()["requests_in_flight"], 0);
    assert!(daemon.stop().success());
}

/// Listens to the whole stream of speech, again and again until `over`: every time somebody speaks where somebody speaks.
fn hear(daemon: &Daemon, manifest: &Manifest, scope: &Scope, over: &AtomicBool) {
    let model = manifest.model("silero-vad").unwrap();
    let mut client = roomy(daemon);
    let session = client.open("silero-vad", PATIENT).unwrap();
    loop {
        let is_last = over.load(Ordering::Acquire);
        let spans = manifest::spans(&listen(&mut client, &session, manifest, model, scope.windows));
        assert!(manifest::near(&spans, scope.spans, model.items[0].spans_tolerance), "{spans:?}");
        if is_last {
            return;
        }
    }
}

#[test]
fn the_demo_is_served_by_two_gpus_through_the_loss_of_one() {
    serve_the_demo(&DAILY);
}

/// The query that reads a page, as `rota demo` has it, but for its SLO.
const READ_PAGE: &str = r#"
[[query]]
name = "read-page"
slo_ms = 600000
stage = [
  { name = "find", model = "text-detection" },
  { name = "turn", model = "text-orientation", after = "find" },
  { name = "read", model = "text-recognition", after = "turn" },
]
"#;

/// A client that reads the demo's page: its parts are those that come with the models.
struct Reader {
    client: Client,
    query: OpenQuery,
    /// By stage.
    questions: [(&'static str, Vec<Question>); 3],
}

impl Reader {
    fn new(daemon: &Daemon, manifest: &Manifest) -> Reader {
        let mut client = roomy(daemon);
        let query = client.open_query("read-page").unwrap();
        let stages = [("find", "text-detection", 1), ("turn", "text-orientation", 8), ("read", "text-recognition", 4)];
        let questions = stages.map(|(stage, model, calls)| {
            let questions = Question::of_model(manifest, manifest.model(model).unwrap());
            (stage, questions.into_iter().take(calls).collect())
        });
        Reader { client, query, questions }
    }

    /// Reads the page in one run, each stage's calls in flight at once; `in_flight` is called while the second stage's are. A call that is
    /// lost with its GPU is made again, in the same run. Every answer is right; how many calls were lost.
    fn read(&mut self, mut in_flight: impl FnMut()) -> usize {
        let Reader { client, query, questions } = self;
        let run = client.begin(query).unwrap();
        let mut lost = 0;
        for (stage, questions) in questions {
            let session = &query.stages().iter().find(|known| known.name == *stage).unwrap().session;
            let mut left: Vec<&Question> = questions.iter().collect();
            while !left.is_empty() {
                let mut call = |question: &Question| {
                    let mut request = client.request_in(run, stage).unwrap();
                    question.fill(&mut request, session);
                    client.submit(request).unwrap()
                };
                let calls: Vec<(Ticket, &Question)> = left.iter().map(|question| (call(question), *question)).collect();
                if *stage == "turn" {
                    in_flight();
                }
                let mut is_lost = |(ticket, question): &(Ticket, &Question)| {
                    let answer = client.wait_for(*ticket, PATIENCE).unwrap().expect("every call is answered");
                    !question.is_answered(&answer)
                };
                left = calls.into_iter().filter(|call| is_lost(call)).map(|(_, question)| question).collect();
                lost += left.len();
            }
        }
        client.finish(run).unwrap();
        lost
    }
}

#[test]
fn a_page_is_read_by_a_query_while_a_gpu_is_lost_in_the_middle_of_a_run() {
    let Some(manifest) = published() else { return };
    let folder = Folder::new("page-gpus");
    add_models(&folder, &manifest);
    folder.write("gpu.toml", profiles(&MODELS, &[]));
    let daemon = serve(&folder, 2, READ_PAGE);
    let mut reader = Reader::new(&daemon, &manifest);
    assert_eq!(reader.read(|| ()), 0, "{}", daemon.log());
    let mut runs = 1;
    let mut lost = 0;
    until(&daemon, "the loss is noticed", is_noticed, || {
        lost += reader.read(|| drop(folder.write("faults", "lost 1\n")));
        runs += 1;
    });
    assert!(lost > 0, "it is noticed by the calls that were lost\n{}", daemon.log());
    assert_eq!(reader.read(|| ()), 0, "the other goes on\n{}", daemon.log());
    regain(&folder, &daemon, || {
        runs += 1;
        assert_eq!(reader.read(|| ()), 0, "{}", daemon.log());
    });
    // A call that was made again counts once, and its run is as good as any.
    let status = daemon.status();
    let page = &status["queries"][0];
    assert_eq!((&page["ok"], &page["failed"], &page["runs"]), (&Value::from(runs + 1), &0.into(), &0.into()), "{page}");
    assert!(daemon.stop().success());
}

/// `rota demo ARGUMENTS` on two GPUs, with the models of this folder.
fn demo_on_gpus(models: &Path, arguments: &[&str]) -> Output {
    let library = driver_library();
    let mut command = rota();
    command.args(["demo", "--device", "cuda", "--models"]).arg(models).args(arguments);
    command.env(driver::LIBRARY_VARIABLE, library).env("ROTA_STANDIN_GPUS", "2").output().unwrap()
}

#[test]
fn a_user_shows_the_small_models_on_gpus_by_one_flag() {
    let folder = Folder::new("demo-tiny");
    std::os::unix::fs::symlink(models().canonicalize().unwrap().join("tiny"), folder.path().join("tiny")).unwrap();
    // It ends with success only when every answer is the one that is known.
    let run = demo_on_gpus(folder.path(), &["--answers-only"]);
    assert!(run.status.success(), "{}\n{}", stdout(&run), stderr(&run));
    let text = stdout(&run);
    assert!(text.contains("serves on cuda0: GPU 0, Stand-in GPU, fp32; cuda1: GPU 1, Stand-in GPU, fp32"), "{text}");
    assert_eq!(text.matches("40 of 40 answers as expected").count(), 3, "{text}");
    let run = demo_on_gpus(folder.path(), &["--engine", "rten"]);
    assert!(stderr(&run).contains("--engine is for cores, not for GPUs"), "{}", stderr(&run));
}

/// Takes minutes: `make test-full`. It measures, as it does for a user who starts it the first time.
#[test]
#[ignore = "measures real models on GPUs that are none"]
fn a_user_sees_the_whole_demo_and_a_page_read_on_gpus() {
    if published().is_none() {
        return;
    }
    let run = demo_on_gpus(&models(), &["--answers-only"]);
    let text = stdout(&run);
    assert!(run.status.success(), "{text}\n{}", stderr(&run));
    for line in ["→ tripod", "23 of 23 answers as expected", "Region-based segmentation", "7 pieces of text"] {
        assert!(text.contains(line), "{line}\n{text}");
    }
}

/// Takes minutes: `make test-full`.
#[test]
#[ignore = "all of the demo on GPUs that are none"]
fn the_whole_demo_is_served_by_eight_gpus_through_the_loss_of_one() {
    serve_the_demo(&WHOLE);
}
