//! The clients of the model: they number what they propose, ask again where a key is now, and leave what they have sent on its way.
//! They must never use a number for two operations, nor ask a group that had no key of theirs.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use polyraft_raft::{GroupId, Index};

use super::{Model, Rule};
use crate::sessions::{Command, MAX_SESSIONS, ProposalNumber, SessionId};

/// What a group replies that does not have the key.
const NOT_MINE: &[u8] = b"not mine";

/// Where an operation was sent, and in which session.
pub(super) type Sent = (GroupId, SessionId, usize);

/// What a client does to a key.
pub(super) struct Operation {
    client: usize,
    pub(super) key: u8,
    number: u64,
    /// How far on the way of its key it was sent last, and in which session.
    pub(super) place: (usize, SessionId),
    pub(super) answer: Option<(Index, Bytes)>,
    /// Its client has heard what became of it.
    is_over: bool,
}

#[derive(Default)]
pub(super) struct Client {
    last: u64,
    /// By key: how far on its way the session had this name.
    names: BTreeMap<u8, (usize, SessionId)>,
}

impl Operation {
    /// Its client knows that it was applied.
    pub(super) fn is_done(&self) -> bool {
        self.is_over && self.answer.is_some()
    }
}

impl Model {
    pub(super) fn open_session(&mut self, at: GroupId) {
        let group = self.groups.get_mut(&at).expect("it was found just now");
        let most = MAX_SESSIONS;
        let opened = group.apply(at, Command::Open { most }, |_| unreachable!("it is none"));
        let Some(Ok(opened)) = opened else { return };
        let session = SessionId::opened(&opened).expect("the answer names the session");
        group.known.insert(session, BTreeSet::new());
        let place = |key| (key, (self.ways[&key].len(), session));
        self.clients.push(Client {
            last: 0,
            names: group.keys.keys().copied().map(place).collect(),
        });
    }

    /// Where a key is that was somewhere, and the name there of a session that was used then.
    pub(super) fn follow(
        &self,
        key: u8,
        (from, mut session): (usize, SessionId),
    ) -> (GroupId, SessionId) {
        let way = &self.ways[&key];
        for source in way[from..].iter().filter_map(|(_, source)| *source) {
            session = session.merged_from(source);
        }
        (way[way.len() - 1].0, session)
    }

    /// A client does something new to a key of a group that knows its session.
    pub(super) fn propose(&mut self) -> Result<(), Rule> {
        let client = self.rng.below(self.clients.len());
        let Some(known) = self.clients.get(client).map(|client| &client.names) else {
            return Ok(());
        };
        let Some((key, place)) = self.rng.of(known).map(|(key, place)| (*key, *place)) else {
            return Ok(());
        };
        let (at, session) = self.follow(key, place);
        let keys = self.groups[&at].keys.keys().copied();
        let key = self.rng.of(keys).expect("the key that it was followed by");
        let place = (self.ways[&key].len(), session);
        let known = &mut self.clients[client];
        known.last += 1;
        known.names.insert(key, place);
        self.operations.push(Operation {
            client,
            key,
            number: known.last,
            place,
            answer: None,
            is_over: false,
        });
        self.send((at, session, self.operations.len() - 1))
    }

    /// Asks for an operation whose outcome is not known where its key is now.
    pub(super) fn try_again(&mut self) -> Result<(), Rule> {
        let open = self.operations.iter().enumerate();
        let open = open.filter(|(_, operation)| !operation.is_over);
        let Some(at) = self.rng.of(open.map(|(at, _)| at)) else {
            return Ok(());
        };
        let (key, place) = (self.operations[at].key, self.operations[at].place);
        let (group, session) = self.follow(key, place);
        self.operations[at].place = (self.ways[&key].len(), session);
        self.send((group, session, at))
    }

    fn send(&mut self, sent: Sent) -> Result<(), Rule> {
        self.sent.push(sent);
        match self.rng.one_in(2) {
            true => self.deliver(sent),
            false => Ok(()),
        }
    }

    /// What was sent arrives, perhaps once more.
    pub(super) fn deliver_late(&mut self) -> Result<(), Rule> {
        let late = self.rng.of(self.sent.iter().copied());
        late.map_or(Ok(()), |late| self.deliver(late))
    }

    fn deliver(&mut self, (to, session, at): Sent) -> Result<(), Rule> {
        let is_heard = self.rng.one_in(2);
        let operation = &mut self.operations[at];
        let Some(group) = self.groups.get_mut(&to) else {
            return Ok(());
        };
        let (key, sequence) = (operation.key, operation.number);
        let (mut is_new, mut was_there) = (false, false);
        let number = ProposalNumber {
            session,
            sequence,
            lowest: 1,
        };
        let outcome = group.apply(to, Command::Propose(number), |keys| {
            is_new = true;
            let Some(applied) = keys.get_mut(&key) else {
                return Bytes::from_static(NOT_MINE);
            };
            was_there = applied.contains(&at);
            applied.push(at);
            Bytes::copy_from_slice(&at.to_le_bytes())
        });
        if was_there {
            return Err("an operation is applied once");
        }
        let mut nobody = BTreeSet::new();
        let known = group.known.get_mut(&session).unwrap_or(&mut nobody);
        match outcome {
            // The group is frozen.
            None => {}
            Some(Ok(done)) => {
                if known.insert(sequence) != is_new {
                    return Err("what was not applied is not answered");
                }
                if done.reply == NOT_MINE {
                    return Ok(());
                }
                let answer = (done.index, done.reply);
                if *operation.answer.get_or_insert(answer.clone()) != answer {
                    return Err("an operation has one answer");
                }
                operation.is_over |= is_heard;
            }
            Some(Err(_)) if known.contains(&sequence) => {
                return Err("what was applied is answered");
            }
            Some(Err(_)) if is_heard => {
                operation.is_over = true;
                let names = &mut self.clients[operation.client].names;
                names.retain(|_, (_, name)| *name != session);
            }
            Some(Err(_)) => {}
        }
        Ok(())
    }
}
