//! What a node is told whose request is larger than the gateway reads.
//!
//! Such a request is refused by tonic before any code of ours sees it, with the code `OUT_OF_RANGE` and no details. The answer is
//! exchanged for the one that a node gets for any other payload that is too large.

use http::{HeaderMap, Response};
use tonic::{Code, Status, body::Body};

use crate::rpc::error::Error;

/// Exchanges tonic's answer to a request that is too large. Every other answer passes as it is.
pub fn explain(response: Response<Body>) -> Response<Body> {
    match sizes(response.headers()) {
        Some((actual, limit)) => {
            let error = Error::PayloadTooLarge { what: "request".into(), limit, actual };
            Status::from(error).into_http()
        }
        None => response,
    }
}

/// How many bytes the request has and may have, if that is what the answer complains of. Nothing else here answers `OUT_OF_RANGE`.
fn sizes(headers: &HeaderMap) -> Option<(usize, usize)> {
    let code = headers.get(Status::GRPC_STATUS)?;
    if Code::from_bytes(code.as_bytes()) != Code::OutOfRange {
        return None;
    }
    let status = Status::from_header_map(headers)?;
    let number_after = |words: &str| -> Option<usize> {
        status.message().split_once(words)?.1.split(' ').next()?.parse().ok()
    };
    Some((number_after("found ")?, number_after("the limit is: ")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_complaint_about_the_size_is_exchanged() {
        let too_large =
            "Error, decoded message length too large: found 9000 bytes, the limit is: 64 bytes";
        let explained = explain(Status::out_of_range(too_large).into_http());
        let status = Status::from_header_map(explained.headers()).unwrap();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(status.message(), "request has 9000 bytes; the limit is 64");

        for other in [Status::out_of_range("something else"), Status::not_found("found 9 bytes")] {
            let passed = explain(other.clone().into_http());
            let status = Status::from_header_map(passed.headers()).unwrap();
            assert_eq!((status.code(), status.message()), (other.code(), other.message()));
        }
        assert!(Status::from_header_map(explain(Response::default()).headers()).is_none());
    }
}
