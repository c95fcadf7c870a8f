//! Raw video planes that are painted in place: their layouts, their colours and the one way to put a solid rectangle
//! on them. Solid shapes are measured in blocks of 2x2 pixels, so that in a chroma-subsampled format each chroma
//! sample is covered wholly or not at all, and every format shows the same picture.
//! Knows nothing of what the shapes mean.

/// How a frame lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// One plane of interleaved colours.
    Packed {
        /// Bytes of a pixel, 3 or 4.
        bytes: usize,
        /// Byte offsets of red, green and blue within a pixel.
        rgb: [usize; 3],
        /// Byte offset of alpha, where the fourth byte is alpha and not padding.
        alpha: Option<usize>,
    },
    /// One plane of luma.
    Gray,
    /// Planes Y, U and V; the latter two at half the width and height, rounded up.
    I420,
    /// Planes Y and interleaved UV; the latter at half the width and height, rounded up.
    Nv12,
}

/// One plane of a frame.
pub(crate) struct Plane<'a> {
    /// The bytes, from the first row's first pixel on.
    pub(crate) data: &'a mut [u8],
    /// Bytes from one row's start to the next row's.
    pub(crate) stride: usize,
}

/// The rule by which an RGB colour becomes luma and chroma.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Yuv {
    kr: f32,
    kb: f32,
    full_range: bool,
}

impl Yuv {
    /// The matrix of BT.601 at full range; also what GRAY8 is drawn with.
    pub(crate) const BT601_FULL: Self = Self::new(0.299, 0.114, true);

    /// A matrix given by its weights of red and blue.
    pub(crate) const fn new(kr: f32, kb: f32, full_range: bool) -> Self {
        Self { kr, kb, full_range }
    }

    /// Luma and the two chroma values of a colour.
    pub(crate) fn convert(&self, rgb: [u8; 3]) -> [u8; 3] {
        let [r, g, b] = rgb.map(f32::from);
        let luma = self.kr * r + (1.0 - self.kr - self.kb) * g + self.kb * b;
        let (base, luma_scale, chroma_scale) =
            if self.full_range { (0.0, 1.0, 1.0) } else { (16.0, 219.0 / 255.0, 224.0 / 255.0) };
        let chroma = |c: f32, k: f32| 128.0 + (c - luma) / (2.0 - 2.0 * k) * chroma_scale;
        // The cast saturates, which is the clamp that full-range chroma needs.
        [base + luma * luma_scale, chroma(b, self.kb), chroma(r, self.kr)].map(|v| v.round() as u8)
    }
}

/// What one byte of a sample stands for.
#[derive(Clone, Copy)]
enum Channel {
    /// Red, green or blue.
    Rgb(usize),
    /// Luma, U or V.
    Yuv(usize),
    Alpha,
    Padding,
}

/// A colour at some opacity, made ready for the `N` bytes of a sheet's samples; see [`blend`].
#[derive(Clone, Copy)]
pub(super) struct Dye<const N: usize> {
    pub(super) keep: [u16; N],
    pub(super) add: [u16; N],
}

/// Lays a colour over a byte: `(byte * keep + add) / 255`, where `add` has the half for rounding in it. At opacity 0
/// that is the byte itself.
#[inline(always)]
pub(super) fn blend(byte: u8, keep: u16, add: u16) -> u8 {
    // Exactly the rounded division by 255, and never above 16 bits.
    let sum = u16::from(byte) * keep + add;
    ((sum + (sum >> 8)) >> 8) as u8
}

/// A plane with the meaning of its bytes.
pub(super) struct Sheet<'a> {
    data: &'a mut [u8],
    stride: usize,
    width: usize,
    height: usize,
    channels: [Channel; 4],
    step: usize,
    halved: bool,
    yuv: Yuv,
}

impl Sheet<'_> {
    /// Bytes of a sample, 1 to 4.
    pub(super) fn step(&self) -> usize {
        self.step
    }

    /// Samples along the edge of a block: 1 or 2.
    pub(super) fn scale(&self) -> usize {
        if self.halved { 1 } else { 2 }
    }

    /// A colour at an opacity (255: opaque) in the bytes of this sheet.
    pub(super) fn dye<const N: usize>(&self, rgb: [u8; 3], opacity: u8) -> Dye<N> {
        let yuv = self.yuv.convert(rgb);
        let mut dye = Dye { keep: [255; N], add: [128; N] };
        for ((keep, add), channel) in dye.keep.iter_mut().zip(&mut dye.add).zip(self.channels) {
            let value = match channel {
                Channel::Rgb(index) => rgb[index],
                Channel::Yuv(index) => yuv[index],
                Channel::Alpha => 255,
                Channel::Padding => continue,
            };
            *keep -= u16::from(opacity);
            *add += u16::from(value) * u16::from(opacity);
        }
        dye
    }

    /// Samples `x0` to before `x1` of each of the rows `y0` to before `y1`.
    pub(super) fn rows(
        &mut self,
        (x0, x1): (usize, usize),
        (y0, y1): (usize, usize),
    ) -> impl Iterator<Item = &mut [u8]> {
        let bytes = x0.min(self.width) * self.step..x1.min(self.width) * self.step;
        let count = y1.min(self.height).saturating_sub(y0);
        self.data.chunks_mut(self.stride).skip(y0).take(count).filter_map(move |row| row.get_mut(bytes.clone()))
    }

    fn fill<const N: usize>(&mut self, area: Area, ink: Ink) {
        let dye: Dye<N> = self.dye(ink.rgb, ink.opacity);
        let scale = self.scale();
        // The area is within the canvas by now, hence neither negative nor large.
        let range = |from: i64, to: i64| (from as usize * scale, to as usize * scale);
        for row in self.rows(range(area.x0, area.x1), range(area.y0, area.y1)) {
            for sample in row.as_chunks_mut::<N>().0 {
                for ((byte, keep), add) in sample.iter_mut().zip(dye.keep).zip(dye.add) {
                    *byte = blend(*byte, keep, add);
                }
            }
        }
    }
}

/// A colour and its opacity (255: opaque).
#[derive(Clone, Copy)]
pub(super) struct Ink {
    pub(super) rgb: [u8; 3],
    pub(super) opacity: u8,
}

impl Ink {
    /// An opaque colour.
    pub(super) const fn solid(rgb: [u8; 3]) -> Self {
        Self { rgb, opacity: 255 }
    }
}

/// A rectangle in blocks of 2x2 pixels, `x1` and `y1` excluded. It may lie anywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Area {
    pub(super) x0: i64,
    pub(super) y0: i64,
    pub(super) x1: i64,
    pub(super) y1: i64,
}

impl Area {
    /// With each edge moved outwards by so many blocks, or inwards by fewer than 0.
    pub(super) fn grown(self, by: i64) -> Self {
        Self { x0: self.x0 - by, y0: self.y0 - by, x1: self.x1 + by, y1: self.y1 + by }
    }

    /// What two areas share; `None` if that is nothing.
    pub(super) fn common(self, other: Self) -> Option<Self> {
        let area = Self {
            x0: self.x0.max(other.x0),
            y0: self.y0.max(other.y0),
            x1: self.x1.min(other.x1),
            y1: self.y1.min(other.y1),
        };
        (area.x0 < area.x1 && area.y0 < area.y1).then_some(area)
    }
}

/// A frame to draw on.
pub(crate) struct Canvas<'a> {
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) sheets: Vec<Sheet<'a>>,
}

impl<'a> Canvas<'a> {
    /// Takes the planes of a frame, in the order of the format. Refuses planes that are too short for the frame's
    /// size, so that no drawing can leave them. `yuv` says how the frame's luma and chroma are meant; the other
    /// formats do not look at it.
    pub(crate) fn new(
        width: usize,
        height: usize,
        layout: Layout,
        yuv: Yuv,
        planes: Vec<Plane<'a>>,
    ) -> Result<Self, String> {
        use Channel::{Alpha, Padding};
        const LUMA: Channel = Channel::Yuv(0);
        const U: Channel = Channel::Yuv(1);
        const V: Channel = Channel::Yuv(2);
        const LIMIT: usize = 1 << 20;
        if width == 0 || height == 0 || width > LIMIT || height > LIMIT {
            return Err(format!("cannot draw on a frame of {width}x{height} pixels"));
        }
        let plain = |channel| ([channel, Padding, Padding, Padding], 1, false);
        let half = |first, second, step| ([first, second, Padding, Padding], step, true);
        let yuv = if layout == Layout::Gray { Yuv::BT601_FULL } else { yuv };
        let parts = match layout {
            Layout::Packed { bytes, rgb, alpha } => {
                let mut channels = [Padding; 4];
                for (offset, channel) in
                    rgb.into_iter().zip([0, 1, 2].map(Channel::Rgb)).chain(alpha.map(|at| (at, Alpha)))
                {
                    match channels.get_mut(offset) {
                        Some(place @ Padding) if offset < bytes => *place = channel,
                        _ => return Err(format!("byte {offset} of a pixel cannot hold another colour")),
                    }
                }
                if !(3..=4).contains(&bytes) {
                    return Err(format!("cannot draw on pixels of {bytes} bytes"));
                }
                vec![(channels, bytes, false)]
            }
            Layout::Gray => vec![plain(LUMA)],
            Layout::I420 => vec![plain(LUMA), half(U, Padding, 1), half(V, Padding, 1)],
            Layout::Nv12 => vec![plain(LUMA), half(U, V, 2)],
        };
        if planes.len() != parts.len() {
            return Err(format!("{} planes where the format has {}", planes.len(), parts.len()));
        }
        let mut sheets = Vec::with_capacity(parts.len());
        for (number, (plane, (channels, step, halved))) in planes.into_iter().zip(parts).enumerate() {
            let Plane { data, stride } = plane;
            let size = |length: usize| if halved { length.div_ceil(2) } else { length };
            let (width, height) = (size(width), size(height));
            let row = width * step;
            let needed = stride.checked_mul(height - 1).and_then(|bytes| bytes.checked_add(row));
            if stride < row || needed.is_none_or(|bytes| data.len() < bytes) {
                return Err(format!(
                    "plane {number} of {} bytes with a stride of {stride} cannot hold {height} rows of {row} bytes",
                    data.len()
                ));
            }
            sheets.push(Sheet { data, stride, width, height, channels, step, halved, yuv });
        }
        Ok(Self { width, height, sheets })
    }

    /// The whole frame.
    pub(super) fn area(&self) -> Area {
        Area { x0: 0, y0: 0, x1: self.width.div_ceil(2) as i64, y1: self.height.div_ceil(2) as i64 }
    }

    /// Fills what of an area lies within the frame.
    pub(super) fn fill(&mut self, area: Area, ink: Ink) {
        let Some(area) = area.common(self.area()) else { return };
        for sheet in &mut self.sheets {
            match sheet.step {
                1 => sheet.fill::<1>(area, ink),
                2 => sheet.fill::<2>(area, ink),
                3 => sheet.fill::<3>(area, ink),
                _ => sheet.fill::<4>(area, ink),
            }
        }
    }
}
