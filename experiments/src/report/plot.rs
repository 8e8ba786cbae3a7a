//! What every drawing can do.

use super::svg::Svg;
use tinyonn::Result;

/// A drawing with the numbers behind it.
///
/// ```
/// use experiments::report::{Lines, Plot, Series};
///
/// let lines = Lines {
///     title: "Pretraining".into(),
///     x_label: "step".into(),
///     y_label: "nats per token".into(),
///     series: vec![Series::line("loss", vec![(0.0, 5.5), (100.0, 0.1 + 0.2)])],
///     log_x: false,
/// };
/// assert!(lines.svg()?.png()?.starts_with(b"\x89PNG"));
/// assert_eq!(lines.csv(), "series,step,nats per token\nloss,0.0,5.5\nloss,100.0,0.30000000000000004\n");
/// # Ok::<(), tinyonn::Error>(())
/// ```
pub trait Plot {
    /// The picture.
    ///
    /// # Errors
    /// [`Error::Setting`](tinyonn::Error::Setting) if names, values and intervals do not match in number.
    fn svg(&self) -> Result<Svg>;

    /// The numbers behind the picture, in long form: a header with the names of axes and units, then an observation a line. Fields
    /// are quoted as RFC 4180 has it; lines end in a line feed. Every number reads back as the same `f64`; one that is missing
    /// is `NaN`, an interval that was not given is empty.
    fn csv(&self) -> String;
}
