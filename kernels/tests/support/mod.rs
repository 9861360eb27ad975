//! What the kernels' tests share.
#![allow(dead_code, reason = "each test file uses its part")]

use rota_kernels::host::{Host, Memory};
use rota_kernels::{Float, Launch, Pointer};

/// Repeatable numbers in [-1, 1).
pub struct Numbers(u64);

impl Numbers {
    pub fn new(seed: u64) -> Numbers {
        Numbers(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next_u64(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn take(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| (self.next_u64() >> 40) as f32 / (1_u64 << 23) as f32 - 1.0).collect()
    }
}

/// Panics at the first element that is further from `expected` than `tolerance`, or not a number where that is one.
pub fn assert_close(found: &[f32], expected: &[f32], tolerance: f32, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (index, (&found, &expected)) in found.iter().zip(expected).enumerate() {
        let close = found == expected || (found.is_nan() && expected.is_nan()) || (found - expected).abs() <= tolerance;
        assert!(close, "{what}: element {index} is {found}, expected {expected}");
    }
}

/// Nearest binary16 values' bits.
pub fn to_f16(values: &[f32]) -> Vec<u16> {
    values.iter().map(|&value| half::f16::from_f32(value).to_bits()).collect()
}

pub fn from_f16(bits: &[u16]) -> Vec<f32> {
    bits.iter().map(|&bits| half::f16::from_bits(bits).to_f32()).collect()
}

/// A tensor of a kernel's element type, as f32 values that the type can hold.
pub struct Tensor(Vec<f32>);

impl Tensor {
    pub fn new(values: &[f32], dtype: Float) -> Tensor {
        Tensor(if dtype == Float::F16 { from_f16(&to_f16(values)) } else { values.to_vec() })
    }

    pub fn random(numbers: &mut Numbers, count: usize, dtype: Float) -> Tensor {
        Tensor::new(&numbers.take(count), dtype)
    }

    pub fn values(&self) -> &[f32] {
        &self.0
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn upload(&self, dtype: Float, memory: &mut Memory) -> Pointer {
        if dtype == Float::F16 { memory.upload(&to_f16(&self.0)) } else { memory.upload(&self.0) }
    }

    pub fn download(dtype: Float, memory: &Memory, pointer: Pointer, count: usize) -> Vec<f32> {
        if dtype == Float::F16 { from_f16(&memory.download(pointer, count)) } else { memory.download(pointer, count) }
    }
}

/// Runs each launch and looks at what it did.
pub fn run_all(launches: &[Launch], memory: &mut Memory, look: impl FnMut(&Memory, &Launch)) {
    run_chains(launches.iter().map(std::slice::from_ref), memory, look);
}

/// Runs each chain of launches and looks at what it did, with the first.
pub fn run_chains<C: AsRef<[Launch]>>(
    chains: impl IntoIterator<Item = C>,
    memory: &mut Memory,
    mut look: impl FnMut(&Memory, &Launch),
) {
    let mut any = false;
    for chain in chains {
        any = true;
        for launch in chain.as_ref() {
            Host::load().unwrap().run(launch, memory).unwrap_or_else(|error| panic!("{error}\n{launch:?}"));
        }
        look(memory, &chain.as_ref()[0]);
    }
    assert!(any, "there is something to run");
}
