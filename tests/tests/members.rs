//! Members changed while groups serve, over real connections.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::time::Duration;

use polyraft::{Error, Index, MemberChange, Membership, NodeId, Read};
use polyraft_tests::{Cluster, small_config, until};

const WITHIN: Duration = Duration::from_secs(20);

fn voter(node: u64) -> MemberChange {
    MemberChange::Voter(NodeId(node))
}

fn learner(node: u64) -> MemberChange {
    MemberChange::Learner(NodeId(node))
}

fn remove(node: u64) -> MemberChange {
    MemberChange::Remove(NodeId(node))
}

fn members(voters: &[u64], learners: &[u64]) -> Membership {
    let nodes = |ids: &[u64]| ids.iter().copied().map(NodeId).collect();
    Membership {
        voters: nodes(voters),
        outgoing: Vec::new(),
        learners: nodes(learners),
        witnesses: Vec::new(),
        preferred: None,
    }
}

/// Proposes at whatever node takes it.
async fn propose(cluster: &Cluster, group: u64, payload: String) -> Index {
    let mut index = Index::ZERO;
    until("a proposal is committed", async || {
        for id in cluster.running() {
            if let Ok(committed) = cluster.node(id).group(group).propose(payload.clone()).await {
                index = committed.index;
                return true;
            }
        }
        false
    })
    .await;
    index
}

/// What was written, each once: a proposal whose outcome was open may be there twice.
async fn written(cluster: &Cluster, id: u64, group: u64) -> BTreeSet<Vec<u8>> {
    let applied = cluster.applied(id, group).await;
    applied.values().map(|payload| payload.to_vec()).collect()
}

async fn has_applied(cluster: &Cluster, id: u64, group: u64, through: Index) {
    until("a replica has applied an entry", async || {
        let status = cluster.node(id).group(group).status().await;
        status.is_ok_and(|status| status.applied >= through)
    })
    .await;
}

/// Changes the members of a group while somebody proposes one thing after the other. Gives what was proposed after the change had
/// been asked for and committed before it was over.
async fn change_while_it_serves(
    cluster: &Cluster,
    group: u64,
    changes: &[MemberChange],
) -> (Membership, Vec<String>) {
    let mut outcome = None;
    until("somebody leads through the change", async || {
        let Some((leader, _)) = cluster.node(1).group(group).leader() else {
            return false;
        };
        let handle = cluster.node(leader.0).group(group);
        let is_over = Cell::new(false);
        let changing = async {
            let changed = handle.change_members(changes.iter().copied(), WITHIN).await;
            is_over.set(true);
            changed
        };
        let proposing = async {
            let mut during = Vec::new();
            for round in 0.. {
                let payload = format!("during {round}");
                let proposed = handle.propose(payload.clone()).await;
                match proposed {
                    _ if is_over.get() => break,
                    Ok(_) => during.push(payload),
                    Err(_) => tokio::task::yield_now().await,
                }
            }
            during
        };
        // The change is asked for first.
        let (changed, during) = tokio::join!(biased; changing, proposing);
        match changed {
            Ok(changed) => outcome = Some((changed, during)),
            Err(
                Error::NotLeader { .. }
                | Error::Unknown { .. }
                | Error::ChangeUnderWay { .. }
                | Error::NoSuchGroup { .. },
            ) => {}
            Err(error) => panic!("{error}"),
        }
        outcome.is_some()
    })
    .await;
    outcome.expect("a change that is over")
}

#[tokio::test]
async fn a_group_moves_to_other_nodes_while_it_serves() {
    let mut cluster = Cluster::start(4, small_config()).await;
    cluster
        .node(1)
        .create_groups(0..8, &[1, 2, 3])
        .await
        .unwrap();
    cluster.sees(1, 4, true).await;
    let mut meanwhile = 0;
    for group in 0..8 {
        let mut newest = propose(&cluster, group, "before".to_owned()).await;
        let (changed, during) =
            change_while_it_serves(&cluster, group, &[voter(4), remove(3)]).await;
        assert_eq!(changed, members(&[1, 2, 4], &[]), "group {group}");
        meanwhile += during.len();
        for round in 0..3 {
            newest = propose(&cluster, group, format!("after {round}")).await;
        }
        has_applied(&cluster, 4, group, newest).await;
        // Nothing was lost on the way to the new member.
        let written = written(&cluster, 4, group).await;
        let after = (0..3).map(|round| format!("after {round}"));
        for payload in after.chain(during).chain(["before".to_owned()]) {
            assert!(written.contains(payload.as_bytes()), "{payload}");
        }
        let again = cluster.change_members(group, &[voter(4), remove(3)]).await;
        assert_eq!(again, Ok(members(&[1, 2, 4], &[])), "it is so already");
    }
    // A change may be over before anything is committed in it, but not each of them.
    assert!(meanwhile > 0, "nothing was committed while members changed");
    // The new members are found again after a restart of everybody.
    cluster.stop_all().await;
    for id in 1..=4 {
        cluster.open(id).await.unwrap();
    }
    for group in 0..8 {
        propose(&cluster, group, "restarted".to_owned()).await;
        let status = cluster.node(4).group(group).status().await.unwrap();
        assert_eq!(status.members, members(&[1, 2, 4], &[]), "group {group}");
    }
    cluster.stop_all().await;
}

#[tokio::test]
async fn a_dead_node_is_replaced_by_one_that_gets_a_snapshot() {
    let mut config = small_config();
    config.snapshot.keep_entries = 0;
    let mut cluster = Cluster::start(4, config).await;
    cluster
        .node(1)
        .create_groups(0..1, &[1, 2, 3])
        .await
        .unwrap();
    for round in 0..200 {
        propose(&cluster, 0, format!("{round}")).await;
    }
    cluster.stop(2).await;
    let newest = propose(&cluster, 0, "without it".to_owned()).await;
    for id in [1, 3] {
        has_applied(&cluster, id, 0, newest).await;
        let group = cluster.node(id).group(0);
        let taken = group.snapshot().await.unwrap();
        until("the log before the snapshot is gone", async || {
            let status = group.status().await;
            status.is_ok_and(|status| status.purged >= taken.index)
        })
        .await;
    }
    let received = |id| cluster.node(id).status().counters.snapshots_received;
    assert_eq!(received(4), 0);
    let changed = cluster.change_members(0, &[voter(4), remove(2)]).await;
    assert_eq!(changed, Ok(members(&[1, 3, 4], &[])));
    assert!(received(4) > 0, "no log has the first entries");
    let newest = propose(&cluster, 0, "with another".to_owned()).await;
    has_applied(&cluster, 4, 0, newest).await;
    let handle = cluster.node(4).group(0);
    let read = handle.read(Read::Linearizable, "").await;
    assert!(read.is_ok(), "it is a member like any other: {read:?}");
    // With another of the first members gone, the new one is needed for every commit.
    cluster.stop(3).await;
    cluster.led(0..1).await;
    let newest = propose(&cluster, 0, "needs the new one".to_owned()).await;
    has_applied(&cluster, 1, 0, newest).await;
    assert_eq!(written(&cluster, 1, 0).await.len(), 203);
    cluster.stop_all().await;
}

#[tokio::test]
async fn a_removed_replica_ends_and_may_come_back_and_be_removed_again() {
    let mut cluster = Cluster::start(3, small_config()).await;
    cluster
        .node(1)
        .create_groups(0..1, &[1, 2, 3])
        .await
        .unwrap();
    for round in 0..3 {
        let changed = cluster.change_members(0, &[remove(3)]).await;
        assert_eq!(changed, Ok(members(&[1, 2], &[])), "round {round}");
        until("the removed node has no replica", async || {
            let status = cluster.node(3).group(0).status().await;
            matches!(status, Err(Error::NoSuchGroup { .. }))
        })
        .await;
        if round == 1 {
            // A restart does not bring it back.
            cluster.stop(3).await;
            cluster.open(3).await.unwrap();
            cluster.sees(1, 3, true).await;
            cluster.sees(2, 3, true).await;
            let status = cluster.node(3).group(0).status().await;
            assert!(matches!(status, Err(Error::NoSuchGroup { .. })));
        }
        propose(&cluster, 0, format!("{round}")).await;
        let changed = cluster.change_members(0, &[voter(3)]).await;
        assert_eq!(changed, Ok(members(&[1, 2, 3], &[])), "round {round}");
        until("all have what was written", async || {
            let mut all = true;
            for id in 1..=3 {
                all &= written(&cluster, id, 0).await.len() == round + 1;
            }
            all
        })
        .await;
    }
    cluster.stop_all().await;
}

#[tokio::test]
async fn a_node_that_was_down_learns_that_it_was_removed() {
    let mut cluster = Cluster::start(3, small_config()).await;
    cluster
        .node(1)
        .create_groups(0..4, &[1, 2, 3])
        .await
        .unwrap();
    for group in 0..4 {
        let changed = cluster.change_members(group, &[learner(3)]).await;
        assert_eq!(changed, Ok(members(&[1, 2], &[3])));
    }
    cluster.stop(3).await;
    for group in 0..4 {
        let changed = cluster.change_members(group, &[remove(3)]).await;
        assert_eq!(changed, Ok(members(&[1, 2], &[])));
    }
    cluster.open(3).await.unwrap();
    for group in 0..4 {
        until("it has no replica any more", async || {
            let status = cluster.node(3).group(group).status().await;
            matches!(status, Err(Error::NoSuchGroup { .. }))
        })
        .await;
    }
    cluster.stop_all().await;
}

#[tokio::test]
async fn a_voter_that_was_down_while_all_members_left_learns_that_it_was_removed() {
    let mut cluster = Cluster::start(5, small_config()).await;
    let groups = 0..4;
    cluster
        .node(1)
        .create_groups(groups.clone(), &[1, 2, 3])
        .await
        .unwrap();
    cluster.stop(3).await;
    let moves = [voter(4), voter(5), remove(1), remove(2), remove(3)];
    for group in groups.clone() {
        let changed = cluster.change_members(group, &moves).await;
        assert_eq!(changed, Ok(members(&[4, 5], &[])), "group {group}");
    }
    // Those whom it asks for their votes have no replica any more.
    cluster.open(3).await.unwrap();
    for group in groups {
        until("it has no replica any more", async || {
            let status = cluster.node(3).group(group).status().await;
            matches!(status, Err(Error::NoSuchGroup { .. }))
        })
        .await;
    }
    cluster.stop_all().await;
}

#[tokio::test]
async fn a_leader_that_is_removed_leaves_the_group_to_the_others() {
    let mut cluster = Cluster::start(3, small_config()).await;
    cluster
        .node(1)
        .create_groups(0..1, &[1, 2, 3])
        .await
        .unwrap();
    cluster.led(0..1).await;
    let leader = cluster.leader(1, 0);
    let left: Vec<u64> = (1..=3).filter(|id| *id != leader).collect();
    let changed = cluster
        .node(leader)
        .group(0)
        .change_members([remove(leader)], WITHIN)
        .await;
    assert_eq!(changed, Ok(members(&left, &[])));
    until("another one leads", async || {
        let seen = cluster.node(left[0]).group(0).leader();
        seen.is_some_and(|(node, _)| left.contains(&node.0))
    })
    .await;
    let handle = cluster.node(left[0]).group(0);
    handle.propose("without it").await.expect("a commit");
    cluster.stop_all().await;
}

#[tokio::test]
async fn a_second_change_is_refused_while_the_first_is_under_way() {
    let mut cluster = Cluster::start(4, small_config()).await;
    cluster
        .node(1)
        .create_groups(0..1, &[1, 2, 3])
        .await
        .unwrap();
    cluster.sees(1, 4, true).await;
    let mut was_refused = false;
    until("two changes come at once", async || {
        let Some((leader, _)) = cluster.node(1).group(0).leader() else {
            return false;
        };
        let leader = cluster.node(leader.0).group(0);
        let first = leader.change_members([learner(4)], WITHIN);
        let second = leader.change_members([MemberChange::Prefer(NodeId(1))], WITHIN);
        let (first, second) = tokio::join!(first, second);
        if let Err(error @ Error::ChangeUnderWay { group }) = &second {
            assert!(group.0 == 0 && error.is_retryable() && !error.may_have_committed());
            // It has not become a part of the first one, which ends as long as nobody else leads.
            if let Ok(changed) = first {
                assert_eq!(changed, members(&[1, 2, 3], &[4]));
                was_refused = true;
            }
        }
        for undone in [remove(4), MemberChange::Unprefer(NodeId(1))] {
            let _ = cluster.change_members(0, &[undone]).await;
        }
        was_refused
    })
    .await;
    cluster.stop_all().await;
}

#[tokio::test]
async fn a_change_that_is_in_the_log_when_the_time_is_over_may_come_yet() {
    let mut cluster = Cluster::start(4, small_config()).await;
    cluster
        .node(1)
        .create_groups(0..1, &[1, 2, 3])
        .await
        .unwrap();
    cluster.sees(1, 4, true).await;
    until("a change is in the log in no time", async || {
        let Some((leader, _)) = cluster.node(1).group(0).leader() else {
            return false;
        };
        let leader = cluster.node(leader.0).group(0);
        match leader.change_members([learner(4)], Duration::ZERO).await {
            Err(error @ Error::Unknown { .. }) => error.may_have_committed(),
            Err(error @ (Error::Members { .. } | Error::NotLeader { .. })) => {
                assert!(!error.may_have_committed());
                let status = leader.status().await.unwrap();
                assert_eq!(status.members, members(&[1, 2, 3], &[]), "{error}");
                false
            }
            other => panic!("{other:?}"),
        }
    })
    .await;
    until("it goes on without the caller", async || {
        let status = cluster.node(1).group(0).status().await.unwrap();
        status.members == members(&[1, 2, 3], &[4])
    })
    .await;
    cluster.stop_all().await;
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_and_changes_nothing() {
    let mut cluster = Cluster::start(3, small_config()).await;
    cluster.node(1).create_groups(0..1, &[1, 2]).await.unwrap();
    let cases: [(&[MemberChange], &str); 4] = [
        (&[voter(9)], "silent, or no peer"),
        (&[remove(1), remove(2)], "nobody would vote"),
        (&[learner(1), learner(2)], "nobody would vote"),
        (&[voter(3), remove(3)], "named twice"),
    ];
    for (changes, word) in cases {
        let refused = cluster.change_members(0, changes).await;
        assert!(
            matches!(&refused, Err(Error::Members { why }) if why.contains(word)),
            "{changes:?}: {refused:?}"
        );
    }
    let status = cluster.node(1).group(0).status().await.unwrap();
    assert_eq!(status.members, members(&[1, 2], &[]));
    let handle = cluster.node(1).group(5);
    let nobody = handle.change_members([voter(3)], WITHIN).await;
    assert!(
        matches!(nobody, Err(Error::NoSuchGroup { .. })),
        "{nobody:?}"
    );
    // A learner gets everything and is needed for nothing.
    let changed = cluster.change_members(0, &[learner(3)]).await;
    assert_eq!(changed, Ok(members(&[1, 2], &[3])));
    let newest = propose(&cluster, 0, "for the learner too".to_owned()).await;
    has_applied(&cluster, 3, 0, newest).await;
    cluster.stop(3).await;
    propose(&cluster, 0, "without the learner".to_owned()).await;
    cluster.stop_all().await;
}
