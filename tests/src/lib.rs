//! Clusters of real nodes in one process, for tests: real QUIC on loopback, real files, real threads.
//! Nothing here may wait for time to pass: it waits for conditions, with a deadline that fails the test.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use polyraft::{
    Config, Entry, Error, FrozenState, GroupId, Index, MachineError, MemberChange, Membership,
    Merge, Node, NodeId, OpenError, Read, Replies, Split, StateMachine, Tls,
};
use polyraft_storage::{Disk, FileDisk};
use tempfile::TempDir;

pub mod crash_images;
pub mod history;
pub mod relay;
pub mod sim;

/// How long a condition may take to become true before a test fails. Far above what any of them needs.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// A state machine that remembers everything: an append-only list of (index, payload).
///
/// It refuses to apply a payload twice, and the payload [`Ledger::POISON`] at all. What begins with given bytes can be split off,
/// and the entries of another one be added: under their indexes there, with that of the merge in the upper half.
#[derive(Debug, Default)]
pub struct Ledger {
    entries: Vec<(Index, Bytes)>,
    last: Index,
}

impl Ledger {
    /// Applying this fails, which must quarantine the group.
    pub const POISON: &'static [u8] = b"poison";
    /// Applying this panics, which must quarantine the group.
    pub const PANIC: &'static [u8] = b"panic";
    /// The argument of a merge that this refuses.
    pub const UNWANTED: &'static [u8] = b"unwanted";
}

impl StateMachine for Ledger {
    fn open(_group: GroupId, _dir: &Path) -> Result<(Self, Index), MachineError> {
        Ok((Ledger::default(), Index::ZERO))
    }

    fn apply(&mut self, entries: &[Entry<'_>], replies: &mut Replies) -> Result<(), MachineError> {
        for entry in entries {
            assert_ne!(entry.payload, Ledger::PANIC, "asked to panic");
            if entry.payload == Ledger::POISON {
                return Err("asked to fail".into());
            }
            if self.last >= entry.index {
                return Err(format!("index {} came again", entry.index).into());
            }
            self.last = entry.index;
            self.entries.push((entry.index, entry.payload_bytes()));
            replies.push((self.entries.len() as u64).to_le_bytes());
        }
        Ok(())
    }

    fn query(&self, _query: &[u8]) -> Result<Bytes, MachineError> {
        let mut all = BytesMut::new();
        for (index, payload) in &self.entries {
            all.put_u64_le(index.0);
            all.put_u32_le(payload.len() as u32);
            all.put_slice(payload);
        }
        Ok(all.freeze())
    }

    fn snapshot(&self) -> Result<FrozenState, MachineError> {
        let state = self.query(&[])?;
        Ok(Box::new(move |out| Ok(out.write_all(&state)?)))
    }

    fn restore(&mut self, last: Index, from: &mut dyn std::io::Read) -> Result<(), MachineError> {
        let mut all = Vec::new();
        from.read_to_end(&mut all)?;
        self.entries = entries_of(Bytes::from(all)).into_iter().collect();
        self.last = last;
        Ok(())
    }

    fn can_split(&self, split: &Split<'_>) -> bool {
        !split.argument.is_empty()
    }

    fn split_off(&self, split: &Split<'_>) -> Result<FrozenState, MachineError> {
        let goes = |entry: &&(Index, Bytes)| entry.1.starts_with(split.argument);
        let part = Ledger {
            entries: self.entries.iter().filter(goes).cloned().collect(),
            last: split.index,
        };
        part.snapshot()
    }

    fn shed(&mut self, split: &Split<'_>) -> Result<(), MachineError> {
        self.entries
            .retain(|(_, payload)| !payload.starts_with(split.argument));
        Ok(())
    }

    fn can_merge(&self, merge: &Merge<'_>) -> bool {
        merge.argument != Ledger::UNWANTED
    }

    fn merge(
        &mut self,
        merge: &Merge<'_>,
        from: &mut dyn std::io::Read,
    ) -> Result<(), MachineError> {
        let mut all = Vec::new();
        from.read_to_end(&mut all)?;
        let theirs = entries_of(Bytes::from(all)).into_iter();
        let named = theirs.map(|(index, payload)| (Index(merge.index.0 << 32 | index.0), payload));
        self.entries.extend(named);
        self.last = merge.index;
        Ok(())
    }
}

/// Reads the answer of a [`Ledger`] query.
pub fn entries_of(mut answer: Bytes) -> BTreeMap<Index, Bytes> {
    let mut entries = BTreeMap::new();
    while answer.has_remaining() {
        let index = Index(answer.get_u64_le());
        let length = answer.get_u32_le() as usize;
        entries.insert(index, answer.split_to(length));
    }
    entries
}

/// Nodes 1 to n of one cluster, each with its own directory and port. A slot is empty while its node is stopped.
///
/// Its state machines are ledgers, or others that answer an empty query as a ledger does.
pub struct Cluster<M: StateMachine = Ledger> {
    nodes: BTreeMap<u64, Node<M>>,
    addresses: Vec<(u64, SocketAddr)>,
    /// Where a node finds another one, if not at its address.
    routes: BTreeMap<(u64, u64), SocketAddr>,
    /// How many of them there were in the beginning: those nodes are opened with each other as peers, later ones with all.
    founders: usize,
    config: Config,
    disks: BTreeMap<u64, Arc<dyn Disk>>,
    dir: TempDir,
}

impl Cluster {
    /// Describes a cluster of `nodes` and starts all of them.
    pub async fn start(nodes: u64, config: Config) -> Cluster {
        Cluster::of_machines(nodes, config).await
    }
}

impl<M: StateMachine> Cluster<M> {
    /// The same with other state machines.
    pub async fn of_machines(nodes: u64, config: Config) -> Cluster<M> {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut cluster = Cluster {
            nodes: BTreeMap::new(),
            addresses: free_addresses(nodes),
            routes: BTreeMap::new(),
            founders: nodes as usize,
            config,
            disks: BTreeMap::new(),
            dir,
        };
        for id in 1..=nodes {
            cluster.open(id).await.expect("a node opens");
        }
        cluster
    }

    /// Describes another node, which the ones before are not told of, and opens it.
    pub async fn join(&mut self, id: u64) -> Result<(), OpenError> {
        let [(_, address)] = free_addresses(1)[..] else {
            unreachable!("one was asked for")
        };
        self.addresses.push((id, address));
        self.open(id).await
    }

    /// Node `id`, which must be stopped, is going to be at another address.
    pub fn move_to_another_address(&mut self, id: u64) {
        let address = free_addresses(1)[0].1;
        let known = self.addresses.iter_mut().find(|(node, _)| *node == id);
        known.expect("a node of the cluster").1 = address;
    }

    /// Where node `id` listens.
    pub fn address(&self, id: u64) -> SocketAddr {
        let known = self.addresses.iter().find(|(node, _)| *node == id);
        known.expect("a node of the cluster").1
    }

    /// Opens node `id`, which must be stopped.
    pub async fn open(&mut self, id: u64) -> Result<(), OpenError> {
        let address = self.address(id);
        let founders = &self.addresses[..self.founders];
        let peers = match founders.iter().any(|(node, _)| *node == id) {
            true => founders,
            false => &self.addresses[..],
        };
        let way = |(to, address): &(u64, SocketAddr)| {
            let route = self.routes.get(&(id, *to));
            (*to, *route.unwrap_or(address))
        };
        let disk = self.disks.get(&id).cloned();
        let node = Node::builder()
            .id(id)
            .cluster("test")
            .data_dir(self.data_dir(id))
            .listen(address)
            .peers(peers.iter().map(way))
            .tls(Tls::dev(self.dir.path().join("ca")))
            .config(self.config.clone())
            .disk(disk.unwrap_or_else(|| Arc::new(FileDisk)))
            .open()
            .await?;
        self.nodes.insert(id, node);
        Ok(())
    }

    /// Nodes that are opened from now on get this configuration.
    pub fn reconfigure(&mut self, config: Config) {
        self.config = config;
    }

    /// Node `id` is opened on this file system from now on.
    pub fn put_on(&mut self, id: u64, disk: Arc<dyn Disk>) {
        self.disks.insert(id, disk);
    }

    /// Node `from` is opened with this as the address of node `to` from now on. The node with the lower number dials.
    pub fn route(&mut self, from: u64, to: u64, address: SocketAddr) {
        self.routes.insert((from, to), address);
    }

    /// Stops node `id`.
    pub async fn stop(&mut self, id: u64) {
        let node = self.nodes.remove(&id).expect("a running node");
        node.shutdown().await.expect("a clean shutdown");
    }

    /// Stops every node that runs.
    pub async fn stop_all(&mut self) {
        for id in self.running() {
            self.stop(id).await;
        }
    }

    /// The directory of node `id`.
    pub fn data_dir(&self, id: u64) -> PathBuf {
        self.dir.path().join(format!("node-{id}"))
    }

    /// Node `id`, which must be running.
    pub fn node(&self, id: u64) -> &Node<M> {
        &self.nodes[&id]
    }

    /// The nodes that run.
    pub fn running(&self) -> Vec<u64> {
        self.nodes.keys().copied().collect()
    }

    /// Waits until every running node knows a leader that runs, for each of the groups.
    pub async fn led(&self, groups: std::ops::Range<u64>) {
        let is_led = |node: &Node<M>, group| {
            node.group(group)
                .leader()
                .is_some_and(|(leader, _)| self.nodes.contains_key(&leader.0))
        };
        until("every group is led", async || {
            groups
                .clone()
                .all(|group| self.nodes.values().all(|node| is_led(node, group)))
        })
        .await;
    }

    /// The node that leads `group`, as node `asked` sees it.
    pub fn leader(&self, asked: u64, group: u64) -> u64 {
        self.node(asked)
            .group(group)
            .leader()
            .expect("a led group")
            .0
            .0
    }

    /// What node `id` has applied for `group`. Waits while its state machine is given the state of a snapshot.
    pub async fn applied(&self, id: u64, group: u64) -> BTreeMap<Index, Bytes> {
        let group = self.node(id).group(group);
        let mut answer = Err(Error::Closed);
        until("a state machine is there", async || {
            answer = group.read(Read::LOCAL, Bytes::new()).await;
            !matches!(answer, Err(Error::Restoring { .. }))
        })
        .await;
        entries_of(answer.expect("a hosted group answers"))
    }

    /// Waits until every running node has applied `count` entries of `group`, and checks that they are the same.
    pub async fn agree(&self, group: u64, count: usize) -> BTreeMap<Index, Bytes> {
        until("every replica has applied everything", async || {
            let mut lengths = Vec::new();
            for id in self.running() {
                lengths.push(self.applied(id, group).await.len());
            }
            lengths.dedup();
            lengths.len() == 1 && lengths[0] >= count
        })
        .await;
        let first = self.applied(self.running()[0], group).await;
        for id in self.running() {
            assert_eq!(
                self.applied(id, group).await,
                first,
                "node {id} differs in group {group}"
            );
        }
        first
    }

    /// Changes the members of a group. Asks whoever leads, as often as leadership moves meanwhile.
    ///
    /// # Errors
    /// Those of [`polyraft::GroupHandle::change_members`] that have nothing to do with who leads.
    pub async fn change_members(
        &self,
        group: u64,
        changes: &[MemberChange],
    ) -> Result<Membership, Error> {
        let within = Duration::from_secs(30);
        let mut outcome = Err(Error::Closed);
        until("somebody leads through the change", async || {
            for id in self.running() {
                let handle = self.node(id).group(group);
                outcome = handle.change_members(changes.iter().copied(), within).await;
                let moves = matches!(
                    outcome,
                    Err(Error::NotLeader { .. }
                        | Error::Unknown { .. }
                        | Error::NoSuchGroup { .. })
                );
                if !moves {
                    return true;
                }
            }
            false
        })
        .await;
        outcome
    }

    /// Merges a group into another one. Asks whoever leads; a merge whose outcome was open may turn out to be made.
    pub async fn merge(&self, source: u64, target: u64) {
        until("a group is merged", async || {
            for id in self.running() {
                let group = self.node(id).group(source);
                match group.merge_into(target, Bytes::new()).await {
                    Ok(handle) => {
                        assert_eq!(handle.id(), GroupId(target));
                        return true;
                    }
                    Err(Error::Merging { into }) if group.status().await.is_err() => {
                        assert_eq!(into, GroupId(target));
                        return true;
                    }
                    Err(
                        Error::NotLeader { .. }
                        | Error::Unknown { .. }
                        | Error::Merging { .. }
                        | Error::Merge { .. }
                        | Error::NoSuchGroup { .. },
                    ) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            false
        })
        .await;
    }

    /// Waits until node `asked` judges `peer` as `alive`.
    pub async fn sees(&self, asked: u64, peer: u64, alive: bool) {
        until("a peer's liveness is noticed", async || {
            let peers = self.node(asked).status().peers;
            peers
                .iter()
                .any(|status| status.node == NodeId(peer) && status.alive == alive)
        })
        .await;
    }
}

/// Waits until `condition` holds; fails the test at [`DEADLINE`].
pub async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition().await {
        assert!(Instant::now() < deadline, "{what}: not within {DEADLINE:?}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Small segments and queues, so that a test node opens quickly and needs little disk.
pub fn small_config() -> Config {
    Config::from_toml_str(
        r#"
        [wal]
        segment_bytes = "4MiB"
        max_batch_bytes = "1MiB"
        pool_segments = 1
        checkpoint_bytes = "8MiB"
        min_free_bytes = "1MiB"
        [batch]
        max_proposal_bytes = "256KiB"
        "#,
    )
    .expect("a valid configuration")
}

/// Ports that are free, and that nobody else is given while a node does not hold its own: they lie below those that the system gives
/// out by itself (from 32,768), and this process takes each once. Nodes have to know each other's before the first one starts.
fn free_addresses(nodes: u64) -> Vec<(u64, SocketAddr)> {
    (1..=nodes).map(|id| (id, free_address())).collect()
}

fn free_address() -> SocketAddr {
    const FIRST: u32 = 10_000;
    const COUNT: u32 = 22_000;
    static TAKEN: AtomicU32 = AtomicU32::new(0);
    // Processes side by side begin far from each other.
    let begin = std::process::id().wrapping_mul(1_009) % COUNT;
    let next = || {
        let place = (begin + TAKEN.fetch_add(1, Ordering::Relaxed)) % COUNT;
        let port = u16::try_from(FIRST + place).expect("a port has 16 bits");
        SocketAddr::from((Ipv4Addr::LOCALHOST, port))
    };
    let mut candidates = std::iter::repeat_with(next).take(COUNT as usize);
    let free = candidates.find(|address| UdpSocket::bind(address).is_ok());
    free.expect("a free UDP port")
}
