//! The methods of `trunkline.v1.CoordinationService`, by their paths.
//!
//! The server stub of tonic decodes and encodes every message. This one leaves the events of a
//! request encoded, and sends responses as bytes.

use std::{
    convert::Infallible,
    sync::Arc,
    task::{Context as TaskContext, Poll},
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderMap, HeaderValue, Request, Response, header::CONTENT_TYPE};
use http_body::Body;
use tonic::Status;
use tower::{BoxError, Service};

use crate::{
    access::Caller,
    errors::{Error, Requester},
    observe::{counters::Method, status::status},
    proto::v1,
    rpc::{
        Context,
        body::ResponseBody,
        messages,
        publish_stream::{self, PublishStream},
        request::{PublishRequest, read},
        validate, watch,
    },
    trace_context::IncomingTrace,
};

/// The gRPC service. Every request must have passed the access layer.
#[derive(Clone)]
pub struct Server(Arc<Context>);

impl Server {
    /// A server over its context.
    pub fn new(context: Context) -> Server {
        Server(Arc::new(context))
    }

    async fn respond<B>(&self, request: Request<B>) -> Result<Response<ResponseBody>, Status>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let context = &self.0;
        let (head, body) = request.into_parts();
        let caller = Caller::of(&head.extensions)?;
        let (headers, limits) = (&head.headers, &context.limits);
        let method = Method::of(head.uri.path());
        let body = match method {
            Method::Publish => {
                let request: PublishRequest = read(headers, body, limits).await?;
                let published = context.publish(&request, caller, trace_of(headers)).await;
                let requester = || caller.requester().node(&request.node_id);
                let response = self.recorded(method, requester, published)?;
                ResponseBody::unary(&response, context.load.trailer())
            }
            Method::PublishStream => {
                let requests = publish_stream::Requests::new(headers, body, limits)?;
                PublishStream::new(context.clone(), caller.clone(), requests).into()
            }
            Method::Subscribe => {
                let request: v1::SubscribeRequest = read(headers, body, limits).await?;
                let requester = caller.requester().node(&request.node_id);
                let stream = context.clone().subscribe(request, caller).await;
                ResponseBody::stream(self.recorded(method, || requester, stream)?)
            }
            Method::Watch => {
                let in_flight = caller.in_flight.clone();
                let requests = watch::Requests::new(headers, body, limits, in_flight)?;
                // The headers of the response go out at once: a client may wait for them before it
                // sends the first request.
                ResponseBody::opening(context.clone().watch(requests, caller.clone()))
            }
            Method::ListNodes => {
                let request: v1::ListNodesRequest = read(headers, body, limits).await?;
                let query = validate::list_nodes(&request);
                let query = self.recorded(method, || caller.requester(), query)?;
                ResponseBody::unary(&context.nodes.list(&query), context.load.trailer())
            }
            Method::GetStatus => {
                let v1::GetStatusRequest {} = read(headers, body, limits).await?;
                let Context { gateway, nodes, records, .. } = &**context;
                let mut status = status(gateway, nodes, &records.counters);
                let denied = caller.grant.as_ref().is_some_and(|grant| !grant.may_list_nodes());
                status.recent_gaps = messages::sent_gaps(&records.recent, !denied);
                ResponseBody::unary(&status, context.load.trailer())
            }
            Method::Other => return Err(Status::unimplemented("")),
        };
        let mut response = Response::new(body);
        let media_type = HeaderValue::from_static("application/grpc");
        response.headers_mut().insert(CONTENT_TYPE, media_type);
        Ok(response)
    }

    fn recorded<T>(
        &self,
        method: Method,
        requester: impl FnOnce() -> Requester,
        result: Result<T, Error>,
    ) -> Result<T, Error> {
        result.inspect_err(|error| self.0.records.refused(method, &requester(), error))
    }
}

impl<B> Service<Request<B>> for Server
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<ResponseBody>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut TaskContext<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let server = self.clone();
        Box::pin(async move { Ok(server.respond(request).await.unwrap_or_else(Status::into_http)) })
    }
}

/// The trace context that a request brings.
fn trace_of(headers: &HeaderMap) -> Option<IncomingTrace> {
    let values = |name| headers.get_all(name).iter().map(HeaderValue::as_bytes);
    IncomingTrace::read(values("traceparent"), values("tracestate"))
}
