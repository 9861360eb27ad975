//! Asks a served classifier about random inputs: `cargo run --example classify -- <model> [<requests>]`

use rota_ipc::client::{Client, Error, Open};
use rota_ipc::control::DimInfo;

fn main() -> Result<(), Error> {
    let mut arguments = std::env::args().skip(1);
    let model = arguments.next().unwrap_or_else(|| "digits".into());
    let requests = arguments.next().map_or(10, |count| count.parse().expect("<requests> is a number"));

    let mut client = Client::connect_default()?;
    let session = client.open(&model, Open::default())?;
    // One item: what the model leaves open is 1.
    let sizes = session.model().inputs[0].dims.iter().map(|dim| match dim {
        DimInfo::Fixed(size) => *size as u32,
        DimInfo::Named(_) => 1,
    });
    let dims: Vec<u32> = sizes.collect();

    let mut request = client.request(&session)?;
    let mut noise = 1u32;
    for number in 0..requests {
        for value in request.input::<f32>(0, &dims)? {
            noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            *value = noise as f32 / u32::MAX as f32;
        }
        let answer = client.infer(request)?;
        let scores = answer.output::<f32>(0)?;
        let best = scores.data.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
        let (class, score) = best.expect("a classifier has classes");
        println!(
            "{number}: class {class}, score {score:.3}, {:?} on device {}",
            answer.timing.executing, answer.timing.device
        );
        request = answer.into_request();
    }
    Ok(())
}
