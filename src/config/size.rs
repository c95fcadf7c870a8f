//! Width and height.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Columns and rows of pixels or cells. In configurations and on cards one number stands for a square, else `[width, height]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Size {
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
}

impl Size {
    /// `width` columns and `height` rows.
    pub const fn new(width: usize, height: usize) -> Self {
        Self { width, height }
    }

    /// As many columns as rows.
    pub const fn square(side: usize) -> Self {
        Self { width: side, height: side }
    }

    /// Pixels or cells.
    pub const fn area(self) -> usize {
        self.width * self.height
    }

    /// Whether it has as many columns as rows.
    pub const fn is_square(self) -> bool {
        self.width == self.height
    }

    /// Columns, rows.
    pub const fn sides(self) -> [usize; 2] {
        [self.width, self.height]
    }

    /// Both sides as `f` makes them.
    pub fn map(self, f: impl Fn(usize) -> usize) -> Self {
        Self { width: f(self.width), height: f(self.height) }
    }
}

/// The cells of a grid, and squares of them that share something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocks {
    /// The grid.
    pub grid: Size,
    /// Side of a square in cells; those at the right and at the bottom may be smaller.
    pub side: usize,
}

impl Blocks {
    /// Each cell by itself.
    pub fn cells(grid: Size) -> Self {
        Self { grid, side: 1 }
    }

    /// Number of squares.
    pub fn count(self) -> usize {
        self.grid.map(|cells| cells.div_ceil(self.side)).area()
    }

    /// The square that a cell lies in.
    pub fn of(self, cell: usize) -> usize {
        let (x, y) = (cell % self.grid.width, cell / self.grid.width);
        y / self.side * self.grid.width.div_ceil(self.side) + x / self.side
    }

    /// The cells of each square, in raster order.
    pub fn members(self) -> Vec<Vec<usize>> {
        let mut members = vec![Vec::new(); self.count()];
        (0..self.grid.area()).for_each(|cell| members[self.of(cell)].push(cell));
        members
    }
}

impl From<usize> for Size {
    fn from(side: usize) -> Self {
        Self::square(side)
    }
}

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}x{}", self.width, self.height)
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.is_square() { self.width.serialize(serializer) } else { self.sides().serialize(serializer) }
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "expected a number, or [width, height]")]
        enum Text {
            Side(usize),
            Sides([usize; 2]),
        }
        Ok(match Text::deserialize(deserializer)? {
            Text::Side(side) => Self::square(side),
            Text::Sides([width, height]) => Self { width, height },
        })
    }
}
