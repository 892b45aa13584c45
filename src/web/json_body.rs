//! The body of a request as JSON, made into the message of gRPC. It is read behind the layer that
//! knows the caller: whoever has no credentials costs no more than the headers of a request.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use prost::Message;
use serde_json::Value;
use tonic::Status;
use tower::{BoxError, Layer, Service};

use super::framed;
use crate::{
    access::{Caller, quota::InFlightRequest},
    errors::Error,
    json::{event_from_json, from_json},
    proto::v1,
};

/// Bytes of a body as JSON. Read into values it takes up to thirty times as much, for as long as it
/// is made into a message.
pub const MAX_JSON: usize = 1024 * 1024;

/// Makes a message of a body as JSON. In the extensions of a request that has such a body.
#[derive(Clone, Copy)]
pub struct Conversion(pub fn(&[u8]) -> Result<Vec<u8>, Error>);

/// Wraps a gRPC service: requests with a [`Conversion`] get their message from their JSON.
#[derive(Clone, Copy, Debug, Default)]
pub struct JsonRequestsLayer;

/// See [`JsonRequestsLayer`].
#[derive(Clone)]
pub struct JsonRequests<S>(S);

/// A body of gRPC, or one of JSON that becomes one.
pub struct JsonBody<B> {
    body: Pin<Box<B>>,
    json: Option<Reading>,
    /// True once the message was given: nothing follows it.
    given: bool,
}

/// JSON that arrives.
struct Reading {
    bytes: BytesMut,
    conversion: Conversion,
    /// Counts it for its sender.
    in_flight: Arc<InFlightRequest>,
}

impl<S> Layer<S> for JsonRequestsLayer {
    type Service = JsonRequests<S>;

    fn layer(&self, inner: S) -> JsonRequests<S> {
        JsonRequests(inner)
    }
}

impl<S, B, O> Service<Request<B>> for JsonRequests<S>
where
    S: Service<Request<JsonBody<B>>, Response = Response<O>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> S::Future {
        let (head, body) = request.into_parts();
        let conversion = head.extensions.get::<Conversion>().copied();
        let caller = Caller::of(&head.extensions).ok();
        let json = conversion.zip(caller).map(|(conversion, caller)| Reading {
            bytes: BytesMut::new(),
            conversion,
            in_flight: caller.in_flight.clone(),
        });
        let body = JsonBody { body: Box::pin(body), json, given: false };
        self.0.call(Request::from_parts(head, body))
    }
}

impl Reading {
    fn add(&mut self, data: &[u8]) -> Result<(), Error> {
        let actual = self.bytes.len() + data.len();
        if actual > MAX_JSON {
            return Err(Error::PayloadTooLarge { what: "body".into(), limit: MAX_JSON, actual });
        }
        self.in_flight.add(data.len())?;
        self.bytes.extend_from_slice(data);
        Ok(())
    }
}

impl<B> Body for JsonBody<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        if this.given {
            return Poll::Ready(None);
        }
        loop {
            let frame = ready!(this.body.as_mut().poll_frame(cx));
            let Some(reading) = &mut this.json else {
                return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
            };
            let refused = |error| Poll::Ready(Some(Err(Status::from(error).into())));
            match frame {
                Some(Ok(frame)) => {
                    let Some(data) = frame.data_ref() else { continue };
                    if let Err(error) = reading.add(data) {
                        return refused(error);
                    }
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
                None => {
                    let made = (reading.conversion.0)(&reading.bytes);
                    (this.json, this.given) = (None, true);
                    return match made {
                        Ok(message) => Poll::Ready(Some(Ok(Frame::data(framed(&message))))),
                        Err(error) => refused(error),
                    };
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.given || (self.json.is_none() && self.body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        match self.json {
            None if !self.given => self.body.size_hint(),
            _ => SizeHint::default(),
        }
    }
}

/// The `PublishRequest` of a body: its events have the form in which `trunkline subscribe` and
/// `GET /v1/subscribe` write them.
pub fn publish_request(body: &[u8]) -> Result<Vec<u8>, Error> {
    let mut json: Value = serde_json::from_slice(body)
        .map_err(|error| Error::field("body", format!("is not JSON: {error}")))?;
    let Some(object) = json.as_object_mut() else {
        return Err(Error::field("body", "must be an object"));
    };
    let events = match object.shift_remove("events") {
        None | Some(Value::Null) => vec![],
        Some(Value::Array(events)) => events,
        Some(_) => return Err(Error::field("events", "must be an array")),
    };
    let request = from_json("PublishRequest", json).map_err(|error| Error::field("body", error))?;
    let mut request = v1::PublishRequest::decode(&request[..])
        .map_err(|error| Error::field("body", error.to_string()))?;
    for (nth, event) in events.into_iter().enumerate() {
        let event = event_from_json(event)
            .map_err(|error| Error::field(format!("events[{nth}]"), error))?;
        request.events.push(event);
    }
    Ok(request.encode_to_vec())
}
