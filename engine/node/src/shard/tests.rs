//! What a shard does when its log can't be read: no part of it may go on with what comes behind a gap. And what its bounds
//! hold when a replica is quarantined, and how many replicas campaign at a time.

use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use polyraft_raft::{
    Apply, Configuration, EntryRange, Event, GroupId, HardState, Index, Life, LogPosition, Message,
    NodeId, Term, Tick,
};
use polyraft_storage::sim::SimDisk;
use polyraft_storage::{DataDir, Disk as _, Durable, EntryKind, Tombstone, WalOptions};
use polyraft_transport::{LoopbackHub, Network};

use super::campaigns::AT_ONCE;
use super::split::tests::Alone;
use super::{BUSY_EVENTS, MergeEvent, PROPOSAL_OVERHEAD, Payloads, Shard, Shared, SplitEvent};
use crate::apply::Task;
use crate::assembly::{Assembly, Parts, Place, applier, keeper};
use crate::clock::Clock;
use crate::completion::CompletionQueue;
use crate::config::Config;
use crate::error::{Error, MachineError};
use crate::event::{CreateOrigin, EndGrounds, ShardEvent};
use crate::group::Read as How;
use crate::machine::{Entry, FrozenState, Replies, StateMachine};
use crate::mailbox::Mailbox;

pub(super) const GROUP: GroupId = GroupId(7);

/// A disk with a log in which one group has two entries, each in a block of its own.
fn disk_with_two_blocks(path: &Path) -> SimDisk {
    disk_with(
        path,
        &[
            (EntryKind::Normal, b"the first entry"),
            (EntryKind::Normal, b"the second entry"),
        ],
    )
}

/// A disk with a log in which a group, of which this node is the only member, has some entries, each in a block of its own.
pub(super) fn disk_with(path: &Path, entries: &[(EntryKind, &[u8])]) -> SimDisk {
    let disk = SimDisk::new(1);
    let dir = DataDir::open(Arc::new(disk.clone()), path, "c", NodeId(1), 1).unwrap();
    let mut opened = polyraft_storage::open(&dir, &WalOptions::default(), 1).unwrap();
    let log = &mut opened.logs[0];
    log.create(GROUP, &Configuration::simple([NodeId(1)]))
        .unwrap();
    let state = HardState {
        term: Term(1),
        vote: Some(NodeId(1)),
        commit: Index(0),
    };
    log.hard_state(GROUP, state).unwrap();
    for (at, (kind, payload)) in (1..).zip(entries) {
        let (term, first) = (Term(1), Index(at));
        let end = first.next();
        let range = EntryRange { term, first, end };
        log.append(GROUP, range, *kind, [payload]).unwrap();
        log.submit().unwrap();
        while opened.wals[0].pump().unwrap() {}
    }
    disk
}

/// Flips a bit of the first entry, wherever it stands.
fn damage(disk: &SimDisk) {
    let text = b"the first entry";
    for path in disk.files() {
        let bytes = disk.read(&path).unwrap();
        if let Some(at) = bytes.windows(text.len()).position(|found| found == text) {
            return disk.flip_bits(&path, at as u64, 1);
        }
    }
    panic!("the entry is not in the log");
}

/// A node with one shard, which nobody runs.
pub(super) fn parts_on(disk: &SimDisk, path: &Path) -> (Arc<Shared>, Parts) {
    let mut config = Config::default();
    config.shards.count = 1;
    let place = Place {
        disk: Arc::new(disk.clone()),
        path,
        cluster: "c",
        node: NodeId(1),
    };
    let assembly = Assembly::open(&place, &config, Clock::start()).unwrap();
    let (shared, receiver) = (Arc::clone(&assembly.shared), Arc::clone(&assembly.router));
    let port = LoopbackHub::new().join(assembly.identity(), receiver);
    let network: Arc<dyn Network> = Arc::new(port.unwrap());
    (shared, assembly.into_parts(&config, &network, &[]))
}

/// Entries that were given to state machines of the test below.
static TAKEN: AtomicUsize = AtomicUsize::new(0);

/// Counts what it is given.
struct Taker;

impl StateMachine for Taker {
    fn open(_: GroupId, _: &Path) -> Result<(Self, Index), MachineError> {
        Ok((Taker, Index::ZERO))
    }
    fn apply(&mut self, entries: &[Entry<'_>], replies: &mut Replies) -> Result<(), MachineError> {
        TAKEN.fetch_add(entries.len(), Ordering::Relaxed);
        entries.iter().for_each(|_| replies.push([]));
        Ok(())
    }
    fn query(&self, _: &[u8]) -> Result<Bytes, MachineError> {
        Ok(Bytes::new())
    }
    fn snapshot(&self) -> Result<FrozenState, MachineError> {
        Ok(Box::new(|_| Ok(())))
    }
    fn restore(&mut self, _: Index, _: &mut dyn Read) -> Result<(), MachineError> {
        Ok(())
    }
}

#[test]
fn nothing_is_applied_behind_an_entry_that_cannot_be_read() {
    for is_damaged in [false, true] {
        let path = Path::new("/n");
        let disk = disk_with_two_blocks(path);
        let (shared, mut parts) = parts_on(&disk, path);
        let (shard, inbox) = &mut parts.shards[0];
        shard.open_recovered();
        shard.opened(GROUP, Ok(Index(0)));
        if is_damaged {
            damage(&disk);
        }
        // Both were committed in one turn, by two messages.
        shard.outbox.applies = [(1, 2), (2, 3)]
            .map(|(first, end)| Apply {
                group: GROUP,
                first: Index(first),
                end: Index(end),
            })
            .into();
        shard.dispatch_applies();
        // The worker is the one who reads them.
        assert!(shard.replicas[0].fault.is_none());
        TAKEN.store(0, Ordering::Relaxed);
        let mut applier = applier::<Taker>(path, &shared);
        while let Some(task) = parts.tasks[0].try_take() {
            applier.perform(task);
        }
        let taken = TAKEN.load(Ordering::Relaxed);
        assert_eq!(taken, if is_damaged { 0 } else { 2 });
        let mut applied = None;
        while let Some(event) = inbox.try_take() {
            if let ShardEvent::Applied(batch) = event {
                applied = Some(batch);
            }
        }
        let batch = applied.expect("the worker sends it back");
        let faults = batch.groups.iter().filter(|group| group.fault.is_some());
        assert_eq!(faults.count(), if is_damaged { 2 } else { 0 });
        if is_damaged {
            shard.applied(batch);
            assert!(shard.replicas[0].fault.is_some());
            assert!(shard.repairs.is_possible(0));
        }
    }
}

#[test]
fn the_bound_of_waiting_reads_holds_for_other_nodes_and_counts_nothing_that_was_refused() {
    let (path, disk) = (Path::new("/n"), SimDisk::new(1));
    let groups = [1, 2, 3].map(GroupId);
    {
        let dir = DataDir::open(Arc::new(disk.clone()), path, "c", NodeId(1), 1).unwrap();
        let mut opened = polyraft_storage::open(&dir, &WalOptions::default(), 1).unwrap();
        for group in groups {
            let members = Configuration::simple([NodeId(1), NodeId(2)]);
            opened.logs[0].create(group, &members).unwrap();
        }
        opened.logs[0].submit().unwrap();
        opened.wals[0].close().unwrap();
    }
    let (_shared, mut parts) = parts_on(&disk, path);
    let (shard, _) = &mut parts.shards[0];
    shard.open_recovered();
    for group in groups {
        shard.opened(group, Ok(Index(0)));
    }
    shard.limits.inbox_bytes = 10 * PROPOSAL_OVERHEAD;
    let queue = CompletionQueue::new();
    // Nobody leads, so a read that is taken waits. How many are answered, and the last of the answers?
    let answers = || {
        let mut done = Vec::new();
        queue.drain(&mut done, Duration::ZERO);
        let last = done
            .pop()
            .map(|last| last.result.expect_err("nobody leads"));
        (done.len() + usize::from(last.is_some()), last)
    };
    let read = |shard: &mut Shard, group, times| {
        for tag in 0..times {
            let reply = queue.reply_to(tag);
            shard.read(group, How::Linearizable, Bytes::new(), reply);
        }
    };
    for group in [groups[0], groups[1]] {
        read(shard, group, 13);
        let (refused, why) = answers();
        assert!(
            matches!((refused, &why), (3, Some(Error::Busy { .. }))),
            "{refused} {why:?}"
        );
        let slot = shard.slot(group).unwrap();
        shard.quarantine(slot, "for a test".to_owned());
        let (failed, why) = answers();
        assert!(
            matches!((failed, &why), (10, Some(Error::Fault { .. }))),
            "{failed} {why:?}"
        );
    }
    let slot = shard.slot(groups[2]).unwrap();
    for request in 0..13 {
        shard.read_asked(NodeId(2), groups[2], request, false);
        shard.read_asked(NodeId(2), groups[0], request, false);
    }
    read(shard, groups[2], 1);
    let (refused, why) = answers();
    assert!(
        matches!((refused, &why), (1, Some(Error::Busy { .. }))),
        "{refused} {why:?}"
    );
    let waiting = &mut shard.replicas[slot as usize].reads;
    assert_eq!(shard.queues.reads.drain(waiting).count(), 10);
}

/// A state machine that keeps nothing.
pub(crate) struct Nothing;

impl StateMachine for Nothing {
    fn open(_: GroupId, _: &Path) -> Result<(Self, Index), MachineError> {
        Ok((Nothing, Index::ZERO))
    }
    fn apply(&mut self, entries: &[Entry<'_>], replies: &mut Replies) -> Result<(), MachineError> {
        entries.iter().for_each(|_| replies.push([]));
        Ok(())
    }
    fn query(&self, _: &[u8]) -> Result<Bytes, MachineError> {
        Ok(Bytes::new())
    }
    fn snapshot(&self) -> Result<FrozenState, MachineError> {
        Ok(Box::new(|_| Ok(())))
    }
    fn restore(&mut self, _: Index, _: &mut dyn Read) -> Result<(), MachineError> {
        Ok(())
    }
}

#[test]
fn slots_of_replicas_that_ended_are_used_again_and_hold_nothing() {
    const GROUPS: u64 = 50;
    let (path, disk) = (Path::new("/n"), SimDisk::new(1));
    let (shared, parts) = parts_on(&disk, path);
    let Parts {
        wals,
        mut shards,
        mut tasks,
        mut jobs,
        store,
        ..
    } = parts;
    let (mut shard, inbox) = shards.remove(0);
    let tasks = tasks.remove(0);
    let jobs = jobs.remove(0);
    let mut applier = applier::<Nothing>(path, &shared);
    let mut keeper = keeper::<Nothing>(&shared, &store);
    // Everything that follows, until nothing does.
    let mut settle = |shard: &mut Shard| {
        for _ in 0..20 {
            shard.begin_turn(shared.clock.now());
            shard.finish_turn(&inbox, 0);
            while wals[0].pump().unwrap() {}
            let lsn = wals[0].durable();
            shard.batch_durable(&Durable { lane: 0, lsn });
            while let Some(task) = tasks.try_take() {
                applier.perform(task);
            }
            while let Some(job) = jobs.try_take() {
                keeper.perform(job);
            }
        }
    };
    let origin = CreateOrigin {
        node: NodeId(1),
        request: 0,
    };
    for round in 0..8 {
        let lives = vec![(0..GROUPS, Life::new(round).unwrap())];
        shard.create(origin, &lives, &[NodeId(1)]);
        settle(&mut shard);
        assert_eq!(shared.counters.sum().groups, GROUPS);
        // One of them has a caller.
        let queue = CompletionQueue::new();
        let reply = queue.reply_to(7);
        shard.propose(GroupId(3), EntryKind::Normal, Bytes::new(), reply);
        shard.destroy(origin, &lives, EndGrounds::Survey);
        settle(&mut shard);
        let mut done = Vec::new();
        queue.drain(&mut done, Duration::ZERO);
        assert!(done.len() == 1 && done[0].result.is_err(), "{done:?}");
        let counters = shared.counters.sum();
        assert_eq!(
            (counters.groups, counters.led, counters.leaderless),
            (0, 0, 0)
        );
        assert!(shared.directory.list(GroupId(0), 10).is_empty());
        assert_eq!(shard.members.deadline(), None, "somebody asks for them");
    }
    assert_eq!(shard.replicas.len() as u64, GROUPS);
    assert_eq!(shard.log.tombstones().count() as u64, GROUPS);
}

#[test]
fn a_busy_turn_is_not_followed_by_another_before_its_interval_is_over() {
    let interval = Duration::from_millis(10);
    let (shared, mut parts) = parts_on(&SimDisk::new(1), Path::new("/n"));
    let (mut shard, inbox) = parts.shards.remove(0);
    shard.limits.turn_interval = interval;
    let ask = || {
        let (reply, answer) = tokio::sync::oneshot::channel();
        let group = GROUP;
        shared.tell(0, ShardEvent::GroupStatus { group, reply });
        answer
    };
    let _first: Vec<_> = (0..BUSY_EVENTS).map(|_| ask()).collect();
    let begun = Instant::now();
    let (ready, _) = mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(|| shard.run(inbox, ready));
        while shared.counters.sum().turns == 0 {
            std::thread::yield_now();
        }
        ask().blocking_recv().unwrap().unwrap_err();
        let gone = begun.elapsed();
        shared.tell(0, ShardEvent::Shutdown);
        assert!(gone >= interval, "{gone:?}");
    });
}

#[test]
fn a_shard_for_which_a_whole_turn_waits_does_not_linger() {
    let (shared, mut parts) = parts_on(&SimDisk::new(1), Path::new("/n"));
    let (mut shard, inbox) = parts.shards.remove(0);
    // It would not be over in this test.
    shard.limits.turn_interval = Duration::from_hours(1);
    shard.limits.turn_events = BUSY_EVENTS;
    let ask = || {
        let (reply, answer) = tokio::sync::oneshot::channel();
        let group = GROUP;
        shared.tell(0, ShardEvent::GroupStatus { group, reply });
        answer
    };
    // A turn takes one event more. The last of three is not busy.
    let answers: Vec<_> = (0..2 * (BUSY_EVENTS + 1) + 1).map(|_| ask()).collect();
    let (ready, _) = mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(|| shard.run(inbox, ready));
        for answer in answers {
            answer.blocking_recv().unwrap().unwrap_err();
        }
        shared.tell(0, ShardEvent::Shutdown);
    });
}

#[test]
fn what_idle_threads_are_to_call_is_called_once_for_each_time_they_become_idle() {
    let (shared, mut parts) = parts_on(&SimDisk::new(1), Path::new("/n"));
    let (shard, _) = &mut parts.shards[0];
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    let call = move || _ = counted.fetch_add(1, Ordering::Relaxed);
    assert!(shared.on_idle.set(Arc::new(call)).is_ok());
    let become_idle = |shard: &mut Shard| {
        shard.now = shard.trim.due_at.unwrap();
        shard.trim();
    };
    let asked = |parts: &[Mailbox<Task>]| {
        let tasks = std::iter::from_fn(|| parts[0].try_take());
        tasks.filter(|task| matches!(task, Task::Rest(_))).count()
    };
    for round in 1..=3 {
        become_idle(shard);
        assert_eq!(calls.load(Ordering::Relaxed), round);
        assert_eq!(asked(&parts.tasks), 1);
        // It was woken to forget something, and nothing was written since.
        shard.trim.due_at = Some(shard.now);
        become_idle(shard);
        assert_eq!(calls.load(Ordering::Relaxed), round);
        assert_eq!(asked(&parts.tasks), 0);
        shard.note_written();
    }
}

/// A shard with so many groups of three members, the second of which it takes to be alive. Nobody answers it.
fn shard_with_groups(path: &Path, groups: u64) -> (Arc<Shared>, Parts) {
    let disk = SimDisk::new(1);
    {
        let dir = DataDir::open(Arc::new(disk.clone()), path, "c", NodeId(1), 1).unwrap();
        let mut opened = polyraft_storage::open(&dir, &WalOptions::default(), 1).unwrap();
        let members = Configuration::simple([1, 2, 3].map(NodeId));
        for group in (0..groups).map(GroupId) {
            opened.logs[0].create(group, &members).unwrap();
        }
        opened.logs[0].submit().unwrap();
        opened.wals[0].close().unwrap();
    }
    let (shared, mut parts) = parts_on(&disk, path);
    let (shard, _) = &mut parts.shards[0];
    shard.open_recovered();
    shard.alive.insert(NodeId(2));
    for group in (0..groups).map(GroupId) {
        shard.opened(group, Ok(Index(0)));
    }
    // Arms the timers.
    shard.end_turn(true);
    (shared, parts)
}

/// Which replicas campaign after a turn at this time.
fn campaigning_after(shard: &mut Shard, now: Tick, is_drained: bool) -> Vec<usize> {
    shard.begin_turn(now);
    shard.end_turn(is_drained);
    let campaign = |slot: &usize| shard.replicas[*slot].campaigns();
    (0..shard.replicas.len()).filter(campaign).collect()
}

#[test]
fn a_limited_number_campaigns_at_a_time_and_nobody_waits_for_ever() {
    let groups = AT_ONCE as u64 + 500;
    let (_shared, mut parts) = shard_with_groups(Path::new("/n"), groups);
    let shard = &mut parts.shards[0].0;
    let (now, timeout) = (Tick(10_000_000), shard.settings.election_timeout_max);
    let first = campaigning_after(shard, now, true);
    assert_eq!(first.len(), AT_ONCE, "of {groups} whose timers have rung");
    assert_eq!(campaigning_after(shard, now, true), first, "no room");

    // Nobody has answered: their rounds are over, and those who waited come before they may ask again.
    let begun = |shard: &Shard| -> Vec<u32> {
        let replicas = shard.replicas.iter();
        replicas.map(|r| r.group.counters().campaigns).collect()
    };
    campaigning_after(shard, now.after(timeout), true);
    let counts = begun(shard);
    assert!(counts.iter().all(|count| *count > 0), "some have starved");
    assert_eq!(counts.iter().sum::<u32>(), 2 * AT_ONCE as u32);
}

#[test]
fn nobody_campaigns_before_the_inbox_was_read_unless_it_is_never_empty() {
    let (_shared, mut parts) = shard_with_groups(Path::new("/n"), 3);
    let shard = &mut parts.shards[0].0;
    let (now, timeout) = (Tick(10_000_000), shard.settings.election_timeout_max);
    assert!(campaigning_after(shard, now, false).is_empty());
    assert_eq!(campaigning_after(shard, now, true).len(), 3);

    let (_shared, mut parts) = shard_with_groups(Path::new("/n"), 3);
    let shard = &mut parts.shards[0].0;
    assert!(campaigning_after(shard, now, false).is_empty());
    assert_eq!(campaigning_after(shard, now.after(timeout), false).len(), 3);
}

#[test]
fn a_lost_or_ended_round_makes_room_for_the_next() {
    let (_shared, mut parts) = shard_with_groups(Path::new("/n"), AT_ONCE as u64 + 3);
    let shard = &mut parts.shards[0].0;
    let now = Tick(10_000_000);
    let first = campaigning_after(shard, now, true);
    let group = |shard: &Shard, slot: usize| shard.replicas[slot].group.id();
    let (led, ended) = (group(shard, first[0]), group(shard, first[1]));
    let faulty = first[2] as u32;
    let message = Message::Append {
        term: Term(1),
        prev: LogPosition::ZERO,
        entries: EntryRange::empty(Term(1), Index(1)),
        commit: Index(0),
    };
    let slot = shard.slot(led).unwrap();
    let from = NodeId(2);
    shard.step(slot, Event::Message { from, message }, Payloads::None);
    shard.end_replica(ended, Tombstone::destroyed(Life::FIRST));
    shard.quarantine(faulty, "a test".to_owned());
    campaigning_after(shard, now, true);
    assert!(shard.next_deadline() <= Some(now), "there is room");
    let then = campaigning_after(shard, now, true);
    assert_eq!(then.len(), AT_ONCE);
    assert!(first[..3].iter().all(|gone| !then.contains(gone)));
}

#[test]
fn an_idle_shard_gives_back_what_a_burst_took() {
    let (_shared, mut parts) = shard_with_groups(Path::new("/n"), 600);
    let (wals, (shard, _)) = (&parts.wals, &mut parts.shards[0]);
    let now = Tick(10_000_000);
    assert_eq!(campaigning_after(shard, now, true).len(), 600);
    // They ask again, in a turn that also writes.
    for group in (0..600).map(GroupId) {
        let state = HardState {
            term: Term(1),
            ..HardState::default()
        };
        shard.log.hard_state(group, state).unwrap();
    }
    let later = now.after(shard.settings.election_timeout_max);
    assert_eq!(campaigning_after(shard, later, true).len(), 600);
    while wals[0].pump().unwrap() {}
    let room = |shard: &Shard| {
        [
            shard.outbox.sends.capacity(),
            shard.touched.capacity(),
            shard.fired.capacity(),
        ]
    };
    assert!(room(shard).iter().all(|room| *room >= 600));
    let due = shard.trim.deadline().expect("something was written");
    let early = Tick(due.0 - 1);
    shard.begin_turn(early);
    shard.end_turn(false);
    assert!(room(shard).iter().all(|room| *room >= 600), "not idle yet");
    shard.begin_turn(due);
    shard.end_turn(false);
    assert!(room(shard).iter().all(|room| *room < 600));
    assert_eq!(shard.trim.deadline(), None, "until something is written");
}

/// What a store with a hundred thousand groups has a hundred thousand of. A larger one is no fault, but somebody should have
/// wanted it: each eight bytes are a megabyte there, on three nodes two.
#[test]
fn what_every_replica_has_is_as_large_as_it_was_meant_to_be() {
    assert!(size_of::<super::replica::Replica>() <= 456);
    assert!(size_of::<super::Marks>() <= 24);
    assert!(size_of::<crate::directory::GroupCell>() <= 16);
    assert!(size_of::<crate::event::Reign>() <= 12);
    // Allocators round up, some of them after they have added the alignment less one: above this it takes 64 bytes more.
    assert!(size_of::<polyraft_raft::Leading>() <= 320 - 7);
}

/// Before, some were told that the node is shut down.
#[test]
fn callers_of_a_node_that_is_out_of_service_are_told_so() {
    let mut alone = Alone::with(&[]);
    alone.shard.fail("the disk is gone".to_owned());
    let fault = Error::Fault {
        reason: "the disk is gone".to_owned(),
    };
    let (child, argument) = (GroupId(8), Bytes::new());
    alone.shard.handle(ShardEvent::Split(SplitEvent::Asked {
        group: GROUP,
        child,
        argument: argument.clone(),
        reply: alone.queue.reply_to(1),
    }));
    alone.shard.handle(ShardEvent::Merge(MergeEvent::Asked {
        source: GROUP,
        target: child,
        argument,
        reply: alone.queue.reply_to(2),
    }));
    let mut done = Vec::new();
    alone.queue.drain(&mut done, Duration::ZERO);
    let results: Vec<_> = done.into_iter().map(|done| done.result.err()).collect();
    assert_eq!(results, [Some(fault.clone()), Some(fault.clone())]);
    let (node, (reply, answer)) = (NodeId(2), mpsc::channel());
    alone.shard.handle(ShardEvent::PeerNeeded { node, reply });
    assert_eq!(answer.try_recv(), Ok(Err(fault)));
}
