//! `trunkline::fuzz::config`, with whatever libFuzzer makes up.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| trunkline::fuzz::config(bytes));
