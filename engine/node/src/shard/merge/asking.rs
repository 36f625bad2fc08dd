//! What the leader of a group that is merged asks the target, and what follows from the answers.
//! Every question may be asked again, of anybody: no answer is worse than silence.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use polyraft_raft::{GroupId, Life, NodeId};
use polyraft_storage::EntryKind;

use super::{Drive, LOST, MergeEvent, PROPOSAL_OVERHEAD, Proposal, Shard, Stage, Work, refused};
use crate::completion::{Outcome, ReplyTo};
use crate::error::Error;
use crate::event::ShardEvent;
use crate::merge::{Frozen, MergeAnswer, MergeCommand, Step};

impl Shard {
    /// Appends an entry to the source's log. It is answered under the number.
    pub(super) fn append_merge(
        &mut self,
        slot: u32,
        command: &MergeCommand<'_>,
        source: GroupId,
        number: u64,
    ) {
        let payload = command.encode();
        let inbox = self.shared.inboxes[self.index].clone();
        let proposal = Proposal {
            kind: EntryKind::Merge,
            reply: ReplyTo::merge(source, number, inbox),
            deadline: self.now,
            payload,
        };
        self.replicas[slot as usize].pending_bytes += proposal.weight();
        self.append_proposals(slot, &mut vec![proposal]);
    }

    /// Asks the target what comes next.
    pub(super) fn ask_target(&mut self, source: GroupId, drive: &mut Drive) {
        let go = |frozen: &Frozen, step| MergeCommand::Go {
            source,
            life: drive.life,
            target_life: frozen.life,
            attempt: frozen.attempt,
            step,
        };
        let (command, asked) = match &drive.stage {
            Stage::Frozen(frozen, work)
                if let Some(&heir) = drive.heirs.last()
                    && !matches!(work, Work::Thawing) =>
            {
                let command = MergeCommand::AskHeir {
                    target: drive.target,
                    target_life: frozen.life,
                    source,
                    life: drive.life,
                    attempt: frozen.attempt,
                };
                (command, (heir, Life::FIRST))
            }
            Stage::Opening { number } => (
                MergeCommand::Open {
                    source,
                    life: drive.life,
                    number: *number,
                    argument: &drive.argument,
                },
                (drive.target, Life::FIRST),
            ),
            Stage::Frozen(frozen, Work::Refusing) => {
                (go(frozen, Step::Refuse), (drive.target, frozen.life))
            }
            Stage::Frozen(
                frozen,
                Work::Sending {
                    state,
                    stream,
                    offset,
                },
            ) => {
                let stream = *stream;
                let step = if *offset < state.len() {
                    let end = state.len().min(offset + drive.part);
                    Step::Part {
                        stream,
                        offset: *offset as u64,
                        bytes: &state[*offset..end],
                    }
                } else {
                    Step::Take {
                        stream,
                        length: state.len() as u64,
                        crc: crc32c::crc32c(state),
                    }
                };
                (go(frozen, step), (drive.target, frozen.life))
            }
            _ => return,
        };
        let payload = command.encode();
        let number = self.merges.next_number();
        let inbox = self.shared.inboxes[self.index].clone();
        let reply = ReplyTo::merge(source, number, inbox);
        drive.asked = number;
        self.send_to_target(asked, drive.via, payload, reply);
    }

    fn send_to_target(
        &self,
        target: (GroupId, Life),
        via: Option<NodeId>,
        payload: Bytes,
        reply: ReplyTo,
    ) {
        let shard = self.shared.shard_of(target.0);
        let event = match via {
            Some(to) => ShardEvent::Merge(MergeEvent::Elsewhere {
                to,
                target,
                payload,
                reply,
            }),
            None => {
                let bytes = payload.len() + PROPOSAL_OVERHEAD;
                self.shared.gauges[shard]
                    .proposals
                    .fetch_add(bytes, Ordering::Relaxed);
                ShardEvent::Propose {
                    group: target.0,
                    kind: EntryKind::Merge,
                    payload,
                    reply,
                    is_sample: false,
                }
            }
        };
        self.shared.tell(shard, event);
    }

    /// The target has answered, or nobody has; or what was appended to the source's own log came to something.
    pub(super) fn merge_answered(&mut self, source: GroupId, number: u64, outcome: Outcome) {
        // Nobody waits for the answer to what was only tidied up, and a drive that waits for nothing has no number either.
        if number == 0 {
            return;
        }
        let drives = &mut self.merges.drives;
        if drives
            .get(&source)
            .is_none_or(|drive| drive.asked != number)
        {
            return;
        }
        let Some(mut drive) = drives.remove(&source) else {
            return;
        };
        drive.asked = 0;
        let answer = match &outcome {
            Ok(committed) => MergeAnswer::parse(&committed.reply),
            Err(_) => None,
        };
        let drive = match (answer, outcome) {
            (Some(answer), _) => self.take_answer(source, drive, answer),
            (None, Err(error)) => self.not_answered(source, drive, error),
            (None, Ok(_)) => {
                drive.rest(self.now);
                Some(drive)
            }
        };
        match drive {
            Some(drive) => {
                self.merges.drives.insert(source, drive);
            }
            // The group may have been frozen by one that began before, which has to go on then.
            None => self.merges.look_soon(self.now),
        }
    }

    fn take_answer(
        &mut self,
        source: GroupId,
        mut drive: Drive,
        answer: MergeAnswer,
    ) -> Option<Drive> {
        let now = self.now;
        if let Stage::Opening { .. } = drive.stage {
            return self.opened_or_not(source, drive, answer);
        }
        match (&mut drive.stage, answer) {
            (Stage::Freezing { .. }, MergeAnswer::Refused) => {
                drive.end(Err(refused("another merge of it began before")));
                return None;
            }
            (Stage::Frozen(frozen, work), answer) => match (work, answer) {
                (
                    Work::Sending {
                        state,
                        stream,
                        offset,
                    },
                    MergeAnswer::Gathered { bytes },
                ) => {
                    let was_last = *offset >= state.len();
                    *offset = usize::try_from(bytes).unwrap_or(0).min(state.len());
                    if was_last {
                        // Somebody else's parts are among it, or it is not what it should be.
                        (*stream, *offset) = (self.merges.next_number(), 0);
                    }
                    drive.go_on_at_once(now);
                }
                (_, MergeAnswer::Merged { at }) => {
                    self.shared
                        .directory
                        .note_merged(source, drive.life, frozen.target);
                    drive.stage = Stage::Ending { at };
                    drive.go_on_at_once(now);
                }
                (work, MergeAnswer::Refused) if !matches!(work, Work::Thawing) => {
                    if drive.why.is_empty() {
                        drive.why = "the target gave the attempt up, because it was split, is to be merged itself, was to take \
                                     others as well, or the state is too large"
                            .to_owned();
                    }
                    *work = Work::Thawing;
                    drive.go_on_at_once(now);
                }
                (_, MergeAnswer::Forgotten) if !drive.heirs.is_empty() => {
                    self.ask_for_target(source, &mut drive);
                    drive.rest(now);
                }
                // The replica here is of a later life. Others may know what became of the earlier one.
                (_, MergeAnswer::OtherLife) if now < drive.until => {
                    drive.via = self.peer_after(drive.via);
                    drive.rest(now);
                }
                (_, MergeAnswer::Forgotten | MergeAnswer::OtherLife) => {
                    let why = "the target does not exist any more, or does not remember. Whether it had taken the state nobody \
                               can say, so the group stays frozen until it is destroyed";
                    tracing::error!(node = %self.shared.node, %source, target = %drive.target, why, "a merge has come to no end");
                    drive.stage = Stage::Stuck;
                    if let Some(reply) = drive.reply.take() {
                        reply.answer(Err(refused(why)));
                    }
                }
                _ => {}
            },
            _ => {}
        }
        Some(drive)
    }

    /// The target waits for the state, or it does not: nothing has happened to the source yet.
    fn opened_or_not(
        &mut self,
        source: GroupId,
        mut drive: Drive,
        answer: MergeAnswer,
    ) -> Option<Drive> {
        let error = match answer {
            MergeAnswer::Opened {
                attempt,
                life,
                is_welcome: true,
            } => match self.may_merge(source) {
                Ok(Some(term)) if term == drive.term => {
                    let slot = self.slot(source).expect("it was found just now");
                    let command = MergeCommand::Freeze {
                        target: drive.target,
                        life,
                        attempt,
                    };
                    drive.stage = Stage::Freezing { attempt };
                    drive.asked = self.merges.next_number();
                    // It may be refused at once, which is an answer like any other.
                    self.append_merge(slot, &command, source, drive.asked);
                    return Some(drive);
                }
                Ok(Some(_)) => Error::NotLeader { hint: None },
                Ok(None) => refused("the group is being split; try again"),
                Err(error) => error,
            },
            MergeAnswer::Opened { .. } => {
                refused("the state machine of the target does not take it")
            }
            MergeAnswer::Frozen { into } => refused(format!(
                "the target is being merged itself, into group {into}"
            )),
            MergeAnswer::Merged { .. } => Error::Merging { into: drive.target },
            _ => refused("the target does not take it"),
        };
        if let MergeAnswer::Opened { attempt, life, .. } = answer {
            // The target need not keep room for it. If this gets lost, it does not for long either.
            let step = Step::Refuse;
            let command = MergeCommand::Go {
                source,
                life: drive.life,
                target_life: life,
                attempt,
                step,
            };
            let inbox = self.shared.inboxes[self.index].clone();
            let reply = ReplyTo::merge(source, 0, inbox);
            self.send_to_target((drive.target, life), None, command.encode(), reply);
        }
        drive.end(Err(error));
        None
    }

    /// A question has no answer. It is asked again, perhaps of another node: each may be asked as often as it takes.
    fn not_answered(&self, source: GroupId, mut drive: Drive, error: Error) -> Option<Drive> {
        let now = self.now;
        match &drive.stage {
            Stage::Opening { .. } => {
                let is_open = matches!(error, Error::Unknown { .. }) || error.is_retryable();
                if !is_open || now >= drive.until {
                    drive.end(Err(match error {
                        Error::NoSuchGroup { group } => refused(format!(
                            "no replica of group {group} is on this node, which leads the group that is to be merged"
                        )),
                        Error::NotLeader { .. } => refused("the target has no leader"),
                        // Of the target, which is gone: the source is as it was.
                        Error::Merging { into } => {
                            refused(format!("the target has become a part of group {into}"))
                        }
                        // It was not proposed to the source.
                        Error::Unknown { .. } => refused("the target has not answered in time"),
                        error => error,
                    }));
                    return None;
                }
            }
            Stage::Freezing { .. } => {
                drive.end(Err(match error {
                    Error::NotLeader { .. } | Error::Fault { .. } | Error::Closed => error,
                    _ => LOST,
                }));
                return None;
            }
            Stage::Frozen(..)
                if let Error::Merging { into } = error
                    && drive.heirs.last() != Some(&into) =>
            {
                if drive.heirs.contains(&into) {
                    self.ask_for_target(source, &mut drive);
                } else {
                    // What the target knew, that group knows.
                    if drive.heirs.is_empty() {
                        drive.named_by = drive.via;
                    }
                    drive.heirs.push(into);
                    drive.via = None;
                }
            }
            _ => {
                drive.via = self.next_to_ask(drive.via, &error);
                if matches!(error, Error::NoSuchGroup { .. }) && drive.via.is_none() {
                    if drive.heirs.is_empty() {
                        self.tell_fruitless(source, &mut drive);
                    } else {
                        self.ask_for_target(source, &mut drive);
                    }
                }
                if let Error::TooLarge { .. } = error {
                    drive.part = (drive.part / 2).max(1);
                }
            }
        }
        drive.rest(now);
        Some(drive)
    }

    /// The group that the target is said to have become a part of knows nothing: whoever named it may have spoken of an earlier
    /// life of the target. Somebody else is asked for the target.
    fn ask_for_target(&self, source: GroupId, drive: &mut Drive) {
        drive.heirs.clear();
        drive.via = self.peer_after(drive.named_by.take());
        if drive.via.is_none() {
            self.tell_fruitless(source, drive);
        }
    }

    /// Says once that everybody was asked in vain, if it has been so for long.
    fn tell_fruitless(&self, source: GroupId, drive: &mut Drive) {
        if self.now < drive.until || std::mem::replace(&mut drive.is_told, true) {
            return;
        }
        let why = "no node that was asked has the target, or knows what it has become a part of; the group stays frozen until one \
                   does, or until it is destroyed";
        tracing::error!(node = %self.shared.node, %source, target = %drive.target, why, "a merge has come to no end");
    }

    /// Whom to ask for the target's leader next: nobody, if that is for the replica here.
    fn next_to_ask(&self, via: Option<NodeId>, error: &Error) -> Option<NodeId> {
        match error {
            // Who can't be reached is named by whoever could not send to it, too.
            Error::NotLeader { hint: Some(hint) } if via.is_some_and(|via| via != *hint) => {
                Some(*hint).filter(|hint| *hint != self.shared.node)
            }
            Error::NoSuchGroup { .. } | Error::Fault { .. } | Error::Closed => self.peer_after(via),
            Error::NotLeader { .. } | Error::Unknown { .. } | Error::Merging { .. }
                if via.is_some() =>
            {
                self.peer_after(via)
            }
            _ => via,
        }
    }

    /// The next node, in a round that begins and ends here.
    fn peer_after(&self, via: Option<NodeId>) -> Option<NodeId> {
        let mut peers = self.outgoing.peers();
        peers.sort_unstable();
        peers.into_iter().find(|peer| Some(*peer) > via)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use polyraft_raft::{Index, Term, Tick};
    use polyraft_storage::sim::SimDisk;

    use super::*;
    use crate::completion::CompletionQueue;
    use crate::shard::tests::parts_on;

    #[test]
    fn who_does_not_help_is_not_asked_for_ever() {
        let (_shared, mut parts) = parts_on(&SimDisk::new(1), Path::new("/n"));
        let (shard, _) = &mut parts.shards[0];
        for node in [2, 3, 4].map(NodeId) {
            shard.outgoing.add(node);
        }
        let not_leader = |hint: Option<u64>| {
            let hint = hint.map(NodeId);
            Error::NotLeader { hint }
        };
        let group = GroupId(7);
        let after = |via: Option<u64>, error: &Error| {
            let next = shard.next_to_ask(via.map(NodeId), error);
            next.map(|node| node.0)
        };
        // The replica here holds the question until it knows a leader.
        assert_eq!(after(None, &not_leader(Some(3))), None);
        assert_eq!(after(Some(2), &not_leader(Some(3))), Some(3));
        // Node 3 can't be reached.
        assert_eq!(after(Some(3), &not_leader(Some(3))), Some(4));
        assert_eq!(after(Some(4), &not_leader(None)), None);
        assert_eq!(after(Some(2), &not_leader(Some(1))), None);
        for error in [Error::NoSuchGroup { group }, Error::Closed] {
            let round = [None, Some(2), Some(3), Some(4)].map(|via| after(via, &error));
            assert_eq!(round, [Some(2), Some(3), Some(4), None]);
        }
    }

    /// What the caller of a merge is told that has frozen nothing yet, after the target's answer.
    fn told(answer: Error) -> Error {
        let (_shared, mut parts) = parts_on(&SimDisk::new(1), Path::new("/n"));
        let (shard, _) = &mut parts.shards[0];
        shard.now = Tick(100);
        let (queue, mut drive) = (CompletionQueue::new(), frozen_for(GroupId(7)));
        drive.stage = Stage::Opening { number: 1 };
        drive.reply = Some(queue.reply_to(1));
        let goes_on = shard.not_answered(GroupId(6), drive, answer);
        assert!(goes_on.is_none());
        let mut out = Vec::new();
        assert_eq!(queue.drain(&mut out, Duration::ZERO), 1);
        out.remove(0).result.expect_err("nothing was merged")
    }

    /// Who is told `Merging` asks the group of it. That would be wrong here: the source is as it was.
    #[test]
    fn a_target_that_became_a_part_of_another_group_refuses_the_source() {
        let into = GroupId(8);
        let Error::Merge { why } = told(Error::Merging { into }) else {
            panic!("the source is not merged");
        };
        assert_eq!(why, "the target has become a part of group g8");
        // What is so of the question is said as it is.
        let error = Error::TooLarge { bytes: 9, limit: 8 };
        assert_eq!(told(error.clone()), error);
    }

    #[test]
    fn a_part_that_is_too_large_for_the_targets_leader_is_sent_in_smaller_ones() {
        let (_shared, mut parts) = parts_on(&SimDisk::new(1), Path::new("/n"));
        let (shard, _) = &mut parts.shards[0];
        shard.now = Tick(0);
        let mut drive = frozen_for(GroupId(7));
        drive.part = 5;
        for part in [2, 1, 1] {
            let error = Error::TooLarge { bytes: 9, limit: 8 };
            drive = shard.not_answered(GroupId(6), drive, error).unwrap();
            assert_eq!((drive.part, drive.via), (part, None));
        }
    }

    fn frozen_for(target: GroupId) -> Drive {
        let frozen = Frozen {
            target,
            life: Life::FIRST,
            attempt: Index(5),
            at: Index(9),
        };
        Drive {
            life: Life::FIRST,
            term: Term(1),
            target,
            argument: Bytes::new(),
            reply: None,
            stage: Stage::Frozen(frozen, Work::Refusing),
            asked: 0,
            look_at: None,
            pause: 1,
            until: Tick(100),
            via: None,
            heirs: Vec::new(),
            named_by: None,
            part: 1,
            why: String::new(),
            is_told: false,
        }
    }

    /// Two nodes remember an earlier life of the target, which became a part of a group that goes on. The third has the target.
    #[test]
    fn a_group_that_knows_nothing_leads_back_to_the_target() {
        let (_shared, mut parts) = parts_on(&SimDisk::new(1), Path::new("/n"));
        let (shard, _) = &mut parts.shards[0];
        for node in [2, 3].map(NodeId) {
            shard.outgoing.add(node);
        }
        shard.now = Tick(0);
        let [source, target, heir, other] = [6, 7, 8, 9].map(GroupId);
        let merged = |into: GroupId| Error::Merging { into };
        let mut drive = frozen_for(target);
        for named_by in [None, Some(NodeId(2))] {
            assert_eq!((drive.via, drive.heirs.as_slice()), (named_by, &[][..]));
            drive = shard.not_answered(source, drive, merged(heir)).unwrap();
            assert_eq!((drive.via, drive.heirs.as_slice()), (None, &[heir][..]));
            let forgotten = MergeAnswer::Forgotten;
            drive = shard.take_answer(source, drive, forgotten).unwrap();
        }
        assert_eq!((drive.via, drive.is_told), (Some(NodeId(3)), false));

        // Each of two groups was a part of the other once.
        for into in [heir, other] {
            drive = shard.not_answered(source, drive, merged(into)).unwrap();
        }
        assert_eq!(drive.heirs, [heir, other]);
        shard.now = Tick(100);
        drive = shard.not_answered(source, drive, merged(heir)).unwrap();
        assert!(drive.heirs.is_empty());
        // That was the last node that could be asked.
        assert_eq!((drive.via, drive.is_told), (None, true));
    }

    #[test]
    fn a_later_life_of_the_target_is_not_the_last_that_is_asked() {
        let (_shared, mut parts) = parts_on(&SimDisk::new(1), Path::new("/n"));
        let (shard, _) = &mut parts.shards[0];
        shard.outgoing.add(NodeId(2));
        shard.now = Tick(0);
        let (source, drive) = (GroupId(6), frozen_for(GroupId(7)));
        let later = MergeAnswer::OtherLife;
        let mut drive = shard.take_answer(source, drive, later).unwrap();
        assert_eq!(drive.via, Some(NodeId(2)));
        drive.via = None;
        shard.now = drive.until;
        let drive = shard.take_answer(source, drive, later).unwrap();
        assert!(matches!(drive.stage, Stage::Stuck));
    }
}
