//! Pixels: everything that is drawn is seen, text too, on a machine without fonts; nothing is cut off.

use experiments::report::{Anchor, Area, Plot, Svg, TextStyle};
use resvg::tiny_skia::Pixmap;
use rstest::rstest;

use super::sample::{ablation, confusion, curves, density, frontier, load, losses, paths};

fn pixels(svg: &Svg) -> Pixmap {
    Pixmap::decode_png(&svg.png().unwrap()).unwrap()
}

/// Whether a pixel within the area, which is in units of the drawing, is not white.
fn has_ink(pixels: &Pixmap, area: Area) -> bool {
    let x = (area.x * 2.0) as u32..(area.right() * 2.0) as u32;
    let y = (area.y * 2.0) as u32..(area.bottom() * 2.0) as u32;
    y.flat_map(|y| x.clone().map(move |x| (x, y))).any(|(x, y)| {
        let pixel = pixels.pixel(x, y).unwrap();
        [pixel.red(), pixel.green(), pixel.blue()].iter().any(|&channel| channel < 250)
    })
}

fn word(text: &str, bold: bool) -> Svg {
    let mut svg = Svg::new(100.0, 60.0, "a word");
    svg.text(20.0, 40.0, text, TextStyle { size: 20.0, anchor: Anchor::Start, fill: "#000000", bold });
    svg
}

#[test]
fn paper_is_white_and_opaque_at_two_pixels_a_unit() {
    let empty = pixels(&Svg::new(33.0, 20.5, "nothing"));
    assert_eq!((empty.width(), empty.height()), (66, 41));
    assert!(empty.data().iter().all(|&channel| channel == 255));
}

#[test]
fn text_is_drawn_where_it_should_be() {
    let drawn = pixels(&word("Nothing", false));
    // From its anchor on, above its baseline; 20 units high at most, and no longer than its letters.
    assert!(has_ink(&drawn, Area { x: 20.0, y: 24.0, width: 75.0, height: 17.0 }));
    assert!(!has_ink(&drawn, Area { x: 0.0, y: 0.0, width: 19.0, height: 60.0 }));
    assert!(!has_ink(&drawn, Area { x: 0.0, y: 46.0, width: 100.0, height: 14.0 }));
    assert_ne!(drawn.data(), pixels(&word("Nothing", true)).data(), "bold is another face");
}

/// A character that no font has is drawn as a box, the same for all: none of these may be.
#[rstest]
fn every_sign_that_the_library_prints_has_a_glyph(#[values(false, true)] bold: bool) {
    let boxes = pixels(&word("\u{4e00}", bold));
    for sign in "∫σμΔθλΣ−×÷±≤≥≈·→‖⊙²½°…–∞₁₂₈éßЖ".chars() {
        let drawn = pixels(&word(&sign.to_string(), bold));
        assert!(has_ink(&drawn, Area { x: 15.0, y: 15.0, width: 80.0, height: 40.0 }), "{sign} is blank");
        assert_ne!(drawn.data(), boxes.data(), "{sign} is a box");
    }
}

#[rstest]
#[case::confusion(confusion())]
#[case::load(load())]
#[case::ablation(ablation())]
#[case::losses(losses())]
#[case::curves(curves())]
#[case::frontier(frontier())]
#[case::paths(paths(4))]
#[case::deep_paths(paths(28))]
#[case::density(density())]
fn plots_have_ink_and_none_is_cut_off(#[case] plot: impl Plot) {
    let svg = plot.svg().unwrap();
    let drawn = pixels(&svg);
    let (width, height) = (svg.width(), svg.height());
    assert!(has_ink(&drawn, Area { x: 0.0, y: 0.0, width: 100.0, height: 18.0 }), "its title");
    assert!(has_ink(&drawn, Area { x: width / 4.0, y: height / 4.0, width: width / 2.0, height: height / 2.0 }));
    // What were cut off would touch the edge.
    for edge in [
        Area { x: width - 0.5, y: 0.0, width: 0.5, height },
        Area { x: 0.0, y: 0.0, width, height: 0.5 },
        Area { x: 0.0, y: height - 1.0, width, height: 0.5 },
    ] {
        assert!(!has_ink(&drawn, edge), "ink in {edge:?}");
    }
}
