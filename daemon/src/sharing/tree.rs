//! A group's shared parts as a tree, in the order in which members and parts are numbered.

use rota_graph::{Cut, Group, Hash};
use rota_sched::ModelId;
use std::ops::Range;

/// The parts of a group: every branch is shared by several members, each member has a part of its own behind its branch.
///
/// Invariant: the members of a branch lie side by side; a branch comes behind the one that it goes on from.
#[derive(Clone, Debug)]
pub(crate) struct Tree {
    pub members: Vec<ModelId>,
    pub branches: Vec<Branch>,
    /// By member: the branch that its own part goes on from.
    pub behind: Vec<usize>,
}

#[derive(Clone, Debug)]
pub(crate) struct Branch {
    pub parent: Option<usize>,
    /// By place in [`Tree::members`].
    pub members: Range<usize>,
    pub cut: Cut,
}

/// Two trees are the same when they share the same between the same models.
impl PartialEq for Tree {
    fn eq(&self, other: &Tree) -> bool {
        let key = |branch: &Branch| -> (Option<usize>, Range<usize>, Vec<Hash>) {
            (branch.parent, branch.members.clone(), branch.cut.ports.clone())
        };
        self.members == other.members
            && self.behind == other.behind
            && self.branches.iter().map(key).eq(other.branches.iter().map(key))
    }
}

impl Tree {
    pub fn of(group: &Group, id: impl Fn(rota_graph::Member) -> ModelId + Copy) -> Tree {
        let mut tree = Tree { members: Vec::new(), branches: Vec::new(), behind: Vec::new() };
        tree.grow(group, None, id);
        tree
    }

    fn grow(&mut self, group: &Group, parent: Option<usize>, id: impl Fn(rota_graph::Member) -> ModelId + Copy) {
        let (branch, first) = (self.branches.len(), self.members.len());
        self.branches.push(Branch { parent, members: first..first, cut: group.cut.clone() });
        for inner in &group.groups {
            self.grow(inner, Some(branch), id);
        }
        let deeper = |member| group.groups.iter().any(|inner| inner.members.contains(member));
        for member in group.members.iter().filter(|member| !deeper(member)) {
            self.members.push(id(*member));
            self.behind.push(branch);
        }
        self.branches[branch].members.end = self.members.len();
    }

    /// The branches that a member goes through, the widest first.
    pub fn path(&self, member: usize) -> Vec<usize> {
        let mut path: Vec<usize> =
            std::iter::successors(Some(self.behind[member]), |&branch| self.branches[branch].parent).collect();
        path.reverse();
        path
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rota_graph::Member;
    use std::collections::BTreeSet;

    #[test]
    fn members_of_a_branch_lie_side_by_side() {
        let cut = || Cut { nodes: BTreeSet::new(), ports: Vec::new(), weight_bytes: 0, refused: Vec::new() };
        let group = |members: &[u32], groups: Vec<Group>| Group {
            members: members.iter().copied().map(Member).collect(),
            cut: cut(),
            groups,
        };
        let tree = group(&[0, 1, 2, 3, 4], vec![group(&[1, 4], Vec::new()), group(&[0, 2], Vec::new())]);
        let tree = Tree::of(&tree, |member| ModelId(member.0));
        assert_eq!(tree.members, [1, 4, 0, 2, 3].map(ModelId));
        let ranges: Vec<_> = tree.branches.iter().map(|branch| branch.members.clone()).collect();
        assert_eq!(ranges, [0..5, 0..2, 2..4]);
        assert_eq!(tree.behind, [1, 1, 2, 2, 0]);
        assert_eq!((tree.path(3), tree.path(4)), (vec![0, 2], vec![0]));
    }
}
