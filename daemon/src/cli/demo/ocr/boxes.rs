//! From a map of how likely each pixel is text to the rectangles that text stands in.
//!
//! The detector marks text narrower than it is, so that lines do not touch (Liao et al., "Real-time Scene Text Detection with
//! Differentiable Binarization", section 3.4): what is found is made as much larger as it was made smaller.

use super::picture::{Region, Vector};

/// Pixels at least this likely are text.
const LIKELY: f32 = 0.3;
/// What is found has to be this likely in the mean.
const LIKELY_MEAN: f32 = 0.5;
/// Shorter sides are noise, in pixels of the map.
const SIDE_MIN: f32 = 3.0;
/// The offset is area times this over circumference, as the detector was trained with.
const OFFSET: f32 = 1.6;
/// Text this many times as high as wide is written from top to bottom.
const UPRIGHT: f32 = 1.5;

/// Where text stands in a map of `width` columns: line by line, from left to right. O(pixels).
pub fn find(map: &[f32], width: usize) -> Vec<Vec<Region>> {
    let mut seen = vec![false; map.len()];
    let mut found = Vec::new();
    for start in 0..map.len() {
        if !seen[start] && map[start] >= LIKELY {
            let pixels = connected(map, width, start, &mut seen);
            let mean = pixels.iter().map(|&pixel| map[pixel]).sum::<f32>() / pixels.len() as f32;
            found.extend(Some(hull(&pixels, width)).filter(|_| mean >= LIKELY_MEAN).and_then(|hull| rectangle(&hull)));
        }
    }
    lines(found)
}

/// The pixels that hang together with `start`, diagonally as well.
fn connected(map: &[f32], width: usize, start: usize, seen: &mut [bool]) -> Vec<usize> {
    let height = map.len() / width;
    let mut pixels = vec![start];
    seen[start] = true;
    let mut next = 0;
    while let Some(&pixel) = pixels.get(next) {
        next += 1;
        let (y, x) = (pixel / width, pixel % width);
        for (y, x) in (y.saturating_sub(1)..=y + 1).flat_map(|y| (x.saturating_sub(1)..=x + 1).map(move |x| (y, x))) {
            let neighbour = y * width + x;
            if y < height && x < width && !seen[neighbour] && map[neighbour] >= LIKELY {
                seen[neighbour] = true;
                pixels.push(neighbour);
            }
        }
    }
    pixels
}

/// The convex hull of pixels' corners, by Andrew's monotone chain.
fn hull(pixels: &[usize], width: usize) -> Vec<Vector> {
    let corners = |&pixel: &usize| {
        let (x, y) = ((pixel % width) as f32, (pixel / width) as f32);
        [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0)].map(|(right, down)| Vector { x: x + right, y: y + down })
    };
    let mut points: Vec<Vector> = pixels.iter().flat_map(corners).collect();
    points.sort_unstable_by(|a, b| a.x.total_cmp(&b.x).then(a.y.total_cmp(&b.y)));
    points.dedup();
    let mut chain: Vec<Vector> = Vec::new();
    let mut half = |points: &mut dyn Iterator<Item = Vector>| {
        let base = chain.len();
        for point in points {
            // Whoever does not turn left at the last point cuts it off.
            while let [.., before, last] = chain[base..] {
                if last.plus(before, -1.0).turned().dot(point.plus(before, -1.0)) > 0.0 {
                    break;
                }
                chain.pop();
            }
            chain.push(point);
        }
        chain.pop();
    };
    half(&mut points.iter().copied());
    half(&mut points.iter().rev().copied());
    chain
}

/// The smallest rectangle around a hull, made larger by what the detector made it smaller; `None` where it is noise. One side of
/// it lies on a side of the hull.
fn rectangle(hull: &[Vector]) -> Option<Region> {
    let edges = (0..hull.len()).map(|at| hull[(at + 1) % hull.len()].plus(hull[at], -1.0));
    let around = edges.filter(|edge| edge.length() > 0.0).map(|edge| {
        let along = edge.times(1.0 / edge.length());
        let reach = |axis: Vector| {
            let on = hull.iter().map(|point| point.dot(axis));
            on.fold((f32::INFINITY, f32::NEG_INFINITY), |(least, most), on| (least.min(on), most.max(on)))
        };
        (along, reach(along), reach(along.turned()))
    });
    let area = |&(_, (left, right), (top, bottom)): &(Vector, (f32, f32), (f32, f32))| (right - left) * (bottom - top);
    let (along, (left, right), (top, bottom)) = around.min_by(|a, b| area(a).total_cmp(&area(b)))?;
    let (wide, high) = (right - left, bottom - top);
    if wide.min(high) < SIDE_MIN {
        return None;
    }
    let offset = wide * high * OFFSET / (2.0 * (wide + high));
    let corner = along.times(left - offset).plus(along.turned(), top - offset);
    let sides = [along.times(wide + 2.0 * offset), along.turned().times(high + 2.0 * offset)];
    let region = Region { corner, along: sides[0], down: sides[1] };
    Some(upright(&region))
}

/// The same rectangle, read from left to right or, when it is much higher than wide, from top to bottom.
fn upright(region: &Region) -> Region {
    let mut region = *region;
    for _ in 0..4 {
        if region.along.x >= region.along.y.abs() {
            break;
        }
        region = quarter(&region);
    }
    if region.down.length() >= UPRIGHT * region.along.length() { quarter(&region) } else { region }
}

/// The same rectangle, read from its next corner on.
fn quarter(region: &Region) -> Region {
    Region { corner: region.at(1.0, 0.0), along: region.down, down: region.along.times(-1.0) }
}

/// From top to bottom; those are on one line whose middles are less than half a height apart.
fn lines(mut regions: Vec<Region>) -> Vec<Vec<Region>> {
    let middle = |region: &Region| region.at(0.5, 0.5);
    regions.sort_by(|a, b| middle(a).y.total_cmp(&middle(b).y));
    let mut lines: Vec<Vec<Region>> = Vec::new();
    for region in regions {
        let near = |last: &Region| middle(&region).y - middle(last).y <= region.down.length() / 2.0;
        match lines.last_mut().filter(|line| line.last().is_some_and(near)) {
            Some(line) => line.push(region),
            None => lines.push(vec![region]),
        }
    }
    lines.iter_mut().for_each(|line| line.sort_by(|a, b| middle(a).x.total_cmp(&middle(b).x)));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A map with what `likely` says of each pixel's middle.
    fn map(width: usize, height: usize, likely: impl Fn(f32, f32) -> f32) -> Vec<f32> {
        let pixels = (0..height).flat_map(|y| (0..width).map(move |x| (x, y)));
        pixels.map(|(x, y)| likely(x as f32 + 0.5, y as f32 + 0.5)).collect()
    }

    fn inside(x: f32, y: f32, [left, top, right, bottom]: [f32; 4]) -> f32 {
        f32::from(u8::from((left..right).contains(&x) && (top..bottom).contains(&y)))
    }

    #[test]
    fn a_straight_line_of_text_is_found_and_made_larger() {
        let found = find(&map(60, 40, |x, y| inside(x, y, [10.0, 10.0, 50.0, 20.0])), 60).concat();
        // 40 x 10: area 400, circumference 100.
        let offset = 400.0 * OFFSET / 100.0;
        let expected = Region {
            corner: Vector { x: 10.0 - offset, y: 10.0 - offset },
            along: Vector { x: 40.0 + 2.0 * offset, y: 0.0 },
            down: Vector { x: 0.0, y: 10.0 + 2.0 * offset },
        };
        assert_eq!(found.len(), 1);
        let apart = |a: Vector, b: Vector| a.plus(b, -1.0).length();
        let [found] = found[..] else { panic!("{found:?}") };
        assert!(apart(found.corner, expected.corner) < 1e-3, "{found:?}");
        assert!(apart(found.along, expected.along) < 1e-3 && apart(found.down, expected.down) < 1e-3, "{found:?}");
    }

    #[test]
    fn a_slanting_line_is_read_along_its_slant() {
        for degrees in [-40.0_f32, -10.0, 20.0] {
            let (sin, cos) = degrees.to_radians().sin_cos();
            let turned = |x: f32, y: f32| (x * cos + y * sin, y * cos - x * sin);
            let likely = |x: f32, y: f32| {
                let (along, across) = turned(x - 60.0, y - 60.0);
                f32::from(u8::from(along.abs() < 40.0 && across.abs() < 5.0))
            };
            let found = find(&map(120, 120, likely), 120).concat();
            let [region] = found[..] else { panic!("{found:?}") };
            let angle = region.along.y.atan2(region.along.x).to_degrees();
            assert!((angle - degrees).abs() < 2.0, "{angle}, not {degrees}");
            let middle = region.at(0.5, 0.5).plus(Vector { x: 60.0, y: 60.0 }, -1.0);
            assert!(middle.length() < 1.0, "{middle:?}");
        }
    }

    #[test]
    fn specks_and_faint_marks_are_no_text() {
        assert!(find(&map(30, 30, |x, y| inside(x, y, [3.0, 3.0, 5.0, 20.0])), 30).is_empty(), "two pixels wide");
        assert!(find(&map(30, 30, |x, y| 0.4 * inside(x, y, [3.0, 3.0, 20.0, 20.0])), 30).is_empty(), "unlikely");
        assert!(find(&[], 1).is_empty());
    }

    #[test]
    fn text_is_read_line_by_line() {
        let words =
            [[40.0, 11.0, 70.0, 20.0], [5.0, 13.0, 30.0, 22.0], [5.0, 40.0, 61.0, 50.0], [80.0, 12.0, 95.0, 20.0]];
        let likely = |x, y| words.iter().map(|&word| inside(x, y, word)).fold(0.0, f32::max);
        let middle = |region: &Region| region.at(0.5, 0.5).x.round();
        let found: Vec<Vec<f32>> =
            find(&map(100, 60, likely), 100).iter().map(|line| line.iter().map(middle).collect()).collect();
        assert_eq!(found, [vec![18.0, 55.0, 88.0], vec![33.0]]);
    }

    #[test]
    fn high_text_is_read_from_top_to_bottom() {
        let found = find(&map(40, 80, |x, y| inside(x, y, [15.0, 10.0, 25.0, 70.0])), 40);
        assert!(found[0][0].along.y > 60.0 && found[0][0].down.x < 0.0, "{found:?}");
    }
}
