//! Raw HTTP/2 frames (RFC 9113), for clients that break the rules.

use std::{collections::HashMap, net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::timeout,
};

use crate::support::{Gateway, LIMIT};

/// The address of hostile clients.
pub const HOSTILE: &str = "127.0.0.2";

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const END_STREAM: u8 = 1;
pub const ACK: u8 = 1;
pub const END_HEADERS: u8 = 4;

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A connection whose every byte the test writes.
pub struct Raw(pub TcpStream);

/// A received frame.
#[derive(Clone, Debug)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Raw {
    /// Connects from [`HOSTILE`], and sends nothing.
    pub async fn connect(gateway: &Gateway) -> Raw {
        Raw::with_buffer(gateway, None).await
    }

    /// The same, with this size of the receive buffer.
    pub async fn with_buffer(gateway: &Gateway, bytes: Option<u32>) -> Raw {
        let socket = TcpSocket::new_v4().unwrap();
        if let Some(bytes) = bytes {
            socket.set_recv_buffer_size(bytes).unwrap();
        }
        socket.bind(format!("{HOSTILE}:0").parse().unwrap()).unwrap();
        let address: SocketAddr = gateway.address().parse().unwrap();
        Raw(timeout(LIMIT, socket.connect(address)).await.unwrap().unwrap())
    }

    /// Connects, and sends the connection preface.
    pub async fn with_preface(gateway: &Gateway) -> Raw {
        let mut raw = Raw::connect(gateway).await;
        raw.send(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).await.unwrap();
        raw
    }

    /// Writes bytes; an error when the gateway has closed the connection.
    pub async fn send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        timeout(LIMIT, self.0.write_all(bytes)).await.expect("the bytes are written in time")
    }

    /// The next frame; None when the gateway has closed the connection.
    pub async fn frame(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        self.0.read_exact(&mut head).await.ok()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        self.0.read_exact(&mut payload).await.ok()?;
        let stream = u32::from_be_bytes(head[5..].try_into().unwrap()) & 0x7fff_ffff;
        Some(Frame { kind: head[3], flags: head[4], stream, payload })
    }

    /// All frames until the gateway closes the connection.
    pub async fn rest(&mut self, limit: Duration) -> Vec<Frame> {
        let mut frames = Vec::new();
        let end = timeout(limit, async {
            while let Some(frame) = self.frame().await {
                frames.push(frame);
            }
        });
        assert!(end.await.is_ok(), "the gateway closes within {limit:?}; so far {}", frames.len());
        frames
    }
}

/// The flow-control windows of a client: the bytes that it may send now (RFC 9113, 6.9).
pub struct Windows {
    connection: i64,
    initial: i64,
    streams: HashMap<u32, i64>,
}

impl Windows {
    pub fn new() -> Windows {
        Windows { connection: 65_535, initial: 65_535, streams: HashMap::new() }
    }

    /// Applies a SETTINGS or `WINDOW_UPDATE` frame of the gateway.
    pub fn receive(&mut self, frame: &Frame) {
        let number = |bytes: &[u8]| i64::from(u32::from_be_bytes(bytes.try_into().unwrap()));
        if frame.kind == SETTINGS {
            for setting in frame.payload.chunks(6).filter(|setting| setting[..2] == [0, 4]) {
                let more = number(&setting[2..]) - self.initial;
                self.initial += more;
                self.streams.values_mut().for_each(|window| *window += more);
            }
        } else if frame.kind == WINDOW_UPDATE {
            let window = match frame.stream {
                0 => &mut self.connection,
                stream => self.streams.entry(stream).or_insert(self.initial),
            };
            *window += number(&frame.payload);
        }
    }

    /// Takes bytes from the windows of this stream and the connection; false if they do not fit.
    pub fn take(&mut self, stream: u32, bytes: usize) -> bool {
        let bytes = i64::try_from(bytes).unwrap();
        let window = self.streams.entry(stream).or_insert(self.initial);
        let fits = bytes <= *window && bytes <= self.connection;
        if fits {
            *window -= bytes;
            self.connection -= bytes;
        }
        fits
    }
}

/// A frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = length[1..].to_vec();
    bytes.extend_from_slice(&[kind, flags]);
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// A header field, neither indexed nor compressed (RFC 7541, 6.2.2).
pub fn field(name: &str, value: &str) -> Vec<u8> {
    let mut bytes = vec![0];
    for text in [name, value] {
        // An integer with a 7-bit prefix (RFC 7541, 5.1).
        match text.len().checked_sub(127) {
            None => bytes.push(u8::try_from(text.len()).unwrap()),
            Some(mut rest) => {
                bytes.push(127);
                while rest >= 128 {
                    bytes.push(u8::try_from(rest % 128).unwrap() | 128);
                    rest /= 128;
                }
                bytes.push(u8::try_from(rest).unwrap());
            }
        }
        bytes.extend_from_slice(text.as_bytes());
    }
    bytes
}

/// The header fields of a call.
pub fn call(method: &str) -> Vec<u8> {
    [
        field(":method", "POST"),
        field(":scheme", "http"),
        field(":path", &format!("/trunkline.v1.CoordinationService/{method}")),
        field(":authority", "gateway"),
        field("te", "trailers"),
        field("content-type", "application/grpc"),
    ]
    .concat()
}

/// A length-prefixed gRPC message; `length` need not be true.
pub fn message(length: usize, bytes: &[u8]) -> Vec<u8> {
    let mut body = vec![0];
    body.extend_from_slice(&u32::try_from(length).unwrap().to_be_bytes());
    body.extend_from_slice(bytes);
    body
}

/// The error code and the debug data of the last GOAWAY among frames.
pub fn goaway(frames: &[Frame]) -> Option<(u32, String)> {
    let goaway = frames.iter().rev().find(|frame| frame.kind == GOAWAY)?;
    let code = u32::from_be_bytes(goaway.payload[4..8].try_into().unwrap());
    Some((code, String::from_utf8_lossy(&goaway.payload[8..]).into_owned()))
}
