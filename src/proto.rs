//! The messages: those of the wire API, from `trunkline-proto`, and those that gateways exchange.

pub use trunkline_proto::v1;

/// The messages on the bus, `trunkline.bus.v1`.
#[allow(clippy::pedantic, clippy::all)]
pub mod bus_v1 {
    tonic::include_proto!("trunkline.bus.v1");
}

/// Load reports, `xds.data.orca.v3` and `xds.service.orca.v3`.
pub mod xds {
    /// What the backend reports.
    pub mod data {
        /// ORCA.
        pub mod orca {
            /// Its version 3.
            #[allow(clippy::pedantic, clippy::all, missing_docs)]
            pub mod v3 {
                tonic::include_proto!("xds.data.orca.v3");
            }
        }
    }
    /// How it reports it.
    pub mod service {
        /// ORCA.
        pub mod orca {
            /// Its version 3.
            #[allow(clippy::pedantic, clippy::all, missing_docs)]
            pub mod v3 {
                tonic::include_proto!("xds.service.orca.v3");
            }
        }
    }
    /// The files of both, as an encoded `FileDescriptorSet`.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/orca.descriptor.bin"));
}
