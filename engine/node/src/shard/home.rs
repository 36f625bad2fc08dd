//! The work of shard 0 for the whole node: liveness of the other nodes, and claims.
//! It must never step a group of another shard; it tells that shard.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use polyraft_raft::mutants::{self, Mutant};
use polyraft_raft::{Configuration, Event, GroupId, Index, Life, NodeId, Tick};
use polyraft_storage::{EntryKind, PREFETCH_AHEAD, block_configurations};

use super::coordinate::Coordination;
use super::fetch::Fetched;
use super::outgoing::NODE_LEVEL;
use super::witness::committed_by;
use super::{Payloads, Shard, Wanted, parse_blocks};
use crate::error::Error;
use crate::event::{Claim, CreateOrigin, EndGrounds, Reign, ShardEvent};
use crate::liveness::{Action, Beat, Intervals, Liveness, Untaken};
use crate::pulse::Expected;
use crate::status::ElectionCause;
use crate::trust::Standing;
use crate::wire::{self, Record, Records};

/// Claims in one record of a table, far below a frame's bound.
const CLAIMS_PER_RECORD: usize = 8_192;

/// The most bytes of a claim on the wire.
const CLAIM_BYTES: usize = 32;

/// What the home shard needs beyond the others.
#[derive(Debug, Clone)]
pub(crate) struct HomeOptions {
    pub(crate) incarnation: u64,
    pub(crate) intervals: Intervals,
}

/// The state of shard 0 that belongs to the node.
#[derive(Debug)]
pub(super) struct Home {
    pub(super) liveness: Liveness,
    actions: Vec<Action>,
    /// Beats that came in without an event.
    pulses: Vec<(NodeId, Tick, Beat)>,
    /// What the transport's thread knows to be expected of beats.
    expected: Vec<Expected>,
    pub(super) coordination: Coordination,
    /// Shards with reads that wait for peers to stand by claims.
    waiting: Vec<bool>,
}

impl Home {
    pub(super) fn new(node: NodeId, options: HomeOptions, peers: &[NodeId]) -> Self {
        Home {
            liveness: Liveness::new(
                node,
                options.incarnation,
                options.intervals,
                peers.iter().copied(),
            ),
            actions: Vec::new(),
            pulses: Vec::new(),
            expected: Vec::new(),
            coordination: Coordination::new(options.incarnation),
            waiting: Vec::new(),
        }
    }

    /// When the home shard has to look at the node's affairs at the latest.
    pub(super) fn deadline(&self) -> Option<Tick> {
        let requests = self.coordination.deadline();
        requests.into_iter().chain(self.liveness.deadline()).min()
    }

    /// Gives back what a burst of claims left.
    pub(super) fn trim(&mut self) {
        self.actions.shrink_to_fit();
        self.liveness.trim();
    }

    /// Answers everybody who waits for groups to begin or end.
    pub(super) fn fail_all(&mut self, error: &Error) {
        self.coordination.fail_all(error);
    }
}

impl Shard {
    pub(super) fn home(&mut self) -> &mut Home {
        self.home
            .as_mut()
            .expect("node-level events go to shard 0 only")
    }

    /// Reads the records of a frame that belong to this shard.
    pub(super) fn frame(&mut self, from: NodeId, frame: Bytes, at: Tick) {
        self.shared.gauges[self.index]
            .frames
            .fetch_sub(frame.len(), Ordering::Relaxed);
        self.histograms().inbox_us.record(self.now.since(at));
        if let Some(home) = &mut self.home {
            home.liveness.heard(at, from);
        }
        let (index, shards) = (self.index, self.shared.inboxes.len());
        let is_mine = |group| match group {
            Some(group) => shards == 1 || polyraft_raft::shard_of(group, shards) == index,
            None => index == 0,
        };
        let mut records = Records::new(&frame);
        // The groups of a frame are all over the memory: what later records need is fetched meanwhile.
        let mut ahead = Records::new(&frame);
        let mut fetched = Fetched::default();
        for _ in 0..PREFETCH_AHEAD {
            fetched.next(self, ahead.skip_for(is_mine));
        }
        while let Some(record) = records.next_for(is_mine) {
            fetched.next(self, ahead.skip_for(is_mine));
            let life = records
                .subject()
                .map_or(Life::FIRST, |subject| subject.life);
            match record {
                Ok(record) => {
                    if self.admits_record(from, life, &record) {
                        self.record(from, life, record, at);
                    }
                }
                Err(error) => {
                    tracing::warn!(%from, %error, "a record was dropped");
                    self.counters().rejected_messages.add(1);
                }
            }
        }
    }

    fn record(&mut self, from: NodeId, life: Life, record: Record<'_>, at: Tick) {
        match record {
            Record::Group {
                group,
                message,
                blocks,
            } => self.message(from, (group, life), message, blocks, false),
            Record::HollowAppend {
                group,
                message,
                blocks,
            } => self.message(from, (group, life), message, blocks, true),
            Record::Place {
                group,
                term,
                last,
                configuration,
            } => self.placed(from, group, term, last, &configuration),
            Record::Forward {
                group,
                request,
                kind,
                payload,
            } => self.forwarded(from, group, request, (kind, payload)),
            Record::ForwardReply {
                group,
                request,
                outcome,
            } => self.forward_replied(from, group, request, outcome),
            Record::ReadAsk {
                group,
                request,
                by_lease,
            } => self.read_asked(from, group, request, by_lease),
            Record::ReadReply {
                group,
                request,
                outcome,
            } => self.read_replied(from, group, request, outcome),

            Record::SnapshotOffer { term, file } => self.snapshot_offered(from, term, file),
            Record::SnapshotFetch {
                group,
                id,
                offset,
                bytes,
            } => self.snapshot_wanted(Wanted {
                group,
                by: from,
                id,
                offset,
                bytes,
            }),
            Record::SnapshotChunk { group, id, chunk } => {
                self.chunk_received(from, group, id, chunk);
            }
            Record::SnapshotRefused { group, id, why } => {
                self.snapshot_refused(from, group, id, why);
            }
            Record::UnknownGroup { group } => {
                self.note_stranger(group);
                self.welcome(from, group, 0, Index::ZERO);
            }
            Record::Join {
                group,
                welcome,
                configuration,
            } => match self.slot(group) {
                Some(slot) if welcome.leads => {
                    self.come_back(slot, from, welcome);
                }
                _ => self.join(from, (group, life), welcome, &configuration),
            },
            Record::Removed {
                group,
                at,
                term,
                grounds,
            } => self.removal_heard(from, group, at, (term, grounds)),
            Record::MemberAsk {
                group,
                wants,
                question,
            } => self.member_asked(from, group, (wants, question)),
            Record::LifeOver { group } => self.life_over(from, group, life),
            Record::Beat(beat) => {
                self.with_liveness(|liveness, actions| liveness.beat(at, from, beat, actions))
            }
            Record::ClaimsDelta {
                from_version,
                version,
                changes,
            } => self.with_liveness(|liveness, actions| {
                liveness.delta(from, from_version, version, changes, actions);
            }),
            Record::ClaimsTable {
                version,
                is_first,
                total,
                claims,
            } => self.with_liveness(|liveness, actions| {
                liveness.table(from, version, is_first, total, claims, actions);
            }),
            Record::ClaimsRequest => self.home().liveness.table_requested(from),
            Record::Create {
                request,
                ticket,
                groups,
                members,
            } => {
                let node = from;
                if members.contains(&self.shared.node) {
                    let origin = CreateOrigin { node, request };
                    self.create_parts(origin, ticket, groups, members);
                }
            }
            Record::CreateReply { request, result } => self.member_created(from, request, result),
            Record::Survey {
                request,
                hold,
                groups,
            } => {
                let node = from;
                self.survey_parts(CreateOrigin { node, request }, hold, groups);
            }
            Record::SurveyReply {
                request,
                ticket,
                found,
            } => self.surveyed(from, request, ticket, found),
            Record::Release { creation } => self.released(from, creation),
            Record::Destroy { request, groups } => {
                let node = from;
                let origin = CreateOrigin { node, request };
                self.destroy_parts(origin, groups, EndGrounds::Survey);
            }
            Record::Ends { request, groups } => {
                let node = from;
                let origin = CreateOrigin { node, request };
                self.destroy_parts(origin, groups, EndGrounds::Word);
            }
        }
    }

    /// Steps a group with a message from another node.
    fn message(
        &mut self,
        from: NodeId,
        (group, life): (GroupId, Life),
        message: polyraft_raft::Message,
        bytes: &[u8],
        is_hollow: bool,
    ) {
        let Some(slot) = self.slot(group) else {
            let counters = self.shared.counters.shard(self.index);
            if !self.opening.contains_key(&group)
                && let Some(frame) = self
                    .outgoing
                    .append(from, group, wire::HEAD_BYTES, counters)
            {
                wire::put_unknown_group(frame, (group, life));
            }
            return;
        };
        if self.is_from_removed(slot, from, &message) {
            return self.counters().rejected_messages.add(1);
        }
        if let polyraft_raft::Message::Append { term, .. } = message
            && self.is_of_other_kind(slot, term, is_hollow, || committed_by(&message))
        {
            return self.counters().rejected_messages.add(1);
        }
        if !bytes.is_empty() && self.refuses_entries(bytes.len()) {
            return self.counters().refused_appends.add(1);
        }
        if let polyraft_raft::Message::TimeoutNow { .. } = message
            && bytes.is_empty()
        {
            let event = Event::Message { from, message };
            return self.step_to_campaign(slot, event, ElectionCause::Handover);
        }
        let blocks = parse_blocks(bytes).ok();
        let blocks = blocks.filter(|blocks| {
            are_the_entries_of(blocks, group, &message) && are_of_kind(blocks, is_hollow)
        });
        let configurations = blocks.as_deref().and_then(configurations_in);
        match (blocks, configurations) {
            (Some(blocks), Some(configurations)) if configurations.is_empty() => {
                let event = Event::Message { from, message };
                self.step(slot, event, Payloads::Received(&blocks));
            }
            (Some(blocks), Some(configurations)) => {
                let event = Event::MessageWith {
                    from,
                    message,
                    configurations: &configurations,
                };
                self.step(slot, event, Payloads::Received(&blocks));
            }
            _ => {
                tracing::warn!(%from, %group, "an append whose blocks don't match its range was dropped");
                self.counters().rejected_messages.add(1);
            }
        }
    }

    // ---- liveness and claims ----

    pub(super) fn with_liveness(&mut self, change: impl FnOnce(&mut Liveness, &mut Vec<Action>)) {
        let home = self.home();
        let mut actions = std::mem::take(&mut home.actions);
        change(&mut home.liveness, &mut actions);
        for action in actions.drain(..) {
            self.act(action);
        }
        self.home().actions = actions;
    }

    pub(super) fn link_up(&mut self, node: NodeId, incarnation: u64) {
        let now = self.now;
        self.home().coordination.reservations.release_all_of(node);
        self.with_liveness(|liveness, actions| liveness.link_up(now, node, incarnation, actions));
    }

    /// Sends beats and claims that are due, judges silence, and looks after creations.
    pub(super) fn run_home(&mut self, is_drained: bool) {
        if self.home.is_none() {
            return;
        }
        self.hear_pulses();
        // Silence is judged by what had arrived when the turn began. What is sent is dated when it is sent: a lease counts
        // from then, and reads that came during the turn count on it.
        let (now, sent_at) = (self.now, self.shared.clock.now());
        self.with_liveness(|liveness, actions| liveness.poll(now, sent_at, is_drained, actions));
        self.expect_pulses();
        self.retry_requests();
    }

    /// Takes in the beats that came without an event: they count before silence is judged.
    fn hear_pulses(&mut self) {
        let mut pulses = std::mem::take(&mut self.home().pulses);
        self.shared.pulses.take(&mut pulses);
        for (from, at, beat) in pulses.drain(..) {
            self.with_liveness(|liveness, actions| liveness.beat(at, from, beat, actions));
        }
        self.home().pulses = pulses;
    }

    /// Says which beats need no event from now on.
    fn expect_pulses(&mut self) {
        let home = self.home();
        if !home.liveness.expected().eq(home.expected.iter().copied()) {
            home.expected.clear();
            home.expected.extend(home.liveness.expected());
            let expected = std::mem::take(&mut home.expected);
            self.shared.pulses.expect(&expected);
            self.home().expected = expected;
        }
    }

    fn act(&mut self, action: Action) {
        let counters = self.shared.counters.shard(self.index);
        match action {
            Action::Beat { to, beat } => {
                if beat.wants_answer {
                    counters.standing_asked.add(1);
                }
                if let Some(frame) = self.outgoing.liveness(to) {
                    wire::put_beat(frame, &beat);
                }
            }
            Action::Delta {
                to,
                from_version,
                version,
                changes,
            } => {
                let bytes = wire::HEAD_BYTES + 16 + changes.len() * CLAIM_BYTES;
                if bytes > self.outgoing.max_record_bytes(to) {
                    // The peer will miss it and ask for the table, which goes in parts.
                    return;
                }
                if let Some(frame) = self.outgoing.append(to, NODE_LEVEL, bytes, counters) {
                    wire::put_claims_delta(frame, from_version, version, &changes);
                }
            }
            Action::Table {
                to,
                version,
                claims,
            } => {
                let (total, parts) = (
                    claims.len(),
                    claims.len().div_ceil(CLAIMS_PER_RECORD).max(1),
                );
                for part in 0..parts {
                    let claims = claims
                        .chunks(CLAIMS_PER_RECORD)
                        .nth(part)
                        .unwrap_or_default();
                    let bytes = wire::HEAD_BYTES + 17 + claims.len() * CLAIM_BYTES;
                    if let Some(frame) = self.outgoing.append(to, NODE_LEVEL, bytes, counters) {
                        wire::put_claims_table(frame, version, part == 0, total, claims);
                    }
                }
            }
            Action::RequestTable { from } => {
                if let Some(frame) =
                    self.outgoing
                        .append(from, NODE_LEVEL, wire::HEAD_BYTES, counters)
                {
                    wire::put_claims_request(frame);
                }
            }
            Action::Priority { node, priority } => {
                for shard in 1..self.shared.inboxes.len() {
                    self.shared
                        .tell(shard, ShardEvent::Priority { node, priority });
                }
                self.priority_known(node, priority);
            }
            Action::Peer { node, alive } => {
                let mut peers = self.shared.alive_peers.lock();
                if alive {
                    peers.insert(node);
                } else {
                    peers.remove(node);
                }
                drop(peers);
                tracing::info!(at = %self.shared.node, %node, alive, "a peer's liveness changed");
                for shard in 1..self.shared.inboxes.len() {
                    self.shared.tell(shard, ShardEvent::Peer { node, alive });
                }
                self.peer_changed(node, alive);
                if alive {
                    let now = self.now;
                    self.home().coordination.look_again(now);
                }
            }
            Action::Stands(standing) => self.standing_known(&standing),
            Action::Claims { by, changes } => {
                let shards = self.shared.inboxes.len();
                if shards == 1 {
                    return self.claims_changed(by, changes);
                }
                let mut by_shard: Vec<Vec<_>> = vec![Vec::new(); shards];
                for change in changes {
                    by_shard[self.shared.shard_of(change.0)].push(change);
                }
                let told = by_shard.iter().filter(|changes| !changes.is_empty());
                let told = told.count();
                self.home().liveness.claims_told(by, told);
                for (shard, changes) in by_shard
                    .into_iter()
                    .enumerate()
                    .filter(|(_, changes)| !changes.is_empty())
                {
                    self.shared.tell(shard, ShardEvent::Claims { by, changes });
                }
            }
        }
    }

    /// Another node leads, or no longer leads, groups of this shard. The home shard learns which of its claims the replicas
    /// are not bound to.
    pub(super) fn claims_changed(&mut self, by: NodeId, changes: Vec<(GroupId, Option<Reign>)>) {
        let mut untaken = Vec::new();
        for (group, reign) in changes {
            let why = self.claim_changed(by, group, reign);
            if let (Some(reign), Some(why)) = (reign, why) {
                untaken.push((group, reign, why));
            }
        }
        if self.home.is_some() {
            self.claims_taken(by, untaken);
        } else {
            self.shared.tell(0, ShardEvent::ClaimsTaken { by, untaken });
        }
    }

    fn claim_changed(
        &mut self,
        by: NodeId,
        group: GroupId,
        reign: Option<Reign>,
    ) -> Option<Untaken> {
        if let Some(Reign { life, .. }) = reign
            && !self.admits(by, group, life)
        {
            // It is told again until it gives the claim up.
            return Some(Untaken::Disputed);
        }
        let term = reign.map(|reign| reign.term);
        let Some(slot) = self.slot(group) else {
            return Some(Untaken::Unopened);
        };
        let event = match term {
            Some(term) => Event::Claimed { by, term },
            None => Event::Unclaimed { by },
        };
        self.step(slot, event, Payloads::None);
        let replica = &self.replicas[slot as usize];
        let is_bound = term.is_none_or(|term| replica.group.is_claimed_by(by, term));
        // What is quarantined votes no more. It stands by the claim unless it has left for a later term already, or may
        // have lost what it knew of one.
        let is_frozen = replica.fault.is_some()
            && !self.uncertain.contains(&group)
            && term.is_none_or(|term| replica.group.term() <= term);
        (!is_bound && !is_frozen).then_some(Untaken::Disputed)
    }

    /// A shard has told its replicas what `by` claims.
    pub(super) fn claims_taken(&mut self, by: NodeId, untaken: Vec<(GroupId, Reign, Untaken)>) {
        self.home().liveness.claims_taken(by, untaken);
    }

    /// Groups of this shard began or ceased to lead: the home shard tells the peers.
    pub(super) fn report_claims(&mut self, claims: Vec<Claim>) {
        self.claim_batches += 1;
        let shard = self.index;
        if self.home.is_some() {
            self.tell_claims(shard, claims);
        } else {
            let event = ShardEvent::ClaimsChanged { shard, claims };
            self.shared.tell(0, event);
        }
    }

    pub(super) fn tell_claims(&mut self, shard: usize, claims: Vec<Claim>) {
        let liveness = &mut self.home().liveness;
        liveness.note_batch(shard);
        for claim in claims {
            if claim.term.is_none() && mutants::is_active(Mutant::ClaimNotWithdrawn) {
                continue;
            }
            let life = claim.life;
            let reign = claim.term.map(|term| Reign { life, term });
            liveness.claim(claim.group, reign, &claim.members);
        }
    }

    /// A replica that was just opened missed the claims that came before.
    pub(super) fn tell_claim(&mut self, group: GroupId) {
        let shard = self.shared.shard_of(group);
        let liveness = &mut self.home().liveness;
        let claims = liveness.claims_on(group);
        for (by, _) in &claims {
            liveness.claim_told_again(*by, group);
        }
        for (by, reign) in claims {
            let changes = vec![(group, Some(reign))];
            self.shared.tell(shard, ShardEvent::Claims { by, changes });
        }
    }

    // ---- who stands by the claims of this node ----

    /// A shard has reads that wait for peers to stand by its claims.
    pub(super) fn standing_wanted(&mut self, shard: usize, at: Tick) {
        let shards = self.shared.inboxes.len();
        let home = self.home();
        home.waiting.resize(shards, false);
        home.waiting[shard] = true;
        home.liveness.want(at);
    }

    fn standing_known(&mut self, standing: &Standing) {
        self.trust.publish(standing);
        let home = self.home();
        home.liveness.forget_want();
        let waiting = std::mem::take(&mut home.waiting);
        for shard in (0..waiting.len()).filter(|shard| waiting[*shard]) {
            if shard == self.index {
                self.look_at_reads();
            } else {
                self.shared.tell(shard, ShardEvent::StandingKnown);
            }
        }
    }
}

/// What blocks say of the members; nothing when one of them can't be read.
fn configurations_in(
    blocks: &[polyraft_storage::EntryBlock<'_>],
) -> Option<Vec<(Index, Configuration)>> {
    let mut found = Vec::new();
    for block in blocks {
        found.extend(block_configurations(block)?);
    }
    Some(found)
}

/// Whether blocks have payloads as they should: none for a witness, all for everybody else.
fn are_of_kind(blocks: &[polyraft_storage::EntryBlock<'_>], is_hollow: bool) -> bool {
    blocks.iter().all(|block| match block.kind() {
        EntryKind::Hollow => is_hollow,
        EntryKind::Configuration => true,
        _ => !is_hollow,
    })
}

/// Whether the blocks that came with a message are exactly the entries that it announces.
fn are_the_entries_of(
    blocks: &[polyraft_storage::EntryBlock<'_>],
    group: GroupId,
    message: &polyraft_raft::Message,
) -> bool {
    let polyraft_raft::Message::Append { entries, .. } = message else {
        return blocks.is_empty();
    };
    let mut next = entries.first;
    for block in blocks {
        if block.group() != group || block.term() != entries.term || block.first() != next {
            return false;
        }
        next = block.end();
    }
    next == entries.end
}
