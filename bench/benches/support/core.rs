//! The pure core alone: three replicas of each group in one thread, every write durable at once and every message
//! delivered at once.

use polyraft_raft::{
    Configuration, Env, Event, Group, GroupId, Index, LogExtents, Message, NodeId, NodeSet, Outbox,
    Restored, Role, Settings, Tick,
};

pub const NODES: u64 = 3;

/// Every entry has the same size.
pub struct Entries;

impl LogExtents for Entries {
    fn extent(&self, first: Index, end: Index, max_bytes: u64) -> (Index, u64) {
        const ENTRY_BYTES: u64 = 128;
        let count = (max_bytes / ENTRY_BYTES).clamp(1, end.0 - first.0);
        (Index(first.0 + count), count * ENTRY_BYTES)
    }
}

/// A node: its replicas, and what they want done.
pub struct Node {
    pub id: NodeId,
    alive: NodeSet,
    pub groups: Vec<Group>,
    inbox: Vec<(usize, NodeId, Message)>,
    pub out: Outbox,
    spare: Outbox,
}

/// Three nodes in one thread.
pub struct Cluster {
    settings: Settings,
    now: Tick,
    pub nodes: Vec<Node>,
}

impl Cluster {
    /// A cluster whose groups are all led by the first node.
    pub fn new(groups: u64) -> Self {
        let settings = Settings::default();
        let now = Tick(0);
        let nodes = (1..=NODES)
            .map(|id| {
                let id = NodeId(id);
                let mut alive = NodeSet::new(id);
                for peer in 1..=NODES {
                    alive.insert(NodeId(peer));
                }
                let env = Env {
                    now,
                    settings: &settings,
                    alive: &alive,
                };
                let mut out = Outbox::default();
                let groups = (0..groups)
                    .map(|group| {
                        let restored =
                            Restored::empty(Configuration::simple((1..=NODES).map(NodeId)));
                        Group::new(GroupId(group), id, group ^ id.0, &env, restored, &mut out)
                    })
                    .collect();
                out.clear();
                Node {
                    id,
                    alive,
                    groups,
                    inbox: Vec::new(),
                    out,
                    spare: Outbox::default(),
                }
            })
            .collect();
        let mut cluster = Self {
            settings,
            now,
            nodes,
        };
        for group in 0..groups as usize {
            cluster.step(0, group, Event::Campaign);
        }
        cluster.settle();
        assert!(
            cluster.nodes[0]
                .groups
                .iter()
                .all(|group| group.role() == Role::Leader)
        );
        cluster
    }

    /// Steps one replica.
    pub fn step(&mut self, node: usize, group: usize, event: Event<'_>) {
        let node = &mut self.nodes[node];
        let env = Env {
            now: self.now,
            settings: &self.settings,
            alive: &node.alive,
        };
        node.groups[group].step(&env, event, &mut node.out);
    }

    /// Proposes one entry to each group, and runs until all have it committed and applied everywhere it can be.
    pub fn commit_one_each(&mut self) {
        for group in 0..self.nodes[0].groups.len() {
            self.step(0, group, Event::Propose { count: 1 });
            self.step(0, group, Event::Flush { log: &Entries });
        }
        self.settle();
    }

    /// Turns until nothing is left to do.
    fn settle(&mut self) {
        while (0..self.nodes.len()).any(|node| self.turn(node)) {}
    }

    /// Takes in what has arrived, then dispatches. False if there was nothing to dispatch.
    fn turn(&mut self, at: usize) -> bool {
        let mut inbox = std::mem::take(&mut self.nodes[at].inbox);
        for (group, from, message) in inbox.drain(..) {
            self.step(at, group, Event::Message { from, message });
            self.step(at, group, Event::Flush { log: &Entries });
        }
        self.nodes[at].inbox = inbox;
        // Two outboxes take turns, so that neither gives its room away.
        let mut out = std::mem::take(&mut self.nodes[at].spare);
        std::mem::swap(&mut out, &mut self.nodes[at].out);
        let is_busy = !out.is_empty();
        for send in &out.sends {
            let from = self.nodes[at].id;
            let to = &mut self.nodes[send.to.0 as usize - 1];
            to.inbox.push((send.group.0 as usize, from, send.message));
        }
        // What these events bring about goes into the next turn's outbox.
        for write in &out.writes {
            self.step(
                at,
                write.group.0 as usize,
                Event::Durable { through: write.id },
            );
            self.step(at, write.group.0 as usize, Event::Flush { log: &Entries });
        }
        for apply in &out.applies {
            let through = Index(apply.end.0 - 1);
            self.step(at, apply.group.0 as usize, Event::Applied { through });
        }
        out.clear();
        self.nodes[at].spare = out;
        is_busy
    }
}
