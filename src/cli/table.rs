//! Plain tables: columns as wide as they need to be, two spaces between.

/// Text to the left, figures to the right.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Align {
    Left,
    Right,
}

/// Rows of cells under headings.
pub(super) struct Table {
    align: Vec<Align>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these headings.
    pub(super) fn new(columns: &[(&str, Align)]) -> Self {
        let (headings, align) = columns.iter().map(|&(name, align)| (name.to_owned(), align)).unzip();
        Self { align, rows: vec![headings] }
    }

    /// Adds a row.
    pub(super) fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let cells = |column: usize| self.rows.iter().filter_map(move |row| row.get(column));
        let widths: Vec<usize> =
            (0..self.align.len()).map(|c| cells(c).map(|cell| cell.chars().count()).max().unwrap_or(0)).collect();
        for (at, row) in self.rows.iter().enumerate() {
            let cells = row.iter().zip(&widths).zip(&self.align).map(|((cell, &width), align)| match align {
                Align::Left => format!("{cell:<width$}"),
                Align::Right => format!("{cell:>width$}"),
            });
            let line = cells.collect::<Vec<_>>().join("  ");
            if at > 0 {
                f.write_str("\n")?;
            }
            f.write_str(line.trim_end())?;
        }
        Ok(())
    }
}

/// A metric in per cent with one decimal, a dash where there is none.
pub(super) fn figure(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{:.1}", 100.0 * value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_lines_end_without_spaces() {
        let mut table = Table::new(&[("class", Align::Left), ("AUROC", Align::Right), ("", Align::Left)]);
        table.row(vec!["bottle".into(), figure(Some(0.98765)), "x".into()]);
        table.row(vec!["a".into(), figure(None), String::new()]);
        assert_eq!(table.to_string(), "class   AUROC\nbottle   98.8  x\na           -");
    }
}
