//! Columns of text: aligned, two spaces apart, never wrapped or cut.
//!
//! A table may come in pages, so that a long list needs no memory: widths only grow from page to page, and the titles are told once.

use super::words::clean;

/// To which side the cells of a column lean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Left,
    Right,
}

/// What is between two columns.
const GAP: &str = "  ";

#[derive(Debug)]
pub(super) struct Table {
    columns: Vec<(&'static str, Side)>,
    widths: Vec<usize>,
    titled: bool,
}

impl Table {
    pub(super) fn new(columns: &[(&'static str, Side)]) -> Self {
        let widths = columns.iter().map(|(title, _)| title.chars().count()).collect();
        Self { columns: columns.to_vec(), widths, titled: false }
    }

    /// The lines of these rows, each as long as the columns, with a line feed after each; the titles before the first.
    pub(super) fn page(&mut self, rows: &[Vec<String>]) -> String {
        if rows.is_empty() {
            return String::new();
        }
        let rows: Vec<Vec<_>> =
            rows.iter().map(|row| row.iter().map(|cell| clean(cell)).collect()).collect();
        for row in &rows {
            for (width, cell) in self.widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let mut text = String::new();
        if !self.titled {
            self.titled = true;
            let titles: Vec<&str> = self.columns.iter().map(|(title, _)| *title).collect();
            self.line(&mut text, titles.into_iter());
        }
        for row in &rows {
            self.line(&mut text, row.iter().map(AsRef::as_ref));
        }
        text
    }

    fn line<'a>(&self, text: &mut String, cells: impl Iterator<Item = &'a str>) {
        let begin = text.len();
        let columns = self.columns.iter().map(|(_, side)| *side).zip(&self.widths);
        for (index, (cell, (side, width))) in cells.zip(columns).enumerate() {
            if index > 0 {
                text.push_str(GAP);
            }
            let padding = " ".repeat(width.saturating_sub(cell.chars().count()));
            match side {
                Side::Left => text.extend([cell, &padding]),
                Side::Right => text.extend([&*padding, cell]),
            }
        }
        text.truncate(begin + text[begin..].trim_end().len());
        text.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(rows: &[[&str; 3]]) -> Vec<Vec<String>> {
        rows.iter().map(|row| row.iter().map(|cell| (*cell).to_owned()).collect()).collect()
    }

    #[test]
    fn columns_are_aligned_and_widths_only_grow() {
        let columns = [("NAME", Side::Left), ("SIZE", Side::Right), ("NOTE", Side::Left)];
        let mut table = Table::new(&columns);
        assert_eq!(table.page(&[]), "");
        insta::assert_snapshot!(
            table.page(&rows(&[["a", "1", ""], ["longer", "12345", "x\x1b[1m"]])),
            @r"
        NAME     SIZE  NOTE
        a           1
        longer  12345  x�[1m
        "
        );
        insta::assert_snapshot!(table.page(&rows(&[["b", "7", "y"]])), @"b           7  y");
    }
}
