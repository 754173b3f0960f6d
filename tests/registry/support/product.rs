//! The only file of the suite that knows the product's Rust surface: load a configuration, start, reload, stop.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use roadstead::app::{App, Config, Overrides, Running, Sources};
pub use roadstead::clock::{Clock, ManualClock, Timestamp};

/// A running product.
pub struct Product(Running);

fn load(file: &Path) -> Result<Config, String> {
    let sources = Sources {
        file: Some(file.to_owned()),
        environment: Vec::new(),
        arguments: Overrides::default(),
    };
    Config::load(&sources).map_err(|errors| errors.to_string())
}

impl Product {
    /// Starts with the configuration in this file, nothing of this process's environment, and this clock.
    pub async fn start(file: &Path, clock: &ManualClock) -> Result<Self, String> {
        let started = App::start_with(load(file)?, Arc::new(clock.clone())).await;
        started.map(Self).map_err(|error| error.to_string())
    }

    pub fn data_address(&self) -> SocketAddr {
        self.0.data_address()
    }

    pub fn observe_address(&self) -> SocketAddr {
        self.0.observe_address()
    }

    /// The listener of an upstream that has its own.
    pub fn extra_address(&self, upstream: &str) -> SocketAddr {
        let mut all = self.0.extra_addresses().iter();
        let found = all.find(|(_, name)| name.as_str() == upstream);
        found.expect("the configuration gives it a listener").0
    }

    /// What SIGHUP does.
    pub fn reload(&self, file: &Path) -> Result<(), String> {
        match load(file) {
            Ok(config) => self.0.reload(config).map_err(|error| error.to_string()),
            Err(errors) => {
                self.0.reload_refused();
                Err(errors)
            }
        }
    }

    /// What SIGTERM does; gives the number of tasks that did not end.
    pub async fn stop(self) -> usize {
        self.0.stop().await.tasks_left
    }
}
