//! The course of a run: a storm, then a calm in which every group must serve again within a bounded time, then silence,
//! then a look at everything that is left. It must fail a run in which too little happened to prove anything.

use std::collections::BTreeSet;
use std::future::Future;
use std::task::{Context, Poll, Waker};

use polyraft::sim::LoggedEntry;
use polyraft::{GroupId, Index, NodeId, Read, Role};
use polyraft_raft::Group;

use super::checks::{Failure, Verdict, broken};
use super::ends::group_of;
use super::plan::{Fault, MILLI, SECOND};
use super::world::{Counts, Event, Phase, World};
use crate::history::{Verdict as Found, is_register, search, zones};

/// How often the world looks whether a phase is over.
const LOOK: u64 = 50 * MILLI;

/// States that the search for an order of one register's operations may visit.
const SEARCH_BUDGET: usize = 100_000;

/// A storm ends after that much time, however little happened in it.
const LONGEST_STORM: u64 = 120 * SECOND;

/// Fewer acknowledged operations, reads included, prove nothing.
const FEWEST_OPERATIONS: u64 = 40;

/// How many times as long replicas may take to become equal as long as they come closer.
const PATIENCE: u64 = 10;

/// How much longer than everything else a merge may take to come to an end.
const LONGEST_MERGE: u64 = 60 * SECOND;

/// Of these as many must have gone through a log.
const FEWEST_PROPOSALS: u64 = 20;

/// A storm has at least that many faults.
const FAULTS: u32 = 10;

/// Fewer faults of nodes, disks and links prove nothing, in a world that is meant to have some.
const FEWEST_FAULTS: u32 = 4;

/// What a member's log has.
struct Log {
    base: Index,
    last: Index,
    entries: Vec<LoggedEntry>,
}

impl Log {
    /// What is wrong with it: by itself, or beside that of another node.
    fn differs(&self, other: Option<(u64, &Log)>) -> Option<String> {
        let wanted = (self.base.0 + 1..=self.last.0).map(Index);
        if !wanted.eq(self.entries.iter().map(|entry| entry.index)) {
            let has: Vec<Index> = self.entries.iter().map(|entry| entry.index).collect();
            return Some(format!("{has:?} of ({}, {}]", self.base, self.last));
        }
        let (node, other) = other?;
        if self.last != other.last {
            return Some(format!(
                "it ends at {}, node {node} at {}",
                self.last, other.last
            ));
        }
        let mut both = self.entries.iter().rev().zip(other.entries.iter().rev());
        let (here, there) = both.find(|(here, there)| here != there)?;
        Some(format!("{here:?}, node {node} {there:?}"))
    }
}

impl Counts {
    /// Faults of some kinds.
    fn faults_of(&self, is_counted: impl Fn(Fault) -> bool) -> u32 {
        let faults = Fault::ALL.iter().zip(self.faults.0);
        faults
            .filter(|(fault, _)| is_counted(**fault))
            .map(|(_, times)| times)
            .sum()
    }

    /// Whether enough was done to prove something.
    fn has_operations(&self) -> bool {
        self.acknowledged >= FEWEST_PROPOSALS
            && self.acknowledged + self.queries >= FEWEST_OPERATIONS
    }
}

impl World {
    /// How long it may take until every group has committed again, and until all replicas are equal.
    fn recovery_bound(&self) -> u64 {
        let config = &self.plan.config;
        let micros = |duration: std::time::Duration| duration.as_micros() as u64;
        2 * (self.idle_timeout() + micros(config.transport.backoff_max))
            + 20 * micros(config.election.timeout_max)
            + 2 * micros(config.shards.proposal_timeout)
            + 2 * self.plan.client_timeout_us
            // A snapshot that a disk did not take is not tried again at once.
            + 50 * micros(config.replication.retry_interval)
            + 3 * SECOND
    }

    /// Whether a storm goes on for long in which too little is done to prove anything.
    pub(super) fn has_to_abate(&self) -> bool {
        self.now > LONGEST_STORM / 2 && !self.counts.has_operations()
    }

    /// Looks whether the next phase may begin.
    pub(super) fn look(&mut self) {
        self.push(self.now + LOOK, Event::Look);
        match self.phase {
            Phase::Storm => {
                self.create_groups();
                self.go_on_with_ends();
                self.go_on_with_peers();
                let is_long = self.now > LONGEST_STORM;
                let is_full = self.counts.events * 4 >= self.plan.events * 3;
                let has_faults = self.plan.fault_us == 0
                    || self.counts.faults_of(|_| true) >= FAULTS
                        && self.counts.faults_of(Fault::breaks_something) >= FEWEST_FAULTS;
                let has_operations = self.counts.has_operations();
                if is_full && has_faults && has_operations || is_long {
                    self.trace.event(self.now, 0, || "HEALED".to_owned());
                    self.stormed = self.counts.clone();
                    self.heal();
                    let deadline = self.now + self.recovery_bound();
                    self.phase = Phase::Healing { deadline };
                    self.start_finishers();
                }
            }
            Phase::Healing { deadline } => {
                self.create_groups();
                self.go_on_with_ends();
                self.go_on_with_peers();
                let served = &self.clients.has_served;
                let is_late = self.now > deadline;
                let all_have_served = served.iter().all(|has_served| *has_served);
                let frozen = self.frozen_group();
                if let Err(failure) = self.check_frozen(frozen, deadline) {
                    return self.fail(failure);
                }
                let are_over = self.splits.are_over() && self.merges.are_over();
                if !are_over && self.now > deadline + LONGEST_MERGE {
                    return self.fail(Failure {
                        checker: "liveness",
                        what: "a split or a merge that was asked for has no end".to_owned(),
                        group: None,
                    });
                }
                if all_have_served && !(are_over && frozen.is_none()) {
                    // A group may be about to begin or to end; a node gives up on that after some seconds.
                    return;
                }
                if all_have_served && !self.peers_are_settled() {
                    if self.now > deadline + self.recovery_bound() {
                        let what = self.describe_peers();
                        self.fail(Failure {
                            checker: "peers",
                            what,
                            group: None,
                        });
                    }
                    return;
                }
                if all_have_served && let Err(failure) = self.check_requests() {
                    // A node may be drained for as long as it was told, and take no snapshot while it awaits a child.
                    if self.now > deadline + LONGEST_MERGE {
                        self.fail(failure);
                    }
                    return;
                }
                if all_have_served {
                    let bound = self.recovery_bound();
                    // What a disk did before excuses nothing from here on.
                    self.hosts
                        .iter_mut()
                        .for_each(|host| host.has_bad_disk = false);
                    self.phase = Phase::Settling {
                        deadline: self.now + bound,
                        at_last: self.now + PATIENCE * bound,
                        held: self.held(),
                    };
                } else if is_late {
                    let group = served.iter().position(|has_served| !has_served);
                    let group = GroupId(group.expect("one is not served") as u64 + 1);
                    let told = self.describe(group);
                    self.fail(broken(
                        "liveness",
                        group,
                        format!(
                            "nothing was committed in {} us without faults: {told}",
                            self.recovery_bound()
                        ),
                    ));
                }
            }
            Phase::Settling {
                deadline,
                at_last,
                held,
            } => {
                if let Some(group) = self.unequal() {
                    let now_held = self.held();
                    if now_held > held && self.now <= at_last {
                        // Clients with sessions ask until they know, and a window of one entry takes its time.
                        self.phase = Phase::Settling {
                            deadline: deadline.max(self.now + self.recovery_bound() / 4),
                            at_last,
                            held: now_held,
                        };
                    } else if self.now > deadline {
                        let told = self.describe(group);
                        self.fail(broken("equal replicas", group, told));
                    }
                } else if self.clients.are_idle() {
                    self.phase = Phase::Quiet {
                        until: self.now + SECOND,
                        at_last: self.now + self.recovery_bound(),
                        said: self.said(),
                    };
                } else if self.now > deadline {
                    self.fail(Failure {
                        checker: "liveness",
                        what: "a client still waits although all replicas are equal".to_owned(),
                        group: None,
                    });
                }
            }
            Phase::Quiet {
                until,
                at_last,
                said,
            } => {
                // A leader goes on trying to bring a replica forward that was taken out of service.
                if self.said() != said && !self.has_damaged() {
                    // A link may come up only now, with claims that are over; and a replica that was removed while it was down
                    // asks until it is told.
                    if self.now + SECOND <= at_last {
                        self.phase = Phase::Quiet {
                            until: self.now + SECOND,
                            at_last,
                            said: self.said(),
                        };
                    } else {
                        self.fail(Failure {
                            checker: "quiescence",
                            what: format!("idle groups sent {} messages", self.said() - said),
                            group: None,
                        });
                    }
                } else if self.now >= until && self.counts.events >= self.plan.events {
                    for id in 1..=self.plan.nodes {
                        self.count_transfers(id);
                    }
                    let verdict = self.judge_the_end();
                    self.judge(verdict);
                    self.phase = self.bereave();
                }
            }
            Phase::Bereft {
                until,
                deadline,
                lost,
            } => {
                if self.now < until {
                    return;
                }
                match self.orphan(lost) {
                    None => self.phase = Phase::Done,
                    Some(group) if self.now > deadline => {
                        let what = format!(
                            "nobody leads it after node {lost}: {}",
                            self.describe(group)
                        );
                        self.fail(broken("liveness", group, what));
                    }
                    Some(_) => {}
                }
            }
            Phase::Done => {}
        }
    }

    /// A node falls silent for good, if one is there and nobody has anything to say. Quiet groups that are led by another one have
    /// no reason to say anything, or all groups of a node would wake whenever one of its peers goes.
    fn bereave(&mut self) -> Phase {
        let there = |id: &u64| {
            let host = &self.hosts[*id as usize];
            host.node.is_some() && !host.is_outcast
        };
        let there: Vec<u64> = (1..=self.plan.nodes).filter(there).collect();
        if self.has_damaged() || there.is_empty() {
            return Phase::Done;
        }
        let lost = *self.rng.pick(&there);
        self.hosts[lost as usize].paused_until = u64::MAX;
        // Its connections break, or nobody can tell.
        if self.rng.chance(500_000) {
            self.pause_links(lost);
        }
        self.quiet = self.led_without(lost);
        // One whose handover failed before is given away when its time has come again, whoever is lost meanwhile.
        let hosts = self.hosts.iter();
        for node in hosts.filter_map(|host| host.node.as_ref()) {
            let leads = |group| {
                let core = node.replica(group).map(|(core, _)| core);
                core.is_some_and(|core| core.role() == Role::Leader)
            };
            self.quiet
                .retain(|group| !leads(*group) || !node.will_hand_over(*group));
        }
        self.counts.bereft += self.quiet.len() as u64;
        self.trace
            .event(self.now, lost, || "falls silent for good".to_owned());
        let timeout = self.plan.config.election.timeout_max.as_micros() as u64;
        Phase::Bereft {
            until: self.now + 3 * timeout + SECOND / 2,
            deadline: self.now + self.recovery_bound(),
            lost,
        }
    }

    /// Whether a group has a quorum without a node.
    fn is_left_without(&self, core: &Group, lost: u64) -> bool {
        core.configuration().has_quorum(|node| {
            let host = &self.hosts[node.0 as usize];
            node.0 != lost && host.node.is_some() && !host.is_outcast
        })
    }

    /// Groups that another node leads than the one that is lost, and that have a quorum without it.
    fn led_without(&self, lost: u64) -> BTreeSet<GroupId> {
        let others = self
            .hosts
            .iter()
            .enumerate()
            .filter(|(id, host)| *id as u64 != lost && !host.is_outcast);
        let nodes = others.filter_map(|(_, host)| host.node.as_ref());
        let groups = || (1..=self.plan.members.len() as u64).map(GroupId);
        let replicas = nodes.flat_map(|node| groups().filter_map(|group| node.replica(group)));
        let led = replicas.filter(|(core, fault)| {
            fault.is_none() && core.role() == Role::Leader && self.is_left_without(core, lost)
        });
        led.map(|(core, _)| core.id()).collect()
    }

    /// A group that could be led without a node, and is not. A replica that was left behind when its group got other members may
    /// still wait until it asks.
    fn orphan(&self, lost: u64) -> Option<GroupId> {
        let led = self.led_without(lost);
        let groups = (1..=self.plan.members.len() as u64).map(GroupId);
        let mut goes_on = groups.filter(|group| {
            self.splits.has_begun(*group) && self.merges.target_of(*group).is_none()
        });
        goes_on.find(|group| {
            let members = self.members_of(*group).into_iter();
            let hosts = members.map(|member| &self.hosts[member as usize]);
            let standing = hosts.filter(|host| !host.is_outcast);
            let mut replicas = standing.filter_map(|host| host.node.as_ref()?.replica(*group));
            !led.contains(group) && replicas.any(|(core, _)| self.is_left_without(core, lost))
        })
    }

    /// No group stays frozen for long behind the deadline by which all serve again.
    pub(super) fn check_frozen(&self, frozen: Option<GroupId>, deadline: u64) -> Verdict {
        match frozen.filter(|_| self.now > deadline + LONGEST_MERGE) {
            None => Ok(()),
            Some(group) => {
                let told = self.describe(group);
                Err(broken("merges", group, format!("it stays frozen: {told}")))
            }
        }
    }

    /// Entries that replicas hold durably, all together.
    fn held(&self) -> u64 {
        let nodes = self.hosts.iter().filter_map(|host| host.node.as_ref());
        let groups = (1..=self.plan.members.len() as u64).map(GroupId);
        let held = nodes.flat_map(|node| {
            let cores = groups.clone().filter_map(|group| node.replica(group));
            cores.map(|(core, _)| core.durable().0)
        });
        held.sum()
    }

    /// Messages of groups so far.
    fn said(&self) -> u64 {
        let said = self.hosts.iter().filter(|host| !host.is_outcast);
        let said = said.filter_map(|host| Some(host.node.as_ref()?.node().status().counters));
        said.map(|counters| counters.group_messages).sum()
    }

    /// A group whose replicas differ, if there is one.
    fn unequal(&self) -> Option<GroupId> {
        let groups = (1..=self.plan.members.len() as u64).map(GroupId);
        let mut begun = groups.into_iter().filter(|group| {
            self.splits.has_begun(*group) && self.merges.target_of(*group).is_none()
        });
        begun.find(|group| !self.is_equal(*group))
    }

    /// Whether all members of a group run and have the same log, all of it committed and applied.
    pub(super) fn is_equal(&self, group: GroupId) -> bool {
        let mut reference = None;
        for member in self.members_of(group) {
            let host = &self.hosts[member as usize];
            if host.is_outcast || host.is_dead {
                continue;
            }
            let Some(node) = &host.node else {
                return false;
            };
            let Some((core, fault)) = node.replica(group) else {
                return false;
            };
            if fault.is_some() && host.damage.may_hit(group) {
                // What can be repaired has to be.
                match node.is_repairable(group) {
                    true => return false,
                    false => continue,
                }
            }
            if !core.members_are_settled() {
                return false;
            }
            let first = reference.get_or_insert(core);
            // What one of them has purged can't be compared.
            let from = core.base().index.max(first.base().index);
            let runs = |core: &Group| -> Vec<polyraft_raft::TermRun> {
                let runs = core.term_runs();
                let next = |at: usize| {
                    runs.get(at + 1)
                        .map_or(core.last().index.next(), |run| run.first)
                };
                let left = runs
                    .iter()
                    .enumerate()
                    .filter(|(at, _)| next(*at) > from.next());
                left.map(|(_, run)| polyraft_raft::TermRun {
                    first: run.first.max(from.next()),
                    ..*run
                })
                .collect()
            };
            let is_equal = core.last() == first.last()
                && core.configuration() == first.configuration()
                && runs(core) == runs(first)
                && core.committed() == core.last().index
                && core.applied() == core.committed()
                && core.durable() == core.last().index;
            if !is_equal {
                return false;
            }
        }
        reference.is_some()
    }

    /// Whether a replica was taken out of service because of its log, and stays so.
    fn has_damaged(&self) -> bool {
        let groups = || (1..=self.plan.members.len() as u64).map(GroupId);
        let mut hosts = self.hosts.iter();
        hosts.any(|host| groups().any(|group| host.has_damaged(group)))
    }

    /// What the replicas of a group are doing, for a report.
    fn describe(&self, group: GroupId) -> String {
        let nodes = match self.plan.churns(group) {
            true => (1..=self.plan.nodes).collect(),
            false => self.members_of(group),
        };
        let members = nodes.into_iter().map(|member| {
            let host = &self.hosts[member as usize];
            match host.node.as_ref().map(|node| node.replica(group)) {
                None => format!("node {member} is down"),
                Some(None) => format!("node {member} has no replica"),
                Some(Some((core, fault))) => format!(
                    "node {member} is {:?} of term {} leader {:?} last {} durable {} committed {} applied {} members {:?}{}{}",
                    core.role(),
                    core.term(),
                    core.leader().map(|leader| leader.0),
                    core.last(),
                    core.durable(),
                    core.committed(),
                    core.applied(),
                    core.configuration(),
                    if host.is_outcast { " outcast" } else { "" },
                    fault.map(|fault| format!(" fault {fault}")).unwrap_or_default()
                ),
            }
        });
        members.collect::<Vec<_>>().join("; ")
    }

    fn judge_the_end(&mut self) -> Verdict {
        for group in (1..=self.plan.members.len() as u64).map(GroupId) {
            if self.splits.has_begun(group) && self.merges.target_of(group).is_none() {
                self.check_states(group)?;
                self.check_logs(group)?;
            }
        }
        self.check_merged()?;
        self.check_old_states()?;
        self.check_refused()?;
        self.put_to_lives()?;
        self.check_history()?;
        self.check_weight()
    }

    /// The logs of a group hold the same, down to every byte, where more than one of them has an entry.
    pub(super) fn check_logs(&self, group: GroupId) -> Verdict {
        let mut known: Option<(u64, Log)> = None;
        for member in self.members_of(group) {
            let host = &self.hosts[member as usize];
            let node = host.node.as_ref();
            let node = node.filter(|_| !host.is_outcast && !host.is_dead);
            let found = node.and_then(|node| Some((node, node.replica(group)?)));
            let Some((node, (core, fault))) = found else {
                continue;
            };
            if fault.is_some() || core.is_witness() {
                continue; // Its log is damaged, or has no payloads.
            }
            let entries = match node.entries(group) {
                Ok(entries) => entries,
                Err(_) if host.damage.may_hit(group) => continue,
                Err(error) => {
                    let what = format!("node {member} can't read its log: {error}");
                    return Err(broken("equal logs", group, what));
                }
            };
            let (base, last) = (core.base().index, core.last().index);
            let log = Log {
                base,
                last,
                entries,
            };
            let before = known.as_ref().map(|(node, log)| (*node, log));
            if let Some(what) = log.differs(before) {
                let what = format!("node {member}: {what}");
                return Err(broken("equal logs", group, what));
            }
            // The longest is kept, so that every entry is compared that two of them have.
            known = known
                .filter(|(_, before)| before.base <= base)
                .or(Some((member, log)));
        }
        Ok(())
    }

    /// The state machines of a group hold the same.
    pub(super) fn check_states(&mut self, group: GroupId) -> Verdict {
        let members = self.members_of(group);
        let leads_as_preferred = members.iter().any(|member| {
            let node = self.hosts[*member as usize].node.as_ref();
            let core = node.and_then(|node| node.replica(group));
            core.is_some_and(|(core, _)| {
                let preferred = core.configuration().preferred();
                core.role() == Role::Leader && preferred == Some(NodeId(*member))
            })
        });
        self.counts.preferred += u64::from(leads_as_preferred);
        let life = members.iter().find_map(|member| {
            let node = self.hosts[*member as usize].node.as_ref()?;
            let (core, _) = node.replica(group)?;
            (core.role() == Role::Leader).then(|| node.life(group))?
        });
        let life = life.unwrap_or_default().get();
        let newest = self.checks[group.0 as usize - 1].newest_applied(life);
        let leaders = members.iter().filter(|member| {
            let node = self.hosts[**member as usize].node.as_ref();
            let core = node.and_then(|node| node.replica(group));
            core.is_some_and(|(core, fault)| fault.is_none() && core.role() == Role::Leader)
        });
        if leaders.count() != 1 {
            return Err(broken("one leader at the end", group, self.describe(group)));
        }
        for member in members {
            let host = &mut self.hosts[member as usize];
            if host.is_outcast || host.is_dead || host.has_damaged(group) {
                continue;
            }
            let Some(node) = &mut host.node else { continue };
            if node
                .replica(group)
                .is_some_and(|(core, _)| core.is_witness())
            {
                continue; // It has no state.
            }
            let handle = node.node().group(group.0);
            let mut read = Box::pin(handle.read(Read::LOCAL, bytes::Bytes::new()));
            let mut context = Context::from_waker(Waker::noop());
            let mut answer = read.as_mut().poll(&mut context);
            for worker in 0..node.workers() {
                while node.work(worker) {}
            }
            if answer.is_pending() {
                answer = read.as_mut().poll(&mut context);
            }
            let digest = newest.map_or(0, |entry| entry.digest).to_le_bytes();
            if !matches!(&answer, Poll::Ready(Ok(found)) if found[..] == digest) {
                return Err(broken(
                    "equal states",
                    group,
                    format!("node {member} answers {answer:?}, but {newest:?} was applied"),
                ));
            }
        }
        Ok(())
    }

    /// One copy of each register could have given all answers.
    fn check_history(&mut self) -> Verdict {
        for (register, operations) in self.clients.history.by_key() {
            let found = match is_register(&operations) {
                true => zones(&operations).err(),
                false => {
                    let found = search(&operations, SEARCH_BUDGET);
                    self.counts.searched += 1;
                    self.counts.undecided += u64::from(matches!(found, Found::Undecided));
                    match found {
                        Found::Violation(violation) => Some(violation),
                        Found::Linearizable | Found::Undecided => None,
                    }
                }
            };
            if let Some(violation) = found {
                let group = group_of(register);
                return Err(broken("linearizability", group, violation.to_string()));
            }
        }
        Ok(())
    }

    /// A storm in which nothing was done proves nothing, whatever comes after it.
    fn check_weight(&self) -> Verdict {
        let faults = self.stormed.faults_of(Fault::breaks_something);
        let vacuous = |what: String| {
            Err(Failure {
                checker: "vacuous",
                what,
                group: None,
            })
        };
        if !self.stormed.has_operations() {
            let (done, read) = (self.stormed.acknowledged, self.stormed.queries);
            return vacuous(format!("only {done} operations and {read} reads"));
        }
        if self.plan.fault_us > 0 && faults < FEWEST_FAULTS {
            return vacuous(format!("only {faults} faults of nodes, disks and links"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use polyraft_raft::Term;
    use polyraft_storage::EntryKind;

    use super::*;

    fn log(base: u64, payloads: &[&str]) -> Log {
        let entries = (base + 1..)
            .zip(payloads)
            .map(|(index, payload)| LoggedEntry {
                index: Index(index),
                term: Term(1),
                kind: EntryKind::Normal,
                payload: payload.as_bytes().to_vec(),
            });
        Log {
            base: Index(base),
            last: Index(base + payloads.len() as u64),
            entries: entries.collect(),
        }
    }

    #[test]
    fn logs_are_compared_where_both_have_entries() {
        let whole = log(3, &["a", "b", "c"]);
        assert_eq!(whole.differs(None), None);
        for equal in [log(3, &["a", "b", "c"]), log(5, &["c"]), log(6, &[])] {
            assert_eq!(equal.differs(Some((2, &whole))), None);
        }
        let other_end = log(3, &["a", "b"]);
        let other_byte = log(4, &["b", "d"]);
        let mut other_term = log(4, &["b", "c"]);
        other_term.entries[0].term = Term(2);
        let mut hole = log(3, &["a", "b", "c"]);
        hole.entries.remove(1);
        for different in [other_end, other_byte, other_term, hole] {
            assert!(different.differs(Some((2, &whole))).is_some());
        }
    }
}
