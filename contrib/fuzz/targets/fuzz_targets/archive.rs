#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| (lapstrake_contrib_fuzz::target("archive").check)(data));
