//! `elementwise.cu` on the host: every step against its formula, broadcasting and types against plain loops.

mod support;

use proptest::prelude::*;
use rota_kernels::elementwise::Domain;
use rota_kernels::host::{Host, Memory};
use rota_kernels::{Elementwise, Input, Op, Pointer, Source, Step, Type};
use support::{Numbers, assert_close, from_f16, to_f16};

type Formula = fn(f32, f32, f32) -> f32;
type IntegerFormula = fn(i64, i64, i64) -> i64;

/// Steps on f32, each with its formula.
const F32: &[(Op, Formula)] = &[
    (Op::Add, |x, y, _| x + y),
    (Op::Sub, |x, y, _| x - y),
    (Op::SubFrom, |x, y, _| y - x),
    (Op::Mul, |x, y, _| x * y),
    (Op::Div, |x, y, _| x / y),
    (Op::DivInto, |x, y, _| y / x),
    (Op::Pow, |x, y, _| x.powf(y)),
    (Op::PowOf, |x, y, _| y.powf(x)),
    (Op::Min, |x, y, _| x.min(y)),
    (Op::Max, |x, y, _| x.max(y)),
    (Op::Mod, |x, y, _| x - (x / y).floor() * y),
    (Op::ModOf, |x, y, _| y - (y / x).floor() * x),
    (Op::Fmod, |x, y, _| x % y),
    (Op::FmodOf, |x, y, _| y % x),
    (Op::MulAdd, |x, y, z| x.mul_add(y, z)),
    (Op::Clip, |x, y, z| x.max(y).min(z)),
    (Op::Select, |x, y, z| if x != 0.0 { y } else { z }),
    (Op::Equal, |x, y, _| f32::from(x == y)),
    (Op::Less, |x, y, _| f32::from(x < y)),
    (Op::LessEqual, |x, y, _| f32::from(x <= y)),
    (Op::Greater, |x, y, _| f32::from(x > y)),
    (Op::GreaterEqual, |x, y, _| f32::from(x >= y)),
    (Op::And, |x, y, _| f32::from(x != 0.0 && y != 0.0)),
    (Op::Or, |x, y, _| f32::from(x != 0.0 || y != 0.0)),
    (Op::Xor, |x, y, _| f32::from((x != 0.0) != (y != 0.0))),
    (Op::Not, |x, _, _| f32::from(x == 0.0)),
    (Op::Neg, |x, _, _| -x),
    (Op::Abs, |x, _, _| x.abs()),
    (Op::Sign, |x, _, _| if x == 0.0 { 0.0 } else { x.signum() }),
    (Op::Sqrt, |x, _, _| x.sqrt()),
    (Op::Reciprocal, |x, _, _| 1.0 / x),
    (Op::Exp, |x, _, _| x.exp()),
    (Op::Log, |x, _, _| x.ln()),
    (Op::Floor, |x, _, _| x.floor()),
    (Op::Ceil, |x, _, _| x.ceil()),
    (Op::Round, |x, _, _| x.round_ties_even()),
    (Op::Trunc, |x, _, _| x.trunc()),
    (Op::Erf, |x, _, _| libm::erff(x)),
    (Op::Gelu, |x, _, _| 0.5 * x * (1.0 + libm::erff(x / std::f32::consts::SQRT_2))),
    (Op::Tanh, |x, _, _| x.tanh()),
    (Op::Sigmoid, |x, _, _| 1.0 / (1.0 + (-x).exp())),
    (Op::Softplus, |x, _, _| x.exp().ln_1p()),
    (Op::Softsign, |x, _, _| x / (1.0 + x.abs())),
    (Op::HardSigmoid, |x, y, z| (y * x + z).clamp(0.0, 1.0)),
    (Op::HardSwish, |x, y, z| x * (y * x + z).clamp(0.0, 1.0)),
    (Op::Swish, |x, _, _| x / (1.0 + (-x).exp())),
    (Op::Prelu, |x, y, _| if x < 0.0 { x * y } else { x }),
    (Op::Elu, |x, y, _| if x < 0.0 { y * x.exp_m1() } else { x }),
    (Op::Sin, |x, _, _| x.sin()),
    (Op::Cos, |x, _, _| x.cos()),
    (Op::Tan, |x, _, _| x.tan()),
    (Op::Asin, |x, _, _| x.asin()),
    (Op::Acos, |x, _, _| x.acos()),
    (Op::Atan, |x, _, _| x.atan()),
    (Op::Sinh, |x, _, _| x.sinh()),
    (Op::Cosh, |x, _, _| x.cosh()),
    (Op::Asinh, |x, _, _| x.asinh()),
    (Op::Acosh, |x, _, _| x.acosh()),
    (Op::Atanh, |x, _, _| x.atanh()),
    (Op::IsNan, |x, _, _| f32::from(x.is_nan())),
    (Op::IsInf, |x, y, z| f32::from((x == f32::INFINITY && y != 0.0) || (x == f32::NEG_INFINITY && z != 0.0))),
];

/// Steps on integers.
const I64: &[(Op, IntegerFormula)] = &[
    (Op::Add, |x, y, _| x.wrapping_add(y)),
    (Op::Sub, |x, y, _| x.wrapping_sub(y)),
    (Op::Mul, |x, y, _| x.wrapping_mul(y)),
    (Op::Div, |x, y, _| if y == 0 { 0 } else { x / y }),
    (Op::Mod, |x, y, _| if y == 0 { 0 } else { x - (x as f64 / y as f64).floor() as i64 * y }),
    (Op::Fmod, |x, y, _| if y == 0 { 0 } else { x % y }),
    (Op::Pow, |x, y, _| if y < 0 { i64::from(x == 1) } else { x.wrapping_pow(y as u32) }),
    (Op::Clip, |x, y, z| x.max(y).min(z)),
    (Op::Select, |x, y, z| if x != 0 { y } else { z }),
    (Op::Sign, |x, _, _| x.signum()),
    (Op::Abs, |x, _, _| x.abs()),
    (Op::BitAnd, |x, y, _| x & y),
    (Op::BitOr, |x, y, _| x | y),
    (Op::BitXor, |x, y, _| x ^ y),
    (Op::BitNot, |x, _, _| !x),
    (Op::ShiftLeft, |x, y, _| if y < 0 { 0 } else { x << y }),
    (Op::ShiftRight, |x, y, _| if y < 0 { 0 } else { ((x as u64) >> y) as i64 }),
];

fn contiguous(pointer: Pointer, dtype: Type) -> Input {
    Input { pointer, dtype, strides: vec![1] }
}

/// Runs x = op(a, b, c) over three equally long inputs.
fn run<T: zerocopy::IntoBytes + zerocopy::Immutable>(
    domain: Domain,
    dtype: Type,
    op: Op,
    operands: [&[T]; 3],
    constants: Option<[Source; 2]>,
) -> (Memory, Pointer) {
    let mut memory = Memory::default();
    let inputs = operands.map(|operand| contiguous(memory.upload(operand), dtype));
    let output = memory.alloc(size_of_val(operands[0]));
    let [y, z] = constants.unwrap_or([Source::Input(1), Source::Input(2)]);
    let steps = vec![Step::load(Source::Input(0)), Step::three(op, y, z)];
    let count = operands[0].len() as u32;
    let elementwise =
        Elementwise { domain, dims: vec![count], output, output_type: dtype, inputs: inputs.to_vec(), steps };
    Host::load().unwrap().run(&elementwise.launch().unwrap(), &mut memory).unwrap();
    (memory, output)
}

#[test]
fn every_step_on_f32_equals_its_formula() {
    let mut numbers = Numbers::new(1);
    let mut take = |scale: f32| numbers.take(1021).iter().map(|x| x * scale).collect::<Vec<f32>>();
    let (mut x, y, z) = (take(3.0), take(2.0), take(1.0));
    x[..6].copy_from_slice(&[0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 1.0]);
    for &(op, formula) in F32 {
        for constants in [None, Some([Source::F32(0.75), Source::F32(1.25)])] {
            let (memory, output) = run(Domain::F32, Type::F32, op, [&x, &y, &z], constants);
            let found: Vec<f32> = memory.download(output, x.len());
            for i in 0..x.len() {
                let (y, z) = if constants.is_some() { (0.75, 1.25) } else { (y[i], z[i]) };
                let nan_in = x[i].is_nan()
                    && matches!(op, Op::Min | Op::Max | Op::Clip | Op::HardSigmoid | Op::HardSwish | Op::Sign);
                let infinite = !x[i].is_finite() && matches!(op, Op::Sin | Op::Cos | Op::Tan);
                // A quotient near a whole number rounds to either side.
                let edge = matches!(op, Op::Mod | Op::ModOf) && !x[i].is_finite() | (x[i] == 0.0);
                if nan_in || infinite || edge {
                    continue;
                }
                let expected = formula(x[i], y, z);
                let scale = expected.abs().max(1.0);
                let close = (found[i] - expected).abs() <= 4e-6 * scale || (found[i].is_nan() && expected.is_nan());
                assert!(
                    close || found[i] == expected,
                    "{op:?}({}, {y}, {z}) = {}, expected {expected}",
                    x[i],
                    found[i]
                );
            }
        }
    }
}

#[test]
fn a_minimum_of_what_is_no_number_is_no_number() {
    for op in [Op::Min, Op::Max, Op::Clip] {
        let nan = [f32::NAN; 5];
        let (memory, output) = run(Domain::F32, Type::F32, op, [&nan, &[1.0; 5], &[2.0; 5]], None);
        assert!(memory.download::<f32>(output, 5).iter().all(|x| x.is_nan()), "{op:?}");
    }
}

#[test]
fn every_step_on_integers_equals_its_formula() {
    let mut numbers = Numbers::new(2);
    let mut take = |modulus: i64| (0..517).map(|_| numbers.next_u64() as i64 % modulus).collect::<Vec<i64>>();
    let (x, y, z) = (take(1000), take(7), take(1000));
    for &(op, formula) in I64 {
        let (memory, output) = run(Domain::I64, Type::I64, op, [&x, &y, &z], None);
        let expected: Vec<i64> = (0..x.len()).map(|i| formula(x[i], y[i], z[i])).collect();
        if op == Op::Pow {
            // Negative exponents of -1 depend on their parity.
            let found = memory.download::<i64>(output, x.len());
            for i in (0..x.len()).filter(|&i| y[i] >= 0) {
                assert_eq!(found[i], expected[i], "{}^{}", x[i], y[i]);
            }
        } else {
            assert_eq!(memory.download::<i64>(output, x.len()), expected, "{op:?}");
        }
    }
}

#[test]
fn every_type_is_read_and_written() {
    let host = Host::load().unwrap();
    let values: Vec<f32> = (0..103).map(|i| (i % 50) as f32).collect();
    let mut memory = Memory::default();
    let sources = [
        (Type::F32, memory.upload(&values)),
        (Type::F16, memory.upload(&to_f16(&values))),
        (Type::Bf16, memory.upload(&values.iter().map(|x| (x.to_bits() >> 16) as u16).collect::<Vec<_>>())),
        (Type::I8, memory.upload(&values.iter().map(|&x| x as i8).collect::<Vec<_>>())),
        (Type::U8, memory.upload(&values.iter().map(|&x| x as u8).collect::<Vec<_>>())),
        (Type::I16, memory.upload(&values.iter().map(|&x| x as i16).collect::<Vec<_>>())),
        (Type::U16, memory.upload(&values.iter().map(|&x| x as u16).collect::<Vec<_>>())),
        (Type::I32, memory.upload(&values.iter().map(|&x| x as i32).collect::<Vec<_>>())),
        (Type::U32, memory.upload(&values.iter().map(|&x| x as u32).collect::<Vec<_>>())),
        (Type::I64, memory.upload(&values.iter().map(|&x| x as i64).collect::<Vec<_>>())),
    ];
    for domain in [Domain::F32, Domain::I64] {
        for (dtype, pointer) in sources {
            // There and back: to the type as an output, then to f32.
            let middle = memory.alloc(values.len() * 8);
            let back = memory.alloc(values.len() * 4);
            for (from, from_type, to, to_type) in [(pointer, dtype, middle, dtype), (middle, dtype, back, Type::F32)] {
                let launch = Elementwise {
                    domain,
                    dims: vec![values.len() as u32],
                    output: to,
                    output_type: to_type,
                    inputs: vec![contiguous(from, from_type)],
                    steps: vec![Step::load(Source::Input(0))],
                };
                host.run(&launch.launch().unwrap(), &mut memory).unwrap();
            }
            assert_close(&memory.download(back, values.len()), &values, 0.0, &format!("{domain:?} {dtype:?}"));
        }
    }
}

#[test]
fn truth_is_stored_as_one_and_rounding_to_f16_is_to_the_nearest() {
    let host = Host::load().unwrap();
    let values: Vec<f32> = Numbers::new(5).take(300).iter().map(|x| x * 70_000.0).chain([0.0, 1e-7, 2e-8]).collect();
    let mut memory = Memory::default();
    let input = memory.upload(&values);
    for output_type in [Type::Bool, Type::F16] {
        let output = memory.alloc(values.len() * 2);
        let elementwise = Elementwise {
            domain: Domain::F32,
            dims: vec![values.len() as u32],
            output,
            output_type,
            inputs: vec![contiguous(input, Type::F32)],
            steps: vec![Step::load(Source::Input(0))],
        };
        host.run(&elementwise.launch().unwrap(), &mut memory).unwrap();
        if output_type == Type::F16 {
            assert_close(&from_f16(&memory.download(output, values.len())), &from_f16(&to_f16(&values)), 0.0, "f16");
        } else {
            let expected: Vec<u8> = values.iter().map(|&x| u8::from(x != 0.0)).collect();
            assert_eq!(memory.download::<u8>(output, values.len()), expected);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// (a + b) * saved b - c, each operand broadcast along its own axes.
    #[test]
    fn broadcast_inputs_and_slots_equal_plain_loops(
        dims in prop::collection::vec(1_u32..6, 1..5),
        wide in any::<bool>(),
        masks in prop::array::uniform3(0_u32..16),
        seed in any::<u64>(),
    ) {
        let mut dims = dims;
        if wide {
            *dims.last_mut().unwrap() *= 4;
        }
        let mut numbers = Numbers::new(seed);
        let mut memory = Memory::default();
        let count: u32 = dims.iter().product();
        let mut operands = Vec::new();
        for mask in masks {
            let mut strides = vec![0; dims.len()];
            let mut size = 1;
            for axis in (0..dims.len()).rev().filter(|axis| mask & (1 << axis) == 0) {
                strides[axis] = size;
                size *= dims[axis];
            }
            let values = numbers.take(size as usize);
            operands.push((values.clone(), Input { pointer: memory.upload(&values), dtype: Type::F32, strides }));
        }
        let output = memory.alloc(count as usize * 4);
        let steps = vec![
            Step::load(Source::Input(1)),
            Step::two(Op::Save, Source::Slot(3)),
            Step::two(Op::Add, Source::Input(0)),
            Step::two(Op::Mul, Source::Slot(3)),
            Step::two(Op::Sub, Source::Input(2)),
        ];
        let inputs = operands.iter().map(|(_, input)| input.clone()).collect();
        let elementwise = Elementwise { domain: Domain::F32, dims: dims.clone(), output, output_type: Type::F32, inputs, steps };
        Host::load().unwrap().run(&elementwise.launch().unwrap(), &mut memory).unwrap();
        let value = |operand: usize, index: u32| {
            let (values, input) = &operands[operand];
            let (mut rest, mut offset) = (index, 0);
            for axis in (0..dims.len()).rev() {
                offset += rest % dims[axis] * input.strides[axis];
                rest /= dims[axis];
            }
            values[offset as usize]
        };
        let expected: Vec<f32> =
            (0..count).map(|i| (value(1, i) + value(0, i)) * value(1, i) - value(2, i)).collect();
        assert_close(&memory.download(output, count as usize), &expected, 1e-6, "broadcast");
    }
}
