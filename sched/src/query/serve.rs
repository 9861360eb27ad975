//! What a split means while calls are served: by when each has to be answered, and what part of its query's weight a stage has.
//! Simulator and daemon serve queries by the same rules.

use super::Query;
use crate::time::nanos;
use crate::{Instant, Profile};
use std::time::Duration;

/// Of the shares of the stages behind it, the part that a call leaves them. With 1 each stage gets its share and what those
/// before it left, and a late call is dropped that later stages would have saved; with 0 early stages use up everybody's time.
pub const RESERVE: f64 = 0.75;

/// What a stage's place in the tree means for the time of its calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Room {
    /// Of the query's SLO, what the stages before it cannot do without: ℓ(1) of each.
    pub before: Duration,
    /// The same of the stages behind it, on the longest way.
    pub behind: Duration,
    /// Of the query's SLO, the shares of the stages behind it.
    pub reserved: Duration,
}

impl Room {
    /// When a call has to be answered whose query has to be done by `deadline`: what is reserved for the stages behind it before
    /// that, and time for batches of one at least.
    pub fn latest(&self, deadline: Instant, reserve: f64) -> Instant {
        let reserved = Duration::from_nanos((reserve * nanos(self.reserved) as f64) as u64);
        deadline - reserved.max(self.behind)
    }
}

/// By stage. `shares` are as [`super::split()`] gives them, `firsts` ℓ(1) of each stage's model where it is fastest.
pub fn rooms(query: &Query, shares: &[Duration], firsts: &[Duration]) -> Vec<Room> {
    let firsts: Vec<u64> = firsts.iter().copied().map(nanos).collect();
    let longest = query.longest(&firsts);
    let mut rooms = vec![Room::default(); shares.len()];
    let mut taken = vec![Duration::ZERO; shares.len()];
    for &stage in query.order() {
        let own = shares[stage];
        rooms[stage].behind = Duration::from_nanos(longest[stage] - firsts[stage]);
        rooms[stage].reserved = query.slo().saturating_sub(taken[stage] + own);
        for child in query.children(stage) {
            rooms[child].before = rooms[stage].before + Duration::from_nanos(firsts[stage]);
            taken[child] = taken[stage] + own;
        }
    }
    rooms
}

/// Devices that a stage keeps busy at least: R · min{ℓ(b)/b : (b − 1)/R + ℓ(b) ≤ its share}; batches of one where not even
/// those fit.
pub fn need(profile: &Profile, share: Duration, rate: f64) -> f64 {
    let each = |batch: u32| profile.nanos(batch).expect("batches of the profile") as f64 / f64::from(batch);
    let fits = |&batch: &u32| f64::from(batch - 1) / rate * 1e9 + each(batch) * f64::from(batch) <= nanos(share) as f64;
    let least = (1..=profile.max_batch()).take_while(fits).map(each).reduce(f64::min);
    rate * least.unwrap_or_else(|| each(1)) / 1e9
}

/// By stage: its part of the query's weight, by what it needs. So in overload each stage keeps the same part of its calls: what the
/// first stage answers beyond what the later ones can is done for nothing. A stage that is hardly ever called has to
/// be served all the same, and while nothing is asked all get the same.
pub fn weights(needs: &[f64]) -> Vec<f64> {
    let all: f64 = needs.iter().sum();
    let part = |need: &f64| if all > 0.0 { (need / all).max(WEIGHT_MIN) } else { 1.0 / needs.len() as f64 };
    needs.iter().map(part).collect()
}

/// A stage's least part of its query's weight.
const WEIGHT_MIN: f64 = 1e-3;

#[cfg(test)]
mod tests {
    use super::super::Stage;
    use super::*;
    use crate::ModelId;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    #[test]
    fn a_call_leaves_the_stages_behind_it_three_quarters_of_their_shares_or_what_they_take_at_least() {
        let stage = |after| Stage { model: ModelId(0), after, gamma: 1.0 };
        let query = Query::new(MS(100), 1.0, vec![stage(None), stage(Some(0)), stage(Some(1))]).expect("a query");
        let rooms = rooms(&query, &[MS(50), MS(40), MS(10)], &[MS(5), MS(6), MS(9)]);
        let expected = [(0, 15, 50), (5, 9, 10), (11, 0, 0)];
        for (room, (before, behind, reserved)) in rooms.iter().zip(expected) {
            assert_eq!(
                *room,
                Room { before: MS(before), behind: MS(behind), reserved: MS(reserved) },
                "before, behind, reserved"
            );
        }
        let deadline = Instant(0) + MS(1000);
        let latest: Vec<Duration> = rooms.iter().map(|room| room.latest(deadline, RESERVE).since(Instant(0))).collect();
        // Three quarters of 50 are more than the 15 that batches of one take; of 10, less than 9.
        assert_eq!(latest, [Duration::from_micros(962_500), MS(991), MS(1000)]);
    }

    #[test]
    fn weights_go_by_need_and_nobody_has_none() {
        let profile = Profile::new(&[(1, MS(10)), (8, MS(24))]).expect("a profile");
        // At 1000/s eight gather in 7 ms; within 20 ms only batches below that end in time.
        assert!((need(&profile, MS(40), 1000.0) - 3.0).abs() < 1e-9);
        assert!(need(&profile, MS(20), 1000.0) > 3.0);
        assert!((need(&profile, MS(5), 1000.0) - 10.0).abs() < 1e-9, "not even one fits");
        assert_eq!(need(&profile, MS(40), 0.0), 0.0);
        assert_eq!(weights(&[3.0, 1.0, 0.0]), [0.75, 0.25, 1e-3]);
        assert_eq!(weights(&[0.0, 0.0]), [0.5, 0.5]);
    }
}
