//! Weights that were quantised, known by their tensors: the configuration need not say so.

use safetensors::Dtype;

use super::folder::ModelFolder;
use crate::{Error, Result};

/// Endings of tensors that only quantised weights have, and whose they are.
const KINDS: [(&str, &str); 9] = [
    (".qweight", "GPTQ or AWQ"),
    (".qzeros", "GPTQ or AWQ"),
    (".weight_packed", "compressed-tensors"),
    (".weight_scale", "fp8 or int8 with scales"),
    (".weight_scale_inv", "fp8 with scales"),
    (".input_scale", "fp8 with scales"),
    (".absmax", "bitsandbytes, 4 bits"),
    (".quant_map", "bitsandbytes, 4 bits"),
    (".SCB", "bitsandbytes, 8 bits"),
];

impl ModelFolder {
    /// Refuses a folder of quantised weights in one sentence, not by the names of all of them.
    pub(super) fn refuse_quantised(&self) -> Result<()> {
        let kind = |(name, dtype): (&str, Dtype)| {
            let by_name = KINDS.iter().find(|(ending, _)| name.ends_with(ending)).map(|(_, kind)| *kind);
            let of_weights = || match dtype {
                _ if !name.ends_with(".weight") => None,
                Dtype::F8_E4M3 | Dtype::F8_E5M2 => Some("fp8"),
                Dtype::I8 | Dtype::U8 => Some("8 bits or fewer"),
                _ => None,
            };
            by_name.or_else(of_weights).map(|kind| (name.to_owned(), kind))
        };
        match self.tensors().find_map(|(name, info)| kind((name, info.dtype))) {
            None => Ok(()),
            Some((name, kind)) => {
                let problem = format!("is quantised ({kind}: it holds `{name}`)");
                Err(Error::file(self.dir(), problem, "give the original weights in bf16, f16 or f32"))
            }
        }
    }
}
