//! Groups of emulated models: what they share is what their profiles say.

use super::build::BuildError;
use super::costs::Costs;
use super::tree::{Branch, Tree};
use crate::background::{DeviceRole, Networks, Ready};
use crate::model::{Group, Level, Member, Model};
use rota_device::emulated::{EmulatedPrefix, EmulatedProfile, EmulatedSuffix};
use rota_device::{EmulatedNetwork, Network, Pace, Signature};
use rota_graph::Cut;
use rota_sched::{ModelId, Profile};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// An emulated model that shares a part with others.
pub(super) struct Declared {
    pub model: Arc<Model>,
    profile: Arc<EmulatedProfile>,
    suffix: EmulatedSuffix,
}

impl Declared {
    /// `None` when it shares nothing, or when it is to run alone.
    pub fn new(model: &Arc<Model>, profile: &Arc<EmulatedProfile>) -> Option<Declared> {
        let suffix = profile.suffix.clone().filter(|_| model.signature.batches() && model.max_batch > 1)?;
        Some(Declared { model: model.clone(), profile: profile.clone(), suffix })
    }

    /// Its networks as they were when it was loaded.
    pub fn networks(&self, devices: &[DeviceRole]) -> Networks {
        let network = || Box::new(EmulatedNetwork::new(&self.profile)) as Box<dyn Network>;
        devices.iter().map(|device| device.emulates(&self.profile).then(network)).collect()
    }
}

/// One tree for each part that several models share; members in the order of their numbers.
pub(super) fn trees(declared: &BTreeMap<ModelId, Declared>) -> Vec<Tree> {
    let mut prefixes: Vec<(&Arc<EmulatedPrefix>, Vec<ModelId>)> = Vec::new();
    for (id, declared) in declared {
        let prefix = &declared.suffix.prefix;
        match prefixes.iter_mut().find(|(other, _)| Arc::ptr_eq(other, prefix)) {
            Some((_, members)) => members.push(*id),
            None => prefixes.push((prefix, vec![*id])),
        }
    }
    let tree = |(prefix, members): (&Arc<EmulatedPrefix>, Vec<ModelId>)| {
        let weight_bytes = prefix.memory_bytes;
        let cut = Cut { nodes: BTreeSet::new(), ports: Vec::new(), weight_bytes, refused: Vec::new() };
        let branch = Branch { parent: None, members: 0..members.len(), cut };
        Tree { behind: vec![0; members.len()], members, branches: vec![branch] }
    };
    prefixes.into_iter().filter(|(_, members)| members.len() > 1).map(tree).collect()
}

/// The members of a tree, if it is one of [`trees`].
pub(super) fn members<'a>(tree: &Tree, declared: &'a BTreeMap<ModelId, Declared>) -> Option<Vec<&'a Declared>> {
    tree.members.iter().map(|id| declared.get(id)).collect()
}

/// The network of a group on every device that emulates its members, and the model that stands for it.
pub(super) fn build(
    tree: &Tree,
    id: ModelId,
    members: &[&Declared],
    devices: &[DeviceRole],
) -> Result<Ready, BuildError> {
    let prefix = &members[0].suffix.prefix;
    let profiles: Vec<&EmulatedProfile> = members.iter().map(|member| &*member.profile).collect();
    let max_batch = members.iter().map(|member| member.model.max_batch).max().unwrap_or(1);
    let paces = std::iter::once(&prefix.pace).chain(members.iter().map(|member| &member.suffix.pace));
    let times: Vec<Profile> = paces.map(|pace| profile(pace, max_batch)).collect::<Result<_, String>>()?;
    let costs = Costs { tree, times: &times, stacks: &[] };
    let pace = costs.profile(max_batch)?;
    let network = || EmulatedNetwork::group(prefix, &profiles).map(|network| Box::new(network) as Box<dyn Network>);
    let serves = |device: &DeviceRole| members.iter().all(|member| device.emulates(&member.profile));
    let networks: Networks = devices.iter().map(|device| serves(device).then(network).flatten()).collect();
    let Some(first) = networks.iter().flatten().next() else {
        return Err("no device emulates all of them".to_string().into());
    };
    let (signature, memory_bytes) = (first.signature().clone(), first.memory_bytes());
    let group = group(prefix, members, &signature, costs.shared_time());
    let profiled = members[0].model.profiled.clone();
    let profiles = networks.iter().map(|network| network.as_ref().map(|_| pace.clone())).collect();
    let model = Model::of_group(id, group, (signature, memory_bytes), (profiled, profiles, false));
    Ok((Arc::new(model), networks))
}

/// A table of the times of 1 to `max_batch` items. What takes no time still has a profile: the shortest that there is.
fn profile(pace: &Pace, max_batch: u32) -> Result<Profile, String> {
    let points: Vec<(u32, Duration)> =
        (1..=max_batch).map(|items| (items, pace.of(items).max(Duration::from_nanos(1)))).collect();
    Profile::new(&points).map_err(|error| error.to_string())
}

fn group(prefix: &EmulatedPrefix, members: &[&Declared], signature: &Signature, shared_time: f64) -> Group {
    let mut end = 0;
    let member = |declared: &&Declared| {
        let first = end;
        end += declared.profile.signature.outputs.len();
        Member {
            model: declared.model.clone(),
            inputs: (0..signature.inputs.len()).collect(),
            outputs: first..end,
            own_bytes: declared.suffix.memory_bytes,
        }
    };
    let members: Vec<Member> = members.iter().map(member).collect();
    let level = Level {
        members: 0..members.len(),
        nodes: 0,
        weight_bytes: prefix.memory_bytes,
        ports: vec![format!("{} (emulated)", prefix.name)],
    };
    Group { members, levels: vec![level], shared_time, stacked: Vec::new() }
}
