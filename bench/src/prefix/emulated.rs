//! Specialised models on an emulated device that is as fast as a published profile says: as GPUs are, where batching pays.

use super::goodput::{self, Asker, Search};
use super::{Ask, require_group, wait_until_ready};
use crate::process::Daemon;
use crate::rounds::{Comparison, Failure, compare};
use rota_sim::workload::Workload;
use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

/// What is emulated.
#[derive(Clone, Copy, Debug)]
pub struct Emulated {
    /// Models that begin with the same part.
    pub variants: usize,
    /// Share of a model's time that it has for itself.
    pub suffix: f64,
    pub slo: Duration,
}

/// For each profile of the workload: `variants` models of its speed, together and each whole.
pub fn run(
    rota: &Path,
    workload: &Workload,
    emulated: Emulated,
    rounds: u32,
    length: Duration,
    mut progress: impl FnMut(&str),
) -> Result<Vec<Comparison>, Failure> {
    let names: Vec<String> = (0..emulated.variants).map(|variant| format!("variant{variant}")).collect();
    let mut comparisons = Vec::new();
    for (index, model) in workload.models.iter().enumerate() {
        let Some(profile) = workload.profile(0, index) else { continue };
        let one = profile.latency(1).unwrap_or_default();
        if 2 * one > emulated.slo {
            progress(&format!("{model} takes {one:?}, too long for this SLO"));
            continue;
        }
        progress(model);
        let latency = |batch| (batch, profile.latency(batch).unwrap_or_default());
        let points: Vec<(u32, Duration)> = (1..=profile.max_batch()).map(latency).collect();
        let profiles = profiles(&points, emulated.suffix, &names);
        let start = |settings: &str| -> Result<Daemon, Failure> {
            let config = format!("{settings}[[device]]\nkind = \"emulated\"\nprofiles = \"profiles.toml\"\n");
            let daemon = Daemon::start(rota, &config, &[("profiles.toml", &profiles)])?;
            wait_until_ready(&daemon)?;
            Ok(daemon)
        };
        let (whole, together) = (start("prefix = false\n")?, start("")?);
        require_group(&together, &names)?;
        let search = Search { length, guess: 1.0 / one.as_secs_f64(), seed: 0 };
        let contender = |name: &str, daemon: &Daemon| -> Result<_, Failure> {
            Ok(goodput::contender(name, Asker::new(daemon, &names, Ask::One, emulated.slo)?, search))
        };
        let mut contenders = [contender("each model whole", &whole)?, contender("together", &together)?];
        let what = format!("{model}: goodput");
        comparisons.extend(compare(&[(&what, "1/s")], rounds, &mut contenders)?);
    }
    Ok(comparisons)
}

/// Models of an emulated device on which batches take what `points` say; `suffix` of that is each model's own.
fn profiles(points: &[(u32, Duration)], suffix: f64, names: &[String]) -> String {
    let table = |share: f64| {
        let point = |&(batch, time): &(u32, Duration)| format!("{batch} = {:.6}", share * time.as_secs_f64() * 1e3);
        points.iter().map(point).collect::<Vec<String>>().join(", ")
    };
    let mut text = format!("[[prefix]]\nname = \"trunk\"\nbatch_ms = {{ {} }}\n", table(1.0 - suffix));
    for name in names {
        write!(
            text,
            "[[profile]]\nmodel = \"{name}\"\nprefix = \"trunk\"\nsuffix_ms = {{ {} }}\n\
             inputs = [{{ name = \"x\", dtype = \"f32\", dims = [\"batch\", 1] }}]\n\
             outputs = [{{ name = \"y\", dtype = \"f32\", dims = [\"batch\", 1] }}]\n",
            table(suffix)
        )
        .expect("text takes everything");
    }
    text
}
