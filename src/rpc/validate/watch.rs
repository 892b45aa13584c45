//! Checks an update of the interest of a `Watch` stream.

use super::{Check, Path, token};
use crate::{config::Limits, errors::Error, hub::token::ResumeToken, proto::v1};

/// Checks what an update says by itself. Returns where added interest begins, if not now.
pub fn update(
    update: &v1::InterestUpdate,
    limits: &Limits,
    deployment: u32,
) -> Result<Option<ResumeToken>, Error> {
    let mut check = Check::default();
    if let Some(add) = &update.add {
        check.filter(Path::of("add"), add, limits);
    }
    if let Some(remove) = &update.remove {
        check.filter(Path::of("remove"), remove, limits);
        if update.replace && *remove != v1::Filter::default() {
            check.wrong("remove", "must be empty in an update that replaces the whole interest");
        }
    }
    if update.incomplete && !update.since.is_empty() {
        check.wrong("since", "belongs to the last part of an update");
    }
    check.done()?;
    if update.since.is_empty() {
        return Ok(None);
    }
    let since = token(&update.since, deployment);
    since.map(Some).map_err(|why| Error::field("since", why))
}
