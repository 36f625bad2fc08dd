//! Clients with sessions: they number what they propose, and ask again until they know the outcome. What they were answered
//! once, they must be answered always.

use std::collections::BTreeMap;

use bytes::Bytes;
use polyraft::{Committed, Error, GroupId, Index, ProposalNumber, SessionId};

use super::checks::broken;
use super::clients::{Client, Waiting};
use super::machine::{Command, NOT_MINE};
use super::merges::Merges;
use super::plan::{MILLI, SECOND};
use super::splits::Splits;
use super::world::{Event, Phase, World};
use crate::history::Answer;

/// A request of a client that has asked elsewhere since.
#[derive(Clone, Debug)]
pub(super) struct Late {
    client: u32,
    group: GroupId,
    number: ProposalNumber,
    payload: Bytes,
}

/// By group: the client's session there, and its last number.
pub(super) type Sessions = BTreeMap<GroupId, (SessionId, u64)>;

impl Client {
    /// Gives the operation its number, if it is to have one and the session is open.
    pub(super) fn number_operation(&mut self) {
        let (Some(sessions), Some(operation)) = (&mut self.sessions, &mut self.operation) else {
            return;
        };
        if operation.is_numbered
            && operation.number.is_none()
            && let Some((session, last)) = sessions.get_mut(&operation.group)
        {
            *last += 1;
            operation.number = Some(ProposalNumber {
                session: *session,
                sequence: *last,
                // It does one thing at a time.
                lowest: *last,
            });
        }
    }

    fn sessions(&mut self) -> &mut Sessions {
        let sessions = self.sessions.as_mut();
        sessions.expect("only clients with sessions number what they propose")
    }
}

/// The name that a session has where a key of the group is now, if whoever has it knows all that was applied in that session.
fn follow(
    splits: &Splits,
    merges: &Merges,
    mut group: GroupId,
    key: u8,
    mut session: SessionId,
) -> Option<SessionId> {
    let holder = splits.holder(splits.root_of(group), key);
    while group != holder {
        let Some((child, at)) = splits.child_with(group, key) else {
            session = session.merged_from(group);
            group = merges.target_of(group)?;
            continue;
        };
        // One that was opened later stayed, and so did those that came with a later merge.
        let opened = session.0 & ((1 << 48) - 1);
        let came = match opened < 1 << 47 {
            true => Index(opened),
            false => merges.last_into(group),
        };
        if came > at {
            return None;
        }
        group = child;
    }
    Some(session)
}

impl World {
    /// A session is open, or not.
    pub(super) fn session_answered(
        &mut self,
        waiting: &Waiting,
        opened: Result<Option<SessionId>, Error>,
    ) {
        let client = &mut self.clients.clients[waiting.client as usize];
        if client.step() != waiting.step {
            return; // It has asked again since.
        }
        match opened {
            Ok(session) => {
                let session = session.expect("the answer names the session");
                client.sessions().insert(waiting.group, (session, 0));
                self.retry_later(waiting.client, MILLI);
            }
            Err(_) => {
                self.look_elsewhere(waiting);
                self.retry_later(waiting.client, 20 * MILLI);
            }
        }
    }

    /// Whoever was taken out of the peers, with a replica, can't say where the group is, and takes its time to say so. Once
    /// nothing goes wrong, somebody else knows.
    fn look_elsewhere(&mut self, waiting: &Waiting) {
        if self.is_healed && self.plan.churns(waiting.group) {
            let node = self.rng.within(1, self.plan.nodes);
            self.clients.clients[waiting.client as usize].prefer(node);
        }
    }

    /// A proposal of a session was answered, perhaps not for the first time.
    pub(super) fn check_answer(&mut self, waiting: &Waiting, committed: &Committed) {
        let request = waiting.request.id;
        if committed.reply[..] == *NOT_MINE {
            return; // That was no answer: it is asked for elsewhere.
        }
        let first = self.clients.answered.entry(request);
        let first = first.or_insert_with(|| committed.clone()).clone();
        if first != *committed {
            self.fail(broken(
                "answers of a session",
                waiting.group,
                format!("operation {request:x} was answered with {first:?} and with {committed:?}"),
            ));
        }
    }

    /// A group does not have the key of an operation any more, and has done nothing. The number is used up there.
    pub(super) fn key_has_moved(&mut self, client: u32) {
        self.counts.moved += 1;
        let state = &mut self.clients.clients[client as usize];
        if let Some(operation) = &mut state.operation {
            let root = self.splits.root_of(operation.group);
            let group = self.splits.holder(root, operation.request.key);
            // A child knows the sessions of its parent, and a group those of what was merged into it.
            if let Some(sessions) = &mut state.sessions
                && let Some((session, last)) = sessions.get(&operation.group).copied()
                && self.rng.chance(500_000)
                && let Some(session) = follow(
                    &self.splits,
                    &self.merges,
                    operation.group,
                    operation.request.key,
                    session,
                )
            {
                sessions.entry(group).or_insert((session, last));
            }
            (operation.group, operation.number) = (group, None);
        }
        self.retry_later(client, MILLI);
    }

    /// A proposal of a session may go on, with its number, where its key is now: who has it now knows what was applied before.
    pub(super) fn follow_the_key(&mut self, client: u32) {
        let state = &mut self.clients.clients[client as usize];
        let Some(operation) = &mut state.operation else {
            return;
        };
        let root = self.splits.root_of(operation.group);
        let group = self.splits.holder(root, operation.request.key);
        if group == operation.group {
            return;
        }
        let Some(number) = &mut operation.number else {
            // One that is refused where its group was is tried where that is now.
            if self.merges.target_of(operation.group).is_some() && self.rng.chance(500_000) {
                operation.group = group;
            }
            return;
        };
        if !self.rng.chance(500_000) {
            return;
        }
        let (from, key) = (operation.group, operation.request.key);
        let session = follow(&self.splits, &self.merges, from, key, number.session);
        if let (Some(session), Some(sessions)) = (session, &mut state.sessions) {
            if let Some((_, last)) = sessions.get(&from).copied() {
                sessions.entry(group).or_insert((session, last));
            }
            let before = std::mem::replace(&mut number.session, session);
            let number = ProposalNumber {
                session: before,
                ..*number
            };
            operation.group = group;
            let payload = operation.payload();
            if self.rng.chance(500_000) {
                self.leave_behind(client, from, number, payload);
            }
        } else if self.is_healed && self.merges.target_of(from).is_some() {
            // The group is gone, and nobody can tell where its session is: this client never learns what became of that one.
            let root = self.splits.root_of(from);
            let splits = &self.splits;
            let sessions = self.clients.clients[client as usize].sessions();
            sessions.retain(|group, _| splits.root_of(*group) != root);
            self.end_operation(client, |world, operation| {
                world.counts.unknown += 1;
                world.clients.history.unknown(operation.id, world.now);
            });
        }
    }

    /// What a client has sent to a group is still on its way there when it asks elsewhere.
    fn leave_behind(
        &mut self,
        client: u32,
        group: GroupId,
        number: ProposalNumber,
        payload: Bytes,
    ) {
        let request = self.clients.late.len() as u32;
        self.clients.late.push(Late {
            client,
            group,
            number,
            payload,
        });
        let at = self.now + self.rng.within(1, 6 * SECOND);
        self.push(at, Event::Late { request });
    }

    /// A group has keys back that it had given away: what was sent to it before arrives, perhaps once more.
    pub(super) fn hurry_late(&mut self, group: GroupId) {
        for at in 0..self.clients.late.len() {
            if self.clients.late[at].group == group {
                let request = at as u32;
                let at = self.now + self.rng.within(1, 100 * MILLI);
                self.push(at, Event::Late { request });
            }
        }
    }

    /// What a client has sent to a group before it asked elsewhere arrives there.
    pub(super) fn late_request(&mut self, request: u32) {
        if self.phase != Phase::Storm {
            return;
        }
        self.count(Event::Late { request });
        let late = self.clients.late[request as usize].clone();
        let node = self.rng.within(1, self.plan.nodes);
        let Some(sim) = &self.hosts[node as usize].node else {
            return;
        };
        // Nobody waits for the answer.
        let tag = self.clients.next_tag();
        let handle = sim.node().group(late.group.0);
        let queue = &self.hosts[node as usize].queue;
        let sent = handle.propose_numbered_with(late.number, late.payload, tag, queue);
        self.trace.group(self.now, node, late.group, || {
            let number = late.number;
            format!(
                "is asked late by client {}: {number:?}: {sent:?}",
                late.client
            )
        });
        self.schedule(node);
    }

    /// Whoever comes to a group with a key that another group had before may go on with its session there; perhaps after it has
    /// tried there first.
    pub(super) fn carry_session(&mut self, client: u32) {
        let state = &mut self.clients.clients[client as usize];
        let (Some(sessions), Some(operation)) = (&mut state.sessions, &mut state.operation) else {
            return;
        };
        let (group, key) = (operation.group, operation.request.key);
        let root = self.splits.root_of(group);
        let is_new = operation.is_numbered && operation.number.is_none();
        if !is_new || self.splits.holder(root, key) != group {
            return;
        }
        let parent = self.splits.parent_of(group);
        let parent = parent.filter(|parent| {
            let child = self.splits.child_with(*parent, key);
            child.is_some_and(|(child, _)| child == group)
        });
        let Some(from) = parent.or_else(|| self.splits.came_from(root, key)) else {
            return;
        };
        let Some((session, last)) = sessions.get(&from).copied() else {
            return;
        };
        let Some(carried) = follow(&self.splits, &self.merges, from, key, session) else {
            return;
        };
        match sessions.get_mut(&group) {
            None if self.rng.chance(700_000) => {
                sessions.insert(group, (carried, last));
            }
            // The child knows the session of its parent.
            Some((here, last_here))
                if parent == Some(from) && *here == session && self.rng.chance(300_000) =>
            {
                let sequence = last.max(*last_here) + 1;
                let number = ProposalNumber {
                    session,
                    sequence,
                    lowest: sequence,
                };
                *last_here = sequence;
                sessions.insert(from, (session, sequence));
                operation.number = Some(number);
                let payload = operation.payload();
                self.leave_behind(client, from, number, payload);
            }
            _ => {}
        }
    }

    /// An attempt at a proposal of a session was not answered as hoped.
    pub(super) fn numbered_failed(&mut self, waiting: &Waiting, error: &Error) {
        let client = waiting.client;
        match error {
            Error::SessionExpired { session } => {
                self.check_expired(waiting, *session);
                let state = &mut self.clients.clients[client as usize];
                // It may have come from a session elsewhere, whose numbers it must not use again.
                let root = self.splits.root_of(waiting.group);
                let splits = &self.splits;
                let sessions = state.sessions();
                sessions.retain(|group, _| splits.root_of(*group) != root);
                self.counts.expired += 1;
                self.end_operation(client, |world, operation| {
                    world.counts.unknown += 1;
                    world.clients.history.unknown(operation.id, world.now);
                });
            }
            // It was applied. What it found then nobody knows.
            Error::ReplyNotKept => self.end_operation(client, |world, operation| {
                world.counts.forgotten += 1;
                match operation.request.command {
                    Command::Write(_) => {
                        let answer = Answer::Done;
                        world.clients.history.ok(operation.id, world.now, answer);
                    }
                    _ => world.clients.history.unknown(operation.id, world.now),
                }
            }),
            Error::ProposalNumber { .. } => self.fail(broken(
                "answers of a session",
                waiting.group,
                format!(
                    "client {client} waits for operation {:x}, and is told: {error}",
                    waiting.request.id
                ),
            )),
            _ => {
                match error {
                    Error::NotLeader { hint: Some(leader) } => {
                        self.clients.clients[client as usize].prefer(leader.0);
                    }
                    _ => self.look_elsewhere(waiting),
                }
                self.counts.tried_again += u64::from(error.may_have_committed());
                self.retry_later(client, 20 * MILLI);
            }
        }
    }

    /// A group does not know a session. Where room is for all of them, one that came with the only merge is there.
    fn check_expired(&mut self, waiting: &Waiting, session: SessionId) {
        let root = self.splits.root_of(waiting.group);
        let merges = self
            .merges
            .count(|source| self.splits.root_of(source) == root);
        let has_room = self.plan.config.apply.max_sessions >= 1024;
        if has_room && session.0 & 1 << 47 != 0 && merges == 1 {
            self.fail(broken(
                "answers of a session",
                waiting.group,
                format!("session {session} came with a merged group and is not known"),
            ));
        }
    }

    /// A client is restarted. If it has written down what it was doing, it goes on with that.
    pub(super) fn numbered_client_crashes(&mut self, client: u32) -> bool {
        let goes_on = self.rng.chance(500_000);
        if !goes_on {
            self.clients.clients[client as usize].sessions().clear();
        }
        goes_on
    }
}
