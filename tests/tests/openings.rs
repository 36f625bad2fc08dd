//! State machines that are opened after a restart: several at a time, and in service at once.

use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::{Condvar, Mutex};
use std::time::Duration;

use bytes::Bytes;
use polyraft::{
    Entry, FrozenState, GroupId, Index, MachineError, Node, Replies, StateMachine, Tls,
};
use polyraft_tests::{small_config, until};

/// Groups whose state machines wait for each other.
const GROUPS: u64 = 2;

/// How long one waits before it gives up: it would wait for ever if the others were opened behind it.
const PATIENCE: Duration = Duration::from_secs(30);

/// How many are being opened, once they are to wait for each other.
static MEETING: Mutex<Option<u64>> = Mutex::new(None);
static SOMEBODY_CAME: Condvar = Condvar::new();

/// Is not open before all others are being opened too.
struct Sociable;

impl StateMachine for Sociable {
    fn open(_: GroupId, _: &Path) -> Result<(Self, Index), MachineError> {
        let mut meeting = MEETING.lock().unwrap();
        let Some(present) = &mut *meeting else {
            return Ok((Sociable, Index::ZERO));
        };
        *present += 1;
        SOMEBODY_CAME.notify_all();
        let is_alone = |present: &mut Option<u64>| present.is_some_and(|count| count < GROUPS);
        let waited = SOMEBODY_CAME.wait_timeout_while(meeting, PATIENCE, is_alone);
        match waited.unwrap().1.timed_out() {
            true => Err(MachineError::from("nobody else is being opened")),
            false => Ok((Sociable, Index::ZERO)),
        }
    }
    fn apply(&mut self, entries: &[Entry<'_>], replies: &mut Replies) -> Result<(), MachineError> {
        entries.iter().for_each(|entry| replies.push(entry.payload));
        Ok(())
    }
    fn query(&self, _: &[u8]) -> Result<Bytes, MachineError> {
        Ok(Bytes::new())
    }
    fn snapshot(&self) -> Result<FrozenState, MachineError> {
        Ok(Box::new(|_| Ok(())))
    }
    fn restore(&mut self, _: Index, _: &mut dyn Read) -> Result<(), MachineError> {
        Ok(())
    }
}

async fn open(dir: &Path, listen: SocketAddr) -> Node<Sociable> {
    let builder = Node::builder()
        .id(1)
        .data_dir(dir.join("node"))
        .listen(listen)
        .tls(Tls::dev(dir.join("ca")))
        .config(small_config());
    builder.open().await.unwrap()
}

#[tokio::test]
async fn state_machines_are_opened_side_by_side_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let listen = socket.local_addr().unwrap();
    drop(socket);
    let node = open(dir.path(), listen).await;
    node.create_groups(0..GROUPS, &[1]).await.unwrap();
    for group in 0..GROUPS {
        until("a proposal commits", async || {
            let proposed = node.group(group).propose(Bytes::from_static(b"x")).await;
            proposed.is_ok()
        })
        .await;
    }
    node.shutdown().await.unwrap();

    // One worker has both of them, and each waits for the other.
    assert_eq!(small_config().apply.workers, 1);
    *MEETING.lock().unwrap() = Some(0);
    let node = open(dir.path(), listen).await;
    for group in 0..GROUPS {
        let status = node.group(group).status().await.unwrap();
        assert_eq!(status.fault, None);
        until("it serves", async || {
            let proposed = node.group(group).propose(Bytes::from_static(b"y")).await;
            proposed.is_ok()
        })
        .await;
    }
    assert_eq!(*MEETING.lock().unwrap(), Some(GROUPS));
    node.shutdown().await.unwrap();
}
