//! Shows that the checkers can fail: the engine with one deliberate fault at a time, until a rule catches it. It must
//! never count a mutant as caught by a run that the engine without the fault would fail too.

#[cfg(not(polyraft_mutants))]
use std::{io, path::Path, process::Command};

/// Mutants that whole clusters seldom meet die elsewhere: the directory of the build, and what cargo runs.
#[cfg(not(polyraft_mutants))]
const ELSEWHERE: [(&str, &[&str]); 6] = [
    (
        "mutants",
        &[
            "test",
            "-p",
            "polyraft-raft",
            "--test",
            "behaviour",
            "mutants",
        ],
    ),
    (
        "mutants",
        &[
            "test",
            "-p",
            "polyraft-tests",
            "--test",
            "cluster_scripts",
            "mutants",
        ],
    ),
    (
        "mutants",
        &[
            "test",
            "-p",
            "polyraft",
            "-p",
            "polyraft-transport",
            "--lib",
            "every_fault_of",
        ],
    ),
    (
        "mutants",
        &["run", "-p", "polyraft-tests", "--bin", "crash-images"],
    ),
    (
        "shuttle",
        &["test", "-p", "polyraft-storage", "--lib", "models"],
    ),
    ("loom", &["test", "-p", "polyraft", "--lib", "mailbox"]),
];

/// Runs every mutant, or the one named `only`, in simulated clusters and tells the table; also into the file `table`, if given.
/// If all are wanted, those that die in scripts, models and crash images follow. Returns whether all were caught.
///
/// A build without the mutants builds itself again with them, into target directories of their own.
///
/// # Errors
/// When the other build can't be run, or the table not be written.
#[cfg(not(polyraft_mutants))]
pub fn run(jobs: usize, only: Option<&str>, table: Option<&Path>) -> io::Result<bool> {
    let mut arguments = vec!["--mutants".to_owned(), format!("--jobs={jobs}")];
    arguments.extend(only.map(|only| format!("--only={only}")));
    if let Some(table) = table {
        let path = std::path::absolute(table)?;
        arguments.push(format!("--table={}", path.display()));
    }
    let clusters = ["run", "--release", "-p", "polyraft-tests", "--bin", "sim"];
    let mut all_died = cargo("mutants", &clusters, &arguments)?;
    if only.is_none() {
        for (build, command) in ELSEWHERE {
            let arguments = match command[0] {
                "run" => "--mutants",
                _ => "--nocapture",
            };
            all_died &= cargo(build, command, &[arguments.to_owned()])?;
        }
    }
    Ok(all_died)
}

/// Runs cargo with the mutants and a target directory of its own. Returns whether that went well.
#[cfg(not(polyraft_mutants))]
fn cargo(build: &str, command: &[&str], arguments: &[String]) -> io::Result<bool> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target");
    let targets = std::env::var_os("POLYRAFT_MUTANTS_TARGET").map_or(own, Into::into);
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let flags = match build {
        "shuttle" => "--cfg polyraft_mutants --cfg polyraft_shuttle",
        "loom" => "--cfg polyraft_mutants --cfg polyraft_loom",
        _ => "--cfg polyraft_mutants",
    };
    let status = Command::new(cargo)
        .args(command)
        .args(["--locked", "--"])
        .args(arguments)
        .env("RUSTFLAGS", flags)
        .env("CARGO_TARGET_DIR", targets.join(build))
        .status()?;
    Ok(status.success())
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
        let mut known: Vec<(Mutant, u8)> = mutants::ALL.to_vec();
        if only.is_some() {
            known.extend(elsewhere().filter(|more| !mutants::ALL.contains(more)));
        }
        let wanted: Vec<(Mutant, u8)> = known.iter().filter(is_wanted).copied().collect();
        if wanted.is_empty() {
            return Err(io::Error::other("there is no such mutant"));
        }
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
        let mut known = mutants::ALL.iter().copied().chain(elsewhere());
        let found = known.find(|known| is_it(&known));
        let (mutant, _) = found.ok_or_else(|| io::Error::other("there is no such mutant"))?;
        mutants::set(Some(mutant));
        Ok(())
    }

    /// The mutants that need not die in clusters.
    fn elsewhere() -> impl Iterator<Item = (Mutant, u8)> {
        let more = [
            mutants::SCRIPTED,
            mutants::MODELLED,
            mutants::LEASES,
            mutants::CREATIONS,
            mutants::LIVES,
            mutants::LINKS,
            mutants::LOG,
        ];
        more.into_iter().flatten().copied()
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
