//! A cluster of replicas of one group on simulated disks, links and liveness, all of it advanced by hand. It
//! checks safety after every step and never decides what happens next: scripts and random runs do.

mod checks;
mod lines;

use std::collections::{BTreeMap, VecDeque};

use polyraft_raft::*;

use crate::text::{hard_state, message, name, refusal};

pub const GROUP: GroupId = GroupId(1);

/// An entry with a value that no other entry has; 0 for the one that starts a term.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    pub term: Term,
    pub value: u64,
}

#[derive(Clone, Debug)]
pub struct Packet {
    pub from: NodeId,
    pub to: NodeId,
    pub message: Message,
    entries: Vec<Entry>,
}

/// What one node learns about another from the liveness between them, in order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Note {
    Up,
    Down,
    Claimed(Term),
    Unclaimed,
}

#[derive(Clone, Debug)]
enum Record {
    HardState(HardState),
    Truncate(Index),
    Append(Vec<Entry>),
    /// The log begins behind these. Where a snapshot's file stands for them, the disk has begun there already.
    Reset(Vec<Entry>),
}

pub struct Node {
    pub id: NodeId,
    pub group: Option<Group>,
    alive: NodeSet,
    /// What the replica believes to have written; index 1 is at 0.
    log: Vec<Entry>,
    disk_log: Vec<Entry>,
    disk_state: HardState,
    disk_base: Index,
    /// An earlier replica here was removed, committed at this index.
    removed_at: Index,
    /// In which term it was then.
    removed_in: Term,
    /// Whom this node takes for members before its log says anything.
    configuration: Configuration,
    pending: VecDeque<(WriteId, Record)>,
    /// The newest write that the disk completed, and the newest of which the node was told.
    completed: WriteId,
    told: WriteId,
    /// Handovers that were asked for and did not end yet.
    handovers: usize,
    pub handed_out: Index,
    leads: Option<Term>,
    starts: u64,
}

pub struct Cluster {
    pub now: Tick,
    pub settings: Settings,
    /// How long restarted replicas keep a promise that they may have made.
    pub bound_for: u64,
    pub nodes: BTreeMap<NodeId, Node>,
    pub network: Vec<Packet>,
    /// By observer and observed.
    pub notes: BTreeMap<(NodeId, NodeId), VecDeque<Note>>,
    cut: Vec<(NodeId, NodeId)>,
    configuration: Configuration,
    /// Whose replicas store no payload.
    witnesses: Vec<NodeId>,
    /// What entries say of the members, by their values.
    configurations: BTreeMap<u64, Configuration>,
    seed: u64,
    next_value: u64,
    leaders: BTreeMap<Term, NodeId>,
    /// What was handed out for applying anywhere; index 1 is at 0.
    pub committed: Vec<Entry>,
    /// What each step did, for scripts to print.
    pub trace: Vec<String>,
}

/// Every entry has ten bytes.
struct TenBytes;

impl LogExtents for TenBytes {
    fn extent(&self, first: Index, end: Index, max_bytes: u64) -> (Index, u64) {
        let entries = (max_bytes / 10).clamp(1, end.0 - first.0);
        (Index(first.0 + entries), entries * 10)
    }
}

fn runs(log: &[Entry], base: Index) -> Vec<TermRun> {
    let mut runs: Vec<TermRun> = Vec::new();
    for (at, entry) in log.iter().enumerate().skip(base.0 as usize) {
        if runs.last().is_none_or(|r| r.term != entry.term) {
            runs.push(TermRun {
                term: entry.term,
                first: Index(at as u64 + 1),
            });
        }
    }
    runs
}

/// The entries that say who the members are.
fn configurations_of(
    known: &BTreeMap<u64, Configuration>,
    log: &[Entry],
) -> Vec<(Index, Configuration)> {
    let indexes = (1..).map(Index).zip(log);
    let found =
        indexes.filter_map(|(index, entry)| Some((index, known.get(&entry.value)?.clone())));
    found.collect()
}

/// The members as of an entry of a node's log.
fn configuration_at(
    known: &BTreeMap<u64, Configuration>,
    node: &Node,
    index: Index,
) -> Configuration {
    let log = &node.log[..index.0 as usize];
    let newest = configurations_of(known, log).pop();
    newest.map_or_else(|| node.configuration.clone(), |(_, members)| members)
}

impl Node {
    /// Whether it takes `other` for a member, and so tells it of its claim.
    fn knows(&self, other: NodeId) -> bool {
        let group = self.group.as_ref();
        let members = group.map_or(&self.configuration, |group| group.configuration());
        members.contains(other)
    }
}

impl Cluster {
    /// `count` voters that all see each other alive.
    pub fn new(count: u64, seed: u64, settings: Settings) -> Cluster {
        let voters = Configuration::simple((1..=count).map(NodeId));
        Cluster::with(count, seed, settings, voters)
    }

    /// `count` nodes that all see each other alive and believe in `configuration`.
    pub fn with(
        count: u64,
        seed: u64,
        settings: Settings,
        configuration: Configuration,
    ) -> Cluster {
        let witnesses = configuration.witnesses().to_vec();
        Cluster::with_witnesses(count, seed, settings, configuration, witnesses)
    }

    /// The same, where the replicas of `witnesses` store no payload, whether they are members already or not.
    pub fn with_witnesses(
        count: u64,
        seed: u64,
        settings: Settings,
        configuration: Configuration,
        witnesses: Vec<NodeId>,
    ) -> Cluster {
        let ids: Vec<NodeId> = (1..=count).map(NodeId).collect();
        let mut cluster = Cluster {
            now: Tick(0),
            settings,
            bound_for: 0,
            nodes: BTreeMap::new(),
            network: Vec::new(),
            notes: BTreeMap::new(),
            cut: Vec::new(),
            configuration: configuration.clone(),
            witnesses,
            configurations: BTreeMap::new(),
            seed,
            next_value: 0,
            leaders: BTreeMap::new(),
            committed: Vec::new(),
            trace: Vec::new(),
        };
        for &id in &ids {
            let node = Node {
                id,
                group: None,
                alive: NodeSet::new(id),
                log: Vec::new(),
                disk_log: Vec::new(),
                disk_state: HardState::default(),
                disk_base: Index::ZERO,
                removed_at: Index::ZERO,
                removed_in: Term::ZERO,
                configuration: configuration.clone(),
                pending: VecDeque::new(),
                completed: WriteId::ZERO,
                told: WriteId::ZERO,
                handovers: 0,
                handed_out: Index::ZERO,
                leads: None,
                starts: 0,
            };
            cluster.nodes.insert(id, node);
        }
        for &id in &ids {
            cluster.restart(id, Index::ZERO);
        }
        cluster.deliver_notes();
        cluster.trace.clear();
        cluster
    }

    pub fn ids(&self) -> Vec<NodeId> {
        self.nodes.keys().copied().collect()
    }

    pub fn running(&self) -> Vec<NodeId> {
        self.nodes
            .values()
            .filter(|n| n.group.is_some())
            .map(|n| n.id)
            .collect()
    }

    /// The nodes whose replicas are bound to a leader, as it could know at best.
    pub fn bound_to(&self, leader: NodeId) -> Vec<NodeId> {
        let term = self.group(leader).term();
        let mut nodes = self.running();
        nodes.retain(|id| self.group(*id).is_claimed_by(leader, term));
        nodes
    }

    pub fn group(&self, id: NodeId) -> &Group {
        self.nodes[&id].group.as_ref().expect("the node is running")
    }

    pub fn leader(&self) -> Option<NodeId> {
        let leads = |id: &NodeId| self.group(*id).role() == Role::Leader;
        self.running()
            .into_iter()
            .filter(leads)
            .max_by_key(|id| self.group(*id).term())
    }

    fn linked(&self, a: NodeId, b: NodeId) -> bool {
        let runs = |id| self.nodes[&id].group.is_some();
        !self.cut.contains(&(a.min(b), a.max(b))) && runs(a) && runs(b)
    }

    // ---- faults ---------------------------------------------------------------------------------------

    /// The node loses everything that its disk has not completed. Others notice by a note.
    pub fn crash(&mut self, id: NodeId) {
        for other in self.ids() {
            if self.linked(id, other) && other != id {
                self.notes
                    .entry((other, id))
                    .or_default()
                    .push_back(Note::Down);
            }
            self.notes.remove(&(id, other));
        }
        let node = self.nodes.get_mut(&id).expect("a known node");
        node.group = None;
        node.pending.clear();
        (node.completed, node.told) = (WriteId::ZERO, WriteId::ZERO);
        node.handovers = 0;
        node.leads = None;
        self.network.retain(|p| p.to != id);
    }

    /// The node comes back with what its disk completed, its state machine being at `applied`.
    pub fn restart(&mut self, id: NodeId, applied: Index) {
        let (now, settings, seed) = (self.now, self.settings, self.seed);
        let node = self.nodes.get_mut(&id).expect("a known node");
        assert!(node.group.is_none(), "{id} runs already");
        node.starts += 1;
        node.log = node.disk_log.clone();
        node.alive = NodeSet::new(id);
        let applied = applied.clamp(node.disk_base, node.handed_out.max(node.disk_base));
        node.handed_out = applied;
        let term = node
            .disk_base
            .0
            .checked_sub(1)
            .map_or(Term::ZERO, |at| node.log[at as usize].term);
        let restored = Restored {
            hard_state: node.disk_state,
            configuration: configuration_at(&self.configurations, node, node.disk_base),
            configurations: configurations_of(&self.configurations, &node.log)
                .into_iter()
                .filter(|(index, _)| *index > node.disk_base)
                .collect(),
            base: LogPosition {
                term,
                index: node.disk_base,
            },
            runs: runs(&node.log, node.disk_base),
            last: Index(node.log.len() as u64),
            applied,
            bound_for: self.bound_for,
            removed_at: node.removed_at,
            removed_in: node.removed_in,
            is_witness: self.witnesses.contains(&id),
        };
        let env = Env {
            now,
            settings: &settings,
            alive: &node.alive,
        };
        let mut out = Outbox::default();
        node.group = Some(Group::new(
            GROUP,
            id,
            seed + node.starts,
            &env,
            restored,
            &mut out,
        ));
        self.dispatch(id, &out, &[]);
        for other in self.ids() {
            if other != id && self.linked(id, other) {
                self.greet(id, other);
            }
        }
    }

    /// Starts the node anew, silently, as if its disk had always held this: a term, a log with an entry of
    /// each of `terms`, and perhaps members of its own. Entries of one term at one index are the same everywhere.
    pub fn given(
        &mut self,
        id: NodeId,
        term: Term,
        terms: &[Term],
        members: Option<Configuration>,
    ) {
        self.crash(id);
        let node = self.nodes.get_mut(&id).expect("a known node");
        node.disk_state.term = term;
        node.disk_log = (1..)
            .zip(terms)
            .map(|(value, &term)| Entry { term, value })
            .collect();
        node.configuration = members.unwrap_or(node.configuration.clone());
        self.restart(id, Index::ZERO);
        self.deliver_notes();
        self.trace.clear();
    }

    /// A node that is down forgets its log: its replica was removed, and that is committed at an index. It keeps its term
    /// and vote, and believes what it did at first about the members.
    pub fn forget(&mut self, id: NodeId, removed_at: Index) {
        let node = self.nodes.get_mut(&id).expect("a known node");
        assert!(node.group.is_none(), "{id} runs");
        node.disk_log.clear();
        (node.disk_base, node.handed_out) = (Index::ZERO, Index::ZERO);
        (node.removed_at, node.removed_in) = (removed_at, node.disk_state.term);
    }

    /// A node that is down has lost its log, and keeps its term and vote.
    pub fn lose(&mut self, id: NodeId) {
        let last = Index(self.nodes[&id].disk_log.len() as u64);
        self.forget(id, votes_again_at(last.max(self.nodes[&id].removed_at)));
    }

    /// What all nodes know of one.
    pub fn set_priority(&mut self, of: NodeId, priority: u8) {
        for node in self.nodes.values_mut() {
            node.alive.set_priority(of, priority);
        }
    }

    /// Whether a node's replica stores no payloads: that is decided when the cluster begins.
    pub fn is_witness(&self, id: NodeId) -> bool {
        self.witnesses.contains(&id)
    }

    /// A node that is down gets the committed state through an index from somewhere: its log starts after it.
    pub fn install(&mut self, id: NodeId, through: Index) {
        let held = self.committed[..through.0 as usize].to_vec();
        let node = self.nodes.get_mut(&id).expect("a known node");
        assert!(node.group.is_none(), "{id} runs");
        let term = held.last().expect("an entry to stand on").term;
        if term > node.disk_state.term {
            (node.disk_state.term, node.disk_state.vote) = (term, None);
        }
        node.disk_log = held;
        node.disk_base = through;
        node.handed_out = through;
    }

    /// A running node gets a snapshot of the committed state through an index, which `from` sent as the leader of a term.
    pub fn receive_snapshot(&mut self, id: NodeId, from: NodeId, term: Term, through: Index) {
        let held = self.committed[..through.0 as usize].to_vec();
        let last = LogPosition {
            term: held.last().expect("an entry to stand on").term,
            index: through,
        };
        let node = self.nodes.get_mut(&id).expect("a known node");
        let is_witness = node.group.as_ref().is_some_and(Group::is_witness);
        if node.log.get(through.0 as usize - 1) != held.last() && !is_witness {
            // The file is durable: a restart finds it, whatever became of the log.
            node.pending
                .retain(|(_, record)| matches!(record, Record::HardState(_)));
            node.disk_log = held;
            node.disk_base = through;
            if last.term > node.disk_state.term {
                (node.disk_state.term, node.disk_state.vote) = (last.term, None);
            }
        }
        let held = &self.committed[..through.0 as usize];
        let newest = configurations_of(&self.configurations, held).pop();
        let configuration = newest.map_or(self.configuration.clone(), |(_, members)| members);
        let event = Event::Installed {
            from,
            term,
            last,
            configuration: &configuration,
        };
        self.step(id, event);
    }

    pub fn cut(&mut self, a: NodeId, b: NodeId) {
        if self.linked(a, b) {
            self.notes.entry((a, b)).or_default().push_back(Note::Down);
            self.notes.entry((b, a)).or_default().push_back(Note::Down);
        }
        let pair = (a.min(b), a.max(b));
        if !self.cut.contains(&pair) {
            self.cut.push(pair);
        }
    }

    pub fn heal(&mut self, a: NodeId, b: NodeId) {
        let before = self.cut.len();
        self.cut.retain(|&pair| pair != (a.min(b), a.max(b)));
        if self.cut.len() < before && self.linked(a, b) {
            self.greet(a, b);
        }
    }

    /// Both sides of a fresh link learn of each other and of each other's claims.
    fn greet(&mut self, a: NodeId, b: NodeId) {
        for (observer, observed) in [(a, b), (b, a)] {
            let leads = self.nodes[&observed].leads;
            let leads = leads.filter(|_| self.nodes[&observed].knows(observer));
            let notes = self.notes.entry((observer, observed)).or_default();
            notes.push_back(Note::Up);
            notes.extend(leads.map(Note::Claimed));
        }
    }

    // ---- moves ----------------------------------------------------------------------------------------

    pub fn step(&mut self, id: NodeId, event: Event<'_>) {
        self.step_with(id, event, &[]);
    }

    fn step_with(&mut self, id: NodeId, event: Event<'_>, received: &[Entry]) {
        let (now, settings) = (self.now, self.settings);
        let node = self.nodes.get_mut(&id).expect("a known node");
        let Some(group) = node.group.as_mut() else {
            return;
        };
        node.handovers += usize::from(matches!(event, Event::Transfer { .. }));
        let env = Env {
            now,
            settings: &settings,
            alive: &node.alive,
        };
        let mut out = Outbox::default();
        group.step(&env, event, &mut out);
        group.step(&env, Event::Flush { log: &TenBytes }, &mut out);
        self.dispatch(id, &out, received);
        self.check_deadline(id);
    }

    /// Delivers the packet in that place of the network.
    pub fn deliver(&mut self, at: usize) {
        let packet = self.network.remove(at);
        self.receive(&packet);
    }

    /// Delivers it and keeps it for another time.
    pub fn duplicate(&mut self, at: usize) {
        let packet = self.network[at].clone();
        self.receive(&packet);
    }

    fn receive(&mut self, packet: &Packet) {
        if self.linked(packet.from, packet.to) {
            let (from, message) = (packet.from, packet.message);
            let mut configurations = configurations_of(&self.configurations, &packet.entries);
            if let Message::Append { entries, .. } = message {
                for (index, _) in &mut configurations {
                    *index = Index(index.0 + entries.first.0 - 1);
                }
            }
            let event = match configurations.is_empty() {
                true => Event::Message { from, message },
                false => Event::MessageWith {
                    from,
                    message,
                    configurations: &configurations,
                },
            };
            self.step_with(packet.to, event, &packet.entries);
        }
    }

    /// Delivers the oldest note that `observer` has about `observed`. False when there is none.
    pub fn deliver_note(&mut self, observer: NodeId, observed: NodeId) -> bool {
        let Some(note) = self
            .notes
            .get_mut(&(observer, observed))
            .and_then(VecDeque::pop_front)
        else {
            return false;
        };
        let Some(node) = self.nodes.get_mut(&observer).filter(|n| n.group.is_some()) else {
            return true;
        };
        let event = match note {
            Note::Up => {
                node.alive.insert(observed);
                Event::PeerUp { node: observed }
            }
            Note::Down => {
                node.alive.remove(observed);
                Event::PeerDown { node: observed }
            }
            Note::Claimed(term) => Event::Claimed { by: observed, term },
            Note::Unclaimed => Event::Unclaimed { by: observed },
        };
        self.step(observer, event);
        true
    }

    pub fn deliver_notes(&mut self) -> bool {
        let pairs: Vec<_> = self.notes.keys().copied().collect();
        let mut any = false;
        for (observer, observed) in pairs {
            while self.deliver_note(observer, observed) {
                any = true;
            }
        }
        any
    }

    /// Delivers every note that `observer` has.
    pub fn deliver_notes_of(&mut self, observer: NodeId) {
        for observed in self.ids() {
            while self.deliver_note(observer, observed) {}
        }
    }

    /// The node's disk completes its oldest `count` writes, and the node is not told.
    pub fn sync(&mut self, id: NodeId, count: usize) {
        let node = self.nodes.get_mut(&id).expect("a known node");
        for _ in 0..count {
            let Some((id, record)) = node.pending.pop_front() else {
                break;
            };
            node.completed = id;
            match record {
                Record::HardState(state) => node.disk_state = state,
                Record::Truncate(from) => node.disk_log.truncate(from.0 as usize - 1),
                Record::Append(entries) => node.disk_log.extend(entries),
                Record::Reset(held) => {
                    if held.len() as u64 > node.disk_base.0 {
                        node.disk_base = Index(held.len() as u64);
                        node.disk_log = held;
                    }
                }
            }
        }
    }

    /// Completes the oldest `count` writes of the node's disk, and tells the node of everything completed.
    pub fn persist(&mut self, id: NodeId, count: usize) -> bool {
        let told = self.nodes[&id].told;
        self.sync(id, count);
        let through = self.nodes[&id].completed;
        if through > told {
            self.tell_durable(id, through);
        }
        through > told
    }

    /// The node hears that its writes are durable through one that its disk has completed, perhaps not the
    /// newest and not for the first time.
    pub fn tell_durable(&mut self, id: NodeId, through: WriteId) {
        let node = self.nodes.get_mut(&id).expect("a known node");
        assert!(through <= node.completed, "{through} is not on the disk");
        node.told = node.told.max(through);
        self.step(id, Event::Durable { through });
    }

    pub fn finish_applying(&mut self, id: NodeId) {
        let through = self.nodes[&id].handed_out;
        self.step(id, Event::Applied { through });
    }

    /// The last index that every disk holds and every state machine has, so that no snapshot is needed after it.
    pub fn held_everywhere(&self) -> Index {
        let held = self
            .nodes
            .values()
            .map(|n| n.handed_out.0.min(n.disk_log.len() as u64));
        Index(held.min().unwrap_or(0))
    }

    /// Drops the log's front on a node.
    pub fn purge(&mut self, id: NodeId, through: Index) {
        self.step(id, Event::Purged { through });
        let node = self.nodes.get_mut(&id).expect("a known node");
        node.disk_base = node.disk_base.max(through);
    }

    /// Lets time pass and rings every deadline that has come.
    pub fn advance(&mut self, micros: u64) {
        self.now = self.now.after(micros);
        for id in self.running() {
            if self.group(id).deadline().is_some_and(|at| at <= self.now) {
                self.step(id, Event::Timer);
            }
        }
    }

    /// Whether a handover was asked for and has not ended.
    pub fn is_handing_over(&self) -> bool {
        self.nodes.values().any(|n| n.handovers > 0)
    }

    pub fn next_deadline(&self) -> Option<Tick> {
        self.running()
            .into_iter()
            .filter_map(|id| self.group(id).deadline())
            .min()
    }

    /// Disks, links and liveness work until nothing is left to do; no time passes.
    pub fn settle(&mut self) {
        for _ in 0..100_000 {
            let mut busy = self.deliver_notes();
            for id in self.running() {
                busy |= self.persist(id, usize::MAX);
                if self.group(id).applied() < self.nodes[&id].handed_out {
                    self.finish_applying(id);
                    busy = true;
                }
            }
            while !self.network.is_empty() {
                self.deliver(0);
                busy = true;
            }
            if !busy {
                return;
            }
        }
        panic!("the cluster does not come to rest");
    }

    // ---- effects and their checks -----------------------------------------------------------------------

    fn dispatch(&mut self, id: NodeId, out: &Outbox, received: &[Entry]) {
        let mut tell = |what: String| self.trace.push(format!("{id} {what}"));
        let node = self.nodes.get_mut(&id).expect("a known node");
        for write in &out.writes {
            let record = match write.kind {
                WriteKind::HardState(state) => {
                    tell(format!("write {} {}", write.id, hard_state(state)));
                    Record::HardState(state)
                }
                WriteKind::Truncate { from } => {
                    tell(format!("write {} truncate from {from}", write.id));
                    node.log.truncate(from.0 as usize - 1);
                    Record::Truncate(from)
                }
                WriteKind::Reset { to } => {
                    tell(format!("write {} reset to {to}", write.id));
                    node.log = self.committed[..to.index.0 as usize].to_vec();
                    node.handed_out = to.index;
                    Record::Reset(node.log.clone())
                }
                WriteKind::Append { entries, origin } => {
                    tell(format!(
                        "write {} append {entries} {}",
                        write.id,
                        format!("{origin:?}").to_lowercase()
                    ));
                    assert_eq!(
                        entries.first.0,
                        node.log.len() as u64 + 1,
                        "{id} leaves a hole"
                    );
                    let new: Vec<Entry> = match origin {
                        Origin::Noop => vec![Entry {
                            term: entries.term,
                            value: 0,
                        }],
                        Origin::Configuration => {
                            self.next_value += 1;
                            let value = self.next_value;
                            let members = node.group.as_ref().expect("it was stepped");
                            let members = members.configuration().clone();
                            self.configurations.insert(value, members);
                            vec![Entry {
                                term: entries.term,
                                value,
                            }]
                        }
                        Origin::Received => {
                            received[received.len() - entries.len() as usize..].to_vec()
                        }
                        Origin::Proposed => (0..entries.len())
                            .map(|_| {
                                self.next_value += 1;
                                Entry {
                                    term: entries.term,
                                    value: self.next_value,
                                }
                            })
                            .collect(),
                    };
                    assert!(
                        new.len() as u64 == entries.len()
                            && new.iter().all(|e| e.term == entries.term)
                    );
                    node.log.extend(&new);
                    Record::Append(new)
                }
            };
            node.pending.push_back((write.id, record));
        }
        for send in &out.sends {
            tell(format!("send {} {}", send.to, message(send.message)));
            let mut entries = Vec::new();
            match send.message {
                Message::Vote { term, .. } => {
                    let durable = (node.disk_state.term, node.disk_state.vote);
                    assert_eq!(
                        durable,
                        (term, Some(id)),
                        "{id} asked for votes before its own was durable"
                    );
                }
                Message::VoteReply {
                    term,
                    granted: true,
                } => {
                    let durable = (node.disk_state.term, node.disk_state.vote);
                    assert_eq!(
                        durable,
                        (term, Some(send.to)),
                        "{id} voted before its vote was durable"
                    );
                }
                Message::Matched { term, matched, .. } => {
                    assert!(
                        node.disk_state.term == term,
                        "{id} acknowledged in a term that is not durable"
                    );
                    assert!(
                        node.disk_log.get(..matched.0 as usize)
                            == node.log.get(..matched.0 as usize),
                        "{id} acknowledged {matched} before it was durable"
                    );
                }
                Message::Append { entries: range, .. } => {
                    entries =
                        node.log[range.first.0 as usize - 1..range.end.0 as usize - 1].to_vec();
                    assert!(
                        entries.iter().all(|e| e.term == range.term),
                        "{range} mixes terms"
                    );
                }
                _ => {}
            }
            self.network.push(Packet {
                from: id,
                to: send.to,
                message: send.message,
                entries,
            });
        }
        for proposed in &out.proposed {
            tell(match proposed.outcome {
                Ok(entries) => format!("proposed {entries}"),
                Err(NotLeader { hint }) => format!("refused, leader {}", name(hint)),
            });
        }
        for claim in &out.claims {
            tell(format!(
                "{} {}",
                if claim.leads {
                    "leads"
                } else {
                    "stops leading"
                },
                claim.term
            ));
            node.leads = claim.leads.then_some(claim.term);
        }
        for timer in &out.timers {
            tell(format!("timer +{}ms", timer.at.since(self.now) / 1000));
        }
        for needed in &out.snapshots {
            tell(format!(
                "snapshot needed by {} through {}",
                needed.to, needed.base
            ));
        }
        for change in &out.changes {
            tell(match change.outcome {
                Ok(at) => format!("changes members at {at}"),
                Err(why) => format!("changes no members: {}", refusal(why)),
            });
        }
        for removed in &out.removed {
            tell(format!(
                "says that {} is out at {}",
                removed.node, removed.at
            ));
        }
        for transfer in &out.transfers {
            assert!(node.handovers > 0, "{id} ends what was not asked for");
            node.handovers -= 1;
            tell(format!(
                "transfer to {} {:?}",
                transfer.to, transfer.outcome
            ));
        }
        for apply in &out.applies {
            tell(format!("apply {}..{}", apply.first, apply.end));
            assert_eq!(
                apply.first,
                node.handed_out.next(),
                "{id} applies out of order"
            );
            node.handed_out = apply.end.prev();
        }
        for claim in &out.claims {
            self.check_claim(id, claim);
            for other in self.ids() {
                if other != id && self.linked(id, other) && self.is_told(id, other) {
                    let note = if claim.leads && self.nodes[&id].knows(other) {
                        Note::Claimed(claim.term)
                    } else {
                        Note::Unclaimed
                    };
                    self.notes.entry((other, id)).or_default().push_back(note);
                }
            }
        }
        for apply in &out.applies {
            self.check_apply(id, apply);
        }
    }

    /// Whether a node hears of the claims of another: who is a member there, and who was one.
    fn is_told(&self, by: NodeId, other: NodeId) -> bool {
        let node = &self.nodes[&by];
        node.knows(other) || !self.configurations.is_empty()
    }
}
