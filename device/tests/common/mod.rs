//! What the tests share: the engines of this host and the models beside them.

#[allow(dead_code, reason = "not every test asks the driver")]
pub mod standin;
pub mod timed;

use rota_device::cuda::{CudaEngine, Precision};
use rota_device::engine::{self, CompileOptions, Engine, EngineChoice};
use rota_device::sample::{self, Hints, Numbers};
use rota_device::{HostTensor, Network, Outcome, Signature};
use std::io::Write;
use std::path::PathBuf;
use std::sync::{Arc, Once};

pub fn model(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/models").join(format!("{name}.onnx"))
}

/// rten, and ONNX Runtime where its library is found.
#[allow(dead_code, reason = "not every test compares engines")]
pub fn engines() -> Vec<Arc<dyn Engine>> {
    let mut engines = vec![engine::open(&EngineChoice::Rten).unwrap().engine];
    engines.extend(onnxruntime());
    engines
}

/// The same, and our kernels on the stand-in driver's GPU.
#[allow(dead_code, reason = "not every test compares engines")]
pub fn engines_and_gpu() -> Vec<Arc<dyn Engine>> {
    standin::Standin::load(&[]);
    let mut engines = engines();
    engines.push(Arc::new(CudaEngine::open(0, Precision::Fp32).unwrap()));
    engines
}

#[allow(dead_code, reason = "not every test compares engines")]
pub fn onnxruntime() -> Option<Arc<dyn Engine>> {
    match engine::open(&EngineChoice::OnnxRuntime(None)) {
        Ok(opened) => Some(opened.engine),
        Err(error) => {
            // Past the test harness, which keeps what a passing test prints to itself.
            static ONCE: Once = Once::new();
            ONCE.call_once(|| {
                let _ = writeln!(std::io::stderr(), "skipped ONNX Runtime: {error}");
            });
            None
        }
    }
}

#[allow(dead_code, reason = "not every test loads with the usual options")]
pub fn load(engine: &dyn Engine, name: &str) -> Box<dyn Network> {
    engine.compile(&model(name), &CompileOptions { threads: 1, ..Default::default() }).unwrap()
}

/// Generated inputs of one request.
#[allow(dead_code, reason = "not every test makes its own requests")]
pub fn inputs(signature: &Signature, items: u32, hints: &Hints, seed: u64) -> Vec<HostTensor> {
    let mut numbers = Numbers(seed);
    let input =
        |spec| sample::tensor(spec, sample::shape(spec, items, hints, 1).unwrap(), hints, &mut numbers).unwrap();
    signature.inputs.iter().map(input).collect()
}

/// Executes the requests as one batch and returns each one's outcome and outputs.
#[allow(dead_code, reason = "not every test executes batches directly")]
pub fn execute(
    network: &mut dyn Network,
    requests: &[Vec<HostTensor>],
    room: &[usize],
) -> Vec<(Outcome, Vec<Option<HostTensor>>)> {
    let signature = network.signature().clone();
    let mut batch = sample::lay_out(rota_device::NetworkId(0), &signature, requests, room).unwrap();
    network.execute(&mut batch);
    let result = |i: usize| (batch.requests[i].outcome.clone(), sample::outputs(&batch, &signature, i));
    (0..requests.len()).map(result).collect()
}
