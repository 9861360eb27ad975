//! From sessions as they were asked for to requests that are ready to be sent.

use super::arrivals::{Arrivals, Part};
use super::driver::{Flight, Source};
use super::inputs::Inputs;
use super::report::Outcome;
use super::rooms::rooms;
use super::spec::SessionSpec;
use super::tally::Tally;
use super::{LoadError, Offer, Options};
use rota_ipc::client::{Error, Open, Request};
use rota_ipc::control::ModelInfo;
use rota_ipc::wire::{SLOTS_MAX, SLOTS_MIN};
use rota_ipc::{Client, ClientOptions};
use std::time::Duration;

/// A session of this process: its requests, when they are due, and what came of them.
#[derive(Debug)]
pub struct Lane {
    pub model: String,
    pub slo_ns: u64,
    /// Items that each request brings.
    pub items: u32,
    pub source: Source,
    pub in_flight: u32,
    pub tally: Tally,
    /// What the daemon said of the first request that failed.
    pub failure: Option<String>,
    inputs: Inputs,
    /// By variant: requests that are not in flight, and hold that variant's inputs. The last used comes first, because it is
    /// still in the cache.
    free: Vec<Vec<Request>>,
    /// The variant that is sent next.
    turn: usize,
}

/// A connection with everything that a driver needs.
pub struct Connected {
    pub client: Client,
    pub lanes: Vec<Lane>,
    pub flights: Vec<Flight>,
}

/// Connects, opens the sessions and makes all requests.
///
/// Sizes are known only after the sessions were opened, and the arena has to be large enough for them: so a first, small
/// connection asks what the models look like.
pub fn connect(options: &Options, part: Part) -> Result<Connected, LoadError> {
    let mut client = Client::connect(&options.socket, sizing(options))?;
    let mut plans = Vec::with_capacity(options.sessions.len());
    for spec in &options.sessions {
        let session = client.open(&spec.model, Open { version: None, slo: spec.slo })?;
        plans.push(Plan::new(spec, session.model(), options)?);
    }
    drop(client);
    let requests: usize = plans.iter().map(|plan| plan.requests).sum();
    if requests > SLOTS_MAX as usize {
        return Err(LoadError::InFlight { requests, most: SLOTS_MAX });
    }
    let arena_bytes: usize = plans.iter().map(|plan| plan.requests * plan.request_bytes).sum();
    let client = ClientOptions {
        slots: (requests as u32).next_power_of_two().max(SLOTS_MIN),
        arena_bytes: arena_bytes.max(1) as u64,
        ..client_options(options)
    };
    let mut client = Client::connect(&options.socket, client)?;
    let mut lanes = Vec::with_capacity(plans.len());
    let mut flights = Vec::with_capacity(requests);
    for (index, (plan, spec)) in plans.into_iter().zip(&options.sessions).enumerate() {
        lanes.push(lane(&mut client, &mut flights, index, plan, spec, options, part)?);
    }
    Ok(Connected { client, lanes, flights })
}

/// For a connection that only asks what is there.
fn sizing(options: &Options) -> ClientOptions {
    ClientOptions { slots: SLOTS_MIN, arena_bytes: 4096, ..client_options(options) }
}

fn client_options(options: &Options) -> ClientOptions {
    // Opening a session waits for its model to be loaded, and measured.
    let timeout = Duration::from_secs(600);
    ClientOptions { timeout, spin: options.client_spin, ..ClientOptions::default() }
}

/// What a session needs of the connection.
struct Plan {
    inputs: Inputs,
    /// Bytes, by the model's outputs.
    rooms: Vec<usize>,
    /// Requests that may be in flight.
    requests: usize,
    request_bytes: usize,
}

impl Plan {
    fn new(spec: &SessionSpec, model: &ModelInfo, options: &Options) -> Result<Plan, LoadError> {
        let inputs = Inputs::new(spec, model, &options.sizes)?;
        let rooms = rooms(&options.socket, &sizing(options), spec, model, &inputs)?;
        let outputs: usize = rooms.iter().map(|room| room.max(&1).next_multiple_of(64)).sum();
        let request_bytes = inputs.bytes() + outputs;
        let requests = match &options.offer {
            Offer::Closed(in_flight) => *in_flight as usize,
            Offer::Arrivals(_) | Offer::Trace(_) => {
                let share = options.arena_bytes / options.sessions.len() / request_bytes.max(1);
                share.clamp(1, spec.in_flight_max.unwrap_or(options.in_flight_max) as usize)
            }
        };
        Ok(Plan { inputs, rooms, requests, request_bytes: request_bytes.max(64) })
    }
}

fn lane(
    client: &mut Client,
    flights: &mut Vec<Flight>,
    index: usize,
    plan: Plan,
    spec: &SessionSpec,
    options: &Options,
    part: Part,
) -> Result<Lane, LoadError> {
    let session = client.open(&spec.model, Open { version: None, slo: spec.slo })?;
    let variants = plan.inputs.variants();
    let mut free: Vec<Vec<Request>> = (0..variants).map(|_| Vec::with_capacity(plan.requests)).collect();
    for number in 0..plan.requests {
        let mut request = client.request(&session)?;
        let variant = number % variants;
        plan.inputs.write(variant, &mut request)?;
        for (output, room) in plan.rooms.iter().enumerate() {
            request.output(output, *room)?;
        }
        request.tag = flights.len() as u64;
        flights.push(Flight::new(index, variant));
        free[variant].push(request);
    }
    let source = match &options.offer {
        Offer::Closed(in_flight) => Source::Closed { in_flight: *in_flight },
        Offer::Arrivals(pattern) => {
            let rate = spec.rate.ok_or_else(|| LoadError::NoRate { model: spec.model.clone() })?;
            let rate = rate / f64::from(spec.items);
            open(Arrivals::generated(*pattern, rate, part, options.seed, index as u32))
        }
        Offer::Trace(trace) => open(trace.arrivals(index, part)),
    };
    Ok(Lane {
        model: spec.model.clone(),
        slo_ns: session.slo().as_nanos() as u64,
        items: spec.items,
        source,
        in_flight: 0,
        tally: Tally::default(),
        failure: None,
        inputs: plan.inputs,
        free,
        turn: part.index as usize % variants,
    })
}

fn open(mut arrivals: Arrivals) -> Source {
    let next = arrivals.next();
    Source::Open { arrivals, next }
}

impl Lane {
    /// A request with the next variant's inputs: one that holds them if there is one, else another, rewritten.
    pub fn take(&mut self, flights: &mut [Flight]) -> Result<Option<Request>, Error> {
        let variant = self.turn;
        let request = match self.free[variant].pop() {
            Some(request) => request,
            None => {
                let Some(mut request) = self.free.iter_mut().find_map(Vec::pop) else { return Ok(None) };
                self.inputs.write(variant, &mut request)?;
                flights[request.tag as usize].variant = variant as u32;
                request
            }
        };
        self.turn = (variant + 1) % self.free.len();
        Ok(Some(request))
    }

    pub fn outcome(self) -> Outcome {
        let slo_ms = self.slo_ns as f64 / 1e6;
        Outcome { model: self.model, slo_ms, items: self.items, tally: self.tally, failure: self.failure }
    }

    pub fn keep(&mut self, variant: u32, request: Request) {
        self.free[variant as usize].push(request);
    }
}
