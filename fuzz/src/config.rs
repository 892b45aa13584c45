use trunkline::config::{Config, Sources};

/// A configuration: the file's text and then, each after a byte 0, `NAME=VALUE` of the environment
/// or `path=value` of a flag.
pub fn config(bytes: &[u8]) {
    let mut parts = bytes.split(|byte| *byte == 0);
    let text = parts.next().unwrap_or_default();
    let mut sources = Sources::default();
    for part in parts {
        let part = String::from_utf8_lossy(part);
        let Some((name, value)) = part.split_once('=') else { continue };
        if name.starts_with("TRUNKLINE_") {
            sources.env.push((name.to_owned(), value.to_owned()));
        } else {
            sources.set(name, value);
        }
    }
    match Config::load_text(text, &sources) {
        Ok(config) => {
            // The effective configuration loads again, with a value for each masked secret.
            let unmasked = |config: &Config| config.effective().to_string().replace("***", "x");
            let effective = unmasked(&config);
            match Config::load_text(effective.as_bytes(), &Sources::default()) {
                Ok(again) => assert_eq!(unmasked(&again), effective),
                Err(errors) => assert!(needs_environment(&effective), "{errors}"),
            }
        }
        Err(errors) => {
            let lines = errors.to_string();
            assert!(!errors.violations().is_empty());
            assert_eq!(lines.lines().count(), errors.violations().len(), "{lines}");
        }
    }
}

/// True if a configuration refers to variables of the environment, which only the first loading
/// had.
fn needs_environment(effective: &str) -> bool {
    effective.contains("EnvironmentVariable")
}
