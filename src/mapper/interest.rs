//! The users of a mapping, to whom the mapper reports its changes.

use super::LocalVif;

/// A bounded set of local vifs. One more than the bound, and it stands for all vifs of the vnet:
/// nobody misses a change, and memory stays bounded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Interest {
    listed: Vec<LocalVif>,
    everyone: bool,
}

impl Interest {
    /// Adds a vif.
    pub(super) fn add(&mut self, vif: LocalVif, bound: usize) {
        if self.everyone || self.listed.contains(&vif) {
            return;
        }
        if self.listed.len() < bound {
            self.listed.push(vif);
        } else {
            *self = Self { listed: Vec::new(), everyone: true };
        }
    }

    /// Adds all of `other`.
    pub(super) fn merge(&mut self, other: Self, bound: usize) {
        if other.everyone {
            *self = other;
            return;
        }
        for vif in other.listed {
            self.add(vif, bound);
        }
    }

    /// Those that are not in `other`.
    pub(super) fn without(mut self, other: &Self) -> Self {
        if other.everyone {
            return Self::default();
        }
        self.listed.retain(|vif| !other.listed.contains(vif));
        self
    }

    /// Takes a vif out that is gone.
    pub(super) fn remove(&mut self, vif: LocalVif) {
        self.listed.retain(|&listed| listed != vif);
    }

    /// Whether it has no users.
    pub(super) fn is_empty(&self) -> bool {
        !self.everyone && self.listed.is_empty()
    }

    /// The vifs, unless it stands for everyone.
    pub(super) fn listed(&self) -> Option<&[LocalVif]> {
        if self.everyone { None } else { Some(&self.listed) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_more_than_the_bound_is_everyone() {
        let mut interest = Interest::default();
        assert!(interest.is_empty());
        for vif in [1, 2, 1, 2] {
            interest.add(LocalVif(vif), 2);
        }
        assert_eq!(interest.listed(), Some([LocalVif(1), LocalVif(2)].as_slice()));
        interest.add(LocalVif(3), 2);
        assert_eq!(interest.listed(), None);
        interest.remove(LocalVif(3));
        assert!(!interest.is_empty(), "everyone stays everyone");
    }

    #[test]
    fn merging_keeps_both_and_the_bound() {
        let mut a = Interest::default();
        a.add(LocalVif(1), 2);
        let mut b = a.clone();
        b.add(LocalVif(2), 2);
        a.merge(b.clone(), 2);
        assert_eq!(a, b);
        let mut c = Interest::default();
        c.add(LocalVif(3), 2);
        c.merge(a, 2);
        assert_eq!(c.listed(), None);
    }
}
