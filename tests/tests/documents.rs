//! What the documents name is there. It must never pass because a table was not found.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// All sources of the workspace.
fn sources() -> Vec<String> {
    let mut dirs: Vec<PathBuf> = ["engine", "transport", "storage", "bench", "tests"]
        .map(|dir| root().join(dir))
        .into();
    let mut sources = Vec::new();
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).expect("a directory of the repository") {
            let path = entry.expect("an entry").path();
            if path.is_dir() && !path.ends_with("target") {
                dirs.push(path);
            } else if path.extension().is_some_and(|end| end == "rs") {
                sources.push(read(&path));
            }
        }
    }
    sources
}

/// The functions that are marked as tests.
fn tests(sources: &[String]) -> BTreeSet<&str> {
    let mut tests = BTreeSet::new();
    for source in sources {
        let mut is_test = false;
        for line in source.lines().map(str::trim) {
            let line = line.strip_prefix("pub(crate) ").unwrap_or(line);
            let line = line.strip_prefix("async ").unwrap_or(line);
            if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
                is_test = true;
            } else if let Some(rest) = line.strip_prefix("fn ") {
                let name = rest.split('(').next().unwrap_or_default();
                if is_test {
                    tests.insert(name);
                }
                is_test = false;
            }
        }
    }
    tests
}

/// The variants of an enum.
fn variants<'a>(source: &'a str, name: &str) -> BTreeSet<&'a str> {
    let head = format!("enum {name} {{");
    let (_, body) = source.split_once(&head).expect("the enum");
    let (body, _) = body.split_once("\n}").expect("its end");
    let lines = body.lines().map(str::trim);
    let variants = lines.filter(|line| !line.starts_with('/') && !line.starts_with('#'));
    variants
        .map(|line| line.trim_end_matches(','))
        .filter(|name| !name.is_empty())
        .collect()
}

fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// What the second column of the tables of a document quotes, with the first column.
fn proofs(document: &str) -> Vec<(&str, Vec<&str>)> {
    let rows = document.lines().filter(|line| line.starts_with("| "));
    let cells = rows.filter_map(|row| row.trim_matches('|').split_once(" | "));
    cells
        .filter(|(_, proof)| proof.trim() != "proof")
        .map(|(what, proof)| (what.trim(), quoted(proof).collect()))
        .collect()
}

#[test]
fn every_feature_names_a_proof_that_is_there() {
    let sources = sources();
    let tests = tests(&sources);
    let folders = ["tests/data/raft", "tests/data/cluster"];
    let scripts: BTreeSet<String> = folders
        .iter()
        .flat_map(|folder| fs::read_dir(root().join(folder)).expect("the scripts"))
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            Some(path.file_stem()?.to_str()?.to_owned())
        })
        .collect();
    let faults = read(&root().join("engine/raft/src/mutants.rs"));
    let plan = read(&root().join("tests/src/sim/plan.rs"));
    let mut faults = variants(&faults, "Mutant");
    faults.extend(variants(&plan, "Fault"));
    let keys = read(&root().join("docs/configuration.md"));

    let features = read(&root().join("docs/features.md"));
    let proofs = proofs(&features);
    assert!(
        proofs.len() > 60,
        "only {} features were found",
        proofs.len()
    );
    for (what, named) in proofs {
        assert!(!named.is_empty(), "nothing proves: {what}");
        for name in named {
            let is_command = name.starts_with("polyraft ") || name.starts_with("cargo ");
            let is_there = is_command
                || tests.contains(name)
                || scripts.contains(name)
                || faults.contains(name)
                || name.contains('/') && root().join(name).exists()
                || name.contains('.') && keys.contains(name);
            assert!(is_there, "{name} is nowhere, and is to prove: {what}");
        }
    }
}

#[test]
fn every_deliberate_fault_is_in_a_table() {
    let faults = read(&root().join("engine/raft/src/mutants.rs"));
    let documents =
        ["docs/mutants.md", "docs/wal-crash-images.md"].map(|path| read(&root().join(path)));
    let rows = documents.iter().flat_map(|document| document.lines());
    let rows: Vec<&str> = rows.filter(|line| line.starts_with("| ")).collect();
    let named: BTreeSet<&str> = rows.iter().flat_map(|row| quoted(row)).collect();
    let faults = variants(&faults, "Mutant");
    assert!(faults.len() > 80, "only {} faults were found", faults.len());
    for fault in faults {
        assert!(named.contains(fault), "{fault} is in no table");
    }
}

/// The files that a document links to.
fn links(document: &str) -> impl Iterator<Item = &str> {
    let targets = document.split("](").skip(1);
    let targets = targets.filter_map(|rest| rest.split(')').next());
    let files = targets.map(|target| target.split('#').next().unwrap_or_default());
    files.filter(|file| !file.is_empty() && !file.contains("://"))
}

#[test]
fn every_link_leads_to_a_file() {
    let mut documents = vec![root().join("README.md")];
    for dir in ["docs", "docs/how-to", "docs/decisions"] {
        let entries = fs::read_dir(root().join(dir)).expect("the documents");
        let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
        documents.extend(paths.filter(|path| path.extension().is_some_and(|end| end == "md")));
    }
    assert!(documents.len() > 25, "{documents:?}");
    let mut followed = 0;
    for document in documents {
        let dir = document.parent().expect("a directory");
        for link in links(&read(&document)) {
            let is_there = dir.join(link).exists();
            assert!(is_there, "{} links to {link}", document.display());
            followed += 1;
        }
    }
    assert!(followed > 80, "{followed} links");
}
