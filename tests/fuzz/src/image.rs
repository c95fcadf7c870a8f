//! Images: any bytes are a frame within the limits, or refused.

use std::path::Path;
use std::sync::Once;

use diad::error::Error;
use diad::frame::read::{MAX_SIDE, decode_frame};

use super::{MIB, told, within};

/// Three times the largest decoded image: while it is turned into RGB, an image is there in both forms.
const MEMORY: usize = 3 * 512 * MIB;

pub fn target(data: &[u8]) {
    quiet();
    within(MEMORY, || match decode_frame(data, Path::new("fuzz.img")) {
        Ok(frame) => {
            let (width, height) = (frame.width(), frame.height());
            assert!(width.max(height) <= MAX_SIDE as usize && frame.rgb().len() == width * height * 3);
        }
        Err(error) => {
            told(&error, "fuzz.img");
            assert!(matches!(error, Error::Image { .. }), "{error:?}");
        }
    });
}

/// The reader takes a decoder's panic for a damaged file; here, too, that is all right. Each place is told once.
fn quiet() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let seen = std::sync::Mutex::new(std::collections::BTreeSet::new());
        std::panic::set_hook(Box::new(move |panic| {
            let place = panic.location().map(ToString::to_string).unwrap_or_default();
            if seen.lock().is_ok_and(|mut seen| seen.insert(place)) {
                eprintln!("{panic}");
            }
        }));
    });
}
