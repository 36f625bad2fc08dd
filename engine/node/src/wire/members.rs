//! Records about who belongs to a group: the word that a node is a member, that it is one no more, and the question.
//! A configuration has one form on the wire; the snapshot records use it too.

use bytes::{BufMut, BytesMut};
use polyraft_raft::{Configuration, GroupId, Index, LogPosition, NodeId, Term};

use super::{
    Body, HEAD_BYTES, Kind, MAX_MEMBERS, Record, Subject, WireError, put_position, record,
};
use crate::event::Members;

/// What the word that a node is no member rests on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Grounds {
    /// What its sender knows, who may know less than others.
    Hearsay,
    /// Its sender leads its term, and no later entry of its log says who the members are.
    Leader,
    /// The same, and something was committed after the question of this number.
    Proof(u64),
}

/// What a node wants to hear that asks whether it is a member still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wants {
    /// What anybody knows.
    Word,
    /// What is so by all that is committed: its log is damaged, and it does not know what it lost.
    Proof,
    /// The same; or else, that it may come back without its log.
    Return,
}

/// Bytes of a removal.
pub(crate) const REMOVED_BYTES: usize = HEAD_BYTES + 25;

/// A bound on the bytes of a record that makes a node a member.
pub(crate) fn join_bytes(configuration: &Configuration) -> usize {
    HEAD_BYTES + 25 + configuration_bytes(configuration)
}

/// What a node says of itself that tells another one that it is a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Welcome {
    /// Its term, and whether it leads it.
    pub(crate) term: Term,
    pub(crate) leads: bool,
    /// The receiver stores no payload.
    pub(crate) is_witness: bool,
    /// The number of the question that it answers, of a replica that may come back without its log; 0: of none.
    pub(crate) answers: u64,
    /// The entry of the sender's term that was committed since that question, without the receiver; 0: it answers none.
    pub(crate) proof: Index,
    /// The group began with a state: whoever has nothing lacks something that counts.
    pub(crate) has_begun: bool,
}

/// Writes the word that the receiver is a member, and who the members are as of the beginning of the sender's log.
pub(crate) fn put_join(
    out: &mut BytesMut,
    group: impl Into<Subject>,
    welcome: Welcome,
    configuration: &Configuration,
) {
    record(out, Kind::Join, group, |out| {
        out.put_u64_le(welcome.term.0);
        let flags = [welcome.leads, welcome.is_witness, welcome.has_begun];
        let flags = flags
            .iter()
            .rev()
            .fold(0, |sum, flag| sum << 1 | u8::from(*flag));
        out.put_u8(flags);
        out.put_u64_le(welcome.answers);
        out.put_u64_le(welcome.proof.0);
        put_configuration(out, configuration);
    });
}

/// A bound on the bytes of a record that tells a witness where its log may begin.
pub(crate) fn place_bytes(configuration: &Configuration) -> usize {
    HEAD_BYTES + 24 + configuration_bytes(configuration)
}

/// Writes where the log of a witness may begin, and who the members are as of there.
pub(crate) fn put_place(
    out: &mut BytesMut,
    group: impl Into<Subject>,
    term: Term,
    last: LogPosition,
    configuration: &Configuration,
) {
    record(out, Kind::Place, group, |out| {
        out.put_u64_le(term.0);
        put_position(out, last);
        put_configuration(out, configuration);
    });
}

/// Writes the word that the receiver is no member, as of a committed index, by somebody who is in a term.
pub(crate) fn put_removed(
    out: &mut BytesMut,
    group: impl Into<Subject>,
    at: Index,
    term: Term,
    grounds: Grounds,
) {
    let (kind, question) = match grounds {
        Grounds::Hearsay => (0, 0),
        Grounds::Leader => (1, 0),
        Grounds::Proof(question) => (2, question),
    };
    record(out, Kind::Removed, group, |out| {
        out.put_u64_le(at.0);
        out.put_u64_le(term.0);
        out.put_u8(kind);
        out.put_u64_le(question);
    });
}

/// Bytes of the question whether the sender is a member still.
pub(crate) const MEMBER_ASK_BYTES: usize = HEAD_BYTES + 9;

/// Writes that question, with its number.
pub(crate) fn put_member_ask(
    out: &mut BytesMut,
    group: impl Into<Subject>,
    wants: Wants,
    question: u64,
) {
    record(out, Kind::MemberAsk, group, |out| {
        out.put_u8(wants as u8);
        out.put_u64_le(question);
    });
}

/// Reads the body of one of these records.
pub(super) fn decode<'a>(
    kind: Kind,
    group: GroupId,
    mut body: Body<'_>,
) -> Result<Record<'a>, WireError> {
    if kind == Kind::MemberAsk {
        let (wants, question) = (body.u8()?, body.u64()?);
        let wants = match wants {
            0 => Wants::Word,
            1 => Wants::Proof,
            2 => Wants::Return,
            _ => return Err(WireError::Value("question of a member")),
        };
        return match body.0 {
            [] => Ok(Record::MemberAsk {
                group,
                wants,
                question,
            }),
            _ => Err(WireError::Value("question of a member")),
        };
    }
    if kind == Kind::Join {
        let (term, flags) = (body.term()?, body.u8()?);
        let (answers, proof) = (body.u64()?, body.index()?);
        if flags > 7 || (answers == 0) != (proof == Index::ZERO) {
            return Err(WireError::Value("join"));
        }
        return Ok(Record::Join {
            group,
            welcome: Welcome {
                term,
                leads: flags & 1 != 0,
                is_witness: flags & 2 != 0,
                has_begun: flags & 4 != 0,
                answers,
                proof,
            },
            configuration: configuration(&mut body)?,
        });
    }
    if kind == Kind::Place {
        let (term, last) = (body.term()?, body.position()?);
        let is_place = (1..=1 << 63).contains(&last.index.0) && last.term <= term;
        if !is_place {
            return Err(WireError::Value("place"));
        }
        return Ok(Record::Place {
            group,
            term,
            last,
            configuration: configuration(&mut body)?,
        });
    }
    let (at, term) = (body.index()?, body.term()?);
    let grounds = match (body.u8()?, body.u64()?) {
        (0, 0) => Grounds::Hearsay,
        (1, 0) => Grounds::Leader,
        (2, question) => Grounds::Proof(question),
        _ => return Err(WireError::Value("removal")),
    };
    match body.0 {
        [] => Ok(Record::Removed {
            group,
            at,
            term,
            grounds,
        }),
        _ => Err(WireError::Value("removal")),
    }
}

fn lists_of(configuration: &Configuration) -> [&[NodeId]; 5] {
    [
        configuration.voters(),
        configuration.outgoing(),
        configuration.learners(),
        configuration.learners_next(),
        configuration.witnesses(),
    ]
}

pub(super) fn configuration_bytes(configuration: &Configuration) -> usize {
    let nodes: usize = lists_of(configuration).iter().map(|list| list.len()).sum();
    4 + 8 * nodes + configuration.preferred().map_or(0, |_| 8)
}

/// Counts and then the nodes: incoming voters, outgoing voters, learners, next learners, witnesses, and who should lead. The count
/// of the last one shares a byte with that of the learners, and that of the witnesses one with that of the next learners.
pub(crate) fn put_configuration(out: &mut BytesMut, configuration: &Configuration) {
    let lists = lists_of(configuration);
    let count = |list: &[NodeId]| u8::try_from(list.len()).expect("configurations are far smaller");
    let half = |list: &[NodeId]| {
        assert!(list.len() <= MAX_MEMBERS, "configurations are smaller");
        list.len() as u8
    };
    let preferred = configuration.preferred();
    let [voters, outgoing, learners, next, witnesses] = lists;
    out.put_u8(count(voters));
    out.put_u8(count(outgoing));
    out.put_u8(half(learners) | half(preferred.as_slice()) << 4);
    out.put_u8(half(next) | half(witnesses) << 4);
    for node in lists.iter().flat_map(|list| list.iter()).chain(&preferred) {
        out.put_u64_le(node.0);
    }
}

/// Everything that is left is a configuration in the form in which it is written.
pub(super) fn configuration(body: &mut Body<'_>) -> Result<Configuration, WireError> {
    let configuration = next_configuration(body)?;
    match body.0 {
        [] => Ok(configuration),
        _ => Err(WireError::Value("configuration")),
    }
}

/// What comes next is a configuration in the form in which it is written.
pub(super) fn next_configuration(body: &mut Body<'_>) -> Result<Configuration, WireError> {
    let [a, b, c, d] = [body.u8()?, body.u8()?, body.u8()?, body.u8()?];
    let counts = [a, b, c & 15, d & 15, d >> 4].map(usize::from);
    let has_preferred = match c >> 4 {
        0 => false,
        1 => true,
        _ => return Err(WireError::Value("configuration")),
    };
    if counts.iter().any(|count| *count > MAX_MEMBERS)
        || body.0.len() < 8 * counts.iter().sum::<usize>()
    {
        return Err(WireError::Value("configuration"));
    }
    let mut lists: [Members; 5] = Default::default();
    for (list, count) in lists.iter_mut().zip(counts) {
        for _ in 0..count {
            list.push(NodeId(body.u64()?));
        }
    }
    let nodes = |at: usize| lists[at].iter().copied();
    let configuration = Configuration::joint(nodes(0), nodes(1), nodes(2), nodes(3));
    let preferred = match has_preferred {
        true => Some(NodeId(body.u64()?)),
        false => None,
    };
    let configuration = configuration
        .with_witnesses(nodes(4))
        .with_preferred(preferred);
    let as_written = lists_of(&configuration)
        .iter()
        .zip(&lists)
        .all(|(list, read)| **list == read[..]);
    let as_written = as_written && configuration.preferred() == preferred;
    match as_written && !lists[0].is_empty() {
        true => Ok(configuration),
        false => Err(WireError::Value("configuration")),
    }
}

/// Reads a configuration at the start of bytes in which it is followed by something else.
pub(crate) fn configuration_and_rest(bytes: &[u8]) -> Option<(Configuration, &[u8])> {
    let mut body = Body(bytes);
    let configuration = next_configuration(&mut body).ok()?;
    Some((configuration, body.0))
}
