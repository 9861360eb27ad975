//! One computation that kernels of the catalogue do: operands in a GPU's memory, launches, and what has to come out.

use super::Failure;
use crate::numbers::Numbers;
use rota_device::cuda::workbench::{TrialError, Workbench};
use rota_kernels::{Launch, Math, Pointer, Type, Unfit};
use serde_json::Value;
use zerocopy::{Immutable, IntoBytes};

/// Which sizes are tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// What fills a GPU.
    Full,
    /// What a stand-in computes in a moment: no multiples of a tile.
    Small,
}

impl Scale {
    pub fn pick<T>(self, full: T, small: T) -> T {
        match self {
            Scale::Full => full,
            Scale::Small => small,
        }
    }
}

/// A case that is not made yet: its operands take memory.
pub struct Planned {
    /// How its products multiply, which a GPU may lack; [`Math::F32`] for all that are none.
    pub math: Math,
    pub make: Make,
}

/// Makes the operands of a case, and what has to come out.
pub type Make = Box<dyn Fn(&mut Maker) -> Result<Case, Failure>>;

impl Planned {
    pub fn new(math: Math, make: impl Fn(&mut Maker) -> Result<Case, Failure> + 'static) -> Planned {
        Planned { math, make: Box::new(make) }
    }
}

/// A computation, ready to run.
pub struct Case {
    pub family: &'static str,
    /// Element type and sizes, for people.
    pub what: String,
    pub math: Math,
    /// Every kernel and block that can do it.
    pub variants: Vec<Variant>,
    pub output: Output,
    /// The plain reference, in f64: what the output's element `index` has to be.
    pub expected: Box<dyn Fn(usize) -> f64>,
    /// Operations that one call of `expected` does.
    pub work: u64,
    pub tolerance: Tolerance,
    /// The same computation in the words of `peers.py`.
    pub peer: Option<Value>,
}

/// One way to do it.
#[derive(Clone, Debug)]
pub struct Variant {
    /// In order; most often one.
    pub launches: Vec<Launch>,
    /// Whether the catalogue takes this way by itself.
    pub chosen: bool,
}

/// Where the result lies.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    pub pointer: Pointer,
    pub count: usize,
    pub dtype: Type,
}

/// How far an element may be from what is expected.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerance {
    pub absolute: f64,
    pub relative: f64,
}

impl Tolerance {
    pub const EXACT: Tolerance = Tolerance { absolute: 0.0, relative: 0.0 };

    /// Rounding of the stored element, and `absolute` for what was summed.
    pub fn stored(dtype: Type, absolute: f64) -> Tolerance {
        let relative = match dtype {
            Type::F16 => 1.0 / 1024.0,
            Type::Bf16 => 1.0 / 128.0,
            _ => 1e-6,
        };
        Tolerance { absolute, relative }
    }

    /// The error as a multiple of what is allowed: right up to 1.
    pub fn measure(self, found: f64, expected: f64) -> f64 {
        if found == expected {
            return 0.0;
        }
        let error = (found - expected).abs() / (self.absolute + self.relative * expected.abs());
        if error.is_nan() { f64::INFINITY } else { error }
    }
}

impl Variant {
    /// `all` with the one marked that is equal to `chosen`.
    pub fn mark(all: Vec<Launch>, chosen: &Launch) -> Vec<Variant> {
        Variant::mark_chains(all.into_iter().map(|launch| vec![launch]), vec![chosen.clone()])
    }

    /// The same of ways that may take several launches.
    pub fn mark_chains(all: impl IntoIterator<Item = Vec<Launch>>, chosen: Vec<Launch>) -> Vec<Variant> {
        let mut marked = false;
        let mark = |launches: Vec<Launch>| {
            let chosen = !marked && launches == chosen;
            marked |= chosen;
            Variant { launches, chosen }
        };
        let mut variants: Vec<Variant> = all.into_iter().map(mark).collect();
        if !marked {
            variants.push(Variant { launches: chosen, chosen: true });
        }
        variants
    }

    /// The kernels' names.
    pub fn name(&self) -> String {
        self.launches.iter().map(|launch| launch.kernel.name).collect::<Vec<_>>().join(" + ")
    }
}

/// A tensor in both places.
pub struct Tensor {
    /// As the element type holds them.
    pub values: Vec<f32>,
    pub pointer: Pointer,
}

/// Makes operands: the same numbers on every host.
pub struct Maker<'a> {
    bench: &'a mut Workbench,
    numbers: Numbers,
}

impl<'a> Maker<'a> {
    pub fn new(bench: &'a mut Workbench) -> Maker<'a> {
        Maker { bench, numbers: Numbers::new(SEED, 0) }
    }

    /// Numbers in [-1, 1), as `dtype` holds them.
    pub fn tensor(&mut self, count: u64, dtype: Type) -> Result<Tensor, Failure> {
        let values: Vec<f32> = (0..count).map(|_| round((self.numbers.uniform() * 2.0 - 1.0) as f32, dtype)).collect();
        let pointer = self.bench.upload(&encode(&values, dtype))?;
        Ok(Tensor { values, pointer })
    }

    /// As [`Maker::tensor`], of the numbers that a product of `math` takes as they are.
    pub fn operand(&mut self, count: u64, math: Math) -> Result<Tensor, Failure> {
        if math != Math::Tf32 {
            return self.tensor(count, math.storage());
        }
        let tf32 = |x: f32| f32::from_bits((x.to_bits() + 0x1000) & !0x1fff);
        let values: Vec<f32> = (0..count).map(|_| tf32((self.numbers.uniform() * 2.0 - 1.0) as f32)).collect();
        let pointer = self.bench.upload(&encode(&values, Type::F32))?;
        Ok(Tensor { values, pointer })
    }

    /// Whole numbers in 0..`below`.
    pub fn whole(&mut self, count: u64, below: u32, dtype: Type) -> Result<(Vec<u32>, Pointer), Failure> {
        let values: Vec<u32> = (0..count).map(|_| (self.numbers.uniform() * f64::from(below)) as u32).collect();
        let bytes = values.iter().flat_map(|value| {
            let bytes = u64::from(*value).to_le_bytes();
            bytes.into_iter().take(dtype.bytes() as usize)
        });
        let pointer = self.bench.upload(&bytes.collect::<Vec<u8>>())?;
        Ok((values, pointer))
    }

    /// A table that a kernel reads.
    pub fn table<T: IntoBytes + Immutable>(&mut self, entries: &[T]) -> Result<Pointer, TrialError> {
        self.bench.upload(entries.as_bytes())
    }

    /// Room for a result.
    pub fn output(&mut self, count: u64, dtype: Type) -> Result<Output, TrialError> {
        let pointer = self.bench.alloc(count * dtype.bytes())?;
        Ok(Output { pointer, count: count as usize, dtype })
    }

    /// What a product is launched as where it may want room for partial sums; `launches` is called twice if it does.
    pub fn chosen(
        &mut self,
        launches: impl Fn(&mut dyn FnMut(u64) -> Pointer) -> Result<Vec<Launch>, Unfit>,
    ) -> Result<Vec<Launch>, Failure> {
        let mut wanted = 0;
        let whole = launches(&mut |bytes| {
            wanted = bytes;
            Pointer::NONE
        })?;
        if wanted == 0 {
            return Ok(whole);
        }
        let room = self.scratch(wanted)?;
        Ok(launches(&mut |_| room)?)
    }

    /// Room for what is written and not looked at.
    pub fn scratch(&mut self, bytes: u64) -> Result<Pointer, TrialError> {
        self.bench.alloc(bytes)
    }
}

/// What every byte of an output is before a launch: an element that was not written shows.
pub const POISON: u8 = 0xab;

/// The element that such bytes make.
pub fn poison(dtype: Type) -> f64 {
    decode(&[POISON; 8][..dtype.bytes() as usize], dtype)
}

/// What `dtype` makes of a number.
pub fn round(value: f32, dtype: Type) -> f32 {
    match dtype {
        Type::F16 => half::f16::from_f32(value).to_f32(),
        Type::Bf16 => half::bf16::from_f32(value).to_f32(),
        _ => value,
    }
}

fn encode(values: &[f32], dtype: Type) -> Vec<u8> {
    match dtype {
        Type::F16 => values.iter().flat_map(|&value| half::f16::from_f32(value).to_le_bytes()).collect(),
        Type::Bf16 => values.iter().flat_map(|&value| half::bf16::from_f32(value).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
    }
}

/// One element.
pub fn decode(bytes: &[u8], dtype: Type) -> f64 {
    let mut word = [0; 8];
    word[..bytes.len()].copy_from_slice(bytes);
    let bits = u64::from_le_bytes(word);
    match dtype {
        Type::F32 => f64::from(f32::from_bits(bits as u32)),
        Type::F16 => half::f16::from_bits(bits as u16).to_f64(),
        Type::Bf16 => half::bf16::from_bits(bits as u16).to_f64(),
        Type::I8 => f64::from(bits as u8 as i8),
        Type::I16 => f64::from(bits as u16 as i16),
        Type::I32 => f64::from(bits as u32 as i32),
        Type::I64 => bits as i64 as f64,
        Type::U8 | Type::U16 | Type::U32 | Type::Bool => bits as f64,
    }
}

const SEED: u64 = 7;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_measured_in_what_is_allowed_and_nothing_hides_behind_a_nan() {
        let tolerance = Tolerance { absolute: 0.1, relative: 0.01 };
        assert_eq!(tolerance.measure(10.0, 10.0), 0.0);
        assert!((tolerance.measure(10.1, 10.0) - 0.5).abs() < 1e-9);
        assert_eq!(tolerance.measure(f64::NAN, 10.0), f64::INFINITY);
        assert_eq!(Tolerance::EXACT.measure(1.0, 2.0), f64::INFINITY);
        assert_eq!(Tolerance::EXACT.measure(0.0, 0.0), 0.0);
    }

    #[test]
    fn elements_come_back_as_they_were_encoded() {
        for dtype in [Type::F32, Type::F16, Type::Bf16] {
            let values: Vec<f32> = [0.0, 1.0, -0.337, 1e-3].map(|value| round(value, dtype)).to_vec();
            let bytes = encode(&values, dtype);
            let back = bytes.chunks(dtype.bytes() as usize).map(|bytes| decode(bytes, dtype) as f32);
            assert_eq!(back.collect::<Vec<f32>>(), values);
        }
        assert_eq!(decode(&[0xff; 4], Type::I32), -1.0);
        assert_eq!(decode(&[2, 1], Type::U16), 258.0);
    }
}
