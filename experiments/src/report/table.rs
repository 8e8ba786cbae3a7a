//! Tables as HTML and Markdown: numbers flush right, the best of a column set in bold.

use maud::html;

use super::csv::Csv;
use super::markup::inline;
use super::number::fixed;
use tinyonn::{Error, Result};

/// Which number of a column is the best one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Best {
    /// The lowest: losses.
    Lowest,
    /// The highest: accuracies.
    Highest,
}

/// What a column holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Words, flush left.
    Text,
    /// Numbers, flush right.
    Number {
        /// How many decimals they are printed with.
        decimals: usize,
        /// Which of them is set in bold, if any.
        best: Option<Best>,
    },
}

/// A column's head.
#[derive(Debug, Clone)]
pub struct Column {
    /// Its name, with the unit.
    pub name: String,
    /// What it holds.
    pub kind: Kind,
}

impl Column {
    /// A column of words.
    #[must_use]
    pub fn text(name: &str) -> Self {
        Self { name: name.into(), kind: Kind::Text }
    }

    /// A column of numbers, none of them in bold.
    #[must_use]
    pub fn number(name: &str, decimals: usize) -> Self {
        Self { name: name.into(), kind: Kind::Number { decimals, best: None } }
    }

    /// A column of numbers, the lowest in bold.
    #[must_use]
    pub fn lowest(name: &str, decimals: usize) -> Self {
        Self { name: name.into(), kind: Kind::Number { decimals, best: Some(Best::Lowest) } }
    }
}

/// What stands in a cell.
#[derive(Debug, Clone)]
pub enum TableCell {
    /// Words.
    Text(String),
    /// A number; NaN prints as a dash.
    Number(f64),
}

impl From<&str> for TableCell {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for TableCell {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<f64> for TableCell {
    fn from(number: f64) -> Self {
        Self::Number(number)
    }
}

/// A table.
///
/// ```
/// use experiments::report::{Column, Table};
///
/// let table = Table {
///     columns: vec![Column::text("labels"), Column::lowest("loss", 2)],
///     rows: vec![vec!["SPS".into(), 3.149.into()], vec!["taylor".into(), 3.07.into()]],
/// };
/// assert!(table.html()?.contains("<strong>3.07</strong>"));
/// # Ok::<(), tinyonn::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Table {
    /// The columns, from left to right.
    pub columns: Vec<Column>,
    /// `[rows][columns]`.
    pub rows: Vec<Vec<TableCell>>,
}

impl Table {
    /// The table as HTML (well-formed as XML). Refused if a row has not one cell a column.
    pub fn html(&self) -> Result<String> {
        self.check()?;
        let best: Vec<Option<String>> = (0..self.columns.len()).map(|c| self.best(c)).collect();
        let table = html! {
            table {
                thead { tr { @for column in &self.columns {
                    th scope="col" class=[class(column.kind)] { (inline(&column.name)) }
                } } }
                tbody { @for row in &self.rows {
                    tr { @for ((cell, column), best) in row.iter().zip(&self.columns).zip(&best) {
                        @let text = printed(cell, column.kind);
                        @let strong = matches!(cell, TableCell::Number(_)) && best.as_ref() == Some(&text);
                        td class=[class(column.kind)] {
                            @if strong { strong { (inline(&text)) } } @else { (inline(&text)) }
                        }
                    } }
                    "\n"
                } }
            }
        };
        Ok(table.into_string())
    }

    /// The table as Markdown; the best numbers in bold here too. Refused as by [`html`](Self::html).
    ///
    /// ```
    /// use experiments::report::{Column, Table};
    /// let table = Table { columns: vec![Column::text("a|b")], rows: vec![vec!["c".into()]] };
    /// assert_eq!(table.markdown()?, "| a\\|b |\n|---|\n| c |\n");
    /// # Ok::<(), tinyonn::Error>(())
    /// ```
    pub fn markdown(&self) -> Result<String> {
        self.check()?;
        let line = |cells: &mut dyn Iterator<Item = String>| format!("| {} |\n", cells.collect::<Vec<_>>().join(" | "));
        let safe = |text: &str| text.replace('|', "\\|").replace('\n', " ");
        let mut markdown = line(&mut self.columns.iter().map(|column| safe(&column.name)));
        let rule = |column: &Column| if column.kind == Kind::Text { "---|" } else { "--:|" };
        markdown.push('|');
        markdown.extend(self.columns.iter().map(rule));
        markdown.push('\n');
        let best: Vec<Option<String>> = (0..self.columns.len()).map(|c| self.best(c)).collect();
        for row in &self.rows {
            let cell = |((cell, column), best): ((&TableCell, &Column), &Option<String>)| {
                let text = printed(cell, column.kind);
                let strong = matches!(cell, TableCell::Number(_)) && best.as_ref() == Some(&text);
                if strong { format!("**{text}**") } else { safe(&text) }
            };
            markdown.push_str(&line(&mut row.iter().zip(&self.columns).zip(&best).map(cell)));
        }
        Ok(markdown)
    }

    /// The table as comma-separated values, numbers to their last digit, NaN as an empty field. Refused as by [`html`](Self::html).
    ///
    /// ```
    /// use experiments::report::{Column, Table};
    /// let columns = vec![Column::text("k"), Column::number("loss", 1)];
    /// let table = Table { columns, rows: vec![vec!["1 × 2".into(), 2.125.into()], vec!["2 × 2".into(), f64::NAN.into()]] };
    /// assert_eq!(table.csv()?, "k,loss\n1 × 2,2.125\n2 × 2,\n");
    /// # Ok::<(), tinyonn::Error>(())
    /// ```
    pub fn csv(&self) -> Result<String> {
        self.check()?;
        let mut csv = Csv::new(&self.columns.iter().map(|column| column.name.as_str()).collect::<Vec<_>>());
        for row in &self.rows {
            csv.line(row.iter().map(|cell| match cell {
                TableCell::Text(text) => text.as_str().into(),
                TableCell::Number(number) => Some(*number).filter(|x| !x.is_nan()).into(),
            }));
        }
        Ok(csv.finish())
    }

    fn check(&self) -> Result<()> {
        if let Some(row) = self.rows.iter().find(|row| row.len() != self.columns.len()) {
            let problem = format!("a row of {} cells under {} columns", row.len(), self.columns.len());
            return Err(Error::setting("table", problem, "give one cell per column"));
        }
        Ok(())
    }

    /// How the best number of a column is printed: what prints alike ties.
    fn best(&self, column: usize) -> Option<String> {
        let kind = self.columns[column].kind;
        let Kind::Number { best: Some(best), .. } = kind else { return None };
        let numbers = self.rows.iter().filter_map(|row| match row[column] {
            TableCell::Number(number) if number.is_finite() => Some(number),
            _ => None,
        });
        let best = match best {
            Best::Lowest => numbers.reduce(f64::min),
            Best::Highest => numbers.reduce(f64::max),
        };
        best.map(|number| printed(&TableCell::Number(number), kind))
    }
}

fn printed(cell: &TableCell, kind: Kind) -> String {
    match (cell, kind) {
        (TableCell::Text(text), _) => text.clone(),
        (TableCell::Number(number), Kind::Number { decimals, .. }) => fixed(*number, decimals),
        (TableCell::Number(number), Kind::Text) => number.to_string(),
    }
}

fn class(kind: Kind) -> Option<&'static str> {
    (kind != Kind::Text).then_some("number")
}
