//! Profiles that are given: an operator who knows how long batches take on a kind of device says so in a file, and its models are
//! served without being measured first.

use rota_device::Pace;
use rota_device::emulated::{ProfileFileError, Times, read_times};
use rota_sched::{Profile, ProfileError};
use std::path::Path;
use std::time::Duration;

/// ℓ(b) by model, for one kind of device. The file is that of emulated devices, of which it takes the times alone.
///
/// Invariant: every time is above zero, so that each pace is a profile.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Given {
    models: Vec<Times>,
}

impl Given {
    pub fn read(file: &Path) -> Result<Given, ProfileFileError> {
        let models = read_times(file)?;
        for times in &models {
            let paces = times.suffix.iter().flat_map(|suffix| [&suffix.prefix.pace, &suffix.pace]);
            for pace in paces.chain([&times.pace]) {
                Profile::new(pace.points()).map_err(|error| ProfileFileError::Profile {
                    file: file.to_owned(),
                    model: times.model.clone(),
                    text: error.to_string(),
                })?;
            }
        }
        Ok(Given { models })
    }

    /// ℓ(b) of a model for at most `most` items; `None` when the file does not name it.
    pub fn whole(&self, model: &str, most: u32) -> Option<Profile> {
        up_to(&self.find(model)?.pace, most)
    }

    /// ℓ(b) of the part that these models begin with, then of what each has behind it; `None` unless the file says of all of them
    /// that they begin with the same part.
    pub fn parts(&self, models: &[&str], most: u32) -> Option<Vec<Profile>> {
        let suffixes: Vec<_> = models.iter().map(|model| self.find(model)?.suffix.as_ref()).collect::<Option<_>>()?;
        let prefix = &suffixes.first()?.prefix;
        let same = suffixes.iter().all(|suffix| suffix.prefix.name == prefix.name);
        let paces = std::iter::once(&prefix.pace).chain(suffixes.iter().map(|suffix| &suffix.pace));
        paces.map(|pace| up_to(pace, most)).collect::<Option<_>>().filter(|_| same)
    }

    fn find(&self, model: &str) -> Option<&Times> {
        self.models.iter().find(|times| times.model == model)
    }
}

/// The table of 1 to `most` items, or to the largest batch that is given: a profile goes no further than what was measured.
fn up_to(pace: &Pace, most: u32) -> Option<Profile> {
    let largest = pace.points().last().map_or(1, |&(batch, _)| batch).min(most.max(1));
    let below = pace.points().iter().copied().filter(|&(batch, _)| batch < largest);
    let points: Vec<(u32, Duration)> = below.chain([(largest, pace.of(largest))]).collect();
    let profile: Result<Profile, ProfileError> = Profile::new(&points);
    profile.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str, text: &str) -> Result<Given, ProfileFileError> {
        let file = std::env::temp_dir().join(format!("rota-given-{name}-{}.toml", std::process::id()));
        std::fs::write(&file, text).unwrap();
        let read = Given::read(&file);
        std::fs::remove_file(&file).unwrap();
        read
    }

    const FILE: &str = r#"
        [[prefix]]
        name = "trunk"
        batch_ms = { 1 = 4.0, 8 = 11.0 }
        [[profile]]
        model = "digit"
        prefix = "trunk"
        suffix_ms = { 1 = 0.5, 8 = 1.2 }
        [[profile]]
        model = "fashion"
        prefix = "trunk"
        suffix_ms = { 1 = 0.5 }
        [[profile]]
        model = "magika"
        batch_ms = { 1 = 2.0, 4 = 5.0 }
    "#;

    #[test]
    fn a_model_takes_what_the_file_says_and_no_larger_batch_than_it_names() {
        let given = read("whole", FILE).unwrap();
        let us = |model: &str, most: u32, items: u32| {
            given.whole(model, most).unwrap().latency(items).map(|time| time.as_micros())
        };
        assert_eq!(
            [us("magika", 32, 1), us("magika", 32, 2), us("magika", 32, 4)],
            [Some(2000), Some(3000), Some(5000)]
        );
        assert_eq!(us("magika", 32, 5), None);
        assert_eq!((us("magika", 2, 2), us("magika", 2, 3)), (Some(3000), None));
        assert_eq!(us("digit", 1, 1), Some(4500));
        assert!(given.whole("photo", 8).is_none());
    }

    #[test]
    fn parts_are_given_when_all_begin_with_the_same() {
        let given = read("parts", FILE).unwrap();
        let parts = given.parts(&["digit", "fashion"], 8).unwrap();
        let us: Vec<u128> = parts.iter().map(|part| part.latency(1).unwrap().as_micros()).collect();
        assert_eq!(us, [4000, 500, 500]);
        assert!(given.parts(&["digit", "magika"], 8).is_none());
        assert!(given.parts(&["digit", "photo"], 8).is_none());
    }

    #[test]
    fn a_time_of_zero_is_refused_with_its_model() {
        let error = read("zero", &FILE.replace("1 = 2.0", "1 = 0.0")).unwrap_err().to_string();
        assert!(error.contains("profile of model 'magika': latency of batch 1 must be above zero"), "{error}");
    }
}
