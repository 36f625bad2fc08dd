//! `polyraft tune` as its users call it: a short sweep, what it leaves, and what it refuses. Which values win is not
//! looked at: times are no tests.

use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::Command;

fn run(dir: &Path, line: &str) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_polyraft"))
        .args(line.split_whitespace())
        .current_dir(dir)
        .env_remove("RUST_LOG")
        .output()
        .expect("the binary runs");
    let said = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    (output.status.code(), said)
}

#[test]
fn a_short_sweep_ends_with_toml_that_a_node_takes() {
    let dir = tempfile::tempdir().unwrap();
    let (code, said) = run(
        dir.path(),
        "tune --populate 0 --nodes 1 --groups 2 --inflight 8 --p99 10s --seconds 1 --warmup 0 --rounds 1 --budget 10m \
         --param shards.count=1,2 --param wal.lanes=1,2 --toml t.toml --json t.json --html t.html",
    );
    assert_eq!(code, Some(0), "{said}");
    let tuned: Value =
        serde_json::from_slice(&fs::read(dir.path().join("t.json")).unwrap()).unwrap();
    assert_eq!(tuned["kind"], "tune");
    assert_eq!(tuned["outcome"]["method"], "grid", "{said}");
    // As it is and two points more; one shard with one lane is as it is, and one cannot write to two lanes.
    assert_eq!(
        tuned["outcome"]["trials"].as_array().unwrap().len(),
        3,
        "{said}"
    );
    assert_eq!(
        tuned["outcome"]["skipped"].as_array().unwrap().len(),
        1,
        "{said}"
    );
    assert!(tuned["fsync_us"]["p999"].as_f64() > Some(0.0), "{tuned}");
    assert!(
        tuned["round_trip_us"]["p999"].as_f64() > Some(0.0),
        "{tuned}"
    );
    assert!(!tuned["pareto"].as_array().unwrap().is_empty());
    assert!(
        !dir.path().join("data").exists(),
        "the working directory is removed"
    );
    let page = fs::read_to_string(dir.path().join("t.html")).unwrap();
    assert!(page.starts_with("<!doctype html>") && page.contains("timeout_min"));

    let toml = fs::read_to_string(dir.path().join("t.toml")).unwrap();
    assert!(
        toml.contains("[election]") && said.contains("timeout_min"),
        "{toml}"
    );
    let (code, said) = run(
        dir.path(),
        "bench --populate 0 --config t.toml --nodes 1 --groups 2 --inflight 8 --warmup 0 --seconds 1 --noise-rounds 0",
    );
    assert_eq!(code, Some(0), "{said}");
}

#[test]
fn refusals_come_before_anything_starts() {
    let dir = tempfile::tempdir().unwrap();
    for (line, hint) in [
        (
            "tune --p99 5ms --param wal.lane=1,2",
            "did you mean `wal.lanes`",
        ),
        ("tune --p99 5ms --param wal.lanes=2", "two values"),
        (
            "tune --p99 5ms --param batch.turn_events=1024,2048 --json no/such.json",
            "no/such.json",
        ),
        ("tune --p99 5ms --param wal.lanes=1,2", "shards.count"),
        (
            "tune --goal latency --rate 5 --p99 5ms --param wal.lanes=1,2",
            "--goal throughput",
        ),
    ] {
        let (code, said) = run(dir.path(), line);
        assert_eq!(code, Some(1), "{line}: {said}");
        assert!(said.contains(hint), "{line}: {said}");
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}
