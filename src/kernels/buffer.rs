//! Memory whose first element lies at a boundary of 64 bytes: a vector that straddles two lines of the cache is loaded twice.

use std::ops::Deref;

/// Bytes of a cache line, and of the widest vectors.
const LINE: usize = 64;

/// Numbers in a row, the first at the boundary of a cache line. Kept and used again, it is not cleared anew.
#[derive(Debug, Default)]
pub struct Buffer<T = f32> {
    data: Vec<T>,
    start: usize,
    len: usize,
}

impl<T: Copy + Default> Buffer<T> {
    /// `len` numbers, whatever they were.
    pub fn of(&mut self, len: usize) -> &mut [T] {
        let room = len + LINE / size_of::<T>();
        if self.data.len() < room {
            self.data.resize(room, T::default());
        }
        self.start = self.data.as_ptr().align_offset(LINE).min(room - len);
        self.len = len;
        &mut self.data[self.start..][..len]
    }

    /// `len` zeros.
    pub fn zeroed(&mut self, len: usize) -> &mut [T] {
        let data = self.of(len);
        data.fill(T::default());
        data
    }
}

impl<T> Deref for Buffer<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.data[self.start..][..self.len]
    }
}

impl<T: Copy + Default> Clone for Buffer<T> {
    fn clone(&self) -> Self {
        let mut copy = Self::default();
        copy.of(self.len).copy_from_slice(self);
        copy
    }
}
