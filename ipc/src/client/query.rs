//! Queries: trees of calls under one SLO, which counts from the beginning of a run.

use super::control::{Control, unexpected};
use super::error::Error;
use super::request::{Answer, Request, Ticket};
use super::runs::{Call, RunId};
use super::session::{Open, Session};
use super::{Client, OpenSession, Rejected};
use crate::control::{QueryDeclaration, QueryInfo, Reply, Request as Question, StageInfo};
use crate::wire::{OP_BEGIN, OP_FINISH, OP_GIVE_UP, Submission};
use std::sync::Arc;
use std::time::Duration;

/// A query that was opened, by [`Client::open_query`]. It stays valid when the client reconnects.
#[derive(Clone, Debug)]
pub struct OpenQuery(Arc<Opened>);

#[derive(Debug)]
struct Opened {
    /// Place in the client's table.
    index: usize,
    /// The daemon's number for it; another after a reconnect.
    id: u32,
    name: String,
    slo: Duration,
    stages: Vec<Stage>,
    /// It was declared by this client, as this.
    declared: Option<QueryDeclaration>,
}

/// A stage of a query: a session whose requests are calls of the query's runs.
#[derive(Clone, Debug)]
pub struct Stage {
    pub name: String,
    /// The stage with whose answers it is called; `None`: the query begins here.
    pub after: Option<String>,
    /// Calls of it in one run at most.
    pub max_calls: u32,
    /// Its SLO is the stage's share of the query's when it was opened.
    pub session: Session,
}

impl Opened {
    fn question(&self) -> Question {
        match &self.declared {
            Some(declared) => Question::Declare { query: declared.clone() },
            None => Question::Query { name: self.name.clone() },
        }
    }

    /// The same query, opened again. Fails when its stages or what their models take are not what they were.
    fn renewed(&self, now: &QueryInfo) -> Result<OpenQuery, Error> {
        let same = |(stage, now): (&Stage, &StageInfo)| {
            let model = stage.session.model();
            stage.name == now.name && (&model.inputs, &model.outputs) == (&now.model.inputs, &now.model.outputs)
        };
        if self.stages.len() != now.stages.len() || !self.stages.iter().zip(&now.stages).all(same) {
            return Err(Error::ModelChanged { model: format!("of a stage of query {}", self.name) });
        }
        Ok(OpenQuery(Arc::new(Opened {
            index: self.index,
            id: now.id,
            name: self.name.clone(),
            slo: duration(now.slo_ms)?,
            stages: self.stages.clone(),
            declared: self.declared.clone(),
        })))
    }
}

impl OpenQuery {
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// From when a run begins to its last answer.
    pub fn slo(&self) -> Duration {
        self.0.slo
    }

    pub fn stages(&self) -> &[Stage] {
        &self.0.stages
    }

    fn stage(&self, name: &str) -> Result<(u16, &Stage), Error> {
        let stages = self.stages();
        let found = stages.iter().position(|stage| stage.name == name).ok_or_else(|| Error::UnknownStage {
            query: self.0.name.clone(),
            stage: name.into(),
            known: stages.iter().map(|stage| &stage.name[..]).collect::<Vec<_>>().join(", "),
        })?;
        Ok((found as u16, &stages[found]))
    }
}

/// For one run after another. Many runs at a time, or with an event loop: [`Client::open_query`], [`Client::begin`],
/// [`Client::request_in`] and then as with any request, [`Client::finish`].
impl Client {
    /// A query that the daemon knows from its settings, or that this client declared.
    ///
    /// # Errors
    /// [`Error::Refused`] when there is none, or one of its models is not served.
    pub fn query(&mut self, name: &str) -> Result<Query<'_>, Error> {
        let query = self.open_query(name)?;
        Ok(Query { client: self, query })
    }

    /// Declares a query for this user's connections, until the last that declared it has ended.
    ///
    /// # Errors
    /// [`Error::Refused`] when it is no query (the text says why), or when there is another one with its name.
    pub fn declare(&mut self, query: &QueryDeclaration) -> Result<Query<'_>, Error> {
        let known = self.queries.iter().position(|known| known.0.declared.as_ref() == Some(query));
        let query = match known {
            Some(known) => self.known(known)?,
            None => {
                let info = ask(&mut self.control, &Question::Declare { query: query.clone() })?;
                self.keep(info, Some(query.clone()))?
            }
        };
        Ok(Query { client: self, query })
    }

    /// As [`Client::query`], for several runs at a time. The daemon is asked the first time only, and after it answered
    /// [`crate::wire::Reason::Unloaded`].
    pub fn open_query(&mut self, name: &str) -> Result<OpenQuery, Error> {
        if let Some(known) = self.queries.iter().position(|known| known.name() == name) {
            return self.known(known);
        }
        let info = ask(&mut self.control, &Question::Query { name: name.into() })?;
        self.keep(info, None)
    }

    /// Begins a run; its SLO counts from when the daemon takes notice. It has to be ended by [`Client::finish`] or
    /// [`Client::give_up`]; the daemon gives up one that is not ended within a few times its SLO.
    ///
    /// # Errors
    /// [`Error::RunsFull`] when as many are open as there are slots; [`Error::RingFull`].
    pub fn begin(&mut self, query: &OpenQuery) -> Result<RunId, Error> {
        self.check_open()?;
        let index = query.0.index;
        let known = self.queries.get(index).filter(|known| known.name() == query.name());
        let id = known.ok_or(Error::Foreign { what: "the query" })?.0.id;
        let run = self.runs.begin(index).ok_or(Error::RunsFull { slots: self.link.slots() })?;
        let submission = Submission { op: OP_BEGIN, slot: id, query: run.id(), ..Submission::default() };
        if let Err(error) = self.push(&submission) {
            self.runs.end(run);
            return Err(error);
        }
        self.link.publish();
        Ok(run)
    }

    /// A new request, to call a stage of a run: submitted like any other.
    pub fn request_in(&self, run: RunId, stage: &str) -> Result<Request, Error> {
        let (call, session) = self.call(run, stage)?;
        let mut request = self.request(&session)?;
        request.call = Some(call);
        Ok(request)
    }

    /// Lets a request that called the same stage before call it in this run: its buffers are used again.
    ///
    /// # Errors
    /// [`Error::WrongStage`] when it is no request for that stage.
    pub fn call_in(&self, run: RunId, stage: &str, request: &mut Request) -> Result<(), Error> {
        let (call, session) = self.call(run, stage)?;
        if request.sessions.len() != 1 || request.session().index != session.index {
            let found = request.session().model().name.clone();
            let query = self.queries[self.runs.query(run).ok_or(Error::RunEnded)?].name().into();
            return Err(Error::WrongStage { query, stage: stage.into(), found });
        }
        request.call = Some(call);
        Ok(())
    }

    /// The run makes no further calls: with its last answer it is over, in time or not. Calls in flight are answered.
    pub fn finish(&mut self, run: RunId) -> Result<(), Error> {
        self.end_run(run, OP_FINISH)
    }

    /// The run is of no further use: what waits of it is cancelled.
    pub fn give_up(&mut self, run: RunId) -> Result<(), Error> {
        self.end_run(run, OP_GIVE_UP)
    }

    fn end_run(&mut self, run: RunId, op: u8) -> Result<(), Error> {
        self.check_open()?;
        if !self.runs.end(run) {
            return Err(Error::RunEnded);
        }
        self.runs.unsent.push_back(Submission { op, query: run.id(), ..Submission::default() });
        self.send_unsent()
    }

    /// As [`Client::push_unsent`], and shows it to the daemon; what does not fit has another chance later.
    pub(super) fn send_unsent(&mut self) -> Result<(), Error> {
        if self.runs.unsent.is_empty() {
            return Ok(());
        }
        let sent = self.push_unsent();
        self.link.publish();
        match sent {
            Err(Error::RingFull { .. }) => Ok(()),
            sent => sent,
        }
    }

    /// What the ring had no room for before goes first.
    pub(super) fn push_unsent(&mut self) -> Result<(), Error> {
        while let Some(submission) = self.runs.unsent.front() {
            let submission = *submission;
            self.push_now(&submission)?;
            self.runs.unsent.pop_front();
        }
        Ok(())
    }

    /// What a request's submission says of the call that it is: run and stage.
    pub(super) fn called(&self, request: &Request) -> Result<(u64, u16), Error> {
        let Some(call) = request.call else { return Ok((0, 0)) };
        self.runs.query(call.run).ok_or(Error::RunEnded)?;
        Ok((call.run.id(), call.stage))
    }

    fn call(&self, run: RunId, stage: &str) -> Result<(Call, Session), Error> {
        let query = self.runs.query(run).ok_or(Error::RunEnded)?;
        let (number, stage) = self.queries[query].stage(stage)?;
        Ok((Call { run, stage: number, query }, stage.session.clone()))
    }

    /// A query that was opened before; again, if the daemon does not serve it as it did.
    fn known(&mut self, index: usize) -> Result<OpenQuery, Error> {
        if self.runs.stale.contains(&index) {
            let query = self.queries[index].clone();
            let now = ask(&mut self.control, &query.0.question())?;
            self.queries[index] = query.0.renewed(&now)?;
            for (stage, now) in query.stages().iter().zip(&now.stages) {
                if let Some(session) = &mut self.sessions[stage.session.index] {
                    session.id = now.session;
                }
            }
            self.runs.stale.retain(|&stale| stale != index);
        }
        Ok(self.queries[index].clone())
    }

    /// Takes a query that was opened into the tables.
    fn keep(&mut self, info: QueryInfo, declared: Option<QueryDeclaration>) -> Result<OpenQuery, Error> {
        let slo = duration(info.slo_ms)?;
        let mut stages = Vec::with_capacity(info.stages.len());
        for stage in info.stages {
            let (model, share) = (Arc::new(stage.model), duration(stage.share_ms)?);
            let session = Session { index: self.sessions.len(), model: model.clone(), slo: share };
            let open = Open { version: Some(model.version), slo: None };
            self.sessions.push(Some(OpenSession { id: stage.session, open, is_own: false, model }));
            stages.push(Stage { name: stage.name, after: stage.after, max_calls: stage.max_calls, session });
        }
        let index = self.queries.len();
        let query = OpenQuery(Arc::new(Opened { index, id: info.id, name: info.name, slo, stages, declared }));
        self.queries.push(query.clone());
        Ok(query)
    }

    /// Opens the queries on a new connection; `ids` are the sessions' there. After an error the client is as it was.
    pub(super) fn reopen_queries(&mut self, control: &mut Control, ids: &mut [Option<u32>]) -> Result<(), Error> {
        let mut reopened = Vec::with_capacity(self.queries.len());
        for OpenQuery(query) in &self.queries {
            let now = ask(control, &query.question())?;
            reopened.push(query.renewed(&now)?);
            for (stage, now) in query.stages.iter().zip(&now.stages) {
                ids[stage.session.index] = Some(now.session);
            }
        }
        self.queries = reopened;
        Ok(())
    }
}

/// A query whose runs a client makes one after the other.
///
/// ```no_run
/// use rota_ipc::Client;
/// # fn crops(_: &rota_ipc::client::Answer) -> Result<Vec<Vec<f32>>, rota_ipc::client::Error> { Ok(vec![]) }
/// # fn main() -> Result<(), rota_ipc::client::Error> {
/// # let page = vec![0.0; 3 * 960 * 704];
/// let mut client = Client::connect_default()?;
/// let mut run = client.query("read-page")?.start();
/// let mut image = run.request("find")?;
/// image.input::<f32>("x", &[1, 3, 960, 704])?.copy_from_slice(&page);
/// let found = run.call("find", image)?;
/// // All lines are in flight at once.
/// let mut tickets = Vec::new();
/// for crop in crops(&found)? {
///     let mut line = run.request("read")?;
///     line.input::<f32>("x", &[1, 3, 48, 320])?.copy_from_slice(&crop);
///     tickets.push(run.submit("read", line)?);
/// }
/// for ticket in tickets {
///     println!("{:?}", run.wait_for(ticket)?.output::<f32>(0)?.dims);
/// }
/// run.finish()?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Query<'a> {
    client: &'a mut Client,
    query: OpenQuery,
}

impl<'a> Query<'a> {
    /// Begins a run. What stands against it, a full ring or a connection that has ended, is the error of its first call.
    pub fn start(self) -> Run<'a> {
        let run = self.client.begin(&self.query);
        Run { client: self.client, query: self.query, run: run.map_err(Some) }
    }

    /// From when a run begins to its last answer.
    pub fn slo(&self) -> Duration {
        self.query.slo()
    }

    pub fn stages(&self) -> &[Stage] {
        self.query.stages()
    }

    /// The query, for several runs at a time.
    pub fn open(&self) -> OpenQuery {
        self.query.clone()
    }
}

/// A run of a query. One that is dropped before it was finished is given up.
#[derive(Debug)]
pub struct Run<'a> {
    client: &'a mut Client,
    query: OpenQuery,
    /// Why it was not begun, until somebody was told.
    run: Result<RunId, Option<Error>>,
}

impl Run<'_> {
    /// A new request for a stage, without inputs yet.
    pub fn request(&mut self, stage: &str) -> Result<Request, Error> {
        let run = self.id()?;
        self.client.request_in(run, stage)
    }

    /// Calls a stage and waits for the answer. [`Answer::output`] fails with the daemon's reason when there is none: the run may be
    /// beyond saving, and then every further call is answered at once.
    ///
    /// `request`: from [`Run::request`], of this run or, from an answer, of an earlier one.
    pub fn call(&mut self, stage: &str, request: Request) -> Result<Answer, Error> {
        let ticket = self.submit(stage, request)?;
        self.wait_for(ticket)
    }

    /// Calls a stage; others can be called before it has answered.
    pub fn submit(&mut self, stage: &str, request: Request) -> Result<Ticket, Box<Rejected>> {
        let mut request = request;
        let placed = self.id().and_then(|run| self.client.call_in(run, stage, &mut request));
        match placed {
            Ok(()) => self.client.submit(request),
            Err(error) => Err(Box::new(Rejected { request, error })),
        }
    }

    /// The answer to a call of this run, however long it takes: the daemon answers every call or ends.
    ///
    /// # Errors
    /// [`Error::Disconnected`] when the connection has ended, [`Error::Foreign`] when the answer was taken before.
    pub fn wait_for(&mut self, ticket: Ticket) -> Result<Answer, Error> {
        self.client.wait_long(ticket)?.ok_or(Error::Foreign { what: "the ticket" })
    }

    /// The client, to take answers as they come or to ask others meanwhile.
    pub fn client(&mut self) -> &mut Client {
        self.client
    }

    /// From when the run began to its last answer.
    pub fn slo(&self) -> Duration {
        self.query.slo()
    }

    /// The run makes no further calls. In time or not is decided by its last answer, not by when this is said.
    pub fn finish(mut self) -> Result<(), Error> {
        let run = self.id()?;
        self.client.finish(run)
    }

    fn id(&mut self) -> Result<RunId, Error> {
        match &mut self.run {
            Ok(run) => Ok(*run),
            Err(why) => Err(why.take().unwrap_or(Error::RunEnded)),
        }
    }
}

impl Drop for Run<'_> {
    fn drop(&mut self) {
        if let Ok(run) = self.run {
            // It was finished, or the connection has ended and all is given up.
            let _ = self.client.give_up(run);
        }
    }
}

fn ask(control: &mut Control, question: &Question) -> Result<QueryInfo, Error> {
    match control.ask(question, Some(control.timeout()))? {
        Reply::Query { query } => Ok(query),
        other => Err(unexpected(&other)),
    }
}

fn duration(ms: f64) -> Result<Duration, Error> {
    Duration::try_from_secs_f64(ms / 1e3).map_err(|_| Error::Protocol(format!("it said that a time is {ms} ms")))
}
