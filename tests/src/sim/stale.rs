//! Reads of old state: what they were answered must have been the state of the group at a moment that is not older than they
//! allowed. It must judge by when the world saw something committed, and never by what a node says of itself.

use std::collections::BTreeMap;

use polyraft::{GroupId, Index};

use super::checks::{Verdict, broken};
use super::machine::Look;
use super::world::{World, unlocal};

/// All that is known of reads of old state.
#[derive(Default)]
pub(super) struct Stale {
    /// By group and life: how far was committed, and when that was seen. Both grow.
    commits: BTreeMap<(GroupId, u32), Vec<(u64, Index)>>,
    seen: Vec<Seen>,
}

/// A state that a read was answered from.
struct Seen {
    node: u64,
    group: GroupId,
    look: Look,
    asked_at: u64,
    /// It has to be the state of this moment or of a later one.
    since: u64,
}

impl Stale {
    /// So much is committed now.
    pub(super) fn note_commit(&mut self, group: GroupId, life: u32, now: u64, through: Index) {
        let commits = self.commits.entry((group, life)).or_default();
        if commits.last().is_none_or(|(_, last)| *last < through) {
            commits.push((now, through));
        }
    }

    /// What was committed before a moment.
    fn committed_before(&self, group: GroupId, life: u32, moment: u64) -> Index {
        let Some(commits) = self.commits.get(&(group, life)) else {
            return Index::ZERO;
        };
        let before = commits.partition_point(|(at, _)| *at < moment);
        before
            .checked_sub(1)
            .map_or(Index::ZERO, |at| commits[at].1)
    }
}

impl World {
    /// The moment of which a state has to be that a node is asked for now. The node measures the age with its own clock.
    pub(super) fn oldest_allowed(&self, node: u64, max_lag: u64) -> u64 {
        if max_lag > 2 * self.now {
            return 0;
        }
        let lag = unlocal(max_lag, self.hosts[node as usize].ppm);
        // Its clock tells whole microseconds.
        self.now.saturating_sub(lag.saturating_add(2))
    }

    /// A read of old state was answered.
    pub(super) fn old_state_seen(
        &mut self,
        node: u64,
        group: GroupId,
        (asked_at, since): (u64, u64),
        look: &Look,
    ) {
        self.stale.seen.push(Seen {
            node,
            group,
            look: look.clone(),
            asked_at,
            since,
        });
    }

    /// Everything that was read was there, and was not older than allowed. Comes last: what was committed is applied by then.
    pub(super) fn check_old_states(&mut self) -> Verdict {
        for seen in std::mem::take(&mut self.stale.seen) {
            let (node, group, look) = (seen.node, seen.group, &seen.look);
            let Look {
                applied,
                digest,
                life,
                ..
            } = *look;
            let told = |what: String| {
                let (asked_at, since) = (seen.asked_at, seen.since);
                let what = format!(
                    "node {node} was asked at {asked_at} for a state since {since}, and answered with {look:?}: {what}"
                );
                Err(broken("old states", group, what))
            };
            if let Some(over) = self.ends.over_at(group, life)
                && over < seen.since
            {
                return told(format!("that life was over at {over}"));
            }
            let owed = self.stale.committed_before(group, life, seen.since);
            let newest = self.stale.committed_before(group, life, seen.asked_at);
            let checks = self.checks[group.0 as usize - 1].of(life);
            if !checks.was_state(applied, digest) {
                return told("the group never had that state".to_owned());
            }
            if let Some(missing) = checks.next_applied(applied, owed) {
                return told(format!("{missing:?} was committed before"));
            }
            self.counts.old_states += 1;
            let is_behind = checks.next_applied(applied, newest).is_some();
            self.counts.outdated_states += u64::from(is_behind);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_committed_in_a_moment_is_owed_only_to_later_ones() {
        let mut stale = Stale::default();
        for (at, through) in [(10, 1), (20, 1), (30, 4)] {
            stale.note_commit(GroupId(1), 0, at, Index(through));
        }
        let owed = |moment| stale.committed_before(GroupId(1), 0, moment).0;
        assert_eq!([0, 10, 11, 30, 31].map(owed), [0, 0, 1, 1, 4]);
        assert_eq!(stale.committed_before(GroupId(1), 1, 31), Index::ZERO);
    }
}
