//! Owns the shared memory of a segment, whatever it is made of: all unsafe code of this crate but the prefetch. Must never form a
//! `&mut [u8]` over it, and never a `&[u8]` over bytes that may still be written.

use std::sync::Arc;

use bytes::Bytes;
use memmap2::MmapRaw;

/// Memory that stays where it is for as long as the value lives.
///
/// # Safety
/// `start()` points to `len()` initialised bytes, always the same ones, that may be read and written through that
/// pointer from any thread, and that nobody else reaches through a Rust reference.
pub(crate) unsafe trait Memory: Send + Sync + 'static {
    fn start(&self) -> *mut u8;
    fn len(&self) -> usize;
}

// SAFETY: a raw mapping hands out its address and nothing else, is unmapped only when it is dropped, and was made with
// reading and writing allowed. The lock on the data directory keeps other processes away.
unsafe impl Memory for MmapRaw {
    fn start(&self) -> *mut u8 {
        self.as_mut_ptr()
    }

    fn len(&self) -> usize {
        MmapRaw::len(self)
    }
}

/// The bytes of a segment. Each range is written first and read ever after, until nobody holds a slice any more.
#[derive(Debug)]
pub(crate) struct Mapping<M> {
    memory: M,
}

impl<M: Memory> Mapping<M> {
    pub(crate) fn new(memory: M) -> Self {
        Self { memory }
    }

    pub(crate) fn memory(&self) -> &M {
        &self.memory
    }

    pub(crate) fn len(&self) -> usize {
        self.memory.len()
    }

    /// Panics on a range outside the memory: offsets come from checked headers, so that would be a bug here.
    pub(crate) fn check(&self, offset: u64, bytes: usize) -> usize {
        let end = usize::try_from(offset)
            .ok()
            .and_then(|offset| offset.checked_add(bytes));
        assert!(
            end.is_some_and(|end| end <= self.len()),
            "{bytes} bytes at {offset} are outside the segment"
        );
        offset as usize
    }

    /// Copies bytes in. The range must not be one that somebody holds a slice of.
    pub(crate) fn write(&self, offset: u64, bytes: &[u8]) {
        let at = self.check(offset, bytes.len());
        // SAFETY: `check` keeps the destination inside the memory, which is writable. The source is ordinary memory
        // and does not overlap it. Nobody reads the destination meanwhile: slices are handed out only for ranges
        // whose batch is complete, and one flusher writes at a time (the lane's writer lock).
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.memory.start().add(at), bytes.len())
        };
    }

    /// A slice without a copy. It keeps `owner` alive as long as it lives itself. The range must not be written any more.
    pub(crate) fn read<O>(self: &Arc<Self>, offset: u64, bytes: usize, owner: Arc<O>) -> Bytes
    where
        O: Send + Sync + 'static,
    {
        let at = self.check(offset, bytes);
        Bytes::from_owner(Slice {
            mapping: Arc::clone(self),
            _owner: owner,
            at,
            bytes,
        })
    }
}

/// Complete bytes of a segment; keeps the memory and its owner alive.
struct Slice<M, O> {
    mapping: Arc<Mapping<M>>,
    _owner: Arc<O>,
    at: usize,
    bytes: usize,
}

impl<M: Memory, O> AsRef<[u8]> for Slice<M, O> {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: the range is inside the memory (checked in `read`), which lives as long as `self.mapping`. Its bytes
        // do not change: a batch is written once and read only after its barrier (recovery reads before
        // any writer exists), and a segment is reused only after every `Slice` of it was dropped, because recycling
        // waits until the lane holds the only reference.
        unsafe { std::slice::from_raw_parts(self.mapping.memory.start().add(self.at), self.bytes) }
    }
}

/// Tests over heap memory, so that Miri can watch what it cannot see in a mapping:
/// `cargo +nightly miri test -p polyraft-storage mapping`.
#[cfg(test)]
mod tests {
    use std::cell::UnsafeCell;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    const PAGE: usize = 64;

    struct Heap(Box<[UnsafeCell<u8>]>);

    // SAFETY: all access goes through the raw pointer; whoever uses it keeps writes and reads of a byte apart.
    unsafe impl Sync for Heap {}

    // SAFETY: a boxed slice does not move, its cells may be written through a shared reference, and they are zeros first.
    unsafe impl Memory for Heap {
        fn start(&self) -> *mut u8 {
            UnsafeCell::raw_get(self.0.as_ptr())
        }

        fn len(&self) -> usize {
            self.0.len()
        }
    }

    fn heap(pages: usize) -> Arc<Mapping<Heap>> {
        let bytes = (0..pages * PAGE).map(|_| UnsafeCell::new(0));
        Arc::new(Mapping::new(Heap(bytes.collect())))
    }

    #[test]
    fn mapping_gives_back_what_was_written() {
        let mapping = heap(4);
        mapping.write(PAGE as u64, &[7; PAGE]);
        let owner = Arc::new(());
        let read = mapping.read(PAGE as u64 - 1, PAGE + 2, owner);
        assert_eq!((read[0], read[PAGE + 1]), (0, 0));
        assert_eq!(read[1..=PAGE], [7; PAGE]);
        assert_eq!(mapping.len(), 4 * PAGE);
    }

    #[test]
    fn mapping_outlives_everybody_but_its_slices() {
        let mapping = heap(1);
        mapping.write(0, b"kept");
        let owner = Arc::new("segment");
        let read = mapping.read(0, 4, Arc::clone(&owner));
        let part = read.slice(1..3);
        drop((mapping, read));
        assert_eq!((&part[..], Arc::strong_count(&owner)), (&b"ep"[..], 2));
        drop(part);
        assert_eq!(Arc::strong_count(&owner), 1);
    }

    #[test]
    fn mapping_refuses_ranges_outside() {
        let mapping = heap(1);
        for (offset, bytes) in [
            (0, PAGE + 1),
            (PAGE as u64, 1),
            (u64::MAX, 1),
            (u64::MAX, usize::MAX),
        ] {
            let read = || mapping.read(offset, bytes, Arc::new(()));
            assert!(catch_unwind(AssertUnwindSafe(read)).is_err());
        }
        let write = || mapping.write(PAGE as u64 - 1, &[1, 2]);
        assert!(catch_unwind(AssertUnwindSafe(write)).is_err());
        assert_eq!(mapping.read(0, PAGE, Arc::new(()))[..], [0; PAGE]);
    }

    /// What a lane does: one thread writes page after page, others read each page that is announced and keep their slices.
    #[test]
    fn mapping_is_written_by_one_and_read_by_many() {
        const PAGES: usize = 8;
        let mapping = heap(PAGES);
        let durable = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let mut kept = Vec::new();
                    while kept.len() < PAGES {
                        for page in kept.len()..durable.load(Ordering::Acquire) {
                            let offset = (page * PAGE) as u64;
                            kept.push(mapping.read(offset, PAGE, Arc::new(())));
                        }
                        thread::yield_now();
                    }
                    for (page, bytes) in kept.iter().enumerate() {
                        assert!(bytes.iter().all(|byte| *byte == page as u8 + 1));
                    }
                });
            }
            for page in 0..PAGES {
                mapping.write((page * PAGE) as u64, &[page as u8 + 1; PAGE]);
                durable.store(page + 1, Ordering::Release);
            }
        });
    }

    /// A segment is written again only after its last slice is gone, wherever that was dropped.
    #[test]
    fn mapping_is_used_again_once_nobody_reads_it() {
        let mapping = heap(2);
        let mut segment = Arc::new(());
        let (send, receive) = mpsc::channel::<Bytes>();
        thread::scope(|scope| {
            scope.spawn(move || {
                for slice in receive {
                    assert!(slice.iter().all(|byte| *byte == slice[0]));
                }
            });
            for round in 1..4 {
                for page in 0..2 {
                    mapping.write((page * PAGE) as u64, &[round; PAGE]);
                    let slice = mapping.read((page * PAGE) as u64, PAGE, Arc::clone(&segment));
                    assert_eq!(slice[0], round);
                    send.send(slice).unwrap();
                }
                // As the pool does. Counting references would not order the last read before the next write.
                while Arc::get_mut(&mut segment).is_none() {
                    thread::yield_now();
                }
            }
            drop(send);
        });
    }
}
