//! What a node may say: no vote and no acknowledgement before it is on its disk, one vote a term, and to a witness nothing that
//! too few others hold. It must not know how a message travels.

use polyraft::{GroupId, Index, NodeId, Role, Term};
use polyraft_raft::{EntryRange, Group, LogPosition, Message};
use polyraft_storage::Lsn;

use super::{GroupChecks, Verdict, broken};

impl GroupChecks {
    /// A message leaves a node. `core` is the sender's replica, and batches through `durable` are on its disk.
    pub(in crate::sim) fn sent(
        &mut self,
        core: &Group,
        to: NodeId,
        message: &Message,
        durable: Lsn,
    ) -> Verdict {
        let (group, node) = (core.id(), core.node());
        let vote = match *message {
            Message::VoteReply {
                term,
                granted: true,
            } => Some((term, to)),
            Message::Vote { term, .. } => Some((term, node)),
            _ => None,
        };
        if let Some((term, candidate)) = vote {
            if !self.has_voted(core, term, candidate, durable) {
                let what = format!("node {node} says {message:?}, and its vote is not on its disk");
                return Err(broken("durable promises", group, what));
            }
            return self.gave_vote(group, node, term, candidate);
        }
        match *message {
            Message::Matched { term, matched, .. } => {
                let is_there = matched <= core.durable();
                if !is_there && !self.had(core, term, matched) {
                    let what = format!(
                        "node {node} acknowledges {matched}, and holds {} durably",
                        core.durable()
                    );
                    return Err(broken("durable promises", group, what));
                }
                let promise = &mut self.promises[node.0 as usize];
                promise.term = promise.term.max(term);
                if let Some(entry) = core.term_at(matched).filter(|_| is_there) {
                    let position = LogPosition {
                        term: entry,
                        index: matched,
                    };
                    // A promise of this term stands for everything before it. One to an earlier leader that leaves only now binds
                    // nobody: the later one may have cut what it is about.
                    if promise.matched <= position && promise.acknowledged_in <= term {
                        promise.matched = position;
                        promise.acknowledged_in = term;
                    }
                }
                Ok(())
            }
            Message::Append { term, entries, .. } => {
                if !may_hear(core, to, term, entries) {
                    let what = format!(
                        "node {node} sends the witness {to} {entries}, which too few hold of {:?}",
                        core.configuration()
                    );
                    return Err(broken("witnesses", group, what));
                }
                let promise = &mut self.promises[node.0 as usize];
                promise.term = promise.term.max(term);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Whether the vote of a term is on a replica's disk. That of a term which it has left in this turn was written before.
    fn has_voted(&self, core: &Group, term: Term, candidate: NodeId, durable: Lsn) -> bool {
        if term == core.term() {
            return core.is_hard_state_durable();
        }
        if term > core.term() {
            return true; // It spoke in a life that is over, and this is the next one.
        }
        let node = core.node();
        let vote = (term, Some(candidate));
        let (seen, found) = (self.seen[node.0 as usize], self.found[node.0 as usize]);
        (seen.term, seen.vote) == vote && seen.voted_in.is_some_and(|batch| batch <= durable)
            || (found.term, found.vote) == vote
            || self.votes.get(&(node, term)) == Some(&candidate)
    }

    /// Whether a replica had its log through `matched` on the disk while it was in an earlier term, before it heard in this turn of
    /// the leader of a later one, who replaced that. A turn learns what is on the disk after it has heard whatever came, so that was
    /// so when it was looked at the last time, or when it was started.
    fn had(&self, core: &Group, term: Term, matched: Index) -> bool {
        let node = core.node().0 as usize;
        let (seen, found) = (self.seen[node], self.found[node]);
        let (then, durable) = match seen.term {
            Term::ZERO => (found.term, found.last), // Nobody has looked at it since.
            _ => (seen.term, seen.durable),
        };
        term < core.term() && term == then && matched <= durable
    }

    pub(super) fn gave_vote(
        &mut self,
        group: GroupId,
        node: NodeId,
        term: Term,
        to: NodeId,
    ) -> Verdict {
        let given = *self.votes.entry((node, term)).or_insert(to);
        if given != to {
            return Err(broken(
                "one vote a term",
                group,
                format!("node {node} gave its vote of term {term} to {given} and to {to}"),
            ));
        }
        let promise = &mut self.promises[node.0 as usize];
        if promise.vote.is_none_or(|(last, _)| last <= term) {
            promise.vote = Some((term, to));
        }
        promise.term = promise.term.max(term);
        Ok(())
    }
}

/// Whether a leader may send entries to a node: to a witness only if it knows that so many full voters of each half hold them durably
/// that they could commit them with its witnesses. What others told it is looked at when they do.
fn may_hear(core: &Group, to: NodeId, term: Term, entries: EntryRange) -> bool {
    let members = core.configuration();
    let is_leader = core.role() == Role::Leader && core.term() == term;
    if entries.is_empty() || !is_leader || !members.is_witness(to) {
        return true;
    }
    let holds = |node: &&NodeId| match **node == core.node() {
        true => core.durable() >= entries.last(),
        false => core
            .progress(**node)
            .is_some_and(|peer| peer.matched >= entries.last()),
    };
    let could_commit = |half: &[NodeId]| {
        let (witnesses, full): (Vec<_>, Vec<_>) =
            half.iter().partition(|node| members.is_witness(**node));
        let holders = full.iter().filter(|node| holds(node)).count();
        half.is_empty() || holders > 0 && 2 * (holders + witnesses.len()) > half.len()
    };
    could_commit(members.voters()) && could_commit(members.outgoing())
}
