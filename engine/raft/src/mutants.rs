//! Deliberate faults, for showing that the tests would notice them. A build without `--cfg polyraft_mutants` has none
//! of them: [`is_active`] is then a constant. Nothing here may decide anything in such a build.
//!
//! The numbers are those of the fault list in `docs/mutants.md`.

/// One deliberate fault.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Mutant {
    /// A vote leaves before it is durable.
    VoteBeforeDurable,
    /// A follower acknowledges entries that are not durable yet.
    AckBeforeDurable,
    /// A failed sync counts as a success.
    SyncErrorIgnored,
    /// A restart believes the page cache after a failed sync.
    CacheTrusted,
    /// A truncation is not written to the log.
    TruncationNotLogged,
    /// A restart believes names that no sync of the directory covered.
    NamesTrusted,
    /// A torn tail counts as damage to what was durable.
    TornTailIsRot,
    /// Damage to durable batches is cut off like a torn tail.
    RotCutAsTail,
    /// A new segment's name is not made durable.
    DirectoryNotSynced,
    /// A checkpoint frees segments that still hold entries.
    LiveSegmentFreed,
    /// A batch counts as durable before it is synced.
    DurableBeforeSync,
    /// A file that replaces another is renamed, and the directory is not synced.
    ReplacedNameNotSynced,
    /// A checkpoint is written over the one before it.
    CheckpointOverwritten,
    /// A checkpoint has what is submitted and not durable yet.
    CheckpointOfUndurable,
    /// The remains of an unfinished batch stay where the log goes on.
    TornTailKept,
    /// Segments that are used again keep their salt.
    SaltReused,
    /// The log ends with the last batch of a segment.
    SegmentEndIsLogEnd,
    /// The flusher looks for work, lets go of the queue, and only then goes to sleep.
    WakeUpLost,
    /// A shard that can't sync inline, because somebody else is at the log, leaves its batch to nobody.
    InlineSyncGivenUp,
    /// A log that is stopped does not look once more whether a turn was handed in.
    StopForgetsTurn,
    /// A segment is used again while somebody reads it.
    ReadersIgnored,
    /// Who puts a message into an inbox wakes its owner first.
    WakeBeforePush,
    /// Who has put a message into an inbox may look whether its owner sleeps before others see the message.
    WakeUnfenced,
    /// A leader counts its own entries before they are durable.
    LeaderCountsUndurable,
    /// The quorum's index is taken from an unsorted list.
    UnsortedQuorum,
    /// Half of the voters count as a majority.
    HalfIsMajority,
    /// Entries of older terms commit by counting.
    OldTermCommitted,
    /// A commit index is taken over a part of the log that was not compared.
    CommitBeyondCompared,
    /// An append cuts everything behind its entries.
    LateAppendTruncates,
    /// The completion of an overwritten write counts for its successor.
    StaleCompletionCounts,
    /// What was compared with an earlier leader counts for the next one.
    StaleComparisonKept,
    /// A voter defends a leader whose node is silent.
    DeadLeaderDefended,
    /// A replica that refuses a PreVote for its term does not say so.
    LowerTermNotTold,
    /// A restarted replica forgets whom it voted for.
    RecoveredVoteForgotten,
    /// A peer's data directory that was opened more often than was seen counts as the same one.
    OpeningsCounted,
    /// A forward without an answer is sent again.
    UnknownProposedAgain,
    /// A claim of an older term is taken without an answer.
    OldClaimNotAnswered,
    /// A leader that steps down keeps its claim.
    ClaimNotWithdrawn,
    /// Followers of a silent node do not look for another leader.
    SilentLeaderKept,
    /// A leader asks all followers anew when one of them is silent.
    QuietGroupsWoken,
    /// All election timeouts are equal.
    EqualTimeouts,
    /// Frames may exceed the transport's limit.
    OversizedFrames,
    /// A voter gives its vote of a term to whoever asks last.
    SecondVote,
    /// An acknowledgement leaves in a term that is not durable yet.
    AckInUndurableTerm,
    /// The acknowledgement of an earlier term counts for this one.
    StaleAckCounts,
    /// A completion that comes late takes the watermark back.
    WatermarkFalls,
    /// Who is asked for a PreVote takes over the term asked for.
    PreVoteRaisesTerm,
    /// The vote of a node that is no member counts.
    StrangerVotes,
    /// A leader without a live quorum goes on.
    QuorumNotChecked,
    /// A follower whose leader gave up its claim arms no timer.
    TimerForgotten,
    /// A handover that takes too long is never given up.
    HandoverStuck,
    /// A handover goes to a target that lacks entries.
    TargetBehind,
    /// A learner can be handed the leadership.
    LearnerLeads,
    /// The log is purged for a snapshot whose name is not durable.
    SnapshotNameNotSynced,
    /// A snapshot is used although its bytes are not what was written.
    SnapshotNotVerified,
    /// The log is purged before the snapshot that stands for it is written.
    PurgedBeforeSnapshot,
    /// The log is purged through what is queued for the state machine.
    PurgedBeforeApplied,
    /// A conflicting log stays beside an installed snapshot.
    ConflictKeptBesideSnapshot,
    /// A leader answers reads before an entry of its term is committed.
    ReadBeforeTermCommit,
    /// A leader answers reads without asking whether it still leads.
    ReadUnconfirmed,
    /// A leader answers reads by its lease although it told somebody to campaign.
    LeaseInHandover,
    /// Who was told to campaign does so although its leader has gone on since.
    LateOrderObeyed,
    /// Voters leave a leader who has gone on for somebody whom it told to campaign before.
    LateOrderFrees,
    /// A lease counts from the answer to a beat, not from the beat.
    LeaseFromAnswer,
    /// A lease is as long as was promised, however fast the clock that measures the promise.
    DriftIgnored,
    /// The answer to an earlier question whether the node leads counts for the newest one.
    EarlierAnswerCounts,
    /// A restarted replica votes although it may be bound to a leader that it has forgotten.
    RestartFrees,
    /// Members change while another change is under way, or before an entry of the term is committed.
    ChangesOverlap,
    /// Members stay as a truncated entry said.
    ConfigurationKept,
    /// A node votes before it has the log.
    LaggardPromoted,
    /// A leader that is no member any more goes on.
    RemovedLeaderStays,
    /// A message of another life of a group's id is taken for one of this life.
    LifeIgnored,
    /// A node holds no ids for a creation: two at a time both begin the group.
    ReservationIgnored,
    /// What is kept of groups that ended is lost in a restart.
    TombstoneForgotten,
    /// A replica that is back after a removal votes without knowing of the removal.
    ReturnedVotes,
    /// A replica that lost its log votes before it has again what it may have acknowledged.
    RepairedVotes,
    /// A follower whose leader works leaves it for a term that nobody leads.
    LeaderLeft,
    /// A snapshot that came is taken before it is durable.
    InstalledBeforeDurable,
    /// Entries are applied while the state machine is given the state of a snapshot.
    AppliedWhileRestored,
    /// A state is frozen before what its place says is on its way to the state machine.
    FrozenBeforeApplied,
    /// A witness campaigns.
    WitnessCampaigns,
    /// Witnesses may be so many that they decide without anybody who stores payloads.
    WitnessMajority,
    /// A witness is sent entries that no disk has yet.
    WitnessAhead,
    /// A proposal of a session is applied although its number was applied before.
    DuplicateApplied,
    /// A snapshot has the state and not the sessions.
    SessionForgotten,
    /// A group lets go of what it split off before that is durable.
    ShedBeforeDurable,
    /// A replica of a group that began with a state votes although it has nothing of it.
    EmptyChildVotes,
    /// A group that is to be merged goes on taking proposals.
    FrozenGoesOn,
    /// A group that is to be merged goes on answering reads.
    FrozenAnswers,
    /// The target of a merge takes a state after it has refused it.
    MergeRefusalForgotten,
    /// The sessions of a group that is merged are lost.
    MergedSessionsDropped,
    /// What was tried at a group, and applied in a part of it that went and came back, is applied again.
    MergedSessionsShared,
    /// A node that is no peer, but has a certificate of the cluster, gets a link.
    NonMemberAdmitted,
}

/// The mutants that show in what a power cut leaves of the log, with the number of the fault that they stand for.
pub const LOG: &[(Mutant, u8)] = &[
    (Mutant::DurableBeforeSync, 2),
    (Mutant::SyncErrorIgnored, 3),
    (Mutant::CacheTrusted, 3),
    (Mutant::TruncationNotLogged, 4),
    (Mutant::TornTailIsRot, 5),
    (Mutant::RotCutAsTail, 5),
    (Mutant::TornTailKept, 5),
    (Mutant::DirectoryNotSynced, 6),
    (Mutant::ReplacedNameNotSynced, 6),
    (Mutant::NamesTrusted, 6),
    (Mutant::LiveSegmentFreed, 7),
    (Mutant::CheckpointOverwritten, 7),
    (Mutant::CheckpointOfUndurable, 7),
    (Mutant::SaltReused, 29),
    (Mutant::SegmentEndIsLogEnd, 29),
];

/// The mutants that show in a cluster, with the number of the fault that they stand for.
pub const ALL: &[(Mutant, u8)] = &[
    (Mutant::VoteBeforeDurable, 1),
    (Mutant::AckBeforeDurable, 2),
    (Mutant::SyncErrorIgnored, 3),
    (Mutant::CacheTrusted, 3),
    (Mutant::TruncationNotLogged, 4),
    (Mutant::TornTailIsRot, 5),
    (Mutant::RotCutAsTail, 5),
    (Mutant::DirectoryNotSynced, 6),
    (Mutant::SnapshotNameNotSynced, 6),
    (Mutant::LiveSegmentFreed, 7),
    (Mutant::SnapshotNotVerified, 8),
    (Mutant::FrozenBeforeApplied, 8),
    (Mutant::InstalledBeforeDurable, 8),
    (Mutant::PurgedBeforeSnapshot, 8),
    (Mutant::LeaderCountsUndurable, 9),
    (Mutant::ConflictKeptBesideSnapshot, 10),
    (Mutant::PurgedBeforeApplied, 11),
    (Mutant::AppliedWhileRestored, 11),
    (Mutant::UnsortedQuorum, 12),
    (Mutant::HalfIsMajority, 12),
    (Mutant::OldTermCommitted, 12),
    (Mutant::LateAppendTruncates, 14),
    (Mutant::ReadBeforeTermCommit, 16),
    (Mutant::ReadUnconfirmed, 16),
    (Mutant::EarlierAnswerCounts, 16),
    (Mutant::LeaseFromAnswer, 17),
    (Mutant::StaleCompletionCounts, 15),
    (Mutant::StaleComparisonKept, 15),
    (Mutant::RecoveredVoteForgotten, 19),
    (Mutant::OpeningsCounted, 19),
    (Mutant::UnknownProposedAgain, 19),
    (Mutant::WitnessMajority, 12),
    (Mutant::WitnessCampaigns, 20),
    (Mutant::DuplicateApplied, 19),
    (Mutant::SessionForgotten, 19),
    (Mutant::ShedBeforeDurable, 8),
    (Mutant::EmptyChildVotes, 19),
    (Mutant::FrozenGoesOn, 19),
    (Mutant::FrozenAnswers, 16),
    (Mutant::MergedSessionsDropped, 19),
    (Mutant::TombstoneForgotten, 19),
    (Mutant::ClaimNotWithdrawn, 21),
    (Mutant::QuietGroupsWoken, 22),
    (Mutant::SilentLeaderKept, 23),
    (Mutant::OversizedFrames, 27),
];

/// More mutants, which need a meeting of circumstances that whole nodes seldom see. Scripts of the core play it.
pub const SCRIPTED: &[(Mutant, u8)] = &[
    (Mutant::SecondVote, 1),
    (Mutant::AckInUndurableTerm, 2),
    (Mutant::ChangesOverlap, 12),
    (Mutant::ConfigurationKept, 12),
    (Mutant::CommitBeyondCompared, 13),
    (Mutant::StaleAckCounts, 15),
    (Mutant::WatermarkFalls, 15),
    (Mutant::LeaseInHandover, 17),
    (Mutant::LateOrderObeyed, 17),
    (Mutant::LateOrderFrees, 17),
    (Mutant::RestartFrees, 17),
    (Mutant::LeaderLeft, 17),
    (Mutant::DeadLeaderDefended, 18),
    (Mutant::LowerTermNotTold, 18),
    (Mutant::PreVoteRaisesTerm, 18),
    (Mutant::StrangerVotes, 19),
    (Mutant::LaggardPromoted, 18),
    (Mutant::RemovedLeaderStays, 18),
    (Mutant::ReturnedVotes, 19),
    (Mutant::RepairedVotes, 19),
    (Mutant::WitnessAhead, 18),
    (Mutant::HandoverStuck, 20),
    (Mutant::TargetBehind, 20),
    (Mutant::LearnerLeads, 20),
    (Mutant::OldClaimNotAnswered, 21),
    (Mutant::QuorumNotChecked, 21),
    (Mutant::TimerForgotten, 23),
    (Mutant::EqualTimeouts, 24),
];

/// More mutants, which need a meeting of requests and entries that whole clusters seldom see. A model of the bookkeeping of
/// merges plays it.
pub const MODELLED: &[(Mutant, u8)] = &[
    (Mutant::MergeRefusalForgotten, 19),
    (Mutant::MergedSessionsShared, 19),
];

/// More mutants, whose window is too narrow for whole clusters. A test of what nodes know of each other looks into it.
pub const LEASES: &[(Mutant, u8)] = &[(Mutant::DriftIgnored, 17)];

/// More mutants, which need two callers that create one group at the same time. Tests of what nodes hold for creations look for them.
pub const CREATIONS: &[(Mutant, u8)] = &[(Mutant::ReservationIgnored, 19)];

/// More mutants, for which a message has to come in a later life than its own, and to fit there. Tests of lives send such ones.
pub const LIVES: &[(Mutant, u8)] = &[(Mutant::LifeIgnored, 19)];

/// More mutants, of real links. Tests of those look for them.
pub const LINKS: &[(Mutant, u8)] = &[(Mutant::NonMemberAdmitted, 30)];

#[cfg(polyraft_mutants)]
mod switch {
    use std::cell::Cell;

    use super::Mutant;

    thread_local! {
        static ACTIVE: Cell<Option<Mutant>> = const { Cell::new(None) };
    }

    /// Whether this thread runs with the fault.
    #[must_use]
    pub fn is_active(mutant: Mutant) -> bool {
        ACTIVE.get() == Some(mutant)
    }

    /// The fault that this thread runs with: for a thread that it starts.
    #[must_use]
    pub fn active() -> Option<Mutant> {
        ACTIVE.get()
    }

    /// Makes this thread run with one fault, or with none.
    pub fn set(mutant: Option<Mutant>) {
        ACTIVE.set(mutant);
    }
}

#[cfg(polyraft_mutants)]
pub use switch::{active, is_active, set};

/// Whether this thread runs with the fault: never, in this build.
#[cfg(not(polyraft_mutants))]
#[inline(always)]
#[must_use]
pub const fn is_active(_: Mutant) -> bool {
    false
}
