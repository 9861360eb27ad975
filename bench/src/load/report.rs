//! What a load came to, for people, programs and the plot.

use super::tally::Tally;
use crate::svg::{Curve, percentile_plot};
use crate::table::{Table, figure};
use serde::{Deserialize, Serialize};

/// One session as all processes saw it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Outcome {
    pub model: String,
    pub slo_ms: f64,
    /// Items that each request brings.
    pub items: u32,
    pub tally: Tally,
    /// What the daemon said of the first request that failed.
    pub failure: Option<String>,
}

/// The result of a load: what `--json` prints.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Length of the measured window.
    pub seconds: f64,
    pub sessions: Vec<Figures>,
    pub total: Figures,
}

/// Rates count items, the other counts requests; all of the measured window. Latencies are those of answered requests, from
/// their intended arrival, and null when none was answered.
#[derive(Clone, Debug, Serialize)]
pub struct Figures {
    pub model: String,
    /// Null in the total.
    pub slo_ms: Option<f64>,
    pub offered_per_s: f64,
    pub answered_per_s: f64,
    /// Answered within the SLO, by the client's clock.
    pub goodput_per_s: f64,
    /// Share of the offered requests that were not answered within the SLO.
    pub bad_rate: f64,
    pub p50_ms: Option<f64>,
    pub p90_ms: Option<f64>,
    pub p99_ms: Option<f64>,
    pub p999_ms: Option<f64>,
    pub max_ms: Option<f64>,
    pub mean_batch: Option<f64>,
    pub ok: u64,
    pub late: u64,
    pub dropped: u64,
    pub failed: u64,
    pub cancelled: u64,
    pub lost: u64,
    pub sent_late: u64,
    pub daemon_ok: u64,
}

impl Report {
    pub fn new(seconds: f64, outcomes: &[Outcome]) -> Report {
        let figures = |o: &Outcome| Figures::new(&o.model, Some(o.slo_ms), seconds, &[(o.items, &o.tally)]);
        let all: Vec<(u32, &Tally)> = outcomes.iter().map(|outcome| (outcome.items, &outcome.tally)).collect();
        let total = Figures::new("total", None, seconds, &all);
        Report { seconds, sessions: outcomes.iter().map(figures).collect(), total }
    }

    pub fn table(&self) -> Table {
        let mut table = Table::new([
            "session",
            "SLO",
            "offered/s",
            "answered/s",
            "goodput/s",
            "bad",
            "p50",
            "p90",
            "p99",
            "p99.9",
            "max",
            "batch",
        ]);
        let ms = |value: Option<f64>| value.map_or("-".into(), |ms| format!("{} ms", figure(ms)));
        for f in self.sessions.iter().chain((self.sessions.len() > 1).then_some(&self.total)) {
            let mut cells = vec![f.model.clone(), f.slo_ms.map_or(String::new(), |ms| format!("{ms} ms"))];
            cells.extend([f.offered_per_s, f.answered_per_s, f.goodput_per_s].map(figure));
            cells.push(format!("{:.2} %", f.bad_rate * 100.0));
            cells.extend([f.p50_ms, f.p90_ms, f.p99_ms, f.p999_ms, f.max_ms].map(ms));
            cells.push(f.mean_batch.map_or("-".into(), figure));
            table.line(cells);
        }
        table
    }

    /// Requests by how they ended.
    pub fn counts(&self) -> Table {
        let mut table = Table::new(["requests", "ok", "late", "dropped", "failed", "cancelled", "lost", "sent late"]);
        for f in self.sessions.iter().chain((self.sessions.len() > 1).then_some(&self.total)) {
            let counts = [f.ok, f.late, f.dropped, f.failed, f.cancelled, f.lost, f.sent_late];
            let mut cells = vec![f.model.clone()];
            cells.extend(counts.map(|count| count.to_string()));
            table.line(cells);
        }
        table
    }
}

impl Figures {
    fn new(model: &str, slo_ms: Option<f64>, seconds: f64, parts: &[(u32, &Tally)]) -> Figures {
        let mut all = Tally::default();
        parts.iter().for_each(|(_, tally)| all.add(tally));
        // A load that was stopped before its window began has no rate.
        let per_s = |count: fn(&Tally) -> u64| {
            let items: f64 = parts.iter().map(|(items, tally)| f64::from(*items) * count(tally) as f64).sum();
            if seconds > 0.0 { items / seconds } else { 0.0 }
        };
        Figures {
            model: model.into(),
            slo_ms,
            offered_per_s: per_s(|tally| tally.offered),
            answered_per_s: per_s(Tally::answered),
            goodput_per_s: per_s(|tally| tally.ok),
            bad_rate: if all.offered > 0 { 1.0 - all.ok as f64 / all.offered as f64 } else { 0.0 },
            p50_ms: all.latency_ms(0.5),
            p90_ms: all.latency_ms(0.9),
            p99_ms: all.latency_ms(0.99),
            p999_ms: all.latency_ms(0.999),
            max_ms: all.latency_ms(1.0),
            mean_batch: all.mean_batch(),
            ok: all.ok,
            late: all.late,
            dropped: all.dropped,
            failed: all.failed,
            cancelled: all.cancelled,
            lost: all.lost,
            sent_late: all.sent_late,
            daemon_ok: all.daemon_ok,
        }
    }
}

/// Latency against the share of requests that were answered faster, one curve per session.
pub fn plot(outcomes: &[Outcome]) -> String {
    let curve = |outcome: &Outcome| Curve {
        name: format!("{} (SLO {} ms)", outcome.model, outcome.slo_ms),
        points: points(&outcome.tally),
    };
    percentile_plot("latency from intended arrival", &outcomes.iter().map(curve).collect::<Vec<_>>())
}

/// (nines, milliseconds): 0.9 of the requests is one nine, 0.99 two. As far as the number of requests carries.
fn points(tally: &Tally) -> Vec<(f64, f64)> {
    let most = (tally.answered() as f64).log10();
    let steps = (most * POINTS_PER_NINE) as u32;
    let nines = (0..=steps).map(|step| f64::from(step) / POINTS_PER_NINE);
    nines.filter_map(|nines| Some((nines, tally.latency_ms(1.0 - 10f64.powf(-nines))?))).collect()
}

const POINTS_PER_NINE: f64 = 40.0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_count_items_and_bad_is_whatever_missed_the_slo() {
        let mut tally = Tally::default();
        (tally.offered, tally.dropped, tally.lost, tally.sent_late) = (10, 3, 1, 2);
        (0..4).for_each(|_| tally.answer(1_000_000, true, 2, 4));
        (0..2).for_each(|_| tally.answer(9_000_000, false, 2, 4));
        let outcome = Outcome { model: "a".into(), slo_ms: 5.0, items: 2, tally, failure: None };
        let report = Report::new(2.0, &[outcome.clone(), outcome]);
        let a = &report.sessions[0];
        assert_eq!((a.offered_per_s, a.answered_per_s, a.goodput_per_s), (10.0, 6.0, 4.0));
        assert_eq!((a.bad_rate, a.mean_batch, a.ok, a.late), (0.6, Some(4.0), 4, 2));
        assert_eq!((report.total.goodput_per_s, report.total.lost, report.total.slo_ms), (8.0, 2, None));
    }

    #[test]
    fn the_promised_fields_are_in_the_json() {
        let json = serde_json::to_value(Report::new(1.0, &[])).unwrap();
        let fields = "model slo_ms offered_per_s answered_per_s goodput_per_s bad_rate p50_ms p90_ms p99_ms p999_ms max_ms \
                      mean_batch ok late dropped failed cancelled lost sent_late daemon_ok";
        for field in fields.split_whitespace() {
            assert!(json["total"].get(field).is_some(), "{field}");
        }
        assert_eq!(json["total"].as_object().unwrap().len(), fields.split_whitespace().count());
        assert_eq!(json["total"]["p50_ms"], serde_json::Value::Null);
    }
}
