//! Entries of client sessions, and the sessions in a snapshot.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| polyraft_fuzz::bounded(
    data,
    64,
    polyraft::fuzzing::sessions
));
