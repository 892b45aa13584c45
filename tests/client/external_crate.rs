//! A crate outside of this repository that depends on `trunkline-client` alone.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{
    cargo,
    support::{Gateway, GatewayOptions, LIMIT, folder, process::Program},
};

/// The source of a node that publishes an event and receives it.
const NODE: &str = r#"
use trunkline_client::{Client, Notification, SubscribeOptions, v1::MailboxChange};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let gateway = std::env::args().nth(1).ok_or("no gateway")?;
    let node = |id: &str| Client::builder(id).gateway(&gateway).build();
    let mut subscription = node("subscriber")?.subscribe(SubscribeOptions::new());
    while let Some(notification) = subscription.next().await {
        match notification? {
            Notification::Subscribed(_) => {
                let change = MailboxChange { account_id: "a1".into(), ..Default::default() };
                node("publisher")?.publish([change]).await?;
            }
            Notification::Event(event) => {
                println!("{}: {:?}", event.source, event.kind);
                return Ok(());
            }
            _ => {}
        }
    }
    Err("the subscription ended".into())
}
"#;

/// Builds the crate in `folder`, without the network, with the versions of this repository's lock
/// file.
fn build(folder: &Path) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let client = root.join("crates/trunkline-client").display().to_string();
    let manifest = format!(
        "[workspace]\n\
         [package]\nname = \"external-node\"\nedition = \"2024\"\n\
         [dependencies]\ntrunkline-client.path = '{client}'\n\
         tokio = {{ version = \"1\", features = [\"macros\", \"rt\"] }}\n\
         [profile.dev]\ndebug = false\n"
    );
    fs::create_dir(folder.join("src")).expect("a folder");
    fs::write(folder.join("Cargo.toml"), manifest).expect("a manifest");
    fs::write(folder.join("src/main.rs"), NODE).expect("a source file");
    fs::copy(root.join("Cargo.lock"), folder.join("Cargo.lock")).expect("a lock file");
    // Kept for the next run, which then builds only this crate.
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("external-crate");
    let mut build = cargo();
    build.args(["build", "--offline", "--quiet", "--target-dir"]).arg(&target).current_dir(folder);
    assert!(build.status().expect("cargo runs").success(), "the crate does not build");
    target.join("debug/external-node")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crate_that_depends_on_the_client_alone_publishes_and_subscribes() {
    let gateway = Gateway::start(GatewayOptions::embedded()).await;
    let folder = folder::new();
    let output = Program::new(build(folder.path()), [gateway.url()]).run(LIMIT).await.success();
    assert!(output.starts_with("publisher: Some(MailboxChange("), "{output}");
    assert!(output.contains("account_id: \"a1\""), "{output}");
}
