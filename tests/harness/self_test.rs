//! The harness keeps its own promises: it starts, kills and cleans up what the other tests rely on.

use std::{
    collections::HashSet,
    env,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use serde_json::json;
use tonic::Code;
use tonic_health::pb::health_check_response::ServingStatus;
use trunkline_proto::v1::Event;

use super::support::{
    self, Data, Gateway, GatewayOptions, LIMIT, RedisCluster, RedisOptions, RedisServer, Seen,
    TestNode,
    events::{one_of_each, with_id},
    ports::Port,
    process::Program,
    tools, until, view,
};

/// Set in the environment of the process that `servers_die_with_the_test_process_that_started_them`
/// kills.
const VICTIM: &str = "TRUNKLINE_TEST_VICTIM";

#[tokio::test]
async fn a_killed_server_restarts_on_its_port_with_or_without_its_data() {
    let options = RedisOptions { append_only: true, ..RedisOptions::default() };
    let server = RedisServer::start(options).await;
    let (pid, url) = (server.pid(), server.url());
    server.cli(&["SET", "kept", "yes"]).await;

    server.kill_9();
    assert!(!server.is_running());
    assert!(server.command::<String>(&["PING"]).await.is_err());

    server.restart(Data::Kept).await;
    assert_eq!(server.url(), url);
    assert_ne!(server.pid(), pid);
    assert_eq!(server.cli(&["GET", "kept"]).await, "yes");

    server.restart(Data::Wiped).await;
    assert_eq!(server.cli(&["DBSIZE"]).await, "0");
}

#[tokio::test]
async fn a_paused_server_answers_nothing_until_it_is_resumed() {
    let server = RedisServer::start(RedisOptions::default()).await;
    server.pause().await;
    let ping = server.command::<String>(&["PING"]);
    let answer = tokio::time::timeout(Duration::from_millis(300), ping).await;
    assert!(answer.is_err(), "{answer:?}");
    assert!(server.is_running());
    server.resume();
    assert_eq!(server.cli(&["PING"]).await, "PONG");
}

#[tokio::test]
async fn a_server_is_started_with_the_options_of_the_test() {
    let server = RedisServer::start(RedisOptions {
        max_memory: Some(("8mb".to_owned(), "allkeys-lru".to_owned())),
        password: Some("secret".to_owned()),
        unix_socket: true,
        args: vec!["--maxclients".to_owned(), "77".to_owned()],
        ..RedisOptions::default()
    })
    .await;
    let setting = async |name: &str| server.cli(&["CONFIG", "GET", name]).await;
    assert_eq!(setting("maxmemory").await, "maxmemory\n8388608");
    assert_eq!(setting("maxmemory-policy").await, "maxmemory-policy\nallkeys-lru");
    assert_eq!(setting("maxclients").await, "maxclients\n77");
    assert_eq!(support::redis::cli(&server.unix_url(), &["PING"]).await, "PONG");

    let no_password = format!("redis://127.0.0.1:{}", server.port());
    let refused = support::redis::command::<String>(&no_password, &["PING"]).await;
    assert!(refused.is_err_and(|error| error.to_string().contains("NOAUTH")));
}

#[tokio::test]
async fn the_clients_of_a_server_are_listed_without_the_one_that_lists_them() {
    let server = RedisServer::start(RedisOptions::default()).await;
    assert_eq!(server.clients().await.len(), 0);
    let client = ::redis::Client::open(server.url()).unwrap();
    let mut subscriber = client.get_async_pubsub().await.unwrap();
    subscriber.subscribe("channel").await.unwrap();
    let clients = server.clients().await;
    assert_eq!(clients.len(), 1, "{clients:?}");
    assert!(clients[0].is_subscriber() && !clients[0].is_replication());
    assert_eq!(clients[0].field("sub"), "1");
}

#[tokio::test]
async fn a_replica_of_a_cluster_takes_over_from_a_killed_master() {
    let start = Instant::now();
    let cluster = RedisCluster::start().await;
    eprintln!("the cluster formed in {:?}", start.elapsed());
    assert_eq!(cluster.masters().await, [0, 1, 2]);
    for master in 0..3 {
        assert_eq!(cluster.replicas_of(master).await, [master + 3]);
    }

    let slot = view::slot("{account-7}:x");
    assert_eq!(slot, view::slot("account-7"));
    let asked: u16 = cluster.node(0).command(&["CLUSTER", "KEYSLOT", "account-7"]).await.unwrap();
    assert_eq!(slot, asked);

    let old = cluster.kill_master(slot).await;
    let new = cluster.taken_over(slot, old).await;
    assert_eq!(new, old + 3);
    assert_eq!(cluster.master_of_slot(slot).await, new);
    cluster.node(new).cli(&["SET", "account-7", "x"]).await;

    cluster.restart(old, Data::Kept).await;
    assert_eq!(cluster.replicas_of(new).await, [old]);
}

#[tokio::test]
async fn a_cluster_moves_a_slot_with_its_keys_and_fails_over_on_demand() {
    let mut cluster = RedisCluster::start().await;
    let slot = view::slot("account-7");
    let old = cluster.master_of_slot(slot).await;
    // More keys than one MIGRATE moves.
    for number in 0..250 {
        cluster.node(old).cli(&["SET", &format!("{{account-7}}:{number}"), "x"]).await;
    }

    let added = cluster.add_master().await;
    assert_eq!(added, 6);
    assert_eq!(cluster.masters().await, [0, 1, 2], "the new one has no slots yet");
    cluster.move_slot(slot, added).await;
    assert_eq!(cluster.master_of_slot(slot).await, added);
    assert_eq!(cluster.masters().await, [0, 1, 2, added]);
    let count = ["CLUSTER", "COUNTKEYSINSLOT", &slot.to_string()];
    assert_eq!(cluster.node(added).cli(&count).await, "250");
    assert_eq!(cluster.node(old).cli(&count).await, "0");
    let moved = cluster.node(old).command::<String>(&["GET", "account-7"]).await;
    assert!(moved.is_err_and(
        |error| error.kind() == ::redis::ErrorKind::Server(::redis::ServerErrorKind::Moved)
    ));

    let replica = cluster.replicas_of(1).await[0];
    cluster.failover(replica).await;
    assert!(cluster.masters().await.contains(&replica));
    assert_eq!(cluster.replicas_of(replica).await, [1]);
}

#[tokio::test]
async fn a_cluster_with_a_password_forms_and_moves_slots() {
    let server = RedisOptions { password: Some("secret".to_owned()), ..RedisOptions::default() };
    let options = support::ClusterOptions { server, replicas: 0, ..Default::default() };
    let cluster = RedisCluster::with(options).await;
    let slot = view::slot("key");
    let old = cluster.master_of_slot(slot).await;
    cluster.node(old).cli(&["SET", "key", "value"]).await;
    let new = (old + 1) % 3;
    cluster.move_slot(slot, new).await;
    assert_eq!(cluster.node(new).cli(&["GET", "key"]).await, "value");
}

#[tokio::test]
async fn dropping_a_server_ends_its_process_and_removes_its_folder() {
    let server = RedisServer::start(RedisOptions::default()).await;
    let (pid, port, folder) = (server.pid(), server.port(), server.folder().to_owned());
    assert!(is_alive(pid) && folder.exists());
    drop(server);
    assert!(!is_alive(pid));
    assert!(!folder.exists());
    std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
}

#[test]
fn a_panic_ends_the_servers_of_a_cluster_and_removes_their_folders() {
    let mut left: Vec<(u32, PathBuf)> = Vec::new();
    let test = AssertUnwindSafe(|| {
        tokio::runtime::Runtime::new().unwrap().block_on(async {
            let cluster = RedisCluster::start().await;
            left =
                cluster.nodes().iter().map(|node| (node.pid(), node.folder().to_owned())).collect();
            panic!("on purpose, with six servers running");
        })
    });
    assert!(catch_unwind(test).is_err());
    assert_eq!(left.len(), 6);
    for (pid, folder) in left {
        assert!(!is_alive(pid));
        assert!(!folder.exists());
    }
}

#[tokio::test]
async fn servers_die_with_the_test_process_that_started_them() {
    let folder = support::folder::new();
    let note = folder.path().join("note");
    let mut victim = Command::new(env::current_exe().unwrap())
        .args(["--exact", "self_test::victim", "--ignored"])
        .env(VICTIM, &note)
        .spawn()
        .unwrap();
    until(LIMIT, "the victim's servers", async || note.exists()).await;
    let text = std::fs::read_to_string(note).unwrap();
    let mut words = text.split(' ');
    let (running, frozen) = (words.next().unwrap(), words.next().unwrap());
    let left = Path::new(words.next().unwrap());
    let pids: [u32; 2] = [running.parse().unwrap(), frozen.parse().unwrap()];
    assert!(pids.into_iter().all(is_alive) && left.exists());

    victim.kill().unwrap();
    victim.wait().unwrap();
    until(LIMIT, "the end of its servers", async || !pids.into_iter().any(is_alive)).await;
    // The killed process could not remove its folder: the next test process does, which another
    // one that starts just now may be.
    support::folder::sweep();
    assert!(!left.exists(), "the next test process removes it");
}

#[tokio::test]
#[ignore = "started, to be killed, by servers_die_with_the_test_process_that_started_them"]
async fn victim() {
    let Some(note) = env::var_os(VICTIM) else { return };
    let running = RedisServer::start(RedisOptions::default()).await;
    let frozen = RedisServer::start(RedisOptions::default()).await;
    frozen.pause().await;
    let folder = running.folder().display();
    let text = format!("{} {} {folder}", running.pid(), frozen.pid());
    // Renamed into place, so that the reader never sees half of it.
    let draft = Path::new(&note).with_extension("draft");
    std::fs::write(&draft, text).unwrap();
    std::fs::rename(draft, note).unwrap();
    thread::park_timeout(Duration::from_mins(1));
}

#[tokio::test]
async fn a_gateway_can_be_paused_killed_restarted_and_terminated() {
    let gateway = Gateway::start(GatewayOptions::embedded()).await;
    let (pid, folder) = (gateway.pid(), gateway.config_file());
    assert_eq!(gateway.health("").await.unwrap(), ServingStatus::Serving);
    assert!((1 << 20..1 << 30).contains(&gateway.rss_bytes()), "{}", gateway.rss_bytes());

    gateway.pause().await;
    assert_eq!(gateway.health("").await.unwrap_err().code(), Code::DeadlineExceeded);
    gateway.resume();
    gateway.health_is("", ServingStatus::Serving, LIMIT).await;

    gateway.kill_9();
    assert!(!is_alive(pid));
    assert!(gateway.connect().await.is_err());
    gateway.restart().await;
    assert_ne!(gateway.pid(), pid);
    let ended = gateway.terminate(LIMIT).await;
    assert!(ended.status.success() && ended.took < LIMIT, "{ended:?}");
    drop(gateway);
    assert!(!folder.exists());
}

#[tokio::test]
async fn a_collector_records_the_messages_of_a_stream_in_order() {
    let gateway = Gateway::start(GatewayOptions::embedded()).await;
    let publisher = TestNode::connect(&gateway, "publisher").await;
    let subscriber = TestNode::connect(&gateway, "subscriber").await;
    let collector = subscriber.subscribe(subscriber.request()).await;

    let sent: Vec<Event> = (0..).zip(one_of_each("account")).map(numbered_id).collect();
    let positions = publisher.publish(sent.clone()).await.unwrap();
    assert_eq!(positions.len(), 11);
    let recording = collector.events(11, LIMIT).await;
    assert!(matches!(recording.seen[0], Seen::Subscribed(_)), "{:?}", recording.seen[0]);
    let mut kinds: Vec<_> = recording.events.into_iter().map(|event| event.kind).collect();
    assert_eq!(kinds.len(), 11);
    kinds.retain(|kind| !sent.iter().any(|event| event.kind == *kind));
    assert_eq!(kinds, []);
    let ids: HashSet<String> = collector.event_ids().into_iter().collect();
    assert_eq!(ids, sent.into_iter().map(|event| event.event_id).collect());
    assert!(!collector.last_token().is_empty());
    assert!(collector.with(|recording| recording.gaps().is_empty() && recording.ended().is_none()));

    gateway.kill_9();
    assert!(collector.end(LIMIT).await.is_err());
}

#[test]
fn a_gateway_that_exits_instead_of_serving_fails_its_test_at_once() {
    let start = Instant::now();
    let test = || {
        let options = GatewayOptions::coordinator(json!({ "@type": "Disabled" }));
        tokio::runtime::Runtime::new().unwrap().block_on(Gateway::start(options))
    };
    let panic = catch_unwind(AssertUnwindSafe(test)).unwrap_err();
    let message = panic.downcast_ref::<String>().unwrap();
    assert!(message.contains("has ended: exit status"), "{message}");
    assert!(start.elapsed() < LIMIT);
}

#[test]
fn a_port_is_leased_once_until_it_is_dropped() {
    let ports: Vec<Port> = (0..200).map(|_| Port::free()).collect();
    let mut numbers: Vec<u16> = ports.iter().map(Port::number).collect();
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), 200);

    let taken = Port::with_bus();
    let bus = taken.number() + support::ports::BUS;
    assert!(std::net::UdpSocket::bind(("127.0.0.1", bus)).is_err());
    drop(taken);
    std::net::UdpSocket::bind(("127.0.0.1", bus)).unwrap();
}

#[tokio::test]
async fn a_program_gets_its_input_and_its_exit_is_reported() {
    let sort = Program::new("sort", ["-r"]).stdin("a\nb\n").run(LIMIT).await;
    assert_eq!(sort.success(), "b\na\n");
    let output = Program::new("sh", ["-c", "echo no >&2; exit 3"]).run(LIMIT).await;
    assert_eq!((output.status.code(), output.stderr.as_str()), (Some(3), "no\n"));
}

#[tokio::test]
async fn the_tools_that_the_tests_need_are_installed() {
    let version = Program::new(tools::grpcurl(), ["-version"]).run(LIMIT).await;
    assert!(version.stderr.contains("grpcurl"), "{version:?}");
    let python = ["-c", "import grpc; print(grpc.__version__)"];
    assert!(Program::new(tools::python(), python).run(LIMIT).await.success().contains('.'));
}

fn numbered_id((number, event): (usize, Event)) -> Event {
    with_id(format!("event-{number}"), event)
}

/// True while a process runs; a zombie does not.
fn is_alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}
