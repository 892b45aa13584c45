//! Streams of published events.

use std::time::Duration;

use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};
use trunkline_proto::v1::{
    DeliveryReport, Event, PublishAccepted, PublishEvents, PublishOpen, PublishOpened,
    PublishRejected, PublishStreamRequest, PublishStreamResponse, publish_stream_request::Request,
    publish_stream_response::Response,
};

use super::nodes::TestNode;

const LIMIT: Duration = Duration::from_secs(30);

/// A stream of published events.
pub struct TestProducer {
    /// Takes requests; dropped when the client has no more.
    pub requests: Option<mpsc::Sender<PublishStreamRequest>>,
    responses: Streaming<PublishStreamResponse>,
    /// The first response, where the stream was opened.
    pub opened: PublishOpened,
}

/// What a stream answered until its end, or until a sequence.
#[derive(Debug, Default)]
pub struct Answers {
    /// Acknowledgements.
    pub accepted: Vec<PublishAccepted>,
    /// Events that were rejected.
    pub rejected: Vec<PublishRejected>,
    /// True if the gateway said that it drains.
    pub draining: bool,
    /// How far events came that nodes were waited for.
    pub delivered: Vec<DeliveryReport>,
}

impl TestNode {
    /// Opens a stream without saying anything.
    pub async fn producer_unopened(&self) -> TestProducer {
        let (requests, receiver) = mpsc::channel(64);
        let requests_stream = ReceiverStream::new(receiver);
        let call = self.client.clone();
        let responses = { call }.publish_stream(requests_stream).await.expect("a stream");
        TestProducer {
            requests: Some(requests),
            responses: responses.into_inner(),
            opened: PublishOpened::default(),
        }
    }

    /// Opens a stream for a publisher.
    pub async fn producer(&self, publisher_id: impl Into<String>) -> Result<TestProducer, Status> {
        let mut stream = self.producer_unopened().await;
        stream.open(self.producer_open(publisher_id)).await?;
        Ok(stream)
    }

    /// The first request of a stream of this node.
    pub fn producer_open(&self, publisher_id: impl Into<String>) -> PublishOpen {
        PublishOpen {
            node_id: self.node_id.clone(),
            publisher_id: publisher_id.into(),
            positions: true,
        }
    }
}

impl TestProducer {
    /// Sends the first request, and takes its answer.
    pub async fn open(&mut self, open: PublishOpen) -> Result<(), Status> {
        self.send(Request::Open(open)).await;
        match self.next().await? {
            Some(Response::Opened(opened)) => self.opened = opened,
            other => panic!("not opened: {other:?}"),
        }
        Ok(())
    }

    /// Sends a request. One that the gateway does not wait for any more is lost.
    pub async fn send(&self, request: Request) {
        let request = PublishStreamRequest { request: Some(request) };
        let requests = self.requests.as_ref().expect("an open side");
        let sent = timeout(LIMIT, requests.send(request)).await;
        let _ = sent.expect("room for a request");
    }

    /// Sends events.
    pub async fn events(&self, first_sequence: u64, events: Vec<Event>) {
        self.send(Request::Events(PublishEvents { first_sequence, events, ..Default::default() }))
            .await;
    }

    /// The next response; none at the end of the stream.
    pub async fn next(&mut self) -> Result<Option<Response>, Status> {
        let message = timeout(LIMIT, self.responses.message()).await.expect("an answer in time")?;
        Ok(message.map(|message| message.response.expect("a known response")))
    }

    /// Everything until this sequence is accepted.
    pub async fn until(&mut self, sequence: u64) -> Answers {
        let mut answers = Answers::default();
        while answers.accepted.last().is_none_or(|accepted| accepted.sequence < sequence) {
            let response = self.next().await.expect("an open stream").expect("an open stream");
            answers.add(response);
        }
        answers
    }

    /// Closes the client's side, and takes everything until the end of the stream.
    pub async fn close(&mut self) -> (Answers, Result<(), Status>) {
        self.requests = None;
        self.end().await
    }

    /// Everything until the end of the stream.
    pub async fn end(&mut self) -> (Answers, Result<(), Status>) {
        let mut answers = Answers::default();
        loop {
            match self.next().await {
                Ok(Some(response)) => answers.add(response),
                Ok(None) => return (answers, Ok(())),
                Err(status) => return (answers, Err(status)),
            }
        }
    }
}

impl Answers {
    fn add(&mut self, response: Response) {
        match response {
            Response::Accepted(accepted) => self.accepted.push(accepted),
            Response::Rejected(rejected) => self.rejected.push(rejected),
            Response::Draining(_) => self.draining = true,
            Response::Delivery(report) => self.delivered.push(report),
            Response::Opened(opened) => panic!("opened twice: {opened:?}"),
        }
    }

    /// The last sequence up to which everything is accepted; 0 if nothing is.
    pub fn last(&self) -> u64 {
        self.accepted.last().map_or(0, |accepted| accepted.sequence)
    }

    /// The sequences that were rejected.
    pub fn rejected(&self) -> Vec<u64> {
        self.rejected.iter().map(|rejected| rejected.sequence).collect()
    }
}
