//! What the thresholds do on test images, what the scores would allow, and what another promise would have done.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{ImageResult, mean};
use crate::error::{Error, Result};
use crate::metrics::Groups;

/// The promised false-reject rates at which a report shows the trade of false rejects for escapes, ascending.
pub const PROMISES: [f64; 8] = [0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3];

/// What a threshold does on test images.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct OperatingPoint {
    /// The image score above which parts are rejected; null where there is no single one: in a mean over classes, and for
    /// images of a class that the model does not know.
    pub threshold: Option<f32>,
    /// Share of the good parts that it rejects, 0..=1, every part counted once however many images show it; null without good
    /// images.
    pub false_reject_rate: Option<f64>,
    /// Share of the defective images that it does not reject, 0..=1; null without defective images.
    pub escape_rate: Option<f64>,
}

/// What the model would do had it promised another false-reject rate.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct TradePoint {
    /// The promised false-reject rate, one of [`PROMISES`].
    pub promised: f64,
    /// What the thresholds that promise it do on the test images.
    #[serde(flatten)]
    pub point: OperatingPoint,
}

/// The thresholds that a model would have at another promised false-reject rate, for the images of one category.
#[derive(Clone, Debug, PartialEq)]
pub struct OtherPromise {
    /// The promised false-reject rate, above 0 and at most 1.
    pub promised: f64,
    /// The threshold of the category's own class; `None` where the model does not know the category.
    pub own: Option<f32>,
    /// The threshold of each class that has enough calibration scores for this promise, by name.
    pub by_class: BTreeMap<String, f32>,
}

impl OperatingPoint {
    /// What `threshold` does on the images of a class.
    ///
    /// # Errors
    /// Never for images that were inspected; an internal error otherwise.
    pub fn measure(images: &[ImageResult], threshold: f32) -> Result<Self> {
        Parts::of(images).point(Some(threshold), |image| rejects(threshold, image))
    }

    /// The mean of each rate over the points that have it; `None` without points.
    pub(super) fn mean<'a>(points: impl Iterator<Item = &'a Self> + Clone) -> Option<Self> {
        points.clone().next().map(|_| Self {
            threshold: None,
            false_reject_rate: mean(points.clone().map(|point| point.false_reject_rate)),
            escape_rate: mean(points.map(|point| point.escape_rate)),
        })
    }
}

impl TradePoint {
    /// The mean of the curves of classes, at the promises that all of them have.
    pub(super) fn mean<'a>(curves: impl Iterator<Item = &'a [Self]> + Clone) -> Vec<Self> {
        let at = |promised: f64| {
            let points = curves.clone().map(|curve| curve.iter().find(|point| point.promised == promised));
            let points: Option<Vec<&OperatingPoint>> = points.map(|point| Some(&point?.point)).collect();
            OperatingPoint::mean(points?.into_iter()).map(|point| Self { promised, point })
        };
        PROMISES.into_iter().filter_map(at).collect()
    }
}

/// The test images of a class, good and defective ones apart.
pub(super) struct Parts<'a> {
    good: Vec<&'a ImageResult>,
    /// Which of the good images show the same part.
    groups: Groups,
    defective: Vec<&'a ImageResult>,
}

impl<'a> Parts<'a> {
    pub(super) fn of(images: &'a [ImageResult]) -> Self {
        let (defective, good): (Vec<_>, Vec<_>) = images.iter().partition(|image| image.is_defect());
        let groups = Groups::new(good.iter().map(|image| image.group.as_deref()));
        Self { good, groups, defective }
    }

    /// Number of good images.
    pub(super) fn good(&self) -> usize {
        self.good.len()
    }

    /// Number of good parts that they show.
    pub(super) fn good_groups(&self) -> usize {
        self.groups.len()
    }

    /// Number of defective images.
    pub(super) fn defective(&self) -> usize {
        self.defective.len()
    }

    /// Share of the good parts for which `hit` holds, every part counted once.
    pub(super) fn good_share(&self, hit: impl Fn(&ImageResult) -> bool) -> Result<Option<f64>> {
        self.groups.share(&self.good.iter().map(|image| hit(image)).collect::<Vec<_>>())
    }

    /// Number of the defective images for which `hit` holds.
    pub(super) fn defective_hits(&self, hit: impl Fn(&ImageResult) -> bool) -> usize {
        self.defective.iter().filter(|image| hit(image)).count()
    }

    /// What happens when the images for which `rejected` holds are rejected.
    fn point(&self, threshold: Option<f32>, rejected: impl Fn(&ImageResult) -> bool) -> Result<OperatingPoint> {
        let escapes = self.defective_hits(|image| !rejected(image));
        Ok(OperatingPoint {
            threshold,
            false_reject_rate: self.good_share(&rejected)?,
            escape_rate: rate(escapes, self.defective()),
        })
    }

    /// What the scores allow: the lowest threshold that rejects no more than `promised` of these very good parts. That is not a
    /// threshold one could have known before; it tells whether escapes are the fault of the threshold or of the scores. A part
    /// that is no known product is rejected by every threshold. `None` without good or defective images, and where unknown
    /// products alone are more than `promised`.
    ///
    /// # Errors
    /// When `promised` is not in 0..=1 or a score is NaN.
    pub(super) fn allowed(&self, promised: f64) -> Result<Option<OperatingPoint>> {
        let score = |image: &&ImageResult| if image.is_rejected_unscored() { f32::INFINITY } else { image.score };
        let limit = self.groups.threshold(&self.good.iter().map(score).collect::<Vec<_>>(), promised)?;
        let limit = limit.filter(|_| !self.defective.is_empty());
        limit.map(|limit| self.point(Some(limit), |image| rejects(limit, image))).transpose()
    }

    /// What other promises would have done, each image held against the threshold of the class that it was inspected as. A
    /// promise for which one of these classes has too few calibration scores is left out.
    ///
    /// # Errors
    /// When a promise is not above 0 and at most 1.
    pub(super) fn trade(&self, promises: &[OtherPromise]) -> Result<Vec<TradePoint>> {
        let mut trade = Vec::new();
        for OtherPromise { promised, own, by_class } in promises {
            if !(0.0 < *promised && *promised <= 1.0) {
                return Err(Error::Internal(format!("report: a promise of {promised}, expected above 0, at most 1")));
            }
            let limit = |image: &ImageResult| by_class.get(image.class.as_ref()?).copied();
            if self.good.iter().chain(&self.defective).all(|image| limit(image).is_some()) {
                let rejected = |image: &ImageResult| limit(image).is_some_and(|limit| rejects(limit, image));
                trade.push(TradePoint { promised: *promised, point: self.point(*own, rejected)? });
            }
        }
        Ok(trade)
    }
}

/// Whether `image` is rejected above `limit`.
fn rejects(limit: f32, image: &ImageResult) -> bool {
    image.is_rejected_unscored() || image.score > limit
}

/// Whether the 95 % interval of a measured rate lies wholly above (`Greater`) or below (`Less`) the promised rate, or holds it
/// (`Equal`); `None` where one of the two is missing.
pub(super) fn against_promise(interval: Option<[f64; 2]>, promised: Option<f64>) -> Option<Ordering> {
    let ([low, high], promised) = (interval?, promised?);
    Some(match () {
        () if low > promised => Ordering::Greater,
        () if high < promised => Ordering::Less,
        () => Ordering::Equal,
    })
}

pub(super) fn rate(hits: usize, of: usize) -> Option<f64> {
    (of > 0).then(|| hits as f64 / of as f64)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::image;
    use super::super::{ClassReport, GOOD, Thresholds};
    use super::*;

    /// An image of part `group`, on a class whose threshold is 1.
    fn of_part(group: &str, label: &str, score: f32) -> ImageResult {
        ImageResult { group: Some(group.to_owned()), ..image("cap", "x", label, score) }
    }

    fn unknown(label: &str) -> ImageResult {
        let (verdict, class_source) = ("ng".to_owned(), "unknown-product".to_owned());
        ImageResult { verdict, rejected: true, class_source, ..image("cap", "x", label, 0.0) }
    }

    fn promise(promised: f64, by_class: &[(&str, f32)]) -> OtherPromise {
        let by_class = by_class.iter().map(|(name, limit)| ((*name).to_owned(), *limit)).collect();
        OtherPromise { promised, own: Some(9.0), by_class }
    }

    /// The false rejects of three parts: one of which two of three images were rejected, one wholly, one not.
    #[test]
    fn parts_are_counted_and_not_their_images() {
        let images = [
            of_part("a", GOOD, 2.0),
            of_part("a", GOOD, 2.0),
            of_part("a", GOOD, 0.5),
            of_part("b", GOOD, 3.0),
            of_part("c", GOOD, 0.5),
            of_part("c", "dent", 0.5),
        ];
        let limits = Thresholds { promised_false_reject_rate: Some(0.05), ..Thresholds::default() };
        let class = ClassReport::measure(&images, None, limits, &[]).unwrap();
        assert_eq!((class.n_good, class.n_groups_good, class.n_defect), (5, 3, 1));
        assert!((class.false_reject_rate.unwrap() - 5.0 / 9.0).abs() < 1e-12);
        // scipy.stats.beta.ppf([.025, .975], [5 / 3, 8 / 3], [7 / 3, 4 / 3])
        let [low, high] = class.false_reject_interval.unwrap();
        assert!((low - 0.05442545517749742).abs() < 1e-9 && (high - 0.9741289871150782).abs() < 1e-9, "{low} {high}");
        assert_eq!(class.against_promise(), Some(Ordering::Greater));
        assert_eq!(class.escape_ok_rate, Some(1.0));
    }

    #[test]
    fn a_warned_defect_escapes_but_not_as_ok() {
        let warned = ImageResult { verdict: "warn".to_owned(), ..image("cap", "x", "dent", 0.9) };
        let images = [warned, image("cap", "x", "dent", 0.1), image("cap", "x", "dent", 2.0), unknown("dent")];
        let class = ClassReport::measure(&images, None, Thresholds::default(), &[]).unwrap();
        assert_eq!((class.escape_rate, class.escape_ok_rate), (Some(0.5), Some(0.25)));
        assert_eq!((class.false_reject_rate, class.false_reject_interval), (None, None));
        assert_eq!((class.against_promise(), class.allowed), (None, None));
    }

    #[test]
    fn an_interval_is_above_below_or_around_the_promise() {
        for (interval, promised, expected) in [
            (Some([0.1, 0.3]), Some(0.05), Some(Ordering::Greater)),
            (Some([0.1, 0.3]), Some(0.1), Some(Ordering::Equal)),
            (Some([0.1, 0.3]), Some(0.3), Some(Ordering::Equal)),
            (Some([0.0, 0.04]), Some(0.05), Some(Ordering::Less)),
            (None, Some(0.05), None),
            (Some([0.0, 0.04]), None, None),
        ] {
            assert_eq!(against_promise(interval, promised), expected, "{interval:?} {promised:?}");
        }
    }

    #[test]
    fn the_scores_allow_what_the_lowest_threshold_within_the_promise_does() {
        let mut images: Vec<ImageResult> = (0..20).map(|at| image("cap", "x", GOOD, at as f32)).collect();
        assert_eq!(Parts::of(&images).allowed(0.05).unwrap(), None, "no defective image");
        images.extend([17.5, 18.0, 18.5, 30.0].map(|score| image("cap", "x", "dent", score)));
        let point = |threshold, rejects, escapes| OperatingPoint {
            threshold: Some(threshold),
            false_reject_rate: Some(rejects),
            escape_rate: Some(escapes),
        };
        assert_eq!(Parts::of(&images).allowed(0.05).unwrap(), Some(point(18.0, 0.05, 0.5)));
        assert_eq!(Parts::of(&images).allowed(0.049).unwrap(), Some(point(19.0, 0.0, 0.75)));
        assert!(Parts::of(&images).allowed(-0.1).is_err());
        assert_eq!(Parts::of(&images[20..]).allowed(0.05).unwrap(), None, "no good image");
        // One unknown product is all that the promise allows, two are more; as a defect it never escapes.
        images.extend([unknown(GOOD), unknown("dent")]);
        assert_eq!(Parts::of(&images).allowed(0.05).unwrap(), Some(point(19.0, 1.0 / 21.0, 0.6)));
        images.push(unknown(GOOD));
        assert_eq!(Parts::of(&images).allowed(0.05).unwrap(), None);
    }

    #[test]
    fn the_trade_holds_each_image_against_the_class_it_was_inspected_as() {
        let other = |label, score| ImageResult { class: Some("lid".to_owned()), ..image("cap", "x", label, score) };
        let images = [
            image("cap", "x", GOOD, 2.0),
            other(GOOD, 2.0),
            image("cap", "x", "dent", 4.0),
            other("dent", 4.0),
            unknown("dent"),
            other("dent", 9.0),
        ];
        let promises = [
            promise(0.005, &[("cap", 9.0)]),
            promise(0.05, &[("cap", 4.0), ("lid", 3.0), ("nut", 0.0)]),
            promise(0.3, &[("cap", 1.0), ("lid", 3.0)]),
        ];
        let trade = Parts::of(&images).trade(&promises).unwrap();
        let point = |promised, rejects, escapes| {
            let rates = (Some(rejects), Some(escapes));
            let point = OperatingPoint { threshold: Some(9.0), false_reject_rate: rates.0, escape_rate: rates.1 };
            TradePoint { promised, point }
        };
        assert_eq!(trade, [point(0.05, 0.0, 0.25), point(0.3, 0.5, 0.0)], "lid has too few scores for 0.5 %");
        assert!(Parts::of(&images).trade(&[promise(0.0, &[])]).is_err());
        let without = [ImageResult { class: None, ..images[0].clone() }];
        assert_eq!(Parts::of(&without).trade(&promises).unwrap(), [], "no class, no threshold");
    }

    #[test]
    fn the_mean_trade_has_the_promises_of_all_classes() {
        let point = |promised, escape_rate| {
            let point = OperatingPoint { threshold: Some(1.0), false_reject_rate: Some(0.25), escape_rate };
            TradePoint { promised, point }
        };
        let curves = [
            vec![point(0.05, Some(0.5)), point(0.1, Some(0.25)), point(0.2, Some(0.0))],
            vec![point(0.1, Some(0.75)), point(0.2, None)],
        ];
        let mut expected = [point(0.1, Some(0.5)), point(0.2, Some(0.0))];
        expected.iter_mut().for_each(|point| point.point.threshold = None);
        assert_eq!(TradePoint::mean(curves.iter().map(Vec::as_slice)), expected);
        assert_eq!(TradePoint::mean([].into_iter()), []);
    }

    proptest! {
        /// What is allowed keeps the promise, and a looser promise lets no more defects escape.
        #[test]
        fn what_is_allowed_keeps_the_promise(
            good in prop::collection::vec((0u8..6, 0u8..20), 1..40),
            defects in prop::collection::vec(0u8..20, 1..20),
            (a, b) in (0.0f64..=1.0, 0.0f64..=1.0),
        ) {
            let good = good.iter().map(|(part, score)| of_part(&part.to_string(), GOOD, f32::from(*score)));
            let defects = defects.iter().map(|score| image("cap", "x", "dent", f32::from(*score)));
            let images: Vec<ImageResult> = good.chain(defects).collect();
            let at = |promised| Parts::of(&images).allowed(promised).unwrap().unwrap();
            let (strict, loose) = (at(a.min(b)), at(a.max(b)));
            prop_assert!(strict.false_reject_rate.unwrap() <= a.min(b) + 1e-8);
            prop_assert!(loose.escape_rate.unwrap() <= strict.escape_rate.unwrap());
        }
    }
}
