//! The work of shard 0 for the whole node: liveness of the other nodes, claims, and the coordination of creations.
//! It must never step a group of another shard; it tells that shard.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use polyraft_raft::mutants::{self, Mutant};
use polyraft_raft::{Configuration, Event, GroupId, Index, NodeId, Term, Tick};
use polyraft_storage::{PREFETCH_AHEAD, block_configurations};
use rustc_hash::FxHashMap;

use super::fetch::Fetched;
use super::outgoing::NODE_LEVEL;
use super::proposals::first_request;
use super::{Payloads, Shard, Wanted, parse_blocks};
use crate::error::Error;
use crate::event::{Claim, CreateOrigin, CreateReply, GroupRanges, Members, ShardEvent};
use crate::liveness::{Action, Beat, Intervals, Liveness, Untaken};
use crate::pulse::Expected;
use crate::status::ElectionCause;
use crate::trust::Standing;
use crate::wire::{self, Record, Records};

/// How long a creation waits for members before it asks them again, and before it gives up. Microseconds.
const CREATE_RETRY: u64 = 200_000;
const CREATE_TIMEOUT: u64 = 10_000_000;

/// How long a creation waits for members that are not heard of: right after a start the connections take a moment.
const CREATE_GRACE: u64 = 1_000_000;

/// Claims in one record of a table: 16 bytes each, far below a frame's bound.
const CLAIMS_PER_RECORD: usize = 16_384;

/// What the home shard needs beyond the others.
#[derive(Debug, Clone)]
pub(crate) struct HomeOptions {
    pub(crate) incarnation: u64,
    pub(crate) intervals: Intervals,
}

/// The state of shard 0 that belongs to the node.
#[derive(Debug)]
pub(super) struct Home {
    liveness: Liveness,
    actions: Vec<Action>,
    /// Beats that came in without an event.
    pulses: Vec<(NodeId, Tick, Beat)>,
    /// What the transport's thread knows to be expected of beats.
    expected: Vec<Expected>,
    /// Creations that a caller of this node waits for.
    creations: Vec<Creation>,
    last_request: u64,
    /// Shards with reads that wait for peers to stand by claims.
    waiting: Vec<bool>,
    /// Creations, by whoever asked, of which some shards of this node have not reported yet.
    parts: FxHashMap<CreateOrigin, Parts>,
}

#[derive(Debug)]
struct Creation {
    request: u64,
    groups: GroupRanges,
    members: Members,
    missing: Members,
    reply: CreateReply,
    retry_at: Tick,
    /// From then on members that are not alive are left behind.
    grace_ends_at: Tick,
    gives_up_at: Tick,
}

#[derive(Debug)]
struct Parts {
    missing: usize,
    result: Result<(), Error>,
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
            creations: Vec::new(),
            last_request: first_request(options.incarnation),
            waiting: Vec::new(),
            parts: FxHashMap::default(),
        }
    }

    /// When the home shard has to look at the node's affairs at the latest.
    pub(super) fn deadline(&self) -> Option<Tick> {
        let creations = self
            .creations
            .iter()
            .map(|creation| creation.retry_at.min(creation.gives_up_at));
        creations.chain(self.liveness.deadline()).min()
    }

    /// Answers everybody who waits for a creation.
    pub(super) fn fail_all(&mut self, error: &Error) {
        for creation in self.creations.drain(..) {
            let _ = creation.reply.send(Err(error.clone()));
        }
    }
}

impl Shard {
    fn home(&mut self) -> &mut Home {
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
            match record {
                Ok(record) => self.record(from, record, at),
                Err(error) => {
                    tracing::warn!(%from, %error, "a record was dropped");
                    self.counters().rejected_messages.add(1);
                }
            }
        }
    }

    fn record(&mut self, from: NodeId, record: Record<'_>, at: Tick) {
        match record {
            Record::Group {
                group,
                message,
                blocks,
            } => self.message(from, group, message, blocks),
            Record::Forward {
                group,
                request,
                payload,
            } => self.forwarded(from, group, request, payload),
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
            Record::UnknownGroup { group } => self.welcome(from, group),
            Record::Join {
                group,
                term: _,
                leads: _,
                configuration,
            } => self.join(group, &configuration),
            Record::Removed { group, at, term } => self.removal_heard(group, at, term),
            Record::MemberAsk { group } => self.member_asked(from, group),
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
                groups,
                members,
            } => {
                if members.contains(&self.shared.node) {
                    self.create_parts(
                        CreateOrigin {
                            node: from,
                            request,
                        },
                        groups,
                        members,
                    );
                }
            }
            Record::CreateReply { request, result } => self.member_created(from, request, result),
        }
    }

    /// Steps a group with a message from another node.
    fn message(
        &mut self,
        from: NodeId,
        group: GroupId,
        message: polyraft_raft::Message,
        bytes: &[u8],
    ) {
        let Some(slot) = self.slot(group) else {
            let counters = self.shared.counters.shard(self.index);
            if !self.opening.contains_key(&group)
                && let Some(frame) = self
                    .outgoing
                    .append(from, group, wire::HEAD_BYTES, counters)
            {
                wire::put_unknown_group(frame, group);
            }
            return;
        };
        if self.is_from_removed(slot, from, &message) {
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
        let blocks = blocks.filter(|blocks| are_the_entries_of(blocks, group, &message));
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

    fn with_liveness(&mut self, change: impl FnOnce(&mut Liveness, &mut Vec<Action>)) {
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
        self.retry_creations();
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
                let bytes = wire::HEAD_BYTES + 16 + changes.len() * 16;
                if bytes > self.outgoing.max_record_bytes() {
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
                    let bytes = wire::HEAD_BYTES + 17 + claims.len() * 16;
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
                    // It may be the one that a creation waits for.
                    let now = self.now;
                    self.home()
                        .creations
                        .iter_mut()
                        .for_each(|creation| creation.retry_at = now);
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
    pub(super) fn claims_changed(&mut self, by: NodeId, changes: Vec<(GroupId, Option<Term>)>) {
        let mut untaken = Vec::new();
        for (group, term) in changes {
            let why = self.claim_changed(by, group, term);
            if let (Some(term), Some(why)) = (term, why) {
                untaken.push((group, term, why));
            }
        }
        if self.home.is_some() {
            self.claims_taken(by, untaken);
        } else {
            self.shared.tell(0, ShardEvent::ClaimsTaken { by, untaken });
        }
    }

    fn claim_changed(&mut self, by: NodeId, group: GroupId, term: Option<Term>) -> Option<Untaken> {
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
            && !self.damaged.contains(&group)
            && term.is_none_or(|term| replica.group.term() <= term);
        (!is_bound && !is_frozen).then_some(Untaken::Disputed)
    }

    /// A shard has told its replicas what `by` claims.
    pub(super) fn claims_taken(&mut self, by: NodeId, untaken: Vec<(GroupId, Term, Untaken)>) {
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
            liveness.claim(claim.group, claim.term, &claim.members);
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
        for (by, term) in claims {
            let changes = vec![(group, Some(term))];
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

    // ---- creations ----

    /// A caller of this node creates groups on all of their members.
    pub(super) fn create_everywhere(
        &mut self,
        groups: GroupRanges,
        members: Members,
        reply: CreateReply,
    ) {
        let now = self.now;
        let home = self.home();
        home.last_request = home.last_request.wrapping_add(1);
        let request = home.last_request;
        home.creations.push(Creation {
            request,
            groups: groups.clone(),
            members: members.clone(),
            missing: members.clone(),
            reply,
            retry_at: Tick(now.0 + CREATE_RETRY),
            grace_ends_at: Tick(now.0 + CREATE_GRACE),
            gives_up_at: Tick(now.0 + CREATE_TIMEOUT),
        });
        for member in &members {
            self.ask_to_create(*member, request, &groups, &members);
        }
    }

    fn ask_to_create(
        &mut self,
        member: NodeId,
        request: u64,
        groups: &GroupRanges,
        members: &Members,
    ) {
        if member == self.shared.node {
            let origin = CreateOrigin {
                node: member,
                request,
            };
            return self.create_parts(origin, groups.clone(), members.clone());
        }
        let counters = self.shared.counters.shard(self.index);
        // A scattered set of groups can be larger than a frame; pieces of it are answered one by one.
        let bytes = wire::HEAD_BYTES + 9 + members.len() * 8 + groups.len() * 16;
        if let Some(frame) = self.outgoing.append(member, NODE_LEVEL, bytes, counters) {
            wire::put_create(frame, request, groups, members);
        }
    }

    /// Has every shard of this node create its part.
    fn create_parts(&mut self, origin: CreateOrigin, groups: GroupRanges, members: Members) {
        let shards = self.shared.inboxes.len();
        let parts = Parts {
            missing: shards,
            result: Ok(()),
        };
        if self.home().parts.contains_key(&origin) {
            return; // Asked again while the first request is under way.
        }
        self.home().parts.insert(origin, parts);
        for shard in 1..shards {
            let (groups, members) = (groups.clone(), members.clone());
            self.shared.tell(
                shard,
                ShardEvent::Create {
                    origin,
                    groups,
                    members,
                },
            );
        }
        self.create(origin, &groups, &members);
    }

    /// A shard of this node is done with its part.
    pub(super) fn created(&mut self, origin: CreateOrigin, result: Result<(), Error>) {
        let Some(parts) = self.home().parts.get_mut(&origin) else {
            return;
        };
        parts.missing -= 1;
        if parts.result.is_ok() {
            parts.result = result;
        }
        if parts.missing > 0 {
            return;
        }
        let Some(Parts { result, .. }) = self.home().parts.remove(&origin) else {
            return;
        };
        if origin.node == self.shared.node {
            return self.member_created(origin.node, origin.request, result);
        }
        let counters = self.shared.counters.shard(self.index);
        if let Some(frame) = self
            .outgoing
            .append(origin.node, NODE_LEVEL, 1024, counters)
        {
            wire::put_create_reply(frame, origin.request, &result);
        }
    }

    /// A member answered a creation of this node.
    fn member_created(&mut self, member: NodeId, request: u64, result: Result<(), Error>) {
        let home = self.home();
        let Some(at) = home
            .creations
            .iter()
            .position(|creation| creation.request == request)
        else {
            return;
        };
        if let Err(error) = result {
            let _ = home.creations.swap_remove(at).reply.send(Err(error));
            return;
        }
        home.creations[at]
            .missing
            .retain(|missing| *missing != member);
        self.finish_created(at);
    }

    /// A creation is over when every member has it or, after a grace period, a majority and everybody who lives. The
    /// others get a group with the first message about it.
    fn finish_created(&mut self, at: usize) -> bool {
        let (node, now) = (self.shared.node, self.now);
        let home = self.home();
        let creation = &home.creations[at];
        let has_majority = creation.missing.len() < creation.members.len().div_ceil(2);
        let in_grace = now < creation.grace_ends_at;
        let waits_for =
            |member: &NodeId| in_grace || *member == node || home.liveness.is_alive(*member);
        let is_over =
            creation.missing.is_empty() || has_majority && !creation.missing.iter().any(waits_for);
        if is_over {
            let _ = home.creations.swap_remove(at).reply.send(Ok(()));
        }
        is_over
    }

    fn retry_creations(&mut self) {
        let now = self.now;
        let mut at = 0;
        while at < self.home().creations.len() {
            let creation = &mut self.home().creations[at];
            if creation.gives_up_at <= now {
                let creation = self.home().creations.swap_remove(at);
                let missing = creation.missing.to_vec();
                let _ = creation.reply.send(Err(Error::CreateTimeout { missing }));
                continue;
            }
            if creation.retry_at <= now {
                creation.retry_at = Tick(now.0 + CREATE_RETRY);
                let (request, groups) = (creation.request, creation.groups.clone());
                let (members, missing) = (creation.members.clone(), creation.missing.clone());
                if self.finish_created(at) {
                    continue;
                }
                for member in missing {
                    self.ask_to_create(member, request, &groups, &members);
                }
            }
            at += 1;
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
