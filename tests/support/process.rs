//! Processes that a test starts, and that end with it.
//!
//! A child stays in the process group of its test, so that a test runner that ends a test ends its
//! children too. Where the system has `setpriv` (all of Linux), the kernel also kills the children
//! when the test process dies, even by SIGKILL.

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::{OnceLock, mpsc},
    thread,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tempfile::TempDir;

use super::{
    folder,
    wait::{LIMIT, eventually, until},
};

/// Lines of a log that are shown when a test fails.
const SHOWN_LINES: usize = 120;

/// A program, its arguments, environment and input.
#[derive(Clone, Debug)]
pub struct Program {
    /// The executable file.
    pub path: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// Environment variables to set, besides those of the test.
    pub env: Vec<(String, String)>,
    /// Its standard input. None: empty.
    pub stdin: Option<String>,
    /// Whether more input follows, by [`Process::write_line`].
    pub talks: bool,
}

impl Program {
    /// A program with arguments.
    pub fn new<S: Into<String>>(
        path: impl Into<PathBuf>,
        args: impl IntoIterator<Item = S>,
    ) -> Program {
        Program {
            path: path.into(),
            args: args.into_iter().map(Into::into).collect(),
            env: Vec::new(),
            stdin: None,
            talks: false,
        }
    }

    /// With input that is written while it runs, by [`Process::write_line`].
    #[must_use]
    pub fn talks(mut self) -> Program {
        self.talks = true;
        self
    }

    /// With this standard input.
    #[must_use]
    pub fn stdin(mut self, text: impl Into<String>) -> Program {
        self.stdin = Some(text.into());
        self
    }

    /// With an environment variable set.
    #[must_use]
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Program {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Runs the program to its end.
    ///
    /// # Panics
    ///
    /// If it has not ended after `limit`.
    pub async fn run(self, limit: Duration) -> Output {
        let name = self.path.display().to_string();
        let process = Process::start(&name, self);
        let (status, took) = process.wait(limit).await;
        Output { status, took, stdout: process.stdout(), stderr: process.stderr() }
    }
}

/// The outcome of a program that has ended.
#[derive(Debug)]
pub struct Output {
    /// Its exit status.
    pub status: ExitStatus,
    /// How long it ran.
    pub took: Duration,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Output {
    /// The standard output of a program that succeeded.
    ///
    /// # Panics
    ///
    /// If it failed, with its output.
    pub fn success(self) -> String {
        assert!(self.status.success(), "{}\n{}{}", self.status, self.stdout, self.stderr);
        self.stdout
    }
}

/// A running program. Dropping it kills it, and shows its output if the test has failed.
#[derive(Debug)]
pub struct Process {
    name: String,
    // Reaped only through this: while it is held, no other process can have its id.
    child: Mutex<Child>,
    /// Its open standard input, of a program that talks.
    input: Mutex<Option<ChildStdin>>,
    started: Instant,
    folder: TempDir,
}

impl Process {
    /// Starts a program; `name` is for messages.
    pub fn start(name: &str, program: Program) -> Process {
        let folder = folder::new();
        let output = |file: &str| File::create(folder.path().join(file)).expect("a log file");
        let mut command = wrapped(&program.path);
        // Variables that configure a gateway on this machine must not configure those under test.
        let stray = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
        for name in stray.filter(|name| name.starts_with("TRUNKLINE_")) {
            command.env_remove(name);
        }
        let has_input = program.talks || program.stdin.is_some();
        command
            .args(&program.args)
            .envs(program.env)
            .stdin(if has_input { Stdio::piped() } else { Stdio::null() })
            .stdout(output("stdout"))
            .stderr(output("stderr"));
        let mut child = spawn(command).unwrap_or_else(|error| {
            panic!("{name}: {} did not start: {error}", program.path.display())
        });
        let input = Mutex::new(child.stdin.take_if(|_| program.talks));
        if let (Some(text), Some(mut input)) = (program.stdin, child.stdin.take()) {
            // A thread, since a program may read late or never. It ends when the program closes
            // the pipe by its end.
            thread::spawn(move || {
                let _ = input.write_all(text.as_bytes());
            });
        }
        let (name, child) = (name.to_owned(), Mutex::new(child));
        Process { name, child, input, started: Instant::now(), folder }
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.lock().id()
    }

    /// The folder of its output.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Its standard output so far.
    pub fn stdout(&self) -> String {
        read(&self.folder.path().join("stdout"))
    }

    /// Its standard error so far.
    pub fn stderr(&self) -> String {
        read(&self.folder.path().join("stderr"))
    }

    /// Writes a line to the standard input of a program that talks.
    pub fn write_line(&self, line: &str) {
        let mut input = self.input.lock();
        let input = input.as_mut().expect("a program that talks");
        writeln!(input, "{line}").expect("the program reads its input");
    }

    /// Ends the standard input of a program that talks.
    pub fn end_input(&self) {
        *self.input.lock() = None;
    }

    /// Its exit status, if it has ended.
    pub fn ended(&self) -> Option<ExitStatus> {
        self.child.lock().try_wait().expect("the child is ours")
    }

    /// Kills it with SIGKILL, and returns when it has ended.
    pub fn kill_9(&self) {
        let mut child = self.child.lock();
        // An error means that it has ended already.
        let _ = child.kill();
        child.wait().expect("the child is ours");
    }

    /// Sends a signal by name, "TERM" or "HUP", unless it has ended.
    pub fn signal(&self, signal: &str) {
        let mut child = self.child.lock();
        if child.try_wait().expect("the child is ours").is_some() {
            return;
        }
        // Sending a signal needs unsafe code or the program `kill`, a builtin of every shell.
        let kill = format!("kill -{signal} {}", child.id());
        let status = Command::new("sh").args(["-c", &kill]).status().expect("a shell");
        assert!(status.success(), "{kill}: {status}");
    }

    /// Freezes it with SIGSTOP, and returns when it has stopped: its connections stay open, and
    /// nothing answers.
    pub async fn pause(&self) {
        self.signal("STOP");
        until(LIMIT, "the process is stopped", async || self.state() == Some('T')).await;
    }

    /// Continues it after `pause`.
    pub fn resume(&self) {
        self.signal("CONT");
    }

    /// Waits for its end; returns its exit status and the time since its start.
    ///
    /// # Panics
    ///
    /// After `limit`, with its output.
    pub async fn wait(&self, limit: Duration) -> (ExitStatus, Duration) {
        let what = format!("the end of {}", self.name);
        let status = eventually(limit, &what, async || self.ended()).await;
        (status, self.started.elapsed())
    }

    /// Waits until standard error contains `text`.
    pub async fn stderr_has(&self, text: &str, limit: Duration) {
        let what = format!("{text:?} on the standard error of {}", self.name);
        until(limit, &what, async || self.stderr().contains(text)).await;
    }

    /// Waits until standard output has `count` lines; returns all lines.
    pub async fn stdout_lines(&self, count: usize, limit: Duration) -> Vec<String> {
        let what = format!("{count} lines on the standard output of {}", self.name);
        eventually(limit, &what, async || {
            let text = self.stdout();
            let complete = text.rfind('\n').map_or("", |end| &text[..end]);
            let lines: Vec<String> = complete.lines().map(str::to_owned).collect();
            (lines.len() >= count).then_some(lines)
        })
        .await
    }

    /// Its resident memory, in bytes.
    pub fn rss_bytes(&self) -> u64 {
        let status = read(Path::new(&format!("/proc/{}/status", self.pid())));
        let kibibytes = status
            .lines()
            .find_map(|line| {
                line.strip_prefix("VmRSS:")?.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
            })
            .unwrap_or_else(|| panic!("{} has no resident set: has it ended?", self.name));
        kibibytes * 1024
    }

    /// The state letter that the kernel shows: 'R', 'S', 'T', 'Z'.
    fn state(&self) -> Option<char> {
        let stat = read(Path::new(&format!("/proc/{}/stat", self.pid())));
        // The name before it is in brackets and may contain anything.
        stat.rsplit_once(") ")?.1.chars().next()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let ended = self.ended();
        self.kill_9();
        if thread::panicking() {
            let how = ended.map_or_else(|| "was running".to_owned(), |status| status.to_string());
            show(
                &format!("{} (pid {}, {how}), standard output", self.name, self.pid()),
                &self.stdout(),
            );
            show(&format!("{}, standard error", self.name), &self.stderr());
        }
    }
}

/// Prints the end of a log of a failed test.
pub fn show(title: &str, text: &str) {
    if text.is_empty() {
        return;
    }
    let lines: Vec<&str> = text.lines().collect();
    let shown = &lines[lines.len().saturating_sub(SHOWN_LINES)..];
    eprintln!("--- {title} ---\n{}\n---", shown.join("\n"));
}

fn read(path: &Path) -> String {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

/// The command for a program that dies with this process.
fn wrapped(path: &Path) -> Command {
    static SETPRIV: OnceLock<bool> = OnceLock::new();
    let works = || {
        let mut probe = Command::new("setpriv");
        probe.args(["--pdeathsig", "KILL", "true"]).stdout(Stdio::null()).stderr(Stdio::null());
        probe.status().is_ok_and(|status| status.success())
    };
    if *SETPRIV.get_or_init(works) {
        // It replaces itself by the program, which keeps the process id.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).arg(path);
        command
    } else {
        Command::new(path)
    }
}

/// Spawns on a thread that lives as long as the process. For the kernel, the end of the spawning
/// thread is the death of the parent, and the threads of tests and their runtimes end all the time.
fn spawn(command: Command) -> std::io::Result<Child> {
    type Order = (Command, mpsc::SyncSender<std::io::Result<Child>>);
    static SPAWNER: OnceLock<mpsc::SyncSender<Order>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (orders, inbox) = mpsc::sync_channel::<Order>(0);
        thread::spawn(move || {
            for (mut command, answer) in inbox {
                let _ = answer.send(command.spawn());
            }
        });
        orders
    });
    let (answer, child) = mpsc::sync_channel(1);
    spawner.send((command, answer)).expect("the spawner lives as long as the process");
    child.recv().expect("the spawner answers every order")
}
