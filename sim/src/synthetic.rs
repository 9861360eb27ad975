//! Seeded synthetic workloads, of the spread that published profiles have.

use crate::Nanos;
use crate::bound;
use crate::random::Random;
use crate::scenario::Latencies;
use rota_sched::Profile;
use std::fmt::Write;
use std::time::Duration;

/// A session of its own model with ℓ(b) = αb + β, measured at 1, 2, 4 … `max_batch`.
#[derive(Clone, Debug, PartialEq)]
pub struct Linear {
    pub name: String,
    pub alpha_ms: f64,
    pub beta_ms: f64,
    pub max_batch: u32,
    pub slo_ms: f64,
    /// Requests per second.
    pub rate: f64,
    pub memory_mb: Option<u32>,
}

impl Linear {
    pub fn latency_ms(&self, batch: u32) -> f64 {
        self.alpha_ms * f64::from(batch) + self.beta_ms
    }

    fn points(&self) -> Vec<(u32, f64)> {
        (0..=self.max_batch.ilog2()).map(|power| (1 << power, self.latency_ms(1 << power))).collect()
    }

    /// Devices that it keeps busy at least, at `factor` times its rate.
    fn devices(&self, factor: f64) -> f64 {
        let nanos = |ms: f64| Duration::from_nanos((ms * 1e6).round() as u64);
        let points: Vec<_> = self.points().into_iter().map(|(batch, ms)| (batch, nanos(ms))).collect();
        let latencies = Latencies::of(&Profile::new(&points).expect("a line through positive figures"));
        bound::devices(&latencies, (self.slo_ms * 1e6) as Nanos, self.rate * factor)
    }
}

/// Sessions with α and β drawn log-uniformly from these ranges of milliseconds, SLO likewise and at least 2.2 ℓ(1), and
/// rates falling as 1/rank (Zipf), in random order.
pub fn zipf(
    count: usize,
    alpha_ms: (f64, f64),
    beta_ms: (f64, f64),
    slo_ms: (f64, f64),
    random: &mut Random,
) -> Vec<Linear> {
    let mut log_uniform = |range: (f64, f64)| libm::exp(random.between(libm::log(range.0), libm::log(range.1)));
    let mut sessions = Vec::with_capacity(count);
    for index in 0..count {
        let (alpha_ms, beta_ms) = (rounded(log_uniform(alpha_ms)), rounded(log_uniform(beta_ms)));
        let slo_ms = rounded(log_uniform(slo_ms).max(2.2 * (alpha_ms + beta_ms)));
        let (name, rate) = (format!("m{index}"), 1.0 / (index + 1) as f64);
        sessions.push(Linear { name, alpha_ms, beta_ms, max_batch: 64, slo_ms, rate, memory_mb: None });
    }
    // α, β and SLO are independent of the rank already: no shuffle is needed for the rates to be.
    sessions
}

/// A random workload of the planner's goal: 10 to 300 sessions.
pub fn random(random: &mut Random) -> Vec<Linear> {
    let count = random.between(10.0, 301.0) as usize;
    random_of(count, random)
}

/// As [`random`], of so many sessions.
pub fn random_of(count: usize, random: &mut Random) -> Vec<Linear> {
    let session = |index| {
        let (alpha_ms, beta_ms) = (random.between(0.3, 6.0), random.between(1.0, 30.0));
        let least = 2.2 * (alpha_ms + beta_ms);
        let slo_ms = f64::max(least, random.pick(&[50.0, 100.0, 150.0, 200.0, 300.0, 400.0]));
        let rate = random.pick(&[1.0, 5.0, 20.0, 60.0, 200.0, 500.0]) * random.between(0.5, 1.5);
        Linear { name: format!("m{index}"), alpha_ms, beta_ms, max_batch: 64, slo_ms, rate, memory_mb: None }
    };
    (0..count).map(session).collect()
}

/// Scales all rates so that the fluid bound equals `devices`, then rounds them to four digits.
pub fn fill(sessions: &mut [Linear], devices: usize) {
    let need = |factor: f64| sessions.iter().map(|session| session.devices(factor)).sum::<f64>();
    let (mut low, mut high) = (0.0, 1.0);
    while need(high) < devices as f64 {
        high *= 2.0;
    }
    for _ in 0..60 {
        let middle = (low + high) / 2.0;
        *(if need(middle) < devices as f64 { &mut low } else { &mut high }) = middle;
    }
    sessions.iter_mut().for_each(|session| session.rate = rounded(session.rate * low));
}

/// A workload file; `head` are its first lines.
pub fn to_toml(head: &str, devices: usize, memory_mb: Option<u32>, sessions: &[Linear]) -> String {
    let mut text = format!("{head}\n[[device]]\ncount = {devices}\n");
    let line = |text: &mut String, key: &str, value: &dyn std::fmt::Display| {
        writeln!(text, "{key} = {value}").expect("a String takes everything");
    };
    if let Some(memory) = memory_mb {
        line(&mut text, "memory_mb", &memory);
    }
    for session in sessions {
        let points: Vec<String> =
            session.points().iter().map(|(batch, ms)| format!("{batch} = {}", rounded(*ms))).collect();
        text += &format!("\n[[profile]]\nmodel = \"{}\"\nbatch_ms = {{ {} }}\n", session.name, points.join(", "));
        if let Some(memory) = session.memory_mb {
            line(&mut text, "memory_mb", &memory);
        }
        text += &format!("[[session]]\nmodel = \"{}\"\n", session.name);
        line(&mut text, "slo_ms", &session.slo_ms);
        line(&mut text, "rate", &session.rate);
    }
    text
}

/// To four digits.
fn rounded(value: f64) -> f64 {
    format!("{value:.3e}").parse().expect("a number reads back")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::Scenario;
    use crate::workload::Workload;

    #[test]
    fn a_filled_workload_has_a_bound_of_its_devices() {
        let mut sessions = zipf(20, (0.05, 3.0), (1.0, 20.0), (20.0, 400.0), &mut Random::new(1, 0));
        fill(&mut sessions, 8);
        let text = to_toml("# A test.\nseconds = 3", 8, None, &sessions);
        let workload = Workload::parse(&text, &|_| Err(String::new())).expect("a workload");
        let factor = bound::factor(&Scenario::new(&workload).expect("a scenario"));
        assert!((factor - 1.0).abs() < 0.01, "{factor}");
    }

    #[test]
    fn random_workloads_are_in_range_and_repeat() {
        let first = random(&mut Random::new(5, 0));
        assert_eq!(first, random(&mut Random::new(5, 0)));
        assert_ne!(first, random(&mut Random::new(6, 0)));
        for seed in 0..50 {
            let sessions = random(&mut Random::new(seed, 0));
            assert!((10..=300).contains(&sessions.len()));
            for session in sessions {
                assert!((0.3..=6.0).contains(&session.alpha_ms) && (1.0..=30.0).contains(&session.beta_ms));
                assert!(session.slo_ms >= 2.2 * session.latency_ms(1) - 1e-9 && session.slo_ms <= 400.0);
                assert!((0.5..=750.0).contains(&session.rate));
            }
        }
    }
}
