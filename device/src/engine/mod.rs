//! Engines: what turns a model's file into a [`Network`] on the host's cores.
//!
//! ONNX Runtime is the faster one and a shared library that a host may lack; rten is built in. Both give the same answers
//! within rounding, and the tests hold them to it.

mod locate;
mod onnxruntime;
mod rten;
mod signature;
mod wire_check;

pub(crate) use signature::{Declared, signature as declared_signature};

use crate::batched::{Batched, Runner};
use crate::cuda::Precision;
use crate::{Arena, Network, Signature};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Loads networks. One per process and kind is enough: networks do not share threads or state.
pub trait Engine: Send + Sync {
    /// "ONNX Runtime 1.32.0".
    fn describe(&self) -> String;
    fn kind(&self) -> EngineKind;
    /// The same for a network that is loaded so: what its times depend on.
    fn describe_with(&self, _options: &CompileOptions) -> String {
        self.describe()
    }
    /// Loads the ONNX model in `file`, whole or part of one. Slow (seconds for large models): not for a thread that serves.
    fn load(&self, file: &Path, options: &CompileOptions) -> Result<Loaded, LoadError>;
    /// A client has come with this memory: whatever makes copies from and to it faster may be done now. Slow: not for a thread that serves.
    fn adopt(&self, _arena: &Arena) {}
    /// The client that came with it has gone, and only the caller and batches have its memory any more: undoes [`Engine::adopt`]. False while a
    /// batch has it; ask again then. As slow.
    fn let_go(&self, _arena: &Arena) -> bool {
        true
    }
    /// What lies in the device's own memory, where it has some and answers at once.
    fn usage(&self) -> Option<Usage> {
        None
    }
    /// Loads a model as a network of its own.
    fn compile(&self, file: &Path, options: &CompileOptions) -> Result<Box<dyn Network>, LoadError> {
        let Loaded { signature, memory_bytes, runner } = self.load(file, options)?;
        let mut network = Batched::new(signature, memory_bytes, runner);
        network.reserve(options.max_batch.unwrap_or(0));
        Ok(Box::new(network))
    }
}

/// Bytes of a device's own memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Usage {
    pub weights: u64,
    /// Inputs and outputs of plans.
    pub plans: u64,
    /// The arena of activations that plans made from now on share; older, smaller ones live as long as their plans.
    pub activations: u64,
    pub free: u64,
    pub total: u64,
}

/// A model that an engine has loaded: what a network is made of.
pub struct Loaded {
    pub(crate) signature: Signature,
    pub(crate) memory_bytes: u64,
    pub(crate) runner: Box<dyn Runner>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EngineKind {
    OnnxRuntime,
    Rten,
    /// Our own kernels on a GPU.
    Cuda,
}

/// Which engine to open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum EngineChoice {
    /// ONNX Runtime where its library is found, else rten.
    #[default]
    Auto,
    /// ONNX Runtime, from this library or, with `None`, from where [`EngineChoice::Auto`] looks.
    OnnxRuntime(Option<PathBuf>),
    Rten,
}

/// How to load a network.
#[derive(Clone, Debug, Default)]
pub struct CompileOptions {
    /// Threads of one batch, the one that calls `execute` included; 0 counts as 1.
    pub threads: usize,
    /// Cores of those threads, the calling one's first; empty: wherever the system puts them. The engine pins its own
    /// threads, never the caller.
    pub cores: Vec<usize>,
    /// Batch buffers are made large enough for this many items at once, where every other dimension is fixed; larger batches
    /// grow them.
    pub max_batch: Option<u32>,
    /// The name of the dynamic dimension that requests are batched along; `None`: found by the rule in [`crate::check`].
    pub batch_symbol: Option<String>,
    /// By name of input or output: its batch axis, or `None` for a tensor that has none. Comes before any rule.
    pub batch_axes: BTreeMap<String, Option<usize>>,
    /// In what numbers a GPU computes products; `None`: as its engine was opened. Other engines compute as the model says.
    pub precision: Option<Precision>,
    /// Of a stack ([`crate::parts::StackSpec`]): how many members it has. A device may then compute less of it than all members' answers
    /// to all items. 0 for what is none.
    pub stack_members: u32,
}

/// An engine, and what was not found on the way to it.
pub struct Opened {
    pub engine: Arc<dyn Engine>,
    /// Why it is not the preferred one, in words, for the log.
    pub fell_back: Option<String>,
}

/// Opens the engine of `choice`.
pub fn open(choice: &EngineChoice) -> Result<Opened, EngineError> {
    let preferred = |engine: Arc<dyn Engine>| Opened { engine, fell_back: None };
    match choice {
        EngineChoice::Rten => Ok(preferred(Arc::new(rten::Rten))),
        EngineChoice::OnnxRuntime(Some(library)) => Ok(preferred(Arc::new(onnxruntime::OnnxRuntime::open(library)?))),
        EngineChoice::OnnxRuntime(None) => Ok(preferred(Arc::new(locate::open()?))),
        EngineChoice::Auto => match locate::open() {
            Ok(engine) => Ok(preferred(Arc::new(engine))),
            Err(error) => Ok(Opened {
                engine: Arc::new(rten::Rten),
                fell_back: Some(format!("{error}; using rten, which is slower")),
            }),
        },
    }
}

/// An engine can't be used on this host.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// No file by that name in any place where it is looked for.
    #[error(
        "ONNX Runtime's library was not found: set {variable} to libonnxruntime.so, or place it under third_party/onnxruntime; looked in {looked}"
    )]
    NotFound { variable: &'static str, looked: String },
    /// The file is there and does not serve: not a library, too old, or refused by the loader.
    #[error("ONNX Runtime in {library}: {text}")]
    Unusable { library: PathBuf, text: String },
    /// A process holds one ONNX Runtime, for good.
    #[error("ONNX Runtime is loaded from {loaded}; a process can't load a second one from {wanted}")]
    OtherLoaded { loaded: PathBuf, wanted: PathBuf },
}

/// A model can't be loaded. Nothing is left behind.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("{file}: {error}")]
    Io { file: PathBuf, error: std::io::Error },
    /// The file is not a model that the engine can run: its own words.
    #[error("{file}: {text}")]
    Model { file: PathBuf, text: String },
    /// An input or output has an element type that the engine, or this crate, does not carry.
    #[error("{file}: {role} '{tensor}' is {dtype}; {engine} takes {takes}")]
    DType {
        file: PathBuf,
        role: &'static str,
        tensor: String,
        dtype: String,
        engine: &'static str,
        takes: &'static str,
    },
    /// An input or output has more dimensions than [`crate::Shape::RANK_MAX`].
    #[error("{file}: {role} '{tensor}' has {rank} dimensions; at most 8 are carried")]
    Rank { file: PathBuf, role: &'static str, tensor: String, rank: usize },
    /// An override of [`CompileOptions`] fits no tensor of the model: the caller's mistake.
    #[error("{file}: {text}")]
    BatchAxis { file: PathBuf, text: String },
}

/// Bytes of the model file and of the files beside it that start with its name (external weights): what loading it holds at
/// least.
fn stored_bytes(file: &Path) -> Result<u64, LoadError> {
    let io = |error| LoadError::Io { file: file.to_owned(), error };
    let name = file.file_name().unwrap_or_default().as_encoded_bytes();
    let mut bytes = std::fs::metadata(file).map_err(io)?.len();
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    for entry in std::fs::read_dir(folder).map_err(io)?.flatten() {
        let beside = entry.file_name();
        let beside = beside.as_encoded_bytes();
        if beside.len() > name.len() && beside.starts_with(name) {
            bytes += entry.metadata().map(|m| m.len()).unwrap_or(0);
        }
    }
    Ok(bytes)
}
