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

/// How long freed memory is kept by a process that measures a load: what one checkpoint has freed is there for the next one.
pub const KEPT_UNDER_LOAD: Duration = Duration::from_secs(60);

/// A load frees and takes megabytes thousands of times a second; by default the allocator gives them back to the
/// system in between, and the fresh pages have to be cleared each time. To be called before other threads run.
pub fn keep_freed_memory(time: Duration) {
    // SAFETY: changing an option is not thread-safe, and no other thread runs yet.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, time.as_millis() as _) };
    // The allocator looks at what it keeps when somebody allocates. Where nobody does, it would keep it for ever.
    let look = move || {
        loop {
            std::thread::sleep(time);
            // SAFETY: may be called at any time, by any thread.
            unsafe { libmimalloc_sys::mi_collect(false) };
        }
    };
    let thread = std::thread::Builder::new().name("allocator".to_owned());
    // Without it memory is kept for longer, and nothing else is different.
    let _ = thread.spawn(look);
}

/// The most that can be populated: what the allocator reserves at once.
pub const MOST: u64 = 1 << 30;

/// Has the system back memory that the allocator has reserved and gives out from here on: `bytes`, [`MOST`] at most, from the
/// beginning of the area that it takes from.
///
/// Memory costs the most when it is touched for the first time, and that is in the middle of whatever a thread does: where a
/// machine's host finds the page only then, 2 MiB take milliseconds. A process that has run for long has that behind it.
///
/// # Errors
/// When the system can't do that (Linux before 5.14), or when the allocator has not reserved so much. Nobody should ask for more than
/// there is: the system may end a process rather than say no.
pub fn populate(bytes: u64) -> io::Result<()> {
    if bytes == 0 {
        return Ok(());
    }
    let area = area()?;
    let reserved = area.len() as u64;
    if bytes > reserved {
        let text = format!("the allocator has reserved {reserved} bytes only");
        return Err(io::Error::other(text));
    }
    let start: *mut c_void = std::ptr::with_exposed_provenance_mut(area.start);
    // SAFETY: it changes the contents of no memory; where there is none any more it fails.
    unsafe { madvise(start, bytes as usize, Advice::LinuxPopulateWrite)? };
    Ok(())
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
}
