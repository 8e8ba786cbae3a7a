//! A scan on disk whose digest is right: its record, the header of its tensors and their bytes.

use crate::memory::{MB, bounded};
use crate::parts::parts;
use crate::{place, safetensors_bytes};
use serde_json::{Map, Value, json};
use tinyonn::checkpoint::MappedSafetensors;
use tinyonn::files::Digest;
use tinyonn::imaging::StoredScan;

const KEY: &str = "tinyonn.scan";

/// The file of a record under `key`, with the digest that its reader forms.
pub(super) fn sealed(key: &str, record: &Value, header: &Map<String, Value>, data: &[u8]) -> Option<Vec<u8>> {
    let bare = safetensors_bytes::framed(Value::Object(header.clone()).to_string().as_bytes(), data);
    let bare = MappedSafetensors::open(place::write("bare.safetensors", &bare)).ok()?;
    let mut digest = Digest::new();
    digest.text(&record.to_string());
    for name in bare.names() {
        digest.text(name);
        digest.bytes(bare.bytes(name).ok()?);
    }
    let mut header = header.clone();
    let metadata = json!({ "sha256": digest.hex(), "record": record }).to_string();
    header.insert("__metadata__".into(), json!({ key: metadata }));
    Some(safetensors_bytes::framed(Value::Object(header).to_string().as_bytes(), data))
}

/// See above.
pub fn run(input: &[u8]) {
    let [record, header, data] = parts(input);
    let (Ok(record), Ok(header)) = (serde_json::from_slice(record), serde_json::from_slice(header)) else { return };
    let Some(file) = sealed(KEY, &record, &header, data) else { return };
    let path = place::write("scan.safetensors", &file);
    bounded(input.len(), (MB, 1024), || {
        let Ok(mut scan) = StoredScan::load(&path) else { return };
        let _ = scan.missing();
        let again = place::folder().join("again.safetensors");
        if scan.save(&again).is_ok() {
            assert!(StoredScan::load(&again).is_ok());
        }
        let other = scan.clone();
        let _ = scan.merge(&other);
    });
}
