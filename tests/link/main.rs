//! Links between deployments: what is carried, over lines that are long and cut, and what is
//! refused.

#[path = "../support/mod.rs"]
mod support;

// The validators of the promises.
#[allow(dead_code)]
#[path = "../faults/history.rs"]
mod history;
#[allow(dead_code)]
#[path = "../faults/promises.rs"]
mod promises;

mod bounded;
mod carried;
mod faults;
mod refused;
mod secured;
mod speed;
mod stage;
