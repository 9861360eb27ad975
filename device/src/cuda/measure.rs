//! What a model takes on a GPU, by the GPU's own clock: copies and kernels apart.

use super::CudaError;
use super::driver::{Event, PinnedMemory};
use super::engine::CudaEngine;
use super::model::Model;
use crate::view::{Inputs, View};
use crate::{CompileOptions, HostTensor, engine};
use rota_kernels::Cost;
use std::path::Path;
use std::time::{Duration, Instant};

/// One batch: from pinned memory to the GPU, through the kernels, and back to pinned memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchTime {
    pub copy_in: Duration,
    /// One launch of the captured graph.
    pub execute: Duration,
    pub copy_out: Duration,
}

/// A model on inputs of one shape.
#[derive(Clone, Debug)]
pub struct Measured {
    pub outputs: Vec<HostTensor>,
    /// In the order in which they were taken.
    pub samples: Vec<BatchTime>,
    /// Kernels of the captured graph, and what they move and compute.
    pub launches: usize,
    pub cost: Cost,
    /// Bytes that a batch brings, and takes away.
    pub bytes_in: u64,
    pub bytes_out: u64,
    /// Lowering, uploading the weights and capturing.
    pub prepared_in: Duration,
}

/// A model can't be measured.
#[derive(Debug, thiserror::Error)]
pub enum MeasureError {
    #[error(transparent)]
    Load(#[from] engine::LoadError),
    #[error(transparent)]
    Cuda(#[from] CudaError),
}

impl CudaEngine {
    /// Runs the model in `file` on `inputs`, batch axis included, once more than `samples` times, or until `budget` is spent.
    pub fn measure(
        &self,
        file: &Path,
        options: &CompileOptions,
        inputs: &[HostTensor],
        samples: u32,
        budget: Duration,
    ) -> Result<Measured, MeasureError> {
        let begin = Instant::now();
        let plan = self.runner(Model::read(file, options)?, options).find(SLOT, &Batch(inputs))?;
        let prepared_in = begin.elapsed();
        let session = &plan.session;
        session.context.enter().map_err(|error| session.noted(error))?;
        let pinned = inputs.iter().map(|input| PinnedMemory::of(&session.context, &input.bytes));
        let pinned = pinned.collect::<Result<Vec<_>, _>>().map_err(|error| session.noted(error))?;
        let event = || Event::new(&session.context).map_err(|error| session.noted(error));
        let events = [event()?, event()?, event()?, event()?];
        let run = || -> Result<BatchTime, CudaError> {
            let record = |at: usize| events[at].record(&session.stream).map_err(|error| session.noted(error));
            record(0)?;
            for (index, pinned) in pinned.iter().enumerate() {
                plan.upload(index, pinned.bytes())?;
            }
            record(1)?;
            plan.run().map_err(|error| session.noted(error))?;
            record(2)?;
            plan.fetch().map_err(|error| session.noted(error))?;
            record(3)?;
            plan.wait()?;
            let since = |at: usize| events[at + 1].since(&events[at]).map_err(|error| session.noted(error));
            Ok(BatchTime { copy_in: since(0)?, execute: since(1)?, copy_out: since(2)? })
        };
        // The first run of a graph uploads it.
        run()?;
        let (begin, mut taken) = (Instant::now(), Vec::new());
        while taken.is_empty() || taken.len() < samples as usize && begin.elapsed() < budget {
            taken.push(run()?);
        }
        let output = |index: usize| {
            let place = &plan.output_places[index];
            HostTensor::from_bytes(place.dtype, place.shape, plan.output(index)).ok_or(CudaError::Output)
        };
        let outputs: Vec<HostTensor> = (0..plan.output_places.len()).map(output).collect::<Result<_, _>>()?;
        Ok(Measured {
            samples: taken,
            launches: plan.launches,
            cost: plan.cost,
            bytes_in: inputs.iter().map(|input| input.bytes.len() as u64).sum(),
            bytes_out: outputs.iter().map(|output| output.bytes.len() as u64).sum(),
            prepared_in,
            outputs,
        })
    }
}

/// Any will do: nothing else runs on this runner.
const SLOT: usize = 0;

struct Batch<'a>(&'a [HostTensor]);

impl Inputs for Batch<'_> {
    fn count(&self) -> usize {
        self.0.len()
    }

    fn get(&self, index: usize) -> View<'_> {
        self.0[index].view()
    }
}
