//! Owns a map from groups to small numbers, made for ids that lie close together, as most stores hand them out.
//! It must never need a second look at memory for such an id: thousands of look-ups make up a turn.

use polyraft_raft::GroupId;
use rustc_hash::FxHashMap;

/// Stands for "no number".
const NONE: u32 = u32::MAX;

/// Ids below this many times the number of groups are looked up by position. The list then takes at most 4 times as many bytes
/// for each group, twice that right after it has grown.
const ROOMY: usize = 16;

/// Ids that are always looked up by position.
const ALWAYS: usize = 1024;

/// A number for each group: four bytes in a list where ids are dense, a hash map for the others.
#[derive(Debug, Default, Clone)]
pub struct GroupNumbers {
    dense: Vec<u32>,
    sparse: FxHashMap<GroupId, u32>,
    len: usize,
}

impl GroupNumbers {
    /// How many groups have a number.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether none has.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The group's number.
    #[inline]
    pub fn get(&self, group: GroupId) -> Option<u32> {
        let position = usize::try_from(group.0).ok()?;
        match self.dense.get(position) {
            Some(&number) if number != NONE => Some(number),
            _ if self.sparse.is_empty() => None,
            _ => self.sparse.get(&group).copied(),
        }
    }

    /// Gives the group a number, below `u32::MAX`; returns the one it had.
    pub fn insert(&mut self, group: GroupId, number: u32) -> Option<u32> {
        assert!(number != NONE, "fewer than 4 billion groups");
        let before = self.remove(group);
        self.len += 1;
        let room = ALWAYS.max(ROOMY * self.len);
        match usize::try_from(group.0) {
            Ok(position) if position < room.max(self.dense.len()) => {
                if position >= self.dense.len() {
                    self.dense.resize((position + 1).next_power_of_two(), NONE);
                }
                self.dense[position] = number;
            }
            _ => {
                self.sparse.insert(group, number);
            }
        }
        before
    }

    /// Takes the group's number away.
    pub fn remove(&mut self, group: GroupId) -> Option<u32> {
        let position = usize::try_from(group.0).ok();
        let listed = position.and_then(|position| self.dense.get_mut(position));
        let number = match listed.map(|number| std::mem::replace(number, NONE)) {
            None | Some(NONE) => self.sparse.remove(&group)?,
            Some(number) => number,
        };
        self.len -= 1;
        Some(number)
    }

    /// Every group and its number, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = (GroupId, u32)> {
        let listed = self.dense.iter().zip(0..);
        let dense = listed.map(|(number, group)| (GroupId(group), *number));
        let sparse = self.sparse.iter().map(|(group, number)| (*group, *number));
        dense.filter(|(_, number)| *number != NONE).chain(sparse)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn ids() -> impl Strategy<Value = u64> {
        prop_oneof![
            0..12u64,
            1020..1030u64,
            20_000..20_004u64,
            u64::MAX - 3..=u64::MAX
        ]
    }

    proptest! {
        #[test]
        fn the_numbers_are_a_map(steps in prop::collection::vec((ids(), 0..u32::MAX, any::<bool>()), 0..200)) {
            let (mut numbers, mut map) = (GroupNumbers::default(), BTreeMap::new());
            for (group, number, inserts) in steps {
                let group = GroupId(group);
                if inserts {
                    prop_assert_eq!(numbers.insert(group, number), map.insert(group, number));
                } else {
                    prop_assert_eq!(numbers.remove(group), map.remove(&group));
                }
                prop_assert_eq!((numbers.len(), numbers.is_empty()), (map.len(), map.is_empty()));
                prop_assert_eq!(numbers.iter().collect::<BTreeMap<_, _>>(), map.clone());
                prop_assert_eq!(numbers.get(group), map.get(&group).copied());
            }
        }
    }

    #[test]
    fn an_id_keeps_its_number_when_its_neighbours_make_the_list_longer() {
        let mut numbers = GroupNumbers::default();
        numbers.insert(GroupId(3000), 7);
        assert_eq!(
            numbers.sparse.len(),
            1,
            "far beyond what one group may take"
        );
        for id in 0..3000 {
            numbers.insert(GroupId(id), id as u32);
        }
        assert!(numbers.dense.len() > 3000);
        assert_eq!(numbers.get(GroupId(3000)), Some(7));
        assert_eq!(numbers.insert(GroupId(3000), 8), Some(7));
        assert_eq!(
            (numbers.get(GroupId(3000)), numbers.sparse.len()),
            (Some(8), 0)
        );
    }

    #[test]
    fn ids_far_apart_take_no_more_memory_than_near_ones() {
        let mut numbers = GroupNumbers::default();
        for id in 0..500 {
            numbers.insert(GroupId(id << 40), id as u32);
        }
        assert!(numbers.dense.len() <= ALWAYS);
        assert!((0..500).all(|id| numbers.get(GroupId(id << 40)) == Some(id as u32)));
    }
}
