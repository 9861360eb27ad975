//! `copy.cu`, `transpose.cu`, `gather.cu` and `pad.cu` on the host, index by index.

mod support;

use proptest::prelude::*;
use rota_kernels::host::{Host, Memory};
use rota_kernels::{Copy, Gather, Launch, Pad, PadMode, Picks, Pointer, Type};
use support::Numbers;

/// All indices below `dims`, the last one fastest.
fn indices(dims: &[u32]) -> impl Iterator<Item = Vec<u32>> + use<'_> {
    let count: u32 = dims.iter().product();
    (0..count).map(move |mut rest| {
        let mut index = vec![0; dims.len()];
        for axis in (0..dims.len()).rev() {
            index[axis] = rest % dims[axis];
            rest /= dims[axis];
        }
        index
    })
}

fn contiguous(dims: &[u32]) -> Vec<i64> {
    let mut strides = vec![1; dims.len()];
    for axis in (1..dims.len()).rev() {
        strides[axis - 1] = strides[axis] * i64::from(dims[axis]);
    }
    strides
}

fn offset(index: &[u32], strides: &[i64]) -> i64 {
    index.iter().zip(strides).map(|(&index, &stride)| i64::from(index) * stride).sum()
}

fn bytes(count: usize) -> Vec<u8> {
    let mut numbers = Numbers::new(count as u64);
    (0..count).map(|_| (numbers.next_u64() >> 32) as u8).collect()
}

fn run(launch: &Launch, memory: &mut Memory) {
    Host::load().unwrap().run(launch, memory).unwrap_or_else(|error| panic!("{error}\n{launch:?}"));
}

/// Copies a permutation of a contiguous tensor, from `skip` elements on and with `gap` elements between the target's rows.
fn check_copy(dims: &[u32], order: &[usize], element: usize, skip: usize, gap: u32, backwards: bool) {
    let mut memory = Memory::default();
    let count: u32 = dims.iter().product();
    let x = bytes((count as usize + skip) * element);
    let from = contiguous(dims);
    let target: Vec<u32> = order.iter().map(|&axis| dims[axis]).collect();
    let mut padded = target.clone();
    *padded.last_mut().unwrap() += gap;
    let y_strides = contiguous(&padded);
    let mut x_strides: Vec<i64> = order.iter().map(|&axis| from[axis]).collect();
    let mut first = skip as i64;
    if backwards {
        first += x_strides[0] * i64::from(target[0] - 1);
        x_strides[0] = -x_strides[0];
    }
    let total = padded.iter().product::<u32>() as usize * element;
    let source = memory.upload(&x);
    let copy = |y: Pointer| Copy {
        element_bytes: element as u32,
        dims: target.clone(),
        x: Pointer((source.0 as i64 + first * element as i64) as u64),
        x_strides: x_strides.clone(),
        y,
        y_strides: y_strides.clone(),
    };
    let y = memory.alloc(total);
    let mut expected = memory.download::<u8>(y, total);
    for index in indices(&target) {
        let (from, to) = (first + offset(&index, &x_strides), offset(&index, &y_strides));
        let (from, to) = (from as usize * element, to as usize * element);
        expected[to..to + element].copy_from_slice(&x[from..from + element]);
    }
    for threads in [64, 128, 256] {
        let y = memory.alloc(total);
        let launch = copy(y).launch_with(threads).unwrap();
        run(&launch, &mut memory);
        assert_eq!(memory.download::<u8>(y, total), expected, "{launch:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn copies_move_each_element_to_its_place(
        dims in prop::collection::vec(1_u32..14, 1..5),
        seed in any::<u64>(),
        element in prop_oneof![Just(1), Just(2), Just(4), Just(8)],
        skip in 0..3_usize,
        gap in 0..3_u32,
        backwards in any::<bool>(),
    ) {
        let mut order: Vec<usize> = (0..dims.len()).collect();
        let mut numbers = Numbers::new(seed);
        for i in (1..order.len()).rev() {
            order.swap(i, numbers.next_u64() as usize % (i + 1));
        }
        check_copy(&dims, &order, element, skip, gap, backwards);
    }

    #[test]
    fn gathers_take_the_row_that_the_index_names_and_mark_items_whose_index_is_out_of_range(
        outer in 1..4_u32,
        axis in 1..9_u32,
        count in 1..12_u32,
        inner in 1..20_u32,
        element in prop_oneof![Just(1_u32), Just(2), Just(4), Just(8)],
        wide in any::<bool>(),
        per_element in any::<bool>(),
        per_item in 1..5_u32,
    ) {
        let mut memory = Memory::default();
        let x = bytes((outer * axis * inner * element) as usize);
        let total = outer * count * inner;
        let picks = if per_element { Picks::Elements } else { Picks::Rows };
        let indices = if per_element { total } else { count };
        let mut numbers = Numbers::new(u64::from(total));
        let wanted: Vec<i64> = (0..indices).map(|_| numbers.next_u64() as i64 % i64::from(axis + 1)).collect();
        let y = memory.alloc((total * element) as usize);
        let flags = memory.upload(&vec![0_u32; indices.div_ceil(per_item) as usize]);
        let gather = Gather {
            element_bytes: element,
            outer,
            axis,
            count,
            inner,
            picks,
            index_type: if wide { Type::I64 } else { Type::I32 },
            x: memory.upload(&x),
            indices: if wide { memory.upload(&wanted) } else { memory.upload(&wanted.iter().map(|&i| i as i32).collect::<Vec<_>>()) },
            y,
            flags,
            indices_per_item: per_item,
        };
        let mut expected = Vec::new();
        let mut marked = vec![0_u32; indices.div_ceil(per_item) as usize];
        for (o, j, i) in (0..outer).flat_map(|o| (0..count).flat_map(move |j| (0..inner).map(move |i| (o, j, i)))) {
            let place = if per_element { (o * count + j) * inner + i } else { j };
            let index = wanted[place as usize];
            let index = if index < 0 { index + i64::from(axis) } else { index };
            if !(0..i64::from(axis)).contains(&index) {
                marked[(place / per_item) as usize] = 1;
            }
            let row = index.clamp(0, i64::from(axis) - 1) as u32;
            let from = (((o * axis + row) * inner + i) * element) as usize;
            expected.extend_from_slice(&x[from..from + element as usize]);
        }
        for threads in [64, 128, 256] {
            run(&gather.launch_with(threads).unwrap(), &mut memory);
            prop_assert_eq!(memory.download::<u8>(y, expected.len()), expected.clone());
            prop_assert_eq!(memory.download::<u32>(flags, marked.len()), marked.clone());
        }
    }

    #[test]
    fn pads_have_what_their_mode_says_outside(
        axes in prop::collection::vec((2_u32..7, -1..6_i32, 0..6_u32), 1..4),
        element in prop_oneof![Just(1_usize), Just(2), Just(4), Just(8)],
    ) {
        let input: Vec<u32> = axes.iter().map(|axis| axis.0).collect();
        let begins: Vec<i32> = axes.iter().map(|axis| axis.1).collect();
        let output: Vec<u32> = axes.iter().map(|axis| (axis.0 as i32 + axis.1) as u32 + axis.2).collect();
        let x = bytes(input.iter().product::<u32>() as usize * element);
        for mode in [PadMode::Constant, PadMode::Reflect, PadMode::Edge, PadMode::Wrap] {
            let mut memory = Memory::default();
            let value = [7_u8; 8];
            let total = output.iter().product::<u32>() as usize * element;
            let y = memory.alloc(total);
            let pad = Pad {
                element_bytes: element as u32,
                mode,
                value: u64::from_ne_bytes(value),
                input: input.clone(),
                begins: begins.clone(),
                output: output.clone(),
                x: memory.upload(&x),
                y,
            };
            let strides = contiguous(&input);
            let mut expected = Vec::new();
            for index in indices(&output) {
                let found: Option<Vec<u32>> = (0..index.len()).map(|axis| {
                    let size = input[axis] as i32;
                    let mut place = index[axis] as i32 - begins[axis];
                    match mode {
                        PadMode::Constant => if !(0..size).contains(&place) { return None },
                        PadMode::Edge => place = place.clamp(0, size - 1),
                        PadMode::Wrap => place = place.rem_euclid(size),
                        PadMode::Reflect => while !(0..size).contains(&place) {
                            place = if place < 0 { -place } else { 2 * (size - 1) - place };
                        },
                    }
                    Some(place as u32)
                }).collect();
                match found {
                    None => expected.extend_from_slice(&value[..element]),
                    Some(index) => {
                        let from = offset(&index, &strides) as usize * element;
                        expected.extend_from_slice(&x[from..from + element]);
                    }
                }
            }
            for threads in [64, 128, 256] {
                run(&pad.launch_with(threads).unwrap(), &mut memory);
                prop_assert_eq!(&memory.download::<u8>(y, total), &expected, "{:?}", &pad);
            }
        }
    }
}

#[test]
fn permutations_that_move_the_last_axis_go_through_tiles() {
    for element in [1, 2, 4, 8] {
        check_copy(&[33, 70], &[1, 0], element, 0, 0, false);
        check_copy(&[3, 20, 2, 40], &[0, 3, 2, 1], element, 1, 2, false);
    }
    let copy = Copy {
        element_bytes: 4,
        dims: vec![40, 20],
        x: Pointer(16),
        x_strides: vec![1, 40],
        y: Pointer(16),
        y_strides: vec![20, 1],
    };
    assert_eq!(copy.launch().unwrap().kernel.name, "rota_transpose_4");
}

#[test]
fn contiguous_bytes_move_sixteen_at_a_time() {
    let copy = Copy {
        element_bytes: 1,
        dims: vec![3, 64],
        x: Pointer(32),
        x_strides: vec![64, 1],
        y: Pointer(64),
        y_strides: vec![128, 1],
    };
    let launch = copy.launch().unwrap();
    assert_eq!(launch.kernel.name, "rota_copy_16");
}
