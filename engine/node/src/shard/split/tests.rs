//! A node alone, part by part, with a group that is split: what waits for the child, and for how long.

use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use polyraft_raft::{
    Configuration, EntryRange, Event, Group, HardState, LogPosition, Message, NodeId,
};
use polyraft_storage::sim::SimDisk;
use polyraft_storage::{DataDir, Durable, SnapshotMeta, Wal, WalOptions};

use super::super::tests::{GROUP, disk_with, parts_on};
use super::super::{Deferred, Shared};
use super::*;
use crate::apply::{Applier, Query};
use crate::assembly::{Parts, applier, keeper};
use crate::completion::CompletionQueue;
use crate::directory::Shown;
use crate::error::MachineError;
use crate::event::{CreateOrigin, EndGrounds};
use crate::group::Read as How;
use crate::keeper::{Job, Keeper};
use crate::machine::{Entry, FrozenState, Replies, Split, StateMachine};
use crate::mailbox::Mailbox;

pub(in crate::shard) const CHILD: GroupId = GroupId(9);

/// A state machine that says how many entries it has applied. What it is to split off tells it what to do.
struct Counter(u64);

impl StateMachine for Counter {
    fn open(_: GroupId, _: &Path) -> Result<(Self, Index), MachineError> {
        Ok((Counter(0), Index::ZERO))
    }
    fn apply(&mut self, entries: &[Entry<'_>], replies: &mut Replies) -> Result<(), MachineError> {
        self.0 += entries.len() as u64;
        entries.iter().for_each(|_| replies.push([]));
        Ok(())
    }
    fn query(&self, _: &[u8]) -> Result<Bytes, MachineError> {
        Ok(Bytes::copy_from_slice(&self.0.to_le_bytes()))
    }
    fn snapshot(&self) -> Result<FrozenState, MachineError> {
        Ok(Box::new(|_| Ok(())))
    }
    fn restore(&mut self, _: Index, _: &mut dyn Read) -> Result<(), MachineError> {
        Ok(())
    }
    fn can_split(&self, split: &Split<'_>) -> bool {
        split.argument != b"not"
    }
    fn split_off(&self, split: &Split<'_>) -> Result<FrozenState, MachineError> {
        assert_ne!(split.argument, b"panic", "it can't be taken");
        let fails = split.argument == b"fail";
        Ok(Box::new(move |_| match fails {
            true => Err(MachineError::from("it can't be read")),
            false => Ok(()),
        }))
    }
    fn shed(&mut self, _: &Split<'_>) -> Result<(), MachineError> {
        Ok(())
    }
}

/// A node with one shard, whose parts are run by hand.
pub(in crate::shard) struct Alone {
    shared: Arc<Shared>,
    pub(in crate::shard) shard: Shard,
    inbox: Mailbox<ShardEvent>,
    wal: Wal,
    applier: Applier<Counter>,
    tasks: Mailbox<Task>,
    keeper: Keeper<Counter>,
    jobs: Mailbox<Job>,
    pub(in crate::shard) queue: CompletionQueue,
}

/// An entry that splits the child off; its members are never heard of, so that nobody leads it.
fn split_entry(argument: &'static [u8]) -> Bytes {
    let entry = SplitEntry {
        child: CHILD,
        life: Life::FIRST,
        members: Configuration::simple([1, 2, 3].map(NodeId)),
        argument: Bytes::from_static(argument),
    };
    entry.encode()
}

impl Alone {
    /// With these entries in the log of its group.
    pub(in crate::shard) fn with(entries: &[(EntryKind, &[u8])]) -> Self {
        let path = Path::new("/n");
        Self::on(&disk_with(path, entries), path)
    }

    /// With an entry that splits the group, and one behind it.
    pub(in crate::shard) fn with_split(argument: &'static [u8]) -> Self {
        Self::with(&[
            (EntryKind::Normal, b"before"),
            (EntryKind::Split, &split_entry(argument)),
            (EntryKind::Normal, b"behind"),
        ])
    }

    pub(in crate::shard) fn on(disk: &SimDisk, path: &Path) -> Self {
        let (shared, parts) = parts_on(disk, path);
        let Parts {
            mut wals,
            mut shards,
            mut tasks,
            mut jobs,
            store,
            ..
        } = parts;
        let (mut shard, inbox) = shards.remove(0);
        shard.open_recovered();
        let mut alone = Alone {
            applier: applier(path, &shared),
            keeper: keeper(&shared, &store),
            shared,
            shard,
            inbox,
            wal: wals.remove(0),
            tasks: tasks.remove(0),
            jobs: jobs.remove(0),
            queue: CompletionQueue::new(),
        };
        alone.work();
        alone.turn();
        alone
    }

    /// Time passes before the next turn.
    pub(in crate::shard) fn pass(&mut self, us: u64) {
        self.shard.now = self.shard.now.after(us);
    }

    pub(in crate::shard) fn turn(&mut self) {
        // A millisecond later at least.
        let now = self.shard.now.after(1_000);
        self.shard.begin_turn(now.max(self.shared.clock.now()));
        self.shard.finish_turn(&self.inbox, 0);
    }

    /// The disk, the state machines and the snapshots do what they were given. How many queries came?
    fn work(&mut self) -> usize {
        while self.wal.pump().unwrap() {}
        let lsn = self.wal.durable();
        self.shard.batch_durable(&Durable { lane: 0, lsn });
        let mut queries = 0;
        while let Some(task) = self.tasks.try_take() {
            if let Task::Queries(batch) = &task {
                queries += batch.len();
            }
            self.applier.perform(task);
        }
        while let Some(job) = self.jobs.try_take() {
            self.keeper.perform(job);
        }
        queries
    }

    pub(in crate::shard) fn settle(&mut self) {
        for _ in 0..20 {
            self.turn();
            self.work();
        }
    }

    fn slot(&self) -> u32 {
        self.shard.slot(GROUP).unwrap()
    }

    /// Until the group's replica leads. Its first entry is not on the disk yet.
    pub(in crate::shard) fn elect(&mut self) {
        loop {
            self.turn();
            let core = &self.shard.replicas[self.slot() as usize].group;
            if core.role() == Role::Leader {
                return;
            }
            self.work();
        }
    }

    fn is_held(&self) -> bool {
        self.shard.replicas[self.slot() as usize].is_held
    }

    fn applied(&self) -> Index {
        self.shard.replicas[self.slot() as usize].group.applied()
    }

    /// Somebody leads the child.
    pub(in crate::shard) fn lead_child(&self, has_committed: bool) {
        let cell = self.shared.directory.cell(CHILD).unwrap();
        cell.publish(Shown::new(Some(NodeId(2)), Term(5), has_committed));
    }

    pub(in crate::shard) fn answers(&self) -> usize {
        let mut done = Vec::new();
        self.queue.drain(&mut done, Duration::ZERO);
        done.len()
    }
}

#[test]
fn a_read_waits_for_the_split_that_is_found_when_what_it_must_see_is_handed_out() {
    for how in [How::Linearizable, How::Lease] {
        let mut alone = Alone::with_split(b"part");
        let reply = alone.queue.reply_to(1);
        alone.elect();
        alone.shard.read(GROUP, how, Bytes::new(), reply);
        // The first commit of the leader brings the split, what is behind it and the leader's own entry in one turn.
        let mut queries = 0;
        while !alone.is_held() {
            queries += alone.work();
            alone.turn();
        }
        while let Some(task) = alone.tasks.try_take() {
            let is_read = matches!(task, Task::Query(_) | Task::Queries(_));
            assert!(!is_read, "a read is answered from before the split");
            alone.applier.perform(task);
        }
        assert_eq!((queries, alone.answers()), (0, 0));
        alone.settle();
        alone.settle();
        assert!(!alone.is_held());
        assert_eq!(alone.answers(), 1);
    }
}

#[test]
fn a_state_machine_that_fails_at_a_split_shows_nobody_its_state() {
    for argument in [&b"panic"[..], b"fail"] {
        let mut alone = Alone::with_split(argument);
        alone.elect();
        alone.settle();
        assert!(alone.shard.replicas[alone.slot() as usize].fault.is_some());
        let query = Query {
            group: GROUP,
            index: Index::ZERO,
            query: Bytes::new(),
            reply: alone.queue.reply_to(1),
        };
        alone.applier.perform(Task::Query(query));
        let mut done = Vec::new();
        alone.queue.drain(&mut done, Duration::ZERO);
        let outcome = done.pop().unwrap().result;
        assert!(matches!(outcome, Err(Error::Fault { .. })), "{outcome:?}");
    }
}

#[test]
fn no_snapshot_takes_the_place_of_a_split_before_a_majority_has_the_child() {
    let mut alone = Alone::with_split(b"part");
    alone.elect();
    alone.settle();
    assert!(!alone.is_held() && alone.applied() == Index(4));
    let (reply, mut answer) = tokio::sync::oneshot::channel();
    alone.shard.snapshot_requested(GROUP, reply);
    alone.settle();
    assert!(
        answer.try_recv().is_err(),
        "the log of the split is not needed any more"
    );
    // Its leader may have the votes of replicas that have nothing of it.
    for has_committed in [false, true] {
        assert!(answer.try_recv().is_err());
        assert!(alone.shard.is_splitting(alone.slot()));
        alone.lead_child(has_committed);
        alone.settle();
        alone.settle();
    }
    let saved = answer.try_recv().unwrap().unwrap();
    assert_eq!(saved.index, Index(4));
    assert!(!alone.shard.is_splitting(alone.slot()));
}

#[test]
fn members_stay_while_a_split_is_in_the_log_that_the_leader_has_not_come_to() {
    let mut alone = Alone::with(&[(EntryKind::Normal, b"before")]);
    alone.elect();
    let slot = alone.slot();
    // It leads, and does not know yet what leaders before it have left.
    assert!(alone.shard.is_splitting(slot));
    alone.settle();
    assert!(!alone.shard.is_splitting(slot));
    // What is committed in this turn, as in every turn of a busy group, is no split.
    let reply = alone.queue.reply_to(1);
    alone
        .shard
        .propose(GROUP, EntryKind::Normal, Bytes::new(), reply);
    alone.turn();
    alone.work();
    alone.shard.begin_turn(alone.shared.clock.now());
    while let Some(event) = alone.inbox.try_take() {
        alone.shard.handle(event);
    }
    alone.shard.settle_durable(slot);
    assert!(!alone.shard.outbox.applies.is_empty());
    assert!(!alone.shard.is_splitting(slot));
    alone.settle();

    let reply = alone.queue.reply_to(2);
    let argument = Bytes::from_static(b"part");
    alone.shard.split_asked(GROUP, CHILD, argument, reply);
    let before = alone.shard.replicas[slot as usize].group.last().index;
    while alone.shard.replicas[slot as usize].group.last().index == before {
        alone.turn();
    }
    assert!(alone.shard.splits.asked.is_empty());
    assert!(alone.shard.is_splitting(slot));
    assert!(alone.shard.may_split(GROUP).unwrap().is_none());
    // What was appended in an earlier term may be gone.
    let of_old = (Term::ZERO, Index(1_000));
    alone.shard.splits.appended.insert(GROUP, of_old);
    assert!(alone.shard.may_split(GROUP).unwrap().is_some());
}

#[test]
fn a_split_that_is_refused_holds_up_nothing() {
    let mut alone = Alone::with_split(b"not");
    alone.elect();
    alone.settle();
    assert_eq!(alone.applied(), Index(4));
    assert!(alone.shared.directory.cell(CHILD).is_none());
    assert!(!alone.shard.is_splitting(alone.slot()));
}

#[test]
fn a_child_that_a_restart_finds_neither_here_nor_in_the_state_is_not_awaited_for_long() {
    let mut alone = Alone::with_split(b"part");
    alone.elect();
    while !alone.is_held() {
        alone.work();
        alone.turn();
    }
    let at = SplitPlace {
        group: GROUP,
        life: Life::FIRST,
        index: Index(2),
    };
    // A state machine that kept its state over the restart was past the split, which it may have refused.
    alone.shard.child_heard(at, ChildNews::Past);
    assert!(!alone.is_held());
    assert!(alone.shard.unborn_child_of(GROUP).is_some());
    alone.pass(BRIEF);
    assert!(alone.shard.unborn_child_of(GROUP).is_none());
}

#[test]
fn a_part_that_the_state_machine_cannot_give_takes_its_replica_out_of_service() {
    let mut alone = Alone::with_split(b"fail");
    alone.elect();
    alone.settle();
    let replica = &alone.shard.replicas[alone.slot() as usize];
    assert!(replica.fault_reason().unwrap().contains("it can't be read"));
    assert!(
        alone.shard.splits.deadline().is_none(),
        "nothing is tried again"
    );
    // Nor does anybody wait for a snapshot of it.
    let (reply, mut answer) = tokio::sync::oneshot::channel();
    alone.shard.snapshot_requested(GROUP, reply);
    alone.settle();
    assert!(matches!(answer.try_recv(), Ok(Err(Error::Fault { .. }))));
}

#[test]
fn a_group_that_was_created_is_not_taken_for_the_child() {
    let mut alone = Alone::with_split(b"part");
    let origin = CreateOrigin {
        node: NodeId(1),
        request: 0,
    };
    let lives = vec![(CHILD.0..CHILD.0 + 1, Life::FIRST)];
    alone.shard.create(origin, &lives, &[NodeId(1)]);
    alone.settle();
    alone.elect();
    alone.settle();
    assert!(alone.is_held(), "the part is lost");
    assert_eq!(alone.applied(), Index(1));
    // Once it is destroyed, its life is over: nobody waits for the child any more.
    alone.shard.destroy(origin, &lives, EndGrounds::Survey);
    alone.shard.now = alone.shard.now.after(RETRY);
    alone.settle();
    alone.settle();
    assert!(!alone.is_held());
}

#[test]
fn campaigns_come_at_their_time_and_for_the_replica_that_they_were_meant_for() {
    let mut alone = Alone::with(&[(EntryKind::Normal, b"before")]);
    alone.settle();
    let later = alone.shard.now.after(1_000_000);
    let sooner = alone.shard.now.after(500_000);
    let other = Life::FIRST.next();
    alone
        .shard
        .defer(later, Deferred::Campaign(GROUP, other, 1));
    alone.shard.defer(sooner, Deferred::ForwardReplies);
    let times = alone.shard.deferred.iter().map(|(at, _)| *at);
    assert_eq!(times.collect::<Vec<_>>(), [sooner, later]);
    alone.shard.now = later;
    alone.shard.run_deferred();
    let core = &alone.shard.replicas[alone.slot() as usize].group;
    assert_eq!(
        (core.counters().campaigns, core.role()),
        (0, Role::Follower)
    );
}

#[test]
fn a_state_machine_is_opened_once_its_group_is_in_the_log() {
    let mut alone = Alone::with(&[]);
    let members = Configuration::simple([1, 2, 3].map(NodeId));
    let creation = Creation::founding(Life::FIRST, members);
    alone.shard.create_group(CHILD, creation, 0).unwrap();
    alone.turn();
    assert!(
        alone.tasks.try_take().is_none(),
        "what it stores may outlive the group's beginning"
    );
    alone.settle();
    assert!(alone.shard.slot(CHILD).is_some());
}

/// A disk whose log goes on behind these entries with one about the members.
fn disk_with_members(entries: &[(EntryKind, &[u8])], members: &[u64], commit: u64) -> SimDisk {
    let path = Path::new("/n");
    let disk = disk_with(path, entries);
    let dir = DataDir::open(Arc::new(disk.clone()), path, "c", NodeId(1), 1).unwrap();
    let mut opened = polyraft_storage::open(&dir, &WalOptions::default(), 1).unwrap();
    let log = &mut opened.logs[0];
    let (term, first) = (Term(1), Index(entries.len() as u64 + 1));
    let end = first.next();
    let members = Configuration::simple(members.iter().map(|id| NodeId(*id)));
    log.append_configuration(GROUP, EntryRange { term, first, end }, &members)
        .unwrap();
    let state = HardState {
        term,
        vote: Some(NodeId(1)),
        commit: Index(commit),
    };
    log.hard_state(GROUP, state).unwrap();
    log.submit().unwrap();
    while opened.wals[0].pump().unwrap() {}
    disk
}

impl Alone {
    pub(in crate::shard) fn hear(&mut self, message: Message) {
        let from = NodeId(2);
        let event = Event::Message { from, message };
        self.shard.step(self.slot(), event, Payloads::None);
    }

    fn core(&self) -> &Group {
        &self.shard.replicas[self.slot() as usize].group
    }
}

#[test]
fn a_replica_that_was_removed_makes_its_part_of_a_child_before_it_ends() {
    let entry = split_entry(b"part");
    let entries: [(EntryKind, &[u8]); 2] =
        [(EntryKind::Normal, b"before"), (EntryKind::Split, &entry)];
    let disk = disk_with_members(&entries, &[2], 0);
    let mut alone = Alone::on(&disk, Path::new("/n"));
    alone.settle();
    let slot = alone.slot();
    // The leader says that all of it is committed: the split, and that this node is no member any more.
    let (term, commit) = (Term(1), Index(3));
    let prev = LogPosition {
        term,
        index: commit,
    };
    let entries = EntryRange::empty(term, commit.next());
    alone.hear(Message::Append {
        term,
        prev,
        entries,
        commit,
    });
    for _ in 0..5 {
        alone.turn();
    }
    assert!(alone.shard.splits.is_pending(slot));
    assert_eq!(
        alone.shard.slot(GROUP),
        Some(slot),
        "its part would be lost"
    );
    alone.settle();
    assert!(alone.shard.slot(CHILD).is_some());
    assert!(!alone.shard.splits.is_pending(slot));
}

#[test]
fn a_leader_that_cannot_write_the_child_hands_its_group_over() {
    let entry = split_entry(b"part");
    let entries: [(EntryKind, &[u8]); 2] =
        [(EntryKind::Normal, b"before"), (EntryKind::Split, &entry)];
    let disk = disk_with_members(&entries, &[1, 2], 0);
    let mut alone = Alone::on(&disk, Path::new("/n"));
    let origin = CreateOrigin {
        node: NodeId(1),
        request: 0,
    };
    // Its id is used for something else here.
    let lives = vec![(CHILD.0..CHILD.0 + 1, Life::FIRST)];
    alone.shard.create(origin, &lives, &[NodeId(1)]);
    alone.settle();
    alone.shard.peer_changed(NodeId(2), true);
    let granted = true;
    for _ in 0..2_000 {
        alone.turn();
        alone.work();
        if alone.core().role() == Role::PreCandidate {
            let term = alone.core().term().next();
            alone.hear(Message::PreVoteReply { term, granted });
            // Its own vote is durable before it asks for others.
            alone.settle();
            let term = alone.core().term();
            alone.hear(Message::VoteReply { term, granted });
            break;
        }
    }
    assert_eq!(alone.core().role(), Role::Leader);
    alone.turn();
    alone.work();
    let (term, matched) = (alone.core().term(), alone.core().last().index);
    let commit = Index::ZERO;
    alone.hear(Message::Matched {
        term,
        matched,
        commit,
    });
    alone.settle();
    assert!(alone.is_held() && alone.core().role() == Role::Leader);
    let (reply, mut answer) = tokio::sync::oneshot::channel();
    alone.shard.transfer_asked(GROUP, NodeId(2), reply);
    let why = "another handover is under way";
    let to = NodeId(2);
    assert_eq!(answer.try_recv(), Ok(Err(Error::Transfer { to, why })));
}

#[test]
fn a_child_waits_for_a_later_snapshot_of_it_that_is_about_to_get_its_name() {
    let mut alone = Alone::with_split(b"part");
    let meta = SnapshotMeta {
        group: CHILD,
        incarnation: 0,
        last: LogPosition {
            term: Term(1),
            index: Index(9),
        },
        configuration: Configuration::simple([NodeId(1)]),
    };
    let file = SnapshotFile {
        meta,
        bytes: 9,
        checksum: 0,
    };
    alone.shard.pretend_to_finish(CHILD, Some(file));
    alone.elect();
    alone.settle();
    assert!(alone.is_held());
    assert_eq!(alone.shard.life_of(CHILD), None, "it would be overwritten");
    alone.shard.pretend_to_finish(CHILD, None);
    alone.shard.now = alone.shard.now.after(LOOK_AGAIN);
    alone.settle();
    alone.settle();
    assert!(!alone.is_held() && alone.shard.slot(CHILD).is_some());
}

#[test]
fn a_child_that_the_log_does_not_take_stops_no_node() {
    let mut alone = Alone::with_split(b"part");
    let members = Configuration::simple([NodeId(1)]);
    // The log has a group of that id, though no replica is open or being opened.
    alone.shard.log.create(CHILD, &members).unwrap();
    alone.elect();
    alone.settle();
    assert!(alone.is_held(), "the part is lost");
    assert!(alone.shard.fault.is_none());
}
