//! A program on a GPU: its weights uploaded, its buffers there, and its launches captured as a CUDA graph.

use super::CudaError;
use super::driver::{DeviceMemory, DriverError, Graph, PinnedMemory, Stream};
use super::gpu::{Session, Weight};
use super::lower::Program;
use super::lower::program::{Members, Place, placed};
use crate::{DType, Shape};
use rota_kernels::{Cost, Pointer};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use zerocopy::IntoBytes;

/// A program bound to a session; void when that is lost.
pub struct Plan {
    pub session: Arc<Session>,
    /// Captured for these addresses.
    graph: Graph,
    /// Kept for the graph, which names their addresses.
    _weights: Vec<Arc<Weight>>,
    _arena: Arc<DeviceMemory>,
    inputs: DeviceMemory,
    outputs: DeviceMemory,
    /// Where each input of the program lies in `inputs`; `None`: its content is part of the program.
    input_offsets: Vec<Option<u64>>,
    pub output_places: Vec<OutputPlace>,
    /// What the launches read of the host's when they run: the products of a stack's members. A model that is no stack has none.
    table: Option<PinnedMemory>,
    members: Vec<TableEntry>,
    /// The outputs on the host, once they were fetched.
    fetched: PinnedMemory,
    /// Where among them the flag is: [`Program::flag`].
    flag: Option<usize>,
    /// What its kernels move and compute, in how many launches.
    pub cost: Cost,
    pub launches: usize,
}

/// An output of a plan.
#[derive(Clone, Copy, Debug)]
pub struct OutputPlace {
    pub dtype: DType,
    pub shape: Shape,
    pub offset: usize,
    pub bytes: usize,
}

/// Products of a stack's members, and where in the table they go.
struct TableEntry {
    at: usize,
    /// With their addresses.
    members: Members,
}

/// As the driver aligns its allocations.
const ALIGNMENT: u64 = 256;

impl Plan {
    /// Uploads what is not there yet, and captures. Slow: milliseconds, and seconds for large weights.
    pub fn bind(session: &Arc<Session>, program: &Program) -> Result<Plan, CudaError> {
        let mut input_offsets = Vec::new();
        let mut input_bytes = 0;
        for input in &program.inputs {
            input_offsets.push(input.map(|buffer| {
                let offset = input_bytes;
                input_bytes += program.buffers[buffer.0 as usize].bytes.next_multiple_of(ALIGNMENT);
                offset
            }));
        }
        let inputs = session.allocate(input_bytes, "inputs")?;
        // A plan may run on fewer items than it has room for: the others are zeros at first, which index nothing out of range.
        session.clear(&inputs)?;
        let outputs = session.allocate(program.output_bytes, "outputs")?;
        let arena = session.arena(program.arena.peak)?;
        let table =
            (program.table_bytes > 0).then(|| PinnedMemory::new(&session.context, program.table_bytes as usize));
        let table = table.transpose().map_err(|error| session.noted(error))?;
        // Pinned memory has one address for host and GPU (unified addressing, on every 64-bit host).
        let table_address = table.as_ref().map_or(0, |table| table.as_mut_ptr() as u64);
        let mut weights = Vec::new();
        let mut addresses = Vec::with_capacity(program.buffers.len());
        for buffer in &program.buffers {
            addresses.push(match &buffer.place {
                Place::Input(number) => inputs.address() + input_offsets[*number as usize].unwrap_or(0),
                Place::Output { offset } => outputs.address() + offset,
                Place::Arena { offset } => arena.address() + offset,
                Place::Table { offset } => table_address + offset,
                Place::Constant(tensor) => {
                    weights.push(session.weight(tensor)?);
                    weights[weights.len() - 1].value().address()
                }
            });
        }
        // On a stream of its own: batches of other networks are given to the session's meanwhile.
        let recorder = Stream::new(&session.context).map_err(|error| session.noted(error))?;
        let graph = Graph::capture(&recorder, || launch(session, &recorder, program, &addresses));
        let graph = graph.map_err(|error| session.noted(error))?;
        let fetched = PinnedMemory::new(&session.context, program.output_bytes as usize);
        let fetched = fetched.map_err(|error| session.noted(error))?;
        let output_places = program.outputs.iter().map(|output| {
            let elements: u64 = output.dims.iter().product();
            let dims: Vec<u32> = output.dims.iter().map(|&dim| dim as u32).collect();
            let (dtype, shape) = (super::dtype(output.dtype)?, Shape::new(&dims)?);
            let offset = addresses[output.buffer.0 as usize] + output.offset_bytes - outputs.address();
            Some(OutputPlace { dtype, shape, offset: offset as usize, bytes: elements as usize * dtype.bytes() })
        });
        let output_places = output_places.collect::<Option<Vec<_>>>().ok_or(CudaError::Output)?;
        let session = Arc::clone(session);
        session.plan_bytes.fetch_add(inputs.bytes() + outputs.bytes(), Ordering::Relaxed);
        let flag = program.flag.map(|flag| flag as usize);
        let members = program.steps.iter().filter_map(|step| step.members.as_ref()).map(|members| {
            let at = (addresses[members.table.0 as usize] - table_address) as usize;
            let mut members = members.clone();
            members.problems.iter_mut().for_each(|problem| problem.relocate(|pointer| located(pointer, &addresses)));
            TableEntry { at, members }
        });
        let members = members.collect();
        let plan = Plan {
            session,
            graph,
            _weights: weights,
            _arena: arena,
            inputs,
            outputs,
            input_offsets,
            output_places,
            table,
            members,
            fetched,
            flag,
            cost: program.cost(),
            launches: program.steps.len(),
        };
        // SAFETY: it has not run yet.
        unsafe { plan.ask(|_| None) };
        Ok(plan)
    }

    /// Of a stack: what the next runs compute. `items` says of which items a member is asked, first and how many; `None`: of all.
    ///
    /// # Safety
    /// The plan does not run meanwhile, and has nothing given to it that has not ended.
    pub unsafe fn ask(&self, items: impl Fn(usize) -> Option<(usize, usize)>) {
        let Some(table) = &self.table else { return };
        for TableEntry { at, members: Members { problems, rows_per_item, element_bytes, .. } } in &self.members {
            for (member, problem) in problems.iter().enumerate() {
                let rows = |items: usize| (items as u32).saturating_mul(*rows_per_item).min(problem.rows);
                let problem = match items(member) {
                    Some((first, count)) => problem.of_rows(rows(first), rows(count), *element_bytes),
                    None => *problem,
                };
                // SAFETY: no kernel reads the table now (the caller's promise).
                unsafe { table.write(at + member * size_of_val(&problem), problem.as_bytes()) };
            }
        }
    }

    /// Gives input `index` to the GPU. The bytes are taken when this returns, or, when they are pinned, when the plan has been waited for.
    pub fn upload(&self, index: usize, bytes: &[u8]) -> Result<(), CudaError> {
        let Some(offset) = self.input_offsets[index] else { return Ok(()) };
        // SAFETY: the driver refuses a target that is not inside one allocation, and takes pageable bytes before it returns; pinned ones are
        // kept by whoever waits for the plan.
        let copied = unsafe { self.session.stream.upload(self.inputs.address() + offset, bytes.as_ptr(), bytes.len()) };
        copied.map_err(|error| self.session.noted(error))
    }

    /// Runs the whole plan, by one call, and fetches its outputs; returns at once.
    pub fn launch(&self) -> Result<(), CudaError> {
        self.run().and_then(|()| self.fetch()).map_err(|error| self.session.noted(error))
    }

    /// Fetches all outputs, and the flag, as the next work of the session's stream.
    pub fn fetch(&self) -> Result<(), DriverError> {
        match self.fetched.size() {
            0 => Ok(()),
            // SAFETY: both are `bytes` long and ours, and nobody looks at them before `wait`.
            bytes => unsafe { self.session.stream.download(self.fetched.as_mut_ptr(), self.outputs.address(), bytes) },
        }
    }

    /// Runs the whole plan by one call, as the next work of the session's stream.
    pub fn run(&self) -> Result<(), DriverError> {
        self.graph.launch(&self.session.stream)
    }

    /// Where input `index` lies; `None` when its content is part of the program.
    pub fn input_address(&self, index: usize) -> Option<u64> {
        Some(self.inputs.address() + self.input_offsets[index]?)
    }

    /// Where output `index` lies.
    pub fn output_address(&self, index: usize) -> u64 {
        self.outputs.address() + self.output_places[index].offset as u64
    }

    /// Fills the inputs with zeros, before what is copied into them next.
    pub fn clear_inputs(&self) -> Result<(), DriverError> {
        self.session.copies_in.clear(self.inputs.address(), self.inputs.bytes() as usize)
    }

    /// Fetches the flag alone, on `stream`.
    pub fn fetch_flag(&self, stream: &Stream) -> Result<(), DriverError> {
        let Some(at) = self.flag else { return Ok(()) };
        // SAFETY: the flag is a word inside both, which the plan keeps, and nobody looks at it before the stream was waited for.
        unsafe { stream.download(self.fetched.as_mut_ptr().add(at), self.outputs.address() + at as u64, 4) }
    }

    /// Whether an index was out of range, once the flag was fetched.
    pub fn is_flagged(&self) -> bool {
        self.flag.is_some_and(|at| self.fetched.bytes()[at..at + 4] != [0; 4])
    }

    /// Waits for all that was given to the GPU.
    pub fn wait(&self) -> Result<(), CudaError> {
        self.session.stream.synchronize().map_err(|error| self.session.noted(error))?;
        if self.is_flagged() { Err(CudaError::Index) } else { Ok(()) }
    }

    /// The bytes of an output, once the plan was waited for.
    pub fn output(&self, index: usize) -> &[u8] {
        let place = &self.output_places[index];
        &self.fetched.bytes()[place.offset..place.offset + place.bytes]
    }
}

impl Drop for Plan {
    fn drop(&mut self) {
        self.session.plan_bytes.fetch_sub(self.inputs.bytes() + self.outputs.bytes(), Ordering::Relaxed);
    }
}

/// Gives the stream all launches of a program, at these addresses of its buffers.
fn launch(session: &Session, stream: &Stream, program: &Program, addresses: &[u64]) -> Result<(), DriverError> {
    for step in &program.steps {
        let mut launch = step.launch.clone();
        launch.relocate(|pointer| located(pointer, addresses));
        let function = session.function(launch.kernel)?;
        // SAFETY: the catalogue made the parameters for this kernel, and every address among them is in a buffer that the plan keeps.
        unsafe { stream.launch(function, launch.grid, launch.block, launch.shared_bytes, &launch.params)? };
    }
    Ok(())
}

/// The address of a [`place`](super::lower::program::place).
fn located(pointer: Pointer, addresses: &[u64]) -> Pointer {
    let (buffer, offset) = placed(pointer);
    Pointer(addresses[buffer.0 as usize] + offset)
}
