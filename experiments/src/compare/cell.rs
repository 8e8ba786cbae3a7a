//! A cell: one way to make experts and routers of a dense model, and what it is called.

use serde::{Deserialize, Serialize};

use tinyonn::imaging::{Form, LabelBalance, LabelSource, Partition};
use tinyonn::moe::{Pfag, variant};
use tinyonn::ops::GradSite;
use tinyonn::phases::LabelUnit;
use tinyonn::train::RouterFitConfig;

/// One way to make experts and routers of a dense model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cell {
    /// The declared variant: hierarchy and kind of routers.
    pub variant: String,
    /// Choices that are taken of a router, by level; labels are as wide.
    pub top_k: Vec<usize>,
    /// How neurons are given to experts.
    pub partition: Partition,
    /// What labels are made by.
    pub labels: LabelSource,
    /// Whose path routers learn.
    pub label: LabelUnit,
    /// Whether labels share the experts out evenly.
    pub label_balance: LabelBalance,
    /// Labels by what sets a task apart.
    pub contrast: bool,
    /// How the score of the labels is integrated.
    pub form: Form,
    /// Which gradient's norm surprise is, in the image that labels are made from.
    pub grad_site: GradSite,
    /// Whether routers are fitted, and the loss measured through them; if not, only along the labels' paths.
    pub routed: bool,
    /// How routers are fitted.
    pub router: RouterFitConfig,
}

impl Default for Cell {
    fn default() -> Self {
        Self {
            variant: "TinyOnn".into(),
            top_k: vec![7, 7],
            partition: Partition::Activation,
            labels: LabelSource::ACTIVATION_PLUS_SURPRISE,
            label: LabelUnit::Task,
            label_balance: LabelBalance::None,
            contrast: false,
            form: Form::default(),
            grad_site: GradSite::Weight,
            routed: true,
            router: RouterFitConfig { steps: 60, ..RouterFitConfig::default() },
        }
    }
}

impl Cell {
    /// The experts that are active; none of an unknown variant.
    #[must_use]
    pub fn active_experts(&self) -> usize {
        variant(&self.variant).map_or(0, |variant| variant.spec.taking(&self.top_k, Pfag::Off).active_experts())
    }

    /// All experts; none of an unknown variant.
    #[must_use]
    pub fn experts(&self) -> usize {
        variant(&self.variant).map_or(0, |variant| variant.spec.experts())
    }

    /// The same cell, without what its source of labels does not read.
    #[must_use]
    pub fn canonical(&self) -> Self {
        let plain = Self { form: Form::default(), grad_site: GradSite::Weight, ..self.clone() };
        match self.labels {
            LabelSource::Random | LabelSource::Oracle => {
                Self { contrast: false, label_balance: LabelBalance::None, ..plain }
            }
            LabelSource::By(score, _) if !score.is_standardised() => plain,
            LabelSource::By(score, _) if !score.reads_surprise() => Self { form: self.form, ..plain },
            _ => self.clone(),
        }
    }

    /// How the image is formed that its labels are made from: `layer`, `global_by_expert_at_input`; the first by default.
    #[must_use]
    pub fn image(&self) -> String {
        let site =
            if self.grad_site == GradSite::Weight { String::new() } else { format!("_at_{}", self.grad_site.name()) };
        format!("{}{site}", self.form.name())
    }

    /// The image, and whether labels are contrasted.
    #[must_use]
    pub(super) fn image_in_words(&self) -> String {
        if self.contrast { format!("{}, contrasted", self.image()) } else { self.image() }
    }

    /// The source of the labels, and whether they are contrasted.
    #[cfg(feature = "pictures")]
    pub(super) fn labels_in_words(&self) -> String {
        format!("{}{}", self.labels, if self.contrast { ", contrasted" } else { "" })
    }

    /// A name that no other cell has, good for a file.
    #[must_use]
    pub fn id(&self) -> String {
        let k: Vec<String> = self.top_k.iter().map(ToString::to_string).collect();
        let contrast = if self.contrast { "_contrasted" } else { "" };
        let balance = if self.label_balance == LabelBalance::Sinkhorn { "_sinkhorn" } else { "" };
        let token = if self.label == LabelUnit::Token { "_by_token" } else { "" };
        let plain = self.form == Form::default() && self.grad_site == GradSite::Weight;
        let image = if plain { String::new() } else { format!("_{}", self.image()) };
        let labels = format!("{}{contrast}{balance}{token}{image}", self.labels);
        let head = format!("{}.k{}.{}.{labels}", self.variant, k.join("-"), self.partition);
        if self.routed { format!("{head}.{}", self.router.id()) } else { head }
    }
}
