//! What a link reads from a peer: its hello, and streams of frames.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| polyraft_fuzz::bounded(
    data,
    16,
    polyraft_transport::fuzzing::link
));
