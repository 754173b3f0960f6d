//! Sets up `tracing` for the process: text or JSON lines on standard error, at a level that can change while running.
//!
//! Our own lines follow `log_level`; those of libraries appear from `warn` on, because at `debug` some of them print headers.
//! Nothing here makes lines.

use std::fmt;
use std::io::IsTerminal;

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt as lines, reload};

use super::writer::Writer;
use crate::app::config::{LogFormat, LogSettings};

/// The log of this process. Lines that are still on their way are written when it is finished.
#[derive(Debug)]
pub struct Telemetry {
    filter: reload::Handle<EnvFilter, Registry>,
    writer: Writer,
}

/// The log cannot be set up.
#[derive(Debug)]
pub struct TelemetryError(String);

impl Telemetry {
    /// Sends all lines of this process to standard error. Once per process.
    ///
    /// # Errors
    /// When the filter does not parse, when a log is set up already, or when the system gives no thread.
    pub fn install(settings: &LogSettings) -> Result<Self, TelemetryError> {
        let refuse = |error: &dyn fmt::Display| TelemetryError(error.to_string());
        let writer = Writer::start(std::io::stderr()).map_err(|error| refuse(&error))?;
        let (filter, handle) = reload::Layer::new(filter(settings)?);
        let subscriber =
            tracing_subscriber::registry().with(filter).with(layer(settings.format, &writer));
        subscriber.try_init().map_err(|error| refuse(&error))?;
        Ok(Self { filter: handle, writer })
    }

    /// Changes level and filter; the format stays until the next start.
    ///
    /// # Errors
    /// When the filter does not parse; the old one stays.
    pub fn change(&self, settings: &LogSettings) -> Result<(), TelemetryError> {
        let changed = self.filter.reload(filter(settings)?);
        changed.map_err(|error| TelemetryError(error.to_string()))
    }

    /// Writes what is still on its way, for at most a second or two: a reader that is stuck must not keep the process alive.
    pub fn finish(self) {
        self.writer.finish();
    }
}

fn filter(settings: &LogSettings) -> Result<EnvFilter, TelemetryError> {
    let level = || format!("{}={},warn", env!("CARGO_CRATE_NAME"), settings.level);
    let directives = settings.filter.clone().unwrap_or_else(level);
    let parsed = EnvFilter::builder().parse(&directives);
    parsed.map_err(|error| TelemetryError(format!("log_filter {directives:?}: {error}")))
}

fn layer<S>(format: LogFormat, writer: &Writer) -> Box<dyn Layer<S> + Send + Sync>
where
    S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>,
{
    let queue = writer.queue();
    let writer = move || queue.clone();
    match format {
        LogFormat::Text => {
            let is_terminal = std::io::stderr().is_terminal();
            lines::layer().with_ansi(is_terminal).with_writer(writer).boxed()
        }
        LogFormat::Json => lines::layer()
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .with_span_list(false)
            .with_writer(writer)
            .boxed(),
    }
}

impl fmt::Display for TelemetryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the log cannot be set up: {}", self.0)
    }
}

impl std::error::Error for TelemetryError {}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::super::writer::tests::Shared;
    use super::*;

    fn written(format: LogFormat, level: &str, make: impl FnOnce()) -> String {
        let sink = Shared(Arc::new(Mutex::new(Vec::new())));
        let writer = Writer::start(sink.clone()).unwrap();
        let settings = LogSettings { format, level: level.to_owned(), filter: None };
        let subscriber = tracing_subscriber::registry()
            .with(filter(&settings).unwrap())
            .with(layer(format, &writer));
        tracing::subscriber::with_default(subscriber, make);
        writer.finish();
        String::from_utf8(sink.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn json_lines_are_flat_objects() {
        let text = written(LogFormat::Json, "info", || {
            tracing::info!(upstream = "ghcr.io", bytes = 7, "request")
        });
        let line: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            (&line["message"], &line["upstream"], &line["bytes"]),
            (&"request".into(), &"ghcr.io".into(), &7.into())
        );
        assert_eq!(line["level"], "INFO");
        assert!(line["timestamp"].is_string());
    }

    #[test]
    fn the_level_is_for_our_own_lines() {
        let make = || {
            tracing::debug!("ours");
            tracing::info!(target: "h2", "theirs");
            tracing::warn!(target: "h2", "loud");
        };
        let text = written(LogFormat::Text, "debug", make);
        assert!(
            text.contains("ours") && text.contains("loud") && !text.contains("theirs"),
            "{text}"
        );
        let text = written(LogFormat::Text, "info", make);
        assert!(!text.contains("ours"), "{text}");
    }
}
