//! (in work: diffusion)
