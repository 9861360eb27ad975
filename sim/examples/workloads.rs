//! Writes the standard workloads: `cargo run -p rota-sim --example workloads -- [FOLDER] [TITANX_PROFILES.json]`.
//!
//! Without arguments the synthetic ones go to `sim/workloads`. Those on measured profiles are made only where the file of
//! measurements is given: {model: {"forward": [[batch, mean in µs, deviation, bytes], …]}}.

use rota_sim::standard::synthetic;
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
    let mut query = format!(
        "# Traffic as a query: what detection finds goes on to the networks for cars and faces, 400 ms for all.\n\
         {attribution}\nseconds = 300\n{device}"
    );
    query += &format!("{yolo}{vgg16}{face}\n[[query]]\nname = \"traffic\"\nslo_ms = 400\nrate = 120\n");
    query += "stage = [\n  { name = \"detect\", model = \"yolo9000\" },\n";
    query += "  { name = \"car\", model = \"vgg16\", after = \"detect\", gamma = 3.3, fan_out = \"poisson\" },\n";
    query +=
        "  { name = \"face\", model = \"vgg_face\", after = \"detect\", gamma = 1.25, fan_out = \"poisson\" },\n]\n";
    Ok(vec![("traffic", traffic), ("titanx", titanx), ("query-traffic", query)])
}
