//! Refuses requests that are not gRPC, with a text that a person reads in a browser or in curl.

use std::{
    future::{Ready, ready},
    task::{Context, Poll},
};

use futures_util::future::Either;
use http::{HeaderMap, Request, Response, StatusCode, Version, header};
use tower::{Layer, Service};

/// The answer to a client that speaks HTTP/1, or something that is not named here.
const NO_GRPC: &str = "This is a Trunkline gateway. It speaks gRPC, which needs HTTP/2.\n\
    Try: grpcurl -plaintext <this address> list\n";

/// The answers to clients of protocols that resemble gRPC. Nothing of their requests was done.
const GRPC_WEB: &str = "This is a Trunkline gateway. It speaks gRPC and not gRPC-Web: nothing was \
    done.\nIts HTTP port (http.listen) speaks gRPC-Web, where it is configured.\n";
const CODEC: &str = "This is a Trunkline gateway. It speaks gRPC with protobuf, and no other \
    coding of messages: nothing was done.\nSend application/grpc or application/grpc+proto.\n";
const JSON: &str = "This is a Trunkline gateway. It speaks gRPC, and neither JSON over HTTP nor \
    Connect: nothing was done.\nIts HTTP port (http.listen) takes JSON, where it is configured. \
    Or try grpcurl, which takes JSON too.\n";

/// Wraps the gRPC services of a port in [`GrpcOnly`].
#[derive(Clone, Copy, Debug, Default)]
pub struct GrpcOnlyLayer;

/// Passes gRPC requests on. Answers others with 426 (not HTTP/2) or 415 (a content type that is not
/// that of gRPC with protobuf), before anything of them is done.
#[derive(Clone, Debug)]
pub struct GrpcOnly<S> {
    inner: S,
}

impl<S> Layer<S> for GrpcOnlyLayer {
    type Service = GrpcOnly<S>;

    fn layer(&self, inner: S) -> GrpcOnly<S> {
        GrpcOnly { inner }
    }
}

impl<S, B, O> Service<Request<B>> for GrpcOnly<S>
where
    S: Service<Request<B>, Response = Response<O>>,
    O: From<&'static str>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Either<S::Future, Ready<Result<S::Response, S::Error>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        match refusal(&request) {
            None => Either::Left(self.inner.call(request)),
            Some((status, text)) => Either::Right(ready(Ok(answer(status, text)))),
        }
    }
}

fn refusal<B>(request: &Request<B>) -> Option<(StatusCode, &'static str)> {
    if request.version() != Version::HTTP_2 {
        return Some((StatusCode::UPGRADE_REQUIRED, NO_GRPC));
    }
    let text = wrong_type(&media_type(request.headers()))?;
    Some((StatusCode::UNSUPPORTED_MEDIA_TYPE, text))
}

/// The media type of the body of a request, in lower case and without parameters.
pub fn media_type(headers: &HeaderMap) -> Vec<u8> {
    let content_type = headers.get(header::CONTENT_TYPE).map_or(&[][..], |value| value.as_bytes());
    let media_type = content_type.split(|byte| *byte == b';').next().unwrap_or_default();
    media_type.trim_ascii().to_ascii_lowercase()
}

/// The answer to a media type that is not that of gRPC with protobuf.
fn wrong_type(media_type: &[u8]) -> Option<&'static str> {
    match media_type {
        b"application/grpc" | b"application/grpc+proto" => None,
        other if other.starts_with(b"application/grpc-web") => Some(GRPC_WEB),
        other if other.starts_with(b"application/grpc+") => Some(CODEC),
        b"application/json" | b"application/proto" => Some(JSON),
        other if other.starts_with(b"application/connect+") => Some(JSON),
        _ => Some(NO_GRPC),
    }
}

fn answer<O: From<&'static str>>(status: StatusCode, text: &'static str) -> Response<O> {
    let mut response = Response::new(O::from(text));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    if status == StatusCode::UPGRADE_REQUIRED {
        headers.insert(header::UPGRADE, header::HeaderValue::from_static("h2c"));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(content_type: &str) -> Vec<u8> {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, content_type.parse().unwrap());
        media_type(&headers)
    }

    fn answer_to(content_type: &str) -> Option<&'static str> {
        wrong_type(&of(content_type))
    }

    #[test]
    fn a_media_type_has_no_case_and_no_parameters() {
        for json in ["application/json", "Application/JSON ; charset=utf-8"] {
            assert_eq!(of(json), b"application/json", "{json}");
        }
        for other in ["text/plain", "application/json5", "application/grpc", ""] {
            assert_ne!(of(other), b"application/json", "{other}");
        }
        assert_eq!(media_type(&HeaderMap::new()), b"");
    }

    #[test]
    fn only_grpc_with_protobuf_is_passed_on() {
        for right in [
            "application/grpc",
            "application/grpc+proto",
            "Application/gRPC",
            "application/grpc;charset=utf-8",
            "application/grpc+proto ; x=y",
        ] {
            assert_eq!(answer_to(right), None, "{right}");
        }
        for (wrong, text) in [
            ("application/grpc-web", GRPC_WEB),
            ("application/grpc-web+proto", GRPC_WEB),
            ("application/grpc-web-text", GRPC_WEB),
            ("application/grpc+json", CODEC),
            ("application/grpc+protobuf", CODEC),
            ("application/json; charset=utf-8", JSON),
            ("application/connect+json", JSON),
            ("application/proto", JSON),
            ("application/grpcx", NO_GRPC),
            ("text/html", NO_GRPC),
            ("", NO_GRPC),
        ] {
            assert_eq!(answer_to(wrong), Some(text), "{wrong}");
        }
    }
}
