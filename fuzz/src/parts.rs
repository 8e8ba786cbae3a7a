//! Inputs that are several files: one behind the other, with a line of `%%%` between them.

const BETWEEN: &[u8] = b"\n%%%\n";

/// The first `N` parts of an input; those that are not there are empty, and the last one holds whatever is left.
pub fn parts<const N: usize>(mut input: &[u8]) -> [&[u8]; N] {
    let mut parts = [&[][..]; N];
    for (number, part) in parts.iter_mut().enumerate() {
        let end = input.windows(BETWEEN.len()).position(|window| window == BETWEEN);
        match end.filter(|_| number + 1 < N) {
            Some(end) => {
                *part = &input[..end];
                input = &input[end + BETWEEN.len()..];
            }
            None => {
                *part = input;
                input = &[];
            }
        }
    }
    parts
}
