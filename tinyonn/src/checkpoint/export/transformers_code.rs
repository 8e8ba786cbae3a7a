//! The folder of a Tiny-ONN as it is, and beside it what transformers computes it by: two Python files, named in `auto_map`.
//!
//! `AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)` runs them; no program of ours does.

use serde_json::json;

use super::contents::Contents;
use super::mixture::refuse_activation;
use super::{name_type, write_folder};
use crate::checkpoint::not_finite::NotFinite;
use crate::checkpoint::tinyonn_folder::{AUTO_MAP, BESIDE, TinyOnnConfig, TinyOnnFolder};
use crate::files::{self, StagedFolder};
use crate::model::ActiveMode;
use crate::moe::{ExpertsAre, MoeSpec, Pfag, RoutePer, RouterKind};
use crate::{Error, Result};

/// Their names and texts.
const FILES: [(&str, &str); 2] = [
    ("configuration_tinyonn.py", include_str!("configuration_tinyonn.py")),
    ("modeling_tinyonn.py", include_str!("modeling_tinyonn.py")),
];

pub(super) fn write(
    source: &TinyOnnFolder,
    contents: &Contents,
    staged: &StagedFolder,
    active: ActiveMode,
) -> Result<NotFinite> {
    refuse_uncovered(&source.variant().spec)?;
    refuse_activation(source)?;
    let own = TinyOnnConfig { active, ..source.config().clone() };
    let mut config = own.write_to(source.folder().config());
    config[AUTO_MAP] = json!({
        "AutoConfig": "configuration_tinyonn.TinyOnnConfig",
        "AutoModelForCausalLM": "modeling_tinyonn.TinyOnnForCausalLM",
    });
    if !contents.beside.is_empty() {
        config[BESIDE] = json!(contents.beside);
    }
    name_type(source, &mut config);
    let not_finite = write_folder(source.folder(), staged, &config, |_| true, &[])?;
    for (name, text) in FILES {
        files::write(staged.path().join(name), text)?;
    }
    Ok(not_finite)
}

/// Refuses what the Python files do not compute, by name.
fn refuse_uncovered(spec: &MoeSpec) -> Result<()> {
    let custom = spec.levels.iter().flat_map(|level| level.routers.iter()).find_map(|run| match &run.kind {
        RouterKind::Custom(path) => Some(format!("routers of a type of yours (`{path}`)")),
        _ => None,
    });
    let what = match (spec.experts_are, spec.route_per, spec.pfag) {
        _ if custom.is_some() => custom,
        (ExpertsAre::Replicate, ..) => Some("replicas (`experts_are = replicate`)".into()),
        (_, RoutePer::Segment { .. }, _) => Some("decisions by segment (`route_per = segment`)".into()),
        (_, RoutePer::Sequence { .. }, _) => Some("decisions by sequence (`route_per = sequence`)".into()),
        (_, RoutePer::Task, _) => Some("decisions by task (`route_per = task`)".into()),
        (.., Pfag::Surprisal) => Some("a number of experts by surprisal (`pfag = surprisal`)".into()),
        _ => None,
    };
    let Some(what) = what else { return Ok(()) };
    let problem = format!("the export for transformers does not compute {what}");
    Err(Error::variant(spec.name.clone(), problem, "export it as `dense` (--active all), or keep the checkpoint"))
}
