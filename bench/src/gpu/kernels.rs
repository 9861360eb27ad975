//! Every kernel of the catalogue against its reference, and timed.

use super::case::{Case, Maker, POISON, Scale, Variant, decode};
use super::lines::{self, Line, Writer};
use super::{Failure, Machine, cases, median, microseconds};
use rota_device::cuda::workbench::{Timing, Workbench};
use rota_device::cuda::{CudaEngine, Precision};
use rota_kernels::Cost;
use std::collections::BTreeSet;
use std::time::Duration;

/// How to try them.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    pub gpu: u32,
    pub scale: Scale,
    /// Cases of more operations are left out, and named: what a stand-in driver would take minutes for.
    pub flops_max: Option<u64>,
}

/// The largest cache is 60 MB (H200); half of the bytes that are named is read, half written.
const TIMING: Timing = Timing { repeats: 20, samples: 25, budget: Duration::from_millis(120), flush_bytes: 256 << 20 };
/// Where times mean nothing.
const TIMING_STAND_IN: Timing = Timing { repeats: 1, samples: 1, budget: Duration::ZERO, flush_bytes: 0 };

/// How it went.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    pub correct: usize,
    /// What was wrong, in words.
    pub wrong: Vec<String>,
    /// Kernels of the catalogue that no case launches. What a GPU lacks counts as launched.
    pub missing: Vec<&'static str>,
}

/// Tries all of them; a line for each, and `progress` hears of each family.
pub fn run(settings: Settings, lines: &mut Writer, mut progress: impl FnMut(&str)) -> Result<Summary, Failure> {
    let engine = CudaEngine::open(settings.gpu, Precision::Fp32)?;
    let machine = Machine::new(engine.info());
    lines.write(&Line::Machine(machine.clone()))?;
    let timing = if machine.stand_in { TIMING_STAND_IN } else { TIMING };
    let mut bench = engine.workbench()?;
    let (mut summary, mut launched, mut family) = (Summary::default(), BTreeSet::new(), "");
    for planned in cases::planned(settings.scale) {
        bench.clear();
        let case = match (planned.make)(&mut Maker::new(&mut bench)) {
            Ok(case) => case,
            Err(error) => {
                summary.wrong.push(format!("a case can't be made: {error}"));
                lines.write(&Line::Skipped { what: "a case".into(), why: error.to_string() })?;
                bench = engine.workbench()?;
                continue;
            }
        };
        if case.family != family {
            family = case.family;
            progress(family);
        }
        launched.extend(case.variants.iter().flat_map(|variant| &variant.launches).map(|launch| launch.kernel.name));
        if planned.math.capability() > machine.compute_capability {
            let why = format!("needs compute capability {:?}", planned.math.capability());
            lines.write(&Line::Skipped { what: format!("{} {}", case.family, case.what), why })?;
            continue;
        }
        let flops = case.variants.iter().flat_map(|variant| &variant.launches).map(|launch| launch.cost.flops).max();
        if flops > settings.flops_max && settings.flops_max.is_some() {
            let why = format!("{} operations are more than were asked for", flops.unwrap_or(0));
            lines.write(&Line::Skipped { what: format!("{} {}", case.family, case.what), why })?;
            continue;
        }
        for variant in &case.variants {
            let tried = attempt(&mut bench, &machine, &case, variant, timing);
            let what = format!("{} {}: {}", case.family, case.what, variant.name());
            match tried {
                Ok(line) => {
                    match line.correct {
                        true => summary.correct += 1,
                        false => summary.wrong.push(format!("{what}: error {:?} of what is allowed", line.worst)),
                    }
                    lines.write(&Line::Kernel(line))?;
                }
                Err(error) => {
                    summary.wrong.push(format!("{what}: {error}"));
                    lines.write(&Line::Skipped { what, why: error.to_string() })?;
                    // A kernel that faults takes the context with it, and with that the case's buffers.
                    bench = engine.workbench()?;
                    break;
                }
            }
        }
    }
    let all = rota_kernels::kernels().into_iter().map(|kernel| kernel.name);
    summary.missing = all.filter(|name| !launched.contains(name)).collect();
    for name in &summary.missing {
        lines.write(&Line::Skipped { what: (*name).into(), why: "no case launches it".into() })?;
    }
    lines.write(&Line::End { part: "kernels".into() })?;
    Ok(summary)
}

/// Runs one variant, compares, and times it.
fn attempt(
    bench: &mut Workbench,
    machine: &Machine,
    case: &Case,
    variant: &Variant,
    timing: Timing,
) -> Result<lines::Kernel, Failure> {
    let bytes = case.output.count as u64 * case.output.dtype.bytes();
    bench.write(case.output.pointer, &vec![POISON; bytes as usize])?;
    bench.run(&variant.launches)?;
    let found = bench.read(case.output.pointer, bytes)?;
    let (checked, worst) = compare(case, &found);
    let times = bench.time(&variant.launches, timing)?;
    let cost = variant.launches.iter().fold(Cost::default(), |sum, launch| sum + launch.cost);
    let roofline = machine.roofline(cost, case.math);
    Ok(lines::Kernel {
        family: case.family.into(),
        what: case.what.clone(),
        kernel: variant.name(),
        threads: variant.launches[0].block[0],
        chosen: variant.chosen,
        checked,
        worst: worst.is_finite().then_some(worst),
        correct: worst <= 1.0,
        bytes: cost.bytes_read + cost.bytes_written,
        flops: cost.flops,
        warm_us: median(&times.warm).map(microseconds),
        cold_us: median(&times.cold).map(microseconds),
        roofline_us: roofline.map(|(time, _)| microseconds(time)),
        bound: roofline.map(|(_, bound)| bound.into()),
        peer: case.peer.clone(),
    })
}

/// How many elements were compared, and the largest error as a multiple of what is allowed. All elements, or as many as the
/// reference computes in a moment, spread over the output and with its end.
fn compare(case: &Case, found: &[u8]) -> (usize, f64) {
    let size = case.output.dtype.bytes() as usize;
    let count = case.output.count;
    let checked = usize::try_from(WORK_MAX / case.work.max(1)).unwrap_or(usize::MAX).clamp(64, CHECKED_MAX).min(count);
    let index = |at: usize| match checked == count {
        true => at,
        // Steps that share no factor with the sizes, so that all rows and columns come into it; the last element comes last.
        false if at + 1 == checked => count - 1,
        false => (at as u64 * STRIDE % count as u64) as usize,
    };
    let error = |index: usize| {
        let element = decode(&found[index * size..][..size], case.output.dtype);
        case.tolerance.measure(element, (case.expected)(index))
    };
    (checked, (0..checked).map(|at| error(index(at))).fold(0.0, f64::max))
}

/// Operations of the reference per variant.
const WORK_MAX: u64 = 4_000_000;
const CHECKED_MAX: usize = 20_000;
/// A large prime.
const STRIDE: u64 = 1_000_003;

#[cfg(test)]
mod tests {
    use super::super::case::{Output, Tolerance};
    use super::*;
    use rota_kernels::{Math, Pointer, Type};

    /// Element `index` has to be `index`, as i32.
    fn counting(count: usize, work: u64) -> (Case, Vec<u8>) {
        let found = (0..count as u32).flat_map(u32::to_le_bytes).collect();
        let case = Case {
            family: "test",
            what: String::new(),
            math: Math::F32,
            variants: Vec::new(),
            output: Output { pointer: Pointer(256), count, dtype: Type::I32 },
            expected: Box::new(|index| index as f64),
            work,
            tolerance: Tolerance::EXACT,
            peer: None,
        };
        (case, found)
    }

    #[test]
    fn every_element_of_a_small_output_is_looked_at() {
        let (case, found) = counting(1000, 1);
        assert_eq!(compare(&case, &found), (1000, 0.0));
        for wrong in [0, 500, 999] {
            let mut found = found.clone();
            found[wrong * 4] ^= 1;
            assert_eq!(compare(&case, &found), (1000, f64::INFINITY), "element {wrong}");
        }
    }

    #[test]
    fn of_a_large_output_its_end_and_any_row_that_was_not_written_are_seen() {
        let (case, found) = counting(1 << 18, 1);
        assert_eq!(compare(&case, &found), (CHECKED_MAX, 0.0));
        let mut end = found.clone();
        *end.last_mut().unwrap() ^= 1;
        assert_eq!(compare(&case, &end).1, f64::INFINITY);
        for row in [0, 77, 511] {
            let mut found = found.clone();
            found[row * 512 * 4..(row + 1) * 512 * 4].fill(POISON);
            assert_eq!(compare(&case, &found).1, f64::INFINITY, "row {row}");
        }
        let (case, found) = counting(1 << 18, WORK_MAX);
        assert_eq!(compare(&case, &found), (64, 0.0), "a costly reference is asked less often");
    }
}
