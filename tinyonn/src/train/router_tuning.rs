//! What a router has beside a closed form: its scale calibrated, its parameters refined, both by the cross-entropy between the router's
//! probabilities and the label's choices in equal shares.
//!
//! Calibration is a search along the s of Gaussian routers alone, on validation text: the cross-entropy is convex in s (DESIGN §2). Refinement moves all
//! parameters by AdamW on training text and keeps those of the least loss on validation text, the first ones' included; it stops early
//! where validation text gains nothing any more.

use candle_core::Tensor;
use rand::Rng as _;

use super::{Gradient, Memory, OptimizerConfig, RouterFitConfig, Rule, Said, Slot, TrainState, Verdict, Watch, train};
use crate::checkpoint::{ParamStore, Role};
use crate::decoder::Arch;
use crate::moe::{MoeLayer, Variant};
use crate::ops::share_loss::{self, Shares};
use crate::ops::{elementwise, host};
use crate::{Error, Result, random};

/// Steps between looks at the validation text.
const LOOK: u64 = 20;
/// Looks without a gain after which refinement stops.
const PATIENCE: u64 = 5;

/// Labelled router inputs of one layer, for one run of routers.
pub(super) struct Rows {
    /// `[n, d]`.
    pub(super) x: Tensor,
    /// The class of each row, `[n]` u32.
    pub(super) classes: Tensor,
    /// The shares that the classes' labels ask for, `[classes, parents · choices]`.
    pub(super) shares: Tensor,
}

impl Rows {
    /// The cross-entropy between labelled shares and the probabilities that ℓ `[n, parents, choices]` gives.
    fn cross_entropy(&self, logits: &Tensor) -> Result<f64> {
        number(&share_loss::forward(logits, self.asked())?)
    }

    fn asked(&self) -> Shares<'_> {
        Shares { shares_kn: &self.shares, classes_t: &self.classes }
    }

    fn select(&self, rows: &[u32]) -> Result<Self> {
        let rows = Tensor::new(rows, self.x.device())?;
        let (x, classes) = (self.x.index_select(&rows, 0)?, self.classes.index_select(&rows, 0)?);
        Ok(Self { x, classes, shares: self.shares.clone() })
    }
}

/// A model that routers are fitted in: its parameters, its dense shape, its declaration.
///
/// ```
/// use tinyonn::train::Model;
/// let weights = |(store, _, _): Model<'_>| store.parameters();
/// ```
pub type Model<'a> = (&'a ParamStore, &'a Arch, &'static Variant);

/// Equal routers of one layer and level, and what tunes them.
pub(super) struct Tuning<'a> {
    pub(super) model: Model<'a>,
    /// Where the routers' parameters are.
    pub(super) path: &'a str,
    /// Layer, level and run.
    pub(super) place: (usize, usize, usize),
    pub(super) train: Rows,
    pub(super) held: Rows,
}

impl Tuning<'_> {
    /// The layer that holds the routers; their parameters learn or not.
    fn layer(&self, learn: bool) -> Result<MoeLayer> {
        let (store, cfg, variant) = self.model;
        let prefix = format!("{}.", self.path);
        // Routers are f32 whatever the rest of the layer is, which is lent as it is held.
        let vb = store.builder(store.passes(), move |name| learn && name.starts_with(&prefix));
        let layer = self.place.0;
        (variant.build)(cfg, layer, vb.pp(format!("model.layers.{layer}.mlp")))
    }

    fn logits(&self, layer: &MoeLayer, rows: &Rows) -> Result<Tensor> {
        let (_, level, run) = self.place;
        layer.routers()[level][run].logits(&rows.x)
    }

    fn loss(&self, layer: &MoeLayer, rows: &Rows) -> Result<f64> {
        rows.cross_entropy(&self.logits(layer, rows)?)
    }

    /// The scale of Gaussian routers of least loss on validation text, by golden section over ln s. ℓ is linear in s, so the
    /// densities are computed once.
    pub(super) fn calibrate(&self) -> Result<()> {
        const SHRINK: f64 = 0.618_033_988_749_895;
        const ROUNDS: usize = 16;
        let store = self.model.0;
        let name = format!("{}.scale", self.path);
        let missing = || Error::tensor(&name, "is missing", "upcycle the dense model again");
        let start = number(store.get(&name).ok_or_else(missing)?)?;
        // Gradients may have turned the density over, which no scale of the search can better.
        if start <= 0.0 {
            return Ok(());
        }
        let set = |s: f64| store.set(&name, &Tensor::new(s as f32, store.device())?);
        let layer = self.layer(false)?;
        let at_start = self.logits(&layer, &self.held)?;
        set(0.0)?;
        let prior = self.logits(&layer, &self.held)?;
        let slope = (&at_start - &prior)?;
        let at = |ln_s: f64| self.held.cross_entropy(&elementwise::add_scaled(&prior, &slope, ln_s.exp() / start)?);
        let before = at(start.ln())?;
        if !before.is_finite() {
            let problem = format!("its loss on validation text is {before}");
            let remedy = "check the model's tensors for values that are not finite";
            return Err(Error::tensor(self.path, problem, remedy));
        }
        let (mut low, mut high) = (start.ln() - 5.0, start.ln() + 2.0);
        let (mut a, mut b) = (high - SHRINK * (high - low), low + SHRINK * (high - low));
        let (mut at_a, mut at_b) = (at(a)?, at(b)?);
        for _ in 0..ROUNDS {
            if at_a <= at_b {
                (high, b, at_b) = (b, a, at_a);
                a = high - SHRINK * (high - low);
                at_a = at(a)?;
            } else {
                (low, a, at_a) = (a, b, at_b);
                b = low + SHRINK * (high - low);
                at_b = at(b)?;
            }
        }
        let best = f64::midpoint(low, high);
        set(if at(best)? < before { best.exp() } else { start })
    }

    /// All parameters, by gradient: at most `steps` of them, fewer where [`PATIENCE`] looks gain nothing. Deterministic in `seed`.
    pub(super) fn refine(&self, config: &RouterFitConfig, seed: u64) -> Result<()> {
        let prefix = format!("{}.", self.path);
        let layer = self.layer(true)?;
        let (index, level, run) = self.place;
        let router = &layer.routers()[level][run];
        let vars = self.model.0.trainable(|name| name.starts_with(&prefix));
        let slots = vars.into_iter().map(|(name, var)| Slot::new(name, Role::Router, index, var)).collect();
        let mut state = TrainState::new(slots, &Memory::DEFAULT)?;
        let optimizer = OptimizerConfig { rate: config.rate, decay: 0.0, ..OptimizerConfig::DEFAULT };
        let mut rng = random::stream(seed, &format!("router/{}", self.path));
        state.keep_if_best(self.loss(&layer, &self.held)?)?;
        let count = self.train.classes.elem_count() as u32;
        let mut descend = |state: &mut TrainState| {
            let rows: Vec<u32> = (0..config.batch).map(|_| rng.random_range(0..count)).collect();
            let rows = self.train.select(&rows)?;
            let logits = router.logits(&rows.x)?;
            let loss = share_loss::forward(&logits, rows.asked())?;
            router.backward(&rows.x, &share_loss::backward(&logits, rows.asked())?, false, &mut state.grads)?;
            Ok(Some(Gradient::of(loss)))
        };
        let rule = Rule {
            stage: (self.path, "router"),
            steps: config.steps,
            tokens: None,
            optimizer: &optimizer,
            rate: &|_| config.rate,
            batch: &|_| None,
            adjust: None,
        };
        let mut watch = Patience { tuning: self, layer: &layer, looks: 0 };
        train(&mut state, &rule, &mut descend, None, &mut watch)?;
        state.return_to_best()
    }
}

/// Looks at the validation text until they gain nothing any more.
struct Patience<'a> {
    tuning: &'a Tuning<'a>,
    layer: &'a MoeLayer,
    /// Looks without a gain.
    looks: u64,
}

impl Watch for Patience<'_> {
    fn hear(&mut self, _: &Said) -> Result<()> {
        Ok(())
    }

    fn look_every(&self) -> u64 {
        LOOK
    }

    fn look(&mut self, state: &mut TrainState) -> Result<Verdict> {
        let gained = state.keep_if_best(self.tuning.loss(self.layer, &self.tuning.held)?)?;
        self.looks = if gained { 0 } else { self.looks + 1 };
        Ok(if self.looks == PATIENCE { Verdict::Stop } else { Verdict::GoOn })
    }
}

/// The value of a tensor of one.
fn number(value: &Tensor) -> Result<f64> {
    Ok(host::read(&[value])?.concat().first().copied().unwrap_or(f64::NAN))
}
