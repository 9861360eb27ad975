//! How much room a model's outputs need in a request.

use super::LoadError;
use super::inputs::Inputs;
use super::spec::SessionSpec;
use rota_ipc::client::{Answer, Deadline, Element, Error, Open};
use rota_ipc::control::{DimInfo, ModelInfo, TensorInfo};
use rota_ipc::wire::{DType, Reason};
use rota_ipc::{Client, ClientOptions};
use std::path::Path;
use std::time::Duration;

/// Bytes for each of the model's outputs: as `spec` says, else what the model's dimensions come to; when it leaves them open, the
/// most that any of the inputs makes of it when the daemon is asked.
pub fn rooms(
    socket: &Path,
    client: &ClientOptions,
    spec: &SessionSpec,
    model: &ModelInfo,
    inputs: &Inputs,
) -> Result<Vec<usize>, LoadError> {
    if let Some((name, _)) = spec.rooms.iter().find(|(name, _)| model.outputs.iter().all(|info| info.name != *name)) {
        let text = format!("it has no output '{name}'");
        return Err(LoadError::Session { model: model.name.clone(), text });
    }
    let given = |info: &TensorInfo| spec.rooms.iter().find(|(name, _)| *name == info.name).map(|(_, bytes)| *bytes);
    let known: Vec<Option<usize>> =
        model.outputs.iter().map(|info| given(info).or_else(|| declared_bytes(info, spec.items))).collect();
    if let Some(rooms) = known.iter().copied().collect() {
        return Ok(rooms);
    }
    let asked = ask(socket, client, spec, model, inputs)?;
    Ok(known.into_iter().zip(asked).map(|(known, asked)| known.unwrap_or(asked)).collect())
}

/// `None` when a dimension other than the batch axis is open.
fn declared_bytes(info: &TensorInfo, items: u32) -> Option<usize> {
    let size = |(axis, dim): (usize, &DimInfo)| match dim {
        _ if info.batch_axis == Some(axis) => Some(items as usize),
        DimInfo::Fixed(size) => usize::try_from(*size).ok(),
        DimInfo::Named(_) => None,
    };
    info.dims.iter().enumerate().map(size).try_fold(info.dtype.bytes(), |bytes, size| bytes.checked_mul(size?))
}

/// Asks the daemon with more and more room, once for each variant of the inputs.
fn ask(
    socket: &Path,
    client: &ClientOptions,
    spec: &SessionSpec,
    model: &ModelInfo,
    inputs: &Inputs,
) -> Result<Vec<usize>, LoadError> {
    let refused = |text: String| LoadError::Session { model: model.name.clone(), text };
    let mut largest = vec![0; model.outputs.len()];
    let mut room = ROOM_FIRST;
    let mut variant = 0;
    while variant < inputs.variants().min(VARIANTS_MAX) {
        let arena_bytes = (inputs.bytes() + model.outputs.len() * room) as u64;
        let mut client = Client::connect(socket, ClientOptions { arena_bytes, ..client.clone() })?;
        let session = client.open(&spec.model, Open { version: None, slo: spec.slo })?;
        let mut request = client.request(&session)?;
        while variant < inputs.variants().min(VARIANTS_MAX) {
            inputs.write(variant, &mut request)?;
            (0..model.outputs.len()).try_for_each(|index| request.output(index, room))?;
            request.deadline = Deadline::Within(PATIENCE);
            let answer = client.infer(request)?;
            if answer.reason == Reason::OutputTooSmall && room < ROOM_MAX {
                room *= 8;
                break;
            }
            if !answer.is_answered() {
                return Err(refused(format!("a first request failed: {}", answer.message())));
            }
            for (index, (largest, info)) in largest.iter_mut().zip(&model.outputs).enumerate() {
                *largest = written_bytes(&answer, index, info.dtype)?.max(*largest);
            }
            variant += 1;
            request = answer.into_request();
        }
    }
    Ok(largest)
}

fn written_bytes(answer: &Answer, index: usize, dtype: DType) -> Result<usize, Error> {
    fn typed<T: Element>(answer: &Answer, index: usize) -> Result<usize, Error> {
        Ok(size_of_val(answer.output::<T>(index)?.data))
    }
    match dtype {
        DType::Bool | DType::U8 => typed::<u8>(answer, index),
        DType::I8 => typed::<i8>(answer, index),
        DType::U16 | DType::F16 | DType::Bf16 => typed::<u16>(answer, index),
        DType::I16 => typed::<i16>(answer, index),
        DType::U32 => typed::<u32>(answer, index),
        DType::I32 => typed::<i32>(answer, index),
        DType::U64 => typed::<u64>(answer, index),
        DType::I64 => typed::<i64>(answer, index),
        DType::F32 => typed::<f32>(answer, index),
        DType::F64 => typed::<f64>(answer, index),
    }
}

const ROOM_FIRST: usize = 64 << 10;
const ROOM_MAX: usize = 256 << 20;
/// Inputs beyond these are taken to make no larger outputs.
const VARIANTS_MAX: usize = 256;
/// These first requests are no part of the load: they may wait.
const PATIENCE: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_known_when_only_the_batch_is_open() {
        let info = |dims: &[DimInfo], batch_axis| TensorInfo {
            name: "y".into(),
            dtype: DType::F32,
            dims: dims.to_vec(),
            batch_axis,
        };
        let open = || DimInfo::Named("batch".into());
        assert_eq!(declared_bytes(&info(&[open(), DimInfo::Fixed(5)], Some(0)), 3), Some(60));
        assert_eq!(declared_bytes(&info(&[open(), DimInfo::Fixed(5)], None), 3), None);
        assert_eq!(declared_bytes(&info(&[DimInfo::Fixed(1 << 62), DimInfo::Fixed(4)], None), 1), None);
    }
}
