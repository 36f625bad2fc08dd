//! The node's name in a certificate.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| polyraft_fuzz::bounded(
    data,
    16,
    polyraft_transport::fuzzing::certificate
));
