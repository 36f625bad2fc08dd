//! Queues of many replicas in one place: an empty queue costs eight bytes, and what waits lies close together.
//! It must never be asked to free a queue that still holds something: only its items lead to the next ones.

/// Stands for "nothing behind".
const END: u32 = u32::MAX;

/// Places kept for the next burst when the last item has left.
const KEPT: usize = 1024;

/// One queue among the [`Chains`] that it was made with.
#[derive(Debug)]
pub(super) struct Chain {
    first: u32,
    last: u32,
}

impl Default for Chain {
    fn default() -> Self {
        Chain {
            first: END,
            last: END,
        }
    }
}

impl Chain {
    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.first == END
    }
}

/// The items of many queues. What leaves makes room for what comes.
#[derive(Debug)]
pub(super) struct Chains<T> {
    places: Vec<Place<T>>,
    /// The first free place; each leads to the next.
    free: u32,
    len: usize,
}

#[derive(Debug)]
struct Place<T> {
    item: Option<T>,
    next: u32,
}

impl<T> Default for Chains<T> {
    fn default() -> Self {
        Chains {
            places: Vec::new(),
            free: END,
            len: 0,
        }
    }
}

impl<T> Chains<T> {
    /// Puts an item at the end of a queue.
    pub(super) fn push(&mut self, chain: &mut Chain, item: T) {
        let place = Place {
            item: Some(item),
            next: END,
        };
        let at = self.free;
        let at = if let Some(free) = self.places.get_mut(at as usize) {
            self.free = std::mem::replace(free, place).next;
            at
        } else {
            self.places.push(place);
            u32::try_from(self.places.len() - 1).expect("bounded far below by bytes")
        };
        match self.places.get_mut(chain.last as usize) {
            Some(last) => last.next = at,
            None => chain.first = at,
        }
        chain.last = at;
        self.len += 1;
    }

    /// Takes the first item of a queue if it is as wanted.
    pub(super) fn pop_if(
        &mut self,
        chain: &mut Chain,
        is_wanted: impl FnOnce(&T) -> bool,
    ) -> Option<T> {
        let place = self.places.get_mut(chain.first as usize)?;
        let item = place.item.take_if(|item| is_wanted(item))?;
        let next = std::mem::replace(&mut place.next, self.free);
        self.free = std::mem::replace(&mut chain.first, next);
        if next == END {
            chain.last = END;
        }
        self.len -= 1;
        if self.len == 0 && self.places.len() > KEPT {
            *self = Chains::default();
        }
        Some(item)
    }

    /// Gives back what a burst took, if nothing waits.
    pub(super) fn trim(&mut self) {
        if self.len == 0 {
            *self = Chains::default();
        }
    }

    /// Takes everything out of a queue, in order.
    pub(super) fn drain(&mut self, chain: &mut Chain) -> impl Iterator<Item = T> {
        std::iter::from_fn(|| self.pop_if(chain, |_| true))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn chains_are_queues(steps in prop::collection::vec((0..4usize, 0..3u8, any::<u8>()), 0..300)) {
            let mut chains = Chains::default();
            let mut queues: [(Chain, VecDeque<u8>); 4] = Default::default();
            for (which, what, item) in steps {
                let (chain, queue) = &mut queues[which];
                match what {
                    0 => prop_assert_eq!(chains.pop_if(chain, |first| first % 4 > 0), queue.pop_front_if(|first| *first % 4 > 0)),
                    1 if item == 0 => prop_assert!(chains.drain(chain).eq(queue.drain(..))),
                    _ => {
                        chains.push(chain, item);
                        queue.push_back(item);
                    }
                }
                prop_assert_eq!(chain.is_empty(), queue.is_empty());
                prop_assert_eq!(chains.len, queues.iter().map(|(_, queue)| queue.len()).sum::<usize>());
            }
            for (chain, queue) in &mut queues {
                prop_assert!(chains.drain(chain).eq(queue.drain(..)));
            }
        }
    }

    #[test]
    fn a_burst_gives_its_memory_back() {
        let mut chains = Chains::default();
        let (mut a, mut b) = (Chain::default(), Chain::default());
        for n in 0..KEPT {
            chains.push(&mut a, n);
            chains.push(&mut b, n);
        }
        assert!(chains.drain(&mut a).eq(0..KEPT));
        assert_eq!(chains.places.len(), 2 * KEPT);
        assert!(chains.drain(&mut b).eq(0..KEPT));
        assert_eq!(chains.places.capacity(), 0);
        chains.push(&mut a, 7);
        assert!(chains.drain(&mut a).eq([7]) && chains.places.len() == 1);
    }
}
