//! The standard workloads: those that policies are compared on, and how the synthetic ones are made.

use crate::bound;
use crate::random::Random;
use crate::scenario::Scenario;
use crate::synthetic::{Linear, fill, to_toml, zipf};
use crate::workload::Workload;

/// A workload file that comes with the program.
#[derive(Clone, Copy, Debug)]
pub struct Standard {
    pub name: &'static str,
    pub text: &'static str,
}

macro_rules! standard {
    ($($name:literal),* $(,)?) => {
        &[$(Standard { name: $name, text: include_str!(concat!("../workloads/", $name, ".toml")) }),*]
    };
}

/// The standard workloads. In most, all rates as they stand take just the devices that there are by the fluid bound.
pub const STANDARD: &[Standard] = standard![
    "one-1",
    "one-8",
    "one-64",
    "one-shallow-1",
    "one-shallow-8",
    "one-light-8",
    "mixed-8",
    "mixed-8b",
    "mixed-64",
    "hundred-16",
    "many-small",
    "game",
    "traffic",
    "titanx",
    "ratios",
    "bursts",
    "step",
    "memory-20",
    "memory-100",
    "query-traffic",
    "query-game",
];

impl Standard {
    /// # Panics
    /// Never: a test reads them all.
    pub fn workload(&self) -> Workload {
        Workload::parse(self.text, &|path| Err(format!("{path} is no part of a standard workload")))
            .unwrap_or_else(|error| panic!("{}: {error}", self.name))
    }
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

/// The text of every standard workload that is made up rather than measured, by name: what `sim/workloads` holds.
pub fn synthetic() -> Vec<(&'static str, String)> {
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
        ("query-game", query_game()),
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

/// The game analysis as one query: a large network looks at a frame, and six numbers that it finds there are read by the tiny
/// network of the game that it is.
fn query_game() -> String {
    const GAMES: u32 = 20;
    let mut random = Random::new(12, 0);
    let harmonic: f64 = (1..=GAMES).map(|rank| 1.0 / f64::from(rank)).sum();
    let mut profiles = String::new();
    let mut stages = String::from("stage = [\n  { name = \"frame\", model = \"icon\" },\n");
    let mut profile = |name: &str, alpha_ms: f64, beta_ms: f64| {
        let points = (0..=6u32).map(|power| (1u32 << power, alpha_ms * f64::from(1u32 << power) + beta_ms));
        let points: Vec<String> = points.map(|(batch, ms)| format!("{batch} = {}", (ms * 1e3).round() / 1e3)).collect();
        profiles += &format!("[[profile]]\nmodel = \"{name}\"\nbatch_ms = {{ {} }}\n", points.join(", "));
    };
    profile("icon", 1.1, 5.3);
    for game in 0..GAMES {
        profile(&format!("digits{game}"), (random.between(0.03, 0.06) * 1e3f64).round() / 1e3, 0.5);
        let gamma = (6e4 / f64::from(game + 1) / harmonic).round() / 1e4;
        stages += &format!(
            "  {{ name = \"digits{game}\", model = \"digits{game}\", after = \"frame\", gamma = {gamma}, fan_out = \"poisson\" }},\n"
        );
    }
    let head = "# A game as a query: a large network looks at a frame, then six numbers in it are read by the game's own.\n\
                seconds = 50\n[[device]]\ncount = 4\n";
    let text =
        |rate: f64| format!("{head}\n{profiles}\n[[query]]\nname = \"game\"\nslo_ms = 50\nrate = {rate}\n{stages}]\n");
    let one = Workload::parse(&text(1000.0), &|_| Err(String::new())).expect("a workload of ours");
    let factor = bound::factor(&Scenario::new(&one).expect("memory does not matter"));
    text((1e3 * factor).round())
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
