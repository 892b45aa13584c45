//! The query of the table of nodes.

/// Rows of an answer: by default, and at most.
const ROWS: usize = 100;
const MAX_ROWS: usize = 1000;

/// Search, order and number of rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// Text to find in any column, in lower case; empty: all rows.
    pub(super) search: String,
    pub(super) sort: Column,
    pub(super) descending: bool,
    pub(super) rows: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Column {
    Node,
    Gateway,
    State,
    Peer,
    Since,
    Rate,
    Behind,
    Delivered,
    Processed,
}

impl Query {
    /// Parses the query of a URL. Unknown keys and wrong values are ignored.
    pub fn parse(text: &str) -> Query {
        let mut query =
            Query { search: String::new(), sort: Column::Node, descending: false, rows: ROWS };
        for (key, value) in url::form_urlencoded::parse(text.as_bytes()) {
            match &*key {
                "search" => query.search = value.trim().to_lowercase(),
                "sort" => query.sort = Column::parse(&value).unwrap_or(Column::Node),
                "order" => query.descending = value == "descending",
                "rows" => {
                    query.rows = value.parse().map_or(ROWS, |rows: usize| rows.min(MAX_ROWS));
                }
                _ => {}
            }
        }
        query
    }
}

impl Column {
    fn parse(name: &str) -> Option<Column> {
        Some(match name {
            "node" => Column::Node,
            "gateway" => Column::Gateway,
            "state" => Column::State,
            "peer" => Column::Peer,
            "since" => Column::Since,
            "rate" => Column::Rate,
            "behind" => Column::Behind,
            "delivered" => Column::Delivered,
            "processed" => Column::Processed,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_parsed_and_wrong_values_are_ignored() {
        let query = Query::parse("search=MX%201&sort=behind&order=descending&rows=7&x=y");
        assert_eq!((&*query.search, query.sort), ("mx 1", Column::Behind));
        assert_eq!((query.descending, query.rows), (true, 7));
        assert_eq!(Query::parse("sort=colour&rows=-3"), Query::parse(""));
        assert_eq!(Query::parse("rows=1000000").rows, MAX_ROWS);
    }
}
