//! Tables of text.

use std::fmt::Write as _;

use super::visible;

/// Rows of cells; each column is as wide as its widest cell.
pub(super) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn new<const N: usize>(head: [&str; N]) -> Table {
        Table { rows: vec![head.map(str::to_owned).to_vec()] }
    }

    /// Adds a row. Cells may hold anything that a node chose.
    pub(super) fn add<const N: usize>(&mut self, cells: [String; N]) {
        let shown = |cell: String| match cell.as_str() {
            "" => "-".to_owned(),
            text => visible(text).into_owned(),
        };
        self.rows.push(cells.map(shown).to_vec());
    }

    /// Replaces a cell of the last row.
    pub(super) fn set_last(&mut self, column: usize, cell: String) {
        if let Some(row) = self.rows.last_mut() {
            row[column] = cell;
        }
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let columns = self.rows[0].len();
        let width = |column: usize| self.rows.iter().map(|row| row[column].chars().count()).max();
        let widths: Vec<usize> = (0..columns).filter_map(width).collect();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                let _ = write!(line, "{cell:<width$}  ");
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell_and_hidden_characters_are_escaped() {
        let mut table = Table::new(["NODE", "ROLES"]);
        table.add(["mx-longer".into(), String::new()]);
        table.add(["m\u{1b}[31m\u{e9}".into(), "imap".into()]);
        let expected = "NODE          ROLES\nmx-longer     -\nm\\u{1b}[31m\u{e9}  imap\n";
        assert_eq!(table.to_string(), expected);
    }
}
