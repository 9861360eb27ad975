//! Independent jobs on several threads, with results in the jobs' order whatever the number of threads.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Does `work` for each of `jobs` on `threads` threads. `progress` hears, from any of them, how many of how many are done.
pub fn map<J: Sync, R: Send>(
    jobs: &[J],
    threads: usize,
    work: impl Fn(&J) -> R + Sync,
    progress: &(dyn Fn(usize, usize) + Sync),
) -> Vec<R> {
    let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let results: Mutex<Vec<Option<R>>> = Mutex::new(jobs.iter().map(|_| None).collect());
    let worker = || {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(job) = jobs.get(index) else { return };
            let result = work(job);
            results.lock().expect("no thread panics while it holds the lock")[index] = Some(result);
            progress(done.fetch_add(1, Ordering::Relaxed) + 1, jobs.len());
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..threads.clamp(1, jobs.len().max(1)) {
            scope.spawn(worker);
        }
    });
    let results = results.into_inner().expect("no thread panicked");
    results.into_iter().map(|result| result.expect("every job was done")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_the_order_of_the_jobs() {
        let jobs: Vec<u32> = (0..100).collect();
        for threads in [0, 1, 3] {
            let told = AtomicUsize::new(0);
            let count = |done, all| {
                told.fetch_max(done, Ordering::Relaxed);
                assert_eq!(all, 100);
            };
            assert_eq!(map(&jobs, threads, |job| 2 * job, &count), (0..200).step_by(2).collect::<Vec<_>>());
            assert_eq!(told.into_inner(), 100);
        }
        assert_eq!(map(&[] as &[u32], 2, |job| *job, &|_, _| ()), []);
    }
}
