//! Which of many layers are drawn.

/// At most so many layers have a column, or a picture, of their own.
const MOST: usize = 8;

/// The layers that are drawn of `count`: all, or eight evenly spaced ones, the first and the last among them.
pub(crate) fn shown_layers(count: usize) -> Vec<usize> {
    evenly(count, MOST)
}

/// At most `most` of `0..count`, evenly spaced, with both ends.
fn evenly(count: usize, most: usize) -> Vec<usize> {
    if count <= most {
        return (0..count).collect();
    }
    (0..most).map(|i| (i * (count - 1) + (most - 1) / 2) / (most - 1)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case(3, &[0, 1, 2])]
    #[case(8, &[0, 1, 2, 3, 4, 5, 6, 7])]
    #[case(28, &[0, 4, 8, 12, 15, 19, 23, 27])]
    #[case(9, &[0, 1, 2, 3, 5, 6, 7, 8])]
    fn layers_are_thinned_evenly(#[case] count: usize, #[case] shown: &[usize]) {
        assert_eq!(shown_layers(count), shown);
    }
}
