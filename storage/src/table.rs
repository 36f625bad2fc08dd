//! Owns a table of values by group whose look-ups can be started ahead of their use.
//! It must never have to look at a value to find it: values are large, many, and rarely in a cache.

use polyraft_raft::GroupId;

use crate::numbers::GroupNumbers;
use crate::prefetch::prefetch;

/// Values by group, found by their places in a list.
#[derive(Debug)]
pub struct GroupTable<T> {
    places: GroupNumbers,
    values: Vec<Option<T>>,
    /// Places without a value.
    free: Vec<u32>,
}

impl<T> Default for GroupTable<T> {
    fn default() -> Self {
        GroupTable {
            places: GroupNumbers::default(),
            values: Vec::new(),
            free: Vec::new(),
        }
    }
}

impl<T> GroupTable<T> {
    /// How many groups have a value.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether none has.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Whether the group has one.
    pub fn contains(&self, group: GroupId) -> bool {
        self.places.get(group).is_some()
    }

    /// The group's value.
    #[inline]
    pub fn get(&self, group: GroupId) -> Option<&T> {
        let place = self.places.get(group)?;
        self.values[place as usize].as_ref()
    }

    /// The group's value, to change.
    #[inline]
    pub fn get_mut(&mut self, group: GroupId) -> Option<&mut T> {
        let place = self.places.get(group)?;
        self.values[place as usize].as_mut()
    }

    /// Gives the group a value; returns the one it had.
    pub fn insert(&mut self, group: GroupId, value: T) -> Option<T> {
        if let Some(known) = self.get_mut(group) {
            return Some(std::mem::replace(known, value));
        }
        let place = self.free.pop().unwrap_or_else(|| {
            self.values.push(None);
            u32::try_from(self.values.len() - 1).expect("fewer than 4 billion groups")
        });
        self.values[place as usize] = Some(value);
        self.places.insert(group, place);
        None
    }

    /// Takes the group's value out.
    pub fn remove(&mut self, group: GroupId) -> Option<T> {
        let place = self.places.remove(group)?;
        self.free.push(place);
        self.values[place as usize].take()
    }

    /// Every group and its value, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = (GroupId, &T)> {
        let places = self.places.iter();
        places.filter_map(|(group, place)| Some((group, self.values[place as usize].as_ref()?)))
    }

    /// The groups, in no particular order.
    pub fn keys(&self) -> impl Iterator<Item = GroupId> {
        self.places.iter().map(|(group, _)| group)
    }

    /// Starts to load the group's value.
    #[inline]
    pub fn prefetch(&self, group: GroupId) {
        if let Some(place) = self.places.get(group) {
            prefetch(&self.values[place as usize]);
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
