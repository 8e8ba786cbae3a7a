//! Numbers as text. Nothing here depends on locale, platform or order, so the same figures give the same bytes.

/// A coordinate: hundredths at most, no idle zeros, no negative zero. Infinity and NaN have no place on paper and become 0.
pub(super) fn coordinate(x: f64) -> String {
    let rounded = (x * 100.0).round() / 100.0;
    if !rounded.is_finite() || rounded == 0.0 {
        return "0".into();
    }
    trim(&format!("{rounded:.2}"))
}

/// `x` with `decimals` decimals and a real minus sign; a dash where there is no number.
pub(super) fn fixed(x: f64, decimals: usize) -> String {
    if x.is_nan() {
        return "–".into();
    }
    if x.is_infinite() {
        return if x > 0.0 { "∞".into() } else { "−∞".into() };
    }
    let text = format!("{x:.decimals$}");
    match text.strip_prefix('-') {
        Some(digits) if digits.bytes().all(|b| matches!(b, b'0' | b'.')) => digits.to_owned(),
        Some(digits) => format!("−{digits}"),
        None => text,
    }
}

/// `x` to `digits` significant digits, without idle zeros: `0.0123`, `4.5`, `1234`, `3.2e−7`.
pub(super) fn significant(x: f64, digits: usize) -> String {
    let magnitude = x.abs();
    if magnitude == 0.0 || !x.is_finite() {
        return fixed(x, 0);
    }
    if !(1e-4..1e7).contains(&magnitude) {
        let text = format!("{x:.*e}", digits.saturating_sub(1));
        let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        return format!("{}e{exponent}", trim(mantissa)).replace('-', "−");
    }
    trim(&fixed(x, decimals(magnitude, digits)))
}

/// Decimals that show `digits` significant digits of a number as large as `magnitude`.
pub(super) fn decimals(magnitude: f64, digits: usize) -> usize {
    if magnitude == 0.0 || !magnitude.is_finite() {
        return 0;
    }
    (digits as i32 - 1 - magnitude.log10().floor() as i32).clamp(0, 9) as usize
}

/// The largest magnitude among `values`, finite ones only; 0 where there is none.
pub(super) fn largest(values: impl IntoIterator<Item = f64>) -> f64 {
    values.into_iter().filter(|v| v.is_finite()).fold(0.0, |largest, v| largest.max(v.abs()))
}

fn trim(text: &str) -> String {
    if !text.contains('.') {
        return text.to_owned();
    }
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case(1.0, "1")]
    #[case(-0.001, "0")]
    #[case(12.345, "12.35")]
    #[case(-3.5, "-3.5")]
    #[case(100.0, "100")]
    #[case(f64::NAN, "0")]
    #[case(f64::INFINITY, "0")]
    fn coordinates(#[case] x: f64, #[case] text: &str) {
        assert_eq!(coordinate(x), text);
    }

    #[rstest]
    #[case(0.0, "0")]
    #[case(0.012345, "0.0123")]
    #[case(4.5, "4.5")]
    #[case(-1234.4, "−1234")]
    #[case(1e6, "1000000")]
    #[case(3.21e-7, "3.21e−7")]
    #[case(2e9, "2e9")]
    #[case(f64::NAN, "–")]
    #[case(f64::NEG_INFINITY, "−∞")]
    fn significant_digits(#[case] x: f64, #[case] text: &str) {
        assert_eq!(significant(x, 3), text);
    }

    #[rstest]
    #[case(-0.0004, 3, "0.000")]
    #[case(-2.5, 1, "−2.5")]
    #[case(3.0, 2, "3.00")]
    fn fixed_decimals(#[case] x: f64, #[case] decimals: usize, #[case] text: &str) {
        assert_eq!(fixed(x, decimals), text);
    }
}
