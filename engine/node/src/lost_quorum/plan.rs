//! The plan of a recovery, as it is kept in a file: what was read, what is chosen, what may be lost. It must never be usable
//! when a byte of it that matters has changed.

use std::hash::{Hash, Hasher};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::RecoveryError;

/// By how many terms a recovery goes beyond the highest one that any survivor has seen. The lost nodes may have gone
/// further than that by themselves, by a term for each of their elections; so many they did not have.
pub const TERM_STEP: u64 = 1 << 20;

/// The version of the plan.
const FORMAT: u32 = 1;

/// What a recovery is going to do.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RecoveryPlan {
    /// Version of the plan.
    pub format: u32,
    /// The cluster.
    pub cluster: String,
    /// The nodes that never come back.
    pub lost: Vec<u64>,
    /// The directories that were looked at.
    pub directories: Vec<GivenDirectory>,
    /// How many groups still have a quorum among the survivors. Nothing is done to them.
    pub with_quorum: u64,
    /// What is done, by group.
    pub groups: Vec<SurvivingGroup>,
    /// Groups without a quorum that can't be recovered from these directories.
    pub refused: Vec<RefusedGroup>,
    /// Checksum of all that.
    pub checksum: u32,
}

/// A data directory, as it was when the plan was made.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct GivenDirectory {
    /// Its node.
    pub node: u64,
    /// Where it was.
    pub path: PathBuf,
    /// Names its life, in hexadecimal digits.
    pub store: String,
    /// How often it had been opened.
    pub opening: u64,
    /// The last incarnation of the node that peers may have seen.
    pub shown: Option<u64>,
}

/// A group that goes on with the survivors.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SurvivingGroup {
    /// Its id.
    pub group: u64,
    /// Who voted in it, by the newest log that is left; in both halves of a joint configuration.
    pub voters_before: Vec<u64>,
    /// Who learned.
    pub learners_before: Vec<u64>,
    /// What the given directories have of it.
    pub replicas: Vec<SurvivingReplica>,
    /// The node with the newest log. It gets the entry, and the others are made equal to it.
    pub chosen: u64,
    /// Who votes from then on.
    pub voters: Vec<u64>,
    /// Who learns from then on.
    pub learners: Vec<u64>,
    /// Term of the entry that says so.
    pub term: u64,
    /// Index of that entry: behind the last one of the chosen log.
    pub index: u64,
    /// Everything through here is known to have been committed, as far as the survivors know.
    pub known_committed: u64,
    /// How many entries behind that become committed, whether or not they were acknowledged.
    pub becoming_committed: u64,
    /// How many entries are known to have been committed and are in no usable log that is left.
    pub known_lost: u64,
    /// The members that are lost could commit without the survivors. Then anything behind `known_committed` may have been
    /// acknowledged and be lost, and nobody can say how much. Otherwise every acknowledged entry is in the chosen log.
    pub may_have_lost: bool,
    /// Entries may be lost, and the logs that are left say that the group took part in merges: it, or the other one, may not know any
    /// more what became of one.
    #[serde(default)]
    pub may_forget_merge: bool,
    /// Entries may be lost, and the logs that are left say that the group was split: it may not know of another split any more, whose
    /// child goes on.
    #[serde(default)]
    pub may_forget_split: bool,
}

/// One replica that is left.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SurvivingReplica {
    /// Its node.
    pub node: u64,
    /// The newest term that it has seen.
    pub term: u64,
    /// Whom it voted for in that term.
    pub vote: Option<u64>,
    /// Term of its last entry.
    pub last_term: u64,
    /// Index of its last entry.
    pub last_index: u64,
    /// What it knows to be committed: by its last note, its snapshot or what it has purged.
    pub committed: u64,
    /// It stores no payload: it is no source, and not among the members afterwards.
    #[serde(default)]
    pub is_witness: bool,
    /// Why it can't be used, and counts as lost.
    pub fault: Option<String>,
}

/// A group that can't be recovered.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RefusedGroup {
    /// Its id.
    pub group: u64,
    /// Why.
    pub why: String,
}

impl RecoveryPlan {
    /// The same plan with its version and its checksum.
    pub(super) fn sealed(mut self) -> Self {
        self.format = FORMAT;
        self.checksum = self.digest();
        self
    }

    /// Whether it is whole and of this version.
    pub(super) fn check(&self) -> Result<(), RecoveryError> {
        if self.format != FORMAT {
            let why = format!("it has version {}, not {FORMAT}", self.format);
            return Err(RecoveryError::Plan(why));
        }
        if self.checksum != self.digest() {
            let why = "it fails its checksum, so it was changed after it was made".to_owned();
            return Err(RecoveryError::Plan(why));
        }
        Ok(())
    }

    fn digest(&self) -> u32 {
        let mut crc = Crc(0);
        let unsealed = (self.format, &self.cluster, &self.lost, &self.directories);
        unsealed.hash(&mut crc);
        (self.with_quorum, &self.groups, &self.refused).hash(&mut crc);
        crc.0
    }
}

/// A checksum over the fields of a value.
struct Crc(u32);

impl Hasher for Crc {
    fn write(&mut self, bytes: &[u8]) {
        self.0 = crc32c::crc32c_append(self.0, bytes);
    }

    fn finish(&self) -> u64 {
        u64::from(self.0)
    }
}
