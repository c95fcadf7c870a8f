//! (in work: calibrate)
