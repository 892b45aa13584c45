//! Sets of texts.

use serde_json::{Value, json};

use super::ValueType;
use crate::config::{error::Problem, fields::Found};

/// A set of members of one type, empty by default.
pub(in crate::config) struct Set<M>(pub(in crate::config) M);

/// The members of a set.
pub(in crate::config) trait Members {
    /// One member.
    type Member;
    /// All of them.
    type All;
    fn parse(&self, text: &str) -> Result<Self::Member, Problem>;
    fn collect(&self, members: Vec<Self::Member>) -> Self::All;
    fn show(&self, all: &Self::All) -> Vec<String>;
    /// JSON Schema of one member.
    fn schema(&self) -> Value;
}

impl<M: Members> ValueType for Set<M> {
    type Value = M::All;
    type Literal = [(); 0];

    fn name(&self) -> &'static str {
        "set"
    }

    fn read(&self, found: &Found<'_>) -> Option<M::All> {
        let read = |(path, text): (String, &str)| {
            self.0.parse(text).map_err(|problem| found.report_at(&path, problem)).ok()
        };
        let members = found.members()?;
        Some(self.0.collect(members.into_iter().filter_map(read).collect()))
    }

    fn value_of(&self, _: &[(); 0]) -> M::All {
        self.0.collect(vec![])
    }

    fn show(&self, value: &M::All) -> Value {
        json!(self.0.show(value))
    }

    fn schema(&self) -> Value {
        set_schema(&self.0.schema())
    }
}

/// JSON Schema of a set whose members have the schema `member`. The names of an object are not
/// checked, since those that are `false` may be any.
pub(in crate::config) fn set_schema(member: &Value) -> Value {
    json!({
        "type": ["array", "object"],
        "items": member,
        "additionalProperties": { "type": "boolean" },
    })
}
