//! Tensors in the daemon's own memory: an engine's batch buffers, and what [`Network::run`](crate::Network::run) takes and gives.

use crate::{DType, Shape};
use std::fmt;
use std::ops::{Deref, DerefMut};

/// A dense row-major tensor in memory of ours.
#[derive(Clone, Debug, PartialEq)]
pub struct HostTensor {
    pub dtype: DType,
    pub shape: Shape,
    /// `shape.elements() * dtype.bytes()` of them.
    pub bytes: Bytes,
}

impl Default for HostTensor {
    /// A scalar of no bytes: a buffer that has still to get its shape.
    fn default() -> HostTensor {
        HostTensor { dtype: DType::U8, shape: Shape::default(), bytes: Bytes::default() }
    }
}

impl HostTensor {
    /// A tensor of zeros; `None` when its size overflows.
    pub fn zeroed(dtype: DType, shape: Shape) -> Option<HostTensor> {
        let bytes = shape.elements()?.checked_mul(dtype.bytes())?;
        Some(HostTensor { dtype, shape, bytes: Bytes::zeroed(bytes) })
    }

    /// `None` when `bytes` is not the size that `dtype` and `shape` ask for.
    pub fn from_bytes(dtype: DType, shape: Shape, bytes: &[u8]) -> Option<HostTensor> {
        let mut tensor = HostTensor::zeroed(dtype, shape)?;
        if tensor.bytes.len() != bytes.len() {
            return None;
        }
        tensor.bytes.copy_from_slice(bytes);
        Some(tensor)
    }
}

/// Bytes that start on a cache line, so that they can be viewed as elements of any type and engines may use aligned loads.
///
/// Invariant: `len <= lines.len() * 64`; every byte up to the capacity is initialised.
#[derive(Clone, Default)]
pub struct Bytes {
    lines: Vec<Line>,
    len: usize,
}

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; LINE_BYTES]);

const LINE_BYTES: usize = 64;

impl Bytes {
    pub fn zeroed(len: usize) -> Bytes {
        let mut bytes = Bytes::default();
        bytes.resize(len);
        bytes
    }

    /// Makes it `len` long. What it held is not kept in any order that could be relied on; it allocates only past the
    /// largest size so far.
    pub fn resize(&mut self, len: usize) {
        let lines = len.div_ceil(LINE_BYTES);
        if lines > self.lines.len() {
            self.lines.resize(lines, Line([0; LINE_BYTES]));
        }
        self.len = len;
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `lines` is one allocation of at least `len` initialised bytes (the struct's invariant), `Line` has no
        // padding, and the shared borrow of `self` keeps it from being written or moved.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.len) }
    }
}

impl DerefMut for Bytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`; the exclusive borrow of `self` makes the slice unique.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.len) }
    }
}

impl PartialEq for Bytes {
    fn eq(&self, other: &Bytes) -> bool {
        **self == **other
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bytes({})", self.len)
    }
}

/// An element type that Rust has too.
///
/// # Safety
/// Every bit pattern of `DTYPE.bytes()` bytes is a value of the type, and the type has that size and no more alignment.
pub unsafe trait Element: Copy + 'static {
    const DTYPE: DType;
}

macro_rules! elements {
    ($($type:ty => $dtype:ident),*) => {$(
        // SAFETY: a primitive number of the dtype's size; every bit pattern is valid.
        unsafe impl Element for $type {
            const DTYPE: DType = DType::$dtype;
        }
    )*};
}
elements!(u8 => U8, i8 => I8, u16 => U16, i16 => I16, u32 => U32, i32 => I32, u64 => U64, i64 => I64, f32 => F32, f64 => F64);

impl Bytes {
    /// The bytes as elements; a rest that does not fill one is left out.
    pub fn elements<T: Element>(&self) -> &[T] {
        // SAFETY: the memory is aligned to 64 bytes, initialised, and any bit pattern is a `T` (`Element`'s contract).
        unsafe { std::slice::from_raw_parts(self.as_ptr().cast(), self.len / size_of::<T>()) }
    }

    /// As [`Bytes::elements`], to write.
    pub fn elements_mut<T: Element>(&mut self) -> &mut [T] {
        // SAFETY: as in `elements`; the exclusive borrow makes the slice unique, and any `T` is valid bytes.
        unsafe { std::slice::from_raw_parts_mut(self.as_mut_ptr().cast(), self.len / size_of::<T>()) }
    }
}

impl HostTensor {
    /// A tensor of `values`; `None` when their number is not the shape's.
    pub fn from_elements<T: Element>(shape: &[u32], values: &[T]) -> Option<HostTensor> {
        let mut tensor = HostTensor::zeroed(T::DTYPE, Shape::new(shape)?)?;
        if tensor.bytes.len() != size_of_val(values) {
            return None;
        }
        tensor.bytes.elements_mut::<T>().copy_from_slice(values);
        Some(tensor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_aligned_and_keep_their_capacity() {
        let mut bytes = Bytes::zeroed(100);
        assert_eq!(bytes.as_ptr() as usize % 64, 0);
        bytes.fill(7);
        let place = bytes.as_ptr();
        bytes.resize(3);
        bytes.resize(128);
        assert_eq!(bytes.as_ptr(), place);
        assert_eq!(bytes[0], 7);
        assert_eq!(bytes.elements::<u64>().len(), 16);
    }

    #[test]
    fn a_tensor_of_the_wrong_size_is_refused() {
        let shape = Shape::new(&[2, 3]).unwrap();
        assert!(HostTensor::from_bytes(DType::F32, shape, &[0; 23]).is_none());
        assert!(HostTensor::from_elements(&[2, 3], &[0f32; 5]).is_none());
        assert!(HostTensor::zeroed(DType::F64, Shape::new(&[u32::MAX; 8]).unwrap()).is_none());
    }
}
