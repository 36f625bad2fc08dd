//! What the crates' own tests do with the inputs in `seeds`: write the valid ones anew, and try all that are kept.
//! It must never remove an input: what fuzzing found is kept beside the seeds.

use std::fs;
use std::path::{Path, PathBuf};

/// Where a target's inputs are, seen from the crate that includes this file.
fn dir_of(target: &str) -> PathBuf {
    let above = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors();
    let mut seeds = above.map(|dir| dir.join("tests/fuzz/seeds"));
    seeds.find(|dir| dir.is_dir()).unwrap().join(target)
}

/// A seed as it is kept. `UPDATE=1` keeps this one in its place.
pub(crate) fn seed(target: &str, name: &str, fresh: &[u8]) -> Vec<u8> {
    let path = dir_of(target).join(name);
    if std::env::var_os("UPDATE").is_some() {
        fs::create_dir_all(dir_of(target)).unwrap();
        fs::write(&path, fresh).unwrap();
    }
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}; set UPDATE=1", path.display()))
}

/// Tries the seeds of a target, and whatever fuzzing has found.
pub(crate) fn try_all(target: &str, body: impl Fn(&[u8])) {
    let mut tried = 0;
    for kept in fs::read_dir(dir_of(target)).unwrap() {
        body(&fs::read(kept.unwrap().path()).unwrap());
        tried += 1;
    }
    assert!(tried > 0, "{target} has no seeds");
}
