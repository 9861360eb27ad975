//! What a subtree costs, by the time that it is given: the points at which more time begins to cost less.

/// So much time suffices, at this cost.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Point {
    /// Nanoseconds.
    pub need: u64,
    /// Devices.
    pub cost: f64,
    /// Of the need, what the subtree's own stage takes; the rest is its children's.
    pub own: u64,
}

/// A step function: points by need, ascending, at strictly falling cost.
///
/// The recursion of the Nexus paper (section 6.2) asks for the cost at each of L/ε moments. Costs only fall where a larger batch
/// begins to fit, so they are kept there, and are exact. Where that would be more than [`CELLS`] moments, one point is kept
/// for each L/[`CELLS`]: the cheapest, so that a subtree costs no more than the optimum with so much less time per stage.
#[derive(Clone, Debug, Default)]
pub(super) struct Front(Vec<Point>);

impl Front {
    /// Of `points` in any order, those that nothing dominates; none takes more than `limit`.
    pub fn new(points: impl Iterator<Item = Point>, count: usize, limit: u64) -> Front {
        let points = points.filter(|point| point.need <= limit);
        let mut points: Vec<Point> = if count <= EXACT { points.collect() } else { cheapest_by_cell(points, limit) };
        points.sort_unstable_by(|a, b| (a.need, a.cost).partial_cmp(&(b.need, b.cost)).expect("costs are numbers"));
        let mut front = Front(Vec::new());
        for point in points {
            if front.0.last().is_none_or(|last| point.cost < last.cost) {
                front.0.push(point);
            }
        }
        if front.0.len() > CELLS {
            front.0 = cheapest_by_cell(front.0.into_iter(), limit);
        }
        front
    }

    /// Several subtrees that are given the same time.
    pub fn beside(fronts: &[&Front]) -> Front {
        // Nobody can do without the largest of the first needs.
        let least = fronts.iter().map(|front| front.0.first().map_or(u64::MAX, |point| point.need)).max().unwrap_or(0);
        let mut needs: Vec<u64> = fronts.iter().flat_map(|front| &front.0).map(|point| point.need.max(least)).collect();
        needs.sort_unstable();
        needs.dedup();
        if fronts.is_empty() {
            needs.push(0);
        }
        let cost =
            |need: u64| fronts.iter().map(|front| front.within(need).expect("no less than the least").cost).sum();
        let point = |&need: &u64| Point { need, cost: cost(need), own: 0 };
        Front(needs.iter().filter(|need| **need < u64::MAX).map(point).collect())
    }

    /// A stage with these choices, and what lies behind it.
    pub fn before(choices: &Front, behind: &Front, limit: u64) -> Front {
        let pairs = choices.0.iter().flat_map(|own| {
            behind.0.iter().map(|rest| Point {
                need: own.need.saturating_add(rest.need),
                cost: own.cost + rest.cost,
                own: own.need,
            })
        });
        Front::new(pairs, choices.0.len() * behind.0.len(), limit)
    }

    /// The cheapest that `limit` suffices for.
    pub fn within(&self, limit: u64) -> Option<Point> {
        let fitting = self.0.partition_point(|point| point.need <= limit);
        self.0[..fitting].last().copied()
    }
}

fn cheapest_by_cell(points: impl Iterator<Item = Point>, limit: u64) -> Vec<Point> {
    let width = limit / CELLS as u64 + 1;
    let mut cells: Vec<Option<Point>> = vec![None; CELLS];
    for point in points {
        let cell = &mut cells[(point.need / width) as usize];
        if cell.is_none_or(|kept| (point.cost, point.need) < (kept.cost, kept.need)) {
            *cell = Some(point);
        }
    }
    cells.into_iter().flatten().collect()
}

/// Points of one front at most.
const CELLS: usize = 4096;
/// Pairs that are sorted; more are only looked at.
const EXACT: usize = 1 << 17;
