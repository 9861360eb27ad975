//! The requests of a run: the arrivals of all sessions, merged.

use crate::Nanos;
use crate::arrivals::{Pattern, Trace};
use crate::workload::Workload;

/// A request, numbered in the order of arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    pub id: u32,
    pub session: u32,
    pub arrival: Nanos,
    pub deadline: Nanos,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Load {
    /// Ascending by arrival; each one's id is its index.
    pub requests: Vec<Request>,
    /// How long requests arrive.
    pub seconds: f64,
}

impl Load {
    /// Arrivals for `seconds`, each session's as it says, else as `otherwise` says.
    pub fn generate(workload: &Workload, otherwise: Pattern, seconds: f64, seed: u64) -> Load {
        let arrivals = workload.sessions.iter().enumerate().map(|(index, session)| {
            session.arrivals.unwrap_or(otherwise).arrivals(session.rate, seconds, seed, index as u64)
        });
        Load::merge(workload, arrivals.collect(), seconds)
    }

    /// A trace, played `factor` times as fast, of what arrives within `seconds`.
    pub fn replay(workload: &Workload, trace: &Trace, factor: f64, seconds: f64) -> Load {
        let until = (seconds * 1e9) as Nanos;
        let fast = |&at: &Nanos| (at as f64 / factor) as Nanos;
        let of = |times: &Vec<Nanos>| times.iter().map(fast).filter(|&at| at < until).collect();
        Load::merge(workload, trace.0.iter().map(of).collect(), seconds)
    }

    fn merge(workload: &Workload, arrivals: Vec<Vec<Nanos>>, seconds: f64) -> Load {
        let mut requests = Vec::with_capacity(arrivals.iter().map(Vec::len).sum());
        for (session, times) in arrivals.iter().enumerate() {
            let slo = workload.sessions[session].slo.as_nanos() as Nanos;
            let request = |&arrival| Request { id: 0, session: session as u32, arrival, deadline: arrival + slo };
            requests.extend(times.iter().map(request));
        }
        requests.sort_unstable_by_key(|request: &Request| (request.arrival, request.session));
        for (id, request) in requests.iter_mut().enumerate() {
            request.id = id as u32;
        }
        Load { requests, seconds }
    }
}
