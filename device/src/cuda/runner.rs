//! Runs a sub-model on a GPU: finds or makes the plan for the shapes that come, and executes it.

use super::gpu::Gpu;
use super::lower::{self, Given};
use super::plan::Plan;
use super::{CudaError, Precision};
use crate::batched::Runner;
use crate::view::{Inputs, View};
use rota_graph::Graph;
use std::sync::Arc;

/// Plans that are kept for other shapes than the last; the one that was used longest ago makes room.
const PLANS_MAX: usize = 64;
/// Inputs without a batch axis of at most so many bytes may have their content compiled in.
const CONTENT_BYTES_MAX: usize = 64;

/// A sub-model on one GPU.
pub struct CudaRunner {
    gpu: Arc<Gpu>,
    graph: Arc<Graph>,
    precision: Precision,
    /// By input: whether its content may be compiled in, because it has neither a batch nor a size of its own to vary.
    settled: Vec<bool>,
    /// The last used comes last.
    plans: Vec<(Vec<Given>, Plan)>,
}

impl CudaRunner {
    pub fn new(gpu: Arc<Gpu>, graph: Arc<Graph>, precision: Precision, settled: Vec<bool>) -> CudaRunner {
        CudaRunner { gpu, graph, precision, settled, plans: Vec::new() }
    }

    /// What the inputs are to a plan; `content`: with the content of those that are settled.
    fn given(&self, inputs: &dyn Inputs, content: bool) -> Vec<Given> {
        let given = |index: usize| {
            let view = inputs.get(index);
            let dims = view.shape.dims().iter().map(|&dim| u64::from(dim)).collect();
            match content && self.settled[index] && view.bytes.len() <= CONTENT_BYTES_MAX {
                true => Given::Content { dims, bytes: view.bytes.into() },
                false => Given::Dims(dims),
            }
        };
        (0..inputs.count()).map(given).collect()
    }

    /// Brings the plan for these inputs to the end of the list.
    fn find(&mut self, inputs: &dyn Inputs) -> Result<(), CudaError> {
        self.plans.retain(|(_, plan)| !plan.session.is_lost());
        for content in [false, true] {
            let given = self.given(inputs, content);
            if let Some(at) = self.plans.iter().position(|(known, _)| *known == given) {
                let plan = self.plans.remove(at);
                self.plans.push(plan);
                return Ok(());
            }
        }
        let session = self.gpu.session()?;
        let options = lower::Options { precision: self.precision, ..lower::Options::default() };
        let plain = self.given(inputs, false);
        let (given, program) = match lower::lower(&self.graph, &plain, options) {
            Ok(program) => (plain, program),
            Err(error) => {
                // A branch or a size may hang on what a small input holds.
                let content = self.given(inputs, true);
                if content == plain {
                    return Err(error.into());
                }
                let program = lower::lower(&self.graph, &content, options)?;
                (content, program)
            }
        };
        if self.plans.len() >= PLANS_MAX {
            self.plans.remove(0);
        }
        let plan = Plan::bind(&session, &program)?;
        self.plans.push((given, plan));
        Ok(())
    }

    /// The plan for these inputs, found or made; its context is the thread's.
    pub fn plan(&mut self, inputs: &dyn Inputs) -> Result<&mut Plan, CudaError> {
        self.find(inputs)?;
        let (_, plan) = self.plans.last_mut().expect("the plan was just found or made");
        plan.session.context.enter()?;
        Ok(plan)
    }

    fn execute(&mut self, inputs: &dyn Inputs) -> Result<(), CudaError> {
        let plan = self.plan(inputs)?;
        for index in 0..inputs.count() {
            plan.upload(index, inputs.get(index).bytes)?;
        }
        plan.launch()?;
        plan.fetch()?;
        plan.wait()
    }
}

impl Runner for CudaRunner {
    fn run(&mut self, inputs: &dyn Inputs) -> Result<(), String> {
        self.execute(inputs).map_err(|error| error.to_string())
    }

    fn output(&self, index: usize) -> Result<View<'_>, String> {
        let (_, plan) = self.plans.last().ok_or("nothing was run")?;
        let place = plan.output_places.get(index).ok_or_else(|| format!("there is no output {index}"))?;
        Ok(View { dtype: place.dtype, shape: place.shape, bytes: plan.output(index) })
    }

    fn release(&mut self) {}

    fn is_lost(&mut self) -> bool {
        self.gpu.session().is_err()
    }
}
