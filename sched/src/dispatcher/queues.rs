//! All queues: which are ready, what they aim at, and when the next request becomes hopeless.

use super::aim::{AT_ONCE, Price, aim};
use super::class::{Class, ClassIndex, Classes};
use super::earliest::Earliest;
use super::pool::{Demand, Pool, fair_share};
use super::queue::{NO_POOL, NOT_READY, Queue, QueueIndex, Waiting};
use super::window::{Judgement, Window};
use crate::{Instant, RequestId, SessionId};
use std::ops::{Index, IndexMut};

/// A queue's index is reused after it was freed. Index 0 is [`Queues::REFUSED`].
///
/// Aims follow measured rates in rounds: every tenth of a second all queues are aimed anew, some per step.
#[derive(Debug)]
pub struct Queues {
    slots: Vec<Queue>,
    free: Vec<QueueIndex>,
    /// Queues without a session or class any more; their requests are to be dropped.
    closed: Vec<QueueIndex>,
    pools: Vec<Pool>,
    /// By device; [`NO_POOL`] where a device serves nothing.
    pool_of: Vec<u32>,
    /// When a queue's next request becomes hopeless.
    pub expiry: Earliest,
    /// Queues that hold requests and may have turns.
    waiting: usize,
    round: Round,
}

/// Where the round of aiming stands.
#[derive(Debug)]
struct Round {
    next: Instant,
    pool: usize,
    member: usize,
}

/// Who are joined by what they serve.
struct Grouping {
    /// By device.
    parents: Vec<usize>,
}

impl Grouping {
    fn root(&mut self, device: usize) -> usize {
        let mut root = device;
        while self.parents[root] != root {
            root = self.parents[root];
        }
        self.parents[device] = root;
        root
    }

    fn join(&mut self, a: usize, b: usize) {
        let (a, b) = (self.root(a), self.root(b));
        self.parents[a.max(b)] = a.min(b);
    }
}

impl Queues {
    /// Requests for a session or class that is not served wait here for the next step, which drops them.
    pub const REFUSED: QueueIndex = QueueIndex(0);

    pub fn new() -> Queues {
        let refused = Queue::new(SessionId(u32::MAX), ClassIndex(u32::MAX), 0, 1.0, Instant(0));
        let mut queues = Queues {
            slots: vec![refused],
            free: Vec::new(),
            closed: Vec::new(),
            pools: Vec::new(),
            pool_of: Vec::new(),
            expiry: Earliest::default(),
            waiting: 0,
            round: Round { next: Instant(0), pool: 0, member: 0 },
        };
        queues.reserve();
        queues
    }

    fn reserve(&mut self) {
        self.expiry.reserve(self.slots.len());
    }

    /// A queue that joins the pool of its class, if that has one already.
    pub fn open(&mut self, queue: Queue, class: &Class) -> QueueIndex {
        let index = self.free.pop().unwrap_or(QueueIndex(self.slots.len() as u32));
        let pool = class.serving().next().and_then(|device| self.pool_of.get(device).copied());
        if index.0 as usize == self.slots.len() {
            self.slots.push(queue);
        } else {
            self[index] = queue;
        }
        self.reserve();
        if let Some(pool) = pool.filter(|&pool| pool != NO_POOL) {
            let slot = self.pools[pool as usize].add(index);
            (self[index].pool, self[index].slot) = (pool, slot);
        }
        index
    }

    /// No more turns: its requests leave by [`Queues::take_closed`].
    pub fn close(&mut self, index: QueueIndex) {
        self.rest(index);
        self.waiting -= usize::from(self[index].head().is_some());
        self.expiry.set(index.0 as usize, Instant::MAX);
        let Queue { pool, slot, .. } = self[index];
        if let Some(pool) = self.pools.get_mut(pool as usize)
            && let Some(moved) = pool.remove(slot)
        {
            self[moved].slot = slot;
        }
        self[index].pool = NO_POOL;
        self.closed.push(index);
    }

    /// Empties one closed queue, or the one of refused requests, into `drop`; false when there was none.
    pub fn take_closed(&mut self, drop: impl FnMut(&Waiting)) -> bool {
        let index = self.closed.pop().unwrap_or(Queues::REFUSED);
        let queue = &mut self[index];
        let any = queue.head().is_some();
        queue.clear(drop);
        if index != Queues::REFUSED {
            self.free.push(index);
        }
        any || index != Queues::REFUSED
    }

    /// Finds the pools anew: devices that serve a class in common, and so on, are one.
    pub fn group(&mut self, classes: &Classes, devices: usize) {
        let mut grouping = Grouping { parents: (0..devices).collect() };
        for class in classes.all() {
            let mut serving = class.serving();
            let Some(first) = serving.next() else { continue };
            serving.for_each(|device| grouping.join(first, device));
        }
        let roots: Vec<usize> = (0..devices).map(|device| grouping.root(device)).collect();
        let before = std::mem::take(&mut self.pools);
        let pool_before = std::mem::replace(&mut self.pool_of, vec![NO_POOL; devices]);
        for device in 0..devices {
            if roots[device] == device {
                let size = roots.iter().filter(|&&root| root == device).count();
                let mut pool = Pool::new(size as u32);
                if let Some(before) = pool_before.get(device).and_then(|&pool| before.get(pool as usize)) {
                    pool.learn(before);
                }
                self.pools.push(pool);
                self.pool_of[device] = self.pools.len() as u32 - 1;
            } else {
                self.pool_of[device] = self.pool_of[roots[device]];
            }
        }
        self.waiting = 0;
        self.round = Round { next: self.round.next, pool: self.pools.len(), member: 0 };
        for class in classes.all() {
            let Some(device) = class.serving().next() else { continue };
            for &index in &class.queues {
                let pool = self.pool_of[device];
                let slot = self.pools[pool as usize].add(index);
                let queue = &mut self[index];
                (queue.pool, queue.slot, queue.ready) = (pool, slot, NOT_READY);
                self.waiting += usize::from(self[index].head().is_some());
            }
        }
    }

    /// True when an interval of the rate's measurement ended.
    pub fn push(&mut self, index: QueueIndex, waiting: Waiting, class: &Class, now: Instant) -> bool {
        let queue = &mut self[index];
        let first = queue.head().is_none();
        let place = queue.insert(waiting);
        let interval_ended = queue.rate.count(waiting.items, now);
        let (ready, full) =
            (queue.ready != NOT_READY, queue.items() - u64::from(waiting.items) >= u64::from(queue.aim.batch));
        // Behind a head with no fewer items nobody is hopeless before it is.
        if place == 0 || queue.head().is_some_and(|head| head.items < waiting.items) {
            let hopeless_at = class.hopeless_at(waiting.deadline, waiting.items);
            if hopeless_at < self.expiry.of(index.0 as usize) {
                self.expiry.set(index.0 as usize, hopeless_at);
            }
        }
        self.waiting += usize::from(first);
        // A full batch gains nothing by a request more, unless that is the most urgent.
        if place == 0 || !(ready && full) {
            self.stand(index, class, now);
        }
        interval_ended
    }

    /// Puts a request where the next step drops it: its session or class is not served.
    pub fn refuse(&mut self, waiting: Waiting) {
        self[Queues::REFUSED].insert(waiting);
    }

    /// Takes out a request that waits there.
    pub fn cancel(
        &mut self,
        index: QueueIndex,
        deadline: Instant,
        request: RequestId,
        class: Option<&Class>,
        now: Instant,
    ) {
        self[index].cancel(deadline, request);
        // Of a closed queue, or one of refused requests, nothing else is known.
        let Some(class) = class else { return };
        // The expiry may now be too early: the step at it finds nothing and sets it right.
        if self[index].head().is_none() {
            self.waiting -= 1;
            self.expiry.set(index.0 as usize, Instant::MAX);
        }
        self.stand(index, class, now);
    }

    /// Removes the requests of `window`, and those before it that `keep` refuses.
    pub fn take(
        &mut self,
        index: QueueIndex,
        window: Window,
        class: &Class,
        now: Instant,
        mut keep: impl FnMut(&Waiting) -> bool,
    ) {
        let queue = &mut self[index];
        let mut missed = 0;
        queue.take(window, |refused| {
            let keep = keep(refused);
            missed += if keep { 0 } else { refused.items };
            keep
        });
        queue.standing.count(missed, true, queue.paced);
        queue.standing.count(window.items, false, queue.paced);
        self.settle(index, class, now);
        self.waiting -= usize::from(self[index].head().is_none());
    }

    /// Accounts for items of a batch that ended after their deadlines: its execution took longer than was expected.
    pub fn count_late(&mut self, index: QueueIndex, class: ClassIndex, items: u32) {
        let queue = &mut self[index];
        if queue.is_open() && queue.class == class {
            queue.standing.count(items, true, queue.paced);
        }
    }

    /// Removes requests that are hopeless at `now`, into `drop`.
    pub fn take_hopeless(&mut self, index: QueueIndex, class: &Class, now: Instant, mut drop: impl FnMut(&Waiting)) {
        let queue = &mut self[index];
        let before = queue.head().is_some();
        let mut missed: u32 = 0;
        queue.take_hopeless(class, now, |waiting| {
            missed = missed.saturating_add(waiting.items);
            drop(waiting);
        });
        queue.standing.count(missed, true, queue.paced);
        self.settle(index, class, now);
        self.waiting -= usize::from(before && self[index].head().is_none());
    }

    /// Brings everything that is known of a queue up to date after removals or a change of its class's latencies.
    pub fn settle(&mut self, index: QueueIndex, class: &Class, now: Instant) {
        let hopeless_at = self[index].hopeless_at(class);
        self.expiry.set(index.0 as usize, hopeless_at);
        self.stand(index, class, now);
    }

    /// Decides whether a queue is ready, and where it stands in the order of turns.
    fn stand(&mut self, index: QueueIndex, class: &Class, now: Instant) {
        let queue = &mut self.slots[index.0 as usize];
        let pool = &self.pools[queue.pool as usize];
        let at = queue.ready_at(class, pool);
        if at > now {
            self.rest(index);
            let Queue { pool, slot, .. } = self[index];
            self.pools[pool as usize].readiness.set(slot as usize, at);
        } else {
            self.raise(index, class);
        }
    }

    /// Makes a queue ready, and finds its place in the order of turns.
    fn raise(&mut self, index: QueueIndex, class: &Class) {
        let queue = &mut self.slots[index.0 as usize];
        let pool = &mut self.pools[queue.pool as usize];
        if queue.ready == NOT_READY {
            queue.ready = pool.enter(queue.slot);
            pool.readiness.set(queue.slot as usize, Instant::MAX);
        }
        pool.rank(queue.slot, queue.key(class, pool));
    }

    /// Not ready any more, and not waiting to be.
    fn rest(&mut self, index: QueueIndex) {
        let queue = &mut self.slots[index.0 as usize];
        if !queue.is_open() {
            return;
        }
        let pool = &mut self.pools[queue.pool as usize];
        pool.readiness.set(queue.slot as usize, Instant::MAX);
        let place = std::mem::replace(&mut queue.ready, NOT_READY);
        if place != NOT_READY
            && let Some(moved) = pool.leave(queue.slot, place)
        {
            self[moved].ready = place;
        }
    }

    /// Makes ready all whose time has come at `now`.
    pub fn rise(&mut self, classes: &Classes, now: Instant) {
        for pool in 0..self.pools.len() {
            while let Some(slot) = self.pools[pool].readiness.due(now) {
                let index = self.pools[pool].members[slot];
                self.stand(index, &classes[self[index].class], now);
            }
        }
    }

    /// Where more devices are idle than are kept for those whose time has come, makes others ready too, as many as there are
    /// such devices. False when there was nobody.
    pub fn rise_early(&mut self, classes: &Classes) -> bool {
        let mut any = false;
        for pool in 0..self.pools.len() {
            for _ in 0..self.pools[pool].spare() {
                let Some(slot) = self.pools[pool].readiness.first() else { break };
                let index = self.pools[pool].members[slot];
                self.raise(index, &classes[self[index].class]);
                any = true;
            }
        }
        any
    }

    /// When the next queue becomes ready that an idle device could serve.
    pub fn rises_at(&self) -> Instant {
        let idle = self.pools.iter().filter(|pool| pool.idle > 0);
        idle.map(|pool| pool.readiness.earliest()).min().unwrap_or(Instant::MAX)
    }

    /// Counts the idle devices of a pool: `device` became idle, or ceased to be.
    pub fn count_idle(&mut self, device: usize, idle: bool) {
        let pool = self.pool_of.get(device).and_then(|&pool| self.pools.get_mut(pool as usize));
        if let Some(pool) = pool {
            pool.idle = if idle { pool.idle + 1 } else { pool.idle - 1 };
        }
    }

    /// The pool of a device; `None` when it serves nothing.
    pub fn pool(&self, device: usize) -> Option<&Pool> {
        self.pools.get(*self.pool_of.get(device)? as usize)
    }

    /// Whether any queue holds requests and may have turns.
    pub fn any_waits(&self) -> bool {
        self.waiting > 0
    }

    /// Whether any queue is ready for a turn.
    pub fn any_ready(&self) -> bool {
        self.pools.iter().any(|pool| !pool.ready().is_empty())
    }

    /// Goes on with the round of aiming: at most [`AIMED_PER_STEP`] queues.
    pub fn aim_some(&mut self, classes: &Classes, now: Instant) {
        if self.round.pool >= self.pools.len() {
            if now < self.round.next || self.pools.is_empty() {
                return;
            }
            self.round = Round { next: Instant(now.0.saturating_add(ROUND)), pool: 0, member: 0 };
        }
        for _ in 0..AIMED_PER_STEP {
            let Some(pool) = self.pools.get(self.round.pool) else { return };
            let price = pool.price();
            match pool.members.get(self.round.member).copied() {
                Some(index) => {
                    self.aim(index, &classes[self[index].class], price, now);
                    self.stand_if_waiting(index, &classes[self[index].class], now);
                    self.round.member += 1;
                }
                None => {
                    let demand = self.demand(self.round.pool);
                    self.pools[self.round.pool].adapt(demand);
                    self.share(self.round.pool);
                    (self.round.pool, self.round.member) = (self.round.pool + 1, 0);
                }
            }
        }
    }

    /// Aims all queues at once, at the prices to which the rounds would come.
    pub fn aim_all(&mut self, classes: &Classes, now: Instant) {
        for pool in 0..self.pools.len() {
            let sweep = |queues: &mut Queues, price: Price| {
                for member in 0..queues.pools[pool].members.len() {
                    let index = queues.pools[pool].members[member];
                    queues.aim(index, &classes[queues[index].class], price, now);
                }
                queues.demand(pool)
            };
            for _ in 0..TIMINGS {
                let (mut low, mut high) = PRICES;
                for _ in 0..BISECTIONS {
                    let middle = (low * high).sqrt();
                    let price = Price { of_waiting: middle, ..self.pools[pool].price };
                    let fits = sweep(self, price).deepened <= self.pools[pool].capacity();
                    *(if fits { &mut low } else { &mut high }) = middle;
                }
                self.pools[pool].price.of_waiting = low;
                let demand = sweep(self, self.pools[pool].price);
                self.pools[pool].time(demand);
            }
            sweep(self, self.pools[pool].price());
            self.share(pool);
            for member in 0..self.pools[pool].members.len() {
                let index = self.pools[pool].members[member];
                self.stand_if_waiting(index, &classes[self[index].class], now);
            }
        }
    }

    /// After its aim changed, which concerns nobody while it is empty.
    fn stand_if_waiting(&mut self, index: QueueIndex, class: &Class, now: Instant) {
        if self[index].head().is_some() {
            self.stand(index, class, now);
        }
    }

    fn aim(&mut self, index: QueueIndex, class: &Class, price: Price, now: Instant) {
        let Queues { slots, pools, .. } = self;
        let queue = &mut slots[index.0 as usize];
        let pool = &pools[queue.pool as usize];
        queue.rate.advance(now);
        let rate = queue.rate.per_second(now);
        queue.paced = rate.unwrap_or(0.0);
        queue.aim = rate.map_or(AT_ONCE, |rate| aim(class.typicals(), queue.slo, rate, price));
        queue.judgement = match pool.devices {
            _ if !pool.is_mostly(queue.aim.devices) => Judgement::in_company(queue.aim.batch),
            1 => Judgement::alone(class.typicals(), queue.slo, queue.paced),
            _ => Judgement::alone_on_several(queue.aim.batch),
        };
    }

    fn demand(&self, pool: usize) -> Demand {
        let members = &self.pools[pool].members;
        Demand::of(members.iter().map(|&index| &self[index].aim), self.pools[pool].devices)
    }

    /// Says what each queue of a pool is entitled to. First everybody gets what was promised, as far as it goes max-min fair by
    /// weight; what is left is shared likewise among those that ask for more.
    fn share(&mut self, pool: usize) {
        let Queues { slots, pools, .. } = self;
        let pool = &mut pools[pool];
        let capacity = f64::from(pool.devices) * pool.reach;
        let all = pool.members.iter().map(|index| claim(&slots[index.0 as usize]));
        let promised = fair_share(all.clone().map(|claim| (claim.promised, claim.weight)), capacity);
        let left = (capacity - all.clone().map(|claim| claim.promised).sum::<f64>()).max(0.0);
        let more = fair_share(all.clone().map(|claim| (claim.more, claim.weight)), left);
        let asked: f64 = all.map(|claim| claim.promised + claim.more).sum();
        pool.overload = 1.0 - capacity / asked.max(capacity);
        let (mut short, mut cut) = (0.0, 0.0);
        for index in &pool.members {
            let queue = &mut slots[index.0 as usize];
            let claim = claim(queue);
            let gets = claim.promised.min(promised * claim.weight) + claim.more.min(more * claim.weight);
            let asked = claim.promised + claim.more;
            let served = if asked > 0.0 { gets / asked } else { 1.0 };
            if queue.standing.is_cut() {
                (short, cut) = (short + gets * queue.standing.shortfall(), cut + gets);
            }
            queue.standing.entitle(served);
        }
        pool.calibrate(if cut > 0.0 { Some(short / cut) } else { None });
    }
}

/// Devices that a queue asks for.
struct Claim {
    promised: f64,
    /// Beyond what the plan promised.
    more: f64,
    weight: f64,
}

fn claim(queue: &Queue) -> Claim {
    let kept = queue.promised.map_or(1.0, |promised| (CHANCE * promised / queue.paced.max(f64::MIN_POSITIVE)).min(1.0));
    let asked = queue.aim.least;
    Claim { promised: asked * kept, more: asked * (1.0 - kept), weight: queue.weight }
}

impl Index<QueueIndex> for Queues {
    type Output = Queue;
    fn index(&self, index: QueueIndex) -> &Queue {
        &self.slots[index.0 as usize]
    }
}

impl IndexMut<QueueIndex> for Queues {
    fn index_mut(&mut self, index: QueueIndex) -> &mut Queue {
        &mut self.slots[index.0 as usize]
    }
}

/// A rate so many times the promised one is within the promise: measured rates are.
const CHANCE: f64 = 1.25;
/// Nanoseconds between two rounds' beginnings.
const ROUND: u64 = 100_000_000;
const AIMED_PER_STEP: usize = 32;
/// Prices between which [`Queues::aim_all`] searches, how often it halves that, and how often it then takes the time that
/// devices need anew.
const PRICES: (f64, f64) = (1e-9, 1e9);
const BISECTIONS: usize = 40;
const TIMINGS: usize = 3;
