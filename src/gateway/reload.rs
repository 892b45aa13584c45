//! Takes in a changed configuration while the gateway runs, and says what has changed.

use std::collections::BTreeSet;

use serde_json::Value;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::config::Config;

/// Follows the configurations that are read while the gateway runs, until `ended`. What can change
/// is passed on (`reread`); the rest is named in the log.
pub async fn follow(
    mut running: Config,
    mut configs: mpsc::Receiver<Config>,
    reread: mpsc::Sender<Config>,
    ended: CancellationToken,
) {
    loop {
        let config = tokio::select! {
            () = ended.cancelled() => return,
            config = configs.recv() => match config {
                Some(config) => config,
                None => return,
            },
        };
        let changed = changed_keys(&running.effective(), &config.effective());
        let both_authenticate = running.auth.is_some() && config.auth.is_some();
        let (now, later): (Vec<_>, Vec<_>) = changed
            .iter()
            .partition(|key| *key == "logLevel" || (both_authenticate && key.starts_with("auth.")));
        let text = |keys: &[&String]| keys.iter().map(|key| &***key).collect::<Vec<_>>().join(", ");
        let (changed, after_restart) = (text(&now), text(&later));
        if later.is_empty() {
            tracing::info!(changed, "the configuration was read again");
        } else {
            tracing::warn!(
                changed,
                after_restart,
                "the configuration was read again: some of it needs a restart"
            );
        }
        running.log_level.clone_from(&config.log_level);
        if both_authenticate {
            running.auth.clone_from(&config.auth);
        }
        if reread.send(config).await.is_err() {
            return;
        }
    }
}

/// The paths of the keys whose values differ. A list, such as that of the identities, is one.
fn changed_keys(one: &Value, other: &Value) -> BTreeSet<String> {
    let mut changed = BTreeSet::new();
    compare("", one, other, &mut changed);
    changed
}

fn compare(path: &str, one: &Value, other: &Value, changed: &mut BTreeSet<String>) {
    if let (Value::Object(one), Value::Object(other)) = (one, other) {
        for key in one.keys().chain(other.keys()) {
            let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            let value = |object: &serde_json::Map<String, Value>| {
                object.get(key).cloned().unwrap_or_default()
            };
            compare(&path, &value(one), &value(other), changed);
        }
    } else if one != other {
        changed.insert(path.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn changed_keys_are_named_by_their_paths() {
        let one = json!({"a": 1, "b": {"c": [1], "d": 2}, "e": {"f": 1}});
        let other = json!({"a": 1, "b": {"c": [2], "d": 2, "g": 3}, "e": null});
        let changed: Vec<_> = changed_keys(&one, &other).into_iter().collect();
        assert_eq!(changed, ["b.c", "b.g", "e"]);
    }
}
