//! Runs a sub-model on a GPU: finds or makes the plan for the shapes that come, and executes it.

use super::CudaError;
use super::gpu::Gpu;
use super::lower::{self, Given, Program};
use super::plan::Plan;
use crate::batched::Runner;
use crate::view::{Inputs, View};
use rota_graph::Graph;
use std::sync::Arc;

/// Plans that are kept for other shapes than the last; the one that was used longest ago makes room.
const PLANS_MAX: usize = 64;
/// The slot of what is waited for; 0 and 1 are those of batches that are not.
pub(super) const ALONE: usize = 2;
/// Inputs without a batch axis of at most so many bytes may have their content compiled in.
const CONTENT_BYTES_MAX: usize = 64;

/// A sub-model on one GPU.
pub struct CudaRunner {
    gpu: Arc<Gpu>,
    graph: Arc<Graph>,
    options: lower::Options,
    /// By input: whether its content may be compiled in, because it has neither a batch nor a size of its own to vary.
    settled: Vec<bool>,
    /// The last used comes last.
    plans: Vec<Known>,
}

/// A plan and what it is for.
struct Known {
    /// Which set of buffers: a batch is staged in one while another's executes.
    slot: usize,
    given: Vec<Given>,
    plan: Arc<Plan>,
}

impl Known {
    /// Whether it was made for such inputs: their dimensions, and the content that is compiled in.
    fn is_for(&self, inputs: &dyn Inputs) -> bool {
        let is_for = |(index, given): (usize, &Given)| {
            let View { shape, bytes, .. } = inputs.get(index);
            let same = |dims: &[u64]| shape.dims().iter().map(|&dim| u64::from(dim)).eq(dims.iter().copied());
            match given {
                Given::Dims(dims) => same(dims),
                Given::Content { dims, bytes: content } => same(dims) && bytes == &content[..],
            }
        };
        self.given.len() == inputs.count() && self.given.iter().enumerate().all(is_for)
    }
}

impl CudaRunner {
    pub fn new(gpu: Arc<Gpu>, graph: Arc<Graph>, options: lower::Options, settled: Vec<bool>) -> CudaRunner {
        CudaRunner { gpu, graph, options, settled, plans: Vec::new() }
    }

    /// What the inputs are to a plan; `content`: with the content of those that are settled.
    fn given(&self, inputs: &dyn Inputs, content: bool) -> Vec<Given> {
        let given = |index: usize| {
            let view = inputs.get(index);
            let dims = view.shape.dims().iter().map(|&dim| u64::from(dim)).collect();
            // Nobody may have said what is in it.
            let is_known = view.shape.elements().is_some_and(|all| all * view.dtype.bytes() == view.bytes.len());
            match content && self.settled[index] && is_known && view.bytes.len() <= CONTENT_BYTES_MAX {
                true => Given::Content { dims, bytes: view.bytes.into() },
                false => Given::Dims(dims),
            }
        };
        (0..inputs.count()).map(given).collect()
    }

    /// The plan for these inputs; of those without a compiled-in content only the shapes are looked at.
    pub fn find(&mut self, slot: usize, inputs: &dyn Inputs) -> Result<Arc<Plan>, CudaError> {
        self.make(&[slot], inputs)
    }

    /// The plans for these inputs in all of `slots`, lowered once; gives the first slot's.
    pub fn make(&mut self, slots: &[usize], inputs: &dyn Inputs) -> Result<Arc<Plan>, CudaError> {
        self.plans.retain(|known| !known.plan.session.is_lost());
        let mut lowered = None;
        // The first slot's is the last used.
        let mut plan = None;
        for &slot in slots.iter().rev() {
            plan = self.known(slot, inputs);
            if plan.is_some() {
                continue;
            }
            let session = self.gpu.session()?;
            let (given, program) = match &lowered {
                Some(lowered) => lowered,
                None => lowered.insert(self.lower(inputs)?),
            };
            let made = Arc::new(Plan::bind(&session, program)?);
            if self.plans.len() >= PLANS_MAX {
                self.plans.remove(0);
            }
            self.plans.push(Known { slot, given: given.clone(), plan: Arc::clone(&made) });
            plan = Some(made);
        }
        Ok(plan.expect("plans are asked for in a slot at least"))
    }

    /// The plan that was made for these inputs before, as the last used.
    fn known(&mut self, slot: usize, inputs: &dyn Inputs) -> Option<Arc<Plan>> {
        let at = self.plans.iter().position(|known| known.slot == slot && known.is_for(inputs))?;
        let known = self.plans.remove(at);
        let plan = Arc::clone(&known.plan);
        self.plans.push(known);
        Some(plan)
    }

    fn lower(&self, inputs: &dyn Inputs) -> Result<(Vec<Given>, Program), CudaError> {
        let options = lower::Options { multiprocessors: self.gpu.info.multiprocessors, ..self.options };
        let plain = self.given(inputs, false);
        match lower::lower(&self.graph, &plain, options) {
            Ok(program) => Ok((plain, program)),
            Err(error) => {
                // A branch or a size may hang on what a small input holds.
                let content = self.given(inputs, true);
                if content == plain {
                    return Err(error.into());
                }
                let program = lower::lower(&self.graph, &content, options)?;
                Ok((content, program))
            }
        }
    }

    fn execute(&mut self, inputs: &dyn Inputs) -> Result<(), CudaError> {
        let plan = self.find(ALONE, inputs)?;
        plan.session.context.enter()?;
        for index in 0..inputs.count() {
            plan.upload(index, inputs.get(index).bytes)?;
        }
        plan.launch()?;
        plan.wait()
    }
}

impl Runner for CudaRunner {
    fn run(&mut self, inputs: &dyn Inputs) -> Result<(), String> {
        self.execute(inputs).map_err(|error| error.to_string())
    }

    fn output(&self, index: usize) -> Result<View<'_>, String> {
        let Known { plan, .. } = self.plans.last().ok_or("nothing was run")?;
        let place = plan.output_places.get(index).ok_or_else(|| format!("there is no output {index}"))?;
        Ok(View { dtype: place.dtype, shape: place.shape, bytes: plan.output(index) })
    }

    fn release(&mut self) {}

    fn on_gpu(&mut self) -> Option<&mut CudaRunner> {
        Some(self)
    }

    fn is_lost(&mut self) -> bool {
        self.gpu.session().is_err()
    }
}
