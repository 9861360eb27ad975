//! `rota graph`: what models share, and where that part would be cut off.

use super::output::{self, Table};
use super::workload::write_file;
use super::{Failure, Outcome};
use rota_graph::draw::Picture;
use rota_graph::{Bytes, Cut, Graph, Group, Index, Limits, Member, Outline, ReadError, Worth, split};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Show the leading part that models share, and where it is cut off
#[derive(clap::Args)]
#[command(before_help = "Example: rota graph cats.onnx dogs.onnx birds.onnx --svg shared.svg")]
pub struct Arguments {
    /// ONNX files
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Bytes of weights from which on a part is worth sharing
    #[arg(long, value_name = "BYTES", default_value_t = Worth::default().weight_bytes)]
    min_bytes: u64,
    /// A folder for the parts, each an ONNX file
    #[arg(long, value_name = "FOLDER")]
    split: Option<PathBuf>,
    /// A file for a drawing in Graphviz's language
    #[arg(long, value_name = "FILE")]
    dot: Option<PathBuf>,
    /// A file for a drawing
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// For programs
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    models: Vec<ModelReport>,
    groups: Vec<GroupReport>,
}

#[derive(Serialize)]
struct ModelReport {
    file: PathBuf,
    nodes: usize,
    weight_bytes: u64,
    /// Of its nodes, those in shared parts; and the bytes of the weights there.
    shared_nodes: usize,
    shared_bytes: u64,
    /// Why it can share nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    finding: Option<&'static str>,
}

#[derive(Serialize)]
struct GroupReport {
    members: Vec<PathBuf>,
    nodes: usize,
    weight_bytes: u64,
    /// What crosses the cut, as the first member names it.
    cut: Vec<PortReport>,
    refused: Vec<RefusalReport>,
    groups: Vec<GroupReport>,
}

#[derive(Serialize)]
struct PortReport {
    value: String,
    tensor: String,
    batch_axis: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes_per_item: Option<u64>,
}

#[derive(Serialize)]
struct RefusalReport {
    value: String,
    why: String,
}

pub fn run(arguments: &Arguments) -> Outcome {
    let mut index = Index::new(Worth { weight_bytes: arguments.min_bytes, ..Worth::default() });
    for (number, file) in arguments.files.iter().enumerate() {
        index.add(Member(number as u32), Outline::of(&read(file)?));
    }
    let groups = index.groups();
    let picture = || Picture::of(&index, &groups, &|member| stem(&arguments.files, member));
    if let Some(path) = &arguments.dot {
        write_file(path, &picture().dot())?;
    }
    if let Some(path) = &arguments.svg {
        write_file(path, &picture().svg())?;
    }
    if let Some(folder) = &arguments.split {
        write_parts(arguments, &index, &groups, folder)?;
    }
    let report = Report::of(&arguments.files, &index, &groups);
    if arguments.json {
        output::print_json(&report)?;
    } else {
        output::print(&report.text())?;
    }
    Ok(ExitCode::SUCCESS)
}

fn read(file: &Path) -> Result<Graph, Failure> {
    let named = |what: String| Failure::from(format!("{}: {what}", file.display()));
    let bytes = std::fs::read(file).map_err(|error| named(error.to_string()))?;
    Graph::read(Bytes::from(bytes), &Limits::default()).map_err(|error: ReadError| named(error.to_string()))
}

/// The file's name, or the model's in a repository: `photo` of photo/1/model.onnx.
fn stem(files: &[PathBuf], member: Member) -> String {
    let file = &files[member.0 as usize];
    let name = |path: &Path| path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    match file.parent().and_then(Path::parent).filter(|_| file.ends_with("model.onnx")) {
        Some(model) if model.file_name().is_some() => name(model),
        _ => name(file),
    }
}

/// `shared-0.onnx`, … for the parts, and one file for what each member has of its own.
fn write_parts(arguments: &Arguments, index: &Index, groups: &[Group], folder: &Path) -> Result<(), Failure> {
    let named = |error: std::io::Error| format!("{}: {error}", folder.display());
    std::fs::create_dir_all(folder).map_err(named)?;
    let mut chains: BTreeMap<Member, Vec<(usize, &Cut)>> = BTreeMap::new();
    let mut count = 0;
    let mut waiting: Vec<&Group> = groups.iter().rev().collect();
    while let Some(group) = waiting.pop() {
        for member in &group.members {
            chains.entry(*member).or_default().push((count, &group.cut));
        }
        count += 1;
        waiting.extend(group.groups.iter().rev());
    }
    let mut written = vec![false; count];
    for (member, chain) in &chains {
        let graph = read(&arguments.files[member.0 as usize])?;
        let outline = index.outline(*member).ok_or("a member that is not in the index")?;
        let cuts: Vec<&Cut> = chain.iter().map(|(_, cut)| *cut).collect();
        let stages = split(&graph, outline, &BTreeMap::new(), &cuts)?;
        for (level, stage) in stages.iter().enumerate() {
            let name = match chain.get(level) {
                Some((part, _)) => {
                    if std::mem::replace(&mut written[*part], true) {
                        continue;
                    }
                    format!("shared-{part}.onnx")
                }
                None => format!("own-{}-{}.onnx", member.0, stem(&arguments.files, *member)),
            };
            std::fs::write(folder.join(&name), &stage.model).map_err(|error| format!("{name}: {error}"))?;
        }
    }
    Ok(())
}

impl Report {
    fn of(files: &[PathBuf], index: &Index, groups: &[Group]) -> Report {
        let model = |member: Member| {
            let outline = index.outline(member)?;
            let cuts = cuts_of(groups, member);
            let shared = outline.nodes.iter().filter(|node| cuts.iter().any(|cut| cut.nodes.contains(&node.hash)));
            Some(ModelReport {
                file: files[member.0 as usize].clone(),
                nodes: outline.nodes.len(),
                weight_bytes: outline.weight_bytes,
                shared_nodes: shared.count(),
                shared_bytes: cuts.iter().map(|cut| cut.weight_bytes).sum(),
                finding: (!outline.batches).then_some("its batch size is fixed"),
            })
        };
        Report {
            models: index.members().filter_map(model).collect(),
            groups: groups.iter().map(|group| GroupReport::of(files, index, group)).collect(),
        }
    }

    fn text(&self) -> String {
        let mut table = Table::new(&["model", "nodes", "shared", "weights KB", "shared KB"]);
        let kilobytes = |bytes: u64| format!("{:.1}", bytes as f64 / 1e3);
        for model in &self.models {
            table.row(vec![
                model.file.display().to_string(),
                model.nodes.to_string(),
                model.shared_nodes.to_string(),
                kilobytes(model.weight_bytes),
                kilobytes(model.shared_bytes),
            ]);
        }
        let mut text = table.text();
        for model in &self.models {
            if let Some(finding) = model.finding {
                let _ = writeln!(text, "{}: shares nothing: {finding}", model.file.display());
            }
        }
        if self.groups.is_empty() {
            text.push_str("no leading part is worth sharing\n");
        }
        for group in &self.groups {
            group.write(&mut text, "");
        }
        text
    }
}

/// The cuts that a member is behind, outermost first.
fn cuts_of(groups: &[Group], member: Member) -> Vec<&Cut> {
    let mut cuts = Vec::new();
    let mut inside = groups;
    while let Some(group) = inside.iter().find(|group| group.members.contains(&member)) {
        cuts.push(&group.cut);
        inside = &group.groups;
    }
    cuts
}

impl GroupReport {
    fn of(files: &[PathBuf], index: &Index, group: &Group) -> GroupReport {
        let first = group.members.first().and_then(|member| index.outline(*member));
        let port = |hash: &rota_graph::Hash| {
            let value = first?.values.iter().find(|value| value.hash == *hash)?;
            Some(PortReport {
                value: value.name.clone(),
                tensor: value.text.clone(),
                batch_axis: *value.crossing.as_ref().ok()?,
                bytes_per_item: value.item_bytes,
            })
        };
        let refusal =
            |refusal: &rota_graph::Refusal| RefusalReport { value: refusal.value.clone(), why: refusal.why.clone() };
        GroupReport {
            members: group.members.iter().map(|member| files[member.0 as usize].clone()).collect(),
            nodes: group.cut.nodes.len(),
            weight_bytes: group.cut.weight_bytes,
            cut: group.cut.ports.iter().filter_map(port).collect(),
            refused: group.cut.refused.iter().map(refusal).collect(),
            groups: group.groups.iter().map(|group| GroupReport::of(files, index, group)).collect(),
        }
    }

    fn write(&self, text: &mut String, indent: &str) {
        let members: Vec<String> = self.members.iter().map(|file| file.display().to_string()).collect();
        let bytes = self.weight_bytes as f64 / 1e3;
        let shared = console::style("shared").green();
        let _ = writeln!(text, "{indent}{shared} {} nodes, {bytes:.1} KB, by {}", self.nodes, members.join(", "));
        for port in &self.cut {
            let item = port.bytes_per_item.map_or(String::new(), |bytes| format!(", {bytes} bytes per item"));
            let _ = writeln!(
                text,
                "{indent}  cut at {}  {}, batch axis {}{item}",
                port.value, port.tensor, port.batch_axis
            );
        }
        for RefusalReport { value, why } in &self.refused {
            let _ = writeln!(text, "{indent}  {} {value} can't cross: {why}", console::style("no deeper:").yellow());
        }
        for group in &self.groups {
            group.write(text, &format!("{indent}  "));
        }
    }
}
