//! One request after the other for each item of the manifest, and what the models answer in words.

use super::manifest::{self, Encoding, Item, Manifest, Model, Task};
use super::{Failure, Interrupted, magika};
use rota_device::npy;
use rota_device::{DType, HostTensor};
use rota_ipc::client::{Client, ClientOptions, Open, Request, Session};
use rota_ipc::control::TensorInfo;
use std::collections::BTreeMap;
use std::path::Path;

/// Named tensors of one request.
pub type Tensors = BTreeMap<String, HostTensor>;

/// Answers shown per model; the others are checked without a line.
const SHOWN: usize = 3;
/// Deadlines do not matter here: this shows answers, not speed.
const SLO_MS: f64 = 10_000.0;

/// What the answers showed.
#[derive(Default)]
pub struct Shown {
    pub wrong: usize,
    /// By model and output: the bytes that one answer took at most.
    pub rooms: BTreeMap<(String, String), usize>,
}

/// Prints the answers.
pub fn show(manifest: &Manifest, socket: &Path, interrupted: &Interrupted) -> Result<Shown, Failure> {
    let mut client = Client::connect(socket, ClientOptions { name: "rota demo".into(), ..Default::default() })?;
    let mut shown = Shown::default();
    for model in manifest.models.iter().filter(|m| m.task != Task::Map) {
        let open = Open { slo: Some(std::time::Duration::from_secs_f64(SLO_MS / 1e3)), ..Default::default() };
        let session = client.open(&model.name, open)?;
        let labels = match &model.labels {
            Some(path) => manifest::read_labels(&manifest.folder.join(path))?,
            None => Vec::new(),
        };
        println!("{} tells {}:", model.name, model.about);
        let mut right = 0;
        for (index, item) in model.items.iter().enumerate() {
            interrupted.check()?;
            let answer = ask(&mut client, &session, manifest, model, item, &labels, &mut shown)?;
            right += usize::from(answer.expected);
            shown.wrong += usize::from(!answer.expected);
            if index < SHOWN || !answer.expected {
                let mark = if answer.expected { "" } else { "  (unexpected)" };
                println!("  {} → {}{mark}", item.name, answer.words);
            }
        }
        if model.items.len() > SHOWN {
            println!("  {right} of {} answers as expected", model.items.len());
        }
        client.close(session)?;
    }
    Ok(shown)
}

struct Answered {
    words: String,
    expected: bool,
}

/// Sends the item's requests in order and reads the answer.
fn ask(
    client: &mut Client,
    session: &Session,
    manifest: &Manifest,
    model: &Model,
    item: &Item,
    labels: &[String],
    shown: &mut Shown,
) -> Result<Answered, Failure> {
    let mut feedback = Tensors::new();
    let mut probabilities = Vec::new();
    let mut words = String::new();
    for mut tensors in requests(manifest, model, item)? {
        tensors.append(&mut feedback);
        let mut request = client.request(session)?;
        fill(&mut request, &tensors)?;
        for info in &session.model().outputs {
            if info.name == model.output || model.feedback.values().any(|output| *output == info.name) {
                request.output(info.name.as_str(), room(info))?;
            }
        }
        let answer = client.infer(request)?;
        let scores = answer.output::<f32>(model.output.as_str())?;
        let room = shown.rooms.entry((model.name.clone(), model.output.clone())).or_default();
        *room = (*room).max(size_of_val(scores.data));
        match model.task {
            Task::Label => words = manifest::label(scores.data, labels).to_string(),
            Task::Text => {
                let classes = scores.dims.last().copied().unwrap_or(1) as usize;
                words = manifest::text(scores.data, classes, labels);
            }
            Task::Speech => probabilities.push(scores.data.first().copied().unwrap_or(0.0)),
            Task::Map => {}
        }
        for (input, output) in &model.feedback {
            let view = answer.output::<f32>(output.as_str())?;
            shown.rooms.insert((model.name.clone(), output.clone()), size_of_val(view.data));
            let tensor = HostTensor::from_elements(view.dims, view.data).ok_or("an answer has too many dimensions")?;
            feedback.insert(input.clone(), tensor);
        }
    }
    if model.task == Task::Speech {
        let spans = manifest::spans(&probabilities);
        let expected = manifest::near(&spans, &item.spans, item.spans_tolerance);
        let spoken: Vec<String> = spans.iter().map(|[first, last]| format!("{first}–{last}")).collect();
        return Ok(Answered { words: format!("speech in windows {}", spoken.join(" and ")), expected });
    }
    let expected = item.expect.is_empty() || item.expect.contains(&words);
    let words = if model.task == Task::Text { format!("\"{words}\"") } else { words };
    Ok(Answered { words, expected })
}

/// The tensors of each request of an item, in order; without what is fed back.
pub fn requests(manifest: &Manifest, model: &Model, item: &Item) -> Result<Vec<Tensors>, Failure> {
    if let Some(file) = &item.file {
        let file = manifest.root.join(file);
        let bytes = std::fs::read(&file).map_err(|error| format!("{}: {error}", file.display()))?;
        let tensors = model.encode.iter().map(|(input, encoding)| match encoding {
            Encoding::Magika => {
                let tokens = magika::tokens(&bytes).ok_or("the file is too short for magika")?;
                let tensor = HostTensor::from_elements(&[1, magika::TOKENS as u32], &tokens);
                Ok((input.clone(), tensor.ok_or("two dimensions are possible")?))
            }
        });
        return Ok(vec![tensors.collect::<Result<_, Failure>>()?]);
    }
    let mut whole = Tensors::new();
    for (input, path) in &item.inputs {
        whole.insert(input.clone(), npy::read(&manifest.folder.join(path))?);
    }
    let Some([first, count]) = item.rows else { return Ok(vec![whole]) };
    let row = |number: usize| {
        let tensors = whole.iter().map(|(input, tensor)| match model.row_inputs.contains(input) {
            true => Ok((input.clone(), take_row(tensor, number)?)),
            false => Ok((input.clone(), tensor.clone())),
        });
        tensors.collect::<Result<Tensors, Failure>>()
    };
    (first..first + count).map(row).collect()
}

/// Row `number` along the first axis, as [1, …].
fn take_row(tensor: &HostTensor, number: usize) -> Result<HostTensor, Failure> {
    let mut shape = tensor.shape;
    let rows = shape.dims().first().copied().unwrap_or(0) as usize;
    if number >= rows {
        return Err(format!("row {number} is past the last of {rows}").into());
    }
    let bytes = tensor.bytes.len() / rows;
    shape.dims_mut()[0] = 1;
    let row = &tensor.bytes[number * bytes..(number + 1) * bytes];
    HostTensor::from_bytes(tensor.dtype, shape, row).ok_or_else(|| "a row is too large".into())
}

/// Writes the tensors into the request's memory.
pub fn fill(request: &mut Request, tensors: &Tensors) -> Result<(), Failure> {
    for (name, tensor) in tensors {
        let dims = tensor.shape.dims();
        match tensor.dtype {
            DType::F32 => request.input::<f32>(name.as_str(), dims)?.copy_from_slice(tensor.bytes.elements()),
            DType::I32 => request.input::<i32>(name.as_str(), dims)?.copy_from_slice(tensor.bytes.elements()),
            DType::I64 => request.input::<i64>(name.as_str(), dims)?.copy_from_slice(tensor.bytes.elements()),
            other => return Err(format!("input \"{name}\" is {other}; the demo's inputs are f32, i32 or i64").into()),
        }
    }
    Ok(())
}

/// Room for an output of one item; where the model leaves a dimension open, for what a line of text can have.
pub fn room(info: &TensorInfo) -> usize {
    const OPEN: usize = 256;
    let dims = info.dims.iter().enumerate().map(|(axis, dim)| match dim {
        _ if info.batch_axis == Some(axis) => 1,
        rota_ipc::control::DimInfo::Fixed(size) => *size as usize,
        rota_ipc::control::DimInfo::Named(_) => OPEN,
    });
    dims.product::<usize>() * info.dtype.bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rota_device::Shape;

    #[test]
    fn a_row_is_cut_out_of_the_first_axis() {
        let tensor = HostTensor::from_elements(&[3, 2], &[1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0]).unwrap();
        let row = take_row(&tensor, 1).unwrap();
        assert_eq!(row.shape, Shape::new(&[1, 2]).unwrap());
        assert_eq!(row.bytes.elements::<f32>(), [3.0, 4.0]);
        assert!(take_row(&tensor, 3).is_err());
    }
}
