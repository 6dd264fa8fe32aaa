// SPDX-License-Identifier: Apache-2.0

//! Tables for people: columns as wide as their widest cell.
//!
//! Start at [`align`].

/// Aligns `rows`, the heading first; columns are parted by two spaces.
pub(crate) fn align(rows: impl Iterator<Item = Vec<String>>) -> String {
    let rows: Vec<Vec<String>> = rows.collect();
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in &rows {
        let mut out = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            out += &format!("{cell:<width$}  ");
        }
        text += out.trim_end();
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [vec!["A", "BB"], vec!["äöü", ""], vec!["1", "2"]];
        let text = align(rows.iter().map(|row| row.iter().map(ToString::to_string).collect()));
        assert_eq!(text, "A    BB\näöü\n1    2\n");
    }
}
