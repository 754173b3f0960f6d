//! HTTP: accept, limits, routes, replies, `/v2`, health and the metrics page.
//!
//! A request is read by `route` into one value that cannot be illegal, answered by the registry through `dispatch` and `v2`, and
//! leaves through `body`, `io` and `serve`. The admin API has a listener of its own and shares nothing with the others. Status codes exist only in `reply`, deadlines of connections only in `connection`. The
//! room knows no upstream, no file and no database; it opens no connection of its own and never reads a request body.

mod access;
mod admin;
mod body;
mod caller;
mod connection;
mod dispatch;
#[doc(hidden)]
pub mod doors;
mod error;
mod guard;
mod headers;
mod hot;
mod hub;
mod io;
mod listen;
mod metrics;
mod names;
mod observe;
mod parts;
mod places;
mod record;
mod reply;
mod route;
mod serve;
mod service;
mod settings;
mod slots;
mod v2;

pub use access::{ACCESS_TARGET, AccessFields, AccessLine, AccessLog};
pub use admin::{Admin, AdminListener, AdminSocket, GuardedListener, SOCKET_NAME, TOKEN_FILE};
pub use error::BindError;
pub use listen::Server;
pub use metrics::Metrics;
pub use service::{MetricsPage, State};
pub use settings::{
    ANSWER, ANSWER_LAZY, ANSWER_REFERRERS, ANSWER_SOCI, CLIENTS_DEFAULT, CONNECTIONS,
    CONNECTIONS_PER_CLIENT, Fallback, HEADER_BYTES, HEADER_TIME, HEADERS, IDLE_BODY,
    IDLE_CONNECTION, LISTEN_DEFAULT, Limits, MIN_RATE, OBSERVE_CONNECTIONS, OBSERVE_DEFAULT,
    PATH_BYTES, QUERY_BYTES, Settings,
};
