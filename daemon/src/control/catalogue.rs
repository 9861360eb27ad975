//! The models that the daemon knows: being loaded, served, or failed and why.

use crate::model::Model;
use rota_sched::ModelId;
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::Arc;

/// All versions of all models, by name. Small and cold: only the control thread looks here.
#[derive(Debug, Default)]
pub struct Catalogue {
    models: BTreeMap<String, BTreeMap<u64, State>>,
    ids_used: u32,
    ids_free: Vec<ModelId>,
}

#[derive(Debug, Clone)]
pub enum State {
    Loading(ModelId),
    Ready(Arc<Model>),
    /// Requests of it may still run.
    Unloading(Arc<Model>),
    Failed(String),
}

/// What a client that asks for a model finds.
#[derive(Debug)]
pub enum Found {
    Ready(Arc<Model>),
    Loading,
    /// Why there is none, in words.
    Missing(String),
}

/// One version for `rota status`.
#[derive(Debug, Clone, Serialize)]
pub struct ModelReport {
    pub name: String,
    pub version: u64,
    pub state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_mb: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_batch: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_slo_ms: Option<f64>,
    /// ℓ(b) in milliseconds by device, as profiled.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub profiles: Vec<BTreeMap<u32, f64>>,
}

impl Catalogue {
    /// Notes that a version is being loaded, under a new id. `None`: it is there already, or on its way in or out.
    pub fn begin(&mut self, name: &str, version: u64) -> Option<ModelId> {
        match self.models.get(name).and_then(|v| v.get(&version)) {
            None | Some(State::Failed(_)) => {}
            Some(_) => return None,
        }
        let id = self.take_id();
        self.models.entry(name.to_string()).or_default().insert(version, State::Loading(id));
        Some(id)
    }

    /// A number that no model or group has.
    pub fn take_id(&mut self) -> ModelId {
        self.ids_free.pop().unwrap_or_else(|| {
            self.ids_used += 1;
            ModelId(self.ids_used - 1)
        })
    }

    /// A number from [`Catalogue::take_id`] that nobody has any more.
    pub fn give_id(&mut self, id: ModelId) {
        self.ids_free.push(id);
    }

    pub fn loaded(&mut self, model: Arc<Model>) {
        self.models.entry(model.name.clone()).or_default().insert(model.version, State::Ready(model));
    }

    pub fn failed(&mut self, name: &str, version: u64, why: String) {
        let previous = self.models.entry(name.to_string()).or_default().insert(version, State::Failed(why));
        if let Some(State::Loading(id)) = previous {
            self.ids_free.push(id);
        }
    }

    /// Takes served versions out of service: the one named, or all. They stay known until [`Catalogue::removed`].
    pub fn unload(&mut self, name: &str, version: Option<u64>) -> Vec<Arc<Model>> {
        let Some(versions) = self.models.get_mut(name) else { return Vec::new() };
        let mut leaving = Vec::new();
        for (_, state) in versions.iter_mut().filter(|(number, _)| version.is_none_or(|v| v == **number)) {
            if let State::Ready(model) = state {
                leaving.push(Arc::clone(model));
                *state = State::Unloading(Arc::clone(model));
            }
        }
        leaving
    }

    pub fn removed(&mut self, id: ModelId) {
        for versions in self.models.values_mut() {
            versions.retain(|_, state| !matches!(state, State::Unloading(model) if model.id == id));
        }
        self.models.retain(|_, versions| !versions.is_empty());
        self.ids_free.push(id);
    }

    /// The version named, or the highest that is served.
    pub fn find(&self, name: &str, version: Option<u64>) -> Found {
        let Some(versions) = self.models.get(name) else {
            let known: Vec<&str> = self.models.keys().map(String::as_str).collect();
            return Found::Missing(match known.is_empty() {
                true => format!("there is no model \"{name}\"; this daemon serves none"),
                false => format!("there is no model \"{name}\"; there are: {}", known.join(", ")),
            });
        };
        let wanted = |(number, _): &(&u64, &State)| version.is_none_or(|v| v == **number);
        let mut candidates: Vec<_> = versions.iter().rev().filter(wanted).map(|(_, state)| state).collect();
        candidates.sort_by_key(|state| match state {
            State::Ready(_) => 0,
            State::Loading(_) => 1,
            State::Failed(_) | State::Unloading(_) => 2,
        });
        match candidates.first() {
            Some(State::Ready(model)) => Found::Ready(Arc::clone(model)),
            Some(State::Loading(_)) => Found::Loading,
            Some(State::Unloading(_)) => Found::Missing(format!("model \"{name}\" is being unloaded")),
            Some(State::Failed(why)) => Found::Missing(format!("model \"{name}\" could not be loaded: {why}")),
            None => {
                let known: Vec<String> = versions.keys().map(u64::to_string).collect();
                let version = version.unwrap_or_default();
                Found::Missing(format!("model \"{name}\" has no version {version}; it has {}", known.join(", ")))
            }
        }
    }

    pub fn ready(&self) -> impl Iterator<Item = &Arc<Model>> {
        self.models.values().flat_map(|versions| versions.values()).filter_map(|state| match state {
            State::Ready(model) => Some(model),
            _ => None,
        })
    }

    pub fn is_loading(&self) -> bool {
        self.models.values().flat_map(|v| v.values()).any(|state| matches!(state, State::Loading(_)))
    }

    pub fn report(&self) -> Vec<ModelReport> {
        let mut reports = Vec::new();
        for (name, versions) in &self.models {
            for (&version, state) in versions {
                let (state, model, error) = match state {
                    State::Loading(_) => ("loading", None, None),
                    State::Ready(model) => ("ready", Some(model), None),
                    State::Unloading(model) => ("unloading", Some(model), None),
                    State::Failed(why) => ("failed", None, Some(why.clone())),
                };
                let points = |profile: &rota_sched::Profile| {
                    let sizes = (0..u32::BITS).map(|power| 1 << power).take_while(|b| *b < profile.max_batch());
                    let sizes = sizes.chain([profile.max_batch()]);
                    sizes.filter_map(|b| Some((b, crate::clock::millis(profile.latency(b)?)))).collect()
                };
                reports.push(ModelReport {
                    name: name.clone(),
                    version,
                    state,
                    error,
                    memory_mb: model.map(|m| m.memory_bytes as f64 / 1e6),
                    max_batch: model.map(|m| m.max_batch),
                    default_slo_ms: model.map(|m| crate::clock::millis(m.default_slo)),
                    profiles: model.map_or(Vec::new(), |m| m.profiles.iter().flatten().map(points).collect()),
                });
            }
        }
        reports
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rota_device::Signature;
    use std::time::Duration;

    fn model(name: &str, version: u64, id: ModelId) -> Arc<Model> {
        Arc::new(Model {
            id,
            name: name.to_string(),
            version,
            digest: String::new(),
            signature: Signature { inputs: Vec::new(), outputs: Vec::new() },
            max_batch: 1,
            default_slo: Duration::from_millis(10),
            weight: 1.0,
            memory_bytes: 0,
            profiled: Vec::new(),
            profile_scales: true,
            profiles: Vec::new(),
            group: None,
        })
    }

    #[test]
    fn the_highest_ready_version_is_found_and_a_missing_one_is_explained() {
        let mut catalogue = Catalogue::default();
        for version in [1, 2, 3] {
            let id = catalogue.begin("a", version).unwrap();
            if version < 3 {
                catalogue.loaded(model("a", version, id));
            }
        }
        assert!(catalogue.begin("a", 2).is_none());
        assert!(matches!(catalogue.find("a", None), Found::Ready(m) if m.version == 2));
        assert!(matches!(catalogue.find("a", Some(3)), Found::Loading));
        catalogue.failed("a", 3, "corrupt".to_string());
        assert!(matches!(catalogue.find("a", Some(3)), Found::Missing(why) if why.contains("corrupt")));
        assert!(matches!(catalogue.find("a", Some(9)), Found::Missing(why) if why.contains("it has 1, 2, 3")));
        assert!(matches!(catalogue.find("b", None), Found::Missing(why) if why.contains("there are: a")));
    }

    #[test]
    fn an_unloaded_id_is_used_again_only_after_the_poller_let_go() {
        let mut catalogue = Catalogue::default();
        let id = catalogue.begin("a", 1).unwrap();
        catalogue.loaded(model("a", 1, id));
        assert_eq!(catalogue.unload("a", None).len(), 1);
        assert_ne!(catalogue.begin("b", 1), Some(id));
        catalogue.removed(id);
        assert!(matches!(catalogue.find("a", None), Found::Missing(_)));
        assert_eq!(catalogue.begin("c", 1), Some(id));
    }
}
