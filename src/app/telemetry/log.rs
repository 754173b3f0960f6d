//! Sets up `tracing` for the process: text or JSON lines on standard error, at a level that can change while running.
//!
//! Our own lines follow `log_level`; those of libraries appear from `warn` on, because at `debug` some of them print headers.
//! Nothing here makes lines.

use std::fmt;
use std::io::IsTerminal;

use prometheus_client::metrics::counter::Counter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt as lines, reload};

use super::lines::Style;
use super::writer::{Queue, Writer};
use crate::app::config::{LogFormat, LogSettings};
use crate::server::AccessLog;

/// The log of this process. Lines that are still on their way are written when it is finished.
#[derive(Debug)]
pub struct Telemetry {
    filter: reload::Handle<EnvFilter, Registry>,
    writer: Writer,
}

/// What the rooms need of the log. Without one, as in tests, the lines of requests are events of `tracing` like all others.
#[derive(Clone, Debug, Default)]
pub struct Log(Option<Queue>);

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
        let style = style(settings.format);
        let writer = Writer::start(std::io::stderr(), style, report_dropped)
            .map_err(|error| refuse(&error))?;
        let (filter, handle) = reload::Layer::new(filter(settings)?);
        let subscriber =
            tracing_subscriber::registry().with(filter).with(layer(style, into(&writer)));
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

    /// What the rooms need of it.
    pub fn log(&self) -> Log {
        Log(Some(self.writer.queue()))
    }

    /// Writes what is still on its way, for at most a second or two: a reader that is stuck must not keep the process alive.
    pub fn finish(self) {
        self.writer.finish();
    }
}

impl Log {
    /// Where the lines of requests go.
    pub(in crate::app) fn access(&self) -> AccessLog {
        match self.0.clone() {
            Some(queue) => AccessLog::new(move |line| queue.send(line)),
            None => AccessLog::default(),
        }
    }

    /// Lines that were dropped because the reader of the log is too slow.
    pub(in crate::app) fn dropped(&self) -> Counter {
        self.0.as_ref().map(Queue::dropped).cloned().unwrap_or_default()
    }
}

fn report_dropped(dropped: u64) {
    tracing::warn!(dropped, "log lines were dropped: the reader of the log is too slow");
}

/// Makes places to write a line to.
fn into(writer: &Writer) -> impl Fn() -> Queue + Send + Sync + 'static {
    let queue = writer.queue();
    move || queue.clone()
}

fn style(format: LogFormat) -> Style {
    match format {
        LogFormat::Text if std::io::stderr().is_terminal() => Style::Coloured,
        LogFormat::Text => Style::Text,
        LogFormat::Json => Style::Json,
    }
}

fn filter(settings: &LogSettings) -> Result<EnvFilter, TelemetryError> {
    let level = || format!("{}={},warn", env!("CARGO_CRATE_NAME"), settings.level);
    let directives = settings.filter.clone().unwrap_or_else(level);
    let parsed = EnvFilter::builder().parse(&directives);
    parsed.map_err(|error| TelemetryError(format!("log_filter {directives:?}: {error}")))
}

pub(super) fn layer<S, W>(style: Style, writer: W) -> Box<dyn Layer<S> + Send + Sync>
where
    S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>,
    W: for<'a> lines::MakeWriter<'a> + Send + Sync + 'static,
{
    match style {
        Style::Text | Style::Coloured => {
            lines::layer().with_ansi(style == Style::Coloured).with_writer(writer).boxed()
        }
        Style::Json => lines::layer()
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
        let writer = Writer::start(sink.clone(), style(format), report_dropped).unwrap();
        let settings = LogSettings { format, level: level.to_owned(), filter: None };
        let subscriber = tracing_subscriber::registry()
            .with(filter(&settings).unwrap())
            .with(layer(style(format), into(&writer)));
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
