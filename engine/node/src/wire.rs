//! The records inside a frame: what nodes say to each other, byte by byte. `docs/wire-format.md` has the map.
//! Decoding must never panic, and never allocate by a length that it has not checked against the bytes at hand.
//!
//! A frame is a sequence of records. A record is a 16-byte head (kind, life, body length, group) and its body, all
//! integers little-endian. Records about a whole node carry group 0 and life 0 in the head and a node-level kind.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use polyraft_raft::{Configuration, EntryRange, GroupId, Index, Life, LogPosition, Message, Term};
use polyraft_storage::{EntryKind, SnapshotFile};

mod errors;
mod groups;
mod members;
mod reads;
mod snapshot;

use self::errors::put_error;
pub(crate) use self::groups::{
    Fate, Found, RELEASE_BYTES, create_bytes, destroy_bytes, found_bytes, put_claims_delta,
    put_claims_table, put_create, put_create_reply, put_destroy, put_ends, put_life_over,
    put_release, put_survey, put_survey_reply, reply_bytes,
};
pub(crate) use self::members::{
    Grounds, MEMBER_ASK_BYTES, REMOVED_BYTES, Wants, Welcome, configuration_and_rest, join_bytes,
    place_bytes, put_configuration, put_join, put_member_ask, put_place, put_removed,
};
pub(crate) use self::reads::{READ_ASK_BYTES, READ_REPLY_BYTES, put_read_ask, put_read_reply};
pub(crate) use self::snapshot::{
    CHUNK_BYTES, Chunk, FETCH_BYTES, REFUSED_BYTES, Refusal, SnapshotId, offer_bytes,
    put_snapshot_chunk, put_snapshot_fetch, put_snapshot_offer, put_snapshot_refused,
};
use crate::completion::{Committed, Outcome};
use crate::error::Error;
use crate::event::{CreationId, GroupRanges, Hold, LifeRanges, Members, Reign, Ticket};
use crate::liveness::Beat;
use crate::merge::MergeCommand;
use crate::sessions::Command;

/// The most members that a group may have.
pub(crate) const MAX_MEMBERS: usize = 15;

/// The most groups that one request may create.
pub(crate) const MAX_GROUPS_AT_ONCE: u64 = 1 << 20;

/// Bytes of a record's head: kind (1), life of the group's id (3), body length (4), group (8).
pub(crate) const HEAD_BYTES: usize = 16;

/// What a record is about. The numbers are the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Kind {
    PreVote = 1,
    PreVoteReply = 2,
    Vote = 3,
    VoteReply = 4,
    Append = 5,
    Matched = 6,
    Conflict = 7,
    Stale = 8,
    TimeoutNow = 9,
    HollowAppend = 10,
    Place = 11,
    UnknownGroup = 16,
    Forward = 17,
    ForwardReply = 18,
    SnapshotOffer = 19,
    SnapshotFetch = 20,
    SnapshotChunk = 21,
    ReadAsk = 22,
    ReadReply = 23,
    SnapshotRefused = 24,
    Join = 25,
    Removed = 26,
    MemberAsk = 27,
    LifeOver = 28,
    ForwardSession = 29,
    ForwardMerge = 30,
    // Node-level records: the home shard reads them, whatever their group field says.
    Beat = 32,
    ClaimsDelta = 33,
    ClaimsTable = 34,
    ClaimsRequest = 35,
    Create = 36,
    CreateReply = 37,
    Survey = 38,
    SurveyReply = 39,
    Destroy = 40,
    Ends = 41,
    Release = 42,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Kind> {
        *KINDS.get(usize::from(byte))?
    }

    fn is_node_level(self) -> bool {
        self as u8 >= Kind::Beat as u8
    }
}

/// The kinds by their numbers.
const KINDS: [Option<Kind>; 64] = {
    use Kind::*;
    let all = [
        PreVote,
        PreVoteReply,
        Vote,
        VoteReply,
        Append,
        Matched,
        Conflict,
        Stale,
        TimeoutNow,
        HollowAppend,
        Place,
        UnknownGroup,
        Forward,
        ForwardReply,
        SnapshotOffer,
        SnapshotFetch,
        SnapshotChunk,
        ReadAsk,
        ReadReply,
        SnapshotRefused,
        Join,
        Removed,
        MemberAsk,
        LifeOver,
        ForwardSession,
        ForwardMerge,
        Beat,
        ClaimsDelta,
        ClaimsTable,
        ClaimsRequest,
        Create,
        CreateReply,
        Survey,
        SurveyReply,
        Destroy,
        Ends,
        Release,
    ];
    let mut kinds = [None; 64];
    let mut at = 0;
    while at < all.len() {
        kinds[all[at] as usize] = Some(all[at]);
        at += 1;
    }
    kinds
};

/// One record, decoded.
#[derive(Debug, PartialEq)]
pub(crate) enum Record<'a> {
    /// A Raft message of a group. `blocks` holds the entry blocks of an Append, else nothing.
    Group {
        group: GroupId,
        message: Message,
        blocks: &'a [u8],
    },
    /// An Append to a replica that its sender takes for a witness. The blocks have no payloads.
    HollowAppend {
        group: GroupId,
        message: Message,
        blocks: &'a [u8],
    },
    /// The leader of `term` has no log as old as the receiver needs, which is a witness: its log may begin behind `last`, which
    /// is committed.
    Place {
        group: GroupId,
        term: Term,
        last: LogPosition,
        /// The members as of there.
        configuration: Configuration,
    },
    /// The sender got a message for a group that it does not host.
    UnknownGroup { group: GroupId },
    /// A proposal for the group's leader, which the sender takes the receiver to be.
    Forward {
        group: GroupId,
        request: u64,
        /// Plain, of a session, or of a merge.
        kind: EntryKind,
        payload: Bytes,
    },
    /// The answer to a forward.
    ForwardReply {
        group: GroupId,
        request: u64,
        outcome: Outcome,
    },
    /// The sender has reads of a group that it takes the receiver to lead, and asks what they must wait for.
    ReadAsk {
        group: GroupId,
        request: u64,
        /// The leader's lease is good enough.
        by_lease: bool,
    },
    /// The answer: everything through this index is to be applied first.
    ReadReply {
        group: GroupId,
        request: u64,
        outcome: Result<Index, Error>,
    },
    /// The leader of `term` has a snapshot for the receiver, which lacks what it stands for.
    SnapshotOffer { term: Term, file: SnapshotFile },
    /// The sender wants a part of a snapshot that it was offered.
    SnapshotFetch {
        group: GroupId,
        id: SnapshotId,
        offset: u64,
        bytes: u32,
    },
    /// A part of a snapshot.
    SnapshotChunk {
        group: GroupId,
        id: SnapshotId,
        chunk: Chunk,
    },
    /// The sender does not take a snapshot now that it was offered.
    SnapshotRefused {
        group: GroupId,
        id: SnapshotId,
        why: Refusal,
    },
    /// The receiver is a member of a group, whose members as of the beginning of the sender's log these are.
    Join {
        group: GroupId,
        welcome: Welcome,
        configuration: Configuration,
    },
    /// The receiver is no member, as of a committed index.
    Removed {
        group: GroupId,
        at: Index,
        /// The sender's term.
        term: Term,
        grounds: Grounds,
    },
    /// The sender may have been left behind: is it a member still?
    MemberAsk {
        group: GroupId,
        wants: Wants,
        /// What the sender knows an answer to it by.
        question: u64,
    },
    /// The life that the record's head names is over, and every one before it: destroyed everywhere.
    LifeOver { group: GroupId },
    /// The sender lives.
    Beat(Beat),
    /// Changes of the groups that the sender leads.
    ClaimsDelta {
        from_version: u64,
        version: u64,
        changes: Vec<(GroupId, Option<Reign>)>,
    },
    /// A part of the whole table of groups that the sender leads.
    ClaimsTable {
        version: u64,
        is_first: bool,
        /// Claims in all parts together.
        total: usize,
        claims: Vec<(GroupId, Reign)>,
    },
    /// The sender asks for the whole table.
    ClaimsRequest,
    /// Create these groups with these members.
    Create {
        request: u64,
        /// What the receiver holds them under.
        ticket: Option<Ticket>,
        groups: LifeRanges,
        members: Members,
    },
    /// The answer to a create, a destroy or the word of ends. Groups whose lives are over, or that live in a later life, are named with the first
    /// life that they may have; nothing was done for these.
    CreateReply {
        request: u64,
        result: Result<LifeRanges, Error>,
    },
    /// The sender wants to know which lives these groups have, and may want them to be held for a creation.
    Survey {
        request: u64,
        hold: Option<Hold>,
        groups: GroupRanges,
    },
    /// The answer, without the groups that are not known; and under what they are held.
    SurveyReply {
        request: u64,
        ticket: Option<Ticket>,
        found: Vec<Found>,
    },
    /// Nothing is held any more for a creation of the sender.
    Release { creation: CreationId },
    /// These lives of groups are over, and all before them.
    Destroy { request: u64, groups: LifeRanges },
    /// The same, as the sender keeps it: nobody has asked just now which lives there are.
    Ends { request: u64, groups: LifeRanges },
}

/// Why a frame could not be read further. Records before the damage stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WireError {
    #[error("a record is cut short")]
    Short,
    #[error("record kind {0} is unknown")]
    Kind(u8),
    #[error("a {0} record holds an impossible value")]
    Value(&'static str),
}

// ---- writing ----

/// Which group a record is about, and in which life of its id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Subject {
    pub(crate) group: GroupId,
    pub(crate) life: Life,
}

impl From<(GroupId, Life)> for Subject {
    fn from((group, life): (GroupId, Life)) -> Self {
        Subject { group, life }
    }
}

/// In the first life.
impl From<GroupId> for Subject {
    fn from(group: GroupId) -> Self {
        Subject::from((group, Life::FIRST))
    }
}

/// Writes a record's head now and its length when the body is there.
fn record(
    out: &mut BytesMut,
    kind: Kind,
    subject: impl Into<Subject>,
    body: impl FnOnce(&mut BytesMut),
) {
    let Subject { group, life } = subject.into();
    let start = out.len();
    let head = u64::from(kind as u8) | u64::from(life.get()) << 8;
    put_words(out, [head, group.0]);
    body(out);
    let length = u32::try_from(out.len() - start - HEAD_BYTES).expect("frames are far below 4 GiB");
    out[start + 4..start + 8].copy_from_slice(&length.to_le_bytes());
}

/// Writes numbers at once: room is looked for once.
fn put_words<const N: usize>(out: &mut BytesMut, words: [u64; N]) {
    out.put_slice(words.map(u64::to_le_bytes).as_flattened());
}

fn put_position(out: &mut BytesMut, position: LogPosition) {
    put_words(out, [position.term.0, position.index.0]);
}

/// Bytes of an Append record without its blocks.
pub(crate) const APPEND_BYTES: usize = HEAD_BYTES + 7 * 8;

/// Writes a group's message; for an Append with entries `blocks` are their entry blocks, in order.
pub(crate) fn put_message<'b>(
    out: &mut BytesMut,
    group: impl Into<Subject>,
    message: &Message,
    blocks: impl Iterator<Item = &'b [u8]>,
) {
    let group = group.into();
    match *message {
        Message::PreVote { term, last } => record(out, Kind::PreVote, group, |out| {
            out.put_u64_le(term.0);
            put_position(out, last);
        }),
        Message::PreVoteReply { term, granted } => record(out, Kind::PreVoteReply, group, |out| {
            out.put_u64_le(term.0);
            out.put_u8(granted.into());
        }),
        Message::Vote {
            term,
            last,
            transfer,
        } => record(out, Kind::Vote, group, |out| {
            out.put_u64_le(term.0);
            put_position(out, last);
            out.put_u8(transfer.into());
        }),
        Message::VoteReply { term, granted } => record(out, Kind::VoteReply, group, |out| {
            out.put_u64_le(term.0);
            out.put_u8(granted.into());
        }),
        Message::Append { .. } => record(out, Kind::Append, group, |out| {
            put_append_head(out, message);
            blocks.for_each(|block| out.put_slice(block));
        }),
        Message::Matched {
            term,
            matched,
            commit,
        } => record(out, Kind::Matched, group, |out| {
            put_words(out, [term.0, matched.0, commit.0]);
        }),
        Message::Conflict {
            term,
            rejected,
            hint,
        } => record(out, Kind::Conflict, group, |out| {
            out.put_u64_le(term.0);
            out.put_u64_le(rejected.0);
            put_position(out, hint);
        }),
        Message::Stale { term } => record(out, Kind::Stale, group, |out| out.put_u64_le(term.0)),
        Message::TimeoutNow { term, last } => record(out, Kind::TimeoutNow, group, |out| {
            out.put_u64_le(term.0);
            out.put_u64_le(last.0);
        }),
    }
}

/// Writes an Append for a witness; `blocks` are its entries without their payloads.
pub(crate) fn put_hollow_append(
    out: &mut BytesMut,
    group: impl Into<Subject>,
    message: &Message,
    blocks: &[u8],
) {
    record(out, Kind::HollowAppend, group, |out| {
        put_append_head(out, message);
        out.put_slice(blocks);
    });
}

fn put_append_head(out: &mut BytesMut, message: &Message) {
    let Message::Append {
        term,
        prev,
        entries,
        commit,
    } = *message
    else {
        unreachable!("nothing else has entries: {message:?}")
    };
    let words = [
        term.0,
        prev.term.0,
        prev.index.0,
        entries.term.0,
        entries.first.0,
        entries.end.0,
        commit.0,
    ];
    put_words(out, words);
}

/// Writes the news that a message came for a group that is not here.
pub(crate) fn put_unknown_group(out: &mut BytesMut, group: impl Into<Subject>) {
    record(out, Kind::UnknownGroup, group, |_| {});
}

/// Writes a proposal for the leader's node.
pub(crate) fn put_forward(
    out: &mut BytesMut,
    group: impl Into<Subject>,
    request: u64,
    kind: EntryKind,
    payload: &[u8],
) {
    let kind = match kind {
        EntryKind::Session => Kind::ForwardSession,
        EntryKind::Merge => Kind::ForwardMerge,
        _ => Kind::Forward,
    };
    record(out, kind, group, |out| {
        out.put_u64_le(request);
        out.put_slice(payload);
    });
}

/// Writes the answer to a forwarded proposal.
pub(crate) fn put_forward_reply(
    out: &mut BytesMut,
    group: impl Into<Subject>,
    request: u64,
    outcome: &Outcome,
) {
    record(out, Kind::ForwardReply, group, |out| {
        out.put_u64_le(request);
        match outcome {
            Ok(committed) => {
                out.put_u8(0);
                out.put_u64_le(committed.index.0);
                out.put_slice(&committed.reply);
            }
            Err(error) => put_error(out, error),
        }
    });
}

/// The beat that a frame consists of, if it holds that and nothing else.
pub(crate) fn lone_beat(frame: &Bytes) -> Option<Beat> {
    let mut records = Records::new(frame);
    let Some(Ok(Record::Beat(beat))) = records.next_for(|_| true) else {
        return None;
    };
    records.next_for(|_| true).is_none().then_some(beat)
}

/// Writes a beat.
pub(crate) fn put_beat(out: &mut BytesMut, beat: &Beat) {
    record(out, Kind::Beat, GroupId(0), |out| {
        out.put_u64_le(beat.incarnation);
        out.put_u64_le(beat.sequence);
        out.put_u64_le(beat.heard);
        out.put_u64_le(beat.claims_version);
        out.put_u64_le(beat.of);
        out.put_u64_le(beat.taken);
        out.put_u64_le(beat.promise);
        // What was said before there were priorities says the usual one.
        let below =
            crate::config::USUAL_PRIORITY - beat.priority.min(crate::config::USUAL_PRIORITY);
        out.put_u8(u8::from(beat.wants_answer) | below << 1);
    });
}

/// Writes the wish for the whole table.
pub(crate) fn put_claims_request(out: &mut BytesMut) {
    record(out, Kind::ClaimsRequest, GroupId(0), |_| {});
}

// ---- reading ----

/// Walks the records of a frame.
pub(crate) struct Records<'a> {
    frame: &'a Bytes,
    rest: &'a [u8],
    subject: Option<Subject>,
}

impl<'a> Records<'a> {
    pub(crate) fn new(frame: &'a Bytes) -> Self {
        Records {
            frame,
            rest: frame,
            subject: None,
        }
    }

    /// What the record that was read last is about; nothing for one about a whole node.
    pub(crate) fn subject(&self) -> Option<Subject> {
        self.subject
    }

    /// The next record that `is_mine` wants, by its group (none: node-level). Others are skipped unread.
    pub(crate) fn next_for(
        &mut self,
        is_mine: impl Fn(Option<GroupId>) -> bool,
    ) -> Option<Result<Record<'a>, WireError>> {
        while !self.rest.is_empty() {
            let (kind, subject, body) = match self.split() {
                Ok(parts) => parts,
                Err(error) => {
                    self.rest = &[];
                    return Some(Err(error));
                }
            };
            let group = subject.group;
            self.subject = (!kind.is_node_level()).then_some(subject);
            if is_mine(self.subject.map(|subject| subject.group)) {
                return Some(decode(kind, group, body, self.frame));
            }
        }
        None
    }

    /// Passes over records up to and including the next one that `is_mine` wants, and says which group that is for. Nothing
    /// at the end, at damage and for node-level records.
    pub(crate) fn skip_for(
        &mut self,
        is_mine: impl Fn(Option<GroupId>) -> bool,
    ) -> Option<GroupId> {
        loop {
            let (kind, subject, _) = self.split().ok()?;
            let group = (!kind.is_node_level()).then_some(subject.group);
            if is_mine(group) {
                return group;
            }
        }
    }

    fn split(&mut self) -> Result<(Kind, Subject, &'a [u8]), WireError> {
        let (head, rest) = self
            .rest
            .split_at_checked(HEAD_BYTES)
            .ok_or(WireError::Short)?;
        let kind = Kind::from_byte(head[0]).ok_or(WireError::Kind(head[0]))?;
        let length = u32::from_le_bytes(head[4..8].try_into().expect("four bytes")) as usize;
        let group = GroupId(u64::from_le_bytes(
            head[8..16].try_into().expect("eight bytes"),
        ));
        let (body, rest) = rest.split_at_checked(length).ok_or(WireError::Short)?;
        self.rest = rest;
        let number = u32::from_le_bytes([head[1], head[2], head[3], 0]);
        let life = Life::new(number).expect("a life has three bytes");
        Ok((kind, Subject { group, life }, body))
    }
}

/// Which shards a frame has records for: `shard_of` says where a group lives, node-level records go home (0).
/// Stops at damage; the shards that read the frame will report it.
pub(crate) fn shards_in(
    frame: &Bytes,
    shard_of: impl Fn(GroupId) -> usize,
    mut visit: impl FnMut(usize),
) {
    let mut records = Records::new(frame);
    while !records.rest.is_empty() {
        match records.split() {
            Ok((kind, subject, _)) => visit(if kind.is_node_level() {
                0
            } else {
                shard_of(subject.group)
            }),
            Err(_) => return visit(0),
        }
    }
}

/// Reads integers off a body, each checked against what is left.
struct Body<'a>(&'a [u8]);

impl Body<'_> {
    fn u64(&mut self) -> Result<u64, WireError> {
        self.0.try_get_u64_le().map_err(|_| WireError::Short)
    }

    fn u8(&mut self) -> Result<u8, WireError> {
        self.0.try_get_u8().map_err(|_| WireError::Short)
    }

    fn bool(&mut self, what: &'static str) -> Result<bool, WireError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(WireError::Value(what)),
        }
    }

    fn term(&mut self) -> Result<Term, WireError> {
        self.u64().map(Term)
    }

    fn index(&mut self) -> Result<Index, WireError> {
        self.u64().map(Index)
    }

    fn position(&mut self) -> Result<LogPosition, WireError> {
        Ok(LogPosition {
            term: self.term()?,
            index: self.index()?,
        })
    }

    fn u32(&mut self) -> Result<u32, WireError> {
        self.0.try_get_u32_le().map_err(|_| WireError::Short)
    }

    /// The rest as pairs of integers; its length must fit exactly.
    fn pairs<T>(
        mut self,
        what: &'static str,
        make: impl Fn(u64, u64) -> T,
    ) -> Result<Vec<T>, WireError> {
        if !self.0.len().is_multiple_of(16) {
            return Err(WireError::Value(what));
        }
        let mut pairs = Vec::with_capacity(self.0.len() / 16);
        while !self.0.is_empty() {
            pairs.push(make(self.u64()?, self.u64()?));
        }
        Ok(pairs)
    }

    fn size(&mut self, what: &'static str) -> Result<usize, WireError> {
        usize::try_from(self.u64()?).map_err(|_| WireError::Value(what))
    }

    fn text(self) -> String {
        String::from_utf8_lossy(self.0).into_owned()
    }
}

fn decode<'a>(
    kind: Kind,
    group: GroupId,
    body: &'a [u8],
    frame: &Bytes,
) -> Result<Record<'a>, WireError> {
    let mut body = Body(body);
    let message = match kind {
        Kind::PreVote => Message::PreVote {
            term: body.term()?,
            last: body.position()?,
        },
        Kind::PreVoteReply => Message::PreVoteReply {
            term: body.term()?,
            granted: body.bool("pre-vote reply")?,
        },
        Kind::Vote => Message::Vote {
            term: body.term()?,
            last: body.position()?,
            transfer: body.bool("vote")?,
        },
        Kind::VoteReply => Message::VoteReply {
            term: body.term()?,
            granted: body.bool("vote reply")?,
        },
        Kind::Append | Kind::HollowAppend => {
            let (term, prev) = (body.term()?, body.position()?);
            let entries = EntryRange {
                term: body.term()?,
                first: body.index()?,
                end: body.index()?,
            };
            let is_next = prev.index.0.checked_add(1) == Some(entries.first.0);
            if !is_next || entries.end < entries.first || entries.term > term || prev.term > term {
                return Err(WireError::Value("append"));
            }
            Message::Append {
                term,
                prev,
                entries,
                commit: body.index()?,
            }
        }
        Kind::Matched => Message::Matched {
            term: body.term()?,
            matched: body.index()?,
            commit: body.index()?,
        },
        Kind::Conflict => Message::Conflict {
            term: body.term()?,
            rejected: body.index()?,
            hint: body.position()?,
        },
        Kind::Stale => Message::Stale { term: body.term()? },
        Kind::TimeoutNow => Message::TimeoutNow {
            term: body.term()?,
            last: body.index()?,
        },
        Kind::UnknownGroup => return Ok(Record::UnknownGroup { group }),
        Kind::LifeOver => return Ok(Record::LifeOver { group }),
        Kind::Forward => {
            return Ok(Record::Forward {
                group,
                request: body.u64()?,
                kind: EntryKind::Normal,
                payload: frame.slice_ref(body.0),
            });
        }
        Kind::ForwardSession => {
            let request = body.u64()?;
            if Command::parse(body.0).is_none() {
                return Err(WireError::Value("forward of a session"));
            }
            return Ok(Record::Forward {
                group,
                request,
                kind: EntryKind::Session,
                payload: frame.slice_ref(body.0),
            });
        }
        Kind::ForwardMerge => {
            let request = body.u64()?;
            if MergeCommand::parse(body.0).is_none() {
                return Err(WireError::Value("forward of a merge"));
            }
            return Ok(Record::Forward {
                group,
                request,
                kind: EntryKind::Merge,
                payload: frame.slice_ref(body.0),
            });
        }
        Kind::ForwardReply => {
            let request = body.u64()?;
            let outcome = if body.0.first() == Some(&0) {
                body.u8()?;
                Ok(Committed {
                    index: body.index()?,
                    reply: frame.slice_ref(body.0),
                })
            } else {
                Err(body.error()?)
            };
            return Ok(Record::ForwardReply {
                group,
                request,
                outcome,
            });
        }
        Kind::ReadAsk => {
            return Ok(Record::ReadAsk {
                group,
                request: body.u64()?,
                by_lease: body.bool("read ask")?,
            });
        }
        Kind::ReadReply => {
            let request = body.u64()?;
            let outcome = if body.0.first() == Some(&0) {
                body.u8()?;
                Ok(body.index()?)
            } else {
                Err(body.error()?)
            };
            return Ok(Record::ReadReply {
                group,
                request,
                outcome,
            });
        }
        Kind::SnapshotOffer | Kind::SnapshotFetch | Kind::SnapshotChunk | Kind::SnapshotRefused => {
            return snapshot::decode(kind, group, body, frame);
        }
        Kind::Join | Kind::Place | Kind::Removed | Kind::MemberAsk => {
            return members::decode(kind, group, body);
        }
        Kind::Beat => {
            let mut beat = Beat {
                incarnation: body.u64()?,
                sequence: body.u64()?,
                heard: body.u64()?,
                claims_version: body.u64()?,
                of: body.u64()?,
                taken: body.u64()?,
                promise: body.u64()?,
                wants_answer: false,
                priority: crate::config::USUAL_PRIORITY,
            };
            let last = body.u8()?;
            beat.wants_answer = last & 1 != 0;
            let priority = beat.priority.checked_sub(last >> 1);
            beat.priority = priority.ok_or(WireError::Value("beat"))?;
            return Ok(Record::Beat(beat));
        }
        Kind::ClaimsRequest => return Ok(Record::ClaimsRequest),
        Kind::ClaimsDelta
        | Kind::ClaimsTable
        | Kind::Create
        | Kind::CreateReply
        | Kind::Survey
        | Kind::SurveyReply
        | Kind::Destroy
        | Kind::Ends
        | Kind::Release => return groups::decode(kind, body),
    };
    Ok(match kind {
        Kind::HollowAppend => Record::HollowAppend {
            group,
            message,
            blocks: body.0,
        },
        _ => Record::Group {
            group,
            message,
            blocks: if kind == Kind::Append { body.0 } else { &[] },
        },
    })
}

#[cfg(test)]
mod tests;
