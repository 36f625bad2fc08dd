//! Reads over real connections: what they see, what they cost in messages, and when they are refused.

use std::time::{Duration, Instant};

use bytes::Bytes;
use polyraft::{Completion, CompletionQueue, Config, Counters, Error, Read};
use polyraft_tests::{Cluster, entries_of, small_config, until};

async fn led(nodes: u64, groups: u64, config: Config) -> Cluster {
    let cluster = Cluster::start(nodes, config).await;
    let members: Vec<u64> = (1..=nodes).collect();
    cluster
        .node(1)
        .create_groups(1..=groups, &members)
        .await
        .expect("groups are created");
    cluster.led(1..groups + 1).await;
    cluster
}

fn counters(cluster: &Cluster) -> Vec<Counters> {
    let nodes = cluster.running();
    let nodes = nodes.into_iter().map(|id| cluster.node(id));
    nodes.map(|node| node.status().counters).collect()
}

fn sum(cluster: &Cluster, of: impl Fn(&Counters) -> u64) -> u64 {
    counters(cluster).iter().map(of).sum()
}

async fn read(cluster: &Cluster, node: u64, group: u64, read: Read) -> Result<usize, Error> {
    let handle = cluster.node(node).group(group);
    let answer = handle.read(read, Bytes::new()).await;
    answer.map(|answer| entries_of(answer).len())
}

#[tokio::test]
async fn every_member_sees_what_was_acknowledged() {
    let cluster = led(3, 4, small_config()).await;
    for round in 1..=20_usize {
        for group in 1..=4 {
            let asked = 1 + (round as u64 + group) % 3;
            let payload = format!("{round}");
            let proposed = cluster.node(asked).group(group).propose(payload).await;
            proposed.expect("a proposal commits");
            for node in 1..=3 {
                for how in [
                    Read::Linearizable,
                    Read::Lease,
                    Read::Stale {
                        max_lag: Duration::ZERO,
                    },
                ] {
                    assert_eq!(read(&cluster, node, group, how).await, Ok(round), "{how:?}");
                }
            }
        }
    }
    assert!(sum(&cluster, |counters| counters.follower_reads) > 0);
    assert!(sum(&cluster, |counters| counters.confirmed_reads) > 0);
}

#[tokio::test]
async fn a_lease_read_sends_nothing() {
    const READS: u64 = 300;
    let cluster = led(3, 1, small_config()).await;
    let leader = cluster.leader(1, 1);
    // The first ones may come before the followers are bound.
    until("a lease holds", async || {
        read(&cluster, leader, 1, Read::Lease)
            .await
            .expect("a read");
        cluster.node(leader).status().counters.lease_reads > 0
    })
    .await;
    // A machine that is busy elsewhere may let a lease run out now and then: then it begins again.
    until("a lease holds for many reads", async || {
        let lease_reads = |counters: &Counters| counters.lease_reads;
        let others = |counters: &Counters| counters.confirmed_reads + counters.follower_reads;
        // Questions to peers who leads, for rounds of beats and for reads of followers.
        let asked = |counters: &Counters| counters.standing_asked + counters.reads_asked;
        let of = [lease_reads, others, asked];
        let before = of.map(|of| sum(&cluster, of));
        for _ in 0..READS {
            read(&cluster, leader, 1, Read::Lease)
                .await
                .expect("a read");
        }
        let after = of.map(|of| sum(&cluster, of));
        let [by_lease, others, asked] = [0, 1, 2].map(|at| after[at] - before[at]);
        assert!(by_lease + others >= READS, "every read has its reason");
        let is_done = others == 0;
        if is_done {
            assert_eq!(asked, 0, "messages for reads that had a lease");
        }
        is_done
    })
    .await;
}

#[tokio::test]
async fn a_thousand_groups_are_confirmed_together() {
    const GROUPS: u64 = 1000;
    let cluster = led(3, GROUPS, small_config()).await;
    let queue = CompletionQueue::new();
    let mut done: Vec<Completion> = Vec::new();
    let confirm_all = |done: &mut Vec<Completion>| {
        done.clear();
        for group in 1..=GROUPS {
            let leader = cluster.leader(1, group);
            let handle = cluster.node(leader).group(group);
            let sent = handle.read_with(Read::Linearizable, Bytes::new(), group, &queue);
            sent.expect("there is room");
        }
        while done.len() < GROUPS as usize {
            assert!(queue.drain(done, polyraft_tests::DEADLINE) > 0, "no answer");
        }
        done.iter().filter(|done| done.result.is_ok()).count() as u64
    };
    // Each beat that asks is answered by one.
    let said = |counters: &Counters| {
        2 * counters.standing_asked + counters.reads_asked + counters.group_messages
    };
    assert_eq!(confirm_all(&mut done), GROUPS);
    let before = sum(&cluster, said);
    let asked_before = sum(&cluster, |counters| counters.standing_asked);
    assert_eq!(confirm_all(&mut done), GROUPS);
    let messages = sum(&cluster, said) - before;
    let asked = sum(&cluster, |counters| counters.standing_asked) - asked_before;
    // Each node has one question open to each other node at a time, whatever waits for the answer. How many follow each
    // other depends on how long it takes to hand the reads over. An entry for each group would be two appends for each, and their
    // answers.
    assert!(
        messages < 2 * GROUPS,
        "{messages} messages for {GROUPS} groups"
    );
    assert!(asked > 0, "nobody was asked");
}

#[tokio::test]
async fn a_state_that_is_new_enough_is_read_without_asking() {
    let cluster = led(3, 1, small_config()).await;
    cluster
        .node(1)
        .group(1)
        .propose("1")
        .await
        .expect("a commit");
    let follower = 1 + cluster.leader(1, 1) % 3;
    let hour = Read::Stale {
        max_lag: Duration::from_secs(3600),
    };
    // The first one has to ask: this node does not know how old its state is.
    assert_eq!(read(&cluster, follower, 1, hour).await, Ok(1));
    until("the follower's state is known to be new", async || {
        let before = cluster.node(follower).status().counters.reads_asked;
        read(&cluster, follower, 1, hour).await.expect("a read");
        cluster.node(follower).status().counters.reads_asked == before
    })
    .await;
    let before = cluster.node(follower).status().counters.reads_asked;
    for _ in 0..100 {
        assert_eq!(read(&cluster, follower, 1, hour).await, Ok(1));
    }
    let now = Read::Stale {
        max_lag: Duration::ZERO,
    };
    assert_eq!(cluster.node(follower).status().counters.reads_asked, before);
    assert_eq!(read(&cluster, follower, 1, now).await, Ok(1));
    assert!(cluster.node(follower).status().counters.reads_asked > before);
}

#[tokio::test]
async fn a_state_that_is_older_than_the_bound_is_not_read() {
    let mut config = small_config();
    config.shards.proposal_timeout = Duration::from_millis(500);
    let mut cluster = led(3, 1, config).await;
    let proposed = cluster.node(1).group(1).propose("1").await;
    proposed.expect("a commit");
    let follower = 1 + cluster.leader(1, 1) % 3;
    let others: Vec<u64> = (1..=3).filter(|id| *id != follower).collect();
    // Whatever is known of its state from here on is known since then at least.
    let known_at = Instant::now();
    let now = Read::Stale {
        max_lag: Duration::ZERO,
    };
    until("the follower has asked", async || {
        read(&cluster, follower, 1, now).await == Ok(1)
    })
    .await;
    for id in &others {
        cluster.stop(*id).await;
    }
    // And nobody can have told it more after that.
    let cut_at = Instant::now();
    for id in &others {
        cluster.sees(follower, *id, false).await;
    }
    let asked = |cluster: &Cluster| cluster.node(follower).status().counters.reads_asked;
    let before = asked(&cluster);
    for _ in 0..20 {
        // The read comes a little later.
        let max_lag = known_at.elapsed() + Duration::from_secs(60);
        let answer = read(&cluster, follower, 1, Read::Stale { max_lag }).await;
        assert_eq!(answer, Ok(1), "its state is new enough");
    }
    assert_eq!(asked(&cluster), before);
    let lags = [1, 2, 10].map(|part| cut_at.elapsed() / part);
    for max_lag in lags {
        let error = read(&cluster, follower, 1, Read::Stale { max_lag }).await;
        assert!(
            matches!(error, Err(Error::NotLeader { .. } | Error::Unconfirmed)),
            "{max_lag:?}: {error:?}"
        );
    }
    // With the others it gets what is new enough, and that has what was written meanwhile.
    for id in &others {
        cluster.open(*id).await.expect("it opens again");
    }
    until("a proposal is committed", async || {
        let group = cluster.node(others[0]).group(1);
        group.propose("2").await.is_ok()
    })
    .await;
    let written_at = Instant::now();
    until("the state is read again", async || {
        let max_lag = written_at.elapsed();
        match read(&cluster, follower, 1, Read::Stale { max_lag }).await {
            Ok(seen) => {
                assert!(seen >= 2, "a state of before");
                true
            }
            Err(error) => {
                assert!(error.is_retryable(), "{error}");
                false
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_node_alone_reads_nothing_but_its_own_state() {
    let mut config = small_config();
    config.shards.proposal_timeout = Duration::from_millis(500);
    let mut cluster = led(3, 1, config).await;
    cluster
        .node(1)
        .group(1)
        .propose("1")
        .await
        .expect("a commit");
    cluster.agree(1, 1).await;
    cluster.stop(2).await;
    cluster.stop(3).await;
    cluster.sees(1, 2, false).await;
    cluster.sees(1, 3, false).await;
    for how in [
        Read::Linearizable,
        Read::Lease,
        Read::Stale {
            max_lag: Duration::ZERO,
        },
    ] {
        let error = read(&cluster, 1, 1, how).await.expect_err("no quorum");
        assert!(error.is_retryable(), "{error}");
        assert!(
            matches!(error, Error::NotLeader { .. } | Error::Unconfirmed),
            "{error}"
        );
    }
    assert_eq!(read(&cluster, 1, 1, Read::LOCAL).await, Ok(1));
    let nobody = read(&cluster, 1, 7, Read::Linearizable).await;
    assert_eq!(
        nobody,
        Err(Error::NoSuchGroup {
            group: polyraft::GroupId(7)
        })
    );
    // It can be read again as soon as there is a quorum, its old leader's promises or not.
    cluster.open(2).await.expect("it opens again");
    until("a quorum is back", async || {
        read(&cluster, 1, 1, Read::Linearizable).await == Ok(1)
    })
    .await;
}
