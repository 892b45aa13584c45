//! Commands that print a login. What they print is a secret, so no error repeats it.

use std::{
    process::Stdio,
    str::FromStr,
    time::{Duration, SystemTime},
};

use prost_types::Timestamp;
use serde::Deserialize;
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    process::Command,
};

use crate::config::LoginCommand;

/// A longer output is no login.
const MAX_OUTPUT: u64 = 64 * 1024;

/// Characters of standard error in an error.
const MAX_SHOWN: usize = 200;

/// What a command printed.
pub(super) struct Printed {
    pub username: Option<String>,
    pub secret: String,
    /// When it expires.
    pub expires: Option<SystemTime>,
}

/// The JSON object that it prints; other fields are ignored.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Output {
    username: Option<String>,
    secret: String,
    expires_at: Option<Time>,
    expires_in: Option<f64>,
}

/// RFC 3339, or seconds since 1970.
#[derive(Deserialize)]
#[serde(untagged)]
enum Time {
    Seconds(f64),
    Text(String),
}

/// Runs the command. The error is for people.
pub(super) async fn run(command: &LoginCommand) -> Result<Printed, String> {
    let mut child = Command::new(&command.path)
        .args(&command.args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| format!("it cannot be run: {error}"))?;
    // Not only the child: a shell leaves behind what it started.
    let group = Group(child.id());
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let work = async {
        let (printed, complaint) = tokio::join!(read(stdout), read(stderr));
        if printed.len() as u64 > MAX_OUTPUT {
            return Err("it prints more than 64KiB".to_owned());
        }
        let status = child.wait().await.map_err(|error| error.to_string())?;
        if status.success() {
            return Ok(printed);
        }
        let complaint = String::from_utf8_lossy(&complaint);
        let last = complaint.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
        let shown: String = last.chars().filter(|c| !c.is_control()).take(MAX_SHOWN).collect();
        Err(format!("it ended with {status}: {shown}"))
    };
    let late = || Err(format!("it did not end within {:?}", command.timeout));
    let printed = tokio::time::timeout(command.timeout, work).await.unwrap_or_else(|_| late())?;
    group.has_ended();
    parse(&printed, SystemTime::now())
}

/// Reads up to a limit; what comes after it stays unread.
async fn read(from: Option<impl AsyncRead + Unpin>) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(from) = from {
        // An error is the end.
        let _ = from.take(MAX_OUTPUT + 1).read_to_end(&mut bytes).await;
    }
    bytes
}

/// A process group that is killed, unless it has ended.
struct Group(Option<u32>);

impl Group {
    fn has_ended(mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let pid = self.0.and_then(|pid| i32::try_from(pid).ok());
        if let Some(pid) = pid.and_then(rustix::process::Pid::from_raw) {
            // It may have ended by itself.
            let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
        }
    }
}

fn parse(printed: &[u8], now: SystemTime) -> Result<Printed, String> {
    let form = "it does not print a JSON object with secret, and username, expiresAt or expiresIn";
    let output: Output = serde_json::from_slice(printed).map_err(|_| form.to_owned())?;
    let plain = |text: &str| !text.is_empty() && !text.chars().any(char::is_control);
    if !plain(&output.secret) {
        return Err("its secret is empty, or has a control character".to_owned());
    }
    if output.username.as_deref().is_some_and(|name| !plain(name) || name.contains(' ')) {
        return Err("its username is empty, or has white space".to_owned());
    }
    let seconds = |seconds: f64| {
        Duration::try_from_secs_f64(seconds).map_err(|_| "its expiry is no time".to_owned())
    };
    let expires = match (output.expires_at, output.expires_in) {
        (Some(Time::Text(text)), _) => {
            let time = Timestamp::from_str(&text)
                .map_err(|_| ())
                .and_then(|time| SystemTime::try_from(time).map_err(|_| ()));
            Some(time.map_err(|()| "its expiresAt is not a time such as 2026-01-31T10:00:00Z")?)
        }
        (Some(Time::Seconds(at)), _) => SystemTime::UNIX_EPOCH.checked_add(seconds(at)?),
        (None, Some(left)) => now.checked_add(seconds(left)?),
        (None, None) => None,
    };
    if expires.is_some_and(|expires| expires <= now) {
        return Err("what it prints has expired already".to_owned());
    }
    Ok(Printed { username: output.username, secret: output.secret, expires })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, timeout: Duration) -> LoginCommand {
        LoginCommand {
            path: "/bin/sh".into(),
            args: vec!["-c".to_owned(), script.to_owned()],
            timeout,
        }
    }

    async fn fails(script: &str) -> String {
        run(&shell(script, Duration::from_secs(10))).await.err().expect("it fails")
    }

    #[tokio::test]
    async fn a_login_and_its_expiry_are_read_in_each_form() {
        let now = SystemTime::now();
        let left = async |fields: &str| {
            let script = format!(r#"echo '{{"secret":"s", "username":"u", "other":1{fields}}}'"#);
            let printed = run(&shell(&script, Duration::from_secs(10))).await.unwrap();
            assert_eq!((printed.username.as_deref(), printed.secret.as_str()), (Some("u"), "s"));
            printed.expires.map(|expires| expires.duration_since(now).unwrap().as_secs())
        };
        assert_eq!(left("").await, None);
        assert!((895..=905).contains(&left(r#", "expiresIn": 900"#).await.unwrap()));
        assert!(left(r#", "expiresAt": "2126-01-31T10:00:00Z""#).await.unwrap() > 1_000_000_000);
        assert!(left(r#", "expiresAt": 4925000000"#).await.unwrap() > 1_000_000_000);
    }

    #[tokio::test]
    async fn a_command_that_is_of_no_use_says_why_and_never_what_it_printed() {
        for (script, why) in [
            ("echo hunter2", "does not print a JSON object"),
            (r#"echo '{"secret":5}'"#, "does not print a JSON object"),
            (r#"echo '{"secret":""}'"#, "is empty"),
            (r#"echo '{"secret":"hunter2","expiresAt":"tomorrow"}'"#, "is not a time"),
            (r#"echo '{"secret":"hunter2","expiresAt":5}'"#, "has expired already"),
            (r#"echo '{"secret":"hunter2","expiresIn":-1}'"#, "is no time"),
            (r#"echo '{"secret":"hunter2","username":"a b"}'"#, "its username"),
            ("yes", "more than 64KiB"),
            ("echo hunter2; echo please log in >&2; exit 3", "exit status: 3: please log in"),
            // What is not read of it ends it.
            ("yes >&2", "exit status"),
        ] {
            let error = fails(script).await;
            assert!(error.contains(why) && !error.contains("hunter2"), "{script}: {error}");
        }
        let missing = LoginCommand { path: "/none".into(), ..shell("", Duration::from_secs(1)) };
        assert!(run(&missing).await.err().unwrap().contains("cannot be run"));
        assert!(fails("exit 1").await.contains("exit status: 1"));
    }

    #[tokio::test]
    async fn a_command_that_hangs_is_killed_with_all_that_it_started() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let script = format!("sleep 1000 & echo $! > {}; wait", file.path().display());
        let error = run(&shell(&script, Duration::from_secs(2))).await.err().unwrap();
        assert!(error.contains("did not end within 2s"), "{error}");
        let pid = std::fs::read_to_string(file.path()).unwrap();
        let stat = format!("/proc/{}/stat", pid.trim());
        let ended = || match std::fs::read_to_string(&stat) {
            Ok(stat) => stat.contains(") Z "),
            Err(_) => true,
        };
        for _ in 0..500 {
            if ended() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{pid} goes on");
    }
}
