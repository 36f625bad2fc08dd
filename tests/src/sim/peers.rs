//! Peers that come, move and go while groups serve: what each node should know, what it was told, and what it must not forget.
//! Whoever operates the cluster takes one step after the other, on one node after the other, and must never bring a node into
//! a group that is about to be taken out of the peers.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::net::SocketAddr;
use std::task::{Context, Waker};
use std::time::Duration;

use polyraft::sim::PeerChange;
use polyraft::{Error, GroupId, MemberChange, NodeId, Role};

use super::checks::Failure;
use super::plan::{MILLI, Plan};
use super::world::{Host, World};

/// How long a change of members may be under way that was asked for before.
const CHANGES_END: u64 = 2_500 * MILLI;

/// What becomes of the node that is not always a peer of the others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stay {
    Out,
    Joining,
    In,
    Leaving,
}

/// All that is known of who is whose peer.
pub(super) struct Peers {
    nodes: u64,
    guest: Option<u64>,
    stay: Stay,
    /// When that began, and who knows of it since.
    since: u64,
    done: BTreeSet<u64>,
    /// By node: how often it has got another address.
    moves: Vec<u16>,
    told: Vec<Told>,
    attempts: Vec<Attempt>,
    /// By node: what came of the last change.
    answers: BTreeMap<u64, Result<bool, Error>>,
}

/// What a node was opened with, and what it has to remember.
#[derive(Clone, Default)]
struct Told {
    given: BTreeMap<u64, SocketAddr>,
    known: BTreeMap<u64, SocketAddr>,
    /// What it may remember beside that: changes that did not come to their end.
    unsure: Vec<(u64, Option<SocketAddr>)>,
}

/// A change that a node was asked for.
struct Attempt {
    node: u64,
    peer: u64,
    to: Option<SocketAddr>,
    change: PeerChange,
}

impl Peers {
    pub(super) fn new(plan: &Plan) -> Self {
        let count = plan.nodes as usize + 1;
        let mut peers = Peers {
            nodes: plan.nodes,
            guest: plan.guest,
            stay: match plan.guest_begins {
                true => Stay::In,
                false => Stay::Out,
            },
            since: 0,
            done: BTreeSet::new(),
            moves: vec![0; count],
            told: vec![Told::default(); count],
            attempts: Vec::new(),
            answers: BTreeMap::new(),
        };
        for node in 1..=plan.nodes {
            let given = peers.configured(node);
            peers.told[node as usize] = Told {
                known: given.clone(),
                given,
                unsure: Vec::new(),
            };
        }
        peers
    }

    fn others(&self, node: u64) -> impl Iterator<Item = u64> + use<> {
        (1..=self.nodes).filter(move |peer| *peer != node)
    }

    fn address(&self, node: u64) -> SocketAddr {
        let port = 1 + self.moves[node as usize];
        SocketAddr::from(([10, 0, 0, node as u8], port))
    }

    /// Whether a node may become a member of groups.
    pub(super) fn may_join(&self, node: u64) -> bool {
        self.guest != Some(node) || self.stay == Stay::In
    }

    /// Whether a node is always a peer of all others.
    pub(super) fn is_resident(&self, node: u64) -> bool {
        self.guest != Some(node)
    }

    /// What stands in the configuration of a node that is brought up to date.
    fn configured(&self, node: u64) -> BTreeMap<u64, SocketAddr> {
        let before = &self.told[node as usize].given;
        let given = self.others(node).filter_map(|peer| {
            let address = match self.stay {
                Stay::Out if self.guest == Some(peer) => None,
                // It has to be taken out while the node runs, which looks whether a group needs it.
                Stay::Leaving if self.guest == Some(peer) => before.get(&peer).copied(),
                _ => Some(self.address(peer)),
            };
            Some((peer, address?))
        });
        given.collect()
    }

    /// What a node should know of a peer; none: it is left as it is.
    fn wanted(&self, peer: u64, now: u64) -> Option<Option<SocketAddr>> {
        match self.stay {
            Stay::Out if self.guest == Some(peer) => Some(None),
            Stay::Leaving if self.guest == Some(peer) => {
                (now >= self.since + CHANGES_END).then_some(None)
            }
            _ => Some(Some(self.address(peer))),
        }
    }

    /// A node is gone, and with it what was asked of it.
    pub(super) fn lost(&mut self, node: u64) {
        self.attempts.retain(|attempt| attempt.node != node);
    }

    /// A node was to be opened with that, and was not.
    pub(super) fn not_opened(&mut self, node: u64, given: &BTreeMap<u64, SocketAddr>) {
        let others = self.others(node);
        let told = &mut self.told[node as usize];
        for peer in others {
            let [before, after] = [&told.given, given].map(|given| given.get(&peer).copied());
            if before != after {
                told.unsure.extend([(peer, before), (peer, after)]);
            }
        }
    }

    /// A node was opened and found its peers. Returns one that it should have found otherwise.
    fn opened(
        &mut self,
        node: u64,
        given: BTreeMap<u64, SocketAddr>,
        found: BTreeMap<u64, SocketAddr>,
    ) -> Option<u64> {
        let others = self.others(node);
        let told = &mut self.told[node as usize];
        let is_right = |peer: &u64| {
            let [before, after, known, found] =
                [&told.given, &given, &told.known, &found].map(|list| list.get(peer).copied());
            match before == after {
                true => found == known || told.unsure.contains(&(*peer, found)),
                false => found == after,
            }
        };
        let wrong = others.into_iter().find(|peer| !is_right(peer));
        *told = Told {
            given,
            known: found,
            unsure: Vec::new(),
        };
        wrong
    }
}

impl World {
    /// What a node is opened with: now and then somebody has brought its configuration up to date.
    pub(super) fn peers_to_open_with(&mut self, node: u64) -> BTreeMap<u64, SocketAddr> {
        match self.plan.guest.is_some() && self.rng.chance(300_000) {
            true => self.peers.configured(node),
            false => self.peers.told[node as usize].given.clone(),
        }
    }

    /// A node runs and has told its peers: it has to know what it knew, unless its configuration says otherwise now.
    pub(super) fn check_peers(&mut self, node: u64, given: BTreeMap<u64, SocketAddr>) {
        let found = self.peers_of(node);
        for (peer, at) in &found {
            self.hosts[node as usize].port.know(*peer, *at);
        }
        let before = self.peers.told[node as usize].known.clone();
        let told = format!("before {before:?}, opened with {given:?}, found {found:?}");
        let wrong = self.peers.opened(node, given, found);
        if let Some(peer) = wrong.filter(|_| !self.hosts[node as usize].is_outcast) {
            self.fail(Failure {
                checker: "peers",
                what: format!("node {node} is wrong about node {peer}: {told}"),
                group: None,
            });
        }
    }

    fn peers_of(&self, node: u64) -> BTreeMap<u64, SocketAddr> {
        let sim = self.hosts[node as usize].node.as_ref();
        let peers = sim.map(|sim| sim.peers()).unwrap_or_default();
        peers.into_iter().map(|(peer, at)| (peer.0, at)).collect()
    }

    /// Where a node would dial another one, and whether it would find it there.
    pub(super) fn knows_where(&self, node: u64, peer: u64) -> bool {
        self.hosts[node as usize].port.known(peer) == Some(self.peers.address(peer))
    }

    /// Whether a node takes another one for a peer.
    pub(super) fn takes_for_peer(&self, node: u64, peer: u64) -> bool {
        self.hosts[node as usize].port.known(peer).is_some()
    }

    /// A machine gets another address.
    pub(super) fn move_machine(&mut self, node: u64) -> bool {
        let host = &self.hosts[node as usize];
        if host.node.is_none() || host.unproven.is_some() {
            return false;
        }
        self.peers.moves[node as usize] += 1;
        match self.rng.chance(500_000) {
            true => self.restart(node),
            false => self.kill(node),
        }
        true
    }

    /// A node becomes a peer of the others, or is going to be taken out.
    pub(super) fn turn_guest(&mut self) -> bool {
        self.peers.stay = match self.peers.stay {
            Stay::In => Stay::Leaving,
            Stay::Out => Stay::Joining,
            _ => return false,
        };
        (self.peers.since, self.peers.done) = (self.now, BTreeSet::new());
        true
    }

    /// Tells nodes who their peers are and where.
    pub(super) fn go_on_with_peers(&mut self) {
        let Some(guest) = self.plan.guest else { return };
        for node in 1..=self.plan.nodes {
            let host = &self.hosts[node as usize];
            let is_there = host.node.is_some() && !host.is_outcast && host.paused_until <= self.now;
            let is_asked = self.peers.attempts.iter().any(|other| other.node == node);
            if !is_there || is_asked || !self.is_healed && self.rng.chance(500_000) {
                continue;
            }
            let is_out = self.peers.wanted(guest, self.now) == Some(None);
            if is_out && self.peers.stay == Stay::Leaving {
                self.ask_groups_to_do_without(node, guest);
            }
            self.ask_for_peers(node);
        }
        let counts = |node: &u64| *node != guest && !self.is_beyond_help(*node);
        let mut counted = (1..=self.plan.nodes).filter(counts);
        if !counted.all(|node| self.peers.done.contains(&node)) {
            return;
        }
        match self.peers.stay {
            Stay::Joining => {
                self.peers.stay = Stay::In;
                self.counts.joined += 1;
            }
            Stay::Leaving => {
                self.peers.stay = Stay::Out;
                self.counts.parted += 1;
            }
            _ => return,
        }
        let stay = self.peers.stay;
        self.trace
            .event(self.now, guest, || format!("is {stay:?} for all"));
    }

    /// Asks a node for the first change that it needs; notes when there is none.
    fn ask_for_peers(&mut self, node: u64) {
        let found = self.peers_of(node);
        let now = self.now;
        // A group may have to move from the guest to any other node. Until none has it, it is only tried where that is refused.
        let guest = self.plan.guest.filter(|_| self.peers.stay == Stay::Leaving);
        let is_needed = guest.is_some_and(|guest| {
            let tries = self.has_in_groups(node, guest) && self.rng.chance(100_000);
            !tries && self.is_in_groups(guest)
        });
        let wrong = self.peers.others(node).filter_map(|peer| {
            let known = found.get(&peer).copied();
            let to = match is_needed && guest == Some(peer) {
                // Until then its groups have to find it, and it those that are to take its place.
                true => Some(self.peers.address(peer)),
                false => self.peers.wanted(peer, now)?,
            };
            (known != to).then_some((peer, to))
        });
        // Before one is taken out, the others have to be found: they may be asked whether they can do without it. In the storm it is
        // tried all the same.
        let is_last = |to: &Option<SocketAddr>| self.is_healed && to.is_none();
        let Some((peer, to)) = wrong.min_by_key(|(peer, to)| (is_last(to), *peer)) else {
            let is_decided = self.peers.stay != Stay::Leaving
                || self.peers.guest.is_some_and(|g| !found.contains_key(&g));
            if is_decided {
                self.peers.done.insert(node);
            }
            return;
        };
        let sim = self.hosts[node as usize].node.as_ref();
        let sim = sim.expect("it was there");
        self.trace.event(now, node, || {
            format!("is told that node {peer} is at {to:?}")
        });
        let change = match sim.change_peer(peer, to) {
            Ok(Some(change)) => change,
            Ok(None) => return,
            Err(error) => {
                let what = format!("node {node} refuses node {peer} at {to:?}: {error}");
                return self.fail(Failure {
                    checker: "peers",
                    what,
                    group: None,
                });
            }
        };
        self.peers.told[node as usize].unsure.push((peer, to));
        self.peers.attempts.push(Attempt {
            node,
            peer,
            to,
            change,
        });
        self.poll_peers(node);
        self.schedule(node);
    }

    /// Asks a node to take another one for a peer where that is, or not any more. There must be one at a time.
    pub(super) fn ask_for_peer(&mut self, node: u64, peer: u64, is_in: bool) -> Result<(), Error> {
        let to = is_in.then(|| self.peers.address(peer));
        let change = self.node_of(node).change_peer(peer, to)?;
        self.peers.answers.insert(node, Ok(true));
        if let Some(change) = change {
            self.peers.attempts.push(Attempt {
                node,
                peer,
                to,
                change,
            });
            self.poll_peers(node);
            self.schedule(node);
        }
        Ok(())
    }

    /// Whether a node is about to change its peers.
    pub(super) fn is_asked_for_peer(&self, node: u64) -> bool {
        let mut attempts = self.peers.attempts.iter();
        attempts.any(|attempt| attempt.node == node)
    }

    /// What came of the last change of peers that a node was asked for.
    pub(super) fn answer_about_peer(&mut self, node: u64) -> Result<(), Error> {
        let answer = self.peers.answers.remove(&node);
        answer.expect("nobody asked").map(|_| ())
    }

    /// Looks whether what a node was asked for is done.
    pub(super) fn poll_peers(&mut self, node: u64) {
        let attempts = &mut self.peers.attempts;
        let Some(at) = attempts.iter().position(|attempt| attempt.node == node) else {
            return;
        };
        let host = &self.hosts[node as usize];
        let Some(sim) = &host.node else { return };
        let done = sim.go_on_with_peer(&mut attempts[at].change);
        if matches!(done, Ok(false)) {
            return;
        }
        let Attempt { peer, to, .. } = attempts.remove(at);
        self.trace.event(self.now, node, || {
            format!("is done with node {peer} at {to:?}: {done:?}")
        });
        if host.cut_at.is_some_and(|cut| host.disk.operations() >= cut) {
            return; // Nobody was told: the power fails before anything else happens.
        }
        match &done {
            Ok(_) => {
                let told = &mut self.peers.told[node as usize];
                told.unsure.retain(|(other, _)| *other != peer);
                match to {
                    Some(at) => _ = told.known.insert(peer, at),
                    None => _ = told.known.remove(&peer),
                }
                self.counts.told_peers += 1;
            }
            // What is left of a damaged log may name it for good. Or others have to hear of ends first.
            Err(Error::Peer { why, .. })
                if why.contains("as a member") || why.contains("have not confirmed") =>
            {
                self.counts.needed_peers += 1;
                let told = &mut self.peers.told[node as usize];
                told.unsure.retain(|(other, _)| *other != peer);
            }
            // The disk did not take it, or the node stops.
            Err(_) => {}
        }
        self.peers.answers.insert(node, done);
        if to.is_none() && !self.takes_for_peer(node, peer) {
            let at = self.link_of(node, peer);
            self.reset_link(at, 20 * MILLI);
        }
    }

    /// Whether a node takes another one for a member of a group.
    fn has_in_groups(&self, node: u64, other: u64) -> bool {
        let host = &self.hosts[node as usize];
        let Some(sim) = host.node.as_ref().filter(|_| !host.is_outcast) else {
            return false;
        };
        let groups = (1..=self.plan.members.len() as u64).map(GroupId);
        let mut cores = groups.filter_map(|group| sim.replica(group));
        cores.any(|(core, _)| core.configuration().contains(NodeId(other)))
    }

    /// Whether a group has a node as a member.
    fn is_in_groups(&self, node: u64) -> bool {
        let groups = (1..=self.plan.members.len() as u64).map(GroupId);
        let mut begun = groups.filter(|group| {
            self.splits.has_begun(*group) && self.merges.target_of(*group).is_none()
        });
        begun.any(|group| self.members_of(group).contains(&node))
    }

    /// The machines that count: a node that was taken out is told of nothing any more.
    pub(super) fn standing(&self) -> impl Iterator<Item = &Host> {
        let is_out = self.peers.stay == Stay::Out;
        let guest = self.plan.guest.filter(|_| is_out);
        let hosts = self.hosts.iter().enumerate();
        let known = hosts.filter(move |(id, host)| !host.is_outcast && guest != Some(*id as u64));
        known.map(|(_, host)| host)
    }

    /// Groups that a node leads get the members that they began with, if a node is among them that is to be taken out.
    fn ask_groups_to_do_without(&mut self, node: u64, guest: u64) {
        let guest = NodeId(guest);
        for group in (1..=self.plan.members.len() as u64).map(GroupId) {
            let host = &self.hosts[node as usize];
            let Some(sim) = &host.node else { return };
            let Some((core, None)) = sim.replica(group) else {
                continue;
            };
            let members = core.configuration();
            let has_to = core.role() == Role::Leader
                && core.members_are_settled()
                && !members.is_joint()
                && members.contains(guest);
            if !has_to {
                continue;
            }
            let first = self.plan.members_of(group);
            let others = members.nodes().filter(|node| !first.contains(&node.0));
            let mut changes: Vec<MemberChange> = others.map(MemberChange::Remove).collect();
            let missing = first.iter().map(|node| NodeId(*node));
            // Whoever has lost its data can't come back.
            let is_sound = |node: &NodeId| {
                let is_heard = sim.node().id() != guest || self.takes_for_peer(node.0, guest.0);
                !self.is_beyond_help(node.0) && is_heard
            };
            let missing = missing.filter(|node| !members.is_voter(*node) && is_sound(node));
            changes.extend(missing.map(MemberChange::Voter));
            self.trace.group(self.now, node, group, || {
                format!("is asked to do without {guest}: {changes:?}")
            });
            let handle = sim.node().group(group.0);
            let within = Duration::from_secs(2);
            let mut asked = Box::pin(handle.change_members(changes, within));
            let mut context = Context::from_waker(Waker::noop());
            let _ = asked.as_mut().poll(&mut context);
        }
        self.schedule(node);
    }

    /// Whether nothing is expected of a node any more, or not of each of its replicas.
    fn is_beyond_help(&self, node: u64) -> bool {
        let host = &self.hosts[node as usize];
        let mut groups = (1..=self.plan.members.len() as u64).map(GroupId);
        host.is_outcast || host.is_dead || groups.any(|group| host.has_damaged(group))
    }

    /// Whether everybody who can know does know who is a peer and where.
    pub(super) fn peers_are_settled(&self) -> bool {
        let Some(guest) = self.plan.guest else {
            return true;
        };
        let is_right = |node: u64| {
            if self.is_beyond_help(node) {
                return true;
            }
            let host = &self.hosts[node as usize];
            let found = self.peers_of(node);
            let mut others = self.peers.others(node);
            host.node.is_some()
                && others.all(|peer| {
                    let wanted = self.peers.wanted(peer, self.now);
                    wanted.is_none_or(|to| found.get(&peer).copied() == to)
                })
        };
        let is_out = self.peers.stay == Stay::Out;
        let mut attempts = self.peers.attempts.iter();
        matches!(self.peers.stay, Stay::In | Stay::Out)
            && attempts.all(|attempt| self.is_beyond_help(attempt.node))
            && (1..=self.plan.nodes).all(is_right)
            && !(is_out && self.is_in_groups(guest))
    }

    /// What is known of the peers, for a report.
    pub(super) fn describe_peers(&self) -> String {
        let lists = (1..=self.plan.nodes).map(|node| format!("{node}: {:?}", self.peers_of(node)));
        let (stay, since, done) = (self.peers.stay, self.peers.since, &self.peers.done);
        let lists: Vec<String> = lists.collect();
        format!(
            "{stay:?} since {since} for {done:?}; {} asked; {}",
            self.peers.attempts.len(),
            lists.join("; ")
        )
    }
}

#[cfg(test)]
mod tests {
    use super::super::world::Phase;
    use super::super::world::tests::{calm, planned};
    use super::*;

    type Peering = BTreeMap<u64, SocketAddr>;

    /// About which peer node 1 is wrong, after it was told of another place of node 3, and a change of node 2 came to no end.
    fn wrong_with(change: impl FnOnce(&mut Peering, &mut Peering)) -> Option<u64> {
        let mut peers = calm().peers;
        let moved = SocketAddr::from(([10, 0, 0, 3], 9));
        let told = &mut peers.told[1];
        told.known.insert(3, moved);
        told.unsure.push((2, None));
        let (mut given, mut found) = (told.given.clone(), told.known.clone());
        change(&mut given, &mut found);
        peers.opened(1, given, found)
    }

    #[test]
    fn a_node_that_forgets_a_peer_or_its_place_is_noticed() {
        let elsewhere = SocketAddr::from(([10, 0, 0, 3], 77));
        assert_eq!(wrong_with(|_, _| {}), None);
        assert_eq!(wrong_with(|_, found| _ = found.remove(&3)), Some(3));
        let first = wrong_with(|given, found| _ = found.insert(3, given[&3]));
        assert_eq!(first, Some(3));
        // It may have done what it was asked for, or not; nothing else.
        assert_eq!(wrong_with(|_, found| _ = found.remove(&2)), None);
        let other = wrong_with(|_, found| _ = found.insert(2, elsewhere));
        assert_eq!(other, Some(2));
        // What stands in its configuration now counts more.
        let moved = |given: &mut Peering| given.insert(3, elsewhere);
        assert_eq!(wrong_with(|given, _| _ = moved(given)), Some(3));
        let both = wrong_with(|given, found| {
            moved(given);
            moved(found);
        });
        assert_eq!(both, None);
    }

    #[test]
    fn a_start_without_the_peers_that_were_known_is_noticed() {
        for (is_outcast, broken) in [(false, Some("peers")), (true, None)] {
            let mut world = calm();
            let given = world.peers.told[1].given.clone();
            world.hosts[1].is_outcast = is_outcast;
            world.check_peers(1, given);
            assert_eq!(world.broken_rule(), broken);
        }
        let mut world = calm();
        world.boot(1);
        assert_eq!(world.broken_rule(), None);
    }

    #[test]
    fn a_change_of_peers_that_is_refused_without_a_reason_is_noticed() {
        let mut world = planned(|plan| plan.guest = Some(3));
        world.begin();
        world.is_healed = true;
        world.go_on_with_peers();
        assert_eq!(world.broken_rule(), None);
        // What node 1 is asked for comes to node 2, which takes nobody for itself.
        world.hosts[1].node = world.hosts[2].node.take();
        world.go_on_with_peers();
        assert_eq!(world.broken_rule(), Some("peers"));
    }

    #[test]
    fn nodes_that_never_agree_on_who_is_a_peer_are_noticed() {
        for (is_told, broken) in [(true, None), (false, Some("peers"))] {
            let mut world = planned(|plan| plan.guest = Some(3));
            world.begin();
            world.clients.has_served.fill(true);
            if !is_told {
                world.peers.moves[3] += 1;
                world.hosts[1].paused_until = u64::MAX;
            }
            world.is_healed = true;
            world.phase = Phase::Healing { deadline: 0 };
            world.now = 600 * 1_000 * MILLI;
            world.look();
            assert_eq!(world.broken_rule(), broken);
        }
    }
}
