//! The process's allocator: when it gives freed memory back to the system, and what of its memory the system backs beforehand.

use std::ffi::c_void;
use std::io;
use std::ops::Range;
use std::time::Duration;

use rustix::mm::{Advice, madvise};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The allocator's option for how long freed memory is kept before it goes back to the system.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;

/// How long freed memory is kept.
const KEPT: Duration = Duration::from_secs(60);

/// A load frees and takes megabytes thousands of times a second; by default the allocator gives them back to the
/// system in between, and the fresh pages have to be cleared each time. To be called before other threads run.
pub fn keep_freed_memory_for_a_while() {
    // SAFETY: changing an option is not thread-safe, and no other thread runs yet.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, KEPT.as_millis() as _) };
    // The allocator looks at what it keeps when somebody allocates. Where nobody does, it would keep it for ever.
    let look = || {
        loop {
            std::thread::sleep(KEPT);
            // SAFETY: may be called at any time, by any thread.
            unsafe { libmimalloc_sys::mi_collect(false) };
        }
    };
    let thread = std::thread::Builder::new().name("allocator".to_owned());
    // Without it memory is kept for longer, and nothing else is different.
    let _ = thread.spawn(look);
}

/// Takes in what other threads freed of this thread's memory, which an idle thread never does by itself, and gives back to the
/// system what nobody uses.
pub fn give_back() {
    // SAFETY: may be called at any time, by any thread.
    unsafe { libmimalloc_sys::mi_collect(true) };
}

/// Has the system back memory that the allocator has reserved and gives out from here on: `bytes` from the beginning of the area
/// that it takes from, or all of that area. Returns how many bytes are backed.
///
/// Memory costs the most when it is touched for the first time, and that is in the middle of whatever a thread does: where a
/// machine's host finds the page only then, 2 MiB take milliseconds. A process that has run for long has that behind it.
///
/// # Errors
/// When the system can't do that (Linux before 5.14), or has not so much memory.
pub fn populate(bytes: u64) -> io::Result<u64> {
    let area = area()?;
    let bytes = usize::try_from(bytes).unwrap_or(usize::MAX).min(area.len());
    let start: *mut c_void = std::ptr::with_exposed_provenance_mut(area.start);
    // SAFETY: it changes nothing in memory, and the allocator never unmaps an area that it has reserved.
    unsafe { madvise(start, bytes, Advice::LinuxPopulateWrite)? };
    Ok(bytes as u64)
}

/// The memory that the allocator takes from: the mapping that holds what it has just given out.
fn area() -> io::Result<Range<usize>> {
    let probe = Box::new(0u64);
    let place = (&raw const *probe).expose_provenance();
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    let area = maps
        .lines()
        .filter_map(parse_mapping)
        .find(|area| area.contains(&place));
    area.ok_or_else(|| io::Error::other("no mapping holds what was allocated"))
}

/// The addresses of a mapping, in a line of `/proc/self/maps` (proc_pid_maps(5)).
fn parse_mapping(line: &str) -> Option<Range<usize>> {
    let (start, end) = line.split_once(' ')?.0.split_once('-')?;
    let address = |text| usize::from_str_radix(text, 16).ok();
    Some(address(start)?..address(end)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapping_is_read() {
        let line = "20000000000-20040000000 rw-p 00000000 00:00 0 ";
        assert_eq!(parse_mapping(line), Some(0x200_0000_0000..0x200_4000_0000));
        assert_eq!(parse_mapping("20000000000"), None);
    }

    /// Which of the pages of `area` are in memory: one byte a page (proc_pid_pagemap(5) says so for every process of one's own).
    fn backed(area: Range<usize>) -> usize {
        use std::os::unix::fs::FileExt;
        let page = rustix::param::page_size();
        let mut entries = vec![0; (area.end - area.start) / page * 8];
        let pagemap = std::fs::File::open("/proc/self/pagemap").unwrap();
        pagemap
            .read_exact_at(&mut entries, (area.start / page * 8) as u64)
            .unwrap();
        let is_present = |entry: &&[u8]| entry[7] >> 7 == 1;
        page * entries.chunks_exact(8).filter(is_present).count()
    }

    #[test]
    fn what_is_populated_is_backed_and_is_what_the_allocator_gives_out() {
        const BYTES: usize = 96 << 20;
        let populated = populate(BYTES as u64).unwrap();
        assert_eq!(populated, BYTES as u64);
        let start = area().unwrap().start;
        let area = start..start + BYTES;
        assert_eq!(backed(area.clone()), BYTES);
        let given: Vec<Box<[u8; 32 << 10]>> = (0..256).map(|_| Box::new([1; 32 << 10])).collect();
        let inside = given
            .iter()
            .filter(|part| area.contains(&(&raw const ***part).expose_provenance()));
        assert_eq!(inside.count(), given.len());
    }
}
