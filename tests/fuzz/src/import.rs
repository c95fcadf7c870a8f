//! Files of weights (`.pth` of both formats, wheel, safetensors): every tensor is read, or the file refused.

use std::path::Path;

use diad::error::Error;
use diad::model::import::read_all;

use super::{MIB, told, within};

const MEMORY: usize = 256 * MIB;

pub fn target(data: &[u8]) {
    within(MEMORY, || {
        if let Err(error) = read_all(data, Path::new("fuzz.pth")) {
            told(&error, "fuzz.pth");
            assert!(matches!(error, Error::Model { .. }), "{error:?}");
        }
    });
}
