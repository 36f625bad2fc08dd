//! Shows that the checkers can fail: the engine with one deliberate fault at a time, until a rule catches it. It must
//! never count a mutant as caught by a run that the engine without the fault would fail too.

#[cfg(not(polyraft_mutants))]
use std::{io, path::Path, process::Command};

/// Runs every mutant, or the one named `only`, and tells the table; also into the file `table`, if given. Returns whether
/// all were caught.
///
/// A build without the mutants builds itself again with them, into a target directory of its own.
///
/// # Errors
/// When the other build can't be run, or the table not be written.
#[cfg(not(polyraft_mutants))]
pub fn run(jobs: usize, only: Option<&str>, table: Option<&Path>) -> io::Result<bool> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let mut command = Command::new(cargo);
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/mutants");
    let target = std::env::var_os("POLYRAFT_MUTANTS_TARGET").map_or(own, Into::into);
    command
        .args([
            "run",
            "--locked",
            "--release",
            "--package",
            "polyraft-tests",
        ])
        .args(["--bin", "sim", "--", "--mutants"])
        .args(["--jobs", &jobs.to_string()])
        .env("RUSTFLAGS", "--cfg polyraft_mutants")
        .env("CARGO_TARGET_DIR", target);
    if let Some(only) = only {
        command.args(["--only", only]);
    }
    if let Some(table) = table {
        command.arg("--table").arg(std::path::absolute(table)?);
    }
    Ok(command.status()?.success())
}

/// Switches the mutant of that name on for this thread.
///
/// # Errors
/// In a build without mutants, always.
#[cfg(not(polyraft_mutants))]
pub fn switch_on(_: &str) -> io::Result<()> {
    Err(io::Error::other(
        "this build has no mutants; give RUSTFLAGS=\"--cfg polyraft_mutants\"",
    ))
}

#[cfg(polyraft_mutants)]
pub use with_mutants::{run, switch_on};

#[cfg(polyraft_mutants)]
mod with_mutants {
    use std::fmt::Write as _;
    use std::io::{self, Write};
    use std::path::Path;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use polyraft_raft::mutants::{self, Mutant};

    use super::super::Failure;

    /// A mutant that lives longer than that has won.
    const MOST_SEEDS: u64 = 2_000;

    struct Death {
        mutant: Mutant,
        fault: u8,
        /// Seeds used, and what caught it; none if nothing did.
        caught: Option<(u64, Failure)>,
    }

    /// See the other build's function of this name.
    pub fn run(jobs: usize, only: Option<&str>, table: Option<&Path>) -> io::Result<bool> {
        let is_wanted = |mutant: &&(Mutant, u8)| {
            only.is_none_or(|only| format!("{:?}", mutant.0).eq_ignore_ascii_case(only))
        };
        let wanted: Vec<(Mutant, u8)> = mutants::ALL.iter().filter(is_wanted).copied().collect();
        let next = AtomicUsize::new(0);
        let deaths = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for _ in 0..jobs {
                scope.spawn(|| {
                    while let Some((mutant, fault)) =
                        wanted.get(next.fetch_add(1, Ordering::Relaxed)).copied()
                    {
                        let caught = hunt(mutant);
                        let told = match &caught {
                            Some((seeds, failure)) => {
                                format!("dies at seed {}: {}", seeds - 1, failure.checker)
                            }
                            None => "SURVIVES".to_owned(),
                        };
                        let _ = writeln!(io::stdout(), "{mutant:?} (fault {fault}) {told}");
                        let death = Death {
                            mutant,
                            fault,
                            caught,
                        };
                        deaths
                            .lock()
                            .expect("no thread holds it for long")
                            .push(death);
                    }
                });
            }
        });
        let mut deaths = deaths.into_inner().expect("all threads have ended");
        deaths.sort_by_key(|death| {
            wanted
                .iter()
                .position(|(mutant, _)| *mutant == death.mutant)
        });
        let all_died = deaths.iter().all(|death| death.caught.is_some());
        if let Some(table) = table {
            std::fs::write(table, as_table(&deaths))?;
        }
        Ok(all_died)
    }

    /// See the other build's function of this name.
    pub fn switch_on(name: &str) -> io::Result<()> {
        let is_it = |mutant: &&(Mutant, u8)| format!("{:?}", mutant.0).eq_ignore_ascii_case(name);
        let found = mutants::ALL.iter().find(is_it);
        let (mutant, _) = found.ok_or_else(|| io::Error::other("there is no such mutant"))?;
        mutants::set(Some(*mutant));
        Ok(())
    }

    fn hunt(mutant: Mutant) -> Option<(u64, Failure)> {
        for seed in 0..MOST_SEEDS {
            mutants::set(Some(mutant));
            let report = super::super::run(seed, None);
            mutants::set(None);
            // A run that did too little says nothing about why.
            let Some(failure) = report
                .failure
                .filter(|failure| failure.checker != "vacuous")
            else {
                continue;
            };
            // What breaks a rule without the mutant too, proves nothing about it.
            if super::super::run(seed, None).failure.is_none() {
                return Some((seed + 1, failure));
            }
        }
        None
    }

    fn as_table(deaths: &[Death]) -> String {
        let mut out = String::from("| mutant | fault | seeds | caught by |\n|---|---|---|---|\n");
        for death in deaths {
            let (seeds, checker) = match &death.caught {
                Some((seeds, failure)) => (seeds.to_string(), failure.checker),
                None => (format!("over {MOST_SEEDS}"), "nothing"),
            };
            let _ = writeln!(
                out,
                "| `{:?}` | {} | {seeds} | {checker} |",
                death.mutant, death.fault
            );
        }
        out
    }
}
