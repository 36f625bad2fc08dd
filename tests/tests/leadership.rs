//! Leadership moved on request, over real connections.

use std::time::Duration;

use polyraft::{Error, MemberChange, NodeId};
use polyraft_tests::{Cluster, small_config, until};

const ALL: [u64; 3] = [1, 2, 3];

#[tokio::test]
async fn a_leader_hands_its_group_to_the_chosen_voter() {
    let mut cluster = Cluster::start(3, small_config()).await;
    cluster.node(1).create_groups(0..4, &ALL).await.unwrap();
    cluster.led(0..4).await;
    for group in 0..4 {
        let leader = cluster.leader(1, group);
        let to = 1 + leader % 3;
        let handle = cluster.node(leader).group(group);
        handle.propose("before").await.expect("a commit");
        // Whoever does not lead says who does.
        let elsewhere = cluster.node(to).group(group).transfer_leadership(to).await;
        assert!(
            matches!(elsewhere, Err(Error::NotLeader { .. })),
            "{elsewhere:?}"
        );
        assert_eq!(handle.transfer_leadership(leader).await, Ok(()), "itself");
        until("the chosen voter leads", async || {
            // A machine that is busy elsewhere may need a second attempt.
            if cluster.leader(1, group) == leader {
                let _ = handle.transfer_leadership(to).await;
            }
            cluster.led(group..group + 1).await;
            cluster.leader(1, group) == to
        })
        .await;
        let proposed = cluster.node(leader).group(group).propose("after").await;
        proposed.expect("it is sent on to the new leader");
    }
    let stranger = cluster.leader(1, 0);
    let refused = cluster.node(stranger).group(0).transfer_leadership(9).await;
    assert!(
        matches!(refused, Err(Error::Transfer { .. })),
        "{refused:?}"
    );
    let nobody = cluster.node(1).group(77).transfer_leadership(1).await;
    assert!(
        matches!(nobody, Err(Error::NoSuchGroup { .. })),
        "{nobody:?}"
    );
    cluster.stop_all().await;
}

#[tokio::test]
async fn a_drained_node_leads_nothing_and_can_be_stopped_without_an_election() {
    let mut config = small_config();
    // Nobody is to campaign because this machine is busy.
    config.election.timeout_min = Duration::from_secs(2);
    config.election.timeout_max = Duration::from_secs(4);
    let mut cluster = Cluster::start(3, config).await;
    cluster.node(1).create_groups(0..60, &ALL).await.unwrap();
    cluster.led(0..60).await;
    let led = |id: u64| cluster.node(id).status().led;
    assert!(led(1) > 0);
    until("nothing is led there", async || {
        let left = cluster.node(1).drain(Duration::from_secs(5)).await;
        left.expect("it serves") == 0
    })
    .await;
    assert_eq!(led(1), 0);
    let leaders = |cluster: &Cluster| -> Vec<_> {
        let groups = (0..60).map(|group| cluster.node(2).group(group));
        groups.map(|group| group.leader()).collect()
    };
    until("the other nodes lead", async || {
        let mut leaders = leaders(&cluster).into_iter();
        leaders.all(|leader| leader.is_some_and(|(node, _)| node != NodeId(1)))
    })
    .await;
    let before = leaders(&cluster);
    cluster.stop(1).await;
    for group in 0..60 {
        let proposed = cluster.node(2).group(group).propose("after").await;
        proposed.expect("a commit");
    }
    assert_eq!(leaders(&cluster), before, "somebody campaigned");
    cluster.stop_all().await;
}

#[tokio::test]
async fn a_leader_without_others_stays() {
    let mut cluster = Cluster::start(1, small_config()).await;
    cluster.node(1).create_groups(0..3, &[1]).await.unwrap();
    cluster.led(0..3).await;
    let left = cluster.node(1).drain(Duration::from_millis(50)).await;
    assert_eq!(left, Ok(3), "nobody else can lead them");
    cluster
        .node(1)
        .group(0)
        .propose("still")
        .await
        .expect("a commit");
    cluster.stop_all().await;
}

#[tokio::test]
async fn groups_go_back_to_the_nodes_that_should_lead_them() {
    let mut config = small_config();
    config.election.rebalance_delay = Duration::from_millis(100);
    let mut cluster = Cluster::start(3, config).await;
    cluster.node(1).create_groups(0..60, &ALL).await.unwrap();
    cluster.led(0..60).await;
    cluster.stop(1).await;
    cluster.led(0..60).await;
    let led = |cluster: &Cluster, id: u64| cluster.node(id).status().led;
    assert_eq!(led(&cluster, 2) + led(&cluster, 3), 60);
    cluster.open(1).await.unwrap();
    until("leaders are spread again", async || {
        (0..60).all(|group| {
            cluster
                .node(2)
                .group(group)
                .leader()
                .map(|(leader, _)| leader.0)
                == Some(1 + group % 3)
        })
    })
    .await;
    for group in 0..60 {
        let proposed = cluster.node(3).group(group).propose("after").await;
        proposed.expect("a commit");
    }
    cluster.stop_all().await;
}

#[tokio::test]
async fn leaders_go_to_preferred_nodes_and_to_those_of_higher_priority() {
    let mut config = small_config();
    config.election.rebalance_delay = Duration::from_millis(100);
    let mut last = config.clone();
    last.election.priority = 0;
    let mut cluster = Cluster::start(3, config.clone()).await;
    cluster.stop(3).await;
    cluster.reconfigure(last);
    cluster.open(3).await.unwrap();
    for node in [1, 2] {
        cluster.sees(node, 3, true).await;
        cluster.sees(3, node, true).await;
    }
    cluster.node(1).create_groups(0..30, &ALL).await.unwrap();
    cluster.led(0..30).await;
    let leader = |cluster: &Cluster, group: u64| {
        let handle = cluster.node(2).group(group);
        handle.leader().map(|(leader, _)| leader.0)
    };
    until("nobody is led by the last one", async || {
        // Its neighbours share what it would lead.
        let should = |group: u64| match (group % 3, group / 3 % 2) {
            (0, _) | (2, 0) => 1,
            _ => 2,
        };
        (0..30).all(|group| leader(&cluster, group) == Some(should(group)))
    })
    .await;
    // What a group prefers comes first, and is found again after a restart.
    for group in 0..30 {
        until("a preference is taken", async || {
            for id in 1..=3 {
                let handle = cluster.node(id).group(group);
                let prefer = [MemberChange::Prefer(NodeId(2))];
                let changed = handle.change_members(prefer, Duration::from_secs(30)).await;
                if changed.is_ok_and(|members| members.preferred == Some(NodeId(2))) {
                    return true;
                }
            }
            false
        })
        .await;
    }
    let all_at_two = async |cluster: &Cluster| {
        until("the preferred node leads", async || {
            (0..30).all(|group| leader(cluster, group) == Some(2))
        })
        .await;
    };
    all_at_two(&cluster).await;
    cluster.reconfigure(config);
    cluster.stop(2).await;
    for node in [1, 3] {
        until("another one leads meanwhile", async || {
            (0..30).all(|group| {
                let handle = cluster.node(node).group(group);
                handle.leader().is_some_and(|(leader, _)| leader.0 != 2)
            })
        })
        .await;
    }
    cluster.open(2).await.unwrap();
    all_at_two(&cluster).await;
    cluster.stop_all().await;
}
