//! Owns the recent turns of a shard: those on their way to the disk, and as many older ones as the cache may hold.
//! Must never forget a turn before its place on disk is known.

use std::collections::VecDeque;

use bytes::Bytes;
use polyraft_raft::{GroupId, Index};

use crate::batch::Tally;
use crate::index::turn_number;

/// A piece of a turn: the part that goes into one batch as a whole. Most turns are one piece.
#[derive(Debug)]
pub(crate) struct TurnPiece {
    pub(crate) bytes: Bytes,
    pub(crate) tally: Tally,
    /// Groups with blocks in it, possibly more than once.
    pub(crate) groups: Vec<GroupId>,
    /// Blocks that were moved into it, by group and first index.
    pub(crate) moved: Vec<(GroupId, Index)>,
    /// Segment and offset, once it is durable.
    pub(crate) place: Option<(u64, u32)>,
}

/// Turn pieces by number; the front ones are placed, in rising order of place.
pub(crate) struct Tail {
    pieces: VecDeque<TurnPiece>,
    /// Number of the front piece.
    first: u64,
    placed: usize,
    bytes: usize,
    limit: usize,
}

impl Tail {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            pieces: VecDeque::new(),
            first: 0,
            placed: 0,
            bytes: 0,
            limit,
        }
    }

    /// Number that the next piece gets.
    pub(crate) fn next(&self) -> u64 {
        self.first + self.pieces.len() as u64
    }

    /// Number of the oldest piece without a place.
    pub(crate) fn unplaced(&self) -> u64 {
        self.first + self.placed as u64
    }

    pub(crate) fn push(&mut self, piece: TurnPiece) {
        self.bytes += piece.bytes.len();
        self.pieces.push_back(piece);
    }

    /// Pieces from number `from` on.
    pub(crate) fn since(&self, from: u64) -> impl Iterator<Item = (u64, &TurnPiece)> + Clone {
        let skip = (from - self.first) as usize;
        (from..).zip(self.pieces.range(skip..))
    }

    /// Notes where the oldest unplaced piece went and hands it out.
    pub(crate) fn place(&mut self, turn: u64, segment: u64, offset: u32) -> &mut TurnPiece {
        assert!(
            turn == self.unplaced(),
            "turn {turn} became durable before turn {}",
            self.unplaced()
        );
        let piece = &mut self.pieces[self.placed];
        piece.place = Some((segment, offset));
        self.placed += 1;
        piece
    }

    /// Drops placed pieces, oldest first, down to the limit, and those without blocks: nobody reads them again.
    pub(crate) fn evict(&mut self) {
        self.evict_to(self.limit);
    }

    /// Drops all placed pieces, and the room that they took.
    pub(crate) fn trim(&mut self) {
        self.evict_to(0);
        self.pieces.shrink_to_fit();
    }

    fn evict_to(&mut self, limit: usize) {
        let is_dull = |piece: &TurnPiece| piece.tally.blocks == 0;
        while self.placed > 0 && (self.bytes > limit || self.pieces.front().is_some_and(is_dull)) {
            if let Some(piece) = self.pieces.pop_front() {
                self.bytes -= piece.bytes.len();
            }
            self.placed -= 1;
            self.first += 1;
        }
    }

    /// The piece with a number that ends in `tag`, unless it is gone or still being filled.
    pub(crate) fn in_turn(&self, tag: u32) -> Option<(u64, &Bytes)> {
        let turn = turn_number(tag, self.next() + 1)?;
        let piece = self.pieces.get(turn.checked_sub(self.first)? as usize)?;
        Some((turn, &piece.bytes))
    }

    /// Whether that piece holds the block that begins at `first` only because it was moved there from another place.
    pub(crate) fn has_moved(&self, tag: u32, block: (GroupId, Index)) -> bool {
        let turn = turn_number(tag, self.next() + 1);
        let at = turn.and_then(|turn| turn.checked_sub(self.first));
        let piece = at.and_then(|at| self.pieces.get(at as usize));
        piece.is_some_and(|piece| piece.moved.contains(&block))
    }

    /// The piece that holds a block which has a place, if it is still here, and where in the piece that is.
    pub(crate) fn in_segment(
        &self,
        segment: u64,
        offset: u32,
        bytes: u32,
    ) -> Option<(u64, &Bytes, u32)> {
        let behind = partition(&self.pieces, self.placed, |piece| {
            piece.place <= Some((segment, offset))
        });
        let at = behind.checked_sub(1)?;
        let piece = self.pieces.get(at)?;
        let (in_segment, start) = piece.place?;
        let begin = offset.checked_sub(start)?;
        let is_inside = (begin + bytes) as usize <= piece.bytes.len();
        (in_segment == segment && is_inside).then_some((
            self.first + at as u64,
            &piece.bytes,
            begin,
        ))
    }
}

/// First of the first `len` pieces for which `before` is false. What is looked for was as a rule among the last, so it is searched
/// from there, in steps that double.
fn partition(
    pieces: &VecDeque<TurnPiece>,
    len: usize,
    before: impl Fn(&TurnPiece) -> bool,
) -> usize {
    let (mut high, mut step) = (len, 1);
    let mut low = loop {
        match len.checked_sub(step) {
            Some(at) if before(&pieces[at]) => break at + 1,
            Some(at) => high = at,
            None => break 0,
        }
        step *= 2;
    };
    while low < high {
        let middle = (low + high) / 2;
        if before(&pieces[middle]) {
            low = middle + 1
        } else {
            high = middle
        }
    }
    low
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_is_found_among_any_number_of_pieces() {
        for len in 0..40 {
            let mut tail = Tail::new(usize::MAX);
            for turn in 0..len {
                tail.push(TurnPiece {
                    bytes: Bytes::from_static(&[0; 10]),
                    tally: Tally::default(),
                    groups: Vec::new(),
                    moved: Vec::new(),
                    place: None,
                });
                tail.place(turn, turn / 16, (turn % 16) as u32 * 20);
            }
            for turn in 0..len {
                let (segment, start) = (turn / 16, (turn % 16) as u32 * 20);
                let found = |offset, bytes| {
                    let found = tail.in_segment(segment, offset, bytes);
                    found.map(|(turn, _, begin)| (turn, begin))
                };
                assert_eq!(found(start, 10), Some((turn, 0)));
                assert_eq!(found(start + 4, 6), Some((turn, 4)));
                assert_eq!(found(start + 4, 7), None);
            }
            assert!(tail.in_segment(len, 0, 1).is_none());
        }
    }
}
