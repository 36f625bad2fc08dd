//! Owns an offline look at all replicas in a data directory: whose it is, how far each log goes, what is damaged.
//! Must never write to what it looks at.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use polyraft_raft::{Configuration, GroupId, HardState, Index, Life, LogPosition, NodeId, Term};
use rustc_hash::FxHashMap;

use crate::addresses::Addresses;
use crate::block::{EntryBlock, EntryKind};
use crate::data_dir::StoreId;
use crate::disk::Disk;
use crate::error::StorageError;
use crate::group::GroupLog;
use crate::index::{BlockRef, Where};
use crate::inspect::Subject;
use crate::peers::Peers;
use crate::pool::Segment;
use crate::snapshot::{DIRECTORY, SnapshotFile, SnapshotStore};
use crate::tombstone::Tombstone;

/// What a data directory holds. No node can open the directory while this value lives.
pub struct Survey {
    /// The directory.
    pub path: PathBuf,
    /// The cluster it belongs to.
    pub cluster: String,
    /// The node it belongs to.
    pub node: NodeId,
    /// Names its life.
    pub store: StoreId,
    /// How often it was opened.
    pub opening: u64,
    /// The last incarnation that peers may have seen; `None` when no node ever ran on it.
    pub shown: Option<u64>,
    /// Independent logs in it.
    pub lanes: usize,
    /// Every replica.
    pub replicas: BTreeMap<GroupId, SurveyedReplica>,
    /// What is kept of groups that ended here.
    pub tombstones: BTreeMap<GroupId, Tombstone>,
    /// The nodes that it has met, or was told of while it ran, and that were not taken out since. What was only in a
    /// configuration and never met is not known here.
    pub peers: BTreeSet<NodeId>,
    _lock: Subject,
}

/// Bytes of an entry about a merge that a survey keeps: what it asks for, and the other group.
pub const MERGE_HEAD_BYTES: usize = 9;

/// A replica as the next opening of its node will have it.
#[derive(Clone, Debug, PartialEq)]
pub struct SurveyedReplica {
    /// Which life of its group's id it belongs to.
    pub life: Life,
    /// It votes for whoever has less once its log reaches there, or once its last entry is of a later term than `removed_in`.
    pub joined: Index,
    /// The newest term that the replica before had seen, whose end made this one begin anew.
    pub removed_in: Term,
    /// It stores no payload: it can vote, and can be nobody's source.
    pub is_witness: bool,
    /// Newest durable term, vote and commit hint.
    pub hard_state: HardState,
    /// Position up to which the log is purged, or begins behind a snapshot.
    pub base: LogPosition,
    /// The last entry; the base when there is none.
    pub last: LogPosition,
    /// The members as of what it knows to be committed, and all that later entries name, each with the index of its entry; 0 where
    /// the members of the base or of a snapshot are meant, whose entry is older. Any of them may be in force, and a joint one may
    /// have been left already, as only others know. The last is the newest; there is always one.
    pub configurations: Vec<(Index, Configuration)>,
    /// Whether its log has an entry by which the group is split.
    pub has_splits: bool,
    /// The first [`MERGE_HEAD_BYTES`] of each entry of its log about a merge, each of them once.
    pub merges: BTreeSet<Vec<u8>>,
    /// A snapshot that was installed, and behind which the next opening begins the log anew.
    pub installed: Option<LogPosition>,
    /// Why it can't be used, if so.
    pub fault: Option<String>,
}

impl SurveyedReplica {
    /// The newest members that it knows.
    pub fn configuration(&self) -> &Configuration {
        let newest = self.configurations.last();
        newest
            .map(|(_, members)| members)
            .expect("there is always one")
    }
}

impl Survey {
    /// Looks at the data directory `path`, which no node may have open. Every entry block in use is read and held against its
    /// checksum; what fails is the fault of its replica.
    ///
    /// # Errors
    /// [`StorageError::Locked`] while a node runs on it, [`StorageError::Identity`] when it is no data directory, and
    /// [`StorageError::Damaged`] when it can't be said which groups are damaged.
    pub fn of(disk: &Arc<dyn Disk>, path: &Path) -> Result<Self, StorageError> {
        let subject = Subject::open(Arc::clone(disk), path)?;
        let snapshots = SnapshotStore::at(disk, subject.root.join(DIRECTORY)).newest()?;
        let snapshots: FxHashMap<GroupId, SnapshotFile> = snapshots
            .into_iter()
            .map(|file| (file.meta.group, file))
            .collect();
        let (mut replicas, mut tombstones) = (BTreeMap::new(), BTreeMap::new());
        for lane in 0..subject.identity.lanes {
            let found = subject.lane(lane).recover(false)?;
            let all = found.segments.all().into_iter();
            let segments: FxHashMap<u64, &Segment> = all
                .map(|segment| (segment.header.sequence, &**segment))
                .collect();
            for (group, log) in &found.groups {
                let replica = look(*group, log, &segments, snapshots.get(group));
                replicas.insert(*group, replica);
            }
            tombstones.extend(found.tombstones);
        }
        let identity = &subject.identity;
        let peers = known_peers(&**disk, &subject.root)?;
        Ok(Self {
            path: subject.root.clone(),
            cluster: identity.cluster.clone(),
            node: identity.node,
            store: identity.store,
            opening: identity.opening,
            shown: identity.shown.last().copied(),
            lanes: identity.lanes as usize,
            replicas,
            tombstones,
            peers,
            _lock: subject,
        })
    }
}

fn known_peers(disk: &dyn Disk, root: &Path) -> Result<BTreeSet<NodeId>, StorageError> {
    let mut known: BTreeSet<NodeId> = Peers::read(disk, root)?.seen().keys().copied().collect();
    for (node, change) in Addresses::read(disk, root)?.changes() {
        match change.now {
            Some(_) => known.insert(*node),
            None => known.remove(node),
        };
    }
    Ok(known)
}

fn look(
    group: GroupId,
    log: &GroupLog,
    segments: &FxHashMap<u64, &Segment>,
    snapshot: Option<&SnapshotFile>,
) -> SurveyedReplica {
    let found = log.recovered(group);
    let snapshot = snapshot.filter(|file| file.meta.life() == Some(found.life));
    let mut fault = found.fault.clone();
    let (mut has_splits, mut merges) = (false, BTreeSet::new());
    for block in log.blocks.iter() {
        let mut note = |parsed: &EntryBlock<'_>| match parsed.kind() {
            EntryKind::Split => has_splits = true,
            EntryKind::Merge => {
                let entry = parsed.entry(parsed.first());
                merges.insert(entry[..entry.len().min(MERGE_HEAD_BYTES)].to_vec());
            }
            _ => {}
        };
        if let Err(reason) = check(group, segments, &block, &mut note) {
            fault.get_or_insert(reason);
        }
    }
    let mut configurations = vec![(Index::ZERO, found.configuration.clone())];
    for (index, configuration) in &found.configurations {
        if *index <= found.hard_state.commit {
            configurations.clear();
        }
        configurations.push((*index, configuration.clone()));
    }
    let mut replica = SurveyedReplica {
        life: found.life,
        joined: found.joined,
        removed_in: found.removed_in,
        is_witness: found.is_witness,
        hard_state: found.hard_state,
        base: found.base,
        last: found.last_position(),
        configurations,
        has_splits,
        merges,
        installed: None,
        fault,
    };
    let reaches = snapshot.map(|file| file.meta.last);
    if let Some(file) = snapshot.filter(|file| !found.holds(file.meta.last)) {
        let last = file.meta.last;
        (replica.base, replica.last) = (last, last);
        replica.installed = Some(last);
        replica.configurations = vec![(Index::ZERO, file.meta.configuration.clone())];
        if replica.hard_state.term < last.term {
            replica.hard_state.term = last.term;
            replica.hard_state.vote = None;
        }
    }
    let base = replica.base.index;
    if base > Index::ZERO && !found.is_witness && reaches.is_none_or(|last| last.index < base) {
        replica.fault.get_or_insert_with(|| {
            format!("its log begins behind index {base}, and no usable snapshot reaches that far")
        });
    }
    replica
}

/// Reads a block, compares what must be the same, and shows it if it is.
fn check(
    group: GroupId,
    segments: &FxHashMap<u64, &Segment>,
    block: &BlockRef,
    show: &mut impl FnMut(&EntryBlock<'_>),
) -> Result<(), String> {
    let Where::Segment(sequence) = block.place.get() else {
        return Err("a part of its log is nowhere".to_owned());
    };
    let (offset, bytes) = (u64::from(block.offset), block.bytes as usize);
    let at = |what: &str| format!("segment {sequence}, offset {offset}: {what}");
    let segment = segments
        .get(&sequence)
        .filter(|segment| offset + bytes as u64 <= segment.header.bytes)
        .ok_or_else(|| at("the segment is missing"))?;
    let read = segment.read(offset, bytes);
    let parsed = EntryBlock::parse(&read).map_err(|error| at(&error.to_string()))?;
    match (parsed.group(), parsed.first(), parsed.term()) == (group, block.first, block.term) {
        true => {
            show(&parsed);
            Ok(())
        }
        false => Err(at("another entry block is in its place")),
    }
}
