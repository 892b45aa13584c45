//! Checks a `ListNodes` request.

use super::Check;
use crate::{
    errors::Error,
    presence::{PageStart, Query},
    proto::v1,
};

const MAX_PAGE: usize = 1000;
const DEFAULT_PAGE: usize = 100;

/// The query of a request. A page size of 0 means the default; a larger one than the maximum means
/// the maximum.
pub fn list_nodes(request: &v1::ListNodesRequest) -> Result<Query, Error> {
    let mut check = Check::default();
    let size = usize::try_from(request.page_size).unwrap_or_else(|_| {
        check.wrong("page_size", "must not be negative");
        0
    });
    let start = PageStart::decode(&request.page_token).unwrap_or_else(|| {
        check.wrong("page_token", "was not given by this method");
        PageStart::default()
    });
    check.id("gateway_id", &request.gateway_id);
    check.id("node_id", &request.node_id);
    check.done()?;
    let some = |id: &String| (!id.is_empty()).then(|| id.clone());
    Ok(Query {
        gateway_id: some(&request.gateway_id),
        node_id: some(&request.node_id),
        agents: request.agents,
        start,
        size: if size == 0 { DEFAULT_PAGE } else { size.min(MAX_PAGE) },
    })
}
