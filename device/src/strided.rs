//! Copies between one request's tensor and its place along the batch axis of a whole batch's tensor.

use crate::DType;

/// How a tensor's bytes lie around its batch axis: `outer` runs, each of `items * inner` bytes.
///
/// A batch axis that is the first makes one run per tensor, so that a request's part is one copy; a recurrent state of
/// [2, batch, 128] makes two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Strided {
    outer: usize,
    inner: usize,
}

impl Strided {
    /// The layout of `dims`, whatever they hold at `axis`; without an axis the whole tensor is one item. `None` when its
    /// size overflows or the axis is not among the dims.
    pub(crate) fn new(dims: &[u32], axis: Option<usize>, dtype: DType) -> Option<Strided> {
        let (outer, inner) = match axis {
            Some(axis) if axis >= dims.len() => return None,
            Some(axis) => (&dims[..axis], &dims[axis + 1..]),
            None => (&dims[..0], dims),
        };
        Some(Strided { outer: product(outer, 1)?, inner: product(inner, dtype.bytes())? })
    }

    /// Bytes of a tensor with `items` items; `None` when that overflows.
    pub(crate) fn bytes(self, items: usize) -> Option<usize> {
        self.outer.checked_mul(self.inner)?.checked_mul(items)
    }

    /// Copies a request's `items` items to where they begin in the batch's tensor, at item `first` of `total`.
    ///
    /// # Safety
    /// `from` is readable for `bytes(items)` bytes, which do not overlap `to`. Others may write there meanwhile: the bytes
    /// that arrive are then unspecified, and nothing but bytes is made of them.
    ///
    /// # Panics
    /// When `to` is not `bytes(total)` long or the items do not lie inside it: a mistake of the caller.
    pub(crate) unsafe fn gather(self, from: *const u8, to: &mut [u8], first: usize, items: usize, total: usize) {
        assert!(first + items <= total && self.bytes(total) == Some(to.len()), "a request lies outside its batch");
        let run = items * self.inner;
        for outer in 0..self.outer {
            // SAFETY: `outer < self.outer`, so the source run ends within `bytes(items)`, and by the assertion the target
            // run ends within `to`; the caller promises that they do not overlap.
            unsafe {
                let target = to.as_mut_ptr().add((outer * total + first) * self.inner);
                std::ptr::copy_nonoverlapping(from.add(outer * run), target, run);
            }
        }
    }

    /// Copies items `first..first + items` of the batch's tensor to a request.
    ///
    /// # Safety
    /// `to` is writable for `bytes(items)` bytes, which do not overlap `from`.
    ///
    /// # Panics
    /// As [`Strided::gather`].
    pub(crate) unsafe fn scatter(self, from: &[u8], to: *mut u8, first: usize, items: usize, total: usize) {
        assert!(first + items <= total && self.bytes(total) == Some(from.len()), "a request lies outside its batch");
        let run = items * self.inner;
        for outer in 0..self.outer {
            // SAFETY: as in `gather`, with the roles of source and target exchanged.
            unsafe {
                let source = from.as_ptr().add((outer * total + first) * self.inner);
                std::ptr::copy_nonoverlapping(source, to.add(outer * run), run);
            }
        }
    }

    /// Copies `items` items from where they begin in one batch's tensor to where they begin in another's: (first item, of how
    /// many).
    ///
    /// # Panics
    /// As [`Strided::gather`].
    pub(crate) fn copy(
        self,
        from: &[u8],
        (source, all): (usize, usize),
        to: &mut [u8],
        (target, total): (usize, usize),
        items: usize,
    ) {
        assert!(source + items <= all && self.bytes(all) == Some(from.len()), "a request lies outside its batch");
        assert!(target + items <= total && self.bytes(total) == Some(to.len()), "a request lies outside its batch");
        let run = items * self.inner;
        for outer in 0..self.outer {
            let (begin, end) = ((outer * all + source) * self.inner, (outer * total + target) * self.inner);
            to[end..end + run].copy_from_slice(&from[begin..begin + run]);
        }
    }

    /// Where a request's tensor and the batch's tensor have the same bytes, run by run: (offset in the request's, offset in the batch's,
    /// bytes).
    pub(crate) fn pieces(
        self,
        first: usize,
        items: usize,
        total: usize,
    ) -> impl Iterator<Item = (usize, usize, usize)> {
        let run = items * self.inner;
        (0..self.outer).map(move |outer| (outer * run, (outer * total + first) * self.inner, run))
    }

    /// Calls `each` with the range of every run of item `index` of `total`, in order.
    pub(crate) fn runs(self, index: usize, total: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
        (0..self.outer).map(move |outer| {
            let begin = (outer * total + index) * self.inner;
            begin..begin + self.inner
        })
    }
}

fn product(dims: &[u32], unit: usize) -> Option<usize> {
    dims.iter().try_fold(unit, |n, &d| n.checked_mul(d as usize))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Against an index-by-index copy.
        #[test]
        fn gathered_and_scattered_items_come_back(
            outer in 1usize..4, inner in 1usize..5, parts in prop::collection::vec(1usize..4, 1..5),
        ) {
            let strided = Strided::new(&[outer as u32, 9, inner as u32], Some(1), DType::U8).unwrap();
            let total: usize = parts.iter().sum();
            let mut batch = vec![0; strided.bytes(total).unwrap()];
            let mut first = 0;
            for (request, &items) in parts.iter().enumerate() {
                let source: Vec<u8> = (0..outer * items * inner).map(|i| (request * 50 + i) as u8).collect();
                // SAFETY: `source` holds `bytes(items)` bytes and is another allocation.
                unsafe { strided.gather(source.as_ptr(), &mut batch, first, items, total) };
                for o in 0..outer {
                    for item in 0..items {
                        for i in 0..inner {
                            let expected = source[(o * items + item) * inner + i];
                            prop_assert_eq!(batch[(o * total + first + item) * inner + i], expected);
                        }
                    }
                }
                let mut back = vec![0; source.len()];
                // SAFETY: `back` holds `bytes(items)` bytes and is another allocation.
                unsafe { strided.scatter(&batch, back.as_mut_ptr(), first, items, total) };
                prop_assert_eq!(&back, &source);
                first += items;
            }
        }
    }

    #[test]
    fn without_a_batch_axis_the_tensor_is_one_item() {
        let strided = Strided::new(&[2, 3], None, DType::F32).unwrap();
        assert_eq!(strided.bytes(1), Some(24));
        assert_eq!(Strided::new(&[], None, DType::I64).unwrap().bytes(1), Some(8));
    }

    #[test]
    fn sizes_that_overflow_and_missing_axes_are_none() {
        assert_eq!(Strided::new(&[1, u32::MAX, u32::MAX, u32::MAX], Some(0), DType::F64), None);
        assert_eq!(Strided::new(&[4], Some(1), DType::U8), None);
    }
}
