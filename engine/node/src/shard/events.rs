//! Which part of a shard an event is for, while it serves and after it has stopped.
//! It must never do anything itself.

use std::sync::atomic::Ordering;

use super::{MergeEvent, PROPOSAL_OVERHEAD, Shard, SplitEvent};
use crate::event::ShardEvent;

impl Shard {
    /// Takes one event. Its consequences leave with the end of the turn.
    pub(crate) fn handle(&mut self, event: ShardEvent) {
        if self.fault.is_some() {
            return self.handle_after_fault(event);
        }
        match event {
            ShardEvent::Propose {
                group,
                kind,
                payload,
                reply,
                is_sample,
            } => {
                if is_sample {
                    self.end_sample();
                }
                self.propose(group, kind, payload, reply);
            }
            ShardEvent::Read {
                group,
                read,
                query,
                reply,
            } => self.read(group, read, query, reply),
            ShardEvent::Frame { from, frame, at } => self.frame(from, frame, at),
            ShardEvent::Durable(durable) => self.batch_durable(&durable),
            ShardEvent::Applied(applied) => self.applied(applied),
            ShardEvent::Opened {
                group,
                life,
                applied,
            } => {
                if self.is_current(group, life) {
                    self.opened(group, applied);
                }
            }
            ShardEvent::Ended { group, slot } => self.ends.left(group, slot),
            ShardEvent::ForwardDone {
                group,
                origin,
                request,
                outcome,
            } => {
                self.send_forward_reply(group, origin, request, &outcome);
            }
            ShardEvent::LinkUp { node, incarnation } => self.link_up(node, incarnation),
            ShardEvent::Peer { node, alive } => self.peer_changed(node, alive),
            ShardEvent::Priority { node, priority } => self.priority_known(node, priority),
            ShardEvent::Claims { by, changes } => self.claims_changed(by, changes),
            ShardEvent::ClaimsTaken { by, untaken } => self.claims_taken(by, untaken),
            ShardEvent::ClaimsChanged { shard, claims } => self.tell_claims(shard, claims),
            ShardEvent::StandingWanted { shard, at } => self.standing_wanted(shard, at),
            ShardEvent::StandingKnown => self.look_at_reads(),
            ShardEvent::ClaimWanted { group } => self.tell_claim(group),
            ShardEvent::Create {
                origin,
                groups,
                members,
            } => self.create(origin, &groups, &members),
            ShardEvent::CreateEverywhere {
                groups,
                members,
                reply,
            } => {
                self.create_everywhere(groups, members, reply);
            }
            ShardEvent::Created { origin, result } => self.created(origin, result),
            ShardEvent::Destroyed {
                origin,
                later,
                former,
            } => self.destroyed(origin, later, former),
            ShardEvent::Destroy {
                origin,
                groups,
                grounds,
            } => self.destroy(origin, &groups, grounds),
            ShardEvent::EndsTaken { by, request } => self.ends_taken(by, request),
            ShardEvent::Survey { origin, groups } => self.survey(origin, &groups),
            ShardEvent::DestroyEverywhere { groups, reply } => {
                self.destroy_everywhere(groups, reply);
            }
            ShardEvent::Surveyed { origin, found } => self.part_surveyed(origin, found),
            ShardEvent::Snapshot { group, reply } => self.snapshot_requested(group, reply),
            ShardEvent::Saved {
                group,
                life,
                result,
            } => self.saved(group, life, result),
            ShardEvent::Restored {
                group,
                life,
                result,
            } => {
                if self.is_current(group, life) {
                    self.restored(group, result);
                }
            }
            ShardEvent::ChunkRead { wanted, chunk } => self.chunk_read(wanted, &chunk),
            ShardEvent::Looked { group, id, result } => self.looked(group, id, result),
            ShardEvent::ChunkWritten {
                group,
                number,
                result,
            } => self.chunk_written(group, number, result),
            ShardEvent::Arrived {
                group,
                number,
                result,
            } => self.snapshot_arrived(group, number, result),
            ShardEvent::TransferLeadership { group, to, reply } => {
                self.transfer_asked(group, to, reply);
            }
            ShardEvent::Drain { within, reply } => self.drain_asked(within, reply),
            ShardEvent::ChangeMembers {
                group,
                changes,
                within,
                reply,
            } => self.change_asked(group, changes, within, reply),
            ShardEvent::Split(event) => self.split_event(event),
            ShardEvent::Merge(event) => self.merge_event(event),
            ShardEvent::GroupStatus { group, reply } => {
                let _ = reply.send(self.group_status(group));
            }
            ShardEvent::PeerAdded { node } => self.peer_added(node),
            ShardEvent::PeerRemoved { node } => self.peer_removed(node),
            ShardEvent::PeerNeeded { node, reply } => self.peer_needed(node, reply),
            ShardEvent::Maintain => {
                self.maintenance.get_or_insert(self.now);
            }
            ShardEvent::WalFailed(reason) => self.fail(reason),
            ShardEvent::Shutdown => self.is_stopping = true,
        }
    }

    /// A stopped node answers and does nothing else; its silence makes the others elect new leaders.
    fn handle_after_fault(&mut self, event: ShardEvent) {
        let Some(error) = &self.fault else { return };
        match event {
            ShardEvent::Propose {
                payload,
                reply,
                is_sample,
                ..
            } => {
                if is_sample {
                    self.end_sample();
                }
                self.shared.gauges[self.index]
                    .proposals
                    .fetch_sub(payload.len() + PROPOSAL_OVERHEAD, Ordering::Relaxed);
                reply.answer(Err(error.clone()));
            }
            ShardEvent::Read { query, reply, .. } => {
                self.shared.gauges[self.index]
                    .proposals
                    .fetch_sub(query.len() + PROPOSAL_OVERHEAD, Ordering::Relaxed);
                reply.answer(Err(error.clone()));
            }
            ShardEvent::Frame { frame, .. } => {
                self.shared.gauges[self.index]
                    .frames
                    .fetch_sub(frame.len(), Ordering::Relaxed);
            }
            ShardEvent::CreateEverywhere { reply, .. }
            | ShardEvent::DestroyEverywhere { reply, .. } => {
                let _ = reply.send(Err(error.clone()));
            }
            ShardEvent::Snapshot { reply, .. } => {
                let _ = reply.send(Err(error.clone()));
            }
            ShardEvent::TransferLeadership { reply, .. } => {
                let _ = reply.send(Err(error.clone()));
            }
            ShardEvent::Drain { reply, .. } => {
                let _ = reply.send(Err(error.clone()));
            }
            ShardEvent::ChangeMembers { reply, .. } => {
                let _ = reply.send(Err(error.clone()));
            }
            ShardEvent::Split(SplitEvent::Asked { reply, .. })
            | ShardEvent::Merge(
                MergeEvent::Asked { reply, .. } | MergeEvent::Elsewhere { reply, .. },
            ) => {
                reply.answer(Err(error.clone()));
            }
            ShardEvent::PeerNeeded { reply, .. } => {
                let _ = reply.send(Err(error.clone()));
            }
            ShardEvent::GroupStatus { group, reply } => {
                let _ = reply.send(self.group_status(group));
            }
            ShardEvent::Shutdown => self.is_stopping = true,
            _ => {}
        }
    }
}
