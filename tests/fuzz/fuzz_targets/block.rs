//! Entry blocks, which come from the disk and from peers.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| polyraft_fuzz::bounded(
    data,
    64,
    polyraft_storage::fuzzing::block
));
