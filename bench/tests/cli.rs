//! The command `polyraft` as its users call it: exit codes, files, and what it says when it refuses. Each test runs
//! the binary in a directory of its own.

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

fn polyraft(dir: &Path, line: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_polyraft"))
        .args(line.split_whitespace())
        .current_dir(dir)
        .env_remove("RUST_LOG")
        .output()
        .expect("the binary runs")
}

fn said(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

#[track_caller]
fn succeeds(dir: &Path, line: &str) -> String {
    let output = polyraft(dir, line);
    assert_eq!(
        output.status.code(),
        Some(0),
        "polyraft {line}\n{}",
        said(&output)
    );
    said(&output)
}

#[track_caller]
fn fails(dir: &Path, line: &str) -> String {
    let output = polyraft(dir, line);
    assert_eq!(
        output.status.code(),
        Some(1),
        "polyraft {line}\n{}",
        said(&output)
    );
    said(&output)
}

#[test]
fn the_demo_loses_a_node_and_keeps_its_promises() {
    let dir = tempfile::tempdir().unwrap();
    let said = succeeds(
        dir.path(),
        "demo --groups 16 --seconds 1 --inflight 64 --idle 1 --json results.json",
    );
    assert!(said.contains("commits/s"), "{said}");
    let json: Value =
        serde_json::from_slice(&fs::read(dir.path().join("results.json")).unwrap()).unwrap();
    assert_eq!(json["verified"], true, "{json}");
    assert_eq!(json["nodes"], 3);
    assert_eq!(json["groups"], 16);
    assert!(json["committed"].as_u64() > Some(0), "{json}");
    assert!(json["fsyncs"].as_u64() > Some(0), "{json}");
    assert!(json["failover_ms"]["groups"].as_u64() > Some(0), "{json}");
    assert_eq!(json["verification"]["replicas"], 48);
    assert_eq!(json["verification"]["examples"], Value::Array(Vec::new()));
    assert!(json["idle"]["beats"].as_u64() > Some(0), "{json}");
    assert!(
        !dir.path().join("data").exists(),
        "the temporary directory is removed"
    );
}

#[test]
fn a_kept_directory_can_be_verified_again_and_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let run = "demo --dir kept --acked acked --seconds 1 --inflight 8";
    succeeds(dir.path(), &format!("{run} --nodes 1 --groups 4"));
    let verify = "demo --dir kept --acked acked --verify-only";
    succeeds(dir.path(), verify);
    assert!(succeeds(dir.path(), "wal verify kept").contains("sound"));
    assert!(!succeeds(dir.path(), "wal dump kept/node-1").is_empty());
    succeeds(dir.path(), &format!("{run} --groups 6"));
    succeeds(dir.path(), verify);

    // A record of a write that was never made must be missed: group 0, client 1, sequence 0.
    let mut record = [0; 24];
    record[8] = 1;
    let mut acked = OpenOptions::new()
        .append(true)
        .open(dir.path().join("acked"))
        .unwrap();
    acked.write_all(&record).unwrap();
    let said = fails(dir.path(), verify);
    assert!(said.contains("broken promise"), "{said}");
    assert!(said.contains("lacks 1 acknowledged"), "{said}");
}

#[test]
fn a_damaged_log_is_found_with_its_position() {
    let dir = tempfile::tempdir().unwrap();
    succeeds(
        dir.path(),
        "demo --dir kept --seconds 1 --inflight 64 --nodes 1 --groups 4",
    );
    flip_a_byte(&oldest_segment(&dir.path().join("kept/node-1/wal")));
    let said = fails(dir.path(), "wal verify kept");
    assert!(said.contains("NOT SOUND"), "{said}");
}

/// The segment in use that was made first: its name sorts first among the files that hold something.
fn oldest_segment(wal: &Path) -> PathBuf {
    let mut files = Vec::new();
    let mut directories = vec![wal.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if fs::metadata(&path).unwrap().len() >= 1 << 20 && holds_something(&path) {
                files.push(path);
            }
        }
    }
    files.sort();
    files.swap_remove(0)
}

/// Where the test does its damage: within the first batches after the segment's header.
const DAMAGED_AT: u64 = 4096 + 100;

fn holds_something(path: &Path) -> bool {
    let mut bytes = [0; 64];
    let file = fs::File::open(path).unwrap();
    file.read_exact_at(&mut bytes, DAMAGED_AT).is_ok() && bytes != [0; 64]
}

fn flip_a_byte(path: &Path) {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, DAMAGED_AT).unwrap();
    byte[0] ^= 0xff;
    file.write_all_at(&byte, DAMAGED_AT).unwrap();
}

#[test]
fn an_interrupted_demo_cleans_up() {
    let dir = tempfile::tempdir().unwrap();
    let mut demo = Command::new(env!("CARGO_BIN_EXE_polyraft"))
        .args([
            "demo",
            "--groups",
            "8",
            "--seconds",
            "600",
            "--inflight",
            "4",
        ])
        .current_dir(dir.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(demo.stdout.take().unwrap()).lines();
    let under_load = lines.any(|line| line.is_ok_and(|line| line.contains("commits/s")));
    assert!(under_load, "the demo ended before its load began");
    assert!(dir.path().join("data").exists());
    let process = Pid::from_child(&demo);
    kill_process(process, Signal::INT).unwrap();
    // Read to the end, so that the demo never waits for a full pipe.
    let rest: Vec<String> = lines.map_while(Result::ok).collect();
    assert_eq!(demo.wait().unwrap().code(), Some(130), "{rest:?}");
    assert!(
        !dir.path().join("data").exists(),
        "the temporary directory is removed"
    );
}

#[test]
fn refusals_say_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("thesis.txt"), "words").unwrap();
    let said = fails(dir.path(), "demo --dir .");
    assert!(said.contains("choose a new or empty --dir"), "{said}");
    let said = fails(dir.path(), "demo --dir missing --verify-only");
    assert!(said.contains("holds no former demo"), "{said}");
    let said = fails(dir.path(), "wal verify missing");
    assert!(said.contains("missing"), "{said}");
    let said = fails(dir.path(), "demo --config missing.toml");
    assert!(said.contains("missing.toml"), "{said}");
    assert_eq!(
        fs::read_dir(dir.path()).unwrap().count(),
        1,
        "nothing was made"
    );
}
