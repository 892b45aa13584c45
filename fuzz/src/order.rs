/// Messages from Redis, in any sequence.
pub fn order(bytes: &[u8]) {
    trunkline::bus::redis::check::order(bytes);
}
