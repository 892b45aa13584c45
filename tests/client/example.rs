//! Programs in `examples/`.

use std::{
    path::{Path, PathBuf},
    time::SystemTime,
};

use super::cargo;

/// The binary of an example, built now if it is missing or older than its source.
pub fn binary(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("this test has a file");
    let profile = test.ancestors().nth(2).expect("target/<profile>/deps/<test>");
    let path = profile.join("examples").join(name);
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let changed = |path: &Path| path.metadata().and_then(|data| data.modified()).ok();
    let sources = ["src", "crates"].map(|folder| newest(&root.join(folder)));
    let example = changed(&root.join("examples").join(name).with_extension("rs"));
    if changed(&path) < sources.into_iter().max().flatten().max(example) {
        let mut build = cargo();
        build.args(["build", "--locked", "--quiet", "--example", name]).current_dir(root);
        if profile.ends_with("release") {
            build.arg("--release");
        }
        build.arg("--target-dir").arg(profile.parent().expect("a folder of profiles"));
        assert!(build.status().expect("cargo").success(), "the example does not build");
    }
    path
}

/// The modification time of the newest file below a folder.
fn newest(folder: &Path) -> Option<SystemTime> {
    let entries = std::fs::read_dir(folder).ok()?.flatten();
    entries
        .filter_map(|entry| match entry.path() {
            path if path.is_dir() => newest(&path),
            path => path.metadata().and_then(|data| data.modified()).ok(),
        })
        .max()
}
