//! What must hold after every step of a cluster, whatever scripts and random runs do with it. It changes nothing but what it
//! remembers: who has led, and what was committed.

use polyraft_raft::*;

use super::Cluster;

impl Cluster {
    /// Election safety and leader completeness.
    pub(super) fn check_claim(&mut self, id: NodeId, claim: &ClaimChange) {
        let leader = *self.leaders.entry(claim.term).or_insert(id);
        assert_eq!(leader, id, "two leaders in {}", claim.term);
        assert!(!self.is_witness(id), "{id} leads, and stores no payload");
        let log = &self.nodes[&id].log;
        assert!(
            log.starts_with(&self.committed),
            "the leader of {} lacks committed entries",
            claim.term
        );
    }

    /// State machine safety; and what commits is on a majority of disks.
    pub(super) fn check_apply(&mut self, id: NodeId, apply: &Apply) {
        for at in apply.first.0 as usize - 1..apply.end.0 as usize - 1 {
            let entry = self.nodes[&id].log[at];
            assert_eq!(
                self.nodes[&id].disk_log.get(at),
                Some(&entry),
                "{id} applies what its disk lacks"
            );
            if let Some(&known) = self.committed.get(at) {
                assert_eq!(known, entry, "{id} applies another entry at {}", at + 1);
                continue;
            }
            let holds = |n: NodeId| self.nodes[&n].disk_log.get(at) == Some(&entry);
            // Under the members that its leader counted, which are not known here.
            let mut known = self.configurations.values().chain([&self.configuration]);
            assert!(
                known.any(|members| members.has_quorum(holds)),
                "{id} commits {} without a durable quorum",
                at + 1
            );
            let mut stored = self.ids().into_iter().filter(|n| holds(*n));
            assert!(
                stored.any(|n| !self.is_witness(n)),
                "{id} commits {}, which nobody stores",
                at + 1
            );
            self.committed.push(entry);
        }
    }

    /// A voter without a live, claiming leader, whoever follows one that does not claim, and a leader with a live follower
    /// behind, have a deadline.
    pub(super) fn check_deadline(&self, id: NodeId) {
        let (group, alive) = (self.group(id), &self.nodes[&id].alive);
        let needs = match group.role() {
            Role::Leader => alive
                .iter()
                .filter_map(|n| group.progress(n))
                .any(|p| p.matched < group.last().index),
            _ => match group.leader() {
                Some(leader) => {
                    !alive.contains(leader) || !group.is_claimed_by(leader, group.term())
                }
                None => {
                    group.configuration().is_voter(id)
                        && !group.is_witness()
                        && group.last().index >= self.nodes[&id].removed_at
                }
            },
        };
        assert!(
            !needs || group.deadline().is_some(),
            "{id} waits for ever: {group:?}"
        );
    }

    /// Log matching: where two logs have an entry of the same term, they are equal up to there.
    pub fn check_logs(&self) {
        for a in self.nodes.values() {
            for b in self.nodes.values().filter(|b| b.id > a.id) {
                let meets = |at: &usize| a.log[*at].term == b.log[*at].term;
                let common = a.log.len().min(b.log.len());
                if let Some(at) = (0..common).rev().find(meets) {
                    assert!(
                        a.log[..=at] == b.log[..=at],
                        "the logs of {} and {} differ",
                        a.id,
                        b.id
                    );
                }
            }
        }
    }
}
