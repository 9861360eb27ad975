//! Tensors where they lie: what runners take and give, without a copy.

use crate::host::Element;
use crate::{DType, HostTensor, Shape};

/// A dense row-major tensor in somebody else's memory: an engine's output, a batch buffer, or some items of either.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View<'a> {
    pub(crate) dtype: DType,
    pub(crate) shape: Shape,
    /// As many as the shape and dtype ask for, aligned for the dtype.
    pub(crate) bytes: &'a [u8],
}

impl<'a> View<'a> {
    /// The bytes as elements; a rest that does not fill one is left out.
    ///
    /// # Panics
    /// When the memory is not aligned for them: engines and batch buffers align theirs, and an item begins at a whole element.
    pub(crate) fn elements<T: Element>(self) -> &'a [T] {
        assert!(self.bytes.as_ptr().cast::<T>().is_aligned(), "a tensor's memory is not aligned for its elements");
        // SAFETY: the memory is aligned (just looked at) and initialised, and any bit pattern is a `T` (`Element`'s contract).
        unsafe { std::slice::from_raw_parts(self.bytes.as_ptr().cast(), self.bytes.len() / size_of::<T>()) }
    }
}

impl HostTensor {
    pub(crate) fn view(&self) -> View<'_> {
        View { dtype: self.dtype, shape: self.shape, bytes: &self.bytes }
    }
}

/// The inputs of one run, in the order of the runner's. A trait, so that they can be looked up where they are and a run
/// needs no list of them.
pub(crate) trait Inputs {
    fn count(&self) -> usize;
    /// # Panics
    /// When `index` is not below the count.
    fn get(&self, index: usize) -> View<'_>;
}

impl Inputs for Vec<View<'_>> {
    fn count(&self) -> usize {
        self.len()
    }

    fn get(&self, index: usize) -> View<'_> {
        self[index]
    }
}

impl Inputs for [HostTensor] {
    fn count(&self) -> usize {
        self.len()
    }

    fn get(&self, index: usize) -> View<'_> {
        self[index].view()
    }
}
