//! The process's allocator, and when it gives freed memory back to the system.

use std::time::Duration;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The allocator's option for how long freed memory is kept before it goes back to the system.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;

/// How long freed memory is kept.
const KEPT: Duration = Duration::from_secs(10);

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
