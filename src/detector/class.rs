//! Which class a frame is compared with: named by the caller, or chosen by the model.

use super::ClassSource;
use crate::bundle::Card;
use crate::config::{ClassCondition, ClassStrategy, Config, Decision, Distance, ScoreKind};
use crate::error::{Error, Result};

/// A second class is tried where its prototype is at most this many times as far as the nearest.
const CANDIDATE_RATIO: f32 = 1.5;
/// Stands before the name of a class, so that one called `auto` can be named.
const LITERAL: char = '=';

/// How the class of a frame is found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClassChoice {
    /// The model chooses: the class whose prototype is near and whose score is lowest in units of its threshold.
    #[default]
    Auto,
    /// The class with this index on the card.
    Known(usize),
}

impl ClassChoice {
    /// What a user writes: `auto`, or the name of a class. `=NAME` is the class NAME in any case, also one called `auto`.
    ///
    /// # Errors
    /// When the model has no such class; the message lists those it has.
    pub fn parse(text: &str, card: &Card) -> Result<Self> {
        if text == "auto" {
            return Ok(Self::Auto);
        }
        Self::of_class(text.strip_prefix(LITERAL).unwrap_or(text), card)
    }

    /// The class, where it is known.
    pub fn known(self) -> Option<usize> {
        match self {
            Self::Auto => None,
            Self::Known(class) => Some(class),
        }
    }

    /// The class of exactly this name, also where it is `auto`: for names that no user wrote, as those of folders.
    ///
    /// # Errors
    /// As [`ClassChoice::parse`].
    pub fn of_class(name: &str, card: &Card) -> Result<Self> {
        let position = card.classes.iter().position(|class| class.name == name);
        position.map(Self::Known).ok_or_else(|| {
            let written = |name: &str| match name {
                "auto" => format!("{LITERAL}auto"),
                name if name.starts_with(LITERAL) => format!("{LITERAL}{name}"),
                name => name.to_owned(),
            };
            let known = card.classes.iter().map(|class| written(&class.name)).collect::<Vec<_>>().join(", ");
            Error::Usage(format!("class {name:?} is not in the model; expected auto or one of: {known}"))
        })
    }
}

/// How the model decides where the class is not known: a consequence of the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ClassDecision {
    /// There is one class.
    Only,
    /// The nearest prototype decides: scores of two classes differ by their units only.
    Nearest,
    /// The lower score in units of the threshold decides between the two nearest prototypes, if they are about as near.
    LowerScore,
    /// Every class is tried, and each cell of the map gets its lowest score of all.
    PixelMinimum,
}

impl ClassDecision {
    pub(super) fn new(config: &Config, classes: usize) -> Self {
        let detection = &config.detection;
        // Only a network that is told the class, or the statistics of a class, say which class explains a part better.
        let rebuilt = matches!(detection.score, ScoreKind::Reconstruction | ScoreKind::Sum);
        let by_statistics = rebuilt && detection.distance == Distance::Mahalanobis;
        match detection.decision {
            _ if classes == 1 => Self::Only,
            Decision::PixelMinimum => Self::PixelMinimum,
            Decision::Class if is_conditioned(config) || by_statistics => Self::LowerScore,
            Decision::Class => Self::Nearest,
        }
    }

    /// The classes that a frame is scored for, and how they were found; `distances` are those to each class's prototype.
    pub(super) fn candidates(self, choice: ClassChoice, distances: &[f32]) -> (Vec<usize>, ClassSource) {
        match (choice, self) {
            (ClassChoice::Known(class), _) => (vec![class], ClassSource::Known),
            (ClassChoice::Auto, Self::Only) => (vec![0], ClassSource::Only),
            (ClassChoice::Auto, Self::PixelMinimum) => ((0..distances.len()).collect(), ClassSource::Chosen),
            (ClassChoice::Auto, Self::Nearest) => (nearest(distances, 1), ClassSource::Chosen),
            (ClassChoice::Auto, Self::LowerScore) => (nearest(distances, 2), ClassSource::Chosen),
        }
    }
}

/// Whether the denoiser is told the class that it reconstructs for.
pub(super) fn is_conditioned(config: &Config) -> bool {
    config.denoiser.classes != ClassStrategy::Conditional || config.detection.condition == ClassCondition::Class
}

/// Up to `most` classes, the nearest first; without those that are clearly farther than the nearest.
fn nearest(distances: &[f32], most: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..distances.len()).collect();
    order.sort_by(|&a, &b| distances[a].total_cmp(&distances[b]));
    let limit = distances[order[0]] * CANDIDATE_RATIO;
    order.into_iter().take(most).filter(|&class| distances[class] <= limit).collect()
}

/// Distance of an image's mean features `[D]` to a class's prototype `[D]`: root mean square over the channels.
pub(crate) fn prototype_distance(prototype: &[f32], mean: &[f32]) -> f32 {
    (prototype.iter().zip(mean).map(|(p, m)| (p - m) * (p - m)).sum::<f32>() / mean.len() as f32).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::fixture::card;

    #[test]
    fn a_class_called_auto_is_named_with_an_equals_sign() {
        let card = card(&["bolt", "auto", "=auto"]);
        let parse = |text: &str| ClassChoice::parse(text, &card);
        assert_eq!(parse("auto").unwrap(), ClassChoice::Auto);
        for (text, class) in [("bolt", 0), ("=bolt", 0), ("=auto", 1), ("==auto", 2)] {
            assert_eq!(parse(text).unwrap(), ClassChoice::Known(class), "{text}");
        }
        assert_eq!(ClassChoice::of_class("auto", &card).unwrap(), ClassChoice::Known(1), "a folder's name");
        let message = parse("nut").unwrap_err().to_string();
        assert!(message.contains("\"nut\"") && message.ends_with("auto or one of: bolt, =auto, ==auto"), "{message}");
    }

    #[test]
    fn the_configuration_says_how_a_class_is_chosen() {
        let decision = |set: &[&str], classes: usize| {
            let mut config = Config::default();
            config.assign(set).unwrap();
            ClassDecision::new(&config, classes)
        };
        let minimum = "detection.decision=pixel-minimum";
        assert_eq!(decision(&[minimum], 1), ClassDecision::Only);
        assert_eq!(decision(&[minimum], 2), ClassDecision::PixelMinimum);
        assert_eq!(decision(&[], 2), ClassDecision::LowerScore);
        assert_eq!(decision(&["detection.distance=l2"], 2), ClassDecision::Nearest);
        assert_eq!(decision(&["detection.distance=l2", "denoiser.classes=heads"], 2), ClassDecision::LowerScore);
        let distances = [3.0, 2.0, 2.9];
        let candidates = |decision: ClassDecision| decision.candidates(ClassChoice::Auto, &distances).0;
        assert_eq!(candidates(ClassDecision::LowerScore), [1, 2]);
        assert_eq!(candidates(ClassDecision::Nearest), [1]);
        assert_eq!(nearest(&[3.1, 2.0], 2), [1], "the second is clearly farther");
    }
}
