//! What a replica costs: bytes while idle, allocations while busy. Counts per thread, so that the test
//! harness does not disturb it.

mod steady;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use polyraft_raft::*;

struct Counting;

thread_local! {
    static LIVE_BYTES: Cell<isize> = const { Cell::new(0) };
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

fn count(bytes: isize, allocations: usize) {
    // A thread that is being torn down is none of ours.
    let _ = LIVE_BYTES.try_with(|live| live.set(live.get() + bytes));
    let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + allocations));
}

// SAFETY: every call is passed on unchanged to the system's allocator; counting does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize, 1);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize), 0);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size as isize - layout.size() as isize, 1);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn an_idle_follower_takes_at_most_416_bytes() {
    let (settings, alive) = (Settings::default(), steady::alive());
    let env = Env {
        now: Tick(0),
        settings: &settings,
        alive: &alive,
    };
    let mut out = Outbox::default();
    let mut groups: Vec<Group> = Vec::with_capacity(64);
    out.writes.reserve(256);
    out.sends.reserve(256);
    out.timers.reserve(256);
    out.applies.reserve(256);
    let before = LIVE_BYTES.get();
    for _ in 0..64 {
        let mut group = steady::replica(&env, &mut out);
        // It has seen three terms and some entries, and is at rest now.
        for term in 1..4 {
            steady::follow(&mut group, &env, term, &mut out);
            let message = steady::append(&group, term, 9);
            steady::tell(&mut group, &env, 2, message, &mut out);
            let through = out.writes.last().expect("it wrote").id;
            group.step(&env, Event::Durable { through }, &mut out);
            out.clear();
        }
        assert!(group.is_quiet());
        groups.push(group);
    }
    let heap = (LIVE_BYTES.get() - before) as usize / 64;
    let whole = heap + size_of::<Group>();
    assert!(
        whole <= 416,
        "{} bytes in place and {heap} on the heap",
        size_of::<Group>()
    );
}

#[test]
fn a_busy_leader_and_a_busy_follower_allocate_nothing() {
    let (settings, alive) = (Settings::default(), steady::alive());
    let mut env = Env {
        now: Tick(0),
        settings: &settings,
        alive: &alive,
    };
    let mut out = Outbox::default();
    let mut leader = steady::replica(&env, &mut out);
    let mut follower = steady::replica(&env, &mut out);
    steady::elect(&mut leader, &env, &mut out);
    steady::follow(&mut follower, &env, 1, &mut out);
    let mut start = 0;
    for round in 0..10_000_u64 {
        if round == 1_000 {
            start = ALLOCATIONS.get();
        }
        env.now = env.now.after(1_000);
        out.clear();
        let written = steady::propose(&mut leader, &env, &mut out);
        let sent = out
            .sends
            .iter()
            .find(|s| s.to == NodeId(3))
            .map(|s| s.message);
        leader.step(&env, Event::Timer, &mut out);
        leader.step(&env, Event::Durable { through: written }, &mut out);
        if let Some(message) = sent {
            out.writes.clear();
            steady::tell(&mut follower, &env, 2, message, &mut out);
            if let Some(write) = out.writes.last().copied() {
                follower.step(&env, Event::Durable { through: write.id }, &mut out);
            }
        }
        steady::acknowledge(&mut leader, &env, &mut out);
    }
    assert_eq!(ALLOCATIONS.get() - start, 0, "allocations in 9,000 rounds");
    assert!(leader.committed() > Index(70_000) && follower.last().index > Index(70_000));
}
