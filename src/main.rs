//! The command line.
use std::path::PathBuf;
use trunkline::{
    config::{Config, Sources},
    server,
};

#[tokio::main]
async fn main() -> std::process::ExitCode {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let args: Vec<String> = std::env::args().collect();
    let file =
        args.iter().position(|a| a == "--config").and_then(|i| args.get(i + 1)).map(PathBuf::from);
    let sources = Sources { file, env: Sources::process_environment(), overrides: vec![] };
    let config = match Config::load(&sources) {
        Ok(c) => c,
        Err(e) => {
            eprintln!("{e}");
            return 78.into();
        }
    };
    let mut term =
        tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).expect("signal");
    let result = server::serve(config, |a| eprintln!("listening on {a}"), async move {
        tokio::select! { _ = term.recv() => {}, _ = tokio::signal::ctrl_c() => {} }
    })
    .await;
    match result {
        Ok(()) => 0.into(),
        Err(e) => {
            eprintln!("{e}");
            1.into()
        }
    }
}
