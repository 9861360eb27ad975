//! Pseudo-random numbers that are the same on every host and in every version.
//!
//! Logarithms and the like come from the `libm` crate, not from the host's library, whose last bit may differ.

/// xoshiro256++, seeded by splitmix64: one seed, one sequence.
#[derive(Clone, Debug)]
pub struct Random([u64; 4]);

impl Random {
    /// `stream` tells users of one seed apart: their sequences have nothing in common.
    pub fn new(seed: u64, stream: u64) -> Random {
        let mut state = seed ^ splitmix(&mut stream.wrapping_mul(0xd1b5_4a32_d192_ed03));
        Random(std::array::from_fn(|_| splitmix(&mut state)))
    }

    pub fn bits(&mut self) -> u64 {
        let [a, b, c, d] = &mut self.0;
        let result = a.wrapping_add(*d).rotate_left(23).wrapping_add(*a);
        let shifted = *b << 17;
        *c ^= *a;
        *d ^= *b;
        *b ^= *c;
        *a ^= *d;
        *c ^= shifted;
        *d = d.rotate_left(45);
        result
    }

    /// In 0..1, 1 excluded.
    pub fn uniform(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// In `from..to`.
    pub fn between(&mut self, from: f64, to: f64) -> f64 {
        from + (to - from) * self.uniform()
    }

    /// One of `choices`, each as likely.
    ///
    /// # Panics
    /// When there is none.
    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[(self.uniform() * choices.len() as f64) as usize]
    }

    /// Exponentially distributed with mean 1.
    pub fn exponential(&mut self) -> f64 {
        -libm::log(1.0 - self.uniform())
    }

    /// Normally distributed with mean 0 and variance 1 (Box and Muller; the second number is thrown away).
    pub fn normal(&mut self) -> f64 {
        let radius = (2.0 * self.exponential()).sqrt();
        radius * libm::cos(std::f64::consts::TAU * self.uniform())
    }

    /// Gamma-distributed with this shape and scale 1 (Marsaglia and Tsang 2000).
    pub fn gamma(&mut self, shape: f64) -> f64 {
        if shape < 1.0 {
            let boost = libm::pow(1.0 - self.uniform(), 1.0 / shape);
            return self.gamma(shape + 1.0) * boost;
        }
        let d = shape - 1.0 / 3.0;
        let c = 1.0 / (9.0 * d).sqrt();
        loop {
            let x = self.normal();
            let v = (1.0 + c * x).powi(3);
            if v > 0.0 && libm::log(1.0 - self.uniform()) < 0.5 * x * x + d - d * v + d * libm::log(v) {
                return d * v;
            }
        }
    }
}

fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moments(mut draw: impl FnMut() -> f64) -> (f64, f64) {
        let draws: Vec<f64> = (0..100_000).map(|_| draw()).collect();
        let mean = draws.iter().sum::<f64>() / draws.len() as f64;
        let variance = draws.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / draws.len() as f64;
        (mean, variance)
    }

    #[test]
    fn distributions_have_their_mean_and_variance() {
        let mut random = Random::new(1, 0);
        let check = |name: &str, (mean, variance): (f64, f64), expected: (f64, f64)| {
            assert!((mean - expected.0).abs() < 0.02 * (1.0 + expected.0), "{name}: mean {mean}");
            assert!((variance - expected.1).abs() < 0.05 * expected.1, "{name}: variance {variance}");
        };
        check("uniform", moments(|| random.uniform()), (0.5, 1.0 / 12.0));
        check("exponential", moments(|| random.exponential()), (1.0, 1.0));
        check("normal", moments(|| random.normal()), (0.0, 1.0));
        check("gamma 4", moments(|| random.gamma(4.0)), (4.0, 4.0));
        check("gamma 0.5", moments(|| random.gamma(0.5)), (0.5, 0.5));
    }

    #[test]
    fn a_seed_gives_one_sequence_and_each_stream_its_own() {
        let draws = |seed, stream| {
            let mut random = Random::new(seed, stream);
            [random.bits(), random.bits(), random.bits()]
        };
        assert_eq!(draws(1, 2), draws(1, 2));
        assert_ne!(draws(1, 2), draws(1, 3));
        assert_ne!(draws(1, 2), draws(2, 2));
        // The reference implementation's sequence from the state 1, 2, 3, 4.
        let mut random = Random([1, 2, 3, 4]);
        assert_eq!([random.bits(), random.bits(), random.bits()], [41943041, 58720359, 3588806011781223]);
    }
}
