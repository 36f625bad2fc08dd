//! `polyraft recover` as its users call it: what it says, the plan that it leaves, exit codes.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use polyraft_raft::{Configuration, EntryRange, GroupId, HardState, Index, NodeId, Term};
use polyraft_storage::{DataDir, EntryKind, FileDisk, WalOptions};

/// Writes the directory of a node with some groups of the nodes 1 to 3, one entry in each, and one group of its own.
fn write(dir: &Path, node: u64, groups: u64) {
    let path = dir.join(format!("node-{node}"));
    let dir = DataDir::open(Arc::new(FileDisk), path, "shop", NodeId(node), 1).unwrap();
    let options = WalOptions {
        segment_bytes: 1 << 20,
        max_batch_bytes: 64 << 10,
        min_free_bytes: 0,
        ..WalOptions::default()
    };
    let mut opened = polyraft_storage::open(&dir, &options, 1).unwrap();
    let log = &mut opened.logs[0];
    let own = Configuration::simple([NodeId(node)]);
    log.create(GroupId(1000 + node), &own).unwrap();
    for group in (1..=groups).map(GroupId) {
        let members = Configuration::simple([1, 2, 3].map(NodeId));
        log.create(group, &members).unwrap();
        let term = Term(4);
        let state = HardState {
            term,
            vote: None,
            commit: Index(0),
        };
        log.hard_state(group, state).unwrap();
        let (first, end) = (Index(1), Index(2));
        let range = EntryRange { term, first, end };
        log.append(group, range, EntryKind::Normal, ["put"])
            .unwrap();
    }
    log.submit().unwrap();
    opened.wals[0].close().unwrap();
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

#[test]
fn a_plan_is_told_kept_and_carried_out_once() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    for node in [1, 2] {
        write(dir, node, 5);
    }
    let (code, said) = run(
        dir,
        "recover plan node-1 --lost 2,3 --out plan.json --group 3",
    );
    assert_eq!(code, Some(0), "{said}");
    for words in [
        "Cluster \"shop\": node 1 left, nodes 2, 3 lost.",
        "5 groups without a quorum can be recovered, 0 can't. 1 other with a quorum is left alone.",
        "In 5 groups the members that are lost could commit by themselves.",
        "5 entries of 5 groups become committed, whether or not they were acknowledged.",
        "group 3: voters [1, 2, 3], learners [] become voters [1], learners []; node 1 has the newest log, through index 1",
        "node 1: term 4, last entry 1 of term 4, committed through 0",
        "nodes 2, 3 must NEVER be started again",
        "The plan is in plan.json.",
    ] {
        assert!(said.contains(words), "{words:?} is not in:\n{said}");
    }
    assert!(!said.contains("group 4:"), "{said}");
    let (_, json) = run(dir, "recover plan node-1 --lost 2,3 --json");
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["groups"].as_array().unwrap().len(), 5);

    for (line, why) in [
        (
            "recover plan node-1 --lost 2",
            "node 3 is neither given nor named as lost",
        ),
        ("recover plan node-1 node-2 --lost 2,3", "named as lost"),
        (
            "recover apply node-1 --lost 2 --plan plan.json",
            "gives up the nodes [2, 3]",
        ),
        (
            "recover apply node-1 node-2 --lost 2,3 --plan plan.json",
            "named as lost",
        ),
        (
            "recover apply node-1 --lost 2,3 --plan node-1/identity",
            "cannot read node-1/identity",
        ),
    ] {
        let (code, said) = run(dir, line);
        assert_eq!(code, Some(1), "{line}: {said}");
        assert!(said.contains(why), "{line}: {said}");
    }
    let apply = "recover apply node-1 --lost 3,2 --plan plan.json";
    for (line, why) in [
        (apply, "5 groups recovered, 0 had been before"),
        (apply, "0 groups recovered, 5 had been before"),
        ("wal verify node-1", "sound"),
        ("wal dump node-1", "entries 2..3"),
        (
            "recover plan node-1 --lost 2,3",
            "0 groups without a quorum can be recovered, 0 can't",
        ),
    ] {
        let (code, said) = run(dir, line);
        assert_eq!(code, Some(0), "{line}: {said}");
        assert!(said.contains(why), "{line}: {said}");
    }
    let kept = std::fs::read_dir(dir.join("node-1")).unwrap();
    let kept = kept.filter(|entry| {
        let name = entry.as_ref().unwrap().file_name();
        name.to_string_lossy().starts_with("recovered-")
    });
    assert_eq!(kept.count(), 1);
}
