//! Owns a list that only grows, in chunks that never move.
//! It must never copy what is in it: a list of all groups that doubles stops a shard for as long as copying takes, and what it
//! leaves behind is as large as the list.

use std::ops::{Index, IndexMut};

/// Bytes of a chunk, about: small beside what a thousand groups need, and large beside what an allocator adds to it.
const CHUNK_BYTES: usize = 64 << 10;

/// A list of values that stay where they are.
#[derive(Debug)]
pub struct Chunks<T> {
    /// All of them are full but the last one.
    chunks: Vec<Vec<T>>,
    /// How many values they have together.
    len: usize,
}

impl<T> Default for Chunks<T> {
    fn default() -> Self {
        Chunks {
            chunks: Vec::new(),
            len: 0,
        }
    }
}

impl<T> Chunks<T> {
    /// The binary logarithm of how many values a chunk has room for.
    const SHIFT: u32 = match CHUNK_BYTES.checked_div(size_of::<T>()) {
        None | Some(0) => 0,
        Some(count) => count.ilog2(),
    };

    /// What is left of a place within its chunk.
    const MASK: usize = (1 << Self::SHIFT) - 1;

    /// How many values there are.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds a value at the end.
    pub fn push(&mut self, value: T) {
        if self.len & Self::MASK == 0 {
            self.chunks.push(Vec::with_capacity(1 << Self::SHIFT));
        }
        let last = self.chunks.len() - 1;
        self.chunks[last].push(value);
        self.len += 1;
    }

    /// The value at a place, if there is one.
    #[inline]
    pub fn get(&self, at: usize) -> Option<&T> {
        (at < self.len).then(|| &self[at])
    }

    /// The value at a place, to change.
    #[inline]
    pub fn get_mut(&mut self, at: usize) -> Option<&mut T> {
        (at < self.len).then(|| &mut self[at])
    }

    /// All values in order.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.chunks.iter().flatten()
    }

    /// All values in order, to change.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.chunks.iter_mut().flatten()
    }
}

impl<T> Index<usize> for Chunks<T> {
    type Output = T;

    /// # Panics
    ///
    /// If there is no value at that place.
    #[inline]
    fn index(&self, at: usize) -> &T {
        assert!(at < self.len, "{at} is out of bounds");
        // SAFETY: there are `len` values, and every chunk is full but the last one.
        unsafe {
            let chunk = self.chunks.get_unchecked(at >> Self::SHIFT);
            chunk.get_unchecked(at & Self::MASK)
        }
    }
}

impl<T> IndexMut<usize> for Chunks<T> {
    #[inline]
    fn index_mut(&mut self, at: usize) -> &mut T {
        assert!(at < self.len, "{at} is out of bounds");
        // SAFETY: as above.
        unsafe {
            let chunk = self.chunks.get_unchecked_mut(at >> Self::SHIFT);
            chunk.get_unchecked_mut(at & Self::MASK)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Grows a list over several chunks and compares it with a plain one. Nothing moves.
    fn grows<T: Copy + PartialEq + std::fmt::Debug>(values: impl Iterator<Item = T>) -> usize {
        let (mut chunks, mut list) = (Chunks::default(), Vec::new());
        assert!(chunks.is_empty());
        let mut first = None;
        for value in values {
            chunks.push(value);
            list.push(value);
            assert_eq!(chunks.len(), list.len());
            assert_eq!(chunks[list.len() - 1], value);
            let place = std::ptr::from_ref(&chunks[0]);
            assert_eq!(*first.get_or_insert(place), place);
        }
        assert!(!chunks.is_empty());
        assert!(chunks.iter().eq(list.iter()));
        assert!(chunks.iter_mut().eq(list.iter_mut()));
        for at in 0..=list.len() {
            assert_eq!(chunks.get(at), list.get(at));
            assert_eq!(chunks.get_mut(at), list.get_mut(at));
        }
        let last = list.len() - 1;
        chunks[last] = list[0];
        assert_eq!(chunks[last], list[0]);
        chunks.chunks.len()
    }

    #[test]
    fn values_are_found_where_they_were_put_and_stay_there() {
        assert_eq!(grows((0..20_000_u64).map(|value| [value; 1])), 3);
        assert_eq!(grows((0..1_000_u64).map(|value| [value; 62])), 8);
        // Larger than a chunk.
        assert_eq!(grows((0..3_u64).map(|value| [value; 10_000])), 3);
        assert_eq!(grows(std::iter::repeat_n((), 3)), 3);
    }

    #[test]
    #[should_panic(expected = "out of bounds")]
    fn there_is_nothing_behind_the_end() {
        let mut chunks = Chunks::default();
        chunks.push(7);
        let _ = chunks[1];
    }
}
