//! Peers that are added, moved and taken out while a node runs.
//! A caller must never be told of a change that a restart would forget, nor a shard hear of a connection to a peer that it does not
//! know.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, SocketAddrV6};
use std::sync::{Arc, mpsc};

use parking_lot::Mutex;
use polyraft_raft::NodeId;
use polyraft_storage::{AddressChange, DataDir, StorageError};
use polyraft_transport::Network;

use super::{Inner, Node, Running, blocking};
use crate::directory::{NODE_IDS, is_node_id};
use crate::error::{Error, names};
use crate::event::{Objections, PeerNeed, ShardEvent};
use crate::machine::StateMachine;
use crate::trust::MAX_PEERS;

/// Drops from a data directory what became of peers that the node is opened with otherwise now: it must not count again once they are
/// given as they were then.
pub(crate) fn forget_outdated(
    data_dir: &DataDir,
    given: &BTreeMap<NodeId, SocketAddr>,
) -> Result<(), StorageError> {
    for (node, change) in data_dir.address_changes() {
        let given = given.get(&node).copied();
        if given != change.given {
            data_dir.note_address(node, AddressChange { given, now: given })?;
        }
    }
    Ok(())
}

/// The other nodes.
#[derive(Debug)]
pub(crate) struct Peers {
    /// As the node was opened with them.
    given: BTreeMap<NodeId, SocketAddr>,
    now: Mutex<BTreeMap<NodeId, SocketAddr>>,
    /// All that were peers since the node was opened: each keeps its place among those that shards count on.
    seen: Mutex<BTreeSet<NodeId>>,
}

impl Peers {
    /// Those that the node is opened with, and what became of them when it ran before. What is given now and was not given then
    /// counts more: somebody has changed it since.
    pub(crate) fn new(
        given: BTreeMap<NodeId, SocketAddr>,
        changes: &BTreeMap<NodeId, AddressChange>,
    ) -> Self {
        let mut now = given.clone();
        for (node, change) in changes {
            if given.get(node).copied() != change.given {
                continue;
            }
            match change.now {
                Some(address) => now.insert(*node, address),
                None => now.remove(node),
            };
        }
        let seen = now.keys().copied().collect();
        Peers {
            given,
            now: Mutex::new(now),
            seen: Mutex::new(seen),
        }
    }

    /// Those that the node was opened with.
    pub(crate) fn given(&self) -> &BTreeMap<NodeId, SocketAddr> {
        &self.given
    }

    pub(crate) fn ids(&self) -> Vec<NodeId> {
        self.now.lock().keys().copied().collect()
    }

    /// Notes a peer; false when there is no place for another one.
    fn note(&self, node: NodeId) -> bool {
        let mut seen = self.seen.lock();
        let has_place = seen.contains(&node) || seen.len() < MAX_PEERS;
        if has_place {
            seen.insert(node);
        }
        has_place
    }

    pub(crate) fn list(&self) -> Vec<(NodeId, SocketAddr)> {
        let now = self.now.lock();
        now.iter().map(|(node, at)| (*node, *at)).collect()
    }

    pub(super) fn contains(&self, node: NodeId) -> bool {
        self.now.lock().contains_key(&node)
    }

    fn at(&self, node: NodeId) -> Option<SocketAddr> {
        self.now.lock().get(&node).copied()
    }
}

/// What becomes of a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    Add(SocketAddr),
    Move(SocketAddr),
    Remove,
}

/// A change that nothing speaks against, unless a group needs the peer.
#[derive(Debug)]
pub(crate) struct Asked {
    node: NodeId,
    change: Change,
    before: Option<SocketAddr>,
    /// Where the shards say which of their groups need it, and how many have still to.
    answers: Option<(mpsc::Receiver<Result<Objections, Error>>, usize)>,
    /// What they have said.
    objections: Objections,
}

impl Asked {
    /// Waits until all shards have answered, or one whose group needs the peer.
    fn wait(&mut self) -> Result<(), Error> {
        while self.objections.need.is_none_or(|need| !need.is_running)
            && let Some((answers, left @ 1..)) = &mut self.answers
        {
            let answer = answers.recv().map_err(|_| Error::Closed)??;
            *left -= 1;
            self.objections.add(answer);
        }
        self.verdict()
    }

    /// Takes the answers that have come. True: they were the last ones.
    #[cfg(feature = "sim")]
    pub(crate) fn poll(&mut self) -> Result<bool, Error> {
        while let Some((answers, left @ 1..)) = &mut self.answers {
            let answer = match answers.try_recv() {
                Ok(answer) => answer?,
                Err(mpsc::TryRecvError::Empty) => return Ok(false),
                Err(mpsc::TryRecvError::Disconnected) => return Err(Error::Closed),
            };
            *left -= 1;
            self.objections.add(answer);
        }
        self.verdict().map(|()| true)
    }

    fn verdict(&self) -> Result<(), Error> {
        let Objections { need, untold } = &self.objections;
        let why = match need {
            Some(PeerNeed {
                group,
                is_running: true,
            }) => format!("group {group} has it as a member; change its members first"),
            Some(PeerNeed { group, .. }) => format!(
                "group {group} has it as a member, as far as its replica here knows, which is out of service; change \
                 the group's members, or take this node out of it first"
            ),
            None if !untold.is_empty() => format!(
                "{} have not confirmed which groups were destroyed, and that could be forgotten without it; ask again once they run and can write, or take them out first",
                names(untold)
            ),
            None => return Ok(()),
        };
        let node = self.node;
        Err(Error::Peer { node, why })
    }
}

impl<M: StateMachine> Node<M> {
    /// Makes a node a peer of this one while it runs, and after every restart: from then on groups can move to it. Call it on
    /// every node of the cluster; the new node is opened with all of them as its peers. Adding it again at the same address does
    /// nothing.
    ///
    /// # Errors
    /// [`Error::Peer`] when it is a peer already at another address, when there are too many, or when that can't be remembered,
    /// as an IPv6 address with a scope never can;
    /// [`Error::Closed`] after a shutdown.
    pub async fn add_peer(&self, id: u64, address: SocketAddr) -> Result<(), Error> {
        self.change_peer(id, Change::Add(address)).await
    }

    /// Changes the address of a peer, also for after a restart. A connection that works stays as it is.
    ///
    /// # Errors
    /// [`Error::Peer`] when it is no peer, or when that can't be remembered; [`Error::Closed`] after a shutdown.
    pub async fn update_peer(&self, id: u64, address: SocketAddr) -> Result<(), Error> {
        self.change_peer(id, Change::Move(address)).await
    }

    /// Takes a node out of the peers, also for after a restart: this node does not connect to it any more, and does not let it in.
    ///
    /// Whether a group needs it is asked before, and not again: don't bring it into a group at the same time. Before, all living
    /// peers are told which groups were destroyed, as far as this node knows, so that nobody takes one for new; that is waited for, up to
    /// five seconds.
    ///
    /// # Errors
    /// [`Error::Peer`] when it is no peer, when a group of which this node has a replica has it as a member, when a living peer, or
    /// more than half of the remaining nodes, have not confirmed which groups were destroyed, or when that can't be remembered; [`Error::Fault`] when this node is out of service, [`Error::Closed`] after a shutdown.
    pub async fn remove_peer(&self, id: u64) -> Result<(), Error> {
        self.change_peer(id, Change::Remove).await
    }

    async fn change_peer(&self, id: u64, change: Change) -> Result<(), Error> {
        let (node, inner) = (NodeId(id), Arc::clone(&self.inner));
        let changed = blocking("polyraft-peers", move || inner.change_peer(node, change)).await;
        changed.unwrap_or_else(|error| {
            let why = error.to_string();
            Err(Error::Peer { node, why })
        })
    }
}

impl Inner {
    fn change_peer(&self, node: NodeId, change: Change) -> Result<(), Error> {
        let _alone = self.changing.lock();
        let asked = match &*self.running.lock() {
            Some(_) => self.ask(node, change)?,
            None => return Err(Error::Closed),
        };
        let Some(mut asked) = asked else {
            return Ok(());
        };
        asked.wait()?;
        // None after a shutdown, when the directory may be somebody else's.
        match &*self.running.lock() {
            Some(Running {
                network, data_dir, ..
            }) => self.carry_out(&asked, &**network, data_dir),
            None => Err(Error::Closed),
        }
    }

    /// Looks what speaks against a change, and asks the shards if they may know. None: there is nothing to do.
    pub(crate) fn ask(&self, node: NodeId, change: Change) -> Result<Option<Asked>, Error> {
        let before = self.peers.at(node);
        if let (Change::Add(address), Some(before)) = (change, before)
            && address == before
        {
            return Ok(None);
        }
        if let Some(why) = self.refusal(node, change, before) {
            return Err(Error::Peer { node, why });
        }
        let answers = (change == Change::Remove).then(|| {
            let (reply, answers) = mpsc::channel();
            let asks = || ShardEvent::PeerNeeded {
                node,
                reply: reply.clone(),
            };
            self.shared.tell_all(asks);
            (answers, self.shared.inboxes.len())
        });
        Ok(Some(Asked {
            node,
            change,
            before,
            answers,
            objections: Objections::default(),
        }))
    }

    /// Does what was asked for, once no group needs the peer.
    pub(crate) fn carry_out(
        &self,
        asked: &Asked,
        network: &dyn Network,
        data_dir: &DataDir,
    ) -> Result<(), Error> {
        let (node, before) = (asked.node, asked.before);
        let now = match asked.change {
            Change::Add(address) | Change::Move(address) => Some(address),
            Change::Remove => None,
        };
        let given = self.peers.given.get(&node).copied();
        data_dir
            .note_address(node, AddressChange { given, now })
            .map_err(|error| {
                let why = error.to_string();
                Error::Peer { node, why }
            })?;
        tracing::info!(at = %self.shared.node, peer = %node, ?before, ?now, "the peers change");
        match now {
            Some(address) => {
                self.peers.now.lock().insert(node, address);
                if before.is_none() {
                    self.shared.tell_all(|| ShardEvent::PeerAdded { node });
                }
                network.set_peer(node, address);
            }
            None => {
                self.peers.now.lock().remove(&node);
                network.remove_peer(node);
                self.shared.tell_all(|| ShardEvent::PeerRemoved { node });
            }
        }
        Ok(())
    }

    /// What speaks against a change, as far as that is known without asking the shards.
    fn refusal(&self, node: NodeId, change: Change, before: Option<SocketAddr>) -> Option<String> {
        let given = self.peers.given.get(&node).copied();
        let why = match (change, before) {
            _ if node == self.shared.node => "it is this node itself".to_owned(),
            _ if !is_node_id(node) => NODE_IDS.to_owned(),
            (Change::Add(_), Some(at)) => {
                format!("it is one already, at {at}; update_peer changes that")
            }
            (Change::Move(_) | Change::Remove, None) => "it is none".to_owned(),
            (Change::Add(at) | Change::Move(at), _) if is_scoped(at) => format!(
                "{at} is an address with a scope, which can't be remembered; give it one without"
            ),
            _ if given.is_some_and(is_scoped) => {
                "this node was opened with an address of it that has a scope, so that no change of it can be remembered; open the \
                 node with another one, or without it"
                    .to_owned()
            }
            (Change::Add(_), None) if !self.peers.note(node) => format!(
                "a node has at most {MAX_PEERS} peers, those included that were taken out since it was opened; open it anew"
            ),
            _ => return None,
        };
        Some(why)
    }
}

/// Whether an address says more than an IP address and a port, which is all that the data directory has room for. The number of an
/// interface would mean another one after a restart of the machine anyhow.
fn is_scoped(address: SocketAddr) -> bool {
    match address {
        SocketAddr::V4(_) => false,
        SocketAddr::V6(at) => at != SocketAddrV6::new(*at.ip(), at.port(), 0, 0),
    }
}

#[cfg(test)]
mod tests {
    use polyraft_raft::Tick;

    use super::*;
    use crate::trust::{Batches, Standing, Trust};

    #[test]
    fn no_more_peers_come_and_go_than_shards_have_places_for() {
        let given: BTreeMap<_, _> = [(NodeId(2), SocketAddr::from(([127, 0, 0, 1], 20)))].into();
        let peers = Peers::new(given, &BTreeMap::new());
        let trust = Trust::new(&peers.ids(), 1);
        let stands = |node| {
            let standing = Standing {
                by: node,
                batches: [1].into_iter().collect(),
                since: Tick(1),
                until: Tick(9),
            };
            trust.add(node, &Batches::new());
            trust.publish(&standing);
            trust.stands(node, 0, 1, Tick(5))
        };
        // Each is taken out before the next one comes.
        let newcomers = (3..).map(NodeId);
        let last = newcomers.take(MAX_PEERS - 1).last().unwrap();
        for id in 3..=last.0 {
            assert!(peers.note(NodeId(id)) && stands(NodeId(id)), "{id}");
        }
        assert!(!peers.note(NodeId(last.0 + 1)), "nobody could count on it");
        assert!(!stands(NodeId(last.0 + 1)));
        assert!(peers.note(NodeId(3)) && stands(NodeId(3)), "it has a place");
    }

    #[test]
    fn what_was_given_otherwise_once_does_not_come_back() {
        let at = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
        let disk: Arc<dyn polyraft_storage::Disk> = Arc::new(polyraft_storage::FileDisk);
        let place = tempfile::tempdir().unwrap();
        let open = || DataDir::open(Arc::clone(&disk), place.path(), "c", NodeId(1), 1).unwrap();
        let (node, none) = (NodeId(4), BTreeMap::new());
        let with = BTreeMap::from([(node, at(40))]);
        let dir = open();
        let (given, now) = (None, Some(at(40)));
        dir.note_address(node, AddressChange { given, now })
            .unwrap();
        forget_outdated(&dir, &none).unwrap();
        assert_eq!(dir.address_changes().len(), 1, "nothing else is given");
        drop(dir);
        // It was added while the node ran, then in its configuration, and taken out of that.
        for (given, peers) in [(&with, 1), (&none, 0)] {
            let dir = open();
            let found = Peers::new(given.clone(), &dir.address_changes());
            assert_eq!(found.ids().len(), peers);
            forget_outdated(&dir, given).unwrap();
        }
    }

    #[test]
    fn what_somebody_gives_anew_counts_more_than_what_is_remembered() {
        let at = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
        let change = |given: Option<u16>, now: Option<u16>| AddressChange {
            given: given.map(at),
            now: now.map(at),
        };
        let changes = BTreeMap::from([
            (NodeId(2), change(Some(20), Some(21))),
            (NodeId(3), change(Some(30), None)),
            (NodeId(4), change(None, Some(40))),
            (NodeId(5), change(Some(50), Some(51))),
            (NodeId(6), change(None, Some(60))),
            (NodeId(7), change(Some(70), None)),
        ]);
        // 5 and 7 were given another address since, and 6 one at all.
        let given = [(2, 20), (3, 30), (5, 55), (6, 66), (7, 77), (8, 80)];
        let given = given.map(|(node, port)| (NodeId(node), at(port)));
        let peers = Peers::new(given.into(), &changes);
        let expected = [(2, 21), (4, 40), (5, 55), (6, 66), (7, 77), (8, 80)];
        assert_eq!(
            peers.list(),
            expected.map(|(node, port)| (NodeId(node), at(port)))
        );
        assert_eq!(peers.ids().len(), 6);
    }
}
