#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| diad_fuzz::video::target(data));
