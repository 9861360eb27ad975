//! `params.h` and `src/params.rs` are the same structs.

use std::fmt::Write;
use std::process::Command;

use rota_kernels::params::{LAYOUTS, Layout};

#[test]
fn every_struct_has_the_offsets_and_the_size_that_the_header_gives_it() {
    check(&assertions(LAYOUTS)).unwrap();
}

#[test]
fn a_field_at_another_offset_is_found() {
    let wrong = [Layout { name: "SoftmaxParams", bytes: 32, fields: &[("x", 8)] }];
    assert!(check(&assertions(&wrong)).unwrap_err().contains("SoftmaxParams.x"));
}

fn assertions(layouts: &[Layout]) -> String {
    let mut source = String::from("#include \"params.h\"\n#include <cstddef>\n");
    for Layout { name, bytes, fields } in layouts {
        writeln!(source, "static_assert(sizeof({name}) == {bytes}, \"{name}\");").unwrap();
        for (field, offset) in *fields {
            writeln!(source, "static_assert(offsetof({name}, {field}) == {offset}, \"{name}.{field}\");").unwrap();
        }
    }
    source
}

fn check(source: &str) -> Result<(), String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("layout.cpp");
    std::fs::write(&path, source).unwrap();
    let output = Command::new(std::env::var("CXX").unwrap_or_else(|_| "g++".into()))
        .args(["-std=c++17", "-fsyntax-only", "-I", env!("CARGO_MANIFEST_DIR")])
        .arg(&path)
        .output()
        .unwrap();
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}
