//! What a node is told whose request is larger than the gateway reads.
//!
//! Such a request is refused by tonic before any code of ours sees it, with the code OUT_OF_RANGE and no details. The answer is
//! exchanged for the one that a node gets for any other payload that is too large.

use http::{HeaderMap, Response};
use tonic::{Code, Status, body::Body};

use super::error::Error;

/// Exchanges tonic's answer to a request that is too large; `limit` is what a request may have, in bytes. Every other answer
/// passes as it is.
pub fn explain(response: Response<Body>, limit: usize) -> Response<Body> {
    match actual(response.headers()) {
        Some(actual) => {
            let error = Error::PayloadTooLarge { what: "request".into(), limit, actual };
            Status::from(error).into_http()
        }
        None => response,
    }
}

/// How many bytes the request has, if that is what the answer complains of. Nothing else here answers OUT_OF_RANGE.
fn actual(headers: &HeaderMap) -> Option<usize> {
    let code = headers.get(Status::GRPC_STATUS)?;
    if Code::from_bytes(code.as_bytes()) != Code::OutOfRange {
        return None;
    }
    let status = Status::from_header_map(headers)?;
    let found = status.message().split_once("found ")?.1;
    found.split_once(' ')?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_complaint_about_the_size_is_exchanged() {
        let too_large =
            "Error, decoded message length too large: found 9000 bytes, the limit is: 64 bytes";
        let explained = explain(Status::out_of_range(too_large).into_http(), 32);
        let status = Status::from_header_map(explained.headers()).unwrap();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(status.message(), "request has 9000 bytes; the limit is 32");

        for other in [Status::out_of_range("something else"), Status::not_found("found 9 bytes")] {
            let passed = explain(other.clone().into_http(), 32);
            let status = Status::from_header_map(passed.headers()).unwrap();
            assert_eq!((status.code(), status.message()), (other.code(), other.message()));
        }
        assert!(Status::from_header_map(explain(Response::default(), 32).headers()).is_none());
    }
}
