//! A node's part of a request about groups: each of its shards does its own, and whoever asked is answered when all have.
//! No answer must leave before every shard has said that what it is about is durable.

use polyraft_raft::GroupId;

use super::super::Shard;
use super::super::outgoing::NODE_LEVEL;
use super::joined;
use crate::error::Error;
use crate::event::{
    CreateOrigin, EndGrounds, GroupRanges, Hold, LifeRanges, Members, ShardEvent, Ticket,
    life_ranges,
};
use crate::wire::{self, Found};

/// What shards of this node have said to a request.
#[derive(Debug)]
pub(super) struct Parts {
    missing: usize,
    result: Result<LifeRanges, Error>,
    is_survey: bool,
    /// What the groups are held under, for whoever asked to hold them.
    ticket: Option<Ticket>,
    /// What is known of the groups; where they end, as it was then.
    found: Vec<Found>,
}

impl Parts {
    /// So many are to report.
    pub(super) fn of(missing: usize) -> Self {
        Parts {
            missing,
            result: Ok(LifeRanges::new()),
            is_survey: false,
            ticket: None,
            found: Vec::new(),
        }
    }
}

impl Shard {
    /// Notes that shards of this node have a part of a request. False: it is under way already.
    pub(super) fn begin_parts(&mut self, origin: CreateOrigin, parts: Parts) -> bool {
        let all = &mut self.home().coordination.parts;
        if all.contains_key(&origin) {
            return false;
        }
        all.insert(origin, parts);
        true
    }

    /// Has every shard of this node create its part, if this node holds the groups under the ticket.
    pub(in crate::shard) fn create_parts(
        &mut self,
        origin: CreateOrigin,
        ticket: Option<Ticket>,
        groups: LifeRanges,
        members: Members,
    ) {
        if !self.holds_for(origin.node, ticket) {
            let group = groups.first().map_or(0, |(range, _)| range.start);
            let group = GroupId(group);
            return self.refuse(origin, Error::CreationUnderWay { group });
        }
        if !self.begin_parts(origin, Parts::of(self.shared.inboxes.len())) {
            return;
        }
        for shard in 1..self.shared.inboxes.len() {
            let (groups, members) = (groups.clone(), members.clone());
            let event = ShardEvent::Create {
                origin,
                groups,
                members,
            };
            self.shared.tell(shard, event);
        }
        self.create(origin, &groups, &members);
    }

    /// Has every shard of this node end its part.
    pub(in crate::shard) fn destroy_parts(
        &mut self,
        origin: CreateOrigin,
        groups: LifeRanges,
        grounds: EndGrounds,
    ) {
        if !self.begin_parts(origin, Parts::of(self.shared.inboxes.len())) {
            return;
        }
        for shard in 1..self.shared.inboxes.len() {
            let groups = groups.clone();
            let event = ShardEvent::Destroy {
                origin,
                groups,
                grounds,
            };
            self.shared.tell(shard, event);
        }
        self.destroy(origin, &groups, grounds);
    }

    /// Has every shard of this node say what it knows of groups, which are held from now on if that is asked for.
    pub(in crate::shard) fn survey_parts(
        &mut self,
        origin: CreateOrigin,
        hold: Option<Hold>,
        groups: GroupRanges,
    ) {
        let ticket = match self.hold_groups(origin.node, hold, &groups) {
            Ok(ticket) => ticket,
            Err(error) => return self.refuse(origin, error),
        };
        let parts = Parts {
            is_survey: true,
            ticket,
            ..Parts::of(self.shared.inboxes.len())
        };
        if !self.begin_parts(origin, parts) {
            return;
        }
        for shard in 1..self.shared.inboxes.len() {
            let groups = groups.clone();
            self.shared
                .tell(shard, ShardEvent::Survey { origin, groups });
        }
        self.survey(origin, &groups);
    }

    /// A shard of this node has durably created or ended its part, or refuses it.
    pub(in crate::shard) fn created(
        &mut self,
        origin: CreateOrigin,
        result: Result<LifeRanges, Error>,
    ) {
        let Some(parts) = self.home().coordination.parts.get_mut(&origin) else {
            return;
        };
        match (&mut parts.result, result) {
            (Ok(lives), Ok(more)) => lives.extend(more),
            (known @ Ok(_), error) => *known = error,
            (Err(_), _) => {}
        }
        self.part_done(origin);
    }

    /// A shard of this node says what it knows of groups.
    pub(in crate::shard) fn part_surveyed(&mut self, origin: CreateOrigin, more: Vec<Found>) {
        let Some(parts) = self.home().coordination.parts.get_mut(&origin) else {
            return;
        };
        parts.found.extend(more);
        self.part_done(origin);
    }

    /// A shard of this node has durably ended its part.
    pub(in crate::shard) fn destroyed(
        &mut self,
        origin: CreateOrigin,
        later: LifeRanges,
        former: Vec<Found>,
    ) {
        if let Some(parts) = self.home().coordination.parts.get_mut(&origin) {
            parts.found.extend(former);
        }
        self.created(origin, Ok(later));
    }

    /// When all shards are done, whoever asked is answered.
    fn part_done(&mut self, origin: CreateOrigin) {
        let all = &mut self.home().coordination.parts;
        if let Some(parts) = all.get_mut(&origin) {
            parts.missing -= 1;
            if parts.missing > 0 {
                return;
            }
        }
        let Some(parts) = all.remove(&origin) else {
            return;
        };
        let Parts {
            result,
            is_survey,
            ticket,
            found,
            ..
        } = parts;
        let result = result.map(|mut lives| {
            lives.sort_unstable_by_key(|(range, _)| range.start);
            let each = lives
                .into_iter()
                .flat_map(|(range, life)| range.map(move |group| (group, life)));
            life_ranges(each)
        });
        let found = joined(found);
        let tells = is_survey || !found.is_empty();
        let (node, number) = (origin.node, origin.request);
        if node == self.shared.node {
            if tells {
                self.surveyed(node, number, ticket, found);
            }
            if !is_survey {
                self.member_created(node, number, result);
            }
            return;
        }
        // One frame takes both: whoever hears that a group ended hears who its members were.
        let bytes = wire::found_bytes(&found) + wire::reply_bytes(&result);
        let counters = self.shared.counters.shard(self.index);
        if let Some(frame) = self.outgoing.append(node, NODE_LEVEL, bytes, counters) {
            if tells {
                wire::put_survey_reply(frame, number, ticket, &found);
            }
            if !is_survey {
                wire::put_create_reply(frame, number, &result);
            }
        }
    }
}
