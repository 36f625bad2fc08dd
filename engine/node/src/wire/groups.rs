//! Records about many groups at once: what a node claims of them, which lives they have, and that they begin or end.
//! A life that is not the first costs bytes; the first one costs none where there may be many entries.

use std::num::NonZeroU64;

use bytes::{BufMut, BytesMut};
use polyraft_raft::{Configuration, GroupId, Life, NodeId, Term};

use super::members::{configuration_bytes, next_configuration, put_configuration};
use super::{
    Body, HEAD_BYTES, Kind, MAX_GROUPS_AT_ONCE, MAX_MEMBERS, Record, Subject, WireError, put_error,
    record,
};
use crate::error::Error;
use crate::event::{CreationId, GroupRanges, Hold, LifeRanges, Members, Reign, Ticket};

/// Stands in a list of claims before the next one, and says its life. No group may have this id.
const LIFE_FOLLOWS: u64 = u64::MAX;

/// Groups that a node has, or had.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Found {
    pub(crate) groups: std::ops::Range<u64>,
    /// The newest life of them that is known.
    pub(crate) life: Life,
    /// What became of that.
    pub(crate) fate: Fate,
}

/// What became of a life of groups, as a node knows it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Fate {
    /// It is over everywhere.
    Over,
    /// It has replicas here, who know these for its members.
    Here(Configuration),
    /// It has replicas here, and their damaged log does not say who the members are.
    Damaged,
    /// Its replicas here were removed, and it went on with members that are not known here.
    Elsewhere,
    /// It must not end yet: this group is being merged into it. Said beside what became of it.
    Target(GroupId),
    /// It must not end yet: this group was split off it, and may have too few replicas. Said beside what became of it.
    Parent(GroupId),
    /// It has replicas here, who know these for its members, and a damaged log that may have lost a later life: they stay until the
    /// group is destroyed, whatever is known elsewhere.
    Stays(Configuration),
}

impl Fate {
    /// Whether it says something else than what became of a life.
    fn is_aside(&self) -> bool {
        matches!(self, Fate::Target(_) | Fate::Parent(_))
    }
}

/// Writes the news that a life of a group is over, and every one before it.
pub(crate) fn put_life_over(out: &mut BytesMut, subject: impl Into<Subject>) {
    record(out, Kind::LifeOver, subject, |_| {});
}

fn put_claim(out: &mut BytesMut, group: GroupId, reign: Reign) {
    if reign.life > Life::FIRST {
        out.put_u64_le(LIFE_FOLLOWS);
        out.put_u64_le(reign.life.get().into());
    }
    out.put_u64_le(group.0);
    out.put_u64_le(reign.term.0);
}

/// Writes changed claims; no reign stands for a claim given up.
pub(crate) fn put_claims_delta(
    out: &mut BytesMut,
    from_version: u64,
    version: u64,
    changes: &[(GroupId, Option<Reign>)],
) {
    record(out, Kind::ClaimsDelta, GroupId(0), |out| {
        out.put_u64_le(from_version);
        out.put_u64_le(version);
        for (group, reign) in changes {
            // Nobody leads in term 0, so it can say "no longer".
            put_claim(out, *group, reign.unwrap_or_default());
        }
    });
}

/// Writes one part of the table of claims.
pub(crate) fn put_claims_table(
    out: &mut BytesMut,
    version: u64,
    is_first: bool,
    total: usize,
    claims: &[(GroupId, Reign)],
) {
    record(out, Kind::ClaimsTable, GroupId(0), |out| {
        out.put_u64_le(version);
        out.put_u8(is_first.into());
        out.put_u64_le(total as u64);
        for (group, reign) in claims {
            put_claim(out, *group, *reign);
        }
    });
}

/// The rest of a body is claims.
fn claims(mut body: Body<'_>) -> Result<Vec<(GroupId, Reign)>, WireError> {
    if !body.0.len().is_multiple_of(16) {
        return Err(WireError::Value("claims"));
    }
    let mut claims = Vec::with_capacity(body.0.len() / 16);
    while !body.0.is_empty() {
        let (mut group, mut value, mut life) = (body.u64()?, body.u64()?, Life::FIRST);
        if group == LIFE_FOLLOWS {
            life = some_life(value)?;
            (group, value) = (body.u64()?, body.u64()?);
            if life == Life::FIRST || value == 0 {
                return Err(WireError::Value("claims"));
            }
        }
        if group == LIFE_FOLLOWS {
            return Err(WireError::Value("claims"));
        }
        let term = Term(value);
        claims.push((GroupId(group), Reign { life, term }));
    }
    Ok(claims)
}

fn some_life(number: u64) -> Result<Life, WireError> {
    let life = u32::try_from(number).ok().and_then(Life::new);
    life.ok_or(WireError::Value("life"))
}

fn put_lives(out: &mut BytesMut, groups: &LifeRanges) {
    for (range, life) in groups {
        out.put_u64_le(range.start);
        out.put_u64_le(range.end);
        out.put_u64_le(life.get().into());
    }
}

/// The rest of a body is ranges of groups with their lives.
fn lives(mut body: Body<'_>) -> Result<LifeRanges, WireError> {
    if !body.0.len().is_multiple_of(24) {
        return Err(WireError::Value("lives"));
    }
    let mut lives = LifeRanges::with_capacity(body.0.len() / 24);
    while !body.0.is_empty() {
        let range = body.u64()?..body.u64()?;
        lives.push((range, some_life(body.u64()?)?));
    }
    match are_groups(lives.iter().map(|(range, _)| range)) {
        true => Ok(lives),
        false => Err(WireError::Value("lives")),
    }
}

/// Whether ranges of groups are in order and disjoint, and not too many groups.
fn are_groups<'a>(ranges: impl Iterator<Item = &'a std::ops::Range<u64>>) -> bool {
    let (mut end, mut count) = (0, 0u64);
    for range in ranges {
        if range.start < end || range.start >= range.end || range.end == u64::MAX {
            return false;
        }
        end = range.end;
        count = count.saturating_add(range.end - range.start);
    }
    count <= MAX_GROUPS_AT_ONCE
}

/// Bytes of a request to create groups.
pub(crate) fn create_bytes(groups: &LifeRanges, members: &[NodeId]) -> usize {
    HEAD_BYTES + 17 + members.len() * 8 + groups.len() * 24
}

/// Writes a request to create groups.
pub(crate) fn put_create(
    out: &mut BytesMut,
    request: u64,
    ticket: Option<Ticket>,
    groups: &LifeRanges,
    members: &[NodeId],
) {
    record(out, Kind::Create, GroupId(0), |out| {
        out.put_u64_le(request);
        put_number(out, ticket);
        out.put_u8(u8::try_from(members.len()).expect("checked when the request was made"));
        members.iter().for_each(|member| out.put_u64_le(member.0));
        put_lives(out, groups);
    });
}

/// A bound on the bytes of the answer to a create or a destroy.
pub(crate) fn reply_bytes(result: &Result<LifeRanges, Error>) -> usize {
    HEAD_BYTES + 1024 + result.as_ref().map_or(0, |lives| lives.len() * 24)
}

/// Writes the answer to a create or a destroy.
pub(crate) fn put_create_reply(
    out: &mut BytesMut,
    request: u64,
    result: &Result<LifeRanges, Error>,
) {
    record(out, Kind::CreateReply, GroupId(0), |out| {
        out.put_u64_le(request);
        match result {
            Ok(lives) => {
                out.put_u8(0);
                put_lives(out, lives);
            }
            Err(error) => put_error(out, error),
        }
    });
}

fn put_number(out: &mut BytesMut, number: Option<NonZeroU64>) {
    out.put_u64_le(number.map_or(0, NonZeroU64::get));
}

/// Writes the question which lives groups have.
pub(crate) fn put_survey(
    out: &mut BytesMut,
    request: u64,
    hold: Option<Hold>,
    groups: &GroupRanges,
) {
    record(out, Kind::Survey, GroupId(0), |out| {
        out.put_u64_le(request);
        put_number(out, hold.map(|hold| hold.creation));
        put_number(out, hold.and_then(|hold| hold.ticket));
        for range in groups {
            out.put_u64_le(range.start);
            out.put_u64_le(range.end);
        }
    });
}

/// Bytes of the answer to that.
pub(crate) fn found_bytes(found: &[Found]) -> usize {
    let each = |found: &Found| match &found.fate {
        Fate::Here(members) | Fate::Stays(members) => 21 + configuration_bytes(members),
        Fate::Target(_) | Fate::Parent(_) => 29,
        _ => 21,
    };
    HEAD_BYTES + 16 + found.iter().map(each).sum::<usize>()
}

/// Writes the answer to that.
pub(crate) fn put_survey_reply(
    out: &mut BytesMut,
    request: u64,
    ticket: Option<Ticket>,
    found: &[Found],
) {
    record(out, Kind::SurveyReply, GroupId(0), |out| {
        out.put_u64_le(request);
        put_number(out, ticket);
        for found in found {
            out.put_u64_le(found.groups.start);
            out.put_u64_le(found.groups.end);
            out.put_u32_le(found.life.get());
            match &found.fate {
                Fate::Over => out.put_u8(0),
                Fate::Here(members) => {
                    out.put_u8(1);
                    put_configuration(out, members);
                }
                Fate::Damaged => out.put_u8(2),
                Fate::Elsewhere => out.put_u8(3),
                Fate::Target(source) => {
                    out.put_u8(4);
                    out.put_u64_le(source.0);
                }
                Fate::Parent(child) => {
                    out.put_u8(5);
                    out.put_u64_le(child.0);
                }
                Fate::Stays(members) => {
                    out.put_u8(6);
                    put_configuration(out, members);
                }
            }
        }
    });
}

/// Bytes of the word that a creation is over.
pub(crate) const RELEASE_BYTES: usize = HEAD_BYTES + 8;

/// Writes the word that a creation is over.
pub(crate) fn put_release(out: &mut BytesMut, creation: CreationId) {
    record(out, Kind::Release, GroupId(0), |out| {
        out.put_u64_le(creation.get());
    });
}

/// Bytes of the word that lives are over, or of the question which there are.
pub(crate) fn destroy_bytes(groups: &LifeRanges) -> usize {
    HEAD_BYTES + 24 + groups.len() * 24
}

/// Writes the word that lives are over.
pub(crate) fn put_destroy(out: &mut BytesMut, request: u64, groups: &LifeRanges) {
    record(out, Kind::Destroy, GroupId(0), |out| {
        out.put_u64_le(request);
        put_lives(out, groups);
    });
}

/// Writes which lives are over as this node keeps it. As long as a destroy.
pub(crate) fn put_ends(out: &mut BytesMut, request: u64, groups: &LifeRanges) {
    record(out, Kind::Ends, GroupId(0), |out| {
        out.put_u64_le(request);
        put_lives(out, groups);
    });
}

/// Reads the body of one of these records.
pub(super) fn decode<'a>(kind: Kind, mut body: Body<'_>) -> Result<Record<'a>, WireError> {
    match kind {
        Kind::ClaimsDelta => {
            let (from_version, version) = (body.u64()?, body.u64()?);
            let is_led = |reign: &Reign| { reign.term } > Term::ZERO;
            let changes = claims(body)?
                .into_iter()
                .map(|(group, reign)| (group, Some(reign).filter(is_led)))
                .collect();
            Ok(Record::ClaimsDelta {
                from_version,
                version,
                changes,
            })
        }
        Kind::ClaimsTable => {
            let version = body.u64()?;
            let is_first = body.bool("claims table")?;
            let total =
                usize::try_from(body.u64()?).map_err(|_| WireError::Value("claims table"))?;
            let claims = claims(body)?;
            Ok(Record::ClaimsTable {
                version,
                is_first,
                total,
                claims,
            })
        }
        Kind::Create => {
            let (request, ticket) = (body.u64()?, NonZeroU64::new(body.u64()?));
            let count = body.u8()?;
            let mut members = Members::new();
            for _ in 0..count {
                members.push(NodeId(body.u64()?));
            }
            let is_members = !members.is_empty()
                && members.len() <= MAX_MEMBERS
                && members.is_sorted_by(|a, b| a < b);
            if !is_members {
                return Err(WireError::Value("create"));
            }
            let groups = lives(body)?;
            Ok(Record::Create {
                request,
                ticket,
                groups,
                members,
            })
        }
        Kind::CreateReply => {
            let request = body.u64()?;
            let result = if body.0.first() == Some(&0) {
                body.u8()?;
                Ok(lives(body)?)
            } else {
                Err(body.error()?)
            };
            Ok(Record::CreateReply { request, result })
        }
        Kind::Survey => {
            let (request, creation) = (body.u64()?, NonZeroU64::new(body.u64()?));
            let ticket = NonZeroU64::new(body.u64()?);
            let hold = creation.map(|creation| Hold { creation, ticket });
            let groups = body.pairs("survey", |start, end| start..end)?;
            // A ticket is for a creation.
            match are_groups(groups.iter()) && (hold.is_some() || ticket.is_none()) {
                true => Ok(Record::Survey {
                    request,
                    hold,
                    groups,
                }),
                false => Err(WireError::Value("survey")),
            }
        }
        Kind::SurveyReply => survey_reply(body),
        Kind::Release => {
            let creation = NonZeroU64::new(body.u64()?).ok_or(WireError::Value("release"))?;
            Ok(Record::Release { creation })
        }
        _ => {
            let (request, groups) = (body.u64()?, lives(body)?);
            Ok(match kind {
                Kind::Ends => Record::Ends { request, groups },
                _ => Record::Destroy { request, groups },
            })
        }
    }
}

fn survey_reply<'a>(mut body: Body<'_>) -> Result<Record<'a>, WireError> {
    let (request, ticket) = (body.u64()?, NonZeroU64::new(body.u64()?));
    let mut found = Vec::new();
    while !body.0.is_empty() {
        let groups = body.u64()?..body.u64()?;
        let life = some_life(body.u32()?.into())?;
        let fate = match body.u8()? {
            0 => Fate::Over,
            1 => Fate::Here(next_configuration(&mut body)?),
            2 => Fate::Damaged,
            3 => Fate::Elsewhere,
            4 => Fate::Target(GroupId(body.u64()?)),
            5 => Fate::Parent(GroupId(body.u64()?)),
            6 => Fate::Stays(next_configuration(&mut body)?),
            _ => return Err(WireError::Value("survey reply")),
        };
        if fate.is_aside() && !are_groups([&groups].into_iter()) {
            return Err(WireError::Value("survey reply"));
        }
        found.push(Found { groups, life, fate });
    }
    let lives = found.iter().filter(|found| !found.fate.is_aside());
    match are_groups(lives.map(|found| &found.groups)) {
        true => Ok(Record::SurveyReply {
            request,
            ticket,
            found,
        }),
        false => Err(WireError::Value("survey reply")),
    }
}
