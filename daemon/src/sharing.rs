//! What the served models share: finds it, cuts it, and makes of each group a network of parts that stands for its models.
//!
//! Nothing here is in anybody's way: a model is served whole from when it is loaded, and moves to its group once that has been
//! cut, compiled, compared with the models as a whole, and measured. Whatever goes wrong leaves models as they are served.

mod build;
mod costs;
mod declared;
mod stacks;
mod tree;

use crate::background::{DeviceRole, Networks, Ready};
use crate::model::Model;
use crate::profiles::Store;
use crate::repository::{self, Entry};
use build::BuildError;
use declared::Declared;
use rota_device::check::Checked;
use rota_device::emulated::EmulatedProfile;
use rota_device::sample::{self, Numbers};
use rota_device::{HostTensor, Network};
use rota_graph::{Bytes, Graph, Index, Limits, Member, Outline, Worth};
use rota_sched::ModelId;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tree::Tree;

/// The models that could share, and the groups that are in service.
///
/// Invariant: a model in `index` is in `known` under the same number. One that can't be in the group that it would have is in
/// `known` only.
pub struct Sharing {
    index: Index,
    known: BTreeMap<ModelId, Known>,
    /// Emulated models whose profiles say what they share.
    declared: BTreeMap<ModelId, Declared>,
    groups: Vec<InService>,
}

/// A model that could share: what it takes to cut it and to compare it with what was cut.
pub(crate) struct Known {
    pub model: Arc<Model>,
    pub entry: Entry,
    pub checked: Checked,
    /// What the whole model answered to [`probe`].
    pub reference: Vec<HostTensor>,
}

struct InService {
    id: ModelId,
    tree: Tree,
}

/// How models are to be served from now on. What is not named stays as it is.
#[derive(Default)]
pub struct Grouped {
    /// Groups that stay; all others end.
    pub keep: Vec<ModelId>,
    pub add: Vec<Ready>,
    /// Models that leave a group and are in none any more.
    pub whole: Vec<Ready>,
    /// Numbers that were given for groups and not used.
    pub unused: Vec<ModelId>,
}

/// Items of the batch that a group's answers are compared on.
const PROBE_ITEMS: u32 = 3;

impl Sharing {
    pub fn new() -> Sharing {
        Sharing {
            index: Index::new(Worth::default()),
            known: BTreeMap::new(),
            declared: BTreeMap::new(),
            groups: Vec::new(),
        }
    }

    /// Takes in a model that was just loaded, if it could share at all.
    pub fn note(&mut self, model: &Arc<Model>, entry: &Entry, checked: &Checked, network: &mut dyn Network) {
        // One that is to run alone runs alone.
        if checked.finding.is_some() || !checked.signature.batches() || model.max_batch == 1 {
            return;
        }
        let outline = match graph(entry, model) {
            Ok(graph) => Outline::with_axes(&graph, &axes(checked)),
            Err(why) => {
                tracing::debug!(model = %model.name, version = model.version, %why, "can share nothing");
                return;
            }
        };
        let Some(Ok(reference)) = probe(checked).map(|inputs| network.run(&inputs)) else { return };
        let known = Known { model: model.clone(), entry: entry.clone(), checked: checked.clone(), reference };
        self.index.add(Member(model.id.0), outline);
        self.known.insert(model.id, known);
    }

    /// Takes in an emulated model that was just loaded, if its profile says that it shares a part.
    pub fn note_emulated(&mut self, model: &Arc<Model>, profile: &Arc<EmulatedProfile>) {
        if let Some(declared) = Declared::new(model, profile) {
            self.declared.insert(model.id, declared);
        }
    }

    /// Groups the models that are `ready`. Each new group takes one of `ids`, of which there are half as many as models.
    pub fn group(
        &mut self,
        ready: &[Arc<Model>],
        mut ids: Vec<ModelId>,
        devices: &[DeviceRole],
        store: &Store,
    ) -> Grouped {
        let is_ready = |noted: &Arc<Model>| ready.iter().any(|model| Arc::ptr_eq(model, noted));
        for id in self.known.extract_if(.., |_, known| !is_ready(&known.model)).map(|(id, _)| id) {
            self.index.remove(Member(id.0));
        }
        self.declared.retain(|_, declared| is_ready(&declared.model));
        let (keep, made) = self.build(&mut ids, devices, store);
        let kept = keep.iter().map(|&group| &self.groups[group].tree);
        let grouped: BTreeSet<ModelId> =
            kept.chain(made.iter().map(|(tree, _)| tree)).flat_map(|tree| &tree.members).copied().collect();
        let before: BTreeSet<ModelId> = self.groups.iter().flat_map(|group| &group.tree.members).copied().collect();
        let mut whole = Vec::new();
        for (model, networks) in before.difference(&grouped).filter_map(|id| self.whole(*id, devices)) {
            match networks {
                Ok(networks) => whole.push((model.clone(), networks)),
                Err(why) => {
                    // Its group is all that serves it.
                    tracing::warn!(model = %model.label(), %why, "groups stay as they are");
                    ids.extend(made.iter().map(|(_, (model, _))| model.id));
                    return Grouped {
                        keep: self.groups.iter().map(|g| g.id).collect(),
                        unused: ids,
                        ..Grouped::default()
                    };
                }
            }
        }
        let mut groups: Vec<InService> = Vec::new();
        for (at, group) in std::mem::take(&mut self.groups).into_iter().enumerate() {
            if keep.contains(&at) {
                groups.push(group);
            }
        }
        let keep = groups.iter().map(|group| group.id).collect();
        let mut add = Vec::with_capacity(made.len());
        for (tree, ready) in made {
            groups.push(InService { id: ready.0.id, tree });
            add.push(ready);
        }
        self.groups = groups;
        Grouped { keep, add, whole, unused: ids }
    }

    /// By place in `groups` those that stay, and the new ones.
    fn build(
        &mut self,
        ids: &mut Vec<ModelId>,
        devices: &[DeviceRole],
        store: &Store,
    ) -> (Vec<usize>, Vec<(Tree, Ready)>) {
        let (mut keep, mut made) = (Vec::new(), Vec::new());
        let mut trees = self.trees();
        while let Some(tree) = trees.pop() {
            if let Some(same) = self.groups.iter().position(|group| group.tree == tree) {
                keep.push(same);
                continue;
            }
            let Some(id) = ids.pop() else { break };
            let built = match declared::members(&tree, &self.declared) {
                Some(members) => declared::build(&tree, id, &members, devices),
                None => build::build(&tree, id, &self.known, &self.index, devices, store),
            };
            match built {
                Ok(ready) => {
                    made.push((tree, ready));
                    continue;
                }
                Err(BuildError::Alone(alone, why)) => {
                    tracing::info!(model = %self.known[&alone].model.label(), %why, "shares a part, and is served whole");
                    self.index.remove(Member(alone.0));
                    // Of those that are left others may share more; what was made for others stays.
                    let touched = |other: &Tree| other.members.iter().any(|member| tree.members.contains(member));
                    trees.retain(|other| !touched(other));
                    trees.extend(self.trees().into_iter().filter(touched));
                }
                Err(BuildError::Failed(why)) => {
                    let models: Vec<String> = tree.members.iter().map(|id| self.label(*id)).collect();
                    tracing::warn!(models = %models.join(", "), %why, "served whole, although they share a part");
                }
            }
            ids.push(id);
        }
        (keep, made)
    }

    fn trees(&self) -> Vec<Tree> {
        let found = self.index.groups().iter().map(|group| Tree::of(group, |member| ModelId(member.0))).collect();
        [found, declared::trees(&self.declared)].concat()
    }

    /// A model and its networks as they were when it was loaded; `None` when it is not known any more.
    fn whole(&self, id: ModelId, devices: &[DeviceRole]) -> Option<(&Arc<Model>, Result<Networks, String>)> {
        if let Some(declared) = self.declared.get(&id) {
            return Some((&declared.model, Ok(declared.networks(devices))));
        }
        let known = self.known.get(&id)?;
        Some((&known.model, build::whole(known, devices)))
    }

    fn label(&self, id: ModelId) -> String {
        let model = self.known.get(&id).map(|known| &known.model);
        let model = model.or_else(|| self.declared.get(&id).map(|declared| &declared.model));
        model.map_or_else(String::new, |model| model.label())
    }
}

impl Default for Sharing {
    fn default() -> Sharing {
        Sharing::new()
    }
}

/// The model's graph; an error when the file is no longer what was loaded.
fn graph(entry: &Entry, model: &Model) -> Result<Graph, String> {
    let file = entry.file.display();
    let bytes = std::fs::read(&entry.file).map_err(|error| format!("{file}: {error}"))?;
    if repository::digest_of(&bytes) != model.digest {
        return Err(format!("{file}: the file was changed since it was loaded"));
    }
    Graph::read(Bytes::from(bytes), &Limits::default()).map_err(|error| format!("{file}: {error}"))
}

/// By input: its batch axis, as was found on load.
fn axes(checked: &Checked) -> BTreeMap<String, Option<usize>> {
    checked.signature.inputs.iter().map(|spec| (spec.name.clone(), spec.batch_axis)).collect()
}

/// Generated inputs of [`PROBE_ITEMS`] items, the same for the same model every time; `None` when they are too large.
fn probe(checked: &Checked) -> Option<Vec<HostTensor>> {
    let mut numbers = Numbers(PROBE_SEED);
    let inputs = checked.signature.inputs.iter().map(|spec| {
        let shape = sample::shape(spec, PROBE_ITEMS, &checked.hints, 1)?;
        sample::tensor(spec, shape, &checked.hints, &mut numbers)
    });
    inputs.collect()
}

const PROBE_SEED: u64 = 0x5ea5;
