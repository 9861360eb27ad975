//! What models have to answer: inputs and outputs of single items, made on a host with an engine and carried to one with a GPU.
//!
//! Items do not depend on each other, so a batch's reference is those of its items side by side; a few items serve for all batches.

use super::Failure;
use crate::npy::read as read_array;
use rota_device::engine::{self, CompileOptions, EngineChoice};
use rota_device::sample::{self, Hints, Numbers};
use rota_device::{HostTensor, Network, Shape, TensorSpec, npy};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// What `reference.json` in a model's folder of references says; the tensors lie beside it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reference {
    pub model: String,
    /// The engine that answered.
    pub engine: String,
    pub version: u64,
    pub max_batch: u32,
    pub slo_ms: f64,
    /// Its name for the axis of the batch, when its settings give one.
    pub batch_symbol: Option<String>,
    pub inputs: Vec<Tensor>,
    pub outputs: Vec<Tensor>,
    /// Items that there are: `in_<item>_<input>.npy`, `out_<item>_<output>.npy`.
    pub items: usize,
}

/// A tensor of the model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tensor {
    pub name: String,
    /// `None`: all items share it.
    pub batch_axis: Option<usize>,
}

/// What matters here of a model's own settings.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Settings {
    slo_ms: Option<f64>,
    max_batch: Option<u32>,
    batch_symbol: Option<String>,
    shape: BTreeMap<String, u32>,
    range: BTreeMap<String, [f64; 2]>,
}

/// Files by the input that they are for; an input may have several.
pub type Files = Vec<(String, PathBuf)>;

/// Different items of each model.
const ITEMS: usize = 3;
const MAX_BATCH: u32 = 8;
const SLO_MS: f64 = 100.0;
const FILE: &str = "reference.json";

/// Writes the references of every model of `repository` into a folder of its name under `output`. `inputs` names files by model and
/// input; other inputs are made, within `ranges` by "model:input".
pub fn write(
    repository: &Path,
    output: &Path,
    inputs: &dyn Fn(&str) -> Result<Files, Failure>,
    ranges: &BTreeMap<String, (f64, f64)>,
    mut progress: impl FnMut(&str),
) -> Result<Vec<Reference>, Failure> {
    let opened = engine::open(&EngineChoice::Auto)?;
    let mut written = Vec::new();
    for model in folders(repository)? {
        let name = model.file_name().unwrap_or_default().to_string_lossy().into_owned();
        progress(&name);
        let Some((version, file)) = newest(&model)? else { continue };
        let settings = model.join("model.toml");
        let settings: Settings = match settings.exists() {
            true => toml::from_str(&fs::read_to_string(&settings)?)?,
            false => Settings::default(),
        };
        let options = CompileOptions { threads: 2, batch_symbol: settings.batch_symbol.clone(), ..Default::default() };
        let mut network = opened.engine.compile(&file, &options)?;
        let mut hints = Hints { sizes: places(&settings.shape), ..Hints::default() };
        hints.ranges = settings.range.iter().map(|(input, &[low, high])| (input.clone(), (low, high))).collect();
        let own = ranges.iter().filter_map(|(key, range)| Some((key.strip_prefix(&format!("{name}:"))?, *range)));
        hints.ranges.extend(own.map(|(input, range)| (input.to_owned(), range)));
        let items = items(&*network, &inputs(&name)?, &hints)?;
        let folder = output.join(&name);
        fs::create_dir_all(&folder)?;
        for (item, tensors) in items.iter().enumerate() {
            let answers = network.run(tensors).map_err(|error| format!("{name}: {error}"))?;
            for (role, tensors) in [("in", tensors), ("out", &answers)] {
                for (index, tensor) in tensors.iter().enumerate() {
                    npy::write(&folder.join(format!("{role}_{item}_{index}.npy")), tensor)?;
                }
            }
        }
        let signature = network.signature();
        let named = |specs: &[TensorSpec]| {
            specs.iter().map(|spec| Tensor { name: spec.name.clone(), batch_axis: spec.batch_axis }).collect()
        };
        let reference = Reference {
            model: name,
            engine: opened.engine.describe(),
            version,
            max_batch: if signature.batches() { settings.max_batch.unwrap_or(MAX_BATCH) } else { 1 },
            slo_ms: settings.slo_ms.unwrap_or(SLO_MS),
            batch_symbol: settings.batch_symbol,
            inputs: named(&signature.inputs),
            outputs: named(&signature.outputs),
            items: items.len(),
        };
        fs::write(folder.join(FILE), serde_json::to_string_pretty(&reference)?)?;
        written.push(reference);
    }
    Ok(written)
}

/// The references under a folder, by name of the model.
pub fn read_all(folder: &Path) -> Result<Vec<(Reference, PathBuf)>, Failure> {
    let mut all = Vec::new();
    for folder in folders(folder)? {
        let file = folder.join(FILE);
        if file.exists() {
            let reference = serde_json::from_str(&fs::read_to_string(&file)?);
            all.push((reference.map_err(|error| format!("{}: {error}", file.display()))?, folder));
        }
    }
    match all.is_empty() {
        true => Err(format!("{}: no references; bench/gpu/pack.sh makes them", folder.display()).into()),
        false => Ok(all),
    }
}

impl Reference {
    /// Inputs and outputs of a batch: the items again and again.
    pub fn batch(&self, folder: &Path, batch: u32) -> Result<[Vec<HostTensor>; 2], Failure> {
        let tensors = |role: &str, tensors: &[Tensor]| -> Result<Vec<HostTensor>, Failure> {
            let joined = tensors.iter().enumerate().map(|(index, tensor)| {
                let file = |item: usize| folder.join(format!("{role}_{item}_{index}.npy"));
                let items = (0..self.items).map(|item| npy::read(&file(item))).collect::<Result<Vec<_>, _>>()?;
                let Some(axis) = tensor.batch_axis else { return Ok(items[0].clone()) };
                let turns: Vec<&HostTensor> = (0..batch as usize).map(|at| &items[at % items.len()]).collect();
                let what = || format!("{}: items of {} can't be joined along axis {axis}", self.model, tensor.name);
                Ok(concat(&turns, axis).ok_or_else(what)?)
            });
            joined.collect()
        };
        Ok([tensors("in", &self.inputs)?, tensors("out", &self.outputs)?])
    }

    /// Files of an input, one for each item.
    pub fn files(&self, folder: &Path) -> Vec<(String, PathBuf)> {
        let each = |(index, tensor): (usize, &Tensor)| {
            let (name, folder) = (tensor.name.clone(), folder.to_owned());
            (0..self.items).map(move |item| (name.clone(), folder.join(format!("in_{item}_{index}.npy"))))
        };
        self.inputs.iter().enumerate().flat_map(each).collect()
    }
}

/// Tensors of one type side by side along `axis`; `None` when they do not fit.
fn concat(tensors: &[&HostTensor], axis: usize) -> Option<HostTensor> {
    let first = tensors.first()?;
    let mut dims = first.shape.dims().to_vec();
    let agree = |tensor: &&HostTensor| {
        let other = tensor.shape.dims();
        tensor.dtype == first.dtype
            && other.len() == dims.len()
            && (0..dims.len()).all(|at| at == axis || other[at] == dims[at])
    };
    if axis >= dims.len() || !tensors.iter().all(agree) {
        return None;
    }
    let outer: usize = dims[..axis].iter().map(|&dim| dim as usize).product();
    let mut bytes = Vec::with_capacity(tensors.iter().map(|tensor| tensor.bytes.len()).sum());
    for line in 0..outer {
        for tensor in tensors {
            let length = tensor.bytes.len() / outer;
            bytes.extend_from_slice(&tensor.bytes[line * length..][..length]);
        }
    }
    dims[axis] = tensors.iter().map(|tensor| tensor.shape.dims()[axis]).sum();
    HostTensor::from_bytes(first.dtype, Shape::new(&dims)?, &bytes)
}

/// Inputs of single items: from files whose sizes are those that the settings name, else made.
fn items(network: &dyn Network, files: &[(String, PathBuf)], hints: &Hints) -> Result<Vec<Vec<HostTensor>>, Failure> {
    let mut numbers = Numbers(1);
    let mut items: Vec<Vec<HostTensor>> = vec![Vec::new(); ITEMS];
    for spec in &network.signature().inputs {
        let shape = sample::shape(spec, 1, hints, 1).ok_or_else(|| format!("{}: too many dimensions", spec.name))?;
        let mut found = Vec::new();
        for (_, file) in files.iter().filter(|(input, _)| *input == spec.name) {
            let array = read_array(file)?;
            if array.dims == shape.dims() {
                found.push(npy::read(file)?);
            }
        }
        for (at, item) in items.iter_mut().enumerate() {
            let mut made = || sample::tensor(spec, shape, hints, &mut numbers);
            let tensor = if found.is_empty() { made() } else { Some(found[at % found.len()].clone()) };
            item.push(tensor.ok_or_else(|| format!("{}: {shape:?} is too large", spec.name))?);
        }
    }
    Ok(items)
}

/// The settings' "x:2" is the hints' "x.2".
fn places(shape: &BTreeMap<String, u32>) -> BTreeMap<String, u32> {
    shape.iter().map(|(name, &size)| (name.replace(':', "."), size)).collect()
}

fn folders(of: &Path) -> Result<Vec<PathBuf>, Failure> {
    let entries = fs::read_dir(of).map_err(|error| format!("{}: {error}", of.display()))?;
    let mut found: Vec<PathBuf> = entries.map(|entry| Ok(entry?.path())).collect::<Result<_, std::io::Error>>()?;
    found.retain(|path| path.is_dir());
    found.sort();
    Ok(found)
}

/// The model's newest version and its file.
pub fn newest(model: &Path) -> Result<Option<(u64, PathBuf)>, Failure> {
    let number = |folder: PathBuf| {
        let version = folder.file_name()?.to_str()?.parse().ok()?;
        let file = folder.join("model.onnx");
        file.exists().then_some((version, file))
    };
    Ok(folders(model)?.into_iter().filter_map(number).max())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_are_joined_along_the_axis_that_they_have_as_a_batch() {
        let [a, b] = [[1.0_f32, 2.0], [3.0, 4.0]].map(|v| HostTensor::from_elements(&[2, 1, 1], &v).unwrap());
        let joined = concat(&[&a, &b], 1).unwrap();
        assert_eq!((joined.shape.dims(), joined.bytes.elements::<f32>()), (&[2, 2, 1][..], &[1.0, 3.0, 2.0, 4.0][..]));
        let joined = concat(&[&a, &b], 0).unwrap();
        assert_eq!((joined.shape.dims(), joined.bytes.elements::<f32>()), (&[4, 1, 1][..], &[1.0, 2.0, 3.0, 4.0][..]));
        let other = HostTensor::from_elements(&[2, 1, 2], &[0.0_f32; 4]).unwrap();
        assert!(concat(&[&a, &other], 0).is_none());
        assert!(concat(&[&a], 3).is_none());
    }
}
