//! Groups that are destroyed and created again while clients go on: who asks for it, what is known of the lives of each id, and
//! to which life each operation belongs. It must never let an operation pass that saw a life after its end was confirmed.

use std::collections::BTreeMap;
use std::task::{Context, Poll, Waker};

use polyraft::{Error, GroupId};

use super::checks::{Verdict, broken};
use super::machine::Command;
use super::pending::Done;
use super::plan::MILLI;
use super::world::{Host, World};
use crate::history::{Answer, OperationId, Outcome};

/// All that is known of lives.
#[derive(Default)]
pub(super) struct Ends {
    runs: Vec<Run>,
    /// By group.
    groups: Vec<Known>,
    /// Every operation of a client.
    pub(super) asked: Vec<Asked>,
}

/// Groups that are destroyed together and created again together.
struct Run {
    groups: Vec<u64>,
    /// Who hosts them afterwards.
    members: Vec<u64>,
    is_destroyed: bool,
    /// A creation was asked for of which nobody was told that it is done: it may be, all the same.
    may_be_created: bool,
    /// Under way on this node.
    attempt: Option<(u64, Done)>,
    retry_at: u64,
}

#[derive(Clone, Default)]
struct Known {
    is_changing: bool,
    /// The life that was created last, as far as somebody was told.
    life: u32,
    /// When its creation was asked for, by life.
    begun: BTreeMap<u32, u64>,
    /// When somebody was told that a life is over.
    over: BTreeMap<u32, u64>,
}

/// What a client asked for.
#[derive(Clone, Copy)]
pub(super) struct Asked {
    pub(super) id: OperationId,
    pub(super) group: GroupId,
    pub(super) key: u8,
    pub(super) request: u64,
    pub(super) command: Command,
    pub(super) is_query: bool,
}

/// The register of a key in one life of a group.
pub(super) fn register(group: GroupId, key: u8, life: u32) -> u64 {
    u64::from(life) << 32 | group.0 << 8 | u64::from(key)
}

/// The group that a register belongs to.
pub(super) fn group_of(register: u64) -> GroupId {
    GroupId(register >> 8 & 0xFF_FFFF)
}

impl Ends {
    pub(super) fn new(groups: usize) -> Self {
        Ends {
            groups: vec![Known::default(); groups],
            ..Ends::default()
        }
    }

    fn known(&self, group: GroupId) -> &Known {
        &self.groups[group.0 as usize - 1]
    }

    /// Whether a group is being destroyed or created again.
    pub(super) fn is_changing(&self, group: GroupId) -> bool {
        self.known(group).is_changing
    }

    /// When somebody was told that a life of a group is over.
    pub(super) fn over_at(&self, group: GroupId, life: u32) -> Option<u64> {
        self.known(group).over.get(&life).copied()
    }

    /// The life that a group may have had for somebody who asked and was answered in that time, if only one is possible.
    fn only_life(&self, group: GroupId, from: u64, to: u64) -> Option<u32> {
        let known = self.known(group);
        let is_possible = |life: &u32| {
            let begun = known.begun.get(life).copied().unwrap_or(0);
            let over = known.over.get(life).copied().unwrap_or(u64::MAX);
            begun <= to && over >= from
        };
        let mut possible = (0..=known.life + 1)
            .filter(|life| (*life == 0 || known.begun.contains_key(life)) && is_possible(life));
        let only = possible.next();
        only.filter(|_| possible.next().is_none())
    }

    /// A node is gone, and with it what was asked of it.
    pub(super) fn lost(&mut self, node: u64) {
        for run in &mut self.runs {
            let lost = run.attempt.take_if(|(at, _)| *at == node);
            run.may_be_created |= run.is_destroyed && lost.is_some();
        }
    }
}

impl World {
    /// Some groups are going to be destroyed, and created again, perhaps on other nodes.
    pub(super) fn ask_for_end(&mut self) -> bool {
        let count = self.plan.members.len() as u64;
        let mut groups: Vec<u64> = Vec::new();
        for _ in 0..self.rng.within(1, 6) {
            let group = GroupId(self.rng.within(1, count));
            let is_there = self.clients.is_created(group);
            let may_end = is_there
                && !self.ends.is_changing(group)
                && (self.plan.ends_churning || !self.plan.churns(group))
                && !self.plan.splits(group);
            if may_end && !groups.contains(&group.0) {
                groups.push(group.0);
            }
        }
        if groups.is_empty() {
            return false;
        }
        let like = GroupId(self.rng.within(1, count));
        for group in &groups {
            self.ends.groups[*group as usize - 1].is_changing = true;
            self.clients.has_served[*group as usize - 1] = false;
        }
        self.ends.runs.push(Run {
            groups,
            members: self.plan.members_of(like).to_vec(),
            is_destroyed: false,
            may_be_created: false,
            attempt: None,
            retry_at: self.now,
        });
        self.go_on_with_ends();
        true
    }

    /// Asks somebody for what comes next.
    pub(super) fn go_on_with_ends(&mut self) {
        for at in 0..self.ends.runs.len() {
            let run = &self.ends.runs[at];
            if run.attempt.is_some() || run.retry_at > self.now {
                continue;
            }
            let node = self.rng.within(1, self.plan.nodes);
            let host = &self.hosts[node as usize];
            let may_ask = !host.is_outcast && self.peers.is_resident(node);
            let Some(sim) = host.node.as_ref().filter(|_| may_ask) else {
                continue;
            };
            let (handle, groups) = (sim.node().clone(), run.groups.clone());
            let is_destroyed = run.is_destroyed;
            let members = run.members.clone();
            self.trace.event(self.now, node, || {
                let what = if is_destroyed { "create" } else { "destroy" };
                format!("is asked to {what} {groups:?} on {members:?}")
            });
            let done: Done = match is_destroyed {
                false => Box::pin(async move { handle.destroy_groups(groups).await }),
                true => Box::pin(async move { handle.create_groups(groups, &members).await }),
            };
            self.ends.runs[at].attempt = Some((node, done));
            self.poll_ends(node);
            self.schedule(node);
        }
    }

    /// Looks whether what a node was asked for is done.
    pub(super) fn poll_ends(&mut self, node: u64) {
        let now = self.now;
        let mut runs = std::mem::take(&mut self.ends.runs);
        for run in &mut runs {
            let Some((_, attempt)) = run.attempt.as_mut().filter(|(at, _)| *at == node) else {
                continue;
            };
            let mut context = Context::from_waker(Waker::noop());
            let Poll::Ready(done) = attempt.as_mut().poll(&mut context) else {
                continue;
            };
            run.attempt = None;
            run.retry_at = now + self.rng.within(1, 50) * MILLI;
            self.trace.event(now, node, || {
                format!("is done with {:?}: {done:?}", run.groups)
            });
            match done {
                Ok(()) if run.is_destroyed => {
                    for group in run.groups.drain(..) {
                        self.has_begun_again(group);
                    }
                }
                Ok(()) => {
                    for group in &run.groups {
                        let at = *group as usize - 1;
                        let known = &mut self.ends.groups[at];
                        known.over.entry(known.life).or_insert(now);
                        known.begun.insert(known.life + 1, now);
                        self.plan.members[at].clone_from(&run.members);
                    }
                    run.is_destroyed = true;
                }
                // An attempt that was given up had created it, and it has other members since.
                Err(Error::GroupExists { group, .. })
                    if run.may_be_created && self.plan.churns(group) =>
                {
                    run.groups.retain(|other| *other != group.0);
                    let next = self.ends.known(group).life + 1;
                    let hosts = (1..=self.plan.nodes).map(|id| &self.hosts[id as usize]);
                    let may_have_it = |host: &Host| match &host.node {
                        Some(node) => node.life(group).is_some_and(|life| life.get() >= next),
                        // Who told of it may be down by now.
                        None => !host.is_dead,
                    };
                    if !hosts.into_iter().any(may_have_it) {
                        let what = format!("it is there already, and nobody has its life {next}");
                        self.fail(broken("lives", group, what));
                    }
                    self.has_begun_again(group.0);
                }
                Err(_) => run.may_be_created |= run.is_destroyed,
            }
        }
        runs.retain(|run| !run.groups.is_empty());
        self.ends.runs.append(&mut runs);
    }

    /// Somebody was told that the next life of a group has begun.
    fn has_begun_again(&mut self, group: u64) {
        let known = &mut self.ends.groups[group as usize - 1];
        (known.life, known.is_changing) = (known.life + 1, false);
        self.counts.lives += 1;
    }

    /// No operation was applied anywhere of which a client was told that it was not taken.
    pub(super) fn check_refused(&self) -> Verdict {
        let commands = self.ends.asked.iter().filter(|asked| !asked.is_query);
        for asked in commands {
            if self.clients.history.operation(asked.id).outcome == Outcome::Failed {
                for (group, checks) in (1..).map(GroupId).zip(&self.checks) {
                    checks.refused(group, asked.request)?;
                }
            }
        }
        Ok(())
    }

    /// Puts each operation to the life that it belongs to. None may have seen one that was confirmed to be over when it began.
    pub(super) fn put_to_lives(&mut self) -> Verdict {
        for asked in std::mem::take(&mut self.ends.asked) {
            let Asked { id, group, key, .. } = asked;
            if self.plan.splits(group) {
                continue; // It has one life, and its keys go from group to group.
            }
            let operation = *self.clients.history.operation(id);
            let checks = &self.checks[group.0 as usize - 1];
            let seen = match operation.outcome {
                Outcome::Ok(Answer::Value(value)) if asked.is_query => Some(value),
                _ => None,
            };
            let life = match (operation.outcome, seen) {
                (Outcome::Failed, _) => continue,
                // Values are the numbers of the operations that wrote them.
                (_, Some(value)) if value > 0 => checks.life_of(value),
                (_, Some(_)) => {
                    let returned = operation.returned_us.unwrap_or(u64::MAX);
                    let only = self.ends.only_life(group, operation.invoked_us, returned);
                    if only.is_none() {
                        self.clients.history.forget(id);
                        continue;
                    }
                    only
                }
                (_, None) => checks.life_of(asked.request),
            };
            let Some(life) = life else {
                let is_ok = matches!(operation.outcome, Outcome::Ok(_));
                if is_ok {
                    let what = format!("nobody has applied what it is about: {operation}");
                    return Err(broken("lives", group, what));
                }
                // It was never applied in any life, and never will be.
                self.clients.history.forget(id);
                continue;
            };
            let is_ok = matches!(operation.outcome, Outcome::Ok(_));
            if let Some(over) = self.ends.known(group).over.get(&life)
                && is_ok
                && operation.invoked_us > *over
            {
                let what = format!(
                    "life {life} was over at {over}: {:?} {operation}",
                    asked.command
                );
                return Err(broken("lives", group, what));
            }
            self.clients.history.relabel(id, register(group, key, life));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::checks::tests::{applied, four_committed};
    use super::super::world::tests::calm;
    use super::*;
    use crate::history::Call;

    const GROUP: GroupId = GroupId(1);
    const REQUEST: u64 = 71;

    /// A world in which a client wrote from `asked_at` on, and was told that it is done.
    fn written(asked_at: u64) -> World {
        let mut world = calm();
        let history = &mut world.clients.history;
        let key = register(GROUP, 3, 0);
        let id = history.invoke(asked_at, 1, key, Call::Write(REQUEST));
        history.ok(id, asked_at + 9, Answer::Done);
        world.ends.asked.push(Asked {
            id,
            group: GROUP,
            key: 3,
            request: REQUEST,
            command: Command::Write(REQUEST),
            is_query: false,
        });
        world
    }

    fn rule(verdict: Verdict) -> Option<&'static str> {
        verdict.err().map(|failure| failure.checker)
    }

    #[test]
    fn an_answer_about_what_no_life_has_applied_is_noticed() {
        let mut world = written(5);
        assert_eq!(rule(world.put_to_lives()), Some("lives"));
        let mut world = written(5);
        *world.checks[0].of(0) = four_committed();
        let entry = applied(1, 2, REQUEST);
        world.checks[0].of(0).applied(entry).unwrap();
        assert_eq!(rule(world.put_to_lives()), None);
    }

    #[test]
    fn an_answer_of_a_life_that_was_over_before_the_question_is_noticed() {
        for (asked_at, broken) in [(99, None), (100, None), (101, Some("lives"))] {
            let mut world = written(asked_at);
            *world.checks[0].of(0) = four_committed();
            let entry = applied(1, 2, REQUEST);
            world.checks[0].of(0).applied(entry).unwrap();
            world.ends.groups[0].over.insert(0, 100);
            assert_eq!(rule(world.put_to_lives()), broken, "{asked_at}");
        }
    }

    #[test]
    fn a_group_that_is_said_to_be_there_and_that_nobody_has_is_noticed() {
        for (are_dead, broken) in [(false, None), (true, Some("lives"))] {
            let mut world = calm();
            let there = Err(Error::GroupExists {
                group: GROUP,
                members: Vec::new(),
            });
            world.ends.runs.push(Run {
                groups: vec![GROUP.0],
                members: vec![1, 2, 3],
                is_destroyed: true,
                may_be_created: true,
                attempt: Some((1, Box::pin(async { there }))),
                retry_at: 0,
            });
            // Whoever is down for a while may have it.
            world
                .hosts
                .iter_mut()
                .for_each(|host| host.is_dead = are_dead);
            world.poll_ends(1);
            assert_eq!(world.broken_rule(), broken);
        }
    }
}
