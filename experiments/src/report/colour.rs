//! Colours that survive a colour-blind reader and a grey printer.
//!
//! Light always means little, so that paper stays paper. The maps run through anchors of even perceived lightness (OKLab):
//! [`sequential`] falls in luminance all the way; [`diverging`] falls from a neutral middle to orange (positive) and, deeper, to
//! blue (negative). Grey cannot tell two dark arms apart, so figures mark negative values besides.

/// An sRGB colour.
pub type Rgb = [u8; 3];

const SEQUENTIAL: [Rgb; 9] = [
    [250, 248, 230],
    [208, 226, 182],
    [149, 206, 158],
    [77, 185, 152],
    [0, 156, 151],
    [3, 124, 141],
    [0, 93, 127],
    [26, 64, 101],
    [31, 38, 62],
];
const NEGATIVE: [Rgb; 5] = [[244, 244, 244], [173, 195, 218], [109, 145, 192], [52, 95, 164], [19, 45, 119]];
const POSITIVE: [Rgb; 5] = [[244, 244, 244], [229, 202, 176], [217, 157, 111], [203, 109, 47], [172, 67, 14]];

/// Okabe and Ito's palette, ordered so that neighbours differ in grey as well as they can; its yellow is darker, so that it is seen on paper.
pub const CATEGORIES: [Rgb; 8] = [
    [0, 114, 178],
    [230, 159, 0],
    [0, 158, 115],
    [204, 121, 167],
    [213, 94, 0],
    [86, 180, 233],
    [26, 26, 26],
    [150, 138, 20],
];

/// The colour of `t` from 0 (none, light) to 1 (all, dark); beyond, the nearest end.
pub fn sequential(t: f64) -> Rgb {
    along(&SEQUENTIAL, t)
}

/// The colour of `t` from −1 (blue) over 0 (neutral, light) to 1 (orange); beyond, the nearest end.
pub fn diverging(t: f64) -> Rgb {
    if t < 0.0 { along(&NEGATIVE, -t) } else { along(&POSITIVE, t) }
}

/// The colour of the `index`-th category; after eight they come round again.
pub fn category(index: usize) -> Rgb {
    CATEGORIES[index % CATEGORIES.len()]
}

/// Relative luminance from 0 (black) to 1 (white), as WCAG defines it.
pub fn luminance(colour: Rgb) -> f64 {
    let linear = |channel: u8| {
        let c = f64::from(channel) / 255.0;
        if c <= 0.04045 { c / 12.92 } else { ((c + 0.055) / 1.055).powf(2.4) }
    };
    0.2126 * linear(colour[0]) + 0.7152 * linear(colour[1]) + 0.0722 * linear(colour[2])
}

/// `#rrggbb`.
pub fn hex(colour: Rgb) -> String {
    format!("#{:02x}{:02x}{:02x}", colour[0], colour[1], colour[2])
}

/// Nearly black, or white: whichever is easier to read on `background`.
pub(crate) fn ink_on(background: Rgb) -> &'static str {
    // Contrast with both is equal, (L + 0.05)/0.0556 = 1.05/(L + 0.05), at L = 0.19.
    if luminance(background) > 0.19 { "#111111" } else { "#ffffff" }
}

fn along<const N: usize>(anchors: &[Rgb; N], t: f64) -> Rgb {
    let position = if t.is_nan() { 0.0 } else { t.clamp(0.0, 1.0) } * (N - 1) as f64;
    let low = (position.floor() as usize).min(N - 2);
    let part = position - low as f64;
    let mix = |channel: usize| {
        let (a, b) = (f64::from(anchors[low][channel]), f64::from(anchors[low + 1][channel]));
        (a + (b - a) * part).round() as u8
    };
    [mix(0), mix(1), mix(2)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case::sequential(sequential)]
    #[case::positive(diverging)]
    #[case::negative(|t: f64| diverging(-t))]
    fn more_is_darker(#[case] map: fn(f64) -> Rgb) {
        let steps: Vec<f64> = (0..=64).map(|i| luminance(map(f64::from(i) / 64.0))).collect();
        assert!(steps.windows(2).all(|pair| pair[1] < pair[0]), "{steps:?}");
        assert!(steps[0] > 0.85 && steps[64] < 0.2, "paper at one end, ink at the other");
    }

    #[test]
    fn both_signs_start_from_the_same_grey() {
        let [r, g, b] = diverging(0.0);
        assert!(r == g && g == b);
        assert_eq!(diverging(-0.0), diverging(0.0));
        assert_eq!(diverging(-1e-12), diverging(1e-12));
    }

    #[test]
    fn writing_on_any_colour_has_contrast() {
        for i in 0..=100 {
            let t = f64::from(i) / 100.0;
            for colour in [sequential(t), diverging(t), diverging(-t)] {
                let paper = luminance(colour) + 0.05;
                let ink = if ink_on(colour) == "#ffffff" { 1.05 } else { 0.0556 };
                assert!((paper / ink).max(ink / paper) >= 4.2, "{colour:?}");
            }
        }
    }

    #[test]
    fn beyond_the_ends_lies_the_end() {
        assert_eq!(sequential(7.0), sequential(1.0));
        assert_eq!(diverging(-7.0), diverging(-1.0));
        assert_eq!(sequential(f64::NAN), sequential(0.0));
    }
}
