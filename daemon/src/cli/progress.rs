//! Progress of long work, on stderr: a bar on a terminal, lines elsewhere.

use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::time::Duration;

pub struct Progress {
    /// `None`: stderr is no terminal.
    bar: Option<ProgressBar>,
    steps: usize,
}

impl Progress {
    /// Of work that is known to have `steps` steps.
    pub fn of_steps(steps: usize) -> Progress {
        let style = ProgressStyle::with_template("{bar:24} {pos}/{len} {msg}").expect("the template is a constant");
        let bar = || ProgressBar::new(steps as u64).with_style(style);
        Progress { bar: std::io::stderr().is_terminal().then(bar), steps }
    }

    /// Of work that nobody can foresee.
    pub fn waiting(what: &str) -> Progress {
        if !std::io::stderr().is_terminal() {
            eprintln!("{what}");
            return Progress { bar: None, steps: 0 };
        }
        let bar = ProgressBar::new_spinner().with_message(what.to_string());
        bar.enable_steady_tick(Duration::from_millis(100));
        Progress { bar: Some(bar), steps: 0 }
    }

    /// Step `index`, from 0, has begun.
    pub fn step(&self, index: usize, what: &str) {
        match &self.bar {
            Some(_) => self.detail(index, what),
            None => eprintln!("{}/{} {what}", index + 1, self.steps),
        }
    }

    /// More about the step that is under way; for terminals only.
    pub fn detail(&self, index: usize, what: &str) {
        if let Some(bar) = &self.bar {
            bar.set_position(index as u64);
            bar.set_message(what.to_string());
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
