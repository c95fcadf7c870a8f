//! From one frame to the inputs that a model looks at it in.

use super::{Frame, Prepared, Preprocess, View};
use crate::config::{InputConfig, Shapes, Tried};
use crate::error::Result;

/// Makes the model's inputs of a frame: one for each shape that it is tried in.
#[derive(Clone, Debug, PartialEq)]
pub struct Preparation {
    /// By the number of the shape.
    ways: Vec<Preprocess>,
    shapes: Shapes,
}

impl Preparation {
    /// What a configuration asks for, in the shapes of a model.
    pub fn new(input: &InputConfig, shapes: Shapes) -> Self {
        let way = |size| Preprocess { size, ..Preprocess::of(input) };
        Self { ways: shapes.distinct().iter().map(|shape| way(shape.input)).collect(), shapes }
    }

    /// The same with another region of interest.
    pub fn with_roi(mut self, roi: Option<[f64; 4]>) -> Self {
        self.ways.iter_mut().for_each(|way| way.roi = roi);
        self
    }

    /// The shapes of the model.
    pub fn shapes(&self) -> &Shapes {
        &self.shapes
    }

    /// The way to the input of each shape, by its number.
    pub fn ways(&self) -> &[Preprocess] {
        &self.ways
    }

    /// The way to the input of a class.
    pub fn of_class(&self, class: usize) -> &Preprocess {
        &self.ways[self.shapes.of(class)]
    }

    /// The shapes that frames of this size are tried in, of a class where it is known.
    ///
    /// # Errors
    /// When the region of interest has no pixel in such a frame.
    pub fn tried(&self, class: Option<usize>, width: usize, height: usize) -> Result<Tried> {
        let [_, _, width, height] = self.ways[0].geometry(width, height)?.shown;
        Ok(self.shapes.tried(class, width / height))
    }

    /// The inputs of a frame, of a class where it is known.
    ///
    /// # Errors
    /// As [`Preprocess::apply`].
    pub fn apply(&self, frame: &Frame, class: Option<usize>) -> Result<Vec<Prepared>> {
        let tried = self.tried(class, frame.width(), frame.height())?;
        tried.shapes.into_iter().map(|shape| self.ways[shape].apply(frame)).collect()
    }

    /// As [`Preparation::apply`], from the memory of a camera.
    ///
    /// # Errors
    /// As [`Preprocess::apply_view`].
    pub fn apply_view(&self, view: &View<'_>, class: Option<usize>) -> Result<Vec<Prepared>> {
        let (width, height) = view.size();
        let tried = self.tried(class, width, height)?;
        tried.shapes.into_iter().map(|shape| self.ways[shape].apply_view(view)).collect()
    }
}
