//! The small files of a data directory, and the ends of a snapshot.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| polyraft_fuzz::bounded(
    data,
    64,
    polyraft_storage::fuzzing::files
));
