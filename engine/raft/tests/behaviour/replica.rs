//! One replica under test: events go in by hand, the outbox comes back.

use polyraft_raft::*;

/// A replica, its surroundings, and the last write it asked for.
pub struct Replica {
    pub group: Group,
    pub now: Tick,
    pub settings: Settings,
    pub alive: NodeSet,
    pub started: Outbox,
    last_write: WriteId,
}

/// Every entry has one byte.
struct OneByte;

impl LogExtents for OneByte {
    fn extent(&self, first: Index, end: Index, max_bytes: u64) -> (Index, u64) {
        let entries = max_bytes.clamp(1, end.0 - first.0);
        (Index(first.0 + entries), entries)
    }
}

pub fn position(term: u64, index: u64) -> LogPosition {
    LogPosition {
        term: Term(term),
        index: Index(index),
    }
}

pub fn entries(term: u64, first: u64, end: u64) -> EntryRange {
    EntryRange {
        term: Term(term),
        first: Index(first),
        end: Index(end),
    }
}

/// An append of entries of one term after `prev`.
pub fn append(term: u64, prev: LogPosition, of_term: u64, count: u64, commit: u64) -> Message {
    let first = prev.index.0 + 1;
    Message::Append {
        term: Term(term),
        prev,
        entries: entries(of_term, first, first + count),
        commit: Index(commit),
    }
}

pub fn matched(term: u64, matched: u64, commit: u64) -> Message {
    Message::Matched {
        term: Term(term),
        matched: Index(matched),
        commit: Index(commit),
    }
}

impl Replica {
    /// Node 1 of `voters` nodes, all alive, in `term`, with a log that has an entry of each of `terms`.
    pub fn with(voters: u64, term: u64, terms: &[u64], seed: u64) -> Replica {
        let mut runs: Vec<TermRun> = Vec::new();
        for (at, &term) in terms.iter().enumerate() {
            if runs.last().is_none_or(|r| r.term != Term(term)) {
                runs.push(TermRun {
                    term: Term(term),
                    first: Index(at as u64 + 1),
                });
            }
        }
        let restored = Restored {
            hard_state: HardState {
                term: Term(term),
                vote: None,
                commit: Index::ZERO,
            },
            runs,
            last: Index(terms.len() as u64),
            ..Restored::empty(Configuration::simple((1..=voters).map(NodeId)))
        };
        Replica::restored_with(restored, seed)
    }

    /// Node 1 with what its disk holds; all members live.
    pub fn restored(restored: Restored) -> Replica {
        Replica::restored_with(restored, 1)
    }

    fn restored_with(restored: Restored, seed: u64) -> Replica {
        let (now, settings, mut alive) = (Tick(0), Settings::default(), NodeSet::new(NodeId(1)));
        for node in restored.configuration.nodes() {
            alive.insert(node);
        }
        let mut started = Outbox::default();
        let env = Env {
            now,
            settings: &settings,
            alive: &alive,
        };
        let group = Group::new(GroupId(1), NodeId(1), seed, &env, restored, &mut started);
        Replica {
            group,
            now,
            settings,
            alive,
            started,
            last_write: WriteId::ZERO,
        }
    }

    pub fn new(voters: u64) -> Replica {
        Replica::with(voters, 1, &[], 1)
    }

    /// A follower of node 2 in `term`, which has claimed the group.
    pub fn follower(voters: u64, term: u64, terms: &[u64]) -> Replica {
        let mut replica = Replica::with(voters, term, terms, 1);
        replica.step(Event::Claimed {
            by: NodeId(2),
            term: Term(term),
        });
        replica.persist();
        replica
    }

    /// A candidate of term `term + 1`, which is durable and has asked for votes.
    pub fn candidate(voters: u64, term: u64, terms: &[u64]) -> Replica {
        let mut replica = Replica::with(voters, term, terms, 1);
        replica.step(Event::Campaign);
        for n in 2..=voters / 2 + 1 {
            replica.hear(
                n,
                Message::PreVoteReply {
                    term: Term(term + 1),
                    granted: true,
                },
            );
        }
        replica.persist();
        assert_eq!(
            replica.group.role(),
            if voters == 1 {
                Role::Leader
            } else {
                Role::Candidate
            }
        );
        replica
    }

    /// A leader of term `term + 1`, whose first entry of the term is durable here and sent.
    pub fn leader(voters: u64, term: u64, terms: &[u64]) -> Replica {
        let mut replica = Replica::candidate(voters, term, terms);
        for n in 2..=voters / 2 + 1 {
            replica.hear(
                n,
                Message::VoteReply {
                    term: Term(term + 1),
                    granted: true,
                },
            );
        }
        replica.persist();
        replica.flush();
        assert_eq!(replica.group.role(), Role::Leader);
        replica
    }

    /// A leader all of whose followers hold everything and know so.
    pub fn settled_leader(voters: u64, term: u64, terms: &[u64]) -> Replica {
        let mut replica = Replica::leader(voters, term, terms);
        let last = replica.group.last().index.0;
        for _ in 0..2 {
            (2..=voters).for_each(|n| drop(replica.hear(n, matched(term + 1, last, last))));
        }
        assert_eq!(replica.group.committed(), Index(last));
        replica
    }

    pub fn step(&mut self, event: Event<'_>) -> Outbox {
        let mut out = Outbox::default();
        let env = Env {
            now: self.now,
            settings: &self.settings,
            alive: &self.alive,
        };
        self.group.step(&env, event, &mut out);
        self.last_write = out.writes.last().map_or(self.last_write, |w| w.id);
        out
    }

    pub fn hear(&mut self, from: u64, message: Message) -> Outbox {
        self.step(Event::Message {
            from: NodeId(from),
            message,
        })
    }

    /// All writes become durable.
    pub fn persist(&mut self) -> Outbox {
        self.step(Event::Durable {
            through: self.last_write,
        })
    }

    pub fn flush(&mut self) -> Outbox {
        self.step(Event::Flush { log: &OneByte })
    }

    /// Waits for the deadline and rings it.
    pub fn time_out(&mut self) -> Outbox {
        self.now = self.group.deadline().expect("a deadline");
        self.step(Event::Timer)
    }

    pub fn peer_down(&mut self, node: u64) -> Outbox {
        self.alive.remove(NodeId(node));
        self.step(Event::PeerDown { node: NodeId(node) })
    }
}

/// What was sent, in order.
pub fn sent(out: &Outbox) -> Vec<(u64, Message)> {
    out.sends.iter().map(|s| (s.to.0, s.message)).collect()
}

/// What was written, in order.
pub fn written(out: &Outbox) -> Vec<WriteKind> {
    out.writes.iter().map(|w| w.kind).collect()
}

/// What was handed out for applying, as (first, end).
pub fn applied(out: &Outbox) -> Vec<(u64, u64)> {
    out.applies.iter().map(|a| (a.first.0, a.end.0)).collect()
}
