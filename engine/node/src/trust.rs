//! Which other nodes stand by the claims of this one, since when and until when: written by the home shard when beats come
//! in, read by every shard that has reads to answer. Per node and not per group, so that asking costs the same for one
//! group and for thousands. It must never be taken back: what a node stood by at a moment stays true of that moment.
//!
//! Some numbers for each peer, all of which only grow. Each stands for itself, so it does not matter in which order a reader
//! sees them change: whoever is bound to more claims is bound to the fewer, and a later moment has no earlier end.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use polyraft_raft::{NodeId, Tick};
use smallvec::SmallVec;

/// The most peers that a node can have, those included that were taken out while it ran.
pub(crate) const MAX_PEERS: usize = 127;

/// How many batches of claims each shard has handed over.
pub(crate) type Batches = SmallVec<[u64; 4]>;

/// What a beat of a peer says about this node's claims, in this node's own time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Standing {
    pub(crate) by: NodeId,
    /// The claims that it has taken: so many batches of each shard.
    pub(crate) batches: Batches,
    /// It was bound to them after this moment, at which the beat that it answers was sent.
    pub(crate) since: Tick,
    /// It stays bound to them until then.
    pub(crate) until: Tick,
}

/// What all peers stand by.
#[derive(Debug)]
pub(crate) struct Trust {
    /// Filled from the front. A peer that was taken out stays and says nothing new.
    peers: Box<[OnceLock<Peer>]>,
    shards: usize,
}

#[derive(Debug)]
struct Peer {
    node: NodeId,
    since: AtomicU64,
    until: AtomicU64,
    batches: Box<[AtomicU64]>,
    /// What was handed over before it became a peer the last time: it may have been told nothing of that, whatever it has taken
    /// since.
    untold: Box<[AtomicU64]>,
}

impl Trust {
    pub(crate) fn new(peers: &[NodeId], shards: usize) -> Self {
        let places = peers.len().max(MAX_PEERS);
        let trust = Trust {
            peers: (0..places).map(|_| OnceLock::new()).collect(),
            shards,
        };
        peers
            .iter()
            .for_each(|peer| trust.add(*peer, &Batches::new()));
        trust
    }

    /// There is another peer, which is told of the batches behind `untold`. Only the home shard calls it.
    pub(crate) fn add(&self, node: NodeId, untold: &Batches) {
        if let Some(peer) = self.peers().find(|peer| peer.node == node) {
            for (place, untold) in peer.untold.iter().zip(untold) {
                place.fetch_max(*untold, Ordering::Release);
            }
            return;
        }
        let untold = |shard| untold.get(shard).copied().unwrap_or(0);
        let peer = Peer {
            node,
            since: AtomicU64::new(0),
            until: AtomicU64::new(0),
            batches: (0..self.shards).map(|_| AtomicU64::new(0)).collect(),
            untold: (0..self.shards).map(untold).map(AtomicU64::new).collect(),
        };
        // Without a place, nothing here ever counts on it.
        if let Some(place) = self.peers.iter().find(|place| place.get().is_none()) {
            let _ = place.set(peer);
        }
    }

    fn peers(&self) -> impl Iterator<Item = &Peer> {
        self.peers.iter().map_while(OnceLock::get)
    }

    /// Takes in what a peer has said. Only the home shard calls it.
    pub(crate) fn publish(&self, standing: &Standing) {
        let Some(peer) = self.peers().find(|peer| peer.node == standing.by) else {
            return;
        };
        peer.since.fetch_max(standing.since.0, Ordering::Release);
        peer.until.fetch_max(standing.until.0, Ordering::Release);
        for (batches, taken) in peer.batches.iter().zip(&standing.batches) {
            batches.fetch_max(*taken, Ordering::Release);
        }
    }

    fn find(&self, node: NodeId, shard: usize, batch: u64) -> Option<&Peer> {
        let peer = self.peers().find(|peer| peer.node == node)?;
        let is_told = peer.untold[shard].load(Ordering::Acquire) < batch;
        let has_taken = peer.batches[shard].load(Ordering::Acquire) >= batch;
        (is_told && has_taken).then_some(peer)
    }

    /// Whether `node` was bound to the claims in a shard's `batch` at some moment after `at`.
    pub(crate) fn stood(&self, node: NodeId, shard: usize, batch: u64, at: Tick) -> bool {
        self.find(node, shard, batch)
            .is_some_and(|peer| peer.since.load(Ordering::Acquire) >= at.0)
    }

    /// Whether `node` is bound to the claims in a shard's `batch` at `now`.
    pub(crate) fn stands(&self, node: NodeId, shard: usize, batch: u64, now: Tick) -> bool {
        self.find(node, shard, batch)
            .is_some_and(|peer| peer.until.load(Ordering::Acquire) > now.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_stands_by_what_it_has_taken_and_nothing_later() {
        let (one, two) = (NodeId(1), NodeId(2));
        let trust = Trust::new(&[two], 2);
        let standing = |batches: &[u64], since, until| Standing {
            by: two,
            batches: batches.iter().copied().collect(),
            since: Tick(since),
            until: Tick(until),
        };
        assert!(!trust.stands(two, 0, 1, Tick(1)));
        trust.publish(&standing(&[3, 0], 10, 20));
        assert!(trust.stands(two, 0, 3, Tick(19)));
        assert!(!trust.stands(two, 0, 3, Tick(20)), "the end is over");
        assert!(!trust.stands(two, 0, 4, Tick(15)), "a later claim");
        assert!(!trust.stands(two, 1, 1, Tick(15)), "another shard");
        assert!(!trust.stands(one, 0, 1, Tick(15)), "no peer");
        assert!(trust.stood(two, 0, 2, Tick(10)));
        assert!(!trust.stood(two, 0, 2, Tick(11)));
        // What was said stays true when less is said later.
        trust.publish(&standing(&[1, 1], 12, 15));
        assert!(trust.stands(two, 0, 3, Tick(19)) && trust.stands(two, 1, 1, Tick(19)));
        // Who comes later was told nothing of what was before, and who comes again nothing of what was meanwhile.
        trust.add(one, &Batches::from_slice(&[0, 1]));
        trust.add(two, &Batches::from_slice(&[3, 0]));
        assert!(!trust.stands(one, 0, 1, Tick(1)) && !trust.stands(two, 0, 3, Tick(19)));
        assert!(trust.stands(two, 1, 1, Tick(19)));
        trust.publish(&Standing {
            by: one,
            ..standing(&[1, 1], 12, 15)
        });
        assert!(trust.stands(one, 0, 1, Tick(14)));
        assert!(!trust.stands(one, 1, 1, Tick(14)), "it was told nothing");
    }
}
