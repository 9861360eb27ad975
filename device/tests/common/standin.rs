//! The stand-in driver, and what it was asked for.

use rota_device::cuda::{driver, standin};
use std::ffi::{CStr, c_char};
use std::path::PathBuf;

/// The stand-in, loaded as this process's driver.
pub struct Standin(libloading::Library);

impl Standin {
    /// `settings` as `kernels/host/driver/faults.cpp` lists them. The first call of a process decides.
    pub fn load(settings: &[(&str, &str)]) -> Standin {
        let library: PathBuf = standin::library().unwrap_or_else(|error| panic!("{error}"));
        for (name, value) in settings {
            // SAFETY: nothing else of this process looks at the environment now: the driver is not loaded, and tests of a file that uses
            // settings wait for one another.
            unsafe { std::env::set_var(name, value) };
        }
        driver::open_library(Some(&library)).unwrap();
        // SAFETY: the library that was just loaded as the driver.
        Standin(unsafe { libloading::Library::new(&library) }.unwrap())
    }

    /// How often the driver was asked for something.
    pub fn count(&self, what: &CStr) -> u64 {
        // SAFETY: the stand-in declares the function so; it reads the C string and returns a number.
        unsafe {
            let count = self.0.get::<unsafe extern "C" fn(*const c_char) -> u64>(b"rota_standin_count\0").unwrap();
            count(what.as_ptr())
        }
    }

    /// How often it is asked for each of these while `run` runs.
    pub fn during<const N: usize>(&self, what: [&CStr; N], run: impl FnOnce()) -> [u64; N] {
        let before = what.map(|what| self.count(what));
        run();
        std::array::from_fn(|at| self.count(what[at]) - before[at])
    }

    /// What happened to copies from the host while `run` ran, in order.
    pub fn traced(&self, run: impl FnOnce()) -> Vec<Moment> {
        // SAFETY: the stand-in declares the functions so; the second writes no more moments of four words than there is room for.
        unsafe {
            let begin = self.0.get::<unsafe extern "C" fn()>(b"rota_standin_trace_begin\0").unwrap();
            let end = self.0.get::<unsafe extern "C" fn(*mut u64, u64) -> u64>(b"rota_standin_trace_end\0").unwrap();
            begin();
            run();
            let mut words = vec![[0u64; 4]; 1 << 20];
            let count = end(words.as_mut_ptr().cast(), words.len() as u64) as usize;
            assert!(count <= words.len(), "{count} moments are more than there is room for");
            words.truncate(count);
            words.into_iter().map(|[copy, _, bytes, done]| Moment { copy, bytes, done: done != 0 }).collect()
        }
    }
}

/// Something that happened to a copy from the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// Copies are numbered as they are given.
    pub copy: u64,
    /// When it is given; 0 when it is done.
    pub bytes: u64,
    /// It is done; else it is given.
    pub done: bool,
}
