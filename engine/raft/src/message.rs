//! What replicas of a group say to each other. Fixed-size values: entries are named by range, their bytes
//! are the edge's business.

use crate::{EntryRange, Index, LogPosition, Term};

/// A message between two replicas of one group. `term` is the sender's term unless stated otherwise.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Message {
    /// Would you vote for me? Asked before a campaign, so that a replica that cannot win disturbs nobody.
    PreVote {
        /// The term that the sender would campaign at: its own term + 1.
        term: Term,
        /// End of the sender's log.
        last: LogPosition,
    },
    /// Answer to [`Message::PreVote`].
    PreVoteReply {
        /// The term asked for when granted; the answering replica's own term when not.
        term: Term,
        /// Whether a vote could be expected.
        granted: bool,
    },
    /// Vote for me in `term`.
    Vote {
        /// The campaign's term.
        term: Term,
        /// End of the sender's log.
        last: LogPosition,
        /// Set when the old leader handed over: the voter then does not defend that leader.
        transfer: bool,
    },
    /// Answer to [`Message::Vote`]. A granted one exists only once the vote is durable.
    VoteReply {
        /// The answering replica's term.
        term: Term,
        /// Whether the vote was given.
        granted: bool,
    },
    /// Entries of the leader, or none to carry the commit index or to find the common prefix.
    Append {
        /// The leader's term.
        term: Term,
        /// The place before `entries`, at which both logs must agree.
        prev: LogPosition,
        /// The entries; `entries.first == prev.index + 1`. All of one term.
        entries: EntryRange,
        /// The leader's commit index.
        commit: Index,
    },
    /// The follower's log is durable and equal to the leader's through `matched`.
    Matched {
        /// The term in which the logs were compared.
        term: Term,
        /// Last index that is both equal and durable.
        matched: Index,
        /// The follower's commit index.
        commit: Index,
    },
    /// The follower has no entry like the append's `prev`.
    Conflict {
        /// The term in which the append was refused.
        term: Term,
        /// The refused append's `prev.index`.
        rejected: Index,
        /// Last place of the follower's log, at or before `rejected`, whose term is not above `prev.term`:
        /// nothing after it can match.
        hint: LogPosition,
    },
    /// Answer to anything of a lower term: there is a newer one.
    Stale {
        /// The newer term.
        term: Term,
    },
    /// The leader hands over: campaign at once. Sent only to a voter that holds all of the leader's log.
    TimeoutNow {
        /// The leader's term.
        term: Term,
        /// Where its log ends, with an entry of that term. Void for who has more: the leader has gone on.
        last: Index,
    },
}

impl Message {
    /// The term the message carries.
    #[must_use]
    pub const fn term(&self) -> Term {
        match *self {
            Message::PreVote { term, .. }
            | Message::PreVoteReply { term, .. }
            | Message::Vote { term, .. }
            | Message::VoteReply { term, .. }
            | Message::Append { term, .. }
            | Message::Matched { term, .. }
            | Message::Conflict { term, .. }
            | Message::Stale { term }
            | Message::TimeoutNow { term, .. } => term,
        }
    }
}
