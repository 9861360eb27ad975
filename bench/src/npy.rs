//! Input files, in the protocol's words: what `rota_device::npy` reads, with element types as a client names them.

use rota_device::{HostTensor, npy};
use rota_ipc::wire::DType;
use std::path::Path;

pub use rota_device::npy::NpyError;

/// A dense row-major tensor as it lay in its file.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    pub dtype: DType,
    /// Outermost first.
    pub dims: Vec<u32>,
    /// Little-endian elements.
    pub bytes: Vec<u8>,
}

pub fn read(file: &Path) -> Result<Array, NpyError> {
    Ok(Array::from(npy::read(file)?))
}

impl From<HostTensor> for Array {
    fn from(tensor: HostTensor) -> Array {
        Array { dtype: wire_dtype(tensor.dtype), dims: tensor.shape.dims().to_vec(), bytes: tensor.bytes.to_vec() }
    }
}

/// The protocol and the devices each name element types on their own; the names are the same.
fn wire_dtype(dtype: rota_device::DType) -> DType {
    let same = |wire: &DType| rota_device::DType::from_name(&format!("{wire:?}").to_ascii_lowercase()) == Some(dtype);
    DType::ALL.into_iter().find(same).expect("both sides name the same types")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_element_type_of_a_device_has_its_own_on_the_wire() {
        let found: std::collections::HashSet<DType> = rota_device::DType::ALL.into_iter().map(wire_dtype).collect();
        assert_eq!(found.len(), rota_device::DType::ALL.len());
        assert!(rota_device::DType::ALL.into_iter().all(|dtype| wire_dtype(dtype).bytes() == dtype.bytes()));
    }
}
