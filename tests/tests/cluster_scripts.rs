//! Plays the scripts in `tests/data/cluster`; `docs/scripts.md` says what they are.

use std::path::Path;
use std::{env, fs};

use polyraft_tests::sim::stories;

#[test]
fn cluster_scripts_print_what_they_say() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/cluster");
    let entries = fs::read_dir(folder).expect("the folder of scripts");
    let mut files: Vec<_> = entries.map(|e| e.expect("a folder entry").path()).collect();
    files.sort();
    assert!(files.len() >= 14, "scripts are missing: {files:?}");
    let update = env::var_os("UPDATE").is_some();
    let mut wrong = Vec::new();
    for file in files {
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
