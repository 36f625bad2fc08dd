//! Node-pair liveness: one small beat per interval and peer, and the tables of who leads what.
//! It must never send anything whose size or rate grows with the number of idle groups: a beat names only the
//! version of the sender's claims, and changes of claims travel once.
//!
//! A pure state machine: time and events come in, actions go out. The home shard owns it. Nothing in it depends on the
//! order of a hash map, so that the same events always lead to the same actions.

use std::collections::{BTreeMap, VecDeque};

use polyraft_raft::mutants::{self, Mutant};
use polyraft_raft::{GroupId, NodeId, Tick};

use crate::config::USUAL_PRIORITY;
use crate::event::Reign;
use crate::pace::Pace;
use crate::pulse::Expected;
use crate::trust::{Batches, Standing};

/// Beats without an answer of which the time is remembered.
const KEPT_BEATS: usize = 64;

/// Claims that a replica disputes, told to it again at one beat.
const DISPUTED_AT_ONCE: usize = 256;

/// An hour, in microseconds.
const LONGEST_PROMISE: u64 = 3_600_000_000;

/// What one node tells another at every interval.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Beat {
    /// Which opening of its data directory the sender is.
    pub(crate) incarnation: u64,
    /// Grows by one with each beat to this peer.
    pub(crate) sequence: u64,
    /// The highest sequence that the sender has heard from the receiver in this incarnation.
    pub(crate) heard: u64,
    /// The version of the sender's claims towards the receiver.
    pub(crate) claims_version: u64,
    /// The incarnation of the receiver that `heard` and `taken` speak of.
    pub(crate) of: u64,
    /// The version of the receiver's claims that the sender's replicas are bound to, all of them, now; 0: not all are.
    pub(crate) taken: u64,
    /// How long after it has last heard the receiver the sender stays bound, in microseconds of its own clock.
    pub(crate) promise: u64,
    /// The sender wants a beat back at once.
    pub(crate) wants_answer: bool,
    /// How readily the sender's node should lead, at most [`USUAL_PRIORITY`].
    pub(crate) priority: u8,
}

/// What the owner has to do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Send a beat.
    Beat { to: NodeId, beat: Beat },
    /// Send changed claims.
    Delta {
        to: NodeId,
        from_version: u64,
        version: u64,
        changes: Vec<(GroupId, Option<Reign>)>,
    },
    /// Send all claims.
    Table {
        to: NodeId,
        version: u64,
        claims: Vec<(GroupId, Reign)>,
    },
    /// Ask a peer for all of its claims.
    RequestTable { from: NodeId },
    /// Tell every shard how readily a peer should lead. Comes before it lives.
    Priority { node: NodeId, priority: u8 },
    /// Tell every shard that a peer lives or is silent.
    Peer { node: NodeId, alive: bool },
    /// Tell the shards what a peer claims now.
    Claims {
        by: NodeId,
        changes: Vec<(GroupId, Option<Reign>)>,
    },
    /// A peer stands by claims of this node.
    Stands(Standing),
}

/// Why a replica is not bound to a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Untaken {
    /// It is not open here, or not created.
    Unopened,
    /// It knows of a later term.
    Disputed,
}

/// The intervals that liveness works with, in microseconds, and what a node says of itself.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Intervals {
    pub(crate) beat: u64,
    /// A peer that was not heard for this long is silent. Also how long this node promises to stay bound to a leader.
    pub(crate) silence: u64,
    /// By how much two clocks may differ in rate, in parts per million.
    pub(crate) drift_ppm: u64,
    /// How readily this node should lead, which its beats say.
    pub(crate) priority: u8,
}

/// Everything this node knows of the other nodes' life, and what it has told them of its own.
#[derive(Debug)]
pub(crate) struct Liveness {
    incarnation: u64,
    intervals: Intervals,
    pace: Pace,
    /// In ascending order.
    peers: Vec<Peer>,
    /// How many batches of claims came from each shard.
    batches: Batches,
    /// Somebody here waits for peers to stand by claims of this node after this moment.
    wanted: Option<Tick>,
}

#[derive(Debug)]
struct Peer {
    node: NodeId,
    /// It was taken out, and is nobody until it is added again.
    is_gone: bool,
    /// What it showed when its connection came up; a beat of another incarnation is dropped.
    incarnation: Option<u64>,
    alive: bool,
    priority: u8,
    heard_at: Tick,
    heard_sequence: u64,
    sent_sequence: u64,
    outgoing: Outgoing,
    incoming: Incoming,
    bonds: Bonds,
    /// Beats that it may still answer, oldest first.
    sent: VecDeque<SentBeat>,
    /// It was last known to stand by the claims of this version, and at this moment.
    stood_by: u64,
    stood_at: Tick,
    /// The beat that asked for an answer and has none, and when it was sent.
    asked: Option<(u64, Tick)>,
    /// It is not asked again before.
    ask_at: Tick,
}

/// What a beat said, and when.
#[derive(Debug)]
struct SentBeat {
    sequence: u64,
    at: Tick,
    version: u64,
    batches: Batches,
}

/// Which of a peer's claims the replicas here are bound to.
#[derive(Debug, Default)]
struct Bonds {
    /// Answers of shards that are awaited.
    under_way: usize,
    unopened: BTreeMap<GroupId, Reign>,
    disputed: BTreeMap<GroupId, Reign>,
}

/// The groups that this node leads and the peer has a replica of.
#[derive(Debug, Default)]
struct Outgoing {
    claims: BTreeMap<GroupId, Reign>,
    version: u64,
    changes: Vec<(GroupId, Option<Reign>)>,
    wants_table: bool,
    /// The batches of claims that `version` covers.
    batches: Batches,
}

/// The groups that the peer leads, as far as it has told.
#[derive(Debug, Default)]
struct Incoming {
    claims: BTreeMap<GroupId, Reign>,
    version: u64,
    /// The parts of a table that is under way.
    staged: Vec<(GroupId, Reign)>,
    /// The version of that table.
    staged_version: u64,
    /// Since when its beats name another version than the one held here.
    mismatch_since: Option<Tick>,
}

impl Liveness {
    pub(crate) fn new(
        node: NodeId,
        incarnation: u64,
        intervals: Intervals,
        peers: impl IntoIterator<Item = NodeId>,
    ) -> Self {
        let mut peers: Vec<NodeId> = peers.into_iter().collect();
        peers.sort_unstable();
        Liveness {
            incarnation,
            intervals,
            pace: Pace::new(intervals.beat, node, peers.iter().copied()),
            peers: peers.into_iter().map(Peer::new).collect(),
            batches: Batches::new(),
            wanted: None,
        }
    }

    /// There is another peer of the node `own`, or one that was taken out is back.
    pub(crate) fn add(&mut self, own: NodeId, node: NodeId) {
        let place = self.peers.partition_point(|peer| peer.node < node);
        match self.peers.get_mut(place) {
            Some(peer) if peer.node == node => peer.is_gone = false,
            _ => {
                self.peers.insert(place, Peer::new(node));
                self.pace.insert(place, node < own);
            }
        }
    }

    /// A peer is taken out. It counts as silent, and what it claimed is void. Its place stays: shards may still have something
    /// to answer about it.
    pub(crate) fn remove(&mut self, node: NodeId, out: &mut Vec<Action>) {
        if let Some(peer) = self.peer(node) {
            peer.is_gone = true;
            peer.incarnation = None;
            peer.forget(out);
        }
    }

    /// When [`Liveness::poll`] has to be called at the latest.
    pub(crate) fn deadline(&self) -> Option<Tick> {
        let living = self.peers.iter().filter(|peer| peer.alive);
        let silent = living.map(|peer| Tick(peer.heard_at.0 + self.intervals.silence));
        let asks = self.peers.iter().filter(|peer| self.is_wanted_of(peer));
        let asks = asks.map(Peer::next_ask);
        silent.chain(asks).chain(self.pace.next()).min()
    }

    /// What the beats of the living peers will say unless something happens. Nothing is expected of a peer while somebody
    /// waits for its word.
    pub(crate) fn expected(&self) -> impl Iterator<Item = Expected> {
        let peers = self.peers.iter().enumerate();
        peers.filter_map(|(place, peer)| {
            let is_awaited = peer.asked.is_some() || self.wanted.is_some();
            Some(Expected {
                node: peer.node,
                incarnation: peer.incarnation.filter(|_| peer.alive && !is_awaited)?,
                claims_version: peer.incoming.version,
                from: self.pace.quiet_from(place),
            })
        })
    }

    /// Whether somebody waits for more than a peer is known to stand by.
    fn is_wanted_of(&self, peer: &Peer) -> bool {
        let is_more = |at| peer.stood_at < at || peer.stood_by < peer.outgoing.version;
        peer.alive && self.wanted.is_some_and(is_more)
    }

    /// Somebody waits for peers to stand by claims of this node at a moment after `at`: they are asked with the next poll.
    pub(crate) fn want(&mut self, at: Tick) {
        self.wanted = self.wanted.max(Some(at));
    }

    /// Nobody waits any more.
    pub(crate) fn forget_want(&mut self) {
        self.wanted = None;
    }

    pub(crate) fn is_alive(&self, node: NodeId) -> bool {
        self.peers
            .iter()
            .any(|peer| peer.node == node && peer.alive)
    }

    /// All other nodes.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = NodeId> {
        let peers = self.peers.iter().filter(|peer| !peer.is_gone);
        peers.map(|peer| peer.node)
    }

    /// How long a peer may count on what this node told it, on any clock.
    pub(crate) fn longest_promise(&self) -> u64 {
        let silence = self.intervals.silence;
        silence + silence * self.intervals.drift_ppm / 1_000_000
    }

    /// Which living peers claim to lead `group`, and at which terms; the newest comes last.
    pub(crate) fn claims_on(&self, group: GroupId) -> Vec<(NodeId, Reign)> {
        let living = self.peers.iter().filter(|peer| peer.alive);
        let claim = |peer: &Peer| Some((peer.node, *peer.incoming.claims.get(&group)?));
        let mut claims: Vec<_> = living.filter_map(claim).collect();
        claims.sort_unstable_by_key(|(_, term)| *term);
        claims
    }

    fn peer(&mut self, node: NodeId) -> Option<&mut Peer> {
        self.peers.iter_mut().find(|peer| peer.node == node)
    }

    /// Sends what is due and, if everything that had arrived by `now` was seen (`is_drained`), judges who is silent: a
    /// beat that waits in the inbox must not count as silence.
    ///
    /// `sent_at` is a moment shortly before the beats leave, and not before anybody began to wait for them.
    pub(crate) fn poll(
        &mut self,
        now: Tick,
        sent_at: Tick,
        is_drained: bool,
        out: &mut Vec<Action>,
    ) {
        // Who still waits after so long asks again.
        let silence = self.intervals.silence;
        self.wanted.take_if(|at| now.since(*at) > silence);
        let wanted: Vec<bool> = match self.wanted {
            Some(_) => self
                .peers
                .iter()
                .map(|peer| self.is_wanted_of(peer))
                .collect(),
            None => Vec::new(),
        };
        self.pace.advance(now);
        let (own, intervals) = (self.incarnation, self.intervals);
        for (place, peer) in self.peers.iter_mut().enumerate() {
            if is_drained
                && peer.alive
                && now.0.saturating_sub(peer.heard_at.0) >= self.intervals.silence
            {
                peer.alive = false;
                out.push(Action::Peer {
                    node: peer.node,
                    alive: false,
                });
            }
            if peer.incarnation.is_some() {
                peer.flush_claims(out);
                let is_due = self.pace.is_due(place);
                let asks = wanted.get(place) == Some(&true) && peer.next_ask() <= now;
                if is_due || asks {
                    peer.outgoing.batches.clone_from(&self.batches);
                }
                if is_due {
                    peer.ask_for_missed_claims(now, intervals.beat, out);
                    peer.dispute_again(out);
                }
                if is_due || asks {
                    out.push(peer.next_beat(own, &intervals, sent_at, asks));
                }
            }
        }
    }

    /// Gives back the room of claims that were passed on.
    pub(crate) fn trim(&mut self) {
        for peer in &mut self.peers {
            peer.outgoing.changes.shrink_to_fit();
            peer.incoming.staged.shrink_to_fit();
        }
    }

    /// How often a beat goes to each peer.
    pub(crate) fn interval(&self) -> u64 {
        self.intervals.beat
    }

    /// Sends the beats that are due while a turn is under way. They say what was so when it began: changes of claims leave when it
    /// ends, and nobody is judged silent, because what arrived meanwhile was not looked at.
    pub(crate) fn beat_in_turn(&mut self, now: Tick, out: &mut Vec<Action>) {
        if self.pace.next().is_none_or(|next| now < next) {
            return;
        }
        self.pace.advance(now);
        let (own, intervals) = (self.incarnation, self.intervals);
        for (place, peer) in self.peers.iter_mut().enumerate() {
            if peer.incarnation.is_some() && self.pace.is_due(place) {
                out.push(peer.next_beat(own, &intervals, now, false));
            }
        }
    }

    /// A connection to `node` came up; it authenticated itself and showed `incarnation`.
    pub(crate) fn link_up(
        &mut self,
        now: Tick,
        node: NodeId,
        incarnation: u64,
        out: &mut Vec<Action>,
    ) {
        let (own, intervals) = (self.incarnation, self.intervals);
        let peer = self.peer(node).filter(|peer| !peer.is_gone);
        let Some(peer) = peer else { return };
        if peer.incarnation != Some(incarnation) {
            // Whatever an earlier life of the peer claimed is void: it has to say it again.
            peer.forget(out);
            peer.incarnation = Some(incarnation);
            peer.heard_sequence = 0;
            (peer.asked, peer.stood_by) = (None, 0);
        }
        peer.heard_at = peer.heard_at.max(now);
        // Frames of the old connection may be lost, deltas among them.
        peer.outgoing.wants_table = true;
        out.push(peer.next_beat(own, &intervals, now, false));
    }

    /// Any frame is a sign of life.
    pub(crate) fn heard(&mut self, at: Tick, node: NodeId) {
        if let Some(peer) = self.peer(node) {
            peer.heard_at = peer.heard_at.max(at);
        }
    }

    pub(crate) fn beat(&mut self, at: Tick, from: NodeId, beat: Beat, out: &mut Vec<Action>) {
        let (own, intervals) = (self.incarnation, self.intervals);
        let Some(place) = self.peers.iter().position(|peer| peer.node == from) else {
            return;
        };
        let peer = &mut self.peers[place];
        if peer.incarnation != Some(beat.incarnation) || beat.sequence <= peer.heard_sequence {
            return;
        }
        self.pace.heard(place, at);
        peer.heard_sequence = beat.sequence;
        peer.heard_at = peer.heard_at.max(at);
        if peer.priority != beat.priority {
            peer.priority = beat.priority;
            out.push(Action::Priority {
                node: from,
                priority: beat.priority,
            });
        }
        if !peer.alive {
            peer.alive = true;
            out.push(Action::Peer {
                node: from,
                alive: true,
            });
            let changes: Vec<_> = peer
                .incoming
                .claims
                .iter()
                .map(|(group, term)| (*group, Some(*term)))
                .collect();
            if !changes.is_empty() {
                peer.tell_claims(changes, out);
            }
        }
        if beat.claims_version == peer.incoming.version {
            peer.incoming.mismatch_since = None;
        } else {
            peer.incoming.mismatch_since.get_or_insert(at);
        }
        if beat.of == own {
            peer.take_standing(at, &beat, &intervals, out);
        }
        if beat.wants_answer {
            out.push(peer.next_beat(own, &intervals, at, false));
        }
    }

    /// A shard has handed over a batch of claims, perhaps an empty one.
    pub(crate) fn note_batch(&mut self, shard: usize) {
        if self.batches.len() <= shard {
            self.batches.resize(shard + 1, 0);
        }
        self.batches[shard] += 1;
    }

    /// How many batches of claims came from each shard.
    pub(crate) fn batches(&self) -> &Batches {
        &self.batches
    }

    /// An [`Action::Claims`] is on its way to so many shards, each of which will answer with
    /// [`Liveness::claims_taken`].
    pub(crate) fn claims_told(&mut self, by: NodeId, shards: usize) {
        if let Some(peer) = self.peer(by) {
            peer.bonds.under_way += shards - 1;
        }
    }

    /// A shard has taken claims, except for these.
    pub(crate) fn claims_taken(&mut self, by: NodeId, untaken: Vec<(GroupId, Reign, Untaken)>) {
        let Some(peer) = self.peer(by) else { return };
        peer.bonds.under_way -= 1;
        for (group, term, why) in untaken {
            // It may have been given up, or claimed anew, meanwhile.
            if peer.incoming.claims.get(&group) == Some(&term) {
                let list = match why {
                    Untaken::Unopened => &mut peer.bonds.unopened,
                    Untaken::Disputed => &mut peer.bonds.disputed,
                };
                list.insert(group, term);
            }
        }
    }

    /// A peer's claim on a group is told to one shard again, which will answer as usual.
    pub(crate) fn claim_told_again(&mut self, by: NodeId, group: GroupId) {
        if let Some(peer) = self.peer(by) {
            peer.bonds.forget(group);
            peer.bonds.under_way += 1;
        }
    }

    /// This node leads `group` at `term` from now on, or (none) no more. The members are told; who was told before and is none
    /// any more hears that the claim is over.
    pub(crate) fn claim(&mut self, group: GroupId, term: Option<Reign>, members: &[NodeId]) {
        for peer in &mut self.peers {
            let outgoing = &mut peer.outgoing;
            let term = term.filter(|_| members.contains(&peer.node));
            let before = match term {
                Some(term) => outgoing.claims.insert(group, term),
                None => outgoing.claims.remove(&group),
            };
            if term.is_some() || before.is_some() {
                // Who has not connected yet gets the whole table when it does: one change is enough to make that a new version.
                if peer.incarnation.is_none() {
                    outgoing.changes.clear();
                }
                outgoing.changes.push((group, term));
            }
        }
    }

    pub(crate) fn delta(
        &mut self,
        from: NodeId,
        from_version: u64,
        version: u64,
        changes: Vec<(GroupId, Option<Reign>)>,
        out: &mut Vec<Action>,
    ) {
        let Some(peer) = self.peer(from) else { return };
        if peer.incoming.version != from_version {
            return; // A gap. The next beats show it, and the table is asked for.
        }
        peer.incoming.version = version;
        peer.incoming.mismatch_since = None;
        for (group, term) in &changes {
            match term {
                Some(term) => peer.incoming.claims.insert(*group, *term),
                None => peer.incoming.claims.remove(group),
            };
        }
        peer.report(changes, out);
    }

    pub(crate) fn table(
        &mut self,
        from: NodeId,
        version: u64,
        is_first: bool,
        total: usize,
        claims: Vec<(GroupId, Reign)>,
        out: &mut Vec<Action>,
    ) {
        let Some(peer) = self.peer(from) else { return };
        let incoming = &mut peer.incoming;
        if is_first {
            incoming.staged.clear();
            incoming.staged_version = version;
        }
        let is_beyond = incoming.staged.len() + claims.len() > total;
        if incoming.staged_version != version || is_beyond {
            // A part of another table, whose own first part was lost. The next beats show it.
            incoming.staged.clear();
            return;
        }
        incoming.staged.extend(claims);
        if incoming.staged.len() != total {
            return; // More is to come; or a part was lost, and the next beats show it.
        }
        let fresh: BTreeMap<GroupId, Reign> = incoming.staged.drain(..).collect();
        let gone = incoming
            .claims
            .keys()
            .filter(|group| !fresh.contains_key(group));
        let mut changes: Vec<_> = gone.map(|group| (*group, None)).collect();
        changes.extend(fresh.iter().map(|(group, term)| (*group, Some(*term))));
        incoming.claims = fresh;
        incoming.version = version;
        incoming.mismatch_since = None;
        peer.report(changes, out);
    }

    pub(crate) fn table_requested(&mut self, from: NodeId) {
        if let Some(peer) = self.peer(from) {
            peer.outgoing.wants_table = true;
        }
    }
}

impl Bonds {
    fn forget(&mut self, group: GroupId) {
        self.unopened.remove(&group);
        self.disputed.remove(&group);
    }
}

impl Peer {
    fn new(node: NodeId) -> Self {
        Peer {
            node,
            is_gone: false,
            incarnation: None,
            alive: false,
            priority: USUAL_PRIORITY,
            heard_at: Tick(0),
            heard_sequence: 0,
            sent_sequence: 0,
            outgoing: Outgoing::default(),
            incoming: Incoming::default(),
            bonds: Bonds::default(),
            sent: VecDeque::new(),
            stood_by: 0,
            stood_at: Tick(0),
            asked: None,
            ask_at: Tick(0),
        }
    }

    /// Nothing is known of it any more.
    fn forget(&mut self, out: &mut Vec<Action>) {
        if self.alive {
            self.alive = false;
            out.push(Action::Peer {
                node: self.node,
                alive: false,
            });
        }
        let claims = std::mem::take(&mut self.incoming).claims;
        if !claims.is_empty() {
            let changes = claims.into_keys().map(|group| (group, None)).collect();
            self.tell_claims(changes, out);
        }
    }

    /// When it may be asked the next time to stand by claims.
    fn next_ask(&self) -> Tick {
        self.ask_at
    }

    fn next_beat(
        &mut self,
        incarnation: u64,
        intervals: &Intervals,
        at: Tick,
        wants_answer: bool,
    ) -> Action {
        self.sent_sequence += 1;
        if self.sent.len() == KEPT_BEATS {
            self.sent.pop_front();
        }
        self.sent.push_back(SentBeat {
            sequence: self.sent_sequence,
            at,
            version: self.outgoing.version,
            batches: self.outgoing.batches.clone(),
        });
        if wants_answer {
            self.asked = Some((self.sent_sequence, at));
            // Beats may be lost; the ordinary ones have the same effect, a little later.
            self.ask_at = at.after(intervals.beat);
        }
        let beat = Beat {
            incarnation,
            sequence: self.sent_sequence,
            heard: self.heard_sequence,
            claims_version: self.outgoing.version,
            of: self.incarnation.unwrap_or(0),
            taken: self.taken(),
            promise: intervals.silence,
            wants_answer,
            priority: intervals.priority,
        };
        Action::Beat {
            to: self.node,
            beat,
        }
    }

    /// The version of its claims that the replicas here are bound to, all of them. Bound they stay until this node judges it
    /// silent, and from then on nothing is said.
    fn taken(&self) -> u64 {
        let bonds = &self.bonds;
        let are_all =
            bonds.under_way == 0 && bonds.unopened.is_empty() && bonds.disputed.is_empty();
        if self.alive && are_all {
            self.incoming.version
        } else {
            0
        }
    }

    /// Works out what its beat says about this node's claims.
    fn take_standing(
        &mut self,
        now: Tick,
        beat: &Beat,
        intervals: &Intervals,
        out: &mut Vec<Action>,
    ) {
        let Ok(heard) = self
            .sent
            .binary_search_by_key(&beat.heard, |sent| sent.sequence)
        else {
            return;
        };
        // What it is bound to, as far as it is known which claims that were.
        let covered = (0..=heard)
            .rev()
            .find(|at| self.sent[*at].version <= beat.taken);
        let is_full = beat.taken >= self.sent[heard].version;
        if self
            .asked
            .is_some_and(|(sequence, _)| sequence <= beat.heard)
        {
            self.asked = None;
            // Who is not there yet needs a moment.
            let pause = if is_full { 0 } else { intervals.beat / 8 };
            self.ask_at = now.after(pause);
        }
        let Some(covered) = covered.filter(|_| beat.taken > 0) else {
            return;
        };
        let mut since = self.sent[heard].at;
        // No promise is longer than that; what is read off the wire may be anything.
        let mut length = beat.promise.min(LONGEST_PROMISE);
        if mutants::is_active(Mutant::LeaseFromAnswer) {
            since = now;
        }
        // Its clock may run ahead of the one here: its promise is over sooner than it looks from here.
        if !mutants::is_active(Mutant::DriftIgnored) {
            length = length * 1_000_000 / (1_000_000 + intervals.drift_ppm);
        }
        let mut asked_at = self.sent[heard].at;
        if mutants::is_active(Mutant::EarlierAnswerCounts) {
            asked_at = self.sent.back().map_or(asked_at, |sent| sent.at);
        }
        (self.stood_by, self.stood_at) = (beat.taken, self.stood_at.max(asked_at));
        out.push(Action::Stands(Standing {
            by: self.node,
            batches: self.sent[covered].batches.clone(),
            since: asked_at,
            until: since.after(length),
        }));
        self.sent.drain(..covered);
    }

    /// Tells replicas again of claims that they disputed: an answer of theirs may have been lost.
    fn dispute_again(&mut self, out: &mut Vec<Action>) {
        if !self.alive || self.bonds.disputed.is_empty() {
            return;
        }
        let claims = &self.incoming.claims;
        self.bonds
            .disputed
            .retain(|group, term| claims.get(group) == Some(term));
        let again = self.bonds.disputed.iter().take(DISPUTED_AT_ONCE);
        let changes: Vec<_> = again.map(|(group, term)| (*group, Some(*term))).collect();
        self.report(changes, out);
    }

    /// Passes changed claims on. Those of a peer that is not alive yet wait for its first beat.
    fn report(&mut self, mut changes: Vec<(GroupId, Option<Reign>)>, out: &mut Vec<Action>) {
        if !self.alive {
            changes.retain(|(_, term)| term.is_none());
        }
        if !changes.is_empty() {
            self.tell_claims(changes, out);
        }
    }

    /// Until the shards have answered, nothing is known of these claims.
    fn tell_claims(&mut self, changes: Vec<(GroupId, Option<Reign>)>, out: &mut Vec<Action>) {
        for (group, _) in &changes {
            self.bonds.forget(*group);
        }
        self.bonds.under_way += 1;
        out.push(Action::Claims {
            by: self.node,
            changes,
        });
    }

    fn flush_claims(&mut self, out: &mut Vec<Action>) {
        let outgoing = &mut self.outgoing;
        let from_version = outgoing.version;
        if !outgoing.changes.is_empty() {
            outgoing.version += 1;
        }
        if outgoing.wants_table {
            outgoing.wants_table = false;
            outgoing.changes.clear();
            let claims = outgoing
                .claims
                .iter()
                .map(|(group, term)| (*group, *term))
                .collect();
            out.push(Action::Table {
                to: self.node,
                version: outgoing.version,
                claims,
            });
        } else if !outgoing.changes.is_empty() {
            let changes = std::mem::take(&mut outgoing.changes);
            out.push(Action::Delta {
                to: self.node,
                from_version,
                version: outgoing.version,
                changes,
            });
        }
    }

    /// A version that stays different for two intervals is a lost delta, not one that is still on its way.
    fn ask_for_missed_claims(&mut self, now: Tick, beat: u64, out: &mut Vec<Action>) {
        if let Some(since) = self.incoming.mismatch_since
            && now.0.saturating_sub(since.0) >= 2 * beat
        {
            self.incoming.mismatch_since = Some(now);
            out.push(Action::RequestTable { from: self.node });
        }
    }
}

#[cfg(test)]
mod tests;
