//! A plan as a picture: a row per device, a colour per session, time to the right.

use super::{Anchor, Drawing, figure, shortened, tick};
use rota_sched::plan::{Plan, Slot, Timetable};
use std::time::Duration;

/// A session as the legend names it.
#[derive(Clone, Debug)]
pub struct Label {
    pub model: String,
    pub slo: Duration,
    /// Requests per second.
    pub rate: f64,
}

/// The timetables of `plan`, over the longest period but at most 24 of the shortest; what repeats is drawn
/// paler. `labels` are the demand's sessions.
pub fn timetable(plan: &Plan, labels: &[Label]) -> String {
    let shown = &plan.devices[..plan.devices.len().min(DEVICES_MAX)];
    let horizon = horizon_ms(shown);
    let batches = batches(plan, labels.len());
    let columns = (labels.len().div_ceil(LEGEND_ROWS)).clamp(1, LEGEND_COLUMNS_MAX);
    let legend_rows = labels.len().div_ceil(columns);
    let legend_top = TOP + ROW * shown.len() as f64 + 60.0;
    let width = (LEFT + CHART + RIGHT).max(LEFT + columns as f64 * LEGEND_WIDTH);
    let mut drawing = Drawing::new(width, legend_top + LEGEND_LINE * legend_rows as f64 + 20.0);
    let mut title = format!("{} devices, {} sessions", plan.devices.len(), labels.len());
    if shown.len() < plan.devices.len() {
        title += &format!("; the first {} devices are shown", shown.len());
    }
    drawing.text((LEFT, 24.0), 15.0, Anchor::Start, &title);
    axis(&mut drawing, horizon, shown.len());
    for (device, timetable) in shown.iter().enumerate() {
        let y = TOP + ROW * device as f64;
        drawing.text((LEFT - 8.0, y + ROW - 7.0), 11.0, Anchor::End, &format!("device {device}"));
        let period = match timetable.slots.is_empty() {
            true => "idle".to_owned(),
            false if timetable.slots[0].shares.len() > 1 => "pool".to_owned(),
            false => format!("every {} ms", figure(ms(timetable.period))),
        };
        drawing.text((LEFT + CHART + 8.0, y + ROW - 7.0), 11.0, Anchor::Start, &period);
        row(&mut drawing, timetable, labels, horizon, y);
    }
    for (session, label) in labels.iter().enumerate() {
        let x = LEFT + (session / legend_rows) as f64 * LEGEND_WIDTH;
        let y = legend_top + LEGEND_LINE * (session % legend_rows) as f64;
        drawing.rect((x, y - 10.0), (12.0, 12.0), &colour(session, FIRST_LIGHTNESS));
        let batch = match &batches[session][..] {
            [] => "not placed".to_owned(),
            [batch] => format!("batch {batch}"),
            [least, .., most] => format!("batches {least} to {most}"),
        };
        let text = format!(
            "{session} {}: {batch}, {}/s, SLO {} ms",
            shortened(&label.model, 20),
            figure(label.rate),
            figure(ms(label.slo))
        );
        drawing.text((x + 18.0, y), 12.0, Anchor::Start, &text);
    }
    drawing.finish()
}

fn axis(drawing: &mut Drawing, horizon: f64, devices: usize) {
    let step = tick(horizon, 12.0);
    let bottom = TOP + ROW * devices as f64;
    for index in 0..=(horizon / step + 1e-9) as usize {
        let at = index as f64 * step;
        let x = LEFT + at / horizon * CHART;
        drawing.line((x, TOP - 4.0), (x, bottom + 4.0), "#dddddd");
        drawing.text((x, bottom + 18.0), 11.0, Anchor::Middle, &figure(at));
    }
    drawing.text((LEFT + CHART + 8.0, bottom + 18.0), 11.0, Anchor::Start, "ms");
}

/// One device's slots, from its phase on round and round.
fn row(drawing: &mut Drawing, timetable: &Timetable, labels: &[Label], horizon: f64, y: f64) {
    if let Some(shared) = timetable.slots.iter().find(|slot| slot.shares.len() > 1) {
        // It never ends: one block.
        block(drawing, shared, labels, (LEFT, LEFT + CHART), y, FIRST_LIGHTNESS);
        return;
    }
    let (period, phase) = (ms(timetable.period), ms(timetable.phase));
    if period <= 0.0 {
        return;
    }
    let first = phase % period - period;
    for turn in 0..=(horizon / period) as usize + 1 {
        for slot in &timetable.slots {
            let at = first + turn as f64 * period + ms(slot.offset);
            let (from, to) = (at.max(0.0), (at + ms(slot.execution)).min(horizon));
            if from < to {
                let (left, right) = (LEFT + from / horizon * CHART, LEFT + to / horizon * CHART);
                let lightness = if turn <= 1 { FIRST_LIGHTNESS } else { LATER_LIGHTNESS };
                block(drawing, slot, labels, (left, right), y, lightness);
            }
        }
    }
}

/// A slot; of several sessions that share it each has its stripe, if they are few.
fn block(drawing: &mut Drawing, slot: &Slot, labels: &[Label], (left, right): (f64, f64), y: f64, lightness: f64) {
    let (width, height) = (right - left, ROW - 4.0);
    let name = |session: usize| &labels[session].model;
    let title = match slot.shares[..] {
        [share] => format!(
            "{} {}: batch {}, {} ms from {} ms",
            share.session,
            name(share.session),
            slot.batch,
            figure(ms(slot.execution)),
            figure(ms(slot.offset))
        ),
        _ => format!("{} sessions share the device", slot.shares.len()),
    };
    let ground = match slot.shares[..] {
        [share] => colour(share.session, lightness),
        _ => "#dddddd".to_owned(),
    };
    drawing.block((left, y), (width, height), &ground, &title);
    if (2..=STRIPES_MAX).contains(&slot.shares.len()) {
        let stripe = height / slot.shares.len() as f64;
        for (index, share) in slot.shares.iter().enumerate() {
            let top = y + stripe * index as f64;
            drawing.rect((left + 0.5, top + 0.5), (width - 1.0, stripe - 1.0), &colour(share.session, lightness));
        }
    }
    let text = match slot.shares[..] {
        [share] => format!("{} ×{}", name(share.session), slot.batch),
        _ => format!("{} sessions share", slot.shares.len()),
    };
    if text.chars().count() as f64 * CHARACTER < width {
        drawing.text(((left + right) / 2.0, y + ROW - 8.0), 11.0, Anchor::Middle, &text);
    }
}

/// By session: its slots' batches, ascending, each once.
fn batches(plan: &Plan, sessions: usize) -> Vec<Vec<u32>> {
    let mut batches = vec![Vec::new(); sessions];
    for slot in plan.devices.iter().flat_map(|device| &device.slots) {
        let own = slot.shares.len() == 1;
        slot.shares.iter().for_each(|share| batches[share.session].push(if own { slot.batch } else { share.batch }));
    }
    for batches in &mut batches {
        batches.sort_unstable();
        batches.dedup();
    }
    batches
}

fn horizon_ms(devices: &[Timetable]) -> f64 {
    // A pool's period means nothing.
    let own = |device: &&Timetable| device.slots.first().is_some_and(|slot| slot.shares.len() == 1);
    let periods = || devices.iter().filter(own).map(|device| ms(device.period));
    let (shortest, longest) = periods().fold((f64::MAX, 0.0), |(low, high): (f64, f64), p| (low.min(p), high.max(p)));
    if longest > 0.0 { longest.min(PERIODS_MAX * shortest) } else { 1.0 }
}

/// Light enough for black words on it. Neighbours differ most: their hues lie a golden angle apart.
fn colour(session: usize, lightness: f64) -> String {
    let hue = (session as f64 * 137.508) % 360.0;
    let saturation = if session.is_multiple_of(2) { 0.75 } else { 0.5 };
    let chroma = (1.0 - (2.0 * lightness - 1.0).abs()) * saturation;
    let channel = |shift: f64| {
        let position = (shift + hue / 30.0) % 12.0;
        let share = (position - 3.0).min(9.0 - position).clamp(-1.0, 1.0);
        (255.0 * (lightness - chroma / 2.0 * share)).round() as u8
    };
    format!("#{:02x}{:02x}{:02x}", channel(0.0), channel(8.0), channel(4.0))
}

fn ms(duration: Duration) -> f64 {
    duration.as_nanos() as f64 / 1e6
}

const TOP: f64 = 44.0;
const LEFT: f64 = 90.0;
const CHART: f64 = 960.0;
const RIGHT: f64 = 130.0;
const ROW: f64 = 24.0;
const LEGEND_LINE: f64 = 18.0;
const LEGEND_WIDTH: f64 = 360.0;
const LEGEND_ROWS: usize = 12;
const LEGEND_COLUMNS_MAX: usize = 3;
/// A character's width at the size of a slot's label.
const CHARACTER: f64 = 6.5;
const STRIPES_MAX: usize = 6;
const FIRST_LIGHTNESS: f64 = 0.72;
const LATER_LIGHTNESS: f64 = 0.88;
/// Of the shortest period: else its slots would be too thin to see.
const PERIODS_MAX: f64 = 24.0;
/// Bounds the picture's height.
const DEVICES_MAX: usize = 400;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::svg::tests::check;
    use rota_sched::plan::Share;

    fn slot(offset: u64, batch: u32, execution: u64, sessions: &[usize]) -> Slot {
        let ms = Duration::from_millis;
        let shares = sessions.iter().map(|&session| Share { session, rate: 1.0, batch: 1 }).collect();
        Slot { offset: ms(offset), batch, execution: ms(execution), shares }
    }

    fn device(period: u64, phase: u64, slots: Vec<Slot>) -> Timetable {
        let ms = Duration::from_millis;
        Timetable { kind: 0, period: ms(period), phase: ms(phase), slots }
    }

    fn labels(count: usize) -> Vec<Label> {
        let label = |index| Label { model: format!("m<{index}>"), slo: Duration::from_millis(200), rate: 64.0 };
        (0..count).map(label).collect()
    }

    #[test]
    fn a_plan_becomes_rows_colours_and_a_legend() {
        let devices = vec![
            device(125, 0, vec![slot(0, 8, 75, &[0]), slot(75, 4, 50, &[1])]),
            device(250, 60, vec![slot(200, 4, 60, &[2]), slot(0, 1, 100, &[3])]),
            device(1000, 0, vec![slot(0, 1, 1000, &[0, 1])]),
            device(0, 0, Vec::new()),
        ];
        let svg = timetable(&Plan { devices, ..Plan::default() }, &labels(5));
        check(&svg);
        for expected in [
            "not placed",
            "device 3",
            "every 125 ms",
            "idle",
            "m&lt;0&gt; ×8",
            "batches 1 to 8",
            "2 sessions share",
            "pool",
        ] {
            assert!(svg.contains(expected), "{expected} is not in\n{svg}");
        }
        // The second device's last slot begins at 260 of 250 ms: it shows from 10 on.
        assert!(
            svg.contains(&format!("<rect x=\"{:.2}\" y=\"{:.2}\"", LEFT + 10.0 / 250.0 * CHART, TOP + ROW)),
            "{svg}"
        );
    }

    #[test]
    fn empty_and_huge_plans_are_drawn() {
        check(&timetable(&Plan::default(), &labels(1)));
        let devices = vec![device(20, 3, vec![slot(0, 1, 20, &[0])]); 1000];
        let svg = timetable(&Plan { devices, ..Plan::default() }, &labels(300));
        check(&svg);
        assert!(svg.contains("the first 400 devices are shown") && svg.len() < 1 << 20, "{}", svg.len());
    }

    #[test]
    fn colours_are_light_and_differ() {
        let all: Vec<String> = (0..24).map(|session| colour(session, FIRST_LIGHTNESS)).collect();
        for (index, colour) in all.iter().enumerate() {
            assert!(!all[..index].contains(colour), "{colour} twice");
            let channel = |at: usize| u32::from_str_radix(&colour[at..at + 2], 16).expect("hexadecimal");
            // Weights of luminance, in thousandths.
            assert!(299 * channel(1) + 587 * channel(3) + 114 * channel(5) > 125_000, "{colour} is dark");
        }
    }
}
