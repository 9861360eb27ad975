//! Pictures, and the parts of them that models look at.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

/// A picture of 8 bits a colour.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    width: usize,
    /// Row by row; red, green, blue.
    pixels: Vec<[u8; 3]>,
}

/// A point or a step in a picture, in pixels: across and down.
#[derive(Clone, Copy, Debug, PartialEq, Default)]
pub struct Vector {
    pub x: f32,
    pub y: f32,
}

/// A rectangle in a picture, turned by any angle.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Region {
    /// Where reading begins: the top left one, if it is not turned.
    pub corner: Vector,
    /// Along the text, to the end of the region.
    pub along: Vector,
    /// Across the text.
    pub down: Vector,
}

/// Why a file is no picture for us.
#[derive(Debug, thiserror::Error)]
pub enum PictureError {
    #[error("{file}: {error}", file = file.display())]
    Open { file: std::path::PathBuf, error: std::io::Error },
    #[error("{file}: it is no PNG file: {error}", file = file.display())]
    Format { file: std::path::PathBuf, error: png::DecodingError },
    #[error("{file}: {width} × {height} pixels are too many: {SIDE_MAX} each way are possible", file = file.display())]
    Large { file: std::path::PathBuf, width: u32, height: u32 },
}

/// A page at 600 dots per inch.
const SIDE_MAX: u32 = 8192;

impl Picture {
    /// Reads a PNG file; what is see-through is shown on white.
    pub fn read(file: &Path) -> Result<Picture, PictureError> {
        let open = |error| PictureError::Open { file: file.to_owned(), error };
        let format = |error| PictureError::Format { file: file.to_owned(), error };
        let mut decoder = png::Decoder::new(BufReader::new(File::open(file).map_err(open)?));
        decoder.set_transformations(png::Transformations::normalize_to_color8());
        let mut reader = decoder.read_info().map_err(format)?;
        let (width, height) = reader.info().size();
        let bytes = reader.output_buffer_size().filter(|_| width.max(height) <= SIDE_MAX);
        let bytes = bytes.ok_or_else(|| PictureError::Large { file: file.to_owned(), width, height })?;
        let mut samples = vec![0; bytes];
        let frame = reader.next_frame(&mut samples).map_err(format)?;
        samples.truncate(frame.buffer_size());
        let on_white = |sample: u8, alpha: u8| {
            let alpha = u16::from(alpha);
            ((u16::from(sample) * alpha + 255 * (255 - alpha) + 127) / 255) as u8
        };
        let pixels = match frame.color_type.samples() {
            1 => samples.iter().map(|&grey| [grey; 3]).collect(),
            2 => samples.chunks_exact(2).map(|pixel| [on_white(pixel[0], pixel[1]); 3]).collect(),
            3 => samples.chunks_exact(3).map(|pixel| [pixel[0], pixel[1], pixel[2]]).collect(),
            _ => samples.chunks_exact(4).map(|pixel| [0, 1, 2].map(|at| on_white(pixel[at], pixel[3]))).collect(),
        };
        Ok(Picture { width: width as usize, pixels })
    }

    pub fn width(&self) -> usize {
        self.width
    }

    pub fn height(&self) -> usize {
        self.pixels.len() / self.width
    }

    /// All of it.
    pub fn whole(&self) -> Region {
        Region {
            corner: Vector::default(),
            along: Vector { x: self.width as f32, y: 0.0 },
            down: Vector { x: 0.0, y: self.height() as f32 },
        }
    }

    /// Writes a region as the text models take it: planes of blue, green and red (`[3, height, width]`), −1 to 1. It takes up the
    /// left `columns`; what is right of them is 0.
    pub fn write(&self, region: &Region, columns: usize, [height, width]: [usize; 2], planes: &mut [f32]) {
        // Where the region shrinks, a pixel is the mean of several.
        let fine = |length: f32, pixels: usize| (length / pixels as f32).ceil().max(1.0) as usize;
        let (across, down) = (fine(region.along.length(), columns), fine(region.down.length(), height));
        planes.fill(0.0);
        for (y, x) in (0..height).flat_map(|y| (0..columns).map(move |x| (y, x))) {
            let mut sum = [0.0; 3];
            for (fine_y, fine_x) in (0..down).flat_map(|y| (0..across).map(move |x| (y, x))) {
                let part = |at: usize, fine: usize, of: usize, all: usize| {
                    (at as f32 + (fine as f32 + 0.5) / of as f32) / all as f32
                };
                let at = region.at(part(x, fine_x, across, columns), part(y, fine_y, down, height));
                let sample = self.sample(at);
                sum.iter_mut().zip(sample).for_each(|(sum, sample)| *sum += sample);
            }
            for (plane, sum) in sum.iter().rev().enumerate() {
                planes[(plane * height + y) * width + x] = sum / (across * down) as f32 / 127.5 - 1.0;
            }
        }
    }

    /// Between pixels in proportion; past the edge as at the edge.
    fn sample(&self, at: Vector) -> [f32; 3] {
        let place = |at: f32, size: usize| {
            let at = (at - 0.5).clamp(0.0, size as f32 - 1.0);
            let first = at as usize;
            (first, (first + 1).min(size - 1), at - first as f32)
        };
        let (left, right, x) = place(at.x, self.width);
        let (top, bottom, y) = place(at.y, self.height());
        let pixel = |y: usize, x: usize| self.pixels[y * self.width + x].map(f32::from);
        let between = |a: [f32; 3], b: [f32; 3], share: f32| [0, 1, 2].map(|c| a[c] + (b[c] - a[c]) * share);
        let row = |y: usize| between(pixel(y, left), pixel(y, right), x);
        between(row(top), row(bottom), y)
    }
}

impl Vector {
    pub fn length(self) -> f32 {
        self.x.hypot(self.y)
    }

    pub fn plus(self, other: Vector, times: f32) -> Vector {
        Vector { x: self.x + other.x * times, y: self.y + other.y * times }
    }

    pub fn times(self, factor: f32) -> Vector {
        Vector { x: self.x * factor, y: self.y * factor }
    }

    pub fn dot(self, other: Vector) -> f32 {
        self.x * other.x + self.y * other.y
    }

    /// A quarter turn clockwise, as one looks at the picture.
    pub fn turned(self) -> Vector {
        Vector { x: -self.y, y: self.x }
    }
}

impl Region {
    /// The point that is these shares of the way along and down.
    pub fn at(&self, along: f32, down: f32) -> Vector {
        self.corner.plus(self.along, along).plus(self.down, down)
    }

    /// The same rectangle, read from its other end.
    pub fn upside_down(&self) -> Region {
        Region { corner: self.at(1.0, 1.0), along: self.along.times(-1.0), down: self.down.times(-1.0) }
    }

    /// In a picture that is this many times as large.
    pub fn scaled(&self, x: f32, y: f32) -> Region {
        let scale = |vector: Vector| Vector { x: vector.x * x, y: vector.y * y };
        Region { corner: scale(self.corner), along: scale(self.along), down: scale(self.down) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two rows of three pixels, told apart by their red.
    fn picture() -> Picture {
        Picture { width: 3, pixels: (0..6).map(|red| [red * 20, 100, 200]).collect() }
    }

    fn red(region: &Region, columns: usize, dims: [usize; 2]) -> Vec<u8> {
        let mut planes = vec![9.0; 3 * dims[0] * dims[1]];
        picture().write(region, columns, dims, &mut planes);
        planes[2 * dims[0] * dims[1]..].iter().map(|sample| ((sample + 1.0) * 127.5).round() as u8).collect()
    }

    #[test]
    fn a_region_is_written_pixel_by_pixel_and_padded() {
        assert_eq!(red(&picture().whole(), 3, [2, 3]), [0, 20, 40, 60, 80, 100]);
        assert_eq!(red(&picture().whole().upside_down(), 3, [2, 3]), [100, 80, 60, 40, 20, 0]);
        // 0 of -1 to 1 is the grey 127.5.
        assert_eq!(red(&picture().whole(), 3, [2, 4]), [0, 20, 40, 128, 60, 80, 100, 128]);
        let mut planes = vec![0.0; 18];
        picture().write(&picture().whole(), 3, [2, 3], &mut planes);
        assert_eq!([planes[0], planes[6]].map(|s| ((s + 1.0) * 127.5).round()), [200.0, 100.0], "blue and green first");
    }

    #[test]
    fn a_turned_region_is_read_along_its_own_axis() {
        let down = Region {
            corner: Vector { x: 3.0, y: 0.0 },
            along: Vector { x: 0.0, y: 2.0 },
            down: Vector { x: -3.0, y: 0.0 },
        };
        assert_eq!(red(&down, 2, [3, 2]), [40, 100, 20, 80, 0, 60]);
    }

    #[test]
    fn shrinking_takes_means_and_growing_goes_between() {
        assert_eq!(red(&picture().whole(), 1, [1, 1]), [50]);
        assert_eq!(red(&picture().whole(), 6, [1, 6])[..3], [30, 35, 45]);
    }

    #[test]
    fn a_file_that_is_no_picture_is_named() {
        let file = std::env::temp_dir().join(format!("rota-picture-{}.png", std::process::id()));
        std::fs::write(&file, "no picture").unwrap();
        let error = Picture::read(&file).unwrap_err().to_string();
        std::fs::remove_file(&file).unwrap();
        assert!(error.contains("rota-picture-") && error.contains("it is no PNG file"), "{error}");
        assert!(matches!(Picture::read(&file), Err(PictureError::Open { .. })));
    }
}
