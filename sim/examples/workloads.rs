//! Writes the standard workloads: `cargo run -p rota-sim --example workloads -- [FOLDER] [TITANX_PROFILES.json]`.
//!
//! Without arguments the synthetic ones go to `sim/workloads`. Those on measured profiles are made only where the file of
//! measurements is given: {model: {"forward": [[batch, mean in µs, deviation, bytes], …]}}.

use rota_sim::random::Random;
use rota_sim::synthetic::{Linear, fill, to_toml, zipf};
use std::path::{Path, PathBuf};

type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> Fallible<()> {
    let mut arguments = std::env::args().skip(1);
    let default = Path::new(env!("CARGO_MANIFEST_DIR")).join("workloads");
    let folder = arguments.next().map_or(default, PathBuf::from);
    for (name, text) in synthetic() {
        std::fs::write(folder.join(format!("{name}.toml")), text)?;
    }
    if let Some(file) = arguments.next() {
        for (name, text) in measured(&std::fs::read_to_string(file)?)? {
            std::fs::write(folder.join(format!("{name}.toml")), text)?;
        }
    }
    Ok(())
}

/// A workload, its rates scaled to what `devices` could do at best.
fn filled(about: &str, settings: &str, devices: usize, memory_mb: Option<u32>, mut sessions: Vec<Linear>) -> String {
    fill(&mut sessions, devices);
    to_toml(&format!("# {about}\n{settings}"), devices, memory_mb, &sessions)
}

fn one(alpha_ms: f64, beta_ms: f64, slo_ms: f64) -> Vec<Linear> {
    vec![Linear { name: "one".into(), alpha_ms, beta_ms, max_batch: 128, slo_ms, rate: 1.0, memory_mb: None }]
}

fn mixed(count: usize, seed: u64) -> Vec<Linear> {
    zipf(count, (0.05, 3.0), (1.0, 20.0), (20.0, 400.0), &mut Random::new(seed, 0))
}

fn synthetic() -> Vec<(&'static str, String)> {
    let one_about = "One model. ℓ(b) = b + 25 ms.";
    let shallow = "One model. ℓ(b) = 1.08 b + 5.2 ms: little is gained by large batches.";
    let mixed_about = "20 models, SLOs from 20 to 400 ms, rates falling as 1/rank.";
    let hundred = "100 models, SLOs from 20 to 400 ms, rates falling as 1/rank.";
    let memory = "each device holds a quarter of them.";
    let heavy = |sessions: Vec<Linear>| sessions.into_iter().map(|s| Linear { memory_mb: Some(500), ..s }).collect();
    vec![
        ("one-1", filled(one_about, "seconds = 300", 1, None, one(1.0, 25.0, 100.0))),
        ("one-8", filled(one_about, "seconds = 120", 8, None, one(1.0, 25.0, 100.0))),
        ("one-64", filled(one_about, "seconds = 50", 64, None, one(1.0, 25.0, 100.0))),
        ("one-shallow-1", filled(shallow, "seconds = 300", 1, None, one(1.08, 5.2, 100.0))),
        ("one-shallow-8", filled(shallow, "seconds = 60", 8, None, one(1.08, 5.2, 100.0))),
        ("one-light-8", filled("One model. ℓ(b) = 0.2 b + 6 ms.", "seconds = 50", 8, None, one(0.2, 6.0, 50.0))),
        ("mixed-8", filled(mixed_about, "seconds = 60", 8, None, mixed(20, 1))),
        ("mixed-8b", filled(mixed_about, "seconds = 60", 8, None, mixed(20, 2))),
        ("mixed-64", filled(mixed_about, "seconds = 20", 64, None, mixed(20, 3))),
        ("hundred-16", filled(hundred, "seconds = 60", 16, None, mixed(100, 4))),
        ("many-small", many_small()),
        ("game", game()),
        ("ratios", ratios()),
        (
            "bursts",
            filled(&format!("{mixed_about} Bursty."), "seconds = 120\narrivals = \"gamma:3\"", 8, None, mixed(20, 5)),
        ),
        ("step", step()),
        ("memory-20", filled(&format!("20 models; {memory}"), "seconds = 60", 8, Some(2500), heavy(mixed(20, 6)))),
        (
            "memory-100",
            filled(&format!("100 models; {memory}"), "seconds = 60", 16, Some(12_500), heavy(mixed(100, 7))),
        ),
    ]
}

/// 500 sessions under one request a second: hardly ever two of one session at once.
fn many_small() -> String {
    let mut random = Random::new(8, 0);
    let mut sessions = zipf(500, (0.3, 6.0), (2.0, 20.0), (50.0, 400.0), &mut random);
    sessions.iter_mut().for_each(|session| session.rate = random.between(0.1, 1.0));
    // Scaled by the devices, not by the rates: those are the point.
    sessions.iter_mut().for_each(|session| session.rate = (session.rate * 1e3).round() / 1e3);
    let about = "# 500 sessions at less than one request per second each.\nseconds = 1200";
    to_toml(about, 4, None, &sessions)
}

/// The published game analysis in its outline: many tiny specialised networks and a large one, all within 50 ms.
fn game() -> String {
    let mut random = Random::new(9, 0);
    let tiny = |index| Linear {
        name: format!("digits{index}"),
        alpha_ms: (random.between(0.03, 0.06) * 1e3f64).round() / 1e3,
        beta_ms: 0.5,
        max_batch: 64,
        slo_ms: 50.0,
        rate: 6.0 / f64::from(index + 1),
        memory_mb: None,
    };
    let mut sessions: Vec<Linear> = (0..20).map(tiny).collect();
    sessions.push(Linear {
        name: "icon".into(),
        alpha_ms: 1.1,
        beta_ms: 5.3,
        max_batch: 64,
        slo_ms: 50.0,
        rate: 2.0,
        memory_mb: None,
    });
    filled("A game: 20 tiny networks and a large one, all within 50 ms.", "seconds = 50", 4, None, sessions)
}

/// From models that gain nothing by batches to those that gain everything.
fn ratios() -> String {
    let mut random = Random::new(10, 0);
    let mut sessions = zipf(40, (0.01, 5.0), (0.2, 40.0), (50.0, 400.0), &mut random);
    sessions.iter_mut().for_each(|session| session.rate = 1.0 / session.latency_ms(8));
    filled("40 models with β/α from a hundredth to thousands, equal loads.", "seconds = 50", 8, None, sessions)
}

/// The load doubles; the rates that rivals know are those before.
fn step() -> String {
    let mut sessions = mixed(20, 11);
    fill(&mut sessions, 8);
    sessions.iter_mut().for_each(|session| session.rate = (session.rate * 5e3).round() / 1e4);
    to_toml("# 20 models; after 20 seconds twice the load.\nseconds = 60\narrivals = \"step:20:2\"", 8, None, &sessions)
}

/// On measured profiles of a TITAN X.
fn measured(text: &str) -> Fallible<Vec<(&'static str, String)>> {
    let json: serde_json::Value = serde_json::from_str(text)?;
    let attribution = "# Profiles: measured on a TITAN X (Pascal) by the authors of Nexus, from github.com/uwsampl/nexus at\n\
                       # b436191. Copyright 2018 University of Washington; BSD-style licence, see LICENSE.nexus here.\n\
                       # At most 64 items a batch.";
    let profile = |name: &str, key: &str| -> Fallible<String> {
        let forward = json[key]["forward"].as_array().ok_or("no such profile")?;
        let mut points = Vec::new();
        let mut bytes = 0.0f64;
        for row in forward {
            let (batch, micros) = (row[0].as_u64().ok_or("no batch")?, row[1].as_f64().ok_or("no latency")?);
            if batch <= 8 || (batch <= 64 && batch % 4 == 0) {
                points.push(format!("{batch} = {}", micros / 1e3));
                bytes = row[3].as_f64().ok_or("no memory")?;
            }
        }
        let memory = (bytes / 1e6).round();
        Ok(format!("\n[[profile]]\nmodel = \"{name}\"\nmemory_mb = {memory}\nbatch_ms = {{ {} }}\n", points.join(", ")))
    };
    let session = |name: &str, slo_ms: u32, rate: f64| {
        format!("[[session]]\nmodel = \"{name}\"\nslo_ms = {slo_ms}\nrate = {rate}\n")
    };
    let yolo = profile("yolo9000", "darknet:yolo9000:1:480x480")?;
    let face = profile("vgg_face", "caffe:vgg_face:1")?;
    let vgg16 = profile("vgg16", "caffe:vgg16:1")?;
    let vgg_s = profile("vgg_s", "caffe:vgg_s:1")?;
    let device = "\n[[device]]\ncount = 8\n";
    let mut traffic = format!(
        "# Traffic: detection, then faces and cars in what it found, 400 ms for both stages.\n{attribution}\nseconds = 300\n{device}"
    );
    traffic += &format!("{yolo}{}", session("yolo9000", 200, 120.0));
    traffic += &format!("{face}{}", session("vgg_face", 200, 150.0));
    traffic += &format!("{vgg16}{}", session("vgg16", 200, 400.0));
    let mut titanx =
        format!("# Four measured models, each under several SLOs.\n{attribution}\nseconds = 120\n{device}");
    titanx += &format!("{yolo}{}{}", session("yolo9000", 150, 40.0), session("yolo9000", 400, 30.0));
    titanx += &format!("{face}{}{}", session("vgg_face", 50, 150.0), session("vgg_face", 200, 100.0));
    titanx += &format!("{vgg16}{}{}", session("vgg16", 60, 120.0), session("vgg16", 300, 60.0));
    titanx += &format!(
        "{vgg_s}{}{}{}",
        session("vgg_s", 20, 300.0),
        session("vgg_s", 60, 500.0),
        session("vgg_s", 200, 200.0)
    );
    Ok(vec![("traffic", traffic), ("titanx", titanx)])
}
