//! What `check_batching` finds, and what `measure` measures.

mod common;

use common::{engines, execute, load};
use rota_device::check::{CheckError, check_batching};
use rota_device::emulated::EmulatedProfile;
use rota_device::profile::{Budget, MeasureError, RUNS_MIN, doubling, measure};
use rota_device::sample::Hints;
use rota_device::{DType, Dim, EmulatedNetwork, HostTensor, Outcome, Pace, Signature, TensorSpec};
use std::time::Duration;

/// Output batch axes that the check gives a model.
fn axes(signature: &Signature) -> Vec<Option<usize>> {
    signature.outputs.iter().map(|output| output.batch_axis).collect()
}

#[test]
fn sound_models_keep_or_gain_their_batch_axes() {
    let cases: [(&str, &[Option<usize>]); 7] = [
        ("mlp", &[Some(0)]),
        ("gather", &[Some(0)]),
        ("state", &[Some(0), Some(1)]),
        ("flags", &[Some(0), Some(0), Some(0)]),
        ("transposed", &[Some(1)]),
        ("shared", &[Some(0), None]),
        ("width", &[Some(0)]),
    ];
    for engine in engines() {
        for (name, expected) in cases {
            let mut network = load(&*engine, name);
            let checked = check_batching(&mut *network, &Hints::default()).unwrap();
            assert_eq!(checked.finding, None, "{name} on {}", engine.describe());
            assert_eq!(axes(&checked.signature), expected, "{name} on {}", engine.describe());
            assert_eq!(*network.signature(), checked.signature);
        }
    }
}

#[test]
fn models_whose_items_do_not_keep_apart_are_found_and_served_one_by_one() {
    let cases = [
        ("tinged", "output 'y' changes with what shares its batch: served one by one"),
        ("sized", "output 'y' changes with what shares its batch: served one by one"),
        ("mixing", "output 'y' changes with what shares its batch: served one by one"),
        (
            "flattened",
            "output 'y' has no axis for the batch: 1, 2, 3 items give shapes [3], [6], [9]: served one by one",
        ),
        ("fixed", "its batch is fixed: served one by one"),
    ];
    for engine in engines() {
        for (name, expected) in cases {
            let mut network = load(&*engine, name);
            let checked = check_batching(&mut *network, &Hints::default()).unwrap();
            assert_eq!(checked.finding.as_deref(), Some(expected), "{name} on {}", engine.describe());
            assert!(!checked.signature.batches(), "{name} on {}", engine.describe());
        }
        let mut network = load(&*engine, "mixing");
        check_batching(&mut *network, &Hints::default()).unwrap();
        // One request may still bring a batch of its own: it is its own and only item.
        let values = [1f32, 2.0, 3.0, 4.0, 3.0, 4.0, 5.0, 6.0];
        let request = || vec![HostTensor::from_elements(&[2, 4], &values).unwrap()];
        for (outcome, outputs) in execute(&mut *network, &[request(), request()], &[64]) {
            assert_eq!(outcome, Outcome::Done);
            assert_eq!(
                outputs[0].as_ref().unwrap().bytes.elements::<f32>(),
                [-1.0, -1.0, -1.0, -1.0, 1.0, 1.0, 1.0, 1.0]
            );
        }
    }
}

#[test]
fn rounding_that_no_neighbour_causes_is_let_pass_and_said() {
    for engine in engines() {
        let mut network = load(&*engine, "rounding");
        let checked = check_batching(&mut *network, &Hints::default()).unwrap();
        assert_eq!(checked.finding, None, "{}", engine.describe());
        assert_eq!(checked.remark.as_deref(), Some("output 'y' rounds by up to 0.5% in a batch"));
        let checked = check_batching(&mut *load(&*engine, "mlp"), &Hints::default()).unwrap();
        assert_eq!(checked.remark, None);
    }
}

#[test]
fn sizes_are_tried_until_the_engine_runs_and_hints_come_first() {
    for engine in engines() {
        let mut network = load(&*engine, "width");
        let checked = check_batching(&mut *network, &Hints::default()).unwrap();
        assert_eq!(checked.hints.sizes.get("width"), Some(&8), "the first size that is a multiple of 8");
        let mut network = load(&*engine, "width");
        let hints = Hints { sizes: [("width".into(), 40)].into(), ..Default::default() };
        assert_eq!(check_batching(&mut *network, &hints).unwrap().hints, hints);
        let hints = Hints { sizes: [("width".into(), 5)].into(), ..Default::default() };
        let error = check_batching(&mut *network, &hints).unwrap_err();
        assert!(matches!(error, CheckError::DoesNotRun(_)), "{error}");
    }
}

#[test]
fn an_index_needs_its_range_from_a_hint() {
    for engine in engines() {
        let mut network = load(&*engine, "gather");
        let hints = Hints { ranges: [("index".into(), (8.0, 9.0))].into(), ..Default::default() };
        let error = check_batching(&mut *network, &hints).unwrap_err();
        assert!(matches!(error, CheckError::DoesNotRun(_)), "{error}");
        let hints = Hints { ranges: [("index".into(), (-8.0, 7.0))].into(), ..Default::default() };
        assert_eq!(check_batching(&mut *network, &hints).unwrap().finding, None);
    }
}

#[test]
fn half_precision_is_checked_within_its_tolerance() {
    for engine in engines().iter().skip(1) {
        let mut network = load(&**engine, "half");
        assert_eq!(network.signature().inputs[0].dtype, DType::F16);
        assert_eq!(check_batching(&mut *network, &Hints::default()).unwrap().finding, None);
    }
}

#[test]
fn every_batch_size_is_measured_with_its_copies() {
    for engine in engines() {
        let mut network = load(&*engine, "mlp");
        check_batching(&mut *network, &Hints::default()).unwrap();
        let budget = Budget { time_per_batch: Duration::from_millis(20), runs_max: 10, ..Default::default() };
        let mut told = Vec::new();
        let points = measure(&mut *network, &Hints::default(), &doubling(12), budget, &mut |p| told.push(p)).unwrap();
        assert_eq!(points.iter().map(|point| point.batch).collect::<Vec<_>>(), [1, 2, 4, 8, 12]);
        for point in &points {
            assert!(!point.latency.is_zero() && point.latency <= point.p95);
            assert!((RUNS_MIN..=10).contains(&point.runs));
        }
        assert_eq!(told.len() as u32, points.iter().map(|point| point.runs).sum::<u32>());
        assert!(told.is_sorted_by_key(|progress| (progress.step, progress.run)));
    }
}

#[test]
fn measuring_stops_after_a_batch_that_takes_too_long_and_at_one_without_a_batch_axis() {
    for engine in engines() {
        let mut network = load(&*engine, "mlp");
        let budget = Budget { longest_batch: Duration::ZERO, runs_max: 3, ..Default::default() };
        let points = measure(&mut *network, &Hints::default(), &[4, 8], budget, &mut |_| {}).unwrap();
        assert_eq!(points.len(), 1);
        assert_eq!(points[0].batch, 4);
        let mut network = load(&*engine, "fixed");
        let points = measure(&mut *network, &Hints::default(), &[1, 2, 4], Budget::default(), &mut |_| {}).unwrap();
        assert_eq!(points.iter().map(|point| point.batch).collect::<Vec<_>>(), [1]);
        let error = measure(&mut *load(&*engine, "mlp"), &Hints::default(), &[0], Budget::default(), &mut |_| {});
        assert!(matches!(error, Err(MeasureError::NoBatches)));
    }
}

#[test]
fn an_emulated_network_passes_the_check_too() {
    let tensor =
        |name: &str, dims: Vec<Dim>, batch_axis| TensorSpec { name: name.into(), dtype: DType::F32, dims, batch_axis };
    let batch = || Dim::Dynamic("batch".into());
    let profile = EmulatedProfile {
        model: "a".into(),
        signature: Signature {
            inputs: vec![tensor("x", vec![Dim::Fixed(2), batch(), Dim::Dynamic("width".into())], Some(1))],
            outputs: vec![tensor("y", vec![Dim::Fixed(3), Dim::Dynamic("width".into()), batch()], Some(2))],
        },
        pace: Pace::new([(1, Duration::ZERO)]).unwrap(),
        memory_bytes: 0,
        suffix: None,
    };
    let mut network = EmulatedNetwork::new(&profile);
    let checked = check_batching(&mut network, &Hints::default()).unwrap();
    assert_eq!(checked.finding, None);
    assert_eq!(checked.signature, profile.signature);
}
