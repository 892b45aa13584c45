//! The generated messages and clients of `proto/`.

/// The wire API, `trunkline.v1`.
#[allow(clippy::pedantic, clippy::all)]
pub mod v1 {
    tonic::include_proto!("trunkline.v1");

    /// The descriptors of the wire API, for reflection and for JSON.
    pub const DESCRIPTORS: &[u8] =
        include_bytes!(concat!(env!("OUT_DIR"), "/trunkline.v1.descriptor.bin"));

    /// Full name of the service.
    pub const SERVICE: &str = "trunkline.v1.CoordinationService";
}

/// What travels the bus, `trunkline.bus.v1`.
#[allow(clippy::pedantic, clippy::all, unreachable_pub)]
pub(crate) mod bus_v1 {
    tonic::include_proto!("trunkline.bus.v1");
}
