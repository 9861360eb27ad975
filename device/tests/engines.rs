//! Both engines, through `execute`: gathered, run, scattered, and compared with each request alone and with each other.

mod common;

use common::{engines, execute, inputs, load, model, onnxruntime};
use rota_device::engine::{CompileOptions, LoadError};
use rota_device::sample::{self, Hints};
use rota_device::{Batch, DType, EngineKind, HostTensor, Network, NetworkId, Outcome, Shape, Span};

/// Room for any output of the small models.
const ROOM: usize = 4096;

fn room(network: &dyn Network) -> Vec<usize> {
    vec![ROOM; network.signature().outputs.len()]
}

fn run_alone(network: &mut dyn Network, request: &[HostTensor]) -> Vec<Option<HostTensor>> {
    network.run(request).unwrap().into_iter().map(Some).collect()
}

#[track_caller]
fn assert_near(found: &[Option<HostTensor>], expected: &[Option<HostTensor>], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        let (found, expected) = (found.as_ref().expect(what), expected.as_ref().expect(what));
        assert_eq!((found.dtype, found.shape), (expected.dtype, expected.shape), "{what}, output {index}");
        if found.dtype == DType::F32 {
            let pairs = found.bytes.elements::<f32>().iter().zip(expected.bytes.elements::<f32>());
            let worst = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst <= 1e-5, "{what}, output {index}: {worst}");
        } else {
            assert_eq!(found.bytes, expected.bytes, "{what}, output {index}");
        }
    }
}

#[test]
fn each_request_of_a_batch_gets_what_it_would_get_alone() {
    for engine in engines() {
        for name in ["mlp", "gather", "state", "flags", "shared", "width", "fixed", "half", "double"] {
            if engine.kind() == EngineKind::Rten && matches!(name, "half" | "double") {
                continue;
            }
            let mut network = load(&*engine, name);
            let hints = Hints { sizes: [("width".into(), 16)].into(), ..Default::default() };
            let batches = network.signature().batches();
            let items = if batches { [1, 3, 2] } else { [1, 1, 1] };
            let shared = inputs(network.signature(), 1, &hints, 9);
            let request = |(seed, &items): (usize, &u32)| {
                let mut tensors = inputs(network.signature(), items, &hints, seed as u64);
                for (i, spec) in network.signature().inputs.iter().enumerate() {
                    if batches && spec.batch_axis.is_none() {
                        tensors[i] = shared[i].clone();
                    }
                }
                tensors
            };
            let requests: Vec<Vec<HostTensor>> = items.iter().enumerate().map(request).collect();
            let room = room(&*network);
            let results = execute(&mut *network, &requests, &room);
            for (i, (outcome, outputs)) in results.iter().enumerate() {
                let what = format!("{name} on {}, request {i}", engine.describe());
                assert_eq!(*outcome, Outcome::Done, "{what}");
                assert_near(outputs, &run_alone(&mut *network, &requests[i]), &what);
            }
        }
    }
}

#[test]
fn the_engines_agree_on_signature_and_results() {
    let Some(onnxruntime) = onnxruntime() else { return };
    let rten = rota_device::engine::open(&rota_device::EngineChoice::Rten).unwrap().engine;
    for name in ["mlp", "gather", "state", "flags", "shared", "width", "fixed", "transposed", "mixing", "flattened"] {
        let (mut one, mut other) = (load(&*onnxruntime, name), load(&*rten, name));
        assert_eq!(one.signature(), other.signature(), "{name}");
        let hints = Hints { sizes: [("width".into(), 24)].into(), ..Default::default() };
        let request = inputs(one.signature(), 3, &hints, 5);
        assert_near(&run_alone(&mut *one, &request), &run_alone(&mut *other, &request), name);
    }
}

#[test]
fn several_pinned_threads_compute_the_same() {
    for engine in engines() {
        let options = CompileOptions { threads: 2, cores: vec![1, 0], max_batch: Some(8), ..Default::default() };
        let mut network = engine.compile(&model("mlp"), &options).unwrap();
        let mut single = load(&*engine, "mlp");
        for items in [1, 8, 30] {
            let request = inputs(network.signature(), items, &Hints::default(), 3);
            let what = format!("{items} items on {}", engine.describe());
            assert_near(&run_alone(&mut *network, &request), &run_alone(&mut *single, &request), &what);
        }
    }
}

#[test]
fn a_bad_index_fails_its_own_request_only() {
    for engine in engines() {
        let mut network = load(&*engine, "gather");
        let index = |values: [i64; 2]| vec![HostTensor::from_elements(&[1, 2], &values).unwrap()];
        let requests = [index([0, 7]), index([1, 800]), index([-8, 3])];
        let room = room(&*network);
        let results = execute(&mut *network, &requests, &room);
        for stranger in [0, 2] {
            assert_eq!(results[stranger].0, Outcome::Done, "{}", engine.describe());
            assert_near(&results[stranger].1, &run_alone(&mut *network, &requests[stranger]), "a stranger");
        }
        let Outcome::Failed(text) = &results[1].0 else { panic!("{}: {:?}", engine.describe(), results[1].0) };
        assert!(!text.is_empty());
        assert_eq!(results[1].1, [None]);
        let again = execute(&mut *network, &requests[..1], &room);
        assert_eq!(again[0].0, Outcome::Done, "the network is usable after a failure");
    }
}

/// A batch of three sound requests for the mlp, to be spoiled.
fn mlp_batch(network: &dyn Network) -> Box<Batch> {
    let requests: Vec<_> = (0..3).map(|seed| inputs(network.signature(), 1, &Hints::default(), seed)).collect();
    sample::lay_out(NetworkId(0), network.signature(), &requests, &[16]).unwrap()
}

#[test]
fn an_unsound_request_fails_with_a_reason_and_its_neighbours_do_not() {
    type Spoil = fn(&mut Batch);
    let cases: [(Spoil, &str); 5] = [
        (|batch| batch.spans[2].offset = 1 << 40, "input 'x' lies outside its arena"),
        (|batch| batch.spans[2].offset = usize::MAX - 8, "input 'x' lies outside its arena"),
        (|batch| batch.spans[2].bytes = 60, "input 'x' has 60 bytes, its shape needs 64"),
        (|batch| batch.spans[3].offset = 1 << 40, "output 'y' lies outside its arena"),
        (|batch| batch.requests[1].items = 0, "0 items in a request; this network takes at least 1"),
    ];
    for engine in engines() {
        for (spoil, expected) in cases {
            let mut network = load(&*engine, "mlp");
            let mut batch = mlp_batch(&*network);
            spoil(&mut batch);
            network.execute(&mut batch);
            assert_eq!(batch.requests[1].outcome, Outcome::Failed(expected.into()));
            assert_eq!(batch.requests[0].outcome, Outcome::Done);
            assert_eq!(batch.requests[2].outcome, Outcome::Done);
        }
    }
}

#[test]
fn outputs_may_be_unwanted_and_must_fit() {
    for engine in engines() {
        let mut network = load(&*engine, "mlp");
        let mut batch = mlp_batch(&*network);
        batch.spans[1] = Span { offset: Span::UNWANTED, bytes: 0 };
        batch.spans[3].bytes = 15;
        network.execute(&mut batch);
        let outcomes: Vec<&Outcome> = batch.requests.iter().map(|r| &r.outcome).collect();
        let small = Outcome::OutputTooSmall { output: 0, needed: 16, room: 15 };
        assert_eq!(outcomes, [&Outcome::Done, &small, &Outcome::Done]);
        assert_eq!(batch.written[0], Default::default());
        assert_eq!(batch.written[2].shape, Shape::new(&[1, 4]).unwrap());
        assert!(batch.started.is_some() && !batch.took.is_zero());
    }
}

#[test]
fn a_batch_with_too_few_spans_fails_whole() {
    for engine in engines() {
        let mut network = load(&*engine, "mlp");
        let mut batch = mlp_batch(&*network);
        batch.spans.pop();
        network.execute(&mut batch);
        for request in &batch.requests {
            assert_eq!(request.outcome, Outcome::Failed("the batch has 5 spans, its requests need 6".into()));
        }
    }
}

#[test]
fn booleans_of_any_byte_count_as_true() {
    for engine in engines() {
        let mut network = load(&*engine, "flags");
        let a = HostTensor::from_elements(&[1, 4], &[5i64, 6, 7, 1]).unwrap();
        let keep = HostTensor::from_bytes(DType::Bool, Shape::new(&[1, 4]).unwrap(), &[2, 0, 255, 1]).unwrap();
        let results = execute(&mut *network, &[vec![a, keep]], &[32, 4, 16]);
        assert_eq!(results[0].0, Outcome::Done);
        let outputs: Vec<&HostTensor> = results[0].1.iter().map(|output| output.as_ref().unwrap()).collect();
        assert_eq!(outputs[0].bytes.elements::<i64>(), [5, -1, 7, 1]);
        assert_eq!(&*outputs[1].bytes, [1, 1, 1, 0]);
        assert_eq!(outputs[2].bytes.elements::<i32>(), [5, -1, 7, 1]);
    }
}

#[test]
fn what_an_engine_does_not_carry_is_named() {
    let rten = rota_device::engine::open(&rota_device::EngineChoice::Rten).unwrap().engine;
    let error = rten.compile(&model("half"), &CompileOptions::default()).err().unwrap();
    assert!(matches!(&error, LoadError::DType { tensor, .. } if tensor == "x"), "{error}");
    assert!(error.to_string().ends_with("input 'x' is FLOAT16; rten takes bool, u8, i8, i32, i64 and f32"), "{error}");
    for engine in engines() {
        let error = engine.compile(&model("absent"), &CompileOptions::default()).err().unwrap();
        assert!(matches!(error, LoadError::Io { .. }), "{error}");
        let error = engine.compile(&model("make.py").with_extension(""), &CompileOptions::default()).err().unwrap();
        assert!(matches!(error, LoadError::Model { .. }), "{}: {error}", engine.describe());
    }
}

#[test]
fn integers_that_rten_cannot_hold_fail_their_request() {
    let rten = rota_device::engine::open(&rota_device::EngineChoice::Rten).unwrap().engine;
    let mut network = load(&*rten, "flags");
    let request = |value: i64| {
        let a = HostTensor::from_elements(&[1, 4], &[value, 0, 0, 0]).unwrap();
        vec![a, HostTensor::from_bytes(DType::Bool, Shape::new(&[1, 4]).unwrap(), &[1; 4]).unwrap()]
    };
    let results = execute(&mut *network, &[request(1), request(1 << 40)], &[32, 4, 16]);
    assert_eq!(results[0].0, Outcome::Done);
    let text = "1099511627776 is out of the range of i32, in which rten computes";
    assert_eq!(results[1].0, Outcome::Failed(text.into()));
}
