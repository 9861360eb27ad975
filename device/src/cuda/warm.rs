//! Makes a network's plans before its first batch comes: for every size that batches run in, and both sets of buffers.
//!
//! What it costs: a size is lowered once and captured for each set. Each plan has inputs and outputs of its own on the GPU, and its outputs once
//! more in pinned memory; the sizes 1, 2, 4 … n together hold less than 2n items of each, so both sets less than 4n. Weights are there once,
//! and activations share the session's arena. Sizes are made from the largest down, so that the arena is made once.

use super::CudaError;
use super::plan::Plan;
use super::runner::ALONE;
use crate::batched::{Batched, Runner};
use crate::parts::Feed;
use crate::profile::doubling;
use crate::view::View;
use crate::{Shape, ShapeClass};
use std::sync::Arc;

/// Makes the plans of a class, as far as they can be made before a request of it has come. Nothing for a network that is not on a GPU.
pub(crate) fn warm<R: Runner>(network: &mut Batched<R>, class: &ShapeClass) -> Result<(), CudaError> {
    if network.parts.iter_mut().any(|part| part.runner.on_gpu().is_none()) {
        return Ok(());
    }
    let batches = network.signature.batches();
    for items in doubling(if batches { network.max_items } else { 1 }).into_iter().rev() {
        let slots: &[usize] = match (batches, items) {
            (true, 2..) => &[0, 1],
            // A request that is run alone, to see whether it is the guilty one, has one item in most cases.
            (true, _) => &[0, 1, ALONE],
            (false, _) => &[ALONE],
        };
        match make(network, class, items, slots) {
            // Some sizes and branches hang on what only a request brings.
            Ok(()) | Err(CudaError::Lower(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The plans of all parts for one size.
fn make<R: Runner>(network: &mut Batched<R>, class: &ShapeClass, items: u32, slots: &[usize]) -> Result<(), CudaError> {
    let mut made: Vec<Arc<Plan>> = Vec::with_capacity(network.parts.len());
    for index in 0..network.parts.len() {
        let views = network.parts[index].feeds.iter().map(|feed| match *feed {
            Feed::Input(input) => {
                let spec = &network.signature.inputs[input];
                let shape = with_items(*class.inputs.get(input)?, spec.batch_axis, items)?;
                let bytes = class.constants.get(input)?.as_deref().unwrap_or(&[]);
                Some(View { dtype: spec.dtype, shape, bytes })
            }
            Feed::Port { part, port } => {
                let place = made.get(part)?.output_places.get(port)?;
                let shape = with_items(place.shape, network.parts[part].ports.get(port).copied(), items)?;
                Some(View { dtype: place.dtype, shape, bytes: &[] })
            }
        });
        // A class of another network's, or a part that does not give what it says: its batches go the slow way, and are told.
        let Some(views) = views.collect::<Option<Vec<_>>>() else { return Ok(()) };
        let runner = network.parts[index].runner.on_gpu().expect("every part is on the GPU");
        made.push(runner.make(slots, &views)?);
    }
    Ok(())
}

/// The shape with so many items along the batch axis; `None` when it has no such axis.
fn with_items(mut shape: Shape, axis: Option<usize>, items: u32) -> Option<Shape> {
    if let Some(axis) = axis {
        *shape.dims_mut().get_mut(axis)? = items;
    }
    Some(shape)
}
