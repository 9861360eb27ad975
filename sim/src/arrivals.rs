//! When requests arrive: by a pattern and a seed, or as a trace says.

use crate::Nanos;
use crate::random::Random;
use std::fmt;
use std::str::FromStr;

/// How the requests of a session follow each other. Every pattern but [`Pattern::Step`] keeps the session's rate in the
/// mean over a long time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pattern {
    /// Equal gaps; where the first falls is random.
    Constant,
    /// Independent of each other: exponential gaps.
    Poisson,
    /// Independent gaps of this coefficient of variation, gamma-distributed; 1 is Poisson, more is burstier.
    Gamma { cv: f64 },
    /// Poisson at a higher rate for a while, then silence: lengths exponential with these means, in seconds.
    OnOff { on_s: f64, off_s: f64 },
    /// Poisson at a rate that swings by this share around its mean, once a period.
    Diurnal { period_s: f64, depth: f64 },
    /// Poisson at the session's rate, from `at_s` on at so many times it.
    Step { at_s: f64, factor: f64 },
}

/// A pattern that cannot be understood. Whoever wrote it has to change it.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("'{0}' is no arrival pattern; there are {PATTERNS}")]
pub struct PatternError(String);

impl Pattern {
    /// How many arrivals [`Pattern::arrivals`] makes, about.
    pub fn expected(self, rate: f64, seconds: f64) -> f64 {
        match self {
            Pattern::Step { at_s, factor } => rate * (seconds.min(at_s) + factor * (seconds - at_s).max(0.0)),
            _ => rate * seconds,
        }
    }

    /// Arrivals in `0..seconds` of a session with `rate` requests per second, ascending. Sessions of one seed are told
    /// apart by `stream`. The same seed at another rate gives the same pattern, stretched, where the pattern has no time
    /// scale of its own: searches over rates compare like with like.
    pub fn arrivals(self, rate: f64, seconds: f64, seed: u64, stream: u64) -> Vec<Nanos> {
        let mut random = Random::new(seed, stream);
        let mut times = Vec::with_capacity((1.1 * rate * seconds) as usize + 16);
        let mut push = |at: f64| {
            let more = at < seconds;
            if more {
                times.push((at * 1e9) as Nanos);
            }
            more
        };
        match self {
            Pattern::Constant => {
                let phase = random.uniform();
                // Counted, not added up: so that no error accumulates.
                let mut index = 0u64;
                while push((phase + index as f64) / rate) {
                    index += 1;
                }
            }
            Pattern::Poisson => {
                let mut at = random.exponential() / rate;
                while push(at) {
                    at += random.exponential() / rate;
                }
            }
            Pattern::Gamma { cv } => {
                let shape = 1.0 / (cv * cv);
                let scale = 1.0 / (rate * shape);
                // The first gap is cut at a random place, as an observer who comes by would find it.
                let mut at = random.uniform() * random.gamma(shape) * scale;
                while push(at) {
                    at += random.gamma(shape) * scale;
                }
            }
            Pattern::OnOff { on_s, off_s } => {
                let peak = rate * (on_s + off_s) / on_s;
                let mut on = random.uniform() < on_s / (on_s + off_s);
                let (mut at, mut until) = (0.0, 0.0);
                while at < seconds {
                    until += random.exponential() * if on { on_s } else { off_s };
                    if on {
                        at += random.exponential() / peak;
                        while at < until && push(at) {
                            at += random.exponential() / peak;
                        }
                    }
                    // What is left of an exponential gap is exponential again: nothing is lost by starting anew.
                    at = until;
                    on = !on;
                }
            }
            Pattern::Diurnal { period_s, depth } => {
                // Thinning: candidates at the peak rate, kept in proportion.
                let peak = rate * (1.0 + depth);
                let mut at = 0.0;
                loop {
                    at += random.exponential() / peak;
                    let swing = depth * libm::sin(std::f64::consts::TAU * at / period_s);
                    if random.uniform() * (1.0 + depth) < 1.0 + swing && !push(at) {
                        break;
                    }
                    if at >= seconds {
                        break;
                    }
                }
            }
            Pattern::Step { at_s, factor } => {
                // Unit arrivals on the scale of the integrated rate.
                let mut mass = random.exponential();
                let before = rate * at_s;
                let at = |mass: f64| if mass < before { mass / rate } else { at_s + (mass - before) / (rate * factor) };
                while push(at(mass)) {
                    mass += random.exponential();
                }
            }
        }
        times
    }
}

impl FromStr for Pattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Pattern, PatternError> {
        let error = || PatternError(text.to_owned());
        let (name, figures) = text.split_once(':').map_or((text, ""), |(name, figures)| (name, figures));
        let figures: Result<Vec<f64>, _> = figures.split(':').filter(|part| !part.is_empty()).map(str::parse).collect();
        let figures = figures.map_err(|_| error())?;
        let pattern = match (name, &figures[..]) {
            ("constant", []) => Pattern::Constant,
            ("poisson", []) => Pattern::Poisson,
            ("gamma", &[cv]) => Pattern::Gamma { cv },
            ("onoff", &[on_s, off_s]) => Pattern::OnOff { on_s, off_s },
            ("diurnal", &[period_s, depth]) => Pattern::Diurnal { period_s, depth },
            ("step", &[at_s, factor]) => Pattern::Step { at_s, factor },
            _ => return Err(error()),
        };
        let possible = figures.iter().all(|figure| (1e-3..=1e6).contains(figure))
            && !matches!(pattern, Pattern::Diurnal { depth, .. } if depth > 1.0)
            && !matches!(pattern, Pattern::Gamma { cv } if !(0.02..=20.0).contains(&cv));
        if possible { Ok(pattern) } else { Err(error()) }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Pattern::Constant => write!(f, "constant"),
            Pattern::Poisson => write!(f, "poisson"),
            Pattern::Gamma { cv } => write!(f, "gamma:{cv}"),
            Pattern::OnOff { on_s, off_s } => write!(f, "onoff:{on_s}:{off_s}"),
            Pattern::Diurnal { period_s, depth } => write!(f, "diurnal:{period_s}:{depth}"),
            Pattern::Step { at_s, factor } => write!(f, "step:{at_s}:{factor}"),
        }
    }
}

/// A trace: by session, its arrivals, ascending.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Trace(pub Vec<Vec<Nanos>>);

/// A line of a trace that can't be used; whoever wrote it has to change it. `line` counts from 1.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("line {line}: {text}")]
pub struct TraceError {
    pub line: usize,
    pub text: String,
}

impl Trace {
    /// Reads `arrival_ms,session` lines; that very line may stand first as a head, empty lines are skipped. `models` are
    /// the sessions in order: a line names one by its model (the first session of it) or by its number, from 0.
    pub fn parse(text: &str, models: &[&str]) -> Result<Trace, TraceError> {
        let mut sessions = vec![Vec::new(); models.len()];
        for (index, row) in text.lines().enumerate() {
            let row = row.trim();
            if row.is_empty() || (index == 0 && row == TRACE_HEAD) {
                continue;
            }
            let (session, arrival) = row_of(row, models).map_err(|text| TraceError { line: index + 1, text })?;
            sessions[session].push(arrival);
        }
        sessions.iter_mut().for_each(|arrivals| arrivals.sort_unstable());
        Ok(Trace(sessions))
    }
}

fn row_of(row: &str, models: &[&str]) -> Result<(usize, Nanos), String> {
    let (arrival, session) = row.split_once(',').ok_or_else(|| format!("'{row}' is not '{TRACE_HEAD}'"))?;
    let (arrival, session) = (arrival.trim(), session.trim());
    let arrival_ms = arrival.parse().ok().filter(|ms| (0.0..TRACE_MS_MAX).contains(ms));
    let arrival_ms: f64 = arrival_ms.ok_or_else(|| format!("'{arrival}' is no time in milliseconds"))?;
    let named = models.iter().position(|model| *model == session);
    let session = named.or_else(|| session.parse().ok().filter(|&number: &usize| number < models.len()));
    let session = session.ok_or_else(|| {
        let last = models.len().saturating_sub(1);
        format!("there is no such session; name a model of the workload or a number from 0 to {last}")
    })?;
    Ok((session, (arrival_ms * 1e6) as Nanos))
}

const PATTERNS: &str =
    "constant, poisson, gamma:CV, onoff:ON_S:OFF_S, diurnal:PERIOD_S:DEPTH and step:AT_S:FACTOR (figures above zero)";
const TRACE_HEAD: &str = "arrival_ms,session";
/// A year; beyond it nanoseconds would lose their precision.
const TRACE_MS_MAX: f64 = 366.0 * 86_400e3;

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> Pattern {
        text.parse().expect("a pattern")
    }

    /// Mean and variance of counts in windows of `window_s`.
    fn counts(times: &[Nanos], seconds: f64, window_s: f64) -> (f64, f64) {
        let mut counts = vec![0.0; (seconds / window_s) as usize];
        let last = counts.len() - 1;
        times.iter().for_each(|&at| counts[((at as f64 / 1e9 / window_s) as usize).min(last)] += 1.0);
        let mean = counts.iter().sum::<f64>() / counts.len() as f64;
        (mean, counts.iter().map(|count| (count - mean).powi(2)).sum::<f64>() / counts.len() as f64)
    }

    #[test]
    fn patterns_keep_the_rate_and_have_their_variance() {
        // (pattern, seconds, window, least and most variance of a window's count over its mean)
        let cases = [
            ("constant", 100.0, 1.0, 0.0, 0.001),
            ("poisson", 200.0, 0.01, 0.9, 1.1),
            ("gamma:1", 200.0, 0.01, 0.9, 1.1),
            ("gamma:3", 400.0, 1.0, 7.0, 11.0),
            ("gamma:0.5", 200.0, 1.0, 0.2, 0.3),
            ("onoff:1:4", 4000.0, 0.1, 200.0, 1000.0),
            ("diurnal:10:0.8", 200.0, 1.0, 100.0, 500.0),
        ];
        for (text, seconds, window, least, most) in cases {
            let times = pattern(text).arrivals(1000.0, seconds, 7, 0);
            assert!(times.is_sorted(), "{text}");
            let (mean, variance) = counts(&times, seconds, window);
            assert!((mean / (1000.0 * window) - 1.0).abs() < 0.1, "{text}: mean {mean}");
            assert!((least..=most).contains(&(variance / mean)), "{text}: {} times the mean", variance / mean);
        }
    }

    #[test]
    fn a_step_changes_the_rate_when_it_says() {
        let times = pattern("step:10:2").arrivals(500.0, 20.0, 1, 0);
        let before = times.iter().filter(|&&at| at < 10_000_000_000).count();
        assert!(before.abs_diff(5000) < 300, "{before}");
        assert!((times.len() - before).abs_diff(10_000) < 400, "{}", times.len() - before);
        assert_eq!(pattern("step:10:2").expected(500.0, 20.0), 15_000.0);
        assert_eq!(pattern("step:10:2").expected(500.0, 5.0), 2500.0);
    }

    #[test]
    fn the_same_seed_at_another_rate_is_the_same_pattern_stretched() {
        let slow = Pattern::Poisson.arrivals(10.0, 100.0, 3, 1);
        let fast = Pattern::Poisson.arrivals(20.0, 50.0, 3, 1);
        assert_eq!(slow.len(), fast.len());
        assert!(slow.iter().zip(&fast).all(|(slow, fast)| (slow - 2 * fast).abs() <= 2));
        assert_ne!(Pattern::Poisson.arrivals(10.0, 100.0, 4, 1), slow);
        assert_ne!(Pattern::Poisson.arrivals(10.0, 100.0, 3, 2), slow);
    }

    #[test]
    fn patterns_read_what_they_write_and_refuse_the_rest() {
        for text in ["constant", "poisson", "gamma:3", "onoff:1:4", "diurnal:60:0.5", "step:10:2"] {
            assert_eq!(pattern(text).to_string(), text);
        }
        for text in
            ["", "uniform", "gamma", "gamma:0", "gamma:nan", "gamma:-1", "onoff:1", "diurnal:60:2", "step:1:inf"]
        {
            assert_eq!(text.parse::<Pattern>(), Err(PatternError(text.to_owned())));
        }
    }

    #[test]
    fn a_trace_is_dealt_to_sessions_and_its_mistakes_are_named() {
        let trace = Trace::parse("arrival_ms,session\n2.5,b\n\n1,a\n0.5,1\n3,b\n", &["a", "b"]).expect("a trace");
        assert_eq!(trace.0, [vec![1_000_000], vec![500_000, 2_500_000, 3_000_000]]);
        let cases = [
            ("1,a\n2;a\n", 2, "'2;a' is not 'arrival_ms,session'"),
            ("NaN,a\n", 1, "'NaN' is no time"),
            ("-1,a\n", 1, "'-1' is no time"),
            ("1,a\n\n1,c\n", 3, "there is no such session"),
            ("1,a\n1,2\n", 2, "a number from 0 to 1"),
        ];
        for (text, line, expected) in cases {
            let error = Trace::parse(text, &["a", "b"]).expect_err("a mistake");
            assert!(error.line == line && error.text.contains(expected), "{error}");
        }
    }
}
