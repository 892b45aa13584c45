//! `trunkline_fuzz::resp` with the input of libFuzzer.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| trunkline_fuzz::resp(bytes));
