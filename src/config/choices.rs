//! The named choices that keys have.

use crate::named::named;

named! {
    /// Changes of good images that leave the part good.
    pub enum Augment: "augment" {
        /// Compression, blur, noise and light, as between a camera and the model.
        Mild = "mild",
        /// None.
        None = "none",
    }
}

named! {
    /// How images of one part are told.
    pub enum Grouping: "groups" {
        /// By the product's file `groups.csv`, else by their likeness.
        Auto = "auto",
        /// By that file, and each image by itself where there is none.
        File = "file",
        /// Each image is a part.
        None = "none",
    }
}

named! {
    /// How images of one part were told from those of another.
    pub enum GroupSource: "group source" {
        /// By folder or name, as the command line said.
        Option = "option",
        /// By the file `groups.csv` of the product.
        File = "file",
        /// By their likeness.
        Found = "found",
        /// Not at all: each image counts as a part.
        None = "none",
    }
}

named! {
    /// How a frame of another aspect becomes the model input.
    pub enum Fit: "fit" {
        /// Width and height are scaled independently.
        Stretch = "stretch",
        /// Scaled with its aspect, centred; the border repeats the edge and is not scored.
        Pad = "pad",
    }
}

named! {
    /// How parts are found.
    pub enum Align: "align" {
        /// Not at all: they lie as they lie.
        None = "none",
        /// By their shift.
        Shift = "shift",
        /// By shift and turn.
        ShiftTurn = "shift+turn",
    }
}

named! {
    /// What is modelled.
    pub enum SpaceKind: "space" {
        /// Features of a frozen backbone.
        Feature = "feature",
        /// The picture itself, RGB.
        Pixel = "pixel",
    }
}

named! {
    /// How the network knows where in the frame a cell lies.
    pub enum Position: "position" {
        /// A vector for each cell of each grid is learned.
        Learned = "learned",
        /// A vector is learned for each of some waves over the frame, whatever its grid (Tancik et al. 2020).
        Fourier = "fourier",
    }
}

named! {
    /// How classes share the network.
    pub enum ClassStrategy: "classes" {
        /// One network that is told the class, or that there is none.
        Conditional = "conditional",
        /// One network with an output layer per class.
        Heads = "heads",
        /// A network per class.
        Separate = "separate",
    }
}

named! {
    /// The noise levels that training draws from and detection visits.
    pub enum ScheduleKind: "schedule" {
        /// Continuous in log-SNR between `log_snr_min` and `log_snr_max`.
        LogSnr = "log-snr",
        /// T steps, betas on a line (Ho et al. 2020).
        Linear = "linear",
        /// T steps, alpha-bar a squared cosine (Nichol & Dhariwal 2021).
        Cosine = "cosine",
    }
}

named! {
    /// How the loss counts at each level.
    pub enum Weighting: "weighting" {
        /// min-SNR-gamma with a floor (Hang et al. 2023).
        MinSnr = "min-snr",
        /// The plain squared error of what is predicted (Ho et al. 2020, equation 14).
        Uniform = "uniform",
    }
}

named! {
    /// What the reconstruction starts from.
    pub enum StartKind: "start" {
        /// The input times `sqrt(alpha_bar)`: nothing random.
        Scaled = "scaled",
        /// The input with noise.
        Noised = "noised",
        /// Noise alone.
        Pure = "pure",
    }
}

named! {
    /// How a reconstruction goes from level to level.
    pub enum SamplerKind: "sampler" {
        /// DDIM steps that drop what the reconstruction does not explain.
        Project = "project",
        /// DDIM steps (Song et al. 2021).
        Ddim = "ddim",
        /// Every step of the schedule by the posterior (Ho et al. 2020).
        Ddpm = "ddpm",
    }
}

named! {
    /// What the denoiser is told of the class.
    pub enum ClassCondition: "condition" {
        /// Nothing.
        None = "none",
        /// The class that is known, or each one that is tried.
        Class = "class",
    }
}

named! {
    /// What the map is made of.
    pub enum ScoreKind: "score" {
        /// What was not rebuilt, by `distance`.
        Reconstruction = "reconstruction",
        /// Error of the predicted noise.
        Diffusion = "diffusion",
        /// Both, each in units of its mean over good parts.
        Sum = "sum",
        /// Squared error plus a weight times the noise error of the whole image, as the method was first written down.
        Literal = "literal",
    }
}

named! {
    /// How one answer is made of those of several classes.
    pub enum Decision: "decision" {
        /// One class for the image, the one with the lowest calibrated score; its map.
        Class = "class",
        /// The lowest value of any class in each cell. Unsafe: a defect that looks like another product vanishes.
        PixelMinimum = "pixel-minimum",
    }
}

named! {
    /// Measure of a residual.
    pub enum Distance: "distance" {
        /// Mahalanobis distance to the good parts' residuals of the same class and place.
        Mahalanobis = "mahalanobis",
        /// Root of the mean squared error over the features.
        L2 = "l2",
        /// 1 - the cosine between input and reconstruction, in the raw features, the mean over the backbone's scales.
        Cosine = "cosine",
    }
}
