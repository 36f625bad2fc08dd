//! Entries that split groups and merge them, and the answers to these.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| polyraft_fuzz::bounded(
    data,
    64,
    polyraft::fuzzing::entries
));
