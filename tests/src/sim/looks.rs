//! What follows from a step of a node: its frames are brought on their way, and the rules look at what it did. It must look
//! at everything before the next event happens.

use polyraft::sim::{SimNode, SimRecord, read_frame};
use polyraft::{GroupId, Index, NodeId};
use polyraft_raft::LogPosition;

use super::checks::{Failure, Verdict, broken};
use super::machine::{self, Keeping};
use super::plan::Fault;
use super::world::{Host, World};

impl World {
    /// A part of a node has run: what it did is checked and carried on.
    pub(super) fn after_step(&mut self, id: u64) {
        if self.hosts[id as usize].node.is_none() {
            return;
        }
        if self.has_lost_power(id) {
            return self.power_cut(id);
        }
        let promised = self.look_at_frames(id);
        self.look_at_machines();
        self.look_at_replicas(id);
        self.look_at_misdirection(id);
        self.look_at_disk(id);
        self.look_at_health(id);
        self.take_completions(id);
        self.poll_creations(id);
        self.poll_ends(id);
        self.poll_splits(id);
        self.poll_merges(id);
        self.poll_peers(id);
        self.poll_snapshots(id);
        if self.has_lost_power(id) {
            return self.power_cut(id);
        }
        if promised && self.hosts[id as usize].cut_after_promise {
            self.fired(Fault::PowerCutAfterPromise);
            return self.power_cut(id);
        }
        self.poll_drains(id);
        self.schedule(id);
    }

    pub(super) fn has_lost_power(&self, id: u64) -> bool {
        let host = &self.hosts[id as usize];
        host.cut_at.is_some_and(|cut| host.disk.operations() >= cut)
    }

    /// Checks what a step sent and brings it on its way. Returns whether a promise was among it.
    fn look_at_frames(&mut self, id: u64) -> bool {
        let mut sent = std::mem::take(&mut self.sent);
        self.hosts[id as usize].port.take_sent(&mut sent);
        let mut promised = false;
        for sent in sent.drain(..) {
            let mut has_forward = false;
            let to = NodeId(sent.to);
            let mut verdict = Ok(());
            let node = self.hosts[id as usize].node.as_ref();
            let node = node.expect("it has just run");
            let checks = &mut self.checks;
            read_frame(&sent.frame, |record| match record {
                SimRecord::Group { group, message } => {
                    promised |= matches!(
                        message,
                        polyraft_raft::Message::Matched { .. }
                            | polyraft_raft::Message::VoteReply { granted: true, .. }
                    );
                    if self.quiet.contains(&group) {
                        let what = format!(
                            "node {id} wakes it with {message:?}, because another node is gone"
                        );
                        verdict = Err(broken("quiescence", group, what));
                    }
                    if let Some((core, _)) = node.replica(group)
                        && verdict.is_ok()
                    {
                        let life = node.life(group).unwrap_or_default().get();
                        let (_, durable) = node.batches(group);
                        let checks = checks[group.0 as usize - 1].of(life);
                        verdict = checks.sent(core, to, &message, durable);
                    }
                }
                SimRecord::Forward { is_numbered, .. } => has_forward |= !is_numbered,
                SimRecord::Other => {}
            });
            self.judge(verdict);
            self.trace.note_bytes(&sent.frame);
            if self.trace.is_on() {
                self.tell_frame("sends", id, sent.to, &sent.frame);
            }
            // A plain forward that came twice would be two proposals; nothing in the engine claims otherwise.
            self.route(id, sent, !has_forward);
        }
        self.sent = sent;
        promised
    }

    pub(super) fn look_at_machines(&mut self) {
        for born in machine::take_born() {
            self.trace.note(born.digest);
            self.trace.group(self.now, born.node, born.parent, || {
                format!("splits off {born:?}")
            });
            self.child_is_born(born);
        }
        for shed in machine::take_shed() {
            self.part_is_shed(shed);
        }
        for taken in machine::take_taken() {
            self.trace.note(taken.digest);
            self.trace.group(self.now, taken.node, taken.source, || {
                format!("becomes a part of another group: {taken:?}")
            });
            self.group_is_merged(taken);
        }
        for kept in machine::take_kept() {
            if let Keeping::Opened(_) = kept.what {
                self.machine_opened(kept.node, kept.group, kept.life);
            }
            // Who lost its data, or got old data back, has lost what was saved.
            if !self.hosts[kept.node as usize].is_outcast {
                let checks = self.checks[kept.group.0 as usize - 1].of(kept.life);
                let verdict = checks.kept(kept);
                self.judge(verdict);
            }
        }
        let mut applied = std::mem::take(&mut self.applied);
        machine::take_applied(&mut applied);
        for entry in applied.drain(..) {
            self.trace.note(entry.digest);
            let checks = self.checks[entry.group.0 as usize - 1].of(entry.life);
            let verdict = checks.applied(entry);
            let verdict = verdict.and_then(|()| self.merges.check_applied(&entry));
            let verdict = verdict.and_then(|()| self.check_not_out(&entry));
            self.judge(verdict);
            self.trace.group(self.now, entry.node, entry.group, || {
                format!("applies {entry:?}")
            });
        }
        self.applied = applied;
        for restored in machine::take_restored() {
            self.trace.note(restored.digest);
            self.counts.restored += 1;
            let checks = self.checks[restored.group.0 as usize - 1].of(restored.life);
            let verdict = checks.restored(restored);
            self.judge(verdict);
            self.trace
                .group(self.now, restored.node, restored.group, || {
                    format!("restores {restored:?}")
                });
        }
        for struck in machine::take_struck() {
            self.machine_failed(struck);
        }
    }

    pub(super) fn look_at_replicas(&mut self, id: u64) {
        let mut stepped = std::mem::take(&mut self.stepped);
        let node = self.hosts[id as usize].node.as_mut();
        let node = node.expect("it has just run");
        for shard in 0..node.shards() {
            node.take_stepped(shard, &mut stepped);
        }
        let mut causes = Vec::new();
        if self.trace.is_on() {
            for shard in 0..node.shards() {
                node.take_causes(shard, &mut causes);
            }
        }
        for group in stepped.drain(..) {
            let verdict = self.look_at_replica(id, group);
            self.judge(verdict);
            self.tell_replica(id, group, &mut causes);
            let core = self.hosts[id as usize].node.as_ref();
            let core = core.and_then(|node| node.replica(group));
            if core.is_some_and(|(core, _)| core.last().index == Index::ZERO) {
                self.child_is_blank(id, group);
            }
        }
        self.stepped = stepped;
    }

    fn look_at_replica(&mut self, id: u64, group: GroupId) -> Verdict {
        let host = &self.hosts[id as usize];
        if host.is_outcast {
            // Nobody hears it, and what it promised was promised by the data that it lost.
            return Ok(());
        }
        let Some(node) = &host.node else {
            return Ok(());
        };
        let Some((core, fault)) = node.replica(group) else {
            if let Some(life) = node.removed_from(group) {
                self.checks[group.0 as usize - 1].of(life.get()).left(id);
                self.trace
                    .group(self.now, id, group, || "has no replica any more".to_owned());
            }
            return Ok(());
        };
        if let Some(fault) = fault {
            if host.damage.may_hit(group) {
                self.checks[group.0 as usize - 1].damaged(id);
                return Ok(());
            }
            if machine::has_poisoned_entry(id, group)
                || host
                    .node
                    .as_ref()
                    .is_some_and(|node| node.fault().is_some())
            {
                return Ok(());
            }
            if fault.contains(machine::POISONED) && self.is_out(id, group) {
                return Ok(());
            }
            return Err(broken(
                "quarantine",
                group,
                format!("node {id} takes its replica out of service: {fault}"),
            ));
        }
        if !node.is_durable(group, core.durable()) {
            let index = core.durable();
            let what =
                format!("node {id} takes {index} for durable, which is on its way to the disk");
            return Err(broken("durable log", group, what));
        }
        let hosts = &self.hosts;
        let life_at = |host: &Host| host.node.as_ref().and_then(|node| node.life(group));
        let life = life_at(host);
        let holds = |member: u64, position: LogPosition| -> Option<bool> {
            let host = &hosts[member as usize];
            // What was destroyed was there when it was promised.
            let node = host.node.as_ref().filter(|_| !host.is_outcast)?;
            let (core, _) = node.replica(group).filter(|_| life_at(host) == life)?;
            // What it has purged was committed, so it is the same everywhere.
            let has = position.index < core.base().index
                || core.term_at(position.index) == Some(position.term);
            let holds = has && core.durable() >= position.index;
            // What rot has taken was there when it was promised.
            (holds || !host.damage.may_hit(group)).then_some(holds)
        };
        let life = life.unwrap_or_default().get();
        let checks = self.checks[group.0 as usize - 1].of(life);
        checks.observe(core, &holds)?;
        let (batch, _) = node.batches(group);
        checks.wrote(id, batch);
        if self.plan.reads_old_state {
            let through = checks.committed_through;
            self.stale.note_commit(group, life, self.now, through);
        }
        Ok(())
    }

    /// Writes down how a replica stands, and what it was stepped with, which it takes out of `causes`: a turn touches a replica
    /// more than once.
    fn tell_replica(&mut self, id: u64, group: GroupId, causes: &mut Vec<(GroupId, String)>) {
        if !self.trace.wants(group) {
            return;
        }
        let node = self.hosts[id as usize].node.as_ref();
        let of_it: Vec<String> = causes
            .extract_if(.., |(of, _)| *of == group)
            .map(|(_, cause)| cause)
            .collect();
        let Some((core, fault)) = node.and_then(|node| node.replica(group)) else {
            let told = || format!("is gone (after {})", of_it.join(", "));
            return self.trace.group(self.now, id, group, told);
        };
        let stands = || {
            format!(
                "{:?} of term {} vote {:?} leader {:?} last {} durable {} committed {} applied {}{}",
                core.role(),
                core.term(),
                core.vote().map(|node| node.0),
                core.leader().map(|node| node.0),
                core.last(),
                core.durable(),
                core.committed(),
                core.applied(),
                fault.map_or("", |_| ", out of service")
            )
        };
        self.trace.replica(self.now, id, group, &of_it, stands);
    }

    /// Whatever a misdirected write has hit is proved by the next batch behind it.
    fn look_at_misdirection(&mut self, id: u64) {
        let host = &mut self.hosts[id as usize];
        let (Some(unproven), Some(node)) = (&mut host.unproven, &host.node) else {
            return;
        };
        let durable = node.wal(unproven.lane).durable();
        match unproven.since {
            None if !host.disk.is_misdirecting() => {
                unproven.since = Some(durable);
                host.damage.hit_lane(unproven.lane);
                self.fired(Fault::Misdirect);
                self.trace
                    .event(self.now, id, || "a write went astray".to_owned());
            }
            Some(since) if durable > since => host.unproven = None,
            _ => {}
        }
    }

    /// Errors of a disk count when they strike.
    pub(super) fn look_at_disk(&mut self, id: u64) {
        let host = &mut self.hosts[id as usize];
        let now = host.disk.failed();
        let before = std::mem::replace(&mut host.failed, now);
        if now.0 > before.0 {
            self.fired(Fault::WriteError);
        }
        if now.1 > before.1 {
            self.fired(Fault::SyncError);
        }
    }

    /// A node that has stopped serving needs a reason; somebody starts it again.
    fn look_at_health(&mut self, id: u64) {
        let host = &self.hosts[id as usize];
        let Some(reason) = host.node.as_ref().and_then(SimNode::fault) else {
            return;
        };
        if !host.has_bad_disk && !host.damage.may_stop_node() {
            return self.fail(Failure {
                checker: "node health",
                what: format!("node {id} stopped serving: {reason}"),
                group: None,
            });
        }
        self.trace
            .event(self.now, id, || format!("stopped serving: {reason}"));
        self.kill(id);
    }

    pub(super) fn tell_frame(&mut self, verb: &str, node: u64, peer: u64, frame: &bytes::Bytes) {
        let mut told = Vec::new();
        read_frame(frame, |record| {
            if let SimRecord::Group { group, message } = record {
                told.push((group, message));
            }
        });
        for (group, message) in told {
            self.trace.group(self.now, node, group, || {
                let word = if verb == "sends" { "to" } else { "from" };
                format!("{verb} {word} node {peer}: {message:?}")
            });
        }
    }
}
