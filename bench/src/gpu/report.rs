//! One JSON object and one page of tables out of what the parts wrote.

use super::lines::{self, Daemon, Kernel, Line, Model};
use super::{Failure, Machine};
use crate::table::figure;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

/// Everything that a run had to show. What `results.json` holds.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Results {
    /// Said first, because it decides what the rest means.
    pub ran_on: String,
    pub machine: Option<Machine>,
    pub parts: Vec<Part>,
    pub kernels: Vec<Kernel>,
    pub models: Vec<Model>,
    pub daemon: Vec<Daemon>,
    pub peers: Vec<Peer>,
    pub skipped: Vec<Skipped>,
}

/// One part of the run, as `run.sh` saw it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Part {
    pub name: String,
    pub seconds: f64,
    /// 124 when its time was up.
    pub exit_status: i32,
}

/// What could not be tried, and why.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Skipped {
    pub what: String,
    pub why: String,
}

/// What somebody else takes for the same, on the same GPU.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Peer {
    /// [`Kernel::what`] with its family before it, or `<model> <batch>`.
    pub what: String,
    /// "torch 2.9.1", "ONNX Runtime 1.23".
    pub by: String,
    /// Median.
    pub us: Option<f64>,
    /// Why there is none.
    pub why: Option<String>,
}

impl Results {
    /// Reads what lies in `folder`; parts that wrote nothing are simply not there.
    pub fn read(folder: &Path) -> Result<Results, Failure> {
        let mut results = Results { parts: parts(&text(&folder.join("parts.tsv"))?)?, ..Results::default() };
        for part in ["kernels", "models", "daemon"] {
            for line in lines::read(&folder.join(format!("{part}.jsonl")))? {
                results.add(line);
            }
        }
        for line in text(&folder.join("peers.jsonl"))?.lines() {
            results.peers.push(serde_json::from_str(line)?);
        }
        results.ran_on = match &results.machine {
            Some(machine) if machine.stand_in => STAND_IN.into(),
            Some(machine) => machine.gpu.clone(),
            None => "no GPU: nothing was measured".into(),
        };
        Ok(results)
    }

    fn add(&mut self, line: Line) {
        match line {
            Line::Machine(machine) => self.machine = Some(machine),
            Line::Kernel(kernel) => self.kernels.push(kernel),
            Line::Model(model) => self.models.push(model),
            Line::Daemon(daemon) => self.daemon.push(daemon),
            Line::Skipped { what, why } => self.skipped.push(Skipped { what, why }),
            Line::End { .. } => {}
        }
    }

    /// The page.
    pub fn markdown(&self) -> String {
        let mut page = format!("# Rota on {}\n\n", self.ran_on);
        if let Some(machine) = &self.machine {
            let (major, minor) = machine.compute_capability;
            let limits = machine.limits.as_deref().unwrap_or("no data sheet known, so no shares");
            let gigabytes = machine.memory_bytes >> 30;
            _ = writeln!(page, "compute capability {major}.{minor}, {gigabytes} GiB; roofline: {limits}\n");
        }
        for (title, head, rows) in
            [self.part_rows(), self.kernel_rows(), self.model_rows(), self.daemon_rows(), self.skipped_rows()]
        {
            if !rows.is_empty() {
                _ = writeln!(page, "## {title} ({})\n\n{}", self.ran_on, table(&head, &rows));
            }
        }
        page
    }

    fn part_rows(&self) -> Rows {
        let row = |part: &Part| {
            let how = match part.exit_status {
                0 => "done".to_owned(),
                124 | 137 => "cut off: its time was up".to_owned(),
                status => format!("exit status {status}"),
            };
            vec![part.name.clone(), figure(part.seconds), how]
        };
        ("Parts".into(), vec!["part", "s", "how it ended"], self.parts.iter().map(row).collect())
    }

    /// The kernel that the catalogue takes at each size, and the fastest one where that is another.
    fn kernel_rows(&self) -> Rows {
        let mut cases: BTreeMap<(&str, &str), Vec<&Kernel>> = BTreeMap::new();
        for kernel in &self.kernels {
            cases.entry((&kernel.family, &kernel.what)).or_default().push(kernel);
        }
        let row = |((family, what), all): (&(&str, &str), &Vec<&Kernel>)| {
            let chosen = all.iter().find(|kernel| kernel.chosen).unwrap_or(&all[0]);
            let time = |kernel: &&&Kernel| kernel.warm_us.unwrap_or(f64::INFINITY);
            let fastest = all.iter().min_by(|a, b| time(a).total_cmp(&time(b))).unwrap_or(chosen);
            let other = match (fastest.warm_us, chosen.warm_us) {
                // Less than that is chance.
                (Some(fast), Some(slow)) if fast < 0.95 * slow => {
                    format!("{} of {}: {}", fastest.kernel, fastest.threads, figure(fast))
                }
                _ => String::new(),
            };
            let peer = self.peer(&format!("{family} {what}"));
            let right = all.iter().filter(|kernel| kernel.correct).count();
            vec![
                format!("{family} {what}"),
                format!("{right} of {}", all.len()),
                format!("{} of {}", chosen.kernel, chosen.threads),
                some(chosen.warm_us),
                some(chosen.cold_us),
                some(chosen.roofline_us),
                chosen.bound.clone().unwrap_or_default(),
                share(chosen.roofline_us, chosen.cold_us.or(chosen.warm_us)),
                other,
                peer.map(|peer| some(peer.us)).unwrap_or_default(),
                peer.map(|peer| ratio(chosen.warm_us, peer.us)).unwrap_or_default(),
            ]
        };
        let head = vec![
            "kernel",
            "correct",
            "chosen",
            "warm µs",
            "cold µs",
            "roofline µs",
            "bound",
            "share",
            "faster µs",
            "peer µs",
            "to peer",
        ];
        let right = self.kernels.iter().filter(|kernel| kernel.correct).count();
        let title = format!("Kernels: {right} of {} correct", self.kernels.len());
        (title, head, cases.iter().map(row).collect())
    }

    fn model_rows(&self) -> Rows {
        let row = |model: &Model| {
            let peer = self.peer(&format!("{} {}", model.model, model.batch)).filter(|_| model.precision == "fp32");
            vec![
                model.model.clone(),
                model.precision.clone(),
                model.batch.to_string(),
                if model.correct { "yes".into() } else { "NO".into() },
                model.worst.map_or("infinite".into(), |worst| format!("{worst:.1e}")),
                model.launches.to_string(),
                figure(model.copy_in_us),
                figure(model.execute_us),
                figure(model.copy_out_us),
                some(model.roofline_us),
                share(model.roofline_us, Some(model.execute_us)),
                peer.map(|peer| some(peer.us)).unwrap_or_default(),
                peer.map(|peer| ratio(Some(model.execute_us), peer.us)).unwrap_or_default(),
            ]
        };
        let head = vec![
            "model",
            "precision",
            "batch",
            "correct",
            "error",
            "kernels",
            "copy in µs",
            "execute µs",
            "copy out µs",
            "roofline µs",
            "share",
            "peer µs",
            "to peer",
        ];
        let right = self.models.iter().filter(|model| model.correct).count();
        let title = format!("Models: {right} of {} correct", self.models.len());
        (title, head, self.models.iter().map(row).collect())
    }

    fn daemon_rows(&self) -> Rows {
        let row =
            |line: &Daemon| vec![line.experiment.clone(), line.what.clone(), figure(line.value), line.unit.clone()];
        ("The daemon".into(), vec!["experiment", "what", "value", "unit"], self.daemon.iter().map(row).collect())
    }

    fn skipped_rows(&self) -> Rows {
        let peers = self.peers.iter().filter_map(|peer| {
            let why = peer.why.as_ref()?;
            Some(vec![format!("{}, by {}", peer.what, peer.by), why.clone()])
        });
        let own = self.skipped.iter().map(|skipped| vec![skipped.what.clone(), skipped.why.clone()]);
        ("Not measured".into(), vec!["what", "why"], own.chain(peers).collect())
    }

    fn peer(&self, what: &str) -> Option<&Peer> {
        self.peers.iter().find(|peer| peer.what == what && peer.us.is_some())
    }
}

/// A title, column heads, and rows of as many cells.
type Rows = (String, Vec<&'static str>, Vec<Vec<String>>);

const STAND_IN: &str = "stand-in driver, not a GPU";

fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let mut text = format!("| {} |\n|{}\n", head.join(" | "), " --- |".repeat(head.len()));
    for row in rows {
        let cells: Vec<String> = row.iter().map(|cell| cell.replace('|', "\\|").replace('\n', " ")).collect();
        _ = writeln!(text, "| {} |", cells.join(" | "));
    }
    text
}

fn some(value: Option<f64>) -> String {
    value.map(figure).unwrap_or_default()
}

fn share(least: Option<f64>, taken: Option<f64>) -> String {
    match (least, taken) {
        (Some(least), Some(taken)) if taken > 0.0 => format!("{:.0} %", least / taken * 100.0),
        _ => String::new(),
    }
}

fn ratio(ours: Option<f64>, theirs: Option<f64>) -> String {
    match (ours, theirs) {
        (Some(ours), Some(theirs)) if theirs > 0.0 => format!("{:.2}", ours / theirs),
        _ => String::new(),
    }
}

/// The lines of `parts.tsv`: name, seconds, exit status.
fn parts(text: &str) -> Result<Vec<Part>, Failure> {
    let part = |line: &str| {
        let mut fields = line.split('\t');
        let name = fields.next()?.to_owned();
        Some(Part { name, seconds: fields.next()?.parse().ok()?, exit_status: fields.next()?.parse().ok()? })
    };
    let each =
        |line| part(line).ok_or_else(|| format!("parts.tsv: '{line}' is not a name, seconds and a status").into());
    text.lines().map(each).collect()
}

/// The file's text; empty when there is no such file.
fn text(file: &Path) -> Result<String, Failure> {
    match std::fs::read_to_string(file) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        read => Ok(read.map_err(|error| format!("{}: {error}", file.display()))?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel(name: &str, chosen: bool, warm_us: f64) -> Kernel {
        Kernel {
            family: "gemm".into(),
            what: "f16 8x8x8".into(),
            kernel: name.into(),
            threads: 256,
            chosen,
            checked: 64,
            worst: Some(0.5),
            correct: true,
            bytes: 10,
            flops: 10,
            warm_us: Some(warm_us),
            cold_us: Some(8.0),
            roofline_us: Some(2.0),
            bound: Some("memory".into()),
            peer: None,
        }
    }

    #[test]
    fn a_case_shows_the_chosen_kernel_its_share_its_peer_and_a_faster_one() {
        let peer = Peer { what: "gemm f16 8x8x8".into(), by: "torch".into(), us: Some(2.5), why: None };
        let kernels = vec![kernel("slow", true, 5.0), kernel("fast", false, 3.0)];
        let results = Results { ran_on: "x".into(), kernels, peers: vec![peer], ..Results::default() };
        let page = results.markdown();
        assert!(page.contains("2 of 2 correct"), "{page}");
        let row = "| gemm f16 8x8x8 | 2 of 2 | slow of 256 | 5.000 | 8.000 | 2.000 | memory | 25 % | fast of 256: 3.000 | \
            2.500 | 2.00 |";
        assert!(page.contains(row), "{page}");
    }

    #[test]
    fn every_table_says_that_it_ran_on_no_gpu() {
        let part = Part { name: "kernels".into(), seconds: 3.0, exit_status: 124 };
        let skipped = Skipped { what: "a".into(), why: "b | c".into() };
        let kernels = vec![kernel("k", true, 1.0)];
        let results = Results {
            ran_on: STAND_IN.into(),
            parts: vec![part],
            kernels,
            skipped: vec![skipped],
            ..Default::default()
        };
        let page = results.markdown();
        assert_eq!(page.matches("## ").count(), 3);
        assert!(page.lines().filter(|line| line.starts_with('#')).all(|line| line.contains(STAND_IN)), "{page}");
        assert!(page.contains("cut off") && page.contains("b \\| c"), "{page}");
    }

    #[test]
    fn parts_are_read_and_a_broken_line_is_named() {
        let read = parts("kernels\t12\t0\nmodels\t3\t124\n").unwrap();
        assert_eq!((read.len(), read[1].exit_status), (2, 124));
        assert!(parts("kernels 12\n").unwrap_err().to_string().contains("'kernels 12'"));
    }
}
