//! Operators on pictures and sequences: convolutions, pools, padding, resizing, recurrence.

use super::{Shape, Site};
use crate::dim::Dim;
use crate::infer::{Known, Why};

impl Site<'_> {
    pub(super) fn pad(&mut self) -> Shape {
        let dims = self.dims(0)?;
        let pads = self.integers("pads", 1).ok_or_else(|| self.why("pads by what is only known when it runs"))?;
        if self.node.input(3).is_some() || pads.len() != 2 * dims.len() {
            return Err(self.why("pads some axes only, which is not inferred"));
        }
        let rank = dims.len();
        let each = dims.into_iter().enumerate();
        Ok(each
            .map(|(axis, dim)| {
                let padded = pads[axis].checked_add(pads[axis + rank]).and_then(|both| dim.plus(&Dim::of(both)));
                self.or_fresh(padded)
            })
            .collect())
    }

    pub(super) fn resize(&mut self) -> Shape {
        let dims = self.dims(0)?;
        // Version 10 had the factors as its second input, later ones have a region there.
        let at = if self.opset <= 10 { 1 } else { 2 };
        let factors =
            self.node.input(at).and_then(|id| self.graph.constant(id)).and_then(|tensor| tensor.floats(dims.len()));
        if let Some(factors) = factors.filter(|factors| factors.len() == dims.len()) {
            let scaled = |(dim, &factor): (Dim, &f32)| {
                let whole = (factor.fract() == 0.0 && (1.0..1e6).contains(&factor)).then_some(factor as i64);
                let dim = match (dim.size(), whole) {
                    (_, Some(factor)) => dim.times(&Dim::of(factor)),
                    (Some(size), None) => Some(Dim::of((size as f64 * f64::from(factor)).floor() as i64)),
                    _ => None,
                };
                self.or_fresh(dim)
            };
            return Ok(dims.into_iter().zip(&factors).map(scaled).collect());
        }
        let sizes = if self.node.input(3).is_some() { self.elements(3) } else { None };
        match sizes {
            Some(sizes) if sizes.len() == dims.len() => Ok(sizes),
            _ => {
                // Items and channels are not resized by what is only known later, unless the file says so.
                Err(self.why("resizes to what is only known when it runs"))
            }
        }
    }

    /// Convolutions and pools.
    pub(super) fn window(&mut self) -> Shape {
        let dims = self.dims(0)?;
        let convolves = self.node.operator.starts_with("Conv");
        let transposed = self.node.operator == "ConvTranspose";
        let weights = if convolves { Some(self.dims(1)?) } else { None };
        let spatial =
            dims.len().checked_sub(2).filter(|&spatial| spatial > 0).ok_or_else(|| self.why("takes no picture"))?;
        if weights.as_ref().is_some_and(|weights| weights.len() != dims.len()) {
            return Err(self.why("has weights of another rank than its input"));
        }
        let kernel: Option<Vec<i64>> = match (self.node.ints("kernel_shape"), &weights) {
            (Some(kernel), _) => Some(kernel.to_vec()),
            (None, Some(weights)) => weights[2..].iter().map(Dim::size).collect(),
            (None, None) => None,
        };
        let kernel = kernel
            .filter(|kernel| kernel.len() == spatial)
            .ok_or_else(|| self.why("has no kernel of its input's rank"))?;
        let all =
            |name: &str, value: i64, count: usize| self.node.ints(name).map_or(vec![value; count], <[i64]>::to_vec);
        let (strides, dilations) = (all("strides", 1, spatial), all("dilations", 1, spatial));
        let (pads, extra) = (all("pads", 0, 2 * spatial), all("output_padding", 0, spatial));
        if strides.len() != spatial || dilations.len() != spatial || pads.len() != 2 * spatial || extra.len() != spatial
        {
            return Err(self.why("has strides, dilations or pads of another rank than its input"));
        }
        let sane = |&value: &i64| (0..=1 << 20).contains(&value);
        if ![&kernel, &strides, &dilations, &pads, &extra].into_iter().flatten().all(sane) {
            return Err(self.why("has a kernel, strides, dilations or pads out of range"));
        }
        let group = self.node.int("group").unwrap_or(1);
        let channels = match &weights {
            None => Some(dims[1].clone()),
            Some(weights) if transposed => weights[1].times(&Dim::of(group)),
            Some(weights) => Some(weights[0].clone()),
        };
        let mut shape = vec![dims[0].clone(), self.or_fresh(channels)];
        let auto = self.node.string("auto_pad").unwrap_or("NOTSET").to_owned();
        let ceils = self.node.int("ceil_mode").unwrap_or(0) != 0;
        for at in 0..spatial {
            let reach = dilations[at] * (kernel[at] - 1) + 1;
            let (size, stride) = (&dims[at + 2], strides[at]);
            let both = pads[at] + pads[at + spatial];
            let said = self
                .node
                .ints("output_shape")
                .filter(|_| transposed)
                .and_then(|sizes| sizes.get(at + sizes.len() - spatial));
            let out = match (auto.as_str(), transposed) {
                _ if said.is_some_and(|&size| size > 0) => said.map(|&size| Dim::of(size)),
                ("SAME_UPPER" | "SAME_LOWER", false) => {
                    size.plus(&Dim::of(stride - 1)).and_then(|size| self.inferred.symbols.floor(&size, stride))
                }
                ("SAME_UPPER" | "SAME_LOWER", true) => size.times(&Dim::of(stride)),
                ("VALID" | "NOTSET", false) => {
                    let both = if auto == "VALID" { 0 } else { both };
                    let over = both - reach + if ceils { stride - 1 } else { 0 };
                    let steps = size.plus(&Dim::of(over)).and_then(|size| self.inferred.symbols.floor(&size, stride));
                    let steps = steps.and_then(|steps| steps.plus(&Dim::of(1)));
                    // A window that would begin in the padding behind the picture is left out.
                    let beyond = |steps: i64| {
                        ceils && (steps - 1) * stride >= size.size().unwrap_or(i64::MAX - (1 << 21)) + pads[at]
                    };
                    match steps.as_ref().and_then(Dim::size) {
                        Some(sized) if beyond(sized) => Some(Dim::of(sized - 1)),
                        _ => steps,
                    }
                }
                (_, true) => size
                    .minus(&Dim::of(1))
                    .and_then(|size| size.times(&Dim::of(stride))?.plus(&Dim::of(extra[at] + reach - both))),
                _ => None,
            };
            shape.push(self.or_fresh(out));
        }
        Ok(shape)
    }

    pub(super) fn recurrent(&mut self) -> Vec<Known> {
        let dtype = self.dtype(0);
        let shapes = || -> Result<Vec<Vec<Dim>>, Why> {
            let dims = self.dims(0)?;
            let [steps, items, _] = <[Dim; 3]>::try_from(dims).map_err(|_| self.why("takes no sequence"))?;
            if self.node.int("layout").unwrap_or(0) != 0 {
                return Err(self.why("has its batch first, which is not inferred"));
            }
            let directions = Dim::of(if self.node.string("direction") == Some("bidirectional") { 2 } else { 1 });
            let hidden = self.node.int("hidden_size").map(Dim::of).ok_or_else(|| self.why("does not say its size"))?;
            let last = vec![directions.clone(), items.clone(), hidden.clone()];
            Ok(vec![vec![steps, directions, items, hidden], last.clone(), last])
        };
        match shapes() {
            Ok(shapes) => shapes.into_iter().map(|dims| Known { dtype, dims: Ok(dims), elements: None }).collect(),
            Err(why) => vec![Known { dtype, dims: Err(why), elements: None }; 3],
        }
    }
}
