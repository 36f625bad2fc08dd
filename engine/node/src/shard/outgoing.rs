//! The frames that a turn sends: one per peer and lane, filled record by record.
//! A frame must never exceed what its peer takes; the record that would not fit starts the next one.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use polyraft_raft::mutants::{self, Mutant};
use polyraft_raft::{GroupId, NodeId, shard_of};
use polyraft_transport::{Lane, Network, SendError};

use crate::apply::OnIdle;
use crate::status::ShardCounters;

/// Frames under construction.
pub(super) struct Outgoing {
    network: Arc<dyn Network>,
    peers: Vec<PeerFrames>,
    append_lanes: usize,
    refused: Vec<Refused>,
}

/// A frame with forwards or their answers that the transport did not take. Nothing else sends these again.
pub(super) struct Refused {
    pub(super) to: NodeId,
    pub(super) frame: Bytes,
    pub(super) error: SendError,
}

struct PeerFrames {
    node: NodeId,
    /// The longest frame that the peer takes, once that was asked in this turn: it depends on who is at the other end now.
    max_frame_bytes: Option<usize>,
    liveness: BytesMut,
    /// One a lane.
    append: Vec<LaneFrame>,
}

impl PeerFrames {
    fn new(node: NodeId, append_lanes: usize) -> Self {
        PeerFrames {
            node,
            max_frame_bytes: None,
            liveness: BytesMut::new(),
            append: (0..append_lanes).map(|_| LaneFrame::default()).collect(),
        }
    }

    fn max_frame_bytes(&mut self, network: &dyn Network) -> usize {
        let node = self.node;
        let asked = || network.max_frame_bytes(node);
        *self.max_frame_bytes.get_or_insert_with(asked)
    }
}

#[derive(Default)]
struct LaneFrame {
    bytes: BytesMut,
    /// About as large as the frames have been lately: a frame that starts with room enough is never moved.
    usual_bytes: usize,
    has_forwards: bool,
}

impl Outgoing {
    pub(super) fn new(network: Arc<dyn Network>, peers: &[NodeId], append_lanes: usize) -> Self {
        let peers = peers
            .iter()
            .map(|node| PeerFrames::new(*node, append_lanes));
        Outgoing {
            peers: peers.collect(),
            append_lanes,
            network,
            refused: Vec::new(),
        }
    }

    /// There is another node.
    pub(super) fn add(&mut self, node: NodeId) {
        if self.peers.iter().all(|peer| peer.node != node) {
            let peer = PeerFrames::new(node, self.append_lanes);
            self.peers.push(peer);
        }
    }

    /// A node is no peer any more. What this turn has for it is lost.
    pub(super) fn remove(&mut self, node: NodeId) {
        self.peers.retain(|peer| peer.node != node);
    }

    /// The other nodes.
    pub(super) fn peers(&self) -> Vec<NodeId> {
        self.peers.iter().map(|peer| peer.node).collect()
    }

    /// The largest record that can be sent to a peer.
    pub(super) fn max_record_bytes(&mut self, to: NodeId) -> usize {
        match self.peers.iter_mut().find(|peer| peer.node == to) {
            Some(peer) => peer.max_frame_bytes(&*self.network),
            None => self.network.max_frame_bytes(to),
        }
    }

    /// The largest record that can be sent to every peer.
    pub(super) fn max_record_bytes_to_all(&self) -> usize {
        let peers = self.peers.iter();
        let limits = peers.map(|peer| self.network.max_frame_bytes(peer.node));
        limits.min().unwrap_or(usize::MAX)
    }

    /// The frame to `to` on the lane of `group`, with room for `bytes` more; nothing when `to` is no peer.
    ///
    /// Node-level records name [`NODE_LEVEL`] and travel in order on the first lane.
    pub(super) fn append(
        &mut self,
        to: NodeId,
        group: GroupId,
        bytes: usize,
        counters: &ShardCounters,
    ) -> Option<&mut BytesMut> {
        let peer = self.peers.iter_mut().find(|peer| peer.node == to)?;
        let lane = if group == NODE_LEVEL {
            0
        } else {
            shard_of(group, self.append_lanes)
        };
        let limit = if mutants::is_active(Mutant::OversizedFrames) {
            usize::MAX
        } else {
            peer.max_frame_bytes(&*self.network)
        };
        let frame = &mut peer.append[lane];
        if !frame.bytes.is_empty() && frame.bytes.len() + bytes > limit {
            let refused = frame.send(&*self.network, to, lane, counters);
            self.refused.extend(refused);
        }
        if frame.bytes.is_empty() {
            frame.bytes.reserve(frame.usual_bytes.max(bytes));
        }
        Some(&mut frame.bytes)
    }

    /// As [`append`](Self::append), for a forward or the answer to one.
    pub(super) fn forward(
        &mut self,
        to: NodeId,
        group: GroupId,
        bytes: usize,
        counters: &ShardCounters,
    ) -> Option<&mut BytesMut> {
        self.append(to, group, bytes, counters)?;
        let lane = shard_of(group, self.append_lanes);
        let peer = self.peers.iter_mut().find(|peer| peer.node == to)?;
        let frame = &mut peer.append[lane];
        frame.has_forwards = true;
        Some(&mut frame.bytes)
    }

    /// What the transport did not take since the last call, as far as somebody must be told.
    pub(super) fn take_refused(&mut self) -> Vec<Refused> {
        std::mem::take(&mut self.refused)
    }

    /// Hands over a frame that was made elsewhere. What the transport does not take is lost.
    pub(super) fn send_frame(&self, to: NodeId, lane: Lane, frame: Bytes) {
        if let Err(error) = self.network.send(to, lane, frame) {
            tracing::trace!(%to, %error, "a frame was not taken");
        }
    }

    /// The liveness frame to `to`.
    pub(super) fn liveness(&mut self, to: NodeId) -> Option<&mut BytesMut> {
        self.peers
            .iter_mut()
            .find(|peer| peer.node == to)
            .map(|peer| &mut peer.liveness)
    }

    /// Gives back the memory of frames that have left.
    pub(super) fn trim(&mut self) {
        let lanes = self.peers.iter_mut().flat_map(|peer| &mut peer.append);
        for frame in lanes.filter(|frame| frame.bytes.is_empty()) {
            *frame = LaneFrame::default();
        }
    }

    /// Has the transport's threads call this.
    pub(super) fn call_on_threads(&self, task: &OnIdle) {
        self.network.call_on_threads(Arc::clone(task));
    }

    /// Hands the liveness frames to the transport.
    pub(super) fn send_beats(&mut self, counters: &ShardCounters) {
        for peer in &mut self.peers {
            peer.send_beat(&*self.network, counters);
        }
    }

    /// Hands every frame of the turn to the transport. What it can't take now is lost; Raft sends it again.
    pub(super) fn send_all(&mut self, counters: &ShardCounters) {
        for peer in &mut self.peers {
            peer.send_beat(&*self.network, counters);
            for (lane, frame) in peer.append.iter_mut().enumerate() {
                if !frame.bytes.is_empty() {
                    let refused = frame.send(&*self.network, peer.node, lane, counters);
                    self.refused.extend(refused);
                }
            }
            peer.max_frame_bytes = None;
        }
    }
}

/// Stands for "no group" where a lane is chosen. No group may have this id.
pub(super) const NODE_LEVEL: GroupId = GroupId(u64::MAX);

impl PeerFrames {
    /// Hands the liveness frame to the transport, if there is one.
    fn send_beat(&mut self, network: &dyn Network, counters: &ShardCounters) {
        if !self.liveness.is_empty() {
            let frame = self.liveness.split().freeze();
            let sent = network.send(self.node, Lane::Liveness, frame);
            counters.beats.add(u64::from(sent.is_ok()));
        }
    }
}

impl LaneFrame {
    /// Hands the frame to the transport. What it can't take now is lost; Raft sends it again, but not forwards.
    fn send(
        &mut self,
        network: &dyn Network,
        to: NodeId,
        lane: usize,
        counters: &ShardCounters,
    ) -> Option<Refused> {
        counters.group_frames.add(1);
        // Follows growth at once and forgets it slowly.
        self.usual_bytes = self
            .bytes
            .len()
            .max(self.usual_bytes - self.usual_bytes / 16);
        let lane = u8::try_from(lane).expect("the configuration bounds lanes to 255");
        let frame = self.bytes.split().freeze();
        let kept = std::mem::take(&mut self.has_forwards).then(|| frame.clone());
        let error = network.send(to, Lane::Append(lane), frame).err()?;
        tracing::trace!(%to, %error, "a frame was not taken");
        kept.map(|frame| Refused { to, frame, error })
    }
}
