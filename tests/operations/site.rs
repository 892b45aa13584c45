//! The documents as a site: built by `scripts/site`, which follows every link, and searched in a
//! real browser.

use std::time::Duration;

use super::support::{
    Browser, folder,
    ports::Port,
    process::{Process, Program},
    tools, until,
};

/// How long the site may take, on a busy machine.
const BUILD: Duration = Duration::from_mins(2);

#[tokio::test(flavor = "multi_thread")]
async fn the_documents_are_a_site_with_a_search_box() {
    let (place, port) = (folder::new(), Port::free());
    let site = place.path().join("site").display().to_string();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/site");
    let built = Program::new(script, [site.as_str()])
        .env("PATH", std::env::var("PATH").expect("a path"))
        .run(BUILD)
        .await;
    assert!(built.status.success(), "{}", built.stderr);

    let args = ["-m", "http.server", "--bind", "127.0.0.1", "--directory", &site];
    let args = args.into_iter().map(str::to_owned).chain([port.number().to_string()]);
    let server = Process::start("site", Program::new(tools::python(), args));
    let root = format!("http://127.0.0.1:{}/", port.number());
    until(BUILD, "the site is served", async || {
        assert!(server.ended().is_none(), "{}", server.stderr());
        Program::new(tools::curl(), ["-sf", &root]).run(BUILD).await.status.success()
    })
    .await;

    let browser = Browser::start(1200, 900).await;
    browser.open(&root).await;
    assert_eq!(browser.text("h1").await, "Trunkline");
    // A key opens the search, as the site's help says.
    browser.press("s").await;
    let query = "#mkdocs-search-query";
    browser
        .wait("the search is open", async || {
            let script = format!("return document.activeElement?.matches('{query}') ?? false;");
            (browser.run(&script).await == true).then_some(())
        })
        .await;
    let found = browser
        .wait("results", async || {
            // Keys do nothing before the index is there.
            browser.run(&format!("document.querySelector('{query}').value = '';")).await;
            browser.type_into(query, "shard epoch offset").await;
            let found = browser.text("#mkdocs-search-results").await;
            found.contains("Places: shard, epoch, offset").then_some(found)
        })
        .await;
    assert!(found.contains("Order and position"), "{found}");
    // Its search says there how far it is; errors of scripts and missing files are there too.
    for line in browser.console().await {
        assert!(line.contains("search"), "{line}");
        assert!(!line.contains("Uncaught") && !line.contains("Failed"), "{line}");
    }

    browser.open(&format!("{root}concepts.html")).await;
    let script = "return [...document.images].every((image) => image.naturalWidth > 100)
        && document.images.length === 3;";
    assert_eq!(browser.run(script).await, true, "pictures");
    // Nothing comes from elsewhere.
    for url in browser.requests().await {
        assert!(url.starts_with(&root) || url.starts_with("data:"), "{url}");
    }
}
