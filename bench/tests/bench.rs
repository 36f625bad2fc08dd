//! `polyraft bench` as its users call it: short runs, the files that they leave, exit codes, and that nothing is left
//! running. What is measured is not looked at: times are no tests.

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

fn polyraft(dir: &Path, line: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_polyraft"));
    command
        .args(line.split_whitespace())
        .current_dir(dir)
        .env_remove("RUST_LOG");
    command
}

fn run(dir: &Path, line: &str) -> (Option<i32>, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = polyraft(dir, line).output().expect("the binary runs");
    let said = String::from_utf8_lossy(&stdout).into_owned() + &String::from_utf8_lossy(&stderr);
    (status.code(), said)
}

fn json(dir: &Path, name: &str) -> Value {
    serde_json::from_slice(&fs::read(dir.join(name)).unwrap()).unwrap()
}

#[test]
fn a_closed_loop_leaves_its_results_and_compares_with_itself() {
    let dir = tempfile::tempdir().unwrap();
    let (code, said) = run(
        dir.path(),
        "bench --nodes 3 --groups 8 --inflight 16 --reads 0.2 --payload 16..64 --keys zipfian:0.9 --warmup 1 --seconds 2 \
         --stages 8 --noise-rounds 2 --populate 128MiB --json a.json --csv a.csv --hlog a.hlog --html a.html",
    );
    assert_eq!(code, Some(0), "{said}");
    let result = json(dir.path(), "a.json");
    assert_eq!(
        (&result["kind"], &result["format"], &result["valid"]),
        (&"bench".into(), &3.into(), &true.into())
    );
    assert_eq!(result["setup"]["populated_bytes"], 128 << 20, "{said}");
    // Three nodes with 8 groups would take a third of it.
    let resident = result["result"]["rss_bytes"].as_u64();
    assert!(resident >= Some(128 << 20), "{resident:?}");
    for place in [
        "/setup/machine/kernel",
        "/setup/config/wal/mode",
        "/setup/workload/keys",
        "/engine/commit",
    ] {
        assert!(
            result.pointer(place).is_some_and(Value::is_string),
            "{place}: {result}"
        );
    }
    for place in [
        "/result/operations_per_second",
        "/result/latency_us/p999",
        "/result/proposal_us/p50",
        "/result/read_us/p50",
        "/noise/throughput_percent",
        "/noise/cpu_percent",
        "/preflight/fsync_us/p99",
        "/stages/queue/p50",
        "/stages/append/p99",
        "/stages/replicate/p50",
        "/stages/commit/p50",
        "/stages/apply/p50",
    ] {
        let number = result.pointer(place).and_then(Value::as_f64);
        assert!(
            number.is_some_and(|number| number > 0.0),
            "{place}: {result}"
        );
    }
    let (all, parts) = (
        &result["result"]["latency_us"]["count"],
        ["proposal_us", "read_us"],
    );
    let parts: u64 = parts
        .iter()
        .map(|part| result["result"][part]["count"].as_u64().unwrap())
        .sum();
    assert_eq!(all.as_u64(), Some(parts));
    assert_eq!(
        result["seconds"]
            .as_array()
            .unwrap()
            .iter()
            .map(|row| row["part"].as_str().unwrap())
            .collect::<Vec<_>>(),
        ["warmup", "window", "window", "drain"]
    );
    assert_eq!(
        fs::read_to_string(dir.path().join("a.csv"))
            .unwrap()
            .lines()
            .count(),
        5
    );
    let hlog = fs::read_to_string(dir.path().join("a.hlog")).unwrap();
    assert!(
        hlog.contains("#[StartTime:") && hlog.contains("Tag=drain,"),
        "{hlog}"
    );
    let page = fs::read_to_string(dir.path().join("a.html")).unwrap();
    assert!(page.starts_with("<!doctype html>") && page.contains("operations_per_second"));
    assert!(
        !dir.path().join("data").exists(),
        "the working directory is removed"
    );

    let (code, said) = run(dir.path(), "bench compare a.json a.json");
    assert_eq!(code, Some(0), "{said}");
    let mut other = result;
    assert_eq!(other["setup"]["max_lag_us"], 5000.0);
    other["setup"]["groups"] = 9.into();
    fs::write(dir.path().join("b.json"), other.to_string()).unwrap();
    let (code, said) = run(dir.path(), "bench compare a.json b.json");
    assert_eq!(code, Some(4), "{said}");
    assert!(said.contains("groups: 8 / 9"), "{said}");
    let (code, said) = run(dir.path(), "bench compare a.json missing.json");
    assert_eq!(code, Some(1), "{said}");
}

#[test]
fn a_killed_and_a_paused_process_show_as_outages() {
    let dir = tempfile::tempdir().unwrap();
    let (code, said) = run(
        dir.path(),
        "bench --populate 24MiB --processes --groups 6 --rate 300 --max-lag 10s --warmup 1 --seconds 4 --noise-rounds 0 \
         --fault pause@500ms:300ms --fault stall-disk@1s:200ms --fault kill-leader@2s --json a.json",
    );
    assert_eq!(code, Some(0), "{said}");
    let result = json(dir.path(), "a.json");
    let faults = result["faults"].as_array().unwrap();
    assert_eq!(faults.len(), 3, "{said}");
    for fault in faults {
        assert!(fault["groups"].as_u64() > Some(0), "{fault}");
        assert!(fault["group_max_ms"].as_f64() > Some(0.0), "{fault}");
    }
    let at: Vec<_> = faults.iter().map(|fault| &fault["at_seconds"]).collect();
    assert_eq!(at, [0.5, 1.0, 2.0]);
    // A paused node answers nobody.
    assert!(
        faults[0]["unavailable_ms"].as_f64() >= Some(100.0),
        "{}",
        faults[0]
    );
    assert!(
        result["result"]["operations"].as_u64() > Some(0),
        "{result}"
    );
    assert!(result["noise"].is_null());
}

#[test]
fn a_rate_beyond_every_generator_is_void() {
    let dir = tempfile::tempdir().unwrap();
    // After a warm-up, nothing that was due in the window is ever sent.
    for warmup in [0, 1] {
        let line = format!(
            "bench --populate 0 --nodes 1 --groups 1 --rate 50000000 --max-lag 1ms --warmup {warmup} --seconds 1 --noise-rounds 0 \
             --json a.json"
        );
        let (code, said) = run(dir.path(), &line);
        assert_eq!(code, Some(3), "{said}");
        assert!(said.contains("VOID: the generator fell behind"), "{said}");
        assert_eq!(json(dir.path(), "a.json")["valid"], false);
    }
}

#[test]
fn a_file_that_cannot_be_written_costs_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let (code, said) = run(
        dir.path(),
        "bench --populate 0 --nodes 1 --groups 1 --inflight 1 --warmup 0 --seconds 1 --noise-rounds 0 --json /dev/full --csv a.csv",
    );
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("cannot write to /dev/full"), "{said}");
    let csv = fs::read_to_string(dir.path().join("a.csv")).unwrap();
    // Names, one second, and the drain.
    assert_eq!(csv.lines().count(), 3, "{csv}");
}

#[test]
fn a_search_for_the_highest_rate_ends_with_one() {
    let dir = tempfile::tempdir().unwrap();
    let (code, said) = run(
        dir.path(),
        "bench find-max --populate 0 --p99 10s --max-lag 10s --nodes 1 --groups 2 --from 200 --precision 50 --confirm 1 --warmup 0 \
         --seconds 1 --json a.json",
    );
    // The bound is so wide that only the nodes or the generator can fail.
    assert_eq!(code, Some(0), "{said}");
    let found = json(dir.path(), "a.json");
    assert!(found["max_rate"].as_f64() >= Some(200.0), "{found}");
    let pace = &found["workload"]["pace"]["rate"];
    assert_eq!(pace["per_second"], found["max_rate"], "{found}");
    assert_eq!(found["max_lag_us"], 1e7, "{found}");
    assert!(found["preflight"]["fsync_us"]["p50"].is_number(), "{found}");
    assert!(found["probes"].as_array().unwrap().len() >= 2, "{found}");
}

#[test]
fn refusals_come_before_anything_starts() {
    let dir = tempfile::tempdir().unwrap();
    for (line, hint) in [
        ("bench --fault pause@1s:1s", "--processes"),
        ("bench --fault kill-leader@1s --nodes 1", "3 nodes"),
        ("bench --fault kill-leader@60s", "--seconds"),
        (
            "bench --fault stall-disk@5s:2s --fault kill-leader@6s",
            "before --fault stall-disk@5s:2s is over",
        ),
        ("bench --fault stall-disk@9s:1h", "lasts beyond the end"),
        ("bench --fault kill-leader@1s --reads 1", "--read-mode"),
        ("bench --payload 99999999", "max_proposal_bytes"),
        ("bench --populate 900TiB", "at most for each process"),
        ("bench --csv a.csv --json missing/a.json", "missing/a.json"),
        ("bench --csv a --json a", "cannot write to a"),
        (
            "bench find-max --p99 5ms --json missing/a.json",
            "missing/a.json",
        ),
    ] {
        let (code, said) = run(dir.path(), line);
        assert_eq!(code, Some(1), "{line}: {said}");
        assert!(said.contains(hint), "{line}: {said}");
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

/// Starts a long run with nodes as processes; returns it and them once there is load.
fn long_run(dir: &Path) -> (Child, Vec<u32>) {
    let mut bench = polyraft(
        dir,
        "bench --populate 0 --processes --groups 4 --inflight 4 --noise-rounds 0 --seconds 600",
    )
    .stdout(Stdio::piped())
    .stderr(Stdio::piped())
    .spawn()
    .unwrap();
    let mut lines = BufReader::new(bench.stdout.take().unwrap()).lines();
    let under_load = lines.any(|line| line.is_ok_and(|line| line.contains("op/s")));
    assert!(under_load, "the run ended before its load began");
    // Read to the end elsewhere, so that the run never waits for a full pipe.
    std::thread::spawn(move || lines.for_each(drop));
    let id = bench.id();
    let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap();
    let children: Vec<u32> = children
        .split_whitespace()
        .map(|id| id.parse().unwrap())
        .collect();
    assert_eq!(children.len(), 3);
    (bench, children)
}

fn until_gone(processes: &[u32]) {
    let deadline = Instant::now() + Duration::from_secs(30);
    // One that nobody has waited for yet is dead too.
    let runs = |id: &u32| {
        fs::read_to_string(format!("/proc/{id}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
    };
    while processes.iter().any(runs) {
        assert!(Instant::now() < deadline, "nodes are left running");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn no_node_outlives_an_interrupted_or_killed_run() {
    let dir = tempfile::tempdir().unwrap();
    let (mut bench, nodes) = long_run(dir.path());
    kill_process(Pid::from_child(&bench), Signal::INT).unwrap();
    assert_eq!(bench.wait().unwrap().code(), Some(130));
    until_gone(&nodes);
    assert!(
        !dir.path().join("data").exists(),
        "the working directory is removed"
    );

    let (mut bench, nodes) = long_run(dir.path());
    bench.kill().unwrap();
    bench.wait().unwrap();
    until_gone(&nodes);
}

#[test]
fn a_node_that_dies_by_itself_ends_the_run() {
    let dir = tempfile::tempdir().unwrap();
    let (bench, nodes) = long_run(dir.path());
    let victim = Pid::from_raw(nodes[1] as i32).unwrap();
    kill_process(victim, Signal::KILL).unwrap();
    let Output { status, stderr, .. } = bench.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&stderr);
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(
        said.contains("the process of node") && said.contains("ended"),
        "{said}"
    );
    until_gone(&nodes);
}

#[test]
fn reads_are_measured_beside_proposals_and_confirmed_together() {
    let dir = tempfile::tempdir().unwrap();
    let (code, said) = run(
        dir.path(),
        "bench reads --nodes 3 --groups 200 --inflight 64 --seconds 1 --json r.json",
    );
    let result = json(dir.path(), "r.json");
    let speeds = result["speeds"].as_array().expect("a list");
    // How fast this machine is, is not looked at, but that it is told.
    let is_fast = speeds[2]["beside_proposals"].as_f64() >= Some(5.0);
    let is_shared = result["read_index"]["messages"].as_u64() <= Some(60);
    let expected = if is_fast && is_shared { 0 } else { 3 };
    assert_eq!(code, Some(expected), "{said}");
    assert_eq!(speeds.len(), 4, "{result}");
    for speed in speeds {
        assert!(speed["operations"].as_u64() > Some(0), "{speed}");
    }
    let messages = result["read_index"]["messages"].as_u64().unwrap();
    assert!(0 < messages && messages < 200, "{result}");
    let (code, said) = run(dir.path(), "bench reads --processes");
    assert_eq!(code, Some(1), "{said}");
    let (code, said) = run(
        dir.path(),
        "bench --processes --reads 0.5 --read-mode lease --seconds 1",
    );
    assert_eq!(code, Some(1), "{said}");
}

#[test]
fn reads_of_each_mode_are_answered_under_load() {
    let dir = tempfile::tempdir().unwrap();
    for mode in ["lease", "linearizable"] {
        let line = format!(
            "bench --populate 0 --groups 8 --inflight 16 --reads 0.5 --read-mode {mode} --warmup 1 --seconds 1 --noise-rounds 0 --json a.json"
        );
        let (code, said) = run(dir.path(), &line);
        assert_eq!(code, Some(0), "{said}");
        let result = json(dir.path(), "a.json");
        assert_eq!(result["setup"]["workload"]["read_mode"], mode, "{result}");
    }
}

#[test]
fn other_groups_are_measured_while_a_snapshot_is_on_its_way() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(
        dir.path().join("slow.toml"),
        "[snapshot]\nrate = \"16MiB\"\n",
    )
    .unwrap();
    let (code, said) = run(
        dir.path(),
        "bench snapshot --groups 8 --inflight 16 --bytes 48MiB --seconds 1 --config slow.toml --json s.json",
    );
    // Whether the bounds are held is not looked at.
    assert!(matches!(code, Some(0 | 3)), "{code:?}: {said}");
    let result = json(dir.path(), "s.json");
    for part in ["with_snapshot", "without_snapshot"] {
        let part = &result[part];
        assert!(part["commits"].as_u64() > Some(0), "{result}");
        assert!(part["beats"].as_u64() > Some(0), "{result}");
    }
    assert!(result["with_snapshot"]["seconds"].as_f64() > Some(1.0));
    let (code, said) = run(dir.path(), "bench snapshot --groups 1");
    assert_eq!(code, Some(1), "{said}");
}

#[test]
fn every_node_is_restarted_under_load_and_nothing_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let (code, said) = run(
        dir.path(),
        "bench rolling-restart --groups 12 --inflight 8 --json r.json",
    );
    // Whether leaders are spread in time is not looked at.
    assert!(matches!(code, Some(0 | 3)), "{code:?}: {said}");
    let result = json(dir.path(), "r.json");
    let found = &result["verification"];
    for broken in ["missing", "duplicated", "unexpected", "differing_groups"] {
        assert_eq!(found[broken], 0, "{result}");
    }
    assert!(found["acknowledged"].as_u64() > Some(0), "{result}");
    assert_eq!(found["replicas"], 36, "{result}");
    let restarts = result["restarts"].as_array().map(Vec::len);
    assert_eq!(restarts, Some(3), "{result}");
    let (code, said) = run(dir.path(), "bench rolling-restart --nodes 2");
    assert_eq!(code, Some(1), "{said}");
}
