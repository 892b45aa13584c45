#![forbid(unsafe_code)]
//! The wire API of Trunkline, generated from `proto/trunkline/v1`: messages, and the gRPC stubs
//! behind features.
//!
//! | feature | what it adds |
//! |---|---|
//! | none | messages and descriptors; neither tonic nor tokio is in the tree |
//! | `client` | `v1::coordination_service_client`, over tonic's channel |
//! | `server` | `v1::coordination_service_server`, for a test double of a gateway |
//!
//! ```
//! use prost::Message;
//! use trunkline_proto::v1::{Event, MailboxChange, event::Kind};
//!
//! let change = MailboxChange { account_id: "a1".into(), change_id: 7, ..Default::default() };
//! let event = Event { kind: Some(Kind::MailboxChange(change)), ..Default::default() };
//! assert_eq!(Event::decode(&event.encode_to_vec()[..]), Ok(event));
//! ```

mod event;
pub mod kinds;

/// The messages and stubs of `trunkline.v1`.
#[allow(clippy::pedantic, clippy::all)]
pub mod v1 {
    include!(concat!(env!("OUT_DIR"), "/trunkline.v1.rs"));

    /// The encoded `FileDescriptorSet` of the wire API, for reflection and for JSON.
    pub const DESCRIPTORS: &[u8] =
        include_bytes!(concat!(env!("OUT_DIR"), "/trunkline.v1.descriptor.bin"));

    /// Full name of the gRPC service.
    pub const SERVICE: &str = "trunkline.v1.CoordinationService";
}
