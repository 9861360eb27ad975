//! Which items make best use of a device's room.

/// Something that may be chosen, or not.
#[derive(Clone, Copy, Debug)]
pub(super) struct Item {
    /// Of the room's unit; above zero.
    pub weight: u64,
    pub profit: f64,
}

/// Items that are considered for one room: a set of them is one word.
pub(super) const ITEMS_MAX: usize = 64;
/// Cells into which a room is divided: weights are rounded up to whole ones, so a chosen set always fits.
const CELLS: usize = 400;

/// The set of items (bit i: item i) with the most profit that fits `room`; 0/1 dynamic program in O(items · cells).
///
/// Of sets with equal profit the first found wins, so the result depends on the items' order and nothing else.
#[derive(Debug, Default)]
pub(super) struct Knapsack {
    /// By cells used at most: the best profit and its set.
    best: Vec<(f64, u64)>,
}

impl Knapsack {
    pub(super) fn choose(&mut self, items: &[Item], room: u64) -> u64 {
        assert!(items.len() <= ITEMS_MAX, "{} items, more than {ITEMS_MAX}", items.len());
        if room == 0 {
            return 0;
        }
        self.best.clear();
        self.best.resize(CELLS + 1, (0.0, 0));
        let mut reached = 0;
        for (index, item) in items.iter().enumerate() {
            if item.profit <= 0.0 || item.weight > room {
                continue;
            }
            // `room` is below 2^50 and CELLS below 2^9.
            let cells = ((item.weight * CELLS as u64).div_ceil(room) as usize).max(1);
            reached = (reached + cells).min(CELLS);
            for used in (cells..=reached).rev() {
                let (profit, set) = self.best[used - cells];
                if profit + item.profit > self.best[used].0 {
                    self.best[used] = (profit + item.profit, set | 1 << index);
                }
            }
            // Cells beyond what all items so far can use inherit the best.
            let top = self.best[reached];
            for cell in &mut self.best[reached..] {
                if top.0 > cell.0 {
                    *cell = top;
                }
            }
        }
        self.best[CELLS].1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::random::Random;

    /// Every set, the plain way, with the same rounding of weights.
    fn by_trial(items: &[Item], room: u64) -> f64 {
        let cells = |item: &Item| (item.weight * CELLS as u64).div_ceil(room);
        let profits = (0..1u64 << items.len()).filter_map(|set| {
            let chosen: Vec<_> = items.iter().enumerate().filter(|(index, _)| set >> index & 1 == 1).collect();
            let fits = chosen.iter().map(|(_, item)| cells(item)).sum::<u64>() <= CELLS as u64;
            fits.then(|| chosen.iter().map(|(_, item)| item.profit).sum::<f64>())
        });
        profits.fold(0.0, f64::max)
    }

    #[test]
    fn the_chosen_set_fits_and_none_has_more_profit() {
        let mut random = Random::new(7);
        let mut knapsack = Knapsack::default();
        for round in 0..300 {
            let room = 1 + random.below(2000) as u64;
            let count = random.below(9);
            let items: Vec<_> = (0..count)
                .map(|_| Item { weight: 1 + random.below(1200) as u64, profit: random.unit() - 0.1 })
                .collect();
            let set = knapsack.choose(&items, room);
            let chosen: Vec<_> = items.iter().enumerate().filter(|(index, _)| set >> index & 1 == 1).collect();
            assert!(chosen.iter().map(|(_, item)| item.weight).sum::<u64>() <= room, "round {round}");
            let profit: f64 = chosen.iter().map(|(_, item)| item.profit).sum();
            let most = by_trial(&items, room);
            assert!((profit - most).abs() < 1e-9, "round {round}: {profit} of {most}");
        }
    }
}
