//! Owns one simulated file: what everybody reads, what is on stable storage, and which sectors differ because no sync covered
//! them. Must never let a sync cover more than it was asked to.

use std::collections::BTreeSet;
use std::ops::Range;

use super::loss::{Fate, Keep};
use super::pages::{PAGE, Pages, SECTOR, SECTORS, sectors};

#[derive(Clone, Default)]
pub(super) struct SimFile {
    pub(super) current: Pages,
    pub(super) durable: Pages,
    /// By page, the sectors of `current` that no sync has covered. May be shorter than the file.
    dirty: Vec<u8>,
    /// The dirty pages lie in here.
    span: Range<usize>,
    /// Pages whose clean sectors may differ between the two versions, because a sync failed or a write went astray.
    astray: BTreeSet<usize>,
    /// The file was shortened to this length, and no sync has covered that.
    shortened: Option<usize>,
}

impl SimFile {
    /// Whether nothing is left to sync and both versions are the same.
    pub(super) fn is_settled(&self) -> bool {
        self.span.is_empty() && self.astray.is_empty() && self.shortened.is_none()
    }

    /// A file in which nothing waits for a sync.
    pub(super) fn settled(bytes: Pages) -> Self {
        Self {
            current: bytes.clone(),
            durable: bytes,
            ..Self::default()
        }
    }

    pub(super) fn write(&mut self, offset: usize, bytes: &[u8]) {
        self.current.write(offset, bytes);
        self.mark(offset..offset + bytes.len());
    }

    /// Cuts everything off.
    pub(super) fn clear(&mut self) {
        self.shorten(0);
        self.current = Pages::default();
        self.dirty.clear();
        self.span = 0..0;
    }

    /// Overwrites everything with `len` zeros.
    pub(super) fn zero(&mut self, len: usize) {
        self.shorten(len);
        self.current = Pages::zeros(len);
        self.dirty.truncate(len.div_ceil(PAGE));
        self.span = 0..0;
        self.mark(0..len);
    }

    fn shorten(&mut self, len: usize) {
        if self.durable.len() > len {
            self.shortened = Some(self.shortened.map_or(len, |before| before.min(len)));
        }
    }

    fn mark(&mut self, range: Range<usize>) {
        if range.is_empty() {
            return;
        }
        let (first, last) = (range.start / SECTOR, (range.end - 1) / SECTOR);
        let pages = first / SECTORS..last / SECTORS + 1;
        if self.dirty.len() < pages.end {
            self.dirty.resize(pages.end, 0);
        }
        for page in pages.clone() {
            let from = first.saturating_sub(page * SECTORS);
            let to = (last - page * SECTORS).min(SECTORS - 1);
            self.dirty[page] |= (0xff << from) & (0xff >> (SECTORS - 1 - to)) as u8;
        }
        self.span = match self.span.is_empty() {
            true => pages,
            false => self.span.start.min(pages.start)..self.span.end.max(pages.end),
        };
    }

    /// Covers the dirty sectors of `bytes`; those that `persists` refuses count as clean from now on, as on Linux after
    /// a failed sync, but are not on stable storage.
    pub(super) fn sync(&mut self, bytes: Range<usize>, mut persists: impl FnMut(usize) -> bool) {
        if let Some(len) = self.shortened.take() {
            self.durable.set_len(len);
        }
        let pages = bytes.start / PAGE..bytes.end.div_ceil(PAGE);
        let from = self.span.start.max(pages.start);
        let to = self.span.end.min(pages.end);
        for page in from..to {
            let mask = std::mem::take(&mut self.dirty[page]);
            let kept = sectors(mask)
                .filter(|sector| persists(page * SECTORS + sector))
                .fold(0, |kept, sector| kept | 1 << sector);
            if kept != mask {
                self.astray.insert(page);
            }
            if kept == 0xff || kept == mask && mask != 0 && !self.astray.contains(&page) {
                self.durable.share_page(&self.current, page);
                self.astray.remove(&page);
            } else {
                self.durable.copy_sectors(&self.current, page, kept);
            }
        }
        if from <= self.span.start && to >= self.span.end {
            self.span = 0..0;
        } else if from <= self.span.start {
            self.span.start = self.span.start.max(to);
        } else if to >= self.span.end {
            self.span.end = self.span.end.min(from);
        }
    }

    /// Reads show what is on stable storage from now on, except where a sync is due.
    pub(super) fn forget_cached(&mut self) {
        for page in std::mem::take(&mut self.astray) {
            let dirty = self.dirty.get(page).copied().unwrap_or(0);
            match dirty {
                0 => self.current.share_page(&self.durable, page),
                dirty => {
                    let (seen, stored) = (self.current.clone(), &self.durable);
                    self.current.zero_sectors(&seen, page, !dirty);
                    self.current.copy_sectors(stored, page, !dirty);
                }
            }
        }
    }

    /// The device puts `bytes` here although they belong elsewhere. The page cache does not notice.
    pub(super) fn strike(&mut self, offset: usize, bytes: &[u8]) {
        self.durable.write(offset, bytes);
        self.astray
            .extend(offset / PAGE..(offset + bytes.len()).div_ceil(PAGE));
    }

    /// Everybody sees `bytes`, and the device never gets them.
    pub(super) fn lose_write(&mut self, offset: usize, bytes: &[u8]) {
        self.current.write(offset, bytes);
        let pages = offset / PAGE..(offset + bytes.len()).div_ceil(PAGE);
        for page in pages {
            if let Some(mask) = self.dirty.get_mut(page) {
                *mask = 0;
            }
            self.astray.insert(page);
        }
    }

    pub(super) fn after_power_cut(&self, keep: Keep, id: u64) -> Self {
        let keep = keep.of_file(id);
        let mut left = self.durable.clone();
        if let Some(len) = self.shortened
            && keep.truncates(id)
        {
            left.set_len(len);
        }
        let dirty = || {
            let masks = self.span.clone().map(|page| (page, self.dirty[page]));
            masks.flat_map(|(page, mask)| sectors(mask).map(move |sector| (page, sector)))
        };
        let count = dirty().count();
        for (at, (page, sector)) in dirty().enumerate() {
            match keep.fate(id, page * SECTORS + sector, at, count) {
                Fate::Kept => left.copy_sectors(&self.current, page, 1 << sector),
                Fate::Zeroed => left.zero_sectors(&self.current, page, 1 << sector),
                Fate::Lost => {}
            }
        }
        Self::settled(left)
    }
}
