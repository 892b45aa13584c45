//! Subscribers by prefixes of custom types, in a radix tree: looking up a name costs its length and
//! the prefixes that match, however many there are besides.

use std::sync::Arc;

use super::{Interest, subscribers::Subscribers};

/// A tree of prefixes. The empty prefix is its root.
#[derive(Default)]
pub(super) struct Prefixes {
    root: Node,
}

/// A prefix: that of its parent, and `label`.
#[derive(Default)]
struct Node {
    /// Not empty, except for the root.
    label: Box<[u8]>,
    subscribers: Subscribers,
    /// In the order of the first bytes of their labels, which all differ.
    children: Vec<Node>,
}

impl Prefixes {
    pub(super) fn insert(&mut self, prefix: &[u8], id: u64, interest: Arc<Interest>) {
        let (mut node, mut rest) = (&mut self.root, prefix);
        while let Some(&first) = rest.first() {
            let child = match node.child(first) {
                Ok(at) => {
                    let child = &mut node.children[at];
                    let common = child.label.iter().zip(rest).take_while(|(a, b)| a == b).count();
                    child.split(common);
                    rest = &rest[common..];
                    child
                }
                Err(at) => {
                    node.children.insert(at, Node { label: rest.into(), ..Node::default() });
                    rest = &[];
                    &mut node.children[at]
                }
            };
            node = child;
        }
        node.subscribers.insert(id, interest);
    }

    pub(super) fn remove(&mut self, prefix: &[u8], id: u64) {
        self.root.remove(prefix, id);
    }

    /// Calls `see` with the subscribers of every prefix of a name.
    pub(super) fn each_of(&self, name: &[u8], mut see: impl FnMut(&Subscribers)) {
        let (mut node, mut rest) = (&self.root, name);
        loop {
            see(&node.subscribers);
            let child = rest.first().and_then(|first| node.child(*first).ok());
            let Some(child) = child.map(|at| &node.children[at]) else { return };
            let Some(tail) = rest.strip_prefix(&*child.label) else { return };
            (node, rest) = (child, tail);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.root.subscribers.is_empty() && self.root.children.is_empty()
    }
}

impl Node {
    /// The index of the child whose label begins with this byte, or the one that it would have.
    fn child(&self, first: u8) -> Result<usize, usize> {
        self.children.binary_search_by_key(&first, |child| child.label[0])
    }

    /// Ends the label after `at` bytes. What follows moves into a child.
    fn split(&mut self, at: usize) {
        if at == self.label.len() {
            return;
        }
        let (upper, lower) = self.label.split_at(at);
        let (upper, lower) = (upper.into(), lower.into());
        let below = Node { label: lower, ..std::mem::take(self) };
        *self = Node { label: upper, children: vec![below], ..Node::default() };
    }

    fn remove(&mut self, rest: &[u8], id: u64) {
        let Some(&first) = rest.first() else {
            self.subscribers.remove(id);
            return;
        };
        let Ok(at) = self.child(first) else { return };
        let child = &mut self.children[at];
        let Some(tail) = rest.strip_prefix(&*child.label) else { return };
        child.remove(tail, id);
        if !child.subscribers.is_empty() {
            return;
        }
        // A prefix without subscribers is kept only where others part.
        match &mut child.children[..] {
            [] => drop(self.children.remove(at)),
            [only] => {
                let below = std::mem::take(only);
                let label = [&*child.label, &*below.label].concat().into();
                *child = Node { label, ..below };
            }
            _ => {}
        }
    }

    #[cfg(test)]
    fn count(&self) -> usize {
        1 + self.children.iter().map(Node::count).sum::<usize>()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{hub::filter::Filter, proto::v1};

    fn interest() -> Arc<Interest> {
        Arc::new(Interest::new(&Filter::new(&v1::Filter::default(), "n", &[], true), 1))
    }

    proptest! {
        #[test]
        fn every_prefix_of_a_name_is_found_once_and_no_other(
            prefixes in prop::collection::vec("[ab]{0,6}", 0..20),
            removed in prop::collection::vec(any::<bool>(), 20),
            name in "[abc]{0,8}",
        ) {
            let (mut tree, mut left) = (Prefixes::default(), 0);
            for (id, prefix) in (0..).zip(&prefixes) {
                tree.insert(prefix.as_bytes(), id, interest());
            }
            for ((id, prefix), removed) in (0..).zip(&prefixes).zip(&removed) {
                // Twice, and under another prefix: nothing else is removed.
                for _ in 0..2 {
                    if *removed {
                        tree.remove(prefix.as_bytes(), id);
                    }
                }
                tree.remove(b"abababab", id);
                left += usize::from(!removed && name.starts_with(prefix));
            }
            let mut found = 0;
            tree.each_of(name.as_bytes(), |subscribers| found += subscribers.iter().count());
            prop_assert_eq!(found, left);
            for (id, prefix) in (0..).zip(&prefixes) {
                tree.remove(prefix.as_bytes(), id);
            }
            prop_assert!(tree.is_empty());
        }
    }

    #[test]
    fn a_tree_has_few_more_nodes_than_prefixes() {
        let mut tree = Prefixes::default();
        for id in 0..1000 {
            tree.insert(format!("{id:0100}").as_bytes(), id, interest());
        }
        assert!(tree.root.count() < 2001, "{}", tree.root.count());
    }
}
