use super::*;

const WHOLE: &str = r#"
arrivals = "gamma:2"
seconds = 30
[[profile]]
model = "a"
batch_ms = { 1 = 20.0, 4 = 50, 8 = 75.0, 16 = 100.0 }
memory_mb = 500
load_ms = 80.5
[[profile]]
model = "b"
batch_ms = { 1 = 5, 2 = 4 }
[[session]]
model = "b"
slo_ms = 50
rate = 3
[[session]]
model = "a"
slo_ms = 200
rate = 64.5
weight = 2
arrivals = "constant"
[[device]]
count = 3
memory_mb = 12000
"#;

fn unreadable(path: &str) -> Result<String, String> {
    Err(format!("no file {path}"))
}

fn parse(text: &str) -> Result<Workload, WorkloadError> {
    Workload::parse(text, &unreadable)
}

#[test]
fn a_whole_workload_is_read() {
    let workload = parse(WHOLE).expect("a workload");
    assert_eq!(workload.models, ["a", "b"]);
    assert_eq!((workload.arrivals, workload.seconds), (Some(Pattern::Gamma { cv: 2.0 }), Some(30.0)));
    let session = &workload.sessions[1];
    assert_eq!((session.model, session.slo, session.rate), (0, Duration::from_millis(200), 64.5));
    assert_eq!((session.weight, session.arrivals), (2.0, Some(Pattern::Constant)));
    assert_eq!((workload.sessions[0].weight, workload.sessions[0].arrivals), (1.0, None));
    let kind = &workload.kinds[0];
    assert_eq!((kind.count, kind.memory_bytes), (3, Some(12_000_000_000)));
    let cost = &kind.costs[&0];
    assert_eq!((cost.memory_bytes, cost.load_time), (500_000_000, Duration::from_micros(80_500)));
    assert_eq!(cost.profile.latency(2), Some(Duration::from_millis(30)));
    assert_eq!(workload.warnings.len(), 1);
    assert!(workload.warnings[0].contains("falls from batch 1 to 2"), "{}", workload.warnings[0]);
    assert_eq!(workload.profile(0, 1).expect("b has one").latency(2), Some(Duration::from_millis(5)));
}

#[test]
fn demand_has_the_fleet_of_the_file_or_none() {
    let mut workload = parse(WHOLE).expect("a workload");
    let demand = workload.demand(ArrivalProcess::Even);
    assert_eq!(demand.fleet, Fleet::Fixed(vec![0, 0, 0]));
    assert_eq!((demand.sessions[0].model, demand.sessions[0].rate), (ModelId(1), 3.0));
    workload.set_devices(1).expect("one kind");
    assert_eq!(workload.demand(ArrivalProcess::Even).fleet, Fleet::Fixed(vec![0]));
    workload.set_devices(0).expect("one kind");
    assert_eq!(workload.demand(ArrivalProcess::Even).fleet, Fleet::Unlimited(0));
    assert_eq!(workload.scaled(2.0).sessions[1].rate, 129.0);
}

#[test]
fn kinds_have_their_own_profiles_and_memory() {
    let text = r#"
        [[device]]
        kind = "small"
        count = 2
        memory_mb = 100
        [[device]]
        kind = "large"
        [[device]]
        kind = "large"
        [[profile]]
        model = "a"
        batch_ms = { 1 = 2.0 }
        kind = "large"
        [[profile]]
        model = "a"
        batch_ms = { 1 = 3.0 }
        kind = "small"
        [[session]]
        model = "a"
        slo_ms = 10
        rate = 1
    "#;
    let mut workload = parse(text).expect("a workload");
    let kinds: Vec<_> = workload.kinds.iter().map(|kind| (&kind.name[..], kind.count, kind.memory_bytes)).collect();
    assert_eq!(kinds, [("small", 2, Some(100_000_000)), ("large", 2, None)]);
    let latency = |kind| workload.profile(kind, 0).and_then(|profile| profile.latency(1));
    assert_eq!((latency(0), latency(1)), (Some(Duration::from_millis(3)), Some(Duration::from_millis(2))));
    assert!(workload.set_devices(3).expect_err("which kind?").contains("2 kinds"));
}

#[test]
fn a_profile_may_lie_in_another_file() {
    let text = "[[profile]]\nmodel = \"a\"\nfile = \"gpu.toml\"\n[[session]]\nmodel = \"a\"\nslo_ms = 9\nrate = 1\n";
    let other =
        |text: &'static str| move |path: &str| if path == "gpu.toml" { Ok(text.into()) } else { Err("?".into()) };
    let good = other(
        "[[profile]]\nmodel = \"b\"\nbatch_ms = {1 = 7}\n[[profile]]\nmodel = \"a\"\nbatch_ms = {1 = 2}\nmemory_mb = 3",
    );
    let workload = Workload::parse(text, &good).expect("a workload");
    let cost = &workload.kinds[0].costs[&0];
    assert_eq!((cost.profile.latency(1), cost.memory_bytes), (Some(Duration::from_millis(2)), 3_000_000));
    let cases = [
        ("[[profile]]\nmodel = \"b\"\nbatch_ms = {1 = 7}", "line 3: gpu.toml: there is no profile of model 'a'"),
        ("[[profile]]\nmodel = \"a\"\nbatch_ms = {1 = nan}", "line 3: gpu.toml: line 3: batch_ms of 1 = NaN"),
        ("[[profile]]\nmodel = \"a\"\nfile = \"x\"", "has no batch_ms"),
        ("x", "line 3: gpu.toml: line 1: "),
    ];
    for (file, expected) in cases {
        let error = Workload::parse(text, &other(file)).expect_err("a mistake").to_string();
        assert!(error.contains(expected), "{error}");
    }
    assert_eq!(parse(text).expect_err("a mistake").to_string(), "line 3: gpu.toml: no file gpu.toml");
}

#[test]
fn models_without_a_profile_may_have_been_measured() {
    let measured = |name: &str| match name {
        "a" => Ok(Some(vec![(1, Duration::from_millis(2)), (4, Duration::from_millis(5))])),
        "b" => Err("it was never measured".to_owned()),
        "empty" => Ok(Some(Vec::new())),
        _ => Ok(None),
    };
    let sources = Sources { file: &unreadable, model: &measured };
    let session = |model: &str| format!("[[session]]\nmodel = \"{model}\"\nslo_ms = 9\nrate = 1\n");
    let text = session("a") + &session("a");
    let workload = Workload::parse_with(&text, sources).expect("a workload");
    assert_eq!((workload.models.len(), workload.sessions[1].line), (1, 6));
    assert_eq!(workload.profile(0, 0).and_then(|profile| profile.latency(4)), Some(Duration::from_millis(5)));
    let text = format!("[[profile]]\nmodel = \"a\"\nmemory_mb = 7\n{}", session("a"));
    let workload = Workload::parse_with(&text, sources).expect("a workload");
    assert_eq!(workload.kinds[0].costs[&0].memory_bytes, 7_000_000);
    for (model, expected) in [
        ("b", "line 2: model 'b': it was never measured"),
        ("empty", "line 2: model 'empty': a profile needs at least one"),
        ("c", "line 2: model 'c' has no [[profile]]; profiles are given for: none"),
    ] {
        let error = Workload::parse_with(&session(model), sources).expect_err(model).to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn mistakes_are_named_with_their_line_and_what_would_be_right() {
    let profile = "[[profile]]\nmodel = \"a\"\nbatch_ms = { 1 = 2.0 }\n";
    let session = |fields: &str| format!("{profile}[[session]]\nmodel = \"a\"\n{fields}\n");
    let points = |points: &str| {
        format!("[[profile]]\nmodel = \"a\"\nbatch_ms = {points}\n[[session]]\nmodel = \"a\"\nslo_ms = 9\nrate = 1\n")
    };
    let device = |fields: &str| format!("{}[[device]]\n{fields}\n", session("slo_ms = 9\nrate = 1"));
    let cases = [
        (String::new(), 1, "no [[session]]"),
        ("[[session]".into(), 1, ""),
        (session("slo_ms = 0\nrate = 1"), 6, "slo_ms = 0 should be from 0.001"),
        (session("slo_ms = nan\nrate = 1"), 6, "slo_ms = NaN should be"),
        (session("slo_ms = 50\nrate = 0"), 7, "rate = 0 should be from"),
        (session("slo_ms = 50\nrate = -1"), 7, "rate = -1 should be from"),
        (session("slo_ms = 50\nrate = 1e300"), 7, "should be from 0.000001 to 100000000"),
        (session("slo_ms = 50\nrate = inf"), 7, "rate = inf should be"),
        (session("slo_ms = 50\nrate = 1\nweight = 0"), 8, "weight = 0 should be"),
        (
            session("slo_ms = 50\nrate = 1\narrivals = \"often\""),
            8,
            "'often' is no arrival pattern; there are constant",
        ),
        (session("slo_ms = 50"), 4, "missing field `rate`"),
        (session("slo_ms = 50\nrate = 1\nrat = 2"), 8, "unknown field `rat`"),
        (session("slo_ms = \"50\"\nrate = 1"), 6, "invalid type: string"),
        (format!("{profile}[[session]]\nmodel = \"b\"\nslo_ms = 9\nrate = 1\n"), 5, "model 'b' has no [[profile]]"),
        (format!("{profile}{}", session("slo_ms = 9\nrate = 1")), 5, "model 'a' has a profile for kind 'default'"),
        (points("{}"), 3, "the profile of 'a': a profile needs at least one batch size"),
        (points("{ 0 = 1.0 }"), 3, "batch sizes start at 1"),
        (points("{ 1 = 0.0 }"), 3, "batch_ms of 1 = 0 should be"),
        (points("{ 1 = -3.0 }"), 3, "batch_ms of 1 = -3 should be"),
        (points("{ x = 1.0 }"), 3, "'x' is no batch size"),
        (points("{ 1 = 1.0, 01 = 2.0 }"), 3, "batch size 1 is given twice"),
        (points("{ 99999 = 1.0 }"), 3, "above 65536"),
        ("[[profile]]\nmodel = \"a\"\n".into(), 1, "needs batch_ms, or file, or a repository"),
        ("[[profile]]\nmodel = \"a\"\nfile = \"x\"\nbatch_ms = { 1 = 1 }".into(), 1, "needs either batch_ms or file"),
        (device("count = 0"), 9, "count = 0 should be from 1 to"),
        (device("count = -2"), 9, "count = -2 should be from 1 to"),
        (device("memory_mb = -1"), 9, "memory_mb = -1 should be"),
        (device("memory_mb = 1\n[[device]]\nmemory_mb = 2"), 11, "have another memory above"),
        (format!("arrivals = \"\"\n{}", session("slo_ms = 9\nrate = 1")), 1, "is no arrival pattern"),
        (format!("seconds = -1\n{}", session("slo_ms = 9\nrate = 1")), 1, "seconds = -1 should be"),
    ];
    for (text, line, expected) in cases {
        let error = parse(&text).expect_err(&text);
        assert!(
            error.line == line && error.text.contains(expected),
            "{error}\nshould be line {line}: {expected}\n{text}"
        );
    }
}
