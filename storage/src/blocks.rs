//! Owns blocks that were read together, for sending or applying: which bytes they are, and the memory those are in.
//! Must never take a share in memory for each block: neighbours of one turn have one share between them.

use std::ops::Range;

use bytes::{Bytes, BytesMut};
use polyraft_raft::{GroupId, Index, Term};

use crate::block::{EntryBlock, EntryKind};
use crate::error::{BlockError, ReadError};

/// Blocks read from a log, in the order in which they were read. Made to be cleared and filled again.
///
/// The memory of the log that they are in stays until they are cleared, whatever is purged meanwhile.
#[derive(Clone, Debug, Default)]
pub struct Blocks {
    /// Memory, and the turn piece that it is if it is one.
    memory: Vec<(Option<u64>, Bytes)>,
    spans: Vec<Span>,
    /// Those that nobody has looked at yet, by their number.
    unread: Vec<(usize, Stored)>,
}

/// What the log's index knows of a block on the disk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stored {
    pub(crate) group: GroupId,
    pub(crate) term: Term,
    pub(crate) first: Index,
    /// Entries in the encoded block.
    pub(crate) packed: u32,
    pub(crate) segment: u64,
    pub(crate) offset: u32,
}

impl Stored {
    /// Why the block is damaged.
    pub(crate) fn damaged(&self, reason: BlockError) -> ReadError {
        ReadError::Damaged {
            group: self.group,
            segment: self.segment,
            offset: u64::from(self.offset),
            reason,
        }
    }

    /// Checks that these bytes are that block.
    pub(crate) fn check(&self, bytes: &[u8]) -> Result<(), ReadError> {
        let damaged = |reason| self.damaged(reason);
        let parsed = EntryBlock::parse(bytes).map_err(damaged)?;
        let is_it =
            (parsed.group(), parsed.term(), parsed.first()) == (self.group, self.term, self.first);
        if !is_it || parsed.end().0 - parsed.first().0 != u64::from(self.packed) {
            return Err(damaged(BlockError::Range));
        }
        Ok(())
    }
}

#[derive(Clone, Copy, Debug)]
struct Span {
    memory: u32,
    offset: u32,
    bytes: u32,
}

impl Blocks {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.spans.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// Forgets all of them, and lets go of their memory.
    pub fn clear(&mut self) {
        self.spans.clear();
        self.memory.clear();
        self.unread.clear();
    }

    /// Forgets all blocks but the first `len`.
    pub fn truncate(&mut self, len: usize) {
        self.spans.truncate(len);
        let kept = self.unread.partition_point(|(at, _)| *at < len);
        self.unread.truncate(kept);
    }

    /// Whether nobody has looked at block number `at` since it was written: then [`Blocks::check`] comes before anything else is
    /// asked about it.
    pub fn is_unread(&self, at: usize) -> bool {
        !self.unread.is_empty() && self.unread.binary_search_by_key(&at, |(at, _)| *at).is_ok()
    }

    /// Whether any of them is.
    pub fn have_unread(&self) -> bool {
        !self.unread.is_empty()
    }

    /// Reads the blocks with these numbers that are unread, and checks that they are what was written. Waits for the disk.
    ///
    /// # Errors
    /// [`ReadError::Damaged`] for the first one that is not.
    pub fn check(&self, range: Range<usize>) -> Result<(), ReadError> {
        let from = self.unread.partition_point(|(at, _)| *at < range.start);
        let unread = self.unread[from..].iter();
        unread
            .take_while(|(at, _)| *at < range.end)
            .try_for_each(|(at, stored)| stored.check(self.bytes(*at)))
    }

    /// Encoded bytes of the blocks with these numbers.
    pub fn bytes_of(&self, range: Range<usize>) -> usize {
        self.spans[range]
            .iter()
            .map(|span| span.bytes as usize)
            .sum()
    }

    /// Block number `at`. Panics when there is none.
    pub fn get(&self, at: usize) -> EntryBlock<'_> {
        EntryBlock::trusted(self.bytes(at))
    }

    /// What the entries of block number `at` are for. Panics when there is none.
    pub fn kind(&self, at: usize) -> EntryKind {
        EntryBlock::kind_of(self.bytes(at))
    }

    /// The encoded block number `at`. Panics when there is none.
    pub fn bytes(&self, at: usize) -> &[u8] {
        let span = self.spans[at];
        let (_, memory) = &self.memory[span.memory as usize];
        &memory[span.offset as usize..][..span.bytes as usize]
    }

    /// The memory that block number `at` is a part of.
    pub fn memory(&self, at: usize) -> &Bytes {
        &self.memory[self.spans[at].memory as usize].1
    }

    /// All of them.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = EntryBlock<'_>> {
        (0..self.len()).map(|at| self.get(at))
    }

    /// Cuts what sticks out of `first..end` off the first and the last of the blocks from number `from` on.
    ///
    /// # Errors
    /// [`BlockError::Range`] when the first of those blocks begins behind the range, the last one ends before it, or there
    /// are none.
    pub fn trim(&mut self, from: usize, first: Index, end: Index) -> Result<(), BlockError> {
        if from >= self.len() {
            return Err(BlockError::Range);
        }
        let last = self.len() - 1;
        let (begins, ends) = (self.get(from).first(), self.get(last).end());
        if begins > first || ends < end {
            return Err(BlockError::Range);
        }
        if begins < first {
            self.cut(from, first, self.get(from).end())?;
        }
        if ends > end {
            self.cut(last, self.get(last).first(), end)?;
        }
        Ok(())
    }

    /// Adds a block that lies in turn piece `turn`, whose bytes are `piece`.
    pub(crate) fn push_shared(&mut self, turn: u64, piece: &Bytes, offset: u32, bytes: u32) {
        // Blocks come from the pieces of a few turns, and mostly from that of the one before.
        const NEWEST: usize = 4;
        let oldest = self.memory.len().saturating_sub(NEWEST);
        let newest = &self.memory[oldest..];
        let known = newest.iter().rposition(|(known, _)| *known == Some(turn));
        let memory = match known {
            Some(at) => oldest + at,
            None => {
                self.memory.push((Some(turn), piece.clone()));
                self.memory.len() - 1
            }
        };
        self.spans.push(Span {
            memory: memory as u32,
            offset,
            bytes,
        });
    }

    /// Adds a block on the disk without a look at it.
    pub(crate) fn push_unread(&mut self, block: Bytes, stored: Stored) {
        self.unread.push((self.spans.len(), stored));
        self.push(block);
    }

    /// Adds a block that has memory of its own.
    pub(crate) fn push(&mut self, block: Bytes) {
        let span = self.own(block);
        self.spans.push(span);
    }

    /// Replaces block number `at` by a copy of its entries `first..end`.
    pub(crate) fn cut(&mut self, at: usize, first: Index, end: Index) -> Result<(), BlockError> {
        let mut part = BytesMut::new();
        self.get(at).cut(first, end, &mut part)?;
        self.spans[at] = self.own(part.freeze());
        Ok(())
    }

    fn own(&mut self, block: Bytes) -> Span {
        let bytes = block.len() as u32;
        self.memory.push((None, block));
        Span {
            memory: (self.memory.len() - 1) as u32,
            offset: 0,
            bytes,
        }
    }
}
