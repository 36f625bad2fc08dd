//! kill -9 of the whole process in the middle of the load: every acknowledged write must be there afterwards.

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const DEADLINE: Duration = Duration::from_secs(120);

fn polyraft(dir: &Path, acked: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_polyraft"));
    command
        .arg("demo")
        .arg("--dir")
        .arg(dir)
        .arg("--acked")
        .arg(acked);
    command
}

/// Kills the child when a failing assertion unwinds past it.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn text(output: &Output) -> String {
    format!(
        "{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// Runs the load until `acked` has grown by `bytes`, then kills it with SIGKILL.
fn load_and_kill(dir: &Path, acked: &Path, bytes: u64) {
    let size = || std::fs::metadata(acked).map_or(0, |file| file.len());
    let before = size();
    let mut load = polyraft(dir, acked);
    load.args([
        "--nodes",
        "3",
        "--groups",
        "48",
        "--seconds",
        "100",
        "--inflight",
        "256",
        "--payload",
        "64",
    ]);
    let child = load
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    let mut guard = Guard(child);
    let deadline = Instant::now() + DEADLINE;
    while size() < before + bytes {
        if guard.0.try_wait().expect("a child").is_some() {
            let mut message = String::new();
            let mut stderr = guard.0.stderr.take().expect("piped");
            std::io::Read::read_to_string(&mut stderr, &mut message).expect("readable");
            panic!("the load ended by itself: {message}");
        }
        assert!(
            Instant::now() < deadline,
            "only {} bytes of acknowledgements",
            size() - before
        );
        std::thread::sleep(Duration::from_millis(5));
    }
    guard.0.kill().expect("SIGKILL");
    guard.0.wait().expect("a killed child");
}

#[test]
fn kill_nine_in_the_middle_of_the_load_loses_no_acknowledged_write() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (data, acked) = (dir.path().join("data"), dir.path().join("acked"));
    for _ in 0..2 {
        load_and_kill(&data, &acked, 200_000);
        let output = polyraft(&data, &acked)
            .arg("--verify-only")
            .output()
            .expect("the binary starts");
        assert!(
            output.status.success(),
            "verification failed:\n{}",
            text(&output)
        );
    }
}

#[test]
fn a_missing_acknowledged_write_is_noticed() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (data, acked) = (dir.path().join("data"), dir.path().join("acked"));
    load_and_kill(&data, &acked, 20_000);
    // The replicas forget everything; the list of acknowledged writes does not.
    let removed = std::fs::remove_dir_all(&data);
    removed.expect("the data directory is there");
    let output = polyraft(&data, &acked)
        .arg("--verify-only")
        .output()
        .expect("the binary starts");
    assert!(
        !output.status.success(),
        "a verification without data must fail:\n{}",
        text(&output)
    );
}
