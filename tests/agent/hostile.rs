//! Clients that do wrong are told and closed, and nobody else notices.

use std::{fmt::Write as _, sync::atomic::Ordering, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use trunkline::agent::{serve::Options, session::Credentials};

use crate::{
    relay::{CHANNEL, HEALING, Host, next},
    support::{
        Gateway, GatewayOptions, LIMIT, gateway::trunkline, ports::Port, process::Process, until,
    },
};

/// Nobody listens there.
const NOWHERE: &str = "http://127.0.0.1:1";

async fn connect(host: &Host) -> TcpStream {
    TcpStream::connect(host.address).await.expect("connected")
}

/// What a client gets for these bytes until the connection is closed.
async fn answer(host: &Host, bytes: &[u8]) -> String {
    let mut stream = connect(host).await;
    // The other side may close while there is more to send.
    let _ = stream.write_all(bytes).await;
    rest(&mut stream).await
}

async fn rest(stream: &mut TcpStream) -> String {
    let mut read = Vec::new();
    let mut some = vec![0; 16 << 10];
    loop {
        // With bytes that nobody read, a connection may end with a reset.
        match timeout(LIMIT, stream.read(&mut some)).await.expect("closed in time") {
            Ok(0) | Err(_) => break,
            Ok(length) => read.extend_from_slice(&some[..length]),
        }
    }
    String::from_utf8_lossy(&read).into_owned()
}

async fn exchange(stream: &mut TcpStream, command: &str, expected: &str) {
    stream.write_all(command.as_bytes()).await.expect("sent");
    let mut read = vec![0; expected.len()];
    timeout(LIMIT, stream.read_exact(&mut read)).await.expect("in time").expect("answered");
    assert_eq!(String::from_utf8_lossy(&read), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_is_never_complete_ends_its_connection_and_idle_ones_stay() {
    let patience = Duration::from_millis(300);
    let host = Host::with("host-1", NOWHERE, |options| Options { patience, ..options }).await;
    let mut node = host.subscribe("").await;
    let mut idle = connect(&host).await;
    exchange(&mut idle, "PING\r\n", "+PONG\r\n").await;
    let late = "-ERR the rest of the command did not come in time\r\n";
    assert_eq!(answer(&host, b"*3\r\n$7\r\nPUBLISH\r\n$11\r\nstwt").await, late);
    assert_eq!(answer(&host, b"PING\r\nPI").await, format!("+PONG\r\n{late}"));
    // A byte now and then does not help.
    let mut slow = connect(&host).await;
    slow.write_all(b"*2\r\n$4\r\nECHO\r\n$9999\r\n").await.expect("sent");
    let mut said = [0; 64];
    let length = loop {
        let _ = slow.write_all(b"x").await;
        if let Ok(read) = timeout(patience / 4, slow.read(&mut said)).await {
            break read.unwrap_or_default();
        }
    };
    assert_eq!(String::from_utf8_lossy(&said[..length]), late);
    // All that was longer than the patience.
    exchange(&mut idle, "PING\r\n", "+PONG\r\n").await;
    host.publish(&[5, 12]).await.expect("answered");
    assert_eq!(next(&mut node).await, [5, 12]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_authenticate_is_closed_and_wrong_passwords_at_speed_too() {
    let credentials = Credentials { user: "default".into(), password: "secret".into() };
    let patience = Duration::from_millis(300);
    let options = |options| Options { credentials: Some(credentials), patience, ..options };
    let host = Host::with("host-1", NOWHERE, options).await;
    let mut node = connect(&host).await;
    exchange(&mut node, "AUTH secret\r\nSUBSCRIBE stwt.agora\r\n", "+OK\r\n*3\r\n").await;
    assert_eq!(answer(&host, b"").await, "-NOAUTH the client did not authenticate in time\r\n");
    let wrong = "-WRONGPASS invalid username-password pair or user is disabled.\r\n";
    for _ in 0..20 {
        let said = answer(&host, "AUTH wrong\r\n".repeat(5000).as_bytes()).await;
        assert!(said.is_empty() || said == wrong.repeat(10), "{said}");
    }
    // A larger command than one with a password needs.
    let said = answer(&host, b"*2\r\n$4\r\nAUTH\r\n$1000000\r\n").await;
    assert_eq!(said, "-ERR Protocol error: the command is longer than 16384 bytes\r\n");
    let mut other = connect(&host).await;
    exchange(&mut other, "AUTH secret\r\nPING\r\n", "+OK\r\n+PONG\r\n").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn counts_and_lengths_that_are_only_announced_are_refused_at_once() {
    let host = Host::with("host-1", NOWHERE, |options| options).await;
    let count = "-ERR Protocol error: invalid multibulk length\r\n";
    let length = "-ERR Protocol error: invalid bulk length\r\n";
    let long = "-ERR Protocol error: the command is longer than 1048576 bytes\r\n";
    for (announced, expected) in [
        ("*4611686018427387904\r\n", count),
        ("*18446744073709551616\r\n", count),
        ("*1025\r\n", count),
        ("*2\r\n$536870912\r\n", long),
        ("*2\r\n$4611686018427387904\r\n", long),
        ("*2\r\n$-1\r\n", length),
        ("*2\r\n$18446744073709551616\r\n", length),
        ("*2\r\n:5\r\n", "-ERR Protocol error: expected '$', got ':'\r\n"),
    ] {
        assert_eq!(answer(&host, announced.as_bytes()).await, expected, "{announced:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn inline_commands_are_read_within_their_limits() {
    let host = Host::with("host-1", NOWHERE, |options| options).await;
    let mut stream = connect(&host).await;
    let said = "\r\n\nping\r\nECHO \"a \\x41\"\r\nECHO 'b'\nGET key\r\n";
    let unknown = "-ERR unknown command 'GET': this is a Trunkline agent";
    exchange(&mut stream, said, &format!("+PONG\r\n$3\r\na A\r\n$1\r\nb\r\n{unknown}")).await;
    let quotes = answer(&host, b"ECHO \"a\r\n").await;
    assert_eq!(quotes, "-ERR Protocol error: unbalanced quotes in request\r\n");
    let long = answer(&host, &vec![b'x'; 128 << 10]).await;
    assert_eq!(long, "-ERR Protocol error: a line is longer than 65536 bytes\r\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_thousand_subscribes_are_answered_and_heal_once() {
    let host = Host::with("host-1", NOWHERE, |options| options).await;
    let mut node = host.subscribe("").await;
    let mut stream = connect(&host).await;
    let (mut reader, mut writer) = stream.split();
    let write = async {
        let many = format!("SUBSCRIBE {CHANNEL}\r\n").repeat(1000);
        for _ in 0..100 {
            writer.write_all(many.as_bytes()).await.expect("sent");
        }
        writer.write_all(b"PING end\r\n").await.expect("sent");
    };
    let end = b"*2\r\n$4\r\npong\r\n$3\r\nend\r\n";
    let read = async {
        let (mut bytes, mut tail) = (0, Vec::new());
        let mut some = vec![0; 64 << 10];
        while !tail.ends_with(end) {
            let read = timeout(LIMIT, reader.read(&mut some)).await.expect("in time");
            let length = read.expect("bytes");
            assert!(length > 0, "the connection was closed");
            bytes += length;
            tail.extend_from_slice(&some[..length]);
            let cut = tail.len().saturating_sub(end.len());
            tail.drain(..cut);
        }
        bytes
    };
    let ((), bytes) = tokio::join!(write, read);
    let channel = "$10\r\nstwt.agora\r\n";
    let subscribed = format!("*3\r\n$9\r\nsubscribe\r\n{channel}:1\r\n").len();
    let healing = format!("*3\r\n$7\r\nmessage\r\n{channel}$12\r\n\r\n").len() + HEALING.len();
    assert_eq!(bytes, 100_000 * subscribed + healing + end.len());
    // More names than a command may have: all or none.
    let mut names = "*100001\r\n$9\r\nSUBSCRIBE\r\n".to_owned();
    for _ in 0..2000 {
        let _ = write!(names, "${}\r\n{CHANNEL}\r\n", CHANNEL.len());
    }
    let said = answer(&host, names.as_bytes()).await;
    assert!(said.is_empty() || said == "-ERR Protocol error: invalid multibulk length\r\n");
    host.publish(&[5, 12]).await.expect("answered");
    assert_eq!(next(&mut node).await, [5, 12]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_publishes_is_answered_and_takes_bounded_memory() {
    // No gateway can be reached: all of it waits.
    let port = Port::free();
    let address = format!("127.0.0.1:{}", port.number());
    let arguments = ["agent", "--listen", &address, "--gateway", NOWHERE];
    let agent = Process::start("agent", trunkline(arguments));
    until(LIMIT, "an agent that listens", async || TcpStream::connect(&address).await.is_ok())
        .await;
    let mut flood = TcpStream::connect(&address).await.expect("connected");
    let (mut reader, mut writer) = flood.split();
    let message =
        [&b"*3\r\n$7\r\nPUBLISH\r\n$10\r\nstwt.agora\r\n$6\r\n\x05\0\x09\x09"[..]].concat();
    let write = async {
        for block in 0..300u32 {
            let mut many = Vec::new();
            for account in 0..1000u32 {
                many.extend_from_slice(&message);
                // An account of two bytes.
                let account = block * 1000 + account;
                many.push(0x80 | (account & 0x7f) as u8);
                many.push((account >> 7 & 0x7f) as u8);
                many.extend_from_slice(b"\r\n");
            }
            writer.write_all(&many).await.expect("sent");
        }
    };
    let read = async {
        let mut answered = 0;
        let mut some = vec![0; 64 << 10];
        while answered < 300_000 * b":0\r\n".len() {
            let read = timeout(LIMIT, reader.read(&mut some)).await.expect("in time");
            let length = read.expect("bytes");
            assert!(length > 0, "the connection was closed");
            answered += length;
        }
    };
    tokio::join!(write, read);
    let megabytes = agent.rss_bytes() >> 20;
    assert!(megabytes < 200, "{megabytes} MiB");
    let mut other = TcpStream::connect(&address).await.expect("connected");
    exchange(&mut other, "PING\r\n", "+PONG\r\n").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_subscribes_and_unsubscribes_without_end_keeps_nothing() {
    let gateway = Gateway::start(GatewayOptions::embedded()).await;
    let host = Host::start("host-1", &gateway.url()).await;
    let mut stream = connect(&host).await;
    let round = format!("SUBSCRIBE {CHANNEL}\r\nUNSUBSCRIBE\r\n");
    let (mut reader, mut writer) = stream.split();
    let write = async {
        for _ in 0..100 {
            writer.write_all(round.repeat(100).as_bytes()).await.expect("sent");
        }
        writer.write_all(b"ECHO the-end\r\n").await.expect("sent");
    };
    let read = async {
        let mut tail = Vec::new();
        let mut some = vec![0; 64 << 10];
        while !tail.ends_with(b"the-end\r\n") {
            let read = timeout(LIMIT, reader.read(&mut some)).await.expect("in time");
            let length = read.expect("bytes");
            assert!(length > 0, "the connection was closed");
            tail.extend_from_slice(&some[..length]);
            let cut = tail.len().saturating_sub(16);
            tail.drain(..cut);
        }
    };
    tokio::join!(write, read);
    assert!(host.agent.counters().healings.load(Ordering::Relaxed) >= 10_000);
    assert_eq!(host.publish(&[5, 12]).await.expect("answered"), 0, "nobody is subscribed");
}
