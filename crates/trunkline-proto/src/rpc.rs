//! `google.rpc`: the status that messages of the wire API carry.

use prost_types::Any;

/// The outcome of one request or event among many: `google.rpc.Status`.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Status {
    /// The code of gRPC, such as 3 for `INVALID_ARGUMENT`.
    #[prost(int32, tag = "1")]
    pub code: i32,
    /// Text for developers.
    #[prost(string, tag = "2")]
    pub message: String,
    /// Details, such as `google.rpc.ErrorInfo`.
    #[prost(message, repeated, tag = "3")]
    pub details: Vec<Any>,
}
