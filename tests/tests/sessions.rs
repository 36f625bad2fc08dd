//! Client sessions over whole nodes and real QUIC: whatever is tried again is applied once, and answered as the first time.
//! Leaders are stopped, logs are purged and state machines are reopened in between.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::{Buf, Bytes};
use polyraft::{
    Committed, Config, Entry, Error, FrozenState, GroupHandle, GroupId, Index, MachineError, Node,
    ProposalNumber, Read, Replies, SESSION_WINDOW, Session, SessionId, StateMachine, Tls,
};
use polyraft_tests::{Cluster, DEADLINE, Ledger, small_config, until};

const ALL: [u64; 3] = [1, 2, 3];
const GROUP: u64 = 1;

async fn started(config: Config) -> Cluster {
    let cluster = Cluster::start(3, config).await;
    let groups = GROUP..GROUP + 1;
    cluster
        .node(1)
        .create_groups(groups.clone(), &ALL)
        .await
        .unwrap();
    cluster.led(groups).await;
    cluster
}

fn payload(client: usize, number: u64) -> Bytes {
    Bytes::from(format!("client {client} proposal {number}"))
}

/// The place in the ledger that the state machine answered with.
fn place(committed: &Committed) -> u64 {
    (&committed.reply[..]).get_u64_le()
}

#[tokio::test]
async fn what_is_tried_again_while_leaders_stop_is_applied_once() {
    const ROUNDS: u64 = 3;
    const EACH: u64 = 40;
    let mut cluster = started(small_config()).await;
    let mut clients: Vec<Session<Ledger>> = Vec::new();
    for _ in 0..3 {
        clients.push(
            cluster
                .node(1)
                .group(GROUP)
                .open_session(DEADLINE)
                .await
                .unwrap(),
        );
    }
    let mut answers = Vec::new();
    for round in 0..ROUNDS {
        let leader = cluster.leader(1, GROUP);
        let other = ALL.into_iter().find(|id| *id != leader).unwrap();
        for session in &mut clients {
            *session = session.at(cluster.node(other).group(GROUP));
        }
        let load = clients
            .iter()
            .cloned()
            .enumerate()
            .map(|(client, session)| {
                tokio::spawn(async move {
                    let mut answers = Vec::new();
                    for number in round * EACH..(round + 1) * EACH {
                        let payload = payload(client, number);
                        let done = session.propose(payload.clone(), DEADLINE).await;
                        answers.push((payload, done.unwrap()));
                    }
                    answers
                })
            });
        let load: Vec<_> = load.collect();
        cluster.stop(leader).await;
        for load in load {
            answers.extend(load.await.unwrap());
        }
        cluster.open(leader).await.unwrap();
        cluster.led(GROUP..GROUP + 1).await;
    }
    let count = clients.len() * (ROUNDS * EACH) as usize;
    let entries = cluster.agree(GROUP, count).await;
    assert_eq!(entries.len(), count, "something was applied twice");
    let places: Vec<Index> = entries.keys().copied().collect();
    for (payload, done) in answers {
        assert_eq!(entries.get(&done.index), Some(&payload));
        assert_eq!(places[place(&done) as usize - 1], done.index);
    }
    cluster.stop_all().await;
}

#[tokio::test]
async fn many_proposals_of_a_session_are_under_way_together() {
    let mut cluster = started(small_config()).await;
    let session = cluster.node(2).group(GROUP).open_session(DEADLINE).await;
    let session = session.unwrap();
    let count = SESSION_WINDOW + 50;
    let proposals = (0..count).map(|number| {
        let session = session.clone();
        tokio::spawn(async move { session.propose(payload(0, number), DEADLINE).await })
    });
    let mut indexes = BTreeSet::new();
    for proposal in proposals.collect::<Vec<_>>() {
        indexes.insert(proposal.await.unwrap().unwrap().index);
    }
    assert_eq!(indexes.len() as u64, count);
    let entries = cluster.agree(GROUP, count as usize).await;
    assert!(entries.keys().eq(&indexes));
    cluster.stop_all().await;
}

#[tokio::test]
async fn a_retry_is_answered_from_a_snapshot_that_came_from_another_node() {
    let mut config = small_config();
    config.snapshot.keep_entries = 2;
    let mut cluster = started(config).await;
    cluster.agree(GROUP, 0).await;
    cluster.stop(3).await;
    let group = cluster.node(1).group(GROUP);
    let session = group.open_session(DEADLINE).await.unwrap();
    let mut first = Vec::new();
    for sequence in 1..=20 {
        let number = session.take_number().await;
        assert_eq!(number, sequence);
        let number = ProposalNumber {
            session: session.id(),
            sequence,
            lowest: 1,
        };
        let done = group.propose_numbered(number, payload(0, sequence)).await;
        first.push((number, done.unwrap()));
    }
    cluster.agree(GROUP, 20).await;
    for id in [1, 2] {
        let group = cluster.node(id).group(GROUP);
        until("the log is purged", async || {
            let last = group.snapshot().await.unwrap();
            group.status().await.unwrap().purged >= Index(last.index.0 - 2)
        })
        .await;
    }
    cluster.open(3).await.unwrap();
    cluster.agree(GROUP, 20).await;
    assert_eq!(cluster.node(3).status().counters.snapshots_received, 1);
    until("the node that took the snapshot leads", async || {
        let leader = cluster.node(3).group(GROUP).leader();
        let Some((leader, _)) = leader else {
            return false;
        };
        let group = cluster.node(leader.0).group(GROUP);
        leader.0 == 3 || {
            let _ = group.transfer_leadership(3).await;
            false
        }
    })
    .await;
    asked_again(&cluster, &first, 20).await;
    // Handles keep the data directory locked.
    drop((session, group));
    cluster.stop_all().await;
    for id in ALL {
        cluster.open(id).await.unwrap();
    }
    cluster.led(GROUP..GROUP + 1).await;
    asked_again(&cluster, &first, 20).await;
    cluster.stop_all().await;
}

/// What was proposed before is proposed again, on every node: the answers are the same, and nothing is applied.
async fn asked_again(cluster: &Cluster, first: &[(ProposalNumber, Committed)], count: usize) {
    for (number, done) in first {
        for id in ALL {
            let payload = payload(0, number.sequence);
            let group = cluster.node(id).group(GROUP);
            let mut again = Err(Error::Closed);
            until("a proposal is answered", async || {
                again = group.propose_numbered(*number, payload.clone()).await;
                again.is_ok()
            })
            .await;
            assert_eq!(again.as_ref(), Ok(done));
        }
    }
    assert_eq!(cluster.agree(GROUP, count).await.len(), count);
}

#[tokio::test]
async fn the_session_that_was_used_least_recently_makes_room() {
    let mut config = small_config();
    config.apply.max_sessions = 2;
    let mut cluster = started(config).await;
    // Not only where the leader is.
    let [one, two, three] = ALL.map(|id| cluster.node(id).group(GROUP));
    let first = one.open_session(DEADLINE).await.unwrap();
    let second = two.open_session(DEADLINE).await.unwrap();
    first.propose("a", DEADLINE).await.unwrap();
    let third = three.open_session(DEADLINE).await.unwrap();
    first.propose("b", DEADLINE).await.unwrap();
    third.propose("c", DEADLINE).await.unwrap();
    for handle in [&one, &two, &three] {
        let refused = second.at(handle.clone()).propose("d", DEADLINE).await;
        let session = second.id();
        assert_eq!(refused, Err(Error::SessionExpired { session }));
    }
    first.clone().close(DEADLINE).await.unwrap();
    let session = first.id();
    let refused = first.propose("e", DEADLINE).await;
    assert_eq!(refused, Err(Error::SessionExpired { session }));
    let entries = cluster.agree(GROUP, 3).await;
    assert_eq!(entries.into_values().collect::<Vec<_>>(), ["a", "b", "c"]);
    cluster.stop_all().await;
}

#[tokio::test]
async fn a_group_knows_no_sessions_of_the_one_that_had_its_id_before() {
    let mut cluster = started(small_config()).await;
    let group = cluster.node(1).group(GROUP);
    let old = group.open_session(DEADLINE).await.unwrap();
    old.propose("a", DEADLINE).await.unwrap();
    cluster.node(2).destroy_groups([GROUP]).await.unwrap();
    until("it is gone everywhere", async || {
        ALL.iter()
            .all(|id| cluster.node(*id).group(GROUP).leader().is_none())
    })
    .await;
    let groups = GROUP..GROUP + 1;
    cluster
        .node(1)
        .create_groups(groups.clone(), &ALL)
        .await
        .unwrap();
    cluster.led(groups).await;
    let group = cluster.node(1).group(GROUP);
    let new = group.open_session(DEADLINE).await.unwrap();
    assert_ne!(old.id(), new.id());
    let session = old.id();
    let refused = old.at(group).propose("a", DEADLINE).await;
    assert_eq!(refused, Err(Error::SessionExpired { session }));
    new.propose("b", DEADLINE).await.unwrap();
    let entries = cluster.agree(GROUP, 1).await;
    assert_eq!(entries.into_values().collect::<Vec<_>>(), ["b"]);
    cluster.stop_all().await;
}

#[tokio::test]
async fn a_client_that_is_restarted_goes_on_with_its_session() {
    let mut cluster = started(small_config()).await;
    let group = cluster.node(1).group(GROUP);
    let session = group.open_session(DEADLINE).await.unwrap();
    session.propose("a", DEADLINE).await.unwrap();
    let number = session.take_number().await;
    let done = session.propose_as(number, "b", DEADLINE).await.unwrap();
    let id = session.id();
    drop(session);
    // It had written its number down, and not the answer.
    let session = cluster.node(2).group(GROUP).resume_session(id, [number], 0);
    let again = session.propose_as(number, "b", DEADLINE).await.unwrap();
    assert_eq!(again, done);
    session.propose("c", DEADLINE).await.unwrap();
    let refused = session.propose_as(number, "b", DEADLINE).await;
    let lowest = number + 2;
    let sequence = number;
    assert_eq!(refused, Err(Error::ProposalNumber { sequence, lowest }));
    let late = ProposalNumber {
        session: id,
        sequence,
        lowest: 1,
    };
    let refused = group.propose_numbered(late, "b").await;
    let lowest = number + 1;
    assert_eq!(refused, Err(Error::ProposalNumber { sequence, lowest }));
    let entries = cluster.agree(GROUP, 3).await;
    assert_eq!(entries.into_values().collect::<Vec<_>>(), ["a", "b", "c"]);
    cluster.stop_all().await;
}

#[tokio::test]
async fn what_a_session_can_never_take_is_refused_at_propose() {
    let mut cluster = started(small_config()).await;
    let group = cluster.node(1).group(GROUP);
    let session = group.open_session(DEADLINE).await.unwrap();
    for (sequence, lowest) in [(0, 0), (1, 0), (1, 2), (SESSION_WINDOW + 1, 1)] {
        let number = ProposalNumber {
            session: session.id(),
            sequence,
            lowest,
        };
        let refused = group.propose_numbered(number, "a").await;
        assert_eq!(refused, Err(Error::ProposalNumber { sequence, lowest }));
    }
    // No session has this id.
    let none = group.resume_session(SessionId(0), [], 1);
    let refused = none.close(DEADLINE).await;
    let id = SessionId(0);
    assert_eq!(refused, Err(Error::SessionExpired { session: id }));
    cluster.stop_all().await;
    let closed = session.propose("a", DEADLINE).await;
    assert_eq!(closed, Err(Error::Closed));
}

#[tokio::test]
async fn a_proposal_without_a_quorum_ends_as_unknown_and_can_be_tried_again() {
    let mut cluster = started(small_config()).await;
    let group = cluster.node(1).group(GROUP);
    let session = group.open_session(DEADLINE).await.unwrap();
    let number = session.take_number().await;
    cluster.agree(GROUP, 0).await;
    cluster.stop(2).await;
    cluster.stop(3).await;
    let short = Duration::from_millis(50);
    let error = session.propose_as(number, "a", short).await.unwrap_err();
    assert!(
        error.may_have_committed() || error.is_retryable(),
        "{error}"
    );
    cluster.open(2).await.unwrap();
    session.propose_as(number, "a", DEADLINE).await.unwrap();
    cluster.open(3).await.unwrap();
    assert_eq!(cluster.agree(GROUP, 1).await.len(), 1);
    cluster.stop_all().await;
}

// ---- state machines with files of their own ----

/// Counts proposals, and writes itself into a file when it is told to.
struct Counter {
    file: PathBuf,
    saves_always: bool,
    count: u64,
    applied: Index,
}

const SAVE: &[u8] = b"save";
/// This and everything behind it is saved at once.
const SAVE_ALWAYS: &[u8] = b"save always";

impl Counter {
    fn save(&self) -> Result<(), MachineError> {
        std::fs::create_dir_all(self.file.parent().unwrap())?;
        let mut bytes = self.applied.0.to_le_bytes().to_vec();
        bytes.extend_from_slice(&self.count.to_le_bytes());
        Ok(std::fs::write(&self.file, bytes)?)
    }
}

impl StateMachine for Counter {
    fn open(_group: GroupId, dir: &Path) -> Result<(Self, Index), MachineError> {
        let mut counter = Counter {
            file: dir.join("count"),
            saves_always: false,
            count: 0,
            applied: Index::ZERO,
        };
        if let Ok(bytes) = std::fs::read(&counter.file) {
            let mut bytes = &bytes[..];
            counter.applied = Index(bytes.get_u64_le());
            counter.count = bytes.get_u64_le();
        }
        let applied = counter.applied;
        Ok((counter, applied))
    }

    fn apply(&mut self, entries: &[Entry<'_>], replies: &mut Replies) -> Result<(), MachineError> {
        for entry in entries {
            assert!(entry.index > self.applied, "{} again", entry.index);
            self.applied = entry.index;
            self.count += 1;
            replies.push(self.count.to_le_bytes());
            self.saves_always |= entry.payload == SAVE_ALWAYS;
            if self.saves_always || entry.payload == SAVE {
                self.save()?;
            }
        }
        Ok(())
    }

    fn query(&self, _query: &[u8]) -> Result<Bytes, MachineError> {
        Ok(Bytes::copy_from_slice(&self.count.to_le_bytes()))
    }

    fn snapshot(&self) -> Result<FrozenState, MachineError> {
        let count = self.count;
        Ok(Box::new(
            move |out| Ok(out.write_all(&count.to_le_bytes())?),
        ))
    }

    fn restore(&mut self, last: Index, from: &mut dyn std::io::Read) -> Result<(), MachineError> {
        let mut count = Vec::new();
        from.read_to_end(&mut count)?;
        (self.count, self.applied) = ((&count[..]).get_u64_le(), last);
        self.save()
    }
}

/// A node alone in its cluster.
async fn alone(dir: &Path, config: &Config) -> (Node<Counter>, GroupHandle<Counter>) {
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
    let node = Node::builder()
        .id(1)
        .cluster("test")
        .data_dir(dir.join("node"))
        .listen(address)
        .tls(Tls::dev(dir.join("ca")))
        .config(config.clone())
        .open()
        .await
        .unwrap();
    node.create_groups(GROUP..GROUP + 1, &[1]).await.unwrap();
    let group = node.group(GROUP);
    until("it leads", async || group.leader().is_some()).await;
    (node, group)
}

async fn propose(group: &GroupHandle<Counter>, payload: &'static [u8]) -> u64 {
    place(&group.propose(payload).await.unwrap())
}

async fn numbered(
    group: &GroupHandle<Counter>,
    session: SessionId,
    sequence: u64,
) -> Result<u64, Error> {
    let number = ProposalNumber {
        session,
        sequence,
        lowest: 1,
    };
    let done = group.propose_numbered(number, "numbered").await;
    done.map(|done| place(&done))
}

async fn opened(group: &GroupHandle<Counter>) -> SessionId {
    group.open_session(DEADLINE).await.unwrap().id()
}

/// Handles keep the data directory locked.
async fn stop(node: Node<Counter>, group: GroupHandle<Counter>) {
    node.shutdown().await.unwrap();
    drop(group);
}

async fn count(group: &GroupHandle<Counter>) -> u64 {
    let count = group.read(Read::Linearizable, Bytes::new()).await.unwrap();
    (&count[..]).get_u64_le()
}

#[tokio::test]
async fn a_durable_state_machine_that_is_ahead_of_the_snapshot_gets_its_sessions_from_the_log() {
    for has_snapshot in [false, true] {
        let (dir, config) = (tempfile::tempdir().unwrap(), small_config());
        let (node, group) = alone(dir.path(), &config).await;
        let session = opened(&group).await;
        assert_eq!(numbered(&group, session, 1).await, Ok(1));
        assert_eq!(propose(&group, SAVE_ALWAYS).await, 2);
        if has_snapshot {
            group.snapshot().await.unwrap();
        }
        assert_eq!(numbered(&group, session, 2).await, Ok(3));
        assert_eq!(propose(&group, b"plain").await, 4);
        stop(node, group).await;

        let (node, group) = alone(dir.path(), &config).await;
        assert_eq!(node.status().counters.restores, 0, "its own state is newer");
        let expected = match has_snapshot {
            true => Ok(1),
            // It was applied before the state machine was opened, which does not answer again.
            false => Err(Error::ReplyNotKept),
        };
        assert_eq!(numbered(&group, session, 1).await, expected);
        let again = numbered(&group, session, 2).await;
        assert_eq!(again, Err(Error::ReplyNotKept));
        assert_eq!(count(&group).await, 4);
        assert_eq!(numbered(&group, session, 3).await, Ok(5));
        // Frozen at a place that it really has.
        group.snapshot().await.unwrap();
        stop(node, group).await;
        let (node, group) = alone(dir.path(), &config).await;
        assert_eq!(count(&group).await, 5);
        assert_eq!(numbered(&group, session, 3).await, Ok(5));
        stop(node, group).await;
    }
}

#[tokio::test]
async fn a_durable_state_machine_that_is_behind_the_snapshot_begins_with_it_if_there_are_sessions()
{
    for has_session in [false, true] {
        let (dir, config) = (tempfile::tempdir().unwrap(), small_config());
        let (node, group) = alone(dir.path(), &config).await;
        assert_eq!(propose(&group, SAVE).await, 1);
        let session = match has_session {
            true => Some(opened(&group).await),
            false => None,
        };
        match session {
            Some(session) => assert_eq!(numbered(&group, session, 1).await, Ok(2)),
            None => assert_eq!(propose(&group, b"plain").await, 2),
        }
        group.snapshot().await.unwrap();
        assert_eq!(propose(&group, b"plain").await, 3);
        stop(node, group).await;

        let (node, group) = alone(dir.path(), &config).await;
        assert_eq!(node.status().counters.restores, u64::from(has_session));
        assert_eq!(count(&group).await, 3);
        if let Some(session) = session {
            assert_eq!(numbered(&group, session, 1).await, Ok(2));
        }
        assert_eq!(propose(&group, b"plain").await, 4);
        stop(node, group).await;
    }
}

#[tokio::test]
async fn a_durable_state_machine_without_sessions_is_handed_nothing_again() {
    for has_session in [false, true] {
        let (dir, config) = (tempfile::tempdir().unwrap(), small_config());
        let (node, group) = alone(dir.path(), &config).await;
        let mut applied = 0;
        if has_session {
            let session = opened(&group).await;
            assert_eq!(numbered(&group, session, 1).await, Ok(1));
            applied += 1;
        }
        for payload in std::iter::once(SAVE_ALWAYS).chain(std::iter::repeat_n(&b"plain"[..], 20)) {
            applied += 1;
            assert_eq!(propose(&group, payload).await, applied);
        }
        stop(node, group).await;
        let (node, group) = alone(dir.path(), &config).await;
        assert_eq!(propose(&group, b"plain").await, applied + 1);
        // The entry that begins a term, and the one just now.
        let handed = node.status().counters.applied;
        assert_eq!(handed > 20, has_session, "{handed} entries were handed out");
        stop(node, group).await;
    }
}
