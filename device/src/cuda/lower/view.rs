//! Operators that only move elements: which element of the input each element of the output is.

use super::{LowerError, Site};
use rota_kernels::Layout;

/// Elements of a dense tensor, picked by a stride per axis. Reshapes, transposes, slices, broadcasts and splits are views; a kernel that
/// takes strides reads through them, and the others get a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// The first element, in elements from the tensor's start.
    pub offset: i64,
    pub dims: Vec<u64>,
    /// In elements; 0 along an axis that is broadcast, negative along one that is reversed.
    pub strides: Vec<i64>,
}

impl View {
    /// The whole of a dense row-major tensor.
    pub fn dense(dims: &[u64]) -> View {
        let mut strides = vec![1; dims.len()];
        for axis in (1..dims.len()).rev() {
            strides[axis - 1] = strides[axis] * dims[axis].max(1) as i64;
        }
        View { offset: 0, dims: dims.to_vec(), strides }
    }

    /// The whole of a tensor of dimensions `[images, channels, …]` that lies densely in `layout`.
    pub fn laid_out(dims: &[u64], layout: Layout) -> View {
        let order = axes(layout, dims.len());
        let packed = View::dense(&order.iter().map(|&axis| dims[axis]).collect::<Vec<_>>());
        let mut view = View::dense(dims);
        order.iter().zip(&packed.strides).for_each(|(&axis, &stride)| view.strides[axis] = stride);
        view
    }

    /// Whether its elements lie side by side in the order of `layout`. Of a single channel or pixel that is both.
    pub fn lies(&self, layout: Layout) -> bool {
        self.picked(&axes(layout, self.dims.len())).is_dense()
    }

    /// Whether it has channels last, and not first as well.
    pub fn has_channels_last(&self) -> bool {
        self.lies(Layout::Nhwc) && !self.lies(Layout::Nchw)
    }

    /// With its axes in this order.
    pub fn picked(&self, order: &[usize]) -> View {
        let (dims, strides) = order.iter().map(|&axis| (self.dims[axis], self.strides[axis])).unzip();
        View { offset: self.offset, dims, strides }
    }

    pub fn elements(&self) -> u64 {
        self.dims.iter().product()
    }

    /// Whether its elements lie side by side in row-major order; wherever they begin.
    pub fn is_dense(&self) -> bool {
        let dense = View::dense(&self.dims);
        self.elements() == 0
            || (0..self.dims.len()).all(|at| self.dims[at] == 1 || self.strides[at] == dense.strides[at])
    }

    /// The same elements under other dimensions; `None` where strides can't say that.
    pub fn reshaped(&self, dims: &[u64]) -> Option<View> {
        if self.is_dense() {
            return Some(View { offset: self.offset, ..View::dense(dims) });
        }
        // Axes of 1 may come and go anywhere.
        let kept = |dims: &[u64]| dims.iter().copied().filter(|&dim| dim != 1).collect::<Vec<_>>();
        if kept(dims) != kept(&self.dims) {
            return None;
        }
        let mut strides = self.dims.iter().zip(&self.strides).filter(|(dim, _)| **dim != 1).map(|(_, stride)| *stride);
        let strides = dims.iter().map(|&dim| if dim == 1 { 0 } else { strides.next().unwrap_or(0) }).collect();
        Some(View { offset: self.offset, dims: dims.to_vec(), strides })
    }

    /// Aligned from the right with `dims`, repeated where it has 1; `None` where that does not fit.
    pub fn broadcast(&self, dims: &[u64]) -> Option<View> {
        let missing = dims.len().checked_sub(self.dims.len())?;
        let stride = |(axis, &dim): (usize, &u64)| {
            let own = axis.checked_sub(missing).map(|own| (self.dims[own], self.strides[own]));
            match own {
                None | Some((1, _)) => Some(0),
                Some((size, stride)) => (size == dim).then_some(stride),
            }
        };
        let strides = dims.iter().enumerate().map(stride).collect::<Option<Vec<_>>>()?;
        Some(View { offset: self.offset, dims: dims.to_vec(), strides })
    }

    /// Element by element, in row-major order: where each lies.
    pub fn places(&self) -> impl Iterator<Item = i64> + '_ {
        let mut index = vec![0u64; self.dims.len()];
        let mut place = self.offset;
        (0..self.elements()).map(move |_| {
            let here = place;
            for axis in (0..index.len()).rev() {
                index[axis] += 1;
                place += self.strides[axis];
                if index[axis] < self.dims[axis] {
                    break;
                }
                place -= self.strides[axis] * self.dims[axis] as i64;
                index[axis] = 0;
            }
            here
        })
    }

    fn slice(&mut self, axis: usize, start: i64, end: i64, step: i64) {
        let length = self.dims[axis] as i64;
        if length == 0 {
            return;
        }
        let from_end = |at: i64| if at < 0 { at.saturating_add(length) } else { at };
        let (first, count) = if step > 0 {
            let (start, end) = (from_end(start).clamp(0, length), from_end(end).clamp(0, length));
            (start, (end - start + step - 1).max(0) / step)
        } else {
            let (start, end) = (from_end(start).clamp(0, length - 1), from_end(end).clamp(-1, length - 1));
            (start, (start - end - step - 1).max(0) / -step)
        };
        self.offset += if count > 0 { first * self.strides[axis] } else { 0 };
        self.dims[axis] = count as u64;
        self.strides[axis] *= step;
    }
}

/// Axes of `[images, channels, …]` as they lie in memory, the innermost last. Of fewer than three there is one layout.
pub fn axes(layout: Layout, rank: usize) -> Vec<usize> {
    match layout {
        Layout::Nhwc if rank > 2 => std::iter::once(0).chain(2..rank).chain([1]).collect(),
        _ => (0..rank).collect(),
    }
}

impl Site<'_> {
    /// The operator's outputs as views of its first input's elements, itself read through `of`; `None` for an operator that does more than
    /// move elements, and where strides can't say it (the input has to be dense then).
    pub fn views(&self, of: &View) -> Result<Option<Vec<View>>, LowerError> {
        let one = |view: Option<View>| Ok(view.map(|view| vec![view]));
        match self.node.operator.as_str() {
            "Identity" | "Dropout" => one(Some(of.clone())),
            "Reshape" | "Flatten" | "Squeeze" | "Unsqueeze" => one(of.reshaped(&self.output_dims(0)?)),
            "Expand" => one(of.broadcast(&self.output_dims(0)?)),
            "Transpose" => {
                let rank = of.dims.len() as i64;
                let reversed: Vec<i64> = (0..rank).rev().collect();
                let order = self.node.ints("perm").unwrap_or(&reversed).iter();
                let order = order.map(|&axis| self.axis(axis, of.dims.len())).collect::<Result<Vec<_>, _>>()?;
                let pick = |axis: &usize| (of.dims[*axis], of.strides[*axis]);
                let (dims, strides) = order.iter().map(pick).unzip();
                one(Some(View { offset: of.offset, dims, strides }))
            }
            "Slice" => {
                let mut view = of.clone();
                for (axis, start, end, step) in self.slices(of.dims.len())? {
                    view.slice(axis, start, end, step);
                }
                one(Some(view))
            }
            "Split" => {
                let axis = self.axis(self.node.int("axis").unwrap_or(0), of.dims.len())?;
                let mut begin = 0;
                let mut parts = Vec::new();
                for at in 0..self.node.outputs.len() {
                    let length = self.output_dims(at)?[axis] as i64;
                    let mut view = of.clone();
                    view.slice(axis, begin, begin + length, 1);
                    begin += length;
                    parts.push(view);
                }
                Ok(Some(parts))
            }
            _ => Ok(None),
        }
    }

    /// `(axis, start, end, step)` of each sliced axis.
    fn slices(&self, rank: usize) -> Result<Vec<(usize, i64, i64, i64)>, LowerError> {
        let (starts, ends) = (self.integers("starts", 1)?, self.integers("ends", 2)?);
        let (starts, ends) = (starts.unwrap_or_default(), ends.unwrap_or_default());
        let axes = self.integers("axes", 3)?.unwrap_or_else(|| (0..starts.len() as i64).collect());
        let steps = self.integers("steps", 4)?.unwrap_or_else(|| vec![1; starts.len()]);
        if ends.len() != starts.len() || axes.len() != starts.len() || steps.len() != starts.len() || steps.contains(&0)
        {
            return Err(self.refuse("has slices that do not go together"));
        }
        (0..starts.len()).map(|at| Ok((self.axis(axes[at], rank)?, starts[at], ends[at], steps[at]))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_those_of_the_elements_in_row_major_order() {
        let mut view = View::dense(&[2, 3]);
        assert_eq!(view.places().collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5]);
        view.slice(1, -1, i64::MIN, -2);
        assert_eq!(view.places().collect::<Vec<_>>(), [2, 0, 5, 3]);
        let row = View::dense(&[3]).broadcast(&[2, 3]).unwrap();
        assert_eq!(row.places().collect::<Vec<_>>(), [0, 1, 2, 0, 1, 2]);
        assert_eq!(View::dense(&[]).places().collect::<Vec<_>>(), [0]);
        assert_eq!(View::dense(&[0, 2]).places().count(), 0);
    }

    #[test]
    fn a_view_is_reshaped_only_where_strides_can_say_it() {
        let turned = View { offset: 0, dims: vec![3, 2], strides: vec![1, 3] };
        assert!(!turned.is_dense());
        assert_eq!(turned.reshaped(&[6]), None);
        assert_eq!(turned.reshaped(&[3, 1, 2]).unwrap().strides, [1, 0, 3]);
        assert_eq!(View::dense(&[2, 3]).reshaped(&[3, 2]), Some(View::dense(&[3, 2])));
    }

    #[test]
    fn channels_lie_last_under_the_same_dimensions() {
        let view = View::laid_out(&[2, 3, 4, 5], Layout::Nhwc);
        assert_eq!(view.strides, [60, 1, 15, 3]);
        assert!(view.has_channels_last() && !view.is_dense());
        assert!(!View::dense(&[2, 3, 4, 5]).lies(Layout::Nhwc));
        for one in [[2, 1, 4, 5], [2, 3, 1, 1]] {
            assert!(View::dense(&one).lies(Layout::Nhwc) && View::laid_out(&one, Layout::Nhwc).is_dense());
        }
    }

    #[test]
    fn a_slice_of_nothing_is_nothing() {
        let mut view = View::dense(&[0, 2]);
        view.slice(0, -1, i64::MIN, -1);
        assert_eq!(view.elements(), 0);
    }

    #[test]
    fn what_does_not_broadcast_is_refused() {
        assert_eq!(View::dense(&[3]).broadcast(&[2]), None);
        assert_eq!(View::dense(&[1, 2]).broadcast(&[2]), None);
    }
}
