//! Reports which rights of a gateway the user lacks.

use super::{Finding, Reached, Settings, ShardNames, error_text};
use crate::bus::redis::rights;

pub(super) async fn examine(
    reached: &Reached,
    settings: &Settings,
    names: &ShardNames,
) -> Vec<Finding> {
    let Reached { address, about, connection, .. } = reached;
    let refusals = match rights::try_on(&mut connection.clone(), settings, names).await {
        Ok(refusals) => refusals,
        Err(error) => {
            let why = error_text(&error);
            let cure = about.cure(&why);
            return vec![Finding::failure("rights", format!("{address}: {why}"), cure)];
        }
    };
    let mut found = Vec::new();
    if let Some((seen, cure)) = refusals.missing(about) {
        found.push(Finding::failure("rights", format!("{address}: {seen}"), cure));
    }
    if !refusals.all_were_tried() {
        let seen = format!("{address}: without MULTI and EXEC no other right can be tried");
        let advice = "give the rights above, and run doctor again";
        found.push(Finding::not_checked("rights", seen, advice));
    }
    if let Some((right, text)) = refusals.other {
        let seen = format!("{address}, {right}: {text}");
        found.push(Finding::failure("writes", seen, about.cure(&text)));
    }
    if found.is_empty() {
        let count = rights::needed(settings).len();
        let seen = format!("{address} grants all {count} commands on the prefix");
        found.push(Finding::ok("rights", seen));
    }
    found
}
