//! The records of a frame: messages, forwards, beats, claims, creations.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| polyraft_fuzz::bounded(
    data,
    64,
    polyraft::fuzzing::records
));
