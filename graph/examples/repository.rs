//! Groups many models, and says how long it took and how much memory: `cargo run --release -p rota-graph --example repository -- 200 20`
//! for 200 models of 20 MB, in families of ten with one trunk each. A process of its own makes each file, so that what is
//! measured is what a daemon would do: read one, take its outline, let its bytes go.

use rota_graph::examples::{Sketch, noise};
use rota_graph::{Bytes, Graph, Index, Limits, Member, Outline, Worth};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

const FAMILY: usize = 10;
/// Rows and columns of a layer's weights: 1 MB.
const WIDTH: u64 = 512;

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize, default: usize| arguments.get(at).map_or(Ok(default), |text| text.parse());
    match &arguments[..] {
        [make, file, ..] if make == "make" => Ok(std::fs::write(file, model(number(2, 0)?, number(3, 20)?))?),
        _ => group(number(0, 200)?, number(1, 20)?),
    }
}

fn group(models: usize, megabytes: usize) -> Result<(), Failure> {
    let file = std::env::temp_dir().join(format!("rota-repository-{}.onnx", std::process::id()));
    let mut index = Index::new(Worth::default());
    let (mut reading, mut parsing, mut hashing, mut largest) = (Duration::ZERO, Duration::ZERO, Duration::ZERO, 0);
    let idle = peak_bytes()?;
    for number in 0..models {
        make(&file, number, megabytes)?;
        let begin = Instant::now();
        let bytes = std::fs::read(&file)?;
        largest = largest.max(bytes.len());
        reading += begin.elapsed();
        let begin = Instant::now();
        let graph = Graph::read(Bytes::from(bytes), &Limits::default())?;
        parsing += begin.elapsed();
        let begin = Instant::now();
        index.add(Member(number as u32), Outline::of(&graph));
        hashing += begin.elapsed();
    }
    std::fs::remove_file(&file)?;
    let begin = Instant::now();
    let groups = index.groups();
    let grouping = begin.elapsed();
    let peak = peak_bytes()?;
    println!("{models} models of {:.1} MB: {} groups", largest as f64 / 1e6, groups.len());
    println!(
        "files read {reading:.2?}, parsed {parsing:.2?}, hashed and indexed {hashing:.2?}, grouped {grouping:.2?}"
    );
    let times = peak as f64 / largest as f64;
    println!(
        "peak memory {:.1} MB ({:.1} before): {times:.2} x the largest model",
        peak as f64 / 1e6,
        idle as f64 / 1e6
    );
    Ok(())
}

fn make(file: &Path, number: usize, megabytes: usize) -> Result<(), Failure> {
    let mut command = Command::new(std::env::current_exe()?);
    let status = command.arg("make").arg(file).args([number.to_string(), megabytes.to_string()]).status()?;
    if status.success() { Ok(()) } else { Err("making a model failed".into()) }
}

/// One of a family: the same layers but for the last two.
fn model(number: usize, megabytes: usize) -> Vec<u8> {
    let name = |what: &str| format!("{number}/{what}");
    let mut sketch = Sketch::new(&name("model"));
    let mut x = sketch.input(&name("x"), &[-1, WIDTH as i64], "batch");
    for layer in 0..megabytes {
        let shared = layer + 2 < megabytes;
        let seed = if shared { number / FAMILY * 1000 + layer } else { 1_000_000 + number * 1000 + layer };
        let w =
            sketch.floats(&name(&format!("w{layer}")), &[WIDTH, WIDTH], &noise(seed as u64, (WIDTH * WIDTH) as usize));
        let product = sketch.node("MatMul", &[&x, &w], &name(&format!("p{layer}")), &[]);
        x = sketch.node("Relu", &[&product], &name(&format!("r{layer}")), &[]);
    }
    sketch.output(&x, &[-1, WIDTH as i64], "batch");
    sketch.into_file()
}

/// The most memory that this process ever held.
fn peak_bytes() -> Result<u64, Failure> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).ok_or("no VmHWM in /proc/self/status")?;
    let kilobytes: u64 = line.trim().trim_end_matches(" kB").trim().parse()?;
    Ok(kilobytes * 1024)
}
