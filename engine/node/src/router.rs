//! The node's side of the transport: who is let in, and which shard's inbox a frame goes to.
//! It runs on the transport's thread and must never block it, nor decode more than record heads.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use parking_lot::Mutex;
use polyraft_raft::NodeId;
use polyraft_storage::{DataDir, PeerSeen, StoreId};
use polyraft_transport::{Hello, Lane, LinkEvent, Receiver};
use rustc_hash::FxHashMap;

use crate::event::ShardEvent;
use crate::shard::Shared;
use crate::wire;

/// The low bits of an incarnation are chance; the others count the openings of the data directory.
pub(crate) const CHANCE_BITS: u32 = 24;

/// Passes what the transport has to say into the shards' inboxes.
pub(crate) struct Router {
    shared: Arc<Shared>,
    /// Given back at shutdown, so that the directory can be opened again.
    data_dir: Mutex<Option<Arc<DataDir>>>,
    /// A shard's inbox takes no more frames while it holds this many bytes of them.
    inbox_bytes: usize,
    refusals: Mutex<FxHashMap<NodeId, String>>,
    /// Rolled-back directories that the disk could not be told of: they are refused at least while this node runs.
    unremembered: Mutex<FxHashMap<NodeId, StoreId>>,
}

impl Router {
    pub(crate) fn new(shared: Arc<Shared>, data_dir: Arc<DataDir>, inbox_bytes: usize) -> Self {
        Router {
            shared,
            data_dir: Mutex::new(Some(data_dir)),
            inbox_bytes,
            refusals: Mutex::default(),
            unremembered: Mutex::default(),
        }
    }

    /// Lets go of the data directory; nobody is admitted from then on.
    pub(crate) fn close(&self) {
        self.data_dir.lock().take();
    }

    /// Why the link with `node` is refused, if it is.
    pub(crate) fn refusal(&self, node: NodeId) -> Option<String> {
        self.refusals.lock().get(&node).cloned()
    }
}

impl Receiver for Router {
    /// A node that comes back with less than it once had must not vote: it may have forgotten votes and entries that
    /// others count on.
    fn admit(&self, peer: &Hello) -> Result<(), String> {
        let Some(data_dir) = self.data_dir.lock().clone() else {
            return Err(format!("node {} is shutting down", self.shared.node));
        };
        let who = &peer.identity;
        let seen = PeerSeen {
            store: StoreId(who.store),
            incarnation: who.incarnation,
        };
        let known = data_dir
            .peers()
            .into_iter()
            .find(|(node, _)| *node == who.node);
        let mut unremembered = self.unremembered.lock();
        match known {
            Some((_, known)) if known == seen => return Ok(()),
            Some((_, known)) => {
                let is_distrusted = unremembered.get(&who.node) == Some(&seen.store);
                let judged = match check_continuity(known, seen) {
                    Ok(()) if is_distrusted => Err(Discontinuity::RolledBack),
                    judged => judged,
                };
                if let Err(refusal) = judged {
                    let (reason, is_kept) = remember(&data_dir, who.node, known, refusal);
                    if !is_kept {
                        unremembered.insert(who.node, known.store);
                    }
                    return Err(reason);
                }
            }
            None => {}
        }
        drop(unremembered);
        data_dir.note_peer(who.node, seen).map_err(|error| {
            format!(
                "node {} can't remember its peers: {error}",
                self.shared.node
            )
        })
    }

    fn frame(&self, from: NodeId, _lane: Lane, frame: Bytes) {
        let at = self.shared.clock.now();
        let deliver = |shard: usize| {
            self.shared.gauges[shard]
                .frames
                .fetch_add(frame.len(), Ordering::Relaxed);
            self.shared.tell(
                shard,
                ShardEvent::Frame {
                    from,
                    frame: frame.clone(),
                    at,
                },
            );
        };
        let shards = self.shared.inboxes.len();
        if shards == 1 {
            return deliver(0);
        }
        let mut has_records = vec![false; shards];
        wire::shards_in(
            &frame,
            |group| self.shared.shard_of(group),
            |shard| has_records[shard] = true,
        );
        (0..shards)
            .filter(|shard| has_records[*shard])
            .for_each(deliver);
    }

    fn ready(&self, _lane: Lane) -> bool {
        let fullest = self
            .shared
            .gauges
            .iter()
            .map(|gauge| gauge.frames.load(Ordering::Relaxed))
            .max();
        fullest.unwrap_or(0) < self.inbox_bytes
    }

    fn link(&self, peer: NodeId, event: LinkEvent) {
        match event {
            LinkEvent::Up { hello, .. } => {
                self.refusals.lock().remove(&peer);
                let incarnation = hello.identity.incarnation;
                self.shared.tell(
                    0,
                    ShardEvent::LinkUp {
                        node: peer,
                        incarnation,
                    },
                );
            }
            // Silence is judged by beats: a connection may break and return within a few milliseconds.
            LinkEvent::Down { reason } => {
                tracing::debug!(at = %self.shared.node, %peer, %reason, "link down")
            }
            LinkEvent::Refused { reason } => {
                let is_new =
                    self.refusals.lock().insert(peer, reason.clone()).as_ref() != Some(&reason);
                if is_new {
                    tracing::error!(at = %self.shared.node, %peer, %reason, "the link is refused");
                }
            }
        }
    }
}

/// The incarnation that stands for "never again": no opening of the store counts higher.
const NEVER: u64 = u64::MAX;

/// Why a peer's data directory can't be what it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Discontinuity {
    Wiped,
    RolledBack,
}

/// Makes a refusal lasting, says whether that worked, and puts it into words. Restarting a rolled-back node must not make it acceptable, although
/// its count of openings then grows past the one that was seen.
fn remember(
    data_dir: &DataDir,
    node: NodeId,
    known: PeerSeen,
    refusal: Discontinuity,
) -> (String, bool) {
    let mut is_kept = true;
    let reason = match refusal {
        Discontinuity::Wiped => format!(
            "node {node} comes with another data directory than before: it was wiped or replaced. It may have \
             forgotten votes and entries that this cluster counts on. Bring the old directory back, or give the new \
             one a node id that was never used"
        ),
        Discontinuity::RolledBack => {
            let refused = PeerSeen {
                incarnation: NEVER,
                ..known
            };
            if let Err(error) = data_dir.note_peer(node, refused) {
                tracing::error!(%node, %error, "the refusal of a rolled-back peer can't be remembered");
                is_kept = false;
            }
            format!(
                "node {node}'s data directory was rolled back to an earlier state. It may have forgotten votes and \
                 entries that this cluster counts on, so this directory is refused from now on. Join with an empty \
                 directory under a node id that was never used"
            )
        }
    };
    (reason, is_kept)
}

/// Whether a peer's data directory is the one it had, and not an older state of it.
fn check_continuity(known: PeerSeen, seen: PeerSeen) -> Result<(), Discontinuity> {
    if known.store != seen.store {
        return Err(Discontinuity::Wiped);
    }
    if seen.incarnation >> CHANCE_BITS <= known.incarnation >> CHANCE_BITS && seen != known {
        return Err(Discontinuity::RolledBack);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(store: u128, opening: u64, chance: u64) -> PeerSeen {
        PeerSeen {
            store: StoreId(store),
            incarnation: opening << CHANCE_BITS | chance,
        }
    }

    #[test]
    fn a_restarted_peer_is_admitted() {
        assert_eq!(check_continuity(seen(7, 3, 9), seen(7, 4, 1)), Ok(()));
    }

    #[test]
    fn a_wiped_peer_is_refused_and_told_why() {
        assert_eq!(
            check_continuity(seen(7, 3, 9), seen(8, 1, 9)),
            Err(Discontinuity::Wiped)
        );
    }

    #[test]
    fn a_rolled_back_peer_is_refused_and_told_why() {
        assert_eq!(
            check_continuity(seen(7, 3, 9), seen(7, 2, 9)),
            Err(Discontinuity::RolledBack)
        );
    }

    #[test]
    fn a_restored_copy_that_counts_the_same_opening_again_is_refused() {
        assert_eq!(
            check_continuity(seen(7, 3, 9), seen(7, 3, 11)),
            Err(Discontinuity::RolledBack)
        );
    }

    #[test]
    fn a_refused_store_stays_refused_however_often_it_is_opened() {
        let refused = PeerSeen {
            store: StoreId(7),
            incarnation: NEVER,
        };
        for opening in 1..10 {
            assert_eq!(
                check_continuity(refused, seen(7, opening, 5)),
                Err(Discontinuity::RolledBack)
            );
        }
    }
}
