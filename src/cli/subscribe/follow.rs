//! `--follow-interest`: the accounts in a file, as it changes.

use std::{collections::BTreeSet, path::Path, time::Duration};

use serde_json::json;
use trunkline_client::{Error, Interest};

/// The interval at which the file is read.
const FILE_INTERVAL: Duration = Duration::from_millis(500);

/// Gives the interest the accounts of a file whenever they change, and reports it to standard
/// error. Returns why the gateway rejects them.
pub(super) async fn follow(file: &Path, mut accounts: Vec<String>, interest: &Interest) -> Error {
    let mut reported = String::new();
    loop {
        tokio::time::sleep(FILE_INTERVAL).await;
        let now = match accounts_in(file) {
            Ok(now) => now,
            // It may be replaced just now: the accounts stay until it can be read again.
            Err(why) => {
                if why != reported {
                    eprintln!(
                        "{}",
                        json!({ "unreadable": file.display().to_string(), "why": why })
                    );
                    reported = why;
                }
                continue;
            }
        };
        reported.clear();
        if now == accounts {
            continue;
        }
        if let Err(error) = interest.replace(now.clone()).await {
            return error;
        }
        eprintln!("{}", json!({ "interest": { "accounts": now.len() } }));
        accounts = now;
    }
}

/// The accounts in a file, one a line, each once and in order.
pub(super) fn accounts_in(file: &Path) -> Result<Vec<String>, String> {
    let text = std::fs::read_to_string(file).map_err(|error| error.to_string())?;
    let accounts: BTreeSet<&str> =
        text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    Ok(accounts.into_iter().map(str::to_owned).collect())
}
