//! A model that is served, as the daemon's threads share it.

use rota_device::{DType, Dim, NetworkId, Shape, Signature, TensorSpec};
use rota_ipc::control::{DimInfo, GroupInfo, ModelInfo, SharedInfo, TensorInfo};
use rota_ipc::wire;
use rota_sched::{ModelId, Profile};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// One version of one model, loaded and checked.
#[derive(Debug)]
pub struct Model {
    pub id: ModelId,
    pub name: String,
    pub version: u64,
    /// SHA-256 of the model file, in hexadecimal; what profiles are kept under.
    pub digest: String,
    pub signature: Signature,
    /// Largest number of items in one batch.
    pub max_batch: u32,
    pub default_slo: Duration,
    /// Share of its sessions when there are too few devices; 1 is usual.
    pub weight: f64,
    /// Bytes of weights on each device (an estimate).
    pub memory_bytes: u64,
    /// The shape class that was profiled: per input, the batch axis holding 0.
    pub profiled: Vec<Shape>,
    /// ℓ(b) is that class's own; otherwise (an emulated device) every class takes as long.
    pub profile_scales: bool,
    /// ℓ(b) of that class by device index; `None` where the device does not serve it.
    pub profiles: Vec<Option<Profile>>,
    /// What it stands for, when it is no model of its own but several that share a leading part.
    pub group: Option<Group>,
}

/// Models whose shared part runs once for all their requests. Towards dispatcher, planner and devices a group is one model: its
/// inputs are those of the shared part, its outputs those of all members, one after the other.
#[derive(Debug)]
pub struct Group {
    pub members: Vec<Member>,
    /// What is shared, the widest level first.
    pub levels: Vec<Level>,
    /// Share of a batch of one's time that the parts which several members share take.
    pub shared_time: f64,
    /// Which members' own parts can run as one: sets of places among the members.
    pub stacked: Vec<Vec<usize>>,
}

/// A model of a group.
#[derive(Debug)]
pub struct Member {
    pub model: Arc<Model>,
    /// By input of the group: which input of the model it is.
    pub inputs: Vec<usize>,
    /// Which of the group's outputs are the model's.
    pub outputs: Range<usize>,
    /// Bytes of the weights that it has for itself.
    pub own_bytes: u64,
}

/// A part that several members share.
#[derive(Clone, Debug, PartialEq)]
pub struct Level {
    /// Which members share it.
    pub members: Range<usize>,
    pub nodes: usize,
    pub weight_bytes: u64,
    /// What it hands on: name, type and dimensions.
    pub ports: Vec<String>,
}

impl Model {
    /// The model that stands for a group. `profiled` and `profiles` are as in [`Model`]; ℓ(b) is of that class alone where it
    /// `scales`.
    pub fn of_group(
        id: ModelId,
        group: Group,
        (signature, memory_bytes): (Signature, u64),
        (profiled, profiles, scales): (Vec<Shape>, Vec<Option<Profile>>, bool),
    ) -> Model {
        let models = || group.members.iter().map(|member| &member.model);
        let names: Vec<String> = models().map(|model| model.label()).collect();
        Model {
            id,
            name: names.join("+"),
            version: 1,
            digest: String::new(),
            signature,
            max_batch: models().map(|model| model.max_batch).max().unwrap_or(1),
            default_slo: models().map(|model| model.default_slo).min().unwrap_or_default(),
            weight: 1.0,
            memory_bytes,
            profiled,
            profile_scales: scales,
            profiles,
            group: Some(group),
        }
    }

    pub fn network(&self) -> NetworkId {
        NetworkId(self.id.0)
    }

    /// ℓ(1) on the fastest device.
    pub fn batch_of_one(&self) -> Duration {
        self.profiles.iter().flatten().filter_map(|p| p.latency(1)).min().unwrap_or_default()
    }

    /// ℓ(b) on the device with the shortest ℓ(1); `None` when no device serves it.
    pub fn fastest(&self) -> Option<&Profile> {
        self.profiles.iter().flatten().min_by_key(|profile| profile.latency(1))
    }

    /// Whether the content of an input is part of a request's shape class: where requests share batches, they share what has no
    /// batch axis.
    pub fn shares(&self, input: &TensorSpec) -> bool {
        self.signature.batches() && input.batch_axis.is_none()
    }

    /// Whether it stands for several models.
    pub fn is_group(&self) -> bool {
        self.group.is_some()
    }

    /// Which member `model` is of this group.
    pub fn member(&self, model: ModelId) -> Option<&Member> {
        self.group.as_ref()?.members.iter().find(|member| member.model.id == model)
    }

    /// Which outputs are those of the model at place `member` in this group; all where it is none.
    pub fn outputs_of(&self, member: u16) -> Range<usize> {
        match &self.group {
            Some(group) => group.members[usize::from(member)].outputs.clone(),
            None => 0..self.signature.outputs.len(),
        }
    }

    /// "digits" or, of another version than the first, "digits:2".
    pub fn label(&self) -> String {
        match self.version {
            1 => self.name.clone(),
            version => format!("{}:{version}", self.name),
        }
    }

    pub fn info(&self) -> ModelInfo {
        ModelInfo {
            name: self.name.clone(),
            version: self.version,
            inputs: self.signature.inputs.iter().map(tensor_info).collect(),
            outputs: self.signature.outputs.iter().map(tensor_info).collect(),
            max_batch: self.max_batch,
            default_slo_ms: crate::clock::millis(self.default_slo),
            batch_of_one_ms: crate::clock::millis(self.batch_of_one()),
            group: None,
        }
    }

    /// What clients are told of the group that `model` is served in.
    pub fn group_info(&self, model: ModelId) -> Option<GroupInfo> {
        let group = self.group.as_ref()?;
        let place = group.members.iter().position(|member| member.model.id == model)?;
        let level = |level: &Level| SharedInfo {
            models: group.members[level.members.clone()].iter().map(|member| member.model.label()).collect(),
            nodes: level.nodes as u64,
            weight_bytes: level.weight_bytes,
            cut: level.ports.clone(),
        };
        let label = |&member: &usize| group.members[member].model.label();
        let stacked = group.stacked.iter().filter(|members| members.contains(&place)).flatten().map(label);
        Some(GroupInfo {
            stacked: stacked.collect(),
            id: self.id.0,
            shared: group.levels.iter().filter(|level| level.members.contains(&place)).map(level).collect(),
            shared_time: group.shared_time,
            own_bytes: group.members[place].own_bytes,
        })
    }
}

/// A tensor as clients see it.
pub fn tensor_info(spec: &TensorSpec) -> TensorInfo {
    let dims = spec.dims.iter().map(|d| match d {
        Dim::Fixed(n) => DimInfo::Fixed(u64::from(*n)),
        Dim::Dynamic(name) => DimInfo::Named(name.clone()),
    });
    TensorInfo {
        name: spec.name.clone(),
        dtype: wire_dtype(spec.dtype),
        dims: dims.collect(),
        batch_axis: spec.batch_axis,
    }
}

/// The protocol and the devices each name element types on their own, so that neither crate needs the other.
pub fn wire_dtype(dtype: DType) -> wire::DType {
    match dtype {
        DType::Bool => wire::DType::Bool,
        DType::U8 => wire::DType::U8,
        DType::I8 => wire::DType::I8,
        DType::U16 => wire::DType::U16,
        DType::I16 => wire::DType::I16,
        DType::U32 => wire::DType::U32,
        DType::I32 => wire::DType::I32,
        DType::U64 => wire::DType::U64,
        DType::I64 => wire::DType::I64,
        DType::F16 => wire::DType::F16,
        DType::Bf16 => wire::DType::Bf16,
        DType::F32 => wire::DType::F32,
        DType::F64 => wire::DType::F64,
    }
}

/// The other way round.
pub fn device_dtype(dtype: wire::DType) -> DType {
    DType::ALL.into_iter().find(|found| wire_dtype(*found) == dtype).expect("both sides name the same types")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_of_the_protocol_is_one_of_the_devices() {
        for dtype in wire::DType::ALL {
            assert_eq!(wire_dtype(device_dtype(dtype)), dtype);
            assert_eq!(device_dtype(dtype).bytes(), dtype.bytes());
        }
    }
}
