//! The stand-in driver's timetable (`ROTA_STANDIN_TRACE`): when the GPU whose times it has does what it is asked for. A bound from below, since
//! everything takes its least there.

use super::Failure;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

/// The file that a daemon's driver writes while it runs.
pub struct Timetable {
    file: PathBuf,
    /// Bytes that were read.
    read: usize,
}

/// What an engine did, from `ts` for `dur` microseconds.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Event {
    #[serde(rename = "pid")]
    gpu: u32,
    #[serde(rename = "tid")]
    engine: u32,
    #[serde(rename = "ts")]
    begin_us: f64,
    #[serde(rename = "dur")]
    length_us: f64,
}

/// A GPU's engines, as the driver numbers them.
const COPIES_IN: u32 = 0;
const KERNELS: u32 = 1;
const COPIES_OUT: u32 = 2;

/// How many times as slow as the GPU that it is called by the stand-in is (`ROTA_STANDIN_SLOWER`), when it is one. A daemon that is to prepare its
/// batches as far ahead as on that GPU needs leads that are as much longer.
pub fn slower() -> Option<u64> {
    std::env::var_os("ROTA_STANDIN_GPU").filter(|gpu| !gpu.is_empty())?;
    std::env::var("ROTA_STANDIN_SLOWER").ok()?.parse().ok()
}

/// Shares, each of 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Overlap {
    /// Of the copies' time, that in which the same GPU's kernels run.
    pub copies_in: f64,
    pub copies_out: f64,
    /// Of the time from the first operation to the last, that in which kernels run.
    pub busy: f64,
}

impl Timetable {
    /// The one that this process's environment asks for; `None` when it asks for none, as on a real GPU.
    pub fn of_environment() -> Option<Timetable> {
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        set("ROTA_STANDIN_GPU")?;
        Some(Timetable { file: set("ROTA_STANDIN_TRACE")?.into(), read: 0 })
    }

    /// What was written since it was asked last. A driver that begins anew begins the file anew.
    pub fn since(&mut self) -> Result<Vec<Event>, Failure> {
        let text = fs::read_to_string(&self.file).map_err(|error| format!("{}: {error}", self.file.display()))?;
        let whole = text.rfind('\n').map_or(0, |at| at + 1);
        let new = text.get(self.read..whole).unwrap_or(&text[..whole]);
        self.read = whole;
        new.lines().filter_map(event).collect()
    }
}

/// A line's event; `None` for one that only names something.
fn event(line: &str) -> Option<Result<Event, Failure>> {
    line.starts_with(r#"{"ph":"X""#).then(|| Ok(serde_json::from_str(line.trim_end_matches(','))?))
}

impl Overlap {
    /// Of all GPUs together; `None` where there were no kernels, or no copies one of the ways.
    pub fn of(events: &[Event]) -> Option<Overlap> {
        let mut gpus: BTreeMap<u32, Vec<&Event>> = BTreeMap::new();
        events.iter().for_each(|event| gpus.entry(event.gpu).or_default().push(event));
        let (mut hidden, mut copied, mut busy, mut passed) = ([0.0; 2], [0.0; 2], 0.0, 0.0);
        for events in gpus.values() {
            let mut kernels: Vec<&&Event> = events.iter().filter(|event| event.engine == KERNELS).collect();
            kernels.sort_by(|a, b| a.begin_us.total_cmp(&b.begin_us));
            busy += kernels.iter().map(|kernel| kernel.length_us).sum::<f64>();
            let begin = events.iter().map(|event| event.begin_us).fold(f64::INFINITY, f64::min);
            passed += events.iter().map(|event| event.end_us()).fold(begin, f64::max) - begin;
            for (way, engine) in [COPIES_IN, COPIES_OUT].into_iter().enumerate() {
                for copy in events.iter().filter(|event| event.engine == engine) {
                    copied[way] += copy.length_us;
                    // Kernels of one GPU do not overlap, so their ends are sorted too.
                    let first = kernels.partition_point(|kernel| kernel.end_us() <= copy.begin_us);
                    let under = kernels[first..].iter().take_while(|kernel| kernel.begin_us < copy.end_us());
                    hidden[way] += under.map(|kernel| kernel.overlap_us(copy)).sum::<f64>();
                }
            }
        }
        let share = |part: f64, of: f64| (of > 0.0).then(|| part / of);
        let [copies_in, copies_out] = [share(hidden[0], copied[0])?, share(hidden[1], copied[1])?];
        Some(Overlap { copies_in, copies_out, busy: share(busy, passed)? })
    }
}

impl Event {
    fn end_us(&self) -> f64 {
        self.begin_us + self.length_us
    }

    fn overlap_us(&self, other: &Event) -> f64 {
        (self.end_us().min(other.end_us()) - self.begin_us.max(other.begin_us)).max(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(gpu: u32, engine: u32, begin_us: f64, length_us: f64) -> Event {
        Event { gpu, engine, begin_us, length_us }
    }

    #[test]
    fn copies_are_hidden_as_far_as_kernels_of_their_own_gpu_run() {
        let all = [
            event(0, KERNELS, 10.0, 10.0),
            event(0, KERNELS, 20.0, 5.0),
            event(1, KERNELS, 0.0, 40.0),
            event(0, COPIES_IN, 5.0, 10.0),
            event(0, COPIES_IN, 18.0, 10.0),
            event(0, COPIES_OUT, 30.0, 10.0),
            event(1, COPIES_OUT, 10.0, 30.0),
        ];
        // 5 and 7 of 20; none of 10 and all of 30; 15 of 35 and 40 of 40.
        let expected = Overlap { copies_in: 0.6, copies_out: 0.75, busy: 55.0 / 75.0 };
        assert_eq!(Overlap::of(&all), Some(expected));
        assert_eq!(Overlap::of(&all[..5]), None, "there are no copies out");
    }

    #[test]
    fn only_whole_new_lines_are_read_and_a_file_that_began_anew_from_its_beginning() {
        let folder = crate::folder::Folder::new("timetable").unwrap();
        let mut timetable = Timetable { file: folder.join("trace.json"), read: 0 };
        let line = |begin: u32| {
            let args = r#""args":{"stream":1,"call":2,"asked":0.000,"bytes":3}"#;
            format!(
                "{{\"ph\":\"X\",\"name\":\"copy in\",\"pid\":0,\"tid\":0,\"ts\":{begin}.000,\"dur\":1.500,{args}}},\n"
            )
        };
        let mut written = |text: &str| {
            fs::write(folder.join("trace.json"), text).unwrap();
            timetable.since().unwrap()
        };
        let head = "[\n{\"ph\":\"M\",\"name\":\"process_name\",\"pid\":0,\"args\":{}},\n";
        let copy = |begin: f64| event(0, COPIES_IN, begin, 1.5);
        assert_eq!(written(&format!("{head}{}{{\"ph\":\"X\"", line(1))), [copy(1.0)]);
        assert_eq!(written(&format!("{head}{}{}", line(1), line(2))), [copy(2.0)]);
        assert_eq!(written(&format!("[\n{}", line(3))), [copy(3.0)]);
    }
}
