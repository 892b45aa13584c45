//! Authentication by token.

use trunkline_proto::v1::{Filter, GetStatusRequest, ListNodesRequest};

use super::{
    MX_TOKEN, WEB_TOKEN, connect, files::Files, next, publish, request, subscribe, unauthenticated,
    until_type,
};
use crate::support::{LIMIT, events, wait::until};

#[tokio::test(flavor = "multi_thread")]
async fn requests_without_a_valid_token_are_refused() {
    let (files, gateway) = Files::with_gateway("optional").await;
    for (credentials, reason) in [
        (files.trusting(), "CREDENTIALS_MISSING"),
        (files.token("token-of-nobody-known"), "CREDENTIALS_WRONG"),
        (files.token(&MX_TOKEN[..MX_TOKEN.len() - 1]), "CREDENTIALS_WRONG"),
    ] {
        let node = connect(&gateway, &credentials).await;
        unauthenticated(publish(&node, "mx-1", vec![events::queue_refresh()]).await, reason);
        unauthenticated(subscribe(&node, request("mx-1", Filter::default())).await, reason);
        unauthenticated(node.clone().get_status(GetStatusRequest {}).await, reason);
        unauthenticated(node.clone().list_nodes(ListNodesRequest::default()).await, reason);
    }
    let mx = connect(&gateway, &files.token(MX_TOKEN)).await;
    publish(&mx, "mx-1", vec![events::queue_refresh()]).await.expect("published");
    mx.clone().get_status(GetStatusRequest {}).await.expect("a status");
    // No output contains any part of a token.
    for text in [gateway.stderr(), gateway.stdout()] {
        assert!(!text.contains("token-of"), "{text}");
    }
    assert!(gateway.stderr().contains("refused"), "{}", gateway.stderr());
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_replaced_and_revoked() {
    let (files, gateway) = Files::with_gateway("optional").await;
    let old = connect(&gateway, &files.token(WEB_TOKEN)).await;
    let mut stream = subscribe(&old, request("web", Filter::default())).await.expect("a stream");
    let event = || vec![events::custom("org.web.a")];
    let next_token = "the-next-token-of-web";
    // A malformed line changes nothing.
    files.write("web.tokens", "short\n");
    gateway.stderr_has("stay valid", LIMIT).await;
    publish(&old, "web", event()).await.expect("published");
    // Both tokens are valid.
    files.write("web.tokens", format!("{WEB_TOKEN}\n{next_token}\n"));
    let new = connect(&gateway, &files.token(next_token)).await;
    until(LIMIT, "the new token", async || publish(&new, "web", event()).await.is_ok()).await;
    publish(&old, "web", event()).await.expect("published");
    // The old token is revoked: its stream ends, that of the new one goes on.
    let mut kept = subscribe(&new, request("web", Filter::default())).await.expect("a stream");
    files.write("web.tokens", format!("{next_token}\n"));
    let ended = loop {
        match next(&mut stream).await {
            Ok(_) => {}
            Err(status) => break status,
        }
    };
    unauthenticated(Err::<(), _>(ended), "CREDENTIALS_REVOKED");
    unauthenticated(publish(&old, "web", event()).await, "CREDENTIALS_WRONG");
    let mx = connect(&gateway, &files.token(MX_TOKEN)).await;
    publish(&mx, "mx-1", vec![events::custom("org.last")]).await.expect("published");
    until_type(&mut kept, "org.last").await;
    // A missing file revokes all its tokens.
    std::fs::remove_file(files.path("web.tokens")).expect("removed");
    let ended = next(&mut kept).await.map(|_| ());
    unauthenticated(ended, "CREDENTIALS_REVOKED");
}
