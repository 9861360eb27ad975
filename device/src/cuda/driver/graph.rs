//! A list of launches that the driver keeps, to be replayed by one call.

use super::{DriverError, Stream, check};
use crate::cuda::driver::Context;
use cudarc::driver::sys;
use std::sync::Arc;

/// Captured work, ready to be launched.
pub struct Graph {
    raw: sys::CUgraphExec,
    context: Arc<Context>,
}

// SAFETY: one owner, and the driver may be called on it from any thread that has made its context current.
unsafe impl Send for Graph {}
// SAFETY: launching does not change it.
unsafe impl Sync for Graph {}

impl Graph {
    /// What `record` gives to `stream` is kept instead of done.
    pub fn capture(stream: &Stream, record: impl FnOnce() -> Result<(), DriverError>) -> Result<Graph, DriverError> {
        stream.context.enter()?;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is ours.
        check("cuStreamBeginCapture", unsafe { sys::cuStreamBeginCapture_v2(stream.raw, mode) })?;
        let recorded = record();
        let mut graph = std::ptr::null_mut();
        // SAFETY: ends what was begun above, also after a failure in between; one pointer is written.
        let ended = check("cuStreamEndCapture", unsafe { sys::cuStreamEndCapture(stream.raw, &mut graph) });
        recorded?;
        ended?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: `graph` was just made; one pointer is written.
        let made = check("cuGraphInstantiate", unsafe { sys::cuGraphInstantiateWithFlags(&mut raw, graph, 0) });
        // SAFETY: ours, and the instance does not need it.
        unsafe { sys::cuGraphDestroy(graph) };
        made?;
        Ok(Graph { raw, context: Arc::clone(&stream.context) })
    }

    /// Does what was captured, as the stream's next work.
    pub fn launch(&self, stream: &Stream) -> Result<(), DriverError> {
        // SAFETY: both are ours and of one context. The addresses captured are kept by whoever owns this graph.
        check("cuGraphLaunch", unsafe { sys::cuGraphLaunch(self.raw, stream.raw) })
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if self.context.enter().is_ok() {
            // SAFETY: ours. A failure leaves it to the context's end.
            unsafe { sys::cuGraphExecDestroy(self.raw) };
        }
    }
}
