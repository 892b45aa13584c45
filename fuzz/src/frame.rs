use trunkline::{bus::redis::check, hub::log::IndexedFrame};

/// Bytes from Redis, as a message from a channel and as an entry of history.
pub fn frame(bytes: &[u8]) {
    check::frame(bytes, |frame| IndexedFrame::new(frame.clone()).events.len() as u64);
}
