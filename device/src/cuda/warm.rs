//! Makes a network's plans before its first batch comes: for every size that batches run in, and both sets of buffers.
//!
//! What it costs: a size is lowered once and captured for each set. Each plan has inputs and outputs of its own on the GPU, and its outputs once
//! more in pinned memory; the sizes 1, 2, 4 … n together hold less than 2n items of each, so both sets less than 4n. Weights are there once,
//! and activations share the session's arena. Sizes are made from the largest down, so that the arena is made once.

use super::CudaError;
use super::flight::{Of, views};
use super::plan::Plan;
use super::runner::ALONE;
use crate::ShapeClass;
use crate::batched::{Batched, Runner};
use crate::profile::doubling;
use std::sync::Arc;

/// Makes the plans of a class, as far as they can be made before a request of it has come. Nothing for a network that is not on a GPU.
pub(crate) fn warm<R: Runner>(network: &mut Batched<R>, class: &ShapeClass) -> Result<(), CudaError> {
    if !network.is_on_gpu() {
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

/// The plans of all parts and stacks for one size.
fn make<R: Runner>(network: &mut Batched<R>, class: &ShapeClass, items: u32, slots: &[usize]) -> Result<(), CudaError> {
    let mut made: Vec<Arc<Plan>> = Vec::with_capacity(network.parts.len());
    let parts = (0..network.parts.len()).map(Of::Part);
    for of in parts.chain((0..network.stacks.len()).map(Of::Stack)) {
        // A class of another network's, or a part that does not give what it says: its batches go the slow way, and are told.
        let feeds = &of.part(network).feeds;
        let views = views(network, class, feeds, items as usize, |part| made.get(part).cloned());
        let Some(views) = views else { return Ok(()) };
        let Some(runner) = of.runner(network) else { return Ok(()) };
        made.push(runner.make(slots, &views)?);
    }
    Ok(())
}
