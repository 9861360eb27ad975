//! Timetables for the sessions that are served: what the planner is asked, and what of its answer is promised and shown.

use crate::clock::millis;
use crate::model::Model;
use crate::query::{Bound, Split};
use rota_sched::plan::{ArrivalProcess, Demand, DeviceKind, Fleet, ModelCost, Plan, Planner, Session, Steps, Why};
use rota_sched::{ModelId, Profile, SessionId};
use serde::Serialize;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What a plan is made for: the sessions at one moment.
pub struct Asked {
    pub cause: Cause,
    pub sessions: Vec<SessionDemand>,
    pub queries: Vec<QueryDemand>,
    /// The devices that are there: all but those that are lost, by their place in [`Model::profiles`].
    pub devices: Vec<usize>,
}

/// Why a plan is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Cause {
    /// All models that the daemon began with are loaded, or have failed.
    Start,
    Load,
    Unload,
    /// A session's rate is no longer the one that was planned for.
    Demand,
    /// A device was lost, or is back.
    Devices,
}

/// What one session asks for.
#[derive(Clone)]
pub struct SessionDemand {
    pub id: SessionId,
    pub model: Arc<Model>,
    pub slo: Duration,
    /// Its share when there are too few devices.
    pub weight: f64,
    /// Items per second; zero while nothing came.
    pub rate: f64,
    /// Whose requests it stands for, when models are served together: their sessions, each with its own SLO and rate.
    pub members: Vec<MemberDemand>,
}

/// A session of a model that is served together with others.
#[derive(Clone)]
pub struct MemberDemand {
    pub id: SessionId,
    pub name: SessionName,
    /// Items per second: asked for, or of a promise, given.
    pub rate: f64,
}

/// What one query asks for. Lists are by stage.
pub struct QueryDemand {
    pub bound: Arc<Bound>,
    pub sessions: Vec<SessionId>,
    /// Items per second that its first stage is asked.
    pub rate: f64,
    /// Items of a stage for each item that the one before answered.
    pub gammas: Vec<f64>,
}

/// How a query's SLO and weight are divided, for what it asks now.
pub struct QuerySplit {
    pub bound: Arc<Bound>,
    pub split: Split,
}

impl SessionDemand {
    /// What each member gets of `rate`: as much as its part in what is asked for.
    fn shares(&self, rate: f64) -> impl Iterator<Item = MemberDemand> + '_ {
        let all: f64 = self.members.iter().map(|member| member.rate).sum();
        let part = move |member: &MemberDemand| if all > 0.0 { member.rate / all } else { 0.0 };
        self.members.iter().map(move |member| MemberDemand { rate: rate * part(member), ..member.clone() })
    }
}

/// What a plan gives a session. The number of a session may be another's by the time the plan is made: then model and SLO
/// differ, or a model was loaded meanwhile and the next plan is on its way.
#[derive(Clone)]
pub struct Promise {
    pub session: SessionId,
    pub model: ModelId,
    pub slo: Duration,
    /// Items per second that the plan has slots for.
    pub rate: f64,
    /// Items per second that the session is entitled to when the devices do not suffice: as many, or what it asked for where
    /// only the devices were too few. Who then gets less is for the dispatcher to decide, by device time and weight: a plan
    /// keeps room for chance that is there to be used, and cuts everybody in proportion, also those who ask for little.
    pub entitled: f64,
    /// Of a group: what each member's session gets of `rate`.
    pub members: Vec<MemberDemand>,
}

/// A plan that was made, or why there is none.
pub struct Planned {
    pub cause: Cause,
    pub made: Instant,
    pub took: Duration,
    /// Only of sessions that ask for something.
    pub promises: Vec<Promise>,
    /// Only of queries that ask for something.
    pub splits: Vec<QuerySplit>,
    pub result: Result<PlanReport, String>,
}

/// A plan as `rota status --json` shows it.
#[derive(Clone, Debug, Default, Serialize)]
pub struct PlanReport {
    pub devices: Vec<TimetableReport>,
    pub unplaced: Vec<UnplacedReport>,
}

#[derive(Clone, Debug, Serialize)]
pub struct TimetableReport {
    pub device: usize,
    pub period_ms: f64,
    /// When its periods begin, relative to those of the other devices with the same period.
    pub phase_ms: f64,
    pub slots: Vec<SlotReport>,
}

#[derive(Clone, Debug, Serialize)]
pub struct SlotReport {
    pub offset_ms: f64,
    pub batch: u32,
    pub exec_ms: f64,
    /// Whom it serves; of several, whichever has work.
    pub sessions: Vec<ShareReport>,
}

#[derive(Clone, Debug, Serialize)]
pub struct ShareReport {
    #[serde(flatten)]
    pub session: SessionName,
    /// Items per second.
    pub rate: f64,
    /// Whom it stands for, when it is several models that are served together.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub members: Vec<MemberReport>,
}

#[derive(Clone, Debug, Serialize)]
pub struct MemberReport {
    pub session: SessionName,
    /// Items of the slot's batch, on average.
    pub batch: f64,
    /// Items per second.
    pub rate: f64,
}

#[derive(Clone, Debug, Serialize)]
pub struct UnplacedReport {
    #[serde(flatten)]
    pub session: SessionName,
    /// Items per second.
    pub rate: f64,
    /// One of the codes of [`WHYS`].
    pub why: &'static str,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SessionName {
    pub model: String,
    pub version: u64,
    pub slo_ms: f64,
}

/// Why a session is not placed: for the planner, for programs, for people.
pub const WHYS: [(Why, &str, &str); 5] = [
    (Why::SloTooShort, "slo_too_short", "the SLO is too short: even a batch of one takes as long"),
    (Why::NoProfile, "no_profile", "no device that there is has a profile of the model"),
    (Why::NoMemory, "no_memory", "the model is larger than a device's memory"),
    (Why::NoDevice, "no_device", "the devices are full"),
    (Why::NoDemand, "no_demand", "nothing is asked of it"),
];

/// The code for programs.
pub fn why_code(why: Why) -> &'static str {
    WHYS.iter().find(|(known, ..)| *known == why).map_or("", |(_, code, _)| code)
}

/// A code in words; itself where it is another version's.
pub fn why_text(code: &str) -> &str {
    WHYS.iter().find(|(_, known, _)| *known == code).map_or(code, |(.., text)| text)
}

/// Plans. A planner that fails, or even panics, leaves the daemon serving by what was promised before.
pub fn plan(asked: &Asked) -> Planned {
    let made = Instant::now();
    let splits = splits(&asked.queries);
    let sessions = divided(asked, &splits);
    let demand = demand(&sessions, &asked.devices);
    let planned = catch_unwind(AssertUnwindSafe(|| rota_sched::plan::plan(&demand, Planner::Rota, STEPS)));
    let result = match planned {
        Ok(Ok(plan)) => Ok(plan),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("the planner panicked; this is a bug".to_string()),
    };
    let mut promises = result.as_ref().map_or(Vec::new(), |plan| promises(&sessions, plan));
    for promise in &mut promises {
        // A session is known by the SLO that it had when this was asked.
        let same = asked.sessions.iter().find(|session| session.id == promise.session);
        promise.slo = same.map_or(promise.slo, |session| session.slo);
    }
    let result = result.map(|plan| PlanReport::of(&plan, &sessions, &asked.devices));
    Planned { cause: asked.cause, made, took: made.elapsed(), promises, splits, result }
}

/// Divides the SLO of each query that asks for something, so that it needs the fewest devices. One that can't be divided, because its
/// rates mean nothing, stays as it is.
fn splits(queries: &[QueryDemand]) -> Vec<QuerySplit> {
    let split = |query: &QueryDemand| {
        let QueryDemand { bound, rate, gammas, .. } = query;
        let split = Split::new(&bound.spec, &bound.models, *rate, gammas).ok()?;
        Some(QuerySplit { bound: Arc::clone(bound), split })
    };
    queries.iter().filter(|query| query.rate > 0.0).filter_map(split).collect()
}

/// The sessions with what the splits make of those that are stages. A stage is planned for as many calls as its query would make if
/// none were lost on the way.
fn divided(asked: &Asked, splits: &[QuerySplit]) -> Vec<SessionDemand> {
    let mut sessions = asked.sessions.clone();
    for QuerySplit { bound, split } in splits {
        let Some(query) = asked.queries.iter().find(|query| Arc::ptr_eq(&query.bound, bound)) else { continue };
        for (stage, id) in query.sessions.iter().enumerate() {
            if let Some(session) = sessions.iter_mut().find(|session| session.id == *id) {
                session.slo = split.shares[stage];
                session.weight = split.weights[stage];
                session.rate = split.rates[stage];
            }
        }
    }
    sessions
}

/// Devices on which every model takes the same time are of one kind. How much memory a device has is not known, and every device
/// holds what it has a profile of.
fn demand(sessions: &[SessionDemand], devices: &[usize]) -> Demand {
    let models: BTreeMap<ModelId, &Model> =
        sessions.iter().map(|session| (session.model.id, &*session.model)).collect();
    let on = |device: usize| -> Vec<Option<&Profile>> {
        models.values().map(|model| model.profiles.get(device).and_then(Option::as_ref)).collect()
    };
    let mut kinds: Vec<Vec<Option<&Profile>>> = Vec::new();
    let mut fleet = Vec::with_capacity(devices.len());
    for &device in devices {
        let profiles = on(device);
        let kind = kinds.iter().position(|known| *known == profiles);
        fleet.push(kind.unwrap_or(kinds.len()));
        if kind.is_none() {
            kinds.push(profiles);
        }
    }
    let cost = |(model, profile): (&&Model, Option<&Profile>)| {
        let cost = ModelCost { profile: profile?.clone(), memory_bytes: model.memory_bytes, load_time: Duration::ZERO };
        Some((model.id, cost))
    };
    let kind = |profiles: Vec<Option<&Profile>>| DeviceKind {
        memory_bytes: None,
        models: models.values().zip(profiles).filter_map(cost).collect(),
    };
    let session = |session: &SessionDemand| Session {
        model: session.model.id,
        slo: session.slo,
        rate: session.rate,
        weight: session.weight,
    };
    Demand {
        sessions: sessions.iter().map(session).collect(),
        kinds: kinds.into_iter().map(kind).collect(),
        fleet: Fleet::Fixed(fleet),
        arrivals: ArrivalProcess::Poisson,
    }
}

fn promises(sessions: &[SessionDemand], plan: &Plan) -> Vec<Promise> {
    let mut rates = vec![0.0; sessions.len()];
    let shares = plan.devices.iter().flat_map(|device| &device.slots).flat_map(|slot| &slot.shares);
    shares.for_each(|share| rates[share.session] += share.rate);
    let mut entitled = rates.clone();
    for cut in plan.unplaced.iter().filter(|unplaced| unplaced.why == Why::NoDevice) {
        entitled[cut.session] = sessions[cut.session].rate;
    }
    let asking = sessions.iter().zip(rates.into_iter().zip(entitled)).filter(|(session, _)| session.rate > 0.0);
    let promise = |(session, (rate, entitled)): (&SessionDemand, (f64, f64))| Promise {
        session: session.id,
        model: session.model.id,
        slo: session.slo,
        rate,
        entitled,
        members: session.shares(rate).collect(),
    };
    asking.map(promise).collect()
}

impl PlanReport {
    /// `devices`: which the plan's are.
    fn of(plan: &Plan, sessions: &[SessionDemand], devices: &[usize]) -> PlanReport {
        let name = |session: usize| SessionName::of(&sessions[session]);
        let share = |share: &rota_sched::plan::Share| ShareReport {
            session: name(share.session),
            rate: share.rate,
            members: sessions[share.session]
                .shares(share.rate)
                .map(|member| MemberReport {
                    session: member.name,
                    batch: f64::from(share.batch) * member.rate / share.rate.max(f64::MIN_POSITIVE),
                    rate: member.rate,
                })
                .collect(),
        };
        let slot = |slot: &rota_sched::plan::Slot| SlotReport {
            offset_ms: millis(slot.offset),
            batch: slot.batch,
            exec_ms: millis(slot.execution),
            sessions: slot.shares.iter().map(share).collect(),
        };
        let device = |(&device, timetable): (&usize, &rota_sched::plan::Timetable)| TimetableReport {
            device,
            period_ms: millis(timetable.period),
            phase_ms: millis(timetable.phase),
            slots: timetable.slots.iter().map(slot).collect(),
        };
        let unplaced = |unplaced: &rota_sched::plan::Unplaced| UnplacedReport {
            session: name(unplaced.session),
            rate: unplaced.rate,
            why: why_code(unplaced.why),
        };
        PlanReport {
            devices: devices.iter().zip(&plan.devices).map(device).collect(),
            unplaced: plan.unplaced.iter().map(unplaced).collect(),
        }
    }
}

impl SessionName {
    fn of(session: &SessionDemand) -> SessionName {
        SessionName { model: session.model.name.clone(), version: session.model.version, slo_ms: millis(session.slo) }
    }
}

/// How long the planner searches: within a second for a hundred sessions.
const STEPS: Steps = Steps(200);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::query::{QueryId, Spec};
    use rota_device::Signature;
    use rota_ipc::control::{QueryDeclaration, StageDeclaration};

    /// ℓ(b) = 1 ms·b + 4 ms on each device that `served` says, up to 16 items.
    fn session(id: u32, slo_ms: u64, rate: f64, weight: f64, served: &[bool]) -> SessionDemand {
        let ms = Duration::from_millis;
        let profile = Profile::new(&[(1, ms(5)), (16, ms(20))]).unwrap();
        let model = Model {
            id: ModelId(id),
            name: format!("model{id}"),
            version: 1,
            digest: String::new(),
            signature: Signature { inputs: Vec::new(), outputs: Vec::new() },
            max_batch: 16,
            default_slo: ms(slo_ms),
            weight,
            memory_bytes: 0,
            profiled: Vec::new(),
            profile_scales: false,
            profiles: served.iter().map(|served| served.then(|| profile.clone())).collect(),
            group: None,
        };
        let (model, members) = (Arc::new(model), Vec::new());
        SessionDemand { id: SessionId(id), model, slo: ms(slo_ms), weight, rate, members }
    }

    fn planned(sessions: Vec<SessionDemand>, devices: usize) -> Planned {
        plan(&Asked { cause: Cause::Demand, sessions, queries: Vec::new(), devices: (0..devices).collect() })
    }

    #[test]
    fn a_lost_device_is_not_planned_for_and_the_others_keep_their_numbers() {
        let sessions = vec![session(0, 100, 20.0, 1.0, &[true; 3])];
        let asked = Asked { cause: Cause::Devices, sessions, queries: Vec::new(), devices: vec![0, 2] };
        let report = plan(&asked).result.unwrap();
        assert_eq!(report.devices.iter().map(|device| device.device).collect::<Vec<_>>(), [0, 2]);
    }

    #[test]
    fn what_is_placed_is_promised_and_what_is_not_is_named() {
        let sessions = vec![
            session(0, 100, 200.0, 1.0, &[true, false]),
            session(1, 100, 100.0, 1.0, &[true, true]),
            session(2, 5, 10.0, 1.0, &[true, true]),
            session(3, 100, 10.0, 1.0, &[false, false]),
            session(4, 100, 0.0, 1.0, &[true, true]),
        ];
        let planned = planned(sessions, 2);
        let report = planned.result.unwrap();
        let promised: Vec<(u32, f64)> = planned.promises.iter().map(|p| (p.session.0, p.rate.round())).collect();
        assert_eq!(promised, [(0, 200.0), (1, 100.0), (2, 0.0), (3, 0.0)]);
        assert!(planned.promises.iter().all(|promise| promise.entitled == promise.rate));
        let unplaced: Vec<_> = report.unplaced.iter().map(|u| (&u.session.model[..], u.rate, u.why)).collect();
        let expected =
            [("model2", 10.0, "slo_too_short"), ("model3", 10.0, "no_profile"), ("model4", 0.0, "no_demand")];
        assert_eq!(unplaced, expected);
        let on = |device: usize| -> Vec<&str> {
            let slots = &report.devices[device].slots;
            slots.iter().flat_map(|slot| &slot.sessions).map(|share| &share.session.model[..]).collect()
        };
        assert!(on(0).contains(&"model0") && !on(1).contains(&"model0"), "where its model runs: {report:?}");
    }

    #[test]
    fn stages_are_planned_with_their_shares_for_all_that_their_query_would_call() {
        let (ms, served) = (Duration::from_millis, [true; 8]);
        let plain = session(0, 100, 10.0, 1.0, &served);
        // Of a query that loses calls on its way: the second stage is asked far less than the first makes of it.
        let stages = [session(1, 40, 50.0, 0.5, &served), session(2, 60, 20.0, 0.5, &served)];
        let (first, after) = (StageDeclaration::first, StageDeclaration::after);
        let stage = vec![first("a", "model1"), after("a", "b", "model2")];
        let spec =
            Spec::check(&QueryDeclaration { name: "q".into(), slo_ms: 100.0, weight: Some(4.0), stage }).unwrap();
        let models = stages.iter().map(|stage| Arc::clone(&stage.model)).collect();
        let bound = Arc::new(Bound::new(QueryId(0), Arc::new(spec), models).unwrap());
        let sessions = vec![SessionId(1), SessionId(2)];
        let demand =
            |rate| QueryDemand { bound: Arc::clone(&bound), sessions: sessions.clone(), rate, gammas: vec![1.0, 3.0] };
        let asked = |rate| {
            let sessions = [&plain, &stages[0], &stages[1]].map(Clone::clone).to_vec();
            Asked { cause: Cause::Demand, sessions, queries: vec![demand(rate)], devices: (0..8).collect() }
        };
        let planned = plan(&asked(50.0));
        let split = &planned.splits[0].split;
        assert_eq!(split.rates, [50.0, 150.0]);
        let all = split.shares[0] + split.shares[1];
        assert!(all <= ms(100) && all > ms(99), "{split:?}");
        assert!(split.weights[1] > split.weights[0], "{split:?}");
        assert!((split.weights.iter().sum::<f64>() - 4.0).abs() < 1e-9, "they are the query's weight: {split:?}");
        let promised: Vec<_> = planned.promises.iter().map(|p| (p.session.0, p.slo, p.rate.round())).collect();
        let expected = [(0, ms(100), 10.0), (1, ms(40), 50.0), (2, ms(60), 150.0)];
        assert_eq!(promised, expected, "by the SLO by which the poller knows them");
        let idle = plan(&asked(0.0));
        assert!(idle.splits.is_empty(), "what is asked nothing stays as it is");
        assert_eq!(idle.promises[2].rate.round(), 20.0);
    }

    #[test]
    fn when_devices_are_full_everybody_keeps_the_same_part_times_its_weight() {
        let sessions = vec![session(0, 100, 2000.0, 1.0, &[true]), session(1, 100, 2000.0, 2.0, &[true])];
        let planned = planned(sessions, 1);
        let rates: Vec<f64> = planned.promises.iter().map(|promise| promise.rate).collect();
        assert!(rates[0] > 100.0 && (rates[1] / rates[0] - 2.0).abs() < 0.01, "{rates:?}");
        let unplaced = planned.result.unwrap().unplaced;
        assert!(unplaced.iter().all(|unplaced| unplaced.why == "no_device"));
        assert!((unplaced[0].rate + rates[0] - 2000.0).abs() < 1e-6);
        assert!(
            planned.promises.iter().all(|promise| promise.entitled == 2000.0),
            "who gets less is not the plan's to say"
        );
    }

    #[test]
    fn a_demand_that_means_nothing_is_an_error_and_promises_nothing() {
        let planned = planned(vec![session(0, 100, f64::NAN, 1.0, &[true])], 1);
        assert!(planned.result.unwrap_err().starts_with("session 0: rate NaN"));
        assert!(planned.promises.is_empty());
    }

    #[test]
    fn without_sessions_every_device_has_nothing_to_do() {
        let report = planned(Vec::new(), 3).result.unwrap();
        assert!(report.devices.len() == 3 && report.devices.iter().all(|device| device.slots.is_empty()));
    }
}
