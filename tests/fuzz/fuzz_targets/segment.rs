//! What recovery reads from a segment: its header, batch headers, and the records of batches.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| polyraft_fuzz::bounded(
    data,
    64,
    polyraft_storage::fuzzing::segment
));
