//! Points of a curve, few enough to draw.

/// The false-positive rate up to which MVTec integrates the per-region overlap.
pub const PRO_LIMIT: f64 = 0.3;

/// A point of a curve, both coordinates 0..=1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CurvePoint {
    /// False-positive rate, or recall.
    pub x: f64,
    /// True-positive rate, precision, or per-region overlap.
    pub y: f64,
}

/// Keeps at most `most` of the points pushed into it.
///
/// A point is kept once it is `step` (by |dx| + |dy|) away from the last one kept, together with the point before it, so
/// that a jump keeps both its ends. When that gives too many, `step` doubles and what was kept is thinned again; the first
/// and the last point always stay.
pub(super) struct Thinner {
    kept: Vec<CurvePoint>,
    skipped: Option<CurvePoint>,
    step: f64,
    most: usize,
}

impl Thinner {
    pub(super) fn new(most: usize) -> Self {
        let most = most.max(8);
        // A monotone curve in the unit square is at most 2 long: 2 / step times 2 points, one to begin and one to end.
        Self { kept: Vec::new(), skipped: None, step: 4.0 / (most - 2) as f64, most }
    }

    pub(super) fn push(&mut self, point: CurvePoint) {
        match self.kept.last() {
            Some(last) if (point.x - last.x).abs() + (point.y - last.y).abs() < self.step => self.skipped = Some(point),
            _ => {
                self.kept.extend(self.skipped.take());
                self.kept.push(point);
                if self.kept.len() > self.most - 1 {
                    self.step *= 2.0;
                    for point in std::mem::take(&mut self.kept) {
                        self.push(point);
                    }
                }
            }
        }
    }

    pub(super) fn finish(mut self) -> Vec<CurvePoint> {
        let end = self.skipped.filter(|point| self.kept.last() != Some(point));
        self.kept.extend(end);
        self.kept
    }
}
