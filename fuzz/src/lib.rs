//! Checks that must hold for any input, whoever wrote it: decoders do not panic, a decoded value is
//! decoded again from its own encoding, and decoders agree with a second reading of the same bytes.
//!
//! Each function takes bytes and panics if its check fails. The fuzz targets call them with the
//! input of libFuzzer; `tests/decoders` calls them with random bytes and with the seeds.

mod agora;
mod answers;
mod config;
mod event;
mod filter;
mod frame;
mod order;
mod recovery;
mod resp;
mod token;

pub use self::{
    agora::agora, answers::answers, config::config, event::event, filter::filter, frame::frame,
    order::order, recovery::recovery, resp::resp, token::token,
};
