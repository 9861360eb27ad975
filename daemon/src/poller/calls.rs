//! Runs of queries while they last: which calls may be made, by when each has to be answered, and when all is over.
//!
//! A run can't finish in time any more when a call of it is dropped, or comes too late even for batches of one of its own stage and
//! of those behind it. Then all of it is lost: what waits is dropped at once, and so is each later call, until the
//! client begins another run in that slot. Nobody else notices.

use super::Poller;
use super::requests::InRun;
use super::runs::{Lost, Place, RunIndex, Worst};
use super::submissions::{Refused, dropped, failed};
use crate::query::QueryId;
use rota_ipc::wire::{Reason, Status, Submission};
use rota_sched::query::RESERVE;
use rota_sched::{Event, Instant, RequestId};
use std::time::Duration;

/// A call that may be made.
pub(super) struct Call {
    run: RunIndex,
    stage: u16,
    /// When it has to be answered, so that the stages behind it have their time.
    pub latest: Instant,
    /// When its query has to be.
    pub due: Instant,
}

/// How a run ends.
#[derive(Clone, Copy)]
enum Ending {
    /// Its client had it finished, and every call has ended.
    Finished,
    /// Its client gave it up, or is gone.
    Abandoned,
    Lost(Lost),
}

impl Poller {
    /// Begins a run. There is no answer: what is wrong with the beginning, its calls are told.
    pub(super) fn begin_run(&mut self, key: usize, submission: &Submission, now: Instant) {
        let (id, query) = (submission.query, submission.slot);
        if id >> u32::BITS == 0 || !self.clients.entries[key].queries.contains(&QueryId(query)) {
            return;
        }
        match self.clients.place(key, id) {
            Some(&mut Place::Open(run)) => self.end_run(run, Ending::Abandoned, now),
            Some(_) => {}
            None => return,
        }
        let per_user = self.options.runs_per_user;
        let room = self.runs.count() < self.options.runs_max && self.clients.admit_run(key, per_user);
        let state = self.queries[query as usize].as_mut().expect("a query that a client has open is there");
        state.stats.started += 1;
        let slo = state.bound.spec.slo;
        let opened = if room { self.runs.open(query, state.sessions.len(), now) } else { None };
        let place = match opened {
            Some((index, run)) => {
                (run.client, run.id) = (key as u32, id);
                (run.deadline, run.expires) = (now + slo, now + (slo * EXPIRES_AFTER).max(EXPIRES_MIN));
                self.runs_due = self.runs_due.min(run.expires);
                Place::Open(index)
            }
            None => {
                state.stats.dropped += 1;
                Place::Lost { id, why: Lost::NoRoom }
            }
        };
        *self.clients.place(key, id).expect("it was there") = place;
    }

    /// The run makes no further calls. Its slot is free for another at once.
    pub(super) fn finish_run(&mut self, key: usize, id: u64, now: Instant) {
        let Some(run) = self.leave_slot(key, id) else { return };
        self.runs[run].finished = true;
        if self.runs[run].calls.is_empty() {
            self.end_run(run, Ending::Finished, now);
        }
    }

    /// The client no longer wants the run.
    pub(super) fn give_up_run(&mut self, key: usize, id: u64, now: Instant) {
        if let Some(run) = self.leave_slot(key, id) {
            self.end_run(run, Ending::Abandoned, now);
        }
    }

    /// Frees the slot of the run `id`; the run, if it is open.
    fn leave_slot(&mut self, key: usize, id: u64) -> Option<RunIndex> {
        let place = self.clients.place(key, id)?;
        match *place {
            Place::Open(run) if self.runs[run].id == id => {
                *place = Place::Free;
                Some(run)
            }
            Place::Lost { id: lost, .. } if lost == id => {
                *place = Place::Free;
                None
            }
            _ => None,
        }
    }

    /// The client is gone: nobody will finish its runs.
    pub(super) fn abandon_runs(&mut self, key: usize, now: Instant) {
        for slot in 0..self.clients.entries[key].runs.len() {
            if let Place::Open(run) = std::mem::take(&mut self.clients.entries[key].runs[slot]) {
                self.end_run(run, Ending::Abandoned, now);
            }
        }
    }

    /// Gives up what was not finished in time, some at a time. True: it had a look.
    pub(super) fn expire_runs(&mut self, now: Instant) -> bool {
        if now < self.runs_due {
            return false;
        }
        for _ in 0..EXPIRED_PER_TURN {
            let Some(run) = self.runs.expired(now) else {
                self.runs_due = self.runs.next_expiry().unwrap_or(Instant::MAX);
                break;
            };
            self.end_run(run, Ending::Lost(Lost::Expired), now);
        }
        true
    }

    /// A query is no longer served: neither are its runs.
    pub(super) fn lose_runs_of(&mut self, query: QueryId, now: Instant) {
        while let Some(run) = self.runs.oldest(query.0) {
            self.end_run(run, Ending::Lost(Lost::Unloaded), now);
        }
    }

    /// Which call `submission` is, whose sessions are in `self.asked`; `None` for a request outside of queries. A run that is beyond
    /// saving is lost by that; otherwise nothing changes.
    pub(super) fn check_call(
        &mut self,
        key: usize,
        submission: &Submission,
        now: Instant,
    ) -> Result<Option<Call>, Refused> {
        let wrong = |text: String| Err(failed(Reason::WrongStage, text));
        let of = |asked: &super::Asked| self.sessions[asked.session.0 as usize].as_ref()?.stage;
        let named = self.asked.iter().find_map(of);
        if submission.query == 0 {
            let Some((query, stage)) = named else { return Ok(None) };
            let spec = &self.query(query).bound.spec;
            let stage = &spec.stages[usize::from(stage)].name;
            return wrong(format!("stage \"{stage}\" of query \"{}\" is called within a run of it", spec.name));
        }
        let run = match self.clients.place(key, submission.query) {
            Some(&mut Place::Open(run)) if self.runs[run].id == submission.query => run,
            Some(&mut Place::Lost { id, why }) if id == submission.query => return Err(lost(why)),
            _ => {
                let text = format!("run {:#x} is not open: it was not begun, or is over", submission.query);
                return Err(failed(Reason::UnknownRun, text));
            }
        };
        let query = QueryId(self.runs[run].query);
        let spec = &self.query(query).bound.spec;
        let stage = usize::from(submission.stage);
        let Some(declared) = spec.stages.get(stage) else {
            let count = spec.stages.len();
            return wrong(format!("query \"{}\" has no stage {stage}; it has {count}, from 0", spec.name));
        };
        if self.asked.len() != 1 || named != Some((query, submission.stage)) {
            return wrong(format!(
                "stage \"{}\" of query \"{}\" is called with the session that belongs to it, and no other",
                declared.name, spec.name
            ));
        }
        let made = &self.runs[run].stages;
        if let Some(before) = declared.after.filter(|&before| made[before].answered == 0) {
            let before = &spec.stages[before].name;
            return wrong(format!("stage \"{}\" is called before stage \"{before}\" has answered", declared.name));
        }
        if made[stage].calls >= declared.max_calls {
            let (name, most) = (&declared.name, declared.max_calls);
            return wrong(format!(
                "stage \"{name}\" was called {most} times in this run, which is the most (max_calls)"
            ));
        }
        let due = self.runs[run].deadline;
        let state = self.query(query);
        if now + state.least[stage] > due {
            self.end_run(run, Ending::Lost(Lost::Late), now);
            return Err(lost(Lost::Late));
        }
        let latest = state.rooms[stage].latest(due, RESERVE);
        Ok(Some(Call { run, stage: submission.stage, latest, due }))
    }

    /// A call was admitted, as this request.
    pub(super) fn enter_call(&mut self, id: RequestId, call: &Call) {
        let run = &mut self.runs[call.run];
        let request = &mut self.requests[id];
        request.call = Some(InRun { run: call.run, stage: call.stage, place: run.calls.len() as u32 });
        run.calls.push(id);
        let count = &mut run.stages[usize::from(call.stage)];
        count.calls += 1;
        count.lost = count.lost.saturating_sub(1);
        count.items = count.items.saturating_add(request.items);
    }

    /// A call was dropped before it was admitted: there is not enough for all.
    pub(super) fn lose_call(&mut self, call: &Call, now: Instant) {
        self.end_run(call.run, Ending::Lost(Lost::Late), now);
    }

    /// A request has ended: where it is a call, so much of its run. One that was lost with its device may be made again.
    pub(super) fn call_ended(&mut self, id: RequestId, (status, reason): (Status, Reason), now: Instant) {
        let Some(InRun { run: index, stage, place }) = self.requests[id].call.take() else { return };
        let run = &mut self.runs[index];
        run.calls.swap_remove(place as usize);
        if let Some(&moved) = run.calls.get(place as usize)
            && let Some(moved) = &mut self.requests[moved].call
        {
            moved.place = place;
        }
        match status {
            Status::Ok | Status::Late => {
                let count = &mut run.stages[usize::from(stage)];
                count.answered += 1;
                count.answered_items = count.answered_items.saturating_add(self.requests[id].items);
                run.answered = now;
            }
            Status::Cancelled => run.worst = run.worst.max(Worst::Cancelled),
            Status::Failed if reason == Reason::DeviceLost => {
                let count = &mut run.stages[usize::from(stage)];
                count.calls -= 1;
                count.items = count.items.saturating_sub(self.requests[id].items);
                count.lost += 1;
            }
            Status::Failed => run.worst = Worst::Failed,
            Status::Dropped => return self.end_run(index, Ending::Lost(Lost::Late), now),
        }
        if run.finished && run.calls.is_empty() {
            self.end_run(index, Ending::Finished, now);
        }
    }

    /// Counts a run, withdraws what waits of it, and gives everything back. What executes is answered when its batch ends, and no
    /// longer a call.
    fn end_run(&mut self, index: RunIndex, ending: Ending, now: Instant) {
        let run = &mut self.runs[index];
        let (key, id) = (run.client as usize, run.id);
        let mut calls = std::mem::take(&mut run.calls);
        self.count_run(index, ending, now);
        if self.clients.holds(key, id, index) {
            let place = match ending {
                Ending::Lost(why) => Place::Lost { id, why },
                Ending::Finished | Ending::Abandoned => Place::Free,
            };
            *self.clients.place(key, id).expect("it holds the run") = place;
        }
        for id in calls.drain(..) {
            self.requests[id].call = None;
            if self.dispatcher.handle(Event::Cancelled(id), now) {
                match ending {
                    Ending::Lost(why) => {
                        let Refused { status, refusal, .. } = lost(why);
                        self.answer_unrun(id, status, refusal.reason, why.text(), now);
                    }
                    _ => self.answer_unrun(id, Status::Cancelled, Reason::None, "its query was given up", now),
                }
            }
        }
        self.runs[index].calls = calls;
        self.runs.close(index);
        self.clients.release_run(key);
    }

    fn count_run(&mut self, index: RunIndex, ending: Ending, now: Instant) {
        let run = &self.runs[index];
        let state = self.queries[run.query as usize].as_mut().expect("a query stays while runs of it are open");
        let stats = &mut state.stats;
        match ending {
            Ending::Lost(Lost::Late | Lost::NoRoom) => stats.dropped += 1,
            Ending::Lost(Lost::Expired) => stats.expired += 1,
            Ending::Lost(Lost::Unloaded) => stats.failed += 1,
            Ending::Finished if run.worst == Worst::Failed || run.stages.iter().any(|count| count.lost > 0) => {
                stats.failed += 1;
            }
            Ending::Finished if run.worst == Worst::Answered && run.answered > run.start => {
                let good = run.answered <= run.deadline;
                stats.answered(good, run.answered.since(run.start), now);
                for (flow, count) in state.flows.iter_mut().zip(&run.stages) {
                    flow.asked.count(count.items, now);
                    flow.answered.count(count.answered_items, now);
                }
            }
            // Nothing was asked, or its client did not want it any more.
            Ending::Finished | Ending::Abandoned => stats.abandoned += 1,
        }
    }
}

/// How a call of a lost run is answered.
fn lost(why: Lost) -> Refused {
    match why {
        Lost::Late | Lost::Expired => dropped(Reason::QueryLost, why.text()),
        Lost::NoRoom => dropped(Reason::Overload, why.text()),
        Lost::Unloaded => failed(Reason::Unloaded, why.text()),
    }
}

/// A run that is not finished so many times its SLO after it began is given up: until then a client may look at late answers.
const EXPIRES_AFTER: u32 = 4;
/// … and not before this: a client may be held up for longer than a short SLO when all is answered.
const EXPIRES_MIN: Duration = Duration::from_secs(1);
/// Runs that are given up in one turn of the poller.
const EXPIRED_PER_TURN: usize = 32;
