//! The path of a field in a request: `events[3].target.roles[1]`.

use std::fmt;

/// A path. It is formatted only in a violation: publishing checks many fields.
#[derive(Clone, Copy, Debug)]
pub(super) struct Path<'a> {
    above: Option<&'a Path<'a>>,
    step: Step<'a>,
}

#[derive(Clone, Copy, Debug)]
enum Step<'a> {
    Field(&'a str),
    Index(usize),
    Key(&'a str),
}

impl<'a> Path<'a> {
    /// A field of the request itself.
    pub(super) fn of(field: &'a str) -> Path<'a> {
        Path { above: None, step: Step::Field(field) }
    }

    /// A field of the message at this path.
    pub(super) fn field(&'a self, name: &'a str) -> Path<'a> {
        Path { above: Some(self), step: Step::Field(name) }
    }

    /// An element of the list at this path.
    pub(super) fn index(&'a self, index: usize) -> Path<'a> {
        Path { above: Some(self), step: Step::Index(index) }
    }

    /// A value of the map at this path.
    pub(super) fn key(&'a self, key: &'a str) -> Path<'a> {
        Path { above: Some(self), step: Step::Key(key) }
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(above) = self.above {
            above.fmt(f)?;
        }
        match self.step {
            Step::Field(name) if self.above.is_some() => write!(f, ".{name}"),
            Step::Field(name) => f.write_str(name),
            Step::Index(index) => write!(f, "[{index}]"),
            Step::Key(key) => write!(f, "[{key:?}]"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_formatted_as_in_code() {
        let events = Path::of("events");
        let event = events.index(3);
        let (target, custom) = (event.field("target"), event.field("custom"));
        let (roles, labels) = (target.field("roles"), custom.field("labels"));
        assert_eq!(roles.index(1).to_string(), "events[3].target.roles[1]");
        assert_eq!(labels.key("a\"b").to_string(), r#"events[3].custom.labels["a\"b"]"#);
        assert_eq!(events.to_string(), "events");
    }
}
