//! Random models that end alike: the same operators in the same wiring, with weights and often widths of their own.

use super::{Dice, Sketch, noise};

/// A value of every member: dimensions behind the batch, the last by member.
#[derive(Clone, Debug)]
struct Shape {
    middle: Vec<usize>,
    widths: Vec<usize>,
    /// Padded with infinities when stacked: no product of it, and no further softmax.
    logarithm: bool,
}

impl Shape {
    fn is_ragged(&self) -> bool {
        self.widths.iter().any(|&width| width != self.widths[0])
    }

    fn rank(&self) -> usize {
        self.middle.len() + 2
    }
}

/// What the next node is, for all members.
#[derive(Clone, Debug)]
enum Step {
    MatMul { of: usize, seed: u64 },
    Gemm { of: usize, seed: u64, turned: bool, bias: bool },
    Constant { of: usize, seed: u64, operator: &'static str, first: bool, one: bool },
    Plain { of: usize, operator: &'static str },
    Clip { of: usize },
    Soft { of: usize, operator: &'static str },
    Normalised { of: usize, seed: u64 },
    Sum { of: usize, and: usize },
    Flatten { of: usize },
    Folded { of: usize, tail: [usize; 2] },
}

/// `members` models that end alike. With a `trunk` they begin with one layer in common, under names of their own.
pub fn alike(seed: u64, members: usize, trunk: bool) -> Vec<Vec<u8>> {
    let mut dice = Dice::new(seed);
    let middle = if dice.below(3) == 0 { vec![1 + dice.below(3)] } else { Vec::new() };
    let width = 4 + 4 * dice.below(4);
    let mut shapes = vec![Shape { middle, widths: vec![width; members], logarithm: false }];
    let mut steps = Vec::new();
    for _ in 0..1 + dice.below(7) {
        let (step, shape) = step(&mut dice, &shapes, members);
        steps.push(step);
        shapes.push(shape);
    }
    let outputs =
        if steps.len() > 1 && dice.below(4) == 0 { vec![steps.len() - 1, steps.len()] } else { vec![steps.len()] };
    (0..members).map(|member| file(member, trunk, &shapes, &steps, &outputs)).collect()
}

/// Value 0 is what all read; what is made first differs.
fn step(dice: &mut Dice, shapes: &[Shape], members: usize) -> (Step, Shape) {
    // Mostly what was made last, so that models are deep.
    let of = if dice.below(4) == 0 { dice.below(shapes.len()) } else { shapes.len() - 1 };
    let shape = shapes[of].clone();
    let seed = dice.roll();
    let widths = match dice.below(3) {
        0 => vec![1 + dice.below(9); members],
        _ => (0..members).map(|_| 1 + dice.below(9)).collect(),
    };
    let product = Shape { middle: shape.middle.clone(), widths, logarithm: false };
    let mut choice = dice.below(if of == 0 { 5 } else { 14 });
    if shape.logarithm && shape.is_ragged() && (choice < 3 || choice == 7 || choice == 8) {
        choice = 5;
    }
    match choice {
        0 if shape.rank() == 2 => {
            (Step::Gemm { of, seed, turned: dice.below(2) == 0, bias: dice.below(3) > 0 }, product)
        }
        0..=2 => (Step::MatMul { of, seed }, product),
        3 if !shape.is_ragged() => (Step::Normalised { of, seed }, shape),
        3 | 4 | 10 | 11 => {
            let operator = ["Add", "Sub", "Mul", "Div"][dice.below(4)];
            let first = operator != "Div" && dice.below(3) == 0;
            (Step::Constant { of, seed, operator, first, one: dice.below(4) == 0 }, shape)
        }
        5 => (Step::Plain { of, operator: ["Relu", "Sigmoid", "Tanh", "Erf", "Identity"][dice.below(5)] }, shape),
        6 => (Step::Clip { of }, shape),
        7 => (Step::Soft { of, operator: "Softmax" }, Shape { logarithm: false, ..shape }),
        8 => (Step::Soft { of, operator: "LogSoftmax" }, Shape { logarithm: true, ..shape }),
        9 if shape.middle.is_empty() && !shape.is_ragged() && shape.widths[0].is_multiple_of(2) => {
            let tail = [2, shape.widths[0] / 2];
            (Step::Folded { of, tail }, Shape { middle: vec![2], widths: vec![tail[1]; members], ..shape })
        }
        9 if !shape.is_ragged() => {
            let width = shape.middle.iter().product::<usize>() * shape.widths[0];
            (Step::Flatten { of }, Shape { middle: Vec::new(), widths: vec![width; members], ..shape })
        }
        _ => {
            let same = |other: &usize| {
                let (a, b) = (&shapes[*other], &shape);
                (&a.middle, &a.widths) == (&b.middle, &b.widths)
            };
            let and = (0..shapes.len()).find(same).unwrap_or(of);
            let logarithm = shape.logarithm || shapes[and].logarithm;
            (Step::Sum { of, and }, Shape { logarithm, ..shape })
        }
    }
}

fn file(member: usize, trunk: bool, shapes: &[Shape], steps: &[Step], outputs: &[usize]) -> Vec<u8> {
    let name = |value: usize, what: &str| format!("m{member}/{value}/{what}");
    let dims = |value: usize| -> Vec<i64> {
        let Shape { middle, widths, .. } = &shapes[value];
        [-1].into_iter().chain(middle.iter().map(|&dim| dim as i64)).chain([widths[member] as i64]).collect()
    };
    let mut sketch = Sketch::new(&name(0, "graph"));
    let mut made = vec![sketch.input(&name(0, "x"), &dims(0), "n")];
    if trunk {
        let width = shapes[0].widths[0];
        let w = sketch.floats(&name(0, "w"), &[width as u64; 2], &noise(1, width * width));
        made[0] = sketch.node("MatMul", &[&made[0].clone(), &w], &name(0, "shared"), &[]);
    }
    for (step, value) in steps.iter().zip(1..) {
        let out = node(&mut sketch, step, member, shapes, &made, &|what| name(value, what));
        made.push(out);
    }
    for &output in outputs {
        sketch.output(&made[output], &dims(output), "n");
    }
    sketch.file()
}

fn node(
    sketch: &mut Sketch,
    step: &Step,
    member: usize,
    shapes: &[Shape],
    made: &[String],
    name: &dyn Fn(&str) -> String,
) -> String {
    let width = |value: usize| shapes[value].widths[member];
    let (next, y) = (made.len(), name("y"));
    // Weights of a member's own; by width, so that sums stay small.
    let own = |seed: u64, count: usize| noise(seed.wrapping_add(member as u64), count);
    match *step {
        Step::MatMul { of, seed } => {
            let (rows, columns) = (width(of), width(next));
            let w = sketch.floats(&name("w"), &[rows as u64, columns as u64], &own(seed, rows * columns));
            sketch.node("MatMul", &[&made[of], &w], &y, &[])
        }
        Step::Gemm { of, seed, turned, bias } => {
            let (rows, columns) = (width(of), width(next));
            let dims = if turned { [columns as u64, rows as u64] } else { [rows as u64, columns as u64] };
            let w = sketch.floats(&name("w"), &dims, &own(seed, rows * columns));
            let b = sketch.floats(&name("b"), &[columns as u64], &own(seed ^ 1, columns));
            let inputs = [made[of].as_str(), &w, &b];
            let inputs = if bias { &inputs[..] } else { &inputs[..2] };
            let y = sketch.node("Gemm", inputs, &y, &[("transB", &[i64::from(turned)])]);
            sketch.float_attribute("alpha", 0.5);
            if bias {
                sketch.float_attribute("beta", 2.0);
            }
            y
        }
        Step::Constant { of, seed, operator, first, one } => {
            let count = if one { 1 } else { width(of) };
            let dims: &[u64] = if one { &[] } else { &[count as u64] };
            // Far from 0: some divide by it.
            let values: Vec<f32> = own(seed, count).into_iter().map(|value| value + 1.0).collect();
            let c = sketch.floats(&name("c"), dims, &values);
            let inputs = if first { [c.as_str(), &made[of]] } else { [made[of].as_str(), &c] };
            sketch.node(operator, &inputs, &y, &[])
        }
        Step::Plain { of, operator } => sketch.node(operator, &[&made[of]], &y, &[]),
        Step::Clip { of } => {
            let bounds = [("low", -0.4), ("high", 0.3)].map(|(what, value)| sketch.floats(&name(what), &[], &[value]));
            sketch.node("Clip", &[&made[of], &bounds[0], &bounds[1]], &y, &[])
        }
        Step::Soft { of, operator } => sketch.node(operator, &[&made[of]], &y, &[("axis", &[-1])]),
        Step::Normalised { of, seed } => {
            let dims = [width(of) as u64];
            let scale = sketch.floats(&name("scale"), &dims, &own(seed, width(of)));
            let bias = sketch.floats(&name("bias"), &dims, &own(seed ^ 1, width(of)));
            let y = sketch.node("LayerNormalization", &[&made[of], &scale, &bias], &y, &[("axis", &[-1])]);
            sketch.float_attribute("epsilon", 0.01);
            y
        }
        Step::Sum { of, and } => sketch.node("Add", &[&made[of], &made[and]], &y, &[]),
        Step::Flatten { of } => sketch.node("Flatten", &[&made[of]], &y, &[("axis", &[1])]),
        Step::Folded { of, tail } => {
            let target = sketch.ints(&name("target"), &[-1, tail[0] as i64, tail[1] as i64]);
            sketch.node("Reshape", &[&made[of], &target], &y, &[])
        }
    }
}
