/// Bytes from Redis, as a message from a channel and as an entry of history.
pub fn frame(bytes: &[u8]) {
    trunkline::bus::redis::check::frame(bytes);
}
