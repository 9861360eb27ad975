//! `rota graph`, as a user runs it.

#[allow(dead_code, reason = "not every test file uses all of it")]
mod support;

use rota_graph::examples::{self, Sketch};
use serde_json::Value;
use std::process::Output;
use support::{Folder, rota, stderr, stdout};

fn run(folder: &Folder, arguments: &[&str]) -> Output {
    rota().current_dir(folder.path()).arg("graph").args(arguments).output().unwrap()
}

fn family(folder: &Folder) {
    for (number, file) in examples::heads(3).into_iter().enumerate() {
        folder.write(&format!("m{number}.onnx"), file);
    }
}

#[test]
fn what_models_share_is_shown_and_where_it_is_cut() {
    let folder = Folder::new("graphshow");
    family(&folder);
    let output = run(&folder, &["m0.onnx", "m1.onnx", "m2.onnx", "--min-bytes", "1000"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let said = stdout(&output);
    for part in [
        "shared 4 nodes, 2.0 KB, by m0.onnx, m1.onnx, m2.onnx",
        "cut at m0/r1  f32 [batch, 16], batch axis 0, 64 bytes per item",
    ] {
        assert!(said.contains(part), "should contain {part}:\n{said}");
    }
    let output = run(&folder, &["m0.onnx", "m1.onnx"]);
    assert!(stdout(&output).contains("no leading part is worth sharing"), "{}", stdout(&output));
}

#[test]
fn why_a_cut_can_not_be_deeper_is_said() {
    let folder = Folder::new("graphrefused");
    for (file, seed) in [("a.onnx", 10), ("b.onnx", 11)] {
        let mut sketch = Sketch::new("mixing");
        let x = sketch.input("x", &[-1, 16], "n");
        let w = sketch.floats("w", &[16, 16], &examples::noise(1, 256));
        let h = sketch.node("MatMul", &[&x, &w], "h", &[]);
        let mixed = sketch.node("Softmax", &[&h], "mixed", &[("axis", &[0])]);
        let head = sketch.floats("head", &[16, 16], &examples::noise(seed, 256));
        let y = sketch.node("MatMul", &[&mixed, &head], "y", &[]);
        sketch.output(&y, &[-1, 16], "n");
        folder.write(file, sketch.file());
    }
    let said = stdout(&run(&folder, &["a.onnx", "b.onnx", "--min-bytes", "1000"]));
    for part in ["cut at h ", "no deeper: mixed can't cross: Softmax", "computes across the batch"] {
        assert!(said.contains(part), "should contain {part}:\n{said}");
    }
}

#[test]
fn parts_and_drawings_are_written() {
    let folder = Folder::new("graphwrite");
    family(&folder);
    let arguments =
        ["m0.onnx", "m1.onnx", "--min-bytes", "1", "--split", "parts", "--dot", "g.dot", "--svg", "g.svg", "--json"];
    let output = run(&folder, &arguments);
    assert!(output.status.success(), "{}", stderr(&output));
    let report: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(report["groups"][0]["nodes"], 4);
    assert_eq!(report["models"][1]["shared_bytes"], 2048);
    let mut files: Vec<String> = std::fs::read_dir(folder.path().join("parts"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    files.sort();
    assert_eq!(files, ["own-0-m0.onnx", "own-1-m1.onnx", "shared-0.onnx"]);
    let text = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
    assert!(text("g.dot").starts_with("digraph") && text("g.svg").starts_with("<svg"));
}

#[test]
fn a_file_that_is_no_model_is_named() {
    let folder = Folder::new("graphbad");
    folder.write("bad.onnx", b"not a model");
    for (file, what) in [("bad.onnx", "not an ONNX model"), ("missing.onnx", "No such file")] {
        let output = run(&folder, &[file]);
        assert_eq!(output.status.code(), Some(2));
        let said = stderr(&output);
        assert!(said.starts_with(&format!("rota: {file}: ")) && said.contains(what), "{said}");
    }
}
