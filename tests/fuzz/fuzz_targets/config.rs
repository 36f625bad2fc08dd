//! Configuration files.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| polyraft_fuzz::bounded(
    data,
    1024,
    polyraft::fuzzing::config
));
