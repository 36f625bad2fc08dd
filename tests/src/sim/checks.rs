//! What must be true at every step, checked from outside: one leader a term, one history per group, nothing promised
//! before it is durable, nothing committed without a quorum. It must look only at what a step has touched.

mod messages;
#[cfg(test)]
pub(super) mod tests;

use polyraft::{GroupId, Index, NodeId, Role, SurvivingGroup, Term};
use polyraft_raft::{Configuration, Group, LogPosition, TermRun};
use polyraft_storage::{Lsn, RecoveredGroup};
use rustc_hash::FxHashMap;
use std::collections::BTreeMap;

use super::machine::{Applied, Born, Keeping, Kept, Restored};

/// Something that must never happen, has.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failure {
    /// Which rule was broken.
    pub checker: &'static str,
    /// How.
    pub what: String,
    /// Whose events tell the story.
    pub group: Option<GroupId>,
}

pub(super) type Verdict = Result<(), Failure>;

/// Says that a rule is broken in a group.
pub(super) fn broken(checker: &'static str, group: GroupId, what: String) -> Failure {
    Failure {
        checker,
        what,
        group: Some(group),
    }
}

/// What was seen of one replica in its present life.
#[derive(Clone, Copy, Default, Debug)]
struct Seen {
    term: Term,
    vote: Option<NodeId>,
    committed: Index,
    applied: Index,
    /// The last entry that the state machine reported.
    machine: Index,
    /// It had its log on the disk through here.
    durable: Index,
    /// Once these batches are on its disk, so are its term and vote. None: the log has not taken them.
    voted_in: Option<Lsn>,
}

/// What a replica has told others, and must know for ever.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Promise {
    /// It has spoken in this term.
    pub(super) term: Term,
    /// The vote that it gave, and when.
    vote: Option<(Term, NodeId)>,
    /// It holds the log through here.
    pub(super) matched: LogPosition,
    /// It said so in this term: only a leader of a later one may have it cut.
    acknowledged_in: Term,
}

/// What a replica found on its disk when its node was started.
#[derive(Clone, Copy, Default, Debug)]
struct FoundThere {
    /// Entries through here are known to be committed.
    commit: Index,
    /// And through here, purged: the state machine has taken them.
    base: Index,
    term: Term,
    vote: Option<NodeId>,
    /// The end of its log.
    last: Index,
}

/// What is known of one group, all nodes together.
#[derive(Default, Debug)]
pub(super) struct GroupChecks {
    leaders: BTreeMap<Term, NodeId>,
    /// By node and term: who got the vote.
    votes: FxHashMap<(NodeId, Term), NodeId>,
    /// Where each term's entries begin, and which term is before them: the same in every log.
    runs: BTreeMap<Term, (Index, Term)>,
    /// What is committed, as the first node to know it told.
    committed: Vec<TermRun>,
    pub(super) committed_through: Index,
    /// How far was committed, by the term whose leader did it. Both grow.
    commits: Vec<(Term, Index)>,
    /// By index: what state machines applied.
    entries: Vec<Option<Applied>>,
    /// By operation: where it was applied.
    requests: FxHashMap<u64, Index>,
    seen: Vec<Seen>,
    /// By node: its replica was removed, and there is no other yet.
    is_out: Vec<bool>,
    /// By node: its replica stores no payload.
    is_witness: Vec<bool>,
    /// By node: the members as its replica saw them the last time.
    members: Vec<Option<Configuration>>,
    pub(super) promises: Vec<Promise>,
    /// By node: what its replica found the last time.
    found: Vec<FoundThere>,
    /// By node: its replica's log was damaged the last time that somebody looked, and may be another one since.
    is_damaged: Vec<bool>,
    /// By node: its state machine is on stable storage as of here.
    saved: Vec<Index>,
}

/// What is known of a group's lives, each by itself: nothing of one may show in another.
#[derive(Default, Debug)]
pub(super) struct LifeChecks {
    nodes: u64,
    lives: BTreeMap<u32, GroupChecks>,
}

impl LifeChecks {
    pub(super) fn new(nodes: u64) -> Self {
        LifeChecks {
            nodes,
            lives: BTreeMap::new(),
        }
    }

    /// One life.
    pub(super) fn of(&mut self, life: u32) -> &mut GroupChecks {
        let nodes = self.nodes;
        let checks = self.lives.entry(life);
        checks.or_insert_with(|| GroupChecks::new(nodes))
    }

    /// In which life an operation was applied.
    pub(super) fn life_of(&self, request: u64) -> Option<u32> {
        let applied = |checks: &GroupChecks| checks.requests.contains_key(&request);
        let mut lives = self.lives.iter();
        lives
            .find(|(_, checks)| applied(checks))
            .map(|(life, _)| *life)
    }

    /// A client was told that its operation is at `index`.
    pub(super) fn acknowledged(&self, group: GroupId, index: Index, request: u64) -> Verdict {
        let life = self.life_of(request).unwrap_or(0);
        let unknown = GroupChecks::default();
        let checks = self.lives.get(&life).unwrap_or(&unknown);
        checks.acknowledged(group, index, request)
    }

    /// A client was told that its operation was not taken, and never will be.
    pub(super) fn refused(&self, group: GroupId, request: u64) -> Verdict {
        match self.life_of(request) {
            None => Ok(()),
            Some(life) => {
                let what = format!("operation {request:x} was refused, and applied in life {life}");
                Err(broken("acknowledged operations", group, what))
            }
        }
    }

    /// A node begins anew; whatever its replicas promised it must have found on its disk, unless their life was over: then it must
    /// have found that.
    pub(super) fn recovered(
        &mut self,
        group: GroupId,
        node: u64,
        found: Option<&RecoveredGroup>,
        over: Option<u32>,
    ) -> Verdict {
        for (life, checks) in &mut self.lives {
            let is_over = over.is_some_and(|over| over >= *life)
                || found.is_some_and(|found| found.life.get() > *life);
            if !is_over {
                let found = found.filter(|found| found.life.get() == *life);
                checks.recovered(group, node, found)?;
            }
        }
        Ok(())
    }

    /// A fault has hit the log of a node's replica, which is out of service: it may come back without that log.
    pub(super) fn damaged(&mut self, node: u64) {
        for checks in self.lives.values_mut() {
            checks.damaged(node);
        }
    }

    /// A node begins anew: what it knew in memory is gone.
    pub(super) fn reborn(&mut self, node: u64) {
        for checks in self.lives.values_mut() {
            checks.reborn(node);
        }
    }

    /// One life goes on with less: see [`GroupChecks::goes_on_with`].
    pub(super) fn goes_on_with(
        &mut self,
        life: u32,
        group: &SurvivingGroup,
    ) -> Result<Vec<Applied>, Failure> {
        self.of(life).goes_on_with(group)
    }

    /// The last entry that any state machine took in a life.
    pub(super) fn newest_applied(&self, life: u32) -> Option<Applied> {
        self.lives.get(&life)?.newest_applied()
    }
}

/// A replica's way to answer whether it holds a position durably.
pub(super) type Holds<'a> = &'a dyn Fn(u64, LogPosition) -> Option<bool>;

impl GroupChecks {
    pub(super) fn new(nodes: u64) -> Self {
        GroupChecks {
            seen: vec![Seen::default(); nodes as usize + 1],
            is_out: vec![false; nodes as usize + 1],
            is_witness: vec![false; nodes as usize + 1],
            members: vec![None; nodes as usize + 1],
            promises: vec![Promise::default(); nodes as usize + 1],
            found: vec![FoundThere::default(); nodes as usize + 1],
            is_damaged: vec![false; nodes as usize + 1],
            saved: vec![Index::ZERO; nodes as usize + 1],
            ..GroupChecks::default()
        }
    }

    /// The group begins with a state, behind a place that no leader of its own has led to.
    pub(super) fn begin_at(&mut self, born: &Born) {
        let at = born.index;
        self.committed.push(TermRun {
            term: Term::ZERO,
            first: at,
        });
        self.committed_through = at;
        self.entries.resize(at.0 as usize + 1, None);
        self.entries[at.0 as usize] = Some(Applied {
            node: born.node,
            group: born.child,
            life: 0,
            index: at,
            term: Term::ZERO,
            request: 0,
            digest: born.digest,
            is_refused: false,
        });
    }

    /// The term of a committed index.
    fn committed_term(&self, index: Index) -> Option<Term> {
        if index > self.committed_through || index == Index::ZERO {
            return None;
        }
        let run = self.committed.partition_point(|run| run.first <= index);
        Some(self.committed[run.checked_sub(1)?].term)
    }

    /// A replica was removed. It keeps its votes in mind, and nothing else.
    pub(super) fn left(&mut self, node: u64) {
        self.is_out[node as usize] = true;
        self.promises[node as usize].matched = LogPosition::ZERO;
        self.found[node as usize] = FoundThere::default();
    }

    /// See [`LifeChecks::damaged`]. Term and vote stay as they were promised.
    fn damaged(&mut self, node: u64) {
        self.is_damaged[node as usize] = true;
        let found = &mut self.found[node as usize];
        (found.commit, found.base, found.last) = (Index::ZERO, Index::ZERO, Index::ZERO);
    }

    /// A replica has moved. `holds` answers for the other replicas.
    pub(super) fn observe(&mut self, core: &Group, holds: Holds<'_>) -> Verdict {
        let (group, node) = (core.id(), core.node());
        if std::mem::take(&mut self.is_out[node.0 as usize]) {
            self.reborn(node.0);
        }
        self.check_monotonic(core)?;
        self.check_log(core)?;
        if core.role() == Role::Leader {
            self.check_leader(core)?;
        }
        let committed = core.committed();
        if committed > self.committed_through {
            self.check_commit(core, holds)?;
        } else if let Some(term) = self.committed_term(committed)
            && core.term_at(committed) != Some(term)
        {
            return Err(broken(
                "state machine safety",
                group,
                format!(
                    "node {node} takes index {committed} for committed at term {:?}, but term {term} was committed there",
                    core.term_at(committed)
                ),
            ));
        }
        let before = &mut self.members[node.0 as usize];
        if before.as_ref() != Some(core.configuration()) {
            if core.configuration().witnesses_could_decide() {
                return Err(broken(
                    "witnesses",
                    group,
                    format!("on node {node} the members are {:?}", core.configuration()),
                ));
            }
            *before = Some(core.configuration().clone());
        }
        self.is_witness[node.0 as usize] = core.is_witness();
        // A newer leader may have cut what was acknowledged to an older one. What lies below the place of a witness did not need
        // that, and the place itself is acknowledged once it is durable.
        let matched = self.promises[node.0 as usize].matched;
        let is_committed = self.committed_term(matched.index) == Some(matched.term);
        let promise = &mut self.promises[node.0 as usize];
        let is_passed = core.is_witness() && matched.index < core.base().index;
        if !is_passed && core.term_at(matched.index) != Some(matched.term) {
            let may_lack_it = core.term() > promise.acknowledged_in && !is_committed
                || matched.index < core.base().index
                || self.is_damaged[node.0 as usize];
            if !may_lack_it {
                let what = format!(
                    "node {node} has a log through {} in term {}, after {promise:?}",
                    core.last(),
                    core.term()
                );
                return Err(broken("durable promises", group, what));
            }
            promise.matched = position(core, committed.min(core.durable()));
        }
        self.is_damaged[node.0 as usize] = false;
        Ok(())
    }

    /// What a replica is since the last look, it has written into batches through this one; none: the log takes nothing.
    pub(super) fn wrote(&mut self, node: u64, batch: Option<Lsn>) {
        let seen = &mut self.seen[node as usize];
        seen.voted_in = seen.voted_in.or(batch);
    }

    fn check_monotonic(&mut self, core: &Group) -> Verdict {
        let (group, node) = (core.id(), core.node());
        let seen = &mut self.seen[node.0 as usize];
        let now = Seen {
            term: core.term(),
            vote: core.vote(),
            committed: core.committed(),
            applied: core.applied(),
            machine: seen.machine,
            durable: core.durable(),
            voted_in: seen
                .voted_in
                .filter(|_| (seen.term, seen.vote) == (core.term(), core.vote())),
        };
        let before = std::mem::replace(seen, now);
        let vote_changed =
            before.term == now.term && before.vote.is_some() && before.vote != now.vote;
        if now.term < before.term
            || now.committed < before.committed
            || now.applied < before.applied
            || vote_changed
        {
            return Err(broken(
                "monotonic cursors",
                group,
                format!("node {node} went from {before:?} to {now:?}"),
            ));
        }
        Ok(())
    }

    /// Two logs with the same entry have the same entries before it: each term begins at one place, behind one term.
    fn check_log(&mut self, core: &Group) -> Verdict {
        let base = core.base();
        let mut before = base.term;
        for (at, run) in core.term_runs().iter().enumerate() {
            // The base may cut the first run.
            if at > 0 || base.index == Index::ZERO {
                let place = (run.first, before);
                let known = *self.runs.entry(run.term).or_insert(place);
                if known != place {
                    return Err(broken(
                        "log matching",
                        core.id(),
                        format!(
                            "on node {} the entries of term {} begin at {place:?}, elsewhere at {known:?}",
                            core.node(),
                            run.term
                        ),
                    ));
                }
            }
            before = run.term;
        }
        Ok(())
    }

    fn check_leader(&mut self, core: &Group) -> Verdict {
        let (group, node, term) = (core.id(), core.node(), core.term());
        if core.is_witness() {
            return Err(broken(
                "witnesses",
                group,
                format!("node {node} leads term {term} and stores no payload"),
            ));
        }
        let known = self.leaders.insert(term, node);
        match known {
            Some(known) if known != node => {
                return Err(broken(
                    "election safety",
                    group,
                    format!("nodes {known} and {node} lead term {term}"),
                ));
            }
            Some(_) => return Ok(()),
            None => {}
        }
        // Whatever was committed in an earlier term is in the log of every later leader.
        let through = self.committed_before(term);
        let lacks = |run: &&TermRun| {
            let end = self.end_of(run).min(through);
            // What it has purged it had.
            run.first <= through && end >= core.base().index && core.term_at(end) != Some(run.term)
        };
        match self.committed.iter().find(lacks) {
            None => Ok(()),
            Some(run) => Err(broken(
                "leader completeness",
                group,
                format!(
                    "node {node} leads term {term} with a log that ends at {}, without committed index {} of term {}",
                    core.last(),
                    self.end_of(run).min(through),
                    run.term
                ),
            )),
        }
    }

    /// How far leaders of terms before `term` have committed. Entries of such terms that a later leader committed are not
    /// among it: a leader of `term` who wakes up after that one never had to have them.
    fn committed_before(&self, term: Term) -> Index {
        let before = self.commits.iter().rfind(|(by, _)| *by < term);
        before.map_or(Index::ZERO, |(_, through)| *through)
    }

    /// Takes note that the leader of `reached.term` has committed so far: only entries of its own term commit by counting.
    fn note_commit(&mut self, reached: LogPosition) {
        match self.commits.last_mut() {
            Some((term, through)) if *term == reached.term => *through = reached.index,
            _ => self.commits.push((reached.term, reached.index)),
        }
    }

    /// The last committed index of a run.
    fn end_of(&self, run: &TermRun) -> Index {
        let next = self
            .committed
            .partition_point(|other| other.first <= run.first);
        match self.committed.get(next) {
            Some(next) => next.first.prev(),
            None => self.committed_through,
        }
    }

    /// More is committed than anybody knew.
    fn check_commit(&mut self, core: &Group, holds: Holds<'_>) -> Verdict {
        let (group, node) = (core.id(), core.node());
        let reached = position(core, core.committed());
        let old = self.committed_through;
        if let Some(term) = self.committed_term(old)
            && core.term_at(old) != Some(term)
        {
            return Err(broken(
                "state machine safety",
                group,
                format!(
                    "node {node} commits {reached} over another entry at {old} than the committed one of term {term}"
                ),
            ));
        }
        // Who the members are may have changed in the same turn, before or after that.
        let before = self.members[node.0 as usize].as_ref();
        let in_force: Vec<&Configuration> =
            before.into_iter().chain([core.configuration()]).collect();
        let has = |member: &u64| {
            let promised = self.promises[*member as usize].matched;
            // Entries of a term are all or none before a place of that term.
            let promised = promised.term == reached.term && promised.index >= reached.index;
            holds(*member, reached).unwrap_or(promised)
        };
        let nodes = 1..self.promises.len() as u64;
        let holders: Vec<u64> = nodes.filter(has).collect();
        let is_majority = |half: &[NodeId]| {
            let count = half.iter().filter(|node| holders.contains(&node.0)).count();
            half.is_empty() || 2 * count > half.len()
        };
        let decide = |members: &&Configuration| {
            is_majority(members.voters()) && is_majority(members.outgoing())
        };
        if !in_force.iter().any(decide) {
            return Err(broken(
                "commit quorum",
                group,
                format!(
                    "node {node} commits {reached}, which only {holders:?} hold of {in_force:?} durably"
                ),
            ));
        }
        if holders
            .iter()
            .all(|holder| self.is_witness[*holder as usize])
        {
            return Err(broken(
                "witnesses",
                group,
                format!("node {node} commits {reached}, which only the witnesses {holders:?} hold"),
            ));
        }
        for holder in &holders {
            let promise = &mut self.promises[*holder as usize];
            if promise.matched < reached {
                promise.matched = reached;
            }
        }
        for run in core.term_runs() {
            if self
                .committed
                .last()
                .is_none_or(|last| last.term < run.term)
                && run.first <= reached.index
            {
                self.committed.push(*run);
            }
        }
        self.committed_through = reached.index;
        self.note_commit(reached);
        Ok(())
    }

    /// A node begins a new life; whatever it promised it must have found on its disk.
    pub(super) fn recovered(
        &mut self,
        group: GroupId,
        node: u64,
        found: Option<&RecoveredGroup>,
    ) -> Verdict {
        let promise = self.promises[node as usize];
        let lost = |what: String| {
            Err(broken(
                "durable promises",
                group,
                format!("node {node} {what}"),
            ))
        };
        let Some(found) = found else {
            let has_promised = promise.term > Term(0) && !self.is_out[node as usize];
            return match has_promised {
                true => lost(format!("lost the group, after {promise:?}")),
                false => Ok(()),
            };
        };
        if let Some(fault) = &found.fault {
            return lost(format!("finds its log damaged: {fault}"));
        }
        let state = found.hard_state;
        if state.term < promise.term {
            return lost(format!(
                "has term {} after speaking in {}",
                state.term, promise.term
            ));
        }
        if let Some((term, candidate)) = promise.vote
            && state.term == term
            && state.vote != Some(candidate)
        {
            return lost(format!(
                "has vote {:?} of term {term} after giving it to {candidate}",
                state.vote
            ));
        }
        let matched = promise.matched;
        let run = found.runs.partition_point(|run| run.first <= matched.index);
        let term = run.checked_sub(1).map(|run| found.runs[run].term);
        let is_held = self.is_damaged[node as usize]
            || matched.index <= found.base.index
            || matched.index <= found.last && term == Some(matched.term);
        if !is_held {
            return lost(format!(
                "has a log through {} with {:?} there, after acknowledging {matched}",
                found.last, term
            ));
        }
        let now = FoundThere {
            commit: state.commit,
            base: found.base.index,
            term: state.term,
            vote: state.vote,
            last: found.last,
        };
        let before = std::mem::replace(&mut self.found[node as usize], now);
        if now.commit < before.commit || now.base < before.base {
            return Err(broken(
                "monotonic cursors",
                group,
                format!("node {node} found {before:?} at one start and {now:?} at the next"),
            ));
        }
        Ok(())
    }

    /// A node begins a new life: what it knew in memory is gone.
    pub(super) fn reborn(&mut self, node: u64) {
        self.seen[node as usize] = Seen::default();
        self.members[node as usize] = None;
    }

    /// A state machine took an entry.
    pub(super) fn applied(&mut self, entry: Applied) -> Verdict {
        let group = entry.group;
        if self.committed_term(entry.index) != Some(entry.term) {
            return Err(broken(
                "state machine safety",
                group,
                format!("applied although it is not what is committed: {entry:?}"),
            ));
        }
        let seen = &mut self.seen[entry.node as usize];
        if seen.machine >= entry.index {
            return Err(broken(
                "apply order",
                group,
                format!(
                    "index {} came after {}: {entry:?}",
                    entry.index, seen.machine
                ),
            ));
        }
        seen.machine = entry.index;
        let at = entry.index.0 as usize;
        if self.entries.len() <= at {
            self.entries.resize(at + 1, None);
        }
        match self.entries[at] {
            None => self.entries[at] = Some(entry),
            Some(known)
                if known
                    == (Applied {
                        node: known.node,
                        ..entry
                    }) => {}
            Some(known) => {
                return Err(broken(
                    "state machine safety",
                    group,
                    format!("{known:?} and {entry:?}"),
                ));
            }
        }
        if entry.is_refused {
            return Ok(());
        }
        let first = *self.requests.entry(entry.request).or_insert(entry.index);
        if first != entry.index {
            return Err(broken(
                "applied once",
                group,
                format!(
                    "operation {:x} is applied at {first} and at {}",
                    entry.request, entry.index
                ),
            ));
        }
        Ok(())
    }

    /// A state machine was given the state of a snapshot: it must be the one that others had there.
    pub(super) fn restored(&mut self, restored: Restored) -> Verdict {
        let Restored {
            node,
            group,
            last,
            applied,
            digest,
            ..
        } = restored;
        let seen = &mut self.seen[node as usize];
        if seen.machine > last {
            return Err(broken(
                "apply order",
                group,
                format!("{restored:?} came after {}", seen.machine),
            ));
        }
        seen.machine = last;
        let known = self.entries.get(applied.0 as usize).copied().flatten();
        let lacks = self.next_applied(applied, last).is_some();
        if !self.was_state(applied, digest) || applied > last || lacks {
            return Err(broken(
                "snapshots",
                group,
                format!("{restored:?}, but {known:?} was applied"),
            ));
        }
        Ok(())
    }

    /// A client was told that its operation is at `index`.
    pub(super) fn acknowledged(&self, group: GroupId, index: Index, request: u64) -> Verdict {
        let entry = self.entries.get(index.0 as usize).copied().flatten();
        match entry {
            Some(entry) if entry.request == request => Ok(()),
            other => Err(broken(
                "acknowledged operations",
                group,
                format!(
                    "operation {request:x} was acknowledged at {index}, where {other:?} was applied"
                ),
            )),
        }
    }

    /// The group lost its quorum for good and goes on with the log of one survivor: from where that leaves what was committed, there
    /// is another history. Everything before stays under all rules. Returns what was applied and is lost.
    fn goes_on_with(&mut self, group: &SurvivingGroup) -> Result<Vec<Applied>, Failure> {
        let id = GroupId(group.group);
        let chosen = group.replicas.iter().find(|one| one.node == group.chosen);
        let chosen = chosen.expect("the chosen one is among the replicas");
        let kept = self.common_with(LogPosition {
            term: Term(chosen.last_term),
            index: Index(chosen.last_index),
        });
        // Whoever has purged the beginning of its log had it from what was committed.
        let known = Index(group.known_committed);
        let kept = kept.unwrap_or(known);
        let may_lose = group.may_have_lost || group.known_lost > 0;
        let wanted = if may_lose {
            known
        } else {
            self.committed_through
        };
        if kept < wanted.min(self.committed_through) {
            let what = format!(
                "it was said to keep everything through {wanted}, and keeps what is before {kept}: {group:?}"
            );
            return Err(broken("recoveries", id, what));
        }
        if kept >= self.committed_through {
            return Ok(Vec::new());
        }
        self.committed_through = kept;
        self.committed.retain(|run| run.first <= kept);
        for (_, through) in &mut self.commits {
            *through = kept.min(*through);
        }
        self.requests.retain(|_, index| *index <= kept);
        let left = self.entries.len().min(kept.0 as usize + 1);
        let lost = self.entries.split_off(left);
        Ok(lost.into_iter().flatten().collect())
    }

    /// How far a log that ends at `last` is what was committed; none if nobody has seen where it leaves that.
    fn common_with(&self, mut last: LogPosition) -> Option<Index> {
        loop {
            let run = self.committed.iter().find(|run| run.term == last.term);
            if let Some(run) = run.filter(|run| run.first <= last.index) {
                return Some(last.index.min(self.end_of(run)));
            }
            if last.index == Index::ZERO {
                return Some(Index::ZERO);
            }
            let (first, before) = *self.runs.get(&last.term)?;
            last = LogPosition {
                term: before,
                index: first.prev(),
            };
        }
    }

    /// A state machine was opened, or its state was saved or removed. What was saved stays.
    pub(super) fn kept(&mut self, kept: Kept) -> Verdict {
        let saved = &mut self.saved[kept.node as usize];
        match kept.what {
            Keeping::Opened(at) | Keeping::Saved(at) if at < *saved => {
                let what = format!("{kept:?}, after it was saved as of {saved}");
                return Err(broken("saved state machines", kept.group, what));
            }
            Keeping::Opened(at) => {
                let seen = &mut self.seen[kept.node as usize];
                seen.machine = seen.machine.max(at);
            }
            Keeping::Saved(at) => *saved = at,
            Keeping::Removed => *saved = Index::ZERO,
        }
        Ok(())
    }

    /// Whether an entry is what is committed at its place.
    pub(super) fn is_committed(&self, entry: LogPosition) -> bool {
        self.committed_term(entry.index) == Some(entry.term)
    }

    /// Whether state machines had that state when they had taken everything through `applied`.
    pub(super) fn was_state(&self, applied: Index, digest: u64) -> bool {
        match self.entries.get(applied.0 as usize).copied().flatten() {
            Some(entry) => entry.digest == digest,
            None => applied == Index::ZERO && digest == 0,
        }
    }

    /// The first entry behind `after` and up to `through` that state machines took.
    pub(super) fn next_applied(&self, after: Index, through: Index) -> Option<Applied> {
        let next = self.entries.iter().skip(after.0 as usize + 1).flatten();
        let mut next = next.take_while(|entry| entry.index <= through);
        next.next().copied()
    }

    /// The last entry that any state machine took.
    pub(super) fn newest_applied(&self) -> Option<Applied> {
        self.entries.last().copied().flatten()
    }
}

fn position(core: &Group, index: Index) -> LogPosition {
    LogPosition {
        term: core.term_at(index).unwrap_or_default(),
        index,
    }
}
