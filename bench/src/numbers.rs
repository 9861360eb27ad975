//! Pseudo-random numbers that are the same on every host and in every version.

/// splitmix64: one seed, one sequence.
#[derive(Clone, Debug)]
pub struct Numbers(u64);

impl Numbers {
    /// `stream` tells users of one seed apart (sessions, processes): their sequences have nothing in common.
    pub fn new(seed: u64, stream: u64) -> Numbers {
        let mut mixer = Numbers(seed);
        Numbers(mixer.draw() ^ stream.wrapping_mul(0xd1b5_4a32_d192_ed03))
    }

    fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In 0..1, 1 excluded.
    pub fn uniform(&mut self) -> f64 {
        (self.draw() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Exponentially distributed with mean 1.
    pub fn exponential(&mut self) -> f64 {
        -(1.0 - self.uniform()).ln()
    }
}
