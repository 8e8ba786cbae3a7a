//! What ranks that share a pass over the text must have alike, besides their settings: they compare it when they meet, before time is spent.

use serde_json::{Value, json};

use super::PassFile;
use super::run::Run;
use crate::files::Digest;
use crate::imaging::scan_file::name_of;
use crate::{Error, Result};

impl Run<'_> {
    /// The SHA-256 of text, model and the files of passes before, and the kind of device: sums of two kinds differ in their last digits.
    ///
    /// ```
    /// use tinyonn::phases::Run;
    ///
    /// /// Whether two ranks may share a pass.
    /// fn may_share(one: &Run<'_>, other: &Run<'_>) -> tinyonn::Result<bool> {
    ///     Ok(one.alike()? == other.alike()?)
    /// }
    /// ```
    ///
    /// # Errors
    /// Files that cannot be read, or are none of a pass.
    pub fn alike(&self) -> Result<Value> {
        let scan = self.passed.scan.map(|path| {
            let mut digest = Digest::new();
            digest.bytes(&std::fs::read(path).map_err(|e| Error::io(path, e))?);
            Ok::<_, Error>(digest.hex())
        });
        let rows = self.passed.rows.iter().map(|path| Ok(PassFile::claims(path)?.1)).collect::<Result<Vec<_>>>()?;
        Ok(json!({
            "text": self.text.sha256,
            "model": self.model_sha256()?,
            "device": name_of(&self.device)?,
            "passed": { "scan": scan.transpose()?, "rows": rows },
        }))
    }
}
