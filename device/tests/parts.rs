//! Networks of parts: requests that want outputs of some members get from one batch what each whole model gives them.

mod common;

use common::{engines, engines_and_gpu, inputs};
use rota_device::engine::{CompileOptions, Engine};
use rota_device::parts::{self, Columns, Feed, Joined, PartSpec, StackSpec};
use rota_device::sample::{self, Hints};
use rota_device::{HostTensor, Network, NetworkId, Outcome, Signature};
use rota_graph::{
    Bytes, Graph, Index, Limits, Member, Outline, StackOutput, Stage, Worth, alike, examples, split, stack,
};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("rota-parts-test-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    fn file(&self, bytes: &[u8]) -> PathBuf {
        let file = self.0.join("part.onnx");
        std::fs::write(&file, bytes).unwrap();
        file
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn options() -> CompileOptions {
    CompileOptions { threads: 1, ..CompileOptions::default() }
}

/// Models that share a first part, whole and joined.
struct Family {
    wholes: Vec<Box<dyn Network>>,
    joined: Box<dyn Network>,
    /// By member, by input of the joined network: which of its own it is.
    taken: Vec<Vec<usize>>,
    /// Whether what the members have of their own could be made into one part.
    stacked: bool,
}

const MAX_BATCH: u32 = 8;

/// Puts a stack of all members beside their own parts, where they are alike and go on from the one port of the trunk.
fn add_stack(engine: &dyn Engine, folder: &Folder, joined: &mut Joined, own: &[&Stage], inputs: &[HostTensor]) -> bool {
    let graphs: Vec<Graph> =
        own.iter().map(|stage| Graph::read(stage.model.clone(), &Limits::default()).unwrap()).collect();
    let graphs: Vec<&Graph> = graphs.iter().collect();
    let feeds = [rota_graph::Feed::Port { level: 0, port: 0 }];
    if alike(&graphs) != [(0..own.len()).collect::<Vec<_>>()] || own.iter().any(|stage| stage.feeds != feeds) {
        return false;
    }
    let stack = stack(&graphs).unwrap();
    let columns = |output: &StackOutput| Columns {
        stride: output.stride as usize,
        widths: output.widths.iter().map(|&width| width as usize).collect(),
    };
    let of_members = CompileOptions { stack_members: own.len() as u32, ..options() };
    let spec = StackSpec {
        loaded: engine.load(&folder.file(&stack.model), &of_members).unwrap(),
        feeds: vec![Feed::Port { part: 0, port: 0 }],
        members: (1..=own.len()).collect(),
        outputs: stack.outputs.iter().map(columns).collect(),
    };
    // Whether it is taken is a question of time; that it answers as its members do was compared.
    let times = joined.stack(spec, inputs, 1e-5).unwrap();
    assert_eq!(times.points.iter().map(|time| time.items).collect::<Vec<_>>(), [1, 2, 4, MAX_BATCH]);
    true
}

impl Family {
    /// `None` when the members share nothing, or one takes an input that the shared part does not.
    fn new(engine: &dyn Engine, folder: &Folder, files: &[Vec<u8>]) -> Option<Family> {
        let mut index = Index::new(Worth { weight_bytes: 0, ..Worth::default() });
        let graphs: Vec<Graph> =
            files.iter().map(|file| Graph::read(Bytes::from(file.clone()), &Limits::default()).unwrap()).collect();
        for (graph, number) in graphs.iter().zip(0..) {
            index.add(Member(number), Outline::of(graph));
        }
        let groups = index.groups();
        let group = groups.first().filter(|group| group.members.len() == files.len())?;
        let stages: Vec<Vec<Stage>> = graphs
            .iter()
            .zip(0..)
            .map(|(graph, number)| {
                let outline = index.outline(Member(number)).unwrap();
                split(graph, outline, &BTreeMap::new(), &[&group.cut]).unwrap()
            })
            .collect();
        let wholes: Vec<Box<dyn Network>> = files
            .iter()
            .map(|file| {
                let mut network = engine.compile(&folder.file(file), &options()).unwrap();
                rota_device::check::check_batching(&mut *network, &Hints::default()).unwrap();
                network
            })
            .collect();
        let input = |feed: &rota_graph::Feed| match *feed {
            rota_graph::Feed::Input(input) => input,
            rota_graph::Feed::Port { .. } => unreachable!("the first part goes on from nothing"),
        };
        let taken: Vec<Vec<usize>> = stages.iter().map(|stages| stages[0].feeds.iter().map(input).collect()).collect();
        let signature = Signature {
            inputs: taken[0].iter().map(|&input| wholes[0].signature().inputs[input].clone()).collect(),
            outputs: wholes.iter().flat_map(|whole| whole.signature().outputs.clone()).collect(),
        };
        let outline = index.outline(Member(0)).unwrap();
        let axis = |hash: &rota_graph::Hash| {
            *outline.values.iter().find(|value| value.hash == *hash).unwrap().crossing.as_ref().unwrap()
        };
        let load = |stage: &Stage| engine.load(&folder.file(&stage.model), &options()).unwrap();
        let mut specs = vec![PartSpec {
            loaded: load(&stages[0][0]),
            feeds: (0..taken[0].len()).map(Feed::Input).collect(),
            ports: group.cut.ports.iter().map(axis).collect(),
            outputs: 0..signature.outputs.len(),
        }];
        let mut end = 0;
        for (member, stages) in stages.iter().enumerate() {
            let feed = |feed: &rota_graph::Feed| match *feed {
                rota_graph::Feed::Port { port, .. } => Some(Feed::Port { part: 0, port }),
                rota_graph::Feed::Input(input) => taken[member].iter().position(|&i| i == input).map(Feed::Input),
            };
            let first = end;
            end += wholes[member].signature().outputs.len();
            let feeds = stages[1].feeds.iter().map(feed).collect::<Option<_>>()?;
            specs.push(PartSpec { loaded: load(&stages[1]), feeds, ports: Vec::new(), outputs: first..end });
        }
        let own: Vec<&Stage> = stages.iter().map(|stages| &stages[1]).collect();
        let mut joined = parts::join(signature.clone(), specs, MAX_BATCH).unwrap();
        let given = inputs(&Signature { outputs: Vec::new(), ..signature }, MAX_BATCH, &Hints::default(), 1);
        let stacked = add_stack(engine, folder, &mut joined, &own, &given);
        Some(Family { wholes, joined: joined.network(), taken, stacked })
    }

    /// Runs one batch of requests, each a member set and items, and compares.
    #[track_caller]
    fn check(&mut self, requests: &[(&[usize], u32)], what: &str) {
        let signature = self.joined.signature().clone();
        let mut batch = None;
        let mut given = Vec::new();
        for (seed, (members, items)) in requests.iter().enumerate() {
            let own = inputs(self.wholes[0].signature(), *items, &Hints::default(), seed as u64);
            let taken: Vec<HostTensor> = self.taken[0].iter().map(|&input| own[input].clone()).collect();
            let mut room = Vec::new();
            for (member, whole) in self.wholes.iter().enumerate() {
                let each = whole.signature().outputs.iter().map(|_| members.contains(&member).then_some(1 << 16));
                room.extend(each);
            }
            let one = sample::lay_out_some(NetworkId(0), &signature, std::slice::from_ref(&taken), &room).unwrap();
            match &mut batch {
                None => batch = Some(one),
                Some(batch) => {
                    batch.requests.extend(one.requests);
                    batch.spans.extend(one.spans);
                }
            }
            given.push(taken);
        }
        let mut batch = batch.unwrap();
        self.joined.execute(&mut batch);
        for (number, (members, _)) in requests.iter().enumerate() {
            assert_eq!(batch.requests[number].outcome, Outcome::Done, "{what}");
            let found = sample::outputs(&batch, &signature, number);
            let mut end = 0;
            for (member, whole) in self.wholes.iter_mut().enumerate() {
                let first = end;
                end += whole.signature().outputs.len();
                if !members.contains(&member) {
                    assert!(found[first..end].iter().all(Option::is_none), "{what}: nobody asked member {member}");
                    continue;
                }
                let mut own = inputs(whole.signature(), 1, &Hints::default(), 0);
                self.taken[member].iter().zip(&given[number]).for_each(|(&input, tensor)| own[input] = tensor.clone());
                let expected = whole.run(&own).unwrap();
                for (found, expected) in found[first..end].iter().zip(&expected) {
                    let found = found.as_ref().expect("it was asked for");
                    let apart = rota_device::check::apart(found, expected);
                    assert!(apart <= 1e-5, "{what}, request {number}, member {member}: {apart}");
                }
            }
        }
    }
}

#[test]
fn requests_of_any_members_share_a_batch_and_get_what_each_model_gives() {
    let folder = Folder::new("families");
    for engine in engines_and_gpu() {
        let mut checked = 0;
        for seed in 0..12 {
            let files = examples::family(seed, 3).files;
            let Some(mut family) = Family::new(&*engine, &folder, &files) else { continue };
            checked += 1;
            let what = format!("seed {seed} on {}", engine.describe());
            family.check(&[(&[0], 1)], &what);
            family.check(&[(&[2], 2), (&[0], 1), (&[1], 3), (&[0], 2)], &what);
            family.check(&[(&[0, 1, 2], 2), (&[0, 1, 2], 1)], &what);
            // Whose items no order lays side by side for all.
            family.check(&[(&[0, 1], 1), (&[1, 2], 2), (&[2, 0], 1), (&[1], 1)], &what);
        }
        assert!(checked >= 3, "{checked} families share something on {}", engine.describe());
    }
}

#[test]
fn members_that_end_alike_get_the_same_answers_from_a_stack() {
    let folder = Folder::new("stacks");
    for engine in engines_and_gpu() {
        let mut stacked = 0;
        for seed in 0..20 {
            let files = examples::alike(seed, 3, true);
            let Some(mut family) = Family::new(&*engine, &folder, &files) else { continue };
            stacked += usize::from(family.stacked);
            let what = format!("seed {seed} on {}", engine.describe());
            family.check(&[(&[0, 1, 2], 1)], &what);
            family.check(&[(&[2], 2), (&[0], 1), (&[1], 3), (&[0], 2)], &what);
            family.check(&[(&[0, 1, 2], 2), (&[0, 1, 2], 1), (&[1, 2], 1), (&[0], 3)], &what);
            family.check(&[(&[0, 1, 2], 9)], &what);
        }
        assert!(stacked >= 8, "{stacked} families on {}", engine.describe());
    }
}

#[test]
fn a_request_is_told_of_when_its_own_parts_have_run() {
    let folder = Folder::new("told");
    let engine = engines().remove(0);
    let mut family = (0..12).find_map(|seed| Family::new(&*engine, &folder, &examples::family(seed, 3).files)).unwrap();
    let signature = family.joined.signature().clone();
    let outputs: Vec<usize> = family.wholes.iter().map(|whole| whole.signature().outputs.len()).collect();
    let mut batch = None;
    // Who wants the last member's outputs is done when the batch is.
    for (members, seed) in [(&[2][..], 0), (&[0], 1), (&[0, 1], 2), (&[0, 2], 3)] {
        let own = inputs(family.wholes[0].signature(), 1, &Hints::default(), seed);
        let taken = family.taken[0].iter().map(|&input| own[input].clone()).collect();
        let room = outputs.iter().enumerate();
        let room = room.flat_map(|(member, &count)| vec![members.contains(&member).then_some(1 << 16); count]);
        let one = sample::lay_out_some(NetworkId(0), &signature, &[taken], &room.collect::<Vec<_>>()).unwrap();
        match &mut batch {
            None => batch = Some(one),
            Some(batch) => {
                batch.requests.extend(one.requests);
                batch.spans.extend(one.spans);
            }
        }
    }
    let (mut batch, mut told) = (batch.unwrap(), Vec::new());
    family.joined.execute_telling(&mut batch, &mut |batch, request| {
        assert_eq!(batch.requests[request].outcome, Outcome::Done);
        batch.requests[request].outcome = Outcome::Told;
        assert!(sample::outputs(batch, &signature, request)[..outputs[0]].iter().all(Option::is_some));
        told.push(request);
    });
    assert_eq!(told, [1, 2]);
    let ends: Vec<&Outcome> = batch.requests.iter().map(|request| &request.outcome).collect();
    assert_eq!(ends, [&Outcome::Done, &Outcome::Told, &Outcome::Told, &Outcome::Done]);
}

#[test]
fn parts_that_do_not_fit_are_refused() {
    let folder = Folder::new("refused");
    let engine = engines().remove(0);
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/models/mlp.onnx");
    let whole = engine.compile(&file, &options()).unwrap();
    let signature = whole.signature().clone();
    let outputs = signature.outputs.len();
    let part = |feeds: Vec<Feed>, ports: Vec<usize>, outputs| PartSpec {
        loaded: engine.load(&file, &options()).unwrap(),
        feeds,
        ports,
        outputs,
    };
    let join = |part| parts::join(signature.clone(), vec![part], 1).map(drop).map_err(|error| error.text);
    assert_eq!(join(part(vec![Feed::Input(0)], Vec::new(), 0..outputs)), Ok(()));
    assert!(join(part(Vec::new(), Vec::new(), 0..outputs)).unwrap_err().contains("0 feeds for its 1 inputs"));
    assert!(join(part(vec![Feed::Input(7)], Vec::new(), 0..outputs)).is_err());
    assert!(join(part(vec![Feed::Port { part: 0, port: 0 }], Vec::new(), 0..outputs)).is_err());
    assert!(join(part(vec![Feed::Input(0)], Vec::new(), 0..outputs + 1)).is_err());
    drop(folder);
}
