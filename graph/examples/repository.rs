//! Groups many models, and says how long it took and how much memory: `cargo run --release -p rota-graph --example repository -- 200 20`
//! for 200 models of 20 MB. They are made one at a time, as files would be read, in families of ten with one trunk each.

use rota_graph::examples::{Sketch, noise};
use rota_graph::{Bytes, Graph, Index, Limits, Member, Outline, Worth};
use std::time::{Duration, Instant};

const FAMILY: usize = 10;
/// Rows and columns of a layer's weights: 1 MB.
const WIDTH: u64 = 512;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let models: usize = arguments.next().as_deref().unwrap_or("200").parse()?;
    let megabytes: usize = arguments.next().as_deref().unwrap_or("20").parse()?;
    let mut index = Index::new(Worth::default());
    let (mut reading, mut hashing, mut largest) = (Duration::ZERO, Duration::ZERO, 0);
    let idle = peak_bytes()?;
    let mut first_peak = 0;
    for number in 0..models {
        let file = model(number, megabytes);
        largest = largest.max(file.len());
        let file = Bytes::from(file);
        let begin = Instant::now();
        let graph = Graph::read(file, &Limits::default())?;
        reading += begin.elapsed();
        let begin = Instant::now();
        index.add(Member(number as u32), Outline::of(&graph));
        hashing += begin.elapsed();
        if number == 0 {
            first_peak = peak_bytes()?;
        }
    }
    let begin = Instant::now();
    let groups = index.groups();
    let grouping = begin.elapsed();
    let peak = peak_bytes()?;
    println!("{models} models of {:.1} MB: {} groups", largest as f64 / 1e6, groups.len());
    println!("read {reading:.2?}, hashed and indexed {hashing:.2?}, grouped {grouping:.2?}");
    println!(
        "peak memory {:.1} MB ({:.1} before, {:.1} after the first model): {:.2} x the largest model, its making included",
        peak as f64 / 1e6,
        idle as f64 / 1e6,
        first_peak as f64 / 1e6,
        peak as f64 / largest as f64
    );
    Ok(())
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
fn peak_bytes() -> Result<u64, Box<dyn std::error::Error>> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).ok_or("no VmHWM in /proc/self/status")?;
    let kilobytes: u64 = line.trim().trim_end_matches(" kB").trim().parse()?;
    Ok(kilobytes * 1024)
}
