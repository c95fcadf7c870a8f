//! From one frame to the inputs that a model looks at it in.

use std::sync::Arc;

use super::align::Copies;
use super::{Frame, Plane, Prepared, Preprocess, Template, View, resize};
use crate::config::{InputConfig, Shape, Shapes, Size, Tried};
use crate::error::Result;

/// Makes the model's inputs of a frame: one for each shape that it is tried in. Where parts are found first (`input.align`), what an
/// input shows follows the part.
#[derive(Clone, Debug, PartialEq)]
pub struct Preparation {
    /// By the number of the shape.
    ways: Vec<Preprocess>,
    /// What is looked at of a frame, whatever a mask leaves of it: tells the shapes that it is tried in.
    whole: Preprocess,
    shapes: Shapes,
    /// By the number of the shape, where parts are found.
    templates: Vec<Arc<Template>>,
}

impl Preparation {
    /// What a configuration asks for, in the shapes of a model, without looking for parts.
    pub fn new(input: &InputConfig, shapes: Shapes) -> Self {
        let whole = Preprocess::of(input);
        let way = |shape: &Shape| Preprocess { size: shape.input, roi: shape.roi.or(whole.roi), ..whole.clone() };
        let ways = shapes.distinct().iter().map(way).collect();
        Self { ways, whole, shapes, templates: Vec::new() }
    }

    /// The same with pictures that parts are found with, one for each shape.
    pub fn with_templates(self, templates: Vec<Arc<Template>>) -> Self {
        Self { templates, ..self }
    }

    /// The same with another region of interest.
    pub fn with_roi(mut self, roi: Option<[f64; 4]>) -> Self {
        self.ways.iter_mut().chain([&mut self.whole]).for_each(|way| way.roi = roi);
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

    /// The pictures that parts are found with, by the number of the shape; none where they are not looked for.
    pub fn templates(&self) -> &[Arc<Template>] {
        &self.templates
    }

    /// The way to the input of a class, as parts should lie.
    pub fn of_class(&self, class: usize) -> &Preprocess {
        &self.ways[self.shapes.of(class)]
    }

    /// The shapes that frames of this size are tried in, of a class where it is known.
    ///
    /// # Errors
    /// When the region of interest has no pixel in such a frame.
    pub fn tried(&self, class: Option<usize>, width: usize, height: usize) -> Result<Tried> {
        let [_, _, width, height] = self.whole.geometry(width, height)?.shown;
        Ok(self.shapes.tried(class, width / height))
    }

    /// Sizes of the inputs that are tried, in words.
    pub fn in_words(&self, tried: &Tried) -> String {
        tried.shapes.iter().map(|&shape| self.ways[shape].size.to_string()).collect::<Vec<_>>().join(" and ")
    }

    /// The inputs of a frame, of a class where it is known.
    ///
    /// # Errors
    /// As [`Preprocess::apply`].
    pub fn apply(&self, frame: &Frame, class: Option<usize>) -> Result<Vec<Prepared>> {
        let plane =
            Plane { data: frame.rgb(), width: frame.width(), height: frame.height(), stride: frame.width() * 3 };
        let picture = |part, to: Size| Frame::new(to.width, to.height, resize::resize(&plane, 3, part, to)?);
        self.inputs(class, [frame.width(), frame.height()], &|way| way.apply(frame), &picture)
    }

    /// As [`Preparation::apply`], from the memory of a camera. For RGB in any order the result is the same, bit by bit.
    ///
    /// # Errors
    /// As [`Preprocess::apply_view`].
    pub fn apply_view(&self, view: &View<'_>, class: Option<usize>) -> Result<Vec<Prepared>> {
        let (width, height) = view.size();
        let picture = |part, to: Size| view.rgb(part, to.width, to.height);
        self.inputs(class, [width, height], &|way| way.apply_view(view), &picture)
    }

    /// The input of a frame as a part of a class.
    ///
    /// # Errors
    /// As [`Preprocess::apply`].
    pub fn of_frame(&self, frame: &Frame, class: usize) -> Result<Prepared> {
        Ok(self.apply(frame, Some(class))?.swap_remove(0))
    }

    /// `plain` makes the input where parts should lie; `picture` the part `[x, y, width, height]` of the frame in another size.
    fn inputs(
        &self,
        class: Option<usize>,
        [width, height]: [usize; 2],
        plain: &dyn Fn(&Preprocess) -> Result<Prepared>,
        picture: &dyn Fn([f64; 4], Size) -> Result<Frame>,
    ) -> Result<Vec<Prepared>> {
        // The whole frame for those whose part lies elsewhere, once for all of one reduction.
        let mut whole: Option<Frame> = None;
        let mut input = |shape: usize| {
            let way = &self.ways[shape];
            let Some(template) = self.templates.get(shape) else { return Ok(Prepared { shape, ..plain(way)? }) };
            let geometry = way.geometry(width, height)?;
            let copies = Copies::of(&picture(geometry.shown, template.size())?);
            let scale = [0, 1].map(|i| geometry.shown[i + 2] / template.size().sides()[i] as f64);
            let pose = template.locate(&copies, scale);
            if !template.is_found(&pose, scale) {
                return Ok(Prepared { shape, lost: true, ..plain(way)? });
            }
            // Several pixels that become one are put together first, by the fast way.
            let [sx, sy] = geometry.scale();
            let reduced = |side: usize| (side as f64 / sx.min(sy).floor().max(1.0)).ceil() as usize;
            let size = Size::new(reduced(width), reduced(height));
            let known = whole.take().filter(|known| (known.width(), known.height()) == (size.width, size.height));
            let frame = match known {
                Some(known) => known,
                None => picture([0.0, 0.0, width as f64, height as f64], size)?,
            };
            let prepared = way.follow(&frame, [width, height], pose)?;
            whole = Some(frame);
            Ok(Prepared { shape, ..prepared })
        };
        self.tried(class, width, height)?.shapes.into_iter().map(&mut input).collect()
    }
}
