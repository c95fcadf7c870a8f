//! Memory whose first element lies at a boundary of 64 bytes: a vector that straddles two lines of the cache is loaded twice.

use std::ops::Deref;

/// Bytes of a cache line, and of the widest vectors.
const LINE: usize = 64;

/// Floats in a row, the first at the boundary of a cache line. Kept and used again, it is not cleared anew.
#[derive(Debug, Default)]
pub struct Buffer {
    data: Vec<f32>,
    start: usize,
    len: usize,
}

impl Buffer {
    /// `len` floats, whatever they were.
    pub fn of(&mut self, len: usize) -> &mut [f32] {
        let room = len + LINE / size_of::<f32>();
        if self.data.len() < room {
            self.data.resize(room, 0.0);
        }
        self.start = self.data.as_ptr().align_offset(LINE).min(room - len);
        self.len = len;
        &mut self.data[self.start..][..len]
    }

    /// `len` zeros.
    pub fn zeroed(&mut self, len: usize) -> &mut [f32] {
        let data = self.of(len);
        data.fill(0.0);
        data
    }
}

impl Deref for Buffer {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.data[self.start..][..self.len]
    }
}

impl Clone for Buffer {
    fn clone(&self) -> Self {
        let mut copy = Self::default();
        copy.of(self.len).copy_from_slice(self);
        copy
    }
}
