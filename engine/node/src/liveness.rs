//! Node-pair liveness: one small beat per interval and peer, and the tables of who leads what.
//! It must never send anything whose size or rate grows with the number of idle groups: a beat names only the
//! version of the sender's claims, and changes of claims travel once.
//!
//! A pure state machine: time and events come in, actions go out. The home shard owns it. Nothing in it depends on the
//! order of a hash map, so that the same events always lead to the same actions.

use std::collections::BTreeMap;

use polyraft_raft::{GroupId, NodeId, Term, Tick};

use crate::pace::Pace;
use crate::pulse::Expected;

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
        changes: Vec<(GroupId, Option<Term>)>,
    },
    /// Send all claims.
    Table {
        to: NodeId,
        version: u64,
        claims: Vec<(GroupId, Term)>,
    },
    /// Ask a peer for all of its claims.
    RequestTable { from: NodeId },
    /// Tell every shard that a peer lives or is silent.
    Peer { node: NodeId, alive: bool },
    /// Tell the shards what a peer claims now.
    Claims {
        by: NodeId,
        changes: Vec<(GroupId, Option<Term>)>,
    },
}

/// The intervals that liveness works with, in microseconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Intervals {
    pub(crate) beat: u64,
    /// A peer that was not heard for this long is silent.
    pub(crate) silence: u64,
}

/// Everything this node knows of the other nodes' life, and what it has told them of its own.
#[derive(Debug)]
pub(crate) struct Liveness {
    incarnation: u64,
    intervals: Intervals,
    pace: Pace,
    /// In ascending order.
    peers: Vec<Peer>,
}

#[derive(Debug)]
struct Peer {
    node: NodeId,
    /// What it showed when its connection came up; a beat of another incarnation is dropped.
    incarnation: Option<u64>,
    alive: bool,
    heard_at: Tick,
    heard_sequence: u64,
    sent_sequence: u64,
    outgoing: Outgoing,
    incoming: Incoming,
}

/// The groups that this node leads and the peer has a replica of.
#[derive(Debug, Default)]
struct Outgoing {
    claims: BTreeMap<GroupId, Term>,
    version: u64,
    changes: Vec<(GroupId, Option<Term>)>,
    wants_table: bool,
}

/// The groups that the peer leads, as far as it has told.
#[derive(Debug, Default)]
struct Incoming {
    claims: BTreeMap<GroupId, Term>,
    version: u64,
    /// The parts of a table that is under way.
    staged: Vec<(GroupId, Term)>,
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
        }
    }

    /// When [`Liveness::poll`] has to be called at the latest.
    pub(crate) fn deadline(&self) -> Option<Tick> {
        let living = self.peers.iter().filter(|peer| peer.alive);
        let silent = living.map(|peer| Tick(peer.heard_at.0 + self.intervals.silence));
        silent.chain(self.pace.next()).min()
    }

    /// What the beats of the living peers will say unless something happens.
    pub(crate) fn expected(&self) -> impl Iterator<Item = Expected> {
        let peers = self.peers.iter().enumerate();
        peers.filter_map(|(place, peer)| {
            Some(Expected {
                node: peer.node,
                incarnation: peer.incarnation.filter(|_| peer.alive)?,
                claims_version: peer.incoming.version,
                from: self.pace.quiet_from(place),
            })
        })
    }

    pub(crate) fn is_alive(&self, node: NodeId) -> bool {
        self.peers
            .iter()
            .any(|peer| peer.node == node && peer.alive)
    }

    /// Which living peer claims to lead `group`, and at which term; the newest if several do.
    pub(crate) fn claim_on(&self, group: GroupId) -> Option<(NodeId, Term)> {
        let living = self.peers.iter().filter(|peer| peer.alive);
        let claims = living.filter_map(|peer| {
            peer.incoming
                .claims
                .get(&group)
                .map(|term| (peer.node, *term))
        });
        claims.max_by_key(|(_, term)| *term)
    }

    fn peer(&mut self, node: NodeId) -> Option<&mut Peer> {
        self.peers.iter_mut().find(|peer| peer.node == node)
    }

    /// Sends what is due and, if everything that had arrived by `now` was seen (`is_drained`), judges who is silent: a
    /// beat that waits in the inbox must not count as silence.
    pub(crate) fn poll(&mut self, now: Tick, is_drained: bool, out: &mut Vec<Action>) {
        self.pace.advance(now);
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
                if self.pace.is_due(place) {
                    peer.ask_for_missed_claims(now, self.intervals.beat, out);
                    out.push(peer.next_beat(self.incarnation));
                }
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
        let own = self.incarnation;
        let Some(peer) = self.peer(node) else { return };
        if peer.incarnation != Some(incarnation) {
            // Whatever an earlier life of the peer claimed is void: it has to say it again.
            if peer.alive {
                peer.alive = false;
                out.push(Action::Peer { node, alive: false });
            }
            let claims = std::mem::take(&mut peer.incoming).claims;
            if !claims.is_empty() {
                let changes = claims.into_keys().map(|group| (group, None)).collect();
                out.push(Action::Claims { by: node, changes });
            }
            peer.incarnation = Some(incarnation);
            peer.heard_sequence = 0;
        }
        peer.heard_at = now;
        // Frames of the old connection may be lost, deltas among them.
        peer.outgoing.wants_table = true;
        out.push(peer.next_beat(own));
    }

    /// Any frame is a sign of life.
    pub(crate) fn heard(&mut self, at: Tick, node: NodeId) {
        if let Some(peer) = self.peer(node) {
            peer.heard_at = peer.heard_at.max(at);
        }
    }

    pub(crate) fn beat(&mut self, at: Tick, from: NodeId, beat: Beat, out: &mut Vec<Action>) {
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
                out.push(Action::Claims { by: from, changes });
            }
        }
        if beat.claims_version == peer.incoming.version {
            peer.incoming.mismatch_since = None;
        } else {
            peer.incoming.mismatch_since.get_or_insert(at);
        }
    }

    /// This node began to lead `group` at `term`, or (none) ceased to.
    pub(crate) fn claim(&mut self, group: GroupId, term: Option<Term>, members: &[NodeId]) {
        for peer in self
            .peers
            .iter_mut()
            .filter(|peer| members.contains(&peer.node))
        {
            match term {
                Some(term) => peer.outgoing.claims.insert(group, term),
                None => peer.outgoing.claims.remove(&group),
            };
            peer.outgoing.changes.push((group, term));
        }
    }

    pub(crate) fn delta(
        &mut self,
        from: NodeId,
        from_version: u64,
        version: u64,
        changes: Vec<(GroupId, Option<Term>)>,
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
        claims: Vec<(GroupId, Term)>,
        out: &mut Vec<Action>,
    ) {
        let Some(peer) = self.peer(from) else { return };
        let incoming = &mut peer.incoming;
        if is_first {
            incoming.staged.clear();
        }
        incoming.staged.extend(claims);
        if incoming.staged.len() != total {
            return; // More is to come; or a part was lost, and the next beats show it.
        }
        let fresh: BTreeMap<GroupId, Term> = incoming.staged.drain(..).collect();
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

impl Peer {
    fn new(node: NodeId) -> Self {
        Peer {
            node,
            incarnation: None,
            alive: false,
            heard_at: Tick(0),
            heard_sequence: 0,
            sent_sequence: 0,
            outgoing: Outgoing::default(),
            incoming: Incoming::default(),
        }
    }

    fn next_beat(&mut self, incarnation: u64) -> Action {
        self.sent_sequence += 1;
        let beat = Beat {
            incarnation,
            sequence: self.sent_sequence,
            heard: self.heard_sequence,
            claims_version: self.outgoing.version,
        };
        Action::Beat {
            to: self.node,
            beat,
        }
    }

    /// Passes changed claims on. Those of a peer that is not alive yet wait for its first beat.
    fn report(&self, mut changes: Vec<(GroupId, Option<Term>)>, out: &mut Vec<Action>) {
        if !self.alive {
            changes.retain(|(_, term)| term.is_none());
        }
        if !changes.is_empty() {
            out.push(Action::Claims {
                by: self.node,
                changes,
            });
        }
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
mod tests {
    use super::*;

    const INTERVALS: Intervals = Intervals {
        beat: 25_000,
        silence: 150_000,
    };
    const ONE: NodeId = NodeId(1);
    const TWO: NodeId = NodeId(2);

    /// Two nodes that hear each other.
    struct Pair {
        now: Tick,
        one: Liveness,
        two: Liveness,
        lose_deltas: bool,
        lose_beats: bool,
        seen_by_two: Vec<Action>,
        sent: usize,
    }

    impl Pair {
        fn new() -> Self {
            let mut pair = Pair {
                now: Tick(1),
                one: Liveness::new(ONE, 1, INTERVALS, [TWO]),
                two: Liveness::new(TWO, 1, INTERVALS, [ONE]),
                lose_deltas: false,
                lose_beats: false,
                seen_by_two: Vec::new(),
                sent: 0,
            };
            pair.connect(1);
            pair
        }

        fn connect(&mut self, incarnation_of_one: u64) {
            let mut out = Vec::new();
            self.one.link_up(self.now, TWO, 1, &mut out);
            self.deliver(ONE, out);
            let mut out = Vec::new();
            self.two
                .link_up(self.now, ONE, incarnation_of_one, &mut out);
            self.deliver(TWO, out);
            self.run(1);
        }

        /// Lets `intervals` beats pass.
        fn run(&mut self, intervals: usize) {
            for _ in 0..10 * intervals {
                self.now = Tick(self.now.0 + INTERVALS.beat / 10);
                for node in [ONE, TWO] {
                    let mut out = Vec::new();
                    if node == ONE {
                        &mut self.one
                    } else {
                        &mut self.two
                    }
                    .poll(self.now, true, &mut out);
                    self.deliver(node, out);
                }
            }
        }

        fn deliver(&mut self, from: NodeId, actions: Vec<Action>) {
            for action in actions {
                let mut out = Vec::new();
                let receiver = if from == ONE {
                    &mut self.two
                } else {
                    &mut self.one
                };
                self.sent += 1;
                match action {
                    Action::Beat { beat, .. } if !self.lose_beats => {
                        receiver.beat(self.now, from, beat, &mut out)
                    }
                    Action::Delta {
                        from_version,
                        version,
                        changes,
                        ..
                    } if !self.lose_deltas => {
                        receiver.delta(from, from_version, version, changes, &mut out);
                    }
                    Action::Table {
                        version, claims, ..
                    } => {
                        receiver.table(from, version, true, claims.len(), claims, &mut out);
                    }
                    Action::RequestTable { .. } => receiver.table_requested(from),
                    Action::Beat { .. } | Action::Delta { .. } => {}
                    own @ (Action::Peer { .. } | Action::Claims { .. }) => {
                        self.sent -= 1;
                        if from == TWO {
                            self.seen_by_two.push(own);
                        }
                    }
                }
                let receiver_is_two = from == ONE;
                if receiver_is_two {
                    self.seen_by_two.append(&mut out);
                }
            }
        }

        fn take_seen(&mut self) -> Vec<Action> {
            std::mem::take(&mut self.seen_by_two)
        }
    }

    #[test]
    fn a_peer_is_alive_after_its_first_beat_and_silent_after_the_timeout() {
        let mut pair = Pair::new();
        assert_eq!(
            pair.take_seen(),
            [Action::Peer {
                node: ONE,
                alive: true
            }]
        );
        pair.run(20);
        assert_eq!(pair.take_seen(), []);
        pair.lose_beats = true;
        pair.run(5);
        assert!(
            pair.two.is_alive(ONE),
            "silence is shorter than the timeout"
        );
        pair.run(2);
        assert_eq!(
            pair.take_seen(),
            [Action::Peer {
                node: ONE,
                alive: false
            }]
        );
    }

    #[test]
    fn a_claim_travels_once_and_idle_beats_do_not_depend_on_groups() {
        let mut pair = Pair::new();
        pair.take_seen();
        for group in 0..1000 {
            pair.one.claim(GroupId(group), Some(Term(3)), &[ONE, TWO]);
        }
        pair.run(1);
        let seen = pair.take_seen();
        assert!(
            matches!(&seen[..], [Action::Claims { by: ONE, changes }] if changes.len() == 1000),
            "{seen:?}"
        );
        let before = pair.sent;
        pair.run(10);
        let sent = pair.sent - before;
        assert!(
            (19..=21).contains(&sent),
            "{sent}: one beat each way per interval"
        );
        assert_eq!(pair.take_seen(), []);
    }

    #[test]
    fn a_lost_delta_is_noticed_and_the_table_repairs_it() {
        let mut pair = Pair::new();
        pair.take_seen();
        pair.lose_deltas = true;
        pair.one.claim(GroupId(5), Some(Term(2)), &[ONE, TWO]);
        pair.run(1);
        pair.lose_deltas = false;
        assert_eq!(pair.take_seen(), []);
        pair.run(5);
        assert_eq!(
            pair.take_seen(),
            [Action::Claims {
                by: ONE,
                changes: vec![(GroupId(5), Some(Term(2)))]
            }]
        );
        let before = pair.sent;
        pair.run(10);
        let sent = pair.sent - before;
        assert!(
            (19..=21).contains(&sent),
            "{sent}: nothing is asked for twice"
        );
    }

    #[test]
    fn a_new_incarnation_voids_what_the_old_one_claimed() {
        let mut pair = Pair::new();
        pair.one.claim(GroupId(5), Some(Term(2)), &[ONE, TWO]);
        pair.run(1);
        pair.take_seen();
        pair.one = Liveness::new(ONE, 2, INTERVALS, [TWO]);
        pair.connect(2);
        let seen = pair.take_seen();
        let expected = [
            Action::Peer {
                node: ONE,
                alive: false,
            },
            Action::Claims {
                by: ONE,
                changes: vec![(GroupId(5), None)],
            },
            Action::Peer {
                node: ONE,
                alive: true,
            },
        ];
        assert_eq!(seen, expected);
    }

    #[test]
    fn a_claim_given_up_is_told() {
        let mut pair = Pair::new();
        pair.one.claim(GroupId(5), Some(Term(2)), &[ONE, TWO]);
        pair.run(1);
        pair.take_seen();
        pair.one.claim(GroupId(5), None, &[ONE, TWO]);
        pair.run(1);
        assert_eq!(
            pair.take_seen(),
            [Action::Claims {
                by: ONE,
                changes: vec![(GroupId(5), None)]
            }]
        );
    }

    #[test]
    fn a_beat_of_another_incarnation_or_an_old_one_is_no_sign_of_life() {
        let mut pair = Pair::new();
        pair.run(3);
        pair.lose_beats = true;
        pair.run(4);
        let mut out = Vec::new();
        let stale = Beat {
            incarnation: 1,
            sequence: 1,
            heard: 0,
            claims_version: 0,
        };
        let other = Beat {
            incarnation: 9,
            sequence: 99,
            heard: 0,
            claims_version: 0,
        };
        pair.two.beat(pair.now, ONE, stale, &mut out);
        pair.two.beat(pair.now, ONE, other, &mut out);
        pair.run(3);
        assert!(!pair.two.is_alive(ONE));
    }
}
