//! The rules that docs/ARCHITECTURE.md gives for the workspace, held by reading every manifest and every source: which crate may
//! depend on which, where `unsafe` may stand, and that the scheduler uses neither clock, nor I/O, nor threads.

use std::fs;
use std::path::Path;

/// What each crate may use of ours. A crate that is not here has to be given its arrows first.
const ARROWS: [(&str, &[&str]); 9] = [
    ("rota-ipc", &[]),
    ("rota-graph", &[]),
    ("rota-kernels", &[]),
    ("rota-sched", &[]),
    ("rota-sim", &["rota-sched"]),
    ("rota-device", &["rota-graph", "rota-kernels"]),
    ("rota", &["rota-sched", "rota-sim", "rota-device", "rota-graph", "rota-ipc"]),
    ("rota-bench", &["rota-ipc", "rota-device", "rota-kernels", "rota-sim"]),
    ("rota-fuzz", &["rota-graph", "rota-ipc"]),
];

/// Crate roots that forbid `unsafe` for themselves.
const FORBID: [&str; 4] = ["graph/src/lib.rs", "sched/src/lib.rs", "sim/src/lib.rs", "daemon/src/lib.rs"];

/// Folders and files whose sources may hold `unsafe`. Tests and benchmarks may where they count allocations: an allocator has no other way.
const UNSAFE: [&str; 3] = ["ipc/", "device/", "kernels/src/host.rs"];
const UNSAFE_FOR_COUNTING: &str = "GlobalAlloc";

/// What `sched` may not touch, itself or anything below.
const IMPURE: [&str; 9] = [
    "std::time::Instant",
    "std::time::SystemTime",
    "std::thread",
    "std::fs",
    "std::net",
    "std::env",
    "std::io",
    "std::process",
    "std::os",
];

/// A file of the workspace: its path from the root, and its text.
type File = (String, String);

#[test]
fn the_workspace_keeps_its_rules() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut files = Vec::new();
    collect(&root, "", &mut files);
    for expected in ["daemon/src/main.rs", "sched/src/dispatcher.rs", "device/src/lib.rs", "ipc/Cargo.toml"] {
        assert!(files.iter().any(|(path, _)| path == expected), "{expected} was not read");
    }
    let found = violations(&files);
    assert!(found.is_empty(), "\n{}\n", found.join("\n"));
}

#[test]
fn each_planted_violation_is_found() {
    let manifest = |name: &str, rest: &str| format!("[package]\nname = \"{name}\"\n{rest}");
    let cases = [
        ("device/Cargo.toml", manifest("rota-device", "[dependencies]\nrota-ipc = { path = \"../ipc\" }"), "rota-ipc"),
        ("ipc/Cargo.toml", manifest("rota-ipc", "[dev-dependencies]\nrota.workspace = true"), "may not use rota,"),
        ("sched/Cargo.toml", manifest("rota-sched", "[build-dependencies]\nrota-ipc = \"1\""), "rota-ipc"),
        ("bench/Cargo.toml", manifest("rota-bench", "[target.'cfg(unix)'.dependencies]\nrota = \"1\""), "rota"),
        ("ipc/Cargo.toml", manifest("rota-ipc", "[dependencies]\nlib = { package = \"rota\" }"), "may not use rota,"),
        ("new/Cargo.toml", manifest("rota-new", ""), "rota-new is not among the arrows"),
        ("daemon/src/a.rs", "fn f() { unsafe { g() } }".to_string(), "unsafe"),
        ("tests/a.rs", "unsafe fn f() {}".to_string(), "unsafe"),
        ("daemon/src/lib.rs", "//! #![forbid(unsafe_code)]\npub mod a;".to_string(), "#![forbid(unsafe_code)]"),
        ("sched/src/a.rs", "use std::time::{Duration, Instant};".to_string(), "std::time::Instant"),
        ("sched/src/a.rs", "use std::{cmp, time::SystemTime as Clock};".to_string(), "std::time::SystemTime"),
        ("sched/src/a.rs", "fn f() { let t = std :: time::Instant::now(); }".to_string(), "std::time::Instant"),
        ("sched/src/a.rs", "use ::std::{collections::{BTreeMap, HashMap}, fs};".to_string(), "std::fs"),
        ("sched/src/a.rs", "use std::time::*;".to_string(), "std::time::*"),
        ("sched/src/a.rs", "use std::time;".to_string(), "std::time"),
        ("sched/src/a.rs", "use std::{self as s};".to_string(), "std::self"),
        ("sched/src/a.rs", "const A: char = '\"'; use std::env; const B: char = '\"';".to_string(), "std::env"),
        (
            "sched/src/a.rs",
            "/* std::fs */ fn f<'a>(x: &'a str) { std::thread::yield_now() }".to_string(),
            "std::thread",
        ),
    ];
    for (path, text, expected) in cases {
        let found = violations(&[(path.to_string(), text.clone())]);
        assert!(found.len() == 1 && found[0].contains(expected), "{path}: {text}\nfound: {found:?}");
    }
}

#[test]
fn what_only_looks_like_a_violation_is_let_pass() {
    let cases = [
        ("daemon/src/a.rs", "// unsafe\nconst A: &str = \"unsafe { \\\" }\"; const B: &str = r#\"unsafe \" \"#;"),
        ("ipc/src/a.rs", "// SAFETY: none\nunsafe fn f() {}"),
        ("tests/a.rs", "unsafe impl GlobalAlloc for A {}"),
        ("sched/src/lib.rs", "#![forbid(unsafe_code)]\nuse std::time::Duration;\nuse crate::time::Instant;"),
        (
            "sched/src/a.rs",
            "use std::{cmp::Ordering, time::Duration};\n#[cfg(test)]\nmod tests {\n    use std::fs;\n}\n",
        ),
        ("sched/src/dispatcher/tests.rs", "use std::time::Instant;"),
        ("sched/examples/a.rs", "use std::time::Instant;"),
        ("Cargo.toml", "[workspace.dependencies]\nrota-ipc = { path = \"ipc\" }"),
    ];
    for (path, text) in cases {
        assert_eq!(violations(&[(path.to_string(), text.to_string())]), Vec::<String>::new(), "{path}: {text}");
    }
}

/// Every manifest and source below `folder`, but for what is built, fetched or not ours.
fn collect(folder: &Path, from_root: &str, files: &mut Vec<File>) {
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        let path = format!("{from_root}{name}");
        if entry.file_type().unwrap().is_dir() {
            if !name.starts_with('.') && !["target", "third_party", "fetched"].contains(&name.as_str()) {
                collect(&entry.path(), &format!("{path}/"), files);
            }
        } else if name == "Cargo.toml" || name.ends_with(".rs") {
            files.push((path, fs::read_to_string(entry.path()).unwrap()));
        }
    }
}

/// What breaks the rules, in words, each with its place.
fn violations(files: &[File]) -> Vec<String> {
    let mut found = Vec::new();
    for (path, text) in files {
        if path.ends_with("Cargo.toml") {
            check_manifest(path, text, &mut found);
        } else {
            check_source(path, text, &mut found);
        }
    }
    found
}

fn check_manifest(path: &str, text: &str, found: &mut Vec<String>) {
    let manifest: toml::Table = text.parse().unwrap_or_else(|error| panic!("{path}: {error}"));
    // The root's is the workspace's own.
    let Some(name) = manifest.get("package").and_then(|package| package["name"].as_str()) else { return };
    let Some((_, allowed)) = ARROWS.iter().find(|(package, _)| *package == name) else {
        return found.push(format!("{path}: {name} is not among the arrows of tests/architecture.rs"));
    };
    let platforms = manifest.get("target").and_then(|targets| targets.as_table());
    let tables = platforms.into_iter().flat_map(|targets| targets.values().filter_map(|target| target.as_table()));
    for table in [&manifest].into_iter().chain(tables) {
        for kind in ["dependencies", "dev-dependencies", "build-dependencies"] {
            let Some(dependencies) = table.get(kind).and_then(|value| value.as_table()) else { continue };
            for (key, value) in dependencies {
                let used = value.get("package").and_then(|package| package.as_str()).unwrap_or(key);
                if (used == "rota" || used.starts_with("rota-")) && !allowed.contains(&used) {
                    found.push(format!("{path}: {name} may not use {used}, only {allowed:?}"));
                }
            }
        }
    }
}

fn check_source(path: &str, text: &str, found: &mut Vec<String>) {
    let tokens = tokens(text);
    let has = |word: &str| tokens.iter().any(|token| token == word);
    let counts = !path.contains("/src/") && has(UNSAFE_FOR_COUNTING);
    if has("unsafe") && !counts && !UNSAFE.iter().any(|folder| path.starts_with(folder)) {
        found.push(format!("{path}: unsafe may stand only in {UNSAFE:?}, and in tests that count allocations"));
    }
    let forbids = ["#", "!", "[", "forbid", "(", "unsafe_code", ")", "]"];
    if FORBID.contains(&path) && !tokens.windows(forbids.len()).any(|window| window == forbids) {
        found.push(format!("{path}: #![forbid(unsafe_code)] is missing"));
    }
    if path.starts_with("sched/src/") && !path.ends_with("/tests.rs") {
        let tests = ["#", "[", "cfg", "(", "test", ")", "]", "mod", "tests", "{"];
        let end = tokens.windows(tests.len()).position(|window| window == tests).unwrap_or(tokens.len());
        for used in std_paths(&tokens[..end]) {
            let below = |impure: &str| used == impure || used.starts_with(&format!("{impure}::"));
            // Whole modules, by any name: what is then used of them could not be seen.
            let whole =
                ["std", "std::self", "std::*", "std::time", "std::time::self", "std::time::*"].contains(&&*used);
            if whole || IMPURE.iter().any(|impure| below(impure)) {
                found.push(format!("{path}: {used}: sched takes time, and whatever it needs, from its caller"));
            }
        }
    }
}

/// All paths into the standard library, those of grouped imports written out.
fn std_paths(tokens: &[String]) -> Vec<String> {
    let mut paths = Vec::new();
    for start in 0..tokens.len() {
        if tokens[start] == "std" {
            expand(tokens, start, "", &mut paths);
        }
    }
    paths
}

/// Reads one path, or tree of paths, at `at`; returns where it ends.
fn expand(tokens: &[String], mut at: usize, prefix: &str, paths: &mut Vec<String>) -> usize {
    let mut path = prefix.to_string();
    while let Some(token) = tokens.get(at) {
        if token == "{" {
            at += 1;
            while tokens.get(at).is_some_and(|token| token != "}") {
                at = match tokens[at].as_str() {
                    "," => at + 1,
                    "as" => at + 2,
                    _ => expand(tokens, at, &format!("{path}::"), paths),
                };
            }
            return at + 1;
        }
        path.push_str(token);
        at += 1;
        if tokens.get(at).is_none_or(|token| token != "::") {
            break;
        }
        if tokens.get(at + 1).is_some_and(|token| token != "{") {
            path.push_str("::");
        }
        at += 1;
    }
    paths.push(path);
    at
}

/// Words, `::` and single signs; comments, and what strings and characters hold, are left out.
fn tokens(text: &str) -> Vec<String> {
    let mut tokens = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        let skipped = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            block_comment(rest)
        } else if let Some(bytes) = raw_string(rest) {
            bytes
        } else if first == '"' {
            quoted(rest, '"').unwrap_or(rest.len())
        } else if first == '\'' {
            // A lifetime's quotation mark has no partner close by.
            let escaped = rest[1..].starts_with('\\');
            let closed = rest.char_indices().nth(2).is_some_and(|(_, c)| c == '\'');
            if escaped || closed { quoted(rest, '\'').unwrap_or(1) } else { 1 }
        } else if first.is_whitespace() {
            first.len_utf8()
        } else {
            let bytes = match first {
                ':' if rest.starts_with("::") => 2,
                _ if is_word(first) => rest.find(|c| !is_word(c)).unwrap_or(rest.len()),
                _ => first.len_utf8(),
            };
            tokens.push(rest[..bytes].to_string());
            bytes
        };
        rest = &rest[skipped..];
    }
    tokens
}

/// Bytes of the block comment that `text` begins with; they nest.
fn block_comment(text: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < text.len() {
        let bytes = &text.as_bytes()[at..];
        if bytes.starts_with(b"/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if bytes.starts_with(b"*/") {
            (depth, at) = (depth - 1, at + 2);
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    text.len()
}

/// Bytes of the raw string that `text` begins with.
fn raw_string(text: &str) -> Option<usize> {
    let start = ["r", "br", "cr"].into_iter().find_map(|prefix| text.strip_prefix(prefix))?;
    let opened = start.trim_start_matches('#');
    let hashes = start.len() - opened.len();
    let body = opened.strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    let closed = body.find(&end).map_or(body.len(), |at| at + end.len());
    Some(text.len() - body.len() + closed)
}

/// Bytes of the literal that `text` begins with, both quotation marks included.
fn quoted(text: &str, mark: char) -> Option<usize> {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == mark => return Some(at + c.len_utf8()),
            _ => {}
        }
    }
    None
}
