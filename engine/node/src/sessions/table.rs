//! The sessions of one group: which proposals were applied, and the replies that somebody may still ask for.
//! It must never look at a clock, a node's configuration or how entries came together in batches.
//!
//! Two things are kept apart. What was applied decides about the next proposal; it is known before the state machine runs.
//! Replies are known afterwards, and whether one is kept decides about nothing else.

use std::collections::BTreeMap;
use std::io::{Read, Write};

use bytes::{Buf, BufMut, Bytes};
use polyraft_raft::mutants::{self, Mutant};
use polyraft_raft::{Index, Life};

use super::{Command, MAX_SESSIONS, ProposalNumber, Reply, SESSION_WINDOW, SessionId};
use crate::machine::FrozenState;

/// What the kept replies of a group may take together, each with [`REPLY_OVERHEAD`]. The oldest go first.
const MOST_REPLY_BYTES: usize = 1 << 20;
/// A longer reply is not kept.
const LONGEST_REPLY: usize = 64 << 10;
/// What a reply takes beyond its bytes, about.
const REPLY_OVERHEAD: usize = 128;
const WORDS: usize = (SESSION_WINDOW / 64) as usize;
/// Encoded bytes of a session, and of a reply without its bytes.
const SESSION_BYTES: usize = 24 + 8 * WORDS;
const REPLY_HEAD_BYTES: usize = 28;
/// No section is longer.
const MOST_SECTION_BYTES: usize = 8 << 20;

/// One session: what of it was applied.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Member {
    /// The last entry that named it. No two sessions have the same.
    active: Index,
    /// The client waits for nothing before this number.
    lowest: u64,
    /// From `lowest` on: which were applied.
    applied: [u64; WORDS],
}

impl Member {
    /// The client waits for nothing before `lowest` any more.
    fn advance(&mut self, lowest: u64) {
        let by = lowest.saturating_sub(self.lowest);
        if by == 0 {
            return;
        }
        let (words, bits) = ((by / 64) as usize, by % 64);
        for at in 0..WORDS {
            let word = |at: usize| self.applied.get(at).copied().unwrap_or(0);
            let from = at.saturating_add(words);
            let (low, high) = (word(from), word(from.saturating_add(1)));
            self.applied[at] = match bits {
                0 => low,
                bits => low >> bits | high << (64 - bits),
            };
        }
        self.lowest = lowest;
    }

    /// Notes that a number within the window is applied. Whether it was before.
    fn note(&mut self, sequence: u64) -> bool {
        let at = sequence - self.lowest;
        let (word, bit) = (&mut self.applied[(at / 64) as usize], 1 << (at % 64));
        let was = *word & bit != 0;
        *word |= bit;
        was
    }
}

/// What is to be done about an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    Opened(SessionId),
    Closed,
    /// It is the first of its number.
    Apply,
    /// Its number was applied before.
    Seen,
    /// The client has said that it waits for its number no more.
    Late {
        lowest: u64,
    },
    /// There is no such session.
    Expired,
}

/// The sessions of a group.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub(crate) struct Table {
    sessions: BTreeMap<u64, Member>,
    /// By the last entry that named it: a session.
    by_activity: BTreeMap<Index, u64>,
    /// By session and number.
    replies: BTreeMap<(u64, u64), Reply>,
    /// By the entry: whose reply is kept.
    by_age: BTreeMap<Index, (u64, u64)>,
    reply_bytes: usize,
}

impl Table {
    // ---- before the state machine runs ----

    /// Takes the entry at `index` of a life of the group. Sessions that have to go are added to `gone`.
    pub(super) fn decide(
        &mut self,
        life: Life,
        index: Index,
        command: Command,
        gone: &mut Vec<SessionId>,
    ) -> Verdict {
        match command {
            Command::Open { most } => {
                while self.sessions.len() >= most as usize
                    && let Some((_, oldest)) = self.by_activity.pop_first()
                {
                    self.sessions.remove(&oldest);
                    gone.push(SessionId(oldest));
                }
                let opened = Member {
                    active: index,
                    lowest: 1,
                    applied: [0; WORDS],
                };
                let id = SessionId::of(life, index);
                self.sessions.insert(id.0, opened);
                self.by_activity.insert(index, id.0);
                Verdict::Opened(id)
            }
            Command::Close { session } => {
                if let Some(closed) = self.sessions.remove(&session.0) {
                    self.by_activity.remove(&closed.active);
                    gone.push(session);
                }
                Verdict::Closed
            }
            Command::Propose(number) => self.take(index, number),
        }
    }

    fn take(&mut self, index: Index, number: ProposalNumber) -> Verdict {
        let Some(member) = self.sessions.get_mut(&number.session.0) else {
            return Verdict::Expired;
        };
        self.by_activity.remove(&member.active);
        self.by_activity.insert(index, number.session.0);
        member.active = index;
        member.advance(number.lowest);
        if number.sequence < member.lowest {
            let lowest = member.lowest;
            return Verdict::Late { lowest };
        }
        match member.note(number.sequence) && !mutants::is_active(Mutant::DuplicateApplied) {
            true => Verdict::Seen,
            false => Verdict::Apply,
        }
    }

    // ---- after it, in the same order ----

    /// Forgets the replies of a session.
    pub(super) fn forget(&mut self, session: SessionId) {
        self.forget_within(session.0, 0, u64::MAX);
    }

    /// Forgets the replies that a client waits for no more.
    pub(super) fn acknowledge(&mut self, number: ProposalNumber) {
        self.forget_within(number.session.0, 0, number.lowest);
    }

    fn forget_within(&mut self, session: u64, first: u64, end: u64) {
        while let Some((key, reply)) = self.replies.range((session, first)..(session, end)).next() {
            let (key, index) = (*key, reply.index);
            self.by_age.remove(&index);
            self.remove_reply(key);
        }
    }

    fn remove_reply(&mut self, key: (u64, u64)) {
        let reply = self.replies.remove(&key);
        let reply = reply.expect("replies and their ages are of the same entries");
        self.reply_bytes -= reply.bytes.len() + REPLY_OVERHEAD;
    }

    /// Keeps the reply to an entry, if there is room for it.
    pub(super) fn keep(&mut self, number: ProposalNumber, index: Index, bytes: &[u8]) {
        if bytes.len() > LONGEST_REPLY {
            return;
        }
        let key = (number.session.0, number.sequence);
        let reply = Reply {
            index,
            // A copy: what the state machine gave is a part of all replies of a batch.
            bytes: Bytes::copy_from_slice(bytes),
        };
        self.reply_bytes += bytes.len() + REPLY_OVERHEAD;
        self.by_age.insert(index, key);
        if let Some(before) = self.replies.insert(key, reply) {
            self.by_age.remove(&before.index);
            self.reply_bytes -= before.bytes.len() + REPLY_OVERHEAD;
        }
        while self.reply_bytes > MOST_REPLY_BYTES
            && let Some((_, oldest)) = self.by_age.pop_first()
        {
            self.remove_reply(oldest);
        }
    }

    /// The reply to a number that was applied, if it is kept.
    pub(super) fn reply(&self, number: ProposalNumber) -> Option<&Reply> {
        self.replies.get(&(number.session.0, number.sequence))
    }

    // ---- in snapshots ----

    /// The same bytes on every replica that keeps the same.
    fn encode(&self) -> Vec<u8> {
        let replies: usize = self.replies.values().map(|reply| reply.bytes.len()).sum();
        let bytes = 8
            + self.sessions.len() * SESSION_BYTES
            + self.replies.len() * REPLY_HEAD_BYTES
            + replies;
        let mut out = Vec::with_capacity(bytes);
        out.put_u32_le(self.sessions.len() as u32);
        out.put_u32_le(self.replies.len() as u32);
        for (id, member) in &self.sessions {
            out.put_u64_le(*id);
            out.put_u64_le(member.active.0);
            out.put_u64_le(member.lowest);
            member.applied.iter().for_each(|word| out.put_u64_le(*word));
        }
        for ((session, sequence), reply) in &self.replies {
            out.put_u64_le(*session);
            out.put_u64_le(*sequence);
            out.put_u64_le(reply.index.0);
            out.put_u32_le(reply.bytes.len() as u32);
            out.put_slice(&reply.bytes);
        }
        out
    }

    fn decode(bytes: &[u8]) -> Option<Table> {
        let (mut counts, mut rest) = bytes.split_at_checked(8)?;
        let (sessions, replies) = (counts.get_u32_le(), counts.get_u32_le());
        let mut table = Table::default();
        for _ in 0..sessions.min(MAX_SESSIONS + 1) {
            let mut one = rest.split_off(..SESSION_BYTES)?;
            let (id, active) = (one.get_u64_le(), Index(one.get_u64_le()));
            let lowest = one.get_u64_le();
            let applied = std::array::from_fn(|_| one.get_u64_le());
            let member = Member {
                active,
                lowest,
                applied,
            };
            let is_next = table.sessions.last_key_value().is_none_or(|(k, _)| *k < id);
            let is_named = id != 0 && SessionId(id).index() <= active;
            if !is_named || lowest == 0 || lowest > u64::MAX / 2 || !is_next {
                return None;
            }
            table.sessions.insert(id, member);
            if table.by_activity.insert(active, id).is_some() {
                return None;
            }
        }
        for _ in 0..replies {
            let mut one = rest.split_off(..REPLY_HEAD_BYTES)?;
            let key = (one.get_u64_le(), one.get_u64_le());
            let index = Index(one.get_u64_le());
            let bytes = rest.split_off(..one.get_u32_le() as usize)?;
            let is_next = table.replies.last_key_value().is_none_or(|(k, _)| *k < key);
            if !is_next || !table.sessions.contains_key(&key.0) {
                return None;
            }
            table.reply_bytes += bytes.len() + REPLY_OVERHEAD;
            let bytes = Bytes::copy_from_slice(bytes);
            table.replies.insert(key, Reply { index, bytes });
            if table.by_age.insert(index, key).is_some() {
                return None;
            }
        }
        let is_whole = table.sessions.len() == sessions as usize && rest.is_empty();
        (is_whole && table.reply_bytes <= MOST_REPLY_BYTES).then_some(table)
    }
}

/// What stands in front of a state machine's state in a snapshot: length and checksum, and the sessions if the group ever had
/// any. `docs/snapshot-format.md` has the bytes.
pub(crate) fn section(table: Option<&Table>) -> Vec<u8> {
    let table = table.filter(|_| !mutants::is_active(Mutant::SessionForgotten));
    let body = table.map(Table::encode).unwrap_or_default();
    let mut out = Vec::with_capacity(8 + body.len());
    out.put_u32_le(body.len() as u32);
    out.put_u32_le(crc32c::crc32c(&body));
    out.put_slice(&body);
    out
}

/// Bytes from which the length of a section is known.
pub(crate) const SECTION_HEAD_BYTES: usize = 8;

/// How long the section is that begins so, as far as that is possible.
pub(crate) fn section_bytes(head: &[u8]) -> usize {
    let body = head.first_chunk().map_or(0, |n| u32::from_le_bytes(*n));
    SECTION_HEAD_BYTES + (body as usize).min(MOST_SECTION_BYTES)
}

/// A frozen state with a section in front of it.
pub(crate) fn with_section(section: Vec<u8>, state: FrozenState) -> FrozenState {
    Box::new(move |out: &mut dyn Write| {
        out.write_all(&section)?;
        state(out)
    })
}

/// Reads a section; what is left is the state machine's.
pub(crate) fn read_section(from: &mut dyn Read) -> Result<Option<Box<Table>>, String> {
    let mut head = [0; SECTION_HEAD_BYTES];
    from.read_exact(&mut head)
        .map_err(|error| format!("the snapshot's sessions can't be read: {error}"))?;
    let mut head = &head[..];
    let (bytes, crc) = (head.get_u32_le() as usize, head.get_u32_le());
    if bytes > MOST_SECTION_BYTES {
        return Err("the snapshot's sessions are of an impossible length".to_owned());
    }
    let mut body = Vec::new();
    from.take(bytes as u64)
        .read_to_end(&mut body)
        .map_err(|error| format!("the snapshot's sessions can't be read: {error}"))?;
    if body.len() != bytes {
        return Err("the snapshot's sessions are cut short".to_owned());
    }
    if crc32c::crc32c(&body) != crc {
        return Err("the snapshot's sessions fail their checksum".to_owned());
    }
    match body.is_empty() {
        true => Ok(None),
        false => Table::decode(&body)
            .map(|table| Some(Box::new(table)))
            .ok_or_else(|| "the snapshot's sessions are unreadable".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// The same rules, said as directly as possible and without regard for cost.
    #[derive(Default)]
    struct Naive {
        /// Session, its last activity, its lowest number, and everything applied.
        sessions: Vec<(u64, u64, u64, BTreeSet<u64>)>,
        /// Session, number, index and reply, oldest first.
        replies: Vec<(u64, u64, u64, Vec<u8>)>,
    }

    impl Naive {
        fn take(&mut self, index: u64, command: Command, answer: &[u8]) -> (Verdict, Option<u64>) {
            match command {
                Command::Open { most } => {
                    while self.sessions.len() >= most as usize {
                        self.sessions.sort_by_key(|session| session.1);
                        let (gone, ..) = self.sessions.remove(0);
                        self.replies.retain(|reply| reply.0 != gone);
                    }
                    self.sessions.push((index, index, 1, BTreeSet::new()));
                    (Verdict::Opened(SessionId(index)), None)
                }
                Command::Close { session } => {
                    self.sessions.retain(|known| known.0 != session.0);
                    self.replies.retain(|reply| reply.0 != session.0);
                    (Verdict::Closed, None)
                }
                Command::Propose(number) => {
                    let id = number.session.0;
                    let Some(known) = self.sessions.iter_mut().find(|known| known.0 == id) else {
                        return (Verdict::Expired, None);
                    };
                    known.1 = index;
                    known.2 = known.2.max(number.lowest);
                    let lowest = known.2;
                    self.replies
                        .retain(|reply| reply.0 != id || reply.1 >= number.lowest);
                    if number.sequence < lowest {
                        return (Verdict::Late { lowest }, None);
                    }
                    if !known.3.insert(number.sequence) {
                        let kept = |reply: &&(u64, u64, u64, Vec<u8>)| {
                            reply.0 == id && reply.1 == number.sequence
                        };
                        return (Verdict::Seen, self.replies.iter().find(kept).map(|r| r.2));
                    }
                    if answer.len() <= LONGEST_REPLY {
                        self.replies
                            .push((id, number.sequence, index, answer.to_vec()));
                    }
                    let size = |reply: &(u64, u64, u64, Vec<u8>)| reply.3.len() + REPLY_OVERHEAD;
                    while self.replies.iter().map(size).sum::<usize>() > MOST_REPLY_BYTES {
                        self.replies.remove(0);
                    }
                    (Verdict::Apply, None)
                }
            }
        }
    }

    fn commands() -> impl Strategy<Value = Vec<(Command, usize)>> {
        let session = 1u64..40;
        let propose = (session.clone(), 1u64..600, 0u64..SESSION_WINDOW).prop_map(
            |(session, sequence, behind)| {
                Command::Propose(ProposalNumber {
                    session: SessionId(session),
                    sequence,
                    lowest: sequence.saturating_sub(behind).max(1),
                })
            },
        );
        let close = session.prop_map(|session| Command::Close {
            session: SessionId(session),
        });
        let command = prop_oneof![
            2 => (1u32..6).prop_map(|most| Command::Open { most }),
            1 => close,
            20 => propose,
        ];
        let reply = prop_oneof![5 => 0usize..9, 1 => 60_000usize..LONGEST_REPLY + 3];
        proptest::collection::vec((command, reply), 1..200)
    }

    proptest! {
        #[test]
        fn the_table_decides_like_the_naive_one_however_entries_are_batched(
            commands in commands(),
            batches in proptest::collection::vec(1usize..9, 1..200),
        ) {
            let (mut table, mut naive) = (Table::default(), Naive::default());
            let entries: Vec<_> = (1u64..).zip(&commands).collect();
            let mut rest = &entries[..];
            for size in batches.iter().cycle() {
                let (batch, later) = rest.split_at(rest.len().min(*size));
                rest = later;
                let mut decided = Vec::new();
                for (index, (command, _)) in batch {
                    let mut gone = Vec::new();
                    let verdict = table.decide(Life::FIRST, Index(*index), *command, &mut gone);
                    decided.push((verdict, gone));
                }
                for ((verdict, gone), (index, (command, answer))) in decided.into_iter().zip(batch) {
                    let answer = vec![7; *answer];
                    gone.into_iter().for_each(|session| table.forget(session));
                    let mut kept = None;
                    if let Command::Propose(number) = *command {
                        table.acknowledge(number);
                        match verdict {
                            Verdict::Apply => table.keep(number, Index(*index), &answer),
                            Verdict::Seen => kept = table.reply(number).map(|reply| reply.index.0),
                            _ => {}
                        }
                    }
                    prop_assert_eq!((verdict, kept), naive.take(*index, *command, &answer));
                }
                let section = section(Some(&table));
                let read = read_section(&mut &section[..]).unwrap();
                prop_assert_eq!(read.as_deref(), Some(&table));
                if rest.is_empty() {
                    break;
                }
            }
        }

        #[test]
        fn arbitrary_bytes_are_no_table_or_a_sound_one(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Some(table) = Table::decode(&bytes) {
                prop_assert_eq!(table.encode(), bytes);
            }
        }
    }

    #[test]
    fn a_group_that_never_had_a_session_is_told_from_one_whose_sessions_are_gone() {
        let never = section(None);
        assert_eq!(never.len(), 8);
        assert_eq!(read_section(&mut &never[..]), Ok(None));
        let gone = section(Some(&Table::default()));
        assert_eq!(read_section(&mut &gone[..]), Ok(Some(Box::default())));
    }

    #[test]
    fn a_damaged_section_is_refused() {
        let mut table = Table::default();
        table.decide(
            Life::FIRST,
            Index(4),
            Command::Open { most: 3 },
            &mut Vec::new(),
        );
        let good = section(Some(&table));
        assert!(read_section(&mut &good[..]).is_ok());
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(
                read_section(&mut &bad[..]),
                Ok(Some(Box::new(table.clone())))
            );
        }
        assert!(read_section(&mut &good[..good.len() - 1]).is_err());
    }
}
