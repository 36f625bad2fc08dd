//! Whole nodes over real QUIC: elections, replication, failover, restarts, and what is refused.

use std::future::Future as _;
use std::sync::Arc;
use std::task::{Context, Wake, Waker};
use std::time::Duration;

use bytes::Bytes;
use polyraft::{Config, Error};
use polyraft_tests::{Cluster, Ledger, small_config, until};

const ALL: [u64; 3] = [1, 2, 3];

fn payload(number: u64) -> Bytes {
    Bytes::from(format!("proposal {number}"))
}

/// Proposes on any running node until it is surely committed. Only for payloads that may be applied twice.
async fn insist(cluster: &Cluster, asked: u64, group: u64, payload: &Bytes) {
    until("a proposal commits", async || {
        cluster
            .node(asked)
            .group(group)
            .propose(payload.clone())
            .await
            .is_ok()
    })
    .await;
}

#[tokio::test]
async fn a_node_that_is_shut_down_can_be_opened_again_although_handles_are_left() {
    let mut cluster = Cluster::start(1, small_config()).await;
    cluster.node(1).create_groups(0..1, &[1]).await.unwrap();
    cluster.led(0..1).await;
    let (node, group) = (cluster.node(1).clone(), cluster.node(1).group(0));
    cluster.stop(1).await;
    cluster.open(1).await.expect("nobody has the directory");
    cluster.led(0..1).await;
    assert_eq!(group.propose("late").await.map(|_| ()), Err(Error::Closed));
    assert_eq!(node.status().groups, 1, "what it last was");
    cluster.stop_all().await;
}

#[tokio::test]
async fn every_group_gets_one_leader_and_commits_on_all_replicas() {
    let mut cluster = Cluster::start(3, small_config()).await;
    cluster.node(1).create_groups(0..12, &ALL).await.unwrap();
    cluster.led(0..12).await;
    for group in 0..12 {
        for number in 0..5 {
            let committed = cluster
                .node(1 + group % 3)
                .group(group)
                .propose(payload(number))
                .await
                .unwrap();
            assert_eq!(
                committed.reply[..],
                (number + 1).to_le_bytes(),
                "the state machine's own reply comes back"
            );
        }
        let entries = cluster.agree(group, 5).await;
        let payloads: Vec<Bytes> = entries.into_values().collect();
        assert_eq!(payloads, (0..5).map(payload).collect::<Vec<_>>());
    }
    cluster.stop_all().await;
}

#[tokio::test]
async fn first_leaders_are_spread_over_the_members() {
    let mut config = small_config();
    // However busy the machine is: nobody else stands before the member whose turn it is.
    config.election.timeout_min = Duration::from_secs(5);
    config.election.timeout_max = Duration::from_secs(10);
    let mut cluster = Cluster::start(3, config).await;
    cluster.node(2).create_groups(0..30, &ALL).await.unwrap();
    cluster.led(0..30).await;
    for id in ALL {
        let led = cluster.node(id).status().led;
        assert!(led > 0, "node {id} leads none of 30 groups");
    }
    cluster.stop_all().await;
}

#[tokio::test]
async fn a_follower_forwards_to_the_leader() {
    let mut cluster = Cluster::start(3, small_config()).await;
    cluster.node(1).create_groups(7..8, &ALL).await.unwrap();
    cluster.led(7..8).await;
    let leader = cluster.leader(1, 7);
    for asked in ALL {
        let index = cluster
            .node(asked)
            .group(7)
            .propose(payload(asked))
            .await
            .unwrap()
            .index;
        assert_eq!(cluster.applied(leader, 7).await[&index], payload(asked));
    }
    let forwarded: u64 = ALL
        .iter()
        .map(|id| cluster.node(*id).status().counters.forwarded)
        .sum();
    assert_eq!(
        forwarded, 2,
        "two of the three proposals were not made on the leader's node"
    );
    cluster.stop_all().await;
}

#[tokio::test]
async fn propose_many_keeps_the_order_of_its_proposals() {
    let mut cluster = Cluster::start(3, small_config()).await;
    cluster.node(1).create_groups(0..1, &ALL).await.unwrap();
    cluster.led(0..1).await;
    let leader = cluster.leader(1, 0);
    let payloads: Vec<Bytes> = (0..500).map(payload).collect();
    let committed = cluster
        .node(leader)
        .group(0)
        .propose_many(payloads.clone())
        .await
        .unwrap();
    assert!(
        committed
            .windows(2)
            .all(|pair| pair[0].index < pair[1].index)
    );
    let entries = cluster.agree(0, 500).await;
    assert_eq!(entries.into_values().collect::<Vec<_>>(), payloads);
    cluster.stop_all().await;
}

#[tokio::test]
async fn when_a_node_stops_its_groups_are_led_again_and_it_catches_up_later() {
    let mut cluster = Cluster::start(3, small_config()).await;
    cluster.node(1).create_groups(0..9, &ALL).await.unwrap();
    cluster.led(0..9).await;
    for group in 0..9 {
        cluster
            .node(1)
            .group(group)
            .propose(payload(0))
            .await
            .unwrap();
    }
    cluster.stop(2).await;
    cluster.led(0..9).await;
    for group in 0..9 {
        for number in 1..20 {
            cluster
                .node(3)
                .group(group)
                .propose(payload(number))
                .await
                .unwrap();
        }
    }
    cluster.open(2).await.unwrap();
    for group in 0..9 {
        let entries = cluster.agree(group, 20).await;
        assert_eq!(
            entries.into_values().collect::<Vec<_>>(),
            (0..20).map(payload).collect::<Vec<_>>()
        );
    }
    cluster.stop_all().await;
}

#[tokio::test]
async fn a_restart_of_the_whole_cluster_keeps_every_acknowledged_write() {
    let mut cluster = Cluster::start(3, small_config()).await;
    cluster.node(1).create_groups(0..6, &ALL).await.unwrap();
    cluster.led(0..6).await;
    for round in 0..3 {
        for group in 0..6 {
            for number in 0..10 {
                cluster
                    .node(1 + (group + number) % 3)
                    .group(group)
                    .propose(payload(round * 10 + number))
                    .await
                    .unwrap();
            }
        }
        cluster.stop_all().await;
        for id in ALL {
            cluster.open(id).await.unwrap();
        }
        cluster.led(0..6).await;
        for group in 0..6 {
            let count = (round + 1) * 10;
            let entries = cluster.agree(group, count as usize).await;
            assert_eq!(
                entries.into_values().collect::<Vec<_>>(),
                (0..count).map(payload).collect::<Vec<_>>()
            );
        }
    }
    cluster.stop_all().await;
}

#[tokio::test]
async fn creating_groups_again_changes_nothing_also_after_a_restart() {
    let mut cluster = Cluster::start(3, small_config()).await;
    cluster
        .node(1)
        .create_groups([3, 1, 2], &ALL)
        .await
        .unwrap();
    cluster.led(1..4).await;
    cluster.node(1).group(2).propose(payload(1)).await.unwrap();
    cluster
        .node(3)
        .create_groups(1..4, &[3, 2, 1])
        .await
        .unwrap();
    cluster.stop_all().await;
    for id in ALL {
        cluster.open(id).await.unwrap();
    }
    cluster.node(2).create_groups(1..5, &ALL).await.unwrap();
    cluster.led(1..5).await;
    cluster.agree(2, 1).await;
    let refused = cluster.node(1).create_groups(1..2, &[1, 2]).await;
    assert!(
        matches!(refused, Err(Error::GroupExists { .. })),
        "{refused:?}"
    );
    cluster.stop_all().await;
}

#[tokio::test]
async fn a_member_that_was_down_gets_a_group_when_it_comes_up() {
    let mut cluster = Cluster::start(3, small_config()).await;
    cluster.sees(1, 2, true).await;
    cluster.stop(3).await;
    cluster.sees(1, 3, false).await;
    cluster.node(1).create_groups(0..4, &ALL).await.unwrap();
    for group in 0..4 {
        insist(&cluster, 1, group, &payload(1)).await;
    }
    cluster.open(3).await.unwrap();
    until("the late member hosts every group", async || {
        cluster.node(3).status().groups == 4
    })
    .await;
    for group in 0..4 {
        cluster.agree(group, 1).await;
    }
    cluster.stop_all().await;
}

#[tokio::test]
async fn without_a_quorum_nothing_commits_and_nobody_waits_for_ever() {
    let mut config = small_config();
    config.shards.proposal_timeout = Duration::from_millis(500);
    let mut cluster = Cluster::start(3, config).await;
    cluster.node(1).create_groups(0..1, &ALL).await.unwrap();
    cluster.led(0..1).await;
    cluster.node(1).group(0).propose(payload(0)).await.unwrap();
    cluster.stop(2).await;
    cluster.stop(3).await;
    until("the last node knows that nobody leads", async || {
        cluster.node(1).status().leaderless == 1
    })
    .await;
    let outcome = cluster.node(1).group(0).propose(payload(1)).await;
    assert!(
        matches!(outcome, Err(Error::NotLeader { .. })),
        "{outcome:?}"
    );
    cluster.open(2).await.unwrap();
    insist(&cluster, 1, 0, &payload(2)).await;
    cluster.stop_all().await;
}

#[tokio::test]
async fn a_wiped_data_directory_is_recognised_and_explained() {
    let mut cluster = Cluster::start(3, small_config()).await;
    cluster.node(1).create_groups(0..1, &ALL).await.unwrap();
    cluster.led(0..1).await;
    cluster.stop(2).await;
    std::fs::remove_dir_all(cluster.data_dir(2)).unwrap();
    cluster.open(2).await.unwrap();
    refused(&cluster, 2, "wiped or replaced").await;
    insist(&cluster, 1, 0, &payload(1)).await;
    assert_eq!(
        cluster.node(2).status().groups,
        0,
        "a wiped node must not take part"
    );
    cluster.stop_all().await;
}

#[tokio::test]
async fn a_rolled_back_data_directory_is_recognised_and_explained() {
    let mut cluster = Cluster::start(3, small_config()).await;
    cluster.node(1).create_groups(0..1, &ALL).await.unwrap();
    cluster.led(0..1).await;
    cluster.stop(2).await;
    let copy = cluster.data_dir(2).with_extension("copy");
    copy_dir(&cluster.data_dir(2), &copy);
    cluster.sees(1, 2, false).await;
    cluster.open(2).await.unwrap();
    cluster.sees(1, 2, true).await;
    cluster.stop(2).await;
    std::fs::remove_dir_all(cluster.data_dir(2)).unwrap();
    std::fs::rename(&copy, cluster.data_dir(2)).unwrap();
    cluster.open(2).await.unwrap();
    refused(&cluster, 2, "rolled back").await;
    // Opening it once more makes its count of openings larger than any that was seen, and its log no newer.
    cluster.stop(2).await;
    cluster.open(2).await.unwrap();
    refused(&cluster, 2, "rolled back").await;
    cluster.stop_all().await;
}

/// Waits until node `id` knows why the others refuse it.
async fn refused(cluster: &Cluster, id: u64, why: &str) {
    until("the node learns why it is refused", async || {
        let peers = cluster.node(id).status().peers;
        peers.iter().any(|peer| {
            peer.refused
                .as_ref()
                .is_some_and(|reason| reason.contains(why))
        })
    })
    .await;
}

fn copy_dir(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[tokio::test]
async fn a_failing_state_machine_quarantines_its_group_alone() {
    let mut cluster = Cluster::start(3, small_config()).await;
    cluster.node(1).create_groups(0..4, &ALL).await.unwrap();
    cluster.led(0..4).await;
    for (group, poison) in [(0, Ledger::POISON), (1, Ledger::PANIC)] {
        let outcome = cluster.node(1).group(group).propose(poison).await;
        assert!(
            matches!(outcome, Err(Error::Fault { .. } | Error::Unknown { .. })),
            "{outcome:?}"
        );
    }
    // Whoever applies the entry is quarantined. That is the leader at least; the others may lose their quorum before
    // they learn that the entry is committed.
    for (group, why) in [(0, "asked to fail"), (1, "panicked")] {
        until("the group has a quarantined replica", async || {
            for id in cluster.running() {
                let status = cluster.node(id).group(group).status().await.unwrap();
                if let Some(fault) = status.fault {
                    assert!(fault.contains(why), "{fault}");
                    return cluster.node(id).status().quarantined > 0;
                }
            }
            false
        })
        .await;
    }
    for group in 2..4 {
        cluster
            .node(1)
            .group(group)
            .propose(payload(1))
            .await
            .unwrap();
        cluster.agree(group, 1).await;
    }
    cluster.stop_all().await;
}

#[tokio::test]
async fn what_is_too_large_or_unknown_is_refused_at_propose() {
    let mut cluster = Cluster::start(1, small_config()).await;
    cluster.node(1).create_groups(0..1, &[1]).await.unwrap();
    cluster.led(0..1).await;
    let group = cluster.node(1).group(0);
    let limit = 256 << 10;
    let outcome = group.propose(vec![0; limit + 1]).await;
    assert_eq!(
        outcome,
        Err(Error::TooLarge {
            bytes: limit + 1,
            limit
        })
    );
    group.propose(vec![0; limit]).await.unwrap();
    let outcome = cluster.node(1).group(99).propose(payload(1)).await;
    assert!(
        matches!(outcome, Err(Error::NoSuchGroup { .. })),
        "{outcome:?}"
    );
    let outcome = cluster.node(1).create_groups(5..6, &[1, 9]).await;
    assert!(
        matches!(outcome, Err(Error::BadMembers { .. })),
        "{outcome:?}"
    );
    cluster.stop_all().await;
}

#[tokio::test]
async fn proposals_beyond_a_groups_bound_are_refused_as_busy() {
    let mut config = small_config();
    config.shards.group_bytes = "1MiB".parse().unwrap();
    let mut cluster = Cluster::start(1, config).await;
    cluster.node(1).create_groups(0..1, &[1]).await.unwrap();
    cluster.led(0..1).await;
    let outcome = cluster
        .node(1)
        .group(0)
        .propose_many(vec![Bytes::from(vec![7; 200 << 10]); 40])
        .await;
    assert!(matches!(outcome, Err(Error::Busy { .. })), "{outcome:?}");
    cluster.node(1).group(0).propose(payload(1)).await.unwrap();
    cluster.stop_all().await;
}

#[tokio::test]
async fn after_a_shutdown_every_call_says_closed() {
    let mut cluster = Cluster::start(1, small_config()).await;
    cluster.node(1).create_groups(0..1, &[1]).await.unwrap();
    let node = cluster.node(1).clone();
    cluster.stop_all().await;
    assert_eq!(node.group(0).propose(payload(1)).await, Err(Error::Closed));
    assert_eq!(node.create_groups(1..2, &[1]).await, Err(Error::Closed));
    node.shutdown()
        .await
        .expect("a second shutdown does nothing");
}

#[tokio::test]
async fn a_data_directory_in_use_is_refused() {
    let mut cluster = Cluster::start(1, small_config()).await;
    let error = cluster.open(1).await.expect_err("the directory is locked");
    assert!(error.to_string().contains("locked"), "{error}");
    cluster.stop_all().await;
}

#[tokio::test]
async fn shards_lanes_workers_and_the_mapped_path_work_together() {
    let config = Config::from_toml_str(
        r#"
        [shards]
        count = 4
        [apply]
        workers = 3
        [wal]
        mode = "mapped"
        direct_io = false
        lanes = 2
        segment_bytes = "4MiB"
        max_batch_bytes = "1MiB"
        pool_segments = 1
        min_free_bytes = "1MiB"
        [batch]
        max_proposal_bytes = "256KiB"
        [transport]
        append_lanes = 3
        "#,
    )
    .unwrap();
    let mut cluster = Cluster::start(3, config).await;
    cluster.node(1).create_groups(0..16, &ALL).await.unwrap();
    cluster.led(0..16).await;
    for group in 0..16 {
        for number in 0..10 {
            cluster
                .node(1 + number % 3)
                .group(group)
                .propose(payload(number))
                .await
                .unwrap();
        }
    }
    cluster.stop_all().await;
    for id in ALL {
        cluster.open(id).await.unwrap();
    }
    cluster.led(0..16).await;
    for group in 0..16 {
        let entries = cluster.agree(group, 10).await;
        assert_eq!(
            entries.into_values().collect::<Vec<_>>(),
            (0..10).map(payload).collect::<Vec<_>>()
        );
    }
    cluster.stop_all().await;
}

#[tokio::test]
async fn an_idle_cluster_sends_beats_and_nothing_for_its_groups() {
    let mut cluster = Cluster::start(3, small_config()).await;
    cluster.node(1).create_groups(0..200, &ALL).await.unwrap();
    cluster.led(0..200).await;
    let messages = || {
        ALL.iter()
            .map(|id| cluster.node(*id).status().counters.group_messages)
            .sum::<u64>()
    };
    let beats = || {
        ALL.iter()
            .map(|id| cluster.node(*id).status().counters.beats)
            .sum::<u64>()
    };
    // The elections' last commit notices have to be out first.
    let mut before = (messages(), beats());
    until("the groups are quiet for 60 beats", async || {
        let now = (messages(), beats());
        if now.0 != before.0 {
            before = now;
        }
        now.1 - before.1 >= 60
    })
    .await;
    assert_eq!(cluster.node(1).status().leaderless, 0);
    cluster.stop_all().await;
}

/// A caller that panics when it is told that its answer is there.
struct Panicking;

impl Wake for Panicking {
    fn wake(self: Arc<Self>) {
        panic!("a caller's waker panics");
    }
}

#[tokio::test]
async fn a_panic_of_an_apply_worker_stops_the_node() {
    let cluster = Cluster::start(1, small_config()).await;
    cluster.node(1).create_groups(0..1, &[1]).await.unwrap();
    cluster.led(0..1).await;
    let group = cluster.node(1).group(0);
    let mut proposal = Box::pin(group.propose(payload(1)));
    let waker = Waker::from(Arc::new(Panicking));
    let polled = proposal.as_mut().poll(&mut Context::from_waker(&waker));
    assert!(polled.is_pending());
    until("the node says that it has stopped", async || {
        let fault = cluster.node(1).status().fault;
        fault.is_some_and(|fault| fault.contains("an apply worker panicked"))
    })
    .await;
    assert!(group.propose(payload(2)).await.is_err());
    drop(proposal);
}
