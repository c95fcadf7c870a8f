//! The kinds of values that keys have: what each takes, and how that is said.

use std::ops::Bound::{self, Excluded, Included};

use toml::Value;

/// Numbers that a list of fractions may have.
const MAX_FRACTIONS: usize = 16;

/// Scales of an image that a backbone may see.
const SCALES: [f64; 3] = [1.0, 0.5, 0.25];

/// What one key may be.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    /// `min`, `min + step`, and so on up to `max`.
    Integer { min: i64, max: i64, step: i64 },
    /// One such integer for a square, or two as `[width, height]`.
    Size { min: i64, max: i64, step: i64 },
    /// A number between two bounds; integers are taken too, NaN never.
    Real(Bound<f64>, Bound<f64>),
    /// One of these strings.
    OneOf(&'static [&'static str]),
    /// `[x, y, width, height]` inside the unit square, with an area.
    Rectangle,
    /// One to sixteen numbers between 0 and 1.
    Fractions,
    /// Some of 1, 0.5 and 0.25, each once.
    Scales,
    /// The name of a file; whether it is there is for the reader to see.
    Path,
}

pub(super) const fn integer(min: i64, max: i64) -> Kind {
    Kind::Integer { min, max, step: 1 }
}

pub(super) const fn size(min: i64, max: i64) -> Kind {
    Kind::Size { min, max, step: 1 }
}

/// min <= x <= max
pub(super) const fn closed(min: f64, max: f64) -> Kind {
    Kind::Real(Included(min), Included(max))
}

/// min < x < max
pub(super) const fn open(min: f64, max: f64) -> Kind {
    Kind::Real(Excluded(min), Excluded(max))
}

/// min <= x < max
pub(super) const fn below(min: f64, max: f64) -> Kind {
    Kind::Real(Included(min), Excluded(max))
}

/// min < x <= max
pub(super) const fn above(min: f64, max: f64) -> Kind {
    Kind::Real(Excluded(min), Included(max))
}

impl Kind {
    pub(super) const fn step(self, step: i64) -> Self {
        match self {
            Self::Integer { min, max, .. } => Self::Integer { min, max, step },
            Self::Size { min, max, .. } => Self::Size { min, max, step },
            other => other,
        }
    }

    /// Whether `value` has a type that this key takes at all.
    pub(super) fn takes(self, value: &Value) -> bool {
        match self {
            Self::Integer { .. } => value.is_integer(),
            Self::Size { .. } => value.is_integer() || value.is_array(),
            Self::Real(..) => number(value).is_some(),
            Self::OneOf(_) | Self::Path => value.is_str(),
            Self::Rectangle | Self::Fractions | Self::Scales => value.is_array(),
        }
    }

    pub(super) fn allows(self, value: &Value) -> bool {
        match self {
            Self::Integer { min, max, step } => {
                value.as_integer().is_some_and(|i| (min..=max).contains(&i) && (i - min) % step == 0)
            }
            Self::Size { min, max, step } => {
                let side = Self::Integer { min, max, step };
                match value.as_array() {
                    Some(sides) => sides.len() == 2 && sides.iter().all(|value| side.allows(value)),
                    None => side.allows(value),
                }
            }
            Self::Real(min, max) => {
                use std::ops::RangeBounds;
                number(value).is_some_and(|x| (min, max).contains(&x))
            }
            Self::OneOf(names) => value.as_str().is_some_and(|name| names.contains(&name)),
            Self::Path => value.as_str().is_some_and(|path| !path.is_empty() && !path.chars().any(char::is_control)),
            Self::Rectangle => rectangle(value).is_some_and(|[x, y, width, height]| {
                // 0.7 + 0.3 may come out a hair above 1.
                let inside = |start: f64, length: f64| start >= 0.0 && length > 0.0 && start + length <= 1.0 + 1e-9;
                inside(x, width) && inside(y, height)
            }),
            Self::Scales => numbers(value).is_some_and(|all| {
                let known = all.iter().all(|scale| SCALES.contains(scale));
                known && !all.is_empty() && (1..all.len()).all(|i| !all[..i].contains(&all[i]))
            }),
            Self::Fractions => numbers(value).is_some_and(|all| {
                (1..=MAX_FRACTIONS).contains(&all.len()) && all.iter().all(|x| *x > 0.0 && *x < 1.0)
            }),
        }
    }

    /// The rule in words, after "expected".
    pub(super) fn words(self) -> String {
        match self {
            Self::Size { min, max, step } => {
                format!("{}, or two of them as [width, height]", Self::Integer { min, max, step }.words())
            }
            Self::Integer { min: 0, max: i64::MAX, step: 1 } => "an integer, 0 or more".into(),
            Self::Integer { min, max, step: 1 } => format!("an integer from {min} to {max}"),
            Self::Integer { min, max, step } if min % step == 0 => {
                format!("a multiple of {step} from {min} to {max}")
            }
            Self::Integer { min, max, step } => {
                let all: Vec<_> = (min..=max).step_by(step as usize).map(|i| i.to_string()).collect();
                format!("one of {}", all.join(", "))
            }
            Self::Real(min, max) => {
                let left = match min {
                    Included(min) => format!("{min} <= "),
                    Excluded(min) => format!("{min} < "),
                    Bound::Unbounded => String::new(),
                };
                let right = match max {
                    Included(max) => format!(" <= {max}"),
                    Excluded(max) => format!(" < {max}"),
                    Bound::Unbounded => String::new(),
                };
                format!("a number x with {left}x{right}")
            }
            Self::OneOf(names) => format!("one of {}", names.join(", ")),
            Self::Scales => "[x, ...], one or more of 1, 0.5 and 0.25, each once".into(),
            Self::Path => "the name of a file".into(),
            Self::Fractions => format!("[x, ...], 1 to {MAX_FRACTIONS} numbers with 0 < x < 1"),
            Self::Rectangle => "[x, y, width, height] as fractions of the frame, inside 0 to 1, with an area".into(),
        }
    }
}

fn number(value: &Value) -> Option<f64> {
    value.as_float().or_else(|| value.as_integer().map(|i| i as f64))
}

fn rectangle(value: &Value) -> Option<[f64; 4]> {
    numbers(value)?.try_into().ok()
}

fn numbers(value: &Value) -> Option<Vec<f64>> {
    value.as_array()?.iter().map(number).collect()
}
