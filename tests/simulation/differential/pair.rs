//! The model and a real server side by side.

use ::redis::{AsyncConnectionConfig, Client, Value, aio::MultiplexedConnection, cmd};

use crate::{
    redis::{Identity, Reply, Server},
    support::LIMIT,
};

/// The test's clock begins here, in milliseconds since 1970.
pub const START_MS: u64 = 1_700_000_000_000;

/// The model and a real server that get the same calls.
pub struct Pair {
    pub model: Server,
    real: MultiplexedConnection,
    pub now_ms: u64,
    /// What scripts take for the server's `master_replid`.
    pub replication_id: String,
}

impl Pair {
    /// Uses the server at `url`, whose keys of this test are removed first.
    pub async fn with(url: &str) -> Pair {
        let client = Client::open(url).expect("a URL");
        let config = AsyncConnectionConfig::new().set_response_timeout(Some(LIMIT));
        let connection = client.get_multiplexed_async_connection_with_config(&config).await;
        let identity = Identity { run_id: "a".into(), replication_id: "b".into() };
        let mut model = Server::new(identity);
        // As the servers are started: then `MAXLEN ~` is exact on both sides.
        model.set_stream_node_entries(1);
        let real = connection.expect("a connection");
        Pair { model, real, now_ms: START_MS, replication_id: "a0".into() }
    }

    /// Sends one command to both; both answers must be equal.
    pub async fn same(&mut self, what: &str, args: &[Vec<u8>]) -> Reply {
        let real = self.real(args).await;
        let model = self.model.call(args);
        let alike = match (&real, &model) {
            // The texts name lines of scripts; the code is what a client acts on.
            (Reply::Error(_), Reply::Error(_)) => real.error_code() == model.error_code(),
            _ => real == model,
        };
        assert!(alike, "{what}: the server answers {real:?}, the model {model:?}");
        model
    }

    /// Runs a script on both sides, with the test's clock in place of TIME, and its identity in
    /// place of that of INFO, which is called all the same.
    pub async fn script(
        &mut self,
        what: &str,
        code: &str,
        keys: &[String],
        argv: &[Vec<u8>],
    ) -> Reply {
        let (seconds, micros) = (self.now_ms / 1000, self.now_ms % 1000 * 1000);
        let clock = format!(
            "local redis = (function(real) local function call(name, ...) \
             if name == 'TIME' then return {{'{seconds}', '{micros}'}} end \
             local answer = real.call(name, ...) \
             if name == 'INFO' then \
             assert(string.find(answer, 'role:master', 1, true), 'no role') \
             assert(string.match(answer, 'master_replid:%w+'), 'no identity') \
             return 'role:master\\r\\nmaster_replid:{}\\r\\n' end \
             return answer end \
             return {{call = call, pcall = real.pcall, \
             error_reply = real.error_reply}} end)(redis)\n",
            self.replication_id
        );
        let mut args = vec![b"EVAL".to_vec(), (clock + code).into_bytes()];
        args.push(keys.len().to_string().into_bytes());
        args.extend(keys.iter().map(|key| key.clone().into_bytes()));
        args.extend(argv.iter().cloned());
        self.same(what, &args).await
    }

    pub async fn real(&mut self, args: &[Vec<u8>]) -> Reply {
        let mut command = cmd(std::str::from_utf8(&args[0]).expect("a name"));
        for arg in &args[1..] {
            command.arg(&arg[..]);
        }
        match command.query_async::<Value>(&mut self.real).await {
            Ok(value) => reply(value),
            Err(error) => {
                assert!(error.code().is_some(), "{error}");
                let (code, detail) = (error.code(), error.detail());
                Reply::Error(format!("{} {}", code.unwrap_or_default(), detail.unwrap_or_default()))
            }
        }
    }
}

fn reply(value: Value) -> Reply {
    match value {
        Value::Nil => Reply::Nil,
        Value::Int(number) => Reply::Integer(number),
        Value::BulkString(bytes) => Reply::Bulk(bytes.into()),
        Value::SimpleString(text) => Reply::Status(text),
        Value::Okay => Reply::ok(),
        Value::Array(parts) => Reply::Array(parts.into_iter().map(reply).collect()),
        Value::ServerError(error) => {
            let detail = error.details().unwrap_or_default();
            Reply::Error(format!("{} {detail}", error.code()))
        }
        other => panic!("not RESP2: {other:?}"),
    }
}

pub fn bytes(parts: &[&str]) -> Vec<Vec<u8>> {
    parts.iter().map(|part| part.as_bytes().to_vec()).collect()
}
