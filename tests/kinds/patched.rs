//! A gateway with one kind more than this version: `quota_change`, 30. Its sources are a copy of
//! this repository's, with one message in `event.proto` and one row in the table of kinds added.

use std::{
    collections::HashSet,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

const MESSAGE: &str = "
// The used quota of an account changed.
message QuotaChange {
  // The account; required.
  string account_id = 1;
  // Bytes in use.
  uint64 used = 2;
}
";
const ARM: (&str, &str) = (
    "    CustomEvent custom = 20;\n",
    "    // The used quota of an account changed.\n    QuotaChange quota_change = 30;\n",
);
const VALUE: (&str, &str) =
    ("  EVENT_KIND_CUSTOM = 20;\n", "  // `Event.quota_change`\n  EVENT_KIND_QUOTA_CHANGE = 30;\n");
const ROW: (&str, &str) = (
    "    NodeLeft(NodeLeft) = 23, \"node_left\", None,
        keep_last: false, merge: None;\n",
    "    QuotaChange(QuotaChange) = 30, \"quota_change\", Account, keep_last: false,
        merge: Some(|earlier, later| {
            later.used = later.used.max(earlier.used);
            Merge::Joined
        });\n",
);

/// The parts of the repository from which a gateway is built.
const SOURCES: [&str; 8] =
    ["Cargo.toml", "Cargo.lock", "build.rs", "src", "crates", "proto", "deploy", "docs"];

/// Builds the gateway; returns its binary. A build takes the time of this package alone, since the
/// dependencies are those of the running test, and none if nothing changed. Tests
/// that call this at once share one build.
pub fn binary() -> PathBuf {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
    // `<target>/tmp`.
    let tmp = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let copy = tmp.join("new-kind");
    fs::create_dir_all(&copy).expect("a folder");
    let lock = File::create(tmp.join("new-kind.lock")).expect("a file");
    lock.lock().expect("a lock");

    let mut kept = HashSet::new();
    for name in SOURCES {
        sync(&repository.join(name), &copy.join(name), &mut kept).expect("a copy");
    }
    // A test target, so that Cargo selects the same features of the dependencies as for the tests
    // of this repository.
    write(&copy.join("tests/features.rs"), b"//! Empty.\n", &mut kept).expect("a file");
    remove_others(&copy, &kept).expect("removed files");

    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    // Variables that Cargo sets for tests would look like changed inputs of build scripts.
    let inherited = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    let is_setting = |name: &str| {
        name == "CARGO_HOME"
            || ["CARGO_HTTP", "CARGO_NET", "CARGO_PROFILE"].iter().any(|p| name.starts_with(p))
    };
    for name in inherited.filter(|name| name.starts_with("CARGO") && !is_setting(name)) {
        command.env_remove(name);
    }
    let output = command
        .current_dir(&copy)
        .args(["build", "--workspace", "--bin", "trunkline", "--test", "features", "--offline"])
        // It runs for seconds. So built, it compiles four times as fast.
        .env("CARGO_INCREMENTAL", "0")
        .args(["--locked", "--config", "profile.dev.opt-level=0"])
        .args(["trunkline", "trunkline-proto", "trunkline-client"].into_iter().flat_map(|name| {
            ["--config".to_owned(), format!("profile.dev.package.{name}.debug=false")]
        }))
        .env("CARGO_TARGET_DIR", copy.join("target"))
        // Where the dependencies of the running test were compiled.
        .env("CARGO_BUILD_BUILD_DIR", tmp.parent().expect("the target folder"))
        .stdin(Stdio::null())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    copy.join("target/debug/trunkline")
}

/// Copies a file or a folder. Files that are the same already stay untouched, so that Cargo sees no
/// change.
fn sync(from: &Path, to: &Path, kept: &mut HashSet<PathBuf>) -> io::Result<()> {
    let kind = fs::symlink_metadata(from)?.file_type();
    if kind.is_symlink() {
        kept.insert(to.to_owned());
        let target = fs::read_link(from)?;
        if fs::read_link(to).ok().as_ref() != Some(&target) {
            std::os::unix::fs::symlink(target, to)?;
        }
        return Ok(());
    }
    if kind.is_dir() {
        fs::create_dir_all(to)?;
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            sync(&entry.path(), &to.join(entry.file_name()), kept)?;
        }
        return Ok(());
    }
    write(to, &patched(from, fs::read(from)?), kept)
}

fn write(path: &Path, content: &[u8], kept: &mut HashSet<PathBuf>) -> io::Result<()> {
    kept.insert(path.to_owned());
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    if fs::read(path).is_ok_and(|before| before == content) {
        return Ok(());
    }
    fs::write(path, content)
}

/// Removes files of an earlier copy that the repository no longer has.
fn remove_others(folder: &Path, kept: &HashSet<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.ends_with("new-kind/target") || kept.contains(&path) {
            continue;
        }
        if fs::symlink_metadata(&path)?.is_dir() {
            remove_others(&path, kept)?;
        } else {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

/// The content of a file, with the new kind in the two files that declare kinds.
fn patched(path: &Path, content: Vec<u8>) -> Vec<u8> {
    let insert = |text: String, (after, addition): (&str, &str)| {
        assert_eq!(text.matches(after).count(), 1, "{} has {after:?} once", path.display());
        text.replace(after, &[after, addition].concat())
    };
    let text = |content| String::from_utf8(content).expect("text");
    if path.ends_with("proto/trunkline/v1/event.proto") {
        return (insert(insert(text(content), ARM), VALUE) + MESSAGE).into();
    }
    if path.ends_with("trunkline-proto/src/kinds.rs") {
        return insert(text(content), ROW).into();
    }
    content
}
