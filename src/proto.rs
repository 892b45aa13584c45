//! The messages: those of the wire API, from `trunkline-proto`, and those that gateways exchange.

pub use trunkline_proto::v1;

/// The messages on the bus, `trunkline.bus.v1`.
#[allow(clippy::pedantic, clippy::all)]
pub mod bus_v1 {
    tonic::include_proto!("trunkline.bus.v1");
}
