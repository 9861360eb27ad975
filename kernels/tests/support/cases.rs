//! Launches of every kernel at small shapes that still have several tiles, steps or blocks where the kernel does.

use rota_kernels::attention::{Heads, Mask};
use rota_kernels::elementwise::Domain;
use rota_kernels::host::Memory;
use rota_kernels::params::MoveEntry;
use rota_kernels::*;

use super::support::{Numbers, to_f16};

/// Launches in their order on one memory.
pub struct Case {
    pub name: &'static str,
    pub memory: Memory,
    pub launches: Vec<Launch>,
}

/// A case under construction: random tensors, outputs, launches.
struct Builder {
    name: &'static str,
    memory: Memory,
    numbers: Numbers,
}

impl Builder {
    fn new(name: &'static str) -> Builder {
        Builder { name, memory: Memory::default(), numbers: Numbers::new(name.len() as u64) }
    }

    /// A tensor of `count` elements of that type.
    fn input(&mut self, dtype: Type, count: u32) -> Pointer {
        let values = self.numbers.take(count as usize);
        match dtype {
            Type::F16 => self.memory.upload(&to_f16(&values)),
            Type::Bf16 => self.memory.upload(&values.iter().map(|x| (x.to_bits() >> 16) as u16).collect::<Vec<_>>()),
            Type::I32 => self.memory.upload(&values.iter().map(|x| (x * 100.0) as i32).collect::<Vec<_>>()),
            Type::I64 => self.memory.upload(&values.iter().map(|x| (x * 100.0) as i64).collect::<Vec<_>>()),
            _ => self.memory.upload(&values),
        }
    }

    fn output(&mut self, dtype: Type, count: u32) -> Pointer {
        self.memory.alloc(count as usize * dtype.bytes() as usize)
    }

    fn done(self, launches: Vec<Launch>) -> Case {
        Case { name: self.name, memory: self.memory, launches }
    }
}

const FLOATS: [Float; 2] = [Float::F32, Float::F16];

pub fn all() -> Vec<Case> {
    let mut cases = Vec::new();
    for math in [Math::F32, Math::Tf32, Math::F16, Math::Bf16] {
        cases.push(gemm(math));
        if math != Math::F32 {
            cases.push(copied(math));
        }
        if math != Math::Bf16 {
            cases.extend([grouped(math), conv(math)]);
        }
    }
    for dtype in FLOATS {
        cases.extend([depthwise(dtype), conv_transpose(dtype), pool(dtype), softmax(dtype)]);
        cases.extend([normalize(dtype), resize(dtype), attention(dtype, 33)]);
    }
    cases.extend([32, 64, 128].map(|size| attention(Float::F16, size)));
    cases.extend([reductions(), copies(), transposes(), gathers(), pads(), elementwise(), recurrent(), moves()]);
    cases
}

/// Every tile, with a depth of several steps whose last is not full, and a residual and a bias.
fn gemm(math: Math) -> Case {
    let mut b = Builder::new("gemm");
    let (rows, columns, depth) = (7, 70, 70);
    let dtype = math.storage();
    let base = Gemm {
        math,
        rows,
        columns,
        depth,
        batches: [1, 2],
        a: Matrix::row_major(b.input(dtype, 2 * rows * depth), depth).batched([0, u64::from(rows * depth)]),
        b: Matrix::row_major(b.input(dtype, depth * columns), columns),
        c: Matrix::row_major(b.output(dtype, 2 * rows * columns), columns).batched([0, u64::from(rows * columns)]),
        epilogue: Epilogue {
            bias: b.input(dtype, columns),
            bias_column: 1,
            residual: b.input(dtype, 2 * rows * columns),
            activation: Activation::Gelu,
            ..Epilogue::default()
        },
    };
    let mut launches = base.launches().unwrap();
    let (b_row, b_column) = (b.input(dtype, depth * columns), Matrix { row: 1, column: depth, ..base.b });
    launches.push(Gemm { b: Matrix { pointer: b_row, ..b_column }, ..base }.launch().unwrap());
    let partial = b.output(Type::F32, 3 * 2 * rows * columns);
    launches.extend(base.split_launches(3, partial).unwrap().concat());
    b.done(launches)
}

/// Operands that are copied as they are, with more steps than stages, b both ways.
fn copied(math: Math) -> Case {
    let mut b = Builder::new("gemm of copies");
    let (rows, columns, depth) = (40, 72, 168);
    let dtype = math.storage();
    let base = Gemm {
        math,
        rows,
        columns,
        depth,
        batches: [1, 1],
        a: Matrix::row_major(b.input(dtype, rows * depth), depth),
        b: Matrix::row_major(b.input(dtype, depth * columns), columns),
        c: Matrix::row_major(b.output(dtype, rows * columns), columns),
        epilogue: Epilogue::default(),
    };
    let turned = Gemm { b: Matrix::transposed(base.b.pointer, depth), ..base };
    let launches = [base, turned].into_iter().flat_map(|gemm| gemm.launches().unwrap());
    let launches = launches.filter(|launch| launch.kernel.name.ends_with("_async")).collect();
    b.done(launches)
}

fn grouped(math: Math) -> Case {
    let mut b = Builder::new("grouped");
    let (dtype, depth) = (math.storage(), 36);
    let mut problems = Vec::new();
    for (rows, columns) in [(3, 5), (0, 4), (20, 66)] {
        let gemm = Gemm {
            math,
            rows,
            columns,
            depth,
            batches: [1, 1],
            a: Matrix::row_major(b.input(dtype, rows * depth), depth),
            b: Matrix::transposed(b.input(dtype, columns * depth), depth),
            c: Matrix::row_major(b.output(dtype, rows * columns), columns),
            epilogue: Epilogue::default(),
        };
        problems.push(gemm.problem().unwrap());
    }
    let problems = b.memory.upload(&problems);
    let grouped = Grouped { math, problems, count: 3, rows_max: 20, columns_max: 66, cost: Cost::default() };
    let launches = grouped.launches().unwrap();
    b.done(launches)
}

fn conv_of(b: &mut Builder, math: Math, groups: u32, kernel: u32, stride: u32, transposed: bool) -> Conv {
    let (images, channels, filters, input) = (2, 2 * groups.max(2), 3 * groups.max(2), [5, 7]);
    let (channels, filters) = if groups == 4 { (4, 4) } else { (channels, filters) };
    let output = if transposed {
        input.map(|size| (size - 1) * stride + kernel - 2)
    } else {
        input.map(|size| (size + 2 - kernel) / stride + 1)
    };
    let dtype = math.storage();
    let outputs = images * filters * output[0] * output[1];
    Conv {
        math,
        images,
        channels,
        input,
        filters,
        output,
        groups,
        kernel: [kernel; 2],
        strides: [stride; 2],
        dilations: [1; 2],
        pads: [1; 2],
        x: b.input(dtype, images * channels * input[0] * input[1]),
        w: b.input(dtype, channels * filters * kernel * kernel),
        y: b.output(dtype, outputs),
        epilogue: Epilogue { bias: b.input(dtype, filters), activation: Activation::Relu, ..Epilogue::default() },
    }
}

fn conv(math: Math) -> Case {
    let mut b = Builder::new("conv");
    let mut launches = Vec::new();
    for groups in [1, 2] {
        let conv = conv_of(&mut b, math, groups, 3, 2, false);
        launches.extend(conv.launches().unwrap());
        let partial = b.output(Type::F32, 3 * conv.images * conv.filters * conv.output[0] * conv.output[1]);
        launches.extend(conv.split_launches(3, partial).unwrap().concat());
    }
    b.done(launches)
}

fn depthwise(dtype: Float) -> Case {
    let mut b = Builder::new("depthwise");
    let math = if dtype == Float::F16 { Math::F16 } else { Math::F32 };
    let mut launches = Vec::new();
    for (kernel, stride) in [(3, 1), (3, 2), (5, 1), (5, 2), (2, 1)] {
        launches.push(conv_of(&mut b, math, 4, kernel, stride, false).launch().unwrap());
    }
    b.done(launches)
}

fn conv_transpose(dtype: Float) -> Case {
    let mut b = Builder::new("conv transpose");
    let math = if dtype == Float::F16 { Math::F16 } else { Math::F32 };
    let launch = conv_of(&mut b, math, 2, 3, 2, true).launch_transposed().unwrap();
    b.done(vec![launch])
}

fn pool(dtype: Float) -> Case {
    let mut b = Builder::new("pool");
    let mut launches = Vec::new();
    for window in [Window::Max, Window::Average, Window::AverageWithPadding([1, 1])] {
        let pool = Pool {
            dtype,
            planes: 3,
            input: [6, 9],
            output: [4, 5],
            kernel: [3, 2],
            strides: [2, 2],
            dilations: [1, 1],
            pads: [1, 0],
            window,
            x: b.input(dtype.into(), 3 * 54),
            y: b.output(dtype.into(), 3 * 20),
        };
        launches.push(pool.launch().unwrap());
    }
    b.done(launches)
}

fn softmax(dtype: Float) -> Case {
    let mut b = Builder::new("softmax");
    let (outer, columns, inner) = (5, 40, 2);
    let x = b.input(dtype.into(), outer * columns * inner);
    let y = b.output(dtype.into(), outer * columns * inner);
    let softmax = Softmax { dtype, outer, columns, inner, log: false, x, y };
    b.done(vec![softmax.launch().unwrap(), softmax.launch_long().unwrap()])
}

fn normalize(dtype: Float) -> Case {
    let mut b = Builder::new("normalize");
    let (rows, columns) = (3, 300);
    let normalize = Normalize {
        dtype,
        rows,
        columns,
        affine: Affine::PerColumn,
        epsilon: 1e-5,
        root_mean_square: false,
        x: b.input(dtype.into(), rows * columns),
        residual: b.input(dtype.into(), rows * columns),
        gamma: b.input(dtype.into(), columns),
        beta: b.input(dtype.into(), columns),
        y: b.output(dtype.into(), rows * columns),
    };
    let launches = [32, 64, 256].map(|threads| normalize.launch_with(threads).unwrap());
    b.done(launches.to_vec())
}

fn resize(dtype: Float) -> Case {
    use resize::{Coordinates, Filter, Table};
    let mut b = Builder::new("resize");
    let tables = [(4, 7), (5, 9)]
        .map(|(from, to)| Table::new(from, to, to as f32 / from as f32, Coordinates::HalfPixel, Filter::Linear));
    let resize = Resize {
        dtype,
        planes: 3,
        input: [4, 5],
        output: [7, 9],
        taps: [2, 2],
        x: b.input(dtype.into(), 60),
        y: b.output(dtype.into(), 189),
        places: tables.each_ref().map(|table| b.memory.upload(&table.places)),
        weights: tables.each_ref().map(|table| b.memory.upload(&table.weights)),
    };
    b.done(vec![resize.launch().unwrap()])
}

fn attention(dtype: Float, size: u32) -> Case {
    let mut b = Builder::new("attention");
    let (heads, rows, columns) = (2, 18, 40);
    let strides = |rows: u32| [rows * heads * size, size, heads * size].map(u64::from);
    let mut tensor = |rows: u32| Heads { pointer: b.input(dtype.into(), rows * heads * size), strides: strides(rows) };
    let (q, k, v) = (tensor(rows), tensor(columns), tensor(columns));
    let attention = Attention {
        dtype,
        outers: 1,
        heads,
        rows,
        columns,
        size,
        v_size: size,
        scale: 0.3,
        causal: true,
        q,
        k,
        v,
        y: Heads { pointer: b.output(dtype.into(), rows * heads * size), strides: strides(rows) },
        mask: Mask { pointer: b.input(dtype.into(), columns), strides: [0, 0, 0, 1] },
    };
    b.done(vec![attention.launch().unwrap()])
}

fn reductions() -> Case {
    let mut b = Builder::new("reductions");
    let mut launches = Vec::new();
    for dtype in [Type::F32, Type::F16, Type::I32, Type::I64] {
        for (inner, reduction) in [(1, Reduction::Max), (3, Reduction::Mean), (1, Reduction::ArgMin)] {
            let (outer, count) = (9, 40);
            let x = b.input(dtype, outer * count * inner);
            let y = b.output(Type::I64, outer * inner);
            let reduce = Reduce { dtype, reduction, last: false, outer, count, inner, x, y };
            launches.push(reduce.launch().unwrap());
            if inner == 1 {
                launches.push(reduce.launch_long().unwrap());
            }
        }
    }
    b.done(launches)
}

fn copies() -> Case {
    let mut b = Builder::new("copies");
    let mut launches = Vec::new();
    // Bytes per element, and a width that leaves a unit of each size.
    for (element_bytes, width) in [(1, 7), (2, 7), (4, 7), (8, 7), (4, 8)] {
        let x = b.input(Type::F32, 3 * width * element_bytes);
        let y = b.output(Type::F32, 3 * width * element_bytes);
        let dims = vec![3, width];
        let strides = vec![i64::from(2 * width), 1];
        let copy = Copy { element_bytes, dims, x, x_strides: vec![i64::from(width), 1], y, y_strides: strides };
        launches.push(copy.launch().unwrap());
    }
    b.done(launches)
}

fn transposes() -> Case {
    let mut b = Builder::new("transposes");
    let mut launches = Vec::new();
    for element_bytes in [1, 2, 4, 8] {
        let x = b.input(Type::F32, 2 * 35 * 40 * element_bytes / 4);
        let y = b.output(Type::F32, 2 * 35 * 40 * element_bytes / 4);
        let (x_strides, y_strides) = (vec![1400, 1, 40], vec![1400, 35, 1]);
        launches.push(Copy { element_bytes, dims: vec![2, 40, 35], x, x_strides, y, y_strides }.launch().unwrap());
    }
    b.done(launches)
}

fn gathers() -> Case {
    let mut b = Builder::new("gathers");
    let mut launches = Vec::new();
    for (element_bytes, inner) in [(1, 3), (2, 3), (4, 3), (8, 3), (4, 8)] {
        let (outer, axis, count) = (2, 5, 4);
        let gather = Gather {
            element_bytes,
            outer,
            axis,
            count,
            inner,
            picks: Picks::Rows,
            index_type: Type::I64,
            x: b.input(Type::F32, outer * axis * inner * element_bytes / 4 + 1),
            indices: b.memory.upload(&[4_i64, -1, 77, -77]),
            y: b.memory.alloc((outer * count * inner * element_bytes) as usize),
            flags: b.memory.upload(&[0_u32, 0]),
            indices_per_item: 2,
        };
        launches.push(gather.launch().unwrap());
    }
    b.done(launches)
}

fn pads() -> Case {
    let mut b = Builder::new("pads");
    let mut launches = Vec::new();
    for (element_bytes, mode) in [(1, PadMode::Constant), (2, PadMode::Reflect), (4, PadMode::Edge), (8, PadMode::Wrap)]
    {
        let pad = Pad {
            element_bytes,
            mode,
            value: 7,
            input: vec![3, 5],
            begins: vec![1, 2],
            output: vec![5, 9],
            x: b.input(Type::F32, 15 * element_bytes / 4 + 1),
            y: b.memory.alloc(45 * element_bytes as usize),
        };
        launches.push(pad.launch().unwrap());
    }
    b.done(launches)
}

fn elementwise() -> Case {
    let mut b = Builder::new("elementwise");
    let mut launches = Vec::new();
    for (domain, dtype) in [(Domain::F32, Type::F32), (Domain::I64, Type::I64), (Domain::F32, Type::F16)] {
        for width in [8, 7] {
            let inputs = vec![
                Input { pointer: b.input(dtype, 70 * width), dtype, strides: vec![width, 1] },
                Input { pointer: b.input(dtype, 70), dtype, strides: vec![1, 0] },
                Input { pointer: b.input(dtype, 1), dtype, strides: vec![0, 0] },
            ];
            let steps = vec![
                Step::load(Source::Input(0)),
                Step::two(Op::Save, Source::Slot(1)),
                Step::two(Op::Mul, Source::Input(1)),
                Step::three(Op::MulAdd, Source::Slot(1), Source::Input(2)),
            ];
            let output = b.output(dtype, 70 * width);
            let whole = Elementwise { domain, dims: vec![70, width], output, output_type: dtype, inputs, steps };
            launches.push(whole.launch().unwrap());
        }
    }
    b.done(launches)
}

fn recurrent() -> Case {
    let mut b = Builder::new("recurrent");
    let (batch, hidden) = (6, 5);
    let mut launches = Vec::new();
    for kind in 0..4 {
        let mut state = || b.input(Type::F32, batch * hidden);
        let (hidden_in, cell_in, peepholes) = (state(), state(), state());
        let mut out = || b.output(Type::F32, batch * hidden);
        let (hidden_out, cell_out, output, scratch) = (out(), out(), out(), [out(), out()]);
        let cell = match kind {
            0 => Cell::Lstm { cell_in, cell_out, peepholes },
            1 => Cell::GruLinearBeforeReset { bias: peepholes },
            2 => Cell::Gru { scratch },
            _ => Cell::Rnn,
        };
        let step = RecurrentStep {
            cell,
            batch,
            hidden,
            step: 2,
            gates: b.input(Type::F32, batch * cell.gates() * hidden),
            gates_row: cell.gates() * hidden,
            weights: b.input(Type::F32, cell.gates() * hidden * hidden),
            hidden_in,
            hidden_out,
            lengths: b.memory.upload(&[3_i32, 2, 1, 5, 3, 0]),
            output,
        };
        launches.extend(step.launches().unwrap());
    }
    b.done(launches)
}

fn moves() -> Case {
    let mut b = Builder::new("moves");
    let (first, second) = (b.input(Type::F32, 100), b.input(Type::F32, 11));
    let target = b.output(Type::F32, 120);
    let entries = b.memory.upload(&[
        MoveEntry { source: first, target, bytes: 400 },
        MoveEntry { source: Pointer(second.0 + 1), target: Pointer(target.0 + 400), bytes: 39 },
        MoveEntry { source: Pointer::NONE, target: Pointer(target.0 + 440), bytes: 40 },
        MoveEntry { source: Pointer(8), target: Pointer(8), bytes: 40 },
    ]);
    let count = b.memory.upload(&[3_u32]);
    let launch = Move { entries, count, entries_max: 4, bytes_max: 400 }.launch();
    b.done(vec![launch])
}
