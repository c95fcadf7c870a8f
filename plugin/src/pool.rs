//! Whether upstream may overwrite a frame that we still hold.

/// A buffer of a pool comes back to its owner when the last holder lets go; one without may be wrapped around memory that
/// its owner writes again whenever it likes (aravissrc does).
#[allow(unsafe_code, reason = "the bindings have no accessor for GstBuffer::pool; a valid buffer's field is read")]
pub(crate) fn is_pooled(buffer: &gst::BufferRef) -> bool {
    // SAFETY: a `&BufferRef` points to a live GstBuffer; the field is set before a buffer leaves its pool.
    unsafe { !(*buffer.as_ptr()).pool.is_null() }
}
