//! A real haproxy in front of two Redis servers, behind one address.

use std::{fs, path::PathBuf};

use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UnixStream},
};

use super::{
    folder,
    ports::Port,
    process::{Process, Program},
    redis::RedisServer,
    tools,
    wait::{LIMIT, until},
};

/// A running haproxy, which leads to the first of its servers.
#[derive(Debug)]
pub struct Haproxy {
    listen: Port,
    socket: PathBuf,
    _process: Process,
    _folder: TempDir,
}

impl Haproxy {
    /// Starts it, and returns when it listens.
    pub async fn start(servers: [&RedisServer; 2]) -> Haproxy {
        let (listen, folder) = (Port::free(), folder::new());
        let (socket, file) = (folder.path().join("socket"), folder.path().join("haproxy.cfg"));
        let [one, two] = servers.map(RedisServer::port);
        let config = format!(
            "global\n  stats socket {} level admin\n\
             defaults\n  mode tcp\n  timeout connect 2s\n  timeout client 1h\n  timeout server 1h\n\
             listen redis\n  bind 127.0.0.1:{}\n  server server-0 127.0.0.1:{one}\n  \
             server server-1 127.0.0.1:{two} disabled\n",
            socket.display(),
            listen.number()
        );
        fs::write(&file, config).expect("a file");
        let args = ["-db", "-f", &file.display().to_string()];
        let process = Process::start("haproxy", Program::new(tools::haproxy(), args));
        let haproxy = Haproxy { listen, socket, _process: process, _folder: folder };
        until(LIMIT, "haproxy listens", async || {
            TcpStream::connect(("127.0.0.1", haproxy.listen.number())).await.is_ok()
        })
        .await;
        haproxy
    }

    /// The URL of the Redis behind it.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.listen.number())
    }

    /// Leads new connections to the server with this index. Open ones stay where they are.
    pub async fn lead_to(&self, index: usize) {
        self.command(&format!("set server redis/server-{} state maint", 1 - index)).await;
        self.command(&format!("set server redis/server-{index} state ready")).await;
    }

    /// Closes all connections to the server with this index.
    pub async fn cut(&self, index: usize) {
        self.command(&format!("shutdown sessions server redis/server-{index}")).await;
    }

    async fn command(&self, command: &str) {
        let mut stream = UnixStream::connect(&self.socket).await.expect("the stats socket");
        stream.write_all(format!("{command}\n").as_bytes()).await.expect("written");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("an answer");
        assert_eq!(answer.trim(), "", "{command}");
    }
}
