//! Tells the program what it was built from, for the page that has to name it: Polyraft's commit, marked as dirty if the
//! work tree differed from it, and the compiler. Never fails: a build from a plain copy of the sources has no commit.

use std::ffi::OsStr;
use std::process::Command;

/// What decides over the program, or over how git describes it.
const SOURCES: [&str; 8] = [
    "build.rs",
    "Cargo.toml",
    "Cargo.lock",
    "src",
    "../../Cargo.toml",
    "../../engine",
    "../../storage",
    "../../transport",
];

fn main() {
    let commit = printed("git", &["describe", "--always", "--dirty", "--exclude=*"]);
    let rustc = std::env::var_os("RUSTC").and_then(|rustc| printed(rustc, &["--version"]));
    let unknown = || "unknown".to_owned();
    println!(
        "cargo::rustc-env=COMPARE_COMMIT={}",
        commit.unwrap_or_else(unknown)
    );
    println!(
        "cargo::rustc-env=COMPARE_RUSTC={}",
        rustc.unwrap_or_else(unknown)
    );
    for path in SOURCES {
        println!("cargo::rerun-if-changed={path}");
    }
    // A checkout, a commit and a change of what is staged: in a work tree of its own, git has these elsewhere.
    for name in ["HEAD", "logs/HEAD", "index"] {
        if let Some(path) = printed("git", &["rev-parse", "--git-path", name]) {
            println!("cargo::rerun-if-changed={path}");
        }
    }
}

/// What a command prints, unless it fails or prints nothing.
fn printed(program: impl AsRef<OsStr>, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let text = text.trim();
    (output.status.success() && !text.is_empty()).then(|| text.to_owned())
}
