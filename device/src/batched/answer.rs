//! An output where a runner left it: a tensor of its own, or a member's columns of a stack's.

use crate::strided::Strided;
use crate::view::View;
use crate::{DType, Shape};

/// An output of all items of a part.
#[derive(Clone, Copy, Debug)]
pub(super) struct Answer<'a> {
    pub form: Form,
    pub bytes: &'a [u8],
}

/// What an output is, and where it lies in the tensor that was computed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Form {
    pub dtype: DType,
    /// As the member's own part would have given it.
    pub shape: Shape,
    /// Which of each row's bytes are this output's; `None` for all.
    columns: Option<Window>,
}

/// Bytes `first..first + width` of every `pitch`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    first: usize,
    width: usize,
    pitch: usize,
}

impl<'a> Answer<'a> {
    pub fn whole(view: View<'a>) -> Answer<'a> {
        Answer { form: Form::whole(view.dtype, view.shape), bytes: view.bytes }
    }
}

impl Form {
    pub fn whole(dtype: DType, shape: Shape) -> Form {
        Form { dtype, shape, columns: None }
    }

    /// Elements `first..first + width` of every `pitch` of a dense tensor whose first axis is the batch; in the member they are the last
    /// of `rank` axes. `None` where the tensor is not so.
    pub fn columns(
        dtype: DType,
        mut shape: Shape,
        rank: usize,
        first: usize,
        width: usize,
        pitch: usize,
    ) -> Option<Form> {
        let outer = rank.checked_sub(1).filter(|&outer| outer >= 1).and_then(|outer| shape.dims().get(..outer))?;
        let rows = outer.iter().try_fold(1usize, |rows, &dim| rows.checked_mul(dim as usize))?;
        if first + width > pitch || rows.checked_mul(pitch) != shape.elements() {
            return None;
        }
        // The stack's tensor may have the members on an axis of their own.
        *shape.dims_mut().get_mut(rank - 1)? = u32::try_from(width).ok()?;
        let size = dtype.bytes();
        let window = Window { first: first * size, width: width * size, pitch: pitch * size };
        Some(Form { dtype, shape: Shape::new(&shape.dims()[..rank])?, columns: Some(window) })
    }

    /// `None` when its size overflows, or its columns have their batch on another axis than the first.
    pub fn layout(&self, batch_axis: Option<usize>) -> Option<Layout> {
        let dims = self.shape.dims();
        match self.columns {
            None => Strided::new(dims, batch_axis, self.dtype).map(Layout::Whole),
            Some(window) if batch_axis == Some(0) => {
                let middle = &dims[1..dims.len() - 1];
                let rows = middle.iter().try_fold(1usize, |rows, &dim| rows.checked_mul(dim as usize))?;
                Some(Layout::Columns { rows, window })
            }
            Some(_) => None,
        }
    }
}

/// How a request's items lie in an answer.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Layout {
    Whole(Strided),
    Columns {
        /// Of each item.
        rows: usize,
        window: Window,
    },
}

impl Layout {
    /// Bytes of `items` items, without what lies between them; `None` when that overflows.
    pub fn bytes(self, items: usize) -> Option<usize> {
        match self {
            Layout::Whole(strided) => strided.bytes(items),
            Layout::Columns { rows, window } => rows.checked_mul(items)?.checked_mul(window.width),
        }
    }

    /// Where a request's tensor and the answer of `total` items have the same bytes, run by run, for items `first..first + items`: offset
    /// in the request's, offset in the answer, bytes.
    pub fn pieces(self, first: usize, items: usize, total: usize) -> impl Iterator<Item = (usize, usize, usize)> {
        let runs = match self {
            Layout::Whole(_) => 0..0,
            Layout::Columns { rows, .. } => 0..items * rows,
        };
        let columns = runs.filter_map(move |row| match self {
            Layout::Whole(_) => None,
            Layout::Columns { rows, window } => {
                Some((row * window.width, (first * rows + row) * window.pitch + window.first, window.width))
            }
        });
        let whole = match self {
            Layout::Whole(strided) => Some(strided.pieces(first, items, total)),
            Layout::Columns { .. } => None,
        };
        whole.into_iter().flatten().chain(columns)
    }

    /// Copies items `first..first + items` of `total` to a request.
    ///
    /// # Safety
    /// `to` is writable for `bytes(items)` bytes, which do not overlap `from`.
    ///
    /// # Panics
    /// When `from` is not an answer of `total` items or the items do not lie inside it: a mistake of the caller.
    pub unsafe fn scatter(self, from: &[u8], to: *mut u8, first: usize, items: usize, total: usize) {
        match self {
            // SAFETY: the caller's promise is the one that is asked for.
            Layout::Whole(strided) => unsafe { strided.scatter(from, to, first, items, total) },
            Layout::Columns { rows, window } => {
                let end = (total * rows).checked_mul(window.pitch);
                assert!(first + items <= total && end == Some(from.len()), "a request lies outside its batch");
                for row in 0..items * rows {
                    let begin = (first * rows + row) * window.pitch + window.first;
                    let source = &from[begin..begin + window.width];
                    // SAFETY: `row < items * rows`, so the target ends within `bytes(items)`; the caller promises that it does
                    // not overlap the source.
                    unsafe {
                        std::ptr::copy_nonoverlapping(source.as_ptr(), to.add(row * window.width), window.width);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_come_out_as_a_tensor_of_their_own() {
        // [3 items, 2 rows, 5 columns]; the member has columns 1 to 3.
        let bytes: Vec<u8> = (0..30).collect();
        let shape = Shape::new(&[3, 2, 5]).unwrap();
        let form = Form::columns(DType::U8, shape, 3, 1, 3, 5).unwrap();
        assert_eq!(form.shape.dims(), [3, 2, 3]);
        let layout = form.layout(Some(0)).unwrap();
        assert_eq!(layout.bytes(2), Some(12));
        let mut out = [0u8; 12];
        // SAFETY: `out` holds `bytes(2)` bytes and is other memory.
        unsafe { layout.scatter(&bytes, out.as_mut_ptr(), 1, 2, 3) };
        assert_eq!(out, [11, 12, 13, 16, 17, 18, 21, 22, 23, 26, 27, 28]);
        let pieces: Vec<_> = layout.pieces(1, 2, 3).collect();
        assert_eq!(pieces, [(0, 11, 3), (3, 16, 3), (6, 21, 3), (9, 26, 3)]);
    }

    #[test]
    fn a_stack_that_is_not_as_its_columns_say_gives_no_answer() {
        let columns = |dims: &[u32], rank, first, pitch| {
            Form::columns(DType::U8, Shape::new(dims).unwrap(), rank, first, 3, pitch)
        };
        // The members may have an axis of their own.
        let form = columns(&[3, 2, 5], 2, 5, 10).unwrap();
        assert_eq!(form.shape.dims(), [3, 3]);
        assert!(columns(&[3, 10], 2, 8, 10).is_none());
        assert!(columns(&[3, 10], 2, 0, 9).is_none());
        assert!(columns(&[3, 10], 1, 0, 10).is_none());
        let form = columns(&[3, 10], 2, 0, 10).unwrap();
        assert!(form.layout(Some(1)).is_none() && form.layout(None).is_none());
    }
}
