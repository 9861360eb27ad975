//! Operators that move elements about: they make no new numbers, and of shapes they make shapes.

use super::{Shape, Site, product};
use crate::dim::Dim;
use crate::infer::{ELEMENTS_MAX, Known, RANK_MAX, Why};
use crate::tensor::DType;

impl Site<'_> {
    pub(super) fn transpose(&mut self) -> Shape {
        let dims = self.dims(0)?;
        let reversed: Vec<i64> = (0..dims.len() as i64).rev().collect();
        let order = self.node.ints("perm").map_or(reversed, <[i64]>::to_vec);
        if order.len() != dims.len() {
            return Err(self.why("has an order of other axes than its input's"));
        }
        order.iter().map(|&from| self.axis(from, dims.len()).map(|from| dims[from].clone())).collect()
    }

    pub(super) fn tile(&mut self) -> Shape {
        let dims = self.dims(0)?;
        let repeats = self.elements(1).filter(|repeats| repeats.len() == dims.len());
        let repeats = repeats.ok_or_else(|| self.why("repeats as often as is only known when it runs"))?;
        Ok(dims.iter().zip(&repeats).map(|(dim, times)| self.or_fresh(dim.times(times))).collect())
    }

    /// Blocks of channels become pixels, or the other way round.
    pub(super) fn depth_space(&mut self) -> Shape {
        let [images, channels, height, width] =
            <[Dim; 4]>::try_from(self.dims(0)?).map_err(|_| self.why("takes no picture"))?;
        let size = self.node.int("blocksize").filter(|size| (1..1 << 15).contains(size));
        let size = Dim::of(size.ok_or_else(|| self.why("lacks its blocksize"))?);
        let area = size.times(&size);
        let [channels, height, width] = match self.node.operator.as_str() {
            "SpaceToDepth" => {
                [area.and_then(|area| channels.times(&area)), height.divided(&size), width.divided(&size)]
            }
            _ => [area.and_then(|area| channels.divided(&area)), height.times(&size), width.times(&size)],
        };
        Ok(vec![images, self.or_fresh(channels), self.or_fresh(height), self.or_fresh(width)])
    }

    pub(super) fn flatten(&mut self) -> Shape {
        let dims = self.dims(0)?;
        let axis = self.node.int("axis").unwrap_or(1);
        let axis = if axis == dims.len() as i64 { dims.len() } else { self.axis(axis, dims.len())? };
        let (rows, columns) = (product(&dims[..axis]), product(&dims[axis..]));
        Ok(vec![self.or_fresh(rows), self.or_fresh(columns)])
    }

    pub(super) fn shape(&mut self) -> Vec<Known> {
        let rank = self.dims(0).map(|dims| dims.len());
        let bound = |at: i64, rank: usize| {
            (if at < 0 { at.saturating_add(rank as i64) } else { at }).clamp(0, rank as i64) as usize
        };
        let elements = self.dims(0).ok().map(|dims| {
            let (start, end) = (self.node.int("start").unwrap_or(0), self.node.int("end").unwrap_or(i64::MAX));
            let (start, end) = (bound(start, dims.len()), bound(end, dims.len()));
            dims[start.min(end)..end].to_vec()
        });
        let count = elements.as_ref().map(|elements| vec![Dim::of(elements.len() as i64)]);
        let dims = count.ok_or_else(|| rank.err().unwrap_or_else(|| "it is unknown".into()));
        vec![Known { dtype: Some(DType::I64), dims, elements }]
    }

    pub(super) fn gather(&mut self) -> Vec<Known> {
        let dims = || -> Shape {
            let (data, indices) = (self.dims(0)?, self.dims(1)?);
            let axis = self.axis(self.node.int("axis").unwrap_or(0), data.len())?;
            Ok([&data[..axis], &indices, &data[axis + 1..]].concat())
        };
        let dims = dims();
        let picked = || -> Option<Vec<Dim>> {
            let (data, indices) = (self.elements(0)?, self.elements(1)?);
            let pick = |index: &Dim| data.get(self.axis(index.size()?, data.len()).ok()?).cloned();
            indices.iter().map(pick).collect()
        };
        let elements = picked().filter(|_| dims.as_ref().is_ok_and(|dims| dims.len() <= 1));
        vec![Known { dtype: self.dtype(0), dims, elements }]
    }

    pub(super) fn concat(&mut self) -> Vec<Known> {
        let mut concatenated = || -> Shape {
            let mut dims = self.dims(0)?;
            let axis = self.axis(self.node.int("axis").unwrap_or(1), dims.len())?;
            for at in 1..self.node.inputs.len() {
                let other = self.dims(at)?;
                if other.len() != dims.len() {
                    return Err(self.why("joins tensors of different ranks"));
                }
                let sum = dims[axis].plus(&other[axis]);
                dims[axis] = self.or_fresh(sum);
                for other_axis in (0..dims.len()).filter(|&other_axis| other_axis != axis) {
                    if dims[other_axis].size().is_none() && other[other_axis].size().is_some() {
                        dims[other_axis] = other[other_axis].clone();
                    }
                }
            }
            Ok(dims)
        };
        let dims = concatenated();
        let joined = |mut all: Vec<Dim>, at: usize| {
            all.extend(self.elements(at)?);
            (all.len() <= ELEMENTS_MAX).then_some(all)
        };
        let elements = (0..self.node.inputs.len()).try_fold(Vec::new(), joined);
        vec![Known { dtype: self.dtype(0), dims, elements }]
    }

    /// `(axis, start, end, step)` of each sliced axis.
    fn slices(&self, rank: usize) -> Result<Vec<(usize, Dim, Dim, i64)>, Why> {
        let of = |name: &str, at: usize| match self.node.ints(name) {
            Some(values) => Some(values.iter().copied().map(Dim::of).collect()),
            None => self.elements(at),
        };
        let unknown = || self.why("slices at places that are only known when it runs");
        let (starts, ends) = (of("starts", 1).ok_or_else(unknown)?, of("ends", 2).ok_or_else(unknown)?);
        let given = self.node.ints("axes").is_some() || self.node.input(3).is_some();
        let axes =
            if given { self.integers("axes", 3).ok_or_else(unknown)? } else { (0..starts.len() as i64).collect() };
        let steps = match self.node.input(4) {
            Some(_) => self.integers("steps", 4).ok_or_else(unknown)?,
            None => vec![1; starts.len()],
        };
        if starts.len() != ends.len() || axes.len() != starts.len() || steps.len() != starts.len() {
            return Err(self.why("has slices that do not go together"));
        }
        let each = axes.iter().zip(starts).zip(ends).zip(steps);
        each.map(|(((&axis, start), end), step)| Ok((self.axis(axis, rank)?, start, end, step))).collect()
    }

    pub(super) fn slice(&mut self) -> Vec<Known> {
        let mut elements = self.elements(0);
        let mut sliced = || -> Shape {
            let mut dims = self.dims(0)?;
            for (axis, start, end, step) in self.slices(dims.len())? {
                let (from, to) = (bounded(&start, &dims[axis]), bounded(&end, &dims[axis]));
                if let (Some(all), Some(from), Some(to), 1) =
                    (elements.take(), from.as_ref().and_then(Dim::size), to.as_ref().and_then(Dim::size), step)
                {
                    elements = all.get(from as usize..to.max(from) as usize).map(<[Dim]>::to_vec);
                }
                if let (Some(all), Some(start), Some(end), ..=-1) = (dims[axis].size(), start.size(), end.size(), step)
                {
                    dims[axis] = Dim::of(backwards(all, start, end, step));
                    continue;
                }
                let length = match (from, to) {
                    (Some(from), Some(to)) => to.minus(&from),
                    _ => None,
                };
                dims[axis] = match length {
                    Some(length) if step == 1 && length.size().is_none_or(|length| length >= 0) => length,
                    Some(length) if step > 1 && length.size().is_some_and(|length| length >= 0) => {
                        Dim::of(length.size().unwrap_or(0).saturating_add(step - 1) / step)
                    }
                    Some(length) if step == 1 && length.size().is_some() => Dim::of(0),
                    _ => self.fresh(),
                };
            }
            Ok(dims)
        };
        let dims = sliced();
        let elements = elements.filter(|_| dims.is_ok());
        vec![Known { dtype: self.dtype(0), dims, elements }]
    }

    pub(super) fn split(&mut self) -> Vec<Known> {
        let (dtype, count) = (self.dtype(0), self.node.outputs.len());
        let parts = || -> Result<Vec<Vec<Dim>>, Why> {
            let dims = self.dims(0)?;
            let axis = self.axis(self.node.int("axis").unwrap_or(0), dims.len())?;
            let sizes: Option<Vec<Dim>> = match self.integers("split", 1) {
                Some(sizes) => Some(sizes.into_iter().map(Dim::of).collect()),
                None if self.node.input(1).is_none() => {
                    dims[axis].divided(&Dim::of(count.max(1) as i64)).map(|part| vec![part; count])
                }
                None => None,
            };
            let sizes =
                sizes.filter(|sizes| sizes.len() == count).ok_or_else(|| self.why("splits into unequal parts"))?;
            let part = |size: Dim| {
                let mut part = dims.clone();
                part[axis] = size;
                part
            };
            Ok(sizes.into_iter().map(part).collect())
        };
        match parts() {
            Ok(parts) => parts.into_iter().map(|dims| Known { dtype, dims: Ok(dims), elements: None }).collect(),
            Err(why) => vec![Known { dtype, dims: Err(why), elements: None }; count],
        }
    }

    pub(super) fn squeeze(&mut self) -> Vec<Known> {
        let squeezed = || -> Shape {
            let mut dims = self.dims(0)?;
            let axes = self.integers("axes", 1);
            let removes = self.node.operator == "Squeeze";
            let given = self.node.ints("axes").is_some() || self.node.input(1).is_some();
            if removes && !given {
                dims.retain(|dim| *dim != Dim::of(1));
                return Ok(dims);
            }
            let axes = axes.ok_or_else(|| self.why("takes axes that are only known when it runs"))?;
            if axes.len() > RANK_MAX {
                return Err(self.why("has too many axes"));
            }
            let rank = if removes { dims.len() } else { dims.len() + axes.len() };
            let mut axes = axes.iter().map(|&axis| self.axis(axis, rank)).collect::<Result<Vec<_>, Why>>()?;
            axes.sort_unstable();
            axes.dedup();
            if removes {
                axes.iter().rev().for_each(|&axis| drop(dims.remove(axis)));
            } else {
                for axis in axes {
                    dims.insert(axis.min(dims.len()), Dim::of(1));
                }
            }
            Ok(dims)
        };
        let dims = squeezed();
        let elements = self.elements(0).filter(|_| dims.as_ref().is_ok_and(|dims| dims.len() <= 1));
        vec![Known { dtype: self.dtype(0), dims, elements }]
    }

    pub(super) fn element_count(&self) -> Vec<Known> {
        let product = self.dims(0).ok().and_then(|dims| product(&dims));
        vec![Known { dtype: Some(DType::I64), dims: Ok(vec![]), elements: product.map(|product| vec![product]) }]
    }

    pub(super) fn reshape(&mut self) -> Vec<Known> {
        let dims = self.reshaped();
        let elements = self.elements(0).filter(|_| dims.as_ref().is_ok_and(|dims| dims.len() <= 1));
        vec![Known { dtype: self.dtype(0), dims, elements }]
    }

    fn reshaped(&mut self) -> Shape {
        let dims = self.dims(0)?;
        let target = match self.node.ints("shape") {
            Some(values) => values.iter().copied().map(Dim::of).collect(),
            None => self.elements(1).ok_or_else(|| self.why("takes a shape that is only known when it runs"))?,
        };
        let keeps_zero = self.node.int("allowzero").unwrap_or(0) != 0;
        let mut shaped = Vec::with_capacity(target.len());
        let mut open = None;
        for (at, dim) in target.into_iter().enumerate() {
            match dim.size() {
                Some(-1) if open.replace(at).is_some() => return Err(self.why("leaves two dimensions open")),
                Some(-1) => shaped.push(Dim::of(1)),
                Some(0) if !keeps_zero => {
                    shaped
                        .push(dims.get(at).cloned().ok_or_else(|| self.why("keeps a dimension that its input lacks"))?);
                }
                Some(size) if size < 0 => return Err(self.why("takes a negative size")),
                _ => shaped.push(dim),
            }
        }
        if let Some(at) = open {
            let rest = product(&dims).and_then(|all| all.divided(&product(&shaped)?));
            shaped[at] = self.or_fresh(rest);
        }
        Ok(shaped)
    }
}

/// How many elements a slice with a negative step takes of `length`.
fn backwards(length: i64, start: i64, end: i64, step: i64) -> i64 {
    let from_start = |at: i64| if at < 0 { at.saturating_add(length) } else { at };
    let (first, beyond) = (from_start(start).clamp(-1, length - 1), from_start(end).clamp(-1, length - 1));
    let step = step.saturating_neg();
    ((first - beyond).max(0) / step).saturating_add(i64::from((first - beyond).max(0) % step != 0))
}

/// Where a slice's start or end really is: counted from the end when negative, never past it.
fn bounded(at: &Dim, length: &Dim) -> Option<Dim> {
    match (at.size(), length.size()) {
        _ if at == length => Some(length.clone()),
        (Some(at), Some(length)) => {
            Some(Dim::of(if at < 0 { at.saturating_add(length).max(0) } else { at.min(length) }))
        }
        (Some(0), None) => Some(Dim::of(0)),
        // The idioms for "to the end": the largest number of some type, or 1,000,000,000. No axis is that long.
        (Some(at), None) if at >= 1_000_000_000 => Some(length.clone()),
        _ => None,
    }
}
