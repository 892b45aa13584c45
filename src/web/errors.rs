//! Errors over HTTP: the status of HTTP that goes with that of gRPC, and the status itself as JSON,
//! in the form of AIP-193: `{"error": {"code": 400, "status": "INVALID_ARGUMENT", …}}`.

use std::{sync::LazyLock, time::Duration};

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use prost_reflect::{DescriptorPool, DynamicMessage};
use serde_json::{Value, json};
use tonic::{Code, Status};
use tonic_types::StatusExt;

/// The types of a status and of its details.
static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
    let mut pool = DescriptorPool::global();
    let added = pool.decode_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET);
    added.expect("the descriptors are those of the crate");
    pool
});

/// The answer to a call that has failed.
pub fn refusal(status: &Status) -> Response {
    error(http_status(status.code()), status)
}

/// An error, with a status of HTTP of its own.
pub fn error(code: StatusCode, status: &Status) -> Response {
    let mut response = (code, axum::Json(error_json(code, status))).into_response();
    let headers = response.headers_mut();
    if code == StatusCode::UNAUTHORIZED {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    if let Some(delay) = retry_delay(status) {
        let seconds = delay.as_secs() + u64::from(delay.subsec_nanos() > 0);
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// An error as JSON. Its details are those that the status has, as far as they can be read.
pub fn error_json(code: StatusCode, status: &Status) -> Value {
    json!({ "error": {
        "code": code.as_u16(),
        "status": name(status.code()),
        "message": status.message(),
        "details": details(status).unwrap_or_default(),
    } })
}

fn details(status: &Status) -> Option<Vec<Value>> {
    let descriptor = POOL.get_message_by_name("google.rpc.Status")?;
    let message = DynamicMessage::decode(descriptor, status.details()).ok()?;
    match serde_json::to_value(&message).ok()?.get_mut("details")?.take() {
        Value::Array(details) => Some(details),
        _ => None,
    }
}

/// The delay after which a retry may succeed.
pub fn retry_delay(status: &Status) -> Option<Duration> {
    status.get_details_retry_info()?.retry_delay
}

/// The status of HTTP for one of gRPC, after the comments of `google.rpc.Code`.
pub fn http_status(code: Code) -> StatusCode {
    match code {
        Code::Ok => StatusCode::OK,
        // Closed by the client, which no response reaches.
        Code::Cancelled => StatusCode::from_u16(499).unwrap_or(StatusCode::BAD_REQUEST),
        Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => {
            StatusCode::BAD_REQUEST
        }
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::AlreadyExists | Code::Aborted => StatusCode::CONFLICT,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::Unknown | Code::Internal | Code::DataLoss => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// The name of a code in `google.rpc.Code`: `INVALID_ARGUMENT`.
fn name(code: Code) -> String {
    let mut name = String::new();
    for letter in format!("{code:?}").chars() {
        if letter.is_ascii_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(letter.to_ascii_uppercase());
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::errors::{Error, Limit};

    #[test]
    fn an_error_has_its_details_and_when_to_try_again() {
        let status = Status::from(Error::limit(Limit::HeaderBytes, 7));
        let response = refusal(&status);
        assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(response.headers()[header::RETRY_AFTER], "1");
        let json = error_json(StatusCode::TOO_MANY_REQUESTS, &status);
        assert_eq!(json["error"]["status"], "RESOURCE_EXHAUSTED");
        let details = json["error"]["details"].as_array().unwrap();
        let info = details.iter().find(|one| one["reason"] == "LIMIT_REACHED").unwrap();
        assert_eq!(info["@type"], "type.googleapis.com/google.rpc.ErrorInfo");
        assert_eq!(info["domain"], "trunkline");
    }

    #[test]
    fn codes_have_the_names_of_google_rpc() {
        assert_eq!(name(Code::Ok), "OK");
        assert_eq!(name(Code::Cancelled), "CANCELLED");
        assert_eq!(name(Code::FailedPrecondition), "FAILED_PRECONDITION");
        assert_eq!(name(Code::DataLoss), "DATA_LOSS");
    }
}
