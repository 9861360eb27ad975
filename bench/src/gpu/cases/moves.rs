//! What moves bytes: copies, transposes, gathers, padding, and batches put together.

use crate::gpu::Failure;
use crate::gpu::case::{Case, Make, Maker, Planned, Scale, Tolerance, Variant};
use rota_kernels::params::MoveEntry;
use rota_kernels::{Copy, Gather, Launch, Math, Move, Pad, PadMode, Picks, Pointer, Type, Unfit};
use serde_json::{Value, json};

/// Element types of 1, 2, 4 and 8 bytes.
const TYPES: [Type; 4] = [Type::U8, Type::U16, Type::U32, Type::I64];
/// What the elements are below: even one byte holds it.
const BELOW: u32 = 251;

pub fn planned(scale: Scale) -> Vec<Planned> {
    let mut all = Vec::new();
    let mut add = |make: Make| {
        all.push(Planned { math: Math::F32, make });
    };
    for dtype in TYPES {
        // Lines of an odd length can't be moved in wider units than an element.
        add(Box::new(move |maker| copy(maker, dtype, scale.pick([4096, 2047], [7, 13]))));
        add(Box::new(move |maker| transpose(maker, dtype, scale.pick([2048, 2048], [37, 41]))));
        add(Box::new(move |maker| gather(maker, dtype, scale.pick([30_000, 4096, 767], [9, 5, 7]))));
        add(Box::new(move |maker| pad(maker, dtype, scale.pick([192, 112, 112], [2, 5, 6]))));
    }
    add(Box::new(move |maker| copy(maker, Type::U32, scale.pick([4096, 2048], [7, 16]))));
    add(Box::new(move |maker| gather(maker, Type::U32, scale.pick([30_000, 4096, 768], [9, 5, 8]))));
    // A picture of 3 x 224 x 224 f32 from each of eight clients.
    add(Box::new(move |maker| batch(maker, scale.pick([8, 602_112], [3, 1001]))));
    all
}

/// What all of them have in common: `expected` says from which value an element comes.
fn moved(
    family: &'static str,
    what: String,
    launches: (Vec<Launch>, Launch),
    output: crate::gpu::case::Output,
    expected: impl Fn(usize) -> u32 + 'static,
    peer: Option<Value>,
) -> Case {
    Case {
        family,
        what,
        math: Math::F32,
        variants: Variant::mark(launches.0, &launches.1),
        output,
        expected: Box::new(move |index| f64::from(expected(index))),
        work: 1,
        tolerance: Tolerance::EXACT,
        peer,
    }
}

fn each_block(launch: Launch, with: impl Fn(u32) -> Result<Launch, Unfit>) -> Result<(Vec<Launch>, Launch), Unfit> {
    Ok((launch.kernel.blocks.iter().map(|&block| with(block)).collect::<Result<_, _>>()?, launch))
}

/// A slice: the right part of each line.
fn copy(maker: &mut Maker, dtype: Type, [rows, columns]: [u64; 2]) -> Result<Case, Failure> {
    let skip = 16;
    let width = columns + skip;
    let (x, pointer) = maker.whole(rows * width, BELOW, dtype)?;
    let output = maker.output(rows * columns, dtype)?;
    let copy = Copy {
        element_bytes: dtype.bytes() as u32,
        dims: vec![rows as u32, columns as u32],
        x: Pointer(pointer.0 + skip * dtype.bytes()),
        x_strides: vec![width as i64, 1],
        y: output.pointer,
        y_strides: vec![columns as i64, 1],
    };
    let launches = each_block(copy.launch()?, |block| copy.launch_with(block))?;
    let from = move |index: usize| {
        let (row, column) = (index as u64 / columns, index as u64 % columns);
        x[(row * width + skip + column) as usize]
    };
    let peer = json!({ "op": "slice", "bytes": dtype.bytes(), "rows": rows, "columns": columns, "skip": skip });
    Ok(moved("copy", format!("{} bytes {rows}x{columns}", dtype.bytes()), launches, output, from, Some(peer)))
}

fn transpose(maker: &mut Maker, dtype: Type, [rows, columns]: [u64; 2]) -> Result<Case, Failure> {
    let (x, pointer) = maker.whole(rows * columns, BELOW, dtype)?;
    let output = maker.output(rows * columns, dtype)?;
    let transpose = Copy {
        element_bytes: dtype.bytes() as u32,
        dims: vec![rows as u32, columns as u32],
        x: pointer,
        x_strides: vec![columns as i64, 1],
        y: output.pointer,
        y_strides: vec![1, rows as i64],
    };
    let launch = transpose.launch()?;
    let from = move |index: usize| x[(index as u64 % rows * columns + index as u64 / rows) as usize];
    let peer = json!({ "op": "transpose", "bytes": dtype.bytes(), "rows": rows, "columns": columns });
    let what = format!("{} bytes {rows}x{columns}", dtype.bytes());
    Ok(moved("transpose", what, (vec![launch.clone()], launch), output, from, Some(peer)))
}

/// Whole rows of a table, by index.
fn gather(maker: &mut Maker, dtype: Type, [axis, count, inner]: [u64; 3]) -> Result<Case, Failure> {
    let (x, pointer) = maker.whole(axis * inner, BELOW, dtype)?;
    let (indices, indices_pointer) = maker.whole(count, axis as u32, Type::I64)?;
    let output = maker.output(count * inner, dtype)?;
    let gather = Gather {
        element_bytes: dtype.bytes() as u32,
        outer: 1,
        axis: axis as u32,
        count: count as u32,
        inner: inner as u32,
        picks: Picks::Rows,
        index_type: Type::I64,
        x: pointer,
        indices: indices_pointer,
        y: output.pointer,
        flags: Pointer::NONE,
        indices_per_item: 1,
    };
    let launches = each_block(gather.launch()?, |block| gather.launch_with(block))?;
    let from = move |index: usize| {
        let (pick, place) = (index as u64 / inner, index as u64 % inner);
        x[(u64::from(indices[pick as usize]) * inner + place) as usize]
    };
    let peer = json!({ "op": "embedding", "bytes": dtype.bytes(), "axis": axis, "count": count, "inner": inner });
    let what = format!("{} bytes, {count} rows of {inner} out of {axis}", dtype.bytes());
    Ok(moved("gather", what, launches, output, from, Some(peer)))
}

/// One element of a constant around each picture.
fn pad(maker: &mut Maker, dtype: Type, [planes, height, width]: [u64; 3]) -> Result<Case, Failure> {
    const VALUE: u32 = 7;
    let (x, pointer) = maker.whole(planes * height * width, BELOW, dtype)?;
    let (h, w) = (height + 2, width + 2);
    let output = maker.output(planes * h * w, dtype)?;
    let pad = Pad {
        element_bytes: dtype.bytes() as u32,
        mode: PadMode::Constant,
        value: u64::from(VALUE),
        input: [planes, height, width].map(|dim| dim as u32).to_vec(),
        begins: vec![0, 1, 1],
        output: [planes, h, w].map(|dim| dim as u32).to_vec(),
        x: pointer,
        y: output.pointer,
    };
    let launches = each_block(pad.launch()?, |block| pad.launch_with(block))?;
    let from = move |index: usize| {
        let index = index as u64;
        let (column, row, plane) = (index % w, index / w % h, index / (w * h));
        match (1..=height).contains(&row) && (1..=width).contains(&column) {
            true => x[((plane * height + row - 1) * width + column - 1) as usize],
            false => VALUE,
        }
    };
    let peer = json!({ "op": "pad", "bytes": dtype.bytes(), "planes": planes, "height": height, "width": width });
    Ok(moved("pad", format!("{} bytes {planes}x{height}x{width}", dtype.bytes()), launches, output, from, Some(peer)))
}

/// A batch put together from `pieces` buffers by one launch.
fn batch(maker: &mut Maker, [pieces, bytes]: [u64; 2]) -> Result<Case, Failure> {
    let output = maker.output(pieces * bytes, Type::U8)?;
    let (mut entries, mut sources) = (Vec::new(), Vec::new());
    for piece in 0..pieces {
        let (values, source) = maker.whole(bytes, BELOW, Type::U8)?;
        entries.push(MoveEntry { source, target: Pointer(output.pointer.0 + piece * bytes), bytes });
        sources.push(values);
    }
    let all = Move {
        entries: maker.table(&entries)?,
        count: maker.table(&[pieces as u32])?,
        entries_max: pieces as u32,
        bytes_max: bytes,
    };
    let launches = each_block(all.launch(), |block| Ok(all.launch_with(block)))?;
    let from = move |index: usize| sources[index / bytes as usize][index % bytes as usize];
    Ok(moved("move", format!("{pieces} pieces of {bytes} bytes"), launches, output, from, None))
}
