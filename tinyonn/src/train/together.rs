//! From ranks that were started to ranks that train together: they meet, are watched, and NCCL is started between their GPUs.

use std::sync::Arc;
use std::time::Duration;

use candle_core::Device;
use serde_json::json;

use crate::ranks::{Collective, Greeting, Meeting, Watched, meet};
use crate::{Error, Result};

/// Called when a rank is lost or hangs; it must end the process.
type Lost = Arc<dyn Fn(Error) + Send + Sync>;

/// Ranks that compute together, for as long as both are kept.
pub struct Together {
    /// What moves tensors between them.
    pub ranks: Arc<dyn Collective>,
    /// Notices when another rank is lost, for as long as this is kept.
    pub watched: Watched,
}

/// Meets the other ranks, all on GPUs, and starts NCCL between them. `lost` is as of [`Connected::watch`](crate::ranks::Connected::watch), and told as well of a
/// collective that takes longer than `timeout`; what `meeting` gives the ranks is NCCL's.
///
/// ```
/// use std::time::Duration;
/// use candle_core::Device;
/// use tinyonn::Result;
/// use tinyonn::ranks::{Greeting, Meeting, end_now};
/// use tinyonn::train::{Together, begin};
///
/// /// Ranks that train together; whichever is lost ends this one.
/// fn start(meeting: &Meeting<'_>, greeting: Greeting, card: &Device) -> Result<Together> {
///     begin(meeting, greeting, card, Duration::from_secs(600), |lost| end_now(&lost, 1))
/// }
/// ```
///
/// # Errors
/// A device that is no GPU; no libnccl; two ranks on one card; as of [`meet`].
pub fn begin(
    meeting: &Meeting<'_>,
    greeting: Greeting,
    device: &Device,
    timeout: Duration,
    lost: impl Fn(Error) + Send + Sync + 'static,
) -> Result<Together> {
    let lost: Lost = Arc::new(lost);
    let (place, card) = (place_of(device)?, kind_of(device)?);
    let greeting = Greeting { own: Some(place), notes: json!({ "card": card, "more": greeting.notes }), ..greeting };
    let connected = meet(&Meeting { gift: &identifier, ..*meeting }, &greeting)?;
    let gift = connected.gift().to_vec();
    // Watched before NCCL starts, which would wait for a rank that is lost.
    let told = lost.clone();
    let watched = connected.watch(move |error| told(error))?;
    let ranks = between(meeting, device, &gift, (timeout, lost))?;
    Ok(Together { ranks, watched })
}

#[cfg(feature = "cuda")]
use on_gpus::{between, identifier, kind_of, place_of};
#[cfg(not(feature = "cuda"))]
use without::{between, identifier, kind_of, place_of};

#[cfg(feature = "cuda")]
mod on_gpus {
    use std::sync::Arc;
    use std::time::Duration;

    use candle_core::Device;

    use super::Lost;
    use crate::Result;
    use crate::ops::nccl::{Gpus, UniqueId, card_name, card_place};
    use crate::ranks::{Collective, Meeting};

    pub(super) fn identifier() -> Result<Vec<u8>> {
        Ok(UniqueId::random()?.bytes().to_vec())
    }

    pub(super) fn place_of(device: &Device) -> Result<String> {
        card_place(device)
    }

    pub(super) fn kind_of(device: &Device) -> Result<String> {
        card_name(device)
    }

    pub(super) fn between(
        meeting: &Meeting<'_>,
        device: &Device,
        gift: &[u8],
        hangs: (Duration, Lost),
    ) -> Result<Arc<dyn Collective>> {
        let place = (meeting.launched.rank, meeting.launched.ranks);
        let gpus: Arc<dyn Collective> = Gpus::new(device, place, UniqueId::of(gift)?, meeting.limit, hangs)?;
        Ok(gpus)
    }
}

#[cfg(not(feature = "cuda"))]
mod without {
    use std::sync::Arc;
    use std::time::Duration;

    use candle_core::Device;

    use super::Lost;
    use crate::ranks::{Collective, Meeting};
    use crate::{Error, Result};

    fn none<T>() -> Result<T> {
        let problem = "several ranks compute on GPUs, and this program was built without";
        Err(Error::setting("--device", problem, "build with `--features cuda`, or start one process"))
    }

    pub(super) fn identifier() -> Result<Vec<u8>> {
        none()
    }

    pub(super) fn place_of(_: &Device) -> Result<String> {
        none()
    }

    pub(super) fn kind_of(_: &Device) -> Result<String> {
        none()
    }

    pub(super) fn between(_: &Meeting<'_>, _: &Device, _: &[u8], _: (Duration, Lost)) -> Result<Arc<dyn Collective>> {
        none()
    }
}
