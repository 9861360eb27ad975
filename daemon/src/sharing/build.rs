//! From a tree of shared parts to a network: cut, compile, measure, compare.

use super::costs::Costs;
use super::stacks::{self, InUse, StackPart};
use super::tree::Tree;
use super::{Known, PROBE_ITEMS, axes, graph, probe};
use crate::background::{self, DeviceRole, Networks, Ready};
use crate::model::{Group, Level, Member, Model};
use crate::profiles::{Key, Store};
use crate::repository;
use rota_device::parts::{self, Feed, Joined, PartSpec};
use rota_device::sample::{self, Hints};
use rota_device::{
    CompileOptions, Engine, EngineKind, HostTensor, Network, NetworkId, Outcome, Shape, Signature, TensorSpec, check,
    profile,
};
use rota_graph::{Bytes, Cut, Index, Stage, split};
use rota_sched::{ModelId, Profile};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Why a group is not served as one.
pub(super) enum BuildError {
    /// This model can't be in it; the others may.
    Alone(ModelId, String),
    Failed(String),
}

impl From<String> for BuildError {
    fn from(why: String) -> BuildError {
        BuildError::Failed(why)
    }
}

/// The network of a group on every device that serves files, and the model that stands for it.
pub(super) fn build(
    tree: &Tree,
    id: ModelId,
    known: &BTreeMap<ModelId, Known>,
    index: &Index,
    devices: &[DeviceRole],
    store: &Store,
) -> Result<Ready, BuildError> {
    let members: Vec<&Known> = tree.members.iter().map(|id| &known[id]).collect();
    let engines = devices.iter().filter_map(DeviceRole::engine).map(|(engine, ..)| engine.kind());
    let stack_bytes_max = engines.map(stacks::weight_bytes_max).max().unwrap_or(0);
    let cuts = Cuts::make(tree, &members, index, stack_bytes_max)?;
    let max_batch = members.iter().map(|member| member.model.max_batch).max().unwrap_or(1);
    let mut networks: Networks = Vec::new();
    let mut profiles = Vec::new();
    let mut shared_time = 0.0;
    let mut stacked: Vec<Vec<usize>> = Vec::new();
    for (at, device) in devices.iter().enumerate() {
        let whole = members.iter().filter(|member| member.model.profiles[at].is_some()).count();
        let Some((engine, cores, threads)) = device.engine().filter(|_| whole > 0) else {
            networks.push(None);
            profiles.push(None);
            continue;
        };
        if whole < members.len() {
            // Those that it serves would have to leave it.
            return Err(format!("{} serves {whole} of these {} models", engine.describe(), members.len()).into());
        }
        let mut options = background::compile_options(&Default::default(), cores, threads);
        options.max_batch = Some(max_batch);
        let load = |part: &Part| engine.load(&part.file, &options).map_err(|error| error.to_string());
        let specs = cuts.parts.iter().map(|part| {
            let (feeds, ports, outputs) = (part.feeds.clone(), part.ports.clone(), part.outputs.clone());
            Ok(PartSpec { loaded: load(part)?, feeds, ports, outputs })
        });
        let specs: Vec<PartSpec> = specs.collect::<Result<_, String>>()?;
        let joined = parts::join(cuts.signature.clone(), specs, max_batch);
        let mut joined = joined.map_err(|error| error.to_string())?;
        let in_use = cuts.stack(tree, &members, &mut joined, (&**engine, &options), max_batch)?;
        let mut network = joined.network();
        if networks.iter().all(Option::is_none) {
            cuts.compare(&mut *network, &members)?;
        }
        let times = match given(device, tree, &members, max_batch) {
            Some(times) => times,
            None => cuts.measure(&**engine, &options, store, &members[0].checked.hints, max_batch)?,
        };
        let times = match engine.kind() {
            EngineKind::Cuda => times.iter().map(background::stepped).collect::<Result<_, String>>()?,
            _ => times,
        };
        let all = Costs { tree, times: &times, stacks: &in_use };
        profiles.push(Some(all.profile(max_batch)?));
        shared_time = all.shared_time();
        for stack in in_use {
            if !stacked.contains(&stack.members) {
                stacked.push(stack.members);
            }
        }
        networks.push(Some(network));
    }
    let memory_bytes = networks.iter().flatten().map(|network| network.memory_bytes()).max().unwrap_or(0);
    let group = cuts.group(tree, &members, shared_time, stacked);
    let profiled = cuts.profiled(&members[0].checked.hints);
    let model = Model::of_group(id, group, (cuts.signature, memory_bytes), (profiled, profiles, true));
    Ok((Arc::new(model), networks))
}

/// ℓ(b) of the shared part and of the members' own ones, where the device's settings give it.
fn given(device: &DeviceRole, tree: &Tree, members: &[&Known], max_batch: u32) -> Option<Vec<Profile>> {
    let names: Vec<&str> = members.iter().map(|member| &member.model.name[..]).collect();
    // A file knows one shared part of a model.
    device.given().filter(|_| tree.branches.len() == 1)?.parts(&names, max_batch)
}

/// A model's networks as they were when it was loaded.
pub(super) fn whole(known: &Known, devices: &[DeviceRole]) -> Result<Networks, String> {
    let file = &known.entry.file;
    let digest = repository::digest(file).map_err(|error| format!("{}: {error}", file.display()))?;
    if digest != known.model.digest {
        return Err(format!("{}: the file was changed since it was loaded", file.display()));
    }
    let network = |device: &DeviceRole| {
        let Some((engine, cores, threads)) = device.engine() else { return Ok(None) };
        let options = background::compile_options(&known.entry.settings, cores, threads);
        let mut network = engine.compile(file, &options).map_err(|error| error.to_string())?;
        network.set_signature(known.checked.signature.clone());
        Ok(Some(network))
    };
    devices.iter().map(network).collect()
}

/// The parts of a group as files, and how they hang together.
struct Cuts {
    /// The branches of the tree, then each member's own part.
    parts: Vec<Part>,
    signature: Signature,
    /// By member, by input of the group: which input of the member it is.
    inputs: Vec<Vec<usize>>,
    /// By member: its outputs among the group's.
    outputs: Vec<Range<usize>>,
    stacks: Vec<StackPart>,
    _folder: Folder,
}

pub(super) struct Part {
    file: PathBuf,
    digest: String,
    pub feeds: Vec<Feed>,
    ports: Vec<usize>,
    outputs: Range<usize>,
    nodes: usize,
    weight_bytes: u64,
    /// What it hands on, for people.
    texts: Vec<String>,
}

impl Cuts {
    fn make(tree: &Tree, members: &[&Known], index: &Index, stack_bytes_max: u64) -> Result<Cuts, BuildError> {
        let folder = Folder::new().map_err(|error| format!("no folder for the parts: {error}"))?;
        let mut outputs = Vec::with_capacity(members.len());
        let mut end = 0;
        for member in members {
            let count = member.checked.signature.outputs.len();
            outputs.push(end..end + count);
            end += count;
        }
        let mut branches: Vec<Option<Part>> = tree.branches.iter().map(|_| None).collect();
        let (mut own, mut inputs) = (Vec::with_capacity(members.len()), Vec::with_capacity(members.len()));
        let mut heads: Vec<Option<Bytes>> = Vec::with_capacity(members.len());
        for (at, member) in members.iter().enumerate() {
            let path = tree.path(at);
            let levels: Vec<&Cut> = path.iter().map(|&branch| &tree.branches[branch].cut).collect();
            let outline =
                index.outline(rota_graph::Member(member.model.id.0)).ok_or("a model was forgotten".to_string())?;
            // One model's weights at a time.
            let graph = graph(&member.entry, &member.model)?;
            let stages = split(&graph, outline, &axes(&member.checked), &levels).map_err(|error| error.to_string())?;
            drop(graph);
            let taken = taken(&stages[0]).map_err(|why| BuildError::Alone(member.model.id, why))?;
            for (stage, level) in stages.iter().zip(0..) {
                let branch = path.get(level).copied();
                if branch.is_some_and(|branch| branches[branch].is_some()) {
                    continue;
                }
                let name = branch.map_or(format!("own{at}.onnx"), |branch| format!("shared{branch}.onnx"));
                let feeds = feeds(stage, &path, &taken).map_err(|why| BuildError::Alone(member.model.id, why))?;
                let mut part = Part::write(&folder, &name, stage, feeds)?;
                match branch {
                    Some(branch) => {
                        let members = &tree.branches[branch].members;
                        part.outputs = outputs[members.start].start..outputs[members.end - 1].end;
                        for hash in &tree.branches[branch].cut.ports {
                            let value = outline.values.iter().find(|value| value.hash == *hash);
                            let value = value.ok_or("a port is missing".to_string())?;
                            part.ports.push(value.crossing.clone().map_err(|why| why.to_string())?);
                            part.texts.push(format!("{} {}", value.name, value.text));
                        }
                        branches[branch] = Some(part);
                    }
                    None => {
                        part.outputs = outputs[at].clone();
                        heads.push((stage.weight_bytes <= stack_bytes_max / 2).then(|| stage.model.clone()));
                        own.push(part);
                    }
                }
            }
            inputs.push(taken);
        }
        let stacks = stacks::find(&own.iter().zip(heads).collect::<Vec<_>>(), stack_bytes_max, &folder)?;
        let parts = branches.into_iter().flatten().chain(own).collect();
        let first = &members[0].checked.signature;
        let signature = Signature {
            inputs: inputs[0].iter().map(|&input| first.inputs[input].clone()).collect(),
            outputs: members.iter().flat_map(|member| member.checked.signature.outputs.clone()).collect(),
        };
        Ok(Cuts { parts, signature, inputs, outputs, stacks, _folder: folder })
    }

    /// Puts the stacks beside the members' own parts, where that is faster.
    fn stack(
        &self,
        tree: &Tree,
        members: &[&Known],
        joined: &mut Joined,
        compiler: (&dyn Engine, &CompileOptions),
        max_batch: u32,
    ) -> Result<Vec<InUse>, String> {
        if self.stacks.is_empty() {
            return Ok(Vec::new());
        }
        let inputs = self.given(&members[0].checked.hints, max_batch)?;
        let load = |stack: &StackPart| {
            let tolerance = stack.members.iter().map(|&member| check::tolerance(&members[member].checked));
            let tolerance = tolerance.fold(f64::INFINITY, f64::min);
            stack.load(joined, tree.branches.len(), compiler, &inputs, tolerance)
        };
        let most = stacks::weight_bytes_max(compiler.0.kind());
        Ok(self.stacks.iter().filter(|stack| stack.weight_bytes <= most).filter_map(load).collect())
    }

    /// Generated inputs of so many items.
    fn given(&self, hints: &Hints, items: u32) -> Result<Vec<HostTensor>, String> {
        let mut numbers = sample::Numbers(0);
        let given = self.signature.inputs.iter().map(|spec| {
            let tensor = |shape| sample::tensor(spec, shape, hints, &mut numbers);
            sample::shape(spec, items, hints, 1).and_then(tensor).ok_or("an input is too large".to_string())
        });
        given.collect()
    }

    /// The shape class that is measured: the first member's.
    fn profiled(&self, hints: &Hints) -> Vec<Shape> {
        self.signature.inputs.iter().map(|spec| sample::shape(spec, 0, hints, 1).unwrap_or_default()).collect()
    }

    /// Whether the group answers as each model did whole, within what rounding explains: requests of 2 items and of 1 in one
    /// batch, which ask one model and, where that may make a stack run, all.
    fn compare(&self, network: &mut dyn Network, members: &[&Known]) -> Result<(), String> {
        let all = 0..self.signature.outputs.len();
        for (at, member) in members.iter().enumerate() {
            self.compare_one(network, members, (at, member), self.outputs[at].clone())?;
            if self.stacks.iter().any(|stack| stack.members.contains(&at)) {
                self.compare_one(network, members, (at, member), all.clone())?;
            }
        }
        Ok(())
    }

    /// Asks for the outputs `wanted`, and compares those of one member.
    fn compare_one(
        &self,
        network: &mut dyn Network,
        members: &[&Known],
        (at, member): (usize, &Known),
        wanted: Range<usize>,
    ) -> Result<(), String> {
        let label = member.model.label();
        let probe = probe(&member.checked).ok_or("its inputs are too large")?;
        let parts = [0..2, 2..PROBE_ITEMS];
        let request = |items: Range<u32>| {
            let inputs = self.inputs[at].iter().map(|&input| &probe[input]);
            let pairs = self.signature.inputs.iter().zip(inputs);
            pairs.map(|(spec, tensor)| sample::items(tensor, spec.batch_axis, items.clone())).collect()
        };
        let requests: Option<Vec<Vec<HostTensor>>> = parts.clone().into_iter().map(request).collect();
        let requests = requests.ok_or("its inputs can't be cut into items")?;
        let references = members.iter().flat_map(|member| &member.reference).enumerate();
        let room = references.map(|(index, reference)| wanted.contains(&index).then_some(reference.bytes.len()));
        let mut batch = sample::lay_out_some(NetworkId(0), &self.signature, &requests, &room.collect::<Vec<_>>())
            .map_err(|error| format!("no memory for a batch: {error}"))?;
        network.execute(&mut batch);
        for (request, items) in parts.into_iter().enumerate() {
            if batch.requests[request].outcome != Outcome::Done {
                return Err(format!("{label}: {:?}", batch.requests[request].outcome));
            }
            let found = sample::outputs(&batch, &self.signature, request);
            for (index, expected) in self.outputs[at].clone().zip(&member.reference) {
                let spec = &self.signature.outputs[index];
                let expected = sample::items(expected, spec.batch_axis, items.clone());
                let apart = match (&found[index], &expected) {
                    (Some(found), Some(expected)) => check::apart(found, expected),
                    _ => f64::INFINITY,
                };
                if apart > check::tolerance(&member.checked) {
                    let name = &spec.name;
                    return Err(format!(
                        "output '{name}' of {label} is {apart:.1e} of its range away from the whole model's"
                    ));
                }
            }
        }
        Ok(())
    }

    /// ℓ(b) of every part, as kept or as measured now.
    fn measure(
        &self,
        engine: &dyn Engine,
        options: &CompileOptions,
        store: &Store,
        hints: &Hints,
        max_batch: u32,
    ) -> Result<Vec<Profile>, String> {
        let shapes = self.profiled(hints);
        let engine_name = engine.describe();
        let key = |part: &Part| format!("part {}", part.digest);
        let keys: Vec<String> = self.parts.iter().map(key).collect();
        let key =
            |at: usize| Key { digest: &keys[at], engine: &engine_name, threads: options.threads, shapes: &shapes };
        let mut points: Vec<Option<Vec<(u32, Duration)>>> =
            (0..self.parts.len()).map(|at| store.read(&key(at), max_batch)).collect();
        if points.iter().any(Option::is_none) {
            tracing::info!(parts = self.parts.len(), max_batch, "profiling what models share");
            let given = self.given(hints, 1)?;
            let mut handed: Vec<Vec<HostTensor>> = Vec::new();
            for (at, part) in self.parts.iter().enumerate() {
                let is_branch = !part.ports.is_empty();
                if !is_branch && points[at].is_some() {
                    continue;
                }
                let mut network = engine.compile(&part.file, options).map_err(|error| error.to_string())?;
                network.set_signature(self.part_signature(part, network.signature()));
                let fed = part.feeds.iter().map(|feed| match *feed {
                    Feed::Input(input) => given[input].clone(),
                    Feed::Port { part, port } => handed[part][port].clone(),
                });
                let fed: Vec<HostTensor> = fed.collect();
                if is_branch {
                    handed.push(network.run(&fed).map_err(|error| error.to_string())?);
                }
                if points[at].is_none() {
                    let hints = sizes_of(network.signature(), &fed);
                    let measured = background::measure(&mut *network, &hints, max_batch, PART_BUDGET)?;
                    if let Err(error) = store.write(&key(at), max_batch, &measured) {
                        tracing::warn!(%error, "the profile can't be kept; it will be measured again at the next start");
                    }
                    points[at] = Some(measured);
                }
            }
        }
        points.into_iter().flatten().map(|points| Profile::new(&points).map_err(|error| error.to_string())).collect()
    }

    /// The signature of a part as a network of its own, with the axes that are known.
    fn part_signature(&self, part: &Part, declared: &Signature) -> Signature {
        let mut signature = declared.clone();
        for (spec, feed) in signature.inputs.iter_mut().zip(&part.feeds) {
            spec.batch_axis = match *feed {
                Feed::Input(input) => self.signature.inputs[input].batch_axis,
                Feed::Port { part, port } => Some(self.parts[part].ports[port]),
            };
        }
        for (at, spec) in signature.outputs.iter_mut().enumerate() {
            spec.batch_axis = match part.ports.get(at) {
                Some(&axis) => Some(axis),
                None => self.signature.outputs[part.outputs.start + at].batch_axis,
            };
        }
        signature
    }

    fn group(&self, tree: &Tree, members: &[&Known], shared_time: f64, stacked: Vec<Vec<usize>>) -> Group {
        let (branches, own) = self.parts.split_at(tree.branches.len());
        let member = |(at, member): (usize, &&Known)| Member {
            model: member.model.clone(),
            inputs: self.inputs[at].clone(),
            outputs: self.outputs[at].clone(),
            own_bytes: own[at].weight_bytes,
        };
        let level = |(branch, part): (&super::tree::Branch, &Part)| Level {
            members: branch.members.clone(),
            nodes: part.nodes,
            weight_bytes: part.weight_bytes,
            ports: part.texts.clone(),
        };
        Group {
            members: members.iter().enumerate().map(member).collect(),
            levels: tree.branches.iter().zip(branches).map(level).collect(),
            shared_time,
            stacked,
        }
    }
}

impl Part {
    fn write(folder: &Folder, name: &str, stage: &Stage, feeds: Vec<Feed>) -> Result<Part, String> {
        Ok(Part {
            file: folder.write(name, &stage.model)?,
            digest: repository::digest_of(&stage.model),
            feeds,
            ports: Vec::new(),
            outputs: 0..0,
            nodes: stage.nodes,
            weight_bytes: stage.weight_bytes,
            texts: Vec::new(),
        })
    }
}

/// By input of the shared part: which input of the model it is.
fn taken(shared: &Stage) -> Result<Vec<usize>, String> {
    let input = |feed: &rota_graph::Feed| match *feed {
        rota_graph::Feed::Input(input) => Ok(input),
        rota_graph::Feed::Port { .. } => Err("the first part goes on from another".to_string()),
    };
    shared.feeds.iter().map(input).collect()
}

/// A stage's feeds in the group's numbers.
fn feeds(stage: &Stage, path: &[usize], taken: &[usize]) -> Result<Vec<Feed>, String> {
    let feed = |feed: &rota_graph::Feed| match *feed {
        rota_graph::Feed::Port { level, port } => Ok(Feed::Port { part: path[level], port }),
        rota_graph::Feed::Input(input) => taken
            .iter()
            .position(|&taken| taken == input)
            .map(Feed::Input)
            .ok_or_else(|| format!("its input {input} is one that the shared part does not take")),
    };
    stage.feeds.iter().map(feed).collect()
}

/// The dimensions that tensors have, as hints.
fn sizes_of(signature: &Signature, tensors: &[HostTensor]) -> Hints {
    let size = |(spec, tensor): (&TensorSpec, &HostTensor)| -> Vec<(String, u32)> {
        let dims = tensor.shape.dims().iter().enumerate();
        dims.map(|(axis, &size)| (format!("{}.{axis}", spec.name), size)).collect()
    };
    Hints { sizes: signature.inputs.iter().zip(tensors).flat_map(size).collect(), ..Hints::default() }
}

/// Where parts lie until they are compiled.
pub(super) struct Folder(PathBuf);

impl Folder {
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<PathBuf, String> {
        let file = self.0.join(name);
        std::fs::write(&file, bytes).map_err(|error| format!("{}: {error}", file.display()))?;
        Ok(file)
    }

    fn new() -> std::io::Result<Folder> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("rota-parts-{}-{number}", std::process::id()));
        // Only this user's: models are nobody else's business, and nobody else may put a file there.
        std::os::unix::fs::DirBuilderExt::mode(&mut std::fs::DirBuilder::new(), 0o700).create(&path)?;
        Ok(Folder(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What can't be removed stays where temporary files are.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A group has many parts, most of them small.
const PART_BUDGET: profile::Budget =
    profile::Budget { time_per_batch: Duration::from_millis(250), runs_max: 30, longest_batch: Duration::from_secs(1) };
