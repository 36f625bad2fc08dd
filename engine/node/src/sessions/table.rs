//! The sessions of one group: which proposals were applied, and the replies that somebody may still ask for.
//! It must never look at a clock, a node's configuration or how entries came together in batches.
//!
//! Two things are kept apart. What was applied decides about the next proposal; it is known before the state machine runs.
//! Replies are known afterwards, and whether one is kept decides about nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};

use bytes::{Buf, BufMut, Bytes};
use polyraft_raft::mutants::{self, Mutant};
use polyraft_raft::{GroupId, Index};

use super::merges::Merges;
use super::{Command, MAX_SESSIONS, Opener, ProposalNumber, Reply, SESSION_WINDOW, SessionId};
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
/// In the number of sessions: what is known of merges follows them.
const HAS_MERGES: u32 = 1 << 31;
/// No section is longer.
const MOST_SECTION_BYTES: usize = 80 << 20;

/// One session: what of it was applied.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Member {
    /// The last entry that named it. Only those that came with a merged group have the same.
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

    /// Whether a number within the window is applied.
    fn has(&self, sequence: u64) -> bool {
        let at = sequence - self.lowest;
        self.applied[(at / 64) as usize] & 1 << (at % 64) != 0
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
    /// Sessions, by the last entry that named each.
    by_activity: BTreeSet<(Index, u64)>,
    /// By session and number.
    replies: BTreeMap<(u64, u64), Reply>,
    /// By the entry: whose reply is kept. A merged group counted its entries by itself.
    by_age: BTreeSet<(Index, (u64, u64))>,
    reply_bytes: usize,
    /// What is known of merges, if that is anything.
    merges: Option<Box<Merges>>,
}

impl Table {
    // ---- before the state machine runs ----

    /// Takes the entry at `index`. Sessions that have to go are added to `gone`.
    pub(super) fn decide(
        &mut self,
        opener: Opener,
        index: Index,
        command: Command,
        gone: &mut Vec<SessionId>,
    ) -> Verdict {
        match command {
            Command::Open { most } => {
                self.make_room(most as usize - 1, gone);
                let opened = Member {
                    active: index,
                    lowest: 1,
                    applied: [0; WORDS],
                };
                let id = SessionId::of(opener, index);
                self.sessions.insert(id.0, opened);
                self.by_activity.insert((index, id.0));
                Verdict::Opened(id)
            }
            Command::Close { session } => {
                if let Some(closed) = self.sessions.remove(&session.0) {
                    self.by_activity.remove(&(closed.active, session.0));
                    self.forget_merges_of(session.0);
                    gone.push(session);
                }
                Verdict::Closed
            }
            Command::Propose(number) => self.take(index, number),
        }
    }

    /// Has so many sessions at most: those go that were used least recently.
    fn make_room(&mut self, most: usize, gone: &mut Vec<SessionId>) {
        while self.sessions.len() > most
            && let Some((_, oldest)) = self.by_activity.pop_first()
        {
            self.sessions.remove(&oldest);
            self.forget_merges_of(oldest);
            gone.push(SessionId(oldest));
        }
    }

    fn forget_merges_of(&mut self, session: u64) {
        if self.merges.is_some() {
            self.with_merges(|merges| merges.forget_session(session));
        }
    }

    fn take(&mut self, index: Index, number: ProposalNumber) -> Verdict {
        let Some(member) = self.sessions.get_mut(&number.session.0) else {
            return Verdict::Expired;
        };
        self.by_activity.remove(&(member.active, number.session.0));
        self.by_activity.insert((index, number.session.0));
        member.active = index;
        member.advance(number.lowest);
        if number.sequence < member.lowest {
            let lowest = member.lowest;
            return Verdict::Late { lowest };
        }
        let merges = self.merges.as_deref();
        let is_spent = merges.is_some_and(|merges| merges.is_spent(number.session.0));
        if is_spent && !member.has(number.sequence) {
            return Verdict::Expired;
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
            self.by_age.remove(&(index, key));
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
        self.keep_reply(key, reply);
        self.drop_old_replies();
    }

    fn keep_reply(&mut self, key: (u64, u64), reply: Reply) {
        self.reply_bytes += reply.bytes.len() + REPLY_OVERHEAD;
        let index = reply.index;
        if let Some(before) = self.replies.insert(key, reply) {
            self.by_age.remove(&(before.index, key));
            self.reply_bytes -= before.bytes.len() + REPLY_OVERHEAD;
        }
        self.by_age.insert((index, key));
    }

    fn drop_old_replies(&mut self) {
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

    // ---- groups that are merged ----

    /// What is known of merges.
    pub(crate) fn merges(&self) -> Option<&Merges> {
        self.merges.as_deref()
    }

    /// Changes what is known of merges.
    pub(crate) fn with_merges<T>(&mut self, change: impl FnOnce(&mut Merges) -> T) -> T {
        let merges = self.merges.get_or_insert_default();
        let changed = change(merges);
        self.merges.take_if(|merges| merges.is_empty());
        changed
    }

    /// The sessions for the group that this one becomes a part of.
    pub(crate) fn for_target(&self) -> Table {
        self.copy_with(self.merges().and_then(Merges::of_source))
    }

    fn copy_with(&self, merges: Option<Merges>) -> Table {
        Table {
            sessions: self.sessions.clone(),
            by_activity: self.by_activity.clone(),
            replies: self.replies.clone(),
            by_age: self.by_age.clone(),
            reply_bytes: self.reply_bytes,
            merges: merges.map(Box::new),
        }
    }

    /// The sessions for what is split off at `index`: all of them are shared with the group that stays.
    pub(crate) fn for_child(&self, index: Index) -> Table {
        let mut child = self.copy_with(self.merges().and_then(Merges::of_child));
        child.with_merges(|merges| merges.note_split(index));
        child
    }

    /// The sessions for a group that begins with an exported snapshot of this one.
    pub(crate) fn for_import(&self) -> Table {
        self.copy_with(self.merges().and_then(Merges::of_import))
    }

    /// The entry at `index` brings the state of another group. Sessions that went with a part of this one may have been used
    /// there. What was tried here before, and there afterwards, may still be on its way here, and come to a key that is back.
    pub(crate) fn spend_shared(&mut self) {
        if mutants::is_active(Mutant::MergedSessionsShared) {
            return;
        }
        let split_at = self.merges().map_or(Index::ZERO, Merges::split_at);
        // One that came with a merge may have gone elsewhere with a part of its first group before.
        let is_shared = |id: &u64| SessionId(*id).index().is_none_or(|index| index <= split_at);
        let shared: Vec<u64> = self.sessions.keys().copied().filter(is_shared).collect();
        self.with_merges(|merges| shared.into_iter().for_each(|id| merges.spend(id)));
    }

    /// The entry at `index` brings the sessions of a group that is merged into this one. They get names that follow from the ones
    /// that they had, and are used as recently as this entry. Whoever was used least recently goes, if there are too many.
    pub(crate) fn absorb(&mut self, index: Index, source: GroupId, other: &Table) {
        if mutants::is_active(Mutant::MergedSessionsDropped) {
            return;
        }
        let name = |id: u64| SessionId(id).merged_from(source).0;
        for (id, member) in &other.sessions {
            let id = name(*id);
            // Two names that meet, as when a source was made again and merged again: neither can be told from the other, so
            // neither takes new numbers.
            if self.sessions.contains_key(&id) {
                self.with_merges(|merges| merges.spend(id));
                continue;
            }
            let member = Member {
                active: index,
                ..*member
            };
            self.sessions.insert(id, member);
            self.by_activity.insert((index, id));
        }
        for ((id, sequence), reply) in &other.replies {
            let key = (name(*id), *sequence);
            let is_new = self
                .sessions
                .get(&key.0)
                .is_some_and(|known| known.active == index);
            if is_new {
                self.keep_reply(key, reply.clone());
            }
        }
        let spent = other.merges().into_iter().flat_map(Merges::spent);
        for id in spent.map(name) {
            if self
                .sessions
                .get(&id)
                .is_some_and(|known| known.active == index)
            {
                self.with_merges(|merges| merges.spend(id));
            }
        }
        let mut gone = Vec::new();
        self.make_room(MAX_SESSIONS as usize, &mut gone);
        gone.into_iter().for_each(|session| self.forget(session));
        self.drop_old_replies();
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
        let flag = if self.merges.is_some() { HAS_MERGES } else { 0 };
        out.put_u32_le(self.sessions.len() as u32 | flag);
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
        if let Some(merges) = &self.merges {
            merges.encode(&mut out);
        }
        out
    }

    fn decode(bytes: &[u8]) -> Option<Table> {
        let (mut counts, mut rest) = bytes.split_at_checked(8)?;
        let (sessions, replies) = (counts.get_u32_le(), counts.get_u32_le());
        let (sessions, has_merges) = (sessions & !HAS_MERGES, sessions & HAS_MERGES != 0);
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
            let id_of_index = SessionId(id).index();
            let is_named = id != 0 && (id_of_index.is_none_or(|index| index <= active));
            if !is_named || lowest == 0 || lowest > u64::MAX / 2 || !is_next {
                return None;
            }
            table.sessions.insert(id, member);
            table.by_activity.insert((active, id));
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
            table.by_age.insert((index, key));
        }
        if has_merges {
            let merges = Merges::decode(std::mem::take(&mut rest))?;
            if merges.spent().any(|id| !table.sessions.contains_key(&id)) {
                return None;
            }
            table.merges = Some(Box::new(merges));
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
                    let verdict = table.decide(Opener(0), Index(*index), *command, &mut gone);
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
    fn sessions_of_a_merged_group_have_names_of_their_own_and_shared_ones_are_spent() {
        let open = |table: &mut Table, index| {
            let command = Command::Open { most: 9 };
            table.decide(Opener(0), Index(index), command, &mut Vec::new());
        };
        let propose = |table: &mut Table, index, session, sequence| {
            let number = ProposalNumber {
                session,
                sequence,
                lowest: 1,
            };
            let verdict = table.decide(
                Opener(0),
                Index(index),
                Command::Propose(number),
                &mut Vec::new(),
            );
            if verdict == Verdict::Apply {
                table.keep(number, Index(index), &index.to_le_bytes());
            }
            verdict
        };
        let (old, new) = (SessionId(3), SessionId(7));
        let source = GroupId(2);
        let mut target = Table::default();
        open(&mut target, 3);
        assert_eq!(propose(&mut target, 4, old, 1), Verdict::Apply);
        target.with_merges(|merges| merges.note_split(Index(5)));
        let mut child = target.for_target();
        assert_eq!(child.merges(), None);
        open(&mut target, 7);
        // A client that got no answer tries again where its key is now.
        assert_eq!(propose(&mut child, 6, old, 2), Verdict::Apply);
        target.spend_shared();
        target.absorb(Index(9), source, &child);
        let moved = old.merged_from(source);
        assert_eq!(propose(&mut target, 10, moved, 1), Verdict::Seen);
        assert_eq!(propose(&mut target, 11, moved, 2), Verdict::Seen);
        assert_eq!(propose(&mut target, 12, moved, 3), Verdict::Apply);
        let number = ProposalNumber {
            session: moved,
            sequence: 2,
            lowest: 1,
        };
        assert_eq!(
            target.reply(number).map(|reply| reply.index),
            Some(Index(6))
        );
        // What it tried before comes late, and finds the key here again.
        assert_eq!(propose(&mut target, 13, old, 2), Verdict::Expired);
        assert_eq!(propose(&mut target, 14, old, 1), Verdict::Seen);
        assert_eq!(propose(&mut target, 15, new, 1), Verdict::Apply);
        let section = section(Some(&target));
        let read = read_section(&mut &section[..]).unwrap();
        assert_eq!(read.as_deref(), Some(&target));
        // The source was made again with the same session, and is merged again: what was tried there may not be known here.
        target.absorb(Index(16), source, &child);
        assert_eq!(propose(&mut target, 17, moved, 4), Verdict::Expired);
        assert_eq!(propose(&mut target, 18, moved, 2), Verdict::Seen);
        // What a session has not given it does not take anywhere else either.
        let further = target.for_target();
        let mut third = Table::default();
        third.absorb(Index(20), GroupId(1), &further);
        let again = old.merged_from(GroupId(1));
        assert_eq!(propose(&mut third, 21, again, 5), Verdict::Expired);
        for id in [old, moved, new] {
            target.decide(
                Opener(0),
                Index(22 + id.0 % 7),
                Command::Close { session: id },
                &mut Vec::new(),
            );
        }
        assert_eq!(target.sessions.len(), 0);
        assert!(
            target
                .merges()
                .is_some_and(|merges| merges.spent().next().is_none())
        );
    }

    #[test]
    fn a_damaged_section_is_refused() {
        let mut table = Table::default();
        table.decide(
            Opener(0),
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
