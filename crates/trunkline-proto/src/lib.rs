#![forbid(unsafe_code)]
//! The wire API of Trunkline, generated from `proto/trunkline/v1`: messages, gRPC stubs behind
//! features, and the [table of event kinds](kinds).
//!
//! | feature | adds |
//! |---|---|
//! | none | messages, descriptors and the table of kinds, without tonic and tokio |
//! | `client` | `v1::coordination_service_client`, over tonic's channel |
//! | `server` | `v1::coordination_service_server`, for a test double of a gateway |
//!
//! ```
//! use prost::Message;
//! use trunkline_proto::{
//!     kinds,
//!     v1::{Event, MailboxChange},
//! };
//!
//! let change = MailboxChange { account_id: "a1".into(), change_id: 7, ..Default::default() };
//! let event = Event::from(change).for_role("imap");
//! assert_eq!(Event::decode(&event.encode_to_vec()[..]), Ok(event.clone()));
//!
//! let kind = event.kind.expect("a kind");
//! assert_eq!(kind.row().name, "mailbox_change");
//! assert!(kinds::concerns_account(kind.number()));
//! ```

mod event;
pub mod kinds;
pub mod rpc;

/// The messages and stubs of `trunkline.v1`.
#[allow(clippy::pedantic, clippy::all)]
pub mod v1 {
    include!(concat!(env!("OUT_DIR"), "/trunkline.v1.rs"));

    /// The encoded `FileDescriptorSet` of the wire API, for reflection and for JSON.
    pub const DESCRIPTORS: &[u8] =
        include_bytes!(concat!(env!("OUT_DIR"), "/trunkline.v1.descriptor.bin"));

    /// The full name of the gRPC service.
    pub const SERVICE: &str = "trunkline.v1.CoordinationService";
}

/// The examples of README.md are tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
