//! Owns the bytes of a simulated file as sparse pages that versions share. Must never copy a page before somebody changes it.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

/// What versions of a file share or do not.
pub(super) const PAGE: usize = 4096;
/// What the hardware writes as a whole.
pub(super) const SECTOR: usize = 512;
/// Sectors of a page: one bit each of a `u8`.
pub(super) const SECTORS: usize = PAGE / SECTOR;

type Page = [u8; PAGE];

/// Bytes of a file. A page that is `None` is all zeros, and so is everything behind `len`.
#[derive(Clone, Default)]
pub(super) struct Pages {
    pages: Vec<Option<Arc<Page>>>,
    len: usize,
}

impl Pages {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// `len` zeros.
    pub(super) fn zeros(len: usize) -> Self {
        Self {
            pages: vec![None; len.div_ceil(PAGE)],
            len,
        }
    }

    pub(super) fn from_slice(bytes: &[u8]) -> Self {
        let mut pages = Self::default();
        pages.write(0, bytes);
        pages
    }

    /// Cuts the end off, or adds zeros.
    pub(super) fn set_len(&mut self, len: usize) {
        self.pages.resize(len.div_ceil(PAGE), None);
        let rest = len % PAGE;
        if len < self.len
            && rest > 0
            && let Some(Some(page)) = self.pages.last_mut()
        {
            Arc::make_mut(page)[rest..].fill(0);
        }
        self.len = len;
    }

    pub(super) fn write(&mut self, offset: usize, bytes: &[u8]) {
        let end = offset + bytes.len();
        if end > self.len {
            self.set_len(end);
        }
        let mut at = offset;
        while at < end {
            let (number, start) = (at / PAGE, at % PAGE);
            let size = (PAGE - start).min(end - at);
            let source = &bytes[at - offset..at - offset + size];
            match (&mut self.pages[number], <&Page>::try_from(source)) {
                (page, Ok(whole)) => *page = Some(Arc::new(*whole)),
                (Some(page), Err(_)) => {
                    Arc::make_mut(page)[start..start + size].copy_from_slice(source)
                }
                (page, Err(_)) => {
                    let mut fresh = [0; PAGE];
                    fresh[start..start + size].copy_from_slice(source);
                    *page = Some(Arc::new(fresh));
                }
            }
            at += size;
        }
    }

    pub(super) fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.pages.len() * PAGE];
        for (page, into) in self.pages.iter().zip(bytes.chunks_exact_mut(PAGE)) {
            if let Some(page) = page {
                into.copy_from_slice(&**page);
            }
        }
        bytes.truncate(self.len);
        bytes
    }

    /// A range as it is now. Panics beyond the end.
    pub(super) fn read(&self, offset: usize, bytes: usize) -> Bytes {
        let end = offset + bytes;
        assert!(
            end <= self.len,
            "{bytes} bytes at {offset} are outside the file"
        );
        let (number, start) = (offset / PAGE, offset % PAGE);
        if start + bytes <= PAGE {
            return match self.pages.get(number) {
                Some(Some(page)) => Bytes::copy_from_slice(&page[start..start + bytes]),
                _ => Bytes::from_static(&[0; PAGE]).slice(..bytes),
            };
        }
        let mut read = vec![0; bytes];
        let mut at = offset;
        while at < end {
            let start = at % PAGE;
            let size = (PAGE - start).min(end - at);
            if let Some(page) = &self.pages[at / PAGE] {
                read[at - offset..at - offset + size].copy_from_slice(&page[start..start + size]);
            }
            at += size;
        }
        read.into()
    }

    /// Takes a page over from another version of the file; zeros behind its end.
    pub(super) fn share_page(&mut self, from: &Self, page: usize) {
        self.reach(from, (page + 1) * PAGE);
        self.pages[page] = from.pages.get(page).cloned().flatten();
    }

    /// Takes the sectors of `mask` over from another version of the file.
    pub(super) fn copy_sectors(&mut self, from: &Self, page: usize, mask: u8) {
        for sector in sectors(mask) {
            let range = sector_range(page, sector);
            self.reach(from, range.end);
            let end = range.end.min(from.len);
            if range.start < end {
                self.write(range.start, &from.read(range.start, end - range.start));
            }
        }
    }

    /// Makes the sectors of `mask` read as zeros.
    pub(super) fn zero_sectors(&mut self, from: &Self, page: usize, mask: u8) {
        for sector in sectors(mask) {
            let range = sector_range(page, sector);
            self.reach(from, range.end);
            let end = range.end.min(self.len);
            if range.start < end {
                self.write(range.start, &[0; SECTOR][..end - range.start]);
            }
        }
    }

    /// Grows to `end`, but not beyond the end of `from`.
    fn reach(&mut self, from: &Self, end: usize) {
        let end = end.min(from.len);
        if end > self.len {
            self.set_len(end);
        }
    }

    /// Pages with something in them, by number.
    pub(super) fn filled(&self) -> impl Iterator<Item = usize> + '_ {
        let is_filled = |page: &Page| page.iter().any(|byte| *byte != 0);
        let pages = self.pages.iter().enumerate();
        pages
            .filter(move |(_, page)| page.as_deref().is_some_and(is_filled))
            .map(|(at, _)| at)
    }
}

/// Numbers of the sectors in a mask.
pub(super) fn sectors(mask: u8) -> impl Iterator<Item = usize> {
    (0..SECTORS).filter(move |sector| mask & 1 << sector != 0)
}

fn sector_range(page: usize, sector: usize) -> Range<usize> {
    let start = page * PAGE + sector * SECTOR;
    start..start + SECTOR
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_cut_off_reads_as_zeros_when_the_file_grows_again() {
        let mut pages = Pages::from_slice(&[7; PAGE + 100]);
        let before = pages.clone();
        pages.set_len(PAGE + 10);
        pages.set_len(2 * PAGE);
        let mut expected = vec![7; PAGE + 10];
        expected.resize(2 * PAGE, 0);
        assert_eq!(pages.to_vec(), expected);
        assert_eq!(pages.read(PAGE - 5, 20)[..], expected[PAGE - 5..PAGE + 15]);
        assert_eq!(before.to_vec(), vec![7; PAGE + 100]);
    }

    #[test]
    fn a_write_changes_its_range_and_no_other_version() {
        let mut pages = Pages::zeros(3 * PAGE);
        let before = pages.clone();
        pages.write(PAGE - 3, &[9; PAGE + 6]);
        let mut expected = vec![0; 3 * PAGE];
        expected[PAGE - 3..2 * PAGE + 3].fill(9);
        assert_eq!(pages.to_vec(), expected);
        assert_eq!(before.to_vec(), vec![0; 3 * PAGE]);
        assert_eq!(pages.filled().collect::<Vec<_>>(), [0, 1, 2]);
    }
}
