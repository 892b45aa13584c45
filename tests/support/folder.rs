//! Temporary folders that clean up after themselves.

use std::{fs, path::Path, process, sync::Once};

use tempfile::TempDir;

/// Begins the names of all folders. The id of the process that made it follows, so that folders of
/// killed processes can be found.
const PREFIX: &str = "trunkline-test-";

/// Makes a folder that is removed when it is dropped.
pub fn new() -> TempDir {
    static SWEPT: Once = Once::new();
    SWEPT.call_once(sweep);
    tempfile::Builder::new()
        .prefix(&format!("{PREFIX}{}-", process::id()))
        .tempdir()
        .expect("a temporary folder")
}

/// Removes the folders of test processes that were killed.
pub fn sweep() {
    // Without /proc a running process cannot be told from a dead one.
    if !Path::new("/proc/self").exists() {
        return;
    }
    let Ok(entries) = fs::read_dir(std::env::temp_dir()) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let owner = name
            .to_str()
            .and_then(|name| name.strip_prefix(PREFIX)?.split('-').next()?.parse::<u32>().ok());
        if owner.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            // Another test process may be sweeping it too.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}
