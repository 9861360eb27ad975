//! Which calls of a query make which others: drawn before the run, so that every policy faces the same.

use crate::Nanos;
use crate::load::Request;
use crate::random::Random;
use crate::workload::{FanOut, Query, Workload};
use std::ops::Range;

/// The calls that others make, behind those requests of a load that arrive by themselves.
///
/// All calls of one instance but its first are numbered in a row, and so are those that one call makes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Calls {
    /// By request: the instance that it belongs to, [`NONE`] for a plain session's. Empty where there are no queries.
    instances_of: Vec<u32>,
    /// By request: the calls that it makes when it is answered.
    makes: Vec<Range<u32>>,
    pub instances: Vec<Instance>,
}

/// One query that somebody started.
#[derive(Clone, Debug, PartialEq)]
pub struct Instance {
    /// Index into the workload's queries.
    pub query: usize,
    pub start: Nanos,
    pub deadline: Nanos,
    pub first: u32,
    /// Its other calls.
    pub others: Range<u32>,
}

impl Calls {
    /// Draws what the queries' first calls in `requests`, which are numbered already, lead to; appends those calls.
    pub fn draw(workload: &Workload, requests: &mut Vec<Request>, seed: u64) -> Calls {
        let mut calls = Calls::default();
        if workload.queries.is_empty() {
            return calls;
        }
        let arriving = requests.len();
        calls.instances_of.resize(arriving, NONE);
        calls.makes.resize(arriving, 0..0);
        let mut randoms: Vec<Random> =
            (0..workload.queries.len()).map(|query| Random::new(seed, FAN_OUT_STREAM - query as u64)).collect();
        let stages = stages(workload);
        for first in 0..arriving {
            if let Some((query, stage)) = stages[requests[first].session as usize] {
                calls.instance(&workload.queries[query], (query, stage), first, requests, &mut randoms[query]);
            }
        }
        calls
    }

    fn instance(
        &mut self,
        query: &Query,
        (index, root): (usize, usize),
        first: usize,
        requests: &mut Vec<Request>,
        random: &mut Random,
    ) {
        let start = requests[first].arrival;
        let deadline = start + query.tree.slo().as_nanos() as Nanos;
        let (instance, from) = (self.instances.len() as u32, requests.len() as u32);
        self.instances_of[first] = instance;
        let mut stage_of = vec![root];
        let mut next = 0;
        while next < stage_of.len() {
            let call = if next == 0 { first } else { from as usize + next - 1 };
            let begins = requests.len() as u32;
            for child in query.tree.children(stage_of[next]) {
                let gamma = query.tree.stages()[child].gamma;
                for _ in 0..query.stages[child].fan_out.draw(gamma, random) {
                    let (id, session) = (requests.len() as u32, query.stages[child].session as u32);
                    requests.push(Request { id, session, arrival: Nanos::MAX, deadline });
                    self.instances_of.push(instance);
                    self.makes.push(0..0);
                    stage_of.push(child);
                }
            }
            self.makes[call] = begins..requests.len() as u32;
            next += 1;
        }
        let others = from..requests.len() as u32;
        self.instances.push(Instance { query: index, start, deadline, first: first as u32, others });
    }

    /// The instance that a request belongs to; `None` for a plain session's.
    pub fn instance_of(&self, request: u32) -> Option<usize> {
        self.instances_of.get(request as usize).filter(|&&instance| instance != NONE).map(|&instance| instance as usize)
    }

    /// The calls that a call makes when it is answered.
    pub fn made_by(&self, request: u32) -> Range<u32> {
        self.makes[request as usize].clone()
    }
}

impl Instance {
    /// All calls of it.
    pub fn calls(&self) -> impl Iterator<Item = u32> + use<> {
        std::iter::once(self.first).chain(self.others.clone())
    }

    pub fn count(&self) -> u32 {
        1 + self.others.len() as u32
    }
}

/// By session: the query and the stage that it is, if any.
fn stages(workload: &Workload) -> Vec<Option<(usize, usize)>> {
    let mut stages = vec![None; workload.sessions.len()];
    for (index, query) in workload.queries.iter().enumerate() {
        for (stage, its) in query.stages.iter().enumerate() {
            stages[its.session] = Some((index, stage));
        }
    }
    stages
}

impl FanOut {
    fn draw(self, gamma: f64, random: &mut Random) -> u32 {
        match self {
            FanOut::Fixed => gamma as u32 + u32::from(random.uniform() < gamma.fract()),
            // Arrivals of a process of rate one within γ.
            FanOut::Poisson => {
                let (mut count, mut at) = (0, random.exponential());
                while at < gamma {
                    count += 1;
                    at += random.exponential();
                }
                count
            }
            // Failures before a success of chance 1/(1 + γ).
            FanOut::Geometric if gamma == 0.0 => 0,
            FanOut::Geometric => (random.exponential() / libm::log1p(1.0 / gamma)) as u32,
        }
    }
}

/// No instance.
const NONE: u32 = u32::MAX;
/// Streams of the seed down from here are fan-outs': arrivals take those from 0, noise the last.
const FAN_OUT_STREAM: u64 = u64::MAX - 1;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arrivals::Pattern;
    use crate::load::Load;

    #[test]
    fn fan_outs_have_gamma_as_their_mean_and_their_own_variance() {
        let mut random = Random::new(1, 0);
        for gamma in [0.0, 0.4, 1.0, 2.5, 1000.0] {
            let fraction: f64 = gamma % 1.0;
            let kinds = [
                (FanOut::Fixed, fraction * (1.0 - fraction)),
                (FanOut::Poisson, gamma),
                (FanOut::Geometric, gamma * (1.0 + gamma)),
            ];
            for (kind, variance) in kinds {
                let draws: Vec<f64> = (0..20_000).map(|_| f64::from(kind.draw(gamma, &mut random))).collect();
                let mean = draws.iter().sum::<f64>() / draws.len() as f64;
                let its = draws.iter().map(|draw| (draw - mean).powi(2)).sum::<f64>() / draws.len() as f64;
                assert!((mean - gamma).abs() <= 0.03 * gamma, "{kind:?} {gamma}: mean {mean}");
                assert!((its - variance).abs() <= 0.1 * variance, "{kind:?} {gamma}: variance {its}");
            }
        }
    }

    #[test]
    fn calls_of_an_instance_form_its_tree() {
        let text = "
            [[profile]]
            model = \"m\"
            batch_ms = { 1 = 1 }
            [[session]]
            model = \"m\"
            slo_ms = 50
            rate = 20
            [[query]]
            name = \"q\"
            slo_ms = 100
            rate = 10
            stage = [ { name = \"a\", model = \"m\" }, { name = \"b\", model = \"m\", after = \"a\", gamma = 2 },
                      { name = \"c\", model = \"m\", after = \"b\", gamma = 3 }, { name = \"d\", model = \"m\", after = \"a\", gamma = 0 } ]
        ";
        let workload = Workload::parse(text, &|_| Err(String::new())).expect("a workload");
        let load = Load::generate(&workload, Pattern::Constant, 1.0, 1);
        let calls = &load.calls;
        assert_eq!((load.arriving, calls.instances.len(), load.requests.len()), (30, 10, 30 + 10 * 8));
        let session = |id: u32| load.requests[id as usize].session;
        for instance in &calls.instances {
            assert_eq!((instance.count(), instance.deadline - instance.start), (9, 100_000_000));
            assert_eq!(session(instance.first), 1);
            let seconds = calls.made_by(instance.first);
            assert!(seconds.len() == 2 && seconds.clone().all(|id| session(id) == 2));
            let thirds: Vec<u32> = seconds.flat_map(|id| calls.made_by(id)).collect();
            assert!(thirds.len() == 6 && thirds.iter().all(|&id| session(id) == 3 && calls.made_by(id).is_empty()));
            assert!(instance.calls().all(|id| calls.instances[calls.instance_of(id).expect("one")] == *instance));
        }
    }
}
