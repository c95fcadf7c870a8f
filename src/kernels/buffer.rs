//! Memory whose first element lies at a boundary of 64 bytes: a vector that straddles two lines of the cache is loaded twice.

use std::ops::Deref;
use std::sync::{Mutex, PoisonError};

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

/// Buffers that any thread takes for one operation and gives back. (Memory of a thread is of no use where the operation is shared
/// out: while the thread waits for the others it may take up another operation of the kind.)
#[derive(Debug, Default)]
pub struct Shelf(Mutex<Vec<Buffer>>);

impl Shelf {
    /// With nothing on it.
    pub const fn new() -> Self {
        Self(Mutex::new(Vec::new()))
    }

    /// Lends `len` numbers, whatever they were.
    pub fn lend<R>(&self, len: usize, f: impl FnOnce(&mut [f32]) -> R) -> R {
        let buffers = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut buffer = buffers().pop().unwrap_or_default();
        let result = f(buffer.of(len));
        buffers().push(buffer);
        result
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shelf_lends_nothing_twice_at_a_time() {
        let shelf = Shelf::new();
        shelf.lend(3, |outer| {
            outer.fill(1.0);
            shelf.lend(3, |inner| inner.fill(2.0));
            assert_eq!(outer, [1.0; 3]);
        });
        assert_eq!(shelf.0.lock().unwrap().len(), 2);
        shelf.lend(3, |_| assert_eq!(shelf.0.lock().unwrap().len(), 1)); // one of the two
    }
}
