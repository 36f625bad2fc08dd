//! Owns a table of values by group whose look-ups can be started ahead of their use.
//! It must never have to look at a value to find it: values are large, many, and rarely in a cache.

use polyraft_raft::GroupId;
use rustc_hash::FxHashMap;
use slab::Slab;

use crate::prefetch::prefetch;

/// Values by group. Numbers that lie close together lead to the values.
#[derive(Debug)]
pub struct GroupTable<T> {
    numbers: FxHashMap<GroupId, u32>,
    values: Slab<T>,
}

impl<T> Default for GroupTable<T> {
    fn default() -> Self {
        GroupTable {
            numbers: FxHashMap::default(),
            values: Slab::new(),
        }
    }
}

impl<T> GroupTable<T> {
    /// How many groups have a value.
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// Whether none has.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Whether the group has one.
    pub fn contains(&self, group: GroupId) -> bool {
        self.numbers.contains_key(&group)
    }

    /// The group's value.
    #[inline]
    pub fn get(&self, group: GroupId) -> Option<&T> {
        let number = *self.numbers.get(&group)?;
        self.values.get(number as usize)
    }

    /// The group's value, to change.
    #[inline]
    pub fn get_mut(&mut self, group: GroupId) -> Option<&mut T> {
        let number = *self.numbers.get(&group)?;
        self.values.get_mut(number as usize)
    }

    /// Gives the group a value; returns the one it had.
    pub fn insert(&mut self, group: GroupId, value: T) -> Option<T> {
        if let Some(known) = self.get_mut(group) {
            return Some(std::mem::replace(known, value));
        }
        let number = u32::try_from(self.values.insert(value)).expect("fewer than 4 billion groups");
        self.numbers.insert(group, number);
        None
    }

    /// Takes the group's value out.
    pub fn remove(&mut self, group: GroupId) -> Option<T> {
        let number = self.numbers.remove(&group)?;
        self.values.try_remove(number as usize)
    }

    /// Every group and its value, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = (GroupId, &T)> {
        let find = |(group, number): (&GroupId, &u32)| (*group, &self.values[*number as usize]);
        self.numbers.iter().map(find)
    }

    /// The groups, in no particular order.
    pub fn keys(&self) -> impl Iterator<Item = GroupId> {
        self.numbers.keys().copied()
    }

    /// Starts to load the group's value.
    #[inline]
    pub fn prefetch(&self, group: GroupId) {
        if let Some(value) = self.get(group) {
            prefetch(value);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_table_is_a_map(steps in prop::collection::vec((0..12u64, any::<u8>(), any::<bool>()), 0..200)) {
            let (mut table, mut map) = (GroupTable::default(), BTreeMap::new());
            for (group, value, inserts) in steps {
                let group = GroupId(group);
                if inserts {
                    prop_assert_eq!(table.insert(group, value), map.insert(group, value));
                } else {
                    prop_assert_eq!(table.remove(group), map.remove(&group));
                }
                table.prefetch(group);
                prop_assert_eq!(table.iter().map(|(group, value)| (group, *value)).collect::<BTreeMap<_, _>>(), map.clone());
                prop_assert_eq!(table.len(), map.len());
                for group in (0..12).map(GroupId) {
                    prop_assert_eq!(table.get(group), map.get(&group));
                    prop_assert_eq!(table.contains(group), map.contains_key(&group));
                }
            }
        }
    }
}
