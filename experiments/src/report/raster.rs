//! Drawings as pixels, the same on every machine: with fonts of our own, whatever the system has.
//!
//! Noto Sans (regular, bold) sets the text; a character that it lacks comes from DejaVu Sans, which holds mathematical signs and
//! most alphabets. Both know no Chinese, Japanese or Korean: such names are boxes in a PNG, though not in the SVG and on the page, which is said once.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use resvg::tiny_skia::{Color, Pixmap, Transform};
use resvg::usvg::{FontResolver, Options, Tree, fontdb};

use super::svg::Svg;
use tinyonn::{Error, Result};

/// Pixels a unit of the drawing.
const PIXELS: f32 = 2.0;

impl Svg {
    /// The drawing as a PNG file: two pixels a unit, on white.
    ///
    /// ```
    /// use experiments::report::{Anchor, Svg, TextStyle};
    ///
    /// let mut svg = Svg::new(120.0, 40.0, "a word");
    /// svg.text(4.0, 20.0, "∫SPS", TextStyle { size: 14.0, anchor: Anchor::Start, fill: "#000", bold: false });
    /// let png = svg.png()?;
    /// // The header tells the size: 240 × 80.
    /// assert_eq!(png[16..24], [0, 0, 0, 240, 0, 0, 0, 80]);
    /// # Ok::<(), tinyonn::Error>(())
    /// ```
    ///
    /// # Errors
    /// A drawing without area, or too large for an image.
    pub fn png(&self) -> Result<Vec<u8>> {
        let refused = |problem: String| Error::setting("figure", problem, "draw fewer rows, columns or layers at once");
        let lacking = Arc::new(Mutex::new(BTreeSet::new()));
        let noted = Arc::clone(&lacking);
        let options = Options {
            fontdb: fonts(),
            font_resolver: FontResolver {
                select_font: FontResolver::default_font_selector(),
                // It asks until a font has the character or none is left.
                select_fallback: Box::new(move |character, tried, fonts| {
                    let next = fonts.faces().map(|face| face.id).find(|font| !tried.contains(font));
                    if next.is_none() {
                        noted.lock().unwrap_or_else(PoisonError::into_inner).insert(character);
                    }
                    next
                }),
            },
            ..Options::default()
        };
        let tree = Tree::from_str(&self.to_string(), &options).map_err(|e| refused(format!("cannot be drawn: {e}")))?;
        warn_of(&lacking.lock().unwrap_or_else(PoisonError::into_inner));
        let (width, height) = (self.width() as f32 * PIXELS, self.height() as f32 * PIXELS);
        let mut pixels = Pixmap::new(width.ceil() as u32, height.ceil() as u32)
            .ok_or_else(|| refused(format!("an image of {width} × {height} pixels cannot be made")))?;
        pixels.fill(Color::WHITE);
        resvg::render(&tree, Transform::from_scale(PIXELS, PIXELS), &mut pixels.as_mut());
        pixels.encode_png().map_err(|e| refused(format!("cannot be encoded as PNG: {e}")))
    }
}

/// Warns of characters that no font has, of each once: of a word the first is known.
fn warn_of(lacking: &BTreeSet<char>) {
    static SAID: Mutex<BTreeSet<char>> = Mutex::new(BTreeSet::new());
    let mut said = SAID.lock().unwrap_or_else(PoisonError::into_inner);
    let new: String = lacking.iter().filter(|character| said.insert(**character)).collect();
    if !new.is_empty() {
        tracing::warn!(
            "no font at hand has characters like {new}: boxes in PNG pictures, though not in SVG ones and on the page"
        );
    }
}

fn fonts() -> Arc<fontdb::Database> {
    static FONTS: OnceLock<Arc<fontdb::Database>> = OnceLock::new();
    let load = || {
        let mut fonts = fontdb::Database::new();
        for font in [notosans::REGULAR_TTF, notosans::BOLD_TTF, dejavu::sans::regular()] {
            fonts.load_font_source(fontdb::Source::Binary(Arc::new(font)));
        }
        fonts.set_sans_serif_family("Noto Sans");
        Arc::new(fonts)
    };
    Arc::clone(FONTS.get_or_init(load))
}
