//! Marks: the shapes of points, which tell series apart where colour cannot.

use std::fmt::Write;

use super::number::coordinate;

/// The shape of a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mark {
    Circle,
    Square,
    Triangle,
    Diamond,
    Cross,
    Plus,
    Wedge,
}

const MARKS: [Mark; 7] =
    [Mark::Circle, Mark::Square, Mark::Triangle, Mark::Diamond, Mark::Cross, Mark::Plus, Mark::Wedge];

/// The shape of the `index`-th series; after seven they come round again, one before the colours do.
pub(super) fn mark(index: usize) -> Mark {
    MARKS[index % MARKS.len()]
}

impl Mark {
    /// The shape as path commands relative to its middle, of about the same ink for all.
    pub(super) fn outline(self, radius: f64) -> String {
        if self == Self::Circle {
            let (r, d) = (coordinate(radius), coordinate(radius * 2.0));
            return format!("m-{r} 0a{r} {r} 0 1 0 {d} 0a{r} {r} 0 1 0-{d} 0z");
        }
        let corners = self.corners();
        let mut outline = String::new();
        let (mut x, mut y) = (0.0, 0.0);
        for (i, &(to_x, to_y)) in corners.iter().enumerate() {
            let command = if i == 0 { "m" } else { "l" };
            let _ = write!(outline, "{command}{} {}", coordinate((to_x - x) * radius), coordinate((to_y - y) * radius));
            (x, y) = (to_x, to_y);
        }
        outline + "z"
    }

    /// Corners for radius 1; y grows downwards.
    fn corners(self) -> &'static [(f64, f64)] {
        match self {
            Self::Circle => &[],
            Self::Square => &[(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
            Self::Triangle => &[(0.0, -1.25), (1.15, 0.8), (-1.15, 0.8)],
            Self::Wedge => &[(0.0, 1.25), (-1.15, -0.8), (1.15, -0.8)],
            Self::Diamond => &[(0.0, -1.3), (1.3, 0.0), (0.0, 1.3), (-1.3, 0.0)],
            Self::Plus => &[
                (-0.32, -1.3),
                (0.32, -1.3),
                (0.32, -0.32),
                (1.3, -0.32),
                (1.3, 0.32),
                (0.32, 0.32),
                (0.32, 1.3),
                (-0.32, 1.3),
                (-0.32, 0.32),
                (-1.3, 0.32),
                (-1.3, -0.32),
                (-0.32, -0.32),
            ],
            Self::Cross => &[
                (0.0, -0.45),
                (0.75, -1.2),
                (1.2, -0.75),
                (0.45, 0.0),
                (1.2, 0.75),
                (0.75, 1.2),
                (0.0, 0.45),
                (-0.75, 1.2),
                (-1.2, 0.75),
                (-0.45, 0.0),
                (-1.2, -0.75),
                (-0.75, -1.2),
            ],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_series_share_mark_and_colour_for_long() {
        use super::super::colour::category;
        let looks: Vec<_> = (0..56).map(|i| (mark(i).outline(1.0), category(i))).collect();
        assert!((0..56).all(|a| (0..a).all(|b| looks[a] != looks[b])));
    }
}
