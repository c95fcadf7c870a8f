//! The JSON's exact shape and the page's contents.

use super::*;
use crate::frame::Frame;
use crate::metrics::PixelSet;

/// An image held against threshold 1.
pub(super) fn image(category: &str, path: &str, label: &str, score: f32) -> ImageResult {
    ImageResult {
        path: path.to_owned(),
        category: category.to_owned(),
        label: label.to_owned(),
        group: None,
        score,
        threshold: 1.0,
        percentile: 50.0,
        verdict: if score > 1.0 { "ng" } else { "ok" }.to_owned(),
        rejected: score > 1.0,
        class: Some(category.to_owned()),
        class_source: "known".to_owned(),
    }
}

const LIMITS: Thresholds = Thresholds {
    threshold: Some(1.0),
    warn_threshold: Some(0.75),
    pixel_threshold: Some(2.5),
    promised_false_reject_rate: Some(0.01),
};

fn bottles() -> Vec<ImageResult> {
    vec![
        image("bottle", "bottle/test/good/000.png", GOOD, 0.5),
        image("bottle", "bottle/test/good/001.png", GOOD, 1.5),
        image("bottle", "bottle/test/dent/000.png", "dent", 2.5),
        image("bottle", "bottle/test/dent/001.png", "dent", 0.25),
    ]
}

fn pixels() -> Ranking {
    let mut set = PixelSet::new();
    set.push(&[3.0, 1.0, 1.0, 1.0], &[true, false, false, false], 2, 2).unwrap();
    set.rank()
}

fn report() -> Report {
    let by_class = BTreeMap::from([("bottle".to_owned(), 0.375)]);
    let promises = [OtherPromise { promised: 0.2, own: Some(0.375), by_class }];
    let bottle = ClassReport::measure(&bottles(), Some(&pixels()), LIMITS, &promises).unwrap();
    let screws = [image("screw", "screw/test/good/000.png", GOOD, 0.125)];
    let screw = ClassReport::measure(&screws, None, Thresholds::default(), &[]).unwrap();
    let classes = BTreeMap::from([("bottle".to_owned(), bottle), ("screw".to_owned(), screw)]);
    let images = screws.into_iter().chain(bottles()).collect();
    Report::new("line.diad", "data", classes, images).unwrap()
}

#[test]
fn the_json_has_exactly_this_shape() {
    let mut report = report();
    report.images.truncate(1);
    report.baselines.insert("knn".to_owned(), Baseline::new(BTreeMap::new()));
    report.arithmetic = "cpu-bf16".into();
    report.ms_per_image = Latency::of(&[20.0, 30.0]);
    report.unreadable.push(Unreadable { path: "bottle/test/good/bad.png".to_owned(), reason: "no PNG".to_owned() });
    let expected = format!(
        r#"{{
  "schema": 2,
  "tool": "diad {}",
  "model": "line.diad",
  "data": "data",
  "arithmetic": "cpu-bf16",
  "mean": {{
    "image_auroc": 0.5,
    "image_ap": 0.75,
    "image_f1max": 0.6666666666666666,
    "pixel_auroc": 1.0,
    "pixel_ap": 1.0,
    "pixel_f1max": 1.0,
    "aupro": 1.0,
    "aupro_05": 1.0,
    "false_reject_rate": 0.25,
    "false_reject_interval": [
      0.0011949551454794476,
      0.891234400084207
    ],
    "escape_rate": 0.5,
    "escape_ok_rate": 0.5,
    "promised_false_reject_rate": null,
    "allowed": {{
      "threshold": null,
      "false_reject_rate": 0.0,
      "escape_rate": 0.5
    }},
    "trade": []
  }},
  "classes": {{
    "bottle": {{
      "image_auroc": 0.5,
      "image_ap": 0.75,
      "image_f1max": 0.6666666666666666,
      "pixel_auroc": 1.0,
      "pixel_ap": 1.0,
      "pixel_f1max": 1.0,
      "aupro": 1.0,
      "aupro_05": 1.0,
      "false_reject_rate": 0.5,
      "false_reject_interval": [
        0.012579117093424998,
        0.9874208829065749
      ],
      "escape_rate": 0.5,
      "escape_ok_rate": 0.5,
      "escape_interval": [
        0.09453120573423071,
        0.9054687942657693
      ],
      "class_accuracy": null,
      "threshold": 1.0,
      "warn_threshold": 0.75,
      "pixel_threshold": 2.5,
      "promised_false_reject_rate": 0.01,
      "allowed": {{
        "threshold": 1.5,
        "false_reject_rate": 0.0,
        "escape_rate": 0.5
      }},
      "trade": [
        {{
          "promised": 0.2,
          "threshold": 0.375,
          "false_reject_rate": 1.0,
          "escape_rate": 0.5
        }}
      ],
      "n_good": 2,
      "n_groups_good": 2,
      "n_defect": 2
    }},
    "screw": {{
      "image_auroc": null,
      "image_ap": null,
      "image_f1max": null,
      "pixel_auroc": null,
      "pixel_ap": null,
      "pixel_f1max": null,
      "aupro": null,
      "aupro_05": null,
      "false_reject_rate": 0.0,
      "false_reject_interval": [
        0.0,
        0.9749999999999999
      ],
      "escape_rate": null,
      "escape_ok_rate": null,
      "escape_interval": null,
      "class_accuracy": null,
      "threshold": null,
      "warn_threshold": null,
      "pixel_threshold": null,
      "promised_false_reject_rate": null,
      "allowed": null,
      "trade": [],
      "n_good": 1,
      "n_groups_good": 1,
      "n_defect": 0
    }}
  }},
  "baselines": {{
    "knn": {{
      "mean": {{
        "image_auroc": null,
        "image_ap": null,
        "image_f1max": null,
        "pixel_auroc": null,
        "pixel_ap": null,
        "pixel_f1max": null,
        "aupro": null,
        "aupro_05": null
      }},
      "classes": {{}}
    }}
  }},
  "ms_per_image": {{
    "p50": 20.0,
    "p95": 30.0,
    "p99": 30.0
  }},
  "images": [
    {{
      "path": "bottle/test/dent/000.png",
      "category": "bottle",
      "label": "dent",
      "score": 2.5,
      "threshold": 1.0,
      "percentile": 50.0,
      "verdict": "ng",
      "rejected": true,
      "class": "bottle",
      "class_source": "known"
    }}
  ],
  "unreadable": [
    {{
      "path": "bottle/test/good/bad.png",
      "reason": "no PNG"
    }}
  ]
}}
"#,
        env!("CARGO_PKG_VERSION")
    );
    assert_eq!(report.to_json().unwrap(), expected);

    let mut read: Report = serde_json::from_str(&expected).unwrap();
    // Read to within one unit in the last place only.
    read.mean.false_reject_interval = report.mean.false_reject_interval;
    for (name, class) in &mut read.classes {
        class.false_reject_interval = report.classes[name].false_reject_interval;
        class.escape_interval = report.classes[name].escape_interval;
    }
    assert_eq!(read, report);
}

#[test]
fn the_guide_names_every_key_of_the_json() {
    let guide = include_str!("../guide/report.md");
    let json = report().to_json().unwrap();
    let keys =
        json.lines().filter_map(|line| line.trim_start().strip_prefix('"')?.split_once("\":").map(|(key, _)| key));
    for key in keys.filter(|key| !["bottle", "screw"].contains(key)) {
        assert!(guide.contains(&format!("`{key}`")), "src/guide/report.md does not name {key}");
    }
    assert!(guide.contains(&format!("schema {SCHEMA}.")));
}

#[test]
fn a_mean_is_over_the_classes_that_have_the_figure() {
    let some = |value| Metrics { image_auroc: Some(value), ..Metrics::default() };
    let mean = Metrics::mean([some(0.5), Metrics::default(), some(1.0)].iter());
    assert_eq!(mean, some(0.75));
    assert_eq!(Metrics::mean([].iter()), Metrics::default());
}

#[test]
fn every_column_has_its_own_metric() {
    let metrics = Metrics {
        image_auroc: Some(1.0),
        image_ap: Some(2.0),
        image_f1max: Some(3.0),
        pixel_auroc: Some(4.0),
        pixel_ap: Some(5.0),
        pixel_f1max: Some(6.0),
        aupro: Some(7.0),
        aupro_05: Some(8.0),
    };
    let columns: Vec<f64> = Metrics::COLUMNS.iter().filter_map(|(_, value)| value(&metrics)).collect();
    assert_eq!(columns, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]);
    assert_eq!(Metrics::mean([metrics.clone(), metrics.clone()].iter()), metrics);
}

#[test]
fn class_accuracy_counts_the_images_whose_class_was_chosen() {
    let mut images = bottles();
    images[0].class_source = "chosen".to_owned();
    images[1].class_source = "chosen".to_owned();
    images[1].class = Some("screw".to_owned());
    images[2].class_source = "unknown-product".to_owned();
    images[2].class = None;
    let class = ClassReport::measure(&images, None, LIMITS, &[]).unwrap();
    assert_eq!(class.class_accuracy, Some(1.0 / 3.0));
}

#[test]
fn a_score_that_is_no_number_is_an_error() {
    let images = [image("a", "x", GOOD, f32::NAN)];
    assert!(ClassReport::measure(&images, None, LIMITS, &[]).is_err());
}

#[test]
fn images_are_sorted_by_path_whatever_order_they_came_in() {
    let mut turned = report();
    turned.images.reverse();
    let again = Report::new("line.diad", "data", turned.classes.clone(), turned.images.clone()).unwrap();
    assert_eq!(again.to_json().unwrap(), report().to_json().unwrap());
}

fn picture(mask: Option<Vec<bool>>, side: usize) -> Picture {
    Picture {
        frame: Frame::new(side, side, vec![90; side * side * 3]).unwrap(),
        map: vec![0.0, 9.0, 0.0, 0.0],
        map_width: 2,
        map_height: 2,
        pixel_threshold: 2.5,
        mask,
    }
}

fn page(report: &Report, gallery: &Gallery) -> Result<String> {
    let curves = BTreeMap::from([("bottle".to_owned(), Curves::of(&pixels()))]);
    Page { report, curves: &curves, gallery }.html()
}

#[test]
fn the_page_needs_nothing_else_and_shows_every_part() {
    let mut report = report();
    report.baselines.insert(
        "mahalanobis".to_owned(),
        Baseline::new(BTreeMap::from([("bottle".to_owned(), BaselineClass::default())])),
    );
    report.unreadable.push(Unreadable { path: "a&b.png".to_owned(), reason: "<cut>".to_owned() });
    let mut gallery = Gallery::new(3);
    for image in &report.images {
        gallery.offer(image, || Ok(picture(Some(vec![true; 16]), 4))).unwrap();
    }
    let html = page(&report, &gallery).unwrap();
    assert!(html.starts_with("<!DOCTYPE html>") && html.ends_with("</html>\n"));
    for outside in ["http://", "https://", "<script", "<link", "@import", "url("] {
        assert!(!html.contains(outside), "{outside}");
    }
    assert_eq!(html.matches("class=\"case\"").count(), 3, "an escape, a false reject, a detected defect");
    assert_eq!(html.matches("data:image/png;base64,").count(), 6);
    assert_eq!(html.matches("class=\"truth\" d=\"M0 0H4M0 4H4M0 0V4M4 0V4\"").count(), 3);
    assert_eq!(html.matches("<svg class=\"histogram\"").count(), 2);
    assert_eq!(html.matches("<svg class=\"chart\"").count(), 4, "the class without defects has no curves");
    assert_eq!(html.matches("<svg class=\"legend\"").count(), 1, "one for the class that has pictures");
    for part in [
        "<span>score 0.25 / threshold 1.00, percentile 50.0</span>",
        "Rejected above 1.00, set for 1.0 % false rejects. 1 of 2 good images rejected: <span class=\"broken\">50.0 % (95 % \
         interval 1.3 % to 98.7 %)</span>. <span class=\"broken\">More than promised</span>: these",
        "1 of 2 defective images let pass (95 % interval 9.5 % to 90.5 %), as ok: 1. ",
        "What the scores allow: rejected above 1.50, 0.0 % false rejects and 50.0 % escapes. ",
        "The model does not know this class. None of 1 good image rejected: 0.0 % (95 % interval 0.0 % to 97.5 %). </p>",
        "<tr><th>20.0 %</th><td>0.38</td><td>100.0 %</td><td>50.0 %</td></tr>",
        "<span class=\"key promise\"></span>as promised <span class=\"key good\"></span>false rejects",
        "1 image could not be inspected and is in no figure",
        "<code>a&amp;b.png</code> &lt;cut&gt;",
        "<th>mahalanobis</th>",
        "prefers-color-scheme: dark",
        "<code>bottle/test/dent/001.png</code>",
    ] {
        assert!(html.contains(part), "{part}");
    }
    assert_eq!(html.matches("<h3>If another rate were promised</h3>").count(), 1, "one class has no thresholds");
    for tag in ["section", "figure", "svg", "table", "div", "p", "span", "h3", "details", "g", "text", "tr", "td", "th"]
    {
        let (open, close) = (html.matches(&format!("<{tag}>")).count(), html.matches(&format!("<{tag} ")).count());
        assert_eq!(open + close, html.matches(&format!("</{tag}>")).count(), "{tag}");
    }
    assert_eq!(page(&report, &gallery).unwrap(), html, "the same report is the same page");
}

#[test]
fn the_page_says_where_images_were_counted_as_one_part() {
    let mut images = bottles();
    images.iter_mut().for_each(|image| image.group = Some("one".to_owned()));
    let page_of = |images: &[ImageResult], promised| {
        let limits = Thresholds { promised_false_reject_rate: promised, ..LIMITS };
        let class = ClassReport::measure(images, None, limits, &[]).unwrap();
        let report = Report::new("m", "d", BTreeMap::from([("bottle".to_owned(), class)]), images.to_vec()).unwrap();
        page(&report, &Gallery::new(1)).unwrap()
    };
    let html = page_of(&images, Some(0.01));
    let part =
        "1 of 2 good images rejected: 50.0 % (95 % interval 0.0 % to 100.0 %) of 1 part, every part counted once. ";
    assert!(html.contains(part), "{html}");
    assert!(!html.contains("<span class=\"broken\">"), "one part is too few to say that the promise was not met");

    let good = vec![image("bottle", "x", GOOD, 0.5); 100];
    let html = page_of(&good, Some(0.05));
    assert!(html.contains("<span class=\"broken\">Fewer than promised</span>: for these parts"), "{html}");
    let row = "<td>5.0 %</td><td><span class=\"broken\">0.0 %</span></td><td><span class=\"broken\">0.0 % to 3.6 %</span></td>";
    assert!(html.contains(row), "{html}");
    assert!(!page_of(&good, None).contains("<span class=\"broken\">"), "no promise, none broken");
}

#[test]
fn names_cannot_break_the_page() {
    let evil = "<script>alert(\"1\")</script>&'";
    let images = vec![image(evil, evil, evil, 0.5)];
    let class = ClassReport::measure(&images, None, LIMITS, &[]).unwrap();
    let mut report = Report::new(evil, evil, BTreeMap::from([(evil.to_owned(), class)]), images).unwrap();
    report.images[0].verdict = evil.to_owned();
    report.images[0].class = Some(format!("{evil}2"));
    let mut gallery = Gallery::new(1);
    gallery.offer(&report.images[0], || Ok(picture(None, 4))).unwrap();
    let html = page(&report, &gallery).unwrap();
    assert!(!html.contains("<script"), "{html}");
    assert!(html.contains("inspected as &lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt;&amp;&#39;2"));
}

#[test]
fn a_report_of_nothing_is_a_page_all_the_same() {
    let report = Report::new("m", "d", BTreeMap::new(), Vec::new()).unwrap();
    let html = page(&report, &Gallery::new(3)).unwrap();
    assert!(html.contains("0 test images") && !html.contains("NaN"));
}

#[test]
fn large_pictures_are_shrunk_and_a_wrong_mask_is_an_error() {
    let report = report();
    let escape = &report.images[1];
    let mut gallery = Gallery::new(1);
    let half: Vec<bool> = (0..512 * 512).map(|at| at % 512 < 256).collect();
    gallery.offer(escape, || Ok(picture(Some(half), 512))).unwrap();
    let html = page(&report, &gallery).unwrap();
    assert!(html.contains(r#"width="384" height="384""#));
    assert!(html.contains("M0 0H192M0 384H192M0 0V384M192 0V384"));

    let mut gallery = Gallery::new(1);
    let error = gallery.offer(escape, || Ok(picture(Some(vec![true; 3]), 4))).unwrap_err();
    assert!(error.to_string().contains("a mask of 3 pixels for 4x4"), "{error}");
}
