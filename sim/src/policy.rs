//! The policies that can be compared, by name, and their parameters.

mod alarms;
mod clipper;
mod clockwork;
mod nexus;
mod queue;
mod rate;
mod rota;
mod shepherd;
mod symphony;
#[cfg(test)]
mod table;
mod tfserving;
mod triton;

pub use nexus::{Cycle, Drop};

use crate::Nanos;
use crate::engine::Policy;
use crate::planning::{self, Planner};
use crate::scenario::Scenario;
use rota_sched::plan::ArrivalProcess;
use rota_sched::query::Method;
use std::fmt;
use std::str::FromStr;

/// A policy and its parameters. Written `name` or `name:key=value,key=value`; see [`PolicySpec::NAMES`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum PolicySpec {
    /// Rota's own dispatcher, which measures rates itself.
    Rota,
    /// The published system: planned cycles for the rates times `headroom`, requests routed to devices on arrival.
    Nexus {
        drop: Drop,
        cycle: Cycle,
        headroom: f64,
    },
    /// `slack`: how much earlier than the SLO says requests have to be done; batches are powers of two up to `max_batch`.
    Clockwork {
        slack: Nanos,
        max_batch: u32,
    },
    /// `margin`, plus `share` of the SLO: how much earlier than at the last moment batches start. `control` and `data`: the
    /// latencies to grant a device and, per request, to fetch inputs, that it plans for.
    Symphony {
        margin: Nanos,
        share: f64,
        control: Nanos,
        data: Nanos,
    },
    /// A batch so many times as large preempts another.
    Shepherd {
        lambda: f64,
    },
    /// `delay`, as a share of the SLO: how long the oldest request waits for others.
    Triton {
        delay: f64,
    },
    Clipper,
    /// `timeout`, as a share of the SLO: how long the oldest request waits for a full batch.
    TfServing {
        timeout: f64,
    },
}

/// A policy's name or parameters that cannot be understood, and what can.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SpecError {
    #[error("there is no policy '{given}'; there are {names}", names = PolicySpec::NAMES.join(", "))]
    Unknown { given: String },
    #[error("'{given}' is no parameter of {policy}; there {known}", known = parameters(policy))]
    Parameter { given: String, policy: &'static str },
}

impl PolicySpec {
    pub const NAMES: [&'static str; 9] =
        ["rota", "nexus", "nexus-lazy", "clockwork", "symphony", "shepherd", "triton", "clipper", "tfserving"];

    /// A policy ready for `requests` requests. `nexus` plans by the published greedy.
    ///
    /// Where rates have to be measured ([`Scenario::told`]) Symphony's targets follow them, and Nexus plans anew each epoch.
    /// Triton and TF Serving are set up by hand: their batch sizes stay as they were for the rates assumed.
    ///
    /// On several kinds of device Rota, Nexus, Triton and Clipper know what a batch takes on each. Symphony, Shepherd and
    /// Clockwork are published for one kind: they plan with what the slowest takes.
    pub fn build<'a>(&self, scenario: &Scenario, requests: usize, nexus: Planner<'a>) -> Box<dyn Policy + 'a> {
        match *self {
            PolicySpec::Rota => Box::new(rota::Rota::new(scenario, requests)),
            PolicySpec::Nexus { drop, cycle, headroom } => {
                let timetables = planning::timetables(scenario, ArrivalProcess::Even, headroom, nexus);
                let policy = nexus::Nexus::new(scenario, &timetables, drop, cycle);
                let replans = !scenario.told && scenario.epoch > 0;
                Box::new(if replans { policy.replanning(scenario, headroom, nexus) } else { policy })
            }
            PolicySpec::Clockwork { slack, max_batch } => {
                Box::new(clockwork::Clockwork::new(scenario, slack, max_batch))
            }
            PolicySpec::Symphony { margin, share, control, data } => {
                Box::new(symphony::Symphony::new(scenario, symphony::Latency { margin, share, control, data }))
            }
            PolicySpec::Shepherd { lambda } => Box::new(shepherd::Shepherd::new(scenario, lambda)),
            PolicySpec::Triton { delay } => Box::new(triton::Triton::new(scenario, delay)),
            PolicySpec::Clipper => Box::new(clipper::Clipper::new(scenario)),
            PolicySpec::TfServing { timeout } => Box::new(tfserving::TfServing::new(scenario, timeout)),
        }
    }

    /// How the system splits the SLOs of queries: the Nexus paper has the dynamic program, the others know no queries, and
    /// whoever uses them gives every stage the same.
    pub fn split(&self) -> Method {
        match self {
            PolicySpec::Rota | PolicySpec::Nexus { .. } => Method::Dp,
            _ => Method::Even,
        }
    }

    pub fn name(&self) -> &'static str {
        match self {
            PolicySpec::Rota => "rota",
            PolicySpec::Nexus { drop: Drop::Early, .. } => "nexus",
            PolicySpec::Nexus { drop: Drop::Lazy, .. } => "nexus-lazy",
            PolicySpec::Clockwork { .. } => "clockwork",
            PolicySpec::Symphony { .. } => "symphony",
            PolicySpec::Shepherd { .. } => "shepherd",
            PolicySpec::Triton { .. } => "triton",
            PolicySpec::Clipper => "clipper",
            PolicySpec::TfServing { .. } => "tfserving",
        }
    }

    /// This policy with every setting of its parameters that a fair comparison tries, the published one first.
    pub fn tunings(&self) -> Vec<PolicySpec> {
        let ms = |ms: f64| (ms * 1e6) as Nanos;
        match *self {
            PolicySpec::Nexus { drop, .. } => {
                [(Cycle::Busy, 1.0), (Cycle::Timed, 1.0), (Cycle::Busy, 1.25), (Cycle::Busy, 1.6), (Cycle::Busy, 2.0)]
                    .map(|(cycle, headroom)| PolicySpec::Nexus { drop, cycle, headroom })
                    .to_vec()
            }
            PolicySpec::Clockwork { .. } => [(5.0, 16), (0.0, 16), (0.0, 64)]
                .map(|(slack, max_batch)| PolicySpec::Clockwork { slack: ms(slack), max_batch })
                .to_vec(),
            PolicySpec::Symphony { control, data, .. } => {
                let margins = [(0.0, 0.0), (2.0, 0.0), (0.0, 0.1), (0.0, 0.2), (0.0, 0.35)];
                margins
                    .map(|(margin, share)| PolicySpec::Symphony { margin: ms(margin), share, control, data })
                    .to_vec()
            }
            PolicySpec::Triton { .. } => [0.1, 0.0, 0.25].map(|delay| PolicySpec::Triton { delay }).to_vec(),
            PolicySpec::TfServing { .. } => [0.1, 0.25].map(|timeout| PolicySpec::TfServing { timeout }).to_vec(),
            PolicySpec::Rota | PolicySpec::Shepherd { .. } | PolicySpec::Clipper => vec![*self],
        }
    }

    /// Sets one parameter; false when there is none of that name, or the value is out of range.
    fn set(&mut self, key: &str, value: &str) -> bool {
        if let PolicySpec::Nexus { cycle, .. } = self
            && key == "cycle"
        {
            *cycle = match value {
                "busy" => Cycle::Busy,
                "timed" => Cycle::Timed,
                _ => return false,
            };
            return true;
        }
        let Some(value) = value.parse().ok().filter(|value: &f64| (0.0..=1e4).contains(value)) else { return false };
        let nanos = (value * 1e6) as Nanos;
        match (self, key) {
            (PolicySpec::Nexus { headroom, .. }, "headroom") if value > 0.0 => *headroom = value,
            (PolicySpec::Clockwork { slack, .. }, "slack_ms") => *slack = nanos,
            (PolicySpec::Clockwork { max_batch, .. }, "max_batch") if value >= 1.0 => *max_batch = value as u32,
            (PolicySpec::Symphony { margin, .. }, "margin_ms") => *margin = nanos,
            (PolicySpec::Symphony { share, .. }, "margin") if value < 1.0 => *share = value,
            (PolicySpec::Symphony { control, .. }, "control_ms") => *control = nanos,
            (PolicySpec::Symphony { data, .. }, "data_ms") => *data = nanos,
            (PolicySpec::Shepherd { lambda }, "lambda") if value >= 1.0 => *lambda = value,
            (PolicySpec::Triton { delay }, "delay") if value <= 1.0 => *delay = value,
            (PolicySpec::TfServing { timeout }, "timeout") if value <= 1.0 => *timeout = value,
            _ => return false,
        }
        true
    }
}

impl FromStr for PolicySpec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<PolicySpec, SpecError> {
        let (name, parameters) = text.split_once(':').unwrap_or((text, ""));
        let nexus = |drop| PolicySpec::Nexus { drop, cycle: Cycle::Busy, headroom: 1.0 };
        let mut spec = match name {
            "rota" => PolicySpec::Rota,
            "nexus" => nexus(Drop::Early),
            "nexus-lazy" => nexus(Drop::Lazy),
            "clockwork" => PolicySpec::Clockwork { slack: 5_000_000, max_batch: 16 },
            "symphony" => PolicySpec::Symphony { margin: 0, share: 0.0, control: 0, data: 0 },
            "shepherd" => PolicySpec::Shepherd { lambda: 3.03 },
            "triton" => PolicySpec::Triton { delay: 0.1 },
            "clipper" => PolicySpec::Clipper,
            "tfserving" => PolicySpec::TfServing { timeout: 0.1 },
            _ => return Err(SpecError::Unknown { given: name.to_owned() }),
        };
        for parameter in parameters.split(',').filter(|parameter| !parameter.is_empty()) {
            let policy = spec.name();
            let set = parameter.split_once('=').is_some_and(|(key, value)| spec.set(key.trim(), value.trim()));
            if !set {
                return Err(SpecError::Parameter { given: parameter.to_owned(), policy });
            }
        }
        Ok(spec)
    }
}

impl fmt::Display for PolicySpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |nanos: Nanos| nanos as f64 / 1e6;
        write!(f, "{}", self.name())?;
        match *self {
            PolicySpec::Rota | PolicySpec::Clipper => Ok(()),
            PolicySpec::Nexus { cycle, headroom, .. } => {
                let cycle = if cycle == Cycle::Busy { "busy" } else { "timed" };
                write!(f, ":cycle={cycle},headroom={headroom}")
            }
            PolicySpec::Clockwork { slack, max_batch } => write!(f, ":slack_ms={},max_batch={max_batch}", ms(slack)),
            PolicySpec::Symphony { margin, share, control, data } => {
                write!(f, ":margin_ms={},margin={share},control_ms={},data_ms={}", ms(margin), ms(control), ms(data))
            }
            PolicySpec::Shepherd { lambda } => write!(f, ":lambda={lambda}"),
            PolicySpec::Triton { delay } => write!(f, ":delay={delay}"),
            PolicySpec::TfServing { timeout } => write!(f, ":timeout={timeout}"),
        }
    }
}

fn parameters(policy: &str) -> &'static str {
    match policy {
        "nexus" | "nexus-lazy" => "are cycle=busy, cycle=timed and headroom=FACTOR",
        "clockwork" => "are slack_ms=MS and max_batch=COUNT",
        "symphony" => "are margin_ms=MS, margin=SHARE_OF_SLO, control_ms=MS and data_ms=MS",
        "shepherd" => "is lambda=FACTOR from 1",
        "triton" => "is delay=SHARE_OF_SLO",
        "tfserving" => "is timeout=SHARE_OF_SLO",
        _ => "are none",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_policy_reads_what_it_writes() {
        for name in PolicySpec::NAMES {
            let spec: PolicySpec = name.parse().expect("a policy");
            assert_eq!(spec.name(), name);
            for tuned in spec.tunings() {
                assert_eq!(tuned.to_string().parse(), Ok(tuned));
            }
            assert_eq!(spec.tunings()[0], spec, "the published setting comes first");
        }
    }

    #[test]
    fn mistakes_name_what_there_is() {
        let error = |text: &str| text.parse::<PolicySpec>().expect_err("a mistake").to_string();
        assert!(error("fifo").contains("there are rota, nexus"));
        for (text, expected) in [
            ("rota:x=1", "'x=1' is no parameter of rota; there are none"),
            ("symphony:margin=nan", "margin_ms=MS"),
            ("nexus:cycle=x", "cycle=busy"),
            ("nexus:headroom=0", "headroom=FACTOR"),
            ("triton:delay", "delay=SHARE"),
            ("shepherd:lambda=-1", "from 1"),
        ] {
            assert!(error(text).contains(expected), "{}", error(text));
        }
    }
}
