//! What an idle replica takes: bytes of heap, counted by the allocator of this process. A count, and no time: it is the same on
//! every machine. One test only, because everything in the process is counted.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use polyraft_tests::{Cluster, small_config, until};

/// The system's allocator, which counts the bytes that are in use.
struct Counting;

static IN_USE: AtomicUsize = AtomicUsize::new(0);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: every call goes to the system's allocator as it is; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        IN_USE.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps to the contract of this function, which is that of the one called.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        IN_USE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the same.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// Just below a power of two: lists that double have hardly any room left. Room that was never touched takes no memory, but
/// counts here.
const GROUPS: u64 = 4_000;

/// Bytes of heap that a replica may take while its group is idle, whether it leads or follows.
const MOST: usize = 1024;

#[tokio::test]
async fn an_idle_replica_takes_less_than_a_kibibyte() {
    let cluster = Cluster::start(3, small_config()).await;
    let creator = cluster.node(1);
    creator.create_groups(0..1, &[1, 2, 3]).await.unwrap();
    cluster.led(0..1).await;
    let before = IN_USE.load(Ordering::Relaxed);
    creator.create_groups(0..GROUPS, &[1, 2, 3]).await.unwrap();
    cluster.led(0..GROUPS).await;
    let each = || IN_USE.load(Ordering::Relaxed).saturating_sub(before) / (3 * GROUPS as usize);
    // A node that was busy takes a moment until it gives back what it does not need.
    let what = format!("a replica takes less than {MOST} bytes");
    until(&what, async || each() < MOST).await;
}
