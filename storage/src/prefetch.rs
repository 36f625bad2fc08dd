//! Asks the processor for memory before it is needed.
//! It must never change what a program does, only when it waits.

/// How far a walk over many groups looks ahead to load what belongs to one.
pub const PREFETCH_AHEAD: usize = 8;

/// How far it looks ahead for what that leads to.
pub const PREFETCH_SOON: usize = 4;

/// What a processor fetches as a whole.
const LINE_BYTES: usize = 64;

/// Starts to load all of `value` into the caches. Groups are many and lie all over the memory, so a turn that walks over
/// them would otherwise wait for each in turn.
#[inline]
pub fn prefetch<T>(value: &T) {
    let start = std::ptr::from_ref(value).cast::<i8>();
    for offset in (0..size_of::<T>()).step_by(LINE_BYTES) {
        prefetch_line(start.wrapping_add(offset));
    }
}

#[cfg(target_arch = "x86_64")]
#[inline]
fn prefetch_line(line: *const i8) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    // SAFETY: a prefetch reads nothing; any address is allowed.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(line) }
}

/// Other processors do without.
#[cfg(not(target_arch = "x86_64"))]
#[inline]
fn prefetch_line(_line: *const i8) {}
