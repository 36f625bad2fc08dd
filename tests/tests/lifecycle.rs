//! Groups that are destroyed and created again over real QUIC: nothing of a life of a group's id shows in the next one, whoever
//! was down meanwhile.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use polyraft::{Error, GroupId, Life, MemberChange, Node, NodeId, Read, Tls};
use polyraft_tests::{Cluster, DEADLINE, Ledger, small_config, until};

const ALL: [u64; 3] = [1, 2, 3];

fn payload(number: u64) -> Bytes {
    Bytes::from(format!("proposal {number}"))
}

/// Proposes until it is surely committed.
async fn insist(cluster: &Cluster, asked: u64, group: u64, payload: &Bytes) {
    until("a proposal commits", async || {
        let group = cluster.node(asked).group(group);
        group.propose(payload.clone()).await.is_ok()
    })
    .await;
}

/// Which life of a group's id a node has.
async fn life(cluster: &Cluster, asked: u64, group: u64) -> Option<Life> {
    let status = cluster.node(asked).group(group).status().await;
    status.ok().map(|status| status.life)
}

fn listed(cluster: &Cluster, asked: u64) -> Vec<u64> {
    let groups = cluster.node(asked).groups(0, 1000);
    groups.into_iter().map(|group| group.0).collect()
}

/// Before, both calls began their groups, and one of them said so.
#[tokio::test]
async fn groups_that_two_callers_create_at_the_same_time_are_there_once() {
    let cluster = Cluster::start(5, small_config()).await;
    let (some, others) = ([1, 2, 3], [3, 4, 5]);
    let callers = [(1, 5), (2, 2), (5, 4), (3, 1), (4, 4), (5, 2)];
    for (round, (one, other)) in (0..).zip(callers) {
        let start = 100 * round;
        // Not only with the same groups.
        let (first, second) = (start..start + 20, start + 10 * (round % 2)..start + 30);
        let (one, other) = (cluster.node(one), cluster.node(other));
        let outcomes = tokio::join!(
            one.create_groups(first.clone(), &some),
            other.create_groups(second.clone(), &others),
        );
        let (groups, members, nobodys, error) = match outcomes {
            (Ok(()), Err(error)) => (first, some, second, error),
            (Err(error), Ok(())) => (second, others, first, error),
            both => panic!("{both:?}"),
        };
        let Error::GroupExists { group, members: of } = &error else {
            panic!("{error}");
        };
        assert!(groups.contains(&group.0));
        assert_eq!(*of, members.map(NodeId));
        until("it is served", async || {
            let node = cluster.node(members[0]);
            groups
                .clone()
                .all(|group| node.group(group).leader().is_some())
        })
        .await;
        for id in 1..=5 {
            let there: Vec<u64> = match members.contains(&id) {
                true => groups.clone().collect(),
                false => Vec::new(),
            };
            let all = groups.start.min(nobodys.start)..groups.end.max(nobodys.end);
            let here = listed(&cluster, id).into_iter();
            let here = here.filter(|group| all.contains(group));
            assert_eq!(here.collect::<Vec<_>>(), there, "node {id}");
        }
    }
    // Whoever wants the same has it.
    let create = |id| cluster.node(id).create_groups(1000..1020, &some);
    let outcomes = tokio::join!(create(1), create(3), create(3), create(5));
    assert_eq!(outcomes, (Ok(()), Ok(()), Ok(()), Ok(())));
    let life = life(&cluster, 1, 1000).await;
    assert_eq!(life, Some(Life::FIRST));
}

#[tokio::test]
async fn a_destroyed_group_is_gone_and_its_id_begins_anew_with_other_members() {
    let mut cluster = Cluster::start(4, small_config()).await;
    cluster.node(1).create_groups(0..4, &ALL).await.unwrap();
    until("members lead", async || {
        (0..4).all(|group| cluster.node(2).group(group).leader().is_some())
    })
    .await;
    for group in 0..4 {
        for number in 0..5 {
            insist(&cluster, 1, group, &payload(number)).await;
        }
    }
    // One that a client keeps.
    let kept = cluster.node(2).group(1);
    assert!(kept.leader().is_some());
    // While clients go on, a node without a replica is asked to destroy two of them.
    let is_over = AtomicBool::new(false);
    let (destroyed, outcomes) = tokio::join!(
        async {
            let destroyed = cluster.node(4).destroy_groups([1, 2]).await;
            is_over.store(true, Ordering::Release);
            destroyed
        },
        async {
            let mut outcomes = Vec::new();
            let mut number = 100;
            while !is_over.load(Ordering::Acquire) {
                let group = cluster.node(1 + number % 3).group(1);
                outcomes.push(group.propose(payload(number)).await);
                number += 1;
            }
            outcomes
        }
    );
    destroyed.unwrap();
    for outcome in outcomes {
        let is_known = match &outcome {
            Ok(_) | Err(Error::NoSuchGroup { .. } | Error::Unknown { .. }) => true,
            Err(error) => error.is_retryable(),
        };
        assert!(is_known, "{outcome:?}");
    }
    for id in ALL {
        assert_eq!(listed(&cluster, id), [0, 3]);
        assert_eq!(cluster.node(id).status().groups, 2);
        let group = cluster.node(id).group(1);
        assert_eq!((group.leader(), kept.leader()), (None, None));
        let gone = Err(Error::NoSuchGroup { group: GroupId(1) });
        assert_eq!(group.propose(payload(0)).await.map(|_| ()), gone);
        assert_eq!(
            group.read(Read::LOCAL, Bytes::new()).await.map(|_| ()),
            gone
        );
    }
    // Again: nothing happens. An id that was never used is no group.
    cluster.node(2).destroy_groups([1, 2]).await.unwrap();
    let unknown = cluster.node(2).destroy_groups([1, 77]).await;
    assert_eq!(unknown, Err(Error::NoSuchGroup { group: GroupId(77) }));

    let others = [2, 3, 4];
    cluster.node(1).create_groups(1..3, &others).await.unwrap();
    cluster.node(3).create_groups(1..3, &others).await.unwrap();
    for group in 1..3 {
        insist(&cluster, 4, group, &payload(7)).await;
        for id in others {
            until("the new group is everywhere", async || {
                cluster.applied(id, group).await.len() == 1
            })
            .await;
            let applied = cluster.applied(id, group).await;
            assert_eq!(applied.into_values().collect::<Vec<_>>(), [payload(7)]);
            assert_eq!(life(&cluster, id, group).await, Life::new(1));
        }
    }
    until("who kept a handle knows the new leader", async || {
        kept.leader().is_some()
    })
    .await;
    assert_eq!(listed(&cluster, 1), [0, 3]);
    assert_eq!(listed(&cluster, 2), [0, 1, 2, 3]);
    assert_eq!(cluster.node(2).groups(1, 2), [GroupId(1), GroupId(2)]);
    // The groups beside them went on.
    for group in [0, 3] {
        let applied = cluster.applied(1, group).await;
        assert_eq!(applied.len(), 5);
    }
    cluster.stop_all().await;
}

#[tokio::test]
async fn a_node_that_was_down_learns_that_a_life_is_over() {
    let mut cluster = Cluster::start(3, small_config()).await;
    cluster.node(1).create_groups(0..6, &ALL).await.unwrap();
    cluster.led(0..6).await;
    for group in 0..6 {
        insist(&cluster, 1, group, &payload(group)).await;
    }
    for group in 0..6 {
        cluster.agree(group, 1).await;
    }
    cluster.stop(3).await;
    // Three of them stay destroyed, three begin anew.
    cluster.node(1).destroy_groups(0..6).await.unwrap();
    cluster.node(1).create_groups(0..3, &ALL).await.unwrap();
    for group in 0..3 {
        insist(&cluster, 2, group, &payload(50 + group)).await;
    }
    cluster.open(3).await.unwrap();
    until("the old replicas have ended", async || {
        listed(&cluster, 3) == [0, 1, 2] && life(&cluster, 3, 0).await == Life::new(1)
    })
    .await;
    for group in 0..3 {
        let applied = cluster.agree(group, 1).await;
        assert_eq!(
            applied.into_values().collect::<Vec<_>>(),
            [payload(50 + group)]
        );
    }
    // All of that is durable.
    cluster.stop_all().await;
    for id in ALL {
        cluster.open(id).await.unwrap();
    }
    // A group is listed once its state machine is open.
    until("all nodes have them again", async || {
        ALL.iter().all(|id| listed(&cluster, *id).len() >= 3)
    })
    .await;
    for id in ALL {
        assert_eq!(listed(&cluster, id), [0, 1, 2]);
    }
    cluster.led(0..3).await;
    for group in 0..3 {
        insist(&cluster, 3, group, &payload(60)).await;
        assert_eq!(cluster.agree(group, 2).await.len(), 2);
        assert_eq!(life(&cluster, 2, group).await, Life::new(1));
    }
    cluster.node(3).create_groups(4..5, &ALL).await.unwrap();
    until("it is led", async || {
        cluster.node(1).group(4).leader().is_some()
    })
    .await;
    assert_eq!(life(&cluster, 1, 4).await, Life::new(1));
    cluster.stop_all().await;
}

#[tokio::test]
async fn a_minority_destroys_nothing_that_it_would_call_done() {
    let mut cluster = Cluster::start(3, small_config()).await;
    cluster.node(1).create_groups(0..1, &ALL).await.unwrap();
    cluster.led(0..1).await;
    insist(&cluster, 1, 0, &payload(0)).await;
    cluster.stop(2).await;
    cluster.stop(3).await;
    let destroyed = cluster.node(1).destroy_groups(0..1).await;
    assert!(
        matches!(destroyed, Err(Error::DestroyTimeout { .. })),
        "{destroyed:?}"
    );
    // It was the first tombstone: the others follow when they hear of it.
    cluster.open(2).await.unwrap();
    cluster.open(3).await.unwrap();
    cluster.node(3).destroy_groups(0..1).await.unwrap();
    for id in ALL {
        assert_eq!(listed(&cluster, id), []);
    }
    cluster.stop_all().await;
}

#[tokio::test]
async fn tens_of_thousands_of_groups_are_destroyed_in_one_call() {
    const GROUPS: u64 = 20_000;
    let mut cluster = Cluster::start(3, small_config()).await;
    cluster
        .node(1)
        .create_groups(0..GROUPS, &ALL)
        .await
        .unwrap();
    cluster.node(2).destroy_groups(0..GROUPS).await.unwrap();
    for id in ALL {
        let status = cluster.node(id).status();
        assert_eq!((status.groups, status.led, status.leaderless), (0, 0, 0));
        assert_eq!(listed(&cluster, id), []);
    }
    // The node goes on as if nothing had been there.
    cluster.node(3).create_groups(5..8, &ALL).await.unwrap();
    cluster.led(5..8).await;
    insist(&cluster, 1, 6, &payload(1)).await;
    assert_eq!(life(&cluster, 2, 6).await, Life::new(1));
    cluster.stop_all().await;
}

#[tokio::test]
async fn a_group_that_lives_on_other_nodes_is_not_created_beside_them() {
    let mut cluster = Cluster::start(4, small_config()).await;
    cluster.node(1).create_groups(0..1, &[1, 2]).await.unwrap();
    cluster.sees(4, 1, true).await;
    let exists = |members: &[u64]| {
        let members = members.iter().copied().map(NodeId).collect();
        let group = GroupId(0);
        Err(Error::GroupExists { group, members })
    };
    let created = cluster.node(4).create_groups(0..2, &[3, 4]).await;
    assert_eq!(created, exists(&[1, 2]));
    assert_eq!(listed(&cluster, 4), [], "nothing was begun");
    // It moves to a node that is down when somebody wants it elsewhere.
    let changes = [
        MemberChange::Voter(NodeId(3)),
        MemberChange::Remove(NodeId(1)),
        MemberChange::Remove(NodeId(2)),
    ];
    until("the leader takes the change", async || {
        let [one, two] = [1, 2].map(|id| cluster.node(id).group(0));
        one.change_members(changes, DEADLINE).await.is_ok()
            || two.change_members(changes, DEADLINE).await.is_ok()
    })
    .await;
    until("it has moved", async || {
        listed(&cluster, 1).is_empty() && listed(&cluster, 2).is_empty()
    })
    .await;
    insist(&cluster, 3, 0, &payload(0)).await;
    cluster.stop(3).await;
    let created = cluster.node(4).create_groups(0..1, &[4]).await;
    assert_eq!(created, exists(&[]));
    // Nobody who would know of its end is there.
    let destroyed = cluster.node(4).destroy_groups(0..1).await;
    let missing = vec![NodeId(3)];
    assert_eq!(destroyed, Err(Error::DestroyTimeout { missing }));
    cluster.open(3).await.unwrap();
    until("it is where it was", async || {
        cluster.node(1).create_groups(0..1, &[3]).await.is_ok()
    })
    .await;
    let created = cluster.node(4).create_groups(0..1, &[4]).await;
    assert_eq!(created, exists(&[3]));
    // It leads itself before it applies anything.
    insist(&cluster, 3, 0, &payload(1)).await;
    let applied = cluster.applied(3, 0).await;
    let applied: Vec<_> = applied.into_values().collect();
    assert_eq!(applied, [payload(0), payload(1)]);
    cluster.node(4).destroy_groups(0..1).await.unwrap();
    cluster.node(4).create_groups(0..1, &[4]).await.unwrap();
    assert_eq!(life(&cluster, 4, 0).await, Life::new(1));
    cluster.stop_all().await;
}

/// Before, they passed as created or destroyed, or the others were not destroyed either.
#[tokio::test]
async fn ids_that_are_reserved_are_refused_and_harm_no_other_group() {
    let mut cluster = Cluster::start(3, small_config()).await;
    let node = cluster.node(1);
    for reserved in [u64::MAX - 1, u64::MAX] {
        let created = node.create_groups([5, reserved], &ALL).await;
        assert!(
            matches!(&created, Err(Error::BadMembers { why }) if why.contains(&reserved.to_string())),
            "{created:?}"
        );
        assert_eq!(listed(&cluster, 1), [], "nothing was begun");
    }
    node.create_groups(0..2, &ALL).await.unwrap();
    let destroyed = node.destroy_groups([1, u64::MAX, 0]).await;
    let group = GroupId(u64::MAX);
    assert_eq!(destroyed, Err(Error::NoSuchGroup { group }));
    assert_eq!(listed(&cluster, 1), []);
    cluster.stop_all().await;
}

#[tokio::test]
async fn threads_of_a_node_that_has_become_idle_call_what_its_user_gave() {
    let dir = tempfile::tempdir().unwrap();
    let (called, calls) = std::sync::mpsc::channel();
    let node = Node::<Ledger>::builder()
        .id(1)
        .data_dir(dir.path().join("node"))
        .listen(SocketAddr::from(([127, 0, 0, 1], 0)))
        .tls(Tls::dev(dir.path().join("ca")))
        .config(small_config())
        .on_idle(move || {
            let thread = std::thread::current().name().map(str::to_owned);
            called.send(thread.unwrap()).unwrap();
        })
        .open()
        .await
        .unwrap();
    let mut missing = BTreeSet::from(["n1-shard-0", "n1-apply-0", "polyraft-net-1"]);
    until("each thread calls it", async || {
        for thread in calls.try_iter() {
            missing.remove(&*thread);
        }
        missing.is_empty()
    })
    .await;
    node.shutdown().await.unwrap();
}
