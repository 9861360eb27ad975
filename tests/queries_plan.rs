//! Queries in `rota plan` and `rota sim`, through the real binary: what they print, and what wrong ones are answered with.

#[allow(dead_code, reason = "not every test file uses all of it")]
mod support;

use serde_json::Value;
use std::process::Output;
use support::{Folder, rota, stderr, stdout};

const HEAD: &str = r#"
[[profile]]
model = "ssd"
batch_ms = { 1 = 9.0, 8 = 30.0, 32 = 105.0 }
[[profile]]
model = "car-make"
batch_ms = { 1 = 4.0, 16 = 22.0, 64 = 80.0 }
[[profile]]
model = "face"
batch_ms = { 1 = 6.0, 16 = 40.0 }
"#;

const QUERY: &str = r#"
[[session]]
model = "car-make"
slo_ms = 100
rate = 40
[[query]]
name = "traffic"
slo_ms = 400
rate = 50
stage = [ { name = "detect", model = "ssd" }, { name = "car", model = "car-make", after = "detect", gamma = 2.5 },
          { name = "face", model = "face", after = "detect", gamma = 0.4, fan_out = "poisson" } ]
"#;

struct Workload {
    folder: Folder,
    path: String,
}

impl Workload {
    fn new(name: &str, queries: &str) -> Workload {
        let folder = Folder::new(name);
        let path = folder.write("workload.toml", format!("{HEAD}{queries}")).display().to_string();
        Workload { folder, path }
    }

    fn run(&self, verb: &str, arguments: &[&str]) -> Output {
        rota().args([verb, &self.path]).args(arguments).output().unwrap()
    }

    #[track_caller]
    fn json(&self, verb: &str, arguments: &[&str]) -> Value {
        let output = self.run(verb, &[arguments, &["--json"]].concat());
        assert!(output.status.success(), "{}\n{}", stdout(&output), stderr(&output));
        serde_json::from_str(&stdout(&output)).unwrap()
    }
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

#[test]
fn a_plan_says_what_each_stage_gets_by_every_split() {
    let workload = Workload::new("queries-plan", QUERY);
    let mut devices = Vec::new();
    for split in ["dp", "even", "by-latency", "joint"] {
        let plan = workload.json("plan", &["--split", split, "--steps", "0"]);
        let query = &plan["queries"][0];
        assert_eq!(
            (&query["name"], number(&query["slo_ms"]), number(&query["rate"])),
            (&"traffic".into(), 400.0, 50.0)
        );
        let stages = query["stages"].as_array().unwrap();
        let shares: Vec<f64> = stages.iter().map(|stage| number(&stage["share_ms"])).collect();
        assert!((shares[0] + shares[1] - 400.0).abs() < 1e-6 && shares[1] == shares[2], "{split}: {shares:?}");
        assert_eq!(split == "even", shares[0] == 200.0, "{shares:?}");
        let told: Vec<(u64, f64)> =
            stages.iter().map(|stage| (stage["session"].as_u64().unwrap(), number(&stage["rate"]))).collect();
        assert_eq!(told, [(1, 50.0), (2, 125.0), (3, 20.0)]);
        assert!(plan["unplaced"].as_array().unwrap().is_empty(), "{split}: {plan}");
        devices.push(plan["devices"].as_array().unwrap().len());
        let text = stdout(&workload.run("plan", &["--split", split, "--steps", "0"]));
        assert!(text.contains("query traffic: 400 ms, split ") && text.contains("(session 3)"), "{text}");
    }
    assert!(devices[3] <= devices[0], "{devices:?}");
    assert_eq!(workload.json("plan", &["--steps", "0"]), workload.json("plan", &["--split", "dp", "--steps", "0"]));
}

#[test]
fn a_plan_without_queries_says_nothing_of_them() {
    let workload = Workload::new("queries-none", "[[session]]\nmodel = \"face\"\nslo_ms = 100\nrate = 40\n");
    assert!(workload.json("plan", &[]).get("queries").is_none());
    assert!(workload.json("sim", &["--devices", "1", "--seconds", "2"]).get("queries").is_none());
}

#[test]
fn a_simulation_reports_whole_queries_under_every_policy() {
    let workload = Workload::new("queries-sim", QUERY);
    let arguments = ["--devices", "3", "--seconds", "10"];
    for policy in ["rota", "nexus", "symphony", "clockwork", "shepherd", "triton", "clipper", "tfserving"] {
        let run = workload.json("sim", &[&arguments[..], &["--policy", policy]].concat());
        let query = &run["queries"][0];
        assert_eq!((&query["query"], &query["name"]), (&0.into(), &"traffic".into()));
        let (offered, goodput) = (number(&query["offered"]), number(&query["goodput"]));
        assert!((40.0..60.0).contains(&offered) && goodput > 0.9 * offered, "{policy}: {query}");
        assert!((number(&query["bad_rate"]) - (1.0 - goodput / offered)).abs() < 1e-9, "{policy}: {query}");
        assert!(number(&query["p50_ms"]) > 13.0 && number(&query["p99_ms"]) < 400.0, "{policy}: {query}");
        // Whole queries and plain requests, each once.
        let plain = number(&run["sessions"][0]["offered"]);
        assert!((number(&run["total"]["offered"]) - plain - offered).abs() < 1e-9, "{policy}");
        assert!((number(&run["sessions"][2]["offered"]) / offered - 2.5).abs() < 0.2, "{policy}: cars");
    }
    let text = stdout(&workload.run("sim", &arguments));
    assert!(text.contains("traffic") && text.contains("1 detect, 2 car, 3 face"), "{text}");
    let again = stdout(&workload.run("sim", &arguments));
    assert_eq!(text, again, "the same bytes each time");
}

#[test]
fn goodput_is_held_for_every_query_and_a_trace_starts_queries_by_name() {
    let workload = Workload::new("queries-goodput", QUERY);
    let found = workload.json("sim", &["--devices", "1", "--seconds", "5", "--find-goodput"]);
    let factor = number(&found["factor"]);
    assert!(factor > 0.5 && factor < 1.3 * number(&found["bound"]), "{found}");
    let at = (0.9 * factor).to_string();
    let held = workload.json("sim", &["--devices", "1", "--seconds", "5", "--factor", &at]);
    assert!(number(&held["queries"][0]["bad_rate"]) < 0.05, "{held}");
    let trace = workload.folder.write("trace.csv", "arrival_ms,session\n0,traffic\n5,car-make\n900,1\n");
    let trace = format!("trace:{}", trace.display());
    let run = workload.json("sim", &["--devices", "1", "--seconds", "1", "--arrivals", &trace]);
    assert_eq!((number(&run["queries"][0]["offered"]), number(&run["sessions"][0]["offered"])), (2.0, 1.0));
    let file = workload.folder.write("wrong.csv", "0,detect\n");
    let output = workload.run("sim", &["--devices", "1", "--arrivals", &format!("trace:{}", file.display())]);
    assert!(stderr(&output).contains("wrong.csv: line 1: there is no such session"), "{}", stderr(&output));
}

#[test]
fn gamma_may_be_zero_and_a_thousand() {
    for (gamma, offered) in [("0", 0.0), ("1000", 1000.0)] {
        let text = QUERY.replace("gamma = 2.5", &format!("gamma = {gamma}")).replace("rate = 50", "rate = 1");
        let workload = Workload::new(&format!("queries-gamma-{gamma}"), &text);
        let plan = workload.json("plan", &["--steps", "0"]);
        assert_eq!(number(&plan["queries"][0]["stages"][1]["rate"]), offered);
        let run = workload.json("sim", &["--devices", "4", "--seconds", "5", "--arrivals", "constant"]);
        assert_eq!(number(&run["sessions"][2]["offered"]), offered);
        assert_eq!(number(&run["queries"][0]["bad_rate"]), 0.0, "{run}");
    }
}

#[test]
fn an_slo_that_nothing_can_keep_is_said_and_not_placed() {
    let workload = Workload::new("queries-short", &QUERY.replace("slo_ms = 400", "slo_ms = 10"));
    let plan = workload.json("plan", &["--steps", "0"]);
    let unplaced = plan["unplaced"].as_array().unwrap();
    assert!(!unplaced.is_empty() && unplaced.iter().all(|its| its["why"] == "slo_too_short"), "{plan}");
    let output = workload.run("sim", &["--devices", "1", "--seconds", "1"]);
    let said = stderr(&output);
    assert!(said.contains("warning: ") && said.contains("the SLO of query 'traffic' is shorter than"), "{said}");
    let goodput = workload.json("sim", &["--devices", "1", "--seconds", "1", "--find-goodput"]);
    assert_eq!(number(&goodput["factor"]), 0.0);
}

/// A query with these stages.
fn query(stages: &str) -> String {
    format!("[[query]]\nname = \"q\"\nslo_ms = 100\nrate = 5\nstage = [\n{stages}\n]\n")
}

#[test]
fn wrong_queries_are_one_line_with_file_and_place() {
    let a = "{ name = \"a\", model = \"ssd\" },";
    let stage = |rest: &str| query(&format!("{a}\n{{ name = \"b\", model = \"face\", {rest} }},"));
    let both = |first: &str, second: &str| {
        query(&format!(
            "{{ name = \"a\", model = \"ssd\", after = \"{first}\" }},\n{{ name = \"b\", model = \"ssd\", after = \"{second}\" }},"
        ))
    };
    let cases = [
        (stage("after = \"c\""), "line 17: there is no stage 'c'; the query has a, b"),
        (both("b", "a"), "line 16: stage 'a' is after itself"),
        (both("a", "a"), "line 16: stage 'a' is after itself"),
        (
            query(&format!("{a}\n{}", a.replace("\"a\"", "\"b\""))),
            "line 17: stages 'a' and 'b' are both after no other",
        ),
        (query(&format!("{a}\n{a}")), "line 17: the query has a stage 'a' already"),
        (stage("after = \"a\", gamma = -1"), "line 17: gamma = -1 should be from 0 to 1000"),
        (stage("after = \"a\", gamma = nan"), "line 17: gamma = NaN should be from 0 to 1000"),
        (stage("after = \"a\", gamma = 1001"), "line 17: gamma = 1001 should be from 0 to 1000"),
        (stage("after = \"a\", fan_out = \"many\""), "line 17: fan_out = 'many' should be fixed, poisson or geometric"),
        (stage("after = \"a\", gama = 1"), "line 17: unknown field `gama`"),
        (query("{ name = \"a\", model = \"ssd\", gamma = 2 },"), "line 16: gamma is how often the stage before calls"),
        (query("{ name = \"a\", model = \"x\" },"), "line 16: model 'x' has no [[profile]]"),
        (query(""), "line 12: query 'q': a query needs at least one stage"),
        (query(a).replace("rate = 5", "rate = 0"), "line 14: rate = 0 should be from"),
        (query(a).replace("slo_ms = 100", "slo_ms = -1"), "line 13: slo_ms = -1 should be from"),
        (query(a) + &query(a), "line 19: there is a query 'q' already"),
    ];
    for (index, (text, expected)) in cases.iter().enumerate() {
        let workload = Workload::new(&format!("queries-wrong-{index}"), text);
        for verb in ["plan", "sim"] {
            let output = workload.run(verb, if verb == "sim" { &["--devices", "1"] } else { &[] });
            let said = stderr(&output);
            assert_eq!(output.status.code(), Some(2), "{text}\n{said}");
            let lines: Vec<&str> = said.lines().filter(|line| line.starts_with("rota: ")).collect();
            assert!(lines.len() == 1 && lines[0].contains(&format!("workload.toml: {expected}")), "{expected}\n{said}");
        }
    }
    let deep: String = (1..6)
        .map(|index| format!("{{ name = \"s{index}\", model = \"ssd\", after = \"s{}\", gamma = 1000 }},", index - 1))
        .collect();
    let workload = Workload::new("queries-fast", &query(&format!("{{ name = \"s0\", model = \"ssd\" }},{deep}")));
    let said = stderr(&workload.run("plan", &[]));
    assert!(said.contains("line 16: stage 's3' would be called 5e9 times a second; 1e9 is the most"), "{said}");
}
