//! What became of every request, under the names that gRPC servers have in Prometheus
//! (`grpc_server_started_total`, `grpc_server_handled_total`, `grpc_server_handling_seconds`).
//!
//! A request counts once: by the status that its client gets, whichever layer made it, or as
//! cancelled where the client was gone before. The time of a stream is that until its end.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::{Instant, SystemTime},
};

use http::{HeaderMap, Request, Response};
use http_body::{Body, Frame, SizeHint};
use parking_lot::Mutex;
use tonic::{Code, Status};
use tower::{Layer, Service};

use super::histogram::{BUCKETS, Histogram, Totals, bucket_of};
use crate::{admin_port::text::Exemplar, proto::v1::SERVICE, trace_context::TraceContext};

/// The number of codes of gRPC.
const CODES: usize = 17;

/// The header and the trailer of a status.
const GRPC_STATUS: &str = "grpc-status";

/// A method of a service, as metrics name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MethodName {
    /// The full name of the service.
    pub service: &'static str,
    /// The name of the method.
    pub method: &'static str,
    /// `unary`, `server_stream` or `bidi_stream`.
    pub kind: &'static str,
}

const fn method(service: &'static str, method: &'static str, kind: &'static str) -> MethodName {
    MethodName { service, method, kind }
}

const HEALTH: &str = "grpc.health.v1.Health";

/// The number of methods.
const COUNT: usize = 12;

/// All methods. The last one stands for those that do not exist: clients choose their names.
const METHODS: [MethodName; COUNT] = [
    method(SERVICE, "Publish", "unary"),
    method(SERVICE, "PublishStream", "bidi_stream"),
    method(SERVICE, "Subscribe", "server_stream"),
    method(SERVICE, "Watch", "bidi_stream"),
    method(SERVICE, "ListNodes", "unary"),
    method(SERVICE, "GetStatus", "unary"),
    method(HEALTH, "Check", "unary"),
    method(HEALTH, "Watch", "server_stream"),
    method("grpc.reflection.v1.ServerReflection", "ServerReflectionInfo", "bidi_stream"),
    method("grpc.reflection.v1alpha.ServerReflection", "ServerReflectionInfo", "bidi_stream"),
    method("xds.service.orca.v3.OpenRcaService", "StreamCoreMetrics", "server_stream"),
    method("unknown", "unknown", "unary"),
];

/// The number of the method with the path of a request.
fn method_of(path: &str) -> usize {
    let parts = path.strip_prefix('/').and_then(|path| path.split_once('/'));
    let known = parts.and_then(|(service, name)| {
        METHODS.iter().position(|known| known.service == service && known.method == name)
    });
    known.unwrap_or(METHODS.len() - 1)
}

/// Totals of all requests, by method.
#[derive(Debug, Default)]
pub struct Handled([OfMethod; COUNT]);

/// Totals of one method.
#[derive(Debug, Default)]
struct OfMethod {
    started: AtomicU64,
    codes: Totals<CODES>,
    durations: Histogram,
    /// The last traced request of each bucket.
    exemplars: Mutex<[Option<Exemplar>; BUCKETS.len() + 1]>,
}

/// The totals of one method, as they are shown.
pub struct Shown<'a> {
    /// The method.
    pub name: MethodName,
    /// Requests that have begun.
    pub started: u64,
    /// The codes that were answered, with how often.
    pub codes: Vec<(Code, u64)>,
    /// The time until the end.
    pub durations: &'a Histogram,
    /// A traced request of each bucket.
    pub exemplars: [Option<Exemplar>; BUCKETS.len() + 1],
}

impl Handled {
    /// All methods.
    pub fn all(&self) -> impl Iterator<Item = Shown<'_>> {
        METHODS.iter().zip(&self.0).map(|(name, of)| Shown {
            name: *name,
            started: of.started.load(Ordering::Relaxed),
            codes: (0..).map(Code::from_i32).zip(of.codes.all()).collect(),
            durations: &of.durations,
            exemplars: *of.exemplars.lock(),
        })
    }
}

/// A request under way. Dropped before its end it was cancelled.
struct Call {
    handled: Arc<Handled>,
    method: usize,
    since: Instant,
    /// The trace of a request that is recorded.
    trace_id: Option<[u8; 16]>,
    ended: bool,
}

impl Call {
    fn new<B>(handled: &Arc<Handled>, request: &Request<B>) -> Call {
        let method = method_of(request.uri().path());
        handled.0[method].started.fetch_add(1, Ordering::Relaxed);
        let traced = request.headers().get("traceparent");
        let traced = traced.and_then(|value| TraceContext::parse(value.as_bytes()));
        Call {
            handled: handled.clone(),
            method,
            since: Instant::now(),
            trace_id: traced.filter(|context| context.sampled).map(|context| context.trace_id),
            ended: false,
        }
    }

    fn end(&mut self, code: Code) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        let of = &self.handled.0[self.method];
        let duration = self.since.elapsed();
        of.codes.add(code as usize, 1);
        of.durations.observe(duration);
        if let Some(trace_id) = self.trace_id {
            let seconds = duration.as_secs_f64();
            let exemplar = Exemplar { trace_id, seconds, time: SystemTime::now() };
            of.exemplars.lock()[bucket_of(duration)] = Some(exemplar);
        }
    }

    /// Ends it with the status of headers or trailers, if they have one.
    fn end_with(&mut self, fields: &HeaderMap) {
        if let Some(code) = fields.get(GRPC_STATUS) {
            self.end(Code::from_bytes(code.as_bytes()));
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.end(Code::Cancelled);
    }
}

/// Wraps the gRPC services of a port in [`Handling`].
#[derive(Clone, Debug)]
pub struct HandledLayer(pub Arc<Handled>);

/// Counts every request that it passes on.
#[derive(Clone, Debug)]
pub struct Handling<S> {
    inner: S,
    handled: Arc<Handled>,
}

impl<S> Layer<S> for HandledLayer {
    type Service = Handling<S>;

    fn layer(&self, inner: S) -> Handling<S> {
        Handling { inner, handled: self.0.clone() }
    }
}

impl<S, B, O> Service<Request<B>> for Handling<S>
where
    S: Service<Request<B>, Response = Response<O>>,
    S::Future: Unpin,
{
    type Response = Response<HandledBody<O>>;
    type Error = S::Error;
    type Future = HandledFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let call = Call::new(&self.handled, &request);
        HandledFuture { answer: self.inner.call(request), call: Some(call) }
    }
}

/// The answer to a request that is counted.
pub struct HandledFuture<F> {
    answer: F,
    /// None once it was answered.
    call: Option<Call>,
}

impl<F, O, E> Future for HandledFuture<F>
where
    F: Future<Output = Result<Response<O>, E>> + Unpin,
{
    type Output = Result<Response<HandledBody<O>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        let answer = ready!(Pin::new(&mut this.answer).poll(cx))?;
        let mut call = this.call.take();
        if let Some(call) = &mut call {
            call.end_with(answer.headers());
        }
        Poll::Ready(Ok(answer.map(|body| HandledBody { body, call })))
    }
}

/// The body of a response to a request that is counted.
pub struct HandledBody<B> {
    body: B,
    call: Option<Call>,
}

impl<B: From<&'static str>> From<&'static str> for HandledBody<B> {
    /// The answer to what is no request of gRPC: it is not counted.
    fn from(text: &'static str) -> HandledBody<B> {
        HandledBody { body: B::from(text), call: None }
    }
}

impl<B> Body for HandledBody<B>
where
    B: Body<Error = Status> + Unpin,
{
    type Data = B::Data;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, Status>>> {
        let this = self.get_mut();
        let frame = ready!(Pin::new(&mut this.body).poll_frame(cx));
        if let Some(call) = &mut this.call {
            match &frame {
                Some(Ok(frame)) => {
                    if let Some(trailers) = frame.trailers_ref() {
                        call.end_with(trailers);
                    }
                }
                Some(Err(status)) => call.end(status.code()),
                None => call.end(Code::Unknown),
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_that_do_not_exist_are_one() {
        let name = |path: &str| METHODS[method_of(path)].method;
        assert_eq!(name(&format!("/{SERVICE}/Publish")), "Publish");
        assert_eq!(name(&format!("/{HEALTH}/Check")), "Check");
        for unknown in ["", "/", "/x/Publish", "Publish", "/a/b/c"] {
            assert_eq!(name(unknown), "unknown", "{unknown}");
        }
        assert_eq!(name(&format!("/{SERVICE}/Publish/")), "unknown");
    }

    #[test]
    fn a_request_ends_once_and_one_without_an_end_was_cancelled() {
        let handled = Arc::new(Handled::default());
        let request = Request::get(format!("/{SERVICE}/Publish")).body(()).unwrap();
        let mut call = Call::new(&handled, &request);
        call.end(Code::Ok);
        call.end(Code::Internal);
        drop(call);
        drop(Call::new(&handled, &request));
        let publish = handled.all().next().unwrap();
        assert_eq!(publish.started, 2);
        let counted: Vec<_> = publish.codes.into_iter().filter(|(_, count)| *count > 0).collect();
        assert_eq!(counted, [(Code::Ok, 1), (Code::Cancelled, 1)]);
        assert_eq!(publish.durations.cumulative().last(), Some(&2));
        assert!(publish.exemplars.iter().all(Option::is_none));
    }

    #[test]
    fn a_request_of_a_recorded_trace_is_an_exemplar() {
        let handled = Arc::new(Handled::default());
        for (parent, is_one) in [
            ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00", false),
            ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", true),
        ] {
            let request = Request::get(format!("/{SERVICE}/Publish"));
            let request = request.header("traceparent", parent).body(()).unwrap();
            Call::new(&handled, &request).end(Code::Ok);
            let publish = handled.all().next().unwrap();
            assert_eq!(publish.exemplars.iter().any(Option::is_some), is_one, "{parent}");
        }
    }
}
