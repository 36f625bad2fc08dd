//! State machines that panic, in each of their methods: the group alone pays for it, or only the call.

use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use polyraft::{
    Config, Entry, Error, FrozenState, GroupId, Index, MachineError, Merge, Read, Replies, Split,
    StateMachine,
};
use polyraft_tests::{Cluster, Ledger, small_config, until};

/// The group that serves all the while.
const OTHER: u64 = 1;
/// The group whose state machines panic, and the one that it is split into or merged with.
const GROUP: u64 = 2;
const CHILD: u64 = 3;
/// A group whose state machines panic when they are opened, and some where they do when they are dropped or destroyed.
const UNOPENED: GroupId = GroupId(8);
const UNDROPPED: Range<u64> = 9..12;

/// A ledger that panics where it is told to: by an entry, the last one or any, or by the argument of a call.
struct Touchy {
    group: GroupId,
    ledger: Ledger,
    last: Vec<u8>,
}

/// Panics if that is asked for.
fn trip(word: &[u8], place: &str) {
    assert_ne!(word, place.as_bytes(), "asked to panic");
}

impl StateMachine for Touchy {
    fn open(group: GroupId, dir: &Path) -> Result<(Self, Index), MachineError> {
        assert_ne!(group, UNOPENED, "asked to panic");
        let (ledger, index) = Ledger::open(group, dir)?;
        let last = Vec::new();
        let touchy = Touchy {
            group,
            ledger,
            last,
        };
        Ok((touchy, index))
    }

    fn destroy(group: GroupId, _dir: &Path) -> Result<(), MachineError> {
        assert!(!UNDROPPED.contains(&group.0), "asked to panic");
        Ok(())
    }

    fn apply(&mut self, entries: &[Entry<'_>], replies: &mut Replies) -> Result<(), MachineError> {
        for entry in entries {
            trip(entry.payload, "apply");
            self.last = entry.payload.to_vec();
        }
        self.ledger.apply(entries, replies)
    }

    fn query(&self, query: &[u8]) -> Result<Bytes, MachineError> {
        trip(query, "query");
        self.ledger.query(query)
    }

    fn snapshot(&self) -> Result<FrozenState, MachineError> {
        trip(&self.last, "snapshot");
        let (state, last) = (self.ledger.snapshot()?, self.last.clone());
        Ok(Box::new(move |out| {
            trip(&last, "write");
            state(out)
        }))
    }

    fn restore(&mut self, last: Index, from: &mut dyn std::io::Read) -> Result<(), MachineError> {
        self.ledger.restore(last, from)?;
        let entries = polyraft_tests::entries_of(self.ledger.query(&[])?);
        entries.values().for_each(|entry| trip(entry, "restore"));
        Ok(())
    }

    fn can_split(&self, split: &Split<'_>) -> bool {
        trip(split.argument, "can_split");
        true
    }

    fn split_off(&self, split: &Split<'_>) -> Result<FrozenState, MachineError> {
        trip(split.argument, "split_off");
        let (part, argument) = (self.ledger.split_off(split)?, split.argument.to_vec());
        Ok(Box::new(move |out| {
            trip(&argument, "write");
            part(out)
        }))
    }

    fn shed(&mut self, split: &Split<'_>) -> Result<(), MachineError> {
        trip(split.argument, "shed");
        self.ledger.shed(split)
    }

    fn can_merge(&self, merge: &Merge<'_>) -> bool {
        trip(merge.argument, "can_merge");
        true
    }

    fn merge(
        &mut self,
        merge: &Merge<'_>,
        from: &mut dyn std::io::Read,
    ) -> Result<(), MachineError> {
        trip(merge.argument, "merge");
        self.ledger.merge(merge, from)
    }
}

impl Drop for Touchy {
    fn drop(&mut self) {
        assert!(!UNDROPPED.contains(&self.group.0), "asked to panic");
    }
}

/// One node with these groups and one more, and a proposal in each.
async fn node(groups: Range<u64>) -> Cluster<Touchy> {
    node_with(small_config(), groups).await
}

async fn node_with(mut config: Config, groups: Range<u64>) -> Cluster<Touchy> {
    // They share every thread with the group that is to go on.
    config.shards.count = 1;
    config.apply.workers = 1;
    config.snapshot.workers = 1;
    let cluster = Cluster::<Touchy>::of_machines(1, config).await;
    for group in (OTHER..OTHER + 1).chain(groups) {
        let created = cluster.node(1).create_groups(group..group + 1, &[1]).await;
        created.unwrap();
        propose(&cluster, group, "before").await;
    }
    cluster
}

async fn propose(cluster: &Cluster<Touchy>, group: u64, payload: &'static str) {
    until("a proposal commits", async || {
        let group = cluster.node(1).group(group);
        group.propose(payload).await.is_ok()
    })
    .await;
}

/// Whether a group takes proposals, reads and snapshots.
async fn serves(cluster: &Cluster<Touchy>, group: u64) {
    propose(cluster, group, "after").await;
    let group = cluster.node(1).group(group);
    let all = group.read(Read::Linearizable, Bytes::new()).await.unwrap();
    let all = polyraft_tests::entries_of(all);
    assert!(all.into_values().any(|entry| entry == "after"));
    group.snapshot().await.unwrap();
    assert_eq!(group.status().await.unwrap().fault, None);
}

/// Waits until a group is out of service because of a panic, and sees that the other one is not.
async fn is_faulted_alone(cluster: &Cluster<Touchy>, group: u64) {
    let handle = cluster.node(1).group(group);
    until("the group is faulted", async || {
        let fault = handle.status().await.unwrap().fault;
        fault.is_some_and(|fault| fault.contains("panicked"))
    })
    .await;
    let refused = handle.propose("after").await;
    assert!(matches!(refused, Err(Error::Fault { .. })), "{refused:?}");
    serves(cluster, OTHER).await;
    let status = cluster.node(1).status();
    assert_eq!((status.quarantined, status.fault), (1, None));
}

#[tokio::test]
async fn a_query_that_panics_is_refused_and_the_group_goes_on() {
    let mut cluster = node(GROUP..GROUP + 1).await;
    let group = cluster.node(1).group(GROUP);
    let refused = group.read(Read::LOCAL, "query").await;
    assert!(
        matches!(&refused, Err(Error::Query(why)) if why.contains("panicked")),
        "{refused:?}"
    );
    drop(group);
    serves(&cluster, GROUP).await;
    serves(&cluster, OTHER).await;
    cluster.stop_all().await;
}

#[tokio::test]
async fn a_snapshot_that_panics_costs_itself_alone() {
    for place in ["snapshot", "write"] {
        let mut cluster = node(GROUP..GROUP + 1).await;
        propose(&cluster, GROUP, place).await;
        let refused = cluster.node(1).group(GROUP).snapshot().await;
        assert!(
            matches!(&refused, Err(Error::Snapshot { why }) if why.contains("panicked")),
            "{place}: {refused:?}"
        );
        assert_eq!(cluster.node(1).status().counters.failed_snapshots, 1);
        serves(&cluster, GROUP).await;
        serves(&cluster, OTHER).await;
        cluster.stop_all().await;
    }
}

#[tokio::test]
async fn a_panic_where_a_state_machine_is_opened_or_restored_faults_its_group_alone() {
    let mut cluster = node(GROUP..GROUP + 1).await;
    let unopened = UNOPENED.0..UNOPENED.0 + 1;
    let created = cluster.node(1).create_groups(unopened, &[1]).await;
    created.unwrap();
    is_faulted_alone(&cluster, UNOPENED.0).await;
    serves(&cluster, GROUP).await;
    let destroyed = cluster.node(1).destroy_groups([UNOPENED.0]).await;
    destroyed.unwrap();

    propose(&cluster, GROUP, "restore").await;
    cluster.node(1).group(GROUP).snapshot().await.unwrap();
    cluster.stop_all().await;
    cluster.open(1).await.unwrap();
    is_faulted_alone(&cluster, GROUP).await;
    cluster.stop_all().await;
}

#[tokio::test]
async fn a_panic_in_apply_faults_its_group_alone() {
    let mut cluster = node(GROUP..GROUP + 1).await;
    let refused = cluster.node(1).group(GROUP).propose("apply").await;
    assert!(matches!(refused, Err(Error::Fault { .. })), "{refused:?}");
    is_faulted_alone(&cluster, GROUP).await;
    cluster.stop_all().await;
}

#[tokio::test]
async fn a_panic_while_a_group_is_split_faults_it_alone() {
    for place in ["can_split", "split_off", "write", "shed"] {
        let mut cluster = node(GROUP..GROUP + 1).await;
        let split = cluster.node(1).group(GROUP).split(CHILD, place).await;
        assert!(matches!(split, Err(Error::Fault { .. })), "{place}");
        is_faulted_alone(&cluster, GROUP).await;
        if place == "shed" {
            serves(&cluster, CHILD).await;
        }
        cluster.stop_all().await;
    }
}

#[tokio::test]
async fn a_panic_where_a_group_is_merged_into_another_faults_that_alone() {
    for place in ["can_merge", "merge"] {
        let mut config = small_config();
        // A merge whose target says nothing is waited for as long as twenty of these.
        config.shards.proposal_timeout = Duration::from_millis(100);
        let mut cluster = node_with(config, GROUP..CHILD + 1).await;
        let source = cluster.node(1).group(CHILD);
        let merged = source.merge_into(GROUP, place).await;
        assert!(merged.is_err(), "{place}");
        is_faulted_alone(&cluster, GROUP).await;
        if place == "can_merge" {
            serves(&cluster, CHILD).await;
        } else {
            // What was given to the target goes on nowhere else.
            let refused = source.propose("after").await;
            let into = GroupId(GROUP);
            assert_eq!(refused, Err(Error::Merging { into }));
        }
        drop((source, merged));
        cluster.stop_all().await;
    }
}

#[tokio::test]
async fn a_group_whose_state_panics_while_it_is_given_away_is_not_merged() {
    let mut cluster = node(GROUP..CHILD + 1).await;
    for place in ["snapshot", "write"] {
        propose(&cluster, CHILD, place).await;
        let source = cluster.node(1).group(CHILD);
        let merged = source.merge_into(GROUP, Bytes::new()).await;
        assert!(
            matches!(&merged, Err(Error::Merge { why }) if why.contains("panicked")),
            "{place}: {:?}",
            merged.err()
        );
        drop((source, merged));
        for group in [OTHER, GROUP, CHILD] {
            serves(&cluster, group).await;
        }
    }
    cluster.stop_all().await;
}

#[tokio::test]
async fn a_state_machine_that_panics_while_it_is_dropped_or_destroyed_ends_all_the_same() {
    let mut cluster = node(UNDROPPED).await;
    let destroyed = cluster.node(1).destroy_groups(UNDROPPED).await;
    destroyed.unwrap();
    serves(&cluster, OTHER).await;
    let created = cluster.node(1).create_groups(UNDROPPED, &[1]).await;
    created.unwrap();
    // Nobody is left who could be told of the panics: the node stops as if there were none.
    for _ in 0..2 {
        for group in UNDROPPED.chain(OTHER..OTHER + 1) {
            serves(&cluster, group).await;
        }
        cluster.stop_all().await;
        cluster.open(1).await.unwrap();
    }
    cluster.stop_all().await;
}
