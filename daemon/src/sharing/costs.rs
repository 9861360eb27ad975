//! ℓ(b) of a group, from what its parts take.

use super::stacks::InUse;
use super::tree::Tree;
use rota_sched::Profile;
use std::time::Duration;

/// What batches of a group take, part by part.
pub(super) struct Costs<'a> {
    pub tree: &'a Tree,
    /// The branches, then the members' own parts.
    pub times: &'a [Profile],
    /// What can run instead of several members' own parts.
    pub stacks: &'a [InUse],
}

impl Costs<'_> {
    /// A time for a batch of b items that holds however they are shared out among the members: the shared part for all, and the
    /// dearest way to share out b items below it. (Requests that ask several members at once may still take longer; what
    /// executions take corrects that.)
    pub fn profile(&self, max_batch: u32) -> Result<Profile, String> {
        let most = self.times.iter().map(Profile::max_batch).min().unwrap_or(1).min(max_batch);
        let dearest = self.dearest(0, most as usize);
        let points: Vec<(u32, Duration)> =
            dearest.into_iter().enumerate().skip(1).map(|(batch, time)| (batch as u32, time)).collect();
        Profile::new(&points).map_err(|error| error.to_string())
    }

    /// By items, from 0: the branch and the dearest split below it.
    fn dearest(&self, branch: usize, most: usize) -> Vec<Duration> {
        let inner = (0..self.tree.branches.len()).filter(|&at| self.tree.branches[at].parent == Some(branch));
        let mut below: Vec<Vec<Duration>> = inner.map(|at| self.dearest(at, most)).collect();
        let mut own: Vec<usize> =
            (0..self.tree.members.len()).filter(|&member| self.tree.behind[member] == branch).collect();
        let alone = |member: &usize| times(&self.times[self.tree.branches.len() + member], most);
        for stack in self.stacks.iter().filter(|stack| self.tree.behind[stack.members[0]] == branch) {
            own.retain(|member| !stack.members.contains(member));
            // It is taken where it is faster.
            let one_by_one = shared_out(stack.members.iter().map(alone), most);
            below.push(one_by_one.into_iter().zip(times(&stack.time, most)).map(|(a, b)| a.min(b)).collect());
        }
        below.extend(own.iter().map(alone));
        let split = shared_out(below.into_iter(), most);
        times(&self.times[branch], most).into_iter().zip(split).map(|(shared, below)| shared + below).collect()
    }

    /// The share of what several members share in a batch of one.
    pub fn shared_time(&self) -> f64 {
        let one = |profile: &Profile| profile.latency(1).unwrap_or_default().as_secs_f64();
        let members = self.tree.members.len() as f64;
        let shares = (0..self.tree.members.len()).map(|member| {
            let shared: f64 = self.tree.path(member).iter().map(|&branch| one(&self.times[branch])).sum();
            shared / (shared + one(&self.times[self.tree.branches.len() + member]))
        });
        shares.sum::<f64>() / members
    }
}

/// By items, from 0: the dearest way to share them out among `parts`.
fn shared_out(parts: impl Iterator<Item = Vec<Duration>>, most: usize) -> Vec<Duration> {
    parts.fold(vec![Duration::ZERO; most + 1], |split, part| {
        let best = |items: usize| (0..=items).map(|own| part[own] + split[items - own]).max().unwrap_or_default();
        (0..=most).map(best).collect()
    })
}

/// By items, from 0.
fn times(profile: &Profile, most: usize) -> Vec<Duration> {
    (0..=most).map(|items| profile.latency(items as u32).unwrap_or_default()).collect()
}

#[cfg(test)]
mod tests {
    use super::super::tree::Branch;
    use super::*;
    use rota_graph::Cut;
    use rota_sched::ModelId;
    use std::collections::BTreeSet;

    #[test]
    fn members_of_a_stack_take_at_most_what_the_stack_takes() {
        let cut = Cut { nodes: BTreeSet::new(), ports: Vec::new(), weight_bytes: 0, refused: Vec::new() };
        let tree = Tree {
            members: vec![ModelId(0), ModelId(1), ModelId(2)],
            branches: vec![Branch { parent: None, members: 0..3, cut }],
            behind: vec![0; 3],
        };
        let profile = |one: u64, four: u64| {
            Profile::new(&[(1, Duration::from_millis(one)), (4, Duration::from_millis(four))]).unwrap()
        };
        // The shared part, and three that take 10 ms for one item and 13 for four.
        let times = [profile(100, 130), profile(10, 13), profile(10, 13), profile(10, 13)];
        let latency = |stacks: &[InUse], items| {
            Costs { tree: &tree, times: &times, stacks }.profile(4).unwrap().latency(items).unwrap().as_millis()
        };
        assert_eq!([latency(&[], 1), latency(&[], 2), latency(&[], 4)], [110, 130, 161]);
        // The first and the last as one, in 12 ms for one item and 15 for four: of four items one is dearest with the second.
        let stack = [InUse { members: vec![0, 2], time: profile(12, 15) }];
        assert_eq!([latency(&stack, 1), latency(&stack, 2), latency(&stack, 4)], [110, 130, 154]);
    }
}
