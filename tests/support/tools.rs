//! Programs that tests need besides `trunkline`. A test fails if its program is missing, and says
//! how to get it; no test is skipped silently.
//!
//! Each is searched for in its environment variable, then in `PATH`, then in `.venv`, which
//! `./test` makes; the first that works is used.

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
};

use super::process::Program;

/// A program, and how to check that it works.
struct Tool {
    /// The environment variable with its path.
    variable: &'static str,
    /// File name.
    name: &'static str,
    /// Arguments with which it exits with 0 if everything that tests need is installed.
    probe: &'static [&'static str],
    /// Its description in messages.
    what: &'static str,
    /// Its path, once it was found.
    found: OnceLock<PathBuf>,
}

/// `redis-server`, or `valkey-server` where `TRUNKLINE_TEST_REDIS_SERVER` names one.
pub fn redis_server() -> PathBuf {
    static TOOL: Tool = Tool::new(
        "TRUNKLINE_TEST_REDIS_SERVER",
        "redis-server",
        &["--version"],
        "a Redis server, 6.2 or later",
    );
    TOOL.path()
}

/// `curl`; `TRUNKLINE_TEST_CURL` names another.
pub fn curl() -> PathBuf {
    static TOOL: Tool = Tool::new("TRUNKLINE_TEST_CURL", "curl", &["--version"], "curl");
    TOOL.path()
}

/// `grpcurl`; `TRUNKLINE_TEST_GRPCURL` names another.
pub fn grpcurl() -> PathBuf {
    static TOOL: Tool = Tool::new("TRUNKLINE_TEST_GRPCURL", "grpcurl", &["-version"], "grpcurl");
    TOOL.path()
}

/// A Python 3 with the packages of `clients/python/requirements.txt`, grpcio-health-checking and
/// `prometheus_client`;
/// `TRUNKLINE_TEST_PYTHON` names another.
pub fn python() -> PathBuf {
    static TOOL: Tool = Tool::new(
        "TRUNKLINE_TEST_PYTHON",
        "python3",
        &[
            "-c",
            "import grpc, google.rpc.status_pb2, grpc_tools.protoc, setuptools.build_meta\n\
             import grpc_health.v1.health_pb2_grpc, prometheus_client.openmetrics.parser",
        ],
        "Python 3 with grpcio, googleapis-common-protos, grpcio-tools, setuptools, \
         grpcio-health-checking and prometheus_client",
    );
    TOOL.path()
}

/// A Python program with the client of `clients/python`, from this checkout.
pub fn python_client<S: Into<String>>(args: impl IntoIterator<Item = S>) -> Program {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/python/src");
    Program::new(python(), args)
        .env("PYTHONPATH", sources.display().to_string())
        // No bytecode is written into the repository.
        .env("PYTHONDONTWRITEBYTECODE", "1")
}

/// A program of `clients/python/examples`.
pub fn python_example<S: Into<String>>(name: &str, args: impl IntoIterator<Item = S>) -> Program {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/python/examples");
    let script = examples.join(name).display().to_string();
    python_client([script].into_iter().chain(args.into_iter().map(Into::into)))
}

/// `openssl`, which makes the certificates of tests; `TRUNKLINE_TEST_OPENSSL` names another.
pub fn openssl() -> PathBuf {
    static TOOL: Tool = Tool::new("TRUNKLINE_TEST_OPENSSL", "openssl", &["version"], "openssl");
    TOOL.path()
}

/// `valgrind`, which counts instructions; `TRUNKLINE_TEST_VALGRIND` names another.
pub fn valgrind() -> PathBuf {
    static TOOL: Tool = Tool::new(
        "TRUNKLINE_TEST_VALGRIND",
        "valgrind",
        &["--tool=callgrind", "--version"],
        "valgrind",
    );
    TOOL.path()
}

/// `chromium`, a browser; `TRUNKLINE_TEST_CHROMIUM` names another, Chrome for example.
pub fn chromium() -> PathBuf {
    static TOOL: Tool =
        Tool::new("TRUNKLINE_TEST_CHROMIUM", "chromium", &["--version"], "Chromium");
    TOOL.path()
}

/// `chromedriver` of the same version; `TRUNKLINE_TEST_CHROMEDRIVER` names another.
pub fn chromedriver() -> PathBuf {
    static TOOL: Tool =
        Tool::new("TRUNKLINE_TEST_CHROMEDRIVER", "chromedriver", &["--version"], "ChromeDriver");
    TOOL.path()
}

/// The source of axe-core, which checks a page in a browser for what keeps people out of it;
/// `TRUNKLINE_TEST_AXE` names another file.
///
/// # Panics
///
/// If there is none.
pub fn axe() -> String {
    let own = ".venv/npm/node_modules/axe-core/axe.min.js";
    let own = || Path::new(env!("CARGO_MANIFEST_DIR")).join(own);
    let path = env::var_os("TRUNKLINE_TEST_AXE").map_or_else(own, PathBuf::from);
    std::fs::read_to_string(&path).unwrap_or_else(|why| {
        panic!("axe-core is needed, and {}: {why}; ./test installs it", path.display())
    })
}

/// `tmux`, a terminal whose screen can be read; `TRUNKLINE_TEST_TMUX` names another.
pub fn tmux() -> PathBuf {
    static TOOL: Tool = Tool::new("TRUNKLINE_TEST_TMUX", "tmux", &["-V"], "tmux");
    TOOL.path()
}

/// `envoy`; `TRUNKLINE_TEST_ENVOY` names another.
pub fn envoy() -> PathBuf {
    static TOOL: Tool = Tool::new("TRUNKLINE_TEST_ENVOY", "envoy", &["--version"], "Envoy");
    TOOL.path()
}

/// The library of `faketime`, which gives a process another clock while it runs.
///
/// # Panics
///
/// If there is none.
pub fn faketime_library() -> PathBuf {
    let here = format!("{}-linux-gnu", env::consts::ARCH);
    let path = Path::new("/usr/lib").join(here).join("faketime/libfaketimeMT.so.1");
    assert!(path.is_file(), "faketime is needed: ./test installs it");
    path
}

/// `nginx`; `TRUNKLINE_TEST_NGINX` names another.
pub fn nginx() -> PathBuf {
    static TOOL: Tool =
        Tool::new("TRUNKLINE_TEST_NGINX", "nginx", &["-v"], "nginx with HTTP/2 and grpc_pass");
    TOOL.path()
}

/// `haproxy`; `TRUNKLINE_TEST_HAPROXY` names another.
pub fn haproxy() -> PathBuf {
    static TOOL: Tool = Tool::new("TRUNKLINE_TEST_HAPROXY", "haproxy", &["-v"], "haproxy");
    TOOL.path()
}

/// `promtool`, of Prometheus; `TRUNKLINE_TEST_PROMTOOL` names another.
pub fn promtool() -> PathBuf {
    static TOOL: Tool =
        Tool::new("TRUNKLINE_TEST_PROMTOOL", "promtool", &["--version"], "promtool");
    TOOL.path()
}

impl Tool {
    const fn new(
        variable: &'static str,
        name: &'static str,
        probe: &'static [&'static str],
        what: &'static str,
    ) -> Tool {
        Tool { variable, name, probe, what, found: OnceLock::new() }
    }

    fn path(&self) -> PathBuf {
        self.found.get_or_init(|| self.find()).clone()
    }

    fn find(&self) -> PathBuf {
        if let Some(path) = env::var_os(self.variable).map(PathBuf::from) {
            assert!(
                self.works(&path),
                "{} names {}, which is not {} that works: unset it, and ./test installs one",
                self.variable,
                path.display(),
                self.what
            );
            return path;
        }
        let search = env::var_os("PATH").unwrap_or_default();
        let own = Path::new(env!("CARGO_MANIFEST_DIR")).join(".venv/bin");
        env::split_paths(&search)
            // Where Debian has the programs of servers, which is not in everybody's PATH.
            .chain([own, PathBuf::from("/usr/sbin")])
            .map(|folder| folder.join(self.name))
            .find(|path| path.is_file() && self.works(path))
            .unwrap_or_else(|| {
                panic!(
                    "{} is needed: ./test installs it, or let {} name it",
                    self.what, self.variable
                )
            })
    }

    fn works(&self, path: &Path) -> bool {
        let mut probe = Command::new(path);
        probe.args(self.probe).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        probe.status().is_ok_and(|status| status.success())
    }
}
