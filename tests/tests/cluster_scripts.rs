//! Plays the scripts in `tests/data/cluster`; `docs/scripts.md` says what they are.

use std::path::{Path, PathBuf};
use std::{env, fs};

use polyraft_tests::sim::stories;

fn scripts() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/cluster");
    let entries = fs::read_dir(folder).expect("the folder of scripts");
    let mut files: Vec<PathBuf> = entries.map(|e| e.expect("a folder entry").path()).collect();
    files.sort();
    assert!(files.len() >= 30, "scripts are missing: {files:?}");
    files
}

#[test]
fn cluster_scripts_print_what_they_say() {
    let update = env::var_os("UPDATE").is_some();
    let mut wrong = Vec::new();
    for file in scripts() {
        let expected = fs::read_to_string(&file).expect("a readable script");
        let actual = stories::play(&expected);
        if update {
            fs::write(&file, actual).expect("a writable script");
        } else if expected != actual {
            let (expected, actual): (Vec<_>, Vec<_>) =
                (expected.lines().collect(), actual.lines().collect());
            let differs = |at: &usize| expected.get(*at) != actual.get(*at);
            let at = (0..).find(differs).expect("they differ somewhere");
            wrong.push(format!(
                "{}:{}\n  expected {:?}\n  printed  {:?}",
                file.display(),
                at + 1,
                expected.get(at),
                actual.get(at)
            ));
        }
    }
    assert!(
        wrong.is_empty(),
        "run with UPDATE=1 if this is intended\n{}",
        wrong.join("\n")
    );
}

/// Shows that the scripts notice deliberate faults; `docs/mutants.md` has the table.
#[cfg(polyraft_mutants)]
mod mutants {
    use std::io::{Write as _, stdout};
    use std::panic::catch_unwind;

    use polyraft_raft::mutants::{self, Mutant};

    use super::*;

    /// The faults that show in stories as long as these. Others need more chance, or a script of the core.
    const FAULTS: &[Mutant] = &[
        Mutant::PurgedBeforeSnapshot,
        Mutant::ShedBeforeDurable,
        Mutant::FrozenAnswers,
        Mutant::DuplicateApplied,
        Mutant::SessionForgotten,
        Mutant::MergedSessionsDropped,
        Mutant::MergedSessionsShared,
        Mutant::FrozenGoesOn,
        Mutant::TombstoneForgotten,
        Mutant::ReadUnconfirmed,
        Mutant::LeaseFromAnswer,
        Mutant::ClaimNotWithdrawn,
        Mutant::InstalledBeforeDurable,
    ];

    /// The scripts that a fault makes fail, by a wrong print, by a rule or by a wait without an end.
    fn failing() -> Vec<String> {
        let fails = |script: &PathBuf| {
            let text = fs::read_to_string(script).expect("a readable script");
            catch_unwind(|| stories::play(&text)).map_or(true, |printed| printed != text)
        };
        let failing = scripts().into_iter().filter(fails);
        let name = |path: PathBuf| Some(path.file_stem()?.to_str()?.to_owned());
        failing.filter_map(name).collect()
    }

    #[test]
    fn every_fault_of_several_groups_fails_a_script() {
        assert!(failing().is_empty(), "they fail without a fault");
        let mut alive = Vec::new();
        for mutant in FAULTS {
            mutants::set(Some(*mutant));
            let failing = failing();
            mutants::set(None);
            writeln!(stdout(), "{mutant:?}: {failing:?}").expect("standard output");
            if failing.is_empty() {
                alive.push(mutant);
            }
        }
        assert!(alive.is_empty(), "no script notices {alive:?}");
    }
}
