//! Word of lives that are over, for every peer until it has confirmed that it has it.
//! A peer must never count as told before it said so, over restarts of this node too, nor anything be sent to one that has
//! confirmed all. It keeps what it is told, but for a replica of its own that may have lost a later life: that stays as it is.
//!
//! Nothing of it is stored: after a restart every peer counts as untold. What is over stays over, so a peer that has confirmed need not
//! be told again, however often it restarts.

use std::collections::{BTreeMap, BTreeSet};

use polyraft_raft::{GroupId, Life, NodeId, NodeSet, Tick};
use polyraft_storage::ShardLog;

use super::Shard;
use super::outgoing::NODE_LEVEL;
use super::proposals::first_request;
use crate::error::Error;
use crate::event::{LifeRanges, Objections, ObjectionsReply, life_ranges};
use crate::wire;

/// Ends that are told in one record.
const ENDS_AT_ONCE: usize = 4_096;

/// How long a peer has to confirm what it was told before it is told again, in microseconds.
const RETRY: u64 = 1_000_000;

/// How long ends gather before they are told, in microseconds. Most come as many at a time, and to all nodes.
const GATHER: u64 = 500_000;

/// How long somebody who takes a node out of the peers waits for the others, in microseconds.
const PATIENCE: u64 = 5_000_000;

/// Which peers know of the ends that a shard keeps.
pub(super) struct Told {
    peers: BTreeMap<NodeId, Peer>,
    last_number: u64,
    asked: Vec<Asked>,
}

/// What a peer may not know.
#[derive(Default)]
struct Peer {
    /// All ends of groups with this id or a higher one.
    from: Option<u64>,
    /// Besides, these: at most as many as are told at once.
    fresh: BTreeMap<u64, Life>,
    /// What it was told and has not confirmed.
    part: Option<Part>,
    /// It is not told before.
    next_at: Tick,
}

struct Part {
    number: u64,
    lives: LifeRanges,
}

/// Somebody wants to take a node out of the peers.
struct Asked {
    node: NodeId,
    reply: ObjectionsReply,
    until: Tick,
}

impl Peer {
    fn new() -> Self {
        Peer {
            from: Some(0),
            ..Peer::default()
        }
    }

    fn is_idle(&self) -> bool {
        self.from.is_none() && self.fresh.is_empty() && self.part.is_none()
    }

    /// Whether there is an end that it has not confirmed.
    fn lacks_any(&self, log: &ShardLog) -> bool {
        let is_untold = |from| over_from(log, from).next().is_some();
        self.part.is_some() || !self.fresh.is_empty() || self.from.is_some_and(is_untold)
    }

    /// What to tell it next.
    fn next(&mut self, log: &ShardLog) -> Vec<(u64, Life)> {
        if let Some(from) = self.from.take() {
            let mut over: Vec<_> = over_from(log, from).collect();
            if over.len() > ENDS_AT_ONCE {
                let (_, (next, _), _) = over.select_nth_unstable(ENDS_AT_ONCE);
                self.from = Some(*next);
                over.truncate(ENDS_AT_ONCE);
            }
            over.sort_unstable();
            if !over.is_empty() {
                return over;
            }
        }
        std::mem::take(&mut self.fresh).into_iter().collect()
    }
}

/// The ends that a log keeps of groups with this id or a higher one.
fn over_from(log: &ShardLog, from: u64) -> impl Iterator<Item = (u64, Life)> + '_ {
    let tombstones = log.tombstones().filter(move |(group, _)| group.0 >= from);
    tombstones.filter_map(|(group, tombstone)| Some((group.0, tombstone.over()?)))
}

impl Told {
    pub(super) fn new(shard: usize, incarnation: u64, peers: &[NodeId]) -> Self {
        let shard = shard as u64 + 1;
        Told {
            peers: peers.iter().map(|node| (*node, Peer::new())).collect(),
            // Other numbers than those of requests, and of other shards.
            last_number: first_request(incarnation).wrapping_add(shard << 48),
            asked: Vec::new(),
        }
    }

    pub(super) fn add(&mut self, node: NodeId) {
        self.peers.insert(node, Peer::new());
    }

    pub(super) fn remove(&mut self, node: NodeId) {
        self.peers.remove(&node);
    }

    /// A peer lives again: what it was told before may be lost.
    pub(super) fn back(&mut self, node: NodeId, now: Tick) {
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.next_at = now;
        }
    }

    /// A life is over, and was not so before as far as this shard knew.
    pub(super) fn note(&mut self, group: GroupId, life: Life, now: Tick) {
        for peer in self.peers.values_mut() {
            if peer.from.is_some_and(|from| group.0 >= from) {
                continue;
            }
            if peer.is_idle() {
                peer.next_at = now.after(GATHER);
            }
            peer.fresh.insert(group.0, life);
            if peer.fresh.len() > ENDS_AT_ONCE {
                peer.fresh.clear();
                peer.from = Some(0);
            }
        }
    }

    /// Answers with what speaks against taking a node out of the peers, once the others know what is over.
    pub(super) fn ask(&mut self, node: NodeId, reply: ObjectionsReply, now: Tick) {
        let until = now.after(PATIENCE);
        self.asked.push(Asked { node, reply, until });
        let gathering = self.peers.values_mut().filter(|peer| peer.part.is_none());
        gathering.for_each(|peer| peer.next_at = now);
    }

    /// Answers everybody who waits.
    pub(super) fn fail_all(&mut self, error: &Error) {
        for asked in self.asked.drain(..) {
            let _ = asked.reply.send(Err(error.clone()));
        }
    }

    /// When somebody has to be told or answered.
    pub(super) fn deadline(&self, alive: &NodeSet) -> Option<Tick> {
        let peers = self.peers.iter();
        let due = peers.filter(|(node, peer)| alive.contains(**node) && !peer.is_idle());
        let due = due.map(|(_, peer)| peer.next_at);
        due.chain(self.asked.iter().map(|asked| asked.until)).min()
    }

    /// The peers, but for one, that lack an end, if the node must not be taken out yet: one that lives, or so many that the others
    /// could take the number of a life for a new one.
    fn untold(&self, without: NodeId, log: &ShardLog, alive: &NodeSet) -> BTreeSet<NodeId> {
        let remaining = || self.peers.iter().filter(|(node, _)| **node != without);
        let untold = remaining().filter(|(_, peer)| peer.lacks_any(log));
        let untold: BTreeSet<NodeId> = untold.map(|(node, _)| *node).collect();
        // This node knows. Of all that are asked before a life begins a majority answers, and one of that has to know.
        let nodes = remaining().count() + 1;
        match 2 * untold.len() > nodes || untold.iter().any(|node| alive.contains(*node)) {
            true => untold,
            false => BTreeSet::new(),
        }
    }
}

impl Shard {
    /// Tells living peers what they may not know, and answers who waits for that.
    pub(super) fn tell_ends(&mut self) {
        let (now, alive) = (self.now, &self.alive);
        let Told {
            peers, last_number, ..
        } = &mut self.told;
        // All tombstones are looked through for a part: one in a turn.
        let mut has_made_one = false;
        for (node, peer) in peers {
            if peer.is_idle() || peer.next_at > now || !alive.contains(*node) {
                continue;
            }
            if peer.part.is_none() {
                if std::mem::replace(&mut has_made_one, true) {
                    continue;
                }
                let over = peer.next(&self.log);
                if over.is_empty() {
                    continue;
                }
                *last_number = last_number.wrapping_add(1);
                peer.part = Some(Part {
                    number: *last_number,
                    lives: life_ranges(over),
                });
            }
            let Some(Part { number, lives }) = &peer.part else {
                continue;
            };
            peer.next_at = now.after(RETRY);
            let counters = self.shared.counters.shard(self.index);
            let bytes = wire::destroy_bytes(lives);
            if let Some(frame) = self.outgoing.append(*node, NODE_LEVEL, bytes, counters) {
                wire::put_ends(frame, *number, lives);
            }
        }
        self.answer_who_asked();
    }

    fn answer_who_asked(&mut self) {
        let mut asked = std::mem::take(&mut self.told.asked);
        asked.retain(|asked| {
            let untold = self.told.untold(asked.node, &self.log, &self.alive);
            let waits = !untold.is_empty() && self.now < asked.until;
            if !waits {
                let need = None;
                let _ = asked.reply.send(Ok(Objections { need, untold }));
            }
            waits
        });
        self.told.asked = asked;
    }

    /// A peer keeps what it was told.
    pub(super) fn ends_taken(&mut self, by: NodeId, number: u64) {
        let now = self.now;
        let Some(peer) = self.told.peers.get_mut(&by) else {
            return;
        };
        if peer.part.take_if(|part| part.number == number).is_some() {
            peer.next_at = now;
        }
    }
}

#[cfg(test)]
mod tests;
