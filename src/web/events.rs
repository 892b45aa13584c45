//! A stream of responses as server-sent events. Each response is one event: its name is that of the
//! response's arm, its data the arm as JSON, and its id the resume token. A browser that reconnects
//! sends the last id, and goes on there without loss or repeat.

use std::convert::Infallible;

use axum::response::{IntoResponse, Response, Sse, sse::Event};
use base64::{Engine, engine::general_purpose::STANDARD};
use futures_util::stream;
use http::{HeaderMap, HeaderName, HeaderValue};
use serde_json::{Value, json};
use tonic::{Status, Streaming};

use super::errors::{error_json, http_status, retry_delay};
use crate::{
    json::response_to_json,
    proto::v1::{SubscribeResponse, subscribe_response::Response as Arm},
};

/// The name of the last event of a stream. Its data is the error that ended it, or an empty object.
const END: &str = "end";

/// Takes the resume token of a browser that reconnects: it is later than that of its query.
pub fn resume(request: &mut Value, headers: &HeaderMap) {
    let id = headers.get("last-event-id").map(HeaderValue::as_bytes);
    if let Some(id) = id.filter(|id| !id.is_empty()) {
        request["resumeToken"] = String::from_utf8_lossy(id).into();
    }
}

/// The response that sends a stream.
pub fn response(responses: Streaming<SubscribeResponse>) -> Response {
    let events = stream::unfold(Some(responses), async |responses| {
        let mut responses = responses?;
        Some(match responses.message().await {
            Ok(Some(response)) => match event(&response) {
                Ok(event) => (event, Some(responses)),
                Err(status) => (end(Some(&status)), None),
            },
            Ok(None) => (end(None), None),
            Err(status) => (end(Some(&status)), None),
        })
    });
    let events = futures_util::StreamExt::map(events, Ok::<_, Infallible>);
    let mut response = Sse::new(events).into_response();
    // Without this nginx gathers events until its buffers are full.
    let buffering = HeaderName::from_static("x-accel-buffering");
    response.headers_mut().insert(buffering, HeaderValue::from_static("no"));
    response
}

fn event(response: &SubscribeResponse) -> Result<Event, Status> {
    let json = response_to_json(response).map_err(Status::internal)?;
    let Value::Object(arms) = json else { return Err(Status::internal("a response is an object")) };
    // An arm that this gateway does not know is none that it has made.
    let Some((name, data)) = arms.into_iter().next() else {
        return Err(Status::internal("a response has an arm"));
    };
    let mut event = Event::default().event(name).data(data.to_string());
    if let Some(token) = token(response) {
        event = event.id(STANDARD.encode(token));
    }
    if let Some(Arm::Draining(draining)) = &response.response
        && let Some(delay) = draining.reconnect_delay
        && let Ok(delay) = delay.try_into()
    {
        event = event.retry(delay);
    }
    Ok(event)
}

/// The resume token of a response, where it has one.
fn token(response: &SubscribeResponse) -> Option<&[u8]> {
    let token = match response.response.as_ref()? {
        Arm::Subscribed(subscribed) => &subscribed.resume_token,
        Arm::Events(batch) => &batch.resume_token,
        Arm::Gap(gap) => &gap.resume_token,
        Arm::Heartbeat(heartbeat) => &heartbeat.resume_token,
        Arm::Explanation(explanation) => &explanation.resume_token,
        Arm::InterestUpdated(updated) => &updated.resume_token,
        Arm::Draining(_) | Arm::Notice(_) | Arm::InterestRejected(_) | Arm::CurrentNodes(_) => {
            return None;
        }
    };
    (!token.is_empty()).then_some(token)
}

fn end(status: Option<&Status>) -> Event {
    let data =
        status.map_or_else(|| json!({}), |status| error_json(http_status(status.code()), status));
    let event = Event::default().event(END).data(data.to_string());
    match status.and_then(retry_delay) {
        Some(delay) => event.retry(delay),
        None => event,
    }
}
