//! ONNX Runtime, loaded from its shared library at run time. One session per network.
//!
//! Sessions are built through the `ort` crate; batches run through the C interface below it. The crate's own `run` is typed by
//! element and allocates names and wrappers anew for every call, while here a batch is described by vectors that are kept.

use super::signature::{Declared, signature};
use super::{CompileOptions, Engine, EngineError, EngineKind, LoadError, Loaded, stored_bytes};
use crate::batched::Runner;
use crate::view::{Inputs, View};
use crate::{DType, Dim, Shape, Signature, TensorSpec};
use ort::AsPointer;
use ort::environment::Environment;
use ort::logging::LogLevel;
use ort::memory::MemoryInfo;
use ort::session::Session;
use ort::session::builder::GraphOptimizationLevel;
use ort::sys::{self, ONNXTensorElementDataType as Code};
use ort::value::{Outlet, TensorElementType, ValueType};
use std::ffi::{CStr, CString, c_char};
use std::path::{Path, PathBuf};
use std::ptr::{self, NonNull};
use std::sync::Mutex;

pub(super) struct OnnxRuntime {
    environment: Environment,
    version: String,
}

/// The one library and environment of the process: neither can be loaded twice or unloaded.
static LOADED: Mutex<Option<(PathBuf, String, Environment)>> = Mutex::new(None);

/// What tensors may hold, for messages.
const TAKES: &str = "bool, u8 to u64, i8 to i64, f16, bf16, f32 and f64";

impl OnnxRuntime {
    /// Loads the library, or takes the one that is loaded when it is the same.
    pub(super) fn open(library: &Path) -> Result<OnnxRuntime, EngineError> {
        let mut loaded = LOADED.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let path = library.canonicalize().unwrap_or_else(|_| library.to_owned());
        if let Some((from, version, environment)) = &*loaded {
            if *from != path {
                return Err(EngineError::OtherLoaded { loaded: from.clone(), wanted: path });
            }
            return Ok(OnnxRuntime { environment: environment.clone(), version: version.clone() });
        }
        let unusable = |text: String| EngineError::Unusable { library: path.clone(), text };
        let builder = ort::init_from(&path).map_err(|error| unusable(not_loaded(error)))?;
        let version = version(&path).map_err(&unusable)?;
        let environment = builder.with_telemetry(false).build().map_err(|error| unusable(error.to_string()))?;
        // Errors come back from each call; without this the library prints them as well, and any client can cause one.
        environment.set_log_level(LogLevel::Fatal);
        *loaded = Some((path, version.clone(), environment.clone()));
        Ok(OnnxRuntime { environment, version })
    }

    fn session(&self, file: &Path, options: &CompileOptions, memory_pattern: bool) -> Result<Session, String> {
        let threads = options.threads.max(1);
        let mut builder = Session::builder(&self.environment)
            .map_err(|e| e.to_string())?
            .with_optimization_level(GraphOptimizationLevel::All)
            .map_err(|e| e.to_string())?
            .with_intra_threads(threads)
            .map_err(|e| e.to_string())?
            .with_inter_threads(1)
            .map_err(|e| e.to_string())?
            // The cores are shared with whoever polls; threads that spin between batches would take their time.
            .with_intra_op_spinning(false)
            .map_err(|e| e.to_string())?
            .with_memory_pattern(memory_pattern)
            .map_err(|e| e.to_string())?;
        if !options.cores.is_empty() && threads > 1 {
            // One entry for each thread but the calling one; the library counts processors from 1.
            let core = |thread: usize| (options.cores[thread % options.cores.len()] + 1).to_string();
            let affinities = (1..threads).map(core).collect::<Vec<_>>().join(";");
            builder = builder
                .with_config_entry("session.intra_op_thread_affinities", affinities)
                .map_err(|e| e.to_string())?;
        }
        builder.commit_from_file(file).map_err(|e| e.to_string())
    }
}

impl Engine for OnnxRuntime {
    fn describe(&self) -> String {
        format!("ONNX Runtime {}", self.version)
    }

    fn kind(&self) -> EngineKind {
        EngineKind::OnnxRuntime
    }

    fn load(&self, file: &Path, options: &CompileOptions) -> Result<Loaded, LoadError> {
        let memory_bytes = stored_bytes(file)?;
        let model = |text| LoadError::Model { file: file.to_owned(), text };
        let mut session = self.session(file, options, true).map_err(model)?;
        let declare = |role, outlets: &[Outlet]| -> Result<Vec<Declared>, LoadError> {
            outlets.iter().map(|outlet| declared(file, role, outlet)).collect()
        };
        let inputs = declare("input", session.inputs())?;
        let outputs = declare("output", session.outputs())?;
        let signature = signature(file, inputs, outputs, options)?;
        if has_open_dims(&signature) {
            // The library keeps a memory plan, worth 5 to 10 % of a batch's time, for every combination of input shapes that
            // it sees. Batch sizes are few; with shapes that clients choose the plans would grow without end. Whether there
            // are such shapes is only known once the model is loaded.
            drop(session);
            session = self.session(file, options, false).map_err(model)?;
        }
        let runner = SessionRunner::new(session).map_err(model)?;
        Ok(Loaded { signature, memory_bytes, runner: Box::new(runner) })
    }
}

/// Whether an input has a dynamic dimension besides its batch axis.
fn has_open_dims(signature: &Signature) -> bool {
    let open = |input: &TensorSpec| {
        let mut dims = input.dims.iter().enumerate();
        dims.any(|(axis, dim)| matches!(dim, Dim::Dynamic(_)) && input.batch_axis != Some(axis))
    };
    signature.inputs.iter().any(open)
}

/// Why the library was not loaded, without its path, which the error around it names.
fn not_loaded(error: ort::LoadDynamicError) -> String {
    match error {
        ort::LoadDynamicError::Dlopen { error, .. } => {
            std::error::Error::source(&error).map_or_else(|| error.to_string(), |loader| loader.to_string())
        }
        ort::LoadDynamicError::MissingApi { .. } => "it is no ONNX Runtime: it lacks OrtGetApiBase".to_owned(),
        ort::LoadDynamicError::InvalidVersionString => "its version is not text".to_owned(),
        ort::LoadDynamicError::BadVersion { version_str, .. } => {
            format!("version {version_str} is too old; 1.{} or later is needed", ort::MINOR_VERSION)
        }
    }
}

/// The library's own version, "1.32.0".
fn version(path: &Path) -> Result<String, String> {
    // SAFETY: `ort` has loaded this library before, so its initialisers have run.
    let library = unsafe { libloading::Library::new(path) }.map_err(|error| error.to_string())?;
    // SAFETY: the type is the one that ONNX Runtime's C header gives this function.
    let base: libloading::Symbol<unsafe extern "C" fn() -> *const sys::OrtApiBase> =
        unsafe { library.get(b"OrtGetApiBase") }.map_err(|error| error.to_string())?;
    // SAFETY: the function takes nothing and returns null or a table that lives as long as the library, which `ort` keeps.
    let text = unsafe { base().as_ref().map(|base| CStr::from_ptr((base.GetVersionString)())) };
    Ok(text.ok_or("the library has no interface table")?.to_string_lossy().into_owned())
}

fn declared(file: &Path, role: &'static str, outlet: &Outlet) -> Result<Declared, LoadError> {
    let refuse = |dtype: String| LoadError::DType {
        file: file.to_owned(),
        role,
        tensor: outlet.name().to_owned(),
        dtype,
        engine: "ONNX Runtime",
        takes: TAKES,
    };
    let ValueType::Tensor { ty, shape, dimension_symbols } = outlet.dtype() else {
        return Err(refuse("not a tensor".to_owned()));
    };
    let dtype = dtype(*ty).ok_or_else(|| refuse(ty.to_string()))?;
    let dim = |(size, name): (&i64, &String)| match u32::try_from(*size) {
        Ok(size) => Dim::Fixed(size),
        Err(_) => Dim::Dynamic(name.clone()),
    };
    let dims = shape.iter().zip(dimension_symbols.iter()).map(dim).collect();
    Ok(Declared { name: outlet.name().to_owned(), dtype, dims })
}

fn dtype(element: TensorElementType) -> Option<DType> {
    Some(match element {
        TensorElementType::Bool => DType::Bool,
        TensorElementType::Uint8 => DType::U8,
        TensorElementType::Int8 => DType::I8,
        TensorElementType::Uint16 => DType::U16,
        TensorElementType::Int16 => DType::I16,
        TensorElementType::Uint32 => DType::U32,
        TensorElementType::Int32 => DType::I32,
        TensorElementType::Uint64 => DType::U64,
        TensorElementType::Int64 => DType::I64,
        TensorElementType::Float16 => DType::F16,
        TensorElementType::Bfloat16 => DType::Bf16,
        TensorElementType::Float32 => DType::F32,
        TensorElementType::Float64 => DType::F64,
        _ => return None,
    })
}

fn code(dtype: DType) -> Code {
    match dtype {
        DType::Bool => Code::ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL,
        DType::U8 => Code::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8,
        DType::I8 => Code::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8,
        DType::U16 => Code::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT16,
        DType::I16 => Code::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT16,
        DType::U32 => Code::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT32,
        DType::I32 => Code::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32,
        DType::U64 => Code::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT64,
        DType::I64 => Code::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64,
        DType::F16 => Code::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16,
        DType::Bf16 => Code::ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16,
        DType::F32 => Code::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
        DType::F64 => Code::ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE,
    }
}

/// A value of the library's, freed with it.
///
/// Transparent, so that a slice of them is an array of pointers to the C interface, and `Option` makes it one that may be null.
#[repr(transparent)]
struct Value(NonNull<sys::OrtValue>);

impl Drop for Value {
    fn drop(&mut self) {
        // SAFETY: the value came from the library, is owned by `self` alone, and is not used again.
        unsafe { (ort::api().ReleaseValue)(self.0.as_ptr()) }
    }
}

struct SessionRunner {
    session: Session,
    memory: MemoryInfo<'static>,
    input_names: Names,
    output_names: Names,
    /// The batch's inputs: values that point into the caller's buffers, and are gone when `run` returns.
    inputs: Vec<Value>,
    outputs: Vec<Option<Value>>,
}

// SAFETY: a session may be used from any thread, one at a time, and so may values and names, which hold no thread's state.
// `Runner::run` takes `&mut self`.
unsafe impl Send for SessionRunner {}

impl SessionRunner {
    fn new(session: Session) -> Result<SessionRunner, String> {
        let (input_names, output_names) = (Names::new(session.inputs())?, Names::new(session.outputs())?);
        let outputs = output_names.pointers.iter().map(|_| None).collect();
        let inputs = Vec::with_capacity(input_names.pointers.len());
        Ok(SessionRunner { session, memory: MemoryInfo::default(), input_names, output_names, inputs, outputs })
    }

    /// A value over the tensor's bytes, without a copy.
    fn value(&self, tensor: View<'_>) -> Result<Value, String> {
        let mut dims = [0i64; Shape::RANK_MAX];
        let shape = tensor.shape.dims();
        dims.iter_mut().zip(shape).for_each(|(to, &from)| *to = i64::from(from));
        let mut value = ptr::null_mut();
        // SAFETY: `memory` and `dims` are valid for the call; the library checks that the shape fits the given length. It only
        // reads inputs, and `run` drops the value before the tensor's borrow ends.
        let status = unsafe {
            (ort::api().CreateTensorWithDataAsOrtValue)(
                self.memory.ptr(),
                tensor.bytes.as_ptr().cast_mut().cast(),
                tensor.bytes.len(),
                dims.as_ptr(),
                shape.len(),
                code(tensor.dtype),
                &mut value,
            )
        };
        checked(status)?;
        NonNull::new(value).map(Value).ok_or_else(|| "the library made no value".to_owned())
    }
}

impl Runner for SessionRunner {
    fn run(&mut self, inputs: &dyn Inputs) -> Result<(), String> {
        self.release();
        for index in 0..inputs.count() {
            let value = self.value(inputs.get(index))?;
            self.inputs.push(value);
        }
        if self.inputs.len() != self.input_names.pointers.len() {
            return Err(format!("{} inputs, the session has {}", inputs.count(), self.input_names.pointers.len()));
        }
        // SAFETY: the session is alive and used by this thread alone (`&mut self`); names and values are arrays of as many
        // pointers as is said, and `outputs` has room for as many values as there are names; a null entry asks the library to
        // allocate. `Value` and `Option<Value>` have the layout of pointers.
        let status = unsafe {
            (ort::api().Run)(
                self.session.ptr().cast_mut(),
                ptr::null(),
                self.input_names.pointers.as_ptr(),
                self.inputs.as_ptr().cast(),
                self.inputs.len(),
                self.output_names.pointers.as_ptr(),
                self.outputs.len(),
                self.outputs.as_mut_ptr().cast(),
            )
        };
        self.inputs.clear();
        checked(status)
    }

    fn output(&self, index: usize) -> Result<View<'_>, String> {
        let value = self.outputs[index].as_ref().ok_or("the engine left out an output")?.0;
        let (mut element, mut dims, mut rank) = (Code::ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED, ptr::null(), 0);
        let mut data = ptr::null_mut();
        // SAFETY: the value is alive and a tensor (the model declares it as one); the out pointers are valid for writing.
        unsafe {
            let api = ort::api();
            checked((api.GetTensorElementTypeAndShapeDataReference)(
                value.as_ptr(),
                &mut element,
                &mut dims,
                &mut rank,
            ))?;
            checked((api.GetTensorMutableData)(value.as_ptr(), &mut data))?;
        }
        let mut shape = Shape::new(&[0; Shape::RANK_MAX][..rank.min(Shape::RANK_MAX)]).unwrap_or_default();
        if rank > Shape::RANK_MAX {
            return Err(format!("an output has {rank} dimensions; at most {} are carried", Shape::RANK_MAX));
        }
        for (axis, to) in shape.dims_mut().iter_mut().enumerate() {
            // SAFETY: `dims` points to `rank` numbers that live as long as the value.
            let size = unsafe { *dims.add(axis) };
            *to = u32::try_from(size).map_err(|_| format!("an output has a dimension of {size}"))?;
        }
        let dtype = dtype(element.into()).ok_or("an output has an element type that is not carried")?;
        let bytes = shape.elements().and_then(|n| n.checked_mul(dtype.bytes())).ok_or("an output is too large")?;
        let bytes = match NonNull::new(data) {
            // SAFETY: a tensor's data is dense: as many elements as its shape says, written by the library, and neither moved
            // nor written while `self` is borrowed.
            Some(data) if bytes > 0 => unsafe { std::slice::from_raw_parts(data.as_ptr().cast::<u8>(), bytes) },
            None if bytes > 0 => return Err("an output has no data".to_owned()),
            _ => &[],
        };
        Ok(View { dtype, shape, bytes })
    }

    fn release(&mut self) {
        self.inputs.clear();
        self.outputs.iter_mut().for_each(|output| *output = None);
    }
}

/// Names as the C interface takes them.
struct Names {
    pointers: Vec<*const c_char>,
    /// What `pointers` point into; never changed.
    _owned: Vec<CString>,
}

impl Names {
    fn new(outlets: &[Outlet]) -> Result<Names, String> {
        let owned: Result<Vec<CString>, _> = outlets.iter().map(|outlet| CString::new(outlet.name())).collect();
        let owned = owned.map_err(|_| "a tensor's name holds a zero byte".to_owned())?;
        Ok(Names { pointers: owned.iter().map(|name| name.as_ptr()).collect(), _owned: owned })
    }
}

fn checked(status: sys::OrtStatusPtr) -> Result<(), String> {
    // SAFETY: the status came from a call just made, and is given away here.
    unsafe { ort::Error::result_from_status(status) }.map_err(|error| error.to_string())
}
