//! A node alone that sends or receives snapshots; the test is the other one. Who has a place and for how long, and what is asked for
//! how often.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use polyraft_raft::{
    Configuration, Event, Index, Life, LogPosition, Message, ProgressState, Role, SnapshotNeeded,
    Term,
};
use polyraft_storage::sim::SimDisk;
use polyraft_storage::{DataDir, Disk as _, SnapshotFile, SnapshotMeta, WalOptions};
use polyraft_transport::{Lane, Network, NetworkStats, SendError};

use super::*;
use crate::shard::Payloads;
use crate::shard::outgoing::Outgoing;
use crate::shard::split::tests::Alone;
use crate::wire::{Chunk, Record, Records, Refusal, SnapshotId};

const G: GroupId = GroupId(7);
const OTHER: GroupId = GroupId(8);
/// The node that the test plays.
const PEER: NodeId = NodeId(2);
/// Bytes of a part.
const CHUNK: u64 = 8;
const PATH: &str = "/n";

/// Keeps what a node sends.
#[derive(Default)]
struct Line(Mutex<Vec<Bytes>>);

impl Network for Line {
    fn send(&self, _: NodeId, _: Lane, frame: Bytes) -> Result<(), SendError> {
        self.0.lock().push(frame);
        Ok(())
    }
    fn queued_bytes(&self, _: NodeId) -> usize {
        0
    }
    fn max_frame_bytes(&self, _to: NodeId) -> usize {
        1 << 20
    }
    fn stats(&self) -> NetworkStats {
        NetworkStats::default()
    }
    fn round_trip(&self, _: NodeId) -> Option<Duration> {
        None
    }
    fn shutdown(&self) {}
    fn local_addr(&self) -> Option<SocketAddr> {
        None
    }
}

/// What a node has said of snapshots.
#[derive(Default)]
struct Said {
    offers: Vec<GroupId>,
    fetches: VecDeque<u64>,
    chunks: Vec<u64>,
    refusals: Vec<Refusal>,
}

struct Pair {
    alone: Alone,
    disk: SimDisk,
    line: Arc<Line>,
}

impl Pair {
    /// A node with two groups of these members.
    fn new(members: &Configuration) -> Self {
        let (path, disk) = (Path::new(PATH), SimDisk::new(1));
        {
            let dir = DataDir::open(Arc::new(disk.clone()), path, "c", NodeId(1), 1).unwrap();
            let mut opened = polyraft_storage::open(&dir, &WalOptions::default(), 1).unwrap();
            for group in [G, OTHER] {
                opened.logs[0].create(group, members).unwrap();
            }
            opened.logs[0].submit().unwrap();
            opened.wals[0].close().unwrap();
        }
        let mut alone = Alone::on(&disk, path);
        let line = Arc::new(Line::default());
        alone.shard.outgoing = Outgoing::new(Arc::clone(&line) as Arc<dyn Network>, &[PEER], 1);
        alone.shard.transfers.limits.at_once = 1;
        alone.shard.transfers.limits.chunk = CHUNK;
        // Its time is the test's alone from here on.
        alone.pass(1_000_000_000);
        alone.settle();
        Pair { alone, disk, line }
    }

    /// One that leads the groups, whose log begins behind a snapshot. The peer is a learner, and has nothing of the first.
    fn leader() -> Self {
        let mut pair = Self::new(&Configuration::joint([NodeId(1)], [], [PEER], []));
        pair.alone.shard.snapshots.policy.keep_entries = 0;
        while [G, OTHER]
            .iter()
            .any(|group| pair.core(*group).role() != Role::Leader)
        {
            pair.alone.pass(10_000);
            pair.alone.settle();
        }
        for group in [G, OTHER] {
            let slot = pair.slot(group);
            pair.alone.shard.want_snapshot(slot, None);
        }
        pair.alone.settle();
        pair.alone.shard.peer_changed(PEER, true);
        pair.alone.settle();
        pair.lose_log(G);
        pair.said();
        pair
    }

    /// One that could take a snapshot.
    fn follower() -> Self {
        Self::new(&Configuration::simple([1, 2, 3].map(NodeId)))
    }

    /// The peer has nothing of a group.
    fn lose_log(&mut self, group: GroupId) {
        let core = self.core(group);
        let progress = core.progress(PEER).expect("it leads");
        let conflict = Message::Conflict {
            term: core.term(),
            rejected: progress.next.prev(),
            hint: LogPosition::ZERO,
        };
        self.hear(group, conflict);
        let progress = self.core(group).progress(PEER).expect("it leads");
        assert!(matches!(progress.state, ProgressState::Snapshot { .. }));
        self.alone.shard.outbox.snapshots.clear();
    }

    fn hear(&mut self, group: GroupId, message: Message) {
        let slot = self.slot(group);
        let event = Event::Message {
            from: PEER,
            message,
        };
        self.alone.shard.step(slot, event, Payloads::None);
    }

    fn slot(&self, group: GroupId) -> u32 {
        self.alone.shard.slot(group).unwrap()
    }

    fn core(&self, group: GroupId) -> &polyraft_raft::Group {
        &self.alone.shard.replicas[self.slot(group) as usize].group
    }

    /// What was said since this was asked last.
    fn said(&mut self) -> Said {
        let counters = self.alone.shard.shared.counters.shard(0);
        self.alone.shard.outgoing.send_all(counters);
        let mut said = Said::default();
        for frame in std::mem::take(&mut *self.line.0.lock()) {
            let mut records = Records::new(&frame);
            while let Some(record) = records.next_for(|_| true) {
                match record.expect("a whole record") {
                    Record::SnapshotOffer { file, .. } => said.offers.push(file.meta.group),
                    Record::SnapshotFetch { offset, .. } => said.fetches.push_back(offset),
                    Record::SnapshotChunk { chunk, .. } => said.chunks.push(chunk.offset),
                    Record::SnapshotRefused { why, .. } => said.refusals.push(why),
                    _ => {}
                }
            }
        }
        said
    }

    /// The peer needs a snapshot. Is it offered one?
    fn needs(&mut self, group: GroupId) -> bool {
        let (to, base) = (PEER, self.core(group).base());
        let needed = SnapshotNeeded { group, to, base };
        self.alone.shard.outbox.snapshots.push(needed);
        self.alone.shard.offer_snapshots();
        self.said().offers.contains(&group)
    }

    /// The snapshot that the node has.
    fn file(&self) -> SnapshotFile {
        self.alone
            .shard
            .snapshots
            .file(G)
            .expect("there is one")
            .clone()
    }

    /// The peer asks for a part of a snapshot.
    fn ask(&mut self, file: &SnapshotFile, offset: u64, bytes: u64) {
        let wanted = Wanted {
            group: G,
            by: PEER,
            id: SnapshotId::of(file),
            offset,
            bytes: bytes as u32,
        };
        self.alone.shard.snapshot_wanted(wanted);
    }

    /// The peer offers a snapshot.
    fn offer(&mut self, file: &SnapshotFile) {
        let term = Term(100);
        self.alone.shard.snapshot_offered(PEER, term, file.clone());
    }

    fn retry(&self) -> u64 {
        self.alone.shard.settings.retry_interval
    }

    /// A retry interval passes.
    fn pass(&mut self) {
        self.alone.pass(self.retry());
    }

    /// How many places are taken, for sending and for receiving.
    fn taken(&self) -> (usize, usize) {
        let gauges = &self.alone.shard.shared.transfers;
        let taken = |gauge: &AtomicUsize| gauge.load(Ordering::Relaxed);
        (taken(&gauges.sending), taken(&gauges.receiving))
    }
}

/// A snapshot of so many parts, which the peer has.
fn elsewhere(chunks: u64) -> SnapshotFile {
    let last = LogPosition {
        term: Term(1),
        index: Index(9),
    };
    let meta = SnapshotMeta {
        group: G,
        incarnation: u64::from(Life::FIRST.get()),
        last,
        configuration: Configuration::simple([1, 2, 3].map(NodeId)),
    };
    SnapshotFile {
        meta,
        bytes: chunks * CHUNK,
        checksum: 7,
    }
}

#[test]
fn a_leader_that_cannot_read_its_snapshot_takes_another_one() {
    let mut pair = Pair::leader();
    let path = || {
        let is_snapshot =
            |path: &std::path::PathBuf| path.extension().is_some_and(|it| it == "snap");
        pair.disk.files().into_iter().filter(is_snapshot)
    };
    let removed: Vec<_> = path().collect();
    assert_eq!(removed.len(), 2);
    for path in &removed {
        pair.disk.remove(path).unwrap();
    }
    let file = pair.file();
    assert!(pair.needs(G));
    for part in 0..WINDOW {
        pair.ask(&file, part * CHUNK, CHUNK);
    }
    pair.alone.settle();
    assert_eq!(
        pair.disk
            .files()
            .iter()
            .filter(|path| removed.contains(path))
            .count(),
        1
    );
    assert_eq!(pair.file(), file, "what came of it is of use");
    pair.said();
    pair.pass();
    assert!(pair.needs(G));
    pair.ask(&file, 0, CHUNK);
    pair.alone.settle();
    assert_eq!(pair.said().chunks, [0]);
}

#[test]
fn a_follower_whose_node_is_silent_for_a_moment_keeps_its_place() {
    let mut pair = Pair::leader();
    assert!(pair.needs(G));
    pair.alone.shard.peer_changed(PEER, false);
    pair.alone.shard.look_after_sending();
    assert_eq!(pair.taken(), (1, 0));
    pair.alone.shard.peer_changed(PEER, true);
    pair.alone.shard.look_after_sending();
    assert_eq!(pair.taken(), (1, 0), "it is asked what it has");
    let patience = pair.alone.shard.place_patience();
    pair.alone.pass(patience);
    pair.alone.shard.look_after_sending();
    assert_eq!(pair.taken(), (0, 0), "it says nothing");
}

#[test]
fn a_follower_keeps_its_place_while_parts_wait_for_the_rate() {
    let mut pair = Pair::leader();
    pair.alone.shard.transfers.limits.bytes_per_second = CHUNK;
    let file = pair.file();
    assert!(
        file.bytes > WINDOW * CHUNK,
        "it needs more than {WINDOW} seconds"
    );
    assert!(pair.needs(G));
    let (mut came, mut asked_at, began) = (Vec::new(), None, pair.alone.shard.now);
    for interval in 0.. {
        // The follower has patience, and asks for what did not come, and not for more.
        if asked_at.is_none_or(|at| interval >= at + 10) && (interval == 0 || pair.needs(G)) {
            asked_at = Some(interval);
            for part in (0..WINDOW).filter(|part| !came.contains(&(part * CHUNK))) {
                pair.ask(&file, part * CHUNK, CHUNK);
            }
        }
        pair.pass();
        pair.alone.turn();
        pair.alone.settle();
        came.extend(pair.said().chunks);
        if came.len() as u64 == WINDOW {
            break;
        }
        assert_eq!(pair.taken(), (1, 0), "{came:?}");
    }
    assert_eq!(came, [0, CHUNK, 2 * CHUNK, 3 * CHUNK], "each of them once");
    let took = pair.alone.shard.now.since(began);
    assert!(took >= (WINDOW - 1) * 1_000_000, "one a second, not {took}");
}

#[test]
fn a_place_is_given_on_in_the_turn_in_which_somebody_needs_it() {
    let mut pair = Pair::leader();
    assert!(pair.needs(G));
    pair.lose_log(OTHER);
    assert!(!pair.needs(OTHER), "there is one place");
    // It has made its part itself.
    let core = pair.core(G);
    let (term, matched, commit) = (core.term(), core.last().index, core.committed());
    let matched = Message::Matched {
        term,
        matched,
        commit,
    };
    pair.hear(G, matched);
    assert!(pair.needs(OTHER), "nobody else needs the place");
    assert_eq!(pair.taken(), (1, 0));
}

#[test]
fn a_follower_has_time_to_make_a_snapshot_durable_and_no_place() {
    let mut pair = Pair::leader();
    let (file, slot) = (pair.file(), pair.slot(G));
    assert!(pair.needs(G));
    pair.ask(&file, 0, file.bytes);
    assert_eq!(pair.taken(), (0, 0));
    // Longer than one that is silent would keep a place.
    for _ in 0..2 * PLACE_PATIENCE {
        pair.pass();
        pair.alone.turn();
        pair.needs(G);
        let id = SnapshotId::of(&file);
        pair.alone
            .shard
            .snapshot_refused(PEER, G, id, Refusal::Busy);
        assert_eq!(pair.taken(), (0, 0));
        assert!(pair.alone.shard.is_sending(G));
    }
    pair.alone.shard.step(slot, Event::Barrier, Payloads::None);
    pair.alone.shard.outbox.proposed.clear();
    pair.alone.shard.want_snapshot(slot, None);
    pair.alone.settle();
    assert_eq!(pair.file(), file, "the one that it has is of use");
    // It was lost, and there is another one who has the place.
    pair.lose_log(OTHER);
    assert!(pair.needs(OTHER));
    pair.ask(&file, 0, CHUNK);
    assert!(!pair.needs(G));

    pair.alone.shard.want_snapshot(slot, None);
    pair.alone.settle();
    assert!(pair.file().meta.last.index > file.meta.last.index);
}

#[test]
fn what_is_on_its_way_over_a_slow_link_is_not_asked_for_again_and_again() {
    const PARTS: u64 = 100;
    for intervals_a_part in [1, 2, 5, 9] {
        let mut pair = Pair::follower();
        let file = elsewhere(PARTS + 1);
        let id = SnapshotId::of(&file);
        let (mut link, mut came, mut sent) = (VecDeque::new(), 0, 0);
        for interval in 1.. {
            // Offers overtake the parts.
            pair.offer(&file);
            link.append(&mut pair.said().fetches);
            pair.pass();
            if interval % intervals_a_part != 0 {
                continue;
            }
            let offset: u64 = link.pop_front().expect("something is always asked for");
            sent += 1;
            assert!(
                sent < PARTS * 5 / 4,
                "{came} parts came, one in {intervals_a_part}"
            );
            came = came.max(offset / CHUNK + 1);
            if came == PARTS {
                break;
            }
            let chunk = Chunk::new(offset, Bytes::from_static(&[1; CHUNK as usize]));
            pair.alone.shard.chunk_received(PEER, G, id, chunk);
            pair.alone.settle();
        }
        assert_eq!(pair.taken(), (0, 1));
    }
}

#[test]
fn a_follower_whose_leader_says_nothing_but_offers_keeps_its_place_and_asks_seldom() {
    let mut pair = Pair::follower();
    let file = elsewhere(100);
    for _ in 0..3 * PLACE_PATIENCE {
        pair.offer(&file);
        pair.pass();
        pair.alone.turn();
        assert_eq!(pair.taken(), (0, 1));
    }
    let asked = pair.said().fetches.len() as u64;
    assert!(asked > WINDOW && asked <= 7 * WINDOW, "{asked}");
}

#[test]
fn a_replica_that_is_out_of_service_refuses_snapshots_and_has_no_place() {
    let mut pair = Pair::follower();
    let (file, slot) = (elsewhere(100), pair.slot(G));
    pair.offer(&file);
    assert_eq!(pair.taken(), (0, 1));
    assert!(pair.said().refusals.is_empty());
    pair.alone.shard.quarantine(slot, "a test".to_owned());
    assert_eq!(pair.taken(), (0, 0));
    pair.offer(&file);
    assert_eq!(pair.said().refusals, [Refusal::Busy]);
    assert_eq!(pair.taken(), (0, 0));
}

#[test]
fn transfers_that_come_are_looked_after_as_seldom_as_patience_allows() {
    let mut pair = Pair::follower();
    pair.offer(&elsewhere(100));
    let (now, patience) = (pair.alone.shard.now, pair.alone.shard.place_patience());
    let look_at = pair.alone.shard.transfers.look_at;
    assert_eq!(look_at, Some(now.after(patience)));

    let mut pair = Pair::leader();
    pair.alone.shard.transfers.look_at = look_at;
    assert!(pair.needs(G));
    let soon = pair.alone.shard.now.after(pair.retry());
    assert_eq!(pair.alone.shard.transfers.look_at, Some(soon));
}

#[test]
fn chunks_leave_at_the_rate_and_not_in_a_burst_after_a_pause() {
    let gauges = TransferGauges::default();
    let at = |now, bytes| gauges.pace(Tick(now), bytes, 1_000_000).0;
    assert_eq!([at(10, 500), at(10, 500), at(20, 1)], [10, 510, 1010]);
    assert_eq!([at(9000, 500), at(9000, 1)], [9000, 9500]);
    assert_eq!(gauges.pace(Tick(7), 1 << 40, 0), Tick(7));
}

#[test]
fn no_more_than_the_limit_take_a_place() {
    let gauge = AtomicUsize::new(0);
    let mut places = [Place(false); 3];
    let taken = |places: &mut [Place; 3]| places.each_mut().map(|place| place.take(&gauge, 2));
    assert_eq!(taken(&mut places), [true, true, false]);
    places[0].give_back(&gauge);
    places[0].give_back(&gauge);
    assert!(places[2].take(&gauge, 2));
    assert_eq!(taken(&mut places), [false, true, true]);
}
