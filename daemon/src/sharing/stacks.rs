//! Members' own parts that are the same operators with other weights: made into one part that can run instead of them.

use super::build::{Folder, Part};
use rota_device::parts::{Columns, Feed, Joined, StackSpec, Times};
use rota_device::{CompileOptions, Engine, EngineKind, HostTensor};
use rota_graph::{Bytes, Graph, Limits, StackOutput, alike, stack};
use rota_sched::Profile;
use std::path::PathBuf;
use std::time::Duration;

/// A stack as a file.
pub(super) struct StackPart {
    file: PathBuf,
    /// By place in the stack: which member of the group.
    pub members: Vec<usize>,
    feeds: Vec<Feed>,
    outputs: Vec<Columns>,
    pub weight_bytes: u64,
}

/// A stack that a device has taken in.
pub(super) struct InUse {
    pub members: Vec<usize>,
    /// Of the stack alone, with all its members asked about the same items.
    pub time: Profile,
}

/// Suffixes that go on from the same, by member.
struct Class {
    feeds: Vec<Feed>,
    suffixes: Vec<(usize, Graph)>,
}

/// Past this one run saves nothing, and the weights of a stack are held beside its members'. On a core a head's time is then its weights'
/// way from memory. On a GPU a head alone has too few tiles to draw all of the memory's bandwidth until it has several times as much.
pub(super) fn weight_bytes_max(kind: EngineKind) -> u64 {
    match kind {
        EngineKind::Cuda => 128 << 20,
        EngineKind::OnnxRuntime | EngineKind::Rten => 8 << 20,
    }
}

/// Stacks of members' own parts of at most `bytes_max` of weights, by member: the part and, where it is small enough to be a head, its
/// model. Parts are alike only where they go on from the same.
pub(super) fn find(own: &[(&Part, Option<Bytes>)], bytes_max: u64, folder: &Folder) -> Result<Vec<StackPart>, String> {
    let mut classes: Vec<Class> = Vec::new();
    for (member, (part, model)) in own.iter().enumerate() {
        let Some(graph) = model.as_ref().and_then(|model| Graph::read(model.clone(), &Limits::default()).ok()) else {
            continue;
        };
        match classes.iter_mut().find(|class| class.feeds == part.feeds) {
            Some(class) => class.suffixes.push((member, graph)),
            None => classes.push(Class { feeds: part.feeds.clone(), suffixes: vec![(member, graph)] }),
        }
    }
    let mut stacks = Vec::new();
    for Class { feeds, suffixes } in classes {
        let all: Vec<&Graph> = suffixes.iter().map(|(_, graph)| graph).collect();
        for set in alike(&all) {
            let some: Vec<&Graph> = set.iter().map(|&at| all[at]).collect();
            let members: Vec<usize> = set.iter().map(|&at| suffixes[at].0).collect();
            let made = match stack(&some) {
                Ok(made) if made.weight_bytes <= bytes_max => made,
                Ok(made) => {
                    tracing::debug!(?members, bytes = made.weight_bytes, "too large to run as one");
                    continue;
                }
                Err(why) => {
                    tracing::debug!(?members, %why, "can't run as one");
                    continue;
                }
            };
            let file = folder.write(&format!("stack{}.onnx", stacks.len()), &made.model)?;
            let outputs = made.outputs.iter().map(columns).collect();
            let weight_bytes = made.weight_bytes;
            stacks.push(StackPart { file, members, feeds: feeds.clone(), outputs, weight_bytes });
        }
    }
    Ok(stacks)
}

fn columns(output: &StackOutput) -> Columns {
    let size = |size: u64| usize::try_from(size).unwrap_or(usize::MAX);
    Columns { stride: size(output.stride), widths: output.widths.iter().copied().map(size).collect() }
}

impl StackPart {
    /// Loads it into `joined`, where members' own parts follow `branches` shared ones, and says what it takes; `None` when it is not
    /// faster than its members one by one, or can't be had. That is no reason not to serve the group.
    pub fn load(
        &self,
        joined: &mut Joined,
        branches: usize,
        (engine, options): (&dyn Engine, &CompileOptions),
        inputs: &[HostTensor],
        tolerance: f64,
    ) -> Option<InUse> {
        let members = || self.members.iter().map(|member| branches + member).collect();
        let options = CompileOptions { stack_members: self.members.len() as u32, ..options.clone() };
        let times = engine.load(&self.file, &options).map_err(|error| error.to_string()).and_then(|loaded| {
            let (feeds, outputs) = (self.feeds.clone(), self.outputs.clone());
            let spec = StackSpec { loaded, feeds, members: members(), outputs };
            joined.stack(spec, inputs, tolerance).map_err(|error| error.to_string())
        });
        match times {
            Ok(times) => {
                let is_worth = times.is_worth();
                tracing::info!(members = self.members.len(), is_worth, times = %text(&times), "heads as one");
                let points: Vec<(u32, Duration)> = times.points.iter().map(|at| (at.items, at.stacked)).collect();
                let time = Profile::new(&points).ok().filter(|_| is_worth)?;
                Some(InUse { members: self.members.clone(), time })
            }
            Err(why) => {
                tracing::warn!(%why, "heads run one by one");
                None
            }
        }
    }
}

/// "1: 12 us, one by one 30 us; 8: …".
fn text(times: &Times) -> String {
    let point = |at: &rota_device::parts::Time| {
        format!("{}: {} us, one by one {} us", at.items, at.stacked.as_micros(), at.one_by_one.as_micros())
    };
    times.points.iter().map(point).collect::<Vec<_>>().join("; ")
}
