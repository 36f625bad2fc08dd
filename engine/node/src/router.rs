//! The node's side of the transport: who is let in, and which shard's inbox a frame goes to.
//! It runs on the transport's thread and must never block it, nor decode more than record heads. Who is let in is asked on a
//! thread of its own, for what is seen of a peer goes to the disk.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use parking_lot::Mutex;
use polyraft_raft::mutants::{self, Mutant};
use polyraft_raft::{NodeId, Tick};
use polyraft_storage::{DataDir, MAX_SHOWN, PeerSeen, StoreId};
use polyraft_transport::{Hello, Lane, LinkEvent, MAX_PAST, Receiver};
use rustc_hash::FxHashMap;

use crate::event::ShardEvent;
use crate::shard::Shared;
use crate::wire;

/// Passes what the transport has to say into the shards' inboxes.
pub(crate) struct Router {
    shared: Arc<Shared>,
    /// Given back at shutdown, so that the directory can be opened again.
    data_dir: Mutex<Option<Arc<DataDir>>>,
    /// A shard's inbox takes no more frames while it holds this many bytes of them.
    inbox_bytes: usize,
    /// How far apart beats are meant to be, in microseconds, and when the last one of each peer came.
    beat_interval: u64,
    beats: Mutex<FxHashMap<NodeId, Tick>>,
    refusals: Mutex<FxHashMap<NodeId, String>>,
    /// Rolled-back directories that the disk could not be told of: they are refused at least while this node runs.
    unremembered: Mutex<FxHashMap<NodeId, StoreId>>,
}

impl Router {
    pub(crate) fn new(
        shared: Arc<Shared>,
        data_dir: Arc<DataDir>,
        inbox_bytes: usize,
        beat_interval: u64,
    ) -> Self {
        Router {
            shared,
            data_dir: Mutex::new(Some(data_dir)),
            inbox_bytes,
            beat_interval,
            beats: Mutex::default(),
            refusals: Mutex::default(),
            unremembered: Mutex::default(),
        }
    }

    /// Lets go of the data directory; nobody is admitted from then on.
    pub(crate) fn close(&self) {
        self.data_dir.lock().take();
    }

    /// Takes note of how late a beat comes.
    fn note_beat(&self, from: NodeId, at: Tick) {
        if let Some(before) = self.beats.lock().insert(from, at) {
            let late = at.since(before).saturating_sub(self.beat_interval);
            // The transport's thread is the only one that writes here.
            let histograms = self.shared.counters.histograms(0);
            histograms.beat_late_us.record(late);
        }
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
                let judged = match check_continuity(known, seen, &who.past) {
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

    fn frame(&self, from: NodeId, lane: Lane, frame: Bytes) {
        let at = self.shared.clock.now();
        if lane == Lane::Liveness {
            self.note_beat(from, at);
        }
        if lane == Lane::Liveness
            && let Some(beat) = wire::lone_beat(&frame)
            && self.shared.pulses.keep(from, at, beat)
        {
            return;
        }
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

    /// No peer hears this node any more: whoever waits for it, here or there, must learn that.
    fn failed(&self, reason: String) {
        let reason = format!("the network has failed: {reason}; see the log, and restart the node");
        self.shared.fail(&reason);
    }

    fn link(&self, peer: NodeId, event: LinkEvent) {
        match event {
            LinkEvent::Up { hello, .. } => {
                self.refusals.lock().remove(&peer);
                // What lies before is no beat that comes late.
                self.beats.lock().remove(&peer);
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

// What a directory keeps of its past fits into a hello.
const _: () = assert!(MAX_SHOWN == MAX_PAST);

/// The incarnation that stands for "never again": no opening of the store has it.
pub(crate) const NEVER: u64 = u64::MAX;

/// Why a peer's data directory can't be what it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Discontinuity {
    Wiped,
    RolledBack,
    /// It was started so often since it was last seen that nobody can tell.
    Unknown,
}

/// Makes a refusal lasting, says whether that worked, and puts it into words. The directory from which a rolled-back one
/// was copied must not become acceptable again either: it lacks what the copy may have promised since.
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
        Discontinuity::Unknown => format!(
            "node {node} was started more than {MAX_PAST} times since this node last saw it, so nobody can tell whether \
             its data directory was rolled back meanwhile. Join with an empty directory under a node id that was never used"
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
                "node {node}'s data directory was rolled back to an earlier state, or given up when groups had lost their \
                 quorum. It may have forgotten votes and entries that this cluster counts on, so this directory is refused \
                 from now on. Join with an empty directory under a node id that was never used"
            )
        }
    };
    (reason, is_kept)
}

/// Whether a peer's data directory is the one it had, and not an older state of it: then what was seen of it is what it
/// shows, or part of its past. A copy that was put back never shows a number again that the lost state has shown, however
/// often it is opened.
fn check_continuity(known: PeerSeen, seen: PeerSeen, past: &[u64]) -> Result<(), Discontinuity> {
    if known.store != seen.store {
        return Err(Discontinuity::Wiped);
    }
    let has_grown =
        seen.incarnation > known.incarnation && mutants::is_active(Mutant::OpeningsCounted);
    if known == seen || past.contains(&known.incarnation) || has_grown {
        return Ok(());
    }
    let is_forgotten = past.len() >= MAX_PAST && past.iter().all(|one| known.incarnation < *one);
    Err(match is_forgotten {
        true => Discontinuity::Unknown,
        false => Discontinuity::RolledBack,
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use polyraft_storage::sim::SimDisk;
    use polyraft_transport::{LoopbackHub, Network};

    use super::*;
    use crate::assembly::{Assembly, Place};
    use crate::clock::Clock;
    use crate::config::Config;

    #[test]
    fn a_network_that_fails_stops_the_node() {
        let mut config = Config::default();
        config.shards.count = 2;
        let place = Place {
            disk: Arc::new(SimDisk::new(1)),
            path: Path::new("/n"),
            cluster: "c",
            node: NodeId(1),
        };
        let assembly = Assembly::open(&place, &config, Clock::start()).unwrap();
        let (shared, router) = (Arc::clone(&assembly.shared), Arc::clone(&assembly.router));
        let port = LoopbackHub::new().join(assembly.identity(), Arc::clone(&router) as _);
        let network: Arc<dyn Network> = Arc::new(port.unwrap());
        let parts = assembly.into_parts(&config, &network, &[]);
        router.failed("its thread panicked".to_owned());
        for (_, inbox) in &parts.shards {
            let told = inbox.try_take();
            assert!(matches!(told, Some(ShardEvent::WalFailed(_))), "{told:?}");
        }
        let fault = shared.fault.lock().clone().unwrap();
        assert!(fault.contains("its thread panicked"), "{fault}");
    }

    fn seen(store: u128, incarnation: u64) -> PeerSeen {
        PeerSeen {
            store: StoreId(store),
            incarnation,
        }
    }

    #[test]
    fn a_restarted_peer_is_admitted() {
        assert_eq!(
            check_continuity(seen(7, 39), seen(7, 41), &[21, 39]),
            Ok(())
        );
        assert_eq!(
            check_continuity(seen(7, 21), seen(7, 41), &[21, 39]),
            Ok(())
        );
        assert_eq!(check_continuity(seen(7, 41), seen(7, 41), &[]), Ok(()));
    }

    #[test]
    fn a_wiped_peer_is_refused_and_told_why() {
        assert_eq!(
            check_continuity(seen(7, 39), seen(8, 1), &[39]),
            Err(Discontinuity::Wiped)
        );
    }

    #[test]
    fn a_rolled_back_peer_is_refused_and_told_why_however_often_it_is_opened() {
        let mut past = vec![21];
        for incarnation in [25, 38, 40, 52] {
            assert_eq!(
                check_continuity(seen(7, 39), seen(7, incarnation), &past),
                Err(Discontinuity::RolledBack)
            );
            past.push(incarnation);
        }
    }

    #[test]
    fn a_refused_store_stays_refused_however_often_it_is_opened() {
        for opening in 1..10 {
            assert_eq!(
                check_continuity(seen(7, NEVER), seen(7, opening), &[3, 4]),
                Err(Discontinuity::RolledBack)
            );
        }
    }

    #[test]
    fn a_peer_that_was_started_too_often_is_refused_with_another_reason() {
        let past: Vec<u64> = (100..100 + MAX_PAST as u64).collect();
        let now = seen(7, 5000);
        assert_eq!(
            check_continuity(seen(7, 99), now, &past),
            Err(Discontinuity::Unknown)
        );
        assert_eq!(check_continuity(seen(7, 100), now, &past), Ok(()));
        assert_eq!(
            check_continuity(seen(7, 4000), now, &past),
            Err(Discontinuity::RolledBack)
        );
    }
}
