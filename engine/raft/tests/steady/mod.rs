//! A leader and a follower of three in their steady state, step by step: what `footprint.rs` counts and the example
//! `step_cost` times. It must never allocate by itself.

use polyraft_raft::*;

struct OneByte;

impl LogExtents for OneByte {
    fn extent(&self, first: Index, end: Index, max_bytes: u64) -> (Index, u64) {
        let entries = max_bytes.clamp(1, end.0 - first.0);
        (Index(first.0 + entries), entries)
    }
}

/// All three nodes live.
pub fn alive() -> NodeSet {
    let mut alive = NodeSet::new(NodeId(1));
    alive.insert(NodeId(2));
    alive.insert(NodeId(3));
    alive
}

/// A replica on node 1 that knows nothing yet.
pub fn replica(env: &Env<'_>, out: &mut Outbox) -> Group {
    let restored = Restored::empty(Configuration::simple((1..=3).map(NodeId)));
    Group::new(GroupId(1), NodeId(1), 1, env, restored, out)
}

/// Delivers a message.
pub fn tell(group: &mut Group, env: &Env<'_>, from: u64, message: Message, out: &mut Outbox) {
    let from = NodeId(from);
    group.step(env, Event::Message { from, message }, out);
}

/// Makes it the leader of term 1, by the vote of node 2.
pub fn elect(group: &mut Group, env: &Env<'_>, out: &mut Outbox) {
    let (term, granted) = (Term(1), true);
    group.step(env, Event::Campaign, out);
    tell(group, env, 2, Message::PreVoteReply { term, granted }, out);
    let through = WriteId(1);
    group.step(env, Event::Durable { through }, out);
    tell(group, env, 2, Message::VoteReply { term, granted }, out);
    assert_eq!(group.role(), Role::Leader);
}

/// Has it follow node 2.
pub fn follow(group: &mut Group, env: &Env<'_>, term: u64, out: &mut Outbox) {
    let (by, term) = (NodeId(2), Term(term));
    group.step(env, Event::Claimed { by, term }, out);
}

/// An append of `count` entries behind its log, from node 2; all before them is committed.
pub fn append(group: &Group, term: u64, count: u64) -> Message {
    let (term, prev) = (Term(term), group.last());
    let first = prev.index.next();
    let end = Index(first.0 + count);
    Message::Append {
        term,
        prev,
        entries: EntryRange { term, first, end },
        commit: prev.index,
    }
}

/// The leader proposes eight entries and sends them. Returns what it wrote.
pub fn propose(leader: &mut Group, env: &Env<'_>, out: &mut Outbox) -> WriteId {
    leader.step(env, Event::Propose { count: 8 }, out);
    leader.step(env, Event::Flush { log: &OneByte }, out);
    out.writes.last().expect("the proposal").id
}

/// Both followers have what the leader has, and the leader applies it.
pub fn acknowledge(leader: &mut Group, env: &Env<'_>, out: &mut Outbox) {
    let matched = leader.last().index;
    for from in [2, 3] {
        let (term, commit) = (Term(1), leader.committed());
        let message = Message::Matched {
            term,
            matched,
            commit,
        };
        tell(leader, env, from, message, out);
    }
    let through = leader.committed();
    leader.step(env, Event::Applied { through }, out);
}
