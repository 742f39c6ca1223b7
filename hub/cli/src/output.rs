//! What a command says: tables for people, one JSON object for programs, progress on standard error.

use std::fmt::Display;
use std::io::{ErrorKind, IsTerminal, Write};
use std::time::Duration;

use comfy_table::{ContentArrangement, Table, presets};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::Value;

/// The exit code of a program whose reader went away: what a shell shows for one that SIGPIPE ended.
const READER_GONE: i32 = 141;

/// Writes a line to standard output: the one place where this program does. A reader who went away, as `head` does when it
/// has enough, is no failure of ours: the program ends without a word.
pub fn line(text: impl Display) {
    written(writeln!(std::io::stdout().lock(), "{text}"));
}

/// Writes a line to standard error.
pub fn error_line(text: impl Display) {
    written(writeln!(std::io::stderr().lock(), "{text}"));
}

fn written(result: std::io::Result<()>) {
    // A full disk behind a redirection is no reason to stop what was asked for; what counts is in the exit code.
    if result.is_err_and(|e| e.kind() == ErrorKind::BrokenPipe) {
        std::process::exit(READER_GONE);
    }
}

/// Where and how a command speaks.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    /// One JSON object instead of tables.
    pub json: bool,
}

impl Output {
    /// A sentence of a story, for people only.
    pub fn say(&self, text: impl AsRef<str>) {
        if !self.json {
            line(text.as_ref());
        }
    }

    /// A table, for people only.
    pub fn table(&self, head: &[&str], rows: Vec<Vec<String>>) {
        if self.json {
            return;
        }
        let mut table = Table::new();
        table.load_preset(presets::UTF8_HORIZONTAL_ONLY).set_content_arrangement(ContentArrangement::Dynamic);
        table.set_header(head);
        table.add_rows(rows);
        line(table);
    }

    /// The object, for programs only.
    pub fn object(&self, value: &Value) {
        if self.json {
            line(value);
        }
    }

    /// A progress bar over `len` steps, on standard error; hidden where nobody looks.
    pub fn progress(&self, len: u64, what: &str) -> ProgressBar {
        let bar = ProgressBar::with_draw_target(Some(len), target());
        let style = ProgressStyle::with_template("  {msg:<28} {bar:32} {human_pos}/{human_len} {per_sec} {eta}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_message(what.to_owned());
        bar
    }

    /// A spinner for a wait of unknown length, on standard error.
    pub fn spinner(&self, what: &str) -> ProgressBar {
        let spinner = ProgressBar::with_draw_target(None, target());
        spinner.set_message(what.to_owned());
        spinner.enable_steady_tick(Duration::from_millis(120));
        spinner
    }
}

fn target() -> ProgressDrawTarget {
    if std::io::stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() }
}
