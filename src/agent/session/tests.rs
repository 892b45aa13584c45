use super::*;

fn settings(credentials: Option<(&str, &str)>) -> Settings {
    Settings {
        channels: vec!["stwt.agora".into(), "other".into()],
        credentials: credentials
            .map(|(user, password)| Credentials { user: user.into(), password: password.into() }),
        limits: Limits::default(),
        wrong_passwords: 3,
        run_id: [0xab; 20],
    }
}

/// A session whose owner counts one receiver of every message.
struct Client {
    session: Session,
    steps: Vec<Step>,
}

impl Client {
    fn new(credentials: Option<(&str, &str)>) -> Client {
        let address = ("127.0.0.1".into(), 6380);
        let session = Session::new(Arc::new(settings(credentials)), 7, address);
        Client { session, steps: Vec::new() }
    }

    /// Sends lines of commands, and gives what comes back.
    fn say(&mut self, lines: &str) -> String {
        self.session.receive(format!("{lines}\r\n").as_bytes());
        self.steps.clear();
        let mut out = BytesMut::new();
        loop {
            let step = self.session.next(&mut out);
            match &step {
                Step::Receive => break,
                Step::Publish { .. } => self.session.published(1, &mut out),
                _ => {}
            }
            let closes = matches!(step, Step::Close(_));
            self.steps.push(step);
            if closes {
                break;
            }
        }
        String::from_utf8(out.to_vec()).unwrap()
    }
}

#[test]
fn a_mail_server_subscribes_publishes_and_asks_whether_the_connection_lives() {
    let mut subscriber = Client::new(None);
    let said = subscriber.say(
        "CLIENT SETINFO LIB-NAME redis-rs\nCLIENT SETINFO LIB-VER 1.6.0\nSUBSCRIBE stwt.agora",
    );
    assert_eq!(said, "+OK\r\n+OK\r\n*3\r\n$9\r\nsubscribe\r\n$10\r\nstwt.agora\r\n:1\r\n");
    assert_eq!(
        subscriber.steps.pop(),
        Some(Step::Subscriptions { added: vec![0], removed: vec![] })
    );
    assert!(subscriber.session.is_subscribed(0) && !subscriber.session.is_subscribed(1));
    assert_eq!(subscriber.session.client().library, "redis-rs");
    assert_eq!(subscriber.session.client().library_version, "1.6.0");

    let mut publisher = Client::new(None);
    assert_eq!(publisher.say("PING\nPUBLISH stwt.agora \"\\x00\\x0c\""), "+PONG\r\n:1\r\n");
    let payload = Bytes::from_static(b"\0\x0c");
    assert_eq!(publisher.steps[1], Step::Publish { channel: 0, payload });
}

#[test]
fn a_publish_that_is_refused_is_answered_with_the_reason_and_in_order() {
    let mut session = Session::new(Arc::new(settings(None)), 1, ("::1".into(), 1));
    let mut out = BytesMut::new();
    session.receive(b"PUBLISH other m\r\nPING\r\n");
    assert!(matches!(session.next(&mut out), Step::Publish { channel: 1, .. }));
    session.refused("the buffer is full", &mut out);
    assert_eq!(session.next(&mut out), Step::Answered);
    assert_eq!(session.next(&mut out), Step::Receive);
    assert_eq!(out, "-ERR the buffer is full\r\n+PONG\r\n");
}

#[test]
fn a_channel_that_is_not_carried_is_an_error_and_nothing_is_subscribed_to() {
    let mut client = Client::new(None);
    for command in ["SUBSCRIBE other elsewhere", "PUBLISH elsewhere m"] {
        let said = client.say(command);
        assert!(
            said.starts_with("-ERR channel 'elsewhere' is not carried by this agent"),
            "{said}"
        );
        assert_eq!(client.steps, [Step::Answered]);
    }
    assert!(!client.session.is_subscriber());
    let said = client.say("PSUBSCRIBE *\nSSUBSCRIBE other");
    assert!(said.starts_with("-ERR PSUBSCRIBE is not supported"), "{said}");
    assert!(said.contains("-ERR SSUBSCRIBE is not supported"), "{said}");
}

#[test]
fn a_subscriber_of_resp2_may_only_do_what_does_not_mix_with_messages() {
    let mut client = Client::new(None);
    client.say("SUBSCRIBE other");
    assert_eq!(client.say("PING"), "*2\r\n$4\r\npong\r\n$0\r\n\r\n");
    assert_eq!(client.say("PING x"), "*2\r\n$4\r\npong\r\n$1\r\nx\r\n");
    for command in ["PUBLISH other m", "GET x", "CLIENT ID", "HELLO 3"] {
        let said = client.say(command);
        assert!(said.starts_with("-ERR Can't execute '"), "{said}");
    }
    // With RESP3, replies and messages differ in their form.
    client.say("UNSUBSCRIBE");
    let said = client.say("HELLO 3\nSUBSCRIBE other\nPING\nPUBLISH other m");
    let expected = ">3\r\n$9\r\nsubscribe\r\n$5\r\nother\r\n:1\r\n+PONG\r\n:1\r\n";
    assert!(said.ends_with(expected), "{said}");
}

#[test]
fn subscriptions_are_told_once_and_end_by_name_all_at_once_or_with_a_reset() {
    let mut client = Client::new(None);
    let said = client.say("SUBSCRIBE other other stwt.agora");
    assert_eq!(said.matches(":1\r\n").count(), 2);
    let added = vec![1, 0];
    assert_eq!(client.steps, [Step::Subscriptions { added, removed: vec![] }]);
    let said = client.say("UNSUBSCRIBE elsewhere other");
    assert_eq!(
        said,
        "*3\r\n$11\r\nunsubscribe\r\n$9\r\nelsewhere\r\n:2\r\n\
         *3\r\n$11\r\nunsubscribe\r\n$5\r\nother\r\n:1\r\n"
    );
    assert_eq!(client.steps, [Step::Subscriptions { added: vec![], removed: vec![1] }]);
    assert_eq!(client.say("RESET"), "+RESET\r\n");
    assert_eq!(client.steps, [Step::Subscriptions { added: vec![], removed: vec![0] }]);
    assert_eq!(client.say("UNSUBSCRIBE"), "*3\r\n$11\r\nunsubscribe\r\n$-1\r\n:0\r\n");
    assert_eq!(client.say("PUNSUBSCRIBE"), "*3\r\n$12\r\npunsubscribe\r\n$-1\r\n:0\r\n");
}

#[test]
fn hello_chooses_the_version_authenticates_and_names_the_client_or_changes_nothing() {
    let mut client = Client::new(Some(("mail", "secret")));
    assert!(client.say("HELLO 3").starts_with("-NOAUTH "));
    assert!(client.say("HELLO 3 AUTH mail wrong SETNAME n").starts_with("-WRONGPASS "));
    assert!(client.say("HELLO 3 AUTH mail secret SETNAME").starts_with("-ERR Syntax error"));
    assert!(client.say("HELLO 4 AUTH mail secret").starts_with("-NOPROTO "));
    assert!(client.say("PING").starts_with("-NOAUTH "));
    let said = client.say("HELLO 3 SETNAME n1 AUTH mail secret");
    assert!(said.starts_with("%7\r\n$6\r\nserver\r\n$9\r\ntrunkline\r\n"), "{said}");
    assert!(said.contains("$5\r\nproto\r\n:3\r\n$2\r\nid\r\n:7\r\n"), "{said}");
    assert_eq!(client.session.client().name, "n1");
    assert!(client.say("HELLO").starts_with("%7\r\n"));
    assert!(client.say("HELLO 2").starts_with("*14\r\n"));
    assert!(client.say("HELLO x").starts_with("-ERR Protocol version"));
}

#[test]
fn without_the_password_nothing_is_possible_and_who_guesses_is_closed() {
    let mut client = Client::new(Some(("default", "secret")));
    for command in ["PING", "SUBSCRIBE other", "PUBLISH other m", "INFO", "CLIENT ID"] {
        assert_eq!(client.say(command), "-NOAUTH Authentication required.\r\n");
    }
    // Nor does a long command make the agent hold it.
    let mut long = Client::new(Some(("default", "secret")));
    assert!(long.say("*2\r\n$4\r\nAUTH\r\n$20000").starts_with("-ERR Protocol error"));

    assert!(client.say("AUTH wrong").starts_with("-WRONGPASS"));
    assert_eq!(client.say("AUTH secret\nPING"), "+OK\r\n+PONG\r\n");
    assert_eq!(client.say("RESET\nPING"), "+RESET\r\n-NOAUTH Authentication required.\r\n");
    assert!(client.say("AUTH other secret\nAUTH default no\nPING").ends_with("disabled.\r\n"));
    assert_eq!(client.steps.last(), Some(&Step::Close(Ended::WrongPasswords)));
    assert_eq!(client.say("AUTH secret"), "");
}

#[test]
fn a_password_where_there_is_none_is_an_error_that_says_what_to_do() {
    let mut client = Client::new(None);
    for command in ["AUTH secret", "AUTH default secret", "HELLO 3 AUTH default secret"] {
        assert!(client.say(command).contains("leave user and password out of the URL"));
    }
    assert_eq!(client.say("PING"), "+PONG\r\n");
}

#[test]
fn clients_of_a_cluster_are_told_of_this_address_for_every_slot() {
    let mut client = Client::new(None);
    let id = "ab".repeat(20);
    let said = client.say("READONLY\nCLUSTER SLOTS");
    let expected = format!(
        "+OK\r\n*1\r\n*3\r\n:0\r\n:16383\r\n*3\r\n$9\r\n127.0.0.1\r\n:6380\r\n$40\r\n{id}\r\n"
    );
    assert_eq!(said, expected);
    assert!(client.say("CLUSTER NODES").contains(&format!("{id} 127.0.0.1:6380@0 myself,master")));
    assert!(client.say("CLUSTER SHARDS").contains("$8\r\nendpoint\r\n$9\r\n127.0.0.1\r\n"));
    assert!(client.say("CLUSTER INFO").contains("cluster_state:ok"));
    assert!(client.say("CLUSTER RESET").starts_with("-ERR unknown subcommand 'RESET' of CLUSTER"));
}

#[test]
fn a_client_may_name_itself_with_printable_words_of_bounded_length() {
    let mut client = Client::new(None);
    assert_eq!(client.say("CLIENT GETNAME\nCLIENT ID"), "$-1\r\n:7\r\n");
    assert_eq!(client.say("CLIENT SETNAME n1\nCLIENT GETNAME"), "+OK\r\n$2\r\nn1\r\n");
    assert!(client.say("CLIENT LIST").contains(" name=n1 "));
    for name in ["\"a b\"", "\"a\\n\"", "é", &"n".repeat(129)] {
        let said = client.say(&format!("CLIENT SETNAME {name}"));
        assert!(said.starts_with("-ERR names"), "{said}");
    }
    assert_eq!(client.session.client().name, "n1");
    assert!(client.say("CLIENT SETINFO LIB-NAME").starts_with("-ERR wrong number"));
    assert!(client.say("CLIENT KILL x").starts_with("-ERR unknown subcommand"));
}

#[test]
fn a_command_that_stores_data_says_that_this_is_no_store() {
    let mut client = Client::new(None);
    for command in ["GET x", "set x 1", "EVAL \"return 1\" 0", "CONFIG GET maxmemory", "\u{9b}[2J"]
    {
        let said = client.say(command);
        assert!(said.starts_with("-ERR unknown command '"), "{said}");
        assert!(said.ends_with("stores no data\r\n"), "{said}");
        assert_eq!(said.chars().filter(|c| c.is_control()).count(), 2, "{said:?}");
    }
    assert!(client.say("PUBLISH other").starts_with("-ERR wrong number of arguments"));
    assert_eq!(client.say("SELECT 3\nSELECT x"), "+OK\r\n-ERR invalid DB index\r\n");
    assert_eq!(client.say("ECHO m\nCOMMAND\nCOMMAND DOCS"), "$1\r\nm\r\n*0\r\n*0\r\n");
    assert!(client.say("INFO server").contains("redis_version:7."));
}

#[test]
fn what_cannot_be_read_is_told_and_ends_the_connection_and_so_does_a_web_page() {
    let mut client = Client::new(None);
    let said = client.say("*1000000");
    assert_eq!(said, "-ERR Protocol error: invalid multibulk length\r\n");
    let ended = Ended::Protocol(ProtocolError::Arguments);
    assert_eq!(client.steps, [Step::Close(ended.clone())]);
    client.say("PING");
    assert_eq!(client.steps, [Step::Close(ended)]);

    let mut client = Client::new(None);
    let said = client.say("POST / HTTP/1.1\nHost: 127.0.0.1\n\nPUBLISH other m");
    assert_eq!((said.as_str(), &client.steps[..]), ("", &[Step::Close(Ended::Http)][..]));
    let mut client = Client::new(None);
    assert_eq!(client.say("QUIT\nPUBLISH other m"), "+OK\r\n");
    assert_eq!(client.steps, [Step::Close(Ended::Quit)]);
}

#[test]
fn half_a_command_is_held_as_it_came_and_carried_out_when_it_is_whole() {
    let mut client = Client::new(None);
    let command = "*3\r\n$7\r\nPUBLISH\r\n$5\r\nother\r\n$2\r\nhi";
    let mut out = BytesMut::new();
    for byte in command.bytes() {
        client.session.receive(&[byte]);
        assert_eq!(client.session.next(&mut out), Step::Receive);
    }
    assert!(client.session.is_within_command());
    assert_eq!(client.session.buffered(), command.len());
    assert_eq!(client.say(""), ":1\r\n");
    assert!(!client.session.is_within_command());
}
