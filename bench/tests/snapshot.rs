//! `polyraft snapshot` as its users call it: what it prints, the files that it leaves, exit codes.

use std::path::Path;
use std::process::Command;

use bytes::Bytes;
use polyraft::{
    Entry, FrozenState, GroupId, Index, MachineError, Node, Replies, StateMachine, Tls,
};

/// Counts what it applies.
struct Counter(u64);

impl StateMachine for Counter {
    fn open(_group: GroupId, _dir: &Path) -> Result<(Self, Index), MachineError> {
        Ok((Counter(0), Index::ZERO))
    }

    fn apply(&mut self, entries: &[Entry<'_>], replies: &mut Replies) -> Result<(), MachineError> {
        for _ in entries {
            self.0 += 1;
            replies.push(self.0.to_le_bytes());
        }
        Ok(())
    }

    fn query(&self, _query: &[u8]) -> Result<Bytes, MachineError> {
        Ok(Bytes::copy_from_slice(&self.0.to_le_bytes()))
    }

    fn snapshot(&self) -> Result<FrozenState, MachineError> {
        let count = self.0;
        Ok(Box::new(
            move |out| Ok(out.write_all(&count.to_le_bytes())?),
        ))
    }

    fn restore(&mut self, _last: Index, from: &mut dyn std::io::Read) -> Result<(), MachineError> {
        let mut count = [0; 8];
        from.read_exact(&mut count)?;
        self.0 = u64::from_le_bytes(count);
        Ok(())
    }
}

async fn open(dir: &Path, id: u64) -> Node<Counter> {
    Node::<Counter>::builder()
        .id(id)
        .cluster("shop")
        .data_dir(dir.join(format!("node-{id}")))
        .listen("127.0.0.1:0".parse().unwrap())
        .tls(Tls::dev(dir.join("ca")))
        .open()
        .await
        .unwrap()
}

fn run(dir: &Path, line: &str) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_polyraft"))
        .args(line.split_whitespace())
        .current_dir(dir)
        .output()
        .unwrap();
    let said = [output.stdout, output.stderr].concat();
    (
        output.status.code(),
        String::from_utf8_lossy(&said).into_owned(),
    )
}

#[tokio::test]
async fn a_snapshot_goes_from_one_data_directory_to_another() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let node = open(dir, 1).await;
    node.create_groups(7..8, &[1]).await.unwrap();
    for _ in 0..5 {
        while node.group(7).propose(&b"one more"[..]).await.is_err() {}
    }
    let last = node.group(7).snapshot().await.unwrap();
    let about = format!("group 7 through index {}", last.index.0);
    for line in [
        "snapshot list node-1",
        "snapshot export node-1 7 7.snap",
        "snapshot verify 7.snap",
    ] {
        let (code, said) = run(dir, line);
        assert_eq!(code, Some(0), "{line}: {said}");
        assert!(said.contains(&about), "{line}: {said}");
    }
    let import = "snapshot import node-2 7.snap --cluster shop --node 2 --members 2 --group 9";
    let (code, said) = run(dir, import);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("group 9"), "{said}");
    for (line, why) in [
        (import, "has been on this node before"),
        (
            "snapshot import node-1 7.snap --cluster shop --node 1 --members 1 --group 9",
            "lock",
        ),
        ("snapshot export node-1 8 8.snap", "no snapshot of group"),
        ("snapshot export node-1 7 7.snap", "exist"),
        ("snapshot verify node-1/identity", "not a usable snapshot"),
        ("snapshot list nowhere", "nowhere"),
    ] {
        let (code, said) = run(dir, line);
        assert_eq!(code, Some(1), "{line}: {said}");
        assert!(said.contains(why), "{line}: {said}");
    }
    node.shutdown().await.unwrap();

    let node = open(dir, 2).await;
    let group = node.group(9);
    let mut reply = group.propose(&b"one more"[..]).await;
    while reply.is_err() {
        reply = group.propose(&b"one more"[..]).await;
    }
    assert_eq!(reply.unwrap().reply[..], 6u64.to_le_bytes());
    node.shutdown().await.unwrap();
}
