//! Without nvcc there is no image, and the program says so.

use std::path::Path;
use std::{env, fs};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let out = env::var("OUT_DIR").expect("Cargo sets OUT_DIR");
    let text = "const IMAGE: Option<&'static [u8]> = None;\nconst MISSING: &str = \"built without nvcc\";\n";
    fs::write(Path::new(&out).join("image.rs"), text).expect("OUT_DIR can be written");
}
