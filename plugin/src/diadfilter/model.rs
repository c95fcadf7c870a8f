//! The model of an element, and what it looks at frames of one size with.
//!
//! A model belongs to its element. Elements that agree in everything share a worker, which none of them can notice; a change of
//! the model joins another worker and then replaces the handle here.

use std::path::Path;
use std::sync::Arc;

use diad::bundle::Card;
use diad::detector::{ClassChoice, Limits, Mask, Request};
use diad::device::DeviceSpec;
use diad::error::Result;
use diad::frame::Preparation;
use diad::worker::{self, Options, Shared, SharedKey, Worker};
use gst_video::VideoInfo;

use super::settings::Settings;
use crate::log;

/// A model at work.
pub(super) struct ModelHandle {
    shared: Arc<Shared>,
    pub(super) target: DeviceSpec,
    /// From frames to the model's inputs.
    preparation: Preparation,
    opened_with: Settings,
}

impl ModelHandle {
    /// The model that the settings name, on a worker that is shared with whoever asks for the same.
    ///
    /// # Errors
    /// When there is no such model or device, or the model cannot do what the properties ask; the message names the property.
    pub(super) fn open(settings: &Settings) -> Result<Self, String> {
        log::forwarding(|| {
            let model =
                settings.model.as_deref().ok_or("model is not set: expected the name of a model file (.diad)")?;
            let find = || settings.device.parse::<DeviceSpec>()?.find(settings.precision.parse()?);
            let target = find().map_err(|error| error.to_string())?;
            let (shared, target) = join(model, target, settings).map_err(|error| error.to_string())?;
            let preparation = diad::detector::preparation(Path::new(model)).map_err(|error| error.to_string())?;
            Ok(Self { shared, target, preparation, opened_with: settings.clone() })
        })
    }

    pub(super) fn worker(&self) -> &Worker {
        self.shared.worker()
    }

    /// Whether it runs as these settings ask.
    pub(super) fn runs_as(&self, settings: &Settings) -> bool {
        let of =
            |s: &Settings| (s.instance.clone(), s.device.clone(), s.precision.clone(), s.batch_size, s.batch_timeout());
        self.opened_with.model == settings.model && of(&self.opened_with) == of(settings)
    }

    /// Elements that use this worker.
    pub(super) fn users(&self) -> usize {
        Shared::users(&self.shared)
    }

    /// Whether the model can do what the properties ask.
    ///
    /// # Errors
    /// With the property that it cannot.
    pub(super) fn check(&self, settings: &Settings) -> Result<(), String> {
        settings.roi()?;
        check(self.worker().card(), settings).map_err(|error| error.to_string())
    }
}

fn join(model: &str, found: DeviceSpec, settings: &Settings) -> Result<(Arc<Shared>, DeviceSpec)> {
    let named = |error| match error {
        diad::error::Error::Usage(words) => diad::error::Error::Usage(words), // names its property itself
        other => diad::error::Error::Usage(format!("model = {other}")),
    };
    let (card, target, open) = worker::open(Path::new(model), found).map_err(named)?;
    check(&card, settings)?;
    let batch_size = if settings.batch_size == 0 { target.batch_size() } else { settings.batch_size as usize };
    let key = SharedKey {
        id: settings.instance.clone(),
        digest: card.digest(),
        device: target.to_string(),
        batch_size,
        batch_timeout: settings.batch_timeout(),
    };
    let options = Options { name: "diad-worker".into(), batch_size, batch_timeout: settings.batch_timeout() };
    let start = move || {
        let open = Box::new(move || {
            log::forward_this_thread();
            open()
        });
        Worker::start(open, options)
    };
    Shared::join(&key, start).map(|shared| (shared, target)).map_err(named)
}

fn check(card: &Card, settings: &Settings) -> Result<()> {
    ClassChoice::parse(&settings.class, card)?;
    Limits::with(card, &settings.overrides()).map(drop)
}

/// Everything that frames of one size are looked at with.
pub(super) struct FrameContext {
    pub(super) model: Arc<ModelHandle>,
    pub(super) preparation: Preparation,
    pub(super) request: Arc<Request>,
    settings: Arc<Settings>,
    info: VideoInfo,
}

impl FrameContext {
    /// Reads the mask from its file, where there is one.
    ///
    /// # Errors
    /// When the model or the frames do not allow what the properties ask; the message names the property.
    pub(super) fn new(model: Arc<ModelHandle>, settings: Arc<Settings>, info: &VideoInfo) -> Result<Self, String> {
        let card = model.worker().card();
        let input = &card.config.input;
        let roi = settings.roi()?.map(|roi| roi.on(info.width(), info.height())).transpose()?.or(input.roi);
        let masked = model.preparation.shapes().distinct().iter().any(|shape| shape.roi.is_some());
        if settings.mask.is_some() && masked {
            return Err("mask-location: this model looks at what its own mask (input.mask) leaves of the frame".into());
        }
        if roi != input.roi && masked {
            return Err("roi: this model looks at what its mask (input.mask) leaves of the frame".into());
        }
        if roi != input.roi && !model.preparation.templates().is_empty() {
            return Err("roi: this model finds its parts (input.align) in the region that it was trained with".into());
        }
        let preparation = match roi == input.roi {
            true => model.preparation.clone(),
            false => model.preparation.clone().with_roi(roi),
        };
        let masks = settings.mask.as_deref().map(|path| masks(path, info, &preparation)).transpose()?;
        let class = ClassChoice::parse(&settings.class, card).map_err(|e| e.to_string())?;
        warn_of_shape(&preparation, class.known(), info)?;
        let request = Request {
            class,
            ddim_steps: settings.ddim_steps(),
            limits: Some(Limits::with(card, &settings.overrides()).map_err(|e| e.to_string())?),
            masks,
        };
        Ok(Self { preparation, request: Arc::new(request), info: info.clone(), model, settings })
    }

    /// Whether frames like `info` are still looked at with this.
    pub(super) fn holds(&self, model: &Arc<ModelHandle>, settings: &Arc<Settings>, info: &VideoInfo) -> bool {
        let asks = |s: &Settings| (s.class.clone(), s.ddim_steps, s.overrides(), s.roi.clone(), s.mask.clone());
        Arc::ptr_eq(&self.model, model)
            && self.info == *info
            && (Arc::ptr_eq(&self.settings, settings) || asks(&self.settings) == asks(settings))
    }
}

/// Says in the log what frames are looked at as that are not like those of any class, and what it costs where several classes have
/// seen such frames.
fn warn_of_shape(preparation: &Preparation, class: Option<usize>, info: &VideoInfo) -> Result<(), String> {
    let (width, height) = (info.width() as usize, info.height() as usize);
    let tried = preparation.tried(class, width, height).map_err(|e| e.to_string())?;
    let inputs = || preparation.in_words(&tried);
    if !tried.fits {
        gst::warning!(log::CAT, "frames of {width}x{height} are unlike those of training: looked at as {}", inputs());
    } else if tried.shapes.len() > 1 {
        gst::info!(
            log::CAT,
            "each frame is tried in {} shapes, {}: class=NAME saves that",
            tried.shapes.len(),
            inputs()
        );
    }
    Ok(())
}

fn masks(path: &str, info: &VideoInfo, preparation: &Preparation) -> Result<Vec<Mask>, String> {
    let image = diad::frame::read_frame(Path::new(path)).map_err(|error| format!("mask-location = {error}"))?;
    let (width, height) = (info.width() as usize, info.height() as usize);
    if (image.width(), image.height()) != (width, height) {
        return Err(format!(
            "mask-location = {path}: is {}x{} pixels, expected {width}x{height}, the size of the frames",
            image.width(),
            image.height()
        ));
    }
    Mask::in_shapes(&image, preparation).map_err(|error| format!("mask-location = {path}: {error}"))
}
