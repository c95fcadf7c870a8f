//! The worker of an element between READY and NULL, and what its frames are asked: the lens.

use std::path::Path;
use std::sync::Arc;

use diad::bundle::Card;
use diad::detector::{Ask, Choice, Limits, Mask};
use diad::device::{Device, Target};
use diad::frame::Preprocess;
use diad::worker::{self, Options, Shared, Worker};
use gst_video::VideoInfo;

use super::settings::Settings;
use crate::log;

/// A worker that this element may share with others.
pub(super) struct Session {
    pub(super) shared: Arc<Shared>,
    pub(super) target: Target,
}

/// Everything that frames of one size are looked at with.
pub(super) struct Lens {
    pub(super) worker: Arc<Worker>,
    pub(super) preprocess: Preprocess,
    pub(super) ask: Arc<Ask>,
    /// Of which settings, frames and model it was made.
    made_of: (u64, VideoInfo, String),
}

/// A worker for `model`.
fn start(
    model: &str,
    target: Target,
    settings: &Settings,
) -> diad::error::Result<(Card, impl FnOnce() -> diad::error::Result<Worker>)> {
    let (card, open) = worker::open(Path::new(model), target)?;
    check(&card, settings)?;
    let batch_size = if settings.batch_size == 0 { target.batch_size() } else { settings.batch_size as usize };
    let options = Options { name: "diad-worker".into(), batch_size, batch_timeout: settings.batch_timeout() };
    let begin = move || {
        let open = Box::new(move || {
            log::forward_this_thread();
            open()
        });
        Worker::start(open, options)
    };
    Ok((card, begin))
}

/// Whether the model can do what the properties ask.
fn check(card: &Card, settings: &Settings) -> diad::error::Result<()> {
    Choice::named(&settings.class, card)?;
    Limits::with(card, &settings.overrides()).map(drop)
}

impl Session {
    /// The worker for the model that the settings name, shared with whoever uses the same.
    pub(super) fn open(settings: &Settings) -> Result<Self, String> {
        log::forwarding(|| Self::join(settings))
    }

    fn join(settings: &Settings) -> Result<Self, String> {
        let model = settings.model.as_deref().ok_or("model is not set: expected the name of a model file (.diad)")?;
        let find = || settings.device.parse::<Device>()?.find(settings.precision.parse()?);
        let target = find().map_err(|error| format!("{error}"))?;
        let wrong = |error: diad::error::Error| format!("model = {error}");
        let (card, begin) = start(model, target, settings).map_err(wrong)?;
        let digest = card.digest();
        let key = match &settings.instance {
            Some(id) => worker::instance_key(id),
            None => format!("model {digest} on {target}"),
        };
        let shared = Shared::join(&key, &digest, begin).map_err(wrong)?;
        Ok(Self { shared, target })
    }

    /// Whether the model can do what the properties ask.
    pub(super) fn check(&self, settings: &Settings) -> Result<(), String> {
        check(self.shared.worker().card(), settings).map_err(|error| error.to_string())
    }

    /// Loads another model and lets it take over from the old one, for all who share.
    pub(super) fn swap(&self, settings: &Settings) -> Result<(), String> {
        let model = settings.model.as_deref().ok_or("model is not set")?;
        let wrong = |error: diad::error::Error| format!("model = {error}");
        let (_, begin) = start(model, self.target, settings).map_err(wrong)?;
        drop(self.shared.swap(Arc::new(begin().map_err(wrong)?)));
        Ok(())
    }

    /// What frames like `info` are looked at with: `old` if it still holds.
    pub(super) fn lens(
        &self,
        old: Option<&Arc<Lens>>,
        settings: &Settings,
        version: u64,
        info: &VideoInfo,
    ) -> Result<Arc<Lens>, String> {
        let worker = self.shared.worker();
        if let Some(old) = old
            && old.made_of.0 == version
            && old.made_of.2 == worker.digest()
            && old.made_of.1 == *info
            && Arc::ptr_eq(&old.worker, &worker)
        {
            return Ok(old.clone());
        }
        settings.check()?;
        let card = worker.card();
        let input = &card.config.input;
        let roi = settings.roi()?.map(|roi| roi.on(info.width(), info.height())).transpose()?.or(input.roi);
        let preprocess = Preprocess { size: input.size, fit: input.fit, roi };
        let mask = settings.mask.as_deref().map(|path| mask(path, info, &preprocess, card)).transpose()?;
        let ask = Ask {
            choice: Choice::named(&settings.class, card).map_err(|e| e.to_string())?,
            ddim_steps: settings.ddim_steps(),
            limits: Limits::with(card, &settings.overrides()).map_err(|e| e.to_string())?,
            mask,
        };
        let made_of = (version, info.clone(), worker.digest().to_owned());
        Ok(Arc::new(Lens { worker, preprocess, ask: Arc::new(ask), made_of }))
    }
}

fn mask(path: &str, info: &VideoInfo, preprocess: &Preprocess, card: &Card) -> Result<Mask, String> {
    let image = diad::frame::read_frame(Path::new(path)).map_err(|error| format!("mask-location = {error}"))?;
    let (width, height) = (info.width() as usize, info.height() as usize);
    if (image.width(), image.height()) != (width, height) {
        return Err(format!(
            "mask-location = {path}: is {}x{} pixels, expected {width}x{height}, the size of the frames",
            image.width(),
            image.height()
        ));
    }
    Mask::new(&image, preprocess, card.config.features.grid).map_err(|error| format!("mask-location = {path}: {error}"))
}
