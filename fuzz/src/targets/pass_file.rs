//! What a pass has made on disk, whose digest is right: its record, the header of its tensors and their bytes.

use super::scan_file::sealed;
use crate::memory::{MB, bounded};
use crate::parts::parts;
use crate::place;
use tinyonn::phases::PassFile;

const KEY: &str = "tinyonn.pass";

/// See above.
pub fn run(input: &[u8]) {
    let [record, header, data] = parts(input);
    let (Ok(record), Ok(header)) = (serde_json::from_slice(record), serde_json::from_slice(header)) else { return };
    let Some(file) = sealed(KEY, &record, &header, data) else { return };
    let path = place::write("pass.safetensors", &file);
    bounded(input.len(), (MB, 1024), || {
        let _ = PassFile::pass_of(&path);
        let Ok(made) = PassFile::load(&path) else { return };
        let _ = (made.missing(), made.rows());
        let again = place::folder().join("again.safetensors");
        if made.save(&again).is_ok() {
            assert!(PassFile::load(&again).is_ok());
        }
        let _ = PassFile::sum(vec![(path.clone(), made.clone()), (again, made)], true);
    });
}
