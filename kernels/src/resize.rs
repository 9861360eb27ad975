//! Pictures at another size: `resize.cu`, and the tables that it reads, which hold ONNX's modes.

use crate::dtype::Float;
use crate::launch::{Cost, Kernel, Launch, Unfit, fit, spread};
use crate::params::{Divider, Pointer, ResizeParams};

const BLOCKS: &[u32] = &[64, 128, 256];
/// By element type.
pub(crate) static RESIZE: [Kernel; 2] =
    [Kernel::new::<ResizeParams>("rota_resize_f32", BLOCKS), Kernel::new::<ResizeParams>("rota_resize_f16", BLOCKS)];

/// Which place of the input an output belongs to: ONNX's coordinate_transformation_mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coordinates {
    /// Centres of pixels meet.
    HalfPixel,
    /// The same, around the picture's middle when the scale does not give the output's size exactly.
    HalfPixelSymmetric,
    /// The same, but a single output takes the first input.
    PytorchHalfPixel,
    /// Upper left corners meet.
    Asymmetric,
    /// First and last pixels meet.
    AlignCorners,
}

/// How a place between two pixels is rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    /// Down.
    Floor,
    /// Up.
    Ceil,
    /// To the nearest, halves down.
    PreferFloor,
    /// To the nearest, halves up.
    PreferCeil,
}

/// What is made of the pixels around a place.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Filter {
    /// One of them.
    Nearest(Rounding),
    /// The two beside it.
    Linear,
    /// The four around it, by the cubic with this coefficient; `exclude_outside` leaves out those beyond the edge.
    Cubic {
        /// ONNX's cubic_coeff_a, most often -0.75.
        coefficient: f32,
        /// ONNX's exclude_outside.
        exclude_outside: bool,
    },
}

/// For each output along an axis, `taps` places of the input and their weights.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    /// Entries per output.
    pub taps: u32,
    /// `[output, taps]`
    pub places: Vec<u32>,
    /// `[output, taps]`
    pub weights: Vec<f32>,
}

impl Table {
    /// For an axis of `input` pixels that becomes one of `output`; `scale` is their quotient, or what the model says that it is.
    pub fn new(input: u32, output: u32, scale: f32, coordinates: Coordinates, filter: Filter) -> Table {
        let taps = match filter {
            Filter::Nearest(_) => 1,
            Filter::Linear => 2,
            Filter::Cubic { .. } => 4,
        };
        let mut table = Table { taps, places: Vec::new(), weights: Vec::new() };
        let clamp = |place: f32| place.clamp(0.0, input.saturating_sub(1) as f32) as u32;
        for index in 0..output {
            let place = coordinates.place(index, input, output, scale);
            let below = place.floor();
            match filter {
                Filter::Nearest(rounding) => table.push(clamp(rounding.apply(place)), 1.0),
                Filter::Linear => {
                    table.push(clamp(below), 1.0 - (place - below));
                    table.push(clamp(below + 1.0), place - below);
                }
                Filter::Cubic { coefficient, exclude_outside } => {
                    let mut weights = cubic(place - below, coefficient);
                    if exclude_outside {
                        let inside = |tap: usize| (0.0..input as f32).contains(&(below + tap as f32 - 1.0));
                        (0..4).filter(|&tap| !inside(tap)).for_each(|tap| weights[tap] = 0.0);
                        let sum: f32 = weights.iter().sum();
                        weights.iter_mut().for_each(|weight| *weight /= sum);
                    }
                    for (tap, weight) in weights.into_iter().enumerate() {
                        table.push(clamp(below + tap as f32 - 1.0), weight);
                    }
                }
            }
        }
        table
    }

    fn push(&mut self, place: u32, weight: f32) {
        self.places.push(place);
        self.weights.push(weight);
    }
}

impl Coordinates {
    /// In f32, as ONNX Runtime has it, so that halves fall on the same side.
    fn place(self, index: u32, input: u32, output: u32, scale: f32) -> f32 {
        let half_pixel = (index as f32 + 0.5) / scale - 0.5;
        match self {
            Coordinates::HalfPixel => half_pixel,
            Coordinates::PytorchHalfPixel => {
                if output > 1 {
                    half_pixel
                } else {
                    0.0
                }
            }
            Coordinates::Asymmetric => index as f32 / scale,
            Coordinates::AlignCorners if output > 1 => index as f32 * (input - 1) as f32 / (output - 1) as f32,
            Coordinates::AlignCorners => 0.0,
            Coordinates::HalfPixelSymmetric => {
                let adjustment = output as f32 / (scale * input as f32);
                input as f32 / 2.0 * (1.0 - adjustment) + half_pixel
            }
        }
    }
}

impl Rounding {
    fn apply(self, place: f32) -> f32 {
        match self {
            Rounding::Floor => place.floor(),
            Rounding::Ceil => place.ceil(),
            Rounding::PreferFloor => (place - 0.5).ceil(),
            Rounding::PreferCeil => (place + 0.5).floor(),
        }
    }
}

/// Weights of the pixels at -1, 0, 1 and 2 for a place at `x` in [0, 1): Keys' convolution kernel.
fn cubic(x: f32, a: f32) -> [f32; 4] {
    let far = |d: f32| ((a * d - 5.0 * a) * d + 8.0 * a) * d - 4.0 * a;
    let near = |d: f32| ((a + 2.0) * d - (a + 3.0)) * d * d + 1.0;
    [far(x + 1.0), near(x), near(1.0 - x), far(2.0 - x)]
}

/// `y[plane, oy, ox, i]` from the places that two tables name; the tables lie in device memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Resize {
    /// Element type of both tensors.
    pub dtype: Float,
    /// Pictures times channels.
    pub planes: u32,
    /// Elements of a pixel that lie side by side: 1, or the channels where they lie last (and a plane is a picture).
    pub inner: u32,
    /// Height and width of the input.
    pub input: [u32; 2],
    /// Height and width of the output.
    pub output: [u32; 2],
    /// Entries per output of the tables for rows and for columns.
    pub taps: [u32; 2],
    /// Input.
    pub x: Pointer,
    /// Output.
    pub y: Pointer,
    /// [`Table::places`] for rows and for columns.
    pub places: [Pointer; 2],
    /// [`Table::weights`] for rows and for columns.
    pub weights: [Pointer; 2],
}

impl Resize {
    /// The launch.
    pub fn launch(&self) -> Result<Launch, Unfit> {
        self.launch_with(256)
    }

    /// The launch with a block of `threads`.
    pub fn launch_with(&self, threads: u32) -> Result<Launch, Unfit> {
        let elements =
            |size: [u32; 2]| [self.planes, self.inner, size[0], size[1]].map(u64::from).iter().product::<u64>();
        let count = fit("resize", "number of outputs", elements(self.output))?;
        let params = ResizeParams {
            x: self.x,
            y: self.y,
            rows: self.places[0],
            row_weights: self.weights[0],
            columns: self.places[1],
            column_weights: self.weights[1],
            count,
            height: self.input[0],
            width: self.input[1],
            taps_y: self.taps[0],
            taps_x: self.taps[1],
            by_out_width: Divider::by(self.output[1].max(1)),
            by_out_height: Divider::by(self.output[0].max(1)),
            by_inner: Divider::by(self.inner.max(1)),
        };
        let taps = u64::from(self.taps[0]) * u64::from(self.taps[1]);
        let cost = Cost {
            bytes_read: elements(self.input) * self.dtype.bytes(),
            bytes_written: u64::from(count) * self.dtype.bytes(),
            flops: 2 * taps * u64::from(count),
        };
        Ok(Launch::new(&RESIZE[self.dtype as usize], spread(count, threads), threads, params, cost))
    }
}
