//! Groups that begin or end on many nodes at once, as the home shard of the node that was asked coordinates it.
//! A caller must never be told that it is done before a majority of the members keep it durably.
//!
//! Both begin with the question to all nodes which lives the groups have. A group is destroyed by telling all nodes that its life
//! is over; from the first tombstone on that is irrevocable, as whoever speaks of that life to a node with the tombstone is told.
//! It is created in the life behind the last one that is over. A majority of all nodes has to know of each end, and a majority
//! is asked before each beginning (those who know tell all others, before the nodes become fewer): so the number of a life is never used twice, whoever the members are. Nor is a life begun
//! that somebody has with other members, or was removed from: it would be there twice. Nor one that is being begun by another request:
//! all nodes hold the ids for one creation at a time, see `reserved.rs`.

mod known;
mod parts;
mod reserved;

use std::num::NonZeroU64;

use polyraft_raft::{Configuration, GroupId, Life, NodeId, Tick};
use rustc_hash::FxHashMap;

use self::known::{Known, first_awaited, first_needed, lives_found};
use self::parts::Parts;
use self::reserved::{Creation, Reservations};
use super::outgoing::NODE_LEVEL;
use super::proposals::first_request;
use super::{MergeEvent, Shard, SplitEvent};
use crate::error::Error;
use crate::event::{
    CreateOrigin, CreateReply, EndGrounds, GroupRanges, Hold, LifeRanges, Members, ShardEvent,
    Ticket, life_ranges, ranges,
};
use crate::liveness::Liveness;
use crate::wire::{self, Found};

/// How long a request waits for nodes before it asks them again, and before it gives up. Microseconds.
const RETRY: u64 = 200_000;
pub(super) const TIMEOUT: u64 = 10_000_000;

/// How long a request waits for nodes that are not heard of: right after a start the connections take a moment.
const GRACE: u64 = 1_000_000;

/// What the home shard knows of groups that begin or end on many nodes.
#[derive(Debug)]
pub(super) struct Coordination {
    /// What callers of this node wait for.
    requests: Vec<Request>,
    last_number: u64,
    /// Requests, by whoever asked, of which some shards of this node have not reported yet.
    parts: FxHashMap<CreateOrigin, Parts>,
    /// What this node holds for creations.
    pub(super) reservations: Reservations,
}

#[derive(Debug)]
struct Request {
    number: u64,
    what: What,
    groups: LifeRanges,
    /// Who has not answered.
    missing: Members,
    asker: Asker,
    retry_at: Tick,
    times: Times,
    /// When the last answer came.
    heard_at: Tick,
}

#[derive(Debug, Clone, Copy)]
struct Times {
    /// From then on nodes that are not alive are left behind.
    grace_ends_at: Tick,
    gives_up_at: Tick,
}

#[derive(Debug)]
enum What {
    Create {
        members: Members,
        /// Groups that somebody has already in the life that is asked for. They must not end for a later one.
        there: Vec<u64>,
    },
    /// Find out which lives the groups have.
    Survey {
        asked: Members,
        found: Vec<Found>,
        purpose: Purpose,
    },
    Destroy {
        asked: Members,
        /// The members of the groups, each set once.
        members: Vec<Configuration>,
        /// A group that nobody knows.
        unknown: Option<GroupId>,
        /// Later lives go on.
        only_this_life: bool,
    },
}

/// What is to be done when it is known which lives groups have.
#[derive(Debug, Clone)]
enum Purpose {
    /// They are created with these members.
    Create(Members),
    /// They end. These are members of which a quorum has to have done so in any case.
    Destroy(Vec<Configuration>),
    /// The only one of them is split off.
    Split,
}

/// Who waits for a request.
#[derive(Debug)]
enum Asker {
    Caller(CreateReply),
    /// A caller for whom groups are created.
    Creator(CreateReply, Creation),
    /// The shard of a group that is to be split.
    Parent(GroupId),
    /// The shard of a group that was merged into another.
    Merged(GroupId, Life),
}

impl Coordination {
    pub(super) fn new(incarnation: u64) -> Self {
        Coordination {
            requests: Vec::new(),
            last_number: first_request(incarnation),
            parts: FxHashMap::default(),
            reservations: Reservations::default(),
        }
    }

    /// When a request, or what is held for one, has to be looked at.
    pub(super) fn deadline(&self) -> Option<Tick> {
        let requests = self.requests.iter();
        let requests = requests.map(|request| request.retry_at.min(request.times.gives_up_at));
        requests.chain(self.reservations.ends_at()).min()
    }

    /// A node is back: requests may wait for it.
    pub(super) fn look_again(&mut self, now: Tick) {
        for request in &mut self.requests {
            request.retry_at = now;
        }
    }

    /// Answers everybody who waits.
    pub(super) fn fail_all(&mut self, error: &Error) {
        for request in self.requests.drain(..) {
            // Shards have heard of it themselves.
            if let Asker::Caller(reply) | Asker::Creator(reply, _) = request.asker {
                let _ = reply.send(Err(error.clone()));
            }
        }
    }

    /// A number that this node has not used before, nor before it was started.
    fn next_number(&mut self) -> NonZeroU64 {
        let next = self.last_number.wrapping_add(1);
        let next = NonZeroU64::new(next).unwrap_or(NonZeroU64::MIN);
        self.last_number = next.get();
        next
    }

    fn find(&self, number: u64) -> Option<usize> {
        let mut requests = self.requests.iter();
        requests.position(|request| request.number == number)
    }
}

/// Whether a quorum of each of these members has ended a group. One that is no peer of this node was not asked, and may go on.
fn have_ended(members: &[Configuration], asked: &Members, missing: &Members) -> bool {
    let has_ended = |node| asked.contains(&node) && !missing.contains(&node);
    members.iter().all(|members| members.has_quorum(has_ended))
}

impl Request {
    /// Whether enough nodes have answered. One that is not heard of may answer reads for a while yet, counting on nodes that
    /// have ended: until then nobody is told that an earlier life is over.
    fn is_done(&self, node: NodeId, now: Tick, liveness: &Liveness) -> bool {
        // Whom nobody asked because it is no peer can't be missing, and goes on.
        let may_go_on = match &self.what {
            What::Destroy { asked, members, .. } => !have_ended(members, asked, &self.missing),
            _ => false,
        };
        if self.missing.is_empty() && !may_go_on {
            return true;
        }
        let is_majority = |asked: &Members| self.missing.len() < asked.len().div_ceil(2);
        let in_grace = now < self.times.grace_ends_at;
        let waits_for = |member: &NodeId| in_grace || *member == node || liveness.is_alive(*member);
        if self.missing.iter().any(waits_for) {
            return false;
        }
        let is_enough = match &self.what {
            What::Create { members, .. } => is_majority(members),
            What::Survey {
                asked,
                found,
                purpose: Purpose::Destroy(_),
            } => {
                // One of the members has to know of the end.
                let is_astray = |known: &Known| known.is_astray();
                return is_majority(asked) && !lives_found(found).values().any(is_astray);
            }
            What::Survey { asked, .. } => return is_majority(asked),
            What::Destroy { asked, .. } => is_majority(asked) && !may_go_on,
        };
        let ends_a_life = match &self.what {
            What::Create { .. } => self.groups.iter().any(|(_, life)| *life > Life::FIRST),
            _ => true,
        };
        is_enough && (!ends_a_life || now.since(self.heard_at) >= liveness.longest_promise())
    }
}

impl Shard {
    /// A caller of this node creates groups on all of their members.
    pub(super) fn create_everywhere(
        &mut self,
        groups: GroupRanges,
        members: Members,
        reply: CreateReply,
    ) {
        let creation = Creation::new(self.home().coordination.next_number());
        let asker = Asker::Creator(reply, creation);
        self.begin_request(groups, Purpose::Create(members), asker);
    }

    /// A caller of this node destroys groups.
    pub(super) fn destroy_everywhere(&mut self, groups: GroupRanges, reply: CreateReply) {
        self.begin_request(groups, Purpose::Destroy(Vec::new()), Asker::Caller(reply));
    }

    /// A leader of this node is to split a child off.
    pub(super) fn survey_child(&mut self, parent: GroupId, child: GroupId) {
        let groups = ranges([child.0]);
        self.begin_request(groups, Purpose::Split, Asker::Parent(parent));
    }

    /// A group was merged into another, and this life of it is over.
    pub(super) fn end_merged(&mut self, group: GroupId, life: Life, members: Configuration) {
        let is_it = |request: &Request| matches!(request.asker, Asker::Merged(of, in_life) if (of, in_life) == (group, life));
        if self.home().coordination.requests.iter().any(is_it) {
            return;
        }
        let asked = self.all_nodes();
        let missing = asked.clone();
        let what = What::Destroy {
            asked,
            members: vec![members],
            unknown: None,
            only_this_life: true,
        };
        let times = self.times();
        let over = vec![(group.0..group.0 + 1, life)];
        self.go_on(Asker::Merged(group, life), (what, over, missing), times);
    }

    fn all_nodes(&mut self) -> Members {
        let node = self.shared.node;
        let peers = self.home().liveness.nodes();
        peers.chain([node]).collect()
    }

    /// The times of a request that begins now. Beside the answers it may have to wait, twice at most, until nobody counts on what
    /// silent nodes were told.
    fn times(&mut self) -> Times {
        let (now, promise) = (self.now, self.home().liveness.longest_promise());
        Times {
            grace_ends_at: now.after(GRACE),
            gives_up_at: now.after(TIMEOUT + 2 * promise),
        }
    }

    fn begin_request(&mut self, groups: GroupRanges, purpose: Purpose, asker: Asker) {
        let (now, times) = (self.now, self.times());
        let asked = self.all_nodes();
        let missing = asked.clone();
        let found = Vec::new();
        let what = What::Survey {
            asked,
            found,
            purpose,
        };
        let coordination = &mut self.home().coordination;
        let number = coordination.next_number().get();
        coordination.requests.push(Request {
            number,
            what,
            groups: groups
                .into_iter()
                .map(|range| (range, Life::FIRST))
                .collect(),
            missing,
            asker,
            retry_at: now.after(RETRY),
            times,
            heard_at: now,
        });
        self.ask_missing(number);
    }

    /// Asks everybody who has not answered a request.
    fn ask_missing(&mut self, number: u64) {
        let coordination = &self.home().coordination;
        let Some(at) = coordination.find(number) else {
            return;
        };
        let request = &coordination.requests[at];
        let (groups, missing) = (request.groups.clone(), request.missing.clone());
        let members = match &request.what {
            What::Create { members, .. } => Some(members.clone()),
            _ => None,
        };
        let is_survey = matches!(request.what, What::Survey { .. });
        let (tickets, creation): (Vec<Option<Ticket>>, _) = match &request.asker {
            Asker::Creator(_, creation) => {
                let tickets = missing.iter().map(|node| creation.ticket_of(*node));
                (tickets.collect(), Some(creation.id))
            }
            _ => (vec![None; missing.len()], None),
        };
        let plain = || groups.iter().map(|(range, _)| range.clone()).collect();
        let origin = CreateOrigin {
            node: self.shared.node,
            request: number,
        };
        for (node, ticket) in missing.into_iter().zip(tickets) {
            let hold = creation.map(|creation| Hold { creation, ticket });
            if node == self.shared.node {
                match &members {
                    Some(members) => {
                        self.create_parts(origin, ticket, groups.clone(), members.clone());
                    }
                    None if is_survey => self.survey_parts(origin, hold, plain()),
                    None => self.destroy_parts(origin, groups.clone(), EndGrounds::Survey),
                }
                continue;
            }
            let bytes = match &members {
                Some(members) => wire::create_bytes(&groups, members),
                None => wire::destroy_bytes(&groups),
            };
            let counters = self.shared.counters.shard(self.index);
            let Some(frame) = self.outgoing.append(node, NODE_LEVEL, bytes, counters) else {
                continue;
            };
            match &members {
                Some(members) => wire::put_create(frame, number, ticket, &groups, members),
                None if is_survey => wire::put_survey(frame, number, hold, &plain()),
                None => wire::put_destroy(frame, number, &groups),
            }
        }
    }

    // ---- answers ----

    /// A node has created or ended its part of a request of this node, or refuses it, or knows of later lives.
    pub(super) fn member_created(
        &mut self,
        node: NodeId,
        number: u64,
        result: Result<LifeRanges, Error>,
    ) {
        let now = self.now;
        let coordination = &mut self.home().coordination;
        let Some(at) = coordination.find(number) else {
            // A shard may have told it of ends.
            let (by, request) = (node, number);
            let taken = || ShardEvent::EndsTaken { by, request };
            return if result.is_ok() {
                self.shared.tell_all(taken);
            };
        };
        let later = match result {
            Ok(later) => later,
            Err(Error::CreationUnderWay { group }) => {
                let is_survey = matches!(coordination.requests[at].what, What::Survey { .. });
                return self.begin_again(at, is_survey.then_some(group));
            }
            Err(error) => {
                let request = coordination.requests.swap_remove(at);
                return self.answer(request.asker, &request.groups, Err(error));
            }
        };
        let fresh = coordination.next_number().get();
        let request = &mut coordination.requests[at];
        request.heard_at = now;
        let is_done = match &request.what {
            What::Destroy { only_this_life, .. } => *only_this_life || later.is_empty(),
            _ => later.is_empty(),
        };
        if is_done {
            request.missing.retain(|missing| *missing != node);
            self.finish_request(at);
        } else if let What::Destroy { asked, members, .. } = &mut request.what {
            // Who was asked before did not know of a later life: it is the one to end.
            let (asked, members) = (asked.clone(), std::mem::take(members));
            request.missing.clone_from(&asked);
            request.what = What::Survey {
                asked,
                found: Vec::new(),
                purpose: Purpose::Destroy(members),
            };
            request.number = fresh;
            self.ask_missing(fresh);
        } else if let What::Create { members, there } = &request.what {
            let mut groups = later.iter().flat_map(|(range, _)| range.clone());
            if let Some(group) = groups.find(|group| there.binary_search(group).is_ok()) {
                let request = coordination.requests.swap_remove(at);
                let group = GroupId(group);
                return self.answer(request.asker, &request.groups, Err(Error::Ending { group }));
            }
            request.missing.clone_from(members);
            request.groups = raised(&request.groups, &later);
            // Answers to what was asked before say nothing about this.
            request.number = fresh;
            self.ask_missing(fresh);
        }
    }

    /// A node says what it knows of groups; of those that end, who their members were when they ended there.
    pub(super) fn surveyed(
        &mut self,
        node: NodeId,
        number: u64,
        ticket: Option<Ticket>,
        more: Vec<Found>,
    ) {
        let now = self.now;
        let coordination = &mut self.home().coordination;
        let Some(at) = coordination.find(number) else {
            return;
        };
        let request = &mut coordination.requests[at];
        match &mut request.what {
            What::Survey { found, .. } if request.missing.contains(&node) => {
                request.heard_at = now;
                request.missing.retain(|missing| *missing != node);
                found.extend(more);
                if let Asker::Creator(_, creation) = &mut request.asker {
                    creation.held(node, ticket);
                }
                self.finish_request(at);
            }
            // Members that took over before a majority of those before them ended are known to one of that majority. Those of a
            // group that was merged were settled before.
            What::Destroy {
                members,
                only_this_life: false,
                ..
            } => {
                let now_known = lives_found(&more).into_values();
                add_members(members, now_known.flat_map(|known| known.members));
            }
            _ => {}
        }
    }

    /// Answers the caller if a request is done, or goes on to what comes next.
    fn finish_request(&mut self, at: usize) -> bool {
        let (node, now) = (self.shared.node, self.now);
        let home = self.home();
        let requests = &mut home.coordination.requests;
        if !requests[at].is_done(node, now, &home.liveness) {
            return false;
        }
        let Request {
            what,
            mut groups,
            mut asker,
            times,
            ..
        } = requests.swap_remove(at);
        let outcome = match what {
            What::Create { .. } => Ok(()),
            What::Destroy { unknown, .. } => match unknown {
                Some(group) => Err(Error::NoSuchGroup { group }),
                None => Ok(()),
            },
            What::Survey {
                asked,
                found,
                purpose: Purpose::Destroy(mut members),
            } => {
                let lives = lives_found(&found);
                let ends = |group: GroupId| {
                    let mut ranges = groups.iter();
                    ranges.any(|(range, _)| range.contains(&group.0))
                };
                if let Some(error) = first_needed(&found, &lives, ends) {
                    // Nobody was told anything yet.
                    self.answer(asker, &groups, Err(error));
                    return true;
                }
                let mut wanted = groups.iter().flat_map(|(range, _)| range.clone());
                let unknown = wanted.find(|group| !lives.contains_key(group));
                let unknown = unknown.map(GroupId);
                if !lives.is_empty() {
                    let known = lives.values().flat_map(|known| known.members.clone());
                    add_members(&mut members, known);
                    let over = lives.iter().map(|(group, known)| (*group, known.life));
                    let over = life_ranges(over);
                    let missing = asked.clone();
                    let what = What::Destroy {
                        asked,
                        members,
                        unknown,
                        only_this_life: false,
                    };
                    return self.go_on(asker, (what, over, missing), times);
                }
                unknown.map_or(Ok(()), |group| Err(Error::NoSuchGroup { group }))
            }
            What::Survey {
                found,
                purpose: Purpose::Split,
                ..
            } => {
                let child = groups[0].0.start;
                let mut lives = lives_found(&found);
                let group = GroupId(child);
                if let Some(error) = first_awaited(&found, &lives, |other| other == group) {
                    self.answer(asker, &groups, Err(error));
                    return true;
                }
                let known = lives.remove(&child).unwrap_or_default();
                groups = vec![(child..child + 1, known.possible)];
                // Whoever its members are, it is there.
                match known.other_than(&Configuration::default()) {
                    Some(members) => Err(Error::GroupExists { group, members }),
                    None => Ok(()),
                }
            }
            What::Survey {
                asked,
                found,
                purpose: Purpose::Create(members),
            } => {
                if let Asker::Creator(_, creation) = &mut asker
                    && !creation.is_held()
                {
                    let missing = asked.clone();
                    let what = What::Survey {
                        asked,
                        found: Vec::new(),
                        purpose: Purpose::Create(members),
                    };
                    return self.go_on(asker, (what, groups, missing), times);
                }
                let lives = lives_found(&found);
                let begins = |group: GroupId| {
                    let mut ranges = groups.iter();
                    ranges.any(|(range, _)| range.contains(&group.0))
                };
                if let Some(error) = first_awaited(&found, &lives, begins) {
                    self.answer(asker, &groups, Err(error));
                    return true;
                }
                let wanted = || groups.iter().flat_map(|(range, _)| range.clone());
                let configuration = Configuration::simple(members.iter().copied());
                let other = |group| Some((group, lives.get(&group)?.other_than(&configuration)?));
                let is_ending = |group: &u64| {
                    let known = lives.get(group);
                    known.is_some_and(|known| known.is_ending(&configuration))
                };
                if let Some((group, members)) = wanted().find_map(other) {
                    let group = GroupId(group);
                    Err(Error::GroupExists { group, members })
                } else if let Some(group) = wanted().find(is_ending).map(GroupId) {
                    Err(Error::Ending { group })
                } else {
                    let possible = |group| lives.get(&group).map_or(Life::FIRST, Known::possible);
                    let begun = life_ranges(wanted().map(|group| (group, possible(group))));
                    let is_there = |group: &u64| {
                        let known = lives.get(group);
                        known.is_some_and(|known| !known.serving.is_empty())
                    };
                    let there = wanted().filter(is_there).collect();
                    let missing = members.clone();
                    let what = What::Create { members, there };
                    return self.go_on(asker, (what, begun, missing), times);
                }
            }
        };
        self.answer(asker, &groups, outcome);
        true
    }

    /// Tells whoever asked what came of a request.
    fn answer(&mut self, asker: Asker, groups: &LifeRanges, outcome: Result<(), Error>) {
        match asker {
            Asker::Caller(reply) => _ = reply.send(outcome),
            Asker::Creator(reply, creation) => {
                self.release_held(&creation);
                let _ = reply.send(outcome);
            }
            Asker::Merged(source, life) => {
                let result = outcome;
                let event = MergeEvent::Ended {
                    source,
                    life,
                    result,
                };
                let shard = self.shared.shard_of(source);
                self.shared.tell(shard, ShardEvent::Merge(event));
            }
            Asker::Parent(parent) => {
                let (range, life) = &groups[0];
                let event = SplitEvent::LifeKnown {
                    parent,
                    child: GroupId(range.start),
                    result: outcome.map(|()| *life),
                };
                let shard = self.shared.shard_of(parent);
                self.shared.tell(shard, ShardEvent::Split(event));
            }
        }
    }

    /// It is known which lives are to begin or to end.
    fn go_on(
        &mut self,
        asker: Asker,
        (what, groups, missing): (What, LifeRanges, Members),
        times: Times,
    ) -> bool {
        let now = self.now;
        let coordination = &mut self.home().coordination;
        let number = coordination.next_number().get();
        coordination.requests.push(Request {
            number,
            what,
            groups,
            missing,
            asker,
            retry_at: now.after(RETRY),
            times,
            heard_at: now,
        });
        self.ask_missing(number);
        true
    }

    /// Asks again, and gives up on what takes too long.
    pub(super) fn retry_requests(&mut self) {
        let now = self.now;
        self.home().coordination.reservations.forget_old(now);
        let mut at = 0;
        while at < self.home().coordination.requests.len() {
            let requests = &mut self.home().coordination.requests;
            let request = &mut requests[at];
            if request.times.gives_up_at <= now {
                let request = requests.swap_remove(at);
                let mut missing = request.missing.to_vec();
                if let What::Destroy { asked, members, .. } = &request.what {
                    // Some may be no peers of this node, and must end as well.
                    let nodes = members.iter().flat_map(Configuration::nodes);
                    missing.extend(nodes.filter(|node| !asked.contains(node)));
                    missing.sort_unstable();
                    missing.dedup();
                }
                let refused = match &request.asker {
                    Asker::Creator(_, creation) => creation.refused,
                    _ => None,
                };
                let error = match (request.what, refused) {
                    (_, Some(group)) => Error::CreationUnderWay { group },
                    (
                        What::Create { .. }
                        | What::Survey {
                            purpose: Purpose::Create(_),
                            ..
                        },
                        None,
                    ) => Error::CreateTimeout { missing },
                    (
                        What::Survey {
                            purpose: Purpose::Split,
                            ..
                        },
                        None,
                    ) => Error::Split {
                        why: format!(
                            "nodes {missing:?} have not said in time whether they know the new group"
                        ),
                    },
                    _ => Error::DestroyTimeout { missing },
                };
                self.answer(request.asker, &request.groups, Err(error));
                continue;
            }
            if request.retry_at <= now {
                request.retry_at = now.after(RETRY);
                let number = request.number;
                if self.finish_request(at) {
                    continue;
                }
                self.ask_missing(number);
            }
            at += 1;
        }
    }
}

/// Adds each set of members once.
fn add_members(members: &mut Vec<Configuration>, more: impl Iterator<Item = Configuration>) {
    for more in more {
        if !members.contains(&more) {
            members.push(more);
        }
    }
}

/// The lives of groups, none earlier than what somebody knows that they may have.
fn raised(groups: &LifeRanges, later: &LifeRanges) -> LifeRanges {
    let later: FxHashMap<u64, Life> = later
        .iter()
        .flat_map(|(range, life)| range.clone().map(|group| (group, *life)))
        .collect();
    let all = groups
        .iter()
        .flat_map(|(range, life)| range.clone().map(|group| (group, *life)));
    life_ranges(all.map(|(group, life)| {
        let known = later.get(&group).copied().unwrap_or_default();
        (group, life.max(known))
    }))
}

/// Puts what was found in order, with neighbours that are alike together.
pub(super) fn joined(mut found: Vec<Found>) -> Vec<Found> {
    found.sort_unstable_by_key(|found| found.groups.start);
    found.dedup_by(|next, last| {
        let is_next = last.groups.end == next.groups.start;
        let is_alike = (last.life, &last.fate) == (next.life, &next.fate);
        if is_next && is_alike {
            last.groups.end = next.groups.end;
        }
        is_next && is_alike
    });
    found
}

#[cfg(test)]
pub(super) mod tests;
