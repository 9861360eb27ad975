//! `rota infer`: one request, from files to files.

use super::connection::Connection;
use super::output::{self, Table, ms};
use super::tensors::{self, Declared, Named};
use super::{Failure, NEGATIVE, Outcome};
use crate::clock::millis;
use crate::config::{EngineName, PrecisionName};
use crate::model::device_dtype;
use crate::serve::allowed_cores;
use rota_device::cuda::CudaEngine;
use rota_device::npy;
use rota_device::{CompileOptions, DType, Engine, HostTensor, Shape, TensorSpec, engine};
use rota_ipc::client::{Answer, Error, Open, Request};
use rota_ipc::control::{ModelInfo, TensorInfo};
use rota_ipc::wire::{Reason, Status};
use rota_ipc::{Client, ClientOptions};
use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};
use zerocopy::IntoBytes;

/// Run a model once on tensors from .npy files
#[derive(clap::Args)]
#[command(before_help = "Examples:
  rota infer digits --input image.npy --output scores.npy
  rota infer bert --input ids=i.npy --input mask=m.npy --slo-ms 50
  rota infer --local digits/1/model.onnx --input image.npy
  rota infer --local --device cuda digits/1/model.onnx --input image.npy")]
pub struct Arguments {
    /// Name of a served model; with --local the path of an ONNX file
    model: String,
    /// A file of an input; NAME may be left out when the model has one
    #[arg(long = "input", value_name = "[NAME=]FILE.npy")]
    inputs: Vec<Named>,
    /// Where an output goes; without NAME, outputs in order. Outputs without a file are shown in short
    #[arg(long = "output", value_name = "[NAME=]FILE.npy")]
    outputs: Vec<Named>,
    /// Latency objective [default: the model's]
    #[arg(long, value_name = "N")]
    slo_ms: Option<f64>,
    /// Version of the model [default: the newest]
    #[arg(long, value_name = "N")]
    version: Option<u64>,
    #[command(flatten)]
    connection: Connection,
    /// Run here, without a daemon
    #[arg(long, conflicts_with_all = ["slo_ms", "version", "socket"])]
    local: bool,
    /// Where to run with --local
    #[arg(long, value_enum, requires = "local")]
    device: Option<DeviceName>,
    /// Inference engine with --local [default: auto]
    #[arg(long, value_enum, requires = "local")]
    engine: Option<EngineName>,
    /// In what numbers a GPU computes products [default: fp32]
    #[arg(long, value_enum, requires = "local")]
    precision: Option<PrecisionName>,
    /// Threads with --local [default: as many as cores]
    #[arg(long, value_name = "N", requires = "local")]
    threads: Option<usize>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum DeviceName {
    /// Cores of this host
    #[default]
    Cpu,
    /// Its GPUs; of several the first, for a single request
    Cuda,
}

pub fn run(arguments: Arguments) -> Outcome {
    if arguments.local { run_here(&arguments) } else { ask_daemon(&arguments) }
}

fn run_here(arguments: &Arguments) -> Outcome {
    let file = Path::new(&arguments.model);
    let (engine, threads): (Arc<dyn Engine>, usize) = match arguments.device.unwrap_or_default() {
        DeviceName::Cpu => {
            let opened = engine::open(&arguments.engine.unwrap_or_default().choice())?;
            (opened.engine, arguments.threads.unwrap_or(allowed_cores().len()))
        }
        DeviceName::Cuda => (Arc::new(CudaEngine::open(0, arguments.precision.unwrap_or_default().into())?), 1),
    };
    let mut network = engine.compile(file, &CompileOptions { threads, ..CompileOptions::default() })?;
    let declare = |specs: &[TensorSpec]| -> Vec<Declared> {
        specs.iter().map(|spec| Declared { name: spec.name.clone(), dtype: spec.dtype }).collect()
    };
    let (inputs, outputs) = (declare(&network.signature().inputs), declare(&network.signature().outputs));
    let files = tensors::assign_outputs(&arguments.model, &outputs, &arguments.outputs)?;
    let inputs = tensors::inputs(&arguments.model, &inputs, &arguments.inputs)?;
    let begin = Instant::now();
    let results = network.run(&inputs).map_err(|error| format!("{}: {error}", file.display()))?;
    let took = ms(millis(begin.elapsed()));
    let text = format!("ok: executed in {took} ms by {}, {threads} threads\n", engine.describe());
    present(text, &outputs, results, &files)
}

fn ask_daemon(arguments: &Arguments) -> Outcome {
    // Only the daemon can say how much room an output of open size needs, and it says so when there was too little.
    for room_bytes in ROOM_BYTES {
        match attempt(arguments, room_bytes)? {
            Attempt::Ended(code) => return Ok(code),
            Attempt::TooLittleRoom => {}
        }
    }
    Err(format!("the outputs of {} do not fit in {} MB", arguments.model, ROOM_BYTES[2] >> 20).into())
}

/// Shared memory for the outputs, tried in this order.
const ROOM_BYTES: [usize; 3] = [16 << 20, 256 << 20, 2 << 30];
/// A model that is being loaded is waited for.
const LOADING_TIMEOUT: Duration = Duration::from_secs(120);

enum Attempt {
    Ended(ExitCode),
    TooLittleRoom,
}

fn attempt(arguments: &Arguments, room_bytes: usize) -> Result<Attempt, Failure> {
    let time = |ms: f64| Duration::try_from_secs_f64(ms / 1e3).map_err(|_| format!("--slo-ms {ms} is not a time"));
    let slo = arguments.slo_ms.map(time).transpose()?;
    let files = arguments.inputs.iter().map(|named| file_bytes(&named.file)).sum::<Result<usize, Failure>>()?;
    let options = ClientOptions {
        slots: rota_ipc::wire::SLOTS_MIN,
        arena_bytes: (files + room_bytes + SLACK) as u64,
        name: "rota infer".to_string(),
        timeout: LOADING_TIMEOUT,
        ..ClientOptions::default()
    };
    let mut client = Client::connect(arguments.connection.path(), options)?;
    let session = client.open(&arguments.model, Open { version: arguments.version, slo })?;
    let model = session.model().clone();
    let declare = |infos: &[TensorInfo]| -> Vec<Declared> {
        infos.iter().map(|info| Declared { name: info.name.clone(), dtype: device_dtype(info.dtype) }).collect()
    };
    let (inputs, outputs) = (declare(&model.inputs), declare(&model.outputs));
    let output_files = tensors::assign_outputs(&model.name, &outputs, &arguments.outputs)?;
    let mut request = client.request(&session)?;
    for (index, tensor) in tensors::inputs(&model.name, &inputs, &arguments.inputs)?.iter().enumerate() {
        input_bytes(&mut request, index, tensor)?.copy_from_slice(&tensor.bytes);
    }
    let each = room_bytes / outputs.len().max(1) / ALIGN * ALIGN;
    for index in 0..outputs.len() {
        request.output(index, each)?;
    }
    let answer = client.infer(request)?;
    if answer.reason == Reason::OutputTooSmall {
        return Ok(Attempt::TooLittleRoom);
    }
    report(&model, &outputs, &answer, &output_files).map(Attempt::Ended)
}

/// Tensors in an arena are aligned to this.
const ALIGN: usize = rota_ipc::wire::TENSOR_ALIGN as usize;
/// For the alignment of every tensor.
const SLACK: usize = 64 << 10;

fn file_bytes(file: &Path) -> Result<usize, Failure> {
    let metadata = std::fs::metadata(file).map_err(|error| format!("{}: {error}", file.display()))?;
    Ok(usize::try_from(metadata.len())?)
}

fn report(model: &ModelInfo, outputs: &[Declared], answer: &Answer, files: &[Option<&Path>]) -> Outcome {
    let timing = &answer.timing;
    let queued = ms(millis(timing.queued));
    let (executing, batch, device) = (ms(millis(timing.executing)), timing.batch, timing.device);
    let ran = format!("queued {queued} ms, executing {executing} ms, in a batch of {batch} on device {device}\n");
    let text = match answer.status {
        Status::Ok => format!("ok: {ran}"),
        Status::Late => format!("late: {ran}"),
        Status::Dropped | Status::Cancelled => {
            output::print(&format!("dropped after {queued} ms: {}\n", answer.message()))?;
            return Ok(ExitCode::from(NEGATIVE));
        }
        Status::Failed => return Err(format!("{}: {}", model.name, answer.message()).into()),
    };
    let results = (0..outputs.len()).map(|index| output_tensor(answer, index, outputs[index].dtype));
    present(text, outputs, results.collect::<Result<_, _>>()?, files)
}

/// Writes the outputs that have a file, and shows all of them.
fn present(mut text: String, declared: &[Declared], results: Vec<HostTensor>, files: &[Option<&Path>]) -> Outcome {
    let mut table = Table::new(&["output", "type", "shape", "content"]);
    for ((output, tensor), file) in declared.iter().zip(results).zip(files) {
        let content = match file {
            Some(file) => {
                npy::write(file, &tensor)?;
                file.display().to_string()
            }
            None => tensors::summary(&tensor),
        };
        table.row(vec![output.name.clone(), tensor.dtype.to_string(), tensor.shape.to_string(), content]);
    }
    let _ = write!(text, "{}", table.text());
    output::print(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// Evaluates `$body` with `$T` the Rust type by which the client library carries elements of `$dtype`.
macro_rules! with_element {
    ($dtype:expr, $T:ident => $body:expr) => {
        with_element!(@ $dtype, $T, $body, [Bool | U8 => u8, I8 => i8, U16 | F16 | Bf16 => u16, I16 => i16, U32 => u32,
            I32 => i32, U64 => u64, I64 => i64, F32 => f32, F64 => f64])
    };
    (@ $dtype:expr, $T:ident, $body:expr, [$($($name:ident)|+ => $type:ty),+]) => {
        match $dtype {
            $($(DType::$name)|+ => { type $T = $type; $body })+
        }
    };
}

/// The memory of an input of the request, for the tensor's bytes.
fn input_bytes<'r>(request: &'r mut Request, index: usize, tensor: &HostTensor) -> Result<&'r mut [u8], Error> {
    let dims = tensor.shape.dims();
    with_element!(tensor.dtype, T => Ok(request.input::<T>(index, dims)?.as_mut_bytes()))
}

fn output_tensor(answer: &Answer, index: usize, dtype: DType) -> Result<HostTensor, Failure> {
    let (dims, bytes) = with_element!(dtype, T => {
        let view = answer.output::<T>(index)?;
        (view.dims, view.data.as_bytes())
    });
    let tensor = Shape::new(dims).and_then(|shape| HostTensor::from_bytes(dtype, shape, bytes));
    tensor.ok_or_else(|| format!("the daemon wrote {} bytes for an output of shape {dims:?}", bytes.len()).into())
}
