//! The requests of a run: the arrivals of all sessions and queries, merged, and behind them the calls that queries make.

use crate::Nanos;
use crate::arrivals::{Pattern, Trace};
use crate::calls::Calls;
use crate::workload::Workload;

/// A request, numbered in the order of arrival; calls that others make are numbered behind all that arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    pub id: u32,
    pub session: u32,
    pub arrival: Nanos,
    pub deadline: Nanos,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Load {
    /// Each one's id is its index. Those that arrive by themselves come first, ascending by arrival; a call that another
    /// makes arrives when that is answered, and until then never.
    pub requests: Vec<Request>,
    /// How many arrive by themselves.
    pub arriving: usize,
    pub calls: Calls,
    /// How long requests arrive.
    pub seconds: f64,
}

impl Load {
    /// Arrivals for `seconds`, each session's as it says, else as `otherwise` says.
    pub fn generate(workload: &Workload, otherwise: Pattern, seconds: f64, seed: u64) -> Load {
        let arrivals = sources(workload).into_iter().map(|index| {
            let session = &workload.sessions[index];
            session.arrivals.unwrap_or(otherwise).arrivals(session.rate, seconds, seed, index as u64)
        });
        Load::merge(workload, arrivals.collect(), seconds, seed)
    }

    /// A trace, played `factor` times as fast, of what arrives within `seconds`. Its sessions are the plain ones, then the
    /// queries; how many calls those make is drawn from `seed`.
    pub fn replay(workload: &Workload, trace: &Trace, factor: f64, seconds: f64, seed: u64) -> Load {
        let until = (seconds * 1e9) as Nanos;
        let fast = |&at: &Nanos| (at as f64 / factor) as Nanos;
        let of = |times: &Vec<Nanos>| times.iter().map(fast).filter(|&at| at < until).collect();
        Load::merge(workload, trace.0.iter().map(of).collect(), seconds, seed)
    }

    /// `arrivals` are by source.
    fn merge(workload: &Workload, arrivals: Vec<Vec<Nanos>>, seconds: f64, seed: u64) -> Load {
        let mut requests = Vec::with_capacity(arrivals.iter().map(Vec::len).sum());
        for (session, times) in sources(workload).into_iter().zip(&arrivals) {
            let slo = workload.sessions[session].slo.as_nanos() as Nanos;
            let request = |&arrival| Request { id: 0, session: session as u32, arrival, deadline: arrival + slo };
            requests.extend(times.iter().map(request));
        }
        requests.sort_unstable_by_key(|request: &Request| (request.arrival, request.session));
        for (id, request) in requests.iter_mut().enumerate() {
            request.id = id as u32;
        }
        let arriving = requests.len();
        let calls = Calls::draw(workload, &mut requests, seed);
        Load { requests, arriving, calls, seconds }
    }
}

/// The sessions whose requests arrive by themselves: the plain ones, then each query's first stage.
fn sources(workload: &Workload) -> Vec<usize> {
    let firsts = workload.queries.iter().map(|query| query.stages[query.tree.order()[0]].session);
    (0..workload.plain().len()).chain(firsts).collect()
}
