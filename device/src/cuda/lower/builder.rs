//! From nodes to launches: keeps where each value lies, and adds launches and buffers as the rules ask for them.

use super::evaluate;
use super::groups::{Groups, Role};
use super::memory::{self, Lifetime};
use super::program::{Buffer, BufferId, Members, Output, Place, Program, Step, place, placed};
use super::view::View;
use super::{Flat, LowerError, Options, Site};
use crate::cuda::Precision;
use crate::cuda::lower::epilogue::Finish;
use rota_graph::{DType, NodeId, Source, Tensor, ValueId};
use rota_kernels::dtype::Math;
use rota_kernels::params::GroupedProblem;
use rota_kernels::{Float, Gemm, Grouped, Launch, Pointer, Unfit};

/// A value where it lies, perhaps not densely.
#[derive(Clone, Debug)]
pub struct Operand {
    pub buffer: BufferId,
    /// As it is stored.
    pub dtype: DType,
    pub view: View,
}

impl Operand {
    /// Where its first element is.
    pub fn pointer(&self) -> Pointer {
        place(self.buffer, self.view.offset as u64 * self.element_bytes())
    }

    pub fn element_bytes(&self) -> u64 {
        self.dtype.bits().map_or(1, |bits| bits / 8).max(1)
    }

    pub fn dims(&self) -> &[u64] {
        &self.view.dims
    }
}

/// The program as far as it goes.
pub struct Builder<'a> {
    pub flat: &'a Flat,
    pub options: Options,
    buffers: Vec<Buffer>,
    steps: Vec<Step>,
    /// By value: where it lies, once it has been made.
    operands: Vec<Option<Operand>>,
    /// What the launches that come are for.
    label: String,
    /// Set by kernels that read an index past the end.
    flag: Option<Operand>,
    table_bytes: u64,
}

/// u32.
const FLAG: DType = DType(12);
const HALF: DType = DType(10);

impl<'a> Builder<'a> {
    pub fn new(flat: &'a Flat, options: Options) -> Builder<'a> {
        let operands = vec![None; flat.graph.values.len()];
        let (buffers, steps, label) = (Vec::new(), Vec::new(), String::new());
        Builder { flat, options, buffers, steps, operands, label, flag: None, table_bytes: 0 }
    }

    /// Lowers every node.
    pub fn run(mut self, groups: &Groups) -> Result<Program, LowerError> {
        let inputs = self.inputs()?;
        for id in self.flat.graph.node_ids() {
            match groups.roles[id.0 as usize] {
                Role::Member | Role::Hosts(_) => {}
                Role::Alone => self.alone(id)?,
                Role::Root(number) => self.group(groups, number)?,
                Role::Pattern(number) => {
                    let pattern = &groups.patterns[number];
                    let operators: Vec<&str> =
                        pattern.members.iter().map(|id| self.flat.graph.node(*id).operator.as_str()).collect();
                    self.label = operators.join(" + ");
                    super::rules::pattern(&mut self, pattern)?;
                }
            }
        }
        self.finish(inputs)
    }

    fn inputs(&mut self) -> Result<Vec<Option<BufferId>>, LowerError> {
        let mut buffers = Vec::new();
        for &id in &self.flat.graph.inputs {
            let Source::Input(number) = self.flat.graph.value(id).source else {
                buffers.push(None);
                continue;
            };
            let known = self.flat.inferred.value(id);
            let unknown = || LowerError::Unmade(self.flat.graph.value(id).name.clone());
            let (dims, dtype) = (known.sizes().ok_or_else(unknown)?, known.dtype.ok_or_else(unknown)?);
            let operand = self.add(dtype, &dims, Place::Input(number));
            buffers.push(Some(operand.buffer));
            self.operands[id.0 as usize] = Some(operand);
        }
        Ok(buffers)
    }

    fn alone(&mut self, id: NodeId) -> Result<(), LowerError> {
        let site = Site::new(self.flat, id);
        self.label = site.node.to_string();
        let trains =
            || site.node.input(2).is_some() && site.constant(2).is_none_or(|flag| flag.data.first() != Some(&0));
        if site.node.operator == "Dropout" && trains() {
            return Err(site.refuse("trains, which is not supported"));
        }
        if let Some(first) = site.node.input(0).filter(|_| moves(&site)) {
            let operand = self.operand(first)?;
            let views = match site.views(&operand.view)? {
                Some(views) => views.into_iter().map(|view| Operand { view, ..operand.clone() }).collect(),
                None => {
                    let dense = self.dense(&operand)?;
                    let views = site
                        .views(&dense.view)?
                        .ok_or_else(|| site.refuse("moves elements in a way that is not supported"))?;
                    views.into_iter().map(|view| Operand { view, ..dense.clone() }).collect::<Vec<_>>()
                }
            };
            for (at, view) in views.into_iter().enumerate() {
                if let Some(output) = site.node.output(at) {
                    self.operands[output.0 as usize] = Some(view);
                }
            }
            return Ok(());
        }
        let rule = super::rules::find(&site).ok_or_else(|| LowerError::Unsupported(site.node.to_string()))?;
        rule(self, &site, None)
    }

    fn group(&mut self, groups: &Groups, number: usize) -> Result<(), LowerError> {
        let group = &groups.groups[number];
        let output = Site::new(self.flat, group.root).output(0)?;
        if let Some((host, finish)) = &groups.hosts[number] {
            let site = Site::new(self.flat, *host);
            self.label = format!("{} + {}", site.node, group.text(self.flat));
            let rule = super::rules::find(&site).ok_or_else(|| LowerError::Unsupported(site.node.to_string()))?;
            return rule(self, &site, Some((finish, output)));
        }
        self.label = group.text(self.flat);
        super::rules::elementwise(self, group)
    }

    fn add(&mut self, dtype: DType, dims: &[u64], place: Place) -> Operand {
        let id = BufferId(self.buffers.len() as u32);
        let view = View::dense(dims);
        let operand = Operand { buffer: id, dtype, view };
        let bytes = operand.view.elements() * operand.element_bytes();
        self.buffers.push(Buffer { bytes, place });
        operand
    }

    /// Room for a dense tensor that a launch will write.
    pub fn scratch(&mut self, dtype: DType, dims: &[u64]) -> Operand {
        self.add(dtype, dims, Place::Arena { offset: 0 })
    }

    /// What floats are kept as between launches.
    pub fn float(&self) -> DType {
        match self.options.precision {
            Precision::Fp32 | Precision::Tf32 => DType::F32,
            Precision::Fp16 => HALF,
        }
    }

    /// The same in the kernels' word.
    pub fn storage(&self) -> Float {
        if self.float() == DType::F32 { Float::F32 } else { Float::F16 }
    }

    /// How products are computed.
    pub fn math(&self) -> Math {
        match self.options.precision {
            Precision::Fp32 => Math::F32,
            Precision::Tf32 => Math::Tf32,
            Precision::Fp16 => Math::F16,
        }
    }

    /// What a tensor of `dtype` is kept as on the device: floats of any width alike.
    pub fn stored(&self, dtype: DType) -> DType {
        match dtype.0 {
            // f32, f16, f64, bf16
            1 | 10 | 11 | 16 => self.float(),
            _ => dtype,
        }
    }

    /// A constant, as it is kept on the device.
    pub fn constant(&mut self, tensor: &Tensor) -> Result<Operand, LowerError> {
        let stored = self.stored(tensor.dtype);
        let tensor = evaluate::cast(tensor, stored)
            .ok_or_else(|| LowerError::Constant { dtype: tensor.dtype.name().to_owned(), node: self.label.clone() })?;
        Ok(self.add(stored, &tensor.dims.clone(), Place::Constant(tensor)))
    }

    /// Numbers that were computed here, as the device keeps floats.
    pub fn floats(&mut self, dims: &[u64], values: &[f32]) -> Result<Operand, LowerError> {
        self.constant(&Tensor::f32s(dims.to_vec(), values))
    }

    /// The same in f32, for kernels that take nothing else.
    pub fn exact(&mut self, dims: &[u64], values: &[f32]) -> Operand {
        self.add(DType::F32, dims, Place::Constant(Tensor::f32s(dims.to_vec(), values)))
    }

    /// Where a value lies.
    pub fn operand(&mut self, id: ValueId) -> Result<Operand, LowerError> {
        if let Some(operand) = &self.operands[id.0 as usize] {
            return Ok(operand.clone());
        }
        let value = self.flat.graph.value(id);
        let Source::Constant(tensor) = &value.source else { return Err(LowerError::Unmade(value.name.clone())) };
        let operand = self.constant(tensor)?;
        self.operands[id.0 as usize] = Some(operand.clone());
        Ok(operand)
    }

    /// Input `at` of a node, densely.
    pub fn input(&mut self, site: &Site, at: usize) -> Result<Operand, LowerError> {
        let operand = self.operand(site.input(at)?)?;
        self.dense(&operand)
    }

    /// The same tensor, densely: itself, or a copy.
    pub fn dense(&mut self, operand: &Operand) -> Result<Operand, LowerError> {
        match operand.view.is_dense() {
            true => Ok(operand.clone()),
            false => super::rules::dense(self, operand),
        }
    }

    /// The same tensor as the device keeps floats, densely.
    pub fn floats_of(&mut self, operand: &Operand) -> Result<Operand, LowerError> {
        self.converted(operand, self.float())
    }

    /// The same tensor as `dtype`, densely.
    pub fn converted(&mut self, operand: &Operand, dtype: DType) -> Result<Operand, LowerError> {
        match operand.dtype == dtype {
            true => self.dense(operand),
            false => super::rules::copy(self, operand, dtype),
        }
    }

    /// The same tensor as `dtype`, as it lies where it is of that type already.
    pub fn converted_view(&mut self, operand: &Operand, dtype: DType) -> Result<Operand, LowerError> {
        if operand.dtype == dtype { Ok(operand.clone()) } else { super::rules::copy(self, operand, dtype) }
    }

    /// A dimension or stride as the kernels count it.
    pub fn count(&self, value: u64) -> Result<u32, LowerError> {
        u32::try_from(value).map_err(|_| self.refuse(format!("has a dimension of {value}")))
    }

    /// Room for output `at` of a node, which a launch will write; nobody reads one that is left out.
    pub fn output(&mut self, site: &Site, at: usize) -> Result<Operand, LowerError> {
        let dims = site.output_dims(at)?;
        let dtype = site.output_dtype(at).ok_or_else(|| site.refuse("gives an unknown type"))?;
        let operand = self.scratch(self.stored(dtype), &dims);
        self.set(site.output(at)?, operand.clone());
        Ok(operand)
    }

    /// Room for what a rule computes: the node's first output, or that of the group whose work it does.
    pub fn result(&mut self, site: &Site, finish: Option<(&Finish, ValueId)>) -> Result<Operand, LowerError> {
        let value = finish.map_or(site.output(0)?, |(_, value)| value);
        let dims = site.sizes(value)?;
        let operand = self.scratch(self.float(), &dims);
        self.set(value, operand.clone());
        Ok(operand)
    }

    /// Room for output `at` of a node, as f32 of these dimensions.
    pub fn result_of(&mut self, site: &Site, at: usize, dims: &[u64]) -> Result<Operand, LowerError> {
        let operand = self.scratch(DType::F32, dims);
        self.set(site.output(at)?, operand.clone());
        Ok(operand)
    }

    /// The word that kernels set when a number from outside indexes past a tensor's end.
    pub fn flag(&mut self) -> Result<Pointer, LowerError> {
        if let Some(flag) = &self.flag {
            return Ok(flag.pointer());
        }
        let flag = self.scratch(FLAG, &[1]);
        self.flag = Some(flag.clone());
        super::rules::zero(self, &flag)?;
        Ok(flag.pointer())
    }

    /// A node's first output is what was computed in floats, in the type that the model gives it.
    pub fn settle(&mut self, site: &Site, made: Operand) -> Result<(), LowerError> {
        let dtype = site.output_dtype(0).map_or(self.float(), |dtype| self.stored(dtype));
        let made = if dtype == made.dtype { made } else { super::rules::copy(self, &made, dtype)? };
        self.set(site.output(0)?, made);
        Ok(())
    }

    pub fn set(&mut self, value: ValueId, operand: Operand) {
        self.operands[value.0 as usize] = Some(operand);
    }

    pub fn push(&mut self, launch: Result<Launch, Unfit>) -> Result<(), LowerError> {
        let launch = launch.map_err(|unfit| LowerError::Node { node: self.label.clone(), why: unfit.to_string() })?;
        // A launch of an empty tensor has nothing to do, and drivers refuse it.
        if launch.grid.contains(&0) {
            return Ok(());
        }
        self.steps.push(Step { label: self.label.clone(), launch, members: None });
        Ok(())
    }

    /// A matrix product; a stack's as one of each member.
    pub fn matrix_product(&mut self, gemm: &Gemm) -> Result<(), LowerError> {
        let Some((problems, rows_per_item, columns)) = self.members(gemm) else {
            return self.product(|multiprocessors, room| gemm.launches_on(multiprocessors, room));
        };
        let bytes = (problems.len() * size_of::<GroupedProblem>()) as u64;
        let offset = self.table_bytes;
        self.table_bytes += bytes.next_multiple_of(memory::ALIGNMENT);
        let table = BufferId(self.buffers.len() as u32);
        self.buffers.push(Buffer { bytes, place: Place::Table { offset } });
        let grouped = Grouped {
            math: gemm.math,
            problems: place(table, 0),
            count: problems.len() as u32,
            rows_max: gemm.rows,
            columns_max: columns,
            cost: gemm.cost(),
        };
        let element_bytes = gemm.math.storage().bytes();
        self.push(grouped.launch())?;
        if let Some(step) = self.steps.last_mut() {
            step.members = Some(Members { table, problems, rows_per_item, element_bytes });
        }
        Ok(())
    }

    /// The launches of a product, which may want memory of its own for partial sums.
    pub fn product(
        &mut self,
        launches: impl FnOnce(u32, &mut dyn FnMut(u64) -> Pointer) -> Result<Vec<Launch>, Unfit>,
    ) -> Result<(), LowerError> {
        let multiprocessors = self.options.multiprocessors;
        let launches = launches(multiprocessors, &mut |bytes| self.scratch(DType::F32, &[bytes / 4]).pointer());
        for launch in launches.map_err(|unfit| self.refuse(unfit.to_string()))? {
            self.push(Ok(launch))?;
        }
        Ok(())
    }

    /// A stack's product by member, the rows of an item, and the columns of a member. `None` for what is no stack's, or has its items
    /// elsewhere than in its rows.
    fn members(&self, gemm: &Gemm) -> Option<(Vec<GroupedProblem>, u32, u32)> {
        let members = Some(self.options.members).filter(|&members| members >= 2)?;
        let items = *self.flat.inferred.value(*self.flat.graph.inputs.first()?).sizes()?.first()?;
        let rows_per_item = u64::from(gemm.rows).checked_div(items)?;
        let each = gemm.split(members)?;
        let problems = each.iter().map(|gemm| gemm.problem().ok()).collect::<Option<Vec<_>>>()?;
        let is_whole = rows_per_item > 0 && rows_per_item * items == u64::from(gemm.rows);
        is_whole.then_some((problems, rows_per_item as u32, each[0].columns))
    }

    /// What is wrong with the node that is being lowered.
    pub fn refuse(&self, why: impl Into<String>) -> LowerError {
        LowerError::Node { node: self.label.clone(), why: why.into() }
    }

    fn finish(mut self, inputs: Vec<Option<BufferId>>) -> Result<Program, LowerError> {
        self.label = "an output".to_owned();
        let mut outputs: Vec<Output> = Vec::new();
        let mut output_bytes = 0;
        for &id in &self.flat.graph.outputs {
            let dtype = self.flat.inferred.value(id).dtype.unwrap_or(DType::F32);
            let mut operand = self.operand(id)?;
            // An output has memory of its own: what is an input too, or a weight, or another output, is copied. Narrower and wider floats
            // are f32 until here.
            let whole = operand.view.is_dense() && operand.view.offset == 0 && operand.dtype == dtype;
            let taken = outputs.iter().any(|other| other.buffer == operand.buffer);
            let in_arena = matches!(self.buffers[operand.buffer.0 as usize].place, Place::Arena { .. });
            if !whole || taken || !in_arena {
                operand = super::rules::copy(&mut self, &operand, dtype)?;
            }
            let buffer = &mut self.buffers[operand.buffer.0 as usize];
            buffer.place = Place::Output { offset: output_bytes };
            output_bytes += buffer.bytes.next_multiple_of(memory::ALIGNMENT);
            outputs.push(Output { buffer: operand.buffer, offset_bytes: 0, dtype, dims: operand.view.dims });
        }
        let flag = self.flag.as_ref().map(|flag| {
            self.buffers[flag.buffer.0 as usize].place = Place::Output { offset: output_bytes };
            output_bytes += memory::ALIGNMENT;
            output_bytes - memory::ALIGNMENT
        });
        let arena = self.place();
        let Builder { buffers, steps, table_bytes, .. } = self;
        Ok(Program { buffers, steps, inputs, outputs, output_bytes, flag, arena, table_bytes })
    }

    /// Gives every scratch buffer its place. It lives from the first launch that names it, which writes it, to the last.
    fn place(&mut self) -> memory::Arena {
        let mut lifetimes: Vec<Option<(usize, usize)>> = vec![None; self.buffers.len()];
        for (at, step) in self.steps.iter().enumerate() {
            for pointer in step.pointers() {
                let (buffer, _) = placed(pointer);
                let lifetime = &mut lifetimes[buffer.0 as usize];
                *lifetime = Some(lifetime.map_or((at, at), |(first, _)| (first, at)));
            }
        }
        let in_arena = |buffer: &Buffer| matches!(buffer.place, Place::Arena { .. });
        let used: Vec<usize> = (0..self.buffers.len()).filter(|&at| in_arena(&self.buffers[at])).collect();
        let tensors: Vec<Lifetime> = used
            .iter()
            .map(|&at| {
                let (first, last) = lifetimes[at].unwrap_or((0, 0));
                let bytes = if lifetimes[at].is_some() { self.buffers[at].bytes } else { 0 };
                Lifetime { bytes, first, last }
            })
            .collect();
        let arena = memory::place(&tensors);
        for (at, offset) in used.iter().zip(&arena.offsets) {
            self.buffers[*at].place = Place::Arena { offset: *offset };
        }
        arena
    }
}

/// Whether the operator only moves elements.
fn moves(site: &Site) -> bool {
    const MOVING: [&str; 9] =
        ["Identity", "Dropout", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Expand", "Transpose", "Slice"];
    site.node.domain.is_empty() && (MOVING.contains(&site.node.operator.as_str()) || site.node.operator == "Split")
}
