//! `rota demo ocr`: a page is read by three models that feed each other, as one query under one objective.
//!
//! What stands between the models (where a map says that text is, how a line is straightened, which characters the likeliest
//! classes are) is the application's own code, here as in any client.

mod boxes;
mod picture;

use super::manifest::{self, Manifest, Model};
use super::{Failure, Interrupted};
use picture::{Picture, Region};
use rota_ipc::client::{Answer, Client, ClientOptions, Control, Run};
use rota_ipc::control::{QueryDeclaration, StageDeclaration};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Read the text of a picture: find it, turn it upright, recognise it
#[derive(clap::Args, Default)]
pub struct Arguments {
    /// The picture, a PNG file [default: a scanned page that comes with the models]
    #[arg(value_name = "FILE")]
    picture: Option<PathBuf>,
}

/// The models of the query's stages, in order.
const MODELS: [&str; 3] = ["text-detection", "text-orientation", "text-recognition"];

/// Whether the manifest has the models that the query asks.
pub fn is_possible(manifest: &Manifest) -> bool {
    MODELS.iter().all(|name| manifest.model(name).is_some())
}

/// The query, as this client declares it; settings may have it as well. Nobody waits for the page, so it may take long on a busy
/// host, and longer on a device that takes long for its models.
fn query(socket: &Path) -> Result<QueryDeclaration, Failure> {
    let models = Control::connect(socket, ANSWER_MAX)?.models()?;
    let its = models.iter().filter(|model| MODELS.contains(&&*model.name));
    let batches_of_one_ms: f64 = its.map(|model| model.batch_of_one_ms).sum();
    let [find, turn, read] = MODELS;
    Ok(QueryDeclaration {
        name: "read-page".into(),
        slo_ms: millis(SLO_MIN).max(SLO_FACTOR * batches_of_one_ms),
        weight: None,
        stage: vec![
            StageDeclaration::first("find", find),
            StageDeclaration::after("find", "turn", turn),
            StageDeclaration::after("turn", "read", read),
        ],
    })
}

/// What is to be read, and what it takes.
pub struct Page {
    file: PathBuf,
    picture: Picture,
    /// What the orientation model's outputs mean.
    degrees: Vec<String>,
    /// What the recogniser's mean.
    characters: Vec<String>,
}

impl Page {
    pub fn open(arguments: &Arguments, manifest: &Manifest) -> Result<Page, Failure> {
        let models = ["text-orientation", "text-recognition"].map(|name| manifest.model(name));
        let [Some(orientation), Some(recognition)] = models else {
            return Err("the published text models are not here: `python3 models/fetch.py` gets them".into());
        };
        let (degrees, characters) = (labels(manifest, orientation)?, labels(manifest, recognition)?);
        let file = arguments.picture.clone().unwrap_or_else(|| manifest.folder.join("inputs/page.png"));
        Ok(Page { picture: Picture::read(&file)?, file, degrees, characters })
    }
}

/// Reads the page through the daemon and prints what stands there.
pub fn show(page: &Page, socket: &Path, interrupted: &Interrupted) -> Result<(), Failure> {
    let Page { file, picture, degrees, characters } = page;
    // A line's answer is several hundred kilobytes.
    let options =
        ClientOptions { name: "rota demo ocr".into(), slots: 256, arena_bytes: 512 << 20, ..Default::default() };
    let mut client = Client::connect(socket, options)?;
    let query = query(socket)?;
    let begin = Instant::now();
    let mut run = client.declare(&query)?.start();
    let slo = run.slo();
    let mut lines = find(&mut run, picture)?;
    interrupted.check()?;
    let upside_down = is_upside_down(&mut run, picture, &lines.concat(), degrees)?;
    if upside_down {
        turn(&mut lines);
    }
    interrupted.check()?;
    let texts = read_all(&mut run, picture, &lines.concat(), characters)?;
    run.finish()?;
    let took = begin.elapsed();
    print_page(file, &lines, &texts);
    println!(
        "{} pieces of text{}, found and read in {:.0} ms of the {:.0} ms that the query has",
        texts.len(),
        if upside_down { ", upside down" } else { "" },
        millis(took),
        millis(slo)
    );
    Ok(())
}

fn labels(manifest: &Manifest, model: &Model) -> Result<Vec<String>, Failure> {
    let path = model.labels.as_ref().ok_or_else(|| format!("model {} has no labels", model.name))?;
    Ok(manifest::read_labels(&manifest.folder.join(path))?)
}

/// Where text stands in the picture.
fn find(run: &mut Run<'_>, picture: &Picture) -> Result<Vec<Vec<Region>>, Failure> {
    // Small print is enlarged, large pages are not shown in full detail; the network halves five times.
    let sides = [picture.height() as f32, picture.width() as f32];
    let scale = (SHORT_SIDE / sides[0].min(sides[1])).clamp(1.0, ENLARGED_MAX).min(LONG_SIDE / sides[0].max(sides[1]));
    let [height, width] = sides.map(|side| ((side * scale / STRIDE).round().max(1.0) * STRIDE) as usize);
    let mut request = run.request("find")?;
    let planes = request.input::<f32>(0, &[1, 3, height as u32, width as u32])?;
    picture.write(&picture.whole(), width, [height, width], planes);
    request.output(0, height * width * size_of::<f32>())?;
    let answer = run.call("find", request)?;
    let map = answer.output::<f32>(0)?;
    let found = boxes::find(map.data, width);
    let (x, y) = (sides[1] / width as f32, sides[0] / height as f32);
    Ok(found.into_iter().map(|line| line.iter().map(|region| region.scaled(x, y)).collect()).collect())
}

/// Whether the page is: a single piece misleads the model now and then, a page hardly.
fn is_upside_down(run: &mut Run<'_>, picture: &Picture, found: &[Region], degrees: &[String]) -> Result<bool, Failure> {
    let class = degrees.iter().position(|label| label == "180").ok_or("no label of the orientation model is 180")?;
    let size = |region: &Region| {
        (natural_width(region).min(ORIENTATION_WIDTH), ORIENTATION_WIDTH, degrees.len() * size_of::<f32>())
    };
    let likelihood = |answer: &Answer| -> Result<f32, Failure> {
        answer.output::<f32>(0)?.data.get(class).copied().ok_or_else(|| "an answer is too short".into())
    };
    let likely = all(run, picture, "turn", found, size, likelihood)?;
    Ok(likely.iter().sum::<f32>() > likely.len() as f32 / 2.0)
}

/// Reads everything from its other end.
fn turn(lines: &mut [Vec<Region>]) {
    lines.reverse();
    for line in lines {
        line.reverse();
        line.iter_mut().for_each(|region| *region = region.upside_down());
    }
}

/// What stands in each region.
fn read_all(
    run: &mut Run<'_>,
    picture: &Picture,
    regions: &[Region],
    characters: &[String],
) -> Result<Vec<String>, Failure> {
    // Few widths, so that lines share batches.
    let padded = |width: usize| width.div_ceil(RECOGNITION_STEP) * RECOGNITION_STEP;
    let place_bytes = characters.len() * size_of::<f32>();
    let size = |region: &Region| {
        let (width, all) = (natural_width(region), padded(natural_width(region)));
        (width, all, all / PLACE_WIDTH * place_bytes)
    };
    let text = |answer: &Answer| -> Result<String, Failure> {
        let scores = answer.output::<f32>(0)?;
        let classes = scores.dims.last().copied().unwrap_or(1) as usize;
        Ok(manifest::text(scores.data, classes, characters))
    };
    all(run, picture, "read", regions, size, text)
}

/// Calls a stage for every region, all in flight at once. `size` says how many columns a region takes up, how wide its picture
/// is, and the bytes of its answer.
fn all<T>(
    run: &mut Run<'_>,
    picture: &Picture,
    stage: &str,
    regions: &[Region],
    size: impl Fn(&Region) -> (usize, usize, usize),
    result: impl Fn(&Answer) -> Result<T, Failure>,
) -> Result<Vec<T>, Failure> {
    let mut tickets = Vec::with_capacity(regions.len());
    for region in regions {
        let (columns, width, room) = size(region);
        let mut request = run.request(stage)?;
        let planes = request.input::<f32>(0, &[1, 3, LINE_HEIGHT as u32, width as u32])?;
        picture.write(region, columns, [LINE_HEIGHT, width], planes);
        request.output(0, room)?;
        tickets.push(run.submit(stage, request)?);
    }
    tickets.into_iter().map(|ticket| result(&run.wait_for(ticket)?)).collect()
}

/// Of a region that is made as high as a line.
fn natural_width(region: &Region) -> usize {
    let width = region.along.length() * LINE_HEIGHT as f32 / region.down.length().max(1.0);
    (width.round() as usize).clamp(1, LINE_WIDTH_MAX)
}

fn print_page(file: &Path, lines: &[Vec<Region>], texts: &[String]) {
    println!("{} says:", file.display());
    let mut texts = texts.iter();
    for line in lines {
        let words: Vec<&str> = texts.by_ref().take(line.len()).map(|text| text.trim()).collect();
        println!("  {}", words.join(" "));
    }
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// How long the daemon may take to say what it serves.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// Of the query.
const SLO_MIN: Duration = Duration::from_secs(20);
/// A page's lines are several, and several times as wide as what is profiled.
const SLO_FACTOR: f64 = 100.0;
/// The detector finds text of twelve pixels and more; scans are often coarser.
const SHORT_SIDE: f32 = 736.0;
const ENLARGED_MAX: f32 = 2.0;
const LONG_SIDE: f32 = 1536.0;
/// The detector's sides are multiples of this.
const STRIDE: f32 = 32.0;
const LINE_HEIGHT: usize = 48;
const ORIENTATION_WIDTH: usize = 192;
const RECOGNITION_STEP: usize = 320;
/// Columns for which the recogniser names one character.
const PLACE_WIDTH: usize = 8;
/// Longer lines are squeezed.
const LINE_WIDTH_MAX: usize = 1920;
