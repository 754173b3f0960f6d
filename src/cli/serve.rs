//! `roadstead serve`: start, say so, wait for signals, stop.

use std::io;
use std::process::ExitCode;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::banner;
use super::command::{FAILED, complain, fail, refuse_config, say};
use crate::app::{App, Config, Running, Sources, Telemetry, raise_file_limit};

/// After everything was told to stop, blocking work on the disk may take this long.
const RUNTIME_STOP: Duration = Duration::from_secs(2);

pub(super) fn serve(sources: &Sources) -> ExitCode {
    let config = match Config::load(sources) {
        Ok(config) => config,
        Err(errors) => return refuse_config(errors.mistakes()),
    };
    let telemetry = match Telemetry::install(&config.log) {
        Ok(telemetry) => telemetry,
        Err(error) => return fail(&error.to_string()),
    };
    let code = match Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => {
            let ended = run(&runtime, config, sources, &telemetry);
            runtime.shutdown_timeout(RUNTIME_STOP);
            ended.unwrap_or_else(|line| fail(&line))
        }
        Err(error) => fail(&format!("no threads: {error}")),
    };
    telemetry.finish();
    code
}

fn run(
    runtime: &Runtime,
    config: Config,
    sources: &Sources,
    telemetry: &Telemetry,
) -> Result<ExitCode, String> {
    runtime.block_on(async {
        let mut signals = Signals::new().map_err(|error| format!("no signals: {error}"))?;
        warn(&config);
        let running =
            App::start(config.clone(), telemetry.log()).await.map_err(|error| error.to_string())?;
        let (data, observe) = (running.data_address(), running.observe_address());
        say(&banner::started(&config, data, observe, running.admin_address()));
        while let Order::Reload = signals.next().await {
            reload(&running, &config, sources, telemetry);
        }
        Ok(stop(running, &mut signals).await)
    })
}

/// What is allowed and still worth a word, at each start and reload.
fn warn(config: &Config) {
    for warning in &config.warnings {
        tracing::warn!(place = %warning.place, key = %warning.key, "{}", warning.text());
    }
    for proxy in banner::proxies(config) {
        tracing::info!("HTTP proxy: {proxy}");
    }
    let connections = u64::from(config.limits.connections);
    let wanted = connections.saturating_mul(2);
    if let Some(files) = raise_file_limit().filter(|files| *files < wanted) {
        tracing::warn!(
            files,
            connections,
            "the limit of open files is low for limits.connections; raise it (LimitNOFILE, --ulimit nofile)"
        );
    }
}

/// Reads the configuration again. A bad one changes nothing; what can only change at a start, compared with `started`, is told of.
fn reload(running: &Running, started: &Config, sources: &Sources, telemetry: &Telemetry) {
    let config = match Config::load(sources) {
        Ok(config) => config,
        Err(errors) => {
            for mistake in errors.mistakes() {
                tracing::error!("{mistake}");
            }
            running.reload_refused();
            tracing::error!("the configuration was not reloaded; the old one stays in force");
            return;
        }
    };
    if let Err(error) = running.reload(config.clone()) {
        tracing::error!("the configuration was not reloaded, the old one stays in force: {error}");
        return;
    }
    if let Err(error) = telemetry.change(&config.log) {
        tracing::error!("{error}");
    }
    warn(&config);
    let waiting = started.needs_restart(&config);
    if !waiting.is_empty() {
        tracing::warn!("changes of {} take effect at the next start", waiting.join(", "));
    }
    tracing::info!(upstreams = config.upstreams.len(), "the configuration was reloaded");
}

/// Drains; a second order to stop ends the wait.
async fn stop(running: Running, signals: &mut Signals) -> ExitCode {
    tracing::info!("stopping: running answers are finished first");
    let stopping = running.stop();
    tokio::pin!(stopping);
    loop {
        tokio::select! {
            stopped = &mut stopping => {
                if stopped.tasks_left > 0 {
                    tracing::warn!(tasks = stopped.tasks_left, "stopped at the deadline; answers that were still running were cut");
                }
                return ExitCode::SUCCESS;
            }
            order = signals.next() => if matches!(order, Order::Stop) {
                complain("stopped at once by a second signal");
                return ExitCode::from(FAILED);
            },
        }
    }
}

enum Order {
    Reload,
    Stop,
}

struct Signals {
    hangup: Signal,
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            hangup: signal(SignalKind::hangup())?,
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    async fn next(&mut self) -> Order {
        tokio::select! {
            _ = self.hangup.recv() => Order::Reload,
            _ = self.interrupt.recv() => Order::Stop,
            _ = self.terminate.recv() => Order::Stop,
        }
    }
}
