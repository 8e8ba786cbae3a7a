//! Labels of the rows that routers are fitted to: each row is of a class, and rows of a class share a path.
//!
//! Under task labels a class is a task; under token labels it is a distinct path. Fits and accuracies know no other difference.

use std::collections::BTreeMap;

use super::Labels;
use crate::moe::MoeSpec;
use crate::{Error, Result};

/// The paths of one layer's rows.
///
/// ```
/// use tinyonn::gallery::Mixtral;
/// use tinyonn::imaging::{Labels, RowLabels};
///
/// let labels = Labels::random(3, 1, &Mixtral::SPEC, 0);
/// let rows = RowLabels::of_tasks(&labels, 0, &[2, 0, 2]);
/// assert_eq!((rows.path(0), rows.path(0)), (rows.path(2), labels.paths.experts[2][0].as_slice()));
/// rows.check(3, &Mixtral::SPEC)?;
/// assert!(rows.check(4, &Mixtral::SPEC).is_err());
/// # Ok::<(), tinyonn::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RowLabels {
    /// The class of each row.
    pub class_of_row: Vec<u32>,
    /// Chosen experts of each class, ascending.
    pub paths: Vec<Vec<u32>>,
}

impl RowLabels {
    /// The paths of the rows' tasks in one layer.
    #[must_use]
    pub fn of_tasks(labels: &Labels, layer: usize, tasks: &[u32]) -> Self {
        let paths = labels.paths.experts.iter().map(|task| task[layer].clone()).collect();
        Self { class_of_row: tasks.to_vec(), paths }
    }

    /// A path for each row; classes are the distinct paths, in the order in which they appear.
    ///
    /// ```
    /// use tinyonn::imaging::RowLabels;
    /// let labels = RowLabels::from_paths([vec![3, 4], vec![0, 1], vec![3, 4]]);
    /// assert_eq!((labels.class_of_row, labels.paths), (vec![0, 1, 0], vec![vec![3, 4], vec![0, 1]]));
    /// ```
    #[must_use]
    pub fn from_paths(rows: impl IntoIterator<Item = Vec<u32>>) -> Self {
        let (mut labels, mut known) = (Self::default(), BTreeMap::new());
        for path in rows {
            let class = *known.entry(path).or_insert_with_key(|path| {
                labels.paths.push(path.clone());
                labels.paths.len() as u32 - 1
            });
            labels.class_of_row.push(class);
        }
        labels
    }

    /// The path of a row.
    #[must_use]
    pub fn path(&self, row: usize) -> &[u32] {
        &self.paths[self.class_of_row[row] as usize]
    }

    /// Refuses labels of other rows or experts.
    ///
    /// # Errors
    /// The first that does not fit.
    pub fn check(&self, rows: usize, spec: &MoeSpec) -> Result<()> {
        let remedy = "label the rows that were collected, for this variant";
        if self.class_of_row.len() != rows {
            let problem = format!("{} rows are labelled, and {rows} were collected", self.class_of_row.len());
            return Err(Error::setting("labels", problem, remedy));
        }
        let (classes, experts) = (self.paths.len(), spec.experts());
        if let Some(class) = self.class_of_row.iter().find(|class| **class as usize >= classes) {
            return Err(Error::setting("labels", format!("a row is of class {class} of {classes}"), remedy));
        }
        if let Some(expert) = self.paths.iter().flatten().find(|expert| **expert as usize >= experts) {
            return Err(Error::setting("labels", format!("one names expert {expert} of {experts}"), remedy));
        }
        Ok(())
    }
}
